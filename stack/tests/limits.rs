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
const FLOWS_MAX: usize = 65_536;
const BACKLOG_MAX: usize = 4_096;
const NODE_MEMORY_MAX: usize = 512 << 20;

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

/// A node that has as many connections as it may refuses more, of its programs and of peers, and takes them again once one
/// has ended.
#[test]
fn connections_end_with_an_error_and_one_that_is_closed_makes_room() {
    let mut wire = Wire::new(1_500);
    let own = wire.nodes[1].v4;
    let mut clients = Vec::new();
    // Each is two connections of the node, one of them in a backlog, which has no socket.
    for port in 0..(FLOWS_MAX / 2 / BACKLOG_MAX) as u16 {
        wire.listen(1, 80 + port, BACKLOG_MAX);
        for _ in 0..BACKLOG_MAX {
            clients.push(wire.start(1, SocketAddr::new(own, 80 + port)));
            wire.flush();
        }
    }
    assert_eq!(wire.nodes[1].stack.connection_count(), FLOWS_MAX);
    let listener = wire.listen(1, 79, 8);
    let (now, to) = (wire.now, SocketAddr::new(own, 79));
    let refused = wire.nodes[1].stack.socket(Kind::Tcp, Family::V4).unwrap();
    assert_eq!(wire.nodes[1].stack.connect(now, refused, to), Err(Error::NoBuffers));
    let peer = wire.start(0, to);
    wire.settle();
    assert!(wire.drops(1, DropReason::Limit) > 0, "a peer's SYN is dropped and counted");
    assert_eq!(wire.nodes[1].stack.accept(wire.now, listener), Err(Error::Again));
    // An end with a reset takes both ends' records away; the peer's SYN comes again after a second.
    let zero = unisockets_stack::SocketOption::Linger(Some(Duration::ZERO));
    wire.nodes[1].stack.set_option(clients[0], zero).unwrap();
    wire.nodes[1].stack.close(wire.now, clients[0]);
    wire.run(Duration::from_secs(3));
    let (_, from) = wire.nodes[1].stack.accept(wire.now, listener).expect("there is room again");
    assert_eq!(from.ip(), wire.nodes[0].v4);
    assert_eq!(wire.nodes[0].stack.take_error(peer), Ok(None));
}

/// What connections hold without anybody reading it is bounded for the whole node; more waits at whoever sends, and a new
/// connection is refused until there is room.
#[test]
fn memory_of_a_node_is_bounded_and_freed() {
    let mut wire = Wire::new(1_500);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let listener = wire.listen(1, 80, 1_024);
    let bytes = wire::pattern(1 << 20);
    let mut held = Vec::new();
    let mut refused = false;
    for _ in 0..NODE_MEMORY_MAX / MTU_MIN {
        let now = wire.now;
        let stack = &mut wire.nodes[1].stack;
        let client = stack.socket(Kind::Tcp, Family::V4).unwrap();
        match stack.connect(now, client, to) {
            Err(Error::InProgress) => {}
            other => {
                assert_eq!(other, Err(Error::NoBuffers));
                stack.close(now, client);
                refused = true;
                break;
            }
        }
        wire.flush();
        let Ok((server, _)) = wire.nodes[1].stack.accept(now, listener) else {
            // The other end's share of memory was the last.
            refused = true;
            break;
        };
        let mut sent = 0;
        while let Ok(len) = wire.nodes[1].stack.send(now, client, &bytes[sent % bytes.len()..]) {
            sent += len;
            wire.flush();
        }
        held.push((client, server, sent));
    }
    assert!(refused, "{} connections, and still room", held.len());
    assert!(wire.nodes[1].stack.committed_bytes() <= NODE_MEMORY_MAX + (8 << 20), "bounded");
    // One alone is read: it goes on, slowly, though all others hold what they have.
    let mut buffer = vec![0; 1 << 20];
    let mut read = |wire: &mut Wire, server: SocketId, got: &mut usize| {
        while let Ok(len) = wire.nodes[1].stack.recv(server, &mut buffer) {
            for chunk in buffer[..len].chunks(4_096) {
                let at = *got % bytes.len();
                let first = chunk.len().min(bytes.len() - at);
                assert_eq!((&chunk[..first], &chunk[first..]), (&bytes[at..at + first], &bytes[..chunk.len() - first]));
                *got += chunk.len();
            }
        }
        wire.flush();
    };
    let mut counts = vec![0; held.len()];
    let server = held[0].1;
    read(&mut wire, server, &mut counts[0]);
    let (before, limit) = (counts[0], wire.now + Duration::from_secs(30));
    while counts[0] < before + (128 << 10) {
        wire.run(Duration::from_millis(100));
        read(&mut wire, server, &mut counts[0]);
        assert!(wire.now < limit, "only {} bytes have come", counts[0] - before);
    }
    // Then all are, and every byte that was taken is there.
    while held.iter().zip(&counts).any(|((_, _, sent), got)| got < sent) {
        for ((_, server, _), got) in held.iter().zip(&mut counts) {
            read(&mut wire, *server, got);
        }
        wire.run(Duration::from_millis(100));
        assert!(wire.now < limit + Duration::from_secs(120));
    }
    for (client, server, _) in held {
        wire.nodes[1].stack.close(wire.now, client);
        wire.nodes[1].stack.close(wire.now, server);
        wire.flush();
    }
    wire.run(Duration::from_secs(61));
    assert_eq!(wire.nodes[1].stack.committed_bytes(), 0);
    let client = wire.start(1, to);
    wire.settle();
    assert!(wire.nodes[1].stack.accept(wire.now, listener).is_ok());
    wire.nodes[1].stack.close(wire.now, client);
}
