//! How a node gets a link to a peer, proves itself, finds out about a loss, and gets it back.

use std::net::IpAddr;
use std::sync::Arc;

use unisockets_link::{Link, Lost, Role, Signal, signal};
use unisockets_signaling::envelope::{self, Content};
use unisockets_signaling::identity::PublicKey;
use unisockets_signaling::network::address_v6;
use unisockets_signaling::protocol::{Bytes32, GoneReason, Lease, SignedLease};
use unisockets_stack::{Instant, PathConfig, PathEnd};

use crate::attempts::ATTEMPTS_MAX;
use crate::hello::{self, Bye, Control, Ends, Hello, Stage};
use crate::node::{NodeCore, Output, PEERS_MAX, Signaling};
use crate::peers::{self, Absence, Attempt, LinkEntry, LinkId, Peer};

/// The MTUs that links have: a peer's is rounded down to one of them, so that the stack knows only few.
const MTUS: [usize; 5] = [unisockets_stack::MTU_MIN, 1_500, 4_096, 9_000, unisockets_link::MTU];

fn mtu_class(mtu: usize) -> usize {
    MTUS.into_iter().rev().find(|class| *class <= mtu).unwrap_or(unisockets_stack::MTU_MIN)
}

impl NodeCore {
    /// Starts to make a link to a peer, unless there is one, or an attempt.
    pub(crate) fn dial(&mut self, now: Instant, key: PublicKey) {
        let busy = self.peers.get(&key).is_none_or(|peer| peer.link.is_some() || peer.attempt.is_some());
        if busy {
            return;
        }
        if self.attempts(Role::Offer) >= ATTEMPTS_MAX {
            // Its turn comes when others have theirs behind them.
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.redial_at = Some(now + peers::CROWDED_PAUSE);
                self.peers_changed = true;
            }
        } else {
            let session = self.random_session();
            self.attempt(now, key, Role::Offer, session, None);
        }
    }

    /// Dials every peer at once that is lost or has not answered yet: this node was cut off from signaling, and offers of
    /// that time have reached nobody.
    pub(crate) fn dial_lost_peers(&mut self, now: Instant) {
        let offered = |peer: &Peer| peer.attempt.as_ref().is_some_and(|attempt| attempt.role == Role::Offer);
        let lost = self.peers.values().filter(|peer| peer.link.is_none() && (peer.lost_at.is_some() || offered(peer)));
        let keys: Vec<PublicKey> = lost.map(|peer| peer.key).collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            if let Some(stale) = peer.attempt.take_if(|attempt| attempt.role == Role::Offer && !attempt.answered) {
                self.drop_link(stale.link);
            }
            self.dial(now, key);
        }
    }

    fn attempt(
        &mut self,
        now: Instant,
        key: PublicKey,
        role: Role,
        session: envelope::SessionId,
        offer: Option<Bytes32>,
    ) -> LinkId {
        self.peers_changed = true;
        let link = self.new_link_id();
        self.links.insert(link, LinkEntry { peer: key, link: None, session, introduced_at: None, early: Vec::new() });
        if let Some(peer) = self.peers.get_mut(&key) {
            let deadline = now + peers::ATTEMPT_TIMEOUT;
            peer.redial_at = None;
            peer.attempt =
                Some(Attempt { link, session, role, offer, answered: false, proven: false, counter: 0, deadline });
        }
        self.outputs.push_back(Output::OpenLink { link, role });
        link
    }

    /// Takes a link that the shell has made for [`Output::OpenLink`].
    pub fn link_made(&mut self, id: LinkId, link: Arc<dyn Link>) {
        match self.links.get_mut(&id) {
            Some(entry) => {
                for signal in entry.early.drain(..) {
                    link.handle_signal(signal);
                }
                entry.link = Some(link);
            }
            // The attempt was given up meanwhile.
            None => link.close(),
        }
    }

    /// Takes what a link has to tell its peer, to be signed and sent through signaling.
    pub fn link_signal(&mut self, now: Instant, id: LinkId, signal: &Signal) {
        let Some(key) = self.links.get(&id).map(|entry| entry.peer) else {
            return;
        };
        let body = serde_json::to_string(signal).expect("every signal has a JSON form");
        let unix_ms = self.unix_ms(now);
        let nonce: [u8; 24] = self.random()[..24].try_into().expect("24 of 32 bytes");
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(attempt) = peer.attempt.as_mut().filter(|attempt| attempt.link == id) else {
            return;
        };
        let is_offer = matches!(signal, Signal::Offer { .. });
        if is_offer {
            attempt.offer = Some(envelope::offer_hash(&body));
        }
        let content = Content {
            session: attempt.session,
            counter: attempt.counter,
            sent_at_ms: unix_ms,
            incarnation: peer.incarnation.filter(|_| is_offer && peer.link.is_some()),
            offer: attempt.offer.filter(|_| !is_offer),
            body,
        };
        attempt.counter += 1;
        let payload = envelope::seal(&self.network, &self.pair, &key, &content, nonce);
        self.outputs.push_back(Output::Signal { to: key, payload });
    }

    /// Takes a payload that came through signaling. Nothing of it is believed before its signature is.
    pub fn handle_signal(&mut self, now: Instant, from: PublicKey, payload: &str) {
        let unix_ms = self.unix_ms(now);
        let opened = envelope::open(&self.network, &from, &self.key, payload)
            .and_then(|content| self.freshness.accept(unix_ms, &from, &content).map(|()| content));
        let content = match opened {
            Ok(content) => content,
            Err(rejected) => {
                let kind = match rejected {
                    envelope::Rejected::Sealed => "signal_sealed",
                    envelope::Rejected::Forged => "signal_forged",
                    envelope::Rejected::Replayed => "signal_replayed",
                    _ => "signal_malformed",
                };
                return self.incident(now, kind, format!("{rejected} (from {})", from.short()));
            }
        };
        let signal = match serde_json::from_str::<Signal>(&content.body) {
            Ok(signal) if signal.is_reasonable() => signal,
            _ => return self.incident(now, "signal_malformed", format!("nonsense from {}", from.short())),
        };
        if content.incarnation.is_some_and(|wanted| wanted != self.incarnation) {
            // Meant for this node's earlier life: the peer will learn from our hello.
            tracing::debug!(peer = %from.short(), "an offer for an earlier life of this node");
        }
        match signal {
            Signal::Offer { .. } => self.take_offer(now, from, &content, signal),
            Signal::Answer { .. } | Signal::Candidate { .. } => self.take_reply(now, from, &content, signal),
        }
    }

    fn take_offer(&mut self, now: Instant, from: PublicKey, content: &Content, signal: Signal) {
        self.peers_changed = true;
        let is_known = self.peers.contains_key(&from);
        if !is_known {
            // Nothing is kept of one that finds no place.
            if self.peers.len() >= PEERS_MAX || from == self.key || !self.has_place_for(now, &from) {
                return;
            }
            let config = PathConfig { mtu: unisockets_stack::MTU_MIN, verify_checksums: false };
            let Ok(path) = self.stack.open_path(config) else {
                return;
            };
            let ipv6 = address_v6(self.network.id(), &from);
            let acquaintance = self.random_number();
            self.paths.insert(path, from);
            self.peers.insert(from, Peer::new(now, from, ipv6, path, acquaintance));
        }
        let may_offer = self.peers.get_mut(&from).is_some_and(|peer| peer.may_offer(now));
        if !may_offer || (is_known && !self.has_place_for(now, &from)) {
            return tracing::debug!(peer = %from.short(), "an offer too many");
        }
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.may_be_there();
        if let Some(attempt) = &peer.attempt {
            // Two offers crossed, or the peer has given its own up and begun again.
            let crossed = attempt.role == Role::Offer && !attempt.answered;
            let keeps = crossed && signal::glare(self.key.as_bytes(), from.as_bytes()) == signal::Glare::Keep;
            if keeps && attempt.age(now) < peers::CROSSING {
                return;
            }
            let link = attempt.link;
            peer.attempt = None;
            self.drop_link(link);
            if keeps {
                // The own offer was lost with a connection to signaling: now that the peer is there, another finds it.
                return self.dial(now, from);
            }
        } else if peer.link.is_some() && peer.linked_at.is_some_and(|at| now < at + peers::REPLACE_INTERVAL) {
            return tracing::debug!(peer = %from.short(), "a working link is not replaced so soon");
        }
        let offer = envelope::offer_hash(&content.body);
        let link = self.attempt(now, from, Role::Answer, content.session, Some(offer));
        self.give_signal(link, signal);
    }

    fn take_reply(&mut self, now: Instant, from: PublicKey, content: &Content, signal: Signal) {
        let attempt = self.peers.get_mut(&from).and_then(|peer| peer.attempt.as_mut());
        let Some(attempt) = attempt.filter(|attempt| attempt.session == content.session) else {
            return tracing::debug!(peer = %from.short(), "a signal of an attempt that is over");
        };
        let is_answer = matches!(signal, Signal::Answer { .. });
        if content.offer != attempt.offer || (is_answer && (attempt.role != Role::Offer || attempt.answered)) {
            let rejected = envelope::Rejected::WrongOffer;
            return self.incident(now, "signal_wrong_offer", format!("{rejected} (from {})", from.short()));
        }
        attempt.answered |= is_answer;
        let link = attempt.link;
        // Whoever answers is connected to signaling again, whatever was heard before.
        self.peers_changed = true;
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.may_be_there();
        }
        self.give_signal(link, signal);
    }

    fn give_signal(&mut self, link: LinkId, signal: Signal) {
        match self.links.get_mut(&link) {
            Some(LinkEntry { link: Some(link), .. }) => link.handle_signal(signal),
            Some(entry) if entry.early.len() <= signal::CANDIDATES_MAX => entry.early.push(signal),
            _ => {}
        }
    }

    /// Says that all lanes of a link are open: the node introduces itself.
    pub fn link_opened(&mut self, now: Instant, id: LinkId) {
        self.links.entry(id).and_modify(|entry| entry.introduced_at = Some(now));
        self.introduce(id, Stage::Opened);
    }

    /// Shows the node's new lease on every link in use.
    pub(crate) fn introduce_again(&mut self) {
        let links: Vec<LinkId> = self.peers.values().filter_map(|peer| peer.link).collect();
        for link in links {
            self.introduce(link, Stage::Heard);
        }
    }

    fn introduce(&mut self, id: LinkId, stage: Stage) {
        let Some(entry) = self.links.get(&id) else {
            return;
        };
        let ends = Ends { network: self.network.id(), from: &self.key, to: &entry.peer };
        let life = (self.incarnation, self.peers.get(&entry.peer).map_or(0, |peer| peer.acquaintance));
        let hello = Hello::sign(ends, &self.pair, stage, life, entry.session, self.lease.clone());
        if let Some(link) = &entry.link {
            // The control lane carries little else at this time: the hello fits.
            let _ = link.send_control(&Control::Hello(Box::new(hello)).emit());
        }
    }

    /// Takes a message of a link's control lane.
    pub fn handle_control(&mut self, now: Instant, id: LinkId, message: &[u8]) {
        self.peers_changed = true;
        let Some(key) = self.links.get(&id).map(|entry| entry.peer) else {
            return;
        };
        match Control::parse(message) {
            Some(Control::Hello(hello)) => self.take_hello(now, id, key, &hello),
            Some(Control::Bye { reason }) => self.take_bye(now, id, key, reason),
            None => self.refuse_link(now, id, "hello_malformed", "its first message is no hello of this version"),
        }
    }

    fn refuse_link(&mut self, now: Instant, id: LinkId, kind: &'static str, text: &str) {
        let Some(entry) = self.links.get(&id) else {
            return;
        };
        let key = entry.peer;
        if let Some(link) = &entry.link {
            let _ = link.send_control(&Control::Bye { reason: Bye::Refused }.emit());
        }
        self.incident(now, kind, format!("the link with {} was refused: {text}", key.short()));
        self.link_lost(now, id, Lost::Setup);
    }

    fn take_hello(&mut self, now: Instant, id: LinkId, key: PublicKey, hello: &Hello) {
        let Some(session) = self.links.get(&id).map(|entry| entry.session) else {
            return;
        };
        if !self.peers.get_mut(&key).is_some_and(|peer| peer.takes_hello(now)) {
            return;
        }
        let ends = Ends { network: self.network.id(), from: &key, to: &self.key };
        if hello.version != hello::VERSION {
            return self.refuse_link(now, id, "hello_version", "it speaks another version; update the older side");
        }
        if hello.session != session || !hello.is_signed(ends) {
            return self.refuse_link(now, id, "hello_forged", "its hello is not signed for this link");
        }
        if let Some(lease) = &hello.lease
            && let Err(text) = self.check_lease(now, &key, lease)
        {
            return self.refuse_link(now, id, "lease_invalid", text);
        }
        if self.peers.get(&key).is_some_and(|peer| peer.link == Some(id)) {
            // It has another lease than when the link was made.
            return self.believe(now, key, hello);
        }
        let attempt = self.peers.get_mut(&key).and_then(|peer| peer.attempt.as_mut());
        let Some(attempt) = attempt.filter(|attempt| attempt.link == id) else {
            return;
        };
        if !std::mem::replace(&mut attempt.proven, true) {
            self.believe(now, key, hello);
            self.introduce(id, Stage::Heard);
        }
        if hello.stage == Stage::Heard {
            self.adopt_link(now, id, key);
        }
    }

    /// An IPv4 address needs the word of the server that this node trusts (threat T2).
    fn check_lease(&self, now: Instant, key: &PublicKey, lease: &SignedLease) -> Result<(), &'static str> {
        let own = self.lease.as_ref().map(|own| own.server);
        if lease.lease.key != *key || lease.lease.network != self.network.id() {
            return Err("it presents another member's lease");
        }
        if own.is_some_and(|own| own != lease.server) || !lease.is_signed() {
            return Err("its lease is not signed by this network's server");
        }
        if !self.stack.is_in_network(IpAddr::V4(lease.lease.ipv4)) {
            return Err("its address is not the network's");
        }
        if lease.lease.not_after.saturating_mul(1_000) < self.unix_ms(now) {
            return Err("its lease has ended");
        }
        Ok(())
    }

    /// Takes over what a proven peer says of itself.
    fn believe(&mut self, now: Instant, key: PublicKey, hello: &Hello) {
        let lease = self.settle_claim(now, key, hello.lease.as_ref().map(|lease| lease.lease.clone()));
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let forgotten = peer.acquainted.replace(hello.acquaintance).is_some_and(|known| known != hello.acquaintance);
        let restarted = forgotten || peer.incarnation.is_some_and(|known| known != hello.incarnation);
        peer.incarnation = Some(hello.incarnation);
        peer.mtu = mtu_class(hello.mtu);
        let former = peer.ipv4.filter(|former| lease.as_ref().is_some_and(|lease| lease.ipv4 != *former));
        if let Some(lease) = lease {
            (peer.ipv4, peer.epoch) = (Some(lease.ipv4), lease.epoch);
            peer.name = lease.name.or(peer.name.take());
        }
        let path = peer.path;
        if let (Some(tap), None) = (&mut self.tap, peer.interface) {
            peer.describe(&mut **tap);
        }
        if restarted && !planted!(RestartUnnoticed) {
            self.stack.reset_flows(now, path);
        }
        if let Some(former) = former {
            // Somebody else may have it now.
            self.stack.remove_route(now, IpAddr::V4(former), path);
        }
        self.route(now, &key);
    }

    /// Puts a link into use, in the place of the one before: both ends have proven themselves.
    fn adopt_link(&mut self, now: Instant, id: LinkId, key: PublicKey) {
        self.peers_changed = true;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let old = peer.link.replace(id);
        peer.attempt = None;
        peer.failures = 0;
        (peer.redial_at, peer.lost_at) = (None, None);
        peer.may_be_there();
        (peer.linked_at, peer.active_at, peer.counted) = (Some(now), now, 0);
        let (path, mtu) = (peer.path, peer.mtu);
        tracing::info!(peer = %peer.label(), mtu, "linked");
        if let Some(old) = old {
            self.drop_link(old);
        }
        self.fit_path(now, id, path);
        self.stack.path_up(now, path, PathConfig { mtu, verify_checksums: false });
        self.device_up(path);
    }

    /// Two peers may show leases of one address: the one given out later holds.
    fn settle_claim(&mut self, now: Instant, key: PublicKey, lease: Option<Lease>) -> Option<Lease> {
        let lease = lease?;
        if self.is_spoken_for(lease.ipv4, &key) {
            let text = format!("{} claims {}, which is known as another member's", key.short(), lease.ipv4);
            self.incident(now, "claim_contradicts", text);
            return None;
        }
        let holder =
            self.owner_of(lease.ipv4).filter(|holder| holder.key != key).map(|holder| (holder.key, holder.epoch));
        match holder {
            Some((_, epoch)) if epoch >= lease.epoch => None,
            Some((holder, _)) => {
                if let Some(holder) = self.peers.get_mut(&holder) {
                    holder.ipv4 = None;
                }
                Some(lease)
            }
            None => Some(lease),
        }
    }

    fn take_bye(&mut self, now: Instant, id: LinkId, key: PublicKey, reason: Bye) {
        let current = self.peers.get(&key).is_some_and(|peer| peer.link == Some(id));
        match reason {
            Bye::Leaving if current => self.forget_peer(now, key, PathEnd::Reset),
            Bye::Idle if current => {
                // A connection made here at this very moment dials again.
                let used = self.peers.get(&key).is_some_and(|peer| self.is_used(now, peer.path));
                if used {
                    self.link_lost(now, id, Lost::Transport);
                } else {
                    self.forget_peer(now, key, PathEnd::Idle);
                }
            }
            Bye::Refused => {
                let text = format!("{} refused the link; its status says why", key.short());
                self.incident(now, "refused_by_peer", text);
                // What stands beside a refused attempt was let in once, and goes on.
                if !current && self.peers.get(&key).is_some_and(|peer| peer.link.is_some()) {
                    self.link_lost(now, id, Lost::Setup);
                } else {
                    self.forget_peer(now, key, PathEnd::Unreachable);
                }
            }
            Bye::Leaving | Bye::Idle => {}
        }
    }

    /// Takes a peer out of everything, with the end that its connections see.
    pub(crate) fn forget_peer(&mut self, now: Instant, key: PublicKey, end: PathEnd) {
        self.peers_changed = true;
        let Some(peer) = self.peers.remove(&key) else {
            return;
        };
        self.paths.remove(&peer.path);
        for link in peer.link.into_iter().chain(peer.attempt.map(|attempt| attempt.link)) {
            self.drop_link(link);
        }
        self.end_path(now, peer.path, end);
    }

    pub(crate) fn drop_link(&mut self, id: LinkId) {
        if let Some(LinkEntry { link: Some(link), peer, .. }) = self.links.remove(&id) {
            let passed = link.counters();
            self.past = peers::sum(self.past, passed);
            if let Some(peer) = self.peers.get_mut(&peer) {
                peer.past = peers::sum(peer.past, passed);
            }
            link.close();
        }
    }

    /// Takes the end of a link.
    pub fn link_lost(&mut self, now: Instant, id: LinkId, lost: Lost) {
        self.peers_changed = true;
        let Some(key) = self.links.get(&id).map(|entry| entry.peer) else {
            return;
        };
        self.drop_link(id);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.link == Some(id) {
            tracing::info!(peer = %peer.label(), reason = %lost, "link lost");
            peer.link = None;
            peer.lost_at = Some(now);
            // What was heard while it was linked may be long past: dialling will tell. That it fell silent is no such
            // thing: then its wire is cut.
            let is_news = peer.gone_at.is_some_and(|at| now < at + peers::SAID_JUST_BEFORE);
            if peer.gone != Some(Absence::Silent) && !is_news {
                peer.may_be_there();
            }
            let pause = if self.key.as_bytes() < key.as_bytes() { std::time::Duration::ZERO } else { peers::YIELD };
            peer.redial_at = (peer.attempt.is_none() && !planted!(RedialForgotten)).then_some(now + pause);
            let path = peer.path;
            self.stack.path_lost(path);
        } else if let Some(attempt) = peer.attempt.take_if(|attempt| attempt.link == id) {
            peer.failures += 1;
            self.attempt_failed(now, key, &attempt, lost);
        }
    }

    /// Takes signaling's word that a payload found no recipient.
    pub fn undelivered(&mut self, now: Instant, to: PublicKey) {
        self.peers_changed = true;
        let Some(peer) = self.peers.get_mut(&to) else {
            return;
        };
        peer.is_not_found(now);
        if let Some(link) = peer.attempt.as_ref().map(|attempt| attempt.link) {
            self.link_lost(now, link, Lost::NoPath);
        }
    }

    /// Takes signaling's word that a member is gone; a link that lives is not touched by it.
    pub fn peer_gone(&mut self, now: Instant, key: PublicKey, reason: GoneReason) {
        self.peers_changed = true;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.is_gone(now, reason.into());
        // It is looked for again from the shortest pause on: should it come back, it answers before it is given up.
        peer.failures = 0;
        let lost = peer.lost_at.is_some();
        if let Some(link) = peer.link.and_then(|id| self.links.get(&id)).and_then(|entry| entry.link.as_ref()) {
            link.doubt();
        } else if peer.link.is_none()
            && let Some(link) =
                peer.attempt.as_ref().filter(|attempt| lost || !attempt.answered).map(|attempt| attempt.link)
        {
            self.link_lost(now, link, Lost::NoPath);
        }
    }

    /// Does what is due for a peer.
    pub(crate) fn peer_timeout(&mut self, now: Instant, key: PublicKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if let Some(attempt) = peer.attempt.as_ref().filter(|attempt| attempt.deadline <= now) {
            let link = attempt.link;
            return self.link_lost(now, link, Lost::NoPath);
        }
        if peer.given_up_at().is_some_and(|at| at <= now) {
            return self.forget_peer(now, key, PathEnd::Unreachable);
        }
        if peer.redial_at.is_some_and(|at| at <= now) {
            peer.redial_at = None;
            return self.dial(now, key);
        }
        if let Some(id) = peer.link {
            self.close_if_idle(now, key, id);
        }
    }

    /// Whether connections go over a path, of the node's own stack or of a kernel.
    pub(crate) fn is_used(&self, now: Instant, path: unisockets_stack::PathId) -> bool {
        self.stack.flow_count(path) > 0 || self.device_uses(now, path)
    }

    fn close_if_idle(&mut self, now: Instant, key: PublicKey, id: LinkId) {
        let counters = self.links.get(&id).map(LinkEntry::counters).unwrap_or_default();
        let in_use = self.peers.get(&key).is_some_and(|peer| self.is_used(now, peer.path));
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let passed = counters.sent_packets + counters.received_packets;
        let joined = self.signaling == Signaling::Reachable;
        if passed != peer.counted || (in_use && !planted!(BusyLinkClosed)) || !joined {
            peer.counted = passed;
            peer.active_at = now;
            return;
        }
        if peer.active_at + peers::IDLE_CLOSE <= now {
            tracing::debug!(peer = %peer.label(), "link closed: nothing used it");
            if let Some(link) = self.links.get(&id).and_then(|entry| entry.link.as_ref()) {
                let _ = link.send_control(&Control::Bye { reason: Bye::Idle }.emit());
            }
            self.forget_peer(now, key, PathEnd::Idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use unisockets_signaling::envelope::SessionId;
    use unisockets_signaling::identity::KeyPair;
    use unisockets_signaling::network::Network;
    use unisockets_signaling::pins::Pins;

    use super::*;
    use crate::node::Config;

    const NOW: Instant = Instant::from_micros(1_000_000);

    /// A node that looks for a peer it has no link to.
    fn dialling(peer: &KeyPair) -> NodeCore {
        let network = Arc::new(Network::new("home", None).unwrap());
        let (pair, key) = (KeyPair::from_seed(&[1; 32]), peer.public());
        let (pins, host) = (Pins::default(), String::new());
        let config = Config { network: Arc::clone(&network), pair, seed: [0; 32], origin_unix_ms: 0, pins, host };
        let mut core = NodeCore::new(config);
        let path =
            core.stack.open_path(PathConfig { mtu: unisockets_stack::MTU_MIN, verify_checksums: false }).unwrap();
        core.peers.insert(key, Peer::new(NOW, key, address_v6(network.id(), &key), path, 0));
        core.dial(NOW, key);
        core
    }

    /// The peer answers the hello of an attempt after a round trip, and the link is up.
    fn prove(core: &mut NodeCore, peer_pair: &KeyPair, round_trip: Duration) -> LinkId {
        let key = peer_pair.public();
        let (link, session) = core.peers[&key].attempt.as_ref().map(|attempt| (attempt.link, attempt.session)).unwrap();
        core.link_opened(NOW, link);
        let ends = Ends { network: core.network.id(), from: &key, to: &core.key };
        let hello = Hello::sign(ends, peer_pair, Stage::Heard, (7, 0), session, None);
        core.handle_control(NOW + round_trip, link, &Control::Hello(Box::new(hello)).emit());
        assert_eq!(core.peers[&key].link, Some(link), "both have proven themselves");
        link
    }

    /// A second attempt that the peer refuses, as where a lease has ended meanwhile, once ended the link that stood.
    #[test]
    fn a_refused_attempt_leaves_the_link_that_stands() {
        let peer_pair = KeyPair::from_seed(&[2; 32]);
        let (mut core, key) = (dialling(&peer_pair), peer_pair.public());
        let standing = prove(&mut core, &peer_pair, Duration::ZERO);
        let refusal = Control::Bye { reason: Bye::Refused }.emit();
        // It came back while the next one was being set up.
        core.peers.get_mut(&key).unwrap().link = None;
        core.dial(NOW, key);
        core.peers.get_mut(&key).unwrap().link = Some(standing);
        let attempt = core.peers[&key].attempt.as_ref().unwrap().link;
        core.handle_control(NOW, attempt, &refusal);
        assert_eq!((core.peers[&key].link, core.peers[&key].attempt.is_some()), (Some(standing), false));
        core.handle_control(NOW, standing, &refusal);
        assert!(!core.peers.contains_key(&key), "one that is refused itself ends");
    }

    /// Two nodes that could not reach each other for a while were once given up, although both were back at signaling
    /// and their introductions came through: one had not been found there before.
    #[test]
    fn a_peer_that_answers_is_there_again() {
        let peer_pair = KeyPair::from_seed(&[2; 32]);
        let (mut core, key, now) = (dialling(&peer_pair), peer_pair.public(), NOW);
        let peer = core.peers.get_mut(&key).unwrap();
        peer.lost_at = Some(now);
        peer.is_gone(now, Absence::Closed);
        let session: SessionId = peer.attempt.as_ref().unwrap().session;
        assert!(peer.given_up_at().is_some());
        let body = serde_json::to_string(&Signal::Answer { sdp: "v=0".to_owned() }).unwrap();
        let content = Content { session, counter: 0, sent_at_ms: 1_000, incarnation: None, offer: None, body };
        let (network, own) = (Arc::clone(&core.network), core.key);
        let payload = envelope::seal(&network, &peer_pair, &own, &content, [0; 24]);
        core.handle_signal(now, key, &payload);
        assert!(core.incidents().next().is_none());
        assert_eq!(core.peers[&key].given_up_at(), None);
    }

    /// A program connects before there is a link: how far away the peer is shows when it answers the node's hello.
    #[test]
    fn the_first_connection_to_a_far_peer_has_long_buffers() {
        use unisockets_stack::{Error, Family, Kind, Prefix};
        for (ms, len) in [(0, 1 << 20), (20, 4 << 20)] {
            let peer_pair = KeyPair::from_seed(&[2; 32]);
            let (mut core, key) = (dialling(&peer_pair), peer_pair.public());
            let own = address_v6(core.network.id(), &core.key).into();
            core.stack.set_addresses(&[own], &[Prefix { address: own, len: 48 }]);
            let socket = core.stack.socket(Kind::Tcp, Family::V6).unwrap();
            let address = (core.peers[&key].ipv6, 80).into();
            assert_eq!(core.stack.connect(NOW, socket, address), Err(Error::InProgress));
            prove(&mut core, &peer_pair, Duration::from_millis(ms));
            assert_eq!(core.stack.options(socket).unwrap().receive_buffer, len, "{ms} ms");
        }
    }

    /// A first offer that was lost with a connection to signaling was not made again, and its callers waited for nothing.
    #[test]
    fn an_offer_without_an_answer_is_made_again_after_a_rejoin() {
        let peer_pair = KeyPair::from_seed(&[2; 32]);
        let (mut core, key, now) = (dialling(&peer_pair), peer_pair.public(), NOW);
        let session = |core: &NodeCore| core.peers[&key].attempt.as_ref().map(|attempt| attempt.session);
        let first = session(&core);
        core.dial_lost_peers(now);
        assert!(first.is_some() && session(&core).is_some() && session(&core) != first);
        core.peers.get_mut(&key).unwrap().attempt.as_mut().unwrap().answered = true;
        let answered = session(&core);
        core.dial_lost_peers(now);
        assert_eq!(session(&core), answered);
    }
}
