//! A node for programs that know nothing of it: every socket of theirs is a kernel descriptor, one end of an AF_UNIX
//! socket whose other end is pumped into the node's stack.
//!
//! Programs ask over a control socket, one connection for each request; the words are those of
//! `unisockets_descriptors`. Descriptors are their own leash: the kernel tells the host when the last copy of one is
//! closed, in whatever process, so nothing is lost with a program that exits, and nothing is kept for it.

mod askers;
mod bound;
mod datagram;
mod descriptor;
mod errors;
mod options;
mod requests;
mod stream;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use unisockets_descriptors::{Answer, Call, Family, Fault, Kind, REQUEST_LEN_MAX, Reply, Request, passing};

use crate::config::hex;
use crate::handle::Node;
use crate::patience::Patience;
use crate::tcp::Socket;
use askers::Askers;
use errors::Ended;

/// How long a program may take to say what it wants, and to take the answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Programs that are answered at one time, by either way in; further ones wait in the kernel's queue.
const REQUESTS_MAX: usize = 256;
/// Sockets of one host: more than the stack's own limit are never made.
const SOCKETS_MAX: usize = 65_536;
/// How often datagram sockets are looked after: the kernel does not say when the last copy of one is closed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What an answer brings along.
type Outcome = Result<(Reply, Option<OwnedFd>), Fault>;

/// One socket of a program.
struct Entry {
    socket: Arc<Socket>,
    kind: Kind,
    family: Family,
    /// Options that are kept for who asks, and mean nothing here.
    kept: Mutex<HashMap<(i32, i32), Vec<u8>>>,
    role: Role,
}

#[derive(Clone)]
enum Role {
    Bound(Arc<bound::Bound>),
    Stream,
    Datagram(Arc<datagram::Datagram>),
}

struct Inner {
    node: Node,
    instance: u64,
    next_id: AtomicU64,
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    ended: Mutex<Ended>,
    invitation: String,
    token: String,
    askers: Askers,
    /// Woken when a socket has ended.
    changed: Notify,
    leaving: Notify,
}

/// Serves descriptors of a node's sockets to programs of the same user.
pub struct Host {
    inner: Arc<Inner>,
    tasks: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl Host {
    /// Serves a control socket at `path`, which must not exist yet; only this user and root are answered. Must be
    /// called within the runtime on which the node lives.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub fn serve(node: &Node, path: &Path) -> io::Result<Host> {
        let listener = UnixListener::bind(path)?;
        let (mut instance, mut token) = ([0; 8], [0; 16]);
        getrandom::fill(&mut instance).map_err(io::Error::other)?;
        getrandom::fill(&mut token).map_err(io::Error::other)?;
        let (name, token) = (format!("unisockets/node/{}", hex(&instance)), hex(&token));
        let invited = invited_listener(&name)?;
        let inner = Arc::new(Inner {
            node: node.clone(),
            instance: u64::from_ne_bytes(instance),
            next_id: AtomicU64::new(1),
            entries: Mutex::default(),
            ended: Mutex::default(),
            invitation: format!("@{name}#{token}#{}", rustix::process::geteuid().as_raw()),
            token,
            askers: Askers::default(),
            changed: Notify::new(),
            leaving: Notify::new(),
        });
        let tasks = vec![
            tokio::spawn(answer_all(Arc::clone(&inner), listener)),
            tokio::spawn(answer_all(Arc::clone(&inner), invited)),
            tokio::spawn(datagram::sweep_all(Arc::clone(&inner), SWEEP_INTERVAL)),
        ];
        Ok(Host { inner, tasks })
    }

    /// Returns what to give programs in UNISOCKETS_NODE that may change their user: it also names a way that is open to
    /// everybody, and proves that whoever comes has it. It is a secret.
    pub fn invitation(&self) -> &str {
        &self.inner.invitation
    }

    /// Returns how many sockets programs hold.
    pub fn socket_count(&self) -> usize {
        self.inner.entries().len()
    }

    /// Waits until a program has asked the node to leave.
    pub async fn asked_to_leave(&self) {
        self.inner.leaving.notified().await;
    }

    /// Returns whether a program runs that has asked this node for anything, which it may do again.
    pub fn is_needed(&self) -> bool {
        self.inner.askers.any_runs()
    }

    /// Waits until no program holds a socket any more.
    pub async fn drained(&self) {
        loop {
            let changed = self.inner.changed.notified();
            if self.socket_count() == 0 {
                return;
            }
            // Datagram sockets are found closed by looking.
            let _ = timeout(SWEEP_INTERVAL, changed).await;
        }
    }

    /// Waits until what programs have written has been delivered, as long as [`Patience`] says.
    pub async fn delivered(&self) {
        let driver = self.inner.node.driver();
        let mut patience = Patience::begin();
        while !patience.is_over(driver.look(|state| state.core.stack.undelivered_bytes())) {
            tokio::time::sleep(Patience::LOOK).await;
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> MutexGuard<'_, Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, id: u64) -> Option<Arc<Entry>> {
        self.entries().get(&id).cloned()
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Says whether a socket of this number was ever there.
    fn has_made(&self, id: u64) -> bool {
        (1..self.next_id.load(Ordering::Relaxed)).contains(&id)
    }

    fn insert(&self, id: u64, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        self.entries().insert(id, Arc::clone(&entry));
        entry
    }

    /// Returns what forgets a socket however the task that serves it ends: one that has a bug leaves nothing behind.
    fn place(self: &Arc<Self>, id: u64) -> Place {
        Place { inner: Arc::clone(self), id }
    }

    /// Forgets a socket, which closes it unless its connection has it now.
    fn remove(&self, id: u64) {
        let removed = self.entries().remove(&id);
        drop(removed);
        self.changed.notify_waiters();
    }
}

/// A socket's place among those that are known.
struct Place {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.remove(self.id);
    }
}

/// Listens at a name in the abstract namespace, which every user of this machine can reach.
fn invited_listener(name: &str) -> io::Result<UnixListener> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn answer_all(inner: Arc<Inner>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let inner = Arc::clone(&inner);
                tokio::spawn(async move {
                    answer(inner, stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                // No descriptor is free: whoever asks waits until there is one.
                tracing::warn!(%error, "a program cannot be heard");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn answer(inner: Arc<Inner>, mut stream: UnixStream) {
    let own = rustix::process::geteuid().as_raw();
    let peer = stream.peer_cred().ok();
    let known = peer.is_some_and(|peer| peer.uid() == own || peer.uid() == 0);
    let process = peer.and_then(|peer| peer.pid());
    let mut text = Vec::new();
    let limit = REQUEST_LEN_MAX as u64 + 1;
    let heard = timeout(REQUEST_LIMIT, (&mut stream).take(limit).read_to_end(&mut text)).await;
    if !matches!(heard, Ok(Ok(_))) {
        return;
    }
    let call = serde_json::from_slice::<Call>(&text);
    let outcome = match call {
        // What the token opens is sockets: to whoever a program has become, not files and the life of the node's user.
        Ok(Call { request: Request::Capture { .. } | Request::Leave, .. }) if !known => Err(Fault {
            errno: libc::EACCES,
            text: "only the user who has started this node ends it, or has it write a capture".to_owned(),
        }),
        Ok(call) if known || call.token.as_ref().is_some_and(|token| same(token, &inner.token)) => {
            match (process, &call.request) {
                (Some(process), Request::Forget) => inner.askers.forget(process),
                // A program that has left the node may close what it had of it.
                (_, Request::Closed { .. }) | (None, _) => {}
                (Some(process), _) => inner.askers.note(process),
            }
            inner.handle(call.request).await
        }
        Ok(_) => Err(Fault { errno: libc::EACCES, text: "this node belongs to another user".to_owned() }),
        Err(error) => Err(Fault { errno: libc::EPROTO, text: format!("the node does not understand: {error}") }),
    };
    let (answer, descriptor) = match outcome {
        Ok((reply, descriptor)) => (Answer::Done(reply), descriptor),
        Err(fault) => (Answer::Failed(fault), None),
    };
    let text = serde_json::to_vec(&answer).expect("an answer has a JSON form");
    let _ = timeout(REQUEST_LIMIT, send_answer(&stream, &text, descriptor.as_ref())).await;
}

/// Compares tokens in a time that says nothing of where they differ.
fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

async fn send_answer(stream: &UnixStream, text: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let (mut rest, mut descriptor) = (text, descriptor);
    while !rest.is_empty() {
        stream.writable().await?;
        let sent =
            stream.try_io(tokio::io::Interest::WRITABLE, || passing::send_with(stream.as_fd(), rest, descriptor));
        match sent {
            Ok(len) => (rest, descriptor) = (&rest[len..], None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
