//! A link behind the peer that takes less: it is learnt, and never a black hole (RFC 1191, RFC 8201, RFC 4821).

mod wire;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use unisockets_stack::{DropReason, Family, Kind, SocketId};
use wire::{Wire, pattern};

const SECOND: Duration = Duration::from_secs(1);

fn connect(wire: &mut Wire, ip: IpAddr) -> (SocketId, SocketId) {
    let listener = wire.listen(1, 80, 8);
    let client = wire.start(0, SocketAddr::new(ip, 80));
    wire.settle();
    let (server, _) = wire.nodes[1].stack.accept(wire.now, listener).unwrap();
    (client, server)
}

/// Sends data that is lost for its length; returns the first packet of it.
fn lose_long(wire: &mut Wire, client: SocketId, data: &[u8]) -> Vec<u8> {
    wire.lose = |_, _, packet| packet.len() > 1_300;
    wire.nodes[0].stack.send(wire.now, client, data).unwrap();
    wire.settle();
    wire.log.iter().find(|(from, _, packet)| *from == 0 && packet.len() > 1_300).expect("it was long").2.clone()
}

#[test]
fn an_error_that_quotes_what_is_under_way_makes_segments_shorter_at_once() {
    for family in [4, 6] {
        let mut wire = Wire::new(9_000);
        let ip = if family == 4 { wire.nodes[1].v4 } else { wire.nodes[1].v6 };
        let (client, server) = connect(&mut wire, ip);
        let data = pattern(50_000);
        let long = lose_long(&mut wire, client, &data);
        let (now, path) = (wire.now, wire.nodes[0].path);
        wire.nodes[0].stack.handle_packet(now, path, &wire::too_big(&long, ip, 1_300)).unwrap();
        assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().mtu, 1_300);
        wire.run(Duration::from_millis(50));
        let mut buffer = vec![0; 60_000];
        assert_eq!(wire.nodes[1].stack.recv(server, &mut buffer), Ok(50_000), "without waiting for a timer");
        assert_eq!(buffer[..50_000], data);
        // A new connection to the same address knows, too.
        let (second, _) = connect_again(&mut wire, ip);
        assert_eq!(wire.nodes[0].stack.stream_info(second).unwrap().mtu, 1_300);
        // And what was learnt is forgotten in time: the way may have changed.
        wire.run(601 * SECOND);
        assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().mtu, 9_000);
    }
}

fn connect_again(wire: &mut Wire, ip: IpAddr) -> (SocketId, SocketId) {
    let listener = wire.listen(1, 81, 8);
    let client = wire.start(0, SocketAddr::new(ip, 81));
    wire.settle();
    let (server, _) = wire.nodes[1].stack.accept(wire.now, listener).unwrap();
    (client, server)
}

#[test]
fn a_link_that_drops_long_packets_without_a_word_is_found_out() {
    for family in [4, 6] {
        let mut wire = Wire::new(9_000);
        let ip = if family == 4 { wire.nodes[1].v4 } else { wire.nodes[1].v6 };
        let (client, server) = connect(&mut wire, ip);
        wire.lose = |_, _, packet| packet.len() > 1_300;
        let data = pattern(100_000);
        assert_eq!(wire.transfer((0, client), (1, server), &data, 60 * SECOND), data);
        assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().mtu, 1_280);
    }
}

/// A forged error could slow every connection of a node down to 68 bytes a packet (RFC 5927).
#[test]
fn an_error_about_what_was_never_sent_or_is_long_acknowledged_is_not_believed() {
    let mut wire = Wire::new(9_000);
    let ip = wire.nodes[1].v4;
    let (client, server) = connect(&mut wire, ip);
    let data = pattern(50_000);
    assert_eq!(wire.transfer((0, client), (1, server), &data, SECOND), data);
    wire.settle();
    let (now, path) = (wire.now, wire.nodes[0].path);
    let old = wire.log.iter().find(|(from, _, packet)| *from == 0 && packet.len() > 1_300).unwrap().2.clone();
    let verdict = wire.nodes[0].stack.handle_packet(now, path, &wire::too_big(&old, ip, 100));
    assert_eq!(verdict, Err(DropReason::OutOfWindow));
    let mut other = old.clone();
    other[20..22].copy_from_slice(&1u16.to_be_bytes());
    let verdict = wire.nodes[0].stack.handle_packet(now, path, &wire::too_big(&other, ip, 100));
    assert_eq!(verdict, Err(DropReason::NoSocket));
    assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().mtu, 9_000);
    // Even a true one is not believed below what every host takes (RFC 791, section 3.2).
    lose_long(&mut wire, client, &data);
    let newest = wire.log.iter().rfind(|(from, _, packet)| *from == 0 && packet.len() > 1_300).unwrap().2.clone();
    wire.nodes[0].stack.handle_packet(now, path, &wire::too_big(&newest, ip, 100)).unwrap();
    assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().mtu, 576);
}

#[test]
fn datagrams_are_cut_to_what_was_learnt() {
    let mut wire = Wire::new(9_000);
    let stack = &mut wire.nodes[1].stack;
    let server = stack.socket(Kind::Udp, Family::V4).unwrap();
    stack.bind(server, "0.0.0.0:53".parse().unwrap()).unwrap();
    let to = SocketAddr::new(wire.nodes[1].v4, 53);
    let client = wire.nodes[0].stack.socket(Kind::Udp, Family::V4).unwrap();
    let data = pattern(4_000);
    wire.lose = |_, _, packet| packet.len() > 1_300;
    wire.nodes[0].stack.send_to(wire.now, client, &data, Some(to)).unwrap();
    wire.settle();
    let long = wire.log.last().unwrap().2.clone();
    let (now, path) = (wire.now, wire.nodes[0].path);
    wire.nodes[0].stack.handle_packet(now, path, &wire::too_big(&long, to.ip(), 1_300)).unwrap();
    wire.nodes[0].stack.send_to(wire.now, client, &data, Some(to)).unwrap();
    wire.settle();
    assert_eq!(wire.nodes[1].stack.recv_from(server).unwrap().data, data);
}

/// The error about a datagram in pieces quotes its first one; the others have no ports, and say nothing.
#[test]
fn pieces_are_cut_to_what_was_learnt_too() {
    for family in [Family::V4, Family::V6] {
        let mut wire = Wire::new(9_000);
        let any = if family == Family::V4 { "0.0.0.0:53" } else { "[::]:53" };
        let ip = if family == Family::V4 { wire.nodes[1].v4 } else { wire.nodes[1].v6 };
        let (to, data) = (SocketAddr::new(ip, 53), pattern(20_000));
        let stack = &mut wire.nodes[1].stack;
        let server = stack.socket(Kind::Udp, family).unwrap();
        stack.bind(server, any.parse().unwrap()).unwrap();
        let client = wire.nodes[0].stack.socket(Kind::Udp, family).unwrap();
        wire.lose = |_, _, packet| packet.len() > 1_300;
        wire.nodes[0].stack.send_to(wire.now, client, &data, Some(to)).unwrap();
        wire.settle();
        let long: Vec<Vec<u8>> =
            wire.log.iter().map(|(_, _, packet)| packet.clone()).filter(|p| p.len() > 1_300).collect();
        let (now, path) = (wire.now, wire.nodes[0].path);
        let mut tell = |piece: &[u8]| wire.nodes[0].stack.handle_packet(now, path, &wire::too_big(piece, ip, 1_300));
        assert_eq!(tell(&long[1]), Err(DropReason::Malformed), "{family:?}");
        assert_eq!(tell(&long[0]), Ok(()), "{family:?}");
        wire.nodes[0].stack.send_to(wire.now, client, &data, Some(to)).unwrap();
        wire.settle();
        assert_eq!(wire.nodes[1].stack.recv_from(server).unwrap().data, data, "{family:?}");
    }
}
