//! Trust on first use: which key stood behind a server, a name or an address the last time.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::identity::PublicKey;

/// Pins that are kept; beyond that nothing new is pinned.
const PINS_MAX: usize = 16_384;

/// What a key is pinned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A signaling server, by host and port.
    Server(&'a str),
    /// A name in a network.
    Name(&'a str, &'a str),
    /// An IPv4 address in a network.
    Address(&'a str, Ipv4Addr),
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Server(host) => write!(f, "server {host}"),
            Subject::Name(network, name) => write!(f, "name {name} in {network}"),
            Subject::Address(network, address) => write!(f, "address {address} in {network}"),
        }
    }
}

/// Another key than before stands behind a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// What it is about.
    pub subject: String,
    /// The key before.
    pub pinned: PublicKey,
    /// The key now.
    pub offered: PublicKey,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the key of {} has changed from {} to {}: somebody may be posing; if the change is meant, \
             run 'unisockets key forget \"{}\"' and try again",
            self.subject,
            self.pinned.short(),
            self.offered.short(),
            self.subject
        )
    }
}

impl std::error::Error for Changed {}

/// The pins of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pins {
    keys: BTreeMap<String, PublicKey>,
    #[serde(skip)]
    changed: bool,
}

impl Pins {
    /// Checks a key against its pin, or pins it.
    ///
    /// # Errors
    /// [`Changed`] if another key is pinned.
    pub fn check(&mut self, subject: &Subject<'_>, key: &PublicKey) -> Result<(), Changed> {
        let subject = subject.to_string();
        match self.keys.get(&subject) {
            Some(pinned) if pinned == key => Ok(()),
            Some(pinned) => Err(Changed { subject, pinned: *pinned, offered: *key }),
            None => {
                if self.keys.len() < PINS_MAX {
                    self.keys.insert(subject, *key);
                    self.changed = true;
                }
                Ok(())
            }
        }
    }

    /// Compares a key with its pin, and pins nothing.
    ///
    /// # Errors
    /// [`Changed`] if another key is pinned.
    pub fn compare(&self, subject: &Subject<'_>, key: &PublicKey) -> Result<(), Changed> {
        let subject = subject.to_string();
        match self.keys.get(&subject) {
            Some(pinned) if pinned != key => Err(Changed { subject, pinned: *pinned, offered: *key }),
            _ => Ok(()),
        }
    }

    /// Forgets a pin by the text of its subject; returns whether there was one.
    pub fn forget(&mut self, subject: &str) -> bool {
        let forgotten = self.keys.remove(subject).is_some();
        self.changed |= forgotten;
        forgotten
    }

    /// Returns once whether something has changed that should be kept.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Returns all pins.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &PublicKey)> {
        self.keys.iter().map(|(subject, key)| (subject.as_str(), key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;

    #[test]
    fn the_first_key_is_pinned_and_another_is_refused_until_it_is_forgotten() {
        let (a, b) = (KeyPair::from_seed(&[1; 32]).public(), KeyPair::from_seed(&[2; 32]).public());
        let mut pins = Pins::default();
        let subject = Subject::Name("home", "alpha");
        assert_eq!(pins.compare(&subject, &b), Ok(()));
        assert_eq!(pins.check(&subject, &a), Ok(()));
        assert!(pins.take_changed());
        assert!(pins.compare(&subject, &b).is_err());
        assert_eq!(pins.check(&subject, &a), Ok(()));
        assert!(!pins.take_changed());
        let changed = pins.check(&subject, &b).unwrap_err();
        assert_eq!((changed.pinned, changed.offered), (a, b));
        assert!(pins.forget(&changed.subject));
        assert_eq!(pins.check(&subject, &b), Ok(()));
    }
}
