//! A fair queue for packets of a kernel: flows in turn (RFC 8290), each with its delay held down (RFC 8289, CoDel).
//!
//! The kernel's TCP fills whatever queue it finds. What waits too long is dropped here, which tells it to slow down,
//! and a flow that sends little never waits behind one that sends much.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use unisockets_stack::Instant;

/// Bytes that wait for one peer.
pub(crate) const CAPACITY: usize = 256 * 1024;
/// Delay that a flow may always have.
const TARGET: Duration = Duration::from_millis(20);
/// How long the delay may be above that before something is dropped.
const INTERVAL: Duration = Duration::from_millis(100);
/// Bytes that a flow may send in its turn.
const QUANTUM: isize = unisockets_link::MTU as isize;
/// A flow that has sent more is a large one, until it has been idle for [`REST`].
const LARGE: usize = 64 * 1024;
/// After so long without a packet a flow is forgotten.
const REST: Duration = Duration::from_secs(1);
/// Flows that are told apart.
const FLOWS_MAX: usize = 1_024;

/// CoDel's state of one flow (RFC 8289, section 5).
#[derive(Debug, Default)]
struct Codel {
    first_above: Option<Instant>,
    /// While it drops: when the next packet is.
    drop_next: Option<Instant>,
    /// Packets dropped since it began to, and what that was the time before.
    count: u32,
    count_before: u32,
    /// When the next would have been dropped as it stopped.
    stopped: Option<Instant>,
}

impl Codel {
    /// Whether a packet that has waited so long is dropped now.
    fn drops(&mut self, now: Instant, waited: Duration, is_last: bool) -> bool {
        if waited < TARGET || is_last {
            self.stopped = self.drop_next.take().or(self.stopped);
            self.first_above = None;
            return false;
        }
        let first_above = *self.first_above.get_or_insert(now + INTERVAL);
        match self.drop_next {
            None if now < first_above => false,
            None => {
                // Soon after the last time it goes on about where it was.
                let more = self.count.saturating_sub(self.count_before);
                let soon = self.stopped.is_some_and(|stopped| now.saturating_since(stopped) < 16 * INTERVAL);
                self.count = if soon && more > 1 { more } else { 1 };
                self.count_before = self.count;
                self.drop_next = Some(now + self.pause());
                true
            }
            Some(next) if now >= next => {
                self.count = self.count.saturating_add(1);
                self.drop_next = Some(next + self.pause());
                true
            }
            Some(_) => false,
        }
    }

    fn pause(&self) -> Duration {
        INTERVAL.div_f64(f64::from(self.count.max(1)).sqrt())
    }
}

#[derive(Debug, Default)]
struct Flow {
    packets: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    deficit: isize,
    codel: Codel,
    /// Bytes sent since it was last idle.
    sent: usize,
    idle_since: Option<Instant>,
    in_turn: bool,
}

/// A packet whose turn has come.
pub(crate) struct Due {
    pub(crate) packet: Vec<u8>,
    /// Whether its flow has moved much.
    pub(crate) large: bool,
}

/// Packets on their way to one peer.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    flows: HashMap<u64, Flow>,
    /// Flows that began to send just now; they go first.
    new: VecDeque<u64>,
    old: VecDeque<u64>,
    bytes: usize,
    /// Packets that were dropped.
    pub(crate) dropped: u64,
}

impl Fair {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Queues a packet of a flow; above the capacity the longest flow loses its oldest.
    pub(crate) fn push(&mut self, now: Instant, flow: u64, packet: Vec<u8>) {
        if self.flows.len() >= FLOWS_MAX {
            self.flows.retain(|_, flow| {
                flow.in_turn || flow.idle_since.is_none_or(|since| now.saturating_since(since) < REST)
            });
        }
        // Beyond the limit new flows share: rather a little unfair than without a bound.
        let is_full = self.flows.len() >= FLOWS_MAX && !self.flows.contains_key(&flow);
        let flow = if is_full { flow % 64 } else { flow };
        let entry = self.flows.entry(flow).or_default();
        if entry.idle_since.take().is_some_and(|since| now.saturating_since(since) >= REST) {
            entry.sent = 0;
        }
        self.bytes += packet.len();
        entry.bytes += packet.len();
        entry.packets.push_back((now, packet));
        if !entry.in_turn {
            entry.in_turn = true;
            entry.deficit = QUANTUM;
            self.new.push_back(flow);
        }
        while self.bytes > CAPACITY {
            let longest = self.flows.values_mut().max_by_key(|flow| flow.bytes);
            let Some((longest, (_, packet))) = longest.and_then(|flow| flow.packets.pop_front().map(|p| (flow, p)))
            else {
                break;
            };
            longest.bytes -= packet.len();
            self.bytes -= packet.len();
            self.dropped += 1;
        }
    }

    /// Takes the next packet, if it is no longer than `room`.
    pub(crate) fn pop(&mut self, now: Instant, room: usize) -> Option<Due> {
        loop {
            let from_new = !self.new.is_empty();
            let list = if from_new { &mut self.new } else { &mut self.old };
            let key = *list.front()?;
            let flow = self.flows.get_mut(&key)?;
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM;
                list.pop_front();
                self.old.push_back(key);
                continue;
            }
            let Some((since, packet)) = flow.packets.front() else {
                list.pop_front();
                // A flow that is empty takes a turn among the old, so that it cannot jump the queue again and again.
                if from_new {
                    self.old.push_back(key);
                } else {
                    flow.in_turn = false;
                    flow.idle_since = Some(now);
                }
                continue;
            };
            if packet.len() > room {
                return None;
            }
            let waited = now.saturating_since(*since);
            let is_last = flow.packets.len() == 1;
            let (_, packet) = flow.packets.pop_front()?;
            flow.bytes -= packet.len();
            self.bytes -= packet.len();
            if flow.codel.drops(now, waited, is_last) {
                self.dropped += 1;
                continue;
            }
            flow.deficit -= packet.len() as isize;
            let large = flow.sent > LARGE;
            flow.sent = flow.sent.saturating_add(packet.len());
            return Some(Due { packet, large });
        }
    }

    /// Begins anew to look at delays: there was no link for a while, and that is nobody's fault.
    pub(crate) fn link_up(&mut self) {
        for flow in self.flows.values_mut() {
            flow.codel = Codel::default();
        }
    }

    /// Takes all packets, in no particular order of flows.
    pub(crate) fn take_all(&mut self) -> Vec<Vec<u8>> {
        let flows = std::mem::take(&mut self.flows);
        self.new.clear();
        self.old.clear();
        self.bytes = 0;
        flows.into_values().flat_map(|flow| flow.packets.into_iter().map(|(_, packet)| packet)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_micros(1_000_000);

    fn sizes(fair: &mut Fair, now: Instant) -> Vec<usize> {
        std::iter::from_fn(|| fair.pop(now, usize::MAX)).map(|due| due.packet.len()).collect()
    }

    #[test]
    fn a_small_flow_goes_before_what_a_large_one_has_waiting() {
        let mut fair = Fair::default();
        for _ in 0..8 {
            fair.push(START, 1, vec![0; 16_000]);
        }
        assert_eq!(fair.pop(START, usize::MAX).unwrap().packet.len(), 16_000);
        fair.push(START, 2, vec![0; 100]);
        let order = sizes(&mut fair, START);
        let place = order.iter().position(|len| *len == 100).unwrap();
        assert!(place <= 2, "{order:?}");
    }

    #[test]
    fn two_flows_get_the_same_and_each_keeps_its_order() {
        let mut fair = Fair::default();
        for number in 0..8 {
            fair.push(START, 1, vec![number; 16_000]);
            fair.push(START, 2, vec![100 + number; 8_000]);
        }
        let mut sent = [0; 2];
        let mut last = [0; 2];
        for _ in 0..6 {
            let packet = fair.pop(START, usize::MAX).unwrap().packet;
            let flow = usize::from(packet[0] >= 100);
            sent[flow] += packet.len();
            assert!(packet[0] >= last[flow]);
            last[flow] = packet[0];
        }
        assert!(sent[0].abs_diff(sent[1]) <= 2 * 16_000, "{sent:?}");
    }

    #[test]
    fn the_queue_is_bounded_and_the_longest_flow_pays() {
        let mut fair = Fair::default();
        fair.push(START, 2, vec![0; 1_000]);
        for _ in 0..100 {
            fair.push(START, 1, vec![0; 10_000]);
        }
        assert!(fair.bytes() <= CAPACITY);
        assert!(fair.dropped > 70);
        assert!(sizes(&mut fair, START).contains(&1_000));
        assert!(fair.is_empty());
    }

    #[test]
    fn what_waits_long_is_thinned_out_and_what_waits_shortly_is_not() {
        let mut dropped = Vec::new();
        for delay_ms in [10, 60] {
            let mut fair = Fair::default();
            for step in 0..2_000u64 {
                fair.push(START + Duration::from_millis(step), 1, vec![0; 1_000]);
                if step >= delay_ms {
                    let _ = fair.pop(START + Duration::from_millis(step), usize::MAX);
                }
            }
            dropped.push(fair.dropped);
        }
        assert_eq!(dropped[0], 0);
        assert!(dropped[1] > 5, "{dropped:?}");
    }

    #[test]
    fn a_packet_longer_than_the_room_waits() {
        let mut fair = Fair::default();
        fair.push(START, 1, vec![0; 1_000]);
        assert!(fair.pop(START, 999).is_none());
        assert!(fair.pop(START, 1_000).is_some());
    }
}
