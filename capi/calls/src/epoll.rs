//! Which epolls watch a socket that another one may take the place of: they lose it then, and get it back.

use std::collections::{HashMap, HashSet};
use std::ffi::c_int;
use std::ops::{Deref, DerefMut};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use libc::epoll_event;
use unisockets_descriptors::State;

use crate::descriptor::{self, Cookie};
use crate::system;

/// Sockets that are watched before they have a connection; further ones are not remembered.
const WATCHED_MAX: usize = 65_536;

/// One epoll's interest in a socket.
#[derive(Clone, Copy)]
pub(crate) struct Interest {
    epoll: RawFd,
    events: u32,
    data: u64,
    /// The socket that was watched: the number may be another one's by now.
    socket: Cookie,
}

/// Interests by socket, and the epolls that have any.
#[derive(Default)]
pub(crate) struct Table {
    sockets: HashMap<RawFd, Vec<Interest>>,
    epolls: HashSet<RawFd>,
}

static WATCHED: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);
/// How many there are, so that closing a descriptor costs nothing where nothing is watched.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The process whose table it is. A child of vfork(2) shares its parent's memory, and closes its own descriptors.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// What has the table to itself. No handler of a signal runs meanwhile: it may call `close`, and would wait for ever.
pub(crate) struct Guard {
    table: MutexGuard<'static, Table>,
    _held: Held,
}

/// Signals that wait.
struct Held(u64);

impl Drop for Held {
    fn drop(&mut self) {
        system::let_signals(self.0);
    }
}

impl Deref for Guard {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl DerefMut for Guard {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.table
    }
}

/// Keeps every other thread from the table.
pub(crate) fn hold() -> Guard {
    let held = Held(system::hold_signals());
    Guard { table: WATCHED.lock().unwrap_or_else(PoisonError::into_inner), _held: held }
}

/// Takes note of what process this is, at its start and after each fork.
pub(crate) fn begin() {
    OWNER.store(std::process::id(), Ordering::Release);
}

/// Calls the operating system, and remembers what an epoll wants to know of an ordinary socket.
pub(crate) fn control(epoll: RawFd, operation: c_int, fd: RawFd, event: Option<&mut epoll_event>) -> isize {
    let known = event.as_ref().map(|event| (event.events, event.u64));
    let result = system::epoll_ctl(epoll, operation, fd, event);
    if result == 0 {
        remember(epoll, operation, fd, known);
    }
    result
}

fn remember(epoll: RawFd, operation: c_int, fd: RawFd, event: Option<(u32, u64)>) {
    if operation == libc::EPOLL_CTL_DEL {
        if COUNT.load(Ordering::Acquire) > 0 {
            let mut watched = hold();
            if let Some(interests) = watched.sockets.get_mut(&fd) {
                interests.retain(|interest| interest.epoll != epoll);
            }
        }
        return;
    }
    let Some((events, data)) = event else {
        return;
    };
    if !may_be_replaced(fd) {
        return;
    }
    let socket = descriptor::cookie(fd);
    let mut watched = hold();
    if watched.sockets.len() >= WATCHED_MAX {
        return;
    }
    watched.epolls.insert(epoll);
    let interests = watched.sockets.entry(fd).or_default();
    interests.retain(|interest| interest.epoll != epoll);
    interests.push(Interest { epoll, events, data, socket });
    COUNT.store(watched.sockets.len(), Ordering::Release);
}

/// Whether another descriptor may take the place of this one: of an ordinary socket the virtual one, of one that is bound
/// its connection, and of a connection that has failed the next one.
fn may_be_replaced(fd: RawFd) -> bool {
    descriptor::inet(fd).is_some()
        || descriptor::identify(fd).is_some_and(|name| match name.state {
            State::Bound => true,
            State::Stream => descriptor::peer(fd).is_none(),
            State::Datagram => false,
        })
}

/// Lets the epolls that watched the socket `before` watch what has taken its place.
pub(crate) fn replay(fd: RawFd, before: Cookie) {
    if COUNT.load(Ordering::Acquire) == 0 {
        return;
    }
    let now = descriptor::cookie(fd);
    let mut watched = hold();
    let Some(interests) = watched.sockets.get_mut(&fd) else {
        return;
    };
    interests.retain_mut(|interest| {
        let is_meant = interest.socket == before;
        interest.socket = now;
        is_meant
    });
    for interest in interests {
        let mut event = epoll_event { events: interest.events, u64: interest.data };
        system::epoll_ctl(interest.epoll, libc::EPOLL_CTL_ADD, fd, Some(&mut event));
    }
}

/// Forgets a descriptor that is closed, be it a socket that was watched or an epoll: its number may be another one's
/// soon, which has asked for nothing.
pub(crate) fn forget(fd: RawFd) {
    if COUNT.load(Ordering::Acquire) == 0 || OWNER.load(Ordering::Acquire) != std::process::id() {
        return;
    }
    let mut watched = hold();
    watched.sockets.remove(&fd);
    if watched.epolls.remove(&fd) {
        watched.sockets.retain(|_, interests| {
            interests.retain(|interest| interest.epoll != fd);
            !interests.is_empty()
        });
    }
    COUNT.store(watched.sockets.len(), Ordering::Release);
}
