//! Where leases and presence are kept: in memory, or in memory with a durable file.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::identity::{KeyPair, PublicKey};
use crate::leases::{Changes, Claim, ClaimError, Demand, Kept, Leases, Record};
use crate::network::address_v6;
use crate::protocol::Query;
use crate::room::Place;
pub use crate::store::StoreError;
use crate::store::{Store, Written};

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
    /// Forgets leases that are kept no longer.
    fn sweep(&self, now_s: u64);
    /// Finds a member.
    fn find(&self, network: &str, query: &Query) -> Answer<Option<Found>>;
    /// Lists members in the order of their keys.
    fn list(&self, network: &str, after: Option<PublicKey>, limit: usize) -> Answer<Vec<Found>>;
}

struct State {
    leases: Leases,
    /// The instance of each member that is there, by network.
    present: HashMap<String, HashMap<PublicKey, u64>>,
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

    /// Opens, or makes, a directory that is kept in a file. `seed` is used for the key of a new file; whoever has a
    /// lease in it counts as seen in `now_s`, in seconds since 1970.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be opened, is in use, or is of another kind.
    pub fn in_file(prefix: (Ipv4Addr, u8), path: &Path, seed: [u8; 32], now_s: u64) -> Result<Self, StoreError> {
        let (store, contents) = Store::open(path, seed)?;
        let directory =
            Self { store: Some(store), ..Self::in_memory(prefix, KeyPair::from_seed(&contents.server_seed)) };
        {
            let mut state = directory.lock();
            state.leases.restore_epoch(contents.epoch);
            for record in contents.records {
                state.remember(&record);
                state.leases.restore(record, now_s);
            }
            contents.reservations.into_iter().for_each(|waiting| state.leases.restore_reservation(waiting));
        }
        Ok(directory)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what changes remove, and queues them; the order in the file is that of the table, as the caller holds
    /// its lock.
    fn keep(&self, state: &mut State, changes: Changes) -> Option<Written> {
        state.forget(&changes);
        let store = self.store.as_ref().filter(|_| !changes.is_empty())?;
        Some(store.write(changes))
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
        let instance = self.present.get(&record.network).and_then(|keys| keys.get(&record.key)).copied();
        Found { record: record.clone(), instance }
    }

    fn claim(&mut self, claim: &Claim) -> Result<(Record, Changes), ClaimError> {
        let present = self.present.get(&claim.network);
        self.leases.claim(claim, |key| present.is_some_and(|keys| keys.contains_key(key)))
    }

    fn sweep(&mut self, now_s: u64, demand: Demand) -> Changes {
        let present = &self.present;
        let is_there = |network: &str, key: &PublicKey| present.get(network).is_some_and(|keys| keys.contains_key(key));
        self.leases.sweep(now_s, demand, is_there)
    }
}

impl Directory for LocalDirectory {
    fn server_key(&self) -> KeyPair {
        self.key.clone()
    }

    fn claim(&self, claim: Claim) -> Answer<Result<Record, ClaimError>> {
        let mut state = self.lock();
        let mut claimed = state.claim(&claim);
        if claimed == Err(ClaimError::Full) {
            let changes = state.sweep(claim.now_s, Demand::High);
            drop(self.keep(&mut state, changes));
            claimed = state.claim(&claim);
        }
        let (record, changes) = match claimed {
            Ok(claimed) => claimed,
            Err(error) => return ready(Err(error)),
        };
        let written = self.keep(&mut state, changes);
        state.remember(&record);
        match written {
            None => ready(Ok(record)),
            Some(written) => Box::pin(async move {
                match written.await {
                    Ok(Ok(())) => Ok(record),
                    Ok(Err(_)) | Err(_) => Err(ClaimError::Unavailable),
                }
            }),
        }
    }

    fn enter(&self, place: &Place, instance: u64) {
        self.lock().present.entry(place.0.clone()).or_default().insert(place.1, instance);
    }

    fn exit(&self, place: &Place, instance: u64, kept: Kept, now_s: u64) {
        let mut state = self.lock();
        let Some(present) = state.present.get_mut(&place.0).filter(|keys| keys.get(&place.1) == Some(&instance)) else {
            return;
        };
        present.remove(&place.1);
        if present.is_empty() {
            state.present.remove(&place.0);
        }
        let changes = state.leases.exit(&place.0, &place.1, kept, now_s);
        drop(self.keep(&mut state, changes));
    }

    fn sweep(&self, now_s: u64) {
        let mut state = self.lock();
        let changes = state.sweep(now_s, Demand::Usual);
        drop(self.keep(&mut state, changes));
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
