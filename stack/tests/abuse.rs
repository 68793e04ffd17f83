//! Peers that do what no honest one does, and addresses that pass from one peer to another.

mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use unisockets_stack::{DropReason, Error, Family, Kind, PathConfig, Prefix, Readiness, SocketOption, Stack};
use wire::{Wire, pattern};

const SECOND: Duration = Duration::from_secs(1);
const SYN: u8 = 2;
const ACK: u8 = 16;

fn flags(packet: &[u8]) -> u8 {
    packet[20 + 13]
}

/// Closing a listener opened its waiting SYNs as connections that nobody would ever accept, reset or end.
#[test]
fn closing_a_listener_resets_the_syns_that_waited_for_its_backlog() {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 1);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let clients: Vec<_> = (0..2).map(|_| wire.start(0, to)).collect();
    wire.settle();
    wire.nodes[1].stack.close(wire.now, listener);
    wire.run(2 * SECOND);
    for client in clients {
        assert!(matches!(
            wire.nodes[0].stack.take_error(client),
            Ok(Some(Error::ConnectionReset | Error::ConnectionRefused))
        ));
    }
    assert_eq!(wire.nodes[1].stack.connection_count(), 0);
}

/// A SYN repeated once a minute kept a half-open place for ever.
#[test]
fn a_half_open_connection_ends_in_time_whatever_the_peer_repeats() {
    let mut wire = Wire::new(1_500);
    wire.lose = |from, number, _| from == 0 && number > 1;
    wire.listen(1, 80, 4);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    wire.start(0, to);
    wire.settle();
    assert_eq!(wire.nodes[1].stack.connection_count(), 1);
    let (_, _, syn) = wire.log.iter().find(|(from, _, packet)| *from == 0 && flags(packet) == SYN).unwrap().clone();
    let path = wire.nodes[1].path;
    for _ in 0..4 {
        wire.run(20 * SECOND);
        if wire.nodes[1].stack.connection_count() == 0 {
            return;
        }
        let _ = wire.nodes[1].stack.handle_packet(wire.now, path, &syn);
    }
    panic!("the place is still held after {:?}", wire.now);
}

/// Connections to an address went on over the link of whoever showed a newer lease of it, plaintext and all.
#[test]
fn an_address_that_passes_to_another_peer_resets_the_connections_of_the_first() {
    let mut wire = Wire::new(1_500);
    let (client, _) = wire.pair();
    wire.nodes[0].stack.send(wire.now, client, &pattern(1_000)).unwrap();
    let config = PathConfig { mtu: 1_500, verify_checksums: true };
    let (now, address) = (wire.now, wire.nodes[1].v4);
    let stack = &mut wire.nodes[0].stack;
    let other = stack.open_path(config).unwrap();
    stack.path_up(now, other, config);
    stack.add_route(now, address, other);
    assert_eq!(stack.take_error(client), Ok(Some(Error::ConnectionReset)));
    let mut packet = Vec::new();
    assert_eq!(stack.poll_packet(now, other, wire::ROOM, &mut packet), None, "nothing of it leaves over the new path");
}

/// The error for a fragmented datagram quoted its last fragment, in which no sender finds its ports.
#[test]
fn a_fragmented_datagram_to_a_closed_port_is_refused_too() {
    for len in [100, 8_000] {
        for v4 in [true, false] {
            let mut wire = Wire::new(1_500);
            let node = &wire.nodes[1];
            let to = SocketAddr::new(if v4 { node.v4 } else { node.v6 }, 9);
            let stack = &mut wire.nodes[0].stack;
            let socket = stack.socket(Kind::Udp, if v4 { Family::V4 } else { Family::V6 }).unwrap();
            stack.connect(wire.now, socket, to).unwrap();
            stack.send_to(wire.now, socket, &pattern(len), None).unwrap();
            wire.settle();
            assert_eq!(wire.nodes[0].stack.take_error(socket), Ok(Some(Error::ConnectionRefused)), "{len} {v4}");
        }
    }
}

/// While a peer was being dialled, `poll` said "writable" and `send` said "again".
#[test]
fn a_datagram_socket_on_a_pending_path_is_writable_only_while_something_fits() {
    let mut wire = Wire::new(1_500);
    let stack = &mut wire.nodes[0].stack;
    let socket = stack.socket(Kind::Udp, Family::V4).unwrap();
    let to: SocketAddr = "10.80.0.77:9".parse().unwrap();
    stack.connect(wire.now, socket, to).unwrap();
    while stack.send_to(wire.now, socket, &[0; 1_000], None).is_ok() {}
    assert!(!stack.readiness(socket).contains(Readiness::WRITABLE));
}

/// Makes and ends connections between the same two ports, with a pause after each. Every one stands at once: the server
/// closes first and keeps the record, so that the client's ports are free.
fn connect_again_and_again(rounds: usize, pause: Duration) -> Wire {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 4);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let from: SocketAddr = SocketAddr::new(wire.nodes[0].v4, 4_000);
    for round in 0..rounds {
        let stack = &mut wire.nodes[0].stack;
        let client = stack.socket(Kind::Tcp, Family::V4).unwrap();
        stack.set_option(client, SocketOption::ReuseAddress(true)).unwrap();
        stack.bind(client, from).unwrap();
        assert_eq!(stack.connect(wire.now, client, to), Err(Error::InProgress), "round {round}");
        wire.settle();
        let (server, _) = wire.nodes[1].stack.accept(wire.now, listener).expect("it is connected at once");
        wire.nodes[1].stack.close(wire.now, server);
        wire.settle();
        wire.nodes[0].stack.close(wire.now, client);
        wire.settle();
        assert_eq!(wire.nodes[1].stack.time_wait_count(), 1, "round {round}");
        wire.run(pause);
    }
    wire
}

/// The end of an older record took a newer one of the same ports with it.
#[test]
fn time_wait_of_ports_that_were_used_twice_lasts_its_full_minute() {
    let mut wire = connect_again_and_again(2, 40 * SECOND);
    assert_eq!(wire.nodes[1].stack.time_wait_count(), 1);
    wire.run(25 * SECOND);
    assert_eq!(wire.nodes[1].stack.time_wait_count(), 0);
}

/// Numbers that begin anywhere made half of the SYNs that use ports again look old to whoever waits in TIME-WAIT, and
/// those connects took until the wait was over (RFC 9293, section 3.4.1, MUST-8).
#[test]
fn ports_of_connections_in_time_wait_are_used_again_at_once() {
    connect_again_and_again(64, Duration::from_millis(1));
}

/// A peer whose connections nobody reads could make a node commit as much memory as it liked.
#[test]
fn the_memory_of_one_peer_is_bounded_and_another_goes_on() {
    let mut wire = Wire::new(16_384);
    let listener = wire.listen(1, 80, 1_024);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let data = pattern(1 << 20);
    let mut clients = Vec::new();
    for _ in 0..700 {
        let client = wire.start(0, to);
        wire.settle();
        let _ = wire.nodes[0].stack.send(wire.now, client, &data);
        wire.run(SECOND / 20);
        clients.push(client);
    }
    while wire.nodes[1].stack.accept(wire.now, listener).is_ok() {}
    wire.run(5 * SECOND);
    let committed = wire.nodes[1].stack.committed_bytes();
    assert!(committed <= 66 << 20, "{committed}");
    assert!(committed >= 60 << 20, "{committed}: the attack was none");
    // Own programs are not held by the peer's allowance.
    let own = wire.listen(1, 81, 4);
    let to = SocketAddr::new("127.0.0.1".parse().unwrap(), 81);
    let local = wire.start(1, to);
    wire.settle();
    assert!(wire.nodes[1].stack.accept(wire.now, own).is_ok());
    assert!(wire.nodes[1].stack.readiness(local).contains(Readiness::WRITABLE));
    for client in clients {
        wire.nodes[0].stack.set_option(client, SocketOption::Linger(Some(Duration::ZERO))).unwrap();
        wire.nodes[0].stack.close(wire.now, client);
    }
    wire.run(SECOND);
}

/// A number far ahead, in a segment that was thrown away, counted as a hole and kept the memory for ever.
#[test]
fn a_segment_far_outside_the_window_does_not_keep_an_idle_connections_memory() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    let data = pattern(100_000);
    assert_eq!(wire.transfer((0, client), (1, server), &data, 10 * SECOND), data);
    wire.settle();
    let (_, _, last) = wire.log.iter().rev().find(|(from, _, _)| *from == 0).unwrap().clone();
    let path = wire.nodes[1].path;
    for flags in [SYN, ACK] {
        let _ = wire.nodes[1].stack.handle_packet(wire.now, path, &wire::forged(&last, flags, 1 << 29));
    }
    wire.run(25 * SECOND);
    assert_eq!(wire.nodes[1].stack.committed_bytes(), 0);
}

/// What idle connections had committed stayed committed.
#[test]
fn idle_connections_give_their_memory_back_and_go_on() {
    let mut wire = Wire::new(16_384);
    let (client, server) = wire.pair();
    let data = pattern(3 << 20);
    assert_eq!(wire.transfer((0, client), (1, server), &data, 10 * SECOND), data);
    wire.settle();
    assert!(wire.nodes[1].stack.committed_bytes() >= 1 << 20);
    wire.run(25 * SECOND);
    for node in &wire.nodes {
        assert_eq!(node.stack.committed_bytes(), 0);
        assert_eq!(node.stack.poll_timeout(), None);
    }
    assert_eq!(wire.transfer((0, client), (1, server), &data, 10 * SECOND), data);
    assert_eq!(wire.transfer((1, server), (0, client), &data, 10 * SECOND), data);
}

/// A peer that opened connections faster than they were accepted kept every other one out (threat T4).
#[test]
fn a_peer_that_floods_a_listener_keeps_nobody_out_but_itself() {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 64);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let flood: Vec<_> = (0..1_000).map(|_| wire.start(0, to)).collect();
    wire.settle();
    let stack = &wire.nodes[1].stack;
    let (held, memory) = (stack.connection_count(), stack.committed_bytes());
    assert_eq!(held, 64, "the backlog holds for the peer that fills it");
    assert!(wire.drops(1, DropReason::BacklogFull) > 0);

    // Another peer, over a path of its own, finds its places: the SYN is answered at once.
    let (now, config) = (wire.now, PathConfig { mtu: 1_500, verify_checksums: true });
    let stack = &mut wire.nodes[1].stack;
    let other = stack.open_path(config).unwrap();
    stack.add_route(now, "10.80.0.3".parse().unwrap(), other);
    stack.path_up(now, other, config);
    let mut third = Stack::new(77);
    third.set_addresses(&["10.80.0.3".parse().unwrap()], &[Prefix { address: "10.80.0.0".parse().unwrap(), len: 16 }]);
    let path = third.open_path(config).unwrap();
    third.add_route(now, to.ip(), path);
    third.path_up(now, path, config);
    let client = third.socket(Kind::Tcp, Family::V4).unwrap();
    let _ = third.connect(now, client, to);
    for _ in 0..3 {
        let mut packet = Vec::new();
        while third.poll_packet(now, path, wire::ROOM, &mut packet).is_some() {
            wire.nodes[1].stack.handle_packet(now, other, &packet).unwrap();
            packet.clear();
        }
        while wire.nodes[1].stack.poll_packet(now, other, wire::ROOM, &mut packet).is_some() {
            third.handle_packet(now, path, &packet).unwrap();
            packet.clear();
        }
    }
    assert_eq!(third.take_error(client), Ok(None));
    assert!(third.readiness(client).contains(Readiness::WRITABLE), "connected beside the flood");
    assert!(wire.nodes[1].stack.committed_bytes() <= memory + 64 * 1024);

    // And nothing of it is lost: as places come free, everybody who still waits is let in.
    let mut accepted = 0;
    for _ in 0..300 {
        while wire.nodes[1].stack.accept(wire.now, listener).is_ok() {
            accepted += 1;
        }
        wire.run(SECOND / 2);
    }
    assert_eq!(accepted, 1_001);
    assert!(flood.iter().all(|client| wire.nodes[0].stack.take_error(*client) == Ok(None)));
}

/// Sends a handcrafted segment of node 0's to node 1's port 80.
fn segment(wire: &Wire, numbers: (u32, u32), flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    let (from, to) = (wire.nodes[0].v4, wire.nodes[1].v4);
    let (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) = (from, to) else {
        panic!("the wire has IPv4 addresses");
    };
    let len = 20 + 20 + options.len() + data.len();
    let mut packet = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(9_999u16.to_be_bytes());
    packet.extend(80u16.to_be_bytes());
    packet.extend(numbers.0.to_be_bytes());
    packet.extend(numbers.1.to_be_bytes());
    packet.extend([((20 + options.len()) / 4 * 16) as u8, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(options);
    packet.extend(data);
    let sum = |bytes: &[u8], start: u32| {
        let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let mut sum: u32 = start + words.sum::<u32>();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    };
    let header = sum(&packet[..20], 0).to_be_bytes();
    packet[10..12].copy_from_slice(&header);
    let pseudo = packet[12..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let transport = sum(&packet[20..], pseudo + 6 + (len - 20) as u32).to_be_bytes();
    packet[36..38].copy_from_slice(&transport);
    packet
}

/// Data over the end of the window, sent before this end had told a window that is scaled, was marked as received
/// whole and stored in part: the byte that closed the hole before it brought the stack down.
#[test]
fn data_over_the_end_of_the_window_is_taken_as_far_as_there_is_room() {
    let mut wire = Wire::new(9_000);
    let listener = wire.listen(1, 80, 4);
    let path = wire.nodes[1].path;
    let scale = [1, 3, 3, 7];
    // Node 0 knows nothing of this connection, and would say so.
    wire.lose = |from, _, _| from == 0;
    let syn = segment(&wire, (100, 0), SYN, &scale, &[]);
    wire.nodes[1].stack.handle_packet(wire.now, path, &syn).unwrap();
    wire.settle();
    let (_, _, answer) =
        wire.log.iter().rfind(|(from, _, packet)| *from == 1 && flags(packet) & SYN != 0).expect("a SYN ACK").clone();
    let ours = u32::from_be_bytes(answer[24..28].try_into().unwrap()).wrapping_add(1);
    let bytes = pattern(1_048_576 + 4_000);
    let send = |wire: &mut Wire, offset: usize, len: usize| {
        let numbers = (101u32.wrapping_add(offset as u32), ours);
        let packet = segment(wire, numbers, ACK, &[], &bytes[offset..offset + len]);
        let _ = wire.nodes[1].stack.handle_packet(wire.now, path, &packet);
    };
    // Over the end, then everything between, then the byte that was missing.
    send(&mut wire, 1_048_000, 1_400);
    let mut offset = 1;
    while offset < 1_048_000 {
        let len = 8_000.min(1_048_000 - offset);
        send(&mut wire, offset, len);
        offset += len;
    }
    send(&mut wire, 0, 1);
    wire.settle();
    let (socket, _) = wire.nodes[1].stack.accept(wire.now, listener).unwrap();
    let mut received = vec![0; bytes.len()];
    let mut len = 0;
    while let Ok(more @ 1..) = wire.nodes[1].stack.recv(socket, &mut received[len..]) {
        len += more;
    }
    assert_eq!(len, 1_048_576, "as much as the window holds");
    assert!(received[..len] == bytes[..len], "and nothing that was not sent");
}

/// What a program writes to peers that never read was in the ledger, and in no limit.
#[test]
fn writers_to_peers_that_never_read_hold_no_more_than_the_ledger_allows() {
    const LIMIT: usize = 64 << 20;
    let mut wire = Wire::new(9_000);
    let listener = wire.listen(1, 80, 512);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let mut servers = Vec::new();
    for _ in 0..200 {
        wire.start(0, to);
        wire.settle();
        servers.push(wire.nodes[1].stack.accept(wire.now, listener).unwrap().0);
    }
    let bytes = pattern(1 << 20);
    for server in &servers {
        // As much as it takes; some takes more than one call.
        while wire.nodes[1].stack.send(wire.now, *server, &bytes).is_ok() {}
        wire.settle();
    }
    for server in &servers {
        while wire.nodes[1].stack.send(wire.now, *server, &bytes).is_ok() {}
    }
    let committed = wire.nodes[1].stack.committed_bytes();
    assert!(committed <= LIMIT + 200 * 8_192, "{committed} bytes");
    assert!(wire.nodes[1].stack.readiness(servers[199]) == Readiness::NONE, "it waits for memory");
}

/// A connection to a closed port left a socket that said "connected" for ever.
#[test]
fn a_socket_whose_connection_was_refused_tells_so_once_and_may_try_again() {
    let mut wire = Wire::new(1_500);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let client = wire.start(0, to);
    wire.settle();
    let now = wire.now;
    let stack = &mut wire.nodes[0].stack;
    assert_eq!(stack.connect(now, client, to), Err(Error::ConnectionRefused));
    assert_eq!(stack.connect(now, client, to), Err(Error::InProgress));
    wire.listen(1, 80, 1);
    wire.run(4 * SECOND);
    wire.settle();
}
