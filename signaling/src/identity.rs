//! Keys: the public key *is* the member (RFC 8032).

use std::fmt;
use std::str::FromStr;

use base64ct::{Base64UrlUnpadded, Encoding};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The text is no key, or the key is no point of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadKey;

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key is 43 letters, digits, '-' or '_' (base64url of 32 bytes)")
    }
}

impl std::error::Error for BadKey {}

/// Reads exactly `LEN` bytes of base64url without padding (RFC 4648, section 5).
fn bytes_of<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    let mut bytes = [0; LEN];
    let len = Base64UrlUnpadded::decode(text, &mut bytes).ok()?.len();
    (len == LEN).then_some(bytes)
}

/// A member's public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Makes a key from its bytes, without looking whether it is a point.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns whether `signature` is this key's over the parts.
    ///
    /// Weak keys and malleable signatures are refused.
    pub fn verify(&self, context: &str, parts: &[&[u8]], signature: &Signature) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else {
            return false;
        };
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&digest(context, parts), &signature).is_ok()
    }

    /// Returns the first letters of the text form: enough for people to tell keys apart.
    pub fn short(&self) -> String {
        self.to_string()[..10].to_owned()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Base64UrlUnpadded::encode_string(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        bytes_of(text).map(Self).ok_or(BadKey)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A signature over a context and parts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// Makes a signature from its bytes.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(..)")
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Base64UrlUnpadded::encode_string(&self.0))
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = bytes_of(&text).map(Self);
        bytes.ok_or_else(|| serde::de::Error::custom("a signature is 64 bytes in base64url"))
    }
}

/// A key pair; the secret half never leaves this type except as its seed, to be kept.
#[derive(Clone)]
pub struct KeyPair(SigningKey);

impl KeyPair {
    /// Makes the pair of a seed, which must be random.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Returns the seed, for the file that keeps it.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs the parts in a context, so that no signature serves for anything else.
    pub fn sign(&self, context: &str, parts: &[&[u8]]) -> Signature {
        Signature(self.0.sign(&digest(context, parts)).to_bytes())
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public())
    }
}

/// Hashes a context and parts, each with its length before it, so that no two inputs run together.
pub fn digest(context: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in std::iter::once(&context.as_bytes()).chain(parts) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_key_context_and_parts_only() {
        let pair = KeyPair::from_seed(&[7; 32]);
        let signature = pair.sign("a", &[b"x", b"y"]);
        assert!(pair.public().verify("a", &[b"x", b"y"], &signature));
        assert!(!pair.public().verify("b", &[b"x", b"y"], &signature));
        assert!(!pair.public().verify("a", &[b"xy", b""], &signature));
        assert!(!KeyPair::from_seed(&[8; 32]).public().verify("a", &[b"x", b"y"], &signature));
        assert!(!PublicKey::from_bytes([0; 32]).verify("a", &[], &signature));
    }

    #[test]
    fn keys_read_back_from_their_text() {
        let key = KeyPair::from_seed(&[7; 32]).public();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!("short".parse::<PublicKey>(), Err(BadKey));
    }
}
