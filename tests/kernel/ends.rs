//! How connections end: one direction at a time, by resets, and by being refused.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use unisockets_stack::{Error, SocketId, SocketOption, State};
use unisockets_wire::as_root;

use crate::lab::{BAD, FAMILIES, Lab, reads, wires, writes};
use crate::member::LIMIT;
use crate::talk::{Talk, talk};

/// Bytes of an answer that comes after the question's direction was shut.
const ANSWER_LEN: u64 = 300_000;
/// How long a closed connection waits for its peer's end at most.
const FIN_WAIT_2: Duration = Duration::from_secs(60);

/// Waits until a connection of ours is reset and returns the error that the program sees.
fn reset(lab: &Lab, socket: SocketId) -> Error {
    let mut buffer = [0; 1_024];
    lab.member.wait("the end of a connection", |stack, _| match stack.recv(socket, &mut buffer) {
        Err(Error::Again) => None,
        Ok(0) => panic!("a reset is no end of the stream"),
        Ok(_) => None,
        Err(error) => Some(error),
    })
}

/// Waits until so many bytes wait to be read.
fn arrived(lab: &Lab, socket: SocketId, len: usize) {
    let enough = |queue: usize| (queue >= len).then_some(());
    lab.member.wait("bytes", |stack, _| enough(stack.stream_info(socket).unwrap().receive_queue));
}

#[test]
fn the_kernel_shuts_its_direction_and_still_takes_a_long_answer() {
    if !as_root() {
        return;
    }
    for (lab, family) in wires() {
        for open in [Lab::accepted, Lab::connected] {
            let (mut stream, socket) = open(&lab, family);
            stream.write_all(b"question").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut buffer = [0; 64];
            let mut question = Vec::new();
            lab.member.wait("the end of the question", |stack, _| match stack.recv(socket, &mut buffer) {
                Ok(0) => Some(()),
                Ok(len) => {
                    question.extend_from_slice(&buffer[..len]);
                    None
                }
                Err(error) => (error != Error::Again).then(|| panic!("{error}")),
            });
            assert_eq!(question, b"question");
            let reader = reads(&stream, 3, ANSWER_LEN);
            talk(&lab.member, HashMap::from([(socket, Talk::new(3, ANSWER_LEN, 0, 0))]));
            reader.join().unwrap();
            lab.member.close(socket);
            // Their FIN came first: nothing stays here, and nothing waits.
            let gone = |count: usize| (count == 0).then_some(());
            lab.member.wait("the end of the connection", |stack, _| gone(stack.connection_count()));
            assert_eq!(lab.member.call(|stack, _| stack.time_wait_count()), 0);
        }
    }
}

#[test]
fn we_shut_our_direction_and_still_take_a_long_answer() {
    if !as_root() {
        return;
    }
    for (lab, family) in wires() {
        for open in [Lab::accepted, Lab::connected] {
            let (mut stream, socket) = open(&lab, family);
            lab.member.call(|stack, now| {
                assert_eq!(stack.send(now, socket, b"question"), Ok(8));
                stack.shutdown(now, socket, unisockets_stack::Shutdown::Write).unwrap();
                assert_eq!(stack.send(now, socket, b"more"), Err(Error::BrokenPipe));
            });
            let mut question = Vec::new();
            stream.read_to_end(&mut question).unwrap();
            assert_eq!(question, b"question");
            let half = |state: State| (state == State::FinWait2).then_some(());
            lab.member.wait("the FIN's answer", |stack, _| half(stack.stream_info(socket).unwrap().state));
            let writer = writes(&stream, 4, ANSWER_LEN);
            // Its own direction is shut already: nothing is sent, and shutting twice is allowed.
            talk(&lab.member, HashMap::from([(socket, Talk::new(0, 0, 4, ANSWER_LEN))]));
            writer.join().unwrap();
            let before = lab.member.call(|stack, _| stack.time_wait_count());
            lab.member.close(socket);
            let more = |count: usize| (count == before + 1).then_some(());
            lab.member.wait("TIME-WAIT", |stack, _| more(stack.time_wait_count()));
        }
    }
}

#[test]
fn resets_of_the_kernel_are_seen_by_our_programs() {
    if !as_root() {
        return;
    }
    for family in FAMILIES {
        let lab = Lab::new("");
        for open in [Lab::accepted, Lab::connected] {
            // SO_LINGER of zero.
            let (stream, socket) = open(&lab, family);
            sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            drop(stream);
            assert_eq!(reset(&lab, socket), Error::ConnectionReset);
            // Closed with bytes that nobody read.
            let (mut stream, socket) = open(&lab, family);
            lab.member.call(|stack, now| stack.send(now, socket, &[7; 100])).unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            drop(stream);
            assert_eq!(reset(&lab, socket), Error::ConnectionReset);
            let sent = lab.member.call(|stack, now| stack.send(now, socket, b"x"));
            assert_eq!(sent, Err(Error::BrokenPipe), "the error is told once");
        }
    }
}

#[test]
fn our_resets_are_seen_by_programs_on_the_kernel() {
    if !as_root() {
        return;
    }
    for family in FAMILIES {
        let lab = Lab::new("");
        for open in [Lab::accepted, Lab::connected] {
            let (mut stream, socket) = open(&lab, family);
            lab.member.call(|stack, _| stack.set_option(socket, SocketOption::Linger(Some(Duration::ZERO)))).unwrap();
            lab.member.close(socket);
            assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            let (mut stream, socket) = open(&lab, family);
            stream.write_all(&[7; 100]).unwrap();
            arrived(&lab, socket, 100);
            lab.member.close(socket);
            assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            // Bytes for a connection that is closed, with all read: a reset, too (RFC 1122, 4.2.2.13).
            let (mut stream, socket) = open(&lab, family);
            lab.member.close(socket);
            assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "an end, not a reset");
            stream.write_all(b"is anybody there?").unwrap();
            let start = Instant::now();
            let ended = loop {
                if let Err(error) = stream.write_all(b"?") {
                    break error.kind();
                }
            };
            assert!(start.elapsed() < FIN_WAIT_2 / 2, "told at once, not when the orphan is given up");
            assert!(matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{ended}");
        }
        assert_eq!(lab.member.call(|stack, _| stack.connection_count()), 0);
    }
}

/// More than all buffers between a writer and a reader that does not read.
const LONG_LEN: u64 = 4 << 20;

/// A reset may be lost: what its connection is still sent brings another one (RFC 9293, 3.10.7.1).
#[test]
fn resets_arrive_over_a_bad_wire() {
    if !as_root() {
        return;
    }
    let lab = Lab::new(BAD);
    for family in FAMILIES {
        for open in [Lab::accepted, Lab::connected] {
            for _ in 0..6 {
                let (mut stream, socket) = open(&lab, family);
                let queue = |stack: &mut unisockets_stack::Stack, now| {
                    while stack.send(now, socket, &[7; 32 * 1024]).is_ok() {}
                    (stack.stream_info(socket).unwrap().send_queue > 0).then_some(())
                };
                lab.member.wait("bytes that wait", queue);
                // With bytes that nobody reads the kernel closes by a reset.
                stream.read_exact(&mut [0]).unwrap();
                drop(stream);
                assert_eq!(reset(&lab, socket), Error::ConnectionReset);
                lab.member.close(socket);
                let (stream, socket) = open(&lab, family);
                let mut writer = stream.try_clone().unwrap();
                let writer =
                    std::thread::spawn(move || writer.write_all(&vec![7; LONG_LEN as usize]).unwrap_err().kind());
                arrived(&lab, socket, 1);
                lab.member.close(socket);
                assert_eq!(writer.join().unwrap(), ErrorKind::ConnectionReset);
            }
        }
    }
    let gone = |count: usize| (count == 0).then_some(());
    lab.member.wait("the end of all connections", |stack, _| gone(stack.connection_count()));
}

#[test]
fn a_port_without_a_listener_refuses_both_ways() {
    if !as_root() {
        return;
    }
    for family in FAMILIES {
        let lab = Lab::new("");
        let to = SocketAddr::new(lab.ours(family), 81);
        let refused = lab.kernel.run(move || TcpStream::connect_timeout(&to, LIMIT));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let (listener, to) = lab.kernel_listener(family);
        drop::<TcpListener>(listener);
        assert_eq!(lab.member.connect(to), Err(Error::ConnectionRefused));
    }
}
