//! What a descriptor is, and how an ordinary one becomes virtual.

use std::ffi::c_int;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use unisockets_descriptors::{Family, Kind, Name, Option as Setting, State};

use crate::epoll;
use crate::system::{self, Errno, kernel_int, kernel_option, set_kernel_option};
use crate::waiting;

/// Finds out whether a descriptor is virtual, and what it is.
pub(crate) fn identify(fd: RawFd) -> Option<Name> {
    Name::parse(&system::own_name(fd)?).ok()
}

/// Descriptors below [`NOTED_MAX`] of which something is known, as bits. A bit may be of a descriptor that is another one
/// by now.
struct Noted([AtomicU64; NOTED_MAX / 64]);
const NOTED_MAX: usize = 65_536;

impl Noted {
    const fn new() -> Noted {
        Noted([const { AtomicU64::new(0) }; NOTED_MAX / 64])
    }

    fn place(&self, fd: RawFd) -> Option<(&AtomicU64, u64)> {
        let fd = usize::try_from(fd).ok()?;
        self.0.get(fd / 64).map(|word| (word, 1 << (fd % 64)))
    }

    fn note(&self, fd: RawFd, is: bool) {
        match self.place(fd) {
            Some((word, bit)) if is => word.fetch_or(bit, Ordering::Relaxed),
            Some((word, bit)) => word.fetch_and(!bit, Ordering::Relaxed),
            None => 0,
        };
    }

    fn has(&self, fd: RawFd) -> bool {
        self.place(fd).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }
}

/// Those that were bound or listened here: a send would wait on them for ever.
static BOUND: Noted = Noted::new();
/// Those that listen, so that nobody asks the node each time that no connection waits.
static LISTENING: Noted = Noted::new();

/// Notes that a descriptor carries connections, not bytes.
pub(crate) fn note_bound(fd: RawFd) {
    BOUND.note(fd, true);
    LISTENING.note(fd, false);
}

/// Returns whether a descriptor carries connections, not bytes.
pub(crate) fn is_bound(fd: RawFd) -> bool {
    if !BOUND.has(fd) {
        return false;
    }
    let is_bound = identify(fd).is_some_and(|name| name.state == State::Bound);
    if !is_bound {
        BOUND.note(fd, false);
    }
    is_bound
}

/// Notes that a descriptor listens.
pub(crate) fn note_listening(fd: RawFd) {
    LISTENING.note(fd, true);
}

/// Returns whether a descriptor is known to listen.
pub(crate) fn is_listening(fd: RawFd) -> bool {
    LISTENING.has(fd)
}

/// Finds the other end of a connection or of a connected datagram socket.
pub(crate) fn peer(fd: RawFd) -> Option<Name> {
    Name::parse(&system::peer_name(fd)?).ok()
}

/// An ordinary socket of the operating system that could become virtual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inet {
    pub(crate) kind: Kind,
    pub(crate) family: Family,
}

/// Tells a socket from every other one: another thread may close a descriptor's number, and a third have it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie(Option<[u8; 8]>);

/// Returns what a socket is known by (SO_COOKIE, socket(7)).
pub(crate) fn cookie(fd: RawFd) -> Cookie {
    let mut value = [0; 8];
    let known = kernel_option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut value).is_ok_and(|len| len == value.len());
    Cookie(known.then_some(value))
}

/// Finds out whether a descriptor is a TCP or UDP socket of the operating system.
pub(crate) fn inet(fd: RawFd) -> Option<Inet> {
    let family = match kernel_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).ok()? {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let kind = match kernel_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL).ok()? {
        libc::IPPROTO_TCP => Kind::Tcp,
        libc::IPPROTO_UDP => Kind::Udp,
        _ => return None,
    };
    Some(Inet { kind, family })
}

/// Whether a descriptor is a TCP socket, virtual or of the operating system.
pub(crate) fn is_stream(fd: RawFd) -> bool {
    match identify(fd) {
        Some(name) => name.state != State::Datagram,
        None => inet(fd).is_some_and(|inet| inet.kind == Kind::Tcp),
    }
}

/// Options that a program may set before it says where to, and that a virtual socket has too.
const CARRIED: &[(c_int, c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
];

/// Sizes of buffers, which are only carried over where a program has set them.
const SIZES: [(c_int, c_int); 2] = [(libc::SOL_SOCKET, libc::SO_SNDBUF), (libc::SOL_SOCKET, libc::SO_RCVBUF)];

/// Reads from an ordinary socket what a program has set on it.
pub(crate) fn carried(fd: RawFd, inet: Inet) -> Vec<Setting> {
    let suits = |level: c_int| match level {
        libc::IPPROTO_TCP => inet.kind == Kind::Tcp,
        libc::IPPROTO_IPV6 => inet.family == Family::V6,
        _ => true,
    };
    let fresh = Fresh::new(inet);
    let read = |fd: RawFd, level: c_int, name: c_int| {
        let mut value = [0; 16];
        let len = kernel_option(fd, level, name, &mut value).ok()?;
        Some(value[..len].to_vec())
    };
    let changed = |(level, name): &(c_int, c_int)| {
        let value = read(fd, *level, *name)?;
        let before = fresh.as_ref().and_then(|fresh| read(fresh.0, *level, *name));
        (before.as_ref() != Some(&value)).then_some(Setting { level: *level, name: *name, value })
    };
    let mut settings: Vec<Setting> = CARRIED.iter().filter(|(level, _)| suits(*level)).filter_map(changed).collect();
    // The kernel gives twice what was asked for (socket(7)), and the node doubles again.
    settings.extend(SIZES.iter().filter_map(changed).map(|mut setting| {
        let doubled = setting.value.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        setting.value = (doubled / 2).to_ne_bytes().to_vec();
        setting
    }));
    settings
}

/// An ordinary socket on which nobody has set anything.
struct Fresh(RawFd);

impl Fresh {
    fn new(inet: Inet) -> Option<Fresh> {
        let domain = if inet.family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        let kind = if inet.kind == Kind::Tcp { libc::SOCK_STREAM } else { libc::SOCK_DGRAM };
        system::socket(domain, kind | libc::SOCK_CLOEXEC).ok().map(Fresh)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        system::close(self.0);
    }
}

/// Commands of `fcntl` that the C library's bindings lack (fcntl.h of Linux).
const F_SETSIG: c_int = 10;
const F_GETSIG: c_int = 11;

/// Gives a descriptor what only the kernel knows of another, as far as that is set.
pub(crate) fn inherit(from: RawFd, to: RawFd) {
    for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO, libc::SO_TIMESTAMP, libc::SO_TIMESTAMPNS] {
        let mut value = [0; 16];
        if let Ok(len) = kernel_option(from, libc::SOL_SOCKET, name, &mut value)
            && value[..len].iter().any(|byte| *byte != 0)
        {
            let _ = set_kernel_option(to, libc::SOL_SOCKET, name, &value[..len]);
        }
    }
}

/// Puts a virtual descriptor into the place of the one that a program has, with what only the kernel knows of that:
/// whether it waits, for how long, whether it is closed on exec, which epolls watch it.
///
/// # Errors
/// EBADF if the number is not that of the socket `before` any more.
pub(crate) fn swap(fd: RawFd, before: Cookie, new: &OwnedFd) -> Result<(), Errno> {
    let raw = std::os::fd::AsRawFd::as_raw_fd(new);
    let status = system::fcntl_int(fd, libc::F_GETFL, 0)?;
    let kept = status & (libc::O_NONBLOCK | libc::O_ASYNC);
    system::fcntl_int(raw, libc::F_SETFL, kept)?;
    inherit(fd, raw);
    // Who is told of what happens, and by which signal (fcntl(2)).
    for (get, set) in [(libc::F_GETOWN, libc::F_SETOWN), (F_GETSIG, F_SETSIG)] {
        if let Some(value) = system::fcntl_int(fd, get, 0).ok().filter(|value| *value != 0) {
            system::fcntl_int(raw, set, value)?;
        }
    }
    let close_on_exec = system::fcntl_int(fd, libc::F_GETFD, 0)? & libc::FD_CLOEXEC != 0;
    if cookie(fd) != before {
        return Err(libc::EBADF);
    }
    let waits = waiting::is_waited_on(fd) && inet(fd).is_some_and(|inet| inet.kind == Kind::Udp);
    let old = if waits { system::fcntl_int(fd, libc::F_DUPFD_CLOEXEC, 0).ok() } else { None };
    let replaced = system::replace(new, fd, if close_on_exec { libc::O_CLOEXEC } else { 0 });
    if replaced.is_ok() {
        waiting::note_swap(fd);
        epoll::replay(fd, before);
    }
    if let Some(old) = old {
        if replaced.is_ok() {
            // Threads that wait on it are woken, and go on with what has its place. It says that it is not connected.
            let _ = system::shutdown(old, libc::SHUT_RD);
        }
        system::close(old);
    }
    replaced?;
    Ok(())
}
