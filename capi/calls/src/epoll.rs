//! Which epolls watch an ordinary socket: they lose it when a virtual descriptor takes its place, and get it back.

use std::collections::HashMap;
use std::ffi::c_int;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use libc::epoll_event;

use crate::descriptor;
use crate::system;

/// Sockets that are watched before they are virtual; further ones are not remembered.
const WATCHED_MAX: usize = 65_536;

/// One epoll's interest in a socket.
#[derive(Clone, Copy)]
pub(crate) struct Interest {
    epoll: RawFd,
    events: u32,
    data: u64,
}

static WATCHED: LazyLock<Mutex<HashMap<RawFd, Vec<Interest>>>> = LazyLock::new(Mutex::default);
/// How many there are, so that closing a descriptor costs nothing where nothing is watched.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// What has the table to itself.
pub(crate) type Guard = MutexGuard<'static, HashMap<RawFd, Vec<Interest>>>;

/// Keeps every other thread from the table.
pub(crate) fn hold() -> Guard {
    watched()
}

fn watched() -> Guard {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
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
            let mut watched = watched();
            if let Some(interests) = watched.get_mut(&fd) {
                interests.retain(|interest| interest.epoll != epoll);
            }
        }
        return;
    }
    let Some((events, data)) = event else {
        return;
    };
    if descriptor::inet(fd).is_none() {
        return;
    }
    let mut watched = watched();
    if watched.len() >= WATCHED_MAX {
        return;
    }
    let interests = watched.entry(fd).or_default();
    interests.retain(|interest| interest.epoll != epoll);
    interests.push(Interest { epoll, events, data });
    COUNT.store(watched.len(), Ordering::Release);
}

/// Lets the epolls that watched a socket watch what has taken its place.
pub(crate) fn replay(fd: RawFd) {
    for interest in take(fd) {
        let mut event = epoll_event { events: interest.events, u64: interest.data };
        system::epoll_ctl(interest.epoll, libc::EPOLL_CTL_ADD, fd, Some(&mut event));
    }
}

/// Forgets a descriptor that is closed.
pub(crate) fn forget(fd: RawFd) {
    take(fd);
}

fn take(fd: RawFd) -> Vec<Interest> {
    if COUNT.load(Ordering::Acquire) == 0 {
        return Vec::new();
    }
    let mut watched = watched();
    let interests = watched.remove(&fd).unwrap_or_default();
    COUNT.store(watched.len(), Ordering::Release);
    interests
}
