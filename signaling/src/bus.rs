//! How several server instances behind one name hand signals to each other.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::identity::PublicKey;
use crate::room::Place;

/// Signals that wait for an instance.
const QUEUE_LEN_MAX: usize = 4_096;

/// A payload for a member of another instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// The recipient.
    pub to: Place,
    /// The sender.
    pub from: PublicKey,
    /// The payload.
    pub payload: String,
}

/// The instance is not there, or its queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undeliverable;

/// Carries parcels between instances.
pub trait Bus: Send + Sync {
    /// Announces an instance; its parcels arrive at the receiver.
    fn subscribe(&self, instance: u64) -> mpsc::Receiver<Parcel>;
    /// Hands a parcel to an instance.
    ///
    /// # Errors
    /// [`Undeliverable`].
    fn publish(&self, instance: u64, parcel: Parcel) -> Result<(), Undeliverable>;
}

/// A bus inside one process.
#[derive(Default)]
pub struct MemoryBus {
    instances: Mutex<HashMap<u64, mpsc::Sender<Parcel>>>,
}

impl Bus for MemoryBus {
    fn subscribe(&self, instance: u64) -> mpsc::Receiver<Parcel> {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN_MAX);
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).insert(instance, sender);
        receiver
    }

    fn publish(&self, instance: u64, parcel: Parcel) -> Result<(), Undeliverable> {
        let instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.get(&instance).ok_or(Undeliverable)?.try_send(parcel).map_err(|_| Undeliverable)
    }
}
