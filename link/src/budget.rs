//! How many bytes may be outstanding below a link's lanes: twice the rate times the round trip, and a little. No I/O.
//!
//! Less starves the transport, more only stands in queues: it delays small packets, and overruns kernel buffers
//! of the usual size. (The idea is that of BBR, draft-ietf-ccwg-bbr, section 4.6, without its pacing: the transport
//! below has congestion control of its own.) The round trip that counts is that of the bare way: while bytes queue
//! on it, it is measured again now and then with little outstanding, else the budget would feed on its own queue.

use crate::lanes::Lane;

/// Fewest bytes that may be outstanding: one full message and the next.
pub const BUDGET_MIN: usize = 96 * 1024;
/// Most bytes that may be outstanding: what the receive window of the transport holds.
pub const BUDGET_MAX: usize = 4 * 1024 * 1024;
/// Bytes that the control lane may have outstanding, beside the budget.
const CONTROL_MAX: usize = 4 * 1024;
/// The part of the budget that datagrams may take.
const DATAGRAM_SHARE: usize = 4;
/// Shortest time over which a rate is taken, in microseconds.
const INTERVAL_MIN_US: u64 = 5_000;
/// Least burst that a kernel is believed to take, in bytes: one full message.
const BURST_MIN: usize = 64 * 1024;
/// The time for which bytes may stand in queues for the sake of a full wire, in microseconds: at the rate of a slow
/// wire that is next to nothing, at that of a fast one it bridges the pauses of the tasks on both sides.
const QUEUE_US: u64 = 1_000;
/// The part of a round trip that may be processing, in microseconds.
const PROCESSING_US: u64 = 2_000;
/// How long the smallest round trip counts before it is measured anew, in microseconds (BBR's ProbeRTT).
const ROUND_TRIP_LIFE_US: u64 = 10_000_000;
/// How long such a measurement may take, in microseconds.
const MEASURING_MAX_US: u64 = 2_000_000;
/// Rates that are remembered; the largest counts.
const RATES: usize = 8;

/// The budget of one link.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    /// Bytes that the peer's kernel takes in one burst.
    burst_max: usize,
    /// Bytes outstanding in each lane, as far as is known; never less than there are.
    outstanding: [usize; 4],
    /// The same that were added since the transport was asked last.
    added: [usize; 4],
    sent: u64,
    /// Where the interval began: the time, and the bytes delivered until then.
    began_us: u64,
    began_delivered: u64,
    /// Whether the budget held something back in this interval: only then a low rate means anything.
    held_back: bool,
    /// Bytes a second of the last intervals.
    rates: [u64; RATES],
    next_rate: usize,
    /// The smallest round trip, and when it was measured, in microseconds.
    round_trip_us: u64,
    measured_us: u64,
    /// Since when the round trip is being measured anew.
    measuring_us: Option<u64>,
    /// When the ping for that left.
    asked_us: Option<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            limit: BUDGET_MIN,
            burst_max: BUDGET_MAX,
            outstanding: [0; 4],
            added: [0; 4],
            sent: 0,
            began_us: 0,
            began_delivered: 0,
            held_back: false,
            rates: [0; RATES],
            next_rate: 0,
            round_trip_us: 0,
            measured_us: 0,
            measuring_us: None,
            asked_us: None,
        }
    }
}

impl Budget {
    /// Makes a budget for peers whose kernels take so many bytes in one burst: what is outstanding on a short way
    /// may all come at once.
    pub fn with_burst_max(bytes: usize) -> Self {
        let burst_max = bytes.clamp(BURST_MIN, BUDGET_MAX);
        Self { limit: BUDGET_MIN.min(burst_max), burst_max, ..Self::default() }
    }

    /// Returns the bytes that may be outstanding now.
    pub fn limit(&self) -> usize {
        if self.measuring_us.is_some() { self.limit.min(BUDGET_MIN) } else { self.limit }
    }

    /// Returns the bytes outstanding in all lanes.
    pub fn outstanding(&self) -> usize {
        self.outstanding.iter().sum()
    }

    /// Returns the bytes outstanding in a lane.
    pub fn outstanding_in(&self, lane: Lane) -> usize {
        self.outstanding[lane.index()]
    }

    /// Returns whether a lane may send its next message.
    pub fn may_send(&self, lane: Lane) -> bool {
        let control = self.outstanding[Lane::Control.index()];
        match lane {
            Lane::Control => control < CONTROL_MAX,
            Lane::Datagram if self.outstanding[lane.index()] >= self.limit() / DATAGRAM_SHARE => false,
            Lane::Datagram | Lane::Interactive | Lane::Bulk => self.outstanding() - control < self.limit(),
        }
    }

    /// Notes that a message was given to the transport.
    pub fn sent(&mut self, lane: Lane, bytes: usize) {
        self.outstanding[lane.index()] += bytes;
        self.added[lane.index()] += bytes;
        self.sent += bytes as u64;
    }

    /// Notes that something waits only because of the budget.
    pub fn hold_back(&mut self) {
        self.held_back = true;
    }

    /// Begins to ask the transport what is outstanding.
    pub fn begin_refresh(&mut self) {
        self.added = [0; 4];
    }

    /// Takes the transport's answer for a lane; what was sent meanwhile may or may not be in it.
    pub fn refresh(&mut self, lane: Lane, bytes: usize) {
        self.outstanding[lane.index()] = bytes + self.added[lane.index()];
    }

    /// Takes a round trip.
    pub fn handle_round_trip(&mut self, now_us: u64, round_trip_us: u64) {
        // Only the ping of the measurement itself met little outstanding.
        let anew = self.asked_us.is_some_and(|asked_us| now_us.saturating_sub(round_trip_us) >= asked_us);
        let anew = anew && self.measuring_us.is_some();
        if anew || self.measured_us == 0 || round_trip_us <= self.round_trip_us {
            (self.round_trip_us, self.measured_us) = (round_trip_us, now_us.max(1));
            self.measuring_us = None;
        }
    }

    /// Returns once whether a ping shall leave now, to measure the round trip with little outstanding.
    pub fn wants_round_trip(&mut self, now_us: u64) -> bool {
        let wants = self.measuring_us.is_some() && self.asked_us.is_none() && self.outstanding() <= BUDGET_MIN;
        if wants {
            self.asked_us = Some(now_us);
        }
        wants
    }

    /// Works the limit out anew.
    pub fn handle_progress(&mut self, now_us: u64) {
        let round_trip_us = self.round_trip_us;
        match self.measuring_us {
            Some(since) if now_us >= since + MEASURING_MAX_US => {
                (self.measuring_us, self.measured_us) = (None, now_us);
            }
            None if self.held_back && now_us >= self.measured_us + ROUND_TRIP_LIFE_US => {
                (self.measuring_us, self.asked_us) = (Some(now_us), None);
            }
            _ => {}
        }
        let elapsed_us = now_us.saturating_sub(self.began_us);
        if elapsed_us < INTERVAL_MIN_US.max(round_trip_us) {
            return;
        }
        let delivered = self.sent.saturating_sub(self.outstanding() as u64);
        let bytes = delivered.saturating_sub(self.began_delivered);
        let rate = bytes.saturating_mul(1_000_000) / elapsed_us;
        if self.held_back || rate > self.rate() {
            self.rates[self.next_rate] = rate;
            self.next_rate = (self.next_rate + 1) % RATES;
        }
        (self.began_us, self.began_delivered, self.held_back) = (now_us, delivered, false);
        let product = |us: u64| usize::try_from(self.rate().saturating_mul(us) / 1_000_000).unwrap_or(BUDGET_MAX);
        let limit = product(round_trip_us.saturating_mul(2).saturating_add(QUEUE_US)).saturating_add(BUDGET_MIN);
        // What is on its way for longer than processing takes is not in anybody's kernel.
        let burst_max = self.burst_max.saturating_add(product(round_trip_us.saturating_sub(PROCESSING_US)));
        self.limit = limit.min(burst_max).min(BUDGET_MAX);
    }

    fn rate(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a wire of so many bytes a second and such a round trip, always with something to send and a ping every
    /// second; returns the share of the wire that was used in the second half, and the greatest limit in it.
    fn run(rate: u64, round_trip_us: u64, seconds: u64) -> (f64, usize) {
        const STEP_US: u64 = 100;
        let mut budget = Budget::default();
        // Bytes on the wire, with the time of their acknowledgement; a ping has none.
        let mut flying = std::collections::VecDeque::new();
        let (mut free_us, mut used, mut highest) = (0, 0, 0);
        let end_us = seconds * 1_000_000;
        for now_us in (0..end_us).step_by(STEP_US as usize) {
            while flying.front().is_some_and(|(due_us, _, _)| *due_us <= now_us) {
                let (_, bytes, sent_us): (u64, usize, u64) = flying.pop_front().unwrap();
                if bytes == 0 {
                    budget.handle_round_trip(now_us, now_us - sent_us);
                }
                budget.begin_refresh();
                budget.refresh(Lane::Bulk, budget.outstanding_in(Lane::Bulk) - bytes);
                used += if now_us > end_us / 2 { bytes as u64 } else { 0 };
            }
            budget.handle_progress(now_us);
            // A ping queues behind what is on the wire before it.
            if now_us % 1_000_000 == 0 || budget.wants_round_trip(now_us) {
                flying.push_back((free_us.max(now_us) + round_trip_us, 0, now_us));
            }
            while budget.may_send(Lane::Bulk) {
                budget.sent(Lane::Bulk, 16_384);
                free_us = free_us.max(now_us) + 16_384 * 1_000_000 / rate;
                flying.push_back((free_us + round_trip_us, 16_384, now_us));
            }
            budget.hold_back();
            if now_us > end_us / 2 {
                highest = highest.max(budget.limit());
            }
        }
        (used as f64 / (rate * seconds / 2) as f64, highest)
    }

    #[test]
    fn a_wire_is_filled_at_any_rate_and_distance() {
        for (rate, round_trip_us) in
            [(1_000_000, 1_000), (1_000_000, 100_000), (100_000_000, 300), (100_000_000, 15_000), (10_000_000, 100_000)]
        {
            let (used, limit) = run(rate, round_trip_us, 20);
            assert!(used > 0.9, "{rate} B/s at {round_trip_us} us: {used}, limit {limit}");
        }
    }

    /// The ping queued behind what the budget had let through, and so the budget grew on its own queue.
    #[test]
    fn the_queue_of_a_busy_link_stays_short_for_ever() {
        let (_, limit) = run(1_000_000, 1_000, 60);
        assert!(limit < 4 * BUDGET_MIN, "{limit}");
        let (_, limit) = run(1_000_000, 20_000, 60);
        assert!(limit < 4 * BUDGET_MIN, "{limit}");
        let (_, limit) = run(100_000_000, 300, 30);
        assert!(limit < 4 * BUDGET_MIN, "{limit}");
    }

    #[test]
    fn a_burst_fits_the_peers_kernel_and_distance_is_still_bridged() {
        let mut short = Budget::with_burst_max(100_000);
        let mut long = Budget::with_burst_max(100_000);
        for interval in 1..100 {
            for (budget, round_trip_us) in [(&mut short, 500), (&mut long, 20_000)] {
                budget.handle_round_trip(interval * 20_000, round_trip_us);
                budget.sent(Lane::Bulk, 2_000_000);
                budget.begin_refresh();
                budget.refresh(Lane::Bulk, 0);
                budget.handle_progress(interval * 20_000);
            }
        }
        assert_eq!(short.limit(), 100_000);
        assert_eq!(long.limit(), 1_900_000);
    }

    #[test]
    fn a_sender_that_pauses_keeps_its_budget() {
        let mut budget = Budget::default();
        budget.sent(Lane::Bulk, 1_000_000);
        budget.begin_refresh();
        budget.refresh(Lane::Bulk, 0);
        budget.handle_round_trip(1, 10_000);
        budget.handle_progress(10_000);
        let limit = budget.limit();
        assert!(limit > 1_000_000);
        for interval in 2..100 {
            budget.handle_progress(interval * 10_000);
        }
        assert_eq!(budget.limit(), limit);
    }

    #[test]
    fn datagrams_take_a_quarter_and_control_is_never_held_back_by_others() {
        let mut budget = Budget::default();
        budget.sent(Lane::Datagram, BUDGET_MIN / 4);
        assert!(!budget.may_send(Lane::Datagram));
        assert!(budget.may_send(Lane::Bulk));
        budget.sent(Lane::Bulk, BUDGET_MIN);
        assert!(!budget.may_send(Lane::Interactive));
        assert!(budget.may_send(Lane::Control));
        budget.sent(Lane::Control, CONTROL_MAX);
        assert!(!budget.may_send(Lane::Control));
    }

    #[test]
    fn what_is_sent_while_the_transport_answers_is_not_forgotten() {
        let mut budget = Budget::default();
        budget.sent(Lane::Bulk, 1_000);
        budget.begin_refresh();
        budget.sent(Lane::Bulk, 50);
        budget.refresh(Lane::Bulk, 300);
        assert_eq!(budget.outstanding(), 350);
    }
}
