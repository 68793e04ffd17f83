//! Options, and waiting.

use std::ffi::{c_int, c_ulong, c_void};

use libc::{epoll_event, fd_set, pollfd, socklen_t, timeval};
use unisockets_calls as calls;

/// Reads an option (getsockopt(2)). capi/README.md has the table.
///
/// Errors: ENOPROTOOPT, EFAULT, EBADF.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_getsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getsockopt(fd, level, option, value, len) }
}

/// Sets an option (setsockopt(2)). capi/README.md has the table.
///
/// Errors: ENOPROTOOPT; EINVAL, the value; EBADF.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_setsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::setsockopt(fd, level, option, value, len) }
}

/// The number of descriptors for poll(2).
#[allow(non_camel_case_types, reason = "it goes into the header, where C's names are")]
pub type c_nfds = c_ulong;

/// Waits for descriptors (poll(2)): the kernel's own call.
///
/// Errors: those of poll(2).
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_poll(wanted: *mut pollfd, count: c_nfds, timeout_ms: c_int) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::poll(wanted, count, timeout_ms) }
}

/// Waits for descriptors (select(2)): the kernel's own call.
///
/// Errors: those of select(2).
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::select(count, read, write, except, timeout) }
}

/// Says what an epoll watches (epoll_ctl(2)). It is needed only for sockets that are watched before they are bound or
/// connected: they stay watched when they become virtual.
///
/// Errors: those of epoll_ctl(2).
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_epoll_ctl(
    epoll: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::epoll_ctl(epoll, operation, fd, event) }
}

/// Has the kernel's meaning for virtual descriptors too (fcntl(2)). In C it takes any last argument.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::fcntl(fd, command, argument) }
}

/// Has the kernel's meaning for virtual descriptors too: FIONREAD, FIONBIO (ioctl(2)). In C it takes any last argument.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::ioctl(fd, request, argument) }
}
