//! A member without I/O: packets between the stack and the links, and the life of peers.
//!
//! The shell around it tells it the time, what links report and what signaling says, and carries out its
//! [`Output`]s. A whole network of these runs in one thread on a virtual clock.

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use unisockets_link::{Counters, Lane, Link, Role, frame};
use unisockets_signaling::envelope::{Freshness, SessionId};
use unisockets_signaling::identity::{KeyPair, PublicKey, digest};
use unisockets_signaling::network::Network;
use unisockets_signaling::pins::{Pins, Subject};
use unisockets_signaling::protocol::{Member, Query, SignedLease, Welcome};
use unisockets_stack::{Class, DropReason, Event, Instant, PathEnd, PathId, Prefix, Room, SocketId, Stack};

use crate::device::Device;
use crate::lookup::{Lookup, LookupError};
use crate::peers::{LinkEntry, LinkId, Peer};
use crate::tap::{Direction, Tap};

/// Members whose addresses are remembered between looking up and dialling.
const KNOWN_MAX: usize = 4_096;
/// Remarkable things that are kept for `status`.
const INCIDENTS_MAX: usize = 64;
/// Peers of one node.
pub(crate) const PEERS_MAX: usize = 16_384;

/// What the shell has to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Make a link, then call [`NodeCore::link_made`].
    OpenLink {
        /// Its name.
        link: LinkId,
        /// Who makes the offer.
        role: Role,
    },
    /// Ask signaling, then call [`NodeCore::resolved`].
    Resolve {
        /// Comes back with the answer.
        id: u64,
        /// Who is wanted.
        query: Query,
    },
    /// Hand a payload to signaling.
    Signal {
        /// The recipient.
        to: PublicKey,
        /// What it gets.
        payload: String,
    },
}

/// The settings of a node.
pub struct Config {
    /// The network.
    pub network: Arc<Network>,
    /// The node's keys.
    pub pair: KeyPair,
    /// Random; everything unpredictable is derived from it.
    pub seed: [u8; 32],
    /// Milliseconds since 1970 at the clock's origin.
    pub origin_unix_ms: u64,
    /// Which keys were seen before.
    pub pins: Pins,
    /// The signaling server's host and port.
    pub host: String,
}

/// Whether introductions are possible now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signaling {
    Reachable,
    Unreachable,
}

enum Pending {
    Path(PathId, IpAddr),
    Program,
}

/// A member of the network, without I/O.
pub struct NodeCore {
    /// The stack, for the calls of sockets.
    pub stack: Stack,
    pub(crate) network: Arc<Network>,
    pub(crate) pair: KeyPair,
    pub(crate) key: PublicKey,
    pub(crate) incarnation: u64,
    pub(crate) lease: Option<SignedLease>,
    /// Whether signaling can be reached now.
    pub(crate) signaling: Signaling,
    pub(crate) peers: HashMap<PublicKey, Peer>,
    pub(crate) paths: HashMap<PathId, PublicKey>,
    pub(crate) links: HashMap<LinkId, LinkEntry>,
    pub(crate) freshness: Freshness,
    pub(crate) outputs: VecDeque<Output>,
    pub(crate) tap: Option<Box<dyn Tap>>,
    pub(crate) device: Option<Device>,
    pub(crate) origin_unix_ms: u64,
    /// Which keys were seen before.
    pub pins: Pins,
    host: String,
    seed: [u8; 32],
    counter: u64,
    lookups: HashMap<u64, Pending>,
    answers: VecDeque<(u64, Lookup)>,
    known: HashMap<IpAddr, Member>,
    known_order: VecDeque<IpAddr>,
    ready: Vec<SocketId>,
    incidents: VecDeque<(u64, String)>,
    /// Kinds of what was refused, of which there are few, and how often.
    pub(crate) rejected: Vec<(&'static str, u64)>,
    packet: Vec<u8>,
    /// When the first peer needs attention, as of the last change of any.
    peers_due: Option<Instant>,
    pub(crate) peers_changed: bool,
    next_link: u64,
    /// What has passed over links that ended.
    pub(crate) past: Counters,
}

impl NodeCore {
    /// Makes a node that has not joined yet.
    pub fn new(config: Config) -> NodeCore {
        let word = |label: &str| digest("unisockets-entropy-v1", &[&config.seed, label.as_bytes()]);
        let stack_seed = u128::from_be_bytes(word("stack")[..16].try_into().expect("16 of 32 bytes"));
        let incarnation = u64::from_be_bytes(word("incarnation")[..8].try_into().expect("8 of 32 bytes"));
        NodeCore {
            stack: Stack::new(stack_seed),
            key: config.pair.public(),
            network: config.network,
            pair: config.pair,
            incarnation,
            lease: None,
            signaling: Signaling::Unreachable,
            peers: HashMap::new(),
            paths: HashMap::new(),
            links: HashMap::new(),
            freshness: Freshness::default(),
            outputs: VecDeque::new(),
            tap: None,
            device: None,
            origin_unix_ms: config.origin_unix_ms,
            pins: config.pins,
            host: config.host,
            seed: config.seed,
            counter: 0,
            lookups: HashMap::new(),
            answers: VecDeque::new(),
            known: HashMap::new(),
            known_order: VecDeque::new(),
            ready: Vec::new(),
            incidents: VecDeque::new(),
            rejected: Vec::new(),
            packet: Vec::new(),
            peers_due: None,
            peers_changed: false,
            next_link: 0,
            past: Counters::default(),
        }
    }

    /// Returns the node's key.
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// Returns the network's id.
    pub fn network(&self) -> &str {
        self.network.id()
    }

    /// Returns the keys of all peers, in their order.
    pub fn peer_keys(&self) -> Vec<PublicKey> {
        self.sorted_peers(|_| true)
    }

    /// Returns the keys of the peers that are meant, in their order: that of a hash table is another one in each run.
    fn sorted_peers(&self, meant: impl Fn(&Peer) -> bool) -> Vec<PublicKey> {
        let keys = self.peers.values().filter(|peer| meant(peer)).map(|peer| peer.key);
        // A heap sorts well enough, in a tenth of the code: the browser's module carries it.
        keys.collect::<BinaryHeap<PublicKey>>().into_sorted_vec()
    }

    /// Says what time it is outside: milliseconds since 1970.
    pub fn set_calendar(&mut self, now: Instant, unix_ms: u64) {
        self.origin_unix_ms = unix_ms.saturating_sub(now.as_micros() / 1_000);
    }

    /// Returns the node's lease.
    pub fn lease(&self) -> Option<&SignedLease> {
        self.lease.as_ref()
    }

    pub(crate) fn random(&mut self) -> [u8; 32] {
        self.counter += 1;
        digest("unisockets-entropy-v1", &[&self.seed, &self.counter.to_be_bytes()])
    }

    pub(crate) fn random_number(&mut self) -> u64 {
        u64::from_be_bytes(self.random()[..8].try_into().expect("8 of 32 bytes"))
    }

    pub(crate) fn random_session(&mut self) -> SessionId {
        SessionId(u128::from_be_bytes(self.random()[..16].try_into().expect("16 of 32 bytes")))
    }

    pub(crate) fn unix_ms(&self, now: Instant) -> u64 {
        self.origin_unix_ms + now.as_micros() / 1_000
    }

    /// Notes something that the user may want to know.
    pub(crate) fn incident(&mut self, now: Instant, kind: &'static str, text: String) {
        // Who could not be reached learns it from the call that failed.
        if kind == "no_link" {
            tracing::debug!(kind, "{text}");
        } else {
            tracing::warn!(kind, "{text}");
        }
        self.count_refusal(kind);
        if self.incidents.len() >= INCIDENTS_MAX {
            self.incidents.pop_front();
        }
        self.incidents.push_back((self.unix_ms(now), text));
    }

    /// Returns what happened that should not, oldest first, with milliseconds since 1970.
    pub fn incidents(&self) -> impl Iterator<Item = (u64, &str)> {
        self.incidents.iter().map(|(at, text)| (*at, text.as_str()))
    }

    /// Returns how often introductions and peers were refused, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.rejected.iter().copied()
    }

    /// Returns the next thing to carry out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns the next answer to [`NodeCore::lookup`].
    pub fn poll_answer(&mut self) -> Option<(u64, Lookup)> {
        self.answers.pop_front()
    }

    /// Takes the sockets whose readiness may have changed.
    pub fn take_ready(&mut self, into: &mut Vec<SocketId>) {
        into.append(&mut self.ready);
    }

    /// Takes signaling's welcome: the node has its addresses now.
    ///
    /// # Errors
    /// The text says that another server than before answers under this name.
    pub fn joined(&mut self, now: Instant, welcome: &Welcome) -> Result<(), String> {
        let host = self.host.clone();
        if let Err(changed) = self.pins.check(&Subject::Server(&host), &welcome.lease.server) {
            self.incident(now, "server_changed", changed.to_string());
            return Err(changed.to_string());
        }
        let prefix =
            |prefix: &unisockets_signaling::network::Prefix| Prefix { address: prefix.address, len: prefix.len };
        let prefixes: Vec<Prefix> = welcome.prefixes.iter().map(prefix).collect();
        let addresses = [IpAddr::V4(welcome.lease.lease.ipv4), IpAddr::V6(welcome.ipv6)];
        self.stack.set_addresses(&addresses, &prefixes);
        if let Some(tap) = &mut self.tap {
            let name = welcome.lease.lease.name.as_deref().unwrap_or("this-node");
            for address in addresses {
                tap.name(address, name);
            }
        }
        let before = self.lease.replace(welcome.lease.clone());
        let was_cut_off = std::mem::replace(&mut self.signaling, Signaling::Reachable) != Signaling::Reachable;
        if was_cut_off {
            self.dial_lost_peers(now);
        }
        if before.is_some_and(|before| before.lease.ipv4 != welcome.lease.lease.ipv4) {
            self.introduce_again();
        }
        Ok(())
    }

    /// Says that the connection to signaling broke; links and connections stay.
    pub fn signaling_lost(&mut self) {
        self.signaling = Signaling::Unreachable;
    }

    /// Starts a lookup for a program; [`NodeCore::poll_answer`] brings the answer.
    pub fn lookup(&mut self, query: Query) -> u64 {
        self.counter += 1;
        let id = self.counter;
        self.lookups.insert(id, Pending::Program);
        self.outputs.push_back(Output::Resolve { id, query });
        id
    }

    /// Takes signaling's answer to a lookup.
    pub fn resolved(&mut self, now: Instant, id: u64, answer: Lookup, query: Option<&Query>) {
        let Some(pending) = self.lookups.remove(&id) else {
            return;
        };
        let answer = answer.and_then(|member| self.check_member(now, member, query));
        match (pending, answer) {
            (Pending::Program, answer) => {
                if let Ok(member) = &answer {
                    self.remember(member);
                }
                self.answers.push_back((id, answer));
            }
            (Pending::Path(path, destination), Ok(member)) if member.present => {
                self.connect_path(now, path, destination, &member);
            }
            (Pending::Path(path, destination), _) => {
                tracing::debug!(%destination, "nobody is at that address");
                self.end_path(now, path, PathEnd::Unreachable);
            }
        }
    }

    /// Checks an answer against what was seen before (threat T1).
    fn check_member(&mut self, now: Instant, member: Member, query: Option<&Query>) -> Lookup {
        let network = self.network.id().to_owned();
        // A peer has shown its lease of that address: an answer that gives it to another key is wrong, and
        // following it would lead to the peer.
        if self.owner_of(member.ipv4).is_some_and(|owner| owner.key != member.key) {
            let text =
                format!("the signaling server gives {} to another member than the one that holds it", member.ipv4);
            self.incident(now, "answer_contradicts", text.clone());
            return Err(LookupError::untrusted(text));
        }
        // Whatever was asked, the answer also says who has an address. A refused answer leaves no pin.
        let subject = match query {
            Some(Query::Name(name)) => Some(Subject::Name(&network, name)),
            Some(Query::Ip(IpAddr::V4(address))) => Some(Subject::Address(&network, *address)),
            _ => None,
        };
        let address = Subject::Address(&network, member.ipv4);
        let mut subjects = subject.iter().chain([&address]);
        let mut pinned = subjects.try_for_each(|subject| self.pins.compare(subject, &member.key));
        if let (Ok(()), Some(subject)) = (&pinned, &subject) {
            pinned = self.pins.check(subject, &member.key);
        }
        if let Err(changed) = pinned {
            self.incident(now, "pin_changed", changed.to_string());
            return Err(LookupError::untrusted(changed.to_string()));
        }
        Ok(member)
    }

    fn remember(&mut self, member: &Member) {
        for address in [IpAddr::V4(member.ipv4), IpAddr::V6(member.ipv6)] {
            if self.known.insert(address, member.clone()).is_none() {
                self.known_order.push_back(address);
            }
        }
        while self.known_order.len() > KNOWN_MAX {
            if let Some(oldest) = self.known_order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// Finds out who has the address that a path was made for.
    fn want_path(&mut self, now: Instant, path: PathId, destination: IpAddr) {
        // What a lookup has just found is used once; after that signaling is asked again.
        let known = self.known.remove(&destination);
        self.known_order.retain(|address| *address != destination);
        if let Some(member) = known.filter(|member| member.present) {
            return self.connect_path(now, path, destination, &member);
        }
        self.counter += 1;
        let id = self.counter;
        self.lookups.insert(id, Pending::Path(path, destination));
        self.outputs.push_back(Output::Resolve { id, query: Query::Ip(destination) });
    }

    /// Gives a pending path to the peer that it leads to, and dials.
    fn connect_path(&mut self, now: Instant, path: PathId, destination: IpAddr, member: &Member) {
        if member.key == self.key || (self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&member.key)) {
            return self.end_path(now, path, PathEnd::Unreachable);
        }
        let acquaintance = self.random_number();
        let peer = self.peers.entry(member.key).or_insert_with(|| {
            self.paths.insert(path, member.key);
            Peer::new(now, member.key, member.ipv6, path, acquaintance)
        });
        peer.name = member.name.clone().or(peer.name.take());
        peer.may_be_there();
        let route = peer.path;
        self.peers_changed = true;
        self.stack.add_route(now, destination, route);
        self.device_moved(now, path, route);
        self.dial(now, member.key);
    }

    /// Routes both addresses of a peer over its path.
    pub(crate) fn route(&mut self, now: Instant, key: &PublicKey) {
        let Some(peer) = self.peers.get(key) else {
            return;
        };
        let (path, ipv4, ipv6) = (peer.path, peer.ipv4, peer.ipv6);
        self.stack.add_route(now, IpAddr::V6(ipv6), path);
        if let Some(ipv4) = ipv4 {
            self.stack.add_route(now, IpAddr::V4(ipv4), path);
        }
    }

    /// Whether another peer has a better claim to an address: a lease of a higher epoch.
    pub(crate) fn owner_of(&self, address: Ipv4Addr) -> Option<&Peer> {
        let path = self.stack.route(IpAddr::V4(address))?;
        let peer = self.peers.get(self.paths.get(&path)?)?;
        (peer.ipv4 == Some(address)).then_some(peer)
    }

    /// Whether an address is known to be another member's: pinned to it, or what it is being dialled for.
    pub(crate) fn is_spoken_for(&self, address: Ipv4Addr, key: &PublicKey) -> bool {
        let dialled = self.stack.route(IpAddr::V4(address)).and_then(|path| self.paths.get(&path));
        let dialled = dialled.and_then(|owner| self.peers.get(owner));
        let dialled = dialled.is_some_and(|peer| peer.key != *key && peer.ipv4.is_none() && peer.link.is_none());
        let pinned = self.pins.compare(&Subject::Address(self.network.id(), address), key).is_err();
        dialled || pinned
    }

    /// Forgets a program's lookup whose answer nobody waits for any more.
    pub fn abandon_lookup(&mut self, id: u64) {
        self.lookups.remove(&id);
    }

    pub(crate) fn new_link_id(&mut self) -> LinkId {
        self.next_link += 1;
        LinkId(self.next_link)
    }

    /// Takes a message of a stream or datagram lane: whole IP packets.
    pub fn handle_message(&mut self, now: Instant, link: LinkId, message: &[u8]) {
        let Some(peer) = self.links.get(&link).and_then(|entry| self.peers.get_mut(&entry.peer)) else {
            return;
        };
        // The old link of a replaced one is heard until the new one is in use, and not after.
        if !peer.believes(link) {
            return;
        }
        let (path, interface) = (peer.path, peer.interface);
        let sources = peer.sources();
        for packet in frame::packets(message) {
            let Ok(packet) = packet else {
                return;
            };
            let result = if source_of(packet).is_some_and(|source| sources.hold(source)) {
                let handed_to_device = self.hand_to_device(now, packet, |address| sources.hold(address));
                match handed_to_device {
                    Some(result) => result,
                    None => self.stack.handle_packet(now, path, packet).map_err(DropReason::name),
                }
            } else {
                self.count_refusal("foreign_source");
                Err("foreign_source")
            };
            if let Some(tap) = &mut self.tap {
                tap.packet(now, interface, Direction::Inbound, packet, result.err());
            }
        }
    }

    /// Says that a link has room again.
    pub fn link_writable(&mut self, link: LinkId) {
        if let Some(peer) = self.links.get(&link).and_then(|entry| self.peers.get(&entry.peer)) {
            let path = peer.path;
            self.stack.path_writable(path);
            self.device_writable(path);
        }
    }

    /// Moves every packet that has room, and acts on what the stack reports. The shell calls this after
    /// everything else it does with the node.
    pub fn pump(&mut self, now: Instant) {
        loop {
            self.take_events(now);
            let Some(path) = self.stack.poll_path() else {
                break;
            };
            if path == self.stack.loopback() {
                self.pump_loopback(now, path);
            } else if let Some((link, interface)) = self.link_of(path) {
                self.pump_link(now, path, &*link, interface);
            }
        }
        while self.pump_device(now) {}
        self.take_events(now);
        if std::mem::take(&mut self.peers_changed) {
            self.peers_due = self.peers.values().filter_map(Peer::deadline).min();
        }
    }

    fn take_events(&mut self, now: Instant) {
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::Ready(socket) => self.ready.push(socket),
                Event::PathWanted { path, destination } => self.want_path(now, path, destination),
                _ => {}
            }
        }
    }

    pub(crate) fn mtu_of(&self, path: PathId) -> usize {
        let peer = self.paths.get(&path).and_then(|key| self.peers.get(key));
        peer.map_or(unisockets_stack::MTU_MIN, |peer| peer.mtu)
    }

    pub(crate) fn link_of(&self, path: PathId) -> Option<(Arc<dyn Link>, Option<u32>)> {
        let peer = self.peers.get(self.paths.get(&path)?)?;
        let link = self.links.get(&peer.link?)?.link.clone()?;
        Some((link, peer.interface))
    }

    fn pump_link(&mut self, now: Instant, path: PathId, link: &dyn Link, interface: Option<u32>) {
        let mut packet = std::mem::take(&mut self.packet);
        loop {
            packet.clear();
            let room = link.room();
            let room = Room { stream: room.stream, datagram: room.datagram };
            let Some(class) = self.stack.poll_packet(now, path, room, &mut packet) else {
                break;
            };
            let lane = match class {
                Class::Interactive => Lane::Interactive,
                Class::Bulk => Lane::Bulk,
                Class::Datagram => Lane::Datagram,
            };
            // The room was asked for just now and only this node fills the link: it is there.
            let dropped = link.send(lane, &packet).err().map(|_| "link_full");
            if let Some(tap) = &mut self.tap {
                tap.packet(now, interface, Direction::Outbound, &packet, dropped);
            }
        }
        self.packet = packet;
    }

    fn pump_loopback(&mut self, now: Instant, path: PathId) {
        const ROOM: Room = Room { stream: usize::MAX, datagram: usize::MAX };
        /// Packets in a row, so that two talkative sockets do not hold everybody else up.
        const BURST: usize = 64;
        let mut packet = std::mem::take(&mut self.packet);
        for _ in 0..BURST {
            packet.clear();
            if self.stack.poll_packet(now, path, ROOM, &mut packet).is_none() {
                break;
            }
            let dropped = self.stack.handle_packet(now, path, &packet).err();
            if let Some(tap) = &mut self.tap {
                tap.packet(now, None, Direction::Outbound, &packet, dropped.map(DropReason::name));
            }
        }
        self.stack.path_writable(path);
        self.packet = packet;
    }

    /// Returns when [`NodeCore::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.stack.poll_timeout(), self.peers_due].into_iter().flatten().min()
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.stack.handle_timeout(now);
        if self.peers_due.is_none_or(|due| due > now) {
            return;
        }
        let due = self.sorted_peers(|peer| peer.deadline().is_some_and(|deadline| deadline <= now));
        self.peers_changed |= !due.is_empty();
        for key in due {
            self.peer_timeout(now, key);
        }
    }
}

/// Returns the source address of an IP packet whose length was checked.
fn source_of(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?)),
        _ => None,
    }
}
