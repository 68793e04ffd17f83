//! Programs on both sides of the wire, and what they may expect: a book of all bytes and datagrams that were sent.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use unisockets_stack::{
    DATAGRAM_LEN_MAX, Error, Event, Instant, Kind, Readiness, Shutdown, SocketId, SocketOption, Stack,
};

use super::{SOCKETS_MAX, op};
use crate::packet::{BUFFERS, v4, v6};
use crate::script::Script;

/// Events in one go: one for each socket and each path.
const EVENTS_MAX: usize = 4_096;
/// Ports that scripts use: few, so that they meet.
const PORTS: &[u16] = &[80, 53];
/// What comes in one packet over every link.
const WHOLE_MAX: usize = 1_200;
/// Bytes of one call.
const CALL_LEN_MAX: usize = 65_535;
const CONDITIONS: [Readiness; 5] =
    [Readiness::READABLE, Readiness::WRITABLE, Readiness::READ_CLOSED, Readiness::HANG_UP, Readiness::ERROR];

/// A socket and what its program knows of it.
pub(super) struct Program {
    pub(super) socket: SocketId,
    kind: Kind,
    bound: bool,
    /// Its connection in the ledger, and which end of it: 0 has asked for it.
    place: Option<(usize, usize)>,
    read_shut: bool,
    write_shut: bool,
    /// Whether an error was seen, after which nothing more is promised but true bytes.
    failed: bool,
    /// Whether the end of the stream was read.
    ended: bool,
    level: Readiness,
}

impl Program {
    fn new(socket: SocketId, kind: Kind, level: Readiness) -> Self {
        let (read_shut, write_shut, failed, ended) = (false, false, false, false);
        Self { socket, kind, bound: false, place: None, read_shut, write_shut, failed, ended, level }
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Passage {
    sent: usize,
    received: usize,
    /// Whether its sender has said that nothing follows.
    finished: bool,
}

struct Connection {
    from: SocketAddr,
    to: SocketAddr,
    accepted: bool,
    /// What each end has sent.
    passages: [Passage; 2],
}

struct Datagram {
    side: usize,
    port: u16,
    to: SocketAddr,
    len: usize,
}

/// Everything that was sent.
#[derive(Default)]
pub(super) struct Ledger {
    connections: Vec<Connection>,
    datagrams: Vec<Datagram>,
    /// Datagrams that have come.
    arrived: usize,
    /// Whether a wire has turned bits. Each piece of a datagram is another packet then, and two changes may leave a sum of
    /// 16 bits as it was.
    pub(super) corrupts: bool,
}

/// The byte at a place of one direction of a connection: another one in every connection.
fn pattern((connection, end): (usize, usize), at: usize) -> u8 {
    let mixed = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((connection * 2 + end) as u64) << 40;
    (mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8
}

impl Ledger {
    /// Checks what was read, and that the end of a stream is its end.
    fn check(&mut self, program: &mut Program, result: Result<usize, Error>, data: &[u8], taken: bool) {
        let Some((connection, end)) = program.place else {
            return;
        };
        let passage = &mut self.connections[connection].passages[1 - end];
        match result {
            Ok(0) if data.is_empty() => {}
            Ok(0) => {
                let whole = passage.finished && passage.received == passage.sent;
                assert!(
                    whole || program.read_shut || program.failed,
                    "the end of a stream is where its sender has ended it: {passage:?}"
                );
                // As on Linux, who has shut reading still gets what comes after that.
                program.ended |= !program.read_shut;
            }
            Ok(len) => {
                let expected = (passage.received..).map(|at| pattern((connection, 1 - end), at));
                assert!(data[..len].iter().copied().eq(expected.take(len)), "a stream delivers what was sent");
                assert!(passage.received + len <= passage.sent, "no byte comes from nowhere");
                assert!(!program.ended, "nothing follows the end");
                passage.received += if taken { len } else { 0 };
            }
            Err(Error::Again) => {}
            Err(_) => program.failed = true,
        }
    }

    /// Finds the connection that an accepted socket is the other end of.
    fn accept(&mut self, from: SocketAddr, to: SocketAddr) -> usize {
        let asked = |connection: &Connection| connection.from == from && connection.to == to;
        let found = self.connections.iter().rposition(asked).expect("an accepted connection was asked for");
        let twice = std::mem::replace(&mut self.connections[found].accepted, true);
        assert!(!twice, "a connection is accepted once");
        found
    }

    /// Returns how many bytes of streams, and datagrams, have been read.
    #[cfg(test)]
    pub(super) fn moved(&self) -> usize {
        self.arrived
            + self
                .connections
                .iter()
                .flat_map(|connection| &connection.passages)
                .map(|passage| passage.received)
                .sum::<usize>()
    }

    /// Says what has not arrived yet between programs that both still hold their end, and had no error.
    pub(super) fn missing<'a>(&self, programs: impl Iterator<Item = &'a Program>) -> Option<Missing> {
        let mut ends: Vec<[Option<&Program>; 2]> = self.connections.iter().map(|_| [None, None]).collect();
        for program in programs {
            if let Some((connection, end)) = program.place {
                ends[connection][end] = Some(program);
            }
        }
        ends.iter().zip(&self.connections).find_map(|(ends, connection)| {
            let [Some(first), Some(second)] = ends else {
                return None;
            };
            let waits = [first, second].iter().all(|program| !program.failed && !program.read_shut);
            let done = first.ended && second.ended;
            (waits && !done).then(|| {
                let text = format!("{} to {}: {:?}", connection.from, connection.to, connection.passages);
                Missing(text)
            })
        })
    }
}

/// What a healed wire still owes.
pub(super) struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes out the stack's events and compares them with what has become possible.
pub(super) fn notice(stack: &mut Stack, programs: &mut [Program], called: Option<usize>) {
    let events: Vec<Event> = std::iter::from_fn(|| stack.poll_event()).take(EVENTS_MAX).collect();
    assert!(events.len() < EVENTS_MAX, "events never end");
    for (index, program) in programs.iter_mut().enumerate() {
        let before = std::mem::replace(&mut program.level, stack.readiness(program.socket));
        let gained = |bit: &&Readiness| program.level.contains(**bit) && !before.contains(**bit);
        let told = events.contains(&Event::Ready(program.socket)) || called == Some(index);
        if let Some(bit) = CONDITIONS.iter().find(gained) {
            assert!(told, "a {:?} socket has become {bit:?} in silence", program.kind);
        }
    }
}

/// Makes one call of one program; returns its number.
pub(super) fn call(
    now: Instant,
    kind: u8,
    at: usize,
    (stack, programs): (&mut Stack, &mut Vec<Program>),
    ledger: &mut Ledger,
    script: &mut Script<'_>,
) -> Option<usize> {
    if kind == op::SOCKET {
        if programs.len() < SOCKETS_MAX {
            let kind = script.pick(&[Kind::Tcp, Kind::Udp]);
            let (family, buffer) = script.pick(BUFFERS);
            let socket = stack.socket(kind, family).expect("there are few sockets");
            for option in [SocketOption::ReceiveBuffer(buffer), SocketOption::SendBuffer(buffer)] {
                stack.set_option(socket, option).expect("every socket has buffers");
            }
            programs.push(Program::new(socket, kind, stack.readiness(socket)));
        }
        return None;
    }
    let index = usize::from(script.u8()).checked_rem(programs.len())?;
    let program = &mut programs[index];
    match kind {
        op::BIND => {
            let any: IpAddr = if script.flag() { [0; 16].into() } else { [0; 4].into() };
            program.bound |= stack.bind(program.socket, SocketAddr::new(any, script.pick(PORTS))).is_ok();
        }
        op::LISTEN => drop(stack.listen(program.socket, usize::from(script.u8()))),
        op::CONNECT => connect(now, at, stack, program, ledger, script),
        op::ACCEPT => accept(now, stack, programs, index, ledger),
        op::SEND => send(now, stack, program, ledger, usize::from(script.u16())),
        op::RECV => recv(stack, program, ledger, script),
        op::SHUTDOWN => {
            let how = script.pick(&[Shutdown::Write, Shutdown::Read, Shutdown::Both]);
            shutdown(now, stack, program, ledger, how);
        }
        op::CLOSE => {
            if let Some((connection, end)) = program.place {
                ledger.connections[connection].passages[end].finished = true;
            }
            stack.close(now, program.socket);
            programs.swap_remove(index);
            return Some(index);
        }
        op::OPTION => drop(stack.set_option(program.socket, option(script))),
        op::SEND_TO => send_to(now, at, stack, program, ledger, script),
        op::RECV_FROM => recv_from(at, stack, program, ledger),
        op::GROUP => {
            let group = group(script.flag());
            let joined = stack.join_group(program.socket, group);
            assert!(joined.is_err() || program.kind == Kind::Udp, "only datagrams go to groups");
        }
        op::QUERY => {
            let failed = stack.take_error(program.socket).expect("the socket is there").is_some();
            program.failed |= failed;
            let _ = (stack.stream_info(program.socket), stack.peer_address(program.socket), stack.sockets().len());
        }
        _ => unreachable!("every step is numbered"),
    }
    Some(index)
}

fn connect(
    now: Instant,
    at: usize,
    stack: &mut Stack,
    program: &mut Program,
    ledger: &mut Ledger,
    script: &mut Script<'_>,
) {
    let to = SocketAddr::new(host(script, at), script.pick(PORTS));
    // A connection of its own port each, so that the ledger can tell them apart; a socket whose connection failed could
    // try again, perhaps from the same port.
    if program.kind == Kind::Tcp && (program.bound || program.place.is_some()) {
        return;
    }
    if stack.connect(now, program.socket, to) == Err(Error::InProgress) {
        let from = stack.local_address(program.socket).expect("the socket is there");
        let known = ledger.connections.iter().any(|connection| connection.from == from && connection.to == to);
        assert!(!known, "an ephemeral port makes a connection new");
        program.place = Some((ledger.connections.len(), 0));
        ledger.connections.push(Connection { from, to, accepted: false, passages: Default::default() });
    }
}

fn accept(now: Instant, stack: &mut Stack, programs: &mut Vec<Program>, index: usize, ledger: &mut Ledger) {
    let listener = programs[index].socket;
    let ready = stack.readiness(listener).contains(Readiness::READABLE);
    if programs.len() >= SOCKETS_MAX {
        return;
    }
    match stack.accept(now, listener) {
        Ok((socket, from)) => {
            assert!(ready, "who accepts at once was ready");
            let to = stack.local_address(socket).expect("the socket is new");
            let mut program = Program::new(socket, Kind::Tcp, stack.readiness(socket));
            program.place = Some((ledger.accept(from, to), 1));
            programs.push(program);
        }
        Err(error) => assert!(!ready || error == Error::Invalid, "a listener that is ready gives a connection"),
    }
}

fn send(now: Instant, stack: &mut Stack, program: &mut Program, ledger: &mut Ledger, len: usize) {
    let Some(place @ (connection, end)) = program.place else {
        assert!(stack.send(now, program.socket, b"x").is_err(), "what has no connection sends nothing");
        return;
    };
    let passage = &mut ledger.connections[connection].passages[end];
    let data: Vec<u8> = (passage.sent..passage.sent + len).map(|at| pattern(place, at)).collect();
    let ready = stack.readiness(program.socket).contains(Readiness::WRITABLE);
    match stack.send(now, program.socket, &data) {
        Ok(sent) => {
            assert!(sent <= len && (sent == 0 || !program.write_shut), "what is shut takes nothing");
            passage.sent += sent;
        }
        Err(Error::Again) => assert!(!ready, "what is writable takes bytes"),
        Err(Error::BrokenPipe) => {}
        Err(_) => program.failed = true,
    }
}

fn recv(stack: &mut Stack, program: &mut Program, ledger: &mut Ledger, script: &mut Script<'_>) {
    let (mode, len) = (script.u8() % 3, usize::from(script.u16()));
    let mut data = vec![0; len];
    let level = stack.readiness(program.socket);
    let eager = stack.options(program.socket).is_ok_and(|options| options.receive_low_water == 1);
    let result = match mode {
        0 => stack.recv(program.socket, &mut data),
        1 => stack.peek(program.socket, &mut data),
        _ => stack.recv_at_least(program.socket, &mut data, usize::from(script.u16())),
    };
    if program.place.is_some() && len > 0 {
        let (ready, error) = (level.contains(Readiness::READABLE), level.contains(Readiness::ERROR));
        assert!(mode == 2 || !ready || result != Err(Error::Again), "what is readable gives something");
        assert!(ready || error || !eager || result.is_err(), "what gives something is readable");
    }
    ledger.check(program, result, &data, mode != 1);
}

fn shutdown(now: Instant, stack: &mut Stack, program: &mut Program, ledger: &mut Ledger, how: Shutdown) {
    if stack.shutdown(now, program.socket, how).is_ok() {
        program.read_shut |= how != Shutdown::Write;
        if how != Shutdown::Read {
            program.write_shut = true;
            let (connection, end) = program.place.expect("only what is connected is shut");
            ledger.connections[connection].passages[end].finished = true;
        }
    }
}

fn send_to(
    now: Instant,
    at: usize,
    stack: &mut Stack,
    program: &mut Program,
    ledger: &mut Ledger,
    script: &mut Script<'_>,
) {
    let len = usize::from(script.u16()).max(4);
    let ip = if script.flag() { group(script.flag()) } else { host(script, at) };
    let to = SocketAddr::new(ip, script.pick(PORTS));
    let number = ledger.datagrams.len();
    let mut data = (number as u32).to_be_bytes().to_vec();
    data.extend((4..len).map(|at| pattern((number, 0), at)));
    let result = stack.send_to(now, program.socket, &data, Some(to));
    assert!(result != Ok(0) && (result.is_err() || len <= DATAGRAM_LEN_MAX), "a datagram is sent whole");
    if result.is_ok() {
        let port = stack.local_address(program.socket).expect("the socket is there").port();
        ledger.datagrams.push(Datagram { side: at, port, to, len });
    }
}

fn recv_from(at: usize, stack: &mut Stack, program: &mut Program, ledger: &mut Ledger) {
    let ready = stack.readiness(program.socket).contains(Readiness::READABLE);
    let Ok(received) = stack.recv_from(program.socket) else {
        assert!(!ready || program.kind == Kind::Tcp, "a datagram socket that is readable has a datagram");
        return;
    };
    assert!(ready, "a datagram makes a socket readable");
    if ledger.corrupts && received.data.len() > WHOLE_MAX {
        ledger.arrived += 1;
        return;
    }
    let (number, rest) = received.data.split_first_chunk().expect("every datagram has a number");
    let number = u32::from_be_bytes(*number) as usize;
    ledger.arrived += 1;
    let sent = ledger.datagrams.get(number).expect("the datagram was sent");
    let same = rest.iter().zip(4..).all(|(byte, at)| *byte == pattern((number, 0), at));
    assert!(same && received.data.len() == sent.len, "a datagram arrives as it was sent, or not at all");
    let local = stack.local_address(program.socket).expect("the socket is there");
    assert_eq!((received.destination, local.port()), (sent.to.ip(), sent.to.port()), "it comes where it was sent to");
    let own = [v4(sent.side), v6(sent.side)];
    let is_sender = own.contains(&received.source.ip()) || (received.source.ip().is_loopback() && sent.side == at);
    assert!(is_sender && received.source.port() == sent.port, "it says who has sent it");
}

fn group(six: bool) -> IpAddr {
    if six { [0xff02, 0, 0, 0, 0, 0, 0, 0x77].into() } else { [239, 1, 2, 3].into() }
}

/// Chooses an address of one of the two nodes.
fn host(script: &mut Script<'_>, own: usize) -> IpAddr {
    match script.u8() % 8 {
        0..=2 => v4(1 - own),
        3 | 4 => v6(1 - own),
        5 => v4(own),
        6 => v6(own),
        _ => [127, 0, 0, 1].into(),
    }
}

fn option(script: &mut Script<'_>) -> SocketOption {
    let seconds = |script: &mut Script<'_>| Duration::from_secs(u64::from(script.u8()));
    match script.u8() % 16 {
        0 => SocketOption::NoDelay(script.flag()),
        1 => SocketOption::KeepAlive(script.flag()),
        2 => SocketOption::Linger(script.flag().then_some(Duration::ZERO)),
        3 => SocketOption::ReuseAddress(script.flag()),
        4 => SocketOption::V6Only(script.flag()),
        5 => SocketOption::ReceiveBuffer(usize::from(script.u16())),
        6 => SocketOption::SendBuffer(usize::from(script.u16())),
        7 => SocketOption::UserTimeout(script.flag().then(|| seconds(script))),
        8 => SocketOption::KeepIdle(seconds(script)),
        9 => SocketOption::KeepInterval(seconds(script)),
        10 => SocketOption::KeepCount(script.u8()),
        11 => SocketOption::ReceiveLowWater(usize::from(script.u16())),
        12 => SocketOption::Broadcast(script.flag()),
        13 => SocketOption::MulticastHopLimit(script.u8()),
        14 => SocketOption::MulticastLoop(script.flag()),
        _ => SocketOption::HopLimit(script.u8()),
    }
}

/// Has every program accept what there is, end what it sends, and read what has come.
pub(super) fn read_all(now: Instant, stack: &mut Stack, programs: &mut Vec<Program>, ledger: &mut Ledger) {
    for index in 0..programs.len() {
        let before = programs.len();
        accept(now, stack, programs, index, ledger);
        if programs.len() > before {
            programs[index].level = stack.readiness(programs[index].socket);
        }
    }
    for program in programs.iter_mut().filter(|program| program.place.is_some()) {
        if !program.write_shut {
            shutdown(now, stack, program, ledger, Shutdown::Write);
        }
        let mut data = vec![0; CALL_LEN_MAX];
        while !program.ended && !program.failed {
            let result = stack.recv(program.socket, &mut data);
            ledger.check(program, result, &data, true);
            if !matches!(result, Ok(1..)) {
                break;
            }
        }
        program.level = stack.readiness(program.socket);
        // One that has read to the end may have failed all the same: what it sent was not heard.
        program.failed |= program.level.contains(Readiness::ERROR);
    }
}
