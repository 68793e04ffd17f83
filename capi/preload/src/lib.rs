//! The C library's own names for the calls on virtual descriptors, to be put before a program with LD_PRELOAD.

#![cfg(target_os = "linux")]

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod syscall;

use std::ffi::{CStr, c_char, c_int, c_void};

use libc::{addrinfo, epoll_event, hostent, mmsghdr, msghdr, sockaddr, socklen_t, timespec};
use unisockets_calls as calls;

/// Finds the function that this library stands before.
fn next<F: Copy>(name: &CStr) -> Option<F> {
    assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "a function is a pointer");
    // SAFETY: the name is a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    // SAFETY: the sizes are equal, and the caller names the type of the function that has this name.
    (!found.is_null()).then(|| unsafe { std::mem::transmute_copy(&found) })
}

/// Says where the C library's own functions are, before anything needs them.
extern "C" fn begin() {
    calls::report_failures();
    let found = (next(c"getaddrinfo"), next(c"freeaddrinfo"), next(c"getnameinfo"));
    if let (Some(getaddrinfo), Some(freeaddrinfo), Some(getnameinfo)) = found {
        calls::use_system(calls::System { getaddrinfo, freeaddrinfo, getnameinfo });
    }
}

/// Runs when the library is loaded (elf(5), DT_INIT_ARRAY).
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// `bind(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::bind(fd, address, len) }
}

/// `listen(2)`.
#[unsafe(no_mangle)]
pub extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    calls::listen(fd, backlog)
}

/// `accept(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::accept(fd, address, len, 0) }
}

/// `accept4(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(fd: c_int, address: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::accept(fd, address, len, flags) }
}

/// `connect(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::connect(fd, address, len) }
}

/// `shutdown(2)`.
#[unsafe(no_mangle)]
pub extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    calls::shutdown(fd, how)
}

/// `close(2)`.
#[unsafe(no_mangle)]
pub extern "C" fn close(fd: c_int) -> c_int {
    calls::close(fd)
}

/// `getsockname(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getsockname(fd, address, len) }
}

/// `getpeername(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getpeername(fd, address, len) }
}

/// `send(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(fd: c_int, data: *const c_void, len: usize, flags: c_int) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::send(fd, data, len, flags) }
}

/// `sendto(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
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

/// `sendmsg(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::sendmsg(fd, message, flags) }
}

/// `sendmmsg(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: u32, flags: c_int) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::sendmmsg(fd, messages, count, flags) }
}

/// `recv(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(fd: c_int, data: *mut c_void, len: usize, flags: c_int) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::recv(fd, data, len, flags) }
}

/// `recvfrom(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvfrom(
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

/// `recvmsg(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> isize {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::recvmsg(fd, message, flags) }
}

/// `recvmmsg(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: u32,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::recvmmsg(fd, messages, count, flags, timeout) }
}

/// `getsockopt(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getsockopt(fd, level, option, value, len) }
}

/// `setsockopt(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::setsockopt(fd, level, option, value, len) }
}

/// `epoll_ctl(2)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::epoll_ctl(epoll, operation, fd, event) }
}

/// `getaddrinfo(3)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    result: *mut *mut addrinfo,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getaddrinfo(node, service, hints, result) }
}

/// `freeaddrinfo(3)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn freeaddrinfo(list: *mut addrinfo) {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::freeaddrinfo(list) }
}

/// `getnameinfo(3)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getnameinfo(
    address: *const sockaddr,
    len: socklen_t,
    host: *mut c_char,
    host_len: socklen_t,
    service: *mut c_char,
    service_len: socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getnameinfo(address, len, host, host_len, service, service_len, flags) }
}

/// `gethostbyname(3)`.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gethostbyname(name: *const c_char) -> *mut hostent {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::gethostbyname(name) }
}

/// `__recv_chk`: `recv` of programs that were built with _FORTIFY_SOURCE.
///
/// # Safety
/// As the manual page of `recv(2)` says, with `room` bytes at `data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recv_chk(fd: c_int, data: *mut c_void, len: usize, room: usize, flags: c_int) -> isize {
    assert!(len <= room, "*** buffer overflow detected ***: recv");
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::recv(fd, data, len, flags) }
}

/// `__recvfrom_chk`: `recvfrom` of programs that were built with _FORTIFY_SOURCE.
///
/// # Safety
/// As the manual page of `recvfrom(2)` says, with `room` bytes at `data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recvfrom_chk(
    fd: c_int,
    data: *mut c_void,
    len: usize,
    room: usize,
    flags: c_int,
    from: *mut sockaddr,
    from_len: *mut socklen_t,
) -> isize {
    assert!(len <= room, "*** buffer overflow detected ***: recvfrom");
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::recvfrom(fd, data, len, flags, from, from_len) }
}
