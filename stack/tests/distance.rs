//! The buffers of a connection are as long as the way to its peer asks for.

mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use unisockets_stack::{Error, PathConfig, SocketId, SocketOption};
use wire::Wire;

const NEAR: usize = 1 << 20;
const FAR: usize = 4 << 20;
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// Two nodes that are far apart, and may know it.
fn far_apart(known: bool) -> Wire {
    let mut wire = Wire::new(9_000);
    wire.delay = ROUND_TRIP / 2;
    for node in wire.nodes.iter_mut().filter(|_| known) {
        node.stack.set_round_trip(node.path, ROUND_TRIP);
    }
    wire
}

/// Connects node 0 to a listener of node 1.
fn pair(wire: &mut Wire, listener: SocketId) -> (SocketId, SocketId) {
    let client = wire.start(0, SocketAddr::new(wire.nodes[1].v4, 80));
    wire.run(3 * ROUND_TRIP);
    let (server, _) = wire.nodes[1].stack.accept(wire.now, listener).unwrap();
    (client, server)
}

/// The receive and the send buffer, in bytes.
fn buffers(wire: &Wire, node: usize, socket: SocketId) -> (usize, usize) {
    let options = wire.nodes[node].stack.options(socket).unwrap();
    (options.receive_buffer, options.send_buffer)
}

#[test]
fn a_far_peer_gets_long_buffers_and_speed() {
    let data = wire::pattern(32 << 20);
    let [blind, told] = [false, true].map(|known| {
        let mut wire = far_apart(known);
        let listener = wire.listen(1, 80, 8);
        let (client, server) = pair(&mut wire, listener);
        let long = if known { FAR } else { NEAR };
        assert_eq!(buffers(&wire, 0, client), (long, long));
        assert_eq!(buffers(&wire, 1, server), (long, long));
        let started = wire.now;
        let got = wire.transfer((0, client), (1, server), &data, Duration::from_secs(10));
        assert!(got == data, "every byte");
        wire.now.saturating_since(started)
    });
    // Virtual time: the link carries whatever the window lets out.
    assert!(3 * told < blind, "{told:?} against {blind:?}");
}

#[test]
fn buffers_follow_the_round_trip() {
    for (ms, long) in [(0, NEAR), (4, NEAR), (6, 3 << 19), (8, 2 << 20), (16, FAR), (60_000, FAR)] {
        let mut wire = Wire::new(9_000);
        let (path, listener) = (wire.nodes[0].path, wire.listen(1, 80, 8));
        wire.nodes[0].stack.set_round_trip(path, Duration::from_millis(ms));
        let (client, server) = pair(&mut wire, listener);
        assert_eq!(buffers(&wire, 0, client), (long, long), "{ms} ms");
        assert_eq!(buffers(&wire, 1, server), (NEAR, NEAR), "nobody has told the other end");
    }
}

/// Many connections share the link: were all of them long, they would use up what the peer may have.
#[test]
fn only_the_first_connections_of_a_peer_are_long() {
    let mut wire = far_apart(true);
    let listener = wire.listen(1, 80, 16);
    let mut long = Vec::new();
    for _ in 0..6 {
        let (client, server) = pair(&mut wire, listener);
        long.push((buffers(&wire, 0, client).0 == FAR, buffers(&wire, 1, server).0 == FAR));
    }
    assert_eq!(long, [true, true, true, false, false, false].map(|long| (long, long)));
}

#[test]
fn what_a_program_has_chosen_stays() {
    let mut wire = far_apart(true);
    let listener = wire.listen(1, 80, 8);
    wire.nodes[1].stack.set_option(listener, SocketOption::ReceiveBuffer(NEAR)).unwrap();
    wire.nodes[1].stack.set_option(listener, SocketOption::SendBuffer(8_192)).unwrap();
    let (client, server) = pair(&mut wire, listener);
    assert_eq!(buffers(&wire, 1, server), (NEAR, 8_192));
    assert_eq!(buffers(&wire, 0, client), (FAR, FAR));
}

/// A program connects before there is a link, whose distance nobody knows yet.
#[test]
fn a_connection_that_waits_for_its_path_is_fitted_when_it_is_there() {
    let mut wire = Wire::new(9_000);
    wire.delay = ROUND_TRIP / 2;
    let listener = wire.listen(1, 80, 16);
    let config = PathConfig { mtu: 9_000, verify_checksums: true };
    let (now, address) = (wire.now, "10.80.0.9".parse().unwrap());
    let to = SocketAddr::new(address, 80);
    let clients = [(); 6].map(|()| wire.start(0, to));
    for client in clients {
        assert_eq!(buffers(&wire, 0, client), (NEAR, NEAR));
    }
    wire.nodes[1].stack.set_addresses(&[address, wire.nodes[1].v4], &[]);
    let stack = &mut wire.nodes[0].stack;
    // First the peer is found, then there is a link to it.
    let path = stack.open_path(config).unwrap();
    stack.add_route(now, address, path);
    stack.set_round_trip(path, ROUND_TRIP);
    stack.path_up(now, path, config);
    let fitted = clients.map(|client| buffers(&wire, 0, client).0 == FAR);
    assert_eq!(fitted, [true, true, true, false, false, false]);
    wire.nodes[0].path = path;
    wire.run(3 * ROUND_TRIP);
    let mut data = [0; 5];
    for client in clients {
        assert_eq!(wire.nodes[0].stack.send(wire.now, client, b"hello"), Ok(5));
        let (server, _) = wire.nodes[1].stack.accept(wire.now, listener).unwrap();
        wire.run(ROUND_TRIP);
        assert_eq!(wire.nodes[1].stack.recv(server, &mut data), Ok(5));
        for (node, socket) in [(0, client), (1, server)] {
            wire.nodes[node].stack.close(wire.now, socket);
        }
    }
    wire.run(Duration::from_secs(62));
    assert_eq!(wire.nodes[0].stack.committed_bytes(), 0, "what was exchanged is accounted for");
    // One that comes to a peer already linked is fitted at once.
    let late = "10.80.0.10".parse().unwrap();
    let client = wire.start(0, SocketAddr::new(late, 80));
    wire.nodes[0].stack.add_route(wire.now, late, path);
    assert_eq!(buffers(&wire, 0, client), (FAR, FAR));
    assert_eq!(wire.nodes[0].stack.take_error(client), Ok(None));
    assert_eq!(wire.nodes[0].stack.recv(client, &mut data), Err(Error::Again));
}
