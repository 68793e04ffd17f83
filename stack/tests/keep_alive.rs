//! Idle connections are probed, and their counters tell what was measured.

mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use unisockets_stack::{Error, Readiness, SocketId, SocketOption};
use wire::{Wire, pattern};

const SECOND: Duration = Duration::from_secs(1);

/// A connection whose client probes after 10 s, then every 3 s, and gives up after 4 probes.
fn probing() -> (Wire, SocketId, SocketId) {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    let stack = &mut wire.nodes[0].stack;
    for option in [
        SocketOption::KeepIdle(10 * SECOND),
        SocketOption::KeepInterval(3 * SECOND),
        SocketOption::KeepCount(4),
        SocketOption::KeepAlive(true),
    ] {
        stack.set_option(client, option).unwrap();
    }
    wire.settle();
    (wire, client, server)
}

#[test]
fn a_peer_that_answers_is_probed_once_in_the_idle_time() {
    let (mut wire, client, server) = probing();
    let before = wire.sent;
    wire.run(9 * SECOND);
    assert_eq!(wire.sent, before, "an idle connection is quiet until the idle time is over");
    wire.run(92 * SECOND);
    assert_eq!([wire.sent[0] - before[0], wire.sent[1] - before[1]], [10, 10]);
    assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().probes, 0);
    // A probe is no data, and what follows is whole.
    let data = pattern(10_000);
    assert_eq!(wire.transfer((0, client), (1, server), &data, SECOND), data);
    assert_eq!(wire.transfer((1, server), (0, client), &data, SECOND), data);
}

#[test]
fn a_dead_peer_is_given_up_after_the_last_probe() {
    let (mut wire, client, _server) = probing();
    wire.lose = |_, _, _| true;
    let before = wire.sent[0];
    wire.run(10 * SECOND + 3 * 3 * SECOND + SECOND);
    assert_eq!(wire.sent[0] - before, 4);
    assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().probes, 4);
    assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Err(Error::Again));
    wire.run(3 * SECOND);
    assert!(wire.nodes[0].stack.readiness(client).contains(Readiness::ERROR | Readiness::HANG_UP));
    assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Err(Error::TimedOut));
    assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Ok(0));
}

#[test]
fn the_user_timeout_takes_the_place_of_the_count_of_probes() {
    let (mut wire, client, _server) = probing();
    wire.nodes[0].stack.set_option(client, SocketOption::UserTimeout(Some(40 * SECOND))).unwrap();
    wire.lose = |_, _, _| true;
    wire.run(39 * SECOND);
    assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Err(Error::Again));
    wire.run(5 * SECOND);
    assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Err(Error::TimedOut));
}

/// A peer that had restarted without a word left its connections behind for ever.
#[test]
fn a_peer_that_knows_nothing_of_the_connection_ends_it_with_a_reset() {
    let (mut wire, client, server) = probing();
    wire.lose = |from, _, _| from == 1;
    wire.nodes[1].stack.set_option(server, SocketOption::Linger(Some(Duration::ZERO))).unwrap();
    wire.nodes[1].stack.close(wire.now, server);
    wire.settle();
    wire.lose = |_, _, _| false;
    wire.run(11 * SECOND);
    assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Err(Error::ConnectionReset));
}

#[test]
fn only_times_and_counts_of_tcp_7_are_taken() {
    let mut wire = Wire::new(1_500);
    let (client, _server) = wire.pair();
    for option in [
        SocketOption::KeepIdle(Duration::ZERO),
        SocketOption::KeepInterval(32_768 * SECOND),
        SocketOption::KeepCount(0),
        SocketOption::KeepCount(128),
    ] {
        assert_eq!(wire.nodes[0].stack.set_option(client, option), Err(Error::Invalid), "{option:?}");
    }
}

#[test]
fn the_round_trip_and_what_was_repeated_are_counted() {
    let mut wire = Wire::new(1_500);
    wire.delay = Duration::from_millis(25);
    let listener = wire.listen(1, 80, 1);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let client = wire.start(0, to);
    wire.run(SECOND);
    let (server, _) = wire.nodes[1].stack.accept(wire.now, listener).unwrap();
    let info = wire.nodes[0].stack.stream_info(client).unwrap();
    assert_eq!(info.round_trip.unwrap().least, Duration::from_millis(50));
    assert_eq!((info.resent_segments, info.mtu), (0, 1_500));

    wire.lose = |from, number, _| from == 0 && number == 4;
    let data = pattern(20_000);
    assert_eq!(wire.transfer((0, client), (1, server), &data, 20 * SECOND), data);
    wire.run(SECOND);
    let info = wire.nodes[0].stack.stream_info(client).unwrap();
    assert!(info.resent_segments > 0 && info.resent_bytes > 0 && info.retries == 0, "{info:?}");
    assert_eq!(info.sent_bytes - info.resent_bytes, 20_000);
    let peer = wire.nodes[1].stack.stream_info(server).unwrap();
    assert_eq!(peer.received_bytes, 20_000);
}
