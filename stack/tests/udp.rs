//! What a program may rely on of UDP and ICMP echo, on a virtual wire and clock.

mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use unisockets_stack::{
    DropReason, Error, Event, Family, Kind, PathConfig, PathEnd, Readiness, SocketId, SocketOption,
};
use wire::{Node, ROOM, Wire, pattern};

fn udp(wire: &mut Wire, node: usize, address: &str) -> SocketId {
    let stack = &mut wire.nodes[node].stack;
    let family = if address.starts_with('[') { Family::V6 } else { Family::V4 };
    let socket = stack.socket(Kind::Udp, family).unwrap();
    stack.bind(socket, address.parse().unwrap()).unwrap();
    socket
}

#[test]
fn datagrams_of_every_size_arrive_whole_over_both_families() {
    let mut wire = Wire::new(16_384);
    let server = udp(&mut wire, 1, "[::]:53");
    let client = udp(&mut wire, 0, "[::]:0");
    for ip in [wire.nodes[1].v4, wire.nodes[1].v6] {
        for len in [0, 1, 7, 1_160, 1_472, 9_000, 16_356, 16_357, 40_000, 65_507] {
            let data = pattern(len);
            let to = SocketAddr::new(ip, 53);
            assert_eq!(wire.nodes[0].stack.send_to(wire.now, client, &data, Some(to)), Ok(len));
            wire.settle();
            let received = wire.nodes[1].stack.recv_from(server).unwrap();
            assert_eq!(received.data, data);
            assert_eq!(received.destination, ip);
            assert_eq!(received.source.ip().is_ipv4(), ip.is_ipv4());
        }
    }
}

#[test]
fn a_datagram_above_the_limit_is_refused() {
    let mut wire = Wire::new(1_500);
    let client = udp(&mut wire, 0, "0.0.0.0:0");
    let to = SocketAddr::new(wire.nodes[1].v4, 53);
    let sent = wire.nodes[0].stack.send_to(wire.now, client, &pattern(65_508), Some(to));
    assert_eq!(sent, Err(Error::MessageSize));
    assert_eq!(wire.nodes[0].stack.send_to(wire.now, client, b"x", None), Err(Error::DestinationRequired));
}

#[test]
fn a_connected_socket_learns_that_the_port_is_closed_and_hears_only_its_peer() {
    let mut wire = Wire::new(1_500);
    for ip in [wire.nodes[1].v4, wire.nodes[1].v6] {
        let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let client = udp(&mut wire, 0, any);
        wire.nodes[0].stack.connect(wire.now, client, SocketAddr::new(ip, 9)).unwrap();
        wire.nodes[0].stack.send_to(wire.now, client, b"x", None).unwrap();
        wire.settle();
        assert!(wire.nodes[0].stack.readiness(client).contains(Readiness::ERROR));
        assert_eq!(wire.nodes[0].stack.recv_from(client), Err(Error::ConnectionRefused));
        assert_eq!(wire.nodes[0].stack.recv_from(client), Err(Error::Again));
        let stranger = udp(&mut wire, 1, if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" });
        let to = wire.nodes[0].stack.local_address(client).unwrap();
        wire.nodes[1].stack.send_to(wire.now, stranger, b"y", Some(to)).unwrap();
        wire.settle();
        assert_eq!(wire.nodes[0].stack.recv_from(client), Err(Error::Again));
    }
}

#[test]
fn the_receive_buffer_bounds_what_waits_and_the_rest_is_counted() {
    let mut wire = Wire::new(16_384);
    let server = udp(&mut wire, 1, "0.0.0.0:53");
    let client = udp(&mut wire, 0, "0.0.0.0:0");
    let to = SocketAddr::new(wire.nodes[1].v4, 53);
    for _ in 0..2_000 {
        wire.nodes[0].stack.send_to(wire.now, client, &pattern(1_000), Some(to)).unwrap();
        wire.run(Duration::from_micros(100));
    }
    wire.settle();
    let waiting = std::iter::from_fn(|| wire.nodes[1].stack.recv_from(server).ok()).count() as u64;
    assert!(waiting * 1_128 <= 1 << 20);
    assert_eq!(waiting + wire.drops(1, DropReason::ReceiveQueueFull), 2_000);
}

#[test]
fn a_full_path_is_back_pressure_and_room_wakes_the_sender() {
    let mut wire = Wire::new(16_384);
    let client = udp(&mut wire, 0, "0.0.0.0:0");
    let to = SocketAddr::new(wire.nodes[1].v4, 53);
    let data = pattern(9_000);
    while wire.nodes[0].stack.send_to(wire.now, client, &data, Some(to)).is_ok() {}
    assert_eq!(wire.nodes[0].stack.send_to(wire.now, client, &data, Some(to)), Err(Error::Again));
    wire.events(0);
    assert!(!wire.nodes[0].stack.readiness(client).contains(Readiness::WRITABLE));
    wire.flush();
    assert!(wire.events(0).contains(&Event::Ready(client)));
    assert!(wire.nodes[0].stack.readiness(client).contains(Readiness::WRITABLE));
}

#[test]
fn the_first_datagrams_wait_for_the_path_and_an_unreachable_peer_is_reported() {
    let mut wire = Wire::new(1_500);
    let client = udp(&mut wire, 0, "0.0.0.0:0");
    let to: SocketAddr = "10.80.7.7:53".parse().unwrap();
    let bystander = udp(&mut wire, 0, "0.0.0.0:0");
    assert_eq!(wire.nodes[0].stack.send_to(wire.now, bystander, b"x", Some(to)), Ok(1));
    wire.nodes[0].stack.connect(wire.now, client, to).unwrap();
    assert_eq!(wire.nodes[0].stack.send_to(wire.now, client, b"x", None), Ok(1));
    let Some(Event::PathWanted { path, .. }) = wire.nodes[0].stack.poll_event() else { panic!() };
    wire.nodes[0].stack.end_path(wire.now, path, PathEnd::Unreachable);
    assert_eq!(wire.nodes[0].stack.recv_from(client), Err(Error::HostUnreachable));
    // An unconnected socket hears nothing (udp(7)): its server goes on for everybody else.
    assert_eq!(wire.nodes[0].stack.recv_from(bystander), Err(Error::Again));
    assert_eq!(wire.drops(0, DropReason::PathLost), 2);
}

#[test]
fn echo_requests_are_answered_with_the_same_payload_over_both_families() {
    let mut wire = Wire::new(16_384);
    for (ip, family) in [(wire.nodes[1].v4, Family::V4), (wire.nodes[1].v6, Family::V6)] {
        let stack = &mut wire.nodes[0].stack;
        let socket = stack.socket(Kind::Echo, family).unwrap();
        let data = pattern(20_000);
        stack.send_to(wire.now, socket, &data, Some(SocketAddr::new(ip, 0))).unwrap();
        wire.settle();
        let received = wire.nodes[0].stack.recv_from(socket).unwrap();
        assert_eq!(received.data, data);
        assert_eq!(received.source.ip(), ip);
    }
}

#[test]
fn peek_leaves_the_datagram_where_it_is() {
    let mut wire = Wire::new(1_500);
    let server = udp(&mut wire, 1, "0.0.0.0:53");
    let client = udp(&mut wire, 0, "0.0.0.0:0");
    let to = SocketAddr::new(wire.nodes[1].v4, 53);
    wire.nodes[0].stack.send_to(wire.now, client, b"once", Some(to)).unwrap();
    wire.settle();
    assert_eq!(wire.nodes[1].stack.peek_from(server).unwrap().data, b"once");
    assert_eq!(wire.nodes[1].stack.recv_from(server).unwrap().data, b"once");
    assert_eq!(wire.nodes[1].stack.recv_from(server), Err(Error::Again));
}

#[test]
fn packets_from_martians_and_for_others_are_dropped_and_counted() {
    let mut wire = Wire::new(1_500);
    let path = wire.nodes[0].path;
    let mut stray = wire::Wire::new(1_500);
    let client = udp(&mut stray, 0, "0.0.0.0:0");
    let to = SocketAddr::new(stray.nodes[1].v4, 53);
    stray.nodes[0].stack.send_to(stray.now, client, b"x", Some(to)).unwrap();
    stray.flush();
    let (_, _, packet) = stray.log.pop().unwrap();
    assert_eq!(wire.nodes[0].stack.handle_packet(wire.now, path, &packet), Err(DropReason::NotOurs));
    assert_eq!(wire.nodes[0].stack.handle_packet(wire.now, path, &[]), Err(DropReason::Malformed));
    assert_eq!(wire.drops(0, DropReason::NotOurs), 1);
}

/// A socket stopped being writable when another one had filled the queue to the same peer, and nobody told it when
/// that had left: a program that waited for it waited for ever.
#[test]
fn a_socket_that_others_kept_from_sending_is_told_when_it_can() {
    let mut wire = Wire::new(1_500);
    let (greedy, modest) = (udp(&mut wire, 0, "0.0.0.0:0"), udp(&mut wire, 0, "0.0.0.0:0"));
    let (to, now) = (SocketAddr::new(wire.nodes[1].v4, 53), wire.now);
    let stack = &mut wire.nodes[0].stack;
    for socket in [greedy, modest] {
        assert_eq!(stack.send_to(now, socket, b"x", Some(to)), Ok(1));
    }
    let data = pattern(40_000);
    while stack.send_to(now, greedy, &data, Some(to)).is_ok() {}
    let writable = |stack: &unisockets_stack::Stack, socket| stack.readiness(socket).contains(Readiness::WRITABLE);
    assert!(!writable(stack, greedy) && writable(stack, modest), "who has not been refused may try");
    assert_eq!(stack.send_to(now, modest, &data, Some(to)), Err(Error::Again));
    assert!(!writable(stack, modest), "who was refused waits");
    while stack.poll_event().is_some() {}
    wire.settle();
    let stack = &mut wire.nodes[0].stack;
    let events: Vec<Event> = std::iter::from_fn(|| stack.poll_event()).collect();
    for socket in [greedy, modest] {
        assert!(events.contains(&Event::Ready(socket)) && writable(stack, socket), "and is told");
    }
}

/// SO_REUSEPORT: each peer's port belongs to one of the sockets, as long as they stay.
#[test]
fn sockets_that_share_a_port_share_what_comes() {
    let mut wire = Wire::new(1_500);
    let address = "0.0.0.0:53".parse().unwrap();
    let mut bind = |shares: bool| {
        let stack = &mut wire.nodes[1].stack;
        let socket = stack.socket(Kind::Udp, Family::V4).unwrap();
        stack.set_option(socket, SocketOption::ReusePort(shares)).unwrap();
        stack.bind(socket, address).map(|_| socket)
    };
    let servers = [bind(true).unwrap(), bind(true).unwrap(), bind(true).unwrap()];
    assert_eq!(bind(false), Err(Error::AddressInUse));
    let to = SocketAddr::new(wire.nodes[1].v4, 53);
    let mut counts = [0; 3];
    for _ in 0..60 {
        let client = udp(&mut wire, 0, "0.0.0.0:0");
        let mut owner = None;
        for _ in 0..3 {
            wire.nodes[0].stack.send_to(wire.now, client, b"?", Some(to)).unwrap();
            wire.settle();
            let came: Vec<usize> = (0..3).filter(|i| wire.nodes[1].stack.recv_from(servers[*i]).is_ok()).collect();
            assert_eq!(came.len(), 1, "one socket gets it");
            assert_eq!(*owner.get_or_insert(came[0]), came[0], "and that one gets all of a flow");
        }
        counts[owner.unwrap()] += 1;
    }
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
}

/// The identification of IPv4 has 16 bits, and a piece that was lost leaves its datagram open for 15 s: pieces of two
/// may meet (RFC 4963). Their sum says so, also on a link that is authenticated.
#[test]
fn pieces_of_two_datagrams_make_none() {
    let mut wire = Wire::new(1_500);
    let server = udp(&mut wire, 1, "0.0.0.0:53");
    let client = udp(&mut wire, 0, "0.0.0.0:0");
    let trusted = PathConfig { mtu: 1_500, verify_checksums: false };
    let path = wire.nodes[1].path;
    wire.nodes[1].stack.path_up(wire.now, path, trusted);
    let to = SocketAddr::new(wire.nodes[1].v4, 53);
    let mut pieces = |byte: u8| -> Vec<Vec<u8>> {
        let Node { stack, path, .. } = &mut wire.nodes[0];
        assert_eq!(stack.send_to(wire.now, client, &[byte; 2_000], Some(to)), Ok(2_000));
        let mut pieces = Vec::new();
        let mut packet = Vec::new();
        while stack.poll_packet(wire.now, *path, ROOM, &mut packet).is_some() {
            packet[4..6].copy_from_slice(&[7, 7]);
            pieces.push(std::mem::take(&mut packet));
        }
        assert_eq!(pieces.len(), 2);
        pieces
    };
    let (first, second) = (pieces(1), pieces(2));
    let mut take = |packet: &[u8]| wire.nodes[1].stack.handle_packet(wire.now, path, packet);
    assert_eq!((take(&first[0]), take(&second[1])), (Ok(()), Err(DropReason::Checksum)));
    assert_eq!((take(&second[0]), take(&second[1])), (Ok(()), Ok(())));
    assert_eq!(wire.nodes[1].stack.recv_from(server).map(|received| received.data), Ok(vec![2; 2_000]));
    assert_eq!(wire.nodes[1].stack.recv_from(server), Err(Error::Again));
}

/// One lost piece in a hundred left sixteen datagrams open within two seconds, and from then on every other one of more
/// than a packet was refused for 15 s.
#[test]
fn lost_pieces_do_not_keep_out_what_follows() {
    let mut wire = Wire::new(1_500);
    let server = udp(&mut wire, 1, "0.0.0.0:53");
    let client = udp(&mut wire, 0, "0.0.0.0:0");
    wire.lose = |from, number, _| from == 0 && number % 100 == 50;
    let to = SocketAddr::new(wire.nodes[1].v4, 53);
    let mut arrived = 0;
    for _ in 0..5_000 {
        wire.nodes[0].stack.send_to(wire.now, client, &[7; 2_000], Some(to)).unwrap();
        wire.run(Duration::from_millis(1));
        arrived += usize::from(wire.nodes[1].stack.recv_from(server).is_ok());
    }
    assert!(arrived >= 4_800, "{arrived} of 5,000 have come");
}
