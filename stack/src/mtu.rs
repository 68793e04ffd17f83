//! Path MTU: how large a packet may be that reaches an address (RFC 1191, RFC 8201, RFC 4821).
//!
//! A path has the MTU of its link. Behind the peer there may be less: a kernel that routes, a tunnel. That is learnt
//! from ICMP errors which quote what we have really sent, and, where these do not come, from long segments that are
//! repeated in vain.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::flow::{Flow, FlowId};
use crate::limits;
use crate::shard::Stack;
use crate::tcp::{State, Wire};
use crate::time::Instant;

/// How long a learnt MTU is believed (RFC 1191, section 6.3; mtu_expires of Linux).
const LEARNT_FOR: Duration = Duration::from_secs(600);
/// Addresses whose MTU is remembered; at the limit the one that ends first is forgotten.
const LEARNT_MAX: usize = 1_024;
/// Repetitions of one segment after which a shorter one is tried, and after as many more the shortest (RFC 4821,
/// section 7.7).
const REPEATS_BEFORE_SHORTER: u32 = 3;
/// The least that an IPv4 host has to take (RFC 791, section 3.2).
const MTU_MIN_V4: usize = 576;

/// What was learnt of addresses behind paths.
#[derive(Debug, Default)]
pub(crate) struct LearntMtus {
    by_address: HashMap<IpAddr, (usize, Instant)>,
    /// Nothing is forgotten before.
    ends_at: Option<Instant>,
}

impl LearntMtus {
    /// Returns the largest packet for an address behind a link of `mtu` bytes.
    pub(crate) fn limit(&self, address: IpAddr, mtu: usize) -> usize {
        self.by_address.get(&address).map_or(mtu, |(learnt, _)| mtu.min(*learnt))
    }

    fn insert(&mut self, now: Instant, address: IpAddr, mtu: usize) {
        if self.by_address.len() >= LEARNT_MAX && !self.by_address.contains_key(&address) {
            let oldest = self.by_address.iter().min_by_key(|(_, (_, ends_at))| *ends_at);
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.by_address.remove(&oldest);
            }
        }
        self.by_address.insert(address, (mtu, now + LEARNT_FOR));
        self.ends_at.get_or_insert(now + LEARNT_FOR);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.ends_at
    }

    /// Takes out what ended, and returns its addresses.
    fn expire(&mut self, now: Instant) -> Vec<IpAddr> {
        if self.ends_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let ended = self.by_address.extract_if(|_, (_, ends_at)| *ends_at <= now).map(|(address, _)| address).collect();
        self.ends_at = self.by_address.values().map(|(_, ends_at)| *ends_at).min();
        ended
    }
}

/// The least MTU that is believed for a family: less would only serve somebody who wants to slow us down.
pub(crate) fn least(address: IpAddr) -> usize {
    // RFC 8200, section 5: every link of IPv6 carries 1,280 bytes.
    if address.is_ipv4() { MTU_MIN_V4 } else { crate::MTU_MIN }
}

impl Flow {
    /// The wire as this connection has to see it.
    pub(crate) fn wire(&self, wire: Wire) -> Wire {
        Wire { mtu: self.mtu.map_or(wire.mtu, |mtu| wire.mtu.min(mtu)), ..wire }
    }
}

impl Stack {
    /// Notes that packets to an address must not be longer than `mtu` bytes.
    pub(crate) fn learn_mtu(&mut self, now: Instant, address: IpAddr, mtu: usize) {
        let mtu = mtu.max(least(address));
        self.learnt_mtus.insert(now, address, mtu);
        let concerned = |flow: &Flow| flow.tuple.remote.ip() == address && flow.mtu.is_none_or(|known| mtu < known);
        let flows: Vec<FlowId> = self.flows.iter().filter(|(_, flow)| concerned(flow)).map(|(id, _)| id).collect();
        for id in flows {
            // What was too long is repeated at once, in pieces that fit (RFC 1191, section 6.4). First the clock: with
            // shorter segments there may be something new to send, which is not what has to leave now.
            self.resume(now, id);
            if let Some(flow) = self.flows.get_mut(id) {
                flow.mtu = Some(mtu);
            }
        }
    }

    /// Cuts the segments of a connection shorter when a long one was repeated in vain: whoever dropped it for its
    /// length may not have said so (RFC 2923, section 2.1).
    pub(crate) fn avoid_black_hole(&mut self, now: Instant, id: FlowId, packet_len: usize) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let remote = flow.tuple.remote.ip();
        let established = !matches!(flow.state, State::SynSent | State::SynReceived);
        let shorter = match flow.meter.repeats() {
            0..REPEATS_BEFORE_SHORTER => return,
            times if times < 2 * REPEATS_BEFORE_SHORTER => crate::MTU_MIN,
            _ => least(remote),
        };
        if !established || packet_len <= shorter {
            return;
        }
        flow.mtu = Some(shorter);
        self.learnt_mtus.insert(now, remote, shorter);
    }

    /// Forgets what was learnt long ago; a larger MTU may hold again.
    pub(crate) fn forget_mtus(&mut self, now: Instant) {
        for address in self.learnt_mtus.expire(now) {
            for flow in self.flows.values_mut().filter(|flow| flow.tuple.remote.ip() == address) {
                flow.mtu = None;
            }
        }
    }
}

/// The MTU that an ICMP error names for a packet of `packet_len` bytes; old routers name none (RFC 1191, section 5).
pub(crate) fn named(next_hop: usize, packet_len: usize) -> usize {
    const PLATEAUS: [usize; 9] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_280, 1_006, limits::MTU_LEAST_NAMED];
    if next_hop >= limits::MTU_LEAST_NAMED {
        return next_hop;
    }
    PLATEAUS.into_iter().find(|plateau| *plateau < packet_len).unwrap_or(limits::MTU_LEAST_NAMED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_names_no_mtu_means_the_next_plateau() {
        assert_eq!((named(1_400, 1_500), named(0, 1_500), named(0, 65_535)), (1_400, 1_492, 32_000));
        assert_eq!((named(0, 100), named(60, 1_000)), (68, 68));
    }

    #[test]
    fn what_is_learnt_has_a_bound() {
        let mut learnt = LearntMtus::default();
        for n in 0..2 * LEARNT_MAX as u32 {
            let address = IpAddr::from((0x0a50_0000 + n).to_be_bytes());
            learnt.insert(Instant::from_millis(u64::from(n)), address, 1_280);
        }
        assert_eq!(learnt.by_address.len(), LEARNT_MAX);
        assert_eq!(learnt.limit("10.80.0.0".parse().unwrap(), 9_000), 9_000, "the oldest is forgotten");
        assert_eq!(learnt.limit("10.80.7.255".parse().unwrap(), 9_000), 1_280);
    }
}
