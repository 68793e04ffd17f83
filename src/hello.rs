//! What two peers say to each other first and last over a link's control lane.

use serde::{Deserialize, Serialize};
use unisockets_signaling::envelope::SessionId;
use unisockets_signaling::identity::{KeyPair, PublicKey, Signature};
use unisockets_signaling::protocol::SignedLease;

/// The version of what goes over links.
pub(crate) const VERSION: u32 = 1;
const CONTEXT: &str = "unisockets-link-v1";

/// Why a peer closes a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Bye {
    /// It leaves the network: its connections end.
    Leaving,
    /// Nothing used the link.
    Idle,
    /// It does not accept this peer.
    Refused,
}

/// How far the introduction has come on the sender's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// The lanes are open. Such a hello may be overtaken by the opening of the recipient's own lanes, and
    /// then waits in the library until the next message.
    Opened,
    /// The recipient's hello has come and was believed: packets may follow.
    Heard,
}

/// A message of the control lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Control {
    Hello(Box<Hello>),
    Bye { reason: Bye },
}

/// The introduction of a peer over a link that its signature is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: u32,
    pub(crate) stage: Stage,
    /// Random for each life of the node: a new one means that its old connections are gone.
    pub(crate) incarnation: u64,
    /// Random for each time that it gets to know the peer: a new one means that it has given up what it had
    /// with the peer before.
    pub(crate) acquaintance: u64,
    /// Largest IP packet that it takes, in bytes.
    pub(crate) mtu: usize,
    pub(crate) session: SessionId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease: Option<SignedLease>,
    pub(crate) signature: Signature,
}

/// Both ends of a link, in one direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) network: &'a str,
    pub(crate) from: &'a PublicKey,
    pub(crate) to: &'a PublicKey,
}

impl Hello {
    pub(crate) fn sign(
        ends: Ends<'_>,
        pair: &KeyPair,
        stage: Stage,
        (incarnation, acquaintance): (u64, u64),
        session: SessionId,
        lease: Option<SignedLease>,
    ) -> Hello {
        let (version, mtu) = (VERSION, unisockets_link::MTU);
        let signature = Signature::from_bytes([0; 64]);
        let mut hello = Hello { version, stage, incarnation, acquaintance, mtu, session, lease, signature };
        hello.signature = hello.with_parts(ends, |parts| pair.sign(CONTEXT, parts));
        hello
    }

    pub(crate) fn is_signed(&self, ends: Ends<'_>) -> bool {
        self.with_parts(ends, |parts| ends.from.verify(CONTEXT, parts, &self.signature))
    }

    fn with_parts<R>(&self, ends: Ends<'_>, f: impl FnOnce(&[&[u8]]) -> R) -> R {
        let lease = self.lease.as_ref().map(|lease| serde_json::to_vec(lease).expect("a lease has a JSON form"));
        f(&[
            ends.network.as_bytes(),
            ends.from.as_bytes(),
            ends.to.as_bytes(),
            &self.version.to_be_bytes(),
            &[self.stage as u8],
            &self.incarnation.to_be_bytes(),
            &self.acquaintance.to_be_bytes(),
            &(self.mtu as u64).to_be_bytes(),
            &self.session.0.to_be_bytes(),
            lease.as_deref().unwrap_or_default(),
        ])
    }
}

impl Control {
    pub(crate) fn emit(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("every control message has a JSON form")
    }

    pub(crate) fn parse(message: &[u8]) -> Option<Control> {
        // The tag first, then the message: serde alone would need buffers and code for each kind, which the module
        // of the browser has no room for.
        #[derive(Deserialize)]
        struct Tagged {
            r#type: Type,
            reason: Option<Bye>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Type {
            Hello,
            Bye,
        }
        let text = str::from_utf8(message).ok()?;
        let tagged: Tagged = serde_json::from_str(text).ok()?;
        match tagged.r#type {
            Type::Hello => serde_json::from_str(text).ok().map(|hello| Control::Hello(Box::new(hello))),
            Type::Bye => tagged.reason.map(|reason| Control::Bye { reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_bound_to_both_ends_and_the_session() {
        let (a, b) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let (from, to) = (a.public(), b.public());
        let ends = Ends { network: "home", from: &from, to: &to };
        let hello = Hello::sign(ends, &a, Stage::Opened, (7, 8), SessionId(1), None);
        let Some(Control::Hello(read)) = Control::parse(&Control::Hello(Box::new(hello.clone())).emit()) else {
            panic!()
        };
        assert!(read.is_signed(ends));
        assert!(!read.is_signed(Ends { to: &from, ..ends }));
        assert!(!read.is_signed(Ends { network: "work", ..ends }));
        let moved = Hello { session: SessionId(2), ..hello.clone() };
        assert!(!moved.is_signed(ends));
        let hurried = Hello { stage: Stage::Heard, ..hello };
        assert!(!hurried.is_signed(ends));
    }
}
