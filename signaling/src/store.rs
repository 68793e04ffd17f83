//! The durable file of a directory: redb, with one commit for all that waits (group commit).

use std::fmt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use crate::leases::{Changes, Record};

const LEASES: TableDefinition<'_, &str, &str> = TableDefinition::new("leases-v1");
const SERVER: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("server-v1");
const SEED: &str = "seed";
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
}

type Done = oneshot::Sender<Result<(), ()>>;

/// An open file with the thread that writes it.
pub(crate) struct Store {
    queue: mpsc::SyncSender<(Changes, Done)>,
}

impl Store {
    pub(crate) fn open(path: &Path, seed: [u8; 32]) -> Result<(Store, Contents), StoreError> {
        let database = Database::create(path).map_err(failed)?;
        restrict(path)?;
        let transaction = database.begin_write().map_err(failed)?;
        let server_seed = {
            transaction.open_table(LEASES).map_err(failed)?;
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
        let records = read(&database)?;
        let (queue, inbox) = mpsc::sync_channel(QUEUE_LEN_MAX);
        thread::Builder::new().name("leases".into()).spawn(move || write_all(&database, &inbox)).map_err(failed)?;
        Ok((Store { queue }, Contents { server_seed, records }))
    }

    /// Queues changes; the answer comes when they are on the disk.
    pub(crate) fn write(&self, changes: Changes) -> oneshot::Receiver<Result<(), ()>> {
        let (done, answer) = oneshot::channel();
        // A full queue drops the sender, which the caller sees as a failure.
        let _ = self.queue.try_send((changes, done));
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

fn read(database: &Database) -> Result<Vec<Record>, StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    let table = transaction.open_table(LEASES).map_err(failed)?;
    let mut records = Vec::new();
    for entry in table.iter().map_err(failed)? {
        let (_, value) = entry.map_err(failed)?;
        records.push(serde_json::from_str(value.value()).map_err(failed)?);
    }
    Ok(records)
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
            let _ = done.send(result.as_ref().map(|()| ()).map_err(|_| ()));
        }
    }
}

fn commit<'a>(database: &Database, changes: impl Iterator<Item = &'a Changes>) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    {
        let mut table = transaction.open_table(LEASES).map_err(failed)?;
        for change in changes {
            for (network, key) in &change.remove {
                table.remove(format!("{network}/{key}").as_str()).map_err(failed)?;
            }
            for record in &change.put {
                let text = serde_json::to_string(record).map_err(failed)?;
                table.insert(format!("{}/{}", record.network, record.key).as_str(), text.as_str()).map_err(failed)?;
            }
        }
    }
    transaction.commit().map_err(failed)
}
