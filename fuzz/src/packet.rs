//! A script of packets, calls and time against two stacks and the wire between them.
//!
//! The wire loses, repeats, reorders and changes packets, and makes up its own: raw ones, segments that
//! fit a live connection almost, errors that quote it, fragments, floods of SYNs. As long as the
//! script changes no packet, what a stream delivers must be what was sent.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use unisockets_stack::{
    Class, DATAGRAM_LEN_MAX, DropReason, Error, Event, Family, Instant, Kind, MTU_MIN, PathConfig, PathEnd, PathId,
    Prefix, Room, Shutdown, SocketId, SocketOption, Stack,
};

use crate::headers::{self, Segment};
use crate::script::Script;
use crate::windows::Windows;

/// Steps of one script.
const STEPS_MAX: usize = 400;
/// Sockets that a script makes on one side; accepted ones count.
const SOCKETS_MAX: usize = 48;
/// Packets on the wire; what exceeds it is lost.
const FLIGHT_MAX: usize = 8_192;
/// Packets that a stack may give in one go: far above what its queues hold, far below for ever.
const PACKETS_MAX: usize = 50_000;
/// Times that timers may fire until a network without programs has come to rest.
const TIMERS_MAX: usize = 50_000;
/// Events in one go: one for each socket and each path.
const EVENTS_MAX: usize = 4_096;
/// What the rings of all connections may commit, in bytes, and connections in TIME-WAIT.
const MEMORY_MAX: usize = 512 << 20;
/// See [`MEMORY_MAX`].
const TIME_WAIT_MAX: usize = 16_384;
/// Families and buffers of sockets, in bytes: small rings fill up, wrap and close windows; windows of large ones have a
/// scale.
pub(crate) const BUFFERS: &[(Family, usize)] =
    &[(Family::V4, 16 << 10), (Family::V6, 16 << 10), (Family::V4, 300 << 10), (Family::V6, 300 << 10)];
pub(crate) const ROOM: Room = Room { stream: 1 << 20, datagram: 1 << 20 };

/// What one step does; the numbers are part of the corpus.
pub(crate) mod op {
    crate::script::steps! {
        SOCKET BIND LISTEN CONNECT ACCEPT SEND RECV SHUTDOWN CLOSE SEND_TO RECV_FROM OPTION QUERY FLUSH DELIVER MUTATE LOSE REPEAT SETTLE TIME PATH RAW SEGMENT QUOTE FRAGMENT FLOOD ADDRESSES
    }
}

/// How many bytes of a stream have passed.
#[derive(Default, Clone, Copy)]
struct Passed {
    sent: usize,
    received: usize,
}

pub(crate) struct Side {
    pub(crate) stack: Stack,
    pub(crate) path: PathId,
    config: PathConfig,
    sockets: Vec<(SocketId, Passed)>,
    drops: u64,
    /// The last segment that the stack sent: what a peer knows of its connections.
    last: Option<(headers::Seen, Vec<u8>)>,
}

struct World {
    now: Instant,
    sides: [Side; 2],
    flight: VecDeque<(usize, Vec<u8>)>,
    windows: Windows,
    /// Whether a packet was changed or made up, so that streams may differ.
    tampered: bool,
}

pub(crate) fn v4(side: usize) -> IpAddr {
    IpAddr::from([10, 80, 0, 1 + side as u8])
}

pub(crate) fn v6(side: usize) -> IpAddr {
    IpAddr::from([0xfd75, 0x6e69, 1, 0, 0, 0, 0, 1 + side as u16])
}

pub(crate) fn prefixes() -> [Prefix; 2] {
    [Prefix { address: v4(0), len: 16 }, Prefix { address: v6(0), len: 48 }]
}

/// The byte at a place of every stream.
fn pattern(at: usize) -> u8 {
    ((at as u32).wrapping_mul(2_654_435_761) >> 24) as u8
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let mut world = World::new(&mut script);
    for _ in 0..STEPS_MAX {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
        world.check();
    }
    world.end();
}

impl Side {
    pub(crate) fn new(own: usize, config: PathConfig) -> Side {
        let mut stack = Stack::new(((own as u128 + 1) << 64) | 0x5eed);
        stack.set_addresses(&[v4(own), v6(own)], &prefixes());
        let path = stack.open_path(config).expect("the first path has a place");
        let mut side = Side { stack, path, config, sockets: Vec::new(), drops: 0, last: None };
        side.route(Instant::ZERO, 1 - own);
        side
    }

    fn route(&mut self, now: Instant, peer: usize) {
        self.stack.add_route(now, v4(peer), self.path);
        self.stack.add_route(now, v6(peer), self.path);
        self.stack.path_up(now, self.path, self.config);
    }

    /// Chooses a socket, which may be closed.
    fn choose(&self, script: &mut Script<'_>) -> Option<usize> {
        let at = usize::from(script.u8());
        (!self.sockets.is_empty()).then(|| at % self.sockets.len())
    }

    /// Hands a packet over and checks that a drop is counted under its reason.
    pub(crate) fn take(&mut self, now: Instant, path: PathId, packet: &[u8]) {
        let before: Vec<(DropReason, u64)> = self.stack.drops().collect();
        if let Err(reason) = self.stack.handle_packet(now, path, packet) {
            let counted = before
                .into_iter()
                .zip(self.stack.drops())
                .any(|((known, before), (_, after))| known == reason && after > before);
            assert!(counted, "a dropped packet is counted as {reason:?}");
        }
    }

    /// Takes out what the stack wants to send over its links; what it sends to itself goes round at once.
    pub(crate) fn flush(&mut self, now: Instant, room: Room, mut carry: impl FnMut(Vec<u8>)) -> usize {
        let (mut count, mut packet) = (0, Vec::new());
        while let Some(path) = self.stack.poll_path() {
            while let Some(class) = self.stack.poll_packet(now, path, room, &mut packet) {
                count += 1;
                assert!(count <= PACKETS_MAX, "a stack that never falls silent");
                let free = if class == Class::Datagram { room.datagram } else { room.stream };
                assert!(packet.len() <= free, "{} bytes of {class:?} into room for {free}", packet.len());
                assert_eq!(headers::check(&packet), Ok(()), "a stack writes legal packets: {packet:02x?}");
                if path == self.stack.loopback() {
                    self.take(now, path, &packet);
                } else {
                    if path == self.path {
                        assert!(packet.len() <= self.config.mtu.max(MTU_MIN), "a packet above the link's MTU");
                    }
                    if let Some(seen) = headers::seen(&packet) {
                        self.last = Some((seen, packet.clone()));
                    }
                    carry(packet.clone());
                }
                packet.clear();
            }
            assert!(packet.is_empty(), "no packet, no bytes");
        }
        count
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        self.stack.handle_timeout(now);
        let due = self.stack.poll_timeout();
        assert!(due.is_none_or(|due| due > now), "what was due is done");
    }
}

impl World {
    fn new(script: &mut Script<'_>) -> World {
        let mtu = script.pick(&[1_280, 1_500, 9_000, 16_384, 0]);
        let config = PathConfig { mtu, verify_checksums: !script.flag() };
        World {
            now: Instant::from_millis(1_000),
            sides: [Side::new(0, config), Side::new(1, config)],
            flight: VecDeque::new(),
            windows: Windows::default(),
            tampered: false,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let code = script.u8();
        // The highest bit says which side does it.
        let (kind, at) = ((code & 0x7f) % op::COUNT, usize::from(code >> 7));
        match kind {
            op::SOCKET | op::BIND | op::LISTEN | op::CONNECT | op::ACCEPT | op::CLOSE => self.name(kind, at, script),
            op::SEND | op::RECV | op::SHUTDOWN => self.stream(kind, at, script),
            op::SEND_TO | op::RECV_FROM => self.datagram(kind, at, script),
            op::OPTION => self.option(at, script),
            op::QUERY => self.query(at, script),
            op::FLUSH => {
                let free = script.pick(&[1 << 20, 64, 1_280, 1_279, 20_000, 0]);
                let room = Room { stream: free, datagram: if script.flag() { 1 << 20 } else { free } };
                self.flush(at, room);
            }
            op::DELIVER | op::MUTATE | op::LOSE | op::REPEAT => self.wire(kind, script),
            op::SETTLE => self.settle(),
            op::TIME => {
                let scale = script.pick(&[1, 1_000, 100_000, 10_000_000]);
                self.now = self.now + Duration::from_micros(u64::from(script.u8()) * scale);
                if scale > 1_000 {
                    // No packet is on its way for longer than a connection's name rests (RFC 9293, 3.4.3).
                    self.flight.clear();
                }
                self.sides.iter_mut().for_each(|side| side.expire(self.now));
            }
            op::PATH => self.path(at, script),
            op::ADDRESSES => {
                let own: &[IpAddr] = match script.u8() % 3 {
                    0 => &[v4(at), v6(at)],
                    1 => &[v4(at)],
                    _ => &[],
                };
                self.sides[at].stack.set_addresses(own, &prefixes());
            }
            _ => self.forge(kind, at, script),
        }
    }

    /// Calls that make and end sockets and their names.
    fn name(&mut self, kind: u8, at: usize, script: &mut Script<'_>) {
        let (now, side) = (self.now, &mut self.sides[at]);
        if kind == op::SOCKET {
            let kind = script.pick(&[Kind::Tcp, Kind::Udp, Kind::Echo]);
            let (family, buffer) = script.pick(BUFFERS);
            if side.sockets.len() < SOCKETS_MAX {
                let socket = side.stack.socket(kind, family).expect("there are few sockets");
                for option in [SocketOption::ReceiveBuffer(buffer), SocketOption::SendBuffer(buffer)] {
                    side.stack.set_option(socket, option).expect("every socket has buffers");
                }
                side.sockets.push((socket, Passed::default()));
            }
            return;
        }
        let Some(index) = side.choose(script) else {
            return;
        };
        let socket = side.sockets[index].0;
        match kind {
            op::BIND => drop(side.stack.bind(socket, address(script, at))),
            op::LISTEN => drop(side.stack.listen(socket, usize::from(script.u8()))),
            op::CONNECT => {
                let to = address(script, at);
                let result = side.stack.connect(now, socket, to);
                assert_ne!(result, Err(Error::Again), "connect never says that");
            }
            op::ACCEPT if side.sockets.len() < SOCKETS_MAX => {
                if let Ok((accepted, _)) = side.stack.accept(now, socket) {
                    side.sockets.push((accepted, Passed::default()));
                }
            }
            op::CLOSE => side.stack.close(now, socket),
            _ => {}
        }
    }

    /// Calls on connections.
    fn stream(&mut self, kind: u8, at: usize, script: &mut Script<'_>) {
        let (now, tampered, side) = (self.now, self.tampered, &mut self.sides[at]);
        let Some(index) = side.choose(script) else {
            return;
        };
        let (socket, passed) = &mut side.sockets[index];
        match kind {
            op::SEND => {
                let len = usize::from(script.u16()) % 40_000;
                let data: Vec<u8> = (passed.sent..passed.sent + len).map(pattern).collect();
                if let Ok(sent) = side.stack.send(now, *socket, &data) {
                    assert!(sent <= len, "no more is sent than was given");
                    passed.sent += sent;
                }
            }
            op::RECV => {
                let mut data = vec![0; usize::from(script.u16()) % 40_000];
                let peeks = script.flag();
                let result =
                    if peeks { side.stack.peek(*socket, &mut data) } else { side.stack.recv(*socket, &mut data) };
                if let Ok(received) = result {
                    let expected = (passed.received..).map(pattern);
                    let same = data[..received].iter().copied().eq(expected.take(received));
                    assert!(tampered || same, "a stream delivers what was sent, in order");
                    passed.received += if peeks { 0 } else { received };
                }
            }
            _ => {
                let how = script.pick(&[Shutdown::Write, Shutdown::Read, Shutdown::Both]);
                let _ = side.stack.shutdown(now, *socket, how);
            }
        }
    }

    /// Calls on datagram sockets.
    fn datagram(&mut self, kind: u8, at: usize, script: &mut Script<'_>) {
        let (now, side) = (self.now, &mut self.sides[at]);
        let Some(index) = side.choose(script) else {
            return;
        };
        let socket = side.sockets[index].0;
        if kind == op::SEND_TO {
            let data = vec![7; usize::from(script.u16())];
            let to = script.flag().then(|| address(script, at));
            if let Ok(sent) = side.stack.send_to(now, socket, &data, to) {
                assert!(sent == data.len() && sent <= DATAGRAM_LEN_MAX, "a datagram is sent whole");
            }
            return;
        }
        let mut held = 0;
        while let Ok(peeked) = side.stack.peek_from(socket).cloned() {
            assert_eq!(side.stack.recv_from(socket), Ok(peeked.clone()), "what was peeked at is what comes");
            held += peeked.data.len();
        }
        // No script asks for a larger buffer than this, and an empty queue takes any datagram.
        assert!(held <= (300 << 10) + DATAGRAM_LEN_MAX, "a receive queue holds {held} bytes");
    }

    fn option(&mut self, at: usize, script: &mut Script<'_>) {
        let side = &mut self.sides[at];
        let Some(index) = side.choose(script) else {
            return;
        };
        let millis =
            |script: &mut Script<'_>| Some(Duration::from_millis(u64::from(script.u16()))).filter(|d| !d.is_zero());
        let seconds = |script: &mut Script<'_>| Duration::from_secs(u64::from(script.u8()));
        let option = match script.u8() % 17 {
            0 => SocketOption::NoDelay(script.flag()),
            1 => SocketOption::KeepAlive(script.flag()),
            2 => SocketOption::Linger(script.flag().then_some(Duration::ZERO)),
            3 => SocketOption::ReuseAddress(script.flag()),
            4 => SocketOption::V6Only(script.flag()),
            5 => SocketOption::ReceiveBuffer(usize::from(script.u16())),
            6 => SocketOption::SendBuffer(usize::from(script.u16())),
            7 => SocketOption::UserTimeout(millis(script)),
            8 => SocketOption::KeepIdle(seconds(script)),
            9 => SocketOption::KeepInterval(seconds(script)),
            10 => SocketOption::KeepCount(script.u8()),
            11 => SocketOption::ReceiveLowWater(usize::from(script.u16())),
            12 => SocketOption::Broadcast(script.flag()),
            13 => SocketOption::MulticastHopLimit(script.u8()),
            14 => SocketOption::MulticastLoop(script.flag()),
            _ => SocketOption::HopLimit(script.u8()),
        };
        let _ = side.stack.set_option(side.sockets[index].0, option);
    }

    /// Calls that only ask.
    fn query(&mut self, at: usize, script: &mut Script<'_>) {
        let (now, side) = (self.now, &mut self.sides[at]);
        let Some(index) = side.choose(script) else {
            return;
        };
        let (socket, stack) = (side.sockets[index].0, &mut side.stack);
        let _ = (stack.readiness(socket), stack.local_address(socket), stack.peer_address(socket));
        let _ = (stack.options(socket), stack.stream_info(socket), stack.poll_delay(now));
        if script.flag() {
            let _ = stack.take_error(socket);
        }
        assert_eq!(stack.sockets().len(), stack.socket_count(), "every socket is described");
    }

    fn flush(&mut self, at: usize, room: Room) -> usize {
        let (flight, windows, tampered) = (&mut self.flight, &mut self.windows, self.tampered);
        self.sides[at].flush(self.now, room, |packet| {
            if !tampered {
                windows.sent(&packet);
            }
            if flight.len() < FLIGHT_MAX {
                flight.push_back((1 - at, packet));
            }
        })
    }

    fn deliver(&mut self, to: usize, packet: &[u8]) {
        let side = &mut self.sides[to];
        side.take(self.now, side.path, packet);
    }

    /// What a wire does to packets.
    fn wire(&mut self, kind: u8, script: &mut Script<'_>) {
        let (at, count) = (usize::from(script.u8()), usize::from(script.u8() & 31) + 1);
        for _ in 0..count {
            if self.flight.is_empty() {
                return;
            }
            let at = at % self.flight.len();
            match kind {
                op::REPEAT => {
                    let (to, packet) = self.flight[at].clone();
                    self.deliver(to, &packet);
                    return;
                }
                op::MUTATE => {
                    let Some((to, mut packet)) = self.flight.remove(at) else {
                        return;
                    };
                    let place = usize::from(script.u8()) % packet.len();
                    packet[place] ^= script.u8();
                    if script.flag() {
                        headers::mend(&mut packet);
                    }
                    self.tampered = true;
                    self.deliver(to, &packet);
                    return;
                }
                _ => {
                    if let Some((to, packet)) = self.flight.remove(at)
                        && kind == op::DELIVER
                    {
                        self.deliver(to, &packet);
                    }
                }
            }
        }
    }

    /// Carries everything that can be carried at this moment.
    fn settle(&mut self) {
        let mut count = 0;
        loop {
            for at in 0..2 {
                count += self.flush(at, ROOM);
            }
            assert!(count <= PACKETS_MAX, "two stacks that never fall silent");
            let Some((to, packet)) = self.flight.pop_front() else {
                return;
            };
            self.deliver(to, &packet);
        }
    }

    /// What is said about paths from outside.
    fn path(&mut self, at: usize, script: &mut Script<'_>) {
        let (now, side) = (self.now, &mut self.sides[at]);
        match script.u8() % 9 {
            0 => side.stack.path_lost(side.path),
            1 => side.stack.path_up(now, side.path, side.config),
            2 => side.stack.path_writable(side.path),
            3 => side.stack.reset_flows(now, side.path),
            kind @ (4 | 5) => {
                let end = if kind == 4 { PathEnd::Idle } else { script.pick(&[PathEnd::Reset, PathEnd::Unreachable]) };
                side.stack.end_path(now, side.path, end);
            }
            6 => {
                // A new link takes over from the old one, or from a pending path.
                side.path = side.stack.open_path(side.config).expect("there are few paths");
                side.route(now, 1 - at);
            }
            7 => side.stack.set_round_trip(side.path, Duration::from_millis(u64::from(script.u8()))),
            _ => {
                let _ = side.stack.flow_count(side.path);
                side.config.mtu = script.pick(&[1_280, 1_500, 9_000, 16_384]);
                side.stack.path_up(now, side.path, side.config);
            }
        }
    }

    /// Packets that the wire makes up.
    fn forge(&mut self, kind: u8, at: usize, script: &mut Script<'_>) {
        self.tampered = true;
        let peer = 1 - at;
        match kind {
            op::RAW => {
                let (mends, len) = (script.flag(), usize::from(script.u8()));
                let mut packet = script.bytes(len).to_vec();
                if mends {
                    headers::mend(&mut packet);
                }
                let side = &mut self.sides[at];
                let path = if script.flag() { side.stack.loopback() } else { side.path };
                side.take(self.now, path, &packet);
            }
            op::SEGMENT => {
                let Some((seen, _)) = self.sides[at].last else {
                    return;
                };
                let packet = segment(script, seen);
                self.deliver(at, &packet);
            }
            op::QUOTE => {
                let Some((_, packet)) = self.sides[at].last.clone() else {
                    return;
                };
                let packet = quote(script, at, &packet);
                self.deliver(at, &packet);
            }
            op::FRAGMENT => {
                let six = script.flag();
                let (from, to) = if six { (v6(peer), v6(at)) } else { (v4(peer), v4(at)) };
                let data = vec![9; usize::from(script.u16()) % 4_000];
                let whole =
                    headers::udp_payload(SocketAddr::new(from, 9), SocketAddr::new(to, script.pick(PORTS)), &data);
                let (id, step, skipped) = (u16::from(script.u8()), usize::from(script.u8() | 1) * 8, script.u8());
                for (index, piece) in whole.chunks(step).enumerate() {
                    let more = (index + 1) * step < whole.len();
                    if index != usize::from(skipped) {
                        let packet = headers::fragment((from, to), id, (index * step) as u16, more, piece);
                        self.deliver(at, &packet);
                    }
                }
            }
            op::FLOOD => {
                let (port, first, count) = (script.pick(PORTS), script.u16(), script.u8());
                let flags = script.pick(&[headers::SYN, headers::SYN | headers::ACK, headers::ACK, headers::FIN, 63]);
                for n in 0..u16::from(count) {
                    let from = SocketAddr::new(v4(peer), first.wrapping_add(n).max(1));
                    let window = 1_000;
                    let segment =
                        Segment { sequence: 7, acknowledgement: 0, flags, window, options: &[], payload: &[] };
                    let packet = headers::tcp(from, SocketAddr::new(v4(at), port), segment);
                    self.deliver(at, &packet);
                }
            }
            _ => unreachable!("every step is numbered"),
        }
    }

    fn check(&mut self) {
        for side in &mut self.sides {
            let events = std::iter::from_fn(|| side.stack.poll_event());
            let ready = events.filter(|event| matches!(event, Event::Ready(_)));
            assert!(ready.count() <= EVENTS_MAX, "events never end");
            assert!(side.stack.socket_count() <= side.sockets.len(), "no socket comes from nowhere");
            assert!(side.stack.orphan_count() <= side.stack.connection_count(), "an orphan is a connection");
            assert!(side.stack.committed_bytes() <= MEMORY_MAX, "the ledger holds");
            assert!(side.stack.time_wait_count() <= TIME_WAIT_MAX, "the oldest makes room");
            let drops: u64 = side.stack.drops().map(|(_, count)| count).sum();
            assert!(drops >= side.drops, "counters grow");
            side.drops = drops;
        }
    }

    /// Programs end, the wire is cut, time passes: nothing may be left.
    fn end(&mut self) {
        self.flight.clear();
        for side in &mut self.sides {
            for (socket, _) in &side.sockets {
                side.stack.close(self.now, *socket);
            }
            side.stack.path_up(self.now, side.path, side.config);
            assert_eq!(side.stack.socket_count(), 0, "what is closed is gone");
            let mut now = self.now;
            for fired in 0.. {
                side.flush(now, ROOM, drop);
                let Some(due) = side.stack.poll_timeout() else {
                    break;
                };
                assert!(fired < TIMERS_MAX, "a stack without programs that never comes to rest");
                now = now.max(due);
                side.expire(now);
            }
            // Whoever opened a path ends it, be it that nobody was found behind it.
            side.stack.end_path(now, side.path, PathEnd::Unreachable);
            for address in [0, 1, 9].into_iter().flat_map(|host| [v4(host), v6(host)]) {
                if let Some(path) = side.stack.route(address) {
                    side.stack.end_path(now, path, PathEnd::Unreachable);
                }
            }
            assert_eq!(side.stack.connection_count(), 0, "no connection outlives its program for ever");
            assert_eq!((side.stack.orphan_count(), side.stack.time_wait_count()), (0, 0));
            assert_eq!(side.stack.committed_bytes(), 0, "no connection, no memory");
        }
    }
}

/// Ports that scripts use: few, so that they meet.
const PORTS: &[u16] = &[80, 53, 7, 0, 40_000, 65_535];

/// Chooses an address: the own one, the peer's, somebody's, or a special one.
fn address(script: &mut Script<'_>, own: usize) -> SocketAddr {
    let any: [&str; 8] = ["0.0.0.0", "::", "127.0.0.1", "::1", "192.0.2.1", "255.255.255.255", "ff02::1", "224.0.0.1"];
    let ip = match script.u8() % 16 {
        0 | 1 => v4(1 - own),
        2 | 3 => v6(1 - own),
        4 => v4(own),
        5 => v6(own),
        6 => v4(9),
        7 => v6(9),
        n => any[usize::from(n) - 8].parse().expect("a literal address"),
    };
    SocketAddr::new(ip, script.pick(PORTS))
}

/// Makes a segment that answers the last one that a stack sent, almost.
fn segment(script: &mut Script<'_>, seen: headers::Seen) -> Vec<u8> {
    let near = |script: &mut Script<'_>, number: u32| match script.u8() {
        n @ 0..=200 => number.wrapping_add(u32::from(n % 16)),
        n @ 201..=230 => number.wrapping_sub(u32::from(n - 200)),
        n @ 231..=250 => number.wrapping_add(u32::from(n - 230) << 10),
        _ => script.u32(),
    };
    let sequence = near(script, seen.acknowledgement);
    let answered = if script.flag() { seen.end } else { seen.sequence };
    let acknowledgement = near(script, answered);
    let flags = script.u8();
    let window = script.pick(&[0, 1, 1_000, 0xffff]);
    let options: &[u8] = script.pick(&[
        &[] as &[u8],
        &[2, 4, 0, 0],
        &[2, 4, 5, 0],
        &[3, 3, 14, 1],
        &[3, 3, 255, 0],
        &[4, 2, 1, 1],
        &[5, 10, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 1, 1],
        &[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0],
        &[1, 1, 1, 30],
    ]);
    let payload = vec![5; usize::from(script.u16()) % 3_000];
    let segment = Segment { sequence, acknowledgement, flags, window, options, payload: &payload };
    headers::tcp(seen.destination, seen.source, segment)
}

/// Makes an ICMP error that quotes what a stack sent.
fn quote(script: &mut Script<'_>, at: usize, packet: &[u8]) -> Vec<u8> {
    let four = packet[0] >> 4 == 4;
    let (from, to, kind) = if four { (v4(1 - at), v4(at), 3) } else { (v6(1 - at), v6(at), 1) };
    let kind = if script.flag() { script.u8() } else { kind };
    let (code, len) = (script.u8() % 6, usize::from(script.u8()));
    let rest = [&[0; 4], &packet[..packet.len().min(len)]].concat();
    headers::icmp(from, to, kind, code, &rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds::seeds;

    /// Plays a seed without its end.
    fn play(name: &str) -> World {
        let (_, bytes) = seeds("packet").into_iter().find(|(known, _)| *known == name).expect("the seed exists");
        let mut script = Script::new(&bytes);
        let mut world = World::new(&mut script);
        while !script.is_over() {
            world.step(&mut script);
        }
        world
    }

    #[test]
    fn the_seeds_reach_what_they_are_for() {
        for name in ["stream_v4", "stream_v6"] {
            let world = play(name);
            assert!(!world.tampered, "nothing was changed");
            assert!(
                world.sides.iter().all(|side| side.sockets.iter().any(|(_, passed)| passed.received > 0)),
                "{name}"
            );
        }
        let drops =
            |side: &Side, reason| side.stack.drops().find(|(known, _)| *known == reason).map(|(_, count)| count);
        let flooded = play("flood");
        assert!(drops(&flooded.sides[0], DropReason::BacklogFull) > Some(0), "the backlog overflows");
        for name in ["raw_v4", "raw_v6", "fragments", "datagrams"] {
            let mut world = play(name);
            let side = &mut world.sides[0];
            let socket = side.sockets[0].0;
            assert_eq!(drops(side, DropReason::Checksum), Some(0), "{name}");
            assert!(name == "datagrams" || name == "fragments" || side.stack.recv_from(socket).is_ok(), "{name}");
        }
    }
}
