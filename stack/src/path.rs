//! A path: the stack's handle for "the link to that peer", with what waits to be sent over it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::flow::FlowId;
use crate::limits;
use crate::shard::SocketId;
use crate::slab::key;
use crate::tcp::Wire;

key! {
    /// Names a path; stale names are recognised.
    pub PathId
}

/// What the stack must know of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathConfig {
    /// Largest IP packet, in bytes, headers included; at least 1,280 ([`crate::MTU_MIN`]).
    pub mtu: usize,
    /// Whether arriving packets' checksums are verified. An authenticated link need not.
    pub verify_checksums: bool,
}

impl PathConfig {
    pub(crate) fn wire(self) -> Wire {
        Wire { mtu: self.mtu.max(crate::MTU_MIN), verify_checksums: self.verify_checksums }
    }
}

/// The kinds of traffic that a link may carry in lanes of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// TCP of connections that have sent little: requests, shells, acknowledgements.
    Interactive,
    /// TCP of connections that move much.
    Bulk,
    /// UDP and ICMP.
    Datagram,
}

/// Free bytes of a link's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// For TCP, in bytes.
    pub stream: usize,
    /// For UDP and ICMP, in bytes.
    pub datagram: usize,
}

/// Whether packets can leave over a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathState {
    /// The peer is still being looked up or dialled.
    Pending,
    Up,
    /// The link broke and is being dialled again; nothing leaves.
    Lost,
}

pub(crate) struct Path {
    pub(crate) wire: Wire,
    pub(crate) state: PathState,
    pub(crate) replies: VecDeque<(Class, Vec<u8>)>,
    pub(crate) datagrams: VecDeque<Vec<u8>>,
    pub(crate) datagram_bytes: usize,
    pub(crate) dirty: VecDeque<FlowId>,
    /// Whether the path is in the stack's queue of paths with something to send.
    pub(crate) queued: bool,
    /// Sockets that found the datagram queue full.
    pub(crate) waiters: Vec<SocketId>,
    /// Bytes that the rings of this peer's connections have committed.
    pub(crate) committed: usize,
    /// Connections on the path.
    pub(crate) flow_count: usize,
    /// Of these, the ones that no program holds.
    pub(crate) orphan_count: usize,
    /// Of these, the ones with longer buffers than a near peer's.
    pub(crate) long_count: usize,
    /// Length of the buffers that the distance of the peer asks for, in bytes.
    buffer_len: usize,
}

impl Path {
    pub(crate) fn new(config: PathConfig, state: PathState) -> Self {
        Self {
            wire: config.wire(),
            state,
            replies: VecDeque::new(),
            datagrams: VecDeque::new(),
            datagram_bytes: 0,
            dirty: VecDeque::new(),
            queued: false,
            waiters: Vec::new(),
            committed: 0,
            flow_count: 0,
            orphan_count: 0,
            long_count: 0,
            buffer_len: limits::TCP_BUFFER_DEFAULT,
        }
    }

    /// Takes how long the way to the peer and back takes: a buffer holds what is on its way at once.
    pub(crate) fn fit_buffers(&mut self, round_trip: Duration) {
        let len = match round_trip.as_secs() {
            0 => round_trip.subsec_millis() as usize * limits::BYTES_PER_MS,
            _ => limits::TCP_BUFFER_FAR,
        };
        self.buffer_len = len.clamp(limits::TCP_BUFFER_DEFAULT, limits::TCP_BUFFER_FAR);
    }

    /// Returns how long a buffer of a new connection should be, in bytes. Several share what the link carries, so only
    /// the first few get more than nearby.
    pub(crate) fn buffer_len(&self) -> usize {
        if self.long_count < limits::FAR_FLOWS_MAX { self.buffer_len } else { limits::TCP_BUFFER_DEFAULT }
    }

    pub(crate) fn has_work(&self) -> bool {
        !(self.replies.is_empty() && self.datagrams.is_empty() && self.dirty.is_empty())
    }

    /// Bytes of datagrams that may wait.
    fn datagram_bytes_max(&self) -> usize {
        match self.state {
            PathState::Pending => limits::PENDING_QUEUE_BYTES_MAX,
            PathState::Up | PathState::Lost => limits::DATAGRAM_QUEUE_BYTES_MAX,
        }
    }

    /// Whether datagrams of `len` bytes in all still fit; an empty queue takes any datagram.
    pub(crate) fn fits(&self, len: usize) -> bool {
        self.datagram_bytes == 0 || self.datagram_bytes + len <= self.datagram_bytes_max()
    }

    /// Whether senders that found no room are told to try again: half of it is free.
    pub(crate) fn is_writable(&self) -> bool {
        self.datagram_bytes <= self.datagram_bytes_max() / 2
    }
}
