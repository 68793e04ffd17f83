//! Links in the making: bounded, and not by what strangers leave lying about.

use std::time::Duration;

use unisockets_link::{Lost, Role};
use unisockets_signaling::identity::PublicKey;
use unisockets_stack::Instant;

use crate::node::NodeCore;
use crate::peers::Peer;

/// Links that may be in the making at one time for each of both roles: each costs a certificate and sockets. Offers of
/// others take nothing from this node's own.
pub(crate) const ATTEMPTS_MAX: usize = 64;
/// An attempt of a peer that has never proven itself makes room for another one after so long. Links open sooner where
/// they open at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a dial waits whose signals found no room at signaling, and how often.
const CONGESTED_PAUSE: Duration = Duration::from_secs(1);
const CONGESTED_MAX: u32 = 20;

impl NodeCore {
    /// Links that are being made in a role.
    pub(crate) fn attempts(&self, role: Role) -> usize {
        let is_made = |peer: &&Peer| peer.attempt.as_ref().is_some_and(|attempt| attempt.role == role);
        self.peers.values().filter(is_made).count()
    }

    /// Whether an offer of a peer has a place; the oldest attempt of one that nobody knows may have to go for it.
    pub(crate) fn has_place_for(&mut self, now: Instant, from: &PublicKey) -> bool {
        let peer = self.peers.get(from);
        if peer.is_some_and(|peer| peer.attempt.is_some()) || self.attempts(Role::Answer) < ATTEMPTS_MAX {
            return true;
        }
        // Who was here before need not wait for who was not.
        let patience = if peer.is_some_and(Peer::is_acquainted) { Duration::ZERO } else { PATIENCE };
        let stranger = |peer: &&Peer| !peer.is_acquainted();
        let attempts = self.peers.values().filter(stranger).filter_map(|peer| peer.attempt.as_ref());
        let answers = attempts.filter(|attempt| attempt.role == Role::Answer && !attempt.proven);
        let oldest = answers.min_by_key(|attempt| attempt.deadline).filter(|attempt| attempt.age(now) >= patience);
        let Some(link) = oldest.map(|attempt| attempt.link) else {
            return false;
        };
        tracing::debug!("an attempt makes room for another peer's");
        self.link_lost(now, link, Lost::NoPath);
        true
    }

    /// Takes signaling's word that so much waits for a member that it took nothing more: what was being made with it
    /// begins anew a little later, for some time.
    pub fn congested(&mut self, now: Instant, to: PublicKey) {
        let Some(peer) = self.peers.get_mut(&to) else {
            return;
        };
        let Some(link) = peer.attempt.as_ref().map(|attempt| attempt.link) else {
            return;
        };
        peer.failures += 1;
        if peer.failures > CONGESTED_MAX {
            return self.link_lost(now, link, Lost::NoPath);
        }
        peer.attempt = None;
        peer.redial_at = Some(now + CONGESTED_PAUSE);
        self.peers_changed = true;
        self.drop_link(link);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use unisockets_link::Signal;
    use unisockets_signaling::envelope::{self, Content, SessionId};
    use unisockets_signaling::identity::KeyPair;
    use unisockets_signaling::network::{Network, address_v6};
    use unisockets_signaling::pins::Pins;
    use unisockets_stack::PathConfig;

    use super::*;
    use crate::node::Config;

    fn pair(n: u8) -> KeyPair {
        KeyPair::from_seed(&[n; 32])
    }

    /// A peer offers a link at a time in seconds; returns whether it has an attempt now.
    fn offer(core: &mut NodeCore, from: &KeyPair, at_s: u64) -> bool {
        let body = serde_json::to_string(&Signal::Offer { sdp: "v=0".to_owned() }).unwrap();
        let session: SessionId = core.random_session();
        let content = Content { session, counter: 0, sent_at_ms: at_s * 1_000, incarnation: None, offer: None, body };
        let payload = envelope::seal(&core.network, from, &core.key, &content, [0; 24]);
        core.handle_signal(Instant::from_micros(at_s * 1_000_000), from.public(), &payload);
        core.peers.get(&from.public()).is_some_and(|peer| peer.attempt.is_some())
    }

    /// 64 keys that offer and say no more once kept a node from making any link, its own among them.
    #[test]
    fn strangers_keep_nobody_from_linking() {
        let network = Arc::new(Network::new("home", None).unwrap());
        let (pins, host) = (Pins::default(), String::new());
        let config =
            Config { network: Arc::clone(&network), pair: pair(1), seed: [0; 32], origin_unix_ms: 0, pins, host };
        let (mut core, now) = (NodeCore::new(config), Instant::from_micros(1_000_000));
        assert!((0..ATTEMPTS_MAX as u8).all(|n| offer(&mut core, &pair(100 + n), 1)));
        assert!(!offer(&mut core, &pair(2), 1), "the others may well open yet");
        assert!(!core.peers.contains_key(&pair(2).public()), "nothing is kept of one that finds no place");
        // One that was here before does not wait for them.
        let friend = pair(3).public();
        let path = PathConfig { mtu: unisockets_stack::MTU_MIN, verify_checksums: false };
        let path = core.stack.open_path(path).unwrap();
        let mut peer = Peer::new(now, friend, address_v6(network.id(), &friend), path, 0);
        peer.incarnation = Some(7);
        core.peers.insert(friend, peer);
        assert!(offer(&mut core, &pair(3), 1));
        // Nor does what this node itself wants.
        core.peers.get_mut(&friend).unwrap().attempt = None;
        core.dial(now, friend);
        assert_eq!(core.attempts(Role::Offer), 1);
        // And those that do not open make room.
        assert!(offer(&mut core, &pair(2), 7) && offer(&mut core, &pair(4), 7));
        assert_eq!(core.attempts(Role::Answer), ATTEMPTS_MAX);
        // What found no room at signaling is tried again, and not for ever.
        for turn in 0..=CONGESTED_MAX {
            assert!(core.peers[&friend].attempt.is_some(), "{turn}");
            core.congested(now, friend);
            if turn < CONGESTED_MAX {
                assert_eq!(core.peers[&friend].redial_at, Some(now + CONGESTED_PAUSE));
                core.dial(now, friend);
            }
        }
        assert!(!core.peers.contains_key(&friend));
    }
}
