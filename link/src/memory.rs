//! A link inside one process: what one end queues, its owner takes out and hands to the other end.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

use crate::lanes::{Lane, Lanes};
use crate::signal::Signal;
use crate::{Counters, Full, Link, Room, Route};

#[derive(Default)]
struct State {
    lanes: Lanes,
    counters: Counters,
    closed: bool,
}

/// One end of a link that somebody else pumps: a simulation, or a test.
#[derive(Default)]
pub struct MemoryLink {
    state: Mutex<State>,
}

impl MemoryLink {
    /// Makes an end with empty queues.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next message to be carried to the other end.
    pub fn take(&self) -> Option<(Lane, BytesMut)> {
        self.lock().lanes.pop(|_| true)
    }

    /// Returns once whether there is room again after somebody found none.
    pub fn take_writable(&self) -> bool {
        self.lock().lanes.take_writable()
    }

    /// Returns whether the owner has closed this end.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

impl Link for MemoryLink {
    fn room(&self) -> Room {
        self.lock().lanes.room()
    }

    fn send(&self, lane: Lane, packet: &[u8]) -> Result<(), Full> {
        let mut state = self.lock();
        state.lanes.push(lane, packet)?;
        state.counters.sent_packets += 1;
        state.counters.sent_bytes += packet.len() as u64;
        Ok(())
    }

    fn send_control(&self, message: &[u8]) -> Result<(), Full> {
        self.lock().lanes.push(Lane::Control, message)
    }

    fn handle_signal(&self, _: Signal) {}

    fn counters(&self) -> Counters {
        self.lock().counters
    }

    fn round_trip_us(&self) -> Option<u64> {
        None
    }

    fn route(&self) -> Option<Route> {
        Some(Route::Direct)
    }

    /// Whoever pumps the link knows whether its peer is there.
    fn doubt(&self) {}

    fn close(&self) {
        self.lock().closed = true;
    }
}
