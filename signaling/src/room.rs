//! The state of a signaling server: who is connected, who watches whom. No I/O.
//!
//! The shell hands in what connections say and what the directory answers; it carries out
//! [`Output`]s. Delivery is by recipient, never broadcast: a join costs the same at 10 and at 10,000
//! members.

use std::collections::{HashMap, HashSet, VecDeque};

pub use crate::admission::Admission;
use crate::admission::{self, Refusal, crowded, describe, host_name, refusal, too_often};
pub use crate::hosts::Host;
use crate::identity::{KeyPair, PublicKey};
pub use crate::leases::Kept;
use crate::leases::{Claim, ClaimError, KEEP_SHORT_S, PROOF_S, Record};
use crate::network::{Prefix, address_v6, prefix_v6};
pub use crate::outputs::{ConnectionId, Output, Place};
use crate::pace::Pace;
pub use crate::pace::{LEASE_INTERVAL_MS, LEASES_BURST};
use crate::protocol::{
    self, Code, FromMember, FromServer, GoneReason, Hello, IceServer, Lease, Nonce, SignedLease, Welcome,
};
use crate::watches::Watches;

/// How long a connection may take to say hello, in milliseconds.
pub const HANDSHAKE_MS: u64 = 10_000;
/// How long the old session of a contended key may take to answer a ping, in milliseconds.
pub const CONTENTION_MS: u64 = 3_000;
/// Frames that are no messages before the connection is closed.
pub const BAD_FRAMES_MAX: u32 = 10;
/// Seconds after which a member renews: some times before its last proof ends, and sooner than anybody who is there
/// could be taken for gone.
pub const RENEW_S: u64 = 600;
const _: () = assert!(RENEW_S < KEEP_SHORT_S && 3 * RENEW_S < PROOF_S);
/// Members that wait for the old session of their key.
const CONTENDERS_MAX: usize = 1_024;

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Signs leases.
    pub key: KeyPair,
    /// The IPv4 prefix of every network.
    pub prefix: (std::net::Ipv4Addr, u8),
    /// Which networks are let in.
    pub admission: Admission,
    /// STUN and TURN servers that members are told; `{host}` stands for what a member calls this server.
    pub ice_servers: Vec<IceServer>,
}

struct Session {
    place: Place,
    ephemeral: bool,
    resume: Nonce,
}

enum State {
    /// The challenge is out.
    Challenged {
        nonce: Nonce,
        deadline_ms: u64,
    },
    /// The hello is good; the key's old session is being probed.
    Contending {
        hello: Box<Hello>,
        deadline_ms: u64,
    },
    /// The directory is being asked.
    Claiming {
        hello: Box<Hello>,
    },
    Member(Session),
    Closing,
}

struct Connection {
    state: State,
    host: Host,
    bad_frames: u32,
}

/// The members of all networks that are connected to this instance.
pub struct Room {
    config: Config,
    connections: HashMap<ConnectionId, Connection>,
    members: HashMap<Place, ConnectionId>,
    watches: Watches,
    /// Connections for which much waits already.
    crowded: HashSet<ConnectionId>,
    outputs: VecDeque<Output>,
    /// Connections that have proven a key and are not members yet, by place: contending or claiming.
    pending: HashMap<Place, Vec<ConnectionId>>,
    /// Connections that have not said hello, and those that contend, each in the order of deadlines.
    waiting: [VecDeque<ConnectionId>; 2],
    pace: Pace,
    /// The latest time that the room was told.
    now_ms: u64,
    /// Numbers for the metrics page.
    pub totals: Totals,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Members let in.
    pub joins: u64,
    /// Requests refused.
    pub refusals: u64,
    /// Signals handed on.
    pub signals: u64,
    /// Frames that were no messages.
    pub bad_frames: u64,
    /// Messages sent to members.
    pub sent: u64,
}

impl Room {
    /// Makes an empty room.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            connections: HashMap::new(),
            members: HashMap::new(),
            watches: Watches::default(),
            crowded: HashSet::new(),
            outputs: VecDeque::new(),
            pending: HashMap::new(),
            waiting: Default::default(),
            pace: Pace::default(),
            now_ms: 0,
            totals: Totals::default(),
        }
    }

    /// Returns the next thing to carry out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns how many members are connected here.
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// Returns how many connections there are.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Returns whether a member is connected here.
    pub fn has_member(&self, network: &str, key: &PublicKey) -> bool {
        self.members.contains_key(&(network.to_owned(), *key))
    }

    fn send(&mut self, to: ConnectionId, message: FromServer) {
        self.totals.sent += 1;
        self.outputs.push_back(Output::Send(to, message));
    }

    fn refuse(&mut self, to: ConnectionId, id: Option<u64>, code: Code, message: &str) {
        self.refuse_with(to, id, Refusal::new(code, message));
    }

    fn refuse_with(&mut self, to: ConnectionId, id: Option<u64>, refusal: Refusal) {
        self.totals.refusals += 1;
        let Refusal { code, message, retry_after_ms } = refusal;
        self.send(to, FromServer::Refused { id, code, message, retry_after_ms });
    }

    fn refuse_and_close(&mut self, to: ConnectionId, code: Code, message: &str) {
        self.refuse(to, None, code, message);
        self.put_out(to);
    }

    fn put_out(&mut self, id: ConnectionId) {
        self.depart(id, GoneReason::Closed);
        self.outputs.push_back(Output::Close(id));
    }

    /// Changes the state of a connection, keeping the table of pending ones true.
    fn enter_state(&mut self, id: ConnectionId, state: State) -> Option<State> {
        let place = |state: &State| match state {
            State::Contending { hello, .. } | State::Claiming { hello } => Some((hello.network.clone(), hello.key)),
            _ => None,
        };
        let (before, after) = (self.connections.get(&id).and_then(|c| place(&c.state)), place(&state));
        let connection = self.connections.get_mut(&id)?;
        let old = std::mem::replace(&mut connection.state, state);
        if before != after {
            if let Some(place) = before
                && let Some(pending) = self.pending.get_mut(&place)
            {
                pending.retain(|other| *other != id);
                if pending.is_empty() {
                    self.pending.remove(&place);
                }
            }
            if let Some(place) = after {
                self.pending.entry(place).or_default().push(id);
            }
        }
        Some(old)
    }

    /// Takes a new connection; `host` is what it calls this server, `nonce` is random.
    pub fn open(&mut self, now_ms: u64, id: ConnectionId, host: Host, nonce: Nonce) {
        self.now_ms = now_ms;
        let state = State::Challenged { nonce, deadline_ms: now_ms + HANDSHAKE_MS };
        self.connections.insert(id, Connection { state, host, bad_frames: 0 });
        self.prune();
        self.waiting[0].push_back(id);
        self.send(id, FromServer::Challenge { nonce });
    }

    /// Takes a frame.
    pub fn frame(&mut self, now_ms: u64, id: ConnectionId, frame: &str) {
        self.now_ms = now_ms;
        match protocol::parse::<FromMember>(frame) {
            Ok(message) => self.message(now_ms, id, message),
            Err(bad) => {
                self.totals.bad_frames += 1;
                let Some(connection) = self.connections.get_mut(&id) else {
                    return;
                };
                connection.bad_frames += 1;
                if connection.bad_frames >= BAD_FRAMES_MAX {
                    self.refuse_and_close(id, Code::BadMessage, "too many frames were no messages; update the client");
                } else {
                    self.refuse(id, None, Code::BadMessage, &bad.to_string());
                }
            }
        }
    }

    fn message(&mut self, now_ms: u64, id: ConnectionId, message: FromMember) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match (&mut connection.state, message) {
            (State::Closing, _) => {}
            (State::Challenged { nonce, .. }, FromMember::Hello(hello)) => {
                let nonce = *nonce;
                self.hello(now_ms, id, *hello, &nonce);
            }
            (State::Member(session), message) => {
                let place = session.place.clone();
                self.member_message(now_ms, id, place, message);
            }
            _ => self.refuse(id, None, Code::BadState, "the first message must be hello, and only the first"),
        }
    }

    fn hello(&mut self, now_ms: u64, id: ConnectionId, hello: Hello, server_nonce: &Nonce) {
        let Some(host) = self.connections.get(&id).map(|connection| &connection.host) else {
            return;
        };
        if let Err((code, message)) = admission::check(self.config.admission, host, &hello, server_nonce) {
            return self.refuse_and_close(id, code, message);
        }
        // Not before the proof: a stranger must not use up what is another's.
        if let Err(wait_ms) = self.pace.take(now_ms, &hello.key) {
            self.refuse_with(id, None, too_often(wait_ms));
            return self.put_out(id);
        }
        let place = (hello.network.clone(), hello.key);
        let Some(old) = self.members.get(&place).copied() else {
            return self.claim(now_ms, id, hello);
        };
        let resumes = match self.connections.get(&old).map(|connection| &connection.state) {
            Some(State::Member(session)) => hello.resume == Some(session.resume) && !planted!(ResumeIgnored),
            _ => true,
        };
        if resumes {
            return self.claim(now_ms, id, hello);
        }
        self.prune();
        if self.waiting[1].len() >= CONTENDERS_MAX {
            return self.refuse_and_close(id, Code::TooMuch, "too many sessions are contended; try again later");
        }
        let deadline_ms = now_ms + CONTENTION_MS;
        self.enter_state(id, State::Contending { hello: Box::new(hello), deadline_ms });
        self.waiting[1].push_back(id);
        self.outputs.push_back(Output::Probe(old));
    }

    fn claim(&mut self, now_ms: u64, id: ConnectionId, hello: Hello) {
        let claim = Claim {
            network: hello.network.clone(),
            key: hello.key,
            name: hello.name.clone(),
            ipv4: hello.ipv4,
            now_s: now_ms / 1_000,
        };
        if self.enter_state(id, State::Claiming { hello: Box::new(hello) }).is_some() {
            self.outputs.push_back(Output::Claim(id, claim));
        }
    }

    /// Takes the directory's answer to a claim, which is durable by now; `resume` is random.
    pub fn claimed(&mut self, now_ms: u64, id: ConnectionId, result: Result<Record, ClaimError>, resume: Nonce) {
        self.now_ms = now_ms;
        let Some(connection) = self.connections.get_mut(&id) else {
            // It went while the directory was asked: whoever comes next gets the lease.
            return;
        };
        let (ephemeral, is_renewal) = match &connection.state {
            State::Claiming { hello } => (hello.ephemeral, false),
            State::Member(session) => (session.ephemeral, true),
            _ => return,
        };
        let record = match result {
            Ok(record) => record,
            Err(error) => {
                self.refuse_with(id, None, refusal(error));
                if !is_renewal {
                    self.put_out(id);
                }
                return;
            }
        };
        let place = (record.network.clone(), record.key);
        if !is_renewal {
            if let Some(old) =
                self.members.insert(place.clone(), id).filter(|old| *old != id && !planted!(OldSessionStays))
            {
                // The newest proof wins; the old session ends without a word to watchers.
                self.watches.forget(old, &place.0);
                self.enter_state(old, State::Closing);
                self.outputs.push_back(Output::Close(old));
            }
            let session = Session { place: place.clone(), ephemeral, resume };
            self.enter_state(id, State::Member(session));
            self.totals.joins += 1;
            self.outputs.push_back(Output::Enter(place));
        } else if let Some(State::Member(session)) = self.connections.get_mut(&id).map(|c| &mut c.state) {
            session.resume = resume;
        }
        let host = match self.connections.get(&id).map(|connection| &connection.host) {
            Some(Host::Known(host)) => host_name(host).to_owned(),
            Some(Host::Unknown) | None => String::new(),
        };
        let welcome = self.welcome(record, resume, &host);
        self.send(id, FromServer::Welcome(Box::new(welcome)));
    }

    fn prefix_v4(&self) -> Prefix {
        Prefix { address: self.config.prefix.0.into(), len: self.config.prefix.1 }
    }

    fn welcome(&self, record: Record, resume: Nonce, host: &str) -> Welcome {
        let ipv6 = address_v6(&record.network, &record.key);
        let prefixes = vec![self.prefix_v4(), Prefix { address: prefix_v6(&record.network).into(), len: 48 }];
        let lease = Lease {
            network: record.network,
            key: record.key,
            ipv4: record.ipv4,
            name: record.name,
            epoch: record.epoch,
            // Exactly what the directory keeps the address for.
            not_after: record.proof_ends_s,
        };
        let lease = SignedLease::sign(lease, &self.config.key);
        // The server does not know its own names: the member has called it by one.
        let named = |server: &IceServer| IceServer { url: server.url.replace("{host}", host), ..server.clone() };
        let ice_servers = self.config.ice_servers.iter().map(named).collect();
        Welcome { lease, ipv6, prefixes, lease_s: RENEW_S, resume, ice_servers }
    }

    /// Takes the answer of a probed connection: its key is in use.
    pub fn alive(&mut self, id: ConnectionId) {
        let Some(State::Member(session)) = self.connections.get(&id).map(|connection| &connection.state) else {
            return;
        };
        let place = session.place.clone();
        let contends =
            |id: &ConnectionId| self.connections.get(id).is_some_and(|c| matches!(c.state, State::Contending { .. }));
        let pending = self.pending.get(&place).map(Vec::as_slice).unwrap_or_default();
        let contenders: Vec<ConnectionId> = pending.iter().copied().filter(contends).collect();
        for contender in contenders {
            let message = "this key is in use by a live session; use another key, or stop the other program";
            self.refuse_and_close(contender, Code::InUse, message);
        }
    }

    fn member_message(&mut self, now_ms: u64, id: ConnectionId, place: Place, message: FromMember) {
        match message {
            FromMember::Hello(_) => self.refuse(id, None, Code::BadState, "hello was said already"),
            FromMember::Resolve { id: number, query } => {
                self.outputs.push_back(Output::Find(id, number, place.0, query));
            }
            FromMember::List { id: number, after, limit } => {
                let limit = limit.clamp(1, protocol::LIST_LEN_MAX);
                self.outputs.push_back(Output::List(id, number, place.0, after, limit));
            }
            FromMember::Signal { id: number, to, payload } => self.signal(id, number, &place, to, payload),
            FromMember::Watch { keys } if keys.len() > protocol::WATCH_LEN_MAX => {
                self.refuse(id, None, Code::TooMuch, "watch takes at most 256 keys");
            }
            FromMember::Watch { keys } => {
                keys.into_iter().for_each(|key| self.watch(id, (place.0.clone(), key)));
            }
            FromMember::Renew => {
                if let Err(wait_ms) = self.pace.take(now_ms, &place.1) {
                    return self.refuse_with(id, None, too_often(wait_ms));
                }
                let claim = Claim { network: place.0, key: place.1, name: None, ipv4: None, now_s: now_ms / 1_000 };
                self.outputs.push_back(Output::Claim(id, claim));
            }
            FromMember::Leave => {
                self.depart(id, GoneReason::Left);
                self.outputs.push_back(Output::Close(id));
            }
        }
    }

    fn signal(&mut self, id: ConnectionId, number: u64, place: &Place, to: PublicKey, payload: String) {
        if payload.len() > protocol::PAYLOAD_LEN_MAX {
            return self.refuse(id, Some(number), Code::TooMuch, "a payload has at most 40 KiB");
        }
        let to = (place.0.clone(), to);
        self.watch(id, to.clone());
        if self.members.get(&to).is_some_and(|recipient| self.crowded.contains(recipient)) {
            // Its sender learns it; the member is not put out for what others send.
            return self.refuse_with(id, Some(number), crowded());
        }
        if self.deliver(&to, place.1, &payload) {
            self.send(id, FromServer::Delivered { id: number });
        } else {
            self.outputs.push_back(Output::Forward { connection: id, id: number, from: place.1, to, payload });
        }
    }

    /// Hands a payload to a member connected here, and drops it where much waits for that; returns whether there is one.
    pub fn deliver(&mut self, to: &Place, from: PublicKey, payload: &str) -> bool {
        let Some(recipient) = self.members.get(to).copied() else {
            return false;
        };
        if self.crowded.contains(&recipient) {
            return true;
        }
        self.totals.signals += 1;
        self.watch(recipient, (to.0.clone(), from));
        self.send(recipient, FromServer::Signal { from, payload: payload.to_owned() });
        true
    }

    /// Takes the outcome of [`Output::Forward`].
    pub fn forwarded(&mut self, id: ConnectionId, number: u64, delivered: Result<(), ()>) {
        match delivered {
            Ok(()) => self.send(id, FromServer::Delivered { id: number }),
            Err(()) => self.refuse(id, Some(number), Code::NotFound, "that member is not connected now"),
        }
    }

    /// Takes note of whether so much waits for a connection that nothing of other members shall come on top.
    pub fn crowd(&mut self, id: ConnectionId, is_crowded: bool) {
        if is_crowded && self.connections.contains_key(&id) {
            self.crowded.insert(id);
        } else {
            self.crowded.remove(&id);
        }
    }

    fn watch(&mut self, id: ConnectionId, place: Place) {
        self.watches.watch(id, place, |place| self.members.contains_key(place));
    }

    /// Takes the directory's answer to [`Output::Find`].
    pub fn found(&mut self, id: ConnectionId, number: u64, found: Option<(Record, bool)>) {
        // The operator may have changed the prefix: until it comes back, such a member has no address.
        match found.filter(|(record, _)| self.prefix_v4().contains(record.ipv4.into())) {
            Some((record, present)) => {
                self.send(id, FromServer::Resolved { id: number, member: describe(record, present) });
            }
            None => {
                self.refuse(id, Some(number), Code::NotFound, "nobody on this network has that name, address or key")
            }
        }
    }

    /// Takes the directory's answer to [`Output::List`].
    pub fn listed(&mut self, id: ConnectionId, number: u64, found: Vec<(Record, bool)>) {
        let members = found.into_iter().map(|(record, present)| describe(record, present)).collect();
        self.send(id, FromServer::Members { id: number, members });
    }

    /// Takes the end of a connection.
    pub fn closed(&mut self, id: ConnectionId, reason: GoneReason) {
        self.depart(id, reason);
        self.connections.remove(&id);
        self.crowded.remove(&id);
        self.prune();
    }

    /// Takes a member out and tells its watchers; whoever waited for its key comes in.
    fn depart(&mut self, id: ConnectionId, reason: GoneReason) {
        let Some(State::Member(session)) = self.enter_state(id, State::Closing) else {
            return;
        };
        self.watches.forget(id, &session.place.0);
        self.members.remove(&session.place);
        let successors = self.pending.get(&session.place).cloned().unwrap_or_default();
        // A lease that is being claimed again is not given back by the session before.
        let kept = match reason {
            GoneReason::Left if session.ephemeral && successors.is_empty() => Kept::Nothing,
            // Its connection broke, or the server stops: it comes back.
            _ if session.ephemeral => Kept::Briefly,
            _ => Kept::Lease,
        };
        for watcher in self.watches.of(&session.place) {
            self.send(watcher, FromServer::Gone { key: session.place.1, reason });
        }
        self.outputs.push_back(Output::Exit(session.place, kept));
        let contends =
            |id: &ConnectionId| self.connections.get(id).is_some_and(|c| matches!(c.state, State::Contending { .. }));
        if let Some(next) = successors.into_iter().rev().find(contends)
            && let Some(State::Contending { hello, .. }) = self.enter_state(next, State::Closing)
        {
            self.claim(self.now_ms, next, *hello);
        }
    }

    /// Forgets connections at the head of the queues that wait no more.
    fn prune(&mut self) {
        for queue in 0..self.waiting.len() {
            while let Some(id) = self.waiting[queue].front().copied()
                && self.deadline(queue, id).is_none()
            {
                self.waiting[queue].pop_front();
            }
        }
    }

    /// Returns when [`Room::handle_timeout`] is due, in milliseconds; it may be called earlier.
    pub fn poll_timeout(&self) -> Option<u64> {
        let next = |queue: usize| self.waiting[queue].iter().find_map(|id| self.deadline(queue, *id));
        [next(0), next(1)].into_iter().flatten().min()
    }

    fn deadline(&self, queue: usize, id: ConnectionId) -> Option<u64> {
        match (&self.connections.get(&id)?.state, queue) {
            (State::Challenged { deadline_ms, .. }, 0) | (State::Contending { deadline_ms, .. }, 1) => {
                Some(*deadline_ms)
            }
            _ => None,
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        for queue in 0..self.waiting.len() {
            self.prune();
            while let Some(id) = self.waiting[queue].front().copied()
                && self.deadline(queue, id).is_none_or(|deadline| deadline <= now_ms)
            {
                self.waiting[queue].pop_front();
                if self.deadline(queue, id).is_some() {
                    self.expire(now_ms, id);
                }
            }
        }
    }

    fn expire(&mut self, now_ms: u64, id: ConnectionId) {
        match self.enter_state(id, State::Closing) {
            // The old session did not answer: the newest proof wins.
            Some(State::Contending { hello, .. }) => self.claim(now_ms, id, *hello),
            // Its hello may be late on a slow line: whoever hears of it tries again.
            Some(_) => self.refuse_and_close(id, Code::Unavailable, "no hello came within 10 seconds; try again"),
            None => {}
        }
    }

    /// Tells everybody that the server is about to stop.
    pub fn drain(&mut self, retry_after_ms: u64) {
        let connections: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in connections {
            self.send(id, FromServer::Draining { retry_after_ms });
            self.outputs.push_back(Output::Close(id));
        }
    }
}
