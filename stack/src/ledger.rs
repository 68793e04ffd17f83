//! The ledger of memory: what the rings of connections have committed, for each peer and in all.
//!
//! A ring touches its whole length in time. So new connections get short rings when half of what is allowed
//! is committed, none when all is, and bytes that would commit more wait at their sender.

use crate::flow::{Flow, FlowId, Owner};
use crate::limits;
use crate::options::{BY_DISTANCE, Options};
use crate::packet::{DropReason, Segment};
use crate::path::{Path, PathId};
use crate::shard::Stack;
use crate::tcp::{Connection, Rings};
use crate::time::Instant;

impl Flow {
    /// Notes bytes written to the send ring; returns how many more are committed.
    pub(crate) fn wrote(&mut self, was_empty: bool, bytes: usize) -> usize {
        // The engine starts an empty send ring from its beginning.
        self.send_used = if was_empty { bytes } else { self.send_used.saturating_add(bytes) };
        self.connection.rings.send.touch(self.send_used)
    }

    /// Gives the memory of both rings back if nothing is in them; returns how many bytes that were.
    pub(crate) fn rest(&mut self) -> usize {
        if self.holds_received() || self.connection.send_queue() > 0 {
            return 0;
        }
        self.send_used = 0;
        self.forget_received() + self.connection.rings.send.discard()
    }

    /// Returns how many more bytes are committed once so many more have come.
    pub(crate) fn receive_growth(&self, len: usize) -> usize {
        self.connection.rings.receive.growth(self.receive_used.saturating_add(len))
    }

    /// Returns how many bytes may still come while memory is used up.
    pub(crate) fn receive_allowance(&self) -> usize {
        let touched = self.connection.rings.receive.touched();
        let allowed = touched + self.receive_credit.max(limits::PAGE_LEN.saturating_sub(touched));
        allowed.saturating_sub(self.receive_used)
    }

    /// Whether a buffer is longer than a near peer's.
    pub(crate) fn is_long(&self) -> bool {
        self.connection.receive_capacity().max(self.connection.send_capacity()) > limits::TCP_BUFFER_DEFAULT
    }

    /// Gives the memory of what came and has been read back; returns how many bytes that is, 0 if some is still needed.
    pub(crate) fn forget_received(&mut self) -> usize {
        if self.holds_received() {
            return 0;
        }
        self.receive_used = 0;
        self.connection.rings.receive.discard()
    }

    /// Whether something is in the receive ring: not read yet, or come before what is missing.
    fn holds_received(&self) -> bool {
        let in_order = match (self.receive_high, self.receive_next) {
            (Some(high), Some(next)) => (high.wrapping_sub(next) as i32) <= 0,
            _ => true,
        };
        !in_order || (self.connection.recv_queue() > 0 && !planted!(UnreadBytesGivenBack))
    }

    /// Bytes that the connection's rings have committed.
    pub(crate) fn committed(&self) -> usize {
        self.connection.rings.receive.touched() + self.connection.rings.send.touched()
    }
}

impl Stack {
    /// Returns the part of its allowance that a peer, or all peers together, have committed, in percent.
    fn pressure(&self, path: PathId) -> u64 {
        let percent = |committed: usize, limit: usize| committed as u64 * 100 / limit as u64;
        let peer = self.paths.get(path).map_or(0, |path| path.committed);
        let node = percent(self.committed, limits::NODE_MEMORY_MAX);
        // Whoever has little is not shut out by those who have much.
        let node = if peer < limits::PEER_MEMORY_SHARE { node.min(99) } else { node };
        if path == self.loopback() { node } else { node.max(percent(peer, limits::PEER_MEMORY_MAX)) }
    }

    /// Whether no connection of a peer may commit more.
    pub(crate) fn is_full(&self, path: PathId) -> bool {
        self.pressure(path) >= 100
    }

    /// Gives a connection that has waited for its path the buffers that the distance of the peer asks for: it is known
    /// only now.
    pub(crate) fn fit_to_distance(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get(id).filter(|flow| flow.has_said_nothing()) else {
            return;
        };
        let (path, tuple, Owner::Socket(socket)) = (flow.path, flow.tuple, flow.owner) else {
            return;
        };
        let Some(entry) = self.paths.get(path).filter(|path| path.buffer_len() > limits::TCP_BUFFER_DEFAULT) else {
            return;
        };
        let wire = entry.wire;
        let Some(options) = self.sockets.get(socket).map(|entry| entry.options) else {
            return;
        };
        // Memory that is short makes nothing longer.
        let Some(rings) =
            Some(path).filter(|path| self.pressure(*path) < 50).and_then(|path| self.rings(path, &options))
        else {
            return;
        };
        let first = self.initial_sequence(now, &tuple);
        let connection = Connection::connect(wire, first, (tuple.local, tuple.remote), rings);
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let (before, was_long) = (flow.committed(), flow.is_long());
        flow.connection = connection;
        let (committed, is_long) = (flow.committed(), flow.is_long());
        if let Some(path) = self.paths.get_mut(path) {
            path.long_count = path.long_count + usize::from(is_long) - usize::from(was_long);
        }
        self.discharge(path, before);
        self.charge(id, committed);
        self.apply_options(id, &options);
    }

    /// Takes the rings of a new connection, or none while memory is used up.
    pub(crate) fn rings(&mut self, path: PathId, options: &Options) -> Option<Rings> {
        let pressure = self.pressure(path);
        if pressure >= 100 {
            return None;
        }
        let by_distance = self.paths.get(path).map_or(limits::TCP_BUFFER_DEFAULT, Path::buffer_len);
        let len = |chosen: usize| {
            let wanted = if chosen == BY_DISTANCE { by_distance } else { chosen };
            if pressure >= 50 { wanted.min(limits::TCP_BUFFER_SHORT) } else { wanted }
        };
        let receive = self.pool.take(len(options.receive_buffer))?;
        let send = self.pool.take(len(options.send_buffer))?;
        Some(Rings { receive, send })
    }

    /// Enters newly committed bytes of a connection.
    pub(crate) fn charge(&mut self, id: FlowId, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if let Some(flow) = self.flows.get(id)
            && let Some(path) = self.paths.get_mut(flow.path)
        {
            path.committed += bytes;
            self.committed += bytes;
        }
    }

    /// Returns how many bytes of a segment's data a connection may take in: what lies in its window, unless that would
    /// commit memory that its peer must not have. What it has given back it may use again, and a page it always may.
    ///
    /// # Errors
    /// [`DropReason::Memory`] if that is none of what there is room for. As a kernel short of memory does: the peer
    /// repeats it, more and more slowly.
    pub(crate) fn receivable(&mut self, id: FlowId, path: PathId, segment: &Segment) -> Result<usize, DropReason> {
        let Some(flow) = self.flows.get(id) else {
            return Ok(segment.payload_len);
        };
        let room = flow.room_for(segment).unwrap_or(segment.payload_len);
        // What has come before is acknowledged again, and commits nothing.
        let growth = flow.landing(segment).map_or(0, |_| flow.receive_growth(room));
        if growth == 0 || !self.is_full(path) {
            return Ok(room);
        }
        self.turn_over(id);
        match self.flows.get(id).map_or(0, Flow::receive_allowance) {
            0 => {
                // Whoever waits for more than has come waits in vain.
                if let Some(Owner::Socket(socket)) = self.flows.get(id).map(|flow| flow.owner) {
                    self.mark_ready(socket);
                }
                Err(DropReason::Memory)
            }
            allowance => Ok(allowance.min(room)),
        }
    }

    /// Lets a connection that has read all that came use its own memory again, though all is committed. It goes on so, a
    /// ring's start at a time, where else it would wait for others to be read.
    pub(crate) fn turn_over(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let (path, released) = (flow.path, flow.forget_received());
        if released > 0 {
            flow.receive_credit = released;
        }
        self.discharge(path, released);
    }

    pub(crate) fn discharge(&mut self, path: PathId, bytes: usize) {
        self.committed -= bytes;
        if let Some(path) = self.paths.get_mut(path) {
            path.committed -= bytes;
        }
    }

    /// Has a connection looked at when it may have become idle.
    pub(crate) fn let_rest(&mut self, now: Instant, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && !flow.resting
            && flow.committed() > 0
        {
            flow.resting = true;
            // Connections that are over leave their places behind.
            if self.resting.len() >= 2 * self.flows.len() + limits::TIMERS_SPARE {
                self.resting.retain(|(_, id)| self.flows.get(*id).is_some());
            }
            self.resting.push_back((now + limits::REST_AFTER, id));
        }
    }

    pub(crate) fn rest_timeout(&self) -> Option<Instant> {
        self.resting.front().map(|(at, _)| *at)
    }

    /// Gives the memory of connections back that have been idle for long.
    pub(crate) fn rest_idle_flows(&mut self, now: Instant) {
        while let Some((at, id)) = self.resting.front().copied()
            && at <= now
        {
            self.resting.pop_front();
            let Some(flow) = self.flows.get_mut(id) else {
                continue;
            };
            flow.resting = false;
            let idle = flow.progress_at + limits::REST_AFTER <= now;
            let released = if idle { flow.rest() } else { 0 };
            let path = flow.path;
            self.discharge(path, released);
            self.let_rest(now, id);
        }
    }

    /// Returns the bytes that the rings of all connections have committed.
    pub fn committed_bytes(&self) -> usize {
        self.committed
    }
}
