//! Links in virtual time: ends made for nodes, negotiated through signaling, joined by bad wires.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unisockets::core::{LinkId, NodeCore};
use unisockets_link::fault::{Conditions, Fault};
use unisockets_link::frame::{self, Probe};
use unisockets_link::liveness::{Action, Liveness, STALL_US};
use unisockets_link::memory::MemoryLink;
use unisockets_link::{Counters, Full, Lane, Link, Lost, MTU, Role, Room, Route, Signal};
use unisockets_signaling::identity::digest;
use unisockets_stack::Instant;

use crate::node::Node;
use crate::random::Random;
use crate::world::{MS, SECOND};

/// An end that does not open for so long is given up.
const OPEN_TIMEOUT: u64 = 20 * SECOND;
/// Bytes of the ordered lanes that are on their way at most.
const WINDOW: usize = 128 * 1024;
/// The first byte of a message on a wire that says that the other end has closed.
const CLOSED: u8 = 0xff;
/// A link on which nothing arrives for so long has been given up before.
const SILENCE_MAX: u64 = 30 * SECOND;
/// Bytes that prove a datagram unaltered.
const TAG_LEN: usize = 8;
/// Candidates that each end tells.
const CANDIDATES: u64 = 2;

/// Names one end of a link: (node, its life, its link).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndName {
    pub node: usize,
    pub life: u64,
    pub link: LinkId,
}

impl EndName {
    fn text(self) -> String {
        format!("{} {} {}", self.node, self.life, self.link.0)
    }

    fn parse(text: &str) -> Option<EndName> {
        let mut numbers = text.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (node, life, link) = (next()?, next()?, next()?);
        Some(EndName { node: usize::try_from(node).ok()?, life, link: LinkId(link) })
    }
}

/// A memory link that remembers which signals it was given.
#[derive(Default)]
pub struct SimLink {
    memory: MemoryLink,
    signals: Mutex<VecDeque<Signal>>,
    received: AtomicU64,
    /// The last measured round trip in microseconds, 0 before there is one.
    round_trip_us: AtomicU64,
}

impl SimLink {
    fn signals(&self) -> MutexGuard<'_, VecDeque<Signal>> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link for SimLink {
    fn room(&self) -> Room {
        self.memory.room()
    }

    fn send(&self, lane: Lane, packet: &[u8]) -> Result<(), Full> {
        self.memory.send(lane, packet)
    }

    fn send_control(&self, message: &[u8]) -> Result<(), Full> {
        self.memory.send_control(message)
    }

    fn handle_signal(&self, signal: Signal) {
        self.signals().push_back(signal);
    }

    fn counters(&self) -> Counters {
        Counters { received_packets: self.received.load(Ordering::Relaxed), ..self.memory.counters() }
    }

    fn round_trip_us(&self) -> Option<u64> {
        Some(self.round_trip_us.load(Ordering::Relaxed)).filter(|us| *us > 0)
    }

    fn route(&self) -> Option<Route> {
        Some(Route::Direct)
    }

    fn doubt(&self) {
        self.memory.doubt();
    }

    fn close(&self) {
        self.memory.close();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Descriptions are being exchanged.
    Negotiating,
    /// Its lanes open then, if the nodes can reach each other.
    Opening(u64),
    Open,
}

struct End {
    link: Arc<SimLink>,
    phase: Phase,
    /// When it is given up unless it has opened.
    deadline: u64,
    remote: Option<EndName>,
    signals: VecDeque<(u64, Signal)>,
    /// Messages that came before the lanes opened.
    early: Vec<(Lane, Vec<u8>)>,
    /// The next number of each lane, and what overtook it.
    expected: [u64; 4],
    held: BTreeMap<(usize, u64), Vec<u8>>,
    liveness: Liveness,
    /// When anything was delivered here last.
    heard_at: u64,
}

/// One direction of a link. It outlives its source, for what is still on its way.
struct Wire {
    to: EndName,
    stream: Fault,
    datagram: Fault,
    numbers: [u64; 4],
    /// Messages of ordered lanes that a black-out holds back.
    pending: VecDeque<Vec<u8>>,
    /// Bytes of ordered lanes that have not arrived.
    outstanding: usize,
}

impl Wire {
    fn next(&self) -> Option<u64> {
        self.stream.poll_timeout_us().into_iter().chain(self.datagram.poll_timeout_us()).min()
    }

    fn number(&mut self, lane: Lane, kind: u8, message: &[u8]) -> Vec<u8> {
        let number = &mut self.numbers[lane.index()];
        *number += 1;
        let numbered = [&[lane.index() as u8, kind], &(*number - 1).to_be_bytes()[..], message].concat();
        // What the encryption below a link throws away when it was altered on the way.
        let tag = digest("simulation", &[&numbered]);
        if lane == Lane::Datagram { [&numbered[..], &tag[..TAG_LEN]].concat() } else { numbered }
    }
}

/// How bad the wires between two nodes are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Of the ordered lanes: what SCTP repeats looks like delay from above.
    pub stream: Conditions,
    /// Of the datagram lane.
    pub datagram: Conditions,
}

/// All links of the network.
pub struct Cables {
    ends: BTreeMap<EndName, End>,
    wires: BTreeMap<EndName, Wire>,
    weather: BTreeMap<(usize, usize), Weather>,
    /// Pairs of nodes that cannot reach each other, until then.
    blocked: BTreeMap<(usize, usize), u64>,
    /// Links made between two nodes so far.
    made: BTreeMap<(usize, usize), u64>,
    /// Offers and answers that ends have made.
    told: BTreeSet<String>,
    /// Offers that were taken: by which life of a node, of which end.
    taken: BTreeSet<(usize, u64, EndName)>,
    random: Random,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn core(nodes: &mut [Node], name: EndName) -> Option<&mut NodeCore> {
    let life = nodes[name.node].life.as_mut()?;
    (life.number == name.life).then_some(&mut life.core)
}

impl Cables {
    pub fn new(random: Random, weather: BTreeMap<(usize, usize), Weather>) -> Cables {
        let (ends, wires) = (BTreeMap::new(), BTreeMap::new());
        let (told, taken) = (BTreeSet::new(), BTreeSet::new());
        Cables { ends, wires, weather, blocked: BTreeMap::new(), made: BTreeMap::new(), told, taken, random }
    }

    pub fn is_idle(&self) -> bool {
        self.ends.is_empty() && self.wires.is_empty()
    }

    /// Nothing passes between two nodes until then.
    pub fn block(&mut self, a: usize, b: usize, until: u64) {
        let known = self.blocked.entry(pair(a, b)).or_default();
        *known = until.max(*known);
    }

    fn is_blocked(&self, now: u64, a: usize, b: usize) -> bool {
        self.blocked.get(&pair(a, b)).is_some_and(|until| now < *until)
    }

    /// Makes an end for a node.
    pub fn open(&mut self, now: u64, name: EndName, role: Role) -> Arc<SimLink> {
        let link = Arc::new(SimLink::default());
        let mut signals = VecDeque::new();
        if role == Role::Offer {
            let sdp = format!("offer {}", name.text());
            self.told.insert(sdp.clone());
            signals.push_back((now + 2 * MS, Signal::Offer { sdp }));
            signals.extend((1..=CANDIDATES).map(|n| (now + (2 + n) * MS, candidate(name, n))));
        }
        let end = End {
            link: Arc::clone(&link),
            phase: Phase::Negotiating,
            deadline: now + OPEN_TIMEOUT,
            remote: None,
            signals,
            early: Vec::new(),
            expected: [0; 4],
            held: BTreeMap::new(),
            liveness: Liveness::new(now),
            heard_at: now,
        };
        self.ends.insert(name, end);
        link
    }

    /// A node is gone without a word.
    pub fn crash(&mut self, node: usize) {
        self.ends.retain(|name, _| name.node != node);
    }

    /// A node sends a packet that is not its own over its link to another one.
    pub fn forge(&mut self, now: u64, from: usize, to: usize, packet: &[u8]) {
        let between = |(name, wire): (&EndName, &Wire)| (name.node == from && wire.to.node == to).then_some(*name);
        let is_open = |name: &EndName| self.ends.get(name).is_some_and(|end| end.phase == Phase::Open);
        let name = self.wires.iter().filter_map(between).find(is_open);
        if let Some(wire) = name.and_then(|name| self.wires.get_mut(&name)) {
            let message = wire.number(Lane::Datagram, 0, packet);
            wire.datagram.handle_packet(now, &message);
        }
    }

    /// Every link between two nodes ends, and both know.
    pub fn cut(&mut self, now: u64, nodes: &mut [Node], a: usize, b: usize) {
        let between = |name: &EndName, end: &End| {
            end.remote.is_some_and(|remote| pair(name.node, remote.node) == pair(a, b)) && end.phase == Phase::Open
        };
        let names: Vec<EndName> = self.ends.iter().filter(|(n, e)| between(n, e)).map(|(n, _)| *n).collect();
        for name in names {
            self.wires.remove(&name);
            self.lose(now, nodes, name, Lost::Transport);
        }
    }

    fn lose(&mut self, now: u64, nodes: &mut [Node], name: EndName, lost: Lost) {
        if self.ends.remove(&name).is_some()
            && let Some(core) = core(nodes, name)
        {
            core.link_lost(Instant::from_micros(now), name.link, lost);
        }
    }

    /// Takes what nodes have left at their ends; returns whether a node has to be looked at again.
    pub fn settle(&mut self, now: u64, nodes: &mut [Node]) -> bool {
        let mut busy = false;
        let names: Vec<EndName> = self.ends.keys().copied().collect();
        for name in names {
            while let Some(signal) = self.ends.get(&name).and_then(|end| end.link.signals().pop_front()) {
                self.take_signal(now, name, &signal);
            }
            self.pull(now, name);
            let Some(end) = self.ends.get(&name) else {
                continue;
            };
            if end.link.memory.is_closed() {
                self.finish(now, name);
            } else if end.phase == Phase::Open
                && end.link.memory.take_writable()
                && let Some(core) = core(nodes, name)
            {
                core.link_writable(name.link);
                busy = true;
            }
        }
        busy
    }

    fn take_signal(&mut self, now: u64, name: EndName, signal: &Signal) {
        let Some(end) = self.ends.get_mut(&name) else {
            return;
        };
        if let Signal::Offer { sdp } | Signal::Answer { sdp } = signal {
            assert!(self.told.contains(sdp), "an altered introduction was let through: {sdp}");
        }
        match signal {
            Signal::Offer { sdp } => {
                let remote = sdp.strip_prefix("offer ").and_then(EndName::parse).expect("an offer names its end");
                end.remote = Some(remote);
                assert!(self.taken.insert((name.node, name.life, remote)), "an offer was taken twice");
                let sdp = format!("answer {}", name.text());
                self.told.insert(sdp.clone());
                end.signals.push_back((now + 2 * MS, Signal::Answer { sdp }));
                end.signals.extend((1..=CANDIDATES).map(|n| (now + (2 + n) * MS, candidate(name, n))));
            }
            Signal::Answer { sdp } => {
                let remote = sdp.strip_prefix("answer ").and_then(EndName::parse).expect("an answer names its end");
                end.remote = Some(remote);
                self.join(now, name, remote);
            }
            Signal::Candidate { candidate, .. } => {
                // Candidates are of the end that the description named.
                let of = candidate.strip_prefix("candidate ").and_then(|text| text.rsplit_once(' '));
                let of = of.and_then(|(of, _)| EndName::parse(of));
                assert!(end.remote.is_none() || end.remote == of, "a candidate of another attempt was let through");
            }
        }
    }

    /// Joins two ends by wires; their lanes open a little later, not at the same time.
    fn join(&mut self, now: u64, offerer: EndName, answerer: EndName) {
        let matches = |end: &End| end.remote == Some(offerer) && end.phase == Phase::Negotiating;
        if !self.ends.get(&answerer).is_some_and(matches) {
            return;
        }
        let nodes = pair(offerer.node, answerer.node);
        let made = self.made.entry(nodes).or_default();
        *made += 1;
        let label = (nodes.0 * 100 + nodes.1) as u64 * 1_000_000 + *made;
        let mut random = self.random.fork(label);
        let weather = self.weather.get(&nodes).copied().unwrap_or_default();
        for (from, to) in [(offerer, answerer), (answerer, offerer)] {
            let wire = Wire {
                to,
                stream: Fault::new(weather.stream, random.next()),
                datagram: Fault::new(weather.datagram, random.next()),
                numbers: [0; 4],
                pending: VecDeque::new(),
                outstanding: 0,
            };
            self.wires.insert(from, wire);
            if let Some(end) = self.ends.get_mut(&from) {
                end.phase = Phase::Opening(now + random.within(MS, 50 * MS));
            }
        }
    }

    /// Moves messages from an end's queues onto its wire.
    fn pull(&mut self, now: u64, name: EndName) {
        let (Some(end), Some(wire)) = (self.ends.get_mut(&name), self.wires.get_mut(&name)) else {
            return;
        };
        if end.phase != Phase::Open {
            return;
        }
        let blocked = self.blocked.get(&pair(name.node, wire.to.node)).is_some_and(|until| now < *until);
        while wire.outstanding < WINDOW
            && let Some((lane, message)) = end.link.memory.take()
        {
            let numbered = wire.number(lane, 0, &message);
            if lane == Lane::Datagram {
                if !blocked {
                    wire.datagram.handle_packet(now, &numbered);
                }
            } else {
                wire.outstanding += numbered.len();
                wire.pending.push_back(numbered);
            }
        }
        if !blocked {
            wire.pending.drain(..).for_each(|message| wire.stream.handle_packet(now, &message));
        }
        end.liveness.outstanding(now, wire.outstanding);
        assert!(wire.outstanding < WINDOW + 2 * MTU, "a wire holds more than its window");
    }

    /// The owner has closed an end: what it said last still leaves, and the other end hears that it is over.
    fn finish(&mut self, now: u64, name: EndName) {
        let (Some(end), Some(wire)) = (self.ends.remove(&name), self.wires.get_mut(&name)) else {
            return;
        };
        if self.blocked.get(&pair(name.node, wire.to.node)).is_some_and(|until| now < *until) {
            self.wires.remove(&name);
            return;
        }
        while let Some((Lane::Control, message)) = end.link.memory.take() {
            let message = wire.number(Lane::Control, 0, &message);
            wire.stream.handle_packet(now, &message);
        }
        let closed = wire.number(Lane::Control, CLOSED, &[]);
        wire.stream.handle_packet(now, &closed);
    }

    pub fn next(&self, now: u64) -> Option<u64> {
        let ends = self.ends.values().flat_map(|end| {
            let signal = end.signals.front().map(|(at, _)| *at);
            let phase = match end.phase {
                Phase::Negotiating => end.deadline,
                Phase::Opening(at) => at.min(end.deadline),
                Phase::Open => end.liveness.poll_timeout_us().max(now),
            };
            signal.into_iter().chain([phase])
        });
        let heals = self.blocked.values().copied().filter(|until| *until > now);
        ends.chain(self.wires.values().filter_map(Wire::next)).chain(heals).min()
    }

    /// Does what is due.
    pub fn handle(&mut self, now: u64, nodes: &mut [Node]) {
        let names: Vec<EndName> = self.ends.keys().copied().collect();
        for name in names {
            self.say_signals(now, nodes, name);
            self.try_open(now, nodes, name);
            self.probe(now, nodes, name);
        }
        let names: Vec<EndName> = self.wires.keys().copied().collect();
        for name in names {
            self.carry(now, nodes, name);
        }
        let ends = &self.ends;
        self.wires.retain(|name, wire| ends.contains_key(name) || wire.next().is_some());
    }

    fn say_signals(&mut self, now: u64, nodes: &mut [Node], name: EndName) {
        while let Some(end) = self.ends.get_mut(&name)
            && end.signals.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, signal)) = end.signals.pop_front()
        {
            if let Some(core) = core(nodes, name) {
                core.link_signal(Instant::from_micros(now), name.link, &signal);
            }
        }
    }

    fn try_open(&mut self, now: u64, nodes: &mut [Node], name: EndName) {
        let Some(end) = self.ends.get(&name) else {
            return;
        };
        let (phase, deadline, remote) = (end.phase, end.deadline, end.remote);
        if phase != Phase::Open && deadline <= now {
            return self.lose(now, nodes, name, Lost::NoPath);
        }
        let (Phase::Opening(at), Some(remote)) = (phase, remote) else {
            return;
        };
        if at > now {
            return;
        }
        let blocked = self.is_blocked(now, name.node, remote.node);
        let Some(end) = self.ends.get_mut(&name) else {
            return;
        };
        if blocked {
            end.phase = Phase::Opening(now + SECOND);
            return;
        }
        end.phase = Phase::Open;
        (end.liveness, end.heard_at) = (Liveness::new(now), now);
        // As links do: the first round trip is measured at once.
        self.send_probe(now, name, Probe::Ping(now));
        if let Some(core) = core(nodes, name) {
            core.link_opened(Instant::from_micros(now), name.link);
        }
        for (lane, message) in self.ends.get_mut(&name).map(|end| std::mem::take(&mut end.early)).unwrap_or_default() {
            self.deliver(now, nodes, name, lane, &message);
        }
    }

    fn probe(&mut self, now: u64, nodes: &mut [Node], name: EndName) {
        let Some(end) = self.ends.get_mut(&name).filter(|end| end.phase == Phase::Open) else {
            return;
        };
        assert!(now < end.heard_at + SILENCE_MAX, "a link that is dead was not given up");
        match end.liveness.poll(now) {
            Some(Action::Ping(number)) => self.send_probe(now, name, Probe::Ping(number)),
            Some(Action::Lost) => {
                assert!(end.heard_at + STALL_US <= now, "a link that works was given up");
                self.lose(now, nodes, name, Lost::Silent);
            }
            None => {}
        }
    }

    fn send_probe(&mut self, now: u64, name: EndName, probe: Probe) {
        let Some(wire) = self.wires.get_mut(&name) else {
            return;
        };
        if self.blocked.get(&pair(name.node, wire.to.node)).is_none_or(|until| now >= *until) {
            let message = wire.number(Lane::Datagram, 0, &probe.emit());
            wire.datagram.handle_packet(now, &message);
        }
    }

    /// Delivers what has arrived over a wire.
    fn carry(&mut self, now: u64, nodes: &mut [Node], name: EndName) {
        loop {
            let Some(wire) = self.wires.get_mut(&name) else {
                return;
            };
            let to = wire.to;
            if let Some(message) = wire.stream.poll_packet(now) {
                // Nobody acknowledges what reaches an end that is gone.
                if self.ends.contains_key(&to) {
                    wire.outstanding = wire.outstanding.saturating_sub(message.len());
                    let outstanding = wire.outstanding;
                    if let Some(end) = self.ends.get_mut(&name) {
                        end.liveness.outstanding(now, outstanding);
                    }
                }
                self.take_ordered(now, nodes, to, message);
            } else if let Some(message) = wire.datagram.poll_packet(now) {
                let (message, tag) = message.split_at(message.len() - TAG_LEN);
                if digest("simulation", &[message])[..TAG_LEN] == *tag {
                    self.arrive(now, nodes, to, Lane::Datagram, &message[1..]);
                }
            } else {
                return;
            }
        }
    }

    /// Puts the messages of ordered lanes back into their order.
    fn take_ordered(&mut self, now: u64, nodes: &mut [Node], to: EndName, message: Vec<u8>) {
        let lane = usize::from(message[0]);
        let number = u64::from_be_bytes(message[2..10].try_into().expect("eight bytes"));
        let Some(end) = self.ends.get_mut(&to) else {
            return;
        };
        end.held.insert((lane, number), message);
        while let Some(end) = self.ends.get_mut(&to)
            && let Some(message) = end.held.remove(&(lane, end.expected[lane]))
        {
            end.expected[lane] += 1;
            self.arrive(now, nodes, to, Lane::ALL[lane], &message[1..]);
        }
    }

    /// Takes a message with its kind and number before it.
    fn arrive(&mut self, now: u64, nodes: &mut [Node], to: EndName, lane: Lane, message: &[u8]) {
        let Some(end) = self.ends.get_mut(&to) else {
            return;
        };
        if message[0] == CLOSED {
            return self.lose(now, nodes, to, Lost::Transport);
        }
        if end.phase == Phase::Open {
            self.deliver(now, nodes, to, lane, &message[9..]);
        } else {
            end.early.push((lane, message[9..].to_vec()));
        }
    }

    fn deliver(&mut self, now: u64, nodes: &mut [Node], to: EndName, lane: Lane, message: &[u8]) {
        let Some(end) = self.ends.get_mut(&to) else {
            return;
        };
        end.heard_at = now;
        match Probe::parse(message).filter(|_| lane == Lane::Datagram) {
            Some(Probe::Ping(number)) => {
                end.liveness.heard(now);
                return self.send_probe(now, to, Probe::Pong(number));
            }
            Some(Probe::Pong(number)) => {
                if let Some(round_trip) = end.liveness.pong(now, number) {
                    end.link.round_trip_us.store(round_trip, Ordering::Relaxed);
                    if let Some(core) = core(nodes, to) {
                        core.link_measured(to.link);
                    }
                }
                return;
            }
            // These links know what has arrived.
            Some(Probe::Mark(_) | Probe::Reached(..)) | None => end.liveness.heard(now),
        }
        let at = Instant::from_micros(now);
        if lane != Lane::Control {
            let packets = frame::packets(message).map(|packet| packet.expect("only whole packets were sent"));
            end.link.received.fetch_add(packets.count() as u64, Ordering::Relaxed);
        }
        match core(nodes, to) {
            Some(core) if lane == Lane::Control => core.handle_control(at, to.link, message),
            Some(core) => core.handle_message(at, to.link, message),
            None => {}
        }
    }
}

fn candidate(name: EndName, number: u64) -> Signal {
    Signal::Candidate { candidate: format!("candidate {} {number}", name.text()), mid: Some("0".to_owned()) }
}
