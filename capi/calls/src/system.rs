//! The operating system's own calls, past every library that stands before it.
//!
//! They are made by number, so that the preloaded library, which has their names, does not call itself.

use std::ffi::{CStr, CString, c_int, c_long, c_void};
use std::io;
use std::mem::size_of;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use libc::{sockaddr, sockaddr_un, socklen_t};

use crate::names::System;

/// Linux's numbers, as `errno` has them.
pub(crate) type Errno = c_int;

/// Functions of the C library that a preloaded library stands before.
static SYSTEM: OnceLock<System> = OnceLock::new();

/// Says where the C library's own functions are, for a library that has their names itself. Only the first word counts.
pub fn use_system(system: System) {
    let _ = SYSTEM.set(system);
}

pub(crate) fn system() -> &'static System {
    SYSTEM.get_or_init(System::linked)
}

/// Makes a system call; its arguments must be what the call wants.
///
/// # Safety
/// Pointers among the arguments must be valid for what the kernel does with them, as the manual page of the call says.
pub(crate) unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller has promised that the arguments are the call's.
    unsafe { libc::syscall(number, a, b, c, d, e, f) as isize }
}

pub(crate) fn errno() -> Errno {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

pub(crate) fn set_errno(errno: Errno) {
    // SAFETY: the C library's errno of this thread lives as long as the thread.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: see above; no other thread writes to it.
    unsafe { *place = errno };
}

fn int(fd: RawFd) -> usize {
    fd as isize as usize
}

/// Turns a result of a system call into one of Rust.
pub(crate) fn checked(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| errno())
}

/// A name in the abstract namespace, without its leading zero. It lies on the stack: `close` and its like may be called
/// where nothing may be allocated (signal-safety(7)).
pub(crate) struct AbstractName {
    bytes: [u8; 107],
    len: usize,
}

impl std::ops::Deref for AbstractName {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Returns the AF_UNIX name of a descriptor's end, or of its peer's; nothing if it is another kind of descriptor, or has
/// no name in the abstract namespace.
fn abstract_name(number: c_long, fd: RawFd) -> Option<AbstractName> {
    let mut address = empty_name();
    let mut len = size_of::<sockaddr_un>() as socklen_t;
    let place = (&raw mut address) as usize;
    // SAFETY: the kernel writes as many bytes as `len` says into the address, and the length itself.
    let result = unsafe { call(number, [int(fd), place, (&raw mut len) as usize, 0, 0, 0]) };
    if result < 0 {
        return None;
    }
    name_of(&address, len)
}

pub(crate) fn empty_name() -> sockaddr_un {
    sockaddr_un { sun_family: 0, sun_path: [0; 108] }
}

/// Returns the abstract name in an address that the kernel has filled.
pub(crate) fn name_of(address: &sockaddr_un, len: socklen_t) -> Option<AbstractName> {
    let path_len = (len as usize).checked_sub(2)?.min(address.sun_path.len());
    if c_int::from(address.sun_family) != libc::AF_UNIX || path_len < 2 || address.sun_path[0] != 0 {
        return None;
    }
    let mut name = AbstractName { bytes: [0; 107], len: path_len - 1 };
    for (place, byte) in name.bytes.iter_mut().zip(&address.sun_path[1..path_len]) {
        *place = *byte as u8;
    }
    Some(name)
}

/// Makes an address of an abstract name.
pub(crate) fn name_address(name: &str) -> (sockaddr_un, socklen_t) {
    let mut address = empty_name();
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (place, byte) in address.sun_path[1..].iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    (address, (2 + 1 + name.len().min(107)) as socklen_t)
}

pub(crate) fn own_name(fd: RawFd) -> Option<AbstractName> {
    abstract_name(libc::SYS_getsockname, fd)
}

pub(crate) fn peer_name(fd: RawFd) -> Option<AbstractName> {
    abstract_name(libc::SYS_getpeername, fd)
}

/// Connects an AF_UNIX descriptor to an abstract name; `None` takes its peer away.
pub(crate) fn connect_name(fd: RawFd, name: Option<&str>) -> Result<(), Errno> {
    let (address, len) = match name {
        Some(name) => name_address(name),
        // AF_UNSPEC is zero (connect(2)).
        None => (empty_name(), 2),
    };
    // SAFETY: the address is as long as the kernel is told.
    let result = unsafe { call(libc::SYS_connect, [int(fd), (&raw const address) as usize, len as usize, 0, 0, 0]) };
    checked(result).map(|_| ())
}

/// Reads an option that is an `int` from the kernel.
pub(crate) fn kernel_int(fd: RawFd, level: c_int, name: c_int) -> Result<c_int, Errno> {
    let mut value = [0; 4];
    kernel_option(fd, level, name, &mut value)?;
    Ok(c_int::from_ne_bytes(value))
}

/// Reads an option from the kernel; returns how many bytes it has.
pub(crate) fn kernel_option(fd: RawFd, level: c_int, name: c_int, value: &mut [u8]) -> Result<usize, Errno> {
    let mut len = value.len() as socklen_t;
    let arguments = [int(fd), int(level), int(name), value.as_mut_ptr() as usize, (&raw mut len) as usize, 0];
    // SAFETY: the kernel writes at most `len` bytes to the value, and the length itself.
    checked(unsafe { call(libc::SYS_getsockopt, arguments) })?;
    Ok(len as usize)
}

/// Sets an option in the kernel.
pub(crate) fn set_kernel_option(fd: RawFd, level: c_int, name: c_int, value: &[u8]) -> Result<(), Errno> {
    let arguments = [int(fd), int(level), int(name), value.as_ptr() as usize, value.len(), 0];
    // SAFETY: the kernel reads as many bytes of the value as it has.
    checked(unsafe { call(libc::SYS_setsockopt, arguments) }).map(|_| ())
}

/// `epoll_ctl`.
pub(crate) fn epoll_ctl(epoll: RawFd, operation: c_int, fd: RawFd, event: Option<&mut libc::epoll_event>) -> isize {
    let event = event.map_or(0, |event| (&raw mut *event) as usize);
    // SAFETY: the kernel reads the event, where there is one.
    unsafe { call(libc::SYS_epoll_ctl, [int(epoll), int(operation), int(fd), event, 0, 0]) }
}

/// `fcntl` with a number.
pub(crate) fn fcntl_int(fd: RawFd, command: c_int, argument: c_int) -> Result<c_int, Errno> {
    // SAFETY: the commands used here take a number, no pointer.
    checked(unsafe { call(libc::SYS_fcntl, [int(fd), int(command), int(argument), 0, 0, 0]) })
        .map(|value| value as c_int)
}

pub(crate) fn shutdown(fd: RawFd, how: c_int) -> Result<(), Errno> {
    // SAFETY: only numbers are passed.
    checked(unsafe { call(libc::SYS_shutdown, [int(fd), int(how), 0, 0, 0, 0]) }).map(|_| ())
}

pub(crate) fn is_nonblocking(fd: RawFd) -> bool {
    fcntl_int(fd, libc::F_GETFL, 0).is_ok_and(|flags| flags & libc::O_NONBLOCK != 0)
}

/// Puts one descriptor in the place of another.
pub(crate) fn replace(new: &OwnedFd, old: RawFd, flags: c_int) -> Result<(), Errno> {
    let new = std::os::fd::AsRawFd::as_raw_fd(new);
    // SAFETY: only numbers are passed; whoever holds `old` asked for it to be replaced.
    checked(unsafe { call(libc::SYS_dup3, [int(new), int(old), int(flags), 0, 0, 0]) }).map(|_| ())
}

/// Returns an address of an ordinary socket as the kernel has it, if there is one.
fn kernel_address(which: c_long, fd: RawFd) -> Option<[u8; 128]> {
    let mut place = [0u8; 128];
    let mut len = place.len() as socklen_t;
    let arguments = [int(fd), place.as_mut_ptr() as usize, (&raw mut len) as usize, 0, 0, 0];
    // SAFETY: the kernel writes as many bytes as `len` says, and the length itself.
    (unsafe { call(which, arguments) == 0 }).then_some(place)
}

/// Returns whether an ordinary socket is connected.
pub(crate) fn peer_exists(fd: RawFd) -> bool {
    kernel_address(libc::SYS_getpeername, fd).is_some()
}

/// Returns whether an ordinary internet socket has no port yet.
pub(crate) fn is_unbound(fd: RawFd) -> bool {
    kernel_address(libc::SYS_getsockname, fd).is_some_and(|address| address[2..4] == [0, 0])
}

/// Returns how long a descriptor waits to send (SO_SNDTIMEO); nothing if it waits for ever.
pub(crate) fn send_timeout(fd: RawFd) -> Option<std::time::Duration> {
    let mut value = [0; 16];
    let len = kernel_option(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &mut value).ok()?;
    let seconds = i64::from_ne_bytes(*value.first_chunk::<8>()?);
    let micros = i64::from_ne_bytes(*value[8..].first_chunk::<8>()?);
    let time = std::time::Duration::new(u64::try_from(seconds).ok()?, u32::try_from(micros).ok()?.checked_mul(1_000)?);
    (len == 16 && !time.is_zero()).then_some(time)
}

/// Waits until something can be received, as long as the descriptor waits (SO_RCVTIMEO), and over signals whose actions
/// say so (SA_RESTART); it stays where it is.
///
/// # Errors
/// EAGAIN when the time is over, EINTR.
pub(crate) fn await_message(fd: RawFd) -> Result<(), Errno> {
    let mut byte = 0u8;
    let place = (&raw mut byte) as usize;
    // SAFETY: the place has room for the one byte that is asked for.
    checked(unsafe { call(libc::SYS_recvfrom, [int(fd), place, 1, int(libc::MSG_PEEK), 0, 0]) }).map(|_| ())
}

/// Makes a socket of the operating system.
pub(crate) fn socket(domain: c_int, kind: c_int) -> Result<RawFd, Errno> {
    // SAFETY: only numbers are passed.
    checked(unsafe { call(libc::SYS_socket, [int(domain), int(kind), 0, 0, 0, 0]) }).map(|fd| fd as RawFd)
}

pub(crate) fn close(fd: RawFd) -> isize {
    // SAFETY: the program has asked for it.
    unsafe { call(libc::SYS_close, [int(fd), 0, 0, 0, 0, 0]) }
}

/// Waits for a descriptor; returns what `poll` says of it, 0 when the time is over.
pub(crate) fn poll_one(fd: RawFd, events: i16, timeout: Option<std::time::Duration>) -> Result<i16, Errno> {
    let mut wanted = libc::pollfd { fd, events, revents: 0 };
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: c_long::from(timeout.subsec_nanos()),
    });
    let time = time.as_ref().map_or(0, |time| (&raw const *time) as usize);
    // SAFETY: one entry is passed, and a time or none.
    checked(unsafe { call(libc::SYS_ppoll, [(&raw mut wanted) as usize, 1, time, 0, 0, 0]) })?;
    Ok(wanted.revents)
}

/// Sends a byte without waiting.
pub(crate) fn send_byte(fd: RawFd, byte: u8) {
    let flags = int(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    // SAFETY: one byte is read.
    unsafe { call(libc::SYS_sendto, [int(fd), (&raw const byte) as usize, 1, flags, 0, 0]) };
}

/// `sendto` of bytes that the program gave.
///
/// # Safety
/// `data` must be valid for `len` bytes, and `address` for `address_len`.
pub(crate) unsafe fn sendto(
    fd: RawFd,
    data: *const c_void,
    len: usize,
    flags: c_int,
    address: (*const sockaddr, socklen_t),
) -> isize {
    let arguments = [int(fd), data as usize, len, int(flags), address.0 as usize, address.1 as usize];
    // SAFETY: the caller has promised it.
    unsafe { call(libc::SYS_sendto, arguments) }
}

/// `recvmsg` of one byte with a descriptor.
pub(crate) fn recv_descriptor(fd: RawFd, flags: c_int) -> Result<Option<OwnedFd>, Errno> {
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0u64; 4];
    // SAFETY: a message of zeros is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = std::mem::size_of_val(&control) as _;
    // SAFETY: every part of the message lives until the call returns.
    let received = unsafe { call(libc::SYS_recvmsg, [int(fd), (&raw mut message) as usize, int(flags), 0, 0, 0]) };
    if checked(received)? == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has filled the message's control part.
    let head = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: the header lies in the control part, where there is one.
    let Some(header) = (unsafe { head.as_ref() }) else {
        // There was no number for it (unix(7), MSG_CTRUNC).
        return Err(libc::EMFILE);
    };
    if header.cmsg_level != libc::SOL_SOCKET || header.cmsg_type != libc::SCM_RIGHTS {
        return Ok(None);
    }
    // SAFETY: the data of the header follows it.
    let place = unsafe { libc::CMSG_DATA(head) };
    // SAFETY: SCM_RIGHTS carries at least one descriptor.
    let descriptor = unsafe { place.cast::<RawFd>().read_unaligned() };
    // SAFETY: the kernel has just made it for this process, and nobody else knows it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// Whether this program has more rights than who started it (getauxval(3), AT_SECURE): nothing that they say is believed.
pub(crate) fn is_privileged() -> bool {
    // SAFETY: it only reads what the kernel has given this process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Sets a variable of the environment, for programs that this one starts.
pub(crate) fn set_variable(name: &str, value: &str) {
    let (Ok(name), Ok(value)) = (CString::new(name), CString::new(value)) else {
        return;
    };
    // SAFETY: both are C strings; the C library's lock guards its environment against other calls of setenv.
    unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) };
}

/// Takes a variable out of the environment.
pub(crate) fn unset_variable(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: it is a C string; the C library's lock guards its environment.
        unsafe { libc::unsetenv(name.as_ptr()) };
    }
}

/// The last signal (signal(7)), and the bytes of a set of them as the kernel has it.
const SIGNAL_MAX: c_int = 64;
const MASK_LEN: usize = 8;

/// Holds back every signal of this thread; returns what [`let_signals`] wants to know.
pub(crate) fn hold_signals() -> u64 {
    change_mask(libc::SIG_SETMASK, u64::MAX)
}

/// Lets signals come again that came before [`hold_signals`].
pub(crate) fn let_signals(before: u64) {
    change_mask(libc::SIG_SETMASK, before);
}

/// Changes the signals that this thread holds back; returns those that it held back before.
fn change_mask(how: c_int, mask: u64) -> u64 {
    let mut before = 0u64;
    let places = [(&raw const mask) as usize, (&raw mut before) as usize];
    // SAFETY: both sets are as long as the kernel is told.
    unsafe { call(libc::SYS_rt_sigprocmask, [int(how), places[0], places[1], MASK_LEN, 0, 0]) };
    before
}

/// Has the kernel do its own with a signal for which the program has a handler.
fn reset_handler(signal: c_int) {
    /// `struct sigaction` of the kernel: handler, flags, restorer and mask, in words; longer than any.
    type Action = [usize; 8];
    let mut action: Action = [0; 8];
    let place = (&raw mut action) as usize;
    // SAFETY: the kernel writes no more than the structure.
    unsafe { call(libc::SYS_rt_sigaction, [int(signal), 0, place, MASK_LEN, 0, 0]) };
    if action[0] > libc::SIG_IGN {
        let plain: Action = [0; 8];
        // SAFETY: zeros are the kernel's own action.
        unsafe { call(libc::SYS_rt_sigaction, [int(signal), (&raw const plain) as usize, 0, MASK_LEN, 0, 0]) };
    }
}

/// Starts a program without a trace in its parent: no SIGCHLD comes of it, and no `wait` of the program's finds it.
/// Returns the process, whose end [`wait`] waits for.
pub(crate) fn spawn_unseen(
    path: &CStr,
    arguments: &[CString],
    environment: &[CString],
    output: RawFd,
) -> Result<c_int, Errno> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    // Made before the child is, which may allocate nothing.
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    let image = [path.as_ptr() as usize, arguments.as_ptr() as usize, environment.as_ptr() as usize, 0, 0, 0];
    // No handler of the program's runs in the child: signals wait until it has none.
    let before = change_mask(libc::SIG_SETMASK, u64::MAX);
    // SAFETY: without flags and stack this is fork(2) with no signal at the end.
    let child = unsafe { call(libc::SYS_clone, [0; 6]) };
    if child != 0 {
        let child = checked(child).map(|child| child as c_int);
        change_mask(libc::SIG_SETMASK, before);
        return child;
    }
    for target in [1, 2] {
        // SAFETY: only numbers are passed; the child has one thread.
        unsafe { call(libc::SYS_dup3, [int(output), target, 0, 0, 0, 0]) };
    }
    // What the program holds, such as a port that it listens on, ends with the program. Before Linux 5.11 it does not.
    // SAFETY: only numbers are passed.
    unsafe { call(libc::SYS_close_range, [3, u32::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize, 0, 0, 0]) };
    for signal in 1..=SIGNAL_MAX {
        // What is ignored stays so (signal(7)); a handler would not be there after the exec.
        reset_handler(signal);
    }
    change_mask(libc::SIG_SETMASK, 0);
    // SAFETY: these are C strings, and arrays of them that end in null; the child has its own copy.
    unsafe { call(libc::SYS_execve, image) };
    // SAFETY: ends the child, which has nothing to clean up.
    unsafe { call(libc::SYS_exit_group, [127, 0, 0, 0, 0, 0]) };
    unreachable!("exit_group does not return")
}

/// Waits for the end of a process of [`spawn_unseen`].
pub(crate) fn wait(child: c_int) {
    // __WALL: whatever signal the child ends with (wait(2)).
    // SAFETY: no status is asked for.
    while unsafe { call(libc::SYS_wait4, [int(child), 0, int(libc::__WALL), 0, 0, 0]) } < 0 && errno() == libc::EINTR {}
}
