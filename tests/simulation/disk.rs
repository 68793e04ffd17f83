//! The disk of the signaling server: what is left of the leases when its process ends.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use unisockets_signaling::identity::PublicKey;
use unisockets_signaling::leases::{Changes, Leases, Record, Reservation, Resource};

/// The disk, with changes that are on their way to it.
#[derive(Default)]
pub struct Disk {
    records: BTreeMap<(String, PublicKey), Record>,
    waiting: BTreeMap<(String, Resource), Reservation>,
    epoch: u64,
    queue: VecDeque<(u64, Changes)>,
}

impl Disk {
    /// Queues changes that are durable then; the order is kept.
    pub fn write(&mut self, at: u64, changes: Changes) {
        self.queue.push_back((at, changes));
    }

    /// Makes durable what is due.
    pub fn settle(&mut self, now: u64) {
        while self.queue.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, changes)) = self.queue.pop_front()
        {
            self.commit(changes);
        }
    }

    /// The process ends: what is not durable yet never will be.
    pub fn crash(&mut self) {
        self.queue.clear();
    }

    fn commit(&mut self, changes: Changes) {
        self.epoch = changes.epoch.unwrap_or(self.epoch);
        changes.remove.iter().for_each(|place| drop(self.records.remove(place)));
        changes.free.iter().for_each(|place| drop(self.waiting.remove(place)));
        for record in changes.put {
            self.records.insert((record.network.clone(), record.key), record);
        }
        for waiting in changes.reserve {
            self.waiting.insert((waiting.network.clone(), waiting.resource.clone()), waiting);
        }
    }

    /// What a new process knows.
    pub fn load(&self, prefix: (Ipv4Addr, u8), now_s: u64) -> Leases {
        let mut leases = Leases::new(prefix);
        leases.restore_epoch(self.epoch);
        self.records.values().for_each(|record| leases.restore(record.clone(), now_s));
        self.waiting.values().for_each(|waiting| leases.restore_reservation(waiting.clone()));
        leases
    }
}
