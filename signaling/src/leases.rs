//! Who has which address and name: the table that a server keeps for each network. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::identity::PublicKey;

/// How long a lease is kept after its holder was last seen, in seconds.
pub const KEEP_S: u64 = 86_400;
/// The same where more than three quarters of the addresses are given out.
pub const KEEP_SHORT_S: u64 = 600;
/// Leases of one server.
pub const LEASES_MAX: usize = 1_000_000;

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

/// Why a claim fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimError {
    /// Another member has the name.
    NameTaken,
    /// Another member has the address, or it is not in the prefix.
    AddressTaken,
    /// No address is free.
    PoolEmpty,
    /// The store failed.
    Unavailable,
}

#[derive(Default)]
struct Table {
    by_key: BTreeMap<PublicKey, Record>,
    by_address: HashMap<Ipv4Addr, PublicKey>,
    by_name: HashMap<String, PublicKey>,
    /// No address below this offset is free.
    lowest_free: u32,
    epoch: u64,
}

/// The leases of all networks of a server.
pub struct Leases {
    prefix: (Ipv4Addr, u8),
    tables: HashMap<String, Table>,
    len: usize,
}

/// Changes that a store has to make durable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Records to be written.
    pub put: Vec<Record>,
    /// Records to be removed.
    pub remove: Vec<(String, PublicKey)>,
    /// A network whose epoch has grown: it must not fall back when records are gone.
    pub epoch: Option<(String, u64)>,
}

impl Leases {
    /// Makes an empty table that leases from a prefix of 8 to 30 bits.
    pub fn new(prefix: (Ipv4Addr, u8)) -> Self {
        Self { prefix: (prefix.0, prefix.1.clamp(8, 30)), tables: HashMap::new(), len: 0 }
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

    /// Puts back a record that was stored.
    pub fn restore(&mut self, record: Record) {
        let table = self.tables.entry(record.network.clone()).or_default();
        table.epoch = table.epoch.max(record.epoch);
        table.by_address.insert(record.ipv4, record.key);
        if let Some(name) = &record.name {
            table.by_name.insert(name.clone(), record.key);
        }
        self.len += usize::from(table.by_key.insert(record.key, record).is_none());
    }

    /// Puts back the epoch of a network that was stored.
    pub fn restore_epoch(&mut self, network: &str, epoch: u64) {
        let table = self.table(network);
        table.epoch = table.epoch.max(epoch);
    }

    /// Leases an address, and the name if one is asked for: the ones that this key had before, the one asked
    /// for, or the lowest free one.
    ///
    /// # Errors
    /// [`ClaimError`]; nothing has changed then.
    pub fn claim(
        &mut self,
        claim: &Claim,
        present: impl Fn(&PublicKey) -> bool,
    ) -> Result<(Record, Changes), ClaimError> {
        let known = self.by_key(&claim.network, &claim.key).map(|record| record.ipv4);
        if known.is_none() && self.len >= LEASES_MAX {
            return Err(ClaimError::PoolEmpty);
        }
        // The operator may have changed the prefix since.
        let held = known.filter(|address| self.offset(*address).is_some());
        let capacity = self.capacity();
        let table = self.tables.entry(claim.network.clone()).or_default();
        let short = table.by_key.len() as u64 * 4 > u64::from(capacity) * 3;
        let keep_s = if short { KEEP_SHORT_S } else { KEEP_S };
        let is_stale = |record: &Record| record.seen_s + keep_s < claim.now_s && !present(&record.key);
        let mut changes = Changes::default();
        let before = table.by_key.get(&claim.key).cloned();
        let name = claim.name.clone().or_else(|| before.as_ref().and_then(|record| record.name.clone()));
        let name_holder =
            name.as_ref().and_then(|name| table.by_name.get(name)).filter(|key| **key != claim.key).copied();
        if let Some(holder) = name_holder
            && !table.by_key.get(&holder).is_some_and(is_stale)
        {
            return Err(ClaimError::NameTaken);
        }
        let wanted = claim.ipv4.or(held);
        let address = match wanted {
            Some(address) => {
                let holder = table.by_address.get(&address).filter(|key| **key != claim.key).copied();
                if self.offset(address).is_none() {
                    return Err(ClaimError::AddressTaken);
                }
                let table = self.table(&claim.network);
                if let Some(holder) = holder {
                    if !table.by_key.get(&holder).is_some_and(is_stale) {
                        return Err(ClaimError::AddressTaken);
                    }
                    self.remove(&claim.network, &holder, &mut changes);
                }
                address
            }
            None => self.lowest_free(&claim.network, is_stale, &mut changes)?,
        };
        if let Some(holder) = name_holder {
            self.remove(&claim.network, &holder, &mut changes);
        }
        let same_address = held == Some(address);
        let epoch = match &before {
            Some(record) if same_address => record.epoch,
            _ => {
                let table = self.table(&claim.network);
                table.epoch += 1;
                let epoch = table.epoch;
                changes.epoch = Some((claim.network.clone(), epoch));
                epoch
            }
        };
        if before.is_some() {
            self.remove(&claim.network, &claim.key, &mut Changes::default());
        }
        let record =
            Record { network: claim.network.clone(), key: claim.key, ipv4: address, name, epoch, seen_s: claim.now_s };
        self.restore(record.clone());
        changes.put.push(record.clone());
        Ok((record, changes))
    }

    fn table(&mut self, network: &str) -> &mut Table {
        self.tables.entry(network.to_owned()).or_default()
    }

    fn lowest_free(
        &mut self,
        network: &str,
        is_stale: impl Fn(&Record) -> bool,
        changes: &mut Changes,
    ) -> Result<Ipv4Addr, ClaimError> {
        let start = self.table(network).lowest_free;
        let free = (start..self.capacity()).find(|offset| {
            let address = self.address(*offset);
            self.tables.get(network).is_some_and(|table| !table.by_address.contains_key(&address))
        });
        if let Some(offset) = free {
            self.table(network).lowest_free = offset;
            return Ok(self.address(offset));
        }
        self.table(network).lowest_free = self.capacity();
        let stale = self.tables.get(network).and_then(|table| table.by_key.values().find(|record| is_stale(record)));
        let stale = stale.map(|record| (record.key, record.ipv4)).ok_or(ClaimError::PoolEmpty)?;
        self.remove(network, &stale.0, changes);
        Ok(stale.1)
    }

    fn remove(&mut self, network: &str, key: &PublicKey, changes: &mut Changes) {
        let Some(record) = self.tables.get_mut(network).and_then(|table| table.by_key.remove(key)) else {
            return;
        };
        self.len -= 1;
        let offset = self.offset(record.ipv4);
        let table = self.table(network);
        table.by_address.remove(&record.ipv4);
        if let Some(name) = &record.name {
            table.by_name.remove(name);
        }
        if let Some(offset) = offset {
            table.lowest_free = table.lowest_free.min(offset);
        }
        changes.remove.push((network.to_owned(), *key));
    }

    /// Gives a lease back.
    pub fn release(&mut self, network: &str, key: &PublicKey) -> Changes {
        let mut changes = Changes::default();
        self.remove(network, key, &mut changes);
        changes
    }

    /// Notes that the holder was there until now.
    pub fn touch(&mut self, network: &str, key: &PublicKey, now_s: u64) -> Changes {
        let record = self.tables.get_mut(network).and_then(|table| table.by_key.get_mut(key));
        let put = record.map(|record| {
            record.seen_s = now_s;
            record.clone()
        });
        Changes { put: put.into_iter().collect(), ..Changes::default() }
    }

    /// Finds a lease by its holder.
    pub fn by_key(&self, network: &str, key: &PublicKey) -> Option<&Record> {
        self.tables.get(network)?.by_key.get(key)
    }

    /// Finds a lease by its address.
    pub fn by_address(&self, network: &str, address: Ipv4Addr) -> Option<&Record> {
        self.by_key(network, self.tables.get(network)?.by_address.get(&address)?)
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

    #[test]
    fn a_key_keeps_its_address_and_others_get_the_lowest_free_one() {
        let mut leases = leases(24);
        let mut ip = |seed| leases.claim(&claim(seed, None), |_| true).unwrap().0.ipv4.octets()[3];
        assert_eq!((ip(1), ip(2), ip(1), ip(3)), (1, 2, 1, 3));
        leases.release("home", &key(1));
        let (record, _) = leases.claim(&claim(4, None), |_| true).unwrap();
        assert_eq!(record.ipv4.octets()[3], 1);
        assert!(record.epoch > 3, "an address that passes on gets a higher epoch");
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
        assert_eq!(leases.claim(&claim(3, None), |_| false), Err(ClaimError::PoolEmpty));
        let later = Claim { now_s: 1_000 + KEEP_SHORT_S + 1, ..claim(3, None) };
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
