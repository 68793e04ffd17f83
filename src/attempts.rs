//! Links in the making: bounded, and not by what strangers leave lying about.

use std::time::Duration;

use unisockets_link::{Lost, Role};
use unisockets_signaling::identity::PublicKey;
use unisockets_stack::{Instant, PathEnd};

use crate::node::NodeCore;
use crate::peers::{self, Attempt, Peer};

/// Links that may be in the making at one time for each of both roles: each costs a certificate and sockets. Offers of
/// others take nothing from this node's own.
pub(crate) const ATTEMPTS_MAX: usize = 64;
/// An attempt of a peer that has never proven itself makes room for another one after so long. Links open sooner where
/// they open at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a dial waits whose signals found no room at signaling, and how often.
const CONGESTED_PAUSE: Duration = Duration::from_secs(1);
const CONGESTED_MAX: u32 = 20;
/// No WebRTC stack gives up looking for a path before so long: what ends sooner has broken. libdatachannel, for one,
/// refuses the certificate of a peer that is quicker than its own thread in taking that peer's answer.
const SEARCH_MIN: Duration = Duration::from_secs(4);

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

    /// An attempt failed: what never was connected fails, what was goes on trying.
    pub(crate) fn attempt_failed(&mut self, now: Instant, key: PublicKey, attempt: &Attempt, lost: Lost) {
        let in_use = self.peers.get(&key).is_some_and(|peer| self.is_used(now, peer.path));
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.link.is_some() {
            return;
        }
        // Two that have found each other may still fail to agree over a bad wire; the other end does not know of it yet.
        // What only the other end wanted is left to it.
        let is_wanted = attempt.role == Role::Offer || in_use;
        let broke = lost == Lost::Transport || (lost == Lost::NoPath && is_wanted && attempt.age(now) < SEARCH_MIN);
        let tries_again = broke && peer.failures <= peers::FIRST_TRIES && peer.gone.is_none();
        if peer.lost_at.is_none() && tries_again {
            peer.redial_at = Some(now + peer.redial_pause());
            return;
        }
        if peer.lost_at.is_none() {
            let text = format!("{} cannot be linked to: {lost}", peer.label());
            self.incident(now, "no_link", text);
            return self.forget_peer(now, key, PathEnd::Unreachable);
        }
        if !in_use {
            return self.forget_peer(now, key, PathEnd::Idle);
        }
        peer.redial_at = Some(now + peer.redial_pause());
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

    /// The stack below may break before it has looked anywhere; that once was "no route to that member" within 0.1 s.
    #[test]
    fn what_breaks_at_once_is_tried_again() {
        let network = Arc::new(Network::new("home", None).unwrap());
        let (pins, host) = (Pins::default(), String::new());
        let config = Config { network, pair: pair(1), seed: [0; 32], origin_unix_ms: 0, pins, host };
        let (mut core, mut now) = (NodeCore::new(config), Instant::from_micros(1_000_000));
        let lose = |core: &mut NodeCore, now: Instant, key: &PublicKey| {
            let link = core.peers[key].attempt.as_ref().unwrap().link;
            core.link_lost(now, link, Lost::NoPath);
        };
        let peer = pair(2).public();
        let stack =
            core.stack.open_path(PathConfig { mtu: unisockets_stack::MTU_MIN, verify_checksums: false }).unwrap();
        let address = address_v6(core.network.id(), &peer);
        core.peers.insert(peer, Peer::new(now, peer, address, stack, 0));
        core.dial(now, peer);
        for _ in 0..peers::FIRST_TRIES {
            now = now + Duration::from_millis(100);
            lose(&mut core, now, &peer);
            now = core.peers[&peer].redial_at.unwrap();
            core.peer_timeout(now, peer);
        }
        lose(&mut core, now, &peer);
        assert!(!core.peers.contains_key(&peer), "not for ever");
        // Who has looked for long enough has looked in vain.
        let stack =
            core.stack.open_path(PathConfig { mtu: unisockets_stack::MTU_MIN, verify_checksums: false }).unwrap();
        core.peers.insert(peer, Peer::new(now, peer, address, stack, 0));
        core.dial(now, peer);
        lose(&mut core, now + SEARCH_MIN, &peer);
        assert!(!core.peers.contains_key(&peer));
        // And an offer that came to nothing is its author's to repeat.
        assert!(offer(&mut core, &pair(3), 1));
        lose(&mut core, now, &pair(3).public());
        assert!(!core.peers.contains_key(&pair(3).public()));
    }
}
