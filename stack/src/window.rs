//! The receive window of a connection: which part of a segment lies in it (RFC 9293, section 3.10.7.4).

use crate::flow::Flow;
use crate::packet::{Numbers, Segment};
use crate::tcp::State;

impl Flow {
    /// Returns where the part of a segment ends that lies in the receive window, if any does: the rest is thrown
    /// away, touches no memory and leaves no hole.
    pub(crate) fn landing(&self, segment: &Segment) -> Option<u32> {
        let end = segment.sequence_end();
        let Some(next) = self.receive_next else {
            return Some(end);
        };
        // A FIN needs no room.
        let window = self.connection.receive_window() as i32 + 1;
        let (start, len) = (segment.sequence.wrapping_sub(next) as i32, end.wrapping_sub(next) as i32);
        (len > 0 && start < window).then(|| next.wrapping_add(len.min(window) as u32))
    }

    /// Returns how many bytes of a segment's data lie before the end of the receive window, if not all do (RFC 9293,
    /// section 3.10.7.4).
    pub(crate) fn room_for(&self, segment: &Segment) -> Option<usize> {
        let start = segment.sequence.wrapping_add(u32::from(segment.syn));
        let next = match self.state {
            // The answer to our SYN says itself what comes next.
            State::SynSent => segment.syn.then_some(start)?,
            _ => self.receive_next?,
        };
        let offset = start.wrapping_sub(next) as i32;
        let room = i64::try_from(self.connection.receive_window()).unwrap_or(i64::MAX) - i64::from(offset);
        let len = i64::try_from(segment.payload_len).unwrap_or(i64::MAX);
        // The engine answers what lies outside of a window that it knows.
        let unknown = room > 0 || !self.told_window;
        (len > room.max(0) && unknown).then(|| usize::try_from(room).unwrap_or(0))
    }

    /// Returns what a segment acknowledges that the engine would throw away for its place: a bare acknowledgement after
    /// bytes that have not come, or any where the window is shut. Its edge may have moved back by a few bytes, as its
    /// scale rounds it: a peer that has used them counts them, and all that it acknowledges is beyond the window. Two
    /// that both had no room heard nothing of each other any more (RFC 9293, section 3.10.7.4, MUST-66).
    pub(crate) fn acknowledged_beyond(&self, segment: &Segment) -> Option<Numbers> {
        let sequence = self.receive_next?;
        let ahead = segment.sequence.wrapping_sub(sequence) as usize;
        let bare = segment.payload_len == 0 && ahead > 0;
        // Probes that say nothing new are no duplicates, which would tell of a loss (RFC 5681, section 2).
        let news = self.acknowledged.newest() != Some(segment.acknowledgement) || self.window_heard != segment.window;
        let applies = segment.ack
            && !(segment.syn || segment.rst || segment.fin)
            && !matches!(self.state, State::SynSent | State::SynReceived)
            && (bare || (self.window_said == 0 && segment.payload_len > 0 && news))
            && ahead <= self.connection.receive_capacity();
        let Segment { acknowledgement, window, .. } = *segment;
        applies.then_some(Numbers { sequence, acknowledgement, window })
    }

    /// Notes bytes in the receive ring that end there, in order or not; returns how many more are committed.
    pub(crate) fn landed(&mut self, end: u32, bytes: usize) -> usize {
        if self.receive_high.is_none_or(|high| (end.wrapping_sub(high) as i32) > 0) {
            self.receive_high = Some(end);
        }
        self.receive_used = self.receive_used.saturating_add(bytes);
        let committed = self.connection.rings.receive.touch(self.receive_used);
        self.receive_credit = self.receive_credit.saturating_sub(committed);
        committed
    }
}
