//! Who is let in, and how a refusal is said. No I/O.

use crate::hosts::Host;
use crate::leases::{ClaimError, Record};
use crate::network::{address_v6, is_id, parse_member_name, secret_id};
use crate::protocol::{self, Code, Hello, Member, Nonce, Proven};

/// Whether networks without a secret are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Any network.
    Open,
    /// Networks with a secret only.
    SecretOnly,
}

/// Why something is refused, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) retry_after_ms: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: code.is_transient().then_some(1_000) }
    }
}

/// Says that a key has asked for its lease too often.
pub(crate) fn too_often(wait_ms: u64) -> Refusal {
    let message = "this key joins or renews too often; wait, and see why its connections do not last".to_owned();
    Refusal { code: Code::TooMuch, message, retry_after_ms: Some(wait_ms) }
}

/// Checks a hello that answers `server_nonce`; `host` is what the member calls this server.
pub(crate) fn check(
    admission: Admission,
    host: &Host,
    hello: &Hello,
    server_nonce: &Nonce,
) -> Result<(), (Code, &'static str)> {
    if hello.protocol != protocol::VERSION {
        return Err((Code::BadVersion, "this server speaks version 1 of the protocol; update the older side"));
    }
    if !is_id(&hello.network) {
        return Err((Code::BadNetwork, "the network's id is malformed"));
    }
    if hello.name.as_ref().is_some_and(|name| parse_member_name(name).as_ref() != Ok(name)) {
        return Err((Code::BadName, "a name has 1 to 63 of the letters a-z, digits and '-' inside, and is no number"));
    }
    let Host::Known(host) = host else {
        let message = "this server does not go by the name that you call it; start it with --host NAME for each of its \
                       names, or use its address";
        return Err((Code::BadProof, message));
    };
    let proven = Proven { host, network: &hello.network, key: &hello.key, server_nonce, nonce: &hello.nonce };
    if !proven.verify(&hello.key, &hello.proof) {
        return Err((Code::BadProof, "the proof of the key does not hold for this server's name"));
    }
    match (hello.network.split_once('~'), &hello.network_proof) {
        (None, _) if admission == Admission::SecretOnly => {
            Err((Code::SecretRequired, "this server takes networks with a secret only; give --secret"))
        }
        (None, _) => Ok(()),
        (Some(_), None) => Err((Code::BadProof, "the proof of the network's secret is missing")),
        (Some((name, _)), Some(proof)) => {
            let known = secret_id(name, &proof.key) == hello.network;
            if known && proven.verify(&proof.key, &proof.signature) {
                Ok(())
            } else {
                Err((Code::BadProof, "the proof of the network's secret does not hold"))
            }
        }
    }
}

/// Returns the host of a `Host` header without its port.
pub(crate) fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

pub(crate) fn describe(record: Record, present: bool) -> Member {
    let ipv6 = address_v6(&record.network, &record.key);
    Member { key: record.key, ipv4: record.ipv4, ipv6, name: record.name, present }
}

/// Why nothing is handed to a member for which much waits.
pub(crate) fn crowded() -> Refusal {
    let message = "much waits for that member already; try again".to_owned();
    Refusal { code: Code::TooMuch, message, retry_after_ms: Some(1_000) }
}

pub(crate) fn refusal(error: ClaimError) -> Refusal {
    let waits = |code, what: &str, retry_s: u64| {
        let message =
            format!("{what}, and the proof that its member was given holds for {retry_s} more seconds; try again then");
        Refusal { code, message, retry_after_ms: Some(retry_s.saturating_mul(1_000)) }
    };
    match error {
        ClaimError::NameTaken => Refusal::new(Code::NameTaken, "another member has that name; choose another one"),
        ClaimError::AddressTaken => Refusal::new(
            Code::AddressTaken,
            "that address is another member's or outside the network's prefix; choose another one",
        ),
        ClaimError::PoolEmpty => {
            Refusal::new(Code::PoolEmpty, "no address is free; the server's operator can give a larger prefix")
        }
        ClaimError::NameWaits { retry_s } => waits(Code::NameTaken, "that name was given up lately", retry_s),
        ClaimError::AddressWaits { retry_s } => waits(Code::AddressTaken, "that address was given up lately", retry_s),
        ClaimError::PoolWaits { retry_s } => {
            waits(Code::PoolEmpty, "no address is free, the next one was given up lately", retry_s)
        }
        ClaimError::Full => {
            Refusal::new(Code::Unavailable, "the server has no room for another lease; try again later")
        }
        ClaimError::Unavailable => {
            Refusal::new(Code::Unavailable, "the server cannot store leases now; try again later")
        }
    }
}
