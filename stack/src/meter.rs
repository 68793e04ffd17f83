//! What a connection measures of itself: the counters behind TCP_INFO.
//!
//! The engine keeps its own estimate of the round trip and tells nobody. This one is only for those who look:
//! it follows RFC 6298, section 2, with one segment timed at a time and none that was repeated (section 3).

use std::time::Duration;

use crate::packet::Segment;
use crate::time::Instant;

/// Counters of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter {
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_segments: u64,
    pub(crate) received_segments: u64,
    pub(crate) resent_bytes: u64,
    pub(crate) resent_segments: u64,
    /// The segment being timed: the number that acknowledges it, and when it left.
    timed: Option<(u32, Instant)>,
    /// The estimate, in microseconds: there may be 65,536 of these.
    round_trip_us: Option<RoundTripUs>,
    /// The oldest segment that was repeated, and how often in a row.
    repeated: Option<(u32, u32)>,
}

#[derive(Debug, Clone, Copy)]
struct RoundTripUs {
    smoothed: u32,
    variation: u32,
    least: u32,
}

/// What is known of a connection's round trip time (RFC 6298, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundTrip {
    /// The smoothed time, SRTT.
    pub smoothed: Duration,
    /// How much it varies, RTTVAR.
    pub variation: Duration,
    /// The shortest one seen.
    pub least: Duration,
}

/// Whether `a` is after `b` in the circle of sequence numbers (RFC 9293, section 3.4).
fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

impl Meter {
    /// Notes a segment that leaves. `send_next` is the highest number sent before it.
    pub(crate) fn sent(&mut self, now: Instant, segment: &Segment, send_next: u32) {
        let first = self.sent_segments == 0;
        self.sent_segments += 1;
        self.sent_bytes += segment.payload_len as u64;
        if segment.sequence == segment.sequence_end() {
            return;
        }
        if first || is_after(segment.sequence_end(), send_next) {
            self.timed.get_or_insert((segment.sequence_end(), now));
            return;
        }
        self.resent_segments += 1;
        self.resent_bytes += segment.payload_len as u64;
        // What acknowledges it now may mean either copy (Karn).
        self.timed = None;
        match &mut self.repeated {
            Some((oldest, times)) if *oldest == segment.sequence => *times += 1,
            Some((oldest, _)) if is_after(segment.sequence, *oldest) => {}
            repeated => *repeated = Some((segment.sequence, 1)),
        }
    }

    /// Notes a segment that came and was accepted.
    pub(crate) fn heard(&mut self, now: Instant, segment: &Segment) {
        self.received_segments += 1;
        if !segment.ack {
            return;
        }
        if self.repeated.is_some_and(|(oldest, _)| is_after(segment.acknowledgement, oldest)) {
            self.repeated = None;
        }
        if let Some((end, left_at)) = self.timed
            && !is_after(end, segment.acknowledgement)
        {
            self.timed = None;
            self.sample(now.saturating_since(left_at));
        }
    }

    /// Takes a measured round trip into the estimate (RFC 6298, sections 2.2 and 2.3).
    fn sample(&mut self, measured: Duration) {
        let us = u32::try_from(measured.as_micros()).unwrap_or(u32::MAX);
        // Weighed in 64 bits, so that no weight overflows; the mean of what fits 32 bits fits them as well.
        let mean = |old: u32, new: u32, parts: u64| ((u64::from(old) * (parts - 1) + u64::from(new)) / parts) as u32;
        self.round_trip_us = Some(match self.round_trip_us {
            None => RoundTripUs { smoothed: us, variation: us / 2, least: us },
            Some(known) => RoundTripUs {
                variation: mean(known.variation, known.smoothed.abs_diff(us), 4),
                smoothed: mean(known.smoothed, us, 8),
                least: known.least.min(us),
            },
        });
    }

    /// Returns what is known of the round trip, once one was measured.
    pub(crate) fn round_trip(&self) -> Option<RoundTrip> {
        let RoundTripUs { smoothed, variation, least } = self.round_trip_us?;
        let time = |us| Duration::from_micros(u64::from(us));
        Some(RoundTrip { smoothed: time(smoothed), variation: time(variation), least: time(least) })
    }

    /// Returns how often in a row the oldest unacknowledged segment was repeated.
    pub(crate) fn repeats(&self) -> u32 {
        self.repeated.map_or(0, |(_, times)| times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sequence: u32, payload_len: usize, acknowledgement: u32) -> Segment {
        Segment { sequence, acknowledgement, payload_len, ack: true, ..Segment::default() }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn the_estimate_follows_the_rfc_and_the_numbers_wrap() {
        let mut meter = Meter::default();
        let start = u32::MAX - 49;
        meter.sent(at(0), &segment(start, 100, 0), start);
        meter.heard(at(80), &segment(0, 0, 50));
        let first = RoundTrip {
            smoothed: Duration::from_millis(80),
            variation: Duration::from_millis(40),
            least: Duration::from_millis(80),
        };
        assert_eq!(meter.round_trip(), Some(first));
        meter.sent(at(100), &segment(50, 100, 0), 50);
        meter.heard(at(140), &segment(0, 0, 150));
        let second = RoundTrip {
            smoothed: Duration::from_millis(75),
            variation: Duration::from_millis(40),
            least: Duration::from_millis(40),
        };
        assert_eq!(meter.round_trip(), Some(second));
    }

    #[test]
    fn a_repeated_segment_is_counted_and_not_timed() {
        let mut meter = Meter::default();
        meter.sent(at(0), &segment(0, 100, 0), 0);
        meter.sent(at(0), &segment(100, 100, 0), 100);
        for time in [1_000, 3_000] {
            meter.sent(at(time), &segment(0, 100, 0), 200);
            meter.sent(at(time), &segment(100, 100, 0), 200);
        }
        assert_eq!((meter.repeats(), meter.resent_segments, meter.resent_bytes), (2, 4, 400));
        meter.heard(at(3_010), &segment(0, 0, 200));
        assert_eq!((meter.round_trip(), meter.repeats()), (None, 0));
    }
}
