//! Every message between a member and the server: the one file that both sides share.
//!
//! JSON text frames, one object each, tagged by `type`, at most 64 KiB, over WebSocket at `/v1`.

mod fields;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::identity::{KeyPair, PublicKey, Signature};
use crate::network::Prefix;

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// Largest frame, in bytes.
pub const FRAME_LEN_MAX: usize = 64 * 1024;
/// Largest payload of a signal, in bytes.
pub const PAYLOAD_LEN_MAX: usize = 40 * 1024;
/// Longest reason for refusing a frame, in bytes: it quotes the frame, and must fit into one.
const REASON_LEN_MAX: usize = 256;
/// Members in one answer to `list`.
pub const LIST_LEN_MAX: usize = 256;
/// Keys in one `watch`.
pub const WATCH_LEN_MAX: usize = 256;

/// A number that is used once.
pub type Nonce = Bytes32;

/// 32 bytes in base64url.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes32(PublicKey);

impl Bytes32 {
    /// Wraps random bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(PublicKey::from_bytes(bytes))
    }

    /// Returns the bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// What a key is leased, as members present it to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The network's id.
    pub network: String,
    /// The member.
    pub key: PublicKey,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its name, if it asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Grows when an address passes to another key: the higher one wins.
    pub epoch: u64,
    /// Seconds since 1970 after which the lease proves nothing.
    pub not_after: u64,
}

/// A lease with the server's word for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "fields::SignedLease")]
pub struct SignedLease {
    /// What is leased.
    #[serde(flatten)]
    pub lease: Lease,
    /// The server's key.
    pub server: PublicKey,
    /// The server's signature.
    pub signature: Signature,
}

const LEASE_CONTEXT: &str = "unisockets-lease-v1";

impl SignedLease {
    /// Signs a lease with the server's key.
    pub fn sign(lease: Lease, server: &KeyPair) -> Self {
        let signature = lease.with_parts(|parts| server.sign(LEASE_CONTEXT, parts));
        Self { lease, server: server.public(), signature }
    }

    /// Returns whether the signature is the named server's.
    pub fn is_signed(&self) -> bool {
        self.lease.with_parts(|parts| self.server.verify(LEASE_CONTEXT, parts, &self.signature))
    }
}

impl Lease {
    fn with_parts<R>(&self, f: impl FnOnce(&[&[u8]]) -> R) -> R {
        let name = self.name.as_deref().unwrap_or_default();
        f(&[
            self.network.as_bytes(),
            self.key.as_bytes(),
            &self.ipv4.octets(),
            name.as_bytes(),
            &self.epoch.to_be_bytes(),
            &self.not_after.to_be_bytes(),
        ])
    }
}

/// Knowledge of a network's secret, proven by its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkProof {
    /// The network's verifying key; the network's id is derived from it.
    pub key: PublicKey,
    /// Its signature over what the member's proof covers.
    pub signature: Signature,
}

/// What a proof covers; both sides build it.
#[derive(Debug, Clone, Copy)]
pub struct Proven<'a> {
    /// The server's host and port as the member called them.
    pub host: &'a str,
    /// The network's id.
    pub network: &'a str,
    /// The member's key.
    pub key: &'a PublicKey,
    /// The server's nonce.
    pub server_nonce: &'a Nonce,
    /// The member's nonce.
    pub nonce: &'a Nonce,
}

impl Proven<'_> {
    fn parts(&self) -> [&[u8]; 5] {
        [
            self.host.as_bytes(),
            self.network.as_bytes(),
            self.key.as_bytes(),
            self.server_nonce.as_bytes(),
            self.nonce.as_bytes(),
        ]
    }

    /// Signs with a member's or a network's key.
    pub fn sign(&self, pair: &KeyPair) -> Signature {
        pair.sign("unisockets-hello-v1", &self.parts())
    }

    /// Verifies a member's or a network's signature.
    pub fn verify(&self, key: &PublicKey, signature: &Signature) -> bool {
        key.verify("unisockets-hello-v1", &self.parts(), signature)
    }
}

/// A member's introduction of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub protocol: u32,
    /// The network's id.
    pub network: String,
    /// The member's key.
    pub key: PublicKey,
    /// The name that it would like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The IPv4 address that it would like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// Whether the lease is to be given back on leaving.
    #[serde(default)]
    pub ephemeral: bool,
    /// The resume token of its session before, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Nonce>,
    /// The member's nonce.
    pub nonce: Nonce,
    /// The member's signature over [`Proven`].
    pub proof: Signature,
    /// The network's, where there is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_proof: Option<NetworkProof>,
}

/// Whom a member looks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// Whoever holds this address.
    Ip(std::net::IpAddr),
    /// Whoever has this name.
    Name(String),
    /// The member with this key.
    Key(PublicKey),
}

impl Query {
    /// Reads what people write for a member: an address, a key, a name, or a name in full: `NAME.NETWORK.internal`.
    /// `network` is the id of the network that it is asked in.
    pub fn parse(host: &str, network: &str) -> Query {
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
            return Query::Ip(address.to_canonical());
        }
        if let Ok(key) = host.parse::<PublicKey>() {
            return Query::Key(key);
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let network = network.split('~').next().unwrap_or_default();
        let short = name.strip_suffix(".internal").and_then(|name| name.strip_suffix(&format!(".{network}")));
        Query::Name(short.map_or(name.clone(), str::to_owned))
    }
}

/// From member to server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromMember {
    /// The first message, in answer to the challenge.
    Hello(Box<Hello>),
    /// Asks who has an address, a name or a key.
    Resolve {
        /// Comes back in the answer.
        id: u64,
        /// Who is wanted.
        #[serde(flatten)]
        query: Query,
    },
    /// Asks for the members, in the order of their keys.
    List {
        /// Comes back in the answer.
        id: u64,
        /// The last key of the page before.
        #[serde(default)]
        after: Option<PublicKey>,
        /// Members wanted, at most 256.
        limit: usize,
    },
    /// Carries a payload to another member.
    Signal {
        /// Comes back when it is delivered or refused.
        id: u64,
        /// Who shall have it.
        to: PublicKey,
        /// Opaque to the server.
        payload: String,
    },
    /// Wants to be told when these members go.
    Watch {
        /// At most 256 keys.
        keys: Vec<PublicKey>,
    },
    /// Wants a fresh lease before the old one ends.
    Renew,
    /// Goes for good.
    Leave,
}

/// A member as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its key.
    pub key: PublicKey,
    /// Its leased address.
    pub ipv4: Ipv4Addr,
    /// Its derived address.
    pub ipv6: Ipv6Addr,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether it is connected to signaling now.
    pub present: bool,
}

/// A STUN or TURN server that members may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// `stun:` or `turn:` URL; the host may be empty, which means the signaling server's own.
    pub url: String,
    /// User, for TURN.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Password, for TURN.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub credential: String,
}

/// Why something was refused; the text beside it says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// The frame is no message of the protocol.
    BadMessage,
    /// The versions differ.
    BadVersion,
    /// The proof does not hold.
    BadProof,
    /// The name is no DNS label.
    BadName,
    /// The network's id is malformed.
    BadNetwork,
    /// Networks without a secret are not allowed here.
    SecretRequired,
    /// The key has a live session.
    InUse,
    /// Another member has the name.
    NameTaken,
    /// Another member has the address, or it is not in the prefix.
    AddressTaken,
    /// No address is free.
    PoolEmpty,
    /// No such member is present.
    NotFound,
    /// The first message must be hello, and only the first.
    BadState,
    /// Too many messages, or too large ones.
    TooMuch,
    /// The server has trouble of its own.
    Unavailable,
    /// A kind of refusal that this version does not know.
    #[serde(other)]
    Other,
}

impl Code {
    /// Returns whether trying again with the same hello can help.
    pub fn is_transient(self) -> bool {
        matches!(self, Code::TooMuch | Code::Unavailable)
    }
}

/// Why a member is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoneReason {
    /// Its connection closed.
    Closed,
    /// It answered no ping.
    Timeout,
    /// It said that it leaves.
    Left,
}

/// What a member is told when it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Its lease.
    pub lease: SignedLease,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// The network's prefixes.
    pub prefixes: Vec<Prefix>,
    /// Seconds after which it should renew.
    pub lease_s: u64,
    /// Lets it replace its own session after a broken connection.
    pub resume: Nonce,
    /// STUN and TURN servers.
    pub ice_servers: Vec<IceServer>,
}

/// From server to member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", try_from = "fields::FromServer")]
pub enum FromServer {
    /// The first message.
    Challenge {
        /// To be signed.
        nonce: Nonce,
    },
    /// The answer to a good hello, and to renew.
    Welcome(Box<Welcome>),
    /// The answer to resolve.
    Resolved {
        /// As asked.
        id: u64,
        /// Who it is.
        member: Member,
    },
    /// The answer to list.
    Members {
        /// As asked.
        id: u64,
        /// In the order of their keys.
        members: Vec<Member>,
    },
    /// A payload of another member.
    Signal {
        /// Whose it is.
        from: PublicKey,
        /// As sent.
        payload: String,
    },
    /// A signal was handed on.
    Delivered {
        /// As sent.
        id: u64,
    },
    /// Something was refused.
    Refused {
        /// What it answers, if anything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// For programs.
        code: Code,
        /// For people: what to do.
        message: String,
        /// When to try again, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// A watched member is gone.
    Gone {
        /// Who.
        key: PublicKey,
        /// Why.
        reason: GoneReason,
    },
    /// The server is about to stop.
    Draining {
        /// When to come back, in milliseconds.
        retry_after_ms: u64,
    },
}

/// A frame that is no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFrame(String);

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the frame is no message of this protocol: {}", self.0)
    }
}

impl std::error::Error for BadFrame {}

/// Reads a frame of a member or of the server.
///
/// # Errors
/// [`BadFrame`] if it is too long or no such message.
pub fn parse<'a, T: Deserialize<'a>>(frame: &'a str) -> Result<T, BadFrame> {
    if frame.len() > FRAME_LEN_MAX {
        return Err(BadFrame(format!("{} bytes, at most {FRAME_LEN_MAX} are allowed", frame.len())));
    }
    serde_json::from_str(frame).map_err(|error| {
        let mut reason = error.to_string();
        reason.truncate(reason.floor_char_boundary(REASON_LEN_MAX));
        BadFrame(reason)
    })
}

/// Writes a message.
pub fn emit<T: Serialize>(message: &T) -> String {
    serde_json::to_string(message).expect("every message has a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back() {
        let key = KeyPair::from_seed(&[7; 32]).public();
        let resolve = FromMember::Resolve { id: 7, query: Query::Name("alpha".into()) };
        assert_eq!(emit(&resolve), r#"{"type":"resolve","id":7,"name":"alpha"}"#);
        assert_eq!(parse::<FromMember>(&emit(&resolve)), Ok(resolve));
        let gone = FromServer::Gone { key, reason: GoneReason::Closed };
        assert_eq!(parse::<FromServer>(&emit(&gone)), Ok(gone));
    }

    #[test]
    fn a_lease_is_bound_to_every_field() {
        let (server, member) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]).public());
        let lease = Lease {
            network: "home".into(),
            key: member,
            ipv4: Ipv4Addr::new(10, 80, 0, 1),
            name: Some("alpha".into()),
            epoch: 3,
            not_after: 9,
        };
        let signed = SignedLease::sign(lease, &server);
        assert!(signed.is_signed());
        assert_eq!(parse::<SignedLease>(&emit(&signed)).as_ref(), Ok(&signed));
        let mut forged = signed.clone();
        forged.lease.ipv4 = Ipv4Addr::new(10, 80, 0, 2);
        assert!(!forged.is_signed());
        let mut forged = signed.clone();
        forged.lease.name = None;
        assert!(!forged.is_signed());
        let mut forged = signed;
        forged.server = member;
        assert!(!forged.is_signed());
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for frame in ["", "{}", "[]", r#"{"type":"dance"}"#, r#"{"type":"resolve","id":-1,"name":"x"}"#] {
            assert!(parse::<FromMember>(frame).unwrap_err().to_string().starts_with("the frame is no message"));
        }
        assert!(parse::<FromMember>(&" ".repeat(FRAME_LEN_MAX + 1)).is_err());
    }
}
