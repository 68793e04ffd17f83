//! A UDP socket between a program's descriptor and the stack.
//!
//! The program's descriptor is an AF_UNIX datagram socket. What comes from the network is sent to it from sockets that
//! carry the *sender's* address as their name, so `recvfrom` learns the source from the kernel and `read` gets the
//! payload and nothing else. What goes out comes over the **ingress**, with its destination in front, or, from a
//! connected descriptor, over the **peer**: the socket that it is connected to.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{recvfrom, send};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use unisockets_descriptors::{Name, datagram, passing};
use unisockets_stack::{DATAGRAM_LEN_MAX, Received};

use super::descriptor::watch;
use super::{Entry, Inner, Role, options};
use crate::driver::Interest;
use crate::tcp::Socket;

/// Senders whose sockets are kept for their next datagram.
const SENDERS_MAX: usize = 64;
/// Datagrams taken from a program before others have their turn.
const TURNS_MAX: usize = 32;
/// Datagrams looked at when a socket is closed: more than wait in a queue of the kernel's (net.unix.max_dgram_qlen).
const QUEUED_MAX: usize = 1_024;
/// Looking at a datagram socket takes about 5 µs: they are looked at so seldom that it is 1 % of a processor.
const SWEEP_COST: Duration = Duration::from_micros(500);

/// What requests and tasks share of a UDP socket.
pub(super) struct Datagram {
    /// The name of the program's descriptor.
    name: Name,
    peer: Mutex<Option<Peer>>,
    serial: AtomicU32,
    /// Whether the last descriptor is closed.
    closed: AtomicBool,
    closing: Notify,
    /// The last error that the network reported, in Linux's numbers, until it is taken.
    error: AtomicI32,
}

struct Peer {
    address: SocketAddr,
    socket: Arc<AsyncFd<OwnedFd>>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes the program's descriptor of a UDP socket, and the ingress.
pub(super) fn descriptors(name: &Name) -> io::Result<(OwnedFd, OwnedFd)> {
    let program = passing::unix_socket(SocketType::DGRAM, SocketFlags::empty())?;
    passing::bind_abstract(&program, &name.to_string())?;
    let ingress = passing::unix_socket(SocketType::DGRAM, SocketFlags::NONBLOCK)?;
    passing::bind_abstract(&ingress, &name.ingress())?;
    Ok((program, ingress))
}

impl Datagram {
    pub(super) fn new(name: Name) -> Datagram {
        Datagram {
            name,
            peer: Mutex::default(),
            serial: AtomicU32::new(1),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            error: AtomicI32::new(0),
        }
    }

    fn peer(&self) -> MutexGuard<'_, Option<Peer>> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the socket that a connected descriptor talks to, and returns its name.
    pub(super) fn connect(&self, socket: &Arc<Socket>, address: SocketAddr) -> io::Result<String> {
        let own = socket.local_addr()?.ip();
        let (name, peer) = self.sender(address, Some(own))?;
        let peer = Arc::new(peer);
        let task =
            tokio::spawn(forward(Arc::clone(&peer), Arc::clone(socket), Destination::Peer, self.name.to_string()));
        *self.peer() = Some(Peer { address, socket: peer, task });
        Ok(name)
    }

    /// Takes the pending error, 0 if there is none.
    pub(super) fn take_error(&self) -> i32 {
        self.error.swap(0, Ordering::AcqRel)
    }

    /// Takes the peer away; what the program has sent to it still goes there.
    pub(super) fn disconnect(&self, socket: &Arc<Socket>) {
        let before = self.peer().take();
        if let Some(peer) = before {
            peer.task.abort();
            drain(&peer.socket, socket, Destination::Peer, &self.name.to_string());
        }
    }

    /// Makes a socket that sends to the program in the name of `source`.
    fn sender(&self, source: SocketAddr, destination: Option<IpAddr>) -> io::Result<(String, AsyncFd<OwnedFd>)> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let name = Name { address: source, destination, serial, ..self.name }.to_string();
        let socket = passing::unix_socket(SocketType::DGRAM, SocketFlags::NONBLOCK)?;
        passing::bind_abstract(&socket, &name)?;
        passing::connect_abstract(&socket, &self.name.to_string())?;
        Ok((name, watch(socket)?))
    }

    /// Whether the last copy of the program's descriptor is closed: then its name is free.
    fn is_abandoned(&self) -> bool {
        let probe = passing::unix_socket(SocketType::DGRAM, SocketFlags::empty());
        probe.is_ok_and(|probe| passing::bind_abstract(&probe, &self.name.to_string()).is_ok())
    }

    /// Ends the socket if its last descriptor is closed, and says whether it is.
    pub(super) fn look(&self) -> bool {
        if !self.closed.load(Ordering::Acquire) && self.is_abandoned() {
            self.closed.store(true, Ordering::Release);
            self.closing.notify_one();
        }
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn port(&self) -> u16 {
        self.name.address.port()
    }
}

/// Serves a UDP socket until its last descriptor is closed.
pub(super) async fn serve(inner: Arc<Inner>, id: u64, entry: Arc<Entry>, shared: Arc<Datagram>, ingress: OwnedFd) {
    let Ok(ingress) = watch(ingress) else {
        return inner.remove(id);
    };
    let ingress = Arc::new(ingress);
    let name = shared.name.to_string();
    let forwarding =
        tokio::spawn(forward(Arc::clone(&ingress), Arc::clone(&entry.socket), Destination::InFront, name.clone()));
    tokio::select! {
        () = deliver(&entry, &shared) => {}
        () = shared.closing.notified() => {}
    }
    // What the program sent before it closed is still on its way to the network.
    forwarding.abort();
    let _ = forwarding.await;
    drain(&ingress, &entry.socket, Destination::InFront, &name);
    let peer = shared.peer().take();
    if let Some(mut peer) = peer {
        peer.task.abort();
        let _ = (&mut peer.task).await;
        drain(&peer.socket, &entry.socket, Destination::Peer, &name);
    }
    // Nobody else has the socket now: its port is free when whoever waits for that is told.
    drop(entry);
    inner.remove(id);
}

/// Looks now and then at every datagram socket.
pub(super) async fn sweep_all(inner: Arc<Inner>, interval: Duration) {
    loop {
        let datagrams: Vec<_> = inner
            .entries()
            .values()
            .filter_map(|entry| if let Role::Datagram(shared) = &entry.role { Some(Arc::clone(shared)) } else { None })
            .collect();
        for shared in &datagrams {
            shared.look();
        }
        let count = u32::try_from(datagrams.len()).unwrap_or(u32::MAX);
        tokio::time::sleep(interval.max(SWEEP_COST * count)).await;
    }
}

/// Where a datagram of the program's goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    InFront,
    Peer,
}

/// Sends what the program sends; a datagram that the network refuses is lost, as UDP's may be.
async fn forward(from: Arc<AsyncFd<OwnedFd>>, socket: Arc<Socket>, destination: Destination, program: String) {
    let mut message = vec![0; DATAGRAM_LEN_MAX + datagram::DESTINATION_LEN + 1];
    loop {
        for _ in 0..TURNS_MAX {
            let Ok(mut guard) = from.readable().await else {
                return;
            };
            let received = guard.try_io(|from| Ok(recvfrom(from, &mut message[..], RecvFlags::DONTWAIT)?));
            let len = match received {
                // Abstract names can be sent to by everybody on the machine; this name only the program's descriptor
                // has. What has none is of `report`.
                Ok(Ok((len, _, Some(from)))) if is_of(&from, &program) => len,
                // Or somebody else's mistake, such as a reset of the pair: nothing was received.
                Ok(_) | Err(_) => continue,
            };
            let Some((to, payload)) = split(&message[..len], destination) else {
                continue;
            };
            let id = socket.id;
            let sending = std::future::poll_fn(|cx| {
                socket.poll(cx, Interest::Write, |stack, now| stack.send_to(now, id, payload, to))
            });
            if let Err(error) = sending.await {
                tracing::debug!(%error, "a datagram of a program was not sent");
            }
        }
        tokio::task::yield_now().await;
    }
}

fn is_of(address: &SocketAddrAny, program: &str) -> bool {
    address.address_family() == AddressFamily::UNIX
        && SocketAddrUnix::try_from(address.clone())
            .is_ok_and(|address| address.abstract_name() == Some(program.as_bytes()))
}

fn split(message: &[u8], destination: Destination) -> Option<(Option<SocketAddr>, &[u8])> {
    match destination {
        Destination::Peer => Some((None, message)),
        Destination::InFront => datagram::parse_destination(message).map(|(to, payload)| (Some(to), payload)),
    }
}

/// Sends what the program has in a queue still, as far as there is room.
fn drain(from: &AsyncFd<OwnedFd>, socket: &Arc<Socket>, destination: Destination, program: &str) {
    let mut message = vec![0; DATAGRAM_LEN_MAX + datagram::DESTINATION_LEN + 1];
    for _ in 0..QUEUED_MAX {
        let (len, sender) = match recvfrom(from.get_ref(), &mut message[..], RecvFlags::DONTWAIT) {
            Ok((len, _, sender)) => (len, sender),
            Err(Errno::AGAIN) => return,
            // Somebody else's mistake, such as a reset of the pair: nothing was received.
            Err(_) => continue,
        };
        if sender.is_some_and(|sender| is_of(&sender, program))
            && let Some((to, payload)) = split(&message[..len], destination)
        {
            let _ = socket.driver.with(|state, now, _| state.core.stack.send_to(now, socket.id, payload, to));
        }
    }
}

/// Sockets that send in the name of a source, the oldest first; the destination is known where the program wants it.
type Senders = VecDeque<((SocketAddr, Option<IpAddr>), Arc<AsyncFd<OwnedFd>>)>;

/// Hands what comes from the network to the program; ends when the program's descriptor is closed.
async fn deliver(entry: &Entry, shared: &Datagram) {
    let socket = &entry.socket;
    let mut senders = Senders::new();
    loop {
        let id = socket.id;
        let receiving = std::future::poll_fn(|cx| socket.poll(cx, Interest::Read, |stack, _| stack.recv_from(id)));
        let received = match receiving.await {
            Ok(received) => received,
            Err(error) => {
                report(shared, &error);
                continue;
            }
        };
        let peer =
            shared.peer().as_ref().filter(|peer| peer.address == received.source).map(|peer| Arc::clone(&peer.socket));
        let sender = match peer {
            Some(peer) => peer,
            None => match remembered(&mut senders, shared, &received, options::wants_destination(entry)) {
                Ok(sender) => sender,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return,
                // The descriptor was connected meanwhile, or descriptors are short: lost, as UDP's may be.
                Err(_) => continue,
            },
        };
        if hand_over(&sender, &received.data).await == Err(Errno::CONNREFUSED) {
            shared.look();
            return;
        }
    }
}

/// Returns the socket that sends in the name of a datagram's source.
fn remembered(
    senders: &mut Senders,
    shared: &Datagram,
    received: &Received,
    wants_destination: bool,
) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    let key = (received.source, wants_destination.then_some(received.destination));
    if let Some(at) = senders.iter().position(|(known, _)| *known == key) {
        return Ok(Arc::clone(&senders[at].1));
    }
    let (_, sender) = shared.sender(key.0, key.1)?;
    let sender = Arc::new(sender);
    if senders.len() >= SENDERS_MAX {
        senders.pop_front();
    }
    senders.push_back((key, Arc::clone(&sender)));
    Ok(sender)
}

/// Sends one datagram to the program, waiting while its queue is full: what comes meanwhile waits in the stack, within
/// the socket's receive buffer, and beyond that is dropped and counted there.
async fn hand_over(sender: &AsyncFd<OwnedFd>, data: &[u8]) -> Result<(), Errno> {
    loop {
        match send(sender.get_ref(), data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN) => {
                let Ok(mut guard) = sender.writable().await else {
                    return Err(Errno::BADF);
                };
                // Another try comes first: room may have come before the readiness was asked for.
                match send(sender.get_ref(), data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                    Err(Errno::AGAIN) => guard.clear_ready(),
                    result => return result.map(|_| ()),
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Lets the program of a connected socket know that an error waits (ECONNREFUSED, for one).
fn report(shared: &Datagram, error: &io::Error) {
    tracing::debug!(%error, "a datagram of a program came back as an error");
    shared.error.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
    let peer = shared.peer();
    let Some(peer) = peer.as_ref() else {
        return;
    };
    // The kernel reports an error to a descriptor whose peer turns away over something unread: a datagram without a
    // sender, which is never forwarded.
    let turn_away = || {
        let (host, name) = (peer.socket.get_ref(), shared.name.to_string());
        rustix::net::connect_unspec(host)?;
        let own = rustix::net::getsockname(host)?;
        let nobody = passing::unix_socket(SocketType::DGRAM, SocketFlags::NONBLOCK)?;
        rustix::net::sendto(&nobody, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &own)?;
        passing::connect_abstract(host, &name)?;
        rustix::net::connect_unspec(host)?;
        passing::connect_abstract(host, &name)
    };
    if let Err(error) = turn_away() {
        tracing::debug!(%error, "a program is not told of it");
    }
}
