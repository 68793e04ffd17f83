//! Programs that send what may get lost: floods of datagrams, and pings.

use std::net::{IpAddr, SocketAddr};

use unisockets_stack::{Instant, Kind, Received, SocketId, Stack};

use crate::node::Node;
use crate::programs::{Target, UDP_PORT, address_of, datagram_socket};
use crate::random::pattern;

/// The head of a datagram: which flood, and which number.
const HEAD: usize = 8;

/// Datagrams from one node to another.
#[derive(Debug)]
pub struct Flood {
    pub from: usize,
    pub to: usize,
    pub target: Target,
    pub at: u64,
    pub every: u64,
    pub count: u32,
    pub len: usize,
    pub connected: bool,
    pub sent: u32,
    pub arrived: u32,
    pub socket: Option<(u64, SocketId)>,
}

/// What stands in the place of a flood's number in a forged datagram.
const FORGED: u32 = u32::MAX;

/// Writes a datagram that claims to come from `source` (RFC 791, RFC 8200, RFC 768).
pub fn forged(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let udp = |bytes: &mut Vec<u8>| {
        bytes.extend_from_slice(&[0x12, 0x34]);
        bytes.extend_from_slice(&UDP_PORT.to_be_bytes());
        // Links check no sums: what is below them does.
        bytes.extend_from_slice(&[0, 16, 0xff, 0xff]);
        bytes.extend_from_slice(&FORGED.to_be_bytes());
        bytes.extend_from_slice(&FORGED.to_be_bytes());
    };
    let mut bytes = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend_from_slice(&[0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0]);
            bytes.extend_from_slice(&source.octets());
            bytes.extend_from_slice(&destination.octets());
            let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            bytes[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend_from_slice(&[0x60, 0, 0, 0, 0, 16, 17, 64]);
            bytes.extend_from_slice(&source.octets());
            bytes.extend_from_slice(&destination.octets());
        }
        _ => {}
    }
    udp(&mut bytes);
    bytes
}

fn fill(index: usize, number: u32, out: &mut [u8]) {
    pattern((index as u64) << 32 | u64::from(number), 0, out);
    out[..4].copy_from_slice(&(index as u32).to_be_bytes());
    out[4..8].copy_from_slice(&number.to_be_bytes());
}

impl Flood {
    pub fn new(from: usize, to: usize, target: Target, at: u64) -> Flood {
        let (every, count, len, connected) = (1_000, 0, HEAD, false);
        Flood { from, to, target, at, every, count, len, connected, sent: 0, arrived: 0, socket: None }
    }

    pub fn end(&mut self) {
        self.count = self.sent;
    }

    pub fn next(&self) -> Option<u64> {
        (self.sent < self.count).then_some(self.at)
    }

    /// Sends what is due.
    pub fn send(&mut self, now: u64, index: usize, nodes: &mut [Node]) {
        if self.next().is_none_or(|at| at > now) {
            return;
        }
        self.at = now + self.every;
        let address = address_of(nodes, self.to, self.target);
        let life = nodes[self.from].life.as_mut().filter(|life| life.core.lease().is_some());
        let (Some(address), Some(life)) = (address, life) else {
            self.sent += 1;
            return;
        };
        let (stack, number) = (&mut life.core.stack, life.number);
        let socket = self.socket.filter(|(life, _)| *life == number).map(|(_, socket)| socket);
        let socket = socket.unwrap_or_else(|| datagram_socket(stack, Kind::Udp, address));
        let to = SocketAddr::new(address, UDP_PORT);
        if self.connected && self.socket.is_none() {
            stack.connect(Instant::from_micros(now), socket, to).expect("the node has joined");
        }
        self.socket = Some((number, socket));
        let mut data = vec![0; self.len.max(HEAD)];
        fill(index, self.sent, &mut data);
        // What does not leave now is lost, as on any network.
        let _ = stack.send_to(Instant::from_micros(now), socket, &data, (!self.connected).then_some(to));
        self.sent += 1;
        if self.sent == self.count {
            stack.close(Instant::from_micros(now), socket);
        }
    }
}

/// Checks every byte of a datagram that has arrived.
pub fn check_datagram(floods: &mut [Flood], nodes: &[Node], node: usize, received: &Received) {
    let word = |at: usize| u32::from_be_bytes(received.data[at..at + 4].try_into().expect("four bytes"));
    assert!(received.data.len() >= HEAD, "a datagram was cut");
    let (index, number) = (word(0) as usize, word(4));
    assert!(word(0) != FORGED, "a datagram from {} was let through that somebody else has sent", received.source);
    let flood = &mut floods[index];
    let source = Some(received.source.ip());
    assert!(
        source == Some(nodes[flood.from].v6()) || source == nodes[flood.from].v4(),
        "a datagram has a wrong source"
    );
    assert_eq!((flood.to, received.data.len()), (node, flood.len.max(HEAD)), "a datagram went astray");
    let mut expected = vec![0; received.data.len()];
    fill(index, number, &mut expected);
    assert!(received.data == expected && number < flood.sent, "a datagram has wrong bytes");
    flood.arrived += 1;
}

/// Pings from one node to another.
#[derive(Debug)]
pub struct Echoes {
    pub from: usize,
    pub to: usize,
    pub target: Target,
    pub at: u64,
    pub every: u64,
    pub count: u16,
    pub len: usize,
    pub sent: u16,
    pub answered: u16,
    /// How long the last answer is waited for.
    pub patience: u64,
    pub socket: Option<(u64, SocketId)>,
}

impl Echoes {
    pub fn new(from: usize, to: usize, target: Target, at: u64) -> Echoes {
        let (every, count, len, patience) = (1_000_000, 0, 56, 10_000_000);
        Echoes { from, to, target, at, every, count, len, sent: 0, answered: 0, patience, socket: None }
    }

    pub fn end(&mut self) {
        self.count = self.sent;
        self.socket = None;
    }

    pub fn next(&self) -> Option<u64> {
        (self.sent < self.count || self.socket.is_some()).then_some(self.at)
    }

    fn request(&self, number: u16) -> Vec<u8> {
        let mut data = vec![0; self.len.max(2)];
        pattern(u64::from(number) << 8, 0, &mut data);
        data[..2].copy_from_slice(&number.to_be_bytes());
        data
    }

    /// Sends what is due; returns the socket if it is new.
    pub fn send(&mut self, now: u64, nodes: &mut [Node]) -> Option<(usize, u64, SocketId)> {
        if self.next().is_none_or(|at| at > now) {
            return None;
        }
        self.at = now + self.every;
        let address = address_of(nodes, self.to, self.target);
        let life = nodes[self.from].life.as_mut().filter(|life| life.core.lease().is_some());
        let (Some(address), Some(life)) = (address, life) else {
            (self.sent, self.socket) = ((self.sent + 1).min(self.count), None);
            return None;
        };
        let (stack, number) = (&mut life.core.stack, life.number);
        let known = self.socket.filter(|(life, _)| *life == number).map(|(_, socket)| socket);
        if self.sent == self.count {
            stack.close(Instant::from_micros(now), known?);
            self.socket = None;
            return None;
        }
        let socket = known.unwrap_or_else(|| datagram_socket(stack, Kind::Echo, address));
        self.socket = Some((number, socket));
        let data = self.request(self.sent);
        let _ = stack.send_to(Instant::from_micros(now), socket, &data, Some(SocketAddr::new(address, 0)));
        self.sent += 1;
        if self.sent == self.count {
            self.at = now + self.patience;
        }
        known.is_none().then_some((self.from, number, socket))
    }

    /// Takes answers and checks every byte.
    pub fn receive(&mut self, _now: u64, socket: SocketId, stack: &mut Stack) {
        while let Ok(received) = stack.recv_from(socket) {
            let number = u16::from_be_bytes([received.data[0], received.data[1]]);
            assert!(number < self.sent && received.data == self.request(number), "an answer has wrong bytes");
            self.answered += 1;
        }
    }
}
