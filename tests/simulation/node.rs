//! A node of the simulated network: its core, its membership, and its lives.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use unisockets::core::{Config, LookupError, NodeCore, Output};
use unisockets_signaling::identity::{KeyPair, digest};
use unisockets_signaling::member::{self, Event, Membership};
use unisockets_signaling::network::{Network, address_v6};
use unisockets_signaling::pins::Pins;
use unisockets_signaling::protocol::{Nonce, Query};
use unisockets_signaling::room::ConnectionId;
use unisockets_stack::Instant;

use crate::cables::{Cables, EndName};
use crate::capture::{self, NodeTap};
use crate::hub::{Down, HOST, Hub};
use crate::random::Random;
use crate::world::{MS, ORIGIN_UNIX_MS};

/// Largest ring of a connection here, in bytes: that to a far peer.
const BUFFER_MAX: usize = 4 * 1024 * 1024;
const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];

/// One run of a node's program.
pub struct Life {
    pub number: u64,
    pub core: NodeCore,
    pub membership: Membership,
    /// The node's end of its line to the server.
    pub line: Option<ConnectionId>,
    /// When a connection that was refused is noticed.
    refused_at: Option<u64>,
    /// From the membership's numbers to the core's.
    numbers: BTreeMap<u64, u64>,
    queries: BTreeMap<u64, Query>,
    random: Random,
    pub leaving: bool,
}

/// A node.
pub struct Node {
    pub index: usize,
    pub name: &'static str,
    pub pair: KeyPair,
    pub life: Option<Life>,
    pub lives: u64,
    /// The address that it was leased last.
    last_v4: Option<IpAddr>,
    network: Arc<Network>,
    /// Whether it gives its lease back when it leaves.
    ephemeral: bool,
    pins: Pins,
    random: Random,
}

impl Node {
    pub fn new(index: usize, network: Arc<Network>, random: Random, ephemeral: bool) -> Node {
        let pair = KeyPair::from_seed(&random.fork(7).bytes32());
        Node {
            index,
            name: NAMES[index],
            pair,
            life: None,
            lives: 0,
            last_v4: None,
            network,
            ephemeral,
            pins: Pins::default(),
            random,
        }
    }

    /// Returns the addresses that the others know the node by.
    pub fn v6(&self) -> IpAddr {
        IpAddr::V6(address_v6(self.network.id(), &self.pair.public()))
    }

    /// Returns the leased address, once there is one.
    pub fn v4(&self) -> Option<IpAddr> {
        let lease = self.life.as_ref().and_then(|life| life.core.lease());
        lease.map(|lease| IpAddr::V4(lease.lease.ipv4)).or(self.last_v4)
    }

    /// Starts a new life: the keys and the pins are kept, the incarnation is new.
    pub fn start(&mut self, capture: &capture::Shared) {
        self.lives += 1;
        let random = self.random.fork(self.lives);
        let config = Config {
            network: Arc::clone(&self.network),
            pair: self.pair.clone(),
            seed: digest("simulation", &[&random.fork(1).bytes32()]),
            origin_unix_ms: ORIGIN_UNIX_MS,
            pins: self.pins.clone(),
            host: HOST.to_owned(),
        };
        let mut core = NodeCore::new(config);
        core.set_tap(Box::new(NodeTap::new(capture, self.name)));
        let membership = Membership::new(member::Config {
            network: Arc::clone(&self.network),
            pair: self.pair.clone(),
            name: Some(self.name.to_owned()),
            ipv4: None,
            ephemeral: self.ephemeral,
            host: HOST.to_owned(),
        });
        self.life = Some(Life {
            number: self.lives,
            core,
            membership,
            line: None,
            refused_at: None,
            numbers: BTreeMap::new(),
            queries: BTreeMap::new(),
            random: random.fork(2),
            leaving: false,
        });
    }

    /// Ends the life at once; returns its line.
    pub fn crash(&mut self) -> Option<ConnectionId> {
        self.last_v4 = self.v4();
        let life = self.life.take()?;
        self.pins = life.core.pins.clone();
        life.line
    }

    pub fn next(&self) -> Option<u64> {
        let life = self.life.as_ref()?;
        let core = life.core.poll_timeout().map(Instant::as_micros);
        let member = life.membership.poll_timeout().filter(|_| life.refused_at.is_none()).map(|ms| ms * MS);
        [core, member, life.refused_at].into_iter().flatten().min()
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: u64, hub: &mut Hub) {
        let Some(life) = &mut self.life else {
            return;
        };
        life.core.handle_timeout(Instant::from_micros(now));
        if life.refused_at.is_some_and(|at| at <= now) {
            life.refused_at = None;
            life.membership.handle_closed(now / MS, life.random.next());
        }
        if life.refused_at.is_none() && life.membership.handle_timeout(now / MS) {
            if let Some(old) = life.line.take() {
                hub.hang_up(now, old);
            }
            life.line = hub.connect(now, self.index, life.number);
            if life.line.is_none() {
                life.refused_at = Some(now + 5 * MS);
            }
        }
    }

    /// Takes what came down the line.
    pub fn take_down(&mut self, now: u64, line: ConnectionId, number: u64, down: Down, hub: &mut Hub) {
        let life = self.life.as_mut().filter(|life| life.number == number && life.line == Some(line));
        let Some(life) = life else {
            return;
        };
        match down {
            Down::Text(text) => {
                let nonce = Nonce::new(life.random.bytes32());
                life.membership.handle_frame(now / MS, &text, nonce);
            }
            Down::Ping => hub.pong(now, line),
            Down::Close => {
                life.line = None;
                life.membership.handle_closed(now / MS, life.random.next());
            }
        }
    }

    /// Somebody sets the node's clock on the wall.
    pub fn set_clock(&mut self, now: u64, ahead_ms: i64) {
        if let Some(life) = &mut self.life {
            let unix_ms = (ORIGIN_UNIX_MS + now / MS).saturating_add_signed(ahead_ms);
            life.core.set_calendar(Instant::from_micros(now), unix_ms);
        }
    }

    /// No more is remembered or held than there can be.
    pub fn check_limits(&self, nodes: usize) {
        let Some(life) = &self.life else {
            return;
        };
        let stack = &life.core.stack;
        let memory = 2 * BUFFER_MAX * stack.connection_count();
        assert!(stack.committed_bytes() <= memory, "{} holds memory of connections that are over", self.name);
        assert!(stack.orphan_count() <= stack.connection_count(), "{} has too many orphans", self.name);
        assert!(life.core.peer_keys().len() < nodes, "{} knows more peers than there are", self.name);
    }

    /// Returns what was refused although nobody has done anything wrong.
    pub fn refusals(&self) -> Vec<&'static str> {
        let core = self.life.as_ref().map(|life| &life.core);
        let refused = core.into_iter().flat_map(NodeCore::refusals).map(|(kind, _)| kind);
        refused
            .filter(|kind| !matches!(*kind, "foreign_source" | "no_link" | "signal_wrong_offer" | "refused_by_peer"))
            .collect()
    }

    /// Says goodbye to everybody.
    pub fn leave(&mut self, now: u64) {
        if let Some(life) = &mut self.life {
            life.leaving = true;
            life.core.leave(Instant::from_micros(now));
            life.membership.leave();
        }
    }

    /// Moves everything that can be moved at this moment; returns whether there was anything.
    pub fn settle(&mut self, now: u64, hub: &mut Hub, cables: &mut Cables, log: &mut Vec<String>) -> bool {
        let index = self.index;
        let Some(life) = &mut self.life else {
            return false;
        };
        let at = Instant::from_micros(now);
        let mut busy = false;
        life.core.pump(at);
        while let Some(output) = life.core.poll_output() {
            busy = true;
            match output {
                Output::OpenLink { link, role } => {
                    let name = EndName { node: index, life: life.number, link };
                    let made = cables.open(now, name, role);
                    life.core.link_made(link, made);
                }
                Output::Resolve { id, query } => {
                    let number = life.membership.resolve(query.clone());
                    life.numbers.insert(number, id);
                    life.queries.insert(id, query);
                }
                Output::Signal { to, payload } => drop(life.membership.signal(to, payload)),
                _ => {}
            }
        }
        while let Some(event) = life.membership.poll_event() {
            busy = true;
            if let Some(text) = life.take_event(at, event) {
                log.push(format!("{:>12} {}: {text}", now, self.name));
            }
        }
        while let Some(frame) = life.membership.poll_frame() {
            busy = true;
            if let Some(line) = life.line {
                hub.send(now, line, frame);
            }
        }
        busy
    }
}

impl Life {
    fn take_event(&mut self, at: Instant, event: Event) -> Option<String> {
        match event {
            Event::Joined(welcome) => {
                self.core.joined(at, &welcome).expect("the server's key never changes");
                return Some(format!("joined as {}", welcome.lease.lease.ipv4));
            }
            Event::Rejected(code, text) => panic!("a member was rejected: {code:?} {text}"),
            Event::Disconnected => {
                self.core.signaling_lost();
                return Some("lost signaling".to_owned());
            }
            Event::Resolved(number, answer) => {
                if let Some(id) = self.numbers.remove(&number) {
                    let query = self.queries.remove(&id);
                    let answer = answer.map_err(LookupError::from);
                    self.core.resolved(at, id, answer, query.as_ref());
                }
            }
            Event::Signal(from, payload) => self.core.handle_signal(at, from, &payload),
            Event::Undelivered { to, failure, .. } if failure.is_not_found() => {
                self.core.undelivered(at, to);
                return Some(format!("{} is not to be found", to.short()));
            }
            Event::Gone(key, reason) => {
                self.core.peer_gone(at, key, reason);
                return Some(format!("{} is gone: {reason:?}", key.short()));
            }
            Event::Undelivered { .. } | Event::Members(..) | Event::Delivered(_) => {}
        }
        None
    }
}
