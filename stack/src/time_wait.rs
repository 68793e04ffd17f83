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
        if self.order.len() >= limits::TIME_WAIT_MAX
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.rests.remove(&oldest);
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
        while let Some((at, tuple)) = self.order.front().copied()
            && at <= now
        {
            self.order.pop_front();
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
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.order.front().map(|(at, _)| *at)
    }

    pub(crate) fn len(&self) -> usize {
        self.rests.len()
    }
}
