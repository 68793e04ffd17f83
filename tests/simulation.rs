//! A whole network in one thread on a virtual clock: what a seed says happens, every time.
//!
//! Nodes, their memberships and the signaling server's room are the real cores; links are memory with bad
//! wires between them: datagrams are lost, repeated, reordered and changed, and the lanes for streams, which WebRTC repeats
//! until they arrive, are slow, stall and are cut. (TCP over wires that lose segments is of `tests/kernel.rs` and of the fuzz target
//! `wire`.) `UNISOCKETS_SEEDS` runs more seeds, `UNISOCKETS_SEED` replays one, and with
//! `UNISOCKETS_CAPTURE` the replay leaves a capture in that file.
//!
//! `tests/planted` builds all this with planted bugs and sees whether each is found.

#[path = "simulation/cables.rs"]
mod cables;
#[path = "simulation/capture.rs"]
mod capture;
#[path = "simulation/datagrams.rs"]
mod datagrams;
#[path = "simulation/disk.rs"]
mod disk;
#[path = "simulation/hub.rs"]
mod hub;
#[path = "simulation/node.rs"]
mod node;
#[cfg(planted_bugs)]
#[path = "simulation/planted.rs"]
mod planted;
#[path = "simulation/programs.rs"]
mod programs;
#[path = "simulation/promises.rs"]
mod promises;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/scenario.rs"]
mod scenario;
#[path = "simulation/talk.rs"]
mod talk;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Failure, Report, SECOND, World};

/// Seeds that are run unless the environment says otherwise.
const SEEDS: u64 = 40;
/// The seed that is replayed unless the environment says otherwise.
const SEED: u64 = 7;
/// Lines of the log that a failure shows.
const LINES: usize = 60;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Runs a seed; a failure says how to see it again.
fn run(seed: u64) -> Result<Report, Failure> {
    let mut world = World::new(seed);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    result.map_err(|panic| {
        if let Some(path) = std::env::var_os("UNISOCKETS_CAPTURE") {
            std::fs::write(path, world.take_capture()).expect("the capture can be written");
        }
        let text = panic.downcast_ref::<String>().cloned();
        let check = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        let lines = world.log.len().saturating_sub(LINES);
        Failure { seed, at: world.now, check, log: world.log.split_off(lines) }
    })
}

#[test]
fn one_seed_writes_one_capture() {
    let (first, second) = (run(SEED).unwrap_or_else(|text| panic!("{text}")), run(SEED));
    let second = second.unwrap_or_else(|text| panic!("{text}"));
    assert_eq!(first.log, second.log);
    assert!(first.capture.len() > 10_000, "the capture holds packets: {} bytes", first.capture.len());
    assert!(first.capture == second.capture, "one seed has written two captures");
    let other = run(SEED + 1).unwrap_or_else(|text| panic!("{text}"));
    assert!(first.capture != other.capture, "two seeds have written one capture");
}

#[test]
fn seeds_keep_every_promise() {
    let count = variable("UNISOCKETS_SEEDS").unwrap_or(SEEDS);
    let first = variable("UNISOCKETS_FIRST").unwrap_or(0);
    let (mut failures, mut total) = (Vec::new(), Report::default());
    for seed in first..first + count {
        match run(seed) {
            Ok(report) => {
                total.done += report.done;
                total.broken += report.broken;
                total.datagrams += report.datagrams;
                total.echoes += report.echoes;
                total.virtual_us += report.virtual_us;
                total.steps += report.steps;
            }
            Err(text) => {
                println!("{text}");
                failures.push(seed);
            }
        }
    }
    println!(
        "{count} seeds: {} connections done, {} broken with an excuse, {} datagrams, {} echoes, {} virtual minutes, \
         {} steps",
        total.done,
        total.broken,
        total.datagrams,
        total.echoes,
        total.virtual_us / SECOND / 60,
        total.steps,
    );
    assert!(failures.is_empty(), "these seeds failed: {failures:?}");
    assert!(total.done > 0 && total.datagrams > 0 && total.echoes > 0, "nothing was proven");
}

#[test]
fn replay() {
    #[cfg(planted_bugs)]
    planted::plant_chosen();
    let seed = variable("UNISOCKETS_SEED").unwrap_or(SEED);
    let report = run(seed).unwrap_or_else(|text| panic!("{text}"));
    println!("{}", report.log.join("\n"));
    if let Some(path) = std::env::var_os("UNISOCKETS_CAPTURE") {
        std::fs::write(&path, &report.capture).expect("the capture can be written");
        println!("{} bytes of capture are in {}", report.capture.len(), path.display());
    }
    println!("seed {seed}: {} connections done, {} broken with an excuse", report.done, report.broken);
}
