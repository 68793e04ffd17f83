//! The queue of a link: bounded lanes, served by deficit round robin (RFC 8290 has the idea in short).
//!
//! Left alone, SCTP serves unordered messages strictly first, and a flood of datagrams stops all streams.
//! So the choice is made here, above it, and below it only little is outstanding.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::frame::MESSAGE_LEN_MAX;
use crate::{Full, Room};

/// A lane of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Hello, bye: reliable, ordered, served first.
    Control,
    /// Small TCP flows: reliable, ordered.
    Interactive,
    /// Large TCP flows: reliable, ordered.
    Bulk,
    /// UDP, ICMP and probes: unordered, sent once.
    Datagram,
}

impl Lane {
    /// All lanes; the position is the identifier of the data channel.
    pub const ALL: [Lane; 4] = [Lane::Control, Lane::Interactive, Lane::Bulk, Lane::Datagram];

    /// Returns the position in [`Lane::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Returns the data channel's label.
    pub const fn label(self) -> &'static str {
        match self {
            Lane::Control => "control",
            Lane::Interactive => "interactive",
            Lane::Bulk => "bulk",
            Lane::Datagram => "datagram",
        }
    }

    /// Bytes that may wait in the lane.
    const fn capacity(self) -> usize {
        match self {
            Lane::Control => 4 * 1024,
            Lane::Interactive | Lane::Bulk => STREAM_CAPACITY,
            Lane::Datagram => DATAGRAM_CAPACITY,
        }
    }

    /// Bytes that a lane may send in its turn: datagrams get half of what a stream lane gets.
    const fn quantum(self) -> usize {
        match self {
            Lane::Control => 4 * 1024,
            Lane::Interactive | Lane::Bulk => 64 * 1024,
            Lane::Datagram => 32 * 1024,
        }
    }

    const fn joins_packets(self) -> bool {
        matches!(self, Lane::Interactive | Lane::Bulk)
    }
}

/// Bytes that wait in both stream lanes together: two full messages and one being filled.
const STREAM_CAPACITY: usize = 3 * 64 * 1024;
/// Bytes that wait in the datagram lane.
const DATAGRAM_CAPACITY: usize = 128 * 1024;
/// Packets share a message up to this length: longer ones gain nothing, and a small packet waits behind them.
const JOINED_LEN_MAX: usize = 2 * crate::MTU;
/// After having been full, the queue reports room only when this much is free again.
const WRITABLE_FREE: usize = 64 * 1024;

#[derive(Default)]
struct Queue {
    messages: VecDeque<BytesMut>,
    bytes: usize,
    deficit: usize,
}

/// The lanes of one link.
pub struct Lanes {
    queues: [Queue; 4],
    /// The lane whose turn it is.
    turn: usize,
    /// Whether somebody found no room since the last report, for streams and for datagrams.
    starved: (bool, bool),
}

impl Default for Lanes {
    fn default() -> Self {
        Self::new()
    }
}

impl Lanes {
    /// Makes empty lanes.
    pub fn new() -> Self {
        Self { queues: Default::default(), turn: 0, starved: (false, false) }
    }

    /// Returns the free bytes, noting when there is too little for a full packet.
    pub fn room(&mut self) -> Room {
        let stream = self.queues[Lane::Interactive.index()].bytes + self.queues[Lane::Bulk.index()].bytes;
        let datagram = self.queues[Lane::Datagram.index()].bytes;
        let room = Room {
            stream: STREAM_CAPACITY.saturating_sub(stream),
            datagram: DATAGRAM_CAPACITY.saturating_sub(datagram),
        };
        self.starved.0 |= room.stream < crate::MTU;
        self.starved.1 |= room.datagram < crate::MTU;
        room
    }

    /// Queues a packet or message.
    ///
    /// # Errors
    /// [`Full`] if the lane has no room for it.
    pub fn push(&mut self, lane: Lane, packet: &[u8]) -> Result<(), Full> {
        let queue = &mut self.queues[lane.index()];
        if packet.len() > MESSAGE_LEN_MAX || (queue.bytes > 0 && queue.bytes + packet.len() > lane.capacity()) {
            match lane {
                Lane::Interactive | Lane::Bulk => self.starved.0 = true,
                Lane::Control | Lane::Datagram => self.starved.1 = true,
            }
            return Err(Full);
        }
        queue.bytes += packet.len();
        match queue.messages.back_mut() {
            Some(last) if lane.joins_packets() && last.len() + packet.len() <= JOINED_LEN_MAX => {
                last.extend_from_slice(packet);
            }
            _ => queue.messages.push_back(BytesMut::from(packet)),
        }
        Ok(())
    }

    /// Takes the next message of the lanes that may send now.
    pub fn pop(&mut self, may_send: impl Fn(Lane) -> bool) -> Option<(Lane, BytesMut)> {
        let control = &mut self.queues[Lane::Control.index()];
        if may_send(Lane::Control)
            && let Some(message) = control.messages.pop_front()
        {
            control.bytes -= message.len();
            return Some((Lane::Control, message));
        }
        // Two rounds: one may only refill deficits.
        for _ in 0..2 * Lane::ALL.len() {
            let lane = Lane::ALL[self.turn];
            let queue = &mut self.queues[self.turn];
            let fits = queue.messages.front().is_some_and(|next| next.len() <= queue.deficit);
            if fits
                && may_send(lane)
                && let Some(message) = queue.messages.pop_front()
            {
                queue.deficit -= message.len();
                queue.bytes -= message.len();
                return Some((lane, message));
            }
            queue.deficit = if queue.messages.is_empty() { 0 } else { queue.deficit.min(lane.quantum()) };
            self.turn = (self.turn + 1) % Lane::ALL.len();
            let next = &mut self.queues[self.turn];
            if !next.messages.is_empty() && (next.deficit == 0 || !planted!(DeficitNotRefilled)) {
                next.deficit += Lane::ALL[self.turn].quantum();
            }
        }
        None
    }

    /// Returns whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(|queue| queue.messages.is_empty())
    }

    /// Returns whether a lane has something to send.
    pub fn waits(&self, lane: Lane) -> bool {
        !self.queues[lane.index()].messages.is_empty()
    }

    /// Returns once whether there is room again after somebody found none.
    pub fn take_writable(&mut self) -> bool {
        let (stream, datagram) = self.starved;
        if !(stream || datagram) {
            return false;
        }
        let room = self.room();
        let free = (stream && room.stream >= WRITABLE_FREE, datagram && room.datagram >= WRITABLE_FREE);
        self.starved = (stream && !free.0, datagram && !free.1);
        free.0 || free.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(_: Lane) -> bool {
        true
    }

    #[test]
    fn packets_of_a_stream_lane_share_a_message_and_datagrams_do_not() {
        let mut lanes = Lanes::new();
        for _ in 0..3 {
            lanes.push(Lane::Bulk, &[1; 16_384]).unwrap();
            lanes.push(Lane::Datagram, &[2; 100]).unwrap();
        }
        let mut lens: Vec<(Lane, usize)> = std::iter::from_fn(|| lanes.pop(all)).map(|(l, m)| (l, m.len())).collect();
        lens.sort();
        let datagram = (Lane::Datagram, 100);
        assert_eq!(lens, [(Lane::Bulk, 16_384), (Lane::Bulk, 32_768), datagram, datagram, datagram]);
    }

    #[test]
    fn every_lane_is_bounded_and_room_is_reported_once() {
        let mut lanes = Lanes::new();
        while lanes.room().stream >= crate::MTU {
            lanes.push(Lane::Bulk, &[1; 16_384]).unwrap();
        }
        assert_eq!(lanes.push(Lane::Bulk, &[1; 16_384]), Err(Full));
        assert!(!lanes.take_writable());
        while lanes.pop(all).is_some() {}
        assert!(lanes.take_writable());
        assert!(!lanes.take_writable());
    }

    #[test]
    fn a_flood_of_datagrams_leaves_streams_two_thirds() {
        let mut lanes = Lanes::new();
        let mut sent = [0; 4];
        for _ in 0..10_000 {
            while lanes.push(Lane::Datagram, &[2; 1_000]).is_ok() {}
            while lanes.push(Lane::Bulk, &[1; 16_384]).is_ok() {}
            let (lane, message) = lanes.pop(all).unwrap();
            sent[lane.index()] += message.len();
        }
        let share = sent[Lane::Bulk.index()] as f64 / sent.iter().sum::<usize>() as f64;
        assert!((0.6..0.75).contains(&share), "{share}");
    }

    #[test]
    fn a_blocked_lane_does_not_stop_the_others() {
        let mut lanes = Lanes::new();
        lanes.push(Lane::Bulk, &[1; 1_000]).unwrap();
        lanes.push(Lane::Interactive, &[1; 10]).unwrap();
        assert_eq!(lanes.pop(|lane| lane != Lane::Bulk).unwrap().0, Lane::Interactive);
        assert!(lanes.pop(|lane| lane != Lane::Bulk).is_none());
        assert_eq!(lanes.pop(all).unwrap().0, Lane::Bulk);
    }

    #[test]
    fn control_overtakes_everything() {
        let mut lanes = Lanes::new();
        lanes.push(Lane::Bulk, &[1; 10_000]).unwrap();
        lanes.push(Lane::Control, &[3; 10]).unwrap();
        assert_eq!(lanes.pop(all).unwrap().0, Lane::Control);
    }
}
