//! Whether the simulation finds bugs: planted ones, one after the other, each within so many seeds.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Mutex;
use std::thread;

use crate::world::{Failure, SECOND};
use crate::{run, variable};

/// Seeds in which each bug has to be found, unless the environment says otherwise.
const SEEDS: u64 = 1_000;
/// Characters of a check that the table shows.
const CHECK_LEN: usize = 90;

const UNPOISONED: &str = "nobody panics with the lock";

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
}

/// Plants a bug, or none, in this thread and no other.
fn plant(bug: Option<Bug>) {
    let (stack, link, node, signaling) = match bug {
        None => (None, None, None, None),
        Some(Bug::Stack(bug)) => (Some(bug), None, None, None),
        Some(Bug::Link(bug)) => (None, Some(bug), None, None),
        Some(Bug::Node(bug)) => (None, None, Some(bug), None),
        Some(Bug::Signaling(bug)) => (None, None, None, Some(bug)),
    };
    unisockets_stack::planted::choose(stack);
    unisockets_link::planted::choose(link);
    unisockets::planted::choose(node);
    unisockets_signaling::planted::choose(signaling);
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
        plant(Some(bug));
    }
}

/// Tries seeds until one fails with the bug and holds without it.
fn search(bug: Bug, mut seeds: Range<u64>) -> Option<Failure> {
    seeds.find_map(|seed| {
        plant(Some(bug));
        let failure = run(seed).err()?;
        plant(None);
        run(seed).is_ok().then_some(failure)
    })
}

fn line(bug: Bug, found: Option<&Failure>) -> String {
    let (part, name) = bug.names();
    let Some(failure) = found else {
        return format!("{part:<10} {name:<22}  not found");
    };
    let check = failure.check.replace("assertion `left == right` failed: ", "");
    let check: String = check.lines().next().unwrap_or_default().chars().take(CHECK_LEN).collect();
    format!("{part:<10} {name:<22} {:>5} {:>9.1} s  {check}", failure.seed, failure.at as f64 / SECOND as f64)
}

fn pop<T>(queue: &Mutex<VecDeque<T>>) -> Option<T> {
    queue.lock().expect(UNPOISONED).pop_front()
}

#[test]
fn every_planted_bug_is_found() {
    let (first, count) = (variable("UNISOCKETS_FIRST").unwrap_or(0), variable("UNISOCKETS_SEEDS").unwrap_or(SEEDS));
    let bugs = chosen();
    let waiting = Mutex::new(bugs.iter().copied().enumerate().collect::<VecDeque<_>>());
    let lines = Mutex::new(BTreeMap::new());
    let missed = Mutex::new(Vec::new());
    // Every bug that is found panics.
    std::panic::set_hook(Box::new(|_| {}));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((index, bug)) = pop(&waiting) {
                    let found = search(bug, first..first + count);
                    lines.lock().expect(UNPOISONED).insert(index, line(bug, found.as_ref()));
                    missed.lock().expect(UNPOISONED).extend(found.is_none().then_some(bug));
                }
            });
        }
    });
    drop(std::panic::take_hook());
    println!("{:<10} {:<22} {:>5} {:>11}  found by", "part", "bug", "seed", "after");
    lines.into_inner().expect(UNPOISONED).values().for_each(|line| println!("{line}"));
    let missed = missed.into_inner().expect(UNPOISONED);
    println!("{} planted bugs, {} found within {count} seeds from {first} on", bugs.len(), bugs.len() - missed.len());
    assert!(missed.is_empty(), "the simulation does not see these: {missed:?}");
}
