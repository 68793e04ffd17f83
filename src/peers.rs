//! A peer: its addresses, its link, the attempt to get one, and what happens when it breaks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use unisockets_link::{Counters, Link, Role};
use unisockets_signaling::envelope::SessionId;
use unisockets_signaling::identity::PublicKey;
use unisockets_signaling::protocol::{Bytes32, GoneReason};
use unisockets_stack::{Instant, PathEnd, PathId};

use crate::hello::{Bye, Control};
use crate::node::NodeCore;
use crate::tap::Tap;

/// How long an attempt may take from its start to the peer's hello.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(25);
/// Further attempts at a first link that found a way and then broke.
pub(crate) const FIRST_TRIES: u32 = 2;
/// First pause before a lost peer is dialled again; it doubles.
const REDIAL_MIN: Duration = Duration::from_millis(200);
/// Longest such pause.
const REDIAL_MAX: Duration = Duration::from_secs(15);
/// The peer with the higher key lets the other dial first.
pub(crate) const YIELD: Duration = Duration::from_millis(400);
/// Offers of two peers cross on their way through signaling: one that has had no answer for so long crosses none.
pub(crate) const CROSSING: Duration = Duration::from_secs(1);
/// A peer that is lost, and that signaling does not find, is given up after this: so long a member may take to find its
/// server again.
const ABSENT_GRACE: Duration = Duration::from_secs(20);
/// A peer that is lost, and whose connection to signaling was seen to close, is given up after this: the server that it
/// looks for is there.
const CLOSED_GRACE: Duration = Duration::from_secs(6);
/// What signaling said of a peer just before its link was lost belongs to the loss.
pub(crate) const SAID_JUST_BEFORE: Duration = Duration::from_secs(6);
/// A link without connections is closed when nothing has passed for so long.
pub(crate) const IDLE_CLOSE: Duration = Duration::from_secs(300);
/// A peer may replace a working link only so often.
pub(crate) const REPLACE_INTERVAL: Duration = Duration::from_secs(5);

/// How long a dial waits while so many are in the making.
pub(crate) const CROWDED_PAUSE: Duration = Duration::from_millis(500);
/// Offers that are taken of one peer within [`OFFER_WINDOW`].
const OFFERS_MAX: u32 = 8;
/// See [`OFFERS_MAX`].
const OFFER_WINDOW: Duration = Duration::from_secs(10);

/// Hellos that are looked at of one peer in the same time.
const HELLOS_MAX: u32 = 64;

/// Counts one more in a window of [`OFFER_WINDOW`]; returns whether that is not too many.
fn is_within(window: &mut (Instant, u32), now: Instant, limit: u32) -> bool {
    if window.0 + OFFER_WINDOW <= now {
        *window = (now, 0);
    }
    window.1 += 1;
    window.1 <= limit
}

/// Names a link of this node, for as long as the node lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A link that is being made.
pub(crate) struct Attempt {
    pub(crate) link: LinkId,
    pub(crate) session: SessionId,
    pub(crate) role: Role,
    /// The hash of the offer that the attempt is about, once there is one.
    pub(crate) offer: Option<Bytes32>,
    pub(crate) answered: bool,
    /// Whether the peer has proven itself over the link.
    pub(crate) proven: bool,
    pub(crate) counter: u32,
    pub(crate) deadline: Instant,
}

impl Attempt {
    /// How long the link has been in the making.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        (now + ATTEMPT_TIMEOUT).saturating_since(self.deadline)
    }
}

/// The addresses of a peer: its IPv6 address is derived from its key, its IPv4 address was leased to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources {
    ipv4: Option<Ipv4Addr>,
    ipv6: Ipv6Addr,
}

impl Sources {
    pub(crate) fn hold(&self, source: IpAddr) -> bool {
        match source {
            IpAddr::V4(source) => self.ipv4 == Some(source),
            IpAddr::V6(source) => self.ipv6 == source || planted!(SourceUncheckedV6),
        }
    }
}

/// What signaling said of a peer that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absence {
    /// Its connection closed, or it is said to have left: it ended, or lost its way and comes back.
    Closed,
    /// It was not found.
    Unfound,
    /// It fell silent: its wire may be cut.
    Silent,
}

impl From<GoneReason> for Absence {
    fn from(reason: GoneReason) -> Self {
        match reason {
            GoneReason::Left | GoneReason::Closed => Absence::Closed,
            GoneReason::Timeout => Absence::Silent,
        }
    }
}

/// Everything known of a peer.
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    pub(crate) ipv6: Ipv6Addr,
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The epoch of the lease behind `ipv4`.
    pub(crate) epoch: u64,
    pub(crate) name: Option<String>,
    pub(crate) path: PathId,
    /// The link in use: its peer has proven itself.
    pub(crate) link: Option<LinkId>,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) incarnation: Option<u64>,
    /// Changes when this node gives the peer up and meets it again.
    pub(crate) acquaintance: u64,
    /// The same, of the peer about this node.
    pub(crate) acquainted: Option<u64>,
    pub(crate) mtu: usize,
    pub(crate) failures: u32,
    pub(crate) redial_at: Option<Instant>,
    pub(crate) lost_at: Option<Instant>,
    pub(crate) linked_at: Option<Instant>,
    pub(crate) gone: Option<Absence>,
    /// When that was learnt first.
    pub(crate) gone_at: Option<Instant>,
    /// When anything last passed, and the packets counted by then.
    pub(crate) active_at: Instant,
    pub(crate) counted: u64,
    /// What has passed over links that ended.
    pub(crate) past: Counters,
    pub(crate) interface: Option<u32>,
    /// When the window of offers began, and how many have come in it.
    offers: (Instant, u32),
    /// The same of hellos.
    hellos: (Instant, u32),
}

impl Peer {
    pub(crate) fn new(now: Instant, key: PublicKey, ipv6: Ipv6Addr, path: PathId, acquaintance: u64) -> Self {
        Self {
            key,
            ipv6,
            ipv4: None,
            epoch: 0,
            name: None,
            path,
            link: None,
            attempt: None,
            incarnation: None,
            acquaintance,
            acquainted: None,
            mtu: unisockets_stack::MTU_MIN,
            failures: 0,
            redial_at: None,
            lost_at: None,
            linked_at: None,
            gone: None,
            gone_at: None,
            active_at: now,
            counted: 0,
            past: Counters::default(),
            interface: None,
            offers: (now, 0),
            hellos: (now, 0),
        }
    }

    /// Returns the addresses that packets of the peer may come from (threat T2).
    pub(crate) fn sources(&self) -> Sources {
        Sources { ipv4: self.ipv4, ipv6: self.ipv6 }
    }

    /// Whether packets of this link are believed: it is in use, or its peer has proven itself over it.
    pub(crate) fn believes(&self, link: LinkId) -> bool {
        self.link == Some(link) || self.attempt.as_ref().is_some_and(|attempt| attempt.link == link && attempt.proven)
    }

    /// Whether it has proven itself before.
    pub(crate) fn is_acquainted(&self) -> bool {
        self.incarnation.is_some()
    }

    /// Counts an offer of the peer; returns whether it may still make one.
    pub(crate) fn may_offer(&mut self, now: Instant) -> bool {
        is_within(&mut self.offers, now, OFFERS_MAX)
    }

    /// Whether a hello may still be looked at, which costs two signatures; one that is not is repeated or refused later.
    pub(crate) fn takes_hello(&mut self, now: Instant) -> bool {
        is_within(&mut self.hellos, now, HELLOS_MAX)
    }

    /// Tells a tap of the link to this peer.
    pub(crate) fn describe(&mut self, tap: &mut dyn Tap) {
        let label = self.label();
        self.interface = Some(tap.interface(&label));
        let addresses = self.ipv4.map(IpAddr::V4).into_iter().chain([IpAddr::V6(self.ipv6)]);
        addresses.for_each(|address| tap.name(address, &label));
    }

    pub(crate) fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.key.short())
    }

    /// The pause before the next attempt, after so many failures.
    pub(crate) fn redial_pause(&self) -> Duration {
        REDIAL_MIN.saturating_mul(1 << self.failures.min(10)).min(REDIAL_MAX)
    }

    /// Notes that signaling did not find the peer. One that fell silent before may be behind a wire that is cut.
    pub(crate) fn is_not_found(&mut self, now: Instant) {
        self.gone.get_or_insert(Absence::Unfound);
        self.gone_at.get_or_insert(now);
    }

    /// Notes that the peer's connection to signaling has ended.
    pub(crate) fn is_gone(&mut self, now: Instant, absence: Absence) {
        (self.gone, self.gone_at) = (Some(absence), Some(now));
    }

    /// Notes that nothing speaks against the peer's being there.
    pub(crate) fn may_be_there(&mut self) {
        (self.gone, self.gone_at) = (None, None);
    }

    /// When a peer is given up that is lost and gone.
    pub(crate) fn given_up_at(&self) -> Option<Instant> {
        let grace = match self.gone {
            Some(Absence::Closed) => CLOSED_GRACE,
            Some(Absence::Unfound) => ABSENT_GRACE,
            Some(Absence::Silent) | None if planted!(GivenUpTooSoon) => ABSENT_GRACE,
            Some(Absence::Silent) | None => return None,
        };
        let lost = self.lost_at.filter(|_| self.link.is_none())?;
        Some(lost.max(self.gone_at.unwrap_or(lost)) + grace)
    }

    /// When the peer next needs attention.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let attempt = self.attempt.as_ref().map(|attempt| attempt.deadline);
        let given_up = self.given_up_at();
        let idle = self.link.map(|_| self.active_at + IDLE_CLOSE);
        [attempt, given_up, idle, self.redial_at].into_iter().flatten().min()
    }
}

/// Adds what two links have done.
pub(crate) fn sum(a: Counters, b: Counters) -> Counters {
    Counters {
        sent_packets: a.sent_packets + b.sent_packets,
        sent_bytes: a.sent_bytes + b.sent_bytes,
        received_packets: a.received_packets + b.received_packets,
        received_bytes: a.received_bytes + b.received_bytes,
        malformed: a.malformed + b.malformed,
        repaired: a.repaired + b.repaired,
    }
}

/// A link and the peer that it leads to.
pub(crate) struct LinkEntry {
    pub(crate) peer: PublicKey,
    pub(crate) link: Option<Arc<dyn Link>>,
    pub(crate) session: SessionId,
    /// When the node has introduced itself over it.
    pub(crate) introduced_at: Option<Instant>,
    /// What has to be given to the link once it is there.
    pub(crate) early: Vec<unisockets_link::Signal>,
}

impl LinkEntry {
    pub(crate) fn counters(&self) -> Counters {
        self.link.as_ref().map(|link| link.counters()).unwrap_or_default()
    }
}

impl NodeCore {
    /// Says goodbye on every link and closes it.
    pub fn leave(&mut self, now: Instant) {
        let keys: Vec<PublicKey> = self.peers.keys().copied().collect();
        for key in keys {
            let link = self.peers.get(&key).and_then(|peer| peer.link).and_then(|id| self.links.get(&id));
            if let Some(link) = link.and_then(|entry| entry.link.as_ref()) {
                let _ = link.send_control(&Control::Bye { reason: Bye::Leaving }.emit());
            }
            self.forget_peer(now, key, PathEnd::Reset);
        }
    }

    /// Says how far away a peer is whose link is in use now.
    pub(crate) fn fit_path(&mut self, now: Instant, id: LinkId, path: PathId) {
        // The peer has answered a hello, which takes a round trip. What the link has measured itself is nearer to the
        // truth, but may not be known yet.
        if let Some(introduced_at) = self.links.get(&id).and_then(|entry| entry.introduced_at) {
            self.stack.set_round_trip(path, now.saturating_since(introduced_at));
        }
        self.link_measured(id);
    }

    /// Takes the news that a link has measured its round trip.
    pub fn link_measured(&mut self, id: LinkId) {
        if let Some(entry) = self.links.get(&id)
            && let Some(round_trip_us) = entry.link.as_ref().and_then(|link| link.round_trip_us())
            && let Some(peer) = self.peers.get(&entry.peer).filter(|peer| peer.link == Some(id))
        {
            self.stack.set_round_trip(peer.path, Duration::from_micros(round_trip_us));
        }
    }
}
