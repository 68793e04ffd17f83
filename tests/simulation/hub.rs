//! The signaling server: one room, its leases and their disk, and a line to every node, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use unisockets_signaling::identity::{KeyPair, PublicKey};
use unisockets_signaling::leases::{Claim, ClaimError, Leases, Record};
use unisockets_signaling::network::address_v6;
use unisockets_signaling::protocol::{self, FromMember, FromServer, GoneReason, Nonce, Query};
use unisockets_signaling::room::{Admission, Config, ConnectionId, Host, Kept, Output, Place, Room};

use crate::disk::Disk;
use crate::promises::Promises;
use crate::random::Random;
use crate::world::{MS, ORIGIN_UNIX_MS, SECOND};

/// What every node calls the server.
pub const HOST: &str = "signal.test:8080";
const PREFIX: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 80, 0, 0), 24);
/// A line that has fallen silent is noticed by the server's pings after so long.
const SILENCE: u64 = 40 * SECOND;

/// From a node to the server.
enum Up {
    Open,
    Text(String),
    Pong,
    Gone(GoneReason),
}

/// From the server to a node.
#[derive(Debug)]
pub enum Down {
    Text(String),
    Ping,
    Close,
}

/// One connection of a node, with what is on its way in both directions.
struct Line {
    node: usize,
    life: u64,
    random: Random,
    up: VecDeque<(u64, Up)>,
    down: VecDeque<(u64, Down)>,
    /// Nothing arrives before.
    stalled_until: u64,
}

impl Line {
    /// A line keeps the order: nothing overtakes.
    fn arrival<T>(random: &mut Random, queue: &VecDeque<(u64, T)>, now: u64, stalled_until: u64) -> u64 {
        let at = (now + random.within(MS, 20 * MS)).max(stalled_until);
        queue.back().map_or(at, |(last, _)| at.max(*last))
    }

    /// Nothing arrives at either end until then; nothing is lost.
    fn stall(&mut self, until: u64) {
        self.stalled_until = self.stalled_until.max(until);
        self.up.iter_mut().for_each(|(at, _)| *at = until.max(*at));
        self.down.iter_mut().for_each(|(at, _)| *at = until.max(*at));
    }

    fn send_up(&mut self, now: u64, up: Up) {
        let at = Self::arrival(&mut self.random, &self.up, now, self.stalled_until);
        self.up.push_back((at, up));
    }

    fn send_down(&mut self, now: u64, down: Down) {
        let at = Self::arrival(&mut self.random, &self.down, now, self.stalled_until);
        self.down.push_back((at, down));
    }
}

fn due<T>(queue: &mut VecDeque<(u64, T)>, now: u64) -> Option<T> {
    if queue.front()?.0 > now {
        return None;
    }
    queue.pop_front().map(|(_, item)| item)
}

/// What the directory says, a little later.
enum Answer {
    Claimed(ConnectionId, Result<Record, ClaimError>),
    Found(ConnectionId, u64, Option<(Record, bool)>),
    Listed(ConnectionId, u64, Vec<(Record, bool)>),
}

/// The server.
pub struct Hub {
    config: Config,
    /// Nothing while the server is down.
    room: Option<Room>,
    leases: Leases,
    present: BTreeSet<Place>,
    disk: Disk,
    promises: Promises,
    /// Whether somebody on the way replays and alters introductions.
    meddling: bool,
    /// Introductions that are said again, to whom.
    replays: Vec<(u64, ConnectionId, FromServer)>,
    /// Milliseconds that the server's clock on the wall is ahead; it may be behind.
    ahead_ms: i64,
    /// Keys of the nodes.
    keys: Vec<PublicKey>,
    lines: BTreeMap<ConnectionId, Line>,
    /// Nodes whose lines stand still, until then.
    stalls: BTreeMap<usize, u64>,
    answers: VecDeque<(u64, Answer)>,
    random: Random,
    next_connection: u64,
}

impl Hub {
    pub fn new(random: Random, keys: Vec<PublicKey>, meddling: bool) -> Hub {
        let key = KeyPair::from_seed(&random.fork(1).bytes32());
        let config = Config { key, prefix: PREFIX, admission: Admission::Open, ice_servers: Vec::new() };
        Hub {
            room: Some(Room::new(config.clone())),
            config,
            leases: Leases::new(PREFIX),
            present: BTreeSet::new(),
            disk: Disk::default(),
            promises: Promises::default(),
            meddling,
            replays: Vec::new(),
            ahead_ms: 0,
            keys,
            lines: BTreeMap::new(),
            stalls: BTreeMap::new(),
            answers: VecDeque::new(),
            random,
            next_connection: 0,
        }
    }

    fn unix_ms(&self, now: u64) -> u64 {
        (ORIGIN_UNIX_MS + now / MS).saturating_add_signed(self.ahead_ms)
    }

    /// Somebody sets the server's clock.
    pub fn set_clock(&mut self, ahead_ms: i64) {
        self.ahead_ms = ahead_ms;
    }

    /// Connects a node; nothing if the server is down.
    pub fn connect(&mut self, now: u64, node: usize, life: u64) -> Option<ConnectionId> {
        self.room.as_ref()?;
        self.next_connection += 1;
        let id = ConnectionId(self.next_connection);
        // A stream of its own for each node: nodes do not shift each other's delays.
        let random = self.random.fork(1_000 + node as u64 * 1_000_000 + now / MS);
        let stalled_until = self.stalls.get(&node).copied().unwrap_or(0);
        let mut line = Line { node, life, random, up: VecDeque::new(), down: VecDeque::new(), stalled_until };
        line.send_up(now, Up::Open);
        self.lines.insert(id, line);
        Some(id)
    }

    pub fn send(&mut self, now: u64, id: ConnectionId, text: String) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.send_up(now, Up::Text(text));
        }
    }

    pub fn pong(&mut self, now: u64, id: ConnectionId) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.send_up(now, Up::Pong);
        }
    }

    /// The node's end of a line is closed.
    pub fn hang_up(&mut self, now: u64, id: ConnectionId) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.send_up(now, Up::Gone(GoneReason::Closed));
            line.down.clear();
        }
    }

    /// The node is gone without a word on this line.
    pub fn fall_silent(&mut self, now: u64, id: ConnectionId) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.down.clear();
            line.up.push_back((now + SILENCE, Up::Gone(GoneReason::Timeout)));
        }
    }

    /// The line breaks: the node notices, and the server at once or only by its pings.
    pub fn cut(&mut self, now: u64, id: ConnectionId, noticed: bool) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.down.clear();
            match noticed {
                true => line.send_up(now, Up::Gone(GoneReason::Closed)),
                false => line.up.push_back((now + SILENCE, Up::Gone(GoneReason::Timeout))),
            }
            line.send_down(now, Down::Close);
        }
    }

    /// Nothing passes on any line of a node until then.
    pub fn stall(&mut self, node: usize, until: u64) {
        self.stalls.insert(node, until);
        self.lines.values_mut().filter(|line| line.node == node).for_each(|line| line.stall(until));
    }

    /// The server says goodbye to everybody.
    pub fn drain(&mut self, now: u64) {
        if let Some(room) = &mut self.room {
            room.drain(500);
        }
        self.carry_out(now);
    }

    /// The server's process ends.
    pub fn stop(&mut self, now: u64) {
        self.room = None;
        self.disk.crash();
        self.promises.stop();
        self.replays.clear();
        self.present.clear();
        self.answers.clear();
        for line in self.lines.values_mut() {
            line.up.clear();
            line.send_down(now, Down::Close);
        }
    }

    /// A new process of the server: it knows what is on the disk and nothing else.
    pub fn start(&mut self, now: u64) {
        self.leases = self.disk.load(PREFIX, self.unix_ms(now) / 1_000);
        self.room = Some(Room::new(self.config.clone()));
    }

    pub fn next(&self) -> Option<u64> {
        let lines = self.lines.values().flat_map(|line| {
            let up = line.up.front().map(|(at, _)| *at);
            up.into_iter().chain(line.down.front().map(|(at, _)| *at))
        });
        let room = self.room.as_ref().and_then(Room::poll_timeout).map(|ms| self.virtual_us(ms));
        let replays = self.replays.iter().map(|(at, _, _)| *at);
        lines.chain(self.answers.front().map(|(at, _)| *at)).chain(room).chain(replays).min()
    }

    fn virtual_us(&self, unix_ms: u64) -> u64 {
        unix_ms.saturating_add_signed(-self.ahead_ms).saturating_sub(ORIGIN_UNIX_MS) * MS
    }

    /// Does what is due at the server.
    pub fn handle(&mut self, now: u64) {
        self.disk.settle(now);
        let ids: Vec<ConnectionId> = self.lines.keys().copied().collect();
        for id in ids {
            while let Some(up) = self.lines.get_mut(&id).and_then(|line| due(&mut line.up, now)) {
                self.take_up(now, id, up);
            }
        }
        while let Some(answer) = due(&mut self.answers, now) {
            self.take_answer(now, answer);
        }
        let unix_ms = self.unix_ms(now);
        if let Some(room) = &mut self.room {
            room.handle_timeout(unix_ms);
        }
        self.carry_out(now);
        for index in (0..self.replays.len()).rev() {
            if self.replays[index].0 <= now {
                let (_, to, message) = self.replays.swap_remove(index);
                self.put(now, to, &message);
            }
        }
        self.check_limits();
    }

    /// No connection is remembered that is gone.
    fn check_limits(&self) {
        if let Some(room) = &self.room {
            let (members, connections) = (room.member_count(), room.connection_count());
            assert!(connections <= self.lines.len() && members <= self.keys.len(), "the server remembers too much");
        }
    }

    /// Returns the next thing that has reached a node: (line, node, life, what).
    pub fn poll_down(&mut self, now: u64) -> Option<(ConnectionId, usize, u64, Down)> {
        for (id, line) in &mut self.lines {
            if let Some(down) = due(&mut line.down, now) {
                let found = (*id, line.node, line.life, down);
                // What is on its way up, such as the news that the line broke, is still heard.
                if matches!(found.3, Down::Close) && line.up.is_empty() {
                    self.lines.remove(&found.0);
                }
                return Some(found);
            }
        }
        None
    }

    fn take_up(&mut self, now: u64, id: ConnectionId, up: Up) {
        let nonce = Nonce::new(self.random.fork(id.0 + (now << 8)).bytes32());
        let (unix_ms, from) = (self.unix_ms(now), self.lines.get(&id).map(|line| self.keys[line.node]));
        let (Some(room), Some(from)) = (&mut self.room, from) else {
            return;
        };
        match up {
            Up::Open => room.open(unix_ms, id, Host::Known(HOST.to_owned()), nonce),
            Up::Text(text) => {
                let message = protocol::parse::<FromMember>(&text).expect("members send messages");
                let resumes = self.promises.heard(from, id, &message);
                room.frame(unix_ms, id, &text);
                if resumes {
                    let asks = |output: &Output| matches!(output, Output::Probe(_));
                    let outputs: Vec<Output> = std::iter::from_fn(|| room.poll_output()).collect();
                    assert!(!outputs.iter().any(asks), "a member that shows its token has to wait for its old session");
                    outputs.into_iter().for_each(|output| self.carry(now, output));
                }
            }
            Up::Pong => room.alive(id),
            Up::Gone(reason) => {
                self.promises.ended(id);
                room.closed(id, reason);
                // What was on its way down, such as a last close, is still delivered.
                if self.lines.get(&id).is_some_and(|line| line.down.is_empty()) {
                    self.lines.remove(&id);
                }
            }
        }
        self.carry_out(now);
    }

    fn take_answer(&mut self, now: u64, answer: Answer) {
        let resume = Nonce::new(self.random.fork(now ^ 0xface).bytes32());
        let unix_ms = self.unix_ms(now);
        let Some(room) = &mut self.room else {
            return;
        };
        match answer {
            Answer::Claimed(id, result) => room.claimed(unix_ms, id, result, resume),
            Answer::Found(id, number, found) => room.found(id, number, found),
            Answer::Listed(id, number, found) => room.listed(id, number, found),
        }
        self.carry_out(now);
    }

    fn carry_out(&mut self, now: u64) {
        while let Some(output) = self.room.as_mut().and_then(Room::poll_output) {
            self.carry(now, output);
        }
    }

    fn carry(&mut self, now: u64, output: Output) {
        {
            match output {
                Output::Send(id, message) => self.say(now, id, &message),
                Output::Close(id) => {
                    self.promises.ended(id);
                    if let Some(line) = self.lines.get_mut(&id) {
                        line.up.clear();
                        line.send_down(now, Down::Close);
                    }
                    if let Some(room) = &mut self.room {
                        room.closed(id, GoneReason::Closed);
                    }
                }
                Output::Probe(id) => {
                    if let Some(line) = self.lines.get_mut(&id) {
                        line.send_down(now, Down::Ping);
                    }
                }
                Output::Claim(id, claim) => {
                    let result = self.claim(now, &claim);
                    self.answer(now, Answer::Claimed(id, result));
                }
                Output::Enter(place) => drop(self.present.insert(place)),
                Output::Exit(place, kept) => self.exit(now, &place, kept),
                Output::Find(id, number, network, query) => {
                    let found = self.find(&network, &query);
                    self.answer(now, Answer::Found(id, number, found));
                }
                Output::List(id, number, network, after, limit) => {
                    let describe = |record: &Record| (record.clone(), self.is_present(&network, &record.key));
                    let found = self.leases.after(&network, after).take(limit).map(describe).collect();
                    self.answer(now, Answer::Listed(id, number, found));
                }
                Output::Forward { connection, id, .. } => {
                    // There is no other instance.
                    if let Some(room) = &mut self.room {
                        room.forwarded(connection, id, Err(()));
                    }
                }
            }
        }
    }

    fn say(&mut self, now: u64, id: ConnectionId, message: &FromServer) {
        let Some(to) = self.lines.get(&id).map(|line| self.keys[line.node]) else {
            return;
        };
        self.promises.check(self.unix_ms(now) / 1_000, to, id, message);
        if let FromServer::Signal { from, payload } = message
            && self.meddling
        {
            self.meddle(now, id, *from, payload);
        }
        self.put(now, id, message);
    }

    /// Puts a message on a line.
    fn put(&mut self, now: u64, id: ConnectionId, message: &FromServer) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.send_down(now, Down::Text(protocol::emit(message)));
        }
    }

    /// Whoever carries introductions may say them again, alter them, or pass them off as another member's.
    fn meddle(&mut self, now: u64, to: ConnectionId, from: PublicKey, payload: &str) {
        let mut random = self.random.fork(now ^ 0xbad ^ to.0 << 40);
        if random.percent(30) {
            let again = FromServer::Signal { from, payload: payload.to_owned() };
            self.replays.push((now + random.within(MS, 40 * SECOND), to, again));
        }
        if random.percent(30) {
            let start = random.index(payload.len());
            let digit = |(at, byte): (usize, u8)| (at >= start && byte.is_ascii_digit()).then_some(at);
            if let Some(at) = payload.bytes().enumerate().find_map(digit) {
                let other = (payload.as_bytes()[at] - b'0' + 1) % 10;
                let payload = [&payload[..at], &other.to_string(), &payload[at + 1..]].concat();
                self.put(now, to, &FromServer::Signal { from, payload });
            }
        }
        if random.percent(10) {
            let from = self.keys[random.index(self.keys.len())];
            self.replays.push((now + MS, to, FromServer::Signal { from, payload: payload.to_owned() }));
        }
    }

    fn answer(&mut self, now: u64, answer: Answer) {
        self.answers.push_back((now + 2 * MS, answer));
    }

    fn is_present(&self, network: &str, key: &PublicKey) -> bool {
        self.present.contains(&(network.to_owned(), *key))
    }

    fn claim(&mut self, now: u64, claim: &Claim) -> Result<Record, ClaimError> {
        let present = &self.present;
        let network = claim.network.clone();
        let (record, changes) = self.leases.claim(claim, |key| present.contains(&(network.clone(), *key)))?;
        // It is durable before the answer comes.
        self.disk.write(now + MS, changes);
        Ok(record)
    }

    fn exit(&mut self, now: u64, place: &Place, kept: Kept) {
        self.present.remove(place);
        let changes = self.leases.exit(&place.0, &place.1, kept, self.unix_ms(now) / 1_000);
        self.disk.write(now + MS, changes);
    }

    fn find(&self, network: &str, query: &Query) -> Option<(Record, bool)> {
        let record = match query {
            Query::Key(key) => self.leases.by_key(network, key),
            Query::Name(name) => self.leases.by_name(network, name),
            Query::Ip(IpAddr::V4(address)) => self.leases.by_address(network, *address),
            Query::Ip(IpAddr::V6(address)) => {
                let mut records = self.leases.after(network, None);
                records.find(|record| address_v6(network, &record.key) == *address)
            }
        };
        record.map(|record| (record.clone(), self.is_present(network, &record.key)))
    }
}
