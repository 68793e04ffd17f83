//! Runs a script against a stack on a virtual clock.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use unisockets_stack::{Family, Instant, PathConfig, PathId, Prefix, Room, Stack};

use super::bytes::{self, Damage, Read, Tcp};
use super::calls::Named;
use super::language::{ACK, Event, FIN, FLAGS, Icmp, Line, PSH, SYN, Script, Segment};

/// How much earlier or later than a line says a packet may leave.
const TOLERANCE: Duration = Duration::from_millis(1);
/// Our port where a line does not follow from a call.
const OWN_PORT: u16 = 80;
/// The ports of the peer count from here.
pub(super) const PEER_PORT: u16 = 50_000;
const ROOM: Room = Room { stream: 1 << 24, datagram: 1 << 24 };
/// Turns of the clock without progress in one line: more is a stack that never rests.
pub(super) const TURNS_MAX: usize = 1_000_000;

/// Why a script failed.
#[derive(Debug)]
pub struct Failure {
    /// The line that did not hold.
    pub line: usize,
    pub text: String,
    pub what: String,
    /// What went over the wire, newest last.
    pub trace: Vec<String>,
}

/// How a run ended.
pub enum Outcome {
    Held,
    Failed(Failure),
    /// Our initial sequence number is not where the script wants it: another seed may do.
    OtherSeed,
}

/// What a run does with a deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// What the RFC says, to the end of that part.
    Rfc,
    /// What we do, to the end of the script.
    Ours,
}

/// One pair of ports, with what its relative numbers count from.
pub(super) struct Pair {
    own_port: u16,
    peer_port: u16,
    pub(super) own_isn: Option<u32>,
    pub(super) peer_isn: u32,
    /// The highest number of ours that the peer has seen.
    pub(super) seen: u32,
}

pub(super) struct World<'a> {
    script: &'a Script,
    pub(super) stack: Stack,
    path: PathId,
    mtu: usize,
    pub(super) now: Instant,
    pub(super) own: IpAddr,
    pub(super) peer: IpAddr,
    pub(super) family: Family,
    pub(super) sent: VecDeque<(Instant, Vec<u8>)>,
    pairs: HashMap<usize, Pair>,
    pub(super) sockets: HashMap<String, Named>,
    pub(super) trace: Vec<String>,
    other_seed: bool,
}

/// The byte of a stream with this relative sequence number.
fn byte(number: u32) -> u8 {
    (number.wrapping_mul(2_654_435_761) >> 24) as u8
}

pub(super) fn stream(from: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| byte(from.wrapping_add(n))).collect()
}

fn flags(bits: u8) -> String {
    let names: Vec<&str> = (0..8).filter(|bit| bits & (1 << bit) != 0).map(|bit| FLAGS[bit]).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}

/// Runs a script over one family.
pub fn run(script: &Script, family: Family, seed: u128, follow: Follow) -> Outcome {
    let mut world = World::new(script, family, seed);
    let (before, after, part) = match &script.deviation {
        Some(deviation) => {
            let (before, after) = script.lines.split_at(deviation.at);
            match follow {
                Follow::Rfc => (before, &[][..], &deviation.rfc[..]),
                Follow::Ours => (before, after, &deviation.ours[..]),
            }
        }
        None => (&script.lines[..], &[][..], &[][..]),
    };
    for line in before.iter().chain(part).chain(after) {
        if let Err(what) = world.line(line) {
            return match world.other_seed {
                true => Outcome::OtherSeed,
                false => Outcome::Failed(world.failure(line, what)),
            };
        }
    }
    let last = part.last().filter(|_| follow == Follow::Rfc).or(script.lines.last());
    match (world.unexpected(), last) {
        (Err(what), Some(last)) => Outcome::Failed(world.failure(last, what)),
        _ => Outcome::Held,
    }
}

impl<'a> World<'a> {
    fn new(script: &'a Script, family: Family, seed: u128) -> World<'a> {
        let address = |v4: &str, v6: &str| -> IpAddr {
            let text = if family == Family::V4 { v4 } else { v6 };
            text.parse().expect("a literal address")
        };
        let (own, peer) = (address("10.80.0.1", "fd75:6e69:1::1"), address("10.80.0.2", "fd75:6e69:1::2"));
        let mut stack = Stack::new(seed);
        stack.set_addresses(&[own], &[Prefix { address: own, len: if own.is_ipv4() { 16 } else { 48 } }]);
        let config = PathConfig { mtu: script.mtu, verify_checksums: true };
        let path = stack.open_path(config).expect("the first path");
        let now = Instant::from_millis(1_000);
        stack.add_route(now, peer, path);
        stack.path_up(now, path, config);
        World {
            script,
            stack,
            path,
            mtu: script.mtu,
            now,
            own,
            peer,
            family,
            sent: VecDeque::new(),
            pairs: HashMap::new(),
            sockets: HashMap::new(),
            trace: Vec::new(),
            other_seed: false,
        }
    }

    fn failure(&self, line: &Line, what: String) -> Failure {
        let trace = self.trace[self.trace.len().saturating_sub(12)..].to_vec();
        Failure { line: line.number, text: line.text.clone(), what, trace }
    }

    pub(super) fn pair(&mut self, number: usize) -> &mut Pair {
        let peer_isn = self.script.peer_isn;
        self.pairs.entry(number).or_insert_with(|| Pair {
            own_port: OWN_PORT,
            peer_port: PEER_PORT + number as u16,
            own_isn: None,
            peer_isn,
            seen: 0,
        })
    }

    /// Takes out what leaves now.
    pub(super) fn flush(&mut self) {
        while let Some(path) = self.stack.poll_path() {
            let mut packet = Vec::new();
            while self.stack.poll_packet(self.now, path, ROOM, &mut packet).is_some() {
                self.sent.push_back((self.now, std::mem::take(&mut packet)));
            }
        }
        while self.stack.poll_event().is_some() {}
    }

    /// Lets the next timer fire if it is due by `until`; returns whether there was one.
    fn turn(&mut self, until: Instant) -> bool {
        self.flush();
        match self.stack.poll_timeout().filter(|at| *at <= until) {
            Some(at) => {
                self.now = self.now.max(at);
                self.stack.handle_timeout(self.now);
                self.flush();
                true
            }
            None => false,
        }
    }

    /// Lets time pass, whatever leaves meanwhile.
    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let until = self.now + time;
        for _ in 0..TURNS_MAX {
            if !self.turn(until) {
                self.now = until;
                return Ok(());
            }
        }
        Err("the stack's timers never rest".to_owned())
    }

    fn unexpected(&mut self) -> Result<(), String> {
        self.flush();
        match self.sent.pop_front() {
            Some((at, packet)) => {
                let text = self.describe(at, &packet);
                Err(format!("a packet that no line expects: {text}"))
            }
            None => Ok(()),
        }
    }

    fn line(&mut self, line: &Line) -> Result<(), String> {
        if let Event::Expect(expected) = &line.event {
            return self.expect(expected, line.after);
        }
        self.pass(line.after.0)?;
        self.flush();
        // A call at the same moment may come before the line of what leaves.
        let is_call = matches!(line.event, Event::Call { .. } | Event::Connections(_) | Event::TimeWait(_));
        if !is_call || !line.after.0.is_zero() {
            self.unexpected()?;
        }
        match &line.event {
            Event::Inject(segment) => self.inject(segment),
            Event::Icmp(icmp) => self.inject_icmp(icmp),
            Event::Nothing(time) => {
                self.pass(*time)?;
                self.unexpected()
            }
            Event::Ignore(time) => {
                self.pass(*time)?;
                while let Some((at, packet)) = self.sent.pop_front() {
                    let text = self.describe(at, &packet);
                    self.trace.push(format!("{text} (ignored)"));
                }
                Ok(())
            }
            Event::PathMtu(mtu) => {
                self.mtu = *mtu;
                self.stack.path_up(self.now, self.path, PathConfig { mtu: *mtu, verify_checksums: true });
                Ok(())
            }
            Event::Call { name, call, result } => self.call(name, call, result.as_deref()),
            Event::Connections(count) => compare("connections", *count, self.stack.connection_count()),
            Event::TimeWait(count) => compare("connections in TIME-WAIT", *count, self.stack.time_wait_count()),
            Event::Expect(_) => unreachable!("it was handled above"),
        }
    }

    pub(super) fn describe(&mut self, at: Instant, packet: &[u8]) -> String {
        let time = at.as_micros() as f64 / 1e6 - 1.0;
        match bytes::read(packet) {
            Ok(read) => {
                let found = self.pairs.iter().find(|(_, pair)| pair.peer_port == read.destination.port());
                let (number, own, peer) = match found {
                    Some((number, pair)) => (*number, pair.own_isn.unwrap_or(read.tcp.seq), pair.peer_isn),
                    None => (0, 0, 0),
                };
                let ack = if read.tcp.flags & ACK != 0 {
                    format!(" ack {}", read.tcp.ack.wrapping_sub(peer))
                } else {
                    String::new()
                };
                let options = bytes::options(&read.tcp.options);
                format!(
                    "{time:.6} > {} seq {}{ack} len {} window {} @{number} {options:?}",
                    flags(read.tcp.flags),
                    read.tcp.seq.wrapping_sub(own),
                    read.tcp.payload.len(),
                    read.tcp.window,
                )
            }
            Err(what) => format!("{time:.6} > {what}: {packet:02x?}"),
        }
    }

    pub(super) fn inject(&mut self, segment: &Segment) -> Result<(), String> {
        let (own, peer) = (self.own, self.peer);
        let pair = self.pair(segment.port);
        let ends = (SocketAddr::new(peer, pair.peer_port), SocketAddr::new(own, pair.own_port));
        let base = pair.own_isn.unwrap_or(0);
        let options = bytes::Options {
            mss: segment.mss,
            wscale: segment.wscale,
            sack_permitted: segment.sack_permitted,
            sack: segment.sack.iter().map(|(l, r)| (base.wrapping_add(*l), base.wrapping_add(*r))).collect(),
            timestamp: segment.timestamp,
        };
        let mut option_bytes = bytes::write_options(&options);
        option_bytes.extend_from_slice(&segment.raw_options);
        let first = segment.seq.wrapping_add(u32::from(segment.flags & SYN != 0));
        let tcp = Tcp {
            flags: segment.flags,
            seq: pair.peer_isn.wrapping_add(segment.seq),
            ack: segment.ack.map_or(0, |ack| base.wrapping_add(ack)),
            window: segment.window.unwrap_or(u16::MAX),
            urgent: segment.urgent.unwrap_or(0),
            options: option_bytes,
            data_offset: segment.data_offset,
            payload: stream(first, segment.len),
        };
        let source = match &segment.from {
            Some(address) => SocketAddr::new(address.parse().map_err(|error| format!("{error}"))?, ends.0.port()),
            None => ends.0,
        };
        if source.is_ipv4() != ends.1.is_ipv4() {
            return Err("the source is of another family than the run".to_owned());
        }
        let damage = Damage { tcp: segment.bad_checksum, ip: segment.bad_ip_checksum };
        let packet = bytes::tcp(source, ends.1, &tcp, damage);
        let time = self.now.as_micros() as f64 / 1e6 - 1.0;
        let ack = segment.ack.map(|ack| format!(" ack {ack}")).unwrap_or_default();
        let (flags, port) = (flags(segment.flags), segment.port);
        self.trace.push(format!("{time:.6} < {flags} seq {}{ack} len {} @{port}", segment.seq, segment.len));
        let result = self.stack.handle_packet(self.now, self.path, &packet);
        match (&segment.dropped, result) {
            (None, _) => Ok(()),
            (Some(reason), Err(actual)) if actual.name() == reason => Ok(()),
            (Some(reason), actual) => Err(format!("not dropped as {reason}, but {actual:?}")),
        }
    }

    fn inject_icmp(&mut self, icmp: &Icmp) -> Result<(), String> {
        let v4 = self.family == Family::V4;
        let kind = match (icmp.kind.as_str(), v4) {
            ("net-unreachable", true) => (3, 0),
            ("host-unreachable", true) => (3, 1),
            ("protocol-unreachable", true) => (3, 2),
            ("port-unreachable", true) => (3, 3),
            ("too-big", true) => (3, 4),
            ("prohibited", true) => (3, 13),
            ("source-quench", true) => (4, 0),
            ("time-exceeded", true) => (11, 0),
            ("parameter-problem", true) => (12, 0),
            ("net-unreachable", false) => (1, 0),
            ("prohibited", false) => (1, 1),
            ("host-unreachable", false) => (1, 3),
            ("port-unreachable", false) => (1, 4),
            ("too-big", false) => (2, 0),
            ("time-exceeded", false) => (3, 0),
            ("parameter-problem", false) => (4, 0),
            (other, _) => return Err(format!("this family has no {other}")),
        };
        let (own, peer) = (self.own, self.peer);
        let pair = self.pair(icmp.port);
        let seq = pair.own_isn.unwrap_or(0).wrapping_add(icmp.seq);
        let (source, destination) = (SocketAddr::new(own, pair.own_port), SocketAddr::new(peer, pair.peer_port));
        let tcp = Tcp { flags: ACK, seq, payload: stream(icmp.seq, icmp.len), ..Tcp::default() };
        let mut about = bytes::tcp(source, destination, &tcp, Damage::default());
        // As much as fits into the smallest MTU of the family (RFC 1812, 4.3.2.3; RFC 4443, 2.4).
        about.truncate(if v4 { 576 - 28 } else { 1_280 - 48 });
        let packet = bytes::icmp(peer, own, kind, u32::from(icmp.mtu), &about);
        let time = self.now.as_micros() as f64 / 1e6 - 1.0;
        self.trace.push(format!("{time:.6} < ICMP {} seq {}", icmp.kind, icmp.seq));
        let _ = self.stack.handle_packet(self.now, self.path, &packet);
        Ok(())
    }

    /// Waits for the next packet of ours and compares it.
    fn expect(&mut self, expected: &Segment, after: (Duration, Duration)) -> Result<(), String> {
        let start = self.now;
        let latest = start + after.1 + TOLERANCE;
        self.flush();
        for _ in 0..TURNS_MAX {
            if !self.sent.is_empty() || !self.turn(latest) {
                break;
            }
        }
        let Some((at, packet)) = self.sent.pop_front() else {
            self.now = latest;
            return Err(format!("no packet came within {:?}", after.1 + TOLERANCE));
        };
        self.now = self.now.max(at);
        let read = bytes::read(&packet)?;
        self.learn(expected, &read)?;
        let text = self.describe(at, &packet);
        self.trace.push(text.clone());
        if at + TOLERANCE < start + after.0 {
            return Err(format!("too early: {text}"));
        }
        if at > latest {
            return Err(format!("too late: {text}"));
        }
        self.compare(expected, &read, packet.len()).map_err(|what| format!("{what}: {text}"))
    }

    /// Learns our port and initial number from the first packet of a pair.
    fn learn(&mut self, expected: &Segment, read: &Read) -> Result<(), String> {
        let (own, peer, near_wrap) = (self.own, self.peer, self.script.near_wrap);
        let pair = self.pair(expected.port);
        if read.source.ip() != own || read.destination != SocketAddr::new(peer, pair.peer_port) {
            return Err(format!("it goes from {} to {}", read.source, read.destination));
        }
        if pair.own_isn.is_none() || expected.fresh {
            pair.own_port = read.source.port();
            // What is no SYN answers a number of the peer's: those count from zero.
            pair.own_isn = Some(if read.tcp.flags & SYN != 0 { read.tcp.seq } else { 0 });
            if near_wrap.is_some_and(|len| read.tcp.flags & SYN != 0 && read.tcp.seq < u32::MAX - len) {
                self.other_seed = true;
                return Err("another seed".to_owned());
            }
        }
        Ok(())
    }

    pub(super) fn compare(&mut self, expected: &Segment, read: &Read, len: usize) -> Result<(), String> {
        let mtu = self.mtu;
        let pair = self.pair(expected.port);
        let (own, peer) = (pair.own_isn.unwrap_or(0), pair.peer_isn);
        let tcp = &read.tcp;
        let seq = tcp.seq.wrapping_sub(own);
        let end = seq.wrapping_add(tcp.payload.len() as u32 + u32::from(tcp.flags & FIN != 0));
        if (end.wrapping_sub(pair.seen) as i32) > 0 {
            pair.seen = end;
        }
        if read.source.port() != pair.own_port {
            return Err(format!("it comes from port {}", read.source.port()));
        }
        // PSH is compared only where a line asks for it.
        let mask = if expected.flags & PSH != 0 { !0 } else { !PSH };
        compare_as("flags", &flags(expected.flags & mask), &flags(tcp.flags & mask))?;
        compare("seq", expected.seq, seq)?;
        if let Some(ack) = expected.ack {
            compare("ack", ack, tcp.ack.wrapping_sub(peer))?;
        }
        compare("len", expected.len, tcp.payload.len())?;
        if len > mtu {
            return Err(format!("{len} bytes do not fit into the MTU"));
        }
        if let Some(window) = expected.window {
            compare("window", window, tcp.window)?;
        }
        if expected.window_at_least.is_some_and(|least| tcp.window < least) {
            return Err(format!("the window {} is too small", tcp.window));
        }
        if expected.window_at_most.is_some_and(|most| tcp.window > most) {
            return Err(format!("the window {} is too large", tcp.window));
        }
        if let Some(hops) = expected.hop_limit {
            compare("hop-limit", hops, read.hop_limit)?;
        }
        compare("urgent pointer", expected.urgent.unwrap_or(0), tcp.urgent)?;
        let first = seq.wrapping_add(u32::from(tcp.flags & SYN != 0));
        // A keep-alive's byte is none of the stream.
        let is_probe = (first as i32) < pair.seen as i32 && tcp.payload.len() == 1 && tcp.payload[0] == 0;
        if tcp.payload != stream(first, tcp.payload.len()) && !is_probe {
            return Err("its bytes are not those of the stream".to_owned());
        }
        self.compare_options(expected, &bytes::options(&tcp.options)?, peer)
    }

    fn compare_options(&self, expected: &Segment, options: &bytes::Options, peer: u32) -> Result<(), String> {
        if expected.mss.is_some() {
            compare_as("mss", &expected.mss, &options.mss)?;
        }
        if expected.wscale.is_some() {
            compare_as("wscale", &expected.wscale, &options.wscale)?;
        }
        if expected.timestamp.is_some() {
            compare_as("timestamp", &expected.timestamp, &options.timestamp)?;
        }
        if expected.sack_permitted && !options.sack_permitted {
            return Err("SACK-permitted is missing".to_owned());
        }
        let sack: Vec<(u32, u32)> =
            options.sack.iter().map(|(l, r)| (l.wrapping_sub(peer), r.wrapping_sub(peer))).collect();
        if !expected.sack.is_empty() {
            compare_as("sack", &expected.sack, &sack)?;
        }
        for name in &expected.without {
            let is_there = match name.as_str() {
                "mss" => options.mss.is_some(),
                "wscale" => options.wscale.is_some(),
                "sack-permitted" => options.sack_permitted,
                "sack" => !options.sack.is_empty(),
                _ => options.timestamp.is_some(),
            };
            if is_there {
                return Err(format!("{name} should be absent"));
            }
        }
        Ok(())
    }
}

fn compare<N: Copy + PartialEq + std::fmt::Display>(what: &str, wanted: N, actual: N) -> Result<(), String> {
    if wanted == actual { Ok(()) } else { Err(format!("{what} is {actual}, not {wanted}")) }
}

pub(super) fn compare_as<N: PartialEq<M> + std::fmt::Debug + ?Sized, M: std::fmt::Debug + ?Sized>(
    what: &str,
    wanted: &N,
    actual: &M,
) -> Result<(), String> {
    if wanted == actual { Ok(()) } else { Err(format!("{what} is {actual:?}, not {wanted:?}")) }
}
