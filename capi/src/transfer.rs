//! Bytes and datagrams.

use std::ffi::{c_int, c_void};

use libc::{mmsghdr, msghdr, sockaddr, socklen_t, timespec};
use unisockets_calls as calls;

/// Sends bytes of a connection, or a datagram to the connected peer (send(2)). write(2) does the same.
///
/// Errors: EAGAIN; EPIPE with SIGPIPE unless MSG_NOSIGNAL; ECONNRESET; EDESTADDRREQ; EMSGSIZE, more than 65,507 bytes in a
/// datagram; EOPNOTSUPP, MSG_OOB.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_send(fd: c_int, data: *const c_void, len: usize, flags: c_int) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::send(fd, data, len, flags) }
}

/// Sends a datagram to an address (sendto(2)). A socket that was not bound gets a free port.
///
/// Errors: those of unisockets_send; ENETUNREACH, EAFNOSUPPORT.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_sendto(
    fd: c_int,
    data: *const c_void,
    len: usize,
    flags: c_int,
    to: *const sockaddr,
    to_len: socklen_t,
) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::sendto(fd, data, len, flags, to, to_len) }
}

/// Sends what lies in several places (sendmsg(2)). Ancillary data for datagrams is ignored.
///
/// Errors: those of unisockets_sendto.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::sendmsg(fd, message, flags) }
}

/// Sends several messages (sendmmsg(2)); returns how many.
///
/// Errors: those of unisockets_sendmsg, if not even the first was sent.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_sendmmsg(fd: c_int, messages: *mut mmsghdr, count: u32, flags: c_int) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::sendmmsg(fd, messages, count, flags) }
}

/// Receives bytes of a connection, or a datagram (recv(2)); read(2) does the same. 0 is the end of a stream. MSG_PEEK,
/// MSG_WAITALL, MSG_DONTWAIT and MSG_TRUNC are honoured.
///
/// Errors: EAGAIN; ECONNRESET; ETIMEDOUT; ECONNREFUSED, the peer of a connected datagram socket has no socket there;
/// EINVAL, MSG_OOB.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_recv(fd: c_int, data: *mut c_void, len: usize, flags: c_int) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::recv(fd, data, len, flags) }
}

/// Receives a datagram and the address of its sender (recvfrom(2)).
///
/// Errors: those of unisockets_recv.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_recvfrom(
    fd: c_int,
    data: *mut c_void,
    len: usize,
    flags: c_int,
    from: *mut sockaddr,
    from_len: *mut socklen_t,
) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::recvfrom(fd, data, len, flags, from, from_len) }
}

/// Receives into several places (recvmsg(2)), with IP_PKTINFO or IPV6_PKTINFO where the socket wants it.
///
/// Errors: those of unisockets_recv.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::recvmsg(fd, message, flags) }
}

/// Receives several messages (recvmmsg(2)); returns how many. The time is looked at after each message, as on Linux.
///
/// Errors: those of unisockets_recvmsg, if not even the first was received.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: u32,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::recvmmsg(fd, messages, count, flags, timeout) }
}
