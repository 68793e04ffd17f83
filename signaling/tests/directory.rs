//! What every directory and every bus promises, run against each implementation, and what a file adds.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redb::{ReadableDatabase, TableDefinition};
use tokio::sync::mpsc;
use tokio::time::timeout;
use unisockets_signaling::bus::{Bus, MemoryBus, Parcel, Undeliverable};
use unisockets_signaling::directory::{Directory, Found, LocalDirectory};
use unisockets_signaling::identity::{KeyPair, PublicKey};
use unisockets_signaling::leases::{Claim, ClaimError, KEEP_S, KEEP_SHORT_S, PROOF_S};
use unisockets_signaling::network::address_v6;
use unisockets_signaling::protocol::Query;
use unisockets_signaling::room::{Kept, Place};

const PREFIX: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 80, 0, 0), 24);
const NOW_S: u64 = 1_700_000_000;
/// When proofs of leases that were claimed in [`NOW_S`] have just ended.
const AFTER_S: u64 = NOW_S + PROOF_S + 1;
/// How long a test waits for something that is to happen.
const LIMIT: Duration = Duration::from_secs(10);

fn key(n: u8) -> PublicKey {
    KeyPair::from_seed(&[n; 32]).public()
}

fn place(n: u8) -> Place {
    ("home".to_owned(), key(n))
}

fn claim(n: u8) -> Claim {
    Claim { network: "home".to_owned(), key: key(n), name: None, ipv4: None, now_s: NOW_S }
}

fn named(n: u8, name: &str) -> Claim {
    Claim { name: Some(name.to_owned()), ..claim(n) }
}

fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 80, 0, host)
}

async fn lease(directory: &dyn Directory, n: u8) -> (Ipv4Addr, u64) {
    let record = directory.claim(claim(n)).await.expect("an address is free");
    (record.ipv4, record.epoch)
}

/// The same after all proofs of the start have ended.
async fn lease_later(directory: &dyn Directory, n: u8) -> (Ipv4Addr, u64) {
    let record = directory.claim(Claim { now_s: AFTER_S, ..claim(n) }).await.expect("an address is free");
    (record.ipv4, record.epoch)
}

async fn by_key(directory: &dyn Directory, n: u8) -> Option<Found> {
    directory.find("home", &Query::Key(key(n))).await
}

// The promises of a directory.

async fn addresses_are_the_lowest_free_and_kept_by_key(directory: &dyn Directory) {
    assert_eq!(lease(directory, 1).await.0, address(1));
    assert_eq!(lease(directory, 2).await.0, address(2));
    assert_eq!(lease(directory, 1).await, lease(directory, 1).await, "the same key, the same lease");
    let asked = directory.claim(Claim { ipv4: Some(address(77)), ..claim(3) }).await.unwrap();
    assert_eq!(asked.ipv4, address(77));
    for taken in [address(1), address(77), address(0), address(255), Ipv4Addr::new(10, 81, 0, 1)] {
        let refused = directory.claim(Claim { ipv4: Some(taken), ..claim(4) }).await;
        assert_eq!(refused, Err(ClaimError::AddressTaken), "{taken}");
    }
    assert_eq!(by_key(directory, 4).await, None, "a refused claim changes nothing");
    let other = directory.claim(Claim { network: "work".to_owned(), ..claim(4) }).await.unwrap();
    assert_eq!(other.ipv4, address(1), "networks do not share addresses");
}

async fn a_released_lease_is_free_again_with_a_higher_epoch(directory: &dyn Directory) {
    let (first, epoch) = lease(directory, 1).await;
    directory.enter(&place(1), 7);
    directory.exit(&place(1), 7, Kept::Nothing, NOW_S);
    assert_eq!(by_key(directory, 1).await, None);
    let v6 = Query::Ip(IpAddr::V6(address_v6("home", &key(1))));
    assert_eq!(directory.find("home", &v6).await, None);
    let (other, _) = lease(directory, 2).await;
    assert_ne!(other, first, "the proof of it still holds");
    let (second, later) = lease_later(directory, 3).await;
    assert_eq!(second, first);
    assert!(later > epoch, "whoever got the address later wins: {later} after {epoch}");
    let (_, again) = lease_later(directory, 1).await;
    assert!(again > later, "every new lease has a new epoch");
}

async fn what_was_given_back_waits_for_its_last_proof_or_its_own_key(directory: &dyn Directory) {
    let first = directory.claim(named(1, "alpha")).await.unwrap();
    directory.enter(&place(1), 7);
    directory.exit(&place(1), 7, Kept::Nothing, NOW_S + 1);
    let wants_address = Claim { ipv4: Some(first.ipv4), ..claim(2) };
    assert_eq!(directory.claim(wants_address.clone()).await, Err(ClaimError::AddressWaits { retry_s: PROOF_S + 1 }));
    assert_eq!(directory.claim(named(2, "alpha")).await, Err(ClaimError::NameWaits { retry_s: PROOF_S + 1 }));
    let again = directory.claim(named(1, "alpha")).await.unwrap();
    assert_eq!((again.ipv4, &again.name), (first.ipv4, &first.name));
    directory.enter(&place(1), 7);
    directory.exit(&place(1), 7, Kept::Nothing, NOW_S + 1);
    let heir = Claim { now_s: again.proof_ends_s + 1, name: Some("alpha".to_owned()), ..wants_address };
    assert_eq!(directory.claim(heir).await.unwrap().ipv4, first.ipv4);
}

async fn a_sweep_forgets_what_is_kept_no_longer(directory: &dyn Directory) {
    for n in 1..=4 {
        directory.claim(Claim { network: format!("n{n}"), ..claim(n) }).await.unwrap();
    }
    directory.enter(&("n1".to_owned(), key(1)), 7);
    directory.enter(&("n2".to_owned(), key(2)), 7);
    directory.exit(&("n2".to_owned(), key(2)), 7, Kept::Briefly, NOW_S);
    let found = async |n: u8| directory.find(&format!("n{n}"), &Query::Key(key(n))).await.is_some();
    directory.sweep(AFTER_S);
    assert_eq!((found(2).await, found(3).await), (false, true));
    directory.sweep(NOW_S + KEEP_S + 1);
    assert_eq!((found(1).await, found(3).await, found(4).await), (true, false, false), "who is there stays");
    let v6 = Query::Ip(IpAddr::V6(address_v6("n3", &key(3))));
    assert_eq!(directory.find("n3", &v6).await, None);
}

async fn a_kept_lease_stays_with_its_key_for_a_day(directory: &dyn Directory) {
    directory.claim(named(1, "alpha")).await.unwrap();
    directory.enter(&place(1), 7);
    let left_s = NOW_S + 500;
    directory.exit(&place(1), 7, Kept::Lease, left_s);
    assert_eq!(lease(directory, 2).await.0, address(2));
    let mut heir = named(3, "alpha");
    heir.now_s = left_s + KEEP_S;
    assert_eq!(directory.claim(heir.clone()).await, Err(ClaimError::NameTaken));
    heir.now_s += 1;
    assert_eq!(directory.claim(heir).await.unwrap().name.as_deref(), Some("alpha"));
    assert_eq!(by_key(directory, 1).await, None, "the old lease went with its name");
}

async fn a_name_has_one_holder(directory: &dyn Directory) {
    let first = directory.claim(named(1, "alpha")).await.unwrap();
    assert_eq!(directory.claim(named(2, "alpha")).await, Err(ClaimError::NameTaken));
    assert_eq!(directory.claim(claim(1)).await.unwrap().name, first.name, "a renewal keeps the name");
    let renamed = directory.claim(named(1, "beta")).await.unwrap();
    assert_eq!((renamed.ipv4, renamed.name.as_deref()), (first.ipv4, Some("beta")));
    let early = directory.claim(named(2, "alpha")).await;
    assert_eq!(early, Err(ClaimError::NameWaits { retry_s: PROOF_S + 1 }), "a proof of it still holds");
    assert!(directory.claim(Claim { now_s: AFTER_S, ..named(2, "alpha") }).await.is_ok(), "then it is free");
}

async fn members_are_found_by_every_query(directory: &dyn Directory) {
    let record = directory.claim(named(1, "alpha")).await.unwrap();
    let expected = Some(Found { record: record.clone(), instance: None });
    for query in [
        Query::Key(key(1)),
        Query::Name("alpha".to_owned()),
        Query::Ip(record.ipv4.into()),
        Query::Ip(address_v6("home", &key(1)).into()),
    ] {
        assert_eq!(directory.find("home", &query).await, expected, "{query:?}");
        assert_eq!(directory.find("work", &query).await, None, "{query:?}");
    }
    assert_eq!(directory.find("home", &Query::Name("Alpha.".to_owned())).await, None);
}

async fn presence_follows_the_newest_instance(directory: &dyn Directory) {
    lease(directory, 1).await;
    let instance = async || by_key(directory, 1).await.and_then(|found| found.instance);
    assert_eq!(instance().await, None);
    directory.enter(&place(1), 7);
    assert_eq!(instance().await, Some(7));
    directory.enter(&place(1), 8);
    directory.exit(&place(1), 7, Kept::Nothing, NOW_S);
    assert_eq!(instance().await, Some(8), "the exit of an older instance does not remove the newer one");
    directory.exit(&place(1), 8, Kept::Lease, NOW_S);
    assert_eq!(instance().await, None);
    directory.exit(&place(1), 8, Kept::Nothing, NOW_S);
    assert!(by_key(directory, 1).await.is_some(), "whoever is not there cannot leave");
}

async fn a_present_member_keeps_its_lease_however_long(directory: &dyn Directory) {
    directory.claim(named(1, "alpha")).await.unwrap();
    directory.enter(&place(1), 7);
    let late = Claim { now_s: NOW_S + 10 * KEEP_S, ..named(2, "alpha") };
    assert_eq!(directory.claim(late).await, Err(ClaimError::NameTaken));
}

async fn lists_come_in_pages_in_the_order_of_keys(directory: &dyn Directory) {
    let mut expected: Vec<PublicKey> = (1..=9).map(key).collect();
    expected.sort_unstable();
    for n in 1..=9 {
        lease(directory, n).await;
    }
    directory.claim(Claim { network: "work".to_owned(), ..claim(10) }).await.unwrap();
    directory.enter(&place(3), 7);
    let (mut seen, mut after) = (Vec::new(), None);
    for len in [4, 4, 1, 0] {
        let page = directory.list("home", after, 4).await;
        assert_eq!(page.len(), len);
        after = page.last().map_or(after, |found| Some(found.record.key));
        seen.extend(page);
    }
    assert_eq!(seen.iter().map(|found| found.record.key).collect::<Vec<_>>(), expected);
    let present: Vec<PublicKey> = seen.iter().filter(|found| found.instance == Some(7)).map(|f| f.record.key).collect();
    assert_eq!(present, [key(3)]);
    // A page goes on after a key that has gone, or never was there.
    let gone = expected[4];
    directory.enter(&("home".to_owned(), gone), 7);
    directory.exit(&("home".to_owned(), gone), 7, Kept::Nothing, NOW_S);
    let page = directory.list("home", Some(gone), 100).await;
    assert_eq!(page.iter().map(|found| found.record.key).collect::<Vec<_>>(), expected[5..]);
    assert!(directory.list("nobody", None, 100).await.is_empty());
}

async fn an_exhausted_pool_refuses_and_recovers(directory: &dyn Directory) {
    for n in 1..=254 {
        assert_eq!(lease(directory, n).await.0, address(n));
        directory.enter(&place(n), 7);
    }
    assert_eq!(directory.claim(claim(255)).await, Err(ClaimError::PoolEmpty));
    assert_eq!(lease(directory, 9).await.0, address(9), "whoever has a lease keeps it");
    directory.exit(&place(100), 7, Kept::Nothing, NOW_S);
    let early = directory.claim(claim(255)).await;
    assert_eq!(early, Err(ClaimError::PoolWaits { retry_s: PROOF_S + 1 }), "it says when to retry");
    assert_eq!(lease_later(directory, 255).await.0, address(100));
}

/// Runs every promise on a directory of its own; `make` makes an empty one that leases from [`PREFIX`].
async fn conformance(make: impl Fn() -> Arc<dyn Directory>) {
    addresses_are_the_lowest_free_and_kept_by_key(&*make()).await;
    a_released_lease_is_free_again_with_a_higher_epoch(&*make()).await;
    a_kept_lease_stays_with_its_key_for_a_day(&*make()).await;
    what_was_given_back_waits_for_its_last_proof_or_its_own_key(&*make()).await;
    a_sweep_forgets_what_is_kept_no_longer(&*make()).await;
    a_name_has_one_holder(&*make()).await;
    members_are_found_by_every_query(&*make()).await;
    presence_follows_the_newest_instance(&*make()).await;
    a_present_member_keeps_its_lease_however_long(&*make()).await;
    lists_come_in_pages_in_the_order_of_keys(&*make()).await;
    an_exhausted_pool_refuses_and_recovers(&*make()).await;
    let directory = make();
    assert_eq!(directory.server_key().public(), directory.server_key().public());
}

/// Files that are removed at the end of a test, however it ends.
#[derive(Default)]
struct Files(std::sync::Mutex<Vec<PathBuf>>);

impl Files {
    fn path(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("unisockets-directory-{}-{number}.redb", std::process::id());
        let path = std::env::temp_dir().join(name);
        self.0.lock().unwrap().push(path.clone());
        path
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in self.0.lock().unwrap().iter() {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn in_file(path: &Path, seed: u8) -> LocalDirectory {
    LocalDirectory::in_file(PREFIX, path, [seed; 32], NOW_S).expect("the file can be used")
}

/// Opens a file that a directory before may still be closing.
async fn reopen(path: &Path, seed: u8) -> LocalDirectory {
    reopen_with(PREFIX, path, seed, NOW_S).await
}

async fn reopen_with(prefix: (Ipv4Addr, u8), path: &Path, seed: u8, now_s: u64) -> LocalDirectory {
    let started = Instant::now();
    loop {
        match LocalDirectory::in_file(prefix, path, [seed; 32], now_s) {
            Ok(directory) => return directory,
            Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_directory_in_memory_conforms() {
    conformance(|| Arc::new(LocalDirectory::in_memory(PREFIX, KeyPair::from_seed(&[1; 32])))).await;
}

#[tokio::test]
async fn a_directory_in_a_file_conforms() {
    let files = Files::default();
    conformance(|| Arc::new(in_file(&files.path(), 1))).await;
}

// What the file adds.

#[tokio::test]
async fn leases_names_and_the_servers_key_survive_a_restart() {
    let files = Files::default();
    let path = files.path();
    let directory = in_file(&path, 1);
    let server = directory.server_key().public();
    assert_eq!(server, key(1), "the seed makes the key of a new file");
    for n in 2..=4 {
        lease(&directory, n).await;
    }
    let alpha = directory.claim(named(5, "alpha")).await.unwrap();
    directory.enter(&place(5), 7);
    drop(directory);
    let directory = reopen(&path, 99).await;
    assert_eq!(directory.server_key().public(), server, "the seed is for new files only");
    for query in [
        Query::Key(key(5)),
        Query::Name("alpha".to_owned()),
        Query::Ip(alpha.ipv4.into()),
        Query::Ip(address_v6("home", &key(5)).into()),
    ] {
        let found = directory.find("home", &query).await.expect("the lease is there");
        assert_eq!((found.record, found.instance), (alpha.clone(), None), "{query:?}");
    }
    assert_eq!(directory.claim(named(6, "alpha")).await, Err(ClaimError::NameTaken));
    assert_eq!(directory.claim(claim(5)).await.unwrap(), alpha);
    assert_eq!(lease(&directory, 6).await.0, address(5), "10.80.0.1 to 10.80.0.4 are taken");
    assert_eq!(directory.list("home", None, 100).await.len(), 5);
}

#[tokio::test]
async fn a_released_lease_waits_and_is_free_after_a_restart_too() {
    let files = Files::default();
    let path = files.path();
    let directory = in_file(&path, 1);
    directory.claim(named(1, "alpha")).await.unwrap();
    directory.enter(&place(1), 7);
    directory.exit(&place(1), 7, Kept::Nothing, NOW_S);
    // A later claim is durable when it is answered, and with it all that was written before.
    lease(&directory, 2).await;
    drop(directory);
    let directory = reopen(&path, 1).await;
    assert_eq!(by_key(&directory, 1).await, None);
    let early = directory.claim(named(3, "alpha")).await;
    assert_eq!(early, Err(ClaimError::NameWaits { retry_s: PROOF_S + 1 }), "a restart ends no proof");
    assert_eq!(lease(&directory, 3).await.0, address(3));
    let heir = directory.claim(Claim { now_s: AFTER_S, ..named(4, "alpha") }).await.unwrap();
    assert_eq!(heir.ipv4, address(1));
    drop(directory);
    // What has ended is gone from the file too.
    let directory = reopen(&path, 1).await;
    assert_eq!(directory.claim(named(4, "alpha")).await.unwrap().ipv4, address(1));
}

/// Leases were once restored with the times of before: who joined first after a long stop took the others' addresses.
#[tokio::test]
async fn holders_have_time_to_come_back_after_a_restart_of_a_server_with_a_short_pool() {
    let files = Files::default();
    let path = files.path();
    let prefix = (Ipv4Addr::new(10, 80, 0, 0), 30);
    let directory = LocalDirectory::in_file(prefix, &path, [1; 32], NOW_S).unwrap();
    let before = [lease(&directory, 1).await, lease(&directory, 2).await];
    drop(directory);
    let start_s = NOW_S + 10 * PROOF_S;
    let directory = reopen_with(prefix, &path, 1, start_s).await;
    let at = |now_s, n| Claim { now_s, ..claim(n) };
    let refused = directory.claim(at(start_s + 1, 3)).await;
    assert_eq!(refused, Err(ClaimError::PoolWaits { retry_s: KEEP_SHORT_S }));
    for n in [2, 1] {
        let record = directory.claim(at(start_s + 2, n)).await.unwrap();
        assert_eq!((record.ipv4, record.epoch), before[usize::from(n) - 1]);
    }
}

/// Each network had a counter of its own in the file once, and a row that nobody removed.
#[tokio::test]
async fn a_file_of_before_is_read_and_its_greatest_epoch_goes_on() {
    let files = Files::default();
    let path = files.path();
    let epochs = TableDefinition::<&str, u64>::new("epochs-v1");
    {
        let database = redb::Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut leases = transaction.open_table(TableDefinition::<&str, &str>::new("leases-v1")).unwrap();
            let record = serde_json::json!({
                "network": "home", "key": key(1), "ipv4": "10.80.0.1", "name": "alpha", "epoch": 3, "seen_s": NOW_S,
            });
            leases.insert(format!("home/{}", key(1)).as_str(), record.to_string().as_str()).unwrap();
            let mut epochs = transaction.open_table(epochs).unwrap();
            epochs.insert("home", 7).unwrap();
            epochs.insert("work", 42).unwrap();
        }
        transaction.commit().unwrap();
    }
    let directory = in_file(&path, 1);
    let renewed = directory.claim(claim(1)).await.unwrap();
    assert_eq!((renewed.ipv4, renewed.name.as_deref(), renewed.epoch), (address(1), Some("alpha"), 3));
    assert_eq!(renewed.proof_ends_s, NOW_S + 86_400, "proofs of before hold for a day");
    assert_eq!(lease(&directory, 2).await.1, 43);
    drop(directory);
    let directory = reopen(&path, 1).await;
    assert_eq!(lease(&directory, 3).await.1, 44);
    drop(directory);
    let database = redb::Database::open(&path).unwrap();
    let old = database.begin_read().unwrap().open_table(epochs).err();
    assert!(matches!(old, Some(redb::TableError::TableDoesNotExist(_))), "the old rows are gone");
}

/// A lease is believed for an hour: whoever gets its address after a restart must still win against it.
#[tokio::test]
async fn epochs_grow_across_a_restart() {
    let files = Files::default();
    let path = files.path();
    let directory = in_file(&path, 1);
    lease(&directory, 1).await;
    let (released, epoch) = lease(&directory, 2).await;
    directory.enter(&place(2), 7);
    directory.exit(&place(2), 7, Kept::Nothing, NOW_S);
    lease(&directory, 1).await;
    drop(directory);
    let directory = reopen(&path, 1).await;
    let (taken, later) = lease_later(&directory, 3).await;
    assert_eq!(taken, released);
    assert!(later > epoch, "{later} after {epoch}: the old holder's signed lease wins, or ties");
}

#[tokio::test]
async fn the_last_words_before_a_directory_is_dropped_are_stored() {
    let files = Files::default();
    let path = files.path();
    let directory = in_file(&path, 1);
    lease(&directory, 1).await;
    directory.enter(&place(1), 7);
    directory.exit(&place(1), 7, Kept::Nothing, NOW_S);
    drop(directory);
    let directory = reopen(&path, 1).await;
    assert_eq!(by_key(&directory, 1).await, None, "its lease was given back");
}

/// A server that stops and starts again in one process finds its own file in use otherwise.
#[tokio::test]
async fn a_file_is_free_as_soon_as_its_directory_is_dropped() {
    let files = Files::default();
    let path = files.path();
    for round in 0..10 {
        let directory = LocalDirectory::in_file(PREFIX, &path, [1; 32], NOW_S);
        let directory = directory.unwrap_or_else(|error| panic!("round {round}: {error}"));
        lease(&directory, round + 1).await;
    }
}

#[tokio::test]
async fn a_file_in_use_is_refused_with_a_clear_error() {
    let files = Files::default();
    let path = files.path();
    let first = in_file(&path, 1);
    let error = LocalDirectory::in_file(PREFIX, &path, [2; 32], NOW_S).err().expect("it is in use").to_string();
    assert!(error.contains("another server may hold it"), "{error}");
    lease(&first, 1).await;
    drop(first);
    let second = reopen(&path, 2).await;
    assert!(by_key(&second, 1).await.is_some());
}

#[test]
fn a_file_of_another_kind_is_refused_and_left_alone() {
    let files = Files::default();
    let path = files.path();
    let text = "this is somebody's diary, not a directory\n".repeat(1_000);
    std::fs::write(&path, &text).unwrap();
    let error = LocalDirectory::in_file(PREFIX, &path, [1; 32], NOW_S).err().expect("it is no directory").to_string();
    assert!(error.starts_with("the data file cannot be used"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let nowhere = files.path().join("no-such-folder").join("leases.redb");
    assert!(LocalDirectory::in_file(PREFIX, &nowhere, [1; 32], NOW_S).is_err());
}

#[cfg(unix)]
#[test]
fn the_file_with_the_servers_key_is_the_owners_only() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::default();
    let path = files.path();
    let _directory = in_file(&path, 1);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

/// An operator may choose another prefix: members did not ask for the addresses that they had.
#[tokio::test]
async fn a_lease_outside_a_changed_prefix_is_replaced() {
    let files = Files::default();
    let path = files.path();
    let directory = in_file(&path, 1);
    let (_, epoch) = lease(&directory, 1).await;
    drop(directory);
    let prefix = (Ipv4Addr::new(10, 99, 0, 0), 24);
    let directory = reopen_with(prefix, &path, 1, NOW_S).await;
    let record = directory.claim(claim(1)).await.expect("it gets an address of the new prefix");
    assert_eq!(record.ipv4, Ipv4Addr::new(10, 99, 0, 1));
    assert!(record.epoch > epoch);
}

#[tokio::test]
async fn many_claims_at_once_are_all_durable_and_none_collides() {
    let files = Files::default();
    let path = files.path();
    let directory = in_file(&path, 1);
    let answers: Vec<_> = (1..=200).map(|n| directory.claim(claim(n))).collect();
    let mut addresses = Vec::new();
    for answer in answers {
        addresses.push(timeout(LIMIT, answer).await.expect("it is answered").expect("an address is free").ipv4);
    }
    drop(directory);
    let directory = reopen(&path, 1).await;
    let mut stored: Vec<Ipv4Addr> =
        directory.list("home", None, 1_000).await.iter().map(|found| found.record.ipv4).collect();
    stored.sort_unstable();
    addresses.sort_unstable();
    assert_eq!(stored, addresses);
    addresses.dedup();
    assert_eq!(addresses.len(), 200);
}

// The promises of a bus.

fn parcel(n: u8, payload: impl Into<String>) -> Parcel {
    Parcel { to: place(n), from: key(200), payload: payload.into() }
}

async fn next(inbox: &mut mpsc::Receiver<Parcel>) -> Parcel {
    timeout(LIMIT, inbox.recv()).await.expect("the parcel comes").expect("the bus is there")
}

/// Runs every promise on a bus of its own.
async fn bus_conformance(make: impl Fn() -> Arc<dyn Bus>) {
    // Parcels come to their instance only, whole and in their order.
    let bus = make();
    let (mut first, mut second) = (bus.subscribe(1), bus.subscribe(2));
    for number in 0..100 {
        assert_eq!(bus.publish(1, parcel(1, format!("{number} \"\n\u{0}"))), Ok(()));
    }
    assert_eq!(bus.publish(2, parcel(2, "for the second")), Ok(()));
    for number in 0..100 {
        assert_eq!(next(&mut first).await, parcel(1, format!("{number} \"\n\u{0}")));
    }
    assert_eq!(next(&mut second).await, parcel(2, "for the second"));
    assert!(first.try_recv().is_err() && second.try_recv().is_err());

    // Whoever is not there, or no more, is undeliverable; others do not mind.
    assert_eq!(bus.publish(3, parcel(1, "x")), Err(Undeliverable));
    drop(first);
    assert_eq!(bus.publish(1, parcel(1, "x")), Err(Undeliverable));
    assert_eq!(bus.publish(2, parcel(2, "still")), Ok(()));
    assert_eq!(next(&mut second).await, parcel(2, "still"));

    // An instance that comes back takes over.
    let mut again = bus.subscribe(1);
    assert_eq!(bus.publish(1, parcel(1, "back")), Ok(()));
    assert_eq!(next(&mut again).await, parcel(1, "back"));

    // A queue that nobody empties is bounded, and does not hold up others.
    let sent = (0..100_000).take_while(|_| bus.publish(1, parcel(1, "x")).is_ok()).count();
    assert!((100..100_000).contains(&sent), "{sent} parcels wait");
    assert_eq!(bus.publish(2, parcel(2, "not held up")), Ok(()));
    assert_eq!(next(&mut second).await, parcel(2, "not held up"));
    next(&mut again).await;
    assert_eq!(bus.publish(1, parcel(1, "there is room again")), Ok(()));
}

#[tokio::test]
async fn a_bus_in_memory_conforms() {
    bus_conformance(|| Arc::new(MemoryBus::default())).await;
}
