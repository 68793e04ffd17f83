//! What members were told by the signaling server, and what it may not tell anybody after that.
//!
//! All this is kept apart from the tables under test, and outlives the server's process.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use unisockets_signaling::identity::PublicKey;
use unisockets_signaling::protocol::{FromMember, FromServer, GoneReason, Nonce, Welcome};
use unisockets_signaling::room::ConnectionId;

#[derive(Debug)]
struct Proof {
    key: PublicKey,
    /// The last second in which it convinces, since 1970.
    not_after: u64,
}

/// Promises of the server.
#[derive(Debug, Default)]
pub struct Promises {
    /// Who has a proof of which address: until it ends nobody else gets one.
    proofs: BTreeMap<Ipv4Addr, Proof>,
    /// Members that are there: on which connection, and with which token they may come back.
    present: BTreeMap<PublicKey, (ConnectionId, Nonce)>,
    /// Payloads: from whom to whom.
    payloads: BTreeMap<String, (PublicKey, PublicKey)>,
}

impl Promises {
    /// The server's process ends.
    pub fn stop(&mut self) {
        self.present.clear();
    }

    /// A connection has ended.
    pub fn ended(&mut self, id: ConnectionId) {
        self.present.retain(|_, (known, _)| *known != id);
    }

    /// Takes what a member says; returns whether it shows the token of its session.
    pub fn heard(&mut self, from: PublicKey, id: ConnectionId, message: &FromMember) -> bool {
        match message {
            FromMember::Hello(hello) => {
                let resumes = |(known, token): &(ConnectionId, Nonce)| *known != id && hello.resume == Some(*token);
                return self.present.get(&hello.key).is_some_and(resumes);
            }
            FromMember::Signal { to, payload, .. } => drop(self.payloads.insert(payload.clone(), (from, *to))),
            FromMember::Leave => self.ended(id),
            _ => {}
        }
        false
    }

    /// Checks what the server says to a member.
    pub fn check(&mut self, now_s: u64, to: PublicKey, id: ConnectionId, message: &FromServer) {
        match message {
            FromServer::Welcome(welcome) => self.welcomed(now_s, id, welcome),
            FromServer::Signal { from, payload } => {
                let meant = self.payloads.get(payload);
                assert_eq!(meant, Some(&(*from, to)), "a payload came to somebody else, or from somebody else");
            }
            FromServer::Gone { key, reason: GoneReason::Closed | GoneReason::Timeout } => {
                assert!(!self.present.contains_key(key), "{} is called gone and is there", key.short());
            }
            _ => {}
        }
    }

    fn welcomed(&mut self, now_s: u64, id: ConnectionId, welcome: &Welcome) {
        let lease = &welcome.lease.lease;
        assert!(lease.not_after > now_s, "a lease that has ended was given out");
        if let Some(proof) = self.proofs.get(&lease.ipv4) {
            let free = proof.key == lease.key || proof.not_after < now_s;
            assert!(free, "{} is leased to two members at one time", lease.ipv4);
        }
        let other = |(address, proof): &(&Ipv4Addr, &Proof)| proof.key == lease.key && **address != lease.ipv4;
        let former = self.proofs.iter().find(other).map(|(address, _)| *address);
        assert!(former.is_none(), "a member had {former:?} and was given {} instead", lease.ipv4);
        self.proofs.insert(lease.ipv4, Proof { key: lease.key, not_after: lease.not_after });
        self.present.insert(lease.key, (id, welcome.resume));
    }
}
