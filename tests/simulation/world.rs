//! The whole network in one thread on a virtual clock.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};

use unisockets_signaling::network::Network;

use crate::cables::Cables;
use crate::capture::{self, Recorder};
use crate::datagrams::forged;
use crate::hub::Hub;
use crate::node::Node;
use crate::programs::{Programs, Step, Target, address_of};
use crate::random::Random;
use crate::scenario::{Accident, Roughness, Scenario};
use crate::talk::Outcome;

/// Microseconds.
pub const MS: u64 = 1_000;
/// Microseconds.
pub const SECOND: u64 = 1_000_000;
/// What the clocks on the walls say when the virtual clock starts.
pub const ORIGIN_UNIX_MS: u64 = 1_700_000_000_000;
/// No run is longer, in virtual time.
const RUN_MAX: u64 = 30 * 60 * SECOND;
/// Turns of nodes and links at one moment; more is a loop that does not end.
const TURNS_MAX: usize = 100_000;
/// Steps at one moment; more means that a deadline is due and nobody acts on it.
const STEPS_MAX: usize = 10_000;

/// The network that all runs with a secret share: deriving its keys takes long.
fn network(secret: bool) -> Arc<Network> {
    static OPEN: OnceLock<Arc<Network>> = OnceLock::new();
    static SECRET: OnceLock<Arc<Network>> = OnceLock::new();
    let (cell, word) = if secret { (&SECRET, Some("a secret of the simulation")) } else { (&OPEN, None) };
    Arc::clone(cell.get_or_init(|| Arc::new(Network::new("home", word).expect("a legal name"))))
}

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub capture: Vec<u8>,
    pub log: Vec<String>,
    pub done: usize,
    pub broken: usize,
    pub datagrams: u32,
    pub echoes: u32,
    pub virtual_us: u64,
    pub steps: u64,
}

/// A promise that a run has broken.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    /// When, in virtual time.
    pub at: u64,
    /// What was checked.
    pub check: String,
    /// What happened last.
    pub log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { seed, at, check, log } = self;
        writeln!(f, "seed {seed} failed at {at} us: {check}\n{}\nreplay it, with a capture, by:", log.join("\n"))?;
        write!(f, "UNISOCKETS_SEED={seed} UNISOCKETS_CAPTURE=seed-{seed}.pcapng ")?;
        writeln!(f, "cargo test --release --test simulation replay -- --nocapture")
    }
}

/// A run.
pub struct World {
    pub now: u64,
    pub log: Vec<String>,
    nodes: Vec<Node>,
    hub: Hub,
    cables: Cables,
    programs: Programs,
    capture: capture::Shared,
    accidents: VecDeque<(u64, Accident)>,
    /// Nodes that have said goodbye, and when they end.
    leaving: VecDeque<(u64, usize)>,
    roughness: Roughness,
    meddling: bool,
    steps: u64,
    steps_now: usize,
}

impl World {
    pub fn new(seed: u64) -> World {
        let scenario = Scenario::new(seed);
        let random = Random::new(seed).fork(99);
        let network = network(scenario.secret);
        let node =
            |index: usize| Node::new(index, Arc::clone(&network), random.fork(index as u64), scenario.ephemeral[index]);
        let nodes: Vec<Node> = (0..scenario.nodes).map(node).collect();
        let keys = nodes.iter().map(|node| node.pair.public()).collect();
        let mut world = World {
            now: 0,
            log: Vec::new(),
            nodes,
            hub: Hub::new(random.fork(200), keys, scenario.meddling),
            cables: Cables::new(random.fork(201), scenario.weather),
            programs: Programs::new(scenario.nodes, scenario.sessions, scenario.floods, scenario.echoes),
            capture: Recorder::shared(),
            accidents: scenario.accidents.into(),
            leaving: VecDeque::new(),
            roughness: scenario.roughness,
            meddling: scenario.meddling,
            steps: 0,
            steps_now: 0,
        };
        world.note(format!("{} nodes, {:?}", scenario.nodes, scenario.roughness));
        world
    }

    fn note(&mut self, text: impl std::fmt::Display) {
        self.log.push(format!("{:>12} {text}", self.now));
    }

    fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.life.is_none() {
            node.start(&self.capture);
            self.programs.serve(node);
        }
    }

    /// Runs to the end and checks what must hold.
    pub fn run(&mut self) -> Report {
        self.run_until(|world| {
            let over = world.programs.are_over() && world.accidents.is_empty() && world.leaving.is_empty();
            over && world.nodes.iter().all(|node| node.v4().is_some())
        });
        self.check_sessions();
        self.check_leases();
        self.check_time_wait();
        self.note("programs are over");
        self.programs.close(self.now, &mut self.nodes);
        self.run_until(|world| world.nodes.iter().all(Self::is_quiet));
        self.note("no connection is left");
        self.run_until(|world| world.cables.is_idle());
        self.note("no link is left");
        for node in &self.nodes {
            let stack = node.life.as_ref().map(|life| &life.core.stack);
            assert_eq!(stack.map(|stack| stack.socket_count()), Some(0), "{} has sockets left", node.name);
            let memory = stack.map(|stack| stack.committed_bytes());
            assert_eq!(memory, Some(0), "{} holds memory of connections that are over", node.name);
            let refusals = node.refusals();
            assert!(refusals.is_empty() || self.meddling, "{} has refused what is right: {refusals:?}", node.name);
        }
        let outcomes = || self.programs.sessions.iter().map(|session| session.step);
        let done = outcomes().filter(|step| *step == Step::Ended(Outcome::Done)).count();
        Report {
            capture: Recorder::take(&self.capture),
            log: self.log.clone(),
            done,
            broken: outcomes().count() - done,
            datagrams: self.programs.floods.iter().map(|flood| flood.arrived).sum(),
            echoes: self.programs.echoes.iter().map(|echoes| u32::from(echoes.answered)).sum(),
            virtual_us: self.now,
            steps: self.steps,
        }
    }

    /// Returns what has been captured so far.
    pub fn take_capture(&self) -> Vec<u8> {
        Recorder::take(&self.capture)
    }

    fn is_quiet(node: &Node) -> bool {
        let stack = node.life.as_ref().map(|life| &life.core.stack);
        stack.is_none_or(|stack| stack.connection_count() == 0 && stack.time_wait_count() == 0)
    }

    fn run_until(&mut self, over: impl Fn(&World) -> bool) {
        self.settle();
        while !over(self) {
            let next = self.next().unwrap_or(u64::MAX);
            assert!(next < RUN_MAX, "something hangs:\n{}", self.state());
            self.steps_now = if next <= self.now { self.steps_now + 1 } else { 0 };
            assert!(self.steps_now < STEPS_MAX, "time stands still:\n{}", self.state());
            self.now = self.now.max(next);
            self.steps += 1;
            self.step();
            self.settle();
        }
    }

    fn next(&self) -> Option<u64> {
        let nodes = self.nodes.iter().filter_map(Node::next);
        let plans = self.accidents.front().map(|(at, _)| *at).into_iter();
        let leaving = self.leaving.front().map(|(at, _)| *at);
        let parts = [self.hub.next(), self.cables.next(self.now), self.programs.next(), leaving];
        nodes.chain(plans).chain(parts.into_iter().flatten()).min()
    }

    /// Does everything that is due.
    fn step(&mut self) {
        while self.accidents.front().is_some_and(|(at, _)| *at <= self.now) {
            if let Some((_, accident)) = self.accidents.pop_front() {
                self.happen(accident);
            }
        }
        while self.leaving.front().is_some_and(|(at, _)| *at <= self.now) {
            if let Some((_, node)) = self.leaving.pop_front() {
                self.crash(node, true);
            }
        }
        self.hub.handle(self.now);
        while let Some((line, node, life, down)) = self.hub.poll_down(self.now) {
            self.nodes[node].take_down(self.now, line, life, down, &mut self.hub);
        }
        self.cables.handle(self.now, &mut self.nodes);
        for node in &mut self.nodes {
            node.handle_timeout(self.now, &mut self.hub);
        }
        self.programs.handle_timeout(self.now, &mut self.nodes);
        self.nodes.iter().for_each(|node| node.check_limits(self.nodes.len()));
    }

    /// Lets nodes, links and programs act on each other until nothing is left to do at this moment.
    fn settle(&mut self) {
        let mut ready = Vec::new();
        for turn in 0.. {
            assert!(turn < TURNS_MAX, "no end at one moment:\n{}", self.state());
            let mut busy = false;
            for index in 0..self.nodes.len() {
                busy |= self.nodes[index].settle(self.now, &mut self.hub, &mut self.cables, &mut self.log);
                if let Some(life) = &mut self.nodes[index].life {
                    life.core.take_ready(&mut ready);
                    while let Some((id, answer)) = life_answer(&mut self.nodes[index]) {
                        self.programs.take_answer(self.now, index, id, &answer, &mut self.nodes);
                        busy = true;
                    }
                }
                for socket in ready.drain(..) {
                    self.programs.ready(self.now, index, socket, &mut self.nodes);
                    busy = true;
                }
            }
            busy |= self.cables.settle(self.now, &mut self.nodes);
            if !busy {
                return;
            }
        }
    }

    fn happen(&mut self, accident: Accident) {
        self.note(format!("{accident:?}"));
        match accident {
            Accident::Cut(a, b) => self.cables.cut(self.now, &mut self.nodes, a, b),
            Accident::Silence(a, b, until) => self.cables.block(a, b, until),
            Accident::Partition(mask, until) => {
                let side = |node: usize| mask >> node & 1;
                for a in 0..self.nodes.len() {
                    for b in (a + 1..self.nodes.len()).filter(|b| side(a) != side(*b)) {
                        self.cables.block(a, b, until);
                    }
                }
            }
            Accident::LineCut { node, noticed } => {
                if let Some(line) = self.nodes[node].life.as_ref().and_then(|life| life.line) {
                    self.hub.cut(self.now, line, noticed);
                }
            }
            Accident::LineStall(node, until) => self.hub.stall(node, until),
            Accident::Stop { goodbye } => {
                if goodbye {
                    self.hub.drain(self.now);
                }
                self.hub.stop(self.now);
            }
            Accident::Start => self.hub.start(self.now),
            Accident::Crash { node, closes } => self.crash(node, closes),
            Accident::Restart(node) => self.start(node),
            Accident::Leave(node) => {
                self.programs.excuse("left", |client, server| client == node || server == node);
                self.programs.crash(node);
                self.nodes[node].leave(self.now);
                self.leaving.push_back((self.now + SECOND, node));
            }
            Accident::Clock(node, ahead_ms) => self.nodes[node].set_clock(self.now, ahead_ms),
            Accident::ServerClock(ahead_ms) => self.hub.set_clock(ahead_ms),
            Accident::Forge { from, to, target } => self.forge(from, to, target),
        }
    }

    /// A node takes the address of a third one, or one that nobody has.
    fn forge(&mut self, from: usize, to: usize, target: Target) {
        let third = (0..self.nodes.len()).find(|node| *node != from && *node != to);
        let nobody = || if target == Target::V4 { "10.80.0.200" } else { "fd00::7" }.parse().expect("an address");
        let source = third.and_then(|node| address_of(&self.nodes, node, target)).unwrap_or_else(nobody);
        if let Some(destination) = address_of(&self.nodes, to, target) {
            self.cables.forge(self.now, from, to, &forged(source, destination));
        }
    }

    fn crash(&mut self, node: usize, closes: bool) {
        self.programs.excuse("crashed", |client, server| client == node || server == node);
        self.programs.crash(node);
        self.cables.crash(node);
        match self.nodes[node].crash() {
            Some(line) if closes => self.hub.hang_up(self.now, line),
            Some(line) => self.hub.fall_silent(self.now, line),
            None => {}
        }
    }

    /// Every connection has ended; with all bytes, unless something excuses it.
    fn check_sessions(&self) {
        for (index, session) in self.programs.sessions.iter().enumerate() {
            let done = session.step == Step::Ended(Outcome::Done);
            assert!(
                done || session.excuse.is_some(),
                "session {index} has no excuse ({:?}): {session:?}",
                self.roughness
            );
        }
        for talk in &self.programs.talks {
            let done = talk.outcome == Some(Outcome::Done) || matches!(talk.outcome, Some(Outcome::Failed(_)));
            let session = talk.session.map(|session| &self.programs.sessions[session]);
            let excuse = self.roughness >= Roughness::Nodes && session.is_none_or(|session| session.excuse.is_some());
            assert!(done || excuse, "an end of a connection broke without an excuse: {talk:?}");
        }
    }

    /// Whoever has closed a connection first answers late segments of it for a while (RFC 9293, section 3.6.1).
    fn check_time_wait(&self) {
        let stacks = self.nodes.iter().filter_map(|node| node.life.as_ref()).map(|life| &life.core.stack);
        let known: usize = stacks.map(|stack| stack.connection_count() + stack.time_wait_count()).sum();
        if self.roughness == Roughness::Calm {
            assert!(known >= self.programs.remembered(self.now), "a connection that is over was forgotten at once");
        }
    }

    fn check_leases(&self) {
        let mut leased: Vec<_> = self.nodes.iter().filter_map(Node::v4).collect();
        let len = leased.len();
        leased.sort();
        leased.dedup();
        assert_eq!((leased.len(), len), (self.nodes.len(), self.nodes.len()), "two nodes have one address");
    }

    /// Describes what is not over, for the one who has to find out why.
    pub fn state(&self) -> String {
        let sessions = self.programs.sessions.iter().filter(|session| !matches!(session.step, Step::Ended(_)));
        let talks = self.programs.talks.iter().filter(|talk| talk.outcome.is_none());
        let mut lines: Vec<String> = sessions.map(|session| format!("{session:?}")).collect();
        lines.extend(talks.map(|talk| format!("{talk:?}")));
        for node in &self.nodes {
            if let Some(life) = &node.life {
                let status = life.core.status(unisockets_stack::Instant::from_micros(self.now));
                lines.push(format!("{}: {status:#?}", node.name));
            }
        }
        lines.join("\n")
    }
}

fn life_answer(node: &mut Node) -> Option<(u64, unisockets::core::Lookup)> {
    node.life.as_mut()?.core.poll_answer()
}
