//! Datagrams for many: broadcast and multicast over the links that exist.

mod wire;

use std::net::{IpAddr, SocketAddr};

use unisockets_stack::{DropReason, Error, Family, Kind, PathConfig, SocketId, SocketOption};
use wire::{ROOM, Wire};

const GROUPS: [&str; 2] = ["239.1.2.3", "ff0e::1:2"];

fn socket(wire: &mut Wire, node: usize, port: u16) -> SocketId {
    let stack = &mut wire.nodes[node].stack;
    let socket = stack.socket(Kind::Udp, Family::V6).unwrap();
    stack.set_option(socket, SocketOption::ReuseAddress(true)).unwrap();
    stack.bind(socket, format!("[::]:{port}").parse().unwrap()).unwrap();
    socket
}

fn send(wire: &mut Wire, socket: SocketId, data: &[u8], to: SocketAddr) -> Result<usize, Error> {
    let sent = wire.nodes[0].stack.send_to(wire.now, socket, data, Some(to));
    wire.settle();
    sent
}

fn heard(wire: &mut Wire, node: usize, socket: SocketId) -> Option<(Vec<u8>, IpAddr)> {
    let received = wire.nodes[node].stack.recv_from(socket).ok()?;
    Some((received.data, received.destination))
}

#[test]
fn a_group_is_heard_by_every_socket_of_a_node_that_has_joined_it() {
    for group in GROUPS {
        let group: IpAddr = group.parse().unwrap();
        let mut wire = Wire::new(1_500);
        let sender = socket(&mut wire, 0, 0);
        let (first, second) = (socket(&mut wire, 1, 5_353), socket(&mut wire, 1, 5_353));
        let to = SocketAddr::new(group, 5_353);
        send(&mut wire, sender, b"nobody", to).unwrap();
        assert_eq!(wire.drops(1, DropReason::NotOurs), 1);

        wire.nodes[1].stack.join_group(first, group).unwrap();
        assert_eq!(wire.nodes[1].stack.join_group(first, group), Err(Error::AddressInUse));
        let long = vec![7; 5_000];
        for data in [&b"hello"[..], &long] {
            send(&mut wire, sender, data, to).unwrap();
            assert_eq!(heard(&mut wire, 1, first), Some((data.to_vec(), group)));
            assert_eq!(heard(&mut wire, 1, second), Some((data.to_vec(), group)));
        }
        send(&mut wire, sender, b"no such port", SocketAddr::new(group, 9)).unwrap();
        let quiet = wire.sent[1];
        assert_eq!(quiet, 0, "nobody answers what was sent to many");

        wire.nodes[1].stack.leave_group(first, group).unwrap();
        assert_eq!(wire.nodes[1].stack.leave_group(first, group), Err(Error::AddressNotAvailable));
        send(&mut wire, sender, b"nobody", to).unwrap();
        assert_eq!(heard(&mut wire, 1, second), None);
    }
}

#[test]
fn a_group_comes_back_to_its_own_node_unless_it_is_told_not_to() {
    for group in GROUPS {
        let group: IpAddr = group.parse().unwrap();
        let mut wire = Wire::new(1_500);
        let own = socket(&mut wire, 0, 7_000);
        wire.nodes[0].stack.join_group(own, group).unwrap();
        let to = SocketAddr::new(group, 7_000);
        send(&mut wire, own, b"loop", to).unwrap();
        assert_eq!(heard(&mut wire, 0, own), Some((b"loop".to_vec(), group)));
        wire.nodes[0].stack.set_option(own, SocketOption::MulticastLoop(false)).unwrap();
        send(&mut wire, own, b"out", to).unwrap();
        assert_eq!(heard(&mut wire, 0, own), None);
        // A hop limit of zero stays on the node.
        wire.nodes[0].stack.set_option(own, SocketOption::MulticastLoop(true)).unwrap();
        wire.nodes[0].stack.set_option(own, SocketOption::MulticastHopLimit(0)).unwrap();
        let before = wire.sent[0];
        send(&mut wire, own, b"in", to).unwrap();
        assert_eq!(heard(&mut wire, 0, own), Some((b"in".to_vec(), group)));
        assert_eq!(wire.sent[0], before);
        // A closed socket has left.
        wire.nodes[0].stack.close(wire.now, own);
        let again = socket(&mut wire, 0, 7_000);
        send(&mut wire, again, b"gone", to).unwrap();
        assert_eq!(heard(&mut wire, 0, again), None);
    }
}

#[test]
fn a_broadcast_needs_leave_and_reaches_everybody_who_is_linked() {
    for address in ["255.255.255.255", "10.80.255.255"] {
        let mut wire = Wire::new(1_500);
        let to: SocketAddr = format!("{address}:6000").parse().unwrap();
        let (sender, server) = (socket(&mut wire, 0, 0), socket(&mut wire, 1, 6_000));
        assert_eq!(send(&mut wire, sender, b"x", to), Err(Error::AccessDenied));
        assert_eq!(wire.nodes[0].stack.connect(wire.now, sender, to), Err(Error::AccessDenied));
        wire.nodes[0].stack.set_option(sender, SocketOption::Broadcast(true)).unwrap();
        assert_eq!(send(&mut wire, sender, b"all", to), Ok(3));
        assert_eq!(heard(&mut wire, 1, server), Some((b"all".to_vec(), to.ip())));
        // A socket that is bound to the address hears only what is sent there.
        let stack = &mut wire.nodes[1].stack;
        let narrow = stack.socket(Kind::Udp, Family::V4).unwrap();
        stack.bind(narrow, SocketAddr::new(to.ip(), 6_001)).unwrap();
        let own = SocketAddr::new(wire.nodes[1].v4, 6_001);
        send(&mut wire, sender, b"one", own).unwrap();
        send(&mut wire, sender, b"all", SocketAddr::new(to.ip(), 6_001)).unwrap();
        assert_eq!(heard(&mut wire, 1, narrow), Some((b"all".to_vec(), to.ip())));
        assert_eq!(heard(&mut wire, 1, narrow), None);
    }
}

/// One peer that reads slowly must not hold up what is sent to all.
#[test]
fn a_path_without_room_loses_what_is_for_many_and_others_get_it() {
    let mut wire = Wire::new(1_500);
    let group: IpAddr = GROUPS[0].parse().unwrap();
    let (sender, member) = (socket(&mut wire, 0, 0), socket(&mut wire, 1, 5_000));
    wire.nodes[1].stack.join_group(member, group).unwrap();
    let config = PathConfig { mtu: 1_500, verify_checksums: true };
    let stuck = wire.nodes[0].stack.open_path(config).unwrap();
    wire.nodes[0].stack.path_up(wire.now, stuck, config);
    let pending = wire.nodes[0].stack.open_path(config).unwrap();
    let mut got = 0;
    for _ in 0..400 {
        wire.nodes[0].stack.send_to(wire.now, sender, &[1; 1_000], Some(SocketAddr::new(group, 5_000))).unwrap();
        let path = wire.nodes[0].path;
        let mut packet = Vec::new();
        while wire.nodes[0].stack.poll_packet(wire.now, path, ROOM, &mut packet).is_some() {
            let to = wire.nodes[1].path;
            wire.nodes[1].stack.handle_packet(wire.now, to, &packet).unwrap();
            packet.clear();
        }
        got += usize::from(heard(&mut wire, 1, member).is_some());
    }
    assert_eq!(got, 400);
    assert!(wire.drops(0, DropReason::SendQueueFull) > 100);
    let mut packet = Vec::new();
    assert_eq!(wire.nodes[0].stack.poll_packet(wire.now, pending, ROOM, &mut packet), None, "nobody is dialled for it");
}

#[test]
fn only_datagram_sockets_join_and_only_groups() {
    let mut wire = Wire::new(1_500);
    let udp = socket(&mut wire, 0, 0);
    let stack = &mut wire.nodes[0].stack;
    let tcp = stack.socket(Kind::Tcp, Family::V4).unwrap();
    assert_eq!(stack.join_group(tcp, GROUPS[0].parse().unwrap()), Err(Error::NoSuchOption));
    assert_eq!(stack.join_group(udp, "10.80.0.2".parse().unwrap()), Err(Error::Invalid));
    for n in 0..20 {
        stack.join_group(udp, IpAddr::from([239, 0, 0, n])).unwrap();
    }
    assert_eq!(stack.join_group(udp, IpAddr::from([239, 0, 0, 20])), Err(Error::NoBuffers));
    let tcp_to_group = stack.connect(wire.now, tcp, "239.0.0.1:80".parse().unwrap());
    assert_eq!(tcp_to_group, Err(Error::NetworkUnreachable));
}
