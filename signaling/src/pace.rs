//! How often one key may ask for its lease: a bucket of tokens for each key. No I/O.
//!
//! Addresses have buckets too, but a key may come from many of them, and every lease costs a signature and a write to
//! the disk.

use std::collections::HashMap;

use crate::identity::PublicKey;

/// Joins and renewals of one key at once.
pub const LEASES_BURST: u64 = 32;
/// After that one more in so many milliseconds.
pub const LEASE_INTERVAL_MS: u64 = 1_000;
/// Keys that are noted. Each is noted for [`LEASE_INTERVAL_MS`] after a single join, so that this is more than a server
/// lets in; beyond it keys go unnoted rather than that a stranger's many keys keep others out.
const KEYS_MAX: usize = 65_536;
/// The buckets of keys that came lately; a full one is not kept.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When the bucket of a key is full again, in milliseconds.
    full_at_ms: HashMap<PublicKey, u64>,
    /// When full buckets were last looked for.
    tidied_ms: u64,
}

impl Pace {
    /// Takes a token of a key; if there is none, returns the milliseconds until there is.
    pub(crate) fn take(&mut self, now_ms: u64, key: &PublicKey) -> Result<(), u64> {
        if now_ms.abs_diff(self.tidied_ms) >= LEASE_INTERVAL_MS {
            self.full_at_ms.retain(|_, full_at_ms| *full_at_ms > now_ms);
            self.tidied_ms = now_ms;
        }
        let known = self.full_at_ms.get(key).copied();
        // A clock that was set back must not make anybody wait for longer than an empty bucket takes to fill.
        let latest_ms = now_ms + LEASES_BURST * LEASE_INTERVAL_MS;
        let full_at_ms = known.unwrap_or(0).clamp(now_ms, latest_ms);
        let taken_ms = full_at_ms + LEASE_INTERVAL_MS;
        let result = if taken_ms <= latest_ms { Ok(taken_ms) } else { Err(taken_ms - latest_ms) };
        if known.is_some() || self.full_at_ms.len() < KEYS_MAX {
            self.full_at_ms.insert(*key, result.unwrap_or(full_at_ms));
        }
        result.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    #[test]
    fn a_key_has_so_many_tokens_at_once_and_then_one_in_an_interval() {
        let mut pace = Pace::default();
        let start_ms = 5_000_000;
        let at_once = (0..2 * LEASES_BURST).take_while(|_| pace.take(start_ms, &key(1)).is_ok()).count();
        assert_eq!(at_once as u64, LEASES_BURST);
        assert_eq!(pace.take(start_ms + 400, &key(1)), Err(LEASE_INTERVAL_MS - 400));
        assert_eq!(pace.take(start_ms + 400, &key(2)), Ok(()), "another key is not concerned");
        assert_eq!(pace.take(start_ms + LEASE_INTERVAL_MS, &key(1)), Ok(()));
        assert_eq!(pace.take(start_ms + LEASE_INTERVAL_MS, &key(1)), Err(LEASE_INTERVAL_MS));
    }

    #[test]
    fn a_clock_that_is_set_back_costs_an_interval_at_most() {
        let mut pace = Pace::default();
        while pace.take(5_000_000, &key(1)).is_ok() {}
        assert_eq!(pace.take(1_000, &key(1)), Err(LEASE_INTERVAL_MS));
        assert_eq!(pace.take(1_000 + LEASE_INTERVAL_MS, &key(1)), Ok(()));
    }

    #[test]
    fn keys_that_came_once_are_forgotten_and_never_more_than_a_bound_are_kept() {
        let mut pace = Pace::default();
        for n in 0..200_000 {
            assert_eq!(pace.take(u64::from(n), &key(n)), Ok(()));
        }
        assert!(pace.full_at_ms.len() <= 3 * LEASE_INTERVAL_MS as usize, "{} are kept", pace.full_at_ms.len());
        for n in 0..200_000 {
            assert_eq!(pace.take(1_000_000, &key(n)), Ok(()));
        }
        assert_eq!(pace.full_at_ms.len(), KEYS_MAX);
    }
}
