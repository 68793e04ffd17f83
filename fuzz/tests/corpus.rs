//! Replays the corpus, and a fixed number of its mutations, through every target.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use unisockets_fuzz::seeds::seeds;
use unisockets_fuzz::{TARGETS, Target};

/// What all mutations follow from.
const SEED: u64 = 0x756e_6973_6f63_6b73;
/// Longest mutated input, in bytes.
const INPUT_LEN_MAX: usize = 4_096;
/// Longest file of the corpus, in bytes.
const FILE_LEN_MAX: usize = 2_048;

/// A generator of pseudo-random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.expect("the folder can be read"))
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("so can the file"))
        })
        .collect();
    files.sort();
    files
}

/// Runs one input and says how to run it again if it fails.
fn run(target: &Target, input: &[u8], story: &str) {
    if catch_unwind(|| (target.run)(input)).is_err() {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("target {} fails on {story}, input in hex: {hex}", target.name);
    }
}

/// Changes an input in one to four places, or crosses it with another one.
fn mutate(random: &mut Random, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].1.clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(7) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next() as u8,
            2 if at < input.len() => input[at] = [0, 1, 127, 128, 255][random.below(5)],
            3 => input.insert(at, random.next() as u8),
            4 => drop(input.drain(at..(at + 1 + random.below(8)).min(input.len()).max(at))),
            5 => {
                let other = &corpus[random.below(corpus.len())].1;
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = (at + random.below(32)).min(input.len());
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
        }
    }
    input.truncate(INPUT_LEN_MAX);
    input
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("the target exists");
    let corpus = corpus(target);
    for (name, bytes) in &corpus {
        run(target, bytes, &format!("corpus/{}/{name}", target.name));
    }
    let mut random = Random(SEED);
    for number in 0..target.mutations {
        let input = mutate(&mut random, &corpus);
        run(target, &input, &format!("mutation {number} of seed {SEED:#x}"));
    }
}

#[test]
fn messages_of_a_link() {
    replay("frame");
}

#[test]
fn introductions() {
    replay("signal");
}

#[test]
fn signaling() {
    replay("protocol");
}

#[test]
fn packets_calls_and_time() {
    replay("packet");
}

#[test]
fn ports_and_their_model() {
    replay("ports");
}

#[test]
fn two_stacks_and_a_hostile_wire() {
    replay("wire");
}

#[test]
fn every_other_decoder() {
    replay("decoders");
}

#[test]
fn the_corpus_is_small_and_holds_every_seed() {
    for target in &TARGETS {
        let corpus = corpus(target);
        assert!((5..=40).contains(&corpus.len()), "corpus/{} holds {} files", target.name, corpus.len());
        for (name, bytes) in &corpus {
            assert!(bytes.len() <= FILE_LEN_MAX, "corpus/{}/{name} has {} bytes", target.name, bytes.len());
        }
        for (name, bytes) in seeds(target.name) {
            let found = corpus.iter().any(|(known, held)| known == name && *held == bytes);
            assert!(found, "corpus/{}/{name} is stale: run `cargo run --example seeds`", target.name);
        }
    }
}
