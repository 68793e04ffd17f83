//! A smaller MTU on the way, of which only a router's ICMP tells (RFC 1191, RFC 8201).

use std::collections::HashMap;

use unisockets_wire::as_root;

use crate::lab::{FAMILIES, Lab, MTU, reads, writes};
use crate::talk::{Talk, talk};

/// The smaller MTU, in bytes; IPv6 has 1,280 at least.
const SMALL_MTU: usize = 1_300;
/// Bytes in each direction, before the MTU changes and after.
const LEN: u64 = 1 << 20;

/// Transfers both ways, makes the link behind the router smaller, and transfers again over the same connection.
fn transfer_around(shrink: fn(&Lab, usize)) {
    for family in FAMILIES {
        let lab = Lab::routed();
        let (there, back) = (lab.connected(family), lab.accepted(family));
        let whole = |(stream, socket): &(std::net::TcpStream, unisockets_stack::SocketId), seed| {
            let threads = [writes(stream, seed, LEN), reads(stream, seed + 1, LEN)];
            talk(&lab.member, HashMap::from([(*socket, Talk::new(seed + 1, LEN, seed, LEN))]));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        };
        whole(&there, 10);
        shrink(&lab, SMALL_MTU);
        // Made while packets of 1,500 bytes still passed: it has to learn.
        whole(&back, 20);
        let (stream, socket) = lab.connected(family);
        whole(&(stream, socket), 30);
    }
}

#[test]
fn transfers_to_a_network_whose_mtu_became_smaller_arrive() {
    if as_root() {
        transfer_around(Lab::shrink_far);
    }
}

#[test]
fn transfers_from_a_network_whose_mtu_became_smaller_arrive() {
    if as_root() {
        transfer_around(Lab::shrink_near);
    }
}

#[test]
fn a_transfer_goes_on_while_the_mtu_becomes_smaller() {
    if !as_root() {
        return;
    }
    for family in FAMILIES {
        let lab = Lab::routed();
        let (stream, socket) = lab.connected(family);
        let threads = [writes(&stream, 1, 8 * LEN), reads(&stream, 2, 8 * LEN)];
        std::thread::scope(|scope| {
            let transfer = || talk(&lab.member, HashMap::from([(socket, Talk::new(2, 8 * LEN, 1, 8 * LEN))]));
            let transfer = scope.spawn(transfer);
            let underway = |len: u64| (len > LEN).then_some(());
            lab.member.wait("a part of it", |stack, _| underway(stack.stream_info(socket).unwrap().received_bytes));
            assert!(!transfer.is_finished(), "the change comes while bytes are on their way");
            lab.shrink_far(SMALL_MTU);
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        const { assert!(SMALL_MTU < MTU) };
    }
}
