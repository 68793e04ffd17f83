//! Two stacks on a virtual wire with a virtual clock.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use unisockets_stack::{
    Class, DropReason, Error, Event, Family, Instant, Kind, PathConfig, PathId, Prefix, Room, SocketId, Stack,
};

/// A side of the wire.
pub struct Node {
    pub stack: Stack,
    pub path: PathId,
    pub v4: IpAddr,
    pub v6: IpAddr,
}

/// Two nodes, what is in flight between them, and the time.
pub struct Wire {
    pub nodes: [Node; 2],
    pub now: Instant,
    pub delay: Duration,
    /// Decides by (from, packet number, bytes) whether a packet is lost.
    pub lose: fn(usize, usize, &[u8]) -> bool,
    pub sent: [usize; 2],
    pub log: Vec<(usize, Class, Vec<u8>)>,
    flight: VecDeque<(Instant, usize, Vec<u8>)>,
}

pub const ROOM: Room = Room { stream: 1 << 20, datagram: 1 << 20 };

impl Wire {
    pub fn new(mtu: usize) -> Wire {
        let node = |own: u8, other: u8| {
            let v4: IpAddr = format!("10.80.0.{own}").parse().unwrap();
            let v6: IpAddr = format!("fd75:6e69:1::{own}").parse().unwrap();
            let mut stack = Stack::new(u128::from(own) << 64 | 0x5eed);
            let prefixes = [
                Prefix { address: "10.80.0.0".parse().unwrap(), len: 16 },
                Prefix { address: "fd75:6e69:1::".parse().unwrap(), len: 48 },
            ];
            stack.set_addresses(&[v4, v6], &prefixes);
            let config = PathConfig { mtu, verify_checksums: true };
            let path = stack.open_path(config).unwrap();
            stack.add_route(Instant::ZERO, format!("10.80.0.{other}").parse().unwrap(), path);
            stack.add_route(Instant::ZERO, format!("fd75:6e69:1::{other}").parse().unwrap(), path);
            stack.path_up(Instant::ZERO, path, config);
            Node { stack, path, v4, v6 }
        };
        Wire {
            nodes: [node(1, 2), node(2, 1)],
            now: Instant::from_millis(1_000),
            delay: Duration::from_micros(50),
            lose: |_, _, _| false,
            sent: [0, 0],
            log: Vec::new(),
            flight: VecDeque::new(),
        }
    }

    /// Moves everything that can be moved at this moment onto the wire.
    pub fn flush(&mut self) {
        for from in 0..2 {
            let node = &mut self.nodes[from];
            while let Some(path) = node.stack.poll_path() {
                let mut packet = Vec::new();
                while let Some(class) = node.stack.poll_packet(self.now, path, ROOM, &mut packet) {
                    if path == node.stack.loopback() {
                        let _ = node.stack.handle_packet(self.now, path, &packet);
                    } else {
                        self.sent[from] += 1;
                        self.log.push((from, class, packet.clone()));
                        if !(self.lose)(from, self.sent[from], &packet) {
                            self.flight.push_back((self.now + self.delay, 1 - from, packet.clone()));
                        }
                    }
                    packet.clear();
                }
            }
        }
    }

    /// Lets the next thing happen; returns whether there was one before `until`.
    pub fn step(&mut self, until: Instant) -> bool {
        self.flush();
        let timers = self.nodes.iter().filter_map(|node| node.stack.poll_timeout());
        let arrival = self.flight.front().map(|(at, _, _)| *at);
        let Some(next) = timers.chain(arrival).min().filter(|next| *next <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        while let Some((at, to, _)) = self.flight.front()
            && *at <= self.now
        {
            let to = *to;
            let (_, _, packet) = self.flight.pop_front().unwrap();
            let path = self.nodes[to].path;
            let _ = self.nodes[to].stack.handle_packet(self.now, path, &packet);
        }
        for node in &mut self.nodes {
            node.stack.handle_timeout(self.now);
        }
        true
    }

    /// Runs for a time.
    pub fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.step(until) {}
    }

    pub fn settle(&mut self) {
        self.run(Duration::from_millis(5));
    }

    pub fn listen(&mut self, node: usize, port: u16, backlog: usize) -> SocketId {
        let stack = &mut self.nodes[node].stack;
        let socket = stack.socket(Kind::Tcp, Family::V6).unwrap();
        stack.bind(socket, format!("[::]:{port}").parse().unwrap()).unwrap();
        stack.listen(socket, backlog).unwrap();
        socket
    }

    pub fn start(&mut self, node: usize, to: SocketAddr) -> SocketId {
        let stack = &mut self.nodes[node].stack;
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let socket = stack.socket(Kind::Tcp, family).unwrap();
        assert_eq!(stack.connect(self.now, socket, to), Err(Error::InProgress));
        socket
    }

    /// A connection from node 0 to node 1.
    pub fn pair(&mut self) -> (SocketId, SocketId) {
        let listener = self.listen(1, 80, 8);
        let to = SocketAddr::new(self.nodes[1].v4, 80);
        let client = self.start(0, to);
        self.settle();
        let (server, _) = self.nodes[1].stack.accept(self.now, listener).unwrap();
        self.nodes[1].stack.close(self.now, listener);
        (client, server)
    }

    /// Sends `data` from one side's socket and reads it at the other; returns what arrived.
    pub fn transfer(
        &mut self,
        from: (usize, SocketId),
        to: (usize, SocketId),
        data: &[u8],
        limit: Duration,
    ) -> Vec<u8> {
        let (mut sent, mut received) = (0, Vec::new());
        let mut buffer = vec![0; 64 * 1024];
        let until = self.now + limit;
        while received.len() < data.len() {
            if sent < data.len() {
                match self.nodes[from.0].stack.send(self.now, from.1, &data[sent..]) {
                    Ok(n) => sent += n,
                    Err(Error::Again) => {}
                    Err(error) => panic!("send: {error}"),
                }
            }
            loop {
                match self.nodes[to.0].stack.recv(to.1, &mut buffer) {
                    Ok(0) => return received,
                    Ok(n) => received.extend_from_slice(&buffer[..n]),
                    Err(Error::Again) => break,
                    Err(error) => panic!("recv: {error}"),
                }
            }
            if !self.step(until) {
                break;
            }
        }
        received
    }

    pub fn drops(&self, node: usize, reason: DropReason) -> u64 {
        self.nodes[node].stack.drops().find(|(known, _)| *known == reason).unwrap().1
    }

    pub fn events(&mut self, node: usize) -> Vec<Event> {
        std::iter::from_fn(|| self.nodes[node].stack.poll_event()).collect()
    }
}

/// Bytes that differ everywhere, so that a misplaced one is seen.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// The 32-bit number at an offset of a packet.
pub fn number(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
}

/// A bare segment made from another: its flags, and its sequence number moved by `shift`.
pub fn forged(packet: &[u8], flags: u8, shift: i32) -> Vec<u8> {
    let header = 20;
    let mut forged = packet[..header + 20].to_vec();
    let len = forged.len() as u16;
    forged[2..4].copy_from_slice(&len.to_be_bytes());
    forged[10..12].fill(0);
    let payload_len = packet.len() - header - usize::from(packet[header + 12] >> 4) * 4;
    let sequence = number(packet, header + 4).wrapping_add(payload_len as u32).wrapping_add_signed(shift);
    forged[header + 4..header + 8].copy_from_slice(&sequence.to_be_bytes());
    forged[header + 12] = 0x50;
    forged[header + 13] = flags;
    forged[header + 16..header + 18].fill(0);
    let ip = !sum(&forged[..header], 0);
    forged[10..12].copy_from_slice(&ip.to_be_bytes());
    let pseudo = sum(&forged[12..20], 6 + u32::from(len) - header as u32);
    let tcp = !sum(&forged[header..], u32::from(pseudo));
    forged[header + 16..header + 18].copy_from_slice(&tcp.to_be_bytes());
    forged
}

/// The Internet checksum, not yet complemented (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut total = start + words.sum::<u32>();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The error of a router that could not pass a packet of IPv4 or IPv6 on over a link of `mtu` bytes; it comes from
/// `router`.
pub fn too_big(packet: &[u8], router: IpAddr, mtu: u32) -> Vec<u8> {
    let (mut message, quote) = match router {
        IpAddr::V4(_) => (vec![3, 4, 0, 0], 28),
        IpAddr::V6(_) => (vec![2, 0, 0, 0], 1_232),
    };
    message.extend_from_slice(&mtu.to_be_bytes());
    message.extend_from_slice(&packet[..packet.len().min(quote)]);
    let len = message.len() as u16;
    match router {
        IpAddr::V4(router) => {
            let checksum = !sum(&message, 0);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
            header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
            header.extend_from_slice(&router.octets());
            header.extend_from_slice(&packet[12..16]);
            let checksum = !sum(&header, 0);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            [header, message].concat()
        }
        IpAddr::V6(router) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
            header[4..6].copy_from_slice(&len.to_be_bytes());
            header.extend_from_slice(&router.octets());
            header.extend_from_slice(&packet[8..24]);
            let pseudo = sum(&header[8..], u32::from(len) + 58);
            let checksum = !sum(&message, u32::from(pseudo));
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
            [header, message].concat()
        }
    }
}

/// A bare acknowledgement of the same side after a segment with a FIN.
pub fn bare_after(fin: &[u8]) -> Vec<u8> {
    const ACK: u8 = 16;
    forged(fin, ACK, 1)
}
