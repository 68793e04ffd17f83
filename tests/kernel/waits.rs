//! Connections that wait: a reader that stops, a peer that is silent, and one that is gone.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;
use unisockets_stack::{Error, SocketId, SocketOption};
use unisockets_wire::as_root;

use crate::lab::{BAD, FAMILIES, Lab, limited, reads, writes};
use crate::member::{Member, State};
use crate::random::pattern;
use crate::talk::{Talk, talk};

/// More than all buffers between a writer and a reader that stops.
const LONG_LEN: u64 = 3 << 20;
/// What follows it over a bad wire.
const REST_LEN: u64 = 200_000;
/// Probes that a silent peer must answer, and the time between them.
const PROBES: u64 = 3;
const INTERVAL: Duration = Duration::from_secs(1);
/// Probes without an answer that end a connection over each wire: of a bad one some are lost.
const WIRES: [(&str, u8); 2] = [("", 3), (BAD, 5)];

/// Waits until `moved` has stood still while a probe and its answer went, and then two more over another wire.
fn window_shuts(member: &Member, what: &str, conditions: &str, mut moved: impl FnMut(&mut State) -> u64) {
    stands_still(member, what, 1, &mut moved);
    if !conditions.is_empty() {
        member.set_conditions(conditions.parse().unwrap());
    }
    stands_still(member, what, PROBES - 1, &mut moved);
}

/// Waits until `moved` has stood still while so many packets went both ways: what is left are probes and answers.
fn stands_still(member: &Member, what: &str, probes: u64, mut moved: impl FnMut(&mut State) -> u64) {
    let mut known = (u64::MAX, 0, 0);
    member.wait_state(what, |state| {
        let now = moved(state);
        if now != known.0 {
            known = (now, state.sent, state.received);
        }
        (state.sent >= known.1 + probes && state.received >= known.2 + probes).then_some(())
    });
}

/// Families, and the wires that come when the window is shut.
const SHUT: [(usize, &str); 3] = [(0, ""), (1, ""), (0, BAD)];

#[test]
fn a_reader_on_the_kernel_that_stops_gets_everything_in_the_end() {
    if !as_root() {
        return;
    }
    for (family, conditions) in SHUT {
        let lab = Lab::new("");
        let (listener, to) = lab.kernel_listener(family);
        // What is accepted inherits a receive buffer of a fixed size.
        sockopt::set_socket_recv_buffer_size(listener.as_fd(), 64 * 1024).unwrap();
        let socket = lab.member.connect(to).unwrap();
        let stream = limited(listener.accept().unwrap().0);
        let (mut sent, mut chunk) = (0, vec![0; 32 * 1024]);
        let mut fill = |state: &mut State, len: u64| {
            let now = state.now();
            while sent < len {
                let part = &mut chunk[..(len - sent).min(32 * 1024) as usize];
                pattern(5, sent, part);
                match state.stack.send(now, socket, part) {
                    Ok(len) => sent += len as u64,
                    Err(Error::Again) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            state.turn();
            sent
        };
        window_shuts(&lab.member, "a window of zero on the kernel", conditions, |state| fill(state, LONG_LEN));
        // Without a link below there is no congestion control, and a bad wire is slow (stack/README.md).
        let before = lab.member.wait_state("what was sent", |state| Some(fill(state, 0)));
        let len = if conditions.is_empty() { LONG_LEN } else { before + REST_LEN };
        let reader = reads(&stream, 5, len);
        lab.member.wait_state("the rest of the stream", |state| (fill(state, len) == len).then_some(()));
        lab.member.call(|stack, now| stack.shutdown(now, socket, unisockets_stack::Shutdown::Write)).unwrap();
        reader.join().unwrap();
    }
}

#[test]
fn a_reader_of_ours_that_stops_gets_everything_in_the_end() {
    if !as_root() {
        return;
    }
    for (family, conditions) in SHUT {
        let lab = Lab::new("");
        let (stream, socket) = lab.accepted(family);
        let writer = writes(&stream, 6, LONG_LEN);
        let queue = |state: &mut State| state.stack.stream_info(socket).unwrap().receive_queue as u64;
        lab.member.wait_state("bytes of the kernel", |state| (queue(state) > 512 * 1024).then_some(()));
        window_shuts(&lab.member, "a window of zero of ours", conditions, queue);
        talk(&lab.member, HashMap::from([(socket, Talk::new(0, 0, 6, LONG_LEN))]));
        writer.join().unwrap();
    }
}

/// Waits until some more packets have gone both ways.
fn probed(member: &Member, what: &str) {
    let (sent, received) = member.packets();
    let enough = |state: &mut State| state.sent >= sent + PROBES && state.received >= received + PROBES;
    member.wait_state(what, |state| enough(state).then_some(()));
}

/// Shows that a connection still works both ways.
fn lives(lab: &Lab, stream: &mut TcpStream, socket: SocketId) {
    let mut buffer = [0; 8];
    stream.write_all(b"alive").unwrap();
    let len = lab.member.wait("a word of the kernel", |stack, _| stack.recv(socket, &mut buffer).ok());
    assert_eq!(&buffer[..len], b"alive");
    lab.member.call(|stack, now| stack.send(now, socket, b"too")).unwrap();
    stream.read_exact(&mut buffer[..3]).unwrap();
    assert_eq!(&buffer[..3], b"too");
    // Bytes that are on their way would be repeated, and no probe would be sent.
    let taken = |queue: usize| (queue == 0).then_some(());
    lab.member.wait("the last answer", |stack, _| taken(stack.stream_info(socket).unwrap().send_queue));
}

/// The error that ends a connection of ours.
fn failure(lab: &Lab, socket: SocketId) -> Error {
    let mut buffer = [0; 8];
    lab.member.wait("the end of a dead connection", |stack, _| match stack.recv(socket, &mut buffer) {
        Err(Error::Again) => None,
        Err(error) => Some(error),
        Ok(len) => panic!("{len} bytes of nobody"),
    })
}

#[test]
fn we_answer_probes_of_the_kernel_and_it_notices_that_we_are_gone() {
    if !as_root() {
        return;
    }
    for (conditions, count) in WIRES {
        let lab = Lab::new(conditions);
        let mut connections: Vec<(TcpStream, SocketId)> = FAMILIES.map(|family| lab.accepted(family)).into();
        for (stream, _) in &connections {
            sockopt::set_socket_keepalive(stream, true).unwrap();
            sockopt::set_tcp_keepidle(stream, INTERVAL).unwrap();
            sockopt::set_tcp_keepintvl(stream, INTERVAL).unwrap();
            sockopt::set_tcp_keepcnt(stream, u32::from(count)).unwrap();
        }
        for (stream, socket) in &mut connections {
            probed(&lab.member, "probes of the kernel and our answers");
            lives(&lab, stream, *socket);
        }
        lab.member.cut();
        for (stream, _) in &mut connections {
            assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::TimedOut);
        }
    }
}

#[test]
fn the_kernel_answers_our_probes_and_we_notice_that_it_is_gone() {
    if !as_root() {
        return;
    }
    for (conditions, count) in WIRES {
        let lab = Lab::new(conditions);
        let mut connections: Vec<(TcpStream, SocketId)> = FAMILIES.map(|family| lab.connected(family)).into();
        for (_, socket) in &connections {
            lab.member.call(|stack, _| {
                stack.set_option(*socket, SocketOption::KeepIdle(INTERVAL)).unwrap();
                stack.set_option(*socket, SocketOption::KeepInterval(INTERVAL)).unwrap();
                stack.set_option(*socket, SocketOption::KeepCount(count)).unwrap();
                stack.set_option(*socket, SocketOption::KeepAlive(true)).unwrap();
            });
        }
        for (stream, socket) in &mut connections {
            probed(&lab.member, "our probes and the kernel's answers");
            lives(&lab, stream, *socket);
        }
        lab.member.cut();
        for (_, socket) in &connections {
            assert_eq!(failure(&lab, *socket), Error::TimedOut);
        }
    }
}

#[test]
fn bytes_that_nobody_acknowledges_end_in_the_user_timeout() {
    if !as_root() {
        return;
    }
    let lab = Lab::new("");
    let connections = FAMILIES.map(|family| lab.connected(family));
    lab.member.cut();
    for (_, socket) in &connections {
        lab.member.call(|stack, now| {
            stack.set_option(*socket, SocketOption::UserTimeout(Some(2 * INTERVAL))).unwrap();
            assert_eq!(stack.send(now, *socket, b"hello?"), Ok(6));
        });
        assert_eq!(failure(&lab, *socket), Error::TimedOut);
    }
}
