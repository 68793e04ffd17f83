//! Addresses and names that somebody gave up while a signed proof of them may still convince. No I/O.
//!
//! A proof cannot be called back. Until the last one has ended, what it names goes to nobody but the key that
//! it names.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::identity::PublicKey;

/// What is scarce in a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// An IPv4 address.
    Address(Ipv4Addr),
    /// A name, which never looks like an address: it is a DNS label.
    Name(String),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Address(address) => address.fmt(f),
            Resource::Name(name) => f.write_str(name),
        }
    }
}

/// Something that waits, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The network's id.
    pub network: String,
    /// What waits.
    pub resource: Resource,
    /// The key that may have it again at once.
    pub key: PublicKey,
    /// The last second of the last proof, since 1970.
    pub until_s: u64,
}

/// What waits in one network.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    by_resource: HashMap<Resource, Reservation>,
    /// The address that a key had last, if it waits.
    by_key: HashMap<PublicKey, Ipv4Addr>,
    /// In the order of ending.
    due: BTreeSet<(u64, Resource)>,
}

impl Quarantine {
    pub(crate) fn len(&self) -> usize {
        self.by_resource.len()
    }

    pub(crate) fn find(&self, resource: &Resource) -> Option<&Reservation> {
        self.by_resource.get(resource)
    }

    /// Returns the address that a key had last.
    pub(crate) fn former(&self, key: &PublicKey) -> Option<Ipv4Addr> {
        self.by_key.get(key).copied()
    }

    /// Returns when the next address ends to wait.
    pub(crate) fn next_address_s(&self) -> Option<u64> {
        let address = |(_, resource): &&(u64, Resource)| matches!(resource, Resource::Address(_));
        self.due.iter().find(address).map(|(until_s, _)| *until_s)
    }

    pub(crate) fn insert(&mut self, reservation: Reservation) {
        self.remove(&reservation.resource);
        if let Resource::Address(address) = reservation.resource {
            self.by_key.insert(reservation.key, address);
        }
        self.due.insert((reservation.until_s, reservation.resource.clone()));
        self.by_resource.insert(reservation.resource.clone(), reservation);
    }

    pub(crate) fn remove(&mut self, resource: &Resource) -> Option<Reservation> {
        let reservation = self.by_resource.remove(resource)?;
        self.due.remove(&(reservation.until_s, resource.clone()));
        if let Resource::Address(address) = resource
            && self.by_key.get(&reservation.key) == Some(address)
        {
            self.by_key.remove(&reservation.key);
        }
        Some(reservation)
    }

    /// Removes the next one whose proofs have all ended.
    pub(crate) fn pop_ended(&mut self, now_s: u64) -> Option<Reservation> {
        let resource =
            self.due.first().filter(|(until_s, _)| *until_s < now_s).map(|(_, resource)| resource.clone())?;
        self.remove(&resource)
    }
}
