//! Bytes in flight that the engine has forgotten: it is told that they are lost.
//!
//! The engine repeats a lost segment in full, also where the peer's window has less room. The peer takes what fits and
//! says that its window is shut; the engine then probes instead of waiting for an acknowledgement, and when the window
//! opens it stops probing and waits for nothing. What did not fit would never be sent again.

use crate::flow::FlowId;
use crate::packet::{self, Numbers};
use crate::shard::Stack;
use crate::tcp::State;
use crate::time::Instant;

/// Acknowledgements that tell of a loss (RFC 5681, section 3.2), and one before them that may change the window.
const DUPLICATES: usize = 1 + 3;

impl Stack {
    /// Has a connection repeat what is in flight if nothing else will make it: there are bytes to be acknowledged, and
    /// the engine has no timer.
    pub(crate) fn remind(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let open = matches!(
            flow.state,
            State::Established | State::CloseWait | State::FinWait1 | State::Closing | State::LastAck
        );
        let (Some(sequence), Some(acknowledgement)) = (flow.receive_next, flow.acknowledged.newest()) else {
            return;
        };
        let Some(path) = self.paths.get(flow.path).filter(|_| open && flow.connection.send_queue() > 0) else {
            return;
        };
        let (wire, clock) = (flow.wire(path.wire), flow.clock(now));
        let numbers = Numbers { sequence, acknowledgement, window: flow.window_heard };
        let duplicate = packet::acknowledgement(flow.tuple.remote, flow.tuple.local, numbers);
        let mut reply = Vec::new();
        for _ in 0..DUPLICATES {
            flow.connection.take_in(&mut self.engine, wire, clock, &duplicate, &mut reply);
            reply.clear();
        }
        if flow.connection.poll_at(&mut self.engine, wire, clock).is_some() {
            self.mark_dirty(id);
        }
    }
}
