//! Bytes from strangers, thrown at every parser and core.
//!
//! Each target is a function that must not panic, whatever it is given. [`frame`] reads messages of a
//! link, [`signal`] introductions, [`protocol`] what is said over signaling, and [`decoders`] all other texts and
//! bytes. [`packet`] plays a script of packets, calls and time against a pair of stacks, [`ports`] compares one with a
//! model of its ports, and [`wire`] has two of them talk over a hostile wire. `fuzz/run` drives them with libFuzzer;
//! `cargo test` replays the corpus and a fixed number of its mutations.

pub mod decoders;
mod device;
pub mod frame;
mod headers;
mod member;
pub mod packet;
pub mod ports;
pub mod protocol;
mod room;
mod script;
pub mod seeds;
pub mod signal;
mod windows;
pub mod wire;

/// A target with its name, which is also the name of its binary and of its folder in the corpus.
pub struct Target {
    /// The name.
    pub name: &'static str,
    /// Runs one input; a panic is a finding.
    pub run: fn(&[u8]),
    /// Mutated inputs that an ordinary test runs.
    pub mutations: u64,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target { name: "frame", run: frame::run, mutations: 20_000 },
    Target { name: "signal", run: signal::run, mutations: 3_000 },
    Target { name: "protocol", run: protocol::run, mutations: 6_000 },
    Target { name: "packet", run: packet::run, mutations: 3_000 },
    Target { name: "ports", run: ports::run, mutations: 6_000 },
    Target { name: "wire", run: wire::run, mutations: 2_000 },
    Target { name: "decoders", run: decoders::run, mutations: 20_000 },
];
