//! What a node can say about itself.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use unisockets_link::{Counters, Route};
use unisockets_signaling::identity::PublicKey;
use unisockets_stack::{Instant, Kind};

use crate::node::{NodeCore, Signaling};
use crate::peers::{LinkEntry, Peer};

/// The state of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node's key.
    pub key: PublicKey,
    /// Its name.
    pub name: Option<String>,
    /// The network's id.
    pub network: String,
    /// Its IPv4 address, once it has joined.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Whether signaling can be reached now.
    pub signaling: bool,
    /// Its peers.
    pub peers: Vec<PeerStatus>,
    /// Its sockets.
    pub sockets: Vec<SocketStatus>,
    /// Packets over all links so far.
    pub packets: u64,
    /// Packets dropped, by reason; reasons that never happened are left out.
    pub dropped: BTreeMap<String, u64>,
    /// What happened that should not: milliseconds since 1970, and a sentence.
    pub incidents: Vec<(u64, String)>,
    /// The receive buffer that the system granted links, in bytes.
    pub receive_buffer: Option<usize>,
}

/// The state of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its key.
    pub key: PublicKey,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its IPv4 address, if it has shown a lease.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// How packets travel: nothing while there is no link.
    pub path: Option<Route>,
    /// Whether the link is being made, or made again.
    pub dialling: bool,
    /// The smallest of the last round trips, in microseconds.
    pub round_trip_us: Option<u64>,
    /// The largest packet, in bytes.
    pub mtu: usize,
    /// What has passed over the link and those before it, for as long as the peer is known.
    pub counters: Counters,
    /// Connections with the peer.
    pub connections: usize,
}

/// The state of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStatus {
    /// `tcp`, `udp` or `echo`.
    pub kind: String,
    /// Its own address.
    pub local: Option<SocketAddr>,
    /// The other end.
    pub remote: Option<SocketAddr>,
    /// The state of RFC 9293, for TCP.
    pub state: Option<String>,
    /// Bytes not yet acknowledged.
    pub send_queue: usize,
    /// Bytes not yet read.
    pub receive_queue: usize,
}

impl NodeCore {
    /// Describes the node.
    pub fn status(&self, now: Instant) -> Status {
        let _ = now;
        let lease = self.lease().map(|lease| &lease.lease);
        let by_stack = self.stack.drops().map(|(reason, count)| (reason.name(), count));
        let foreign = self.refusals().filter(|(kind, _)| *kind == "foreign_source");
        let mut dropped = BTreeMap::new();
        for (reason, count) in by_stack.chain(self.device_drops()).chain(foreign).filter(|(_, count)| *count > 0) {
            dropped.insert(reason.to_owned(), count);
        }
        let passed = self.links.values().map(LinkEntry::counters).fold(self.past, crate::peers::sum);
        Status {
            key: self.key,
            name: lease.and_then(|lease| lease.name.clone()),
            network: self.network.id().to_owned(),
            ipv4: lease.map(|lease| lease.ipv4),
            ipv6: unisockets_signaling::network::address_v6(self.network.id(), &self.key),
            signaling: self.signaling == Signaling::Reachable,
            packets: passed.sent_packets + passed.received_packets,
            peers: self.peer_keys().iter().map(|key| self.peer_status(&self.peers[key])).collect(),
            sockets: self.stack.sockets().into_iter().map(describe).collect(),
            dropped,
            incidents: self.incidents().map(|(at, text)| (at, text.to_owned())).collect(),
            receive_buffer: None,
        }
    }

    /// Counts a refusal of a kind.
    pub(crate) fn count_refusal(&mut self, kind: &'static str) {
        match self.rejected.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => self.rejected.push((kind, 1)),
        }
    }

    fn peer_status(&self, peer: &Peer) -> PeerStatus {
        let entry: Option<&LinkEntry> = peer.link.and_then(|id| self.links.get(&id));
        let link = entry.and_then(|entry| entry.link.as_ref());
        PeerStatus {
            key: peer.key,
            name: peer.name.clone(),
            ipv4: peer.ipv4,
            ipv6: peer.ipv6,
            path: link.and_then(|link| link.route()),
            dialling: peer.attempt.is_some() || peer.redial_at.is_some(),
            round_trip_us: link.and_then(|link| link.round_trip_us()),
            mtu: peer.mtu,
            counters: crate::peers::sum(peer.past, entry.map(LinkEntry::counters).unwrap_or_default()),
            connections: self.stack.flow_count(peer.path),
        }
    }
}

fn describe(socket: unisockets_stack::SocketInfo) -> SocketStatus {
    let kind = match socket.kind {
        Kind::Tcp => "tcp",
        Kind::Udp => "udp",
        Kind::Echo => "echo",
    };
    let state = match (socket.stream, socket.listening) {
        (Some(stream), _) => Some(stream.state.name().to_owned()),
        (None, true) => Some("LISTEN".to_owned()),
        (None, false) => None,
    };
    SocketStatus {
        kind: kind.to_owned(),
        local: socket.local,
        remote: socket.remote,
        state,
        send_queue: socket.stream.map_or(0, |stream| stream.send_queue),
        receive_queue: socket.stream.map_or(0, |stream| stream.receive_queue),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use unisockets_link::memory::MemoryLink;
    use unisockets_link::{Lane, Link, Lost};
    use unisockets_signaling::envelope::SessionId;
    use unisockets_signaling::identity::KeyPair;
    use unisockets_signaling::network::{Network, address_v6};
    use unisockets_signaling::pins::Pins;
    use unisockets_stack::PathConfig;

    use super::*;
    use crate::node::Config;
    use crate::peers::LinkId;

    /// The packets of all links once became fewer whenever a link was lost.
    #[test]
    fn what_has_passed_over_a_link_still_counts_when_it_is_lost() {
        let network = Arc::new(Network::new("home", None).unwrap());
        let (now, id) = (Instant::from_micros(0), LinkId(1));
        let key = KeyPair::from_seed(&[2; 32]).public();
        let ipv6 = address_v6(network.id(), &key);
        let (pair, seed) = (KeyPair::from_seed(&[1; 32]), [0; 32]);
        let (pins, host) = (Pins::default(), String::new());
        let mut core = NodeCore::new(Config { network, pair, seed, origin_unix_ms: 0, pins, host });
        let config = PathConfig { mtu: unisockets_stack::MTU_MIN, verify_checksums: false };
        let path = core.stack.open_path(config).unwrap();
        let mut peer = Peer::new(now, key, ipv6, path, 0);
        peer.link = Some(id);
        core.peers.insert(key, peer);
        let link = Arc::new(MemoryLink::new());
        link.send(Lane::Bulk, &[0x45; 20]).unwrap();
        let entry =
            LinkEntry { peer: key, link: Some(link), session: SessionId(0), introduced_at: None, early: Vec::new() };
        core.links.insert(id, entry);
        let before = core.status(now);
        assert_eq!((before.packets, before.peers[0].counters.sent_bytes), (1, 20));
        core.link_lost(now, id, Lost::Transport);
        let after = core.status(now);
        assert_eq!((after.packets, after.peers[0].counters), (before.packets, before.peers[0].counters));
    }
}
