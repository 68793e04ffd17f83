//! What a seed stands for: the weather, the programs, and what goes wrong when.

use std::collections::BTreeMap;

use unisockets_link::fault::Conditions;

use crate::cables::Weather;
use crate::datagrams::{Echoes, Flood};
use crate::programs::{Session, Step, Target};
use crate::random::Random;
use crate::talk::{Deal, HEADER_LEN, SPARES_KNOWN_FAULTS};
use crate::world::{MS, SECOND};

/// The longest pause of a slow reader.
const PAUSE_MAX: u64 = if SPARES_KNOWN_FAULTS { 100 * MS } else { 3 * SECOND };

/// Something that goes wrong, or right again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accident {
    /// The links between two nodes end, and both know.
    Cut(usize, usize),
    /// Nothing passes between two nodes, and nobody says so; until then.
    Silence(usize, usize, u64),
    /// The nodes of the mask and the others cannot reach each other; until then.
    Partition(u64, u64),
    /// A node's line to the server breaks.
    LineCut(usize),
    /// The server ends, with or without a goodbye.
    Stop { goodbye: bool },
    /// The server is back.
    Start,
    /// A node is gone at once; whether its line to the server is closed with it.
    Crash { node: usize, closes: bool },
    /// A node is back with the same keys.
    Restart(usize),
    /// A node says goodbye and is back later.
    Leave(usize),
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
            accidents.push((random.within(SECOND, 150 * SECOND), Accident::LineCut(random.index(nodes))));
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
        let gone = if random.percent(75) { Accident::Crash { node, closes } } else { Accident::Leave(node) };
        accidents.push((at, gone));
        accidents.push((at + random.within(1_200 * MS, 50 * SECOND), Accident::Restart(node)));
    }
    accidents.sort_by_key(|(at, _)| *at);
    accidents
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
        let sessions = (0..count).map(|_| session(&mut random, nodes)).collect();
        let floods = (0..random.within(0, 3)).map(|_| flood(&mut random, nodes)).collect();
        let echoes = (0..random.within(0, 3)).map(|_| pings(&mut random, nodes)).collect();
        let accidents = accidents(&mut random.fork(1), nodes, roughness);
        let secret = random.percent(50);
        Scenario { nodes, roughness, secret, weather, accidents, sessions, floods, echoes }
    }
}
