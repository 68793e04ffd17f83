//! The durable file of a directory: redb, with one commit for all that waits (group commit).

use std::fmt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tokio::sync::oneshot;

use crate::leases::{Changes, Record, Reservation};

const LEASES: TableDefinition<'_, &str, &str> = TableDefinition::new("leases-v1");
const QUARANTINE: TableDefinition<'_, &str, &str> = TableDefinition::new("quarantine-v1");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters-v1");
/// Each network had a counter of its own once; the greatest of them goes on as the only one.
const OLD_EPOCHS: TableDefinition<'_, &str, u64> = TableDefinition::new("epochs-v1");
const SERVER: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("server-v1");
const SEED: &str = "seed";
const EPOCH: &str = "epoch";
/// How long proofs held, in seconds, when their ends were not stored.
const OLD_PROOF_S: u64 = 86_400;
/// Changes that wait for a commit.
const QUEUE_LEN_MAX: usize = 65_536;
/// Changes that share one commit.
const GROUP_LEN_MAX: usize = 4_096;

/// The file cannot be used; the text says why.
#[derive(Debug)]
pub struct StoreError(String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the data file cannot be used: {}; another server may hold it, or it is no such file", self.0)
    }
}

impl std::error::Error for StoreError {}

fn failed(error: impl fmt::Display) -> StoreError {
    StoreError(error.to_string())
}

/// What a file holds.
pub(crate) struct Contents {
    pub(crate) server_seed: [u8; 32],
    pub(crate) records: Vec<Record>,
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) epoch: u64,
}

type Done = oneshot::Sender<Result<(), ()>>;
/// Comes when changes are on the disk, or are lost.
pub(crate) type Written = oneshot::Receiver<Result<(), ()>>;

/// An open file with the thread that writes it.
pub(crate) struct Store {
    queue: Option<mpsc::SyncSender<(Changes, Done)>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Drop for Store {
    /// Waits until the last changes are on the disk and the file is free.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Store {
    pub(crate) fn open(path: &Path, seed: [u8; 32]) -> Result<(Store, Contents), StoreError> {
        let database = Database::create(path).map_err(failed)?;
        restrict(path)?;
        let transaction = database.begin_write().map_err(failed)?;
        let server_seed = {
            transaction.open_table(LEASES).map_err(failed)?;
            transaction.open_table(QUARANTINE).map_err(failed)?;
            migrate_epochs(&transaction)?;
            let mut server = transaction.open_table(SERVER).map_err(failed)?;
            let known = server.get(SEED).map_err(failed)?.map(|seed| seed.value().to_vec());
            match known {
                Some(known) => known.try_into().map_err(|_| failed("its key is damaged"))?,
                None => {
                    server.insert(SEED, &seed[..]).map_err(failed)?;
                    seed
                }
            }
        };
        transaction.commit().map_err(failed)?;
        let (records, reservations, epoch) = read(&database)?;
        let (queue, inbox) = mpsc::sync_channel(QUEUE_LEN_MAX);
        let writer = thread::Builder::new().name("leases".into());
        let writer = writer.spawn(move || write_all(&database, &inbox)).map_err(failed)?;
        let store = Store { queue: Some(queue), writer: Some(writer) };
        Ok((store, Contents { server_seed, records, reservations, epoch }))
    }

    /// Queues changes; the answer comes when they are on the disk.
    pub(crate) fn write(&self, changes: Changes) -> Written {
        let (done, answer) = oneshot::channel();
        // A full queue drops the sender, which the caller sees as a failure.
        if let Some(queue) = &self.queue {
            let _ = queue.try_send((changes, done));
        }
        answer
    }
}

/// The file holds the server's key: nobody else may read it.
fn restrict(path: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Reads the counters of an old file, if it is one, and removes them.
fn migrate_epochs(transaction: &WriteTransaction) -> Result<(), StoreError> {
    let mut counters = transaction.open_table(COUNTERS).map_err(failed)?;
    let mut greatest = counters.get(EPOCH).map_err(failed)?.map_or(0, |epoch| epoch.value());
    for entry in transaction.open_table(OLD_EPOCHS).map_err(failed)?.iter().map_err(failed)? {
        greatest = greatest.max(entry.map_err(failed)?.1.value());
    }
    counters.insert(EPOCH, greatest).map_err(failed)?;
    transaction.delete_table(OLD_EPOCHS).map_err(failed)?;
    Ok(())
}

/// Records, what waits, and the counter of epochs.
type Tables = (Vec<Record>, Vec<Reservation>, u64);

fn read(database: &Database) -> Result<Tables, StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    let mut records: Vec<Record> = Vec::new();
    for entry in transaction.open_table(LEASES).map_err(failed)?.iter().map_err(failed)? {
        records.push(serde_json::from_str(entry.map_err(failed)?.1.value()).map_err(failed)?);
    }
    for record in records.iter_mut().filter(|record| record.proof_ends_s == 0) {
        record.proof_ends_s = record.seen_s.saturating_add(OLD_PROOF_S);
    }
    let mut reservations = Vec::new();
    for entry in transaction.open_table(QUARANTINE).map_err(failed)?.iter().map_err(failed)? {
        reservations.push(serde_json::from_str(entry.map_err(failed)?.1.value()).map_err(failed)?);
    }
    let counters = transaction.open_table(COUNTERS).map_err(failed)?;
    let epoch = counters.get(EPOCH).map_err(failed)?.map_or(0, |epoch| epoch.value());
    Ok((records, reservations, epoch))
}

fn write_all(database: &Database, inbox: &mpsc::Receiver<(Changes, Done)>) {
    while let Ok(first) = inbox.recv() {
        let mut group = vec![first];
        while group.len() < GROUP_LEN_MAX
            && let Ok(next) = inbox.try_recv()
        {
            group.push(next);
        }
        let result = commit(database, group.iter().map(|(changes, _)| changes));
        if let Err(error) = &result {
            tracing::error!(%error, "leases could not be stored");
        }
        for (_, done) in group {
            let _ = done.send(if result.is_ok() { Ok(()) } else { Err(()) });
        }
    }
}

fn commit<'a>(database: &Database, changes: impl Iterator<Item = &'a Changes>) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    {
        let mut table = transaction.open_table(LEASES).map_err(failed)?;
        let mut quarantine = transaction.open_table(QUARANTINE).map_err(failed)?;
        let mut counters = transaction.open_table(COUNTERS).map_err(failed)?;
        for change in changes {
            if let Some(epoch) = change.epoch {
                counters.insert(EPOCH, epoch).map_err(failed)?;
            }
            for (network, key) in &change.remove {
                table.remove(format!("{network}/{key}").as_str()).map_err(failed)?;
            }
            for (network, resource) in &change.free {
                quarantine.remove(format!("{network}/{resource}").as_str()).map_err(failed)?;
            }
            for record in &change.put {
                let text = serde_json::to_string(record).map_err(failed)?;
                table.insert(format!("{}/{}", record.network, record.key).as_str(), text.as_str()).map_err(failed)?;
            }
            for waiting in &change.reserve {
                let text = serde_json::to_string(waiting).map_err(failed)?;
                let name = format!("{}/{}", waiting.network, waiting.resource);
                quarantine.insert(name.as_str(), text.as_str()).map_err(failed)?;
            }
        }
    }
    transaction.commit().map_err(failed)
}
