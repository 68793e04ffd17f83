//! What a stack does where its tables are full: it says so, or lets the oldest go, and goes on.

mod wire;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use unisockets_stack::{DropReason, Error, Family, Instant, Kind, MTU_MIN, PathConfig, SocketId, Stack};
use wire::Wire;

const SOCKETS_MAX: usize = 65_536;
const PATHS_MAX: usize = 16_384;
const REPLIES_MAX: u64 = 64;
const ORPHANS_PEER_MAX: usize = 4_096;
const TIME_WAIT_MAX: usize = 16_384;

#[test]
fn sockets_end_with_an_error_and_one_that_is_closed_makes_room() {
    let mut stack = Stack::new(1);
    let sockets: Vec<SocketId> = (0..SOCKETS_MAX).map(|_| stack.socket(Kind::Udp, Family::V4).unwrap()).collect();
    assert_eq!(stack.socket(Kind::Tcp, Family::V6), Err(Error::NoBuffers));
    stack.close(Instant::ZERO, sockets[7]);
    let new = stack.socket(Kind::Tcp, Family::V6).unwrap();
    assert!(!sockets.contains(&new), "a stale name means nothing");
}

#[test]
fn paths_end_with_an_error_for_peers_and_for_programs() {
    let mut wire = Wire::new(1_500);
    let stack = &mut wire.nodes[0].stack;
    let config = PathConfig { mtu: MTU_MIN, verify_checksums: true };
    // There are two from the start: loopback, and the other node's.
    let opened: Vec<_> = (2..PATHS_MAX).map(|_| stack.open_path(config).unwrap()).collect();
    assert_eq!(stack.open_path(config), Err(Error::NoBuffers));
    let address: IpAddr = "10.80.7.7".parse().unwrap();
    assert_eq!(stack.path_to(address), Err(Error::NoBuffers));
    let socket = stack.socket(Kind::Udp, Family::V4).unwrap();
    assert_eq!(stack.send_to(wire.now, socket, b"x", Some(SocketAddr::new(address, 9))), Err(Error::NoBuffers));
    stack.end_path(wire.now, opened[0], unisockets_stack::PathEnd::Idle);
    assert!(stack.path_to(address).is_ok());
}

/// What has to be answered while nothing can be sent has a short queue of its own.
#[test]
fn answers_without_room_are_dropped_and_counted() {
    let mut wire = Wire::new(1_500);
    let to = SocketAddr::new(wire.nodes[1].v4, 9);
    wire.start(0, to);
    let (path, mut syn) = (wire.nodes[0].path, Vec::new());
    wire.nodes[0].stack.poll_packet(wire.now, path, wire::ROOM, &mut syn).unwrap();
    let (now, path) = (wire.now, wire.nodes[1].path);
    for _ in 0..1_000 {
        // The socket is not there: each is answered with a reset.
        let _ = wire.nodes[1].stack.handle_packet(now, path, &syn);
    }
    assert_eq!(wire.drops(1, DropReason::ReplyQueueFull), 1_000 - REPLIES_MAX);
    let mut answers = 0;
    while wire.nodes[1].stack.poll_packet(now, path, wire::ROOM, &mut Vec::new()).is_some() {
        answers += 1;
    }
    assert_eq!(answers, REPLIES_MAX);
}

/// Makes connections in groups, and hands both ends to `end`.
fn groups(wire: &mut Wire, count: usize, mut end: impl FnMut(&mut Wire, SocketId, SocketId)) {
    const GROUP: usize = 2_048;
    let mut left = count;
    while left > 0 {
        // Each group has a port of its own, so that no name comes twice.
        let port = 80 + (left / GROUP) as u16;
        let listener = wire.listen(1, port, GROUP);
        let to = SocketAddr::new(wire.nodes[1].v4, port);
        let clients: Vec<_> = (0..left.min(GROUP)).map(|_| wire.start(0, to)).collect();
        left -= clients.len();
        wire.settle();
        for client in clients {
            let (server, _) = wire.nodes[1].stack.accept(wire.now, listener).unwrap();
            end(wire, client, server);
        }
        wire.nodes[1].stack.close(wire.now, listener);
        wire.settle();
        wire.log.clear();
    }
}

/// Connections that are closed with bytes that no one takes are the oldest's to lose.
#[test]
fn orphans_of_one_peer_are_bounded() {
    let mut wire = Wire::new(1_500);
    let mut held = Vec::new();
    let count = ORPHANS_PEER_MAX + 500;
    groups(&mut wire, count, |_, client, server| held.push((client, server)));
    wire.lose = |_, _, _| true;
    let now = wire.now;
    for (client, _) in &held {
        wire.nodes[0].stack.send(now, *client, b"unheard").unwrap();
        wire.nodes[0].stack.close(now, *client);
    }
    wire.flush();
    let left = wire.nodes[0].stack.connection_count();
    assert!((ORPHANS_PEER_MAX / 2..=ORPHANS_PEER_MAX).contains(&left), "{left} of {count}");
}

/// More records than there is room for: the oldest go, and connections go on.
#[test]
fn time_wait_is_bounded() {
    let mut wire = Wire::new(1_500);
    groups(&mut wire, TIME_WAIT_MAX + 1_000, |wire, client, server| {
        // The server's FIN leaves first, so that the record is the server's.
        wire.nodes[1].stack.close(wire.now, server);
        wire.flush();
        wire.nodes[0].stack.close(wire.now, client);
    });
    assert_eq!(wire.nodes[1].stack.time_wait_count(), TIME_WAIT_MAX);
    wire.run(Duration::from_secs(65));
    assert_eq!(wire.nodes[1].stack.time_wait_count(), 0);
    assert_eq!(wire.nodes[1].stack.connection_count(), 0);
}
