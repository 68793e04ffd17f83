//! Where leases and presence are kept: in memory, or in memory with a durable file.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::identity::{KeyPair, PublicKey};
use crate::leases::{Changes, Claim, ClaimError, Leases, Record};
use crate::network::address_v6;
use crate::protocol::Query;
use crate::room::{Kept, Place};
use crate::store::Store;
pub use crate::store::StoreError;

/// An answer that may take a while.
pub type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A member as the directory knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its lease.
    pub record: Record,
    /// The instance that it is connected to, if it is.
    pub instance: Option<u64>,
}

/// Keeps leases and presence, for one server instance or for several behind one name.
pub trait Directory: Send + Sync {
    /// Returns the key that signs leases; all instances share it.
    fn server_key(&self) -> KeyPair;
    /// Leases an address and a name; the lease is durable when the answer comes.
    fn claim(&self, claim: Claim) -> Answer<Result<Record, ClaimError>>;
    /// Notes that a member is connected to an instance.
    fn enter(&self, place: &Place, instance: u64);
    /// Notes that a member has gone from an instance; a later instance of the same member stays.
    fn exit(&self, place: &Place, instance: u64, kept: Kept, now_s: u64);
    /// Finds a member.
    fn find(&self, network: &str, query: &Query) -> Answer<Option<Found>>;
    /// Lists members in the order of their keys.
    fn list(&self, network: &str, after: Option<PublicKey>, limit: usize) -> Answer<Vec<Found>>;
}

struct State {
    leases: Leases,
    present: HashMap<Place, u64>,
    /// From an IPv6 address back to the key that it is derived from.
    by_v6: HashMap<(String, std::net::Ipv6Addr), PublicKey>,
}

/// The directory of one process.
pub struct LocalDirectory {
    key: KeyPair,
    state: Mutex<State>,
    store: Option<Store>,
}

fn ready<T: Send + 'static>(value: T) -> Answer<T> {
    Box::pin(std::future::ready(value))
}

impl LocalDirectory {
    /// Makes a directory that forgets everything when the process ends.
    pub fn in_memory(prefix: (Ipv4Addr, u8), key: KeyPair) -> Self {
        let state = State { leases: Leases::new(prefix), present: HashMap::new(), by_v6: HashMap::new() };
        Self { key, state: Mutex::new(state), store: None }
    }

    /// Opens, or makes, a directory that is kept in a file. `seed` is used for the key of a new file.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be opened, is in use, or is of another kind.
    pub fn in_file(prefix: (Ipv4Addr, u8), path: &Path, seed: [u8; 32]) -> Result<Self, StoreError> {
        let (store, contents) = Store::open(path, seed)?;
        let directory =
            Self { store: Some(store), ..Self::in_memory(prefix, KeyPair::from_seed(&contents.server_seed)) };
        {
            let mut state = directory.lock();
            for (network, epoch) in contents.epochs {
                state.leases.restore_epoch(&network, epoch);
            }
            for record in contents.records {
                state.remember(&record);
                state.leases.restore(record);
            }
        }
        Ok(directory)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remember(&mut self, record: &Record) {
        let address = address_v6(&record.network, &record.key);
        self.by_v6.insert((record.network.clone(), address), record.key);
    }

    fn forget(&mut self, changes: &Changes) {
        for (network, key) in &changes.remove {
            self.by_v6.remove(&(network.clone(), address_v6(network, key)));
        }
    }

    fn describe(&self, record: &Record) -> Found {
        let instance = self.present.get(&(record.network.clone(), record.key)).copied();
        Found { record: record.clone(), instance }
    }
}

impl Directory for LocalDirectory {
    fn server_key(&self) -> KeyPair {
        self.key.clone()
    }

    fn claim(&self, claim: Claim) -> Answer<Result<Record, ClaimError>> {
        let mut state = self.lock();
        let State { leases, present, .. } = &mut *state;
        let network = claim.network.clone();
        let (record, changes) = match leases.claim(&claim, |key| present.contains_key(&(network.clone(), *key))) {
            Ok(claimed) => claimed,
            Err(error) => return ready(Err(error)),
        };
        state.forget(&changes);
        state.remember(&record);
        // The order in the file is that of the table: the lock is held until the change is queued.
        match &self.store {
            None => ready(Ok(record)),
            Some(store) => {
                let written = store.write(changes);
                Box::pin(async move {
                    match written.await {
                        Ok(Ok(())) => Ok(record),
                        Ok(Err(_)) | Err(_) => Err(ClaimError::Unavailable),
                    }
                })
            }
        }
    }

    fn enter(&self, place: &Place, instance: u64) {
        self.lock().present.insert(place.clone(), instance);
    }

    fn exit(&self, place: &Place, instance: u64, kept: Kept, now_s: u64) {
        let mut state = self.lock();
        if state.present.get(place) != Some(&instance) {
            return;
        }
        state.present.remove(place);
        let changes = match kept {
            Kept::Lease => state.leases.touch(&place.0, &place.1, now_s),
            Kept::Nothing => state.leases.release(&place.0, &place.1),
        };
        state.forget(&changes);
        if let Some(store) = &self.store {
            drop(store.write(changes));
        }
    }

    fn find(&self, network: &str, query: &Query) -> Answer<Option<Found>> {
        let state = self.lock();
        let leases = &state.leases;
        let record = match query {
            Query::Key(key) => leases.by_key(network, key),
            Query::Name(name) => leases.by_name(network, name),
            Query::Ip(IpAddr::V4(address)) => leases.by_address(network, *address),
            Query::Ip(IpAddr::V6(address)) => {
                let key = state.by_v6.get(&(network.to_owned(), *address));
                key.and_then(|key| leases.by_key(network, key))
            }
        };
        ready(record.map(|record| state.describe(record)))
    }

    fn list(&self, network: &str, after: Option<PublicKey>, limit: usize) -> Answer<Vec<Found>> {
        let state = self.lock();
        let found = state.leases.after(network, after).take(limit).map(|record| state.describe(record)).collect();
        ready(found)
    }
}
