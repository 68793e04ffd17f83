//! Where C comes in: null pointers are refused, a panic becomes EIO, an error becomes `errno`.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_ulong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use libc::{addrinfo, epoll_event, fd_set, hostent, mmsghdr, msghdr, pollfd, sockaddr, socklen_t, timeval};
use unisockets_descriptors::{Reply, Request};

use crate::config::Config;
use crate::sockets::Handled;
use crate::system::{call, errno, set_errno};
use crate::{address, epoll, names, node, options, sockets, transfer};

/// Runs a call; a panic of ours is EIO for the program (it is a bug, and `errmsg` says so). A call that does not fail
/// leaves `errno` as it was, whatever the kernel was asked meanwhile.
fn guard<R: PartialEq + Copy>(failed: R, f: impl FnOnce() -> R) -> R {
    let before = errno();
    node::begin();
    let result = catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        node::remember("a bug in unisockets ended the call; please report it");
        set_errno(libc::EIO);
        failed
    });
    if result == failed {
        node::failed_with(errno());
    } else {
        set_errno(before);
    }
    result
}

fn number(value: c_int) -> usize {
    value as isize as usize
}

/// Ends a call that either was done here or is for the operating system.
fn settle<T>(
    outcome: Result<Handled<T>, c_int>,
    system: impl FnOnce() -> isize,
    here: impl FnOnce(T) -> c_int,
) -> c_int {
    match outcome {
        Ok(Handled::Here(value)) => here(value),
        Ok(Handled::System) => system() as c_int,
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

fn fail(errno: c_int) -> c_int {
    set_errno(errno);
    -1
}

/// `socket(2)`.
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: only numbers are passed.
    (unsafe { call(libc::SYS_socket, [number(domain), number(kind), number(protocol), 0, 0, 0]) }) as c_int
}

/// `bind(2)`.
///
/// # Safety
/// `address` must be null or valid for `len` bytes.
pub unsafe fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the caller has promised it.
    let system = || unsafe { call(libc::SYS_bind, [number(fd), address as usize, len as usize, 0, 0, 0]) };
    guard(-1, || {
        // SAFETY: the caller has promised it.
        let outcome = match unsafe { address::read(address, len) } {
            Ok(Some(address)) => sockets::bind(fd, address),
            Ok(None) => Ok(Handled::System),
            Err(errno) => Err(errno),
        };
        settle(outcome, system, |()| 0)
    })
}

/// `listen(2)`.
pub fn listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: only numbers are passed.
    let system = || unsafe { call(libc::SYS_listen, [number(fd), number(backlog), 0, 0, 0, 0]) };
    guard(-1, || settle(sockets::listen(fd, backlog), system, |()| 0))
}

/// `accept4(2)`, and `accept(2)` without flags.
///
/// # Safety
/// `len` must be null or valid, and `address` null or valid for as many bytes as it says.
pub unsafe fn accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
    let arguments = [number(fd), address as usize, len as usize, number(flags), 0, 0];
    // SAFETY: the caller has promised it.
    let system = || unsafe { call(libc::SYS_accept4, arguments) };
    guard(-1, || {
        settle(sockets::accept(fd, flags), system, |(accepted, peer)| {
            if let (Some(peer), false) = (peer, address.is_null()) {
                let bytes = address::bytes(peer.address, peer.family);
                // SAFETY: the caller has promised it.
                unsafe { address::give(&bytes, address, len) };
            }
            accepted
        })
    })
}

/// `connect(2)`.
///
/// # Safety
/// `address` must be null or valid for `len` bytes.
pub unsafe fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the caller has promised it.
    let system = || unsafe { call(libc::SYS_connect, [number(fd), address as usize, len as usize, 0, 0, 0]) };
    guard(-1, || {
        // SAFETY: the caller has promised it.
        let family = unsafe { address::family(address, len) };
        if family == Some(libc::AF_UNSPEC) {
            return settle(sockets::disconnect(fd), system, |()| 0);
        }
        // SAFETY: the caller has promised it.
        let outcome = match unsafe { address::read(address, len) } {
            Ok(Some(address)) => sockets::connect(fd, address),
            Ok(None) => Ok(Handled::System),
            Err(errno) => Err(errno),
        };
        settle(outcome, system, |()| 0)
    })
}

/// `shutdown(2)`.
pub fn shutdown(fd: c_int, how: c_int) -> c_int {
    // SAFETY: only numbers are passed.
    let system = || unsafe { call(libc::SYS_shutdown, [number(fd), number(how), 0, 0, 0, 0]) };
    guard(-1, || settle(sockets::shutdown(fd, how), system, |()| 0))
}

/// `close(2)`.
pub fn close(fd: c_int) -> c_int {
    guard(-1, || sockets::close(fd) as c_int)
}

/// `getsockname(2)`.
///
/// # Safety
/// `len` must be valid, and `address` valid for as many bytes as it says.
pub unsafe fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    let arguments = [number(fd), address as usize, len as usize, 0, 0, 0];
    // SAFETY: the caller has promised it.
    let system = || unsafe { call(libc::SYS_getsockname, arguments) };
    // SAFETY: as above.
    guard(-1, || settle(Ok(sockets::own_address(fd)), system, |own| unsafe { give(own, address, len) }))
}

/// `getpeername(2)`.
///
/// # Safety
/// As [`getsockname`].
pub unsafe fn getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    let arguments = [number(fd), address as usize, len as usize, 0, 0, 0];
    // SAFETY: the caller has promised it.
    let system = || unsafe { call(libc::SYS_getpeername, arguments) };
    // SAFETY: as above.
    guard(-1, || settle(sockets::peer_address(fd), system, |peer| unsafe { give(peer, address, len) }))
}

/// # Safety
/// As [`getsockname`].
unsafe fn give(
    named: (std::net::SocketAddr, unisockets_descriptors::Family),
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the caller has promised it.
    let Some(room) = (unsafe { len.as_ref() }) else {
        return fail(libc::EFAULT);
    };
    if c_int::try_from(*room).is_err() {
        return fail(libc::EINVAL);
    }
    if address.is_null() && *room > 0 {
        return fail(libc::EFAULT);
    }
    // SAFETY: the caller has promised it.
    unsafe { address::give(&address::bytes(named.0, named.1), address, len) };
    0
}

/// `send(2)`.
///
/// # Safety
/// `data` must be valid for `len` bytes.
pub unsafe fn send(fd: c_int, data: *const c_void, len: usize, flags: c_int) -> isize {
    // SAFETY: the caller has promised it.
    unsafe { sendto(fd, data, len, flags, std::ptr::null(), 0) }
}

/// `sendto(2)`.
///
/// # Safety
/// `data` must be valid for `len` bytes, and `to` null or valid for `to_len`.
pub unsafe fn sendto(
    fd: c_int,
    data: *const c_void,
    len: usize,
    flags: c_int,
    to: *const sockaddr,
    to_len: socklen_t,
) -> isize {
    // SAFETY: the caller has promised it.
    guard(-1, || transfer::result(unsafe { transfer::sendto(fd, data, len, flags, (to, to_len)) }))
}

/// `sendmsg(2)`.
///
/// # Safety
/// `message` must be what the call wants.
pub unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> isize {
    // SAFETY: the caller has promised it.
    guard(-1, || transfer::result(unsafe { transfer::sendmsg(fd, message, flags) }))
}

/// `sendmmsg(2)`.
///
/// # Safety
/// `messages` must be valid for `count` entries.
pub unsafe fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: u32, flags: c_int) -> c_int {
    // SAFETY: the caller has promised it.
    guard(-1, || transfer::result(unsafe { transfer::sendmmsg(fd, messages, count, flags) }) as c_int)
}

/// `recv(2)`.
///
/// # Safety
/// `data` must be valid for `len` bytes.
pub unsafe fn recv(fd: c_int, data: *mut c_void, len: usize, flags: c_int) -> isize {
    // SAFETY: the caller has promised it.
    unsafe { recvfrom(fd, data, len, flags, std::ptr::null_mut(), std::ptr::null_mut()) }
}

/// `recvfrom(2)`.
///
/// # Safety
/// `data` must be valid for `len` bytes, `from_len` null or valid, and `from` null or valid for as many bytes as it
/// says.
pub unsafe fn recvfrom(
    fd: c_int,
    data: *mut c_void,
    len: usize,
    flags: c_int,
    from: *mut sockaddr,
    from_len: *mut socklen_t,
) -> isize {
    // SAFETY: the caller has promised it.
    guard(-1, || transfer::result(unsafe { transfer::recvfrom(fd, data, len, flags, (from, from_len)) }))
}

/// `recvmsg(2)`.
///
/// # Safety
/// `message` must be what the call wants.
pub unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> isize {
    // SAFETY: the caller has promised it.
    guard(-1, || transfer::result(unsafe { transfer::recvmsg(fd, message, flags) }))
}

/// `recvmmsg(2)`.
///
/// # Safety
/// `messages` must be valid for `count` entries, and `timeout` null or valid.
pub unsafe fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: u32,
    flags: c_int,
    timeout: *const libc::timespec,
) -> c_int {
    // SAFETY: the caller has promised it.
    guard(-1, || transfer::result(unsafe { transfer::recvmmsg(fd, messages, count, flags, timeout) }) as c_int)
}

/// `getsockopt(2)`.
///
/// # Safety
/// `len` must be valid, and `value` valid for as many bytes as it says.
pub unsafe fn getsockopt(fd: c_int, level: c_int, option: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int {
    let arguments = [number(fd), number(level), number(option), value as usize, len as usize, 0];
    // SAFETY: the caller has promised it.
    let system = || unsafe { call(libc::SYS_getsockopt, arguments) };
    guard(-1, || {
        settle(options::get(fd, level, option), system, |bytes| {
            // SAFETY: the caller has promised it.
            let Some(room) = (unsafe { len.as_mut() }) else {
                return fail(libc::EFAULT);
            };
            let Ok(asked) = usize::try_from(*room as c_int) else {
                return fail(libc::EINVAL);
            };
            let given = asked.min(bytes.len());
            if value.is_null() && given > 0 {
                return fail(libc::EFAULT);
            }
            if given > 0 {
                // SAFETY: the place has room for so many bytes.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.cast(), given) };
            }
            *room = given as socklen_t;
            0
        })
    })
}

/// `setsockopt(2)`.
///
/// # Safety
/// `value` must be valid for `len` bytes.
pub unsafe fn setsockopt(fd: c_int, level: c_int, option: c_int, value: *const c_void, len: socklen_t) -> c_int {
    let arguments = [number(fd), number(level), number(option), value as usize, len as usize, 0];
    // SAFETY: the caller has promised it.
    let system = || unsafe { call(libc::SYS_setsockopt, arguments) };
    guard(-1, || {
        if value.is_null()
            && len > 0
            && let Some(outcome) = options::set_from_nowhere(fd, level, option, len)
        {
            return settle(outcome, system, |()| 0);
        }
        if value.is_null() || len as usize > unisockets_descriptors::Option::VALUE_LEN_MAX {
            return system() as c_int;
        }
        // SAFETY: the caller has promised it.
        let bytes = unsafe { std::slice::from_raw_parts(value.cast::<u8>(), len as usize) };
        settle(options::set(fd, level, option, bytes), system, |()| 0)
    })
}

/// `poll(2)`: virtual descriptors are the kernel's, so this is its own call.
///
/// # Safety
/// `wanted` must be valid for `count` entries.
pub unsafe fn poll(wanted: *mut pollfd, count: c_ulong, timeout_ms: c_int) -> c_int {
    // SAFETY: the caller has promised it.
    unsafe { libc::poll(wanted, count, timeout_ms) }
}

/// `select(2)`: the kernel's own call, as [`poll`].
///
/// # Safety
/// Each set and the time must be null or valid.
pub unsafe fn select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the caller has promised it.
    unsafe { libc::select(count, read, write, except, timeout) }
}

/// `epoll_ctl(2)`: an ordinary socket that an epoll watches stays watched when it becomes virtual.
///
/// # Safety
/// `event` must be null or valid.
pub unsafe fn epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    // SAFETY: the caller has promised it.
    let event = unsafe { event.as_mut() };
    guard(-1, || epoll::control(epoll, operation, fd, event) as c_int)
}

/// `ioctl(2)` with one argument: the kernel answers FIONREAD and FIONBIO for virtual descriptors as for any other.
///
/// # Safety
/// `argument` must be what the request wants.
pub unsafe fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the caller has promised it.
    (unsafe { call(libc::SYS_ioctl, [number(fd), request as usize, argument as usize, 0, 0, 0]) }) as c_int
}

/// `fcntl(2)` with one argument.
///
/// # Safety
/// `argument` must be what the command wants.
pub unsafe fn fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: the caller has promised it.
    (unsafe { call(libc::SYS_fcntl, [number(fd), number(command), argument as usize, 0, 0, 0]) }) as c_int
}

/// `getaddrinfo(3)`.
///
/// # Safety
/// The arguments must be what the call wants.
pub unsafe fn getaddrinfo(
    host: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    result: *mut *mut addrinfo,
) -> c_int {
    // SAFETY: the caller has promised it.
    guard(libc::EAI_SYSTEM, || names::told(unsafe { names::getaddrinfo(host, service, hints, result) }))
}

/// `freeaddrinfo(3)`.
///
/// # Safety
/// `list` must be null or come from [`getaddrinfo`].
pub unsafe fn freeaddrinfo(list: *mut addrinfo) {
    guard(false, || {
        // SAFETY: the caller has promised it.
        unsafe { names::free(list) };
        true
    });
}

/// `getnameinfo(3)`.
///
/// # Safety
/// The arguments must be what the call wants.
pub unsafe fn getnameinfo(
    address: *const sockaddr,
    len: socklen_t,
    host: *mut c_char,
    host_len: socklen_t,
    service: *mut c_char,
    service_len: socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller has promised it.
    let outcome = || unsafe { names::getnameinfo((address, len), (host, host_len), (service, service_len), flags) };
    guard(libc::EAI_SYSTEM, || names::told(outcome()))
}

/// `gethostbyname(3)`.
///
/// # Safety
/// `name` must be a C string.
pub unsafe fn gethostbyname(name: *const c_char) -> *mut hostent {
    // SAFETY: the caller has promised it.
    guard(std::ptr::null_mut(), || unsafe { names::gethostbyname(name) })
}

/// Joins a network with these settings; 0, or -1 with `errno` and a text.
pub fn up(config: &Config) -> c_int {
    guard(-1, || match node::up(config) {
        Ok(_) => 0,
        Err(errno) => fail(errno),
    })
}

/// Refuses settings, and remembers why.
pub fn refuse(text: &str) -> c_int {
    guard(-1, || {
        node::remember(text);
        fail(libc::EINVAL)
    })
}

/// Leaves the network once every socket has drained.
pub fn down() -> c_int {
    guard(-1, || match node::down() {
        Ok(()) => 0,
        Err(errno) => fail(errno),
    })
}

thread_local! {
    static STATUS: RefCell<CString> = RefCell::new(CString::default());
}

/// Returns the node's status as a JSON object, valid until the thread's next call; null on failure.
pub fn status() -> *const c_char {
    guard(std::ptr::null(), || match node::ask(&Request::Status) {
        Ok((Reply::Status { json }, _)) => {
            let text = CString::new(json).unwrap_or_default();
            let kept = STATUS.try_with(|status| {
                let mut status = status.borrow_mut();
                *status = text;
                status.as_ptr()
            });
            kept.unwrap_or(std::ptr::null())
        }
        Ok(_) => {
            set_errno(libc::EPROTO);
            std::ptr::null()
        }
        Err(errno) => {
            set_errno(errno);
            std::ptr::null()
        }
    })
}

/// Starts a capture into a file, or ends it for a null pointer.
///
/// # Safety
/// `path` must be null or a C string.
pub unsafe fn capture(path: *const c_char) -> c_int {
    guard(-1, || {
        // SAFETY: the caller has promised it.
        let path = (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) });
        let path = match path.map(CStr::to_str).transpose() {
            Ok(path) => path,
            Err(_) => return fail(libc::EINVAL),
        };
        // The node has another working directory.
        let absolute = path.map(|path| std::path::absolute(path).map(|path| path.to_string_lossy().into_owned()));
        match absolute.transpose() {
            Ok(path) => match node::ask(&Request::Capture { path }) {
                Ok(_) => 0,
                Err(errno) => fail(errno),
            },
            Err(error) => fail(error.raw_os_error().unwrap_or(libc::EINVAL)),
        }
    })
}

/// Returns the library's version.
pub fn version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Returns a sentence about the last failure of this thread, valid until its next call; empty if there was none.
pub fn errmsg() -> *const c_char {
    node::last(|text| text.as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_eio_for_the_program() {
        set_errno(0);
        assert_eq!(guard(-1, || -> c_int { panic!("a bug, planted by this test") }), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EIO));
        // SAFETY: the text is a C string of this thread's, until its next call.
        let text = unsafe { CStr::from_ptr(errmsg()) };
        assert!(text.to_str().unwrap().contains("a bug in unisockets"), "{text:?}");
        assert_eq!(guard(-1, || 0), 0, "the next call works");
    }
}
