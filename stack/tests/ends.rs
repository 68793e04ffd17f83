//! How connections end when the last packets meet the worst moment.

mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use unisockets_stack::{Error, PathEnd, Shutdown, State};
use wire::{Wire, pattern};

/// A peer's FIN with data, taken in FIN-WAIT-2, was never acknowledged: TIME-WAIT had no timer for the delayed
/// acknowledgement, and its record kept an old number.
#[test]
fn the_last_bytes_and_their_fin_are_acknowledged_in_time_wait() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.nodes[0].stack.shutdown(wire.now, client, Shutdown::Write).unwrap();
    wire.settle();
    wire.nodes[1].stack.send(wire.now, server, b"the last bytes").unwrap();
    wire.nodes[1].stack.close(wire.now, server);
    wire.run(Duration::from_millis(100));
    assert_eq!(wire.nodes[1].stack.connection_count(), 0);
}

/// The engine's own TIME-WAIT cleared what the program had not read after 10 seconds.
#[test]
fn what_is_read_long_after_both_fins_is_there() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    let data = pattern(200_000);
    wire.nodes[0].stack.shutdown(wire.now, client, Shutdown::Write).unwrap();
    wire.settle();
    assert_eq!(wire.nodes[1].stack.send(wire.now, server, &data), Ok(data.len()));
    wire.nodes[1].stack.close(wire.now, server);
    wire.run(Duration::from_secs(2));
    let mut received = vec![0; 1_000];
    assert_eq!(wire.nodes[0].stack.recv(client, &mut received), Ok(1_000));
    wire.run(Duration::from_secs(12));
    let mut buffer = [0; 1_000];
    while let Ok(len @ 1..) = wire.nodes[0].stack.recv(client, &mut buffer) {
        received.extend_from_slice(&buffer[..len]);
        wire.settle();
    }
    assert!(received == data, "{} of {} bytes", received.len(), data.len());
}

/// The same with both FINs lost: each side's acknowledgements were one ahead of what the other expected, and both
/// waited for a quarter of an hour.
#[test]
fn two_lost_fins_are_repeated_after_duplicate_acknowledgements() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.transfer((0, client), (1, server), b"hello", Duration::from_secs(1));
    wire.transfer((1, server), (0, client), b"hello", Duration::from_secs(1));
    wire.settle();
    wire.lose = |_, _, bytes| bytes[33] & 1 == 1;
    wire.nodes[0].stack.shutdown(wire.now, client, Shutdown::Write).unwrap();
    wire.nodes[1].stack.shutdown(wire.now, server, Shutdown::Write).unwrap();
    wire.flush();
    // What each would say if asked again: all but the other's FIN, after its own.
    let said = |from: usize| {
        let (_, _, fin) = wire.log.iter().rev().find(|(sender, _, bytes)| *sender == from && bytes[33] & 1 == 1)?;
        Some(wire::bare_after(fin))
    };
    let (client_said, server_said) = (said(0).unwrap(), said(1).unwrap());
    for (side, packet) in [(0, server_said), (1, client_said)] {
        let path = wire.nodes[side].path;
        for _ in 0..5 {
            wire.nodes[side].stack.handle_packet(wire.now, path, &packet).unwrap();
            wire.flush();
        }
    }
    wire.lose = |_, _, _| false;
    wire.run(Duration::from_secs(10));
    assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().state, State::TimeWait);
}

/// Three duplicate acknowledgements made the engine forget the timer of a FIN that was lost.
#[test]
fn a_lost_fin_is_repeated_after_duplicate_acknowledgements() {
    static LOST: AtomicBool = AtomicBool::new(false);
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.transfer((0, client), (1, server), b"hello", Duration::from_secs(1));
    wire.settle();
    let acknowledgement = wire.log.iter().rev().find(|(from, _, _)| *from == 1).unwrap().2.clone();
    wire.lose = |from, _, bytes| from == 0 && bytes[33] & 1 == 1 && !LOST.swap(true, Ordering::Relaxed);
    wire.nodes[0].stack.shutdown(wire.now, client, Shutdown::Write).unwrap();
    wire.settle();
    assert!(LOST.load(Ordering::Relaxed));
    let path = wire.nodes[0].path;
    for _ in 0..5 {
        wire.nodes[0].stack.handle_packet(wire.now, path, &acknowledgement).unwrap();
        wire.flush();
    }
    wire.run(Duration::from_secs(10));
    assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().state, State::FinWait2);
}

/// A peer that closed and left at once made a program that had all its data see an error instead of the end.
#[test]
fn what_has_come_to_its_end_is_read_to_its_end_when_the_peer_leaves() {
    for (end, error) in [(PathEnd::Reset, Error::ConnectionReset), (PathEnd::Unreachable, Error::HostUnreachable)] {
        let mut wire = Wire::new(1_500);
        let (client, server) = wire.pair();
        wire.nodes[1].stack.send(wire.now, server, b"answer").unwrap();
        wire.nodes[1].stack.shutdown(wire.now, server, Shutdown::Write).unwrap();
        wire.settle();
        let path = wire.nodes[0].path;
        wire.nodes[0].stack.end_path(wire.now, path, end);
        let mut buffer = [0; 10];
        assert_eq!(wire.nodes[0].stack.recv(client, &mut buffer), Ok(6));
        assert_eq!(wire.nodes[0].stack.recv(client, &mut buffer), Ok(0));
        // Whoever still writes learns what happened.
        assert_eq!(wire.nodes[0].stack.send(wire.now, client, b"more"), Err(error));
    }
}

/// In LAST-ACK a window that opened again was not believed: who had ended its own side first, and read late, waited for
/// the next probe, and for ever where the probe lay behind a hole.
#[test]
fn a_window_that_opens_in_last_ack_is_believed() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.nodes[0].stack.shutdown(wire.now, client, Shutdown::Write).unwrap();
    wire.settle();
    let data = pattern(4 << 20);
    let mut sent = 0;
    while let Ok(len) = wire.nodes[1].stack.send(wire.now, server, &data[sent..]) {
        sent += len;
        wire.run(Duration::from_millis(50));
    }
    assert_eq!(wire.nodes[1].stack.stream_info(server).unwrap().state, State::CloseWait);
    wire.nodes[1].stack.close(wire.now, server);
    wire.run(Duration::from_millis(50));
    let began = wire.now;
    let (mut received, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    loop {
        match wire.nodes[0].stack.recv(client, &mut buffer) {
            Ok(0) => break,
            Ok(len) => received.extend_from_slice(&buffer[..len]),
            Err(Error::Again) => wire.run(Duration::from_millis(1)),
            Err(error) => panic!("recv: {error}"),
        }
        assert!(wire.now.saturating_since(began) < Duration::from_millis(200), "{} of {sent}", received.len());
    }
    assert!(sent > 1 << 20 && received == data[..sent], "{} of {sent}", received.len());
    wire.run(Duration::from_millis(100));
    assert_eq!(wire.nodes[1].stack.connection_count(), 0, "and its end is acknowledged");
}

/// A node that leaves takes no more bytes, delivers what it took, and ends nothing that its program has not ended.
#[test]
fn what_was_written_is_delivered_before_a_node_leaves_and_nothing_is_ended_for_the_program() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    let now = wire.now;
    let data = pattern(100_000);
    assert_eq!(wire.nodes[0].stack.send(now, client, &data), Ok(data.len()));
    wire.nodes[0].stack.finish();
    assert_eq!(wire.nodes[0].stack.undelivered_count(), 1);
    assert_eq!(wire.nodes[0].stack.send(now, client, b"more"), Err(Error::BrokenPipe));
    wire.settle();
    assert_eq!(wire.nodes[0].stack.undelivered_count(), 0);
    let mut got = vec![0; 200_000];
    assert_eq!(wire.nodes[1].stack.recv(server, &mut got), Ok(data.len()));
    assert!(got[..data.len()] == data);
    assert_eq!(wire.nodes[1].stack.recv(server, &mut got), Err(Error::Again), "no end");
}

/// A peer that was given another address: connections with the one before are over, and it leads nowhere.
#[test]
fn an_address_that_a_peer_had_leads_to_it_no_more() {
    let mut wire = Wire::new(1_500);
    let (v4, v6) = (wire.nodes[1].v4, wire.nodes[1].v6);
    wire.listen(1, 80, 8);
    let [old, other] = [v4, v6].map(|ip| wire.start(0, (ip, 80).into()));
    wire.settle();
    let (now, path) = (wire.now, wire.nodes[0].path);
    let stack = &mut wire.nodes[0].stack;
    stack.remove_route(now, v4, path);
    assert_eq!((stack.route(v4), stack.route(v6)), (None, Some(path)));
    assert_eq!(stack.send(now, old, b"x"), Err(Error::ConnectionReset));
    assert_eq!(stack.send(now, other, b"x"), Ok(1));
}
