//! Descriptors that the runtime watches.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Lets the runtime watch a descriptor.
///
/// # Errors
/// Those of `epoll_ctl(2)`.
pub(super) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor keeps its number, and its description stays open, as long as the `AsyncFd` has it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
