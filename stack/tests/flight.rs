//! What is in flight is repeated until it is acknowledged.

mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use unisockets_stack::{Class, SocketOption};
use wire::{Wire, pattern};

/// Bytes of the smallest receive buffer, and of a full segment on this wire.
const BUFFER: usize = 4_096;
const SEGMENT: usize = 1_460;
const HEADERS: usize = 40;

/// The engine repeated a lost segment in full into a window that had less room. What did not fit was never sent again
/// once the window had opened, and the transfer stood still until its timeout.
#[test]
fn what_did_not_fit_into_a_window_is_sent_again_when_it_opens() {
    let mut wire = Wire::new(SEGMENT + HEADERS);
    let listener = wire.listen(1, 80, 8);
    wire.nodes[1].stack.set_option(listener, SocketOption::ReceiveBuffer(BUFFER)).unwrap();
    let to = SocketAddr::new(wire.nodes[1].v4, 80);
    let client = wire.start(0, to);
    wire.settle();
    let (server, _) = wire.nodes[1].stack.accept(wire.now, listener).unwrap();

    // The last piece of a full window is lost.
    wire.lose = |from, _, packet| from == 0 && packet.len() == BUFFER % SEGMENT + HEADERS;
    let data = pattern(BUFFER + 1_000);
    assert_eq!(wire.nodes[0].stack.send(wire.now, client, &data), Ok(data.len()));
    wire.settle();
    assert_eq!(wire.nodes[1].stack.stream_info(server).unwrap().receive_queue, BUFFER - BUFFER % SEGMENT);

    // Old segments come again: each is answered, and three answers are the sign of a loss.
    let old = |(from, _, packet): &&(usize, Class, Vec<u8>)| *from == 0 && packet.len() == SEGMENT + HEADERS;
    let (_, _, old) = wire.log.iter().find(old).unwrap().clone();
    for _ in 0..4 {
        let server = &mut wire.nodes[1];
        let _ = server.stack.handle_packet(wire.now, server.path, &old);
        wire.settle();
    }
    assert_eq!(wire.nodes[1].stack.stream_info(server).unwrap().receive_queue, BUFFER, "the window is shut");
    wire.lose = |_, _, _| false;

    let mut received = Vec::new();
    for _ in 0..5_000 {
        let mut buffer = [0; BUFFER];
        if let Ok(len) = wire.nodes[1].stack.recv(server, &mut buffer) {
            received.extend_from_slice(&buffer[..len]);
        }
        wire.run(Duration::from_millis(1));
    }
    assert_eq!(received.len(), data.len(), "nothing stays behind");
    assert_eq!(received, data);
}
