//! How what a member reads lies on the wire: the fields of every kind of message side by side. Read so, a frame
//! needs none of the buffers, and of the code for each kind, that serde's tagged enums and flattened structures
//! come with; they would be a tenth of the browser's module.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Deserialize;

use super::{Code, GoneReason, IceServer, Lease, Member, Nonce, Welcome};
use crate::identity::{PublicKey, Signature};
use crate::network::Prefix;

#[derive(Deserialize)]
pub(super) struct SignedLease {
    network: String,
    key: PublicKey,
    ipv4: Ipv4Addr,
    name: Option<String>,
    epoch: u64,
    not_after: u64,
    server: PublicKey,
    signature: Signature,
}

impl From<SignedLease> for super::SignedLease {
    fn from(fields: SignedLease) -> Self {
        let SignedLease { network, key, ipv4, name, epoch, not_after, server, signature } = fields;
        Self { lease: Lease { network, key, ipv4, name, epoch, not_after }, server, signature }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Type {
    Challenge,
    Welcome,
    Resolved,
    Members,
    Signal,
    Delivered,
    Refused,
    Gone,
    Draining,
}

#[derive(Deserialize)]
pub(super) struct FromServer {
    r#type: Type,
    id: Option<u64>,
    nonce: Option<Nonce>,
    lease: Option<super::SignedLease>,
    ipv6: Option<Ipv6Addr>,
    prefixes: Option<Vec<Prefix>>,
    lease_s: Option<u64>,
    resume: Option<Nonce>,
    ice_servers: Option<Vec<IceServer>>,
    member: Option<Member>,
    members: Option<Vec<Member>>,
    from: Option<PublicKey>,
    payload: Option<String>,
    code: Option<Code>,
    message: Option<String>,
    retry_after_ms: Option<u64>,
    key: Option<PublicKey>,
    reason: Option<GoneReason>,
}

/// A field that its message cannot do without.
pub(super) struct Missing(&'static str);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "missing field `{}`", self.0)
    }
}

impl TryFrom<FromServer> for super::FromServer {
    type Error = Missing;

    fn try_from(fields: FromServer) -> Result<Self, Missing> {
        let message = match fields.r#type {
            Type::Challenge => Self::Challenge { nonce: fields.nonce.ok_or(Missing("nonce"))? },
            Type::Welcome => Self::Welcome(Box::new(Welcome {
                lease: fields.lease.ok_or(Missing("lease"))?,
                ipv6: fields.ipv6.ok_or(Missing("ipv6"))?,
                prefixes: fields.prefixes.ok_or(Missing("prefixes"))?,
                lease_s: fields.lease_s.ok_or(Missing("lease_s"))?,
                resume: fields.resume.ok_or(Missing("resume"))?,
                ice_servers: fields.ice_servers.ok_or(Missing("ice_servers"))?,
            })),
            Type::Resolved => {
                Self::Resolved { id: fields.id.ok_or(Missing("id"))?, member: fields.member.ok_or(Missing("member"))? }
            }
            Type::Members => Self::Members {
                id: fields.id.ok_or(Missing("id"))?,
                members: fields.members.ok_or(Missing("members"))?,
            },
            Type::Signal => Self::Signal {
                from: fields.from.ok_or(Missing("from"))?,
                payload: fields.payload.ok_or(Missing("payload"))?,
            },
            Type::Delivered => Self::Delivered { id: fields.id.ok_or(Missing("id"))? },
            Type::Refused => Self::Refused {
                id: fields.id,
                code: fields.code.ok_or(Missing("code"))?,
                message: fields.message.ok_or(Missing("message"))?,
                retry_after_ms: fields.retry_after_ms,
            },
            Type::Gone => {
                Self::Gone { key: fields.key.ok_or(Missing("key"))?, reason: fields.reason.ok_or(Missing("reason"))? }
            }
            Type::Draining => {
                Self::Draining { retry_after_ms: fields.retry_after_ms.ok_or(Missing("retry_after_ms"))? }
            }
        };
        Ok(message)
    }
}
