//! Linux's TCP, UDP and ICMP as the referee of our stack: at the other end of a TUN device in a namespace.
#![cfg(target_os = "linux")]

#[path = "kernel/lab.rs"]
mod lab;
#[path = "kernel/member.rs"]
mod member;
#[allow(dead_code)]
#[path = "simulation/random.rs"]
mod random;
#[path = "kernel/talk.rs"]
mod talk;

use std::collections::HashMap;

use lab::{FAMILIES, Lab, reads, writes};
use talk::{Talk, talk};
use unisockets_wire::as_root;

/// Sends both ways at once over a connection of each making and family, and checks every byte.
fn bulk(conditions: &str, len: u64) {
    let lab = Lab::new(conditions);
    for family in FAMILIES {
        for open in [Lab::accepted, Lab::connected] {
            let start = std::time::Instant::now();
            let (stream, socket) = open(&lab, family);
            let threads = [writes(&stream, 1, len), reads(&stream, 2, len)];
            talk(&lab.member, HashMap::from([(socket, Talk::new(2, len, 1, len))]));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            lab.member.close(socket);
            eprintln!("{conditions} family {family}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn every_byte_arrives_both_ways() {
    if as_root() {
        bulk("", 8 << 20);
    }
}

#[test]
fn every_byte_arrives_over_a_bad_wire() {
    if as_root() {
        bulk("loss=1%,delay=5ms,reorder=1%,duplicate=1%,corrupt=1%", 400_000);
    }
}
