//! What a guess cannot do to a connection (RFC 5961), and a peer that takes nothing (RFC 9293, section 3.8.6.1).

mod wire;

use std::time::Duration;

use unisockets_stack::{DropReason, Error, SocketId, SocketOption, State};
use wire::{Wire, forged, number, pattern};

const SYN: u8 = 2;
const RST: u8 = 4;
const SECOND: Duration = Duration::from_secs(1);

/// The last packet that a side has sent.
fn last_of(wire: &Wire, side: usize) -> Vec<u8> {
    wire.log.iter().rev().find(|(from, _, _)| *from == side).unwrap().2.clone()
}

fn state(wire: &Wire, side: usize, socket: SocketId) -> State {
    wire.nodes[side].stack.stream_info(socket).unwrap().state
}

/// A connection over which 100,000 bytes have gone to the server, and a segment of the client's to forge from.
fn used_connection(wire: &mut Wire) -> (SocketId, SocketId, Vec<u8>) {
    let (client, server) = wire.pair();
    let data = pattern(100_000);
    assert_eq!(wire.transfer((0, client), (1, server), &data, 10 * SECOND), data);
    wire.settle();
    let last = last_of(wire, 0);
    (client, server, last)
}

#[test]
fn a_reset_ends_a_connection_only_with_the_exact_number() {
    let mut wire = Wire::new(1_500);
    let (_, server, last) = used_connection(&mut wire);
    let path = wire.nodes[1].path;
    for shift in [1, 1_000, 100_000, -1, -100_000, i32::MAX] {
        let result = wire.nodes[1].stack.handle_packet(wire.now, path, &forged(&last, RST, shift));
        assert_eq!(result, Err(DropReason::OutOfWindow), "{shift}");
        assert_eq!(state(&wire, 1, server), State::Established, "{shift}");
    }
    wire.nodes[1].stack.handle_packet(wire.now, path, &forged(&last, RST, 0)).unwrap();
    assert_eq!(wire.nodes[1].stack.take_error(server), Ok(Some(Error::ConnectionReset)));
}

#[test]
fn a_reset_right_after_unacknowledged_data_has_the_exact_number() {
    let mut wire = Wire::new(1_500);
    let (client, server, _) = used_connection(&mut wire);
    wire.nodes[0].stack.set_option(client, SocketOption::Linger(Some(Duration::ZERO))).unwrap();
    wire.nodes[0].stack.send(wire.now, client, b"last words").unwrap();
    wire.flush();
    wire.nodes[0].stack.close(wire.now, client);
    wire.run(Duration::from_micros(200));
    let mut buffer = [0; 64];
    assert_eq!(wire.nodes[1].stack.recv(server, &mut buffer), Ok(10));
    assert_eq!(wire.nodes[1].stack.recv(server, &mut buffer), Err(Error::ConnectionReset));
}

#[test]
fn a_syn_inside_a_connection_is_challenged_once_a_second_and_changes_nothing() {
    let mut wire = Wire::new(1_500);
    let (client, server, last) = used_connection(&mut wire);
    let path = wire.nodes[1].path;
    let before = wire.sent[1];
    for shift in [0, 5, -5, 1_000_000, i32::MIN] {
        let result = wire.nodes[1].stack.handle_packet(wire.now, path, &forged(&last, SYN, shift));
        assert_eq!(result, Err(DropReason::OutOfWindow), "{shift}");
    }
    wire.flush();
    assert_eq!(wire.sent[1], before + 1, "challenges are rationed");
    let challenge = last_of(&wire, 1);
    assert_eq!(number(&challenge, 28), number(&forged(&last, 0, 0), 24), "it names what is expected");
    assert_ne!(u16::from_be_bytes([challenge[34], challenge[35]]), 0, "its window is the real one");
    wire.run(2 * SECOND);
    let _ = wire.nodes[1].stack.handle_packet(wire.now, path, &forged(&last, SYN, 0));
    wire.flush();
    assert_eq!(wire.sent[1], before + 2);
    let data = pattern(50_000);
    assert_eq!(wire.transfer((0, client), (1, server), &data, 10 * SECOND), data);
    assert_eq!(wire.transfer((1, server), (0, client), &data, 10 * SECOND), data);
}

/// A connection whose server never reads, with as much written as fits.
fn stuffed(wire: &mut Wire) -> SocketId {
    let (client, _) = wire.pair();
    let data = pattern(500_000);
    while wire.nodes[0].stack.send(wire.now, client, &data).is_ok() {
        wire.settle();
    }
    wire.settle();
    client
}

#[test]
fn an_orphan_whose_peer_never_reads_is_given_up() {
    let mut wire = Wire::new(1_500);
    let client = stuffed(&mut wire);
    wire.nodes[0].stack.close(wire.now, client);
    wire.run(900 * SECOND);
    assert_eq!(wire.nodes[0].stack.orphan_count(), 1);
    wire.run(30 * SECOND);
    assert_eq!(wire.nodes[0].stack.orphan_count(), 0);
}

#[test]
fn a_program_waits_for_a_slow_reader_unless_it_has_set_a_user_timeout() {
    let mut wire = Wire::new(1_500);
    let client = stuffed(&mut wire);
    wire.run(7_200 * SECOND);
    assert_eq!(state(&wire, 0, client), State::Established);
    let mut wire = Wire::new(1_500);
    let client = stuffed(&mut wire);
    wire.nodes[0].stack.set_option(client, SocketOption::UserTimeout(Some(30 * SECOND))).unwrap();
    wire.run(200 * SECOND);
    assert_eq!(wire.nodes[0].stack.take_error(client), Ok(Some(Error::TimedOut)));
}
