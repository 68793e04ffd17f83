//! What a program may rely on of TCP, on a virtual wire and clock.

mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use unisockets_stack::{
    Class, Error, Event, Family, Kind, PathConfig, PathEnd, Readiness, Shutdown, SocketOption, State,
};
use wire::{Wire, pattern};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn bytes_arrive_in_order_both_ways_at_every_mtu() {
    for mtu in [1_280, 1_500, 9_000, 16_384, 65_535] {
        let mut wire = Wire::new(mtu);
        let (client, server) = wire.pair();
        let data = pattern(3_000_000);
        assert_eq!(wire.transfer((0, client), (1, server), &data, 60 * SECOND), data);
        assert_eq!(wire.transfer((1, server), (0, client), &data, 60 * SECOND), data);
        assert!(wire.log.iter().all(|(_, _, packet)| packet.len() <= mtu));
    }
}

#[test]
fn loss_delays_but_does_not_damage() {
    let mut wire = Wire::new(1_500);
    wire.lose = |_, number, _| number % 50 == 0;
    let (client, server) = wire.pair();
    let data = pattern(500_000);
    assert_eq!(wire.transfer((0, client), (1, server), &data, 600 * SECOND), data);
}

#[test]
fn connect_to_a_closed_port_is_refused() {
    let mut wire = Wire::new(1_500);
    let to = SocketAddr::new(wire.nodes[1].v6, 81);
    let socket = wire.start(0, to);
    wire.settle();
    assert!(wire.nodes[0].stack.readiness(socket).contains(Readiness::ERROR | Readiness::WRITABLE));
    assert_eq!(wire.nodes[0].stack.take_error(socket), Ok(Some(Error::ConnectionRefused)));
    assert_eq!(wire.nodes[0].stack.send(wire.now, socket, b"x"), Err(Error::BrokenPipe));
}

#[test]
fn connect_without_an_answer_times_out_after_two_minutes() {
    let mut wire = Wire::new(1_500);
    wire.lose = |_, _, _| true;
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let socket = wire.start(0, to);
    wire.run(126 * SECOND);
    assert_eq!(wire.nodes[0].stack.take_error(socket), Ok(None));
    wire.run(2 * SECOND);
    assert_eq!(wire.nodes[0].stack.take_error(socket), Ok(Some(Error::TimedOut)));
}

#[test]
fn accept_returns_again_when_the_backlog_is_empty() {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 4);
    assert_eq!(wire.nodes[1].stack.accept(wire.now, listener), Err(Error::Again));
}

#[test]
fn a_burst_of_a_thousand_syns_gives_a_thousand_connections_without_a_reset() {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 1_024);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let small = SocketOption::ReceiveBuffer(4_096);
    let clients: Vec<_> = (0..1_000)
        .map(|_| {
            let stack = &mut wire.nodes[0].stack;
            let socket = stack.socket(Kind::Tcp, Family::V4).unwrap();
            stack.set_option(socket, small).unwrap();
            assert_eq!(stack.connect(wire.now, socket, to), Err(Error::InProgress));
            socket
        })
        .collect();
    wire.settle();
    let mut accepted = 0;
    while wire.nodes[1].stack.accept(wire.now, listener).is_ok() {
        accepted += 1;
    }
    assert_eq!(accepted, 1_000);
    for client in clients {
        assert!(wire.nodes[0].stack.readiness(client).contains(Readiness::WRITABLE));
        assert_eq!(wire.nodes[0].stack.take_error(client), Ok(None));
    }
}

#[test]
fn syns_beyond_the_backlog_wait_and_are_served_when_there_is_a_place() {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 2);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    for _ in 0..4 {
        wire.start(0, to);
    }
    wire.settle();
    for _ in 0..4 {
        wire.nodes[1].stack.accept(wire.now, listener).unwrap();
        wire.settle();
    }
}

#[test]
fn half_close_lets_the_other_direction_go_on() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.nodes[0].stack.shutdown(wire.now, client, Shutdown::Write).unwrap();
    wire.settle();
    let mut buffer = [0; 16];
    assert_eq!(wire.nodes[1].stack.recv(server, &mut buffer), Ok(0));
    assert_eq!(wire.nodes[0].stack.send(wire.now, client, b"x"), Err(Error::BrokenPipe));
    let data = pattern(100_000);
    assert_eq!(wire.transfer((1, server), (0, client), &data, SECOND), data);
    wire.nodes[1].stack.close(wire.now, server);
    wire.settle();
    assert_eq!(wire.nodes[0].stack.recv(client, &mut buffer), Ok(0));
}

#[test]
fn close_delivers_what_was_written_and_leaves_a_time_wait_record() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    let data = pattern(200_000);
    assert_eq!(wire.nodes[0].stack.send(wire.now, client, &data), Ok(data.len()));
    wire.nodes[0].stack.close(wire.now, client);
    assert_eq!(wire.nodes[0].stack.orphan_count(), 1);
    let mut received = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match wire.nodes[1].stack.recv(server, &mut buffer) {
            Ok(0) => break,
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(Error::Again) => wire.run(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(received, data);
    wire.nodes[1].stack.close(wire.now, server);
    wire.settle();
    assert_eq!(wire.nodes[0].stack.connection_count(), 0);
    assert_eq!(wire.nodes[1].stack.connection_count(), 0);
    assert_eq!(wire.nodes[0].stack.orphan_count(), 0);
    assert_eq!(wire.nodes[0].stack.time_wait_count(), 1);
    wire.run(61 * SECOND);
    assert_eq!(wire.nodes[0].stack.time_wait_count(), 0);
    assert_eq!(wire.nodes[0].stack.poll_timeout(), None);
}

#[test]
fn close_with_unread_bytes_resets_and_pending_bytes_are_read_before_the_error() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.nodes[0].stack.send(wire.now, client, b"unread").unwrap();
    wire.nodes[1].stack.send(wire.now, server, b"pending").unwrap();
    wire.settle();
    wire.nodes[1].stack.close(wire.now, server);
    wire.settle();
    let mut buffer = [0; 16];
    assert_eq!(wire.nodes[0].stack.recv(client, &mut buffer), Ok(7));
    assert_eq!(wire.nodes[0].stack.recv(client, &mut buffer), Err(Error::ConnectionReset));
    assert_eq!(wire.nodes[0].stack.recv(client, &mut buffer), Ok(0));
    assert_eq!(wire.nodes[1].stack.connection_count(), 0);
}

#[test]
fn linger_zero_resets_at_close() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.nodes[0].stack.set_option(client, SocketOption::Linger(Some(Duration::ZERO))).unwrap();
    wire.nodes[0].stack.close(wire.now, client);
    wire.settle();
    assert_eq!(wire.nodes[1].stack.recv(server, &mut [0; 4]), Err(Error::ConnectionReset));
}

#[test]
fn a_slow_reader_stops_the_sender_and_reading_resumes_it() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    let data = pattern(8 << 20);
    let mut sent = 0;
    for _ in 0..200 {
        match wire.nodes[0].stack.send(wire.now, client, &data[sent..]) {
            Ok(n) => sent += n,
            Err(Error::Again) => {}
            Err(error) => panic!("{error}"),
        }
        wire.run(Duration::from_millis(20));
    }
    let info = wire.nodes[1].stack.stream_info(server).unwrap();
    assert!(sent < data.len(), "the send buffer must fill");
    assert!(info.receive_queue <= 1 << 20);
    assert!(!wire.nodes[0].stack.readiness(client).contains(Readiness::WRITABLE));
    let rest = wire.transfer((0, client), (1, server), &data[sent..], 120 * SECOND);
    assert!(rest.len() >= data.len() - sent);
}

#[test]
fn connections_survive_a_lost_path_and_resume_at_once() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    let data = pattern(2 << 20);
    wire.nodes[0].stack.send(wire.now, client, &data[..100_000]).unwrap();
    wire.flush();
    for node in &mut wire.nodes {
        node.stack.path_lost(node.path);
    }
    wire.run(31 * SECOND);
    let config = PathConfig { mtu: 9_000, verify_checksums: true };
    let now = wire.now;
    for node in &mut wire.nodes {
        node.stack.path_up(now, node.path, config);
    }
    wire.run(Duration::from_millis(20));
    let arrived = wire.nodes[1].stack.stream_info(server).unwrap().receive_queue;
    assert_eq!(arrived, 100_000, "all that was queued arrives within 20 ms, not after a backed-off timer");
}

#[test]
fn the_end_of_a_path_ends_its_connections_with_its_reason() {
    for (end, error) in [(PathEnd::Reset, Error::ConnectionReset), (PathEnd::Unreachable, Error::HostUnreachable)] {
        let mut wire = Wire::new(1_500);
        let (client, _) = wire.pair();
        let path = wire.nodes[0].path;
        wire.nodes[0].stack.end_path(wire.now, path, end);
        assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Err(error));
        wire.nodes[0].stack.close(wire.now, client);
        assert_eq!(wire.nodes[0].stack.connection_count(), 0);
    }
}

#[test]
fn an_unknown_address_of_the_network_asks_for_a_path_and_an_unreachable_one_fails() {
    let mut wire = Wire::new(1_500);
    let to: SocketAddr = "10.80.9.9:80".parse().unwrap();
    let socket = wire.start(0, to);
    let wanted = wire.events(0);
    let Some(Event::PathWanted { path, destination }) = wanted.first().copied() else {
        panic!("{wanted:?}");
    };
    assert_eq!(destination, to.ip());
    wire.nodes[0].stack.end_path(wire.now, path, PathEnd::Unreachable);
    assert_eq!(wire.nodes[0].stack.take_error(socket), Ok(Some(Error::HostUnreachable)));
    let other = wire.nodes[0].stack.socket(Kind::Tcp, Family::V4).unwrap();
    let outside = "192.0.2.1:80".parse().unwrap();
    assert_eq!(wire.nodes[0].stack.connect(wire.now, other, outside), Err(Error::NetworkUnreachable));
}

#[test]
fn a_pending_path_that_turns_out_to_be_a_known_peer_moves_its_connections() {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 8);
    let alias = "10.80.3.3".parse().unwrap();
    let now = wire.now;
    wire.nodes[1].stack.set_addresses(&[wire.nodes[1].v4, alias], &[]);
    let client = wire.start(0, SocketAddr::new(alias, 80));
    wire.settle();
    let path = wire.nodes[0].path;
    wire.nodes[0].stack.add_route(now, alias, path);
    wire.nodes[1].stack.add_route(now, wire.nodes[0].v4, wire.nodes[1].path);
    wire.run(2 * SECOND);
    assert!(wire.nodes[1].stack.accept(wire.now, listener).is_ok());
    assert!(wire.nodes[0].stack.readiness(client).contains(Readiness::WRITABLE));
}

#[test]
fn loopback_carries_tcp_within_a_node() {
    for address in ["127.0.0.1:80", "[::1]:80", "10.80.0.1:80", "127.9.9.9:80"] {
        let mut wire = Wire::new(1_500);
        let listener = wire.listen(0, 80, 8);
        let client = wire.start(0, address.parse().unwrap());
        wire.settle();
        let (server, _) = wire.nodes[0].stack.accept(wire.now, listener).unwrap();
        let data = pattern(1 << 20);
        assert_eq!(wire.transfer((0, client), (0, server), &data, SECOND), data);
        assert_eq!(wire.sent, [0, 0]);
    }
}

#[test]
fn two_listeners_cannot_share_a_port_and_a_closed_one_frees_it() {
    let mut wire = Wire::new(1_500);
    let first = wire.listen(0, 80, 8);
    let stack = &mut wire.nodes[0].stack;
    let second = stack.socket(Kind::Tcp, Family::V4).unwrap();
    assert_eq!(stack.bind(second, "0.0.0.0:80".parse().unwrap()), Err(Error::AddressInUse));
    stack.close(wire.now, first);
    assert!(stack.bind(second, "0.0.0.0:80".parse().unwrap()).is_ok());
    let third = stack.socket(Kind::Tcp, Family::V4).unwrap();
    assert_eq!(stack.bind(third, "10.80.0.77:81".parse().unwrap()), Err(Error::AddressNotAvailable));
    assert_eq!(stack.bind(third, "[::1]:81".parse().unwrap()), Err(Error::AddressFamily));
}

#[test]
fn a_v6_only_listener_takes_no_v4() {
    let mut wire = Wire::new(1_500);
    let stack = &mut wire.nodes[1].stack;
    let socket = stack.socket(Kind::Tcp, Family::V6).unwrap();
    stack.set_option(socket, SocketOption::V6Only(true)).unwrap();
    stack.bind(socket, "[::]:80".parse().unwrap()).unwrap();
    stack.listen(socket, 8).unwrap();
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let client = wire.start(0, to);
    wire.settle();
    assert_eq!(wire.nodes[0].stack.take_error(client), Ok(Some(Error::ConnectionRefused)));
}

#[test]
fn closing_a_listener_resets_connections_that_nobody_accepted() {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 8);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let client = wire.start(0, to);
    wire.settle();
    wire.nodes[1].stack.close(wire.now, listener);
    wire.settle();
    assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Err(Error::ConnectionReset));
    assert_eq!(wire.nodes[1].stack.connection_count(), 0);
}

#[test]
fn an_idle_connection_sends_nothing_and_arms_no_timer() {
    let mut wire = Wire::new(1_500);
    let _pair = wire.pair();
    wire.settle();
    let sent = wire.sent;
    wire.run(3_600 * SECOND);
    assert_eq!(wire.sent, sent);
    assert_eq!(wire.nodes[0].stack.poll_timeout(), None);
}

#[test]
fn unanswered_data_ends_a_connection_at_the_user_timeout() {
    let mut wire = Wire::new(1_500);
    let (client, _) = wire.pair();
    let stack = &mut wire.nodes[0].stack;
    stack.set_option(client, SocketOption::UserTimeout(Some(30 * SECOND))).unwrap();
    wire.lose = |_, _, _| true;
    wire.nodes[0].stack.send(wire.now, client, b"anybody?").unwrap();
    wire.run(29 * SECOND);
    assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Err(Error::Again));
    wire.run(2 * SECOND);
    assert_eq!(wire.nodes[0].stack.recv(client, &mut [0; 4]), Err(Error::TimedOut));
}

#[test]
fn a_flow_changes_to_the_bulk_class_once() {
    let mut wire = Wire::new(16_384);
    let (client, server) = wire.pair();
    wire.transfer((0, client), (1, server), &pattern(1 << 20), SECOND);
    let classes: Vec<Class> = wire.log.iter().filter(|entry| entry.0 == 0).map(|entry| entry.1).collect();
    let change = classes.iter().position(|class| *class == Class::Bulk).unwrap();
    assert!(classes[..change].iter().all(|class| *class == Class::Interactive));
    assert!(classes[change..].iter().all(|class| *class == Class::Bulk));
}

#[test]
fn simultaneous_close_ends_both_sides() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.nodes[0].stack.close(wire.now, client);
    wire.nodes[1].stack.close(wire.now, server);
    wire.run(SECOND);
    assert_eq!((wire.nodes[0].stack.connection_count(), wire.nodes[1].stack.connection_count()), (0, 0));
}

#[test]
fn unread_bytes_survive_time_wait() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.nodes[0].stack.shutdown(wire.now, client, Shutdown::Write).unwrap();
    wire.settle();
    wire.nodes[1].stack.send(wire.now, server, b"late").unwrap();
    wire.nodes[1].stack.close(wire.now, server);
    wire.run(120 * SECOND);
    assert_eq!(wire.nodes[0].stack.stream_info(client).unwrap().state, State::TimeWait);
    let mut buffer = [0; 8];
    assert_eq!(wire.nodes[0].stack.recv(client, &mut buffer), Ok(4));
    assert_eq!(wire.nodes[0].stack.recv(client, &mut buffer), Ok(0));
    wire.nodes[0].stack.close(wire.now, client);
    wire.settle();
    assert_eq!(wire.nodes[0].stack.connection_count(), 0);
}

#[test]
fn an_orphan_whose_peer_never_closes_ends_after_a_minute() {
    let mut wire = Wire::new(1_500);
    let (client, _server) = wire.pair();
    wire.nodes[0].stack.close(wire.now, client);
    wire.run(59 * SECOND);
    assert_eq!(wire.nodes[0].stack.orphan_count(), 1);
    wire.run(2 * SECOND);
    assert_eq!(wire.nodes[0].stack.connection_count(), 0);
}

/// A program that looked for a whole header saw only the part before the turn of the ring, for ever.
#[test]
fn a_look_at_received_bytes_sees_them_all_wherever_the_ring_turns() {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 8);
    wire.nodes[1].stack.set_option(listener, SocketOption::ReceiveBuffer(4_096)).unwrap();
    let client = wire.start(0, SocketAddr::new(wire.nodes[1].v4, 80));
    wire.settle();
    let (server, _) = wire.nodes[1].stack.accept(wire.now, listener).unwrap();
    let data = pattern(100_000);
    let (mut sent, mut received) = (0, Vec::new());
    let until = wire.now + 60 * SECOND;
    while received.len() < data.len() {
        if let Ok(n) = wire.nodes[0].stack.send(wire.now, client, &data[sent..]) {
            sent += n;
        }
        wire.step(until);
        let unread = wire.nodes[1].stack.stream_info(server).unwrap().receive_queue;
        let mut seen = vec![0; unread];
        if unread == 0 {
            continue;
        }
        assert_eq!(wire.nodes[1].stack.peek(server, &mut seen), Ok(unread.min(4_096)));
        let whole = unread.min(4_096);
        assert_eq!(seen[..whole], data[received.len()..received.len() + whole]);
        // Looking again, with a shorter buffer, and reading in odd pieces shows the same bytes.
        let mut short = vec![0; whole.div_ceil(3)];
        assert_eq!(wire.nodes[1].stack.peek(server, &mut short), Ok(short.len()));
        assert_eq!(short, seen[..short.len()]);
        let mut piece = vec![0; whole.div_ceil(2) + 1];
        let n = wire.nodes[1].stack.recv(server, &mut piece).unwrap();
        received.extend_from_slice(&piece[..n]);
    }
    assert_eq!(received, data);
}

#[test]
fn a_low_water_mark_holds_readiness_back_until_enough_has_come_or_no_more_can() {
    let mut wire = Wire::new(1_500);
    let (client, server) = wire.pair();
    wire.nodes[1].stack.set_option(server, SocketOption::ReceiveLowWater(5_000)).unwrap();
    wire.nodes[0].stack.send(wire.now, client, &pattern(4_999)).unwrap();
    wire.settle();
    let mut buffer = vec![0; 8_000];
    assert!(!wire.nodes[1].stack.readiness(server).contains(Readiness::READABLE));
    assert_eq!(wire.nodes[1].stack.recv_at_least(server, &mut buffer, 5_000), Err(Error::Again));
    wire.nodes[0].stack.send(wire.now, client, b"!").unwrap();
    wire.settle();
    assert!(wire.nodes[1].stack.readiness(server).contains(Readiness::READABLE));
    assert_eq!(wire.nodes[1].stack.recv_at_least(server, &mut buffer, 5_000), Ok(5_000));
    wire.nodes[0].stack.send(wire.now, client, b"end").unwrap();
    wire.nodes[0].stack.close(wire.now, client);
    wire.settle();
    assert!(wire.nodes[1].stack.readiness(server).contains(Readiness::READABLE));
    assert_eq!(wire.nodes[1].stack.recv_at_least(server, &mut buffer, 8_000), Ok(3));
    assert_eq!(wire.nodes[1].stack.recv_at_least(server, &mut buffer, 8_000), Ok(0));
}

/// A program called listen again for more room. A SYN that had waited came again and was taken, and then the one that
/// waited was taken too: the second connection took the first one's name, and its peer was reset.
#[test]
fn a_syn_that_waited_and_came_again_makes_one_connection() {
    let mut wire = Wire::new(1_500);
    let listener = wire.listen(1, 80, 1);
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let first = wire.start(0, to);
    wire.settle();
    let second = wire.start(0, to);
    wire.settle();
    wire.nodes[1].stack.listen(listener, 8).unwrap();
    wire.run(Duration::from_millis(1_500));
    let accepted = [(); 2].map(|()| wire.nodes[1].stack.accept(wire.now, listener).unwrap().0);
    wire.settle();
    assert_eq!(wire.nodes[1].stack.connection_count(), 2);
    let data = pattern(5_000);
    for (client, server) in [first, second].into_iter().zip(accepted) {
        assert_eq!(wire.transfer((0, client), (1, server), &data, Duration::from_secs(1)), data);
    }
}

/// SO_REUSEPORT: listeners that share a port share its connections; one that is closed takes its own with it alone.
#[test]
fn listeners_that_share_a_port_share_its_connections() {
    let mut wire = Wire::new(1_500);
    let address = SocketAddr::new(wire.nodes[1].v4, 80);
    let mut listener = || {
        let stack = &mut wire.nodes[1].stack;
        let socket = stack.socket(Kind::Tcp, Family::V4).unwrap();
        stack.set_option(socket, SocketOption::ReusePort(true)).unwrap();
        stack.bind(socket, address).unwrap();
        stack.listen(socket, 64).unwrap();
        socket
    };
    let servers = [listener(), listener()];
    let clients: Vec<_> = (0..40).map(|_| wire.start(0, address)).collect();
    wire.settle();
    let of_second = std::iter::from_fn(|| wire.nodes[1].stack.accept(wire.now, servers[1]).ok()).count();
    assert!((5..=35).contains(&of_second), "{of_second} of 40");
    let now = wire.now;
    wire.nodes[1].stack.close(now, servers[0]);
    wire.settle();
    let lost = clients.iter().filter(|client| wire.nodes[0].stack.recv(**client, &mut [0]) != Err(Error::Again));
    assert_eq!(lost.count(), 40 - of_second, "those of the closed listener are reset, no other");
    let later: Vec<_> = (0..10).map(|_| wire.start(0, address)).collect();
    wire.settle();
    let taken = std::iter::from_fn(|| wire.nodes[1].stack.accept(wire.now, servers[1]).ok()).count();
    assert_eq!(taken, later.len(), "the other has the port alone now");
}
