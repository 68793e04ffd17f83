//! What a seed stands for: the weather, the programs, and what goes wrong when.

use std::collections::BTreeMap;

use unisockets_link::fault::Conditions;

use crate::cables::Weather;
use crate::datagrams::{Echoes, Flood};
use crate::programs::{Session, Step, Target};
use crate::random::Random;
use crate::talk::{Deal, HEADER_LEN};
use crate::world::{MS, SECOND};

/// The longest pause of a slow reader.
const PAUSE_MAX: u64 = 3 * SECOND;

/// How wrong a clock may be, in milliseconds: two of them, with the way between them, are within what members bear.
const CLOCK_MS_MAX: u64 = 120_000;

/// Something that goes wrong, or right again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accident {
    /// The links between two nodes end, and both know.
    Cut(usize, usize),
    /// Nothing passes between two nodes, and nobody says so; until then.
    Silence(usize, usize, u64),
    /// The nodes of the mask and the others cannot reach each other; until then.
    Partition(u64, u64),
    /// A node's line to the server breaks; whether the server notices at once.
    LineCut { node: usize, noticed: bool },
    /// A node's line to the server stands still; until then.
    LineStall(usize, u64),
    /// The server ends, with or without a goodbye.
    Stop { goodbye: bool },
    /// The server is back.
    Start,
    /// A node is gone at once; whether its line to the server is closed with it.
    Crash { node: usize, closes: bool },
    /// A node is there, at first or again with the same keys.
    Restart(usize),
    /// A node says goodbye and is back later.
    Leave(usize),
    /// The clock on the wall of a node is set; by so many milliseconds it is wrong now.
    Clock(usize, i64),
    /// The same of the server.
    ServerClock(i64),
    /// A node sends another one a datagram with the address of somebody else.
    Forge { from: usize, to: usize, target: Target },
}

/// How rough a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Roughness {
    /// Bad wires only.
    Calm,
    /// Links break too.
    Links,
    /// Signaling fails too.
    Signaling,
    /// Nodes crash and leave too.
    Nodes,
}

/// A whole run.
pub struct Scenario {
    pub nodes: usize,
    pub roughness: Roughness,
    pub secret: bool,
    /// Whether somebody on the way replays and alters introductions.
    pub meddling: bool,
    /// Nodes that give their lease back when they leave.
    pub ephemeral: Vec<bool>,
    pub weather: BTreeMap<(usize, usize), Weather>,
    pub accidents: Vec<(u64, Accident)>,
    pub sessions: Vec<Session>,
    pub floods: Vec<Flood>,
    pub echoes: Vec<Echoes>,
}

fn target(random: &mut Random) -> Target {
    [Target::V4, Target::V6, Target::Name][random.index(3)]
}

/// Another node than `node`, mostly.
fn other(random: &mut Random, nodes: usize, node: usize) -> usize {
    if random.percent(5) { node } else { (node + 1 + random.index(nodes - 1)) % nodes }
}

fn weather(random: &mut Random) -> Weather {
    let delay_us = random.within(200, 60 * MS);
    let jitter_us = if random.percent(50) { random.within(0, 20 * MS) } else { 0 };
    let rate = if random.percent(30) { random.within(200_000, 2_000_000) } else { 0 };
    let calm = Conditions { delay_us, jitter_us, rate_bytes_per_s: rate, ..Conditions::default() };
    let datagram = Conditions {
        loss: random.within(0, 15) as f64 / 100.0,
        reorder: random.within(0, 10) as f64 / 100.0,
        duplicate: random.within(0, 5) as f64 / 100.0,
        corrupt: random.within(0, 3) as f64 / 100.0,
        ..calm
    };
    Weather { stream: calm, datagram }
}

fn session(random: &mut Random, nodes: usize) -> Session {
    let client = random.index(nodes);
    let at = random.within(0, 90 * SECOND);
    let len = |random: &mut Random| match random.index(4) {
        0 => random.within(0, 100),
        1 => random.within(100, 20_000),
        2 => random.within(20_000, 200_000),
        _ => random.within(200_000, 500_000),
    };
    let deal = Deal {
        seed: random.next(),
        up: HEADER_LEN + len(random),
        down: len(random),
        echo: random.percent(30),
        pause: random.percent(20).then(|| random.within(MS, PAUSE_MAX)),
        rest: random.percent(3).then(|| random.within(310, 420) * SECOND),
    };
    Session {
        client,
        server: other(random, nodes, client),
        target: target(random),
        at,
        buffer: random.percent(30).then(|| random.within(4_096, 65_536) as usize),
        deal,
        excuse: None,
        step: Step::Waiting(at),
        tries: 0,
    }
}

fn flood(random: &mut Random, nodes: usize) -> Flood {
    let from = random.index(nodes);
    let to = other(random, nodes, from);
    let target = if random.percent(50) { Target::V4 } else { Target::V6 };
    let flood = Flood::new(from, to, target, random.within(SECOND, 60 * SECOND));
    let every = random.within(MS, SECOND);
    let len = if random.percent(20) { random.within(1_200, 40_000) } else { random.within(8, 1_200) };
    let count = random.within(1, if len > 1_200 { 10 } else { 40 }) as u32;
    Flood { every, count, len: len as usize, connected: random.percent(50), ..flood }
}

fn pings(random: &mut Random, nodes: usize) -> Echoes {
    let from = random.index(nodes);
    let to = other(random, nodes, from);
    let target = if random.percent(50) { Target::V4 } else { Target::V6 };
    let echoes = Echoes::new(from, to, target, random.within(SECOND, 60 * SECOND));
    Echoes { count: random.within(1, 10) as u16, len: random.within(2, 3_000) as usize, ..echoes }
}

fn link_accident(random: &mut Random, nodes: usize, at: u64) -> Accident {
    let a = random.index(nodes);
    let b = (a + 1 + random.index(nodes - 1)) % nodes;
    match random.index(3) {
        0 => Accident::Cut(a, b),
        1 => Accident::Silence(a, b, at + random.within(100 * MS, 30 * SECOND)),
        _ => Accident::Partition(random.within(1, (1 << nodes) - 2), at + random.within(SECOND, 40 * SECOND)),
    }
}

fn accidents(random: &mut Random, nodes: usize, roughness: Roughness) -> Vec<(u64, Accident)> {
    let mut accidents = Vec::new();
    if roughness >= Roughness::Links {
        for _ in 0..random.within(1, 6) {
            let at = random.within(SECOND, 150 * SECOND);
            accidents.push((at, link_accident(random, nodes, at)));
        }
    }
    if roughness >= Roughness::Signaling {
        for _ in 0..random.within(0, 2) {
            let (node, noticed) = (random.index(nodes), random.percent(50));
            accidents.push((random.within(SECOND, 150 * SECOND), Accident::LineCut { node, noticed }));
        }
        for _ in 0..random.within(0, 2) {
            // Often while the members join.
            let latest = if random.percent(50) { 100 * MS } else { 150 * SECOND };
            let at = random.within(0, latest);
            accidents.push((at, Accident::LineStall(random.index(nodes), at + random.within(100 * MS, 25 * SECOND))));
        }
        if random.percent(70) {
            let at = random.within(SECOND, 120 * SECOND);
            accidents.push((at, Accident::Stop { goodbye: random.percent(50) }));
            accidents.push((at + random.within(100 * MS, 60 * SECOND), Accident::Start));
        }
    }
    if roughness >= Roughness::Nodes {
        let node = random.index(nodes);
        let at = random.within(5 * SECOND, 120 * SECOND);
        let closes = random.percent(50);
        let gone = if random.percent(60) { Accident::Crash { node, closes } } else { Accident::Leave(node) };
        accidents.push((at, gone));
        accidents.push((at + random.within(1_200 * MS, 50 * SECOND), Accident::Restart(node)));
    }
    accidents
}

/// What happens in any weather: clocks are set, members lie about who they are.
fn oddities(random: &mut Random, nodes: usize) -> Vec<(u64, Accident)> {
    let mut oddities = Vec::new();
    let at = |random: &mut Random| random.within(SECOND, 150 * SECOND);
    let ahead_ms = |random: &mut Random| random.within(0, 2 * CLOCK_MS_MAX) as i64 - CLOCK_MS_MAX as i64;
    for _ in 0..random.within(0, 2) {
        oddities.push((at(random), Accident::Clock(random.index(nodes), ahead_ms(random))));
    }
    if random.percent(30) {
        oddities.push((at(random), Accident::ServerClock(ahead_ms(random))));
    }
    for _ in 0..random.within(0, 4) {
        let from = random.index(nodes);
        let to = (from + 1 + random.index(nodes - 1)) % nodes;
        let target = if random.percent(50) { Target::V4 } else { Target::V6 };
        oddities.push((at(random), Accident::Forge { from, to, target }));
    }
    oddities
}

/// Most nodes are there from the beginning.
fn starts(random: &mut Random, nodes: usize) -> Vec<(u64, Accident)> {
    let start = |random: &mut Random| if random.percent(75) { 0 } else { random.within(0, 120 * SECOND) };
    (0..nodes).map(|node| (start(random), Accident::Restart(node))).collect()
}

impl Scenario {
    /// Everything follows from the seed.
    pub fn new(seed: u64) -> Scenario {
        let mut random = Random::new(seed);
        let nodes = random.within(2, 5) as usize;
        let levels = [Roughness::Calm, Roughness::Links, Roughness::Signaling, Roughness::Nodes];
        let roughness = levels[random.index(levels.len())];
        let pairs = (0..nodes).flat_map(|a| (a..nodes).map(move |b| (a, b)));
        let weather = pairs.map(|nodes| (nodes, weather(&mut random))).collect();
        let count = random.within(3, 10);
        let mut sessions: Vec<Session> = (0..count).map(|_| session(&mut random, nodes)).collect();
        let floods = (0..random.within(0, 3)).map(|_| flood(&mut random, nodes)).collect();
        let echoes = (0..random.within(0, 3)).map(|_| pings(&mut random, nodes)).collect();
        let mut accidents = accidents(&mut random.fork(1), nodes, roughness);
        accidents.extend(oddities(&mut random.fork(2), nodes));
        accidents.extend(starts(&mut random.fork(3), nodes));
        accidents.sort_by_key(|(at, _)| *at);
        let (secret, meddling) = (random.percent(50), random.percent(30));
        let ephemeral = (0..nodes).map(|_| random.percent(50)).collect();
        if random.percent(15) {
            // All at one time, to one server.
            let (server, at) = (sessions[0].server, sessions[0].at);
            for session in sessions.iter_mut().filter(|session| session.client != server) {
                (session.server, session.at, session.step) = (server, at, Step::Waiting(at));
            }
        }
        Scenario { nodes, roughness, secret, meddling, ephemeral, weather, accidents, sessions, floods, echoes }
    }
}
