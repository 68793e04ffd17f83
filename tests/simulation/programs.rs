//! The programs of the simulated network: TCP sessions, floods of datagrams, pings.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use unisockets::core::Lookup;
use unisockets_signaling::protocol::Query;
use unisockets_stack::{Error, Family, Instant, Kind, SocketId, SocketOption, Stack};

use crate::datagrams::{Echoes, Flood, check_datagram};
use crate::node::Node;
use crate::talk::{Deal, Outcome, Talk};
use crate::world::SECOND;

pub const TCP_PORT: u16 = 80;
pub const UDP_PORT: u16 = 53;
/// Connections that wait for a server at most.
const BACKLOG: usize = 4;
/// How long whoever has closed a connection first is known to remember it: TIME-WAIT is a little longer.
const REMEMBERED: u64 = 50 * SECOND;
/// A connection that was not made is tried again for so long.
const TRY_FOR: u64 = 600 * SECOND;
const TRY_PAUSE: u64 = 2 * SECOND;

/// How a client finds its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    V4,
    V6,
    Name,
}

/// A connection that a client is to make.
#[derive(Debug)]
pub struct Session {
    pub client: usize,
    pub server: usize,
    pub target: Target,
    pub at: u64,
    pub buffer: Option<usize>,
    pub deal: Deal,
    /// What happened that may break it.
    pub excuse: Option<&'static str>,
    pub step: Step,
    pub tries: u32,
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Waiting(u64),
    Looking(u64),
    Talking(usize),
    Ended(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Listener,
    Receiver,
    Talk(usize),
    Echoes(usize),
}

/// The service sockets of one life of a node.
#[derive(Debug, Clone, Copy)]
struct Services {
    life: u64,
    listener: SocketId,
    receiver: SocketId,
}

/// All programs of all nodes.
pub struct Programs {
    pub sessions: Vec<Session>,
    pub talks: Vec<Talk>,
    pub floods: Vec<Flood>,
    pub echoes: Vec<Echoes>,
    /// Only looked into, never walked.
    owners: HashMap<(usize, u64, SocketId), Owner>,
    services: Vec<Option<Services>>,
    closed: bool,
}

fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Returns where a node is reached, if that is known yet.
pub fn address_of(nodes: &[Node], node: usize, target: Target) -> Option<IpAddr> {
    if target == Target::V6 { Some(nodes[node].v6()) } else { nodes[node].v4() }
}

impl Programs {
    pub fn new(nodes: usize, sessions: Vec<Session>, floods: Vec<Flood>, echoes: Vec<Echoes>) -> Programs {
        let (talks, owners, services) = (Vec::new(), HashMap::new(), vec![None; nodes]);
        Programs { sessions, talks, floods, echoes, owners, services, closed: false }
    }

    /// Starts the services of a new life.
    pub fn serve(&mut self, node: &mut Node) {
        let Some(life) = node.life.as_mut().filter(|_| !self.closed) else {
            return;
        };
        let stack = &mut life.core.stack;
        let any = |port| SocketAddr::from(([0u16; 8], port));
        let listener = stack.socket(Kind::Tcp, Family::V6).expect("a socket");
        stack.bind(listener, any(TCP_PORT)).expect("the port is free");
        stack.listen(listener, BACKLOG).expect("it is bound");
        let receiver = stack.socket(Kind::Udp, Family::V6).expect("a socket");
        stack.bind(receiver, any(UDP_PORT)).expect("the port is free");
        self.owners.insert((node.index, life.number, listener), Owner::Listener);
        self.owners.insert((node.index, life.number, receiver), Owner::Receiver);
        self.services[node.index] = Some(Services { life: life.number, listener, receiver });
    }

    /// Closes every socket that is still open.
    pub fn close(&mut self, now: u64, nodes: &mut [Node]) {
        self.closed = true;
        for (node, services) in nodes.iter_mut().zip(&self.services) {
            if let (Some(life), Some(services)) = (&mut node.life, services)
                && life.number == services.life
            {
                life.core.stack.close(Instant::from_micros(now), services.listener);
                life.core.stack.close(Instant::from_micros(now), services.receiver);
            }
        }
    }

    /// The programs of a node end with it.
    pub fn crash(&mut self, node: usize) {
        self.services[node] = None;
        for talk in self.talks.iter_mut().filter(|talk| talk.node == node) {
            talk.outcome.get_or_insert(Outcome::Died);
        }
        for session in &mut self.sessions {
            let unbegun = session.tries == 0 && matches!(session.step, Step::Waiting(_));
            if session.client == node && !unbegun && !matches!(session.step, Step::Ended(_)) {
                session.step = Step::Ended(Outcome::Died);
            }
        }
        self.floods.iter_mut().filter(|flood| flood.from == node).for_each(Flood::end);
        self.echoes.iter_mut().filter(|echoes| echoes.from == node).for_each(Echoes::end);
    }

    /// Notes what may break sessions between these nodes from now on.
    pub fn excuse(&mut self, reason: &'static str, concerns: impl Fn(usize, usize) -> bool) {
        for session in &mut self.sessions {
            let begun = session.tries > 0 || !matches!(session.step, Step::Waiting(_));
            if begun && concerns(session.client, session.server) {
                session.excuse = Some(reason);
            }
        }
    }

    pub fn are_over(&self) -> bool {
        self.sessions.iter().all(|session| matches!(session.step, Step::Ended(_)))
            && self.talks.iter().all(|talk| talk.outcome.is_some())
            && self.floods.iter().all(|flood| flood.next().is_none())
            && self.echoes.iter().all(|echoes| echoes.next().is_none())
    }

    pub fn next(&self) -> Option<u64> {
        let sessions = self.sessions.iter().filter_map(|session| match session.step {
            Step::Waiting(at) => Some(at),
            _ => None,
        });
        let talks = self.talks.iter().filter(|talk| talk.outcome.is_none()).filter_map(Talk::next);
        let datagrams = self.floods.iter().filter_map(Flood::next).chain(self.echoes.iter().filter_map(Echoes::next));
        sessions.chain(talks).chain(datagrams).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: u64, nodes: &mut [Node]) {
        for index in 0..self.sessions.len() {
            if matches!(self.sessions[index].step, Step::Waiting(at) if at <= now) {
                self.start(now, index, nodes);
            }
        }
        for index in 0..self.talks.len() {
            if let Some(directions) = self.talks[index].due(now) {
                self.drive(now, index, nodes, Some(directions));
            }
        }
        for index in 0..self.floods.len() {
            self.floods[index].send(now, index, nodes);
        }
        for index in 0..self.echoes.len() {
            if let Some((node, life, socket)) = self.echoes[index].send(now, nodes) {
                self.owners.insert((node, life, socket), Owner::Echoes(index));
            }
        }
    }

    /// Begins a try of a session.
    fn start(&mut self, now: u64, index: usize, nodes: &mut [Node]) {
        let session = &mut self.sessions[index];
        let address = address_of(nodes, session.server, session.target);
        let name = nodes[session.server].name;
        let Some(life) = &mut nodes[session.client].life else {
            session.step = Step::Waiting(now + TRY_PAUSE);
            return self.limit(now, index);
        };
        if session.target == Target::Name {
            session.step = Step::Looking(life.core.lookup(Query::Name(name.to_owned())));
        } else if let Some(address) = address.filter(|_| life.core.lease().is_some()) {
            self.connect(now, index, nodes, address);
        } else {
            session.step = Step::Waiting(now + TRY_PAUSE);
            self.limit(now, index);
        }
    }

    fn connect(&mut self, now: u64, index: usize, nodes: &mut [Node], address: IpAddr) {
        let session = &mut self.sessions[index];
        let Some(life) = &mut nodes[session.client].life else {
            return;
        };
        session.tries += 1;
        let stack = &mut life.core.stack;
        let socket = stack.socket(Kind::Tcp, family(address)).expect("a socket");
        if let Some(len) = session.buffer {
            stack.set_option(socket, SocketOption::ReceiveBuffer(len)).expect("it takes the option");
            stack.set_option(socket, SocketOption::SendBuffer(len)).expect("it takes the option");
        }
        let result = stack.connect(Instant::from_micros(now), socket, SocketAddr::new(address, TCP_PORT));
        assert_eq!(result, Err(Error::InProgress), "connecting begins");
        session.step = Step::Talking(self.talks.len());
        self.owners.insert((session.client, life.number, socket), Owner::Talk(self.talks.len()));
        self.talks.push(Talk::client(session.client, life.number, socket, index, session.deal));
    }

    /// Takes the answer to a lookup.
    pub fn take_answer(&mut self, now: u64, node: usize, id: u64, answer: &Lookup, nodes: &mut [Node]) {
        let asked = |session: &Session| session.client == node && session.step == Step::Looking(id);
        let Some(index) = self.sessions.iter().position(asked) else {
            return;
        };
        match answer {
            Ok(member) if index.is_multiple_of(2) => self.connect(now, index, nodes, IpAddr::V4(member.ipv4)),
            Ok(member) => self.connect(now, index, nodes, IpAddr::V6(member.ipv6)),
            Err(_) => {
                self.sessions[index].step = Step::Waiting(now + TRY_PAUSE);
                self.limit(now, index);
            }
        }
    }

    /// Gives a session up that has been tried for long.
    fn limit(&mut self, now: u64, index: usize) {
        let session = &mut self.sessions[index];
        if now > session.at + TRY_FOR {
            session.step = Step::Ended(Outcome::Failed(Error::HostUnreachable));
        }
    }

    /// Goes on with whoever waits for a socket.
    pub fn ready(&mut self, now: u64, node: usize, socket: SocketId, nodes: &mut [Node]) {
        let Some(life) = nodes[node].life.as_mut() else {
            return;
        };
        let number = life.number;
        match self.owners.get(&(node, number, socket)).copied() {
            Some(Owner::Listener) => self.accept(now, node, socket, nodes),
            Some(Owner::Talk(index)) => self.drive(now, index, nodes, None),
            Some(Owner::Receiver) => {
                let received: Vec<_> = std::iter::from_fn(|| life.core.stack.recv_from(socket).ok()).collect();
                received.iter().for_each(|received| check_datagram(&mut self.floods, nodes, node, received));
            }
            Some(Owner::Echoes(index)) => self.echoes[index].receive(now, socket, &mut life.core.stack),
            None => {}
        }
    }

    fn accept(&mut self, now: u64, node: usize, listener: SocketId, nodes: &mut [Node]) {
        let before = self.talks.len();
        while let Some(life) = nodes[node].life.as_mut()
            && let Ok((socket, _)) = life.core.stack.accept(Instant::from_micros(now), listener)
        {
            let index = self.talks.len();
            self.owners.insert((node, life.number, socket), Owner::Talk(index));
            self.talks.push(Talk::server(node, life.number, socket));
            self.drive(now, index, nodes, Some((true, true)));
        }
        assert!(self.talks.len() - before <= BACKLOG, "more connections have waited than the backlog holds");
    }

    /// Counts the sessions that have ended well so lately that one of their ends is in TIME-WAIT.
    pub fn remembered(&self, now: u64) -> usize {
        let lately = |talk: &&Talk| talk.outcome == Some(Outcome::Done) && talk.ended_at + REMEMBERED > now;
        let sessions: Vec<usize> = self.talks.iter().filter(lately).filter_map(|talk| talk.session).collect();
        (0..self.sessions.len())
            .filter(|index| sessions.iter().filter(|session| *session == index).count() == 2)
            .count()
    }

    /// Goes on with one end of a connection.
    fn drive(&mut self, now: u64, index: usize, nodes: &mut [Node], directions: Option<(bool, bool)>) {
        let sessions = &self.sessions;
        let deals = |session: usize| sessions[session].deal;
        let talk = &mut self.talks[index];
        let life = nodes[talk.node].life.as_mut().filter(|life| life.number == talk.life);
        let Some(stack) = life.map(|life| &mut life.core.stack) else {
            return;
        };
        match directions {
            Some(directions) => talk.drive(now, stack, &deals, directions),
            None => talk.ready(now, stack, &deals),
        }
        let (session, outcome) = (talk.session, talk.outcome);
        if let (Some(session), Some(outcome)) = (session, outcome)
            && self.sessions[session].step == Step::Talking(index)
        {
            let again = matches!(outcome, Outcome::Failed(_)) && now < self.sessions[session].at + TRY_FOR;
            self.sessions[session].step = if again { Step::Waiting(now + TRY_PAUSE) } else { Step::Ended(outcome) };
        }
    }
}

/// Opens a socket for datagrams to an address.
pub fn datagram_socket(stack: &mut Stack, kind: Kind, address: IpAddr) -> SocketId {
    stack.socket(kind, family(address)).expect("a socket")
}
