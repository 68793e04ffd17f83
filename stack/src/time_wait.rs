//! TIME-WAIT: connections that are over, and whose late segments are still answered.

use std::collections::{HashMap, VecDeque};

use crate::flow::Tuple;
use crate::limits;
use crate::shard::KeyedHash;
use crate::time::Instant;

/// What is left of a connection in TIME-WAIT: 40 bytes or so, no socket (RFC 9293, section 3.6).
pub(crate) struct Rest {
    pub(crate) send_next: u32,
    pub(crate) receive_next: u32,
    pub(crate) ends_at: Instant,
}

/// The connections in TIME-WAIT.
pub(crate) struct TimeWait {
    rests: HashMap<Tuple, Rest, KeyedHash>,
    order: VecDeque<(Instant, Tuple)>,
}

impl TimeWait {
    pub(crate) fn new(hash: KeyedHash) -> Self {
        Self { rests: HashMap::with_hasher(hash), order: VecDeque::new() }
    }

    pub(crate) fn insert(&mut self, tuple: Tuple, rest: Rest) {
        while self.order.len() >= limits::TIME_WAIT_MAX
            && let Some((at, _)) = self.order.front().copied()
        {
            self.end_first(at);
        }
        self.order.push_back((rest.ends_at, tuple));
        self.rests.insert(tuple, rest);
    }

    pub(crate) fn contains(&self, tuple: &Tuple) -> bool {
        self.rests.contains_key(tuple)
    }

    /// Returns the sequence numbers that answer a late segment.
    pub(crate) fn numbers(&self, tuple: &Tuple) -> Option<(u32, u32)> {
        self.rests.get(tuple).map(|rest| (rest.send_next, rest.receive_next))
    }

    pub(crate) fn remove(&mut self, tuple: &Tuple) {
        self.rests.remove(tuple);
    }

    /// Begins the wait anew: the peer has repeated its FIN (RFC 9293, section 3.10.7.4).
    pub(crate) fn restart(&mut self, now: Instant, tuple: &Tuple) {
        if let Some(rest) = self.rests.get_mut(tuple) {
            rest.ends_at = now + limits::TIME_WAIT;
        }
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| *at <= now) {
            self.end_first(now);
        }
    }

    /// Takes the first entry of the order, and ends its wait if that is over.
    fn end_first(&mut self, now: Instant) {
        let Some((_, tuple)) = self.order.pop_front() else {
            return;
        };
        match self.rests.get(&tuple).map(|rest| rest.ends_at) {
            Some(ends_at) if ends_at <= now => {
                self.rests.remove(&tuple);
            }
            // The wait began anew, or the same ports were used again; one entry of the order is enough.
            Some(ends_at) => {
                let place = self.order.partition_point(|(at, _)| *at <= ends_at);
                let known = place.checked_sub(1).and_then(|last| self.order.get(last));
                if known != Some(&(ends_at, tuple)) {
                    self.order.insert(place, (ends_at, tuple));
                }
            }
            None => {}
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.order.front().map(|(at, _)| *at)
    }

    pub(crate) fn len(&self) -> usize {
        self.rests.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;

    fn tuple(port: u16) -> Tuple {
        let end = |port| SocketAddr::from(([10, 80, 0, 1], port));
        Tuple { local: end(80), remote: end(port) }
    }

    fn rest(seconds: u64) -> Rest {
        Rest { send_next: 1, receive_next: 2, ends_at: Instant::ZERO + Duration::from_secs(seconds) }
    }

    /// The record of a port that was used again went in place of the oldest.
    #[test]
    fn the_oldest_makes_room_and_not_one_that_began_anew() {
        let mut waits = TimeWait::new(KeyedHash(7, 7));
        waits.insert(tuple(1), rest(1));
        waits.insert(tuple(2), rest(1));
        waits.insert(tuple(3), rest(2));
        waits.remove(&tuple(1));
        waits.insert(tuple(1), rest(9));
        waits.restart(Instant::ZERO, &tuple(2));
        for port in (1_000..).take(limits::TIME_WAIT_MAX - 4) {
            waits.insert(tuple(port), rest(9));
        }
        assert_eq!(waits.len(), limits::TIME_WAIT_MAX - 1, "one entry is stale");
        waits.insert(tuple(4), rest(9));
        assert!(!waits.contains(&tuple(3)), "the oldest has gone");
        assert!([1, 2, 4].iter().all(|port| waits.contains(&tuple(*port))), "those that began anew have not");
        assert!(waits.len() <= limits::TIME_WAIT_MAX && waits.order.len() <= limits::TIME_WAIT_MAX);
    }
}
