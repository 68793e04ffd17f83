//! Sockets: made, bound, connected, named, closed.

use std::ffi::c_int;

use libc::{sockaddr, socklen_t};
use unisockets_calls as calls;

/// Makes a socket (socket(2)).
///
/// It is the operating system's until it is bound or connected to an address of the network, or sends there: then a
/// virtual descriptor takes its place, under the same number and with the options set on it. What was made of it by dup(2)
/// before stays the operating system's.
///
/// Errors: those of socket(2).
#[unsafe(no_mangle)]
pub extern "C" fn unisockets_socket(domain: c_int, type_: c_int, protocol: c_int) -> c_int {
    calls::socket(domain, type_, protocol)
}

/// Binds a socket (bind(2)). An address of the network, and any (INADDR_ANY, in6addr_any), make it virtual; port 0 takes a
/// free one.
///
/// Errors: EADDRINUSE; EADDRNOTAVAIL, the address is another member's; EINVAL, it is bound already; ENETDOWN, there is no
/// node, and unisockets_errmsg() says why; and those of bind(2).
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::bind(fd, address, len) }
}

/// Lets a socket listen (listen(2)). At most `backlog` connections wait for accept in the descriptor, and as many in the
/// node; 4096 is the most.
///
/// Errors: EINVAL, it is connected; EOPNOTSUPP, it is a datagram socket.
#[unsafe(no_mangle)]
pub extern "C" fn unisockets_listen(fd: c_int, backlog: c_int) -> c_int {
    calls::listen(fd, backlog)
}

/// Takes the next connection (accept(2)). SO_RCVTIMEO bounds the waiting.
///
/// Errors: EAGAIN, there is none and the descriptor does not wait; EINVAL, the socket does not listen, or was shut;
/// EINTR.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::accept(fd, address, len, 0) }
}

/// Takes the next connection, with SOCK_NONBLOCK and SOCK_CLOEXEC (accept4(2)).
///
/// Errors: those of unisockets_accept; EINVAL, other flags.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_accept4(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::accept(fd, address, len, flags) }
}

/// Connects a socket (connect(2)). A descriptor that does not wait gives EINPROGRESS; it becomes writable when the
/// connection is there, and SO_ERROR tells how it went. SO_SNDTIMEO bounds the waiting, the node about 127 s.
///
/// Errors: ECONNREFUSED, nobody listens; ETIMEDOUT; EHOSTUNREACH, no such member, or no way to it; ENETUNREACH, a virtual
/// socket and an address outside the network; EINPROGRESS, EALREADY, EISCONN, EINTR; ENETDOWN, there is no node.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::connect(fd, address, len) }
}

/// Shuts one direction, or both (shutdown(2)).
///
/// Errors: ENOTCONN; EINVAL, another value of `how`.
#[unsafe(no_mangle)]
pub extern "C" fn unisockets_shutdown(fd: c_int, how: c_int) -> c_int {
    calls::shutdown(fd, how)
}

/// Closes a descriptor (close(2)). Plain close does as well; this one tells the node at once of a datagram socket that is
/// closed, which it finds out within about a second otherwise.
///
/// Errors: those of close(2).
#[unsafe(no_mangle)]
pub extern "C" fn unisockets_close(fd: c_int) -> c_int {
    calls::close(fd)
}

/// Returns the socket's own address (getsockname(2)).
///
/// Errors: EFAULT, EBADF.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getsockname(fd, address, len) }
}

/// Returns the other end's address (getpeername(2)).
///
/// Errors: ENOTCONN, EFAULT, EBADF.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getpeername(fd, address, len) }
}
