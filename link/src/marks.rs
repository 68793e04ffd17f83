//! What a peer has received of the stream lanes, for a transport that does not say it. No I/O.
//!
//! A data channel tells which bytes have not left yet (`bufferedAmount`), not which have arrived. So the sender puts
//! marks between its messages, the peer answers each, and what was sent since the last answered mark is outstanding.
//! A mark waits its turn in its lane; its answer goes with the datagrams. Later answers make up for lost ones, and the
//! last mark is set again until it is answered.

use crate::lanes::Lane;

/// A lane is marked after so many bytes.
const INTERVAL: u64 = 16 * 1024;
/// An unanswered mark is set again after this long, in microseconds.
const RETRY_US: u64 = 250_000;

#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    total: u64,
    marked: u64,
    arrived: u64,
    marked_us: u64,
}

/// The marks of a link's stream lanes.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    lanes: [Sent; Lane::ALL.len()],
}

impl Marks {
    /// Notes that a message was sent; returns the mark that has to follow it in its lane, if one has to.
    pub(crate) fn sent(&mut self, now_us: u64, lane: Lane, bytes: usize) -> Option<u64> {
        let sent = &mut self.lanes[lane.index()];
        sent.total += bytes as u64;
        if sent.total - sent.marked < INTERVAL {
            return None;
        }
        if sent.marked == sent.arrived {
            sent.marked_us = now_us;
        }
        sent.marked = sent.total;
        Some(sent.marked)
    }

    /// Takes the answer to a mark; returns whether it is news. An answer to no mark is none.
    pub(crate) fn answered(&mut self, now_us: u64, lane: Lane, mark: u64) -> bool {
        let sent = &mut self.lanes[lane.index()];
        let is_news = mark > sent.arrived && mark <= sent.marked;
        if is_news {
            (sent.arrived, sent.marked_us) = (mark, now_us);
        }
        is_news
    }

    /// Returns the bytes that may not have arrived.
    pub(crate) fn outstanding(&self, lane: Lane) -> usize {
        let sent = &self.lanes[lane.index()];
        usize::try_from(sent.total - sent.arrived).unwrap_or(usize::MAX)
    }

    /// Returns the bytes whose arrival the peer was asked about and has not answered.
    pub(crate) fn unanswered(&self, lane: Lane) -> usize {
        let sent = &self.lanes[lane.index()];
        usize::try_from(sent.marked - sent.arrived).unwrap_or(usize::MAX)
    }

    /// Returns when [`Marks::again`] is due, in microseconds.
    pub(crate) fn poll_timeout_us(&self) -> Option<u64> {
        self.lanes.iter().filter(|sent| sent.marked > sent.arrived).map(|sent| sent.marked_us + RETRY_US).min()
    }

    /// Returns a mark that has to be set again now.
    pub(crate) fn again(&mut self, now_us: u64) -> Option<(Lane, u64)> {
        Lane::ALL.into_iter().find_map(|lane| {
            let sent = &mut self.lanes[lane.index()];
            let is_due = sent.marked > sent.arrived && sent.marked_us + RETRY_US <= now_us;
            is_due.then(|| {
                (sent.marked, sent.marked_us) = (sent.total, now_us);
                (lane, sent.marked)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_has_arrived_and_lies_are_no_answers() {
        let mut marks = Marks::default();
        assert_eq!(marks.sent(1, Lane::Bulk, 16_000), None);
        assert_eq!(marks.sent(2, Lane::Bulk, 1_000), Some(17_000));
        assert_eq!(marks.sent(3, Lane::Interactive, 40), None);
        assert_eq!((marks.outstanding(Lane::Bulk), marks.unanswered(Lane::Bulk)), (17_000, 17_000));
        for lie in [0, 17_001, u64::MAX] {
            assert!(!marks.answered(4, Lane::Bulk, lie));
        }
        assert!(!marks.answered(4, Lane::Interactive, 40));
        assert!(marks.answered(5, Lane::Bulk, 17_000) && !marks.answered(6, Lane::Bulk, 17_000));
        assert_eq!((marks.outstanding(Lane::Bulk), marks.outstanding(Lane::Interactive)), (0, 40));
        assert_eq!(marks.poll_timeout_us(), None);
    }

    #[test]
    fn a_mark_whose_answer_is_lost_is_set_again_for_all_that_was_sent() {
        let mut marks = Marks::default();
        marks.sent(1, Lane::Bulk, 20_000);
        marks.sent(2, Lane::Bulk, 100);
        let due = marks.poll_timeout_us().unwrap();
        assert_eq!((due, marks.again(due - 1)), (1 + RETRY_US, None));
        assert_eq!(marks.again(due), Some((Lane::Bulk, 20_100)));
        assert_eq!((marks.again(due), marks.poll_timeout_us()), (None, Some(due + RETRY_US)));
        assert!(marks.answered(due + 1, Lane::Bulk, 20_000), "the first answer was late, not lost");
        assert!(marks.answered(due + 2, Lane::Bulk, 20_100));
        assert_eq!(marks.outstanding(Lane::Bulk), 0);
    }
}
