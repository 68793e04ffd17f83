//! A TCP socket that is bound, and perhaps listens.
//!
//! The program has one end of an AF_UNIX pair of packets. Each connection is a packet that brings its descriptor;
//! `accept` takes one and sends a byte back, so that no more than the backlog wait on the way.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, SocketType, recv, shutdown};
use tokio::io::unix::AsyncFd;
use unisockets_descriptors::{Family, Kind, Name, State, passing};
use unisockets_stack::SocketId;

use super::descriptor::watch;
use super::stream::{self, Label, Pair, Plug};
use super::{Entry, Inner, Role};
use crate::driver::Interest;
use crate::tcp::Socket;

/// How long to wait where the kernel carries no more descriptors for this user.
const CROWDED: Duration = Duration::from_millis(10);

/// What requests change of a bound socket while its task runs.
#[derive(Default)]
pub(super) struct Bound {
    /// Connections that may be on their way to `accept`; 0 until the socket listens.
    backlog: AtomicU32,
    /// A connection has taken the socket over.
    taken: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// The host's end of the descriptor.
    host: OnceLock<Arc<AsyncFd<OwnedFd>>>,
}

impl Bound {
    /// Lets connections come.
    pub(super) fn listen(&self, backlog: u32) {
        self.backlog.store(backlog.max(1), Ordering::Release);
        self.wake();
    }

    /// Returns whether it listens.
    pub(super) fn listens(&self) -> bool {
        self.backlog.load(Ordering::Acquire) > 0
    }

    /// Leaves the socket to a connection that is made from it. Copies of the descriptor that are still the bound socket take
    /// nothing from now on: nobody would read it.
    pub(super) fn take(&self) {
        self.taken.store(true, Ordering::Release);
        if let Some(host) = self.host.get() {
            let _ = shutdown(host.get_ref(), Shutdown::Both);
        }
        self.wake();
    }

    fn wake(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Makes the descriptor of a bound socket.
pub(super) fn descriptor(name: &Name) -> io::Result<(OwnedFd, OwnedFd)> {
    let (program, host) = passing::unix_pair(SocketType::SEQPACKET)?;
    passing::bind_abstract(&program, &name.to_string())?;
    rustix::io::ioctl_fionbio(&host, true)?;
    Ok((program, host))
}

/// Serves a bound socket until its last descriptor is closed.
pub(super) async fn serve(inner: Arc<Inner>, id: u64, entry: Arc<Entry>, bound: Arc<Bound>, host: OwnedFd) {
    let Ok(host) = watch(host) else {
        return inner.remove(id);
    };
    let host = Arc::new(host);
    let _ = bound.host.set(Arc::clone(&host));
    let mut acceptor = Acceptor { bound: &bound, host, underway: 0, next: None };
    loop {
        match poll_fn(|cx| acceptor.poll(cx, &entry)).await {
            Turn::Connection(socket) => match offer(&inner, &entry, socket) {
                Ok(descriptor) => acceptor.next = Some(descriptor),
                Err(error) => tracing::warn!(%error, "a connection is dropped"),
            },
            Turn::Crowded => tokio::time::sleep(CROWDED).await,
            Turn::Over => break,
        }
    }
    if !bound.taken.load(Ordering::Acquire) {
        drop(entry);
        inner.remove(id);
    }
}

/// Makes the descriptor of an accepted connection, and carries it from now on.
fn offer(inner: &Arc<Inner>, entry: &Entry, id: SocketId) -> io::Result<OwnedFd> {
    let socket = Arc::new(Socket { driver: Arc::clone(&entry.socket.driver), id });
    let label = Label { id: inner.new_id(), family: entry.family, instance: inner.instance };
    let pair = Pair::new(Plug::Open)?;
    pair.name_program(&label.name(socket.local_addr()?, 1))?;
    pair.name_host(&label.name(socket.peer_addr()?, 2))?;
    let (program, host) = pair.split();
    let (kind, family) = (Kind::Tcp, entry.family);
    let kept = entry.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
    inner.insert(
        label.id,
        Entry { socket: Arc::clone(&socket), kind, family, kept: Mutex::new(kept), role: Role::Stream },
    );
    tokio::spawn(stream::carry(Arc::clone(inner), label, socket, host));
    Ok(program)
}

enum Turn {
    /// The stack has a connection for the program.
    Connection(SocketId),
    Crowded,
    Over,
}

struct Acceptor<'a> {
    bound: &'a Bound,
    host: Arc<AsyncFd<OwnedFd>>,
    /// Connections sent and not yet accepted.
    underway: u32,
    /// A connection that is to be sent.
    next: Option<OwnedFd>,
}

impl Acceptor<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, entry: &Entry) -> Poll<Turn> {
        *self.bound.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        if self.bound.taken.load(Ordering::Acquire) || self.poll_accepted(cx).is_ready() {
            return Poll::Ready(Turn::Over);
        }
        while let Some(descriptor) = self.next.take() {
            match passing::send_with(self.host.get_ref(), b"c", Some(&descriptor)) {
                Ok(_) => self.underway += 1,
                Err(error) => {
                    self.next = Some(descriptor);
                    if error.kind() != io::ErrorKind::WouldBlock {
                        // Too many descriptors are on their way (ETOOMANYREFS), or memory is short.
                        return Poll::Ready(Turn::Crowded);
                    }
                    match self.host.poll_write_ready(cx) {
                        Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
                        Poll::Ready(Err(_)) => return Poll::Ready(Turn::Over),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
        }
        if self.underway >= self.bound.backlog.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        let id = entry.socket.id;
        match entry.socket.poll(cx, Interest::Read, |stack, now| stack.accept(now, id)) {
            Poll::Ready(Ok((socket, _))) => Poll::Ready(Turn::Connection(socket)),
            Poll::Ready(Err(_)) => Poll::Ready(Turn::Over),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Counts the connections that the program has accepted; ready when its last descriptor is closed.
    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 8];
        loop {
            let mut guard = match self.host.poll_read_ready(cx) {
                Poll::Ready(Ok(guard)) => guard,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            };
            match recv(self.host.get_ref(), &mut bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Poll::Ready(()),
                Ok(_) => self.underway = self.underway.saturating_sub(1),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                // The program closed it while connections were on their way.
                Err(_) => return Poll::Ready(()),
            }
        }
    }
}

/// Returns the name of a bound socket.
pub(super) fn name(inner: &Inner, id: u64, family: Family, address: std::net::SocketAddr) -> Name {
    Name { state: State::Bound, family, address, destination: None, instance: inner.instance, id, serial: 0 }
}
