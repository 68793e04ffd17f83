//! Whether a peer is still there, decided from what was heard and when. No I/O.

use crate::lanes::Lane;

/// An idle link is probed after this long, in microseconds.
pub const PROBE_AFTER_US: u64 = 5_000_000;
/// Sent bytes that make no progress for this long end the link, in microseconds.
pub const STALL_US: u64 = 5_000_000;
/// Bytes of one lane that make no progress for this long end the link even if the peer is heard, in microseconds: small
/// packets may pass where large ones vanish, and the transport gives up without a word. Three losses in a row of one
/// packet take less (7 s: RFC 9260, section 6.3.3).
pub const STUCK_US: u64 = 10_000_000;
/// While bytes are outstanding the round trip is measured this often, in microseconds.
pub const MEASURE_AFTER_US: u64 = 1_000_000;
/// Where the transport does not say what was acknowledged, whoever was sent something and stays silent is probed after
/// this long, in microseconds, and again and again until [`STALL_US`].
pub const QUIET_US: u64 = 1_000_000;
/// A peer that is said to be gone is given up when it stays silent for this long, in microseconds.
pub const DOUBT_US: u64 = 3_000_000;
/// So long it is asked this often, in microseconds: one of the answers comes through a bad wire.
pub const DOUBT_PROBE_US: u64 = 500_000;
/// What arrives so soon after the doubt may have been on its way before, in microseconds.
const DOUBT_FLIGHT_US: u64 = 1_000_000;
/// Unanswered probes that end the link.
pub const PROBES_MAX: u32 = 3;
/// Round trips that are remembered.
const ROUND_TRIPS: usize = 8;

/// What has to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a ping with this number, the time in microseconds.
    Ping(u64),
    /// Give the link up.
    Lost,
}

/// What a lane has outstanding, and since when that has not become less.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    outstanding: usize,
    since_us: u64,
}

/// The memory of a link about its peer.
#[derive(Debug)]
pub struct Liveness {
    heard_us: u64,
    probed_us: Option<u64>,
    measured_us: Option<u64>,
    unanswered: u32,
    outstanding: usize,
    progress_us: u64,
    /// When something was sent first since the peer was heard last.
    sent_us: Option<u64>,
    /// Since when the peer is said to be gone, without having shown that it is not.
    doubted_us: Option<u64>,
    lanes: [Progress; Lane::ALL.len()],
    round_trips: [u64; ROUND_TRIPS],
    samples: usize,
}

impl Liveness {
    /// Starts with a peer that was heard just now.
    pub fn new(now_us: u64) -> Self {
        Self {
            heard_us: now_us,
            probed_us: None,
            measured_us: None,
            unanswered: 0,
            outstanding: 0,
            progress_us: now_us,
            sent_us: None,
            doubted_us: None,
            lanes: [Progress::default(); Lane::ALL.len()],
            round_trips: [0; ROUND_TRIPS],
            samples: 0,
        }
    }

    /// Notes that a frame of any kind arrived.
    pub fn heard(&mut self, now_us: u64) {
        self.heard_us = now_us;
        self.progress_us = now_us;
        self.sent_us = None;
        self.unanswered = 0;
        self.believe(now_us);
    }

    /// Notes that the peer is said to be gone.
    pub fn doubt(&mut self, now_us: u64) {
        self.doubted_us.get_or_insert(now_us);
    }

    /// Returns when a peer that is said to be gone is asked again, and when it is given up.
    fn doubt_us(&self) -> Option<(u64, u64)> {
        let since = self.doubted_us?;
        let asked = self.probed_us.filter(|probed| *probed >= since);
        Some((asked.map_or(since, |asked| asked + DOUBT_PROBE_US), since + DOUBT_US))
    }

    /// Notes that something was sent on a transport that does not say when it is acknowledged.
    pub fn sent(&mut self, now_us: u64) {
        self.sent_us.get_or_insert(now_us);
    }

    /// Notes that bytes of a reliable lane have moved on: they were acknowledged, or leave little by little as the peer
    /// acknowledges what left before. Nobody answers before all of a message has arrived.
    pub fn advanced(&mut self, now_us: u64, lane: Lane) {
        self.lanes[lane.index()].since_us = now_us;
        self.progress_us = now_us;
        self.sent_us = self.sent_us.map(|sent| sent.max(now_us));
        self.unanswered = 0;
        self.believe(now_us);
    }

    /// A peer that gives signs of life is not gone, whatever is said.
    fn believe(&mut self, now_us: u64) {
        self.doubted_us = self.doubted_us.filter(|since| now_us < since + DOUBT_FLIGHT_US);
    }

    /// Returns when a peer that owes an answer is probed again, and when it is given up.
    fn quiet_us(&self) -> Option<(u64, u64)> {
        let sent = self
            .sent_us
            .map(|sent| (self.probed_us.map_or(sent, |probed| probed.max(sent)) + QUIET_US, sent + STALL_US));
        let both = [sent, self.doubt_us()].into_iter().flatten();
        both.reduce(|(probe, end), (other_probe, other_end)| (probe.min(other_probe), end.min(other_end)))
    }

    /// Notes the answer to a ping; returns the round trip in microseconds, unless the number is nonsense.
    pub fn pong(&mut self, now_us: u64, number: u64) -> Option<u64> {
        if !planted!(PongNotCounted) {
            self.heard(now_us);
        }
        if self.doubted_us.is_some_and(|since| number >= since) {
            self.doubted_us = None;
        }
        let round_trip = now_us.checked_sub(number)?.max(1);
        if round_trip >= 60_000_000 {
            return None;
        }
        self.round_trips[self.samples % ROUND_TRIPS] = round_trip;
        self.samples += 1;
        Some(round_trip)
    }

    /// Notes how many bytes the transport has not yet had acknowledged.
    pub fn outstanding(&mut self, now_us: u64, bytes: usize) {
        if bytes < self.outstanding || self.outstanding == 0 {
            self.progress_us = now_us;
        }
        self.outstanding = bytes;
    }

    /// Notes how many bytes of a reliable lane the transport has not yet had acknowledged.
    pub fn outstanding_in(&mut self, now_us: u64, lane: Lane, bytes: usize) {
        let progress = &mut self.lanes[lane.index()];
        let before = std::mem::replace(&mut progress.outstanding, bytes);
        if bytes < before || before == 0 {
            progress.since_us = now_us;
        }
        if bytes < before {
            self.believe(now_us);
        }
    }

    /// Returns when a lane is stuck, in microseconds.
    fn stuck_us(&self) -> u64 {
        let busy = self.lanes.iter().filter(|lane| lane.outstanding > 0);
        busy.map(|lane| lane.since_us + STUCK_US).min().unwrap_or(u64::MAX)
    }

    /// Returns the smallest of the last round trips, in microseconds.
    pub fn round_trip_us(&self) -> Option<u64> {
        self.round_trips.iter().take(self.samples).copied().min()
    }

    /// Returns when to call [`Liveness::poll`] next, in microseconds.
    pub fn poll_timeout_us(&self) -> u64 {
        let since = self.probed_us.map_or(self.heard_us, |probed| probed.max(self.heard_us));
        let quiet = self.quiet_us().map_or(u64::MAX, |(probe, end)| probe.min(end));
        let probe = (since + PROBE_AFTER_US).min(self.stuck_us()).min(quiet);
        if self.outstanding > 0 { probe.min(self.progress_us + STALL_US) } else { probe }
    }

    /// Returns the number of a ping that only measures, when it is time for one: at first, and now and then while
    /// bytes are outstanding.
    pub fn measure(&mut self, now_us: u64) -> Option<u64> {
        let due = match self.measured_us {
            None => true,
            Some(last) => self.outstanding > 0 && now_us >= last + MEASURE_AFTER_US,
        };
        due.then(|| {
            self.measured_us = Some(now_us);
            now_us
        })
    }

    /// Decides what to do at `now_us`.
    pub fn poll(&mut self, now_us: u64) -> Option<Action> {
        if now_us < self.poll_timeout_us() {
            return None;
        }
        if self.outstanding > 0 && now_us >= self.progress_us + STALL_US {
            return Some(Action::Lost);
        }
        if self.stuck_us() <= now_us {
            return Some(Action::Lost);
        }
        match self.quiet_us() {
            Some((_, end)) if now_us >= end => return Some(Action::Lost),
            Some((probe, _)) if now_us >= probe => {
                self.probed_us = Some(now_us);
                return Some(Action::Ping(now_us));
            }
            _ => {}
        }
        if self.unanswered >= PROBES_MAX && !planted!(SilenceIgnored) {
            return Some(Action::Lost);
        }
        self.unanswered += 1;
        self.probed_us = Some(now_us);
        Some(Action::Ping(now_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_said_to_be_gone_is_asked_at_once_and_lives_if_it_answers() {
        let mut liveness = Liveness::new(0);
        liveness.doubt(7);
        assert_eq!(liveness.poll(7), Some(Action::Ping(7)));
        // Sent before the doubt, and on its way since: it proves nothing.
        liveness.heard(8);
        liveness.pong(9, 6);
        let mut pings = 1;
        while liveness.poll(liveness.poll_timeout_us()) != Some(Action::Lost) {
            pings += 1;
        }
        assert_eq!((pings, liveness.poll_timeout_us()), (DOUBT_US / DOUBT_PROBE_US, 7 + DOUBT_US));

        let mut liveness = Liveness::new(0);
        liveness.doubt(7);
        assert_eq!(liveness.poll(7), Some(Action::Ping(7)));
        liveness.pong(9, 7);
        assert_eq!(liveness.poll_timeout_us(), 9 + PROBE_AFTER_US);
        liveness.doubt(10);
        liveness.heard(10 + DOUBT_FLIGHT_US);
        assert_eq!(liveness.poll_timeout_us(), 10 + DOUBT_FLIGHT_US + PROBE_AFTER_US);
    }

    #[test]
    fn an_idle_peer_that_answers_lives_and_its_round_trip_is_known() {
        let mut liveness = Liveness::new(0);
        let mut now = 0;
        for _ in 0..100 {
            now = liveness.poll_timeout_us();
            assert_eq!(liveness.poll(now), Some(Action::Ping(now)));
            now += 700;
            liveness.pong(now, now - 700);
        }
        assert_eq!(now, 100 * (PROBE_AFTER_US + 700));
        assert_eq!(liveness.round_trip_us(), Some(700));
    }

    #[test]
    fn a_busy_link_is_measured_every_second_and_an_idle_one_once() {
        let mut liveness = Liveness::new(0);
        assert_eq!(liveness.measure(0), Some(0));
        assert_eq!(liveness.measure(9 * MEASURE_AFTER_US), None);
        liveness.outstanding(9 * MEASURE_AFTER_US, 1);
        assert_eq!(liveness.measure(9 * MEASURE_AFTER_US), Some(9 * MEASURE_AFTER_US));
        assert_eq!(liveness.measure(10 * MEASURE_AFTER_US - 1), None);
        assert_eq!(liveness.measure(10 * MEASURE_AFTER_US), Some(10 * MEASURE_AFTER_US));
    }

    #[test]
    fn three_unanswered_probes_end_an_idle_link() {
        let mut liveness = Liveness::new(0);
        for probe in 1..=3 {
            assert_eq!(liveness.poll(probe * PROBE_AFTER_US), Some(Action::Ping(probe * PROBE_AFTER_US)));
        }
        assert_eq!(liveness.poll(4 * PROBE_AFTER_US), Some(Action::Lost));
    }

    #[test]
    fn outstanding_bytes_without_progress_end_a_link_in_five_seconds() {
        let mut liveness = Liveness::new(0);
        liveness.outstanding(1_000_000, 5_000);
        liveness.outstanding(3_000_000, 4_000);
        assert_eq!(liveness.poll(7_999_999), Some(Action::Ping(7_999_999)));
        assert_eq!(liveness.poll(8_000_000), Some(Action::Lost));
    }

    #[test]
    fn silence_after_something_was_sent_ends_a_link_in_five_seconds() {
        let mut liveness = Liveness::new(0);
        liveness.sent(1_000_000);
        liveness.sent(1_500_000);
        for probe in 2..=5 {
            assert_eq!(liveness.poll_timeout_us(), probe * QUIET_US);
            assert_eq!(liveness.poll(probe * QUIET_US), Some(Action::Ping(probe * QUIET_US)));
        }
        assert_eq!(liveness.poll(6_000_000), Some(Action::Lost));
        // An answer to any of them is life, and the link is idle again.
        liveness.pong(6_000_000, 5_999_000);
        assert_eq!(liveness.poll_timeout_us(), 6_000_000 + PROBE_AFTER_US);
    }

    /// A channel that stalled while pings passed once stayed in use for ever.
    #[test]
    fn a_lane_without_progress_ends_a_link_whose_peer_is_heard() {
        let mut liveness = Liveness::new(0);
        liveness.outstanding_in(0, Lane::Interactive, 100);
        liveness.outstanding_in(1_000_000, Lane::Bulk, 5_000);
        liveness.outstanding_in(2_000_000, Lane::Bulk, 4_000);
        let mut now = 2_000_000;
        while now < 2_000_000 + STUCK_US {
            liveness.outstanding(now, 4_100);
            liveness.outstanding_in(now, Lane::Interactive, 100 * usize::from(now % 2_000_000 == 0));
            liveness.outstanding_in(now, Lane::Bulk, 4_000);
            liveness.pong(now, now - 700);
            assert_eq!(liveness.poll(now), None, "at {now} us");
            now += 500_000;
        }
        assert_eq!(liveness.poll_timeout_us(), now);
        assert_eq!(liveness.poll(now), Some(Action::Lost));
    }
}
