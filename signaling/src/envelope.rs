//! Introductions on their way: signed by the sender, fresh, and sealed where there is a secret.
//!
//! The server that carries them can refuse service. It cannot alter one, replay one, pass one off as
//! another member's, nor, in a network with a secret, read one.

use std::collections::VecDeque;
use std::fmt;

use base64ct::{Base64UrlUnpadded, Encoding};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identity::{KeyPair, PublicKey, Signature, digest};
use crate::network::Network;
use crate::protocol::Bytes32;

/// Sessions that are remembered against replay.
const SESSIONS_MAX: usize = 1_024;
/// How long they are remembered, in milliseconds; a payload is not accepted if it is older.
const SESSION_AGE_MS: u64 = 600_000;
/// How far the clocks of two members may differ, in milliseconds.
const CLOCK_SKEW_MS: u64 = 300_000;
/// Messages of one session.
const COUNTER_MAX: u32 = 128;

/// Names one attempt of two members to link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u128);

// As text: 128 bits are more than a JSON number can be trusted with.
impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", self.0))
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Why a payload is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejected {
    /// It is no envelope.
    Malformed,
    /// It is not sealed with this network's secret.
    Sealed,
    /// The signature is not the sender's, or something was altered on the way.
    Forged,
    /// It was seen before, or is too old.
    Replayed,
    /// It answers another offer than ours.
    WrongOffer,
    /// It is for an earlier life of this member.
    WrongIncarnation,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rejected::Malformed => "the introduction is malformed",
            Rejected::Sealed => "the introduction is not sealed with this network's secret",
            Rejected::Forged => "the introduction is not signed by its sender: it was altered on the way",
            Rejected::Replayed => "the introduction was seen before or is too old: somebody replays it",
            Rejected::WrongOffer => "the introduction answers an offer that was not made",
            Rejected::WrongIncarnation => "the introduction is for an earlier life of this member",
        })
    }
}

impl std::error::Error for Rejected {}

/// What an envelope says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The attempt that it belongs to.
    pub session: SessionId,
    /// Its number in the attempt and direction, from 0.
    pub counter: u32,
    /// When it was written, milliseconds since 1970.
    pub sent_at_ms: u64,
    /// The recipient's incarnation, where the sender knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// The hash of the offer that it answers or extends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Bytes32>,
    /// The introduction itself, opaque here.
    pub body: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    content: String,
    signature: Signature,
}

const CONTEXT: &str = "unisockets-signal-v1";

/// Returns the hash by which answers and candidates name an offer.
pub fn offer_hash(body: &str) -> Bytes32 {
    Bytes32::new(digest("unisockets-offer-v1", &[body.as_bytes()]))
}

/// Signs, and seals where the network has a secret. `nonce` must be random.
pub fn seal(network: &Network, pair: &KeyPair, to: &PublicKey, content: &Content, nonce: [u8; 24]) -> String {
    let text = serde_json::to_string(content).expect("a content has a JSON form");
    let from = pair.public();
    let signature = pair.sign(CONTEXT, &[network.id().as_bytes(), from.as_bytes(), to.as_bytes(), text.as_bytes()]);
    let signed = serde_json::to_string(&Signed { content: text, signature }).expect("it has a JSON form");
    let Some(key) = network.sealing() else {
        return signed;
    };
    let associated = digest(CONTEXT, &[network.id().as_bytes(), from.as_bytes(), to.as_bytes()]);
    let cipher = XChaCha20Poly1305::new(key.into());
    let payload = Payload { msg: signed.as_bytes(), aad: &associated };
    let sealed = cipher.encrypt(XNonce::from_slice(&nonce), payload).expect("the text is far below the limit");
    Base64UrlUnpadded::encode_string(&[&nonce[..], &sealed].concat())
}

/// Opens what another member sealed, and checks everything except freshness.
///
/// # Errors
/// [`Rejected`] says what was tried.
pub fn open(network: &Network, from: &PublicKey, own: &PublicKey, payload: &str) -> Result<Content, Rejected> {
    let signed = match network.sealing() {
        None => payload.to_owned(),
        Some(key) => {
            let bytes = Base64UrlUnpadded::decode_vec(payload).map_err(|_| Rejected::Sealed)?;
            let (nonce, sealed) = bytes.split_at_checked(24).ok_or(Rejected::Sealed)?;
            let associated = digest(CONTEXT, &[network.id().as_bytes(), from.as_bytes(), own.as_bytes()]);
            let cipher = XChaCha20Poly1305::new(key.into());
            let payload = Payload { msg: sealed, aad: &associated };
            let opened = cipher.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| Rejected::Sealed)?;
            String::from_utf8(opened).map_err(|_| Rejected::Malformed)?
        }
    };
    let signed: Signed = serde_json::from_str(&signed).map_err(|_| Rejected::Malformed)?;
    let parts = [network.id().as_bytes(), from.as_bytes(), own.as_bytes(), signed.content.as_bytes()];
    if !from.verify(CONTEXT, &parts, &signed.signature) && !planted!(SignatureUnchecked) {
        return Err(Rejected::Forged);
    }
    serde_json::from_str(&signed.content).map_err(|_| Rejected::Malformed)
}

/// Remembers which envelopes were seen.
#[derive(Debug, Default)]
pub struct Freshness {
    /// (sender, session, counters seen as bits, last seen).
    seen: VecDeque<(PublicKey, SessionId, u128, u64)>,
}

impl Freshness {
    /// Accepts an envelope once.
    ///
    /// # Errors
    /// [`Rejected::Replayed`].
    pub fn accept(&mut self, now_ms: u64, from: &PublicKey, content: &Content) -> Result<(), Rejected> {
        let sent = content.sent_at_ms;
        let too_old = sent.saturating_add(SESSION_AGE_MS) < now_ms;
        if too_old || sent > now_ms.saturating_add(CLOCK_SKEW_MS) || content.counter >= COUNTER_MAX {
            return Err(Rejected::Replayed);
        }
        // A session is remembered as long as anything of it could be accepted.
        self.seen.retain(|(_, _, _, at)| at.saturating_add(SESSION_AGE_MS + CLOCK_SKEW_MS) >= now_ms);
        let bit = 1u128 << content.counter;
        let known = self.seen.iter_mut().find(|(key, session, _, _)| key == from && *session == content.session);
        if let Some((_, _, counters, at)) = known {
            if *counters & bit != 0 && !planted!(ReplayAccepted) {
                return Err(Rejected::Replayed);
            }
            *counters |= bit;
            *at = now_ms;
            return Ok(());
        }
        if self.seen.len() >= SESSIONS_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back((*from, content.session, bit, now_ms));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(counter: u32) -> Content {
        Content {
            session: SessionId(5),
            counter,
            sent_at_ms: 1_000_000,
            incarnation: None,
            offer: None,
            body: "v=0".into(),
        }
    }

    fn pair(seed: u8) -> KeyPair {
        KeyPair::from_seed(&[seed; 32])
    }

    #[test]
    fn an_envelope_opens_for_its_recipient_in_its_network_only() {
        for secret in [None, Some("secret")] {
            let network = Network::new("home", secret).unwrap();
            let (a, b, c) = (pair(1), pair(2), pair(3));
            let sealed = seal(&network, &a, &b.public(), &content(0), [9; 24]);
            assert_eq!(open(&network, &a.public(), &b.public(), &sealed), Ok(content(0)));
            assert!(open(&network, &c.public(), &b.public(), &sealed).is_err());
            assert!(open(&network, &a.public(), &c.public(), &sealed).is_err());
            let other = Network::new("other", secret).unwrap();
            assert!(open(&other, &a.public(), &b.public(), &sealed).is_err());
            let altered = sealed.replace("v=0", "v=1");
            assert_eq!(open(&network, &a.public(), &b.public(), &altered).is_ok(), secret.is_some());
        }
    }

    #[test]
    fn a_sealed_envelope_shows_nothing_and_a_wrong_secret_is_named() {
        let network = Network::new("home", Some("secret")).unwrap();
        let wrong = Network::new("home", Some("guess")).unwrap();
        let (a, b) = (pair(1), pair(2));
        let sealed = seal(&network, &a, &b.public(), &content(0), [9; 24]);
        assert!(!sealed.contains("v=0"));
        assert_eq!(open(&wrong, &a.public(), &b.public(), &sealed), Err(Rejected::Sealed));
    }

    #[test]
    fn every_envelope_is_accepted_once_and_old_ones_never() {
        let mut freshness = Freshness::default();
        let from = pair(1).public();
        assert_eq!(freshness.accept(1_000_000, &from, &content(0)), Ok(()));
        assert_eq!(freshness.accept(1_000_000, &from, &content(1)), Ok(()));
        assert_eq!(freshness.accept(1_000_000, &from, &content(0)), Err(Rejected::Replayed));
        assert_eq!(freshness.accept(1_600_001, &from, &content(2)), Err(Rejected::Replayed));
        assert_eq!(freshness.accept(1_000_000, &pair(2).public(), &content(0)), Ok(()));
    }
}
