//! The signaling server: one room, its leases, and a line to every node, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use unisockets_signaling::identity::{KeyPair, PublicKey};
use unisockets_signaling::leases::{Claim, ClaimError, Leases, Record};
use unisockets_signaling::network::address_v6;
use unisockets_signaling::protocol::{self, FromServer, GoneReason, Nonce, Query};
use unisockets_signaling::room::{Admission, Config, ConnectionId, Host, Kept, Output, Place, Room};

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
}

impl Line {
    /// A line keeps the order: nothing overtakes.
    fn arrival<T>(random: &mut Random, queue: &VecDeque<(u64, T)>, now: u64) -> u64 {
        let at = now + random.within(MS, 20 * MS);
        queue.back().map_or(at, |(last, _)| at.max(*last))
    }

    fn send_up(&mut self, now: u64, up: Up) {
        let at = Self::arrival(&mut self.random, &self.up, now);
        self.up.push_back((at, up));
    }

    fn send_down(&mut self, now: u64, down: Down) {
        let at = Self::arrival(&mut self.random, &self.down, now);
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
    /// Who holds which address: kept apart from the table under test.
    ledger: BTreeMap<Ipv4Addr, PublicKey>,
    lines: BTreeMap<ConnectionId, Line>,
    answers: VecDeque<(u64, Answer)>,
    random: Random,
    next_connection: u64,
}

pub fn unix_ms(now: u64) -> u64 {
    ORIGIN_UNIX_MS + now / MS
}

impl Hub {
    pub fn new(random: Random) -> Hub {
        let key = KeyPair::from_seed(&random.fork(1).bytes32());
        let config = Config { key, prefix: PREFIX, admission: Admission::Open, ice_servers: Vec::new() };
        Hub {
            room: Some(Room::new(config.clone())),
            config,
            leases: Leases::new(PREFIX),
            present: BTreeSet::new(),
            ledger: BTreeMap::new(),
            lines: BTreeMap::new(),
            answers: VecDeque::new(),
            random,
            next_connection: 0,
        }
    }

    /// Connects a node; nothing if the server is down.
    pub fn connect(&mut self, now: u64, node: usize, life: u64) -> Option<ConnectionId> {
        self.room.as_ref()?;
        self.next_connection += 1;
        let id = ConnectionId(self.next_connection);
        // A stream of its own for each node: nodes do not shift each other's delays.
        let random = self.random.fork(1_000 + node as u64 * 1_000_000 + now / MS);
        let mut line = Line { node, life, random, up: VecDeque::new(), down: VecDeque::new() };
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

    /// The line breaks: both ends notice.
    pub fn cut(&mut self, now: u64, id: ConnectionId) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.send_up(now, Up::Gone(GoneReason::Closed));
            line.down.clear();
            line.send_down(now, Down::Close);
        }
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
        self.present.clear();
        self.answers.clear();
        for line in self.lines.values_mut() {
            line.up.clear();
            line.send_down(now, Down::Close);
        }
    }

    /// A new process of the server: it knows the leases and nothing else.
    pub fn start(&mut self) {
        self.room = Some(Room::new(self.config.clone()));
    }

    pub fn next(&self) -> Option<u64> {
        let lines = self.lines.values().flat_map(|line| {
            let up = line.up.front().map(|(at, _)| *at);
            up.into_iter().chain(line.down.front().map(|(at, _)| *at))
        });
        let room = self.room.as_ref().and_then(Room::poll_timeout).map(|ms| (ms - ORIGIN_UNIX_MS) * MS);
        lines.chain(self.answers.front().map(|(at, _)| *at)).chain(room).min()
    }

    /// Does what is due at the server.
    pub fn handle(&mut self, now: u64) {
        let ids: Vec<ConnectionId> = self.lines.keys().copied().collect();
        for id in ids {
            while let Some(up) = self.lines.get_mut(&id).and_then(|line| due(&mut line.up, now)) {
                self.take_up(now, id, up);
            }
        }
        while let Some(answer) = due(&mut self.answers, now) {
            self.take_answer(now, answer);
        }
        if let Some(room) = &mut self.room {
            room.handle_timeout(unix_ms(now));
        }
        self.carry_out(now);
    }

    /// Returns the next thing that has reached a node: (line, node, life, what).
    pub fn poll_down(&mut self, now: u64) -> Option<(ConnectionId, usize, u64, Down)> {
        for (id, line) in &mut self.lines {
            if let Some(down) = due(&mut line.down, now) {
                let found = (*id, line.node, line.life, down);
                if matches!(found.3, Down::Close) {
                    self.lines.remove(&found.0);
                }
                return Some(found);
            }
        }
        None
    }

    fn take_up(&mut self, now: u64, id: ConnectionId, up: Up) {
        let nonce = Nonce::new(self.random.fork(id.0 + (now << 8)).bytes32());
        let Some(room) = &mut self.room else {
            return;
        };
        match up {
            Up::Open => room.open(unix_ms(now), id, Host::Known(HOST.to_owned()), nonce),
            Up::Text(text) => room.frame(unix_ms(now), id, &text),
            Up::Pong => room.alive(id),
            Up::Gone(reason) => {
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
        let Some(room) = &mut self.room else {
            return;
        };
        match answer {
            Answer::Claimed(id, result) => room.claimed(unix_ms(now), id, result, resume),
            Answer::Found(id, number, found) => room.found(id, number, found),
            Answer::Listed(id, number, found) => room.listed(id, number, found),
        }
        self.carry_out(now);
    }

    fn carry_out(&mut self, now: u64) {
        while let Some(output) = self.room.as_mut().and_then(Room::poll_output) {
            match output {
                Output::Send(id, message) => self.say(now, id, &message),
                Output::Close(id) => {
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
                    let result = self.claim(&claim);
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
        if let Some(line) = self.lines.get_mut(&id) {
            line.send_down(now, Down::Text(protocol::emit(message)));
        }
    }

    fn answer(&mut self, now: u64, answer: Answer) {
        self.answers.push_back((now + 2 * MS, answer));
    }

    fn is_present(&self, network: &str, key: &PublicKey) -> bool {
        self.present.contains(&(network.to_owned(), *key))
    }

    /// Leases an address, and holds the table to its word: one address, one holder.
    fn claim(&mut self, claim: &Claim) -> Result<Record, ClaimError> {
        let present = &self.present;
        let network = claim.network.clone();
        let (record, _) = self.leases.claim(claim, |key| present.contains(&(network.clone(), *key)))?;
        let holder = self.ledger.get(&record.ipv4);
        assert!(
            holder.is_none_or(|holder| *holder == record.key),
            "{} is leased to two members at one time",
            record.ipv4
        );
        self.ledger.retain(|_, holder| *holder != record.key);
        self.ledger.insert(record.ipv4, record.key);
        Ok(record)
    }

    fn exit(&mut self, now: u64, place: &Place, kept: Kept) {
        self.present.remove(place);
        self.leases.exit(&place.0, &place.1, kept, unix_ms(now) / 1_000);
        if kept == Kept::Nothing {
            self.ledger.retain(|_, holder| *holder != place.1);
        }
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
