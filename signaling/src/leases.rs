//! Who has which address and name: the table that a server keeps for each network. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::identity::PublicKey;
use crate::quarantine::Quarantine;
pub use crate::quarantine::{Reservation, Resource};

/// How long a lease is kept after its holder was last seen, in seconds.
pub const KEEP_S: u64 = 86_400;
/// The same where more than three quarters of the addresses are given out, or the server's table is full. A member
/// renews more often.
pub const KEEP_SHORT_S: u64 = 1_200;
/// The same for a member without a lasting key whose connection broke: it may come back, but not after long.
pub const KEEP_BRIEF_S: u64 = 600;
/// How long a lease proves something after it was claimed or renewed, in seconds. It is short because nobody else may
/// have the address before: a few times what members renew after.
pub const PROOF_S: u64 = 3_600;
/// Leases of one server, together with the addresses and names that wait for a proof to end.
pub const LEASES_MAX: usize = 1_000_000;
/// A full table is swept at most this often, in seconds: a sweep walks all of it.
const SWEEP_PAUSE_S: u64 = 10;

/// A lease as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The network's id.
    pub network: String,
    /// The holder.
    pub key: PublicKey,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// Its name.
    pub name: Option<String>,
    /// Grows when the address passes on.
    pub epoch: u64,
    /// When the holder was last known to be there, seconds since 1970.
    pub seen_s: u64,
    /// How long it is kept after that, in seconds.
    #[serde(default = "keep_s")]
    pub keep_s: u64,
    /// The last second of the last proof that was signed for it, since 1970.
    #[serde(default)]
    pub proof_ends_s: u64,
}

/// Records of before this was stored were kept for a day.
fn keep_s() -> u64 {
    KEEP_S
}

/// How much the addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// There are enough.
    Usual,
    /// They are short: who is away loses its lease earlier.
    High,
}

impl Record {
    /// Returns the last second in which nobody else can have the address and the name, if the holder stays away.
    fn ends_s(&self, demand: Demand) -> u64 {
        let keep_s = match demand {
            Demand::Usual => self.keep_s,
            Demand::High => self.keep_s.min(KEEP_SHORT_S),
        };
        self.seen_s.saturating_add(keep_s).max(self.proof_ends_s)
    }
}

/// What a member asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The network's id.
    pub network: String,
    /// The member.
    pub key: PublicKey,
    /// The name that it would like.
    pub name: Option<String>,
    /// The address that it would like.
    pub ipv4: Option<Ipv4Addr>,
    /// Seconds since 1970.
    pub now_s: u64,
}

/// What happens to the lease of a member that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is kept for the next time.
    Lease,
    /// It is kept for [`KEEP_BRIEF_S`]: the member has not left, and has no lasting key.
    Briefly,
    /// It is given back.
    Nothing,
}

/// Why a claim fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimError {
    /// Another member has the name.
    NameTaken,
    /// Another member has the address, or it is not in the prefix.
    AddressTaken,
    /// No address is free.
    PoolEmpty,
    /// The name was given up, and a proof of it still holds.
    NameWaits {
        /// Seconds until it is free.
        retry_s: u64,
    },
    /// The address was given up, and a proof of it still holds.
    AddressWaits {
        /// Seconds until it is free.
        retry_s: u64,
    },
    /// No address is free before a proof has ended.
    PoolWaits {
        /// Seconds until one may be free.
        retry_s: u64,
    },
    /// The server keeps [`LEASES_MAX`] leases.
    Full,
    /// The store failed.
    Unavailable,
}

#[derive(Default)]
struct Table {
    by_key: BTreeMap<PublicKey, Record>,
    by_address: HashMap<Ipv4Addr, PublicKey>,
    by_name: HashMap<String, PublicKey>,
    quarantine: Quarantine,
    /// No address below this offset is free.
    lowest_free: u32,
}

impl Table {
    fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.quarantine.len() == 0
    }

    fn holder(&self, resource: &Resource) -> Option<&Record> {
        let key = match resource {
            Resource::Address(address) => self.by_address.get(address),
            Resource::Name(name) => self.by_name.get(name),
        };
        self.by_key.get(key?)
    }
}

/// The leases of all networks of a server.
pub struct Leases {
    prefix: (Ipv4Addr, u8),
    /// Only networks with a lease or something that waits: strangers can name any number of them.
    tables: HashMap<String, Table>,
    len: usize,
    waiting_len: usize,
    len_max: usize,
    /// One counter for all networks: it does not fall back when a network's last lease is gone.
    epoch: u64,
    swept_s: u64,
}

/// Changes that a store has to make durable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Records to be written.
    pub put: Vec<Record>,
    /// Records to be removed.
    pub remove: Vec<(String, PublicKey)>,
    /// What waits from now on.
    pub reserve: Vec<Reservation>,
    /// What waits no more.
    pub free: Vec<(String, Resource)>,
    /// The counter of epochs, where it has grown: it must not fall back when records are gone.
    pub epoch: Option<u64>,
}

impl Changes {
    /// Returns whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Who is there, of one network.
type Present<'a> = &'a dyn Fn(&PublicKey) -> bool;

/// An address to be leased, and its stale holder, who loses it.
type Choice = (Ipv4Addr, Option<PublicKey>);

impl Leases {
    /// Makes an empty table that leases from a prefix of 8 to 30 bits.
    pub fn new(prefix: (Ipv4Addr, u8)) -> Self {
        Self {
            prefix: (prefix.0, prefix.1.clamp(8, 30)),
            tables: HashMap::new(),
            len: 0,
            waiting_len: 0,
            len_max: LEASES_MAX,
            epoch: 0,
            swept_s: 0,
        }
    }

    /// Returns the prefix.
    pub fn prefix(&self) -> (Ipv4Addr, u8) {
        self.prefix
    }

    /// Host addresses of the prefix: without the first (network) and the last (broadcast).
    fn capacity(&self) -> u32 {
        (1u32 << (32 - self.prefix.1)) - 2
    }

    fn address(&self, offset: u32) -> Ipv4Addr {
        let mask = u32::MAX << (32 - self.prefix.1);
        Ipv4Addr::from((u32::from(self.prefix.0) & mask) + 1 + offset)
    }

    fn offset(&self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).checked_sub(u32::from(self.address(0)))?;
        (offset < self.capacity()).then_some(offset)
    }

    /// Puts back a record that was stored. Its holder counts as seen at the start of the server, in `now_s`: it had
    /// no chance to come back before.
    pub fn restore(&mut self, record: Record, now_s: u64) {
        let seen_s = record.seen_s.max(now_s);
        self.insert(Record { seen_s, ..record });
    }

    /// Puts back what waited when it was stored.
    pub fn restore_reservation(&mut self, reservation: Reservation) {
        self.reserve(reservation, &mut Changes::default());
    }

    /// Puts back the counter of epochs.
    pub fn restore_epoch(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
    }

    fn table(&mut self, network: &str) -> &mut Table {
        self.tables.entry(network.to_owned()).or_default()
    }

    fn insert(&mut self, record: Record) {
        self.epoch = self.epoch.max(record.epoch);
        let table = self.table(&record.network);
        table.by_address.insert(record.ipv4, record.key);
        if let Some(name) = &record.name {
            table.by_name.insert(name.clone(), record.key);
        }
        let is_new = table.by_key.insert(record.key, record).is_none();
        self.len += usize::from(is_new);
    }

    /// Leases an address, and the name if one is asked for: the ones that this key had before, the one asked
    /// for, or the lowest free one.
    ///
    /// # Errors
    /// [`ClaimError`]; nothing has changed then. After [`ClaimError::Full`], [`Leases::sweep`] may help.
    pub fn claim(
        &mut self,
        claim: &Claim,
        present: impl Fn(&PublicKey) -> bool,
    ) -> Result<(Record, Changes), ClaimError> {
        let mut changes = Changes::default();
        self.end_quarantines(&claim.network, claim.now_s, &mut changes);
        let before = self.by_key(&claim.network, &claim.key).cloned();
        let name = claim.name.clone().or_else(|| before.as_ref().and_then(|record| record.name.clone()));
        let name_holder = match &name {
            Some(name) => self.take_over(claim, &Resource::Name(name.clone()), &present)?,
            None => None,
        };
        let former = || self.tables.get(&claim.network)?.quarantine.former(&claim.key);
        let held = before.as_ref().map(|record| record.ipv4).filter(|_| !planted!(AddressNotKept));
        // The operator may have changed the prefix since.
        let own = held.or_else(former).filter(|address| self.offset(*address).is_some());
        let (address, address_holder) = match claim.ipv4.or(own) {
            Some(address) if self.offset(address).is_none() => return Err(ClaimError::AddressTaken),
            Some(address) => (address, self.take_over(claim, &Resource::Address(address), &present)?),
            None => self.lowest_free(claim, &present)?,
        };
        let is_renewal = before.as_ref().is_some_and(|record| record.ipv4 == address && record.name == name);
        if !is_renewal && self.len + self.waiting_len >= self.len_max {
            return Err(ClaimError::Full);
        }
        for holder in address_holder.into_iter().chain(name_holder) {
            self.evict(&claim.network, &holder, &mut changes);
        }
        let proof_ends_s = claim.now_s.saturating_add(PROOF_S);
        let mut record = Record {
            network: claim.network.clone(),
            key: claim.key,
            ipv4: address,
            name,
            epoch: 0,
            seen_s: claim.now_s,
            keep_s: KEEP_S,
            // A clock that was set back must not shorten what was signed before.
            proof_ends_s: proof_ends_s.max(before.as_ref().map_or(0, |before| before.proof_ends_s)),
        };
        record.epoch = match &before {
            Some(before) if before.ipv4 == address => before.epoch,
            _ => {
                self.epoch += 1;
                changes.epoch = Some(self.epoch);
                self.epoch
            }
        };
        self.replace(before.as_ref(), &record, &mut changes);
        changes.put.extend(Some(record.clone()).filter(|_| !planted!(LeaseNotStored)));
        Ok((record, changes))
    }

    /// Puts a record in the place of the one that its key had before.
    fn replace(&mut self, before: Option<&Record>, record: &Record, changes: &mut Changes) {
        let network = &record.network;
        let name = record.name.clone().map(Resource::Name);
        for resource in [Resource::Address(record.ipv4)].into_iter().chain(name) {
            self.unreserve(network, &resource, changes);
        }
        if let Some(before) = before {
            self.remove(network, &before.key, &mut Changes::default());
            let name = before.name.clone().filter(|name| record.name.as_ref() != Some(name));
            let address = Some(before.ipv4).filter(|address| *address != record.ipv4);
            self.quarantine(before, address, name, changes);
        }
        self.insert(record.clone());
    }

    /// Says who has to go so that a claim can have an address or a name: nobody, or a holder that is stale.
    fn take_over(
        &self,
        claim: &Claim,
        resource: &Resource,
        present: Present<'_>,
    ) -> Result<Option<PublicKey>, ClaimError> {
        let Some(table) = self.tables.get(&claim.network) else {
            return Ok(None);
        };
        if let Some(waiting) = table.quarantine.find(resource).filter(|waiting| waiting.key != claim.key) {
            let retry_s = retry_s(waiting.until_s, claim.now_s);
            return Err(match resource {
                Resource::Address(_) => ClaimError::AddressWaits { retry_s },
                Resource::Name(_) => ClaimError::NameWaits { retry_s },
            });
        }
        match table.holder(resource).filter(|holder| holder.key != claim.key) {
            None => Ok(None),
            Some(holder) if holder.ends_s(self.demand(table)) < claim.now_s && !present(&holder.key) => {
                Ok(Some(holder.key))
            }
            Some(_) if matches!(resource, Resource::Name(_)) => Err(ClaimError::NameTaken),
            Some(_) => Err(ClaimError::AddressTaken),
        }
    }

    fn demand(&self, table: &Table) -> Demand {
        let taken = table.by_key.len() as u64 + table.quarantine.len() as u64;
        if taken * 4 > u64::from(self.capacity()) * 3 { Demand::High } else { Demand::Usual }
    }

    fn lowest_free(&mut self, claim: &Claim, present: Present<'_>) -> Result<Choice, ClaimError> {
        let capacity = self.capacity();
        let Some(table) = self.tables.get(&claim.network) else {
            return Ok((self.address(0), None));
        };
        let free = (table.lowest_free..capacity).find(|offset| {
            let address = self.address(*offset);
            !table.by_address.contains_key(&address) && table.quarantine.find(&Resource::Address(address)).is_none()
        });
        self.table(&claim.network).lowest_free = free.unwrap_or(capacity);
        if let Some(offset) = free {
            return Ok((self.address(offset), None));
        }
        let Some(table) = self.tables.get(&claim.network) else {
            return Err(ClaimError::PoolEmpty);
        };
        let demand = self.demand(table);
        let leased = |record: &&Record| self.offset(record.ipv4).is_some();
        let away = table.by_key.values().filter(leased).filter(|record| !present(&record.key));
        let first = away.min_by_key(|record| record.ends_s(demand));
        match first {
            Some(record) if record.ends_s(demand) < claim.now_s => Ok((record.ipv4, Some(record.key))),
            first => {
                let ends_s = first.map(|record| record.ends_s(demand));
                let next_s = ends_s.into_iter().chain(table.quarantine.next_address_s()).min();
                Err(next_s.map_or(ClaimError::PoolEmpty, |next_s| ClaimError::PoolWaits {
                    retry_s: retry_s(next_s, claim.now_s),
                }))
            }
        }
    }

    fn remove(&mut self, network: &str, key: &PublicKey, changes: &mut Changes) -> Option<Record> {
        let table = self.tables.get_mut(network)?;
        let record = table.by_key.remove(key)?;
        self.len -= 1;
        // Of two records with one name or address, which a damaged file may hold, the other one stays.
        if table.by_address.get(&record.ipv4) == Some(key) {
            table.by_address.remove(&record.ipv4);
        }
        if let Some(name) = &record.name
            && table.by_name.get(name) == Some(key)
        {
            table.by_name.remove(name);
        }
        changes.remove.push((network.to_owned(), *key));
        Some(record)
    }

    /// Removes a stale record: its address is free at once.
    fn evict(&mut self, network: &str, key: &PublicKey, changes: &mut Changes) {
        if let Some(record) = self.remove(network, key, changes) {
            self.lower(network, record.ipv4);
        }
    }

    /// Notes that an address may be free.
    fn lower(&mut self, network: &str, address: Ipv4Addr) {
        if let (Some(offset), Some(table)) = (self.offset(address), self.tables.get_mut(network)) {
            table.lowest_free = table.lowest_free.min(offset);
        }
    }

    /// Lets what a record's key gives up wait until the record's last proof has ended.
    fn quarantine(&mut self, record: &Record, ipv4: Option<Ipv4Addr>, name: Option<String>, changes: &mut Changes) {
        for resource in ipv4.map(Resource::Address).into_iter().chain(name.map(Resource::Name)) {
            let (network, key, until_s) = (record.network.clone(), record.key, record.proof_ends_s);
            self.reserve(Reservation { network, resource, key, until_s }, changes);
        }
    }

    fn reserve(&mut self, reservation: Reservation, changes: &mut Changes) {
        changes.reserve.push(reservation.clone());
        let table = self.table(&reservation.network);
        let before = table.quarantine.len();
        table.quarantine.insert(reservation);
        self.waiting_len += table.quarantine.len() - before;
    }

    fn unreserve(&mut self, network: &str, resource: &Resource, changes: &mut Changes) {
        if let Some(table) = self.tables.get_mut(network)
            && table.quarantine.remove(resource).is_some()
        {
            self.waiting_len -= 1;
            changes.free.push((network.to_owned(), resource.clone()));
        }
    }

    fn end_quarantines(&mut self, network: &str, now_s: u64, changes: &mut Changes) {
        while let Some(ended) = self.tables.get_mut(network).and_then(|table| table.quarantine.pop_ended(now_s)) {
            self.waiting_len -= 1;
            if let Resource::Address(address) = ended.resource {
                self.lower(network, address);
            }
            changes.free.push((network.to_owned(), ended.resource));
        }
    }

    /// Takes the end of a member's presence.
    pub fn exit(&mut self, network: &str, key: &PublicKey, kept: Kept, now_s: u64) -> Changes {
        let mut changes = Changes::default();
        let keep_s = match kept {
            Kept::Lease => KEEP_S,
            Kept::Briefly => KEEP_BRIEF_S,
            Kept::Nothing => {
                if let Some(record) = self.remove(network, key, &mut changes).filter(|_| !planted!(ReleasedAtOnce)) {
                    self.quarantine(&record, Some(record.ipv4), record.name.clone(), &mut changes);
                }
                return changes;
            }
        };
        if let Some(record) = self.tables.get_mut(network).and_then(|table| table.by_key.get_mut(key)) {
            (record.seen_s, record.keep_s) = (now_s, keep_s);
            changes.put.push(record.clone());
        }
        changes
    }

    /// Removes what is kept no longer, of all networks; with [`Demand::High`], not more often than is good for others.
    pub fn sweep(&mut self, now_s: u64, demand: Demand, present: impl Fn(&str, &PublicKey) -> bool) -> Changes {
        let mut changes = Changes::default();
        if demand == Demand::High && now_s < self.swept_s.saturating_add(SWEEP_PAUSE_S) {
            return changes;
        }
        self.swept_s = now_s;
        let networks: Vec<String> = self.tables.keys().cloned().collect();
        for network in networks {
            self.end_quarantines(&network, now_s, &mut changes);
            let records = self.tables.get(&network).into_iter().flat_map(|table| table.by_key.values());
            let ended = records.filter(|record| record.ends_s(demand) < now_s && !present(&network, &record.key));
            let ended: Vec<PublicKey> = ended.map(|record| record.key).collect();
            for key in ended {
                self.evict(&network, &key, &mut changes);
            }
        }
        self.tables.retain(|_, table| !table.is_empty());
        changes
    }

    /// Finds a lease by its holder.
    pub fn by_key(&self, network: &str, key: &PublicKey) -> Option<&Record> {
        self.tables.get(network)?.by_key.get(key)
    }

    /// Finds a lease by its address.
    pub fn by_address(&self, network: &str, address: Ipv4Addr) -> Option<&Record> {
        self.tables.get(network)?.holder(&Resource::Address(address))
    }

    /// Finds a lease by its name.
    pub fn by_name(&self, network: &str, name: &str) -> Option<&Record> {
        self.by_key(network, self.tables.get(network)?.by_name.get(name)?)
    }

    /// Walks the leases of a network in the order of keys, after a key.
    pub fn after(&self, network: &str, after: Option<PublicKey>) -> impl Iterator<Item = &Record> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.tables
            .get(network)
            .into_iter()
            .flat_map(move |table| table.by_key.range((from, Unbounded)).map(|(_, r)| r))
    }

    /// Returns how many leases there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Seconds after which something that lasts through a second is over.
fn retry_s(last_s: u64, now_s: u64) -> u64 {
    last_s.saturating_sub(now_s).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;

    fn key(seed: u8) -> PublicKey {
        KeyPair::from_seed(&[seed; 32]).public()
    }

    fn claim(seed: u8, name: Option<&str>) -> Claim {
        Claim { network: "home".into(), key: key(seed), name: name.map(Into::into), ipv4: None, now_s: 1_000 }
    }

    fn leases(len: u8) -> Leases {
        Leases::new((Ipv4Addr::new(10, 80, 0, 0), len))
    }

    /// Gives a lease back in second 1,000.
    fn give_back(leases: &mut Leases, seed: u8) -> Changes {
        leases.exit("home", &key(seed), Kept::Nothing, 1_000)
    }

    fn at(now_s: u64, claim: Claim) -> Claim {
        Claim { now_s, ..claim }
    }

    #[test]
    fn a_key_keeps_its_address_and_others_get_the_lowest_free_one() {
        let mut leases = leases(24);
        let mut ip = |seed| leases.claim(&claim(seed, None), |_| true).unwrap().0.ipv4.octets()[3];
        assert_eq!((ip(1), ip(2), ip(1), ip(3)), (1, 2, 1, 3));
    }

    /// A member once gave its lease back and kept the proof of it, which convinced peers for the rest of a day.
    #[test]
    fn what_was_given_back_goes_to_nobody_else_before_its_last_proof_has_ended() {
        let mut leases = leases(24);
        let (first, _) = leases.claim(&claim(1, Some("alpha")), |_| true).unwrap();
        assert_eq!(first.proof_ends_s, 1_000 + PROOF_S);
        assert_eq!(give_back(&mut leases, 1).reserve.len(), 2);
        assert!(leases.by_key("home", &key(1)).is_none() && leases.by_name("home", "alpha").is_none());
        let wants_address = Claim { ipv4: Some(first.ipv4), ..claim(2, None) };
        let last_s = first.proof_ends_s;
        let wait = PROOF_S + 1;
        let refused = leases.claim(&wants_address, |_| true);
        assert_eq!(refused, Err(ClaimError::AddressWaits { retry_s: wait }));
        let refused = leases.claim(&claim(2, Some("alpha")), |_| true);
        assert_eq!(refused, Err(ClaimError::NameWaits { retry_s: wait }));
        assert_eq!(leases.claim(&claim(3, None), |_| true).unwrap().0.ipv4.octets()[3], 2, "the lowest that is free");
        let refused = leases.claim(&at(last_s, wants_address.clone()), |_| true);
        assert_eq!(refused, Err(ClaimError::AddressWaits { retry_s: 1 }), "it holds through its last second");
        let (heir, changes) = leases.claim(&at(last_s + 1, claim(2, Some("alpha"))), |_| true).unwrap();
        assert_eq!(heir.ipv4, first.ipv4);
        assert!(heir.epoch > first.epoch, "an address that passes on gets a higher epoch");
        assert_eq!(changes.free.len(), 2, "the store forgets what has ended");
    }

    #[test]
    fn the_same_key_gets_back_at_once_what_it_gave_back() {
        let mut leases = leases(24);
        let (first, _) = leases.claim(&claim(1, Some("alpha")), |_| true).unwrap();
        leases.claim(&claim(2, None), |_| true).unwrap();
        give_back(&mut leases, 1);
        leases.claim(&claim(3, None), |_| true).unwrap();
        let (again, changes) = leases.claim(&claim(1, Some("alpha")), |_| true).unwrap();
        assert_eq!((again.ipv4, again.name, changes.free.len()), (first.ipv4, first.name, 2));
        assert_eq!(leases.waiting_len, 0);
    }

    /// A key may change its address and its name, and its old proofs hold on.
    #[test]
    fn what_a_key_exchanges_waits_too() {
        let mut leases = leases(24);
        let (first, _) = leases.claim(&claim(1, Some("alpha")), |_| true).unwrap();
        let other = Claim { ipv4: Some(Ipv4Addr::new(10, 80, 0, 9)), ..claim(1, Some("beta")) };
        leases.claim(&other, |_| true).unwrap();
        let wants_address = Claim { ipv4: Some(first.ipv4), ..claim(2, None) };
        assert!(matches!(leases.claim(&wants_address, |_| true), Err(ClaimError::AddressWaits { .. })));
        let refused = leases.claim(&claim(2, Some("alpha")), |_| true);
        assert!(matches!(refused, Err(ClaimError::NameWaits { .. })));
        let (back, _) = leases.claim(&Claim { ipv4: Some(first.ipv4), ..claim(1, Some("alpha")) }, |_| true).unwrap();
        assert_eq!((back.ipv4, back.name.as_deref()), (first.ipv4, Some("alpha")));
    }

    #[test]
    fn a_pool_that_waits_for_proofs_to_end_says_when_to_retry() {
        let mut leases = leases(30);
        leases.claim(&claim(1, None), |_| true).unwrap();
        leases.claim(&at(1_100, claim(2, None)), |_| true).unwrap();
        assert_eq!(leases.claim(&claim(3, None), |_| true), Err(ClaimError::PoolEmpty), "both are there");
        give_back(&mut leases, 1);
        give_back(&mut leases, 2);
        let refused = leases.claim(&at(1_200, claim(3, None)), |_| true);
        assert_eq!(refused, Err(ClaimError::PoolWaits { retry_s: PROOF_S - 200 + 1 }));
        let later = at(1_200 + PROOF_S - 200 + 1, claim(3, None));
        assert_eq!(leases.claim(&later, |_| true).unwrap().0.ipv4.octets()[3], 1);
    }

    #[test]
    fn a_lease_of_a_broken_connection_is_kept_a_short_while_and_until_its_proof_has_ended() {
        let mut leases = leases(24);
        leases.claim(&claim(1, Some("alpha")), |_| true).unwrap();
        let exit_s = 1_000 + 2 * PROOF_S;
        leases.exit("home", &key(1), Kept::Briefly, exit_s);
        let heir = |now_s| at(now_s, claim(2, Some("alpha")));
        assert_eq!(leases.claim(&heir(exit_s + KEEP_BRIEF_S), |_| false), Err(ClaimError::NameTaken));
        assert!(leases.claim(&heir(exit_s + KEEP_BRIEF_S + 1), |_| false).is_ok());
    }

    /// Tables of networks were once kept for ever: strangers could name any number of them.
    #[test]
    fn networks_without_a_lease_cost_nothing() {
        let mut leases = leases(24);
        for n in 0..1_000 {
            let claim = Claim { network: format!("n{n}"), ..claim(1, Some("alpha")) };
            leases.claim(&claim, |_| true).unwrap();
        }
        assert_eq!(leases.sweep(1_000 + KEEP_S, Demand::Usual, |_, _| false), Changes::default());
        let changes = leases.sweep(1_000 + KEEP_S + 1, Demand::Usual, |network, _| network == "n7");
        assert_eq!((changes.remove.len(), leases.len(), leases.tables.len()), (999, 1, 1));
        leases.exit("n7", &key(1), Kept::Nothing, 1_000);
        let changes = leases.sweep(1_000 + KEEP_S + 1, Demand::Usual, |_, _| false);
        assert_eq!((changes.free.len(), leases.waiting_len, leases.tables.len()), (2, 0, 0));
        leases.claim(&Claim { network: "-".into(), now_s: 1_000 + KEEP_S, ..claim(1, None) }, |_| true).unwrap();
        let lone = leases.claim(&at(1_000 + KEEP_S, claim(1, None)), |_| true).unwrap().0;
        assert_eq!(lone.epoch, 1_002, "one counter for all networks");
    }

    /// A full table once stayed full: leases were reclaimed by members of the same network only.
    #[test]
    fn a_full_server_makes_room_by_what_is_short_of_time() {
        let mut leases = leases(24);
        leases.len_max = 10;
        for n in 0..10 {
            leases.claim(&Claim { network: format!("n{n}"), ..claim(1, None) }, |_| true).unwrap();
        }
        assert_eq!(leases.claim(&claim(2, None), |_| true), Err(ClaimError::Full));
        let known = Claim { network: "n3".into(), ..claim(1, None) };
        assert!(leases.claim(&known, |_| true).is_ok(), "who has a lease renews it");
        let now_s = 1_000 + PROOF_S + 1;
        assert_eq!(leases.claim(&at(now_s, claim(2, None)), |_| true), Err(ClaimError::Full));
        assert!(leases.sweep(now_s, Demand::Usual, |_, _| false).is_empty(), "they are kept for a day");
        assert!(leases.sweep(now_s + 9, Demand::High, |_, _| false).is_empty(), "sweeps are not for every claim");
        let changes = leases.sweep(now_s + 10, Demand::High, |network, _| network == "n5");
        assert_eq!((changes.remove.len(), leases.len()), (9, 1));
        assert!(leases.claim(&at(now_s + 10, claim(2, None)), |_| true).is_ok());
    }

    #[test]
    fn a_name_is_first_come_and_is_free_again_after_a_day() {
        let mut leases = leases(24);
        leases.claim(&claim(1, Some("alpha")), |_| true).unwrap();
        let mut second = claim(2, Some("alpha"));
        assert_eq!(leases.claim(&second, |_| false), Err(ClaimError::NameTaken));
        second.now_s += KEEP_S + 1;
        assert_eq!(leases.claim(&second, |_| true), Err(ClaimError::NameTaken), "its holder is present");
        let (record, changes) = leases.claim(&second, |_| false).unwrap();
        assert_eq!(record.name.as_deref(), Some("alpha"));
        assert_eq!(changes.remove, [("home".to_owned(), key(1))]);
    }

    #[test]
    fn an_address_that_is_taken_or_outside_is_refused() {
        let mut leases = leases(24);
        let (held, _) = leases.claim(&claim(1, None), |_| true).unwrap();
        for wanted in
            [held.ipv4, Ipv4Addr::new(10, 80, 1, 1), Ipv4Addr::new(10, 80, 0, 0), Ipv4Addr::new(10, 80, 0, 255)]
        {
            let claim = Claim { ipv4: Some(wanted), ..claim(2, None) };
            assert_eq!(leases.claim(&claim, |_| true), Err(ClaimError::AddressTaken));
        }
        let wanted = Claim { ipv4: Some(Ipv4Addr::new(10, 80, 0, 77)), ..claim(2, None) };
        assert_eq!(leases.claim(&wanted, |_| true).unwrap().0.ipv4.octets()[3], 77);
    }

    #[test]
    fn a_full_pool_gives_out_stale_addresses_only() {
        let mut leases = leases(30);
        leases.claim(&claim(1, None), |_| true).unwrap();
        leases.claim(&claim(2, None), |_| true).unwrap();
        assert_eq!(leases.claim(&claim(3, None), |_| true), Err(ClaimError::PoolEmpty));
        let waits = ClaimError::PoolWaits { retry_s: PROOF_S + 1 };
        assert_eq!(leases.claim(&claim(3, None), |_| false), Err(waits));
        let later = Claim { now_s: 1_000 + KEEP_SHORT_S.max(PROOF_S) + 1, ..claim(3, None) };
        assert!(leases.claim(&later, |_| false).is_ok());
        assert_eq!(leases.len(), 2);
    }

    #[test]
    fn networks_do_not_see_each_other() {
        let mut leases = leases(24);
        leases.claim(&claim(1, Some("alpha")), |_| true).unwrap();
        let other = Claim { network: "work".into(), ..claim(2, Some("alpha")) };
        assert_eq!(leases.claim(&other, |_| true).unwrap().0.ipv4.octets()[3], 1);
        assert_eq!(leases.after("work", None).count(), 1);
    }
}
