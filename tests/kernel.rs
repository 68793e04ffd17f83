//! Linux's TCP, UDP and ICMP as the referee of our stack: at the other end of a TUN device in a namespace.
#![cfg(target_os = "linux")]

#[path = "kernel/datagrams.rs"]
mod datagrams;
#[path = "kernel/ends.rs"]
mod ends;
#[path = "kernel/lab.rs"]
mod lab;
#[path = "kernel/member.rs"]
mod member;
#[path = "kernel/path_mtu.rs"]
mod path_mtu;
#[allow(dead_code, reason = "the simulation uses the rest of it")]
#[path = "simulation/random.rs"]
mod random;
#[path = "kernel/talk.rs"]
mod talk;
#[path = "kernel/waits.rs"]
mod waits;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Barrier};

use lab::{BAD, FAMILIES, Lab, limited, reads, wires, writes};
use member::LIMIT;
use random::pattern;
use talk::{Talk, talk};
use unisockets_wire::as_root;

/// Connections that are open at one time.
const CONNECTIONS: usize = 1_000;
/// Bytes that each of them carries in each direction.
const SHORT_LEN: u64 = 5_000;

/// Sends both ways at once over a connection of each making and family, and checks every byte.
fn bulk(conditions: &str, len: u64) {
    let lab = Lab::new(conditions);
    for family in FAMILIES {
        for open in [Lab::accepted, Lab::connected] {
            let (stream, socket) = open(&lab, family);
            let threads = [writes(&stream, 1, len), reads(&stream, 2, len)];
            talk(&lab.member, HashMap::from([(socket, Talk::new(2, len, 1, len))]));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            lab.member.close(socket);
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
        bulk(BAD, 400_000);
    }
}

/// The seeds of the two directions of a connection, which the client's port names.
fn seeds(client: SocketAddr) -> [u64; 2] {
    [0, 1].map(|direction| u64::from(client.port()) * 2 + direction)
}

/// One of many: sends its pattern, then takes the other's. `is_client` says whose port names the pattern.
fn short(mut stream: TcpStream, is_client: bool) {
    let client = if is_client { stream.local_addr() } else { stream.peer_addr() };
    let mut seeds = seeds(client.unwrap());
    if !is_client {
        seeds.reverse();
    }
    let (mut data, mut wanted) = (vec![0; SHORT_LEN as usize], vec![0; SHORT_LEN as usize]);
    pattern(seeds[0], 0, &mut data);
    pattern(seeds[1], 0, &mut wanted);
    stream.write_all(&data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut taken = Vec::new();
    stream.read_to_end(&mut taken).unwrap();
    assert!(taken == wanted, "every byte of {stream:?} is right");
}

/// Starts one thread for each of the many, with a small stack.
fn threads(mut work: impl FnMut(usize) -> Box<dyn FnOnce() + Send>) -> Vec<std::thread::JoinHandle<()>> {
    let small = || std::thread::Builder::new().stack_size(64 * 1024);
    (0..CONNECTIONS).map(|number| small().spawn(work(number)).unwrap()).collect()
}

#[test]
fn a_thousand_connections_of_the_kernel_are_served_at_once() {
    if !as_root() {
        return;
    }
    for (lab, family) in wires() {
        let listener = lab.member.listen(SocketAddr::new(lab.ours(family), 80), 1_024);
        let to = SocketAddr::new(lab.ours(family), 80);
        let programs = lab.kernel.spawn(move || {
            let together = Arc::new(Barrier::new(CONNECTIONS));
            let all = threads(|_| {
                let together = Arc::clone(&together);
                Box::new(move || {
                    let stream = limited(TcpStream::connect_timeout(&to, LIMIT).unwrap());
                    together.wait();
                    short(stream, true);
                })
            });
            all.into_iter().for_each(|thread| thread.join().unwrap());
        });
        let mut talks = HashMap::new();
        while talks.len() < CONNECTIONS {
            let socket = lab.member.accept(listener);
            let client = lab.member.call(|stack, _| stack.peer_address(socket)).unwrap();
            let [theirs, ours] = seeds(client);
            talks.insert(socket, Talk::new(ours, SHORT_LEN, theirs, SHORT_LEN));
        }
        assert_eq!(lab.member.call(|stack, _| stack.connection_count()), CONNECTIONS, "all at one time");
        talk(&lab.member, talks);
        programs.join().unwrap();
    }
}

#[test]
fn a_thousand_connections_to_the_kernel_are_open_at_once() {
    if !as_root() {
        return;
    }
    for (lab, family) in wires() {
        let (listener, to) = lab.kernel_listener(family);
        let programs = std::thread::spawn(move || {
            let together = Arc::new(Barrier::new(CONNECTIONS));
            let all = threads(|_| {
                let (stream, _) = listener.accept().unwrap();
                let together = Arc::clone(&together);
                Box::new(move || {
                    together.wait();
                    short(limited(stream), false);
                })
            });
            all.into_iter().for_each(|thread| thread.join().unwrap());
        });
        let talks = (0..CONNECTIONS).map(|_| {
            let socket = lab.member.start(to);
            let client = lab.member.call(|stack, _| stack.local_address(socket)).unwrap();
            let [ours, theirs] = seeds(client);
            (socket, Talk::new(ours, SHORT_LEN, theirs, SHORT_LEN))
        });
        let talks: HashMap<_, _> = talks.collect();
        let connected = |stack: &mut unisockets_stack::Stack, _| {
            let writable = |socket: &unisockets_stack::SocketId| {
                stack.readiness(*socket).contains(unisockets_stack::Readiness::WRITABLE)
            };
            talks.keys().all(writable).then_some(())
        };
        lab.member.wait("all connections", connected);
        talk(&lab.member, talks);
        programs.join().unwrap();
    }
}
