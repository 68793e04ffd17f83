//! Packets out: answers first, then datagrams, then the flows of a path in turn.

use std::time::Duration;

use crate::flow::{FlowId, Owner};
use crate::limits;
use crate::packet;
use crate::path::{Class, PathId, PathState, Room};
use crate::shard::Stack;
use crate::tcp::State;
use crate::time::Instant;

/// Turns in a row that one call gives to flows which turn out to have nothing to send.
const IDLE_TURNS_MAX: usize = 1_024;

impl Stack {
    /// Appends the next packet of a path to `out` if the link has room for it, and says in which class it
    /// belongs. Call it until it gives nothing.
    ///
    /// A packet is built only when its place is certain, so nothing that was built is thrown away.
    pub fn poll_packet(&mut self, now: Instant, path: PathId, room: Room, out: &mut Vec<u8>) -> Option<Class> {
        let entry = self.paths.get_mut(path)?;
        if entry.state != PathState::Up {
            return None;
        }
        if let Some((class, bytes)) = entry.replies.front() {
            let free = if *class == Class::Datagram { room.datagram } else { room.stream };
            if free >= bytes.len() {
                let class = *class;
                out.extend_from_slice(bytes);
                entry.replies.pop_front();
                return Some(class);
            }
        }
        if let Some(bytes) = entry.datagrams.front()
            && room.datagram >= bytes.len()
        {
            out.extend_from_slice(bytes);
            entry.datagram_bytes -= bytes.len();
            entry.datagrams.pop_front();
            if entry.is_writable() {
                self.wake_waiters(path);
            }
            return Some(Class::Datagram);
        }
        if room.stream < entry.wire.mtu {
            return None;
        }
        for _ in 0..IDLE_TURNS_MAX {
            let id = *self.paths.get(path)?.dirty.front()?;
            if let Some(class) = self.serve(now, path, id, out) {
                return Some(class);
            }
        }
        // More flows than one call serves: the path asks for another turn.
        self.queue_path(path);
        None
    }

    /// Gives the first flow of a path its turn.
    fn serve(&mut self, now: Instant, path: PathId, id: FlowId, out: &mut Vec<u8>) -> Option<Class> {
        let entry = self.paths.get_mut(path)?;
        let path_wire = entry.wire;
        let Some(flow) = self.flows.get_mut(id).filter(|flow| flow.path == path && flow.dirty) else {
            entry.dirty.pop_front();
            return None;
        };
        let start = out.len();
        let clock = flow.clock(now);
        if flow.reset_seen && flow.state == State::Closed {
            // The peer knows already.
            flow.dirty = false;
            entry.dirty.pop_front();
            self.settle(now, id);
            return None;
        }
        let wire = flow.wire(path_wire);
        if !flow.connection.emit(&mut self.engine, wire, clock, out) {
            flow.dirty = false;
            entry.dirty.pop_front();
            self.settle(now, id);
            return None;
        }
        let len = out.len() - start;
        if let Some(written) = packet::written_segment(&out[start..]) {
            flow.wrote_segment(now, &written);
        }
        let class = flow.class();
        flow.deficit = flow.deficit.saturating_sub(len);
        if flow.deficit == 0 {
            flow.deficit = limits::QUANTUM;
            entry.dirty.rotate_left(1);
        }
        self.avoid_black_hole(now, id, len);
        Some(class)
    }

    /// Sets the timer of a flow that has sent all it can, or buries it.
    fn settle(&mut self, now: Instant, id: FlowId) {
        self.after_send(now, id);
        if self.flows.get(id).is_some() {
            self.let_rest(now, id);
            self.schedule(now, id);
        }
    }

    fn after_send(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let state = flow.connection.state();
        if state != flow.state {
            self.after_change(now, id);
        } else if flow.owner == Owner::Orphan && self.is_over(id) {
            self.bury(now, id);
        }
    }

    /// Returns how long the caller may sleep at `now`, or `None` if nothing is scheduled.
    pub fn poll_delay(&self, now: Instant) -> Option<Duration> {
        self.poll_timeout().map(|at| at.saturating_since(now))
    }
}
