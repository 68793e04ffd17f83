//! Whether the simulation finds bugs: planted ones, one after the other, each within so many seeds.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::thread;

use crate::world::{Failure, SECOND};
use crate::{run, variable};

/// Seeds in which each bug has to be found, unless the environment says otherwise.
const SEEDS: u64 = 1_000;
/// Characters of a check that the table shows.
const CHECK_LEN: usize = 90;

/// A bug of one of the crates, which do not know each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    Stack(unisockets_stack::planted::Bug),
    Link(unisockets_link::planted::Bug),
    Node(unisockets::planted::Bug),
    Signaling(unisockets_signaling::planted::Bug),
}

impl Bug {
    fn all() -> Vec<Bug> {
        let stack = unisockets_stack::planted::Bug::ALL.iter().copied().map(Bug::Stack);
        let link = unisockets_link::planted::Bug::ALL.iter().copied().map(Bug::Link);
        let node = unisockets::planted::Bug::ALL.iter().copied().map(Bug::Node);
        let signaling = unisockets_signaling::planted::Bug::ALL.iter().copied().map(Bug::Signaling);
        stack.chain(link).chain(node).chain(signaling).collect()
    }

    /// Returns its part and its name, as `UNISOCKETS_BUG` has it.
    fn names(self) -> (&'static str, String) {
        match self {
            Bug::Stack(bug) => ("stack", format!("{bug:?}")),
            Bug::Link(bug) => ("link", format!("{bug:?}")),
            Bug::Node(bug) => ("node", format!("{bug:?}")),
            Bug::Signaling(bug) => ("signaling", format!("{bug:?}")),
        }
    }

    /// Plants it in this thread, and no other.
    fn plant(self) {
        let (stack, link, node, signaling) = match self {
            Bug::Stack(bug) => (Some(bug), None, None, None),
            Bug::Link(bug) => (None, Some(bug), None, None),
            Bug::Node(bug) => (None, None, Some(bug), None),
            Bug::Signaling(bug) => (None, None, None, Some(bug)),
        };
        unisockets_stack::planted::choose(stack);
        unisockets_link::planted::choose(link);
        unisockets::planted::choose(node);
        unisockets_signaling::planted::choose(signaling);
    }
}

/// Returns the bugs that the environment names, or all.
fn chosen() -> Vec<Bug> {
    let Ok(name) = std::env::var("UNISOCKETS_BUG") else {
        return Bug::all();
    };
    let found: Vec<Bug> = Bug::all().into_iter().filter(|bug| bug.names().1 == name).collect();
    let names = || Bug::all().into_iter().map(|bug| bug.names().1).collect::<Vec<_>>().join(", ");
    assert!(!found.is_empty(), "UNISOCKETS_BUG is none of {}", names());
    found
}

/// Plants the bug that the environment names in this thread.
pub fn plant_chosen() {
    if let [bug] = chosen()[..] {
        bug.plant();
    }
}

/// Tries seeds until one fails.
fn search(bug: Bug, seeds: u64) -> Option<(u64, Failure)> {
    bug.plant();
    (0..seeds).find_map(|seed| run(seed).err().map(|failure| (seed, failure)))
}

fn line(bug: Bug, found: Option<&(u64, Failure)>) -> String {
    let (part, name) = bug.names();
    let Some((seed, failure)) = found else {
        return format!("{part:<10} {name:<22}  not found");
    };
    let check: String = failure.check.lines().next().unwrap_or_default().chars().take(CHECK_LEN).collect();
    format!("{part:<10} {name:<22} {seed:>5} {:>9.1} s  {check}", failure.at as f64 / SECOND as f64)
}

#[test]
fn every_planted_bug_is_found() {
    // Without a bug the first seeds pass in this build too: what is found below is found because of the bugs.
    for seed in 0..3 {
        run(seed).unwrap_or_else(|failure| panic!("without any bug, {failure}"));
    }
    let seeds = variable("UNISOCKETS_SEEDS").unwrap_or(SEEDS);
    let (bugs, missed) = (chosen(), Mutex::new(Vec::new()));
    let waiting = Mutex::new(bugs.iter().copied().collect::<VecDeque<Bug>>());
    std::panic::set_hook(Box::new(|_| {}));
    println!("{:<10} {:<22} {:>5} {:>11}  found by", "part", "bug", "seed", "after");
    let work = || {
        while let Some(bug) = { waiting.lock().expect("nobody panics").pop_front() } {
            let found = search(bug, seeds);
            println!("{}", line(bug, found.as_ref()));
            if found.is_none() {
                missed.lock().expect("nobody panics").push(bug);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    drop(std::panic::take_hook());
    let missed = missed.into_inner().expect("nobody panics");
    println!("{} planted bugs, {} found within {seeds} seeds", bugs.len(), bugs.len() - missed.len());
    assert!(missed.is_empty(), "not found within {seeds} seeds: {missed:?}");
}
