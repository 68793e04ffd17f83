//! UDP and ICMP: whole datagrams in both directions, in pieces where they are long, and ports that nobody has.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, ipproto};
use unisockets_stack::{Error, Family, Kind, Received, SocketId};
use unisockets_wire::as_root;

use crate::lab::{FAMILIES, Lab};
use crate::member::LIMIT;
use crate::random::pattern;

/// How long an answer is waited for before it is asked for again.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Payloads, in bytes: empty, small, as long as a packet, in two pieces, and in many.
const LENGTHS: [usize; 6] = [0, 1, 1_452, 1_473, 9_000, 60_000];
/// The same of an echo, whose first two bytes are its number.
const ECHO_LENGTHS: [usize; 4] = [2, 58, 1_400, 20_000];

/// A socket of ours that is bound to our address.
fn ours(lab: &Lab, kind: Kind, family: usize) -> (SocketId, SocketAddr) {
    lab.member.call(|stack, _| {
        let socket = stack.socket(kind, [Family::V4, Family::V6][family]).unwrap();
        let bound = stack.bind(socket, SocketAddr::new(lab.ours(family), 0)).unwrap();
        (socket, bound)
    })
}

fn received(lab: &Lab, socket: SocketId) -> Received {
    lab.member.wait("a datagram of the kernel", |stack, _| match stack.recv_from(socket) {
        Err(Error::Again) => None,
        other => Some(other.unwrap()),
    })
}

/// What the kernel has counted.
fn snmp(lab: &Lab) -> String {
    let read =
        || ["snmp", "snmp6", "netstat"].map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")));
    lab.kernel.run(read).map(Result::unwrap).concat()
}

fn data(len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    pattern(len as u64, 0, &mut data);
    data
}

#[test]
fn datagrams_of_every_length_arrive_whole_both_ways() {
    if !as_root() {
        return;
    }
    let lab = Lab::new("");
    for family in FAMILIES {
        let theirs = lab.kernel_udp(family);
        let their_address = theirs.local_addr().unwrap();
        let (socket, address) = ours(&lab, Kind::Udp, family);
        for len in LENGTHS {
            theirs.send_to(&data(len), address).unwrap();
            let datagram = received(&lab, socket);
            assert_eq!((datagram.source, datagram.hop_limit), (their_address, 64));
            assert!(datagram.data == data(len), "{len} bytes of the kernel");

            let sent = lab.member.call(|stack, now| stack.send_to(now, socket, &data(len), Some(their_address)));
            assert_eq!(sent, Ok(len));
            let mut buffer = vec![0; 65_536];
            let taken = theirs.recv_from(&mut buffer);
            let (taken, source) = taken.unwrap_or_else(|error| panic!("{len} bytes, {error}: {}", snmp(&lab)));
            assert_eq!(source, address);
            assert!(buffer[..taken] == data(len), "{len} bytes for the kernel");
        }
    }
}

#[test]
fn whole_datagrams_arrive_although_their_pieces_come_late_twice_and_out_of_order() {
    if !as_root() {
        return;
    }
    let lab = Lab::new("delay=1ms,jitter=2ms,reorder=20%,duplicate=20%");
    for family in FAMILIES {
        let theirs = lab.kernel_udp(family);
        let (socket, address) = ours(&lab, Kind::Udp, family);
        theirs.send_to(&data(60_000), address).unwrap();
        assert!(received(&lab, socket).data == data(60_000));
        let to = theirs.local_addr().unwrap();
        lab.member.call(|stack, now| stack.send_to(now, socket, &data(60_000), Some(to))).unwrap();
        let mut buffer = vec![0; 65_536];
        let taken = theirs.recv(&mut buffer).unwrap();
        assert!(buffer[..taken] == data(60_000));
    }
}

/// An echo socket of the kernel (icmp(7)): what is sent starts with the header, whose identifier the kernel sets.
fn kernel_echo(lab: &Lab, family: usize) -> UdpSocket {
    lab.kernel.sysctl("ipv4/ping_group_range", "0 0").unwrap();
    let own = SocketAddr::new(lab.theirs(family), 0);
    let socket = lab.kernel.run(move || {
        let protocols = [(AddressFamily::INET, ipproto::ICMP), (AddressFamily::INET6, ipproto::ICMPV6)];
        let (family, protocol) = protocols[family];
        let socket = rustix::net::socket(family, SocketType::DGRAM, Some(protocol))?;
        rustix::net::bind(&socket, &own)?;
        Ok::<_, rustix::io::Errno>(UdpSocket::from(socket))
    });
    let socket = socket.unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

#[test]
fn echoes_are_answered_both_ways() {
    if !as_root() {
        return;
    }
    let lab = Lab::new("");
    for family in FAMILIES {
        let (request, reply) = [(8, 0), (128, 129)][family];
        let theirs = kernel_echo(&lab, family);
        for len in ECHO_LENGTHS {
            let mut message = vec![request, 0, 0, 0, 0, 0];
            message.extend_from_slice(&data(len));
            theirs.send_to(&message, SocketAddr::new(lab.ours(family), 0)).unwrap();
            let mut buffer = vec![0; 65_536];
            let (taken, source) = theirs.recv_from(&mut buffer).unwrap();
            assert_eq!((source.ip(), buffer[0], taken), (lab.ours(family), reply, len + 6));
            assert!(buffer[6..taken] == data(len), "an echo of {len} bytes comes back");

            let (socket, _) = ours(&lab, Kind::Echo, family);
            let to = SocketAddr::new(lab.theirs(family), 0);
            lab.member.call(|stack, now| stack.send_to(now, socket, &data(len), Some(to))).unwrap();
            let answer = received(&lab, socket);
            assert_eq!((answer.source.ip(), answer.hop_limit), (lab.theirs(family), 64));
            assert!(answer.data == data(len), "the kernel answers an echo of {len} bytes");
        }
    }
}

#[test]
fn a_port_that_nobody_has_is_reported_both_ways() {
    if !as_root() {
        return;
    }
    let lab = Lab::new("");
    for family in FAMILIES {
        for len in [5, 4_000] {
            let theirs = lab.kernel_udp(family);
            theirs.connect(SocketAddr::new(lab.ours(family), 9)).unwrap();
            theirs.send(&data(len)).unwrap();
            assert_eq!(theirs.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{len}");

            let closed = lab.kernel_udp(family);
            let nobody = closed.local_addr().unwrap();
            drop(closed);
            let (socket, _) = ours(&lab, Kind::Udp, family);
            lab.member.call(|stack, now| stack.connect(now, socket, nobody)).unwrap();
            // A kernel answers so many a second only (icmp_msgs_per_sec), for all networks that it has.
            let ask = || {
                lab.member.call(|stack, now| stack.send_to(now, socket, &data(len), None)).unwrap();
                let asked = Instant::now();
                lab.member.wait("an error of the kernel", |stack, _| match stack.recv_from(socket) {
                    Err(Error::Again) => (asked.elapsed() > AGAIN_AFTER).then_some(None),
                    other => Some(Some(other.unwrap_err())),
                })
            };
            let error = (0..10).find_map(|_| ask()).expect("an error of the kernel");
            assert_eq!(error, Error::ConnectionRefused, "{len}");
        }
    }
}
