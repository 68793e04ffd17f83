//! `bind`, `listen`, `accept`, `connect` and what names the ends: the calls that make descriptors virtual.

use std::ffi::c_int;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use unisockets_descriptors::{Family, Kind, Name, Reply, Request, State};

use crate::config::Route;
use crate::descriptor::{self, Inet, carried, identify, inet, swap};
use crate::node::{self, ask, ask_of};
use crate::system::{self, Errno};
use crate::waiting::Starting;

/// Whether a call is for the operating system, which then gets it unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handled<T> {
    Here(T),
    System,
}

use Handled::{Here, System};

/// Takes the descriptor that an answer brings.
fn brought(answer: (Reply, Option<OwnedFd>)) -> Result<OwnedFd, Errno> {
    // The kernel leaves a descriptor out for which there is no number (unix(7), MSG_CTRUNC).
    answer.1.ok_or(libc::EMFILE)
}

/// `bind`: an ordinary socket that is bound to an address of the network, or to any, becomes virtual.
pub(crate) fn bind(fd: RawFd, address: SocketAddr) -> Result<Handled<()>, Errno> {
    if identify(fd).is_some() {
        return Err(libc::EINVAL);
    }
    let Some(inet) = inet(fd) else {
        return Ok(System);
    };
    let Some(node) = node::node()? else {
        return Ok(System);
    };
    if address.is_ipv6() != (inet.family == Family::V6) {
        // As Linux: an IPv6 address does not fit an IPv4 socket, nor the other way round.
        return Err(if inet.family == Family::V4 { libc::EAFNOSUPPORT } else { libc::EINVAL });
    }
    match node.routes.bind(address.ip()) {
        Route::System => Ok(System),
        Route::Refused => Err(libc::EADDRNOTAVAIL),
        Route::Network => make(fd, inet, address).map(Here),
    }
}

/// Makes a bound virtual socket in the place of an ordinary one.
fn make(fd: RawFd, inet: Inet, address: SocketAddr) -> Result<(), Errno> {
    let Inet { kind, family } = inet;
    let before = descriptor::cookie(fd);
    let request = Request::Bind { kind, family, address, options: carried(fd, inet) };
    swap(fd, before, &brought(ask(&request)?)?)?;
    if kind == Kind::Tcp {
        descriptor::note_bound(fd);
    }
    Ok(())
}

/// Makes a datagram socket virtual that was never bound, so that it can send to the network.
pub(crate) fn make_datagram(fd: RawFd, inet: Inet) -> Result<(), Errno> {
    make(fd, inet, any(inet.family))
}

fn any(family: Family) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::from(([0, 0, 0, 0], 0)),
        Family::V6 => SocketAddr::from(([0u16; 8], 0)),
    }
}

/// `listen`; whoever is bound to nothing is bound to any address by it.
pub(crate) fn listen(fd: RawFd, backlog: c_int) -> Result<Handled<()>, Errno> {
    let Some(name) = identify(fd) else {
        return match inet(fd) {
            Some(inet) if inet.kind == Kind::Tcp && system::is_unbound(fd) => match bind(fd, any(inet.family))? {
                Here(()) => listen(fd, backlog),
                System => Ok(System),
            },
            _ => Ok(System),
        };
    };
    match name.state {
        State::Bound => {
            // Linux takes a negative backlog for the largest (it compares without a sign).
            let backlog = u32::try_from(backlog).unwrap_or(u32::MAX);
            ask_of(&name, &Request::Listen { id: name.id, backlog })?;
            descriptor::note_listening(fd);
            Ok(Here(()))
        }
        State::Stream => Err(libc::EINVAL),
        State::Datagram => Err(libc::EOPNOTSUPP),
    }
}

/// `accept4`: takes the next connection, with the name of its other end.
pub(crate) fn accept(fd: RawFd, flags: c_int) -> Result<Handled<(RawFd, Option<Name>)>, Errno> {
    let Some(name) = identify(fd) else {
        return Ok(System);
    };
    match name.state {
        State::Bound => {}
        State::Stream => return Err(libc::EINVAL),
        State::Datagram => return Err(libc::EOPNOTSUPP),
    }
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
        return Err(libc::EINVAL);
    }
    let passed = if flags & libc::SOCK_CLOEXEC != 0 { libc::MSG_CMSG_CLOEXEC } else { 0 };
    let descriptor = loop {
        match take(fd, passed) {
            Err(libc::EAGAIN) => {
                let waits = !system::is_nonblocking(fd);
                if !descriptor::is_listening(fd) {
                    match listens(&name) {
                        Ok(true) => descriptor::note_listening(fd),
                        Ok(false) => return Err(libc::EINVAL),
                        // Of one that was inherited from a program on another network nobody knows; it works all the same.
                        Err(errno) if waits => return Err(errno),
                        Err(_) => {}
                    }
                }
                if !waits {
                    return Err(libc::EAGAIN);
                }
                system::await_message(fd)?;
            }
            result => break result?,
        }
    };
    // The end of the way means that it was shut (accept(2): EINVAL), or that the node has ended.
    let descriptor = descriptor.ok_or(libc::EINVAL)?;
    system::send_byte(fd, b'a');
    if flags & libc::SOCK_NONBLOCK != 0 {
        system::fcntl_int(descriptor.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK)?;
    }
    descriptor::inherit(fd, descriptor.as_raw_fd());
    let peer = descriptor::peer(descriptor.as_raw_fd());
    Ok(Here((descriptor.into_raw_fd(), peer)))
}

/// Takes the next connection that waits. It stays in its queue where there is no number for it, as on Linux.
fn take(fd: RawFd, flags: c_int) -> Result<Option<OwnedFd>, Errno> {
    let number = system::fcntl_int(fd, libc::F_DUPFD_CLOEXEC, 0)?;
    system::close(number);
    system::recv_descriptor(fd, flags | libc::MSG_DONTWAIT).inspect_err(|errno| {
        // Another thread had the number: the connection was taken, and is lost.
        if *errno == libc::EMFILE {
            system::send_byte(fd, b'a');
        }
    })
}

fn listens(name: &Name) -> Result<bool, Errno> {
    let request = Request::GetOption { id: name.id, level: libc::SOL_SOCKET, name: libc::SO_ACCEPTCONN };
    match ask_of(name, &request)?.0 {
        Reply::Option { value } => Ok(value.iter().any(|byte| *byte != 0)),
        _ => Err(libc::EPROTO),
    }
}

/// `connect`.
pub(crate) fn connect(fd: RawFd, address: SocketAddr) -> Result<Handled<()>, Errno> {
    let Some(name) = identify(fd) else {
        return connect_ordinary(fd, address);
    };
    if address.is_ipv6() && name.family == Family::V4 {
        return Err(libc::EAFNOSUPPORT);
    }
    let is_network = |route: Route| if route == Route::Network { Ok(()) } else { Err(libc::ENETUNREACH) };
    let node = node::of(&name)?;
    match name.state {
        State::Stream => connect_again(fd, &name, address),
        State::Bound => {
            is_network(node.routes.connect(address.ip()))?;
            if listens(&name)? {
                return Err(libc::EISCONN);
            }
            let (id, kind, family) = (Some(name.id), Kind::Tcp, name.family);
            start(fd, &node, &Request::Connect { id, kind, family, address, options: Vec::new() }).map(Here)
        }
        State::Datagram => {
            is_network(node.routes.connect(address.ip()))?;
            connect_datagram(fd, &name, address).map(Here)
        }
    }
}

fn connect_ordinary(fd: RawFd, address: SocketAddr) -> Result<Handled<()>, Errno> {
    let Some(inet) = inet(fd) else {
        return Ok(System);
    };
    let Some(node) = node::node()? else {
        return Ok(System);
    };
    match node.routes.connect(address.ip()) {
        Route::System => return Ok(System),
        Route::Refused => return Err(libc::ENETUNREACH),
        Route::Network => {}
    }
    if system::peer_exists(fd) {
        return Ok(System);
    }
    if address.is_ipv6() && inet.family == Family::V4 {
        return Err(libc::EAFNOSUPPORT);
    }
    let Inet { kind, family } = inet;
    match kind {
        Kind::Tcp => {
            let options = carried(fd, inet);
            start(fd, &node, &Request::Connect { id: None, kind, family, address, options }).map(Here)
        }
        Kind::Udp => {
            make_datagram(fd, inet)?;
            let name = identify(fd).ok_or(libc::EPROTO)?;
            connect_datagram(fd, &name, address).map(Here)
        }
    }
}

/// `connect` on a socket that has, or had, a connection.
fn connect_again(fd: RawFd, name: &Name, address: SocketAddr) -> Result<Handled<()>, Errno> {
    let ready = system::poll_one(fd, libc::POLLOUT, Some(Duration::ZERO))?;
    if ready == 0 && descriptor::peer(fd).is_none() {
        // As on Linux, whoever was interrupted goes on waiting.
        return if system::is_nonblocking(fd) { Err(libc::EALREADY) } else { wait(fd).map(Here) };
    }
    if ready & (libc::POLLHUP | libc::POLLERR) == 0 {
        return Err(libc::EISCONN);
    }
    match pending_error(name)? {
        // It was told already: as on Linux the socket may try again.
        0 if descriptor::peer(fd).is_none() => {
            let (id, kind, family) = (None, Kind::Tcp, name.family);
            start(fd, &*node::of(name)?, &Request::Connect { id, kind, family, address, options: Vec::new() }).map(Here)
        }
        0 => Err(libc::EISCONN),
        errno => Err(errno),
    }
}

/// Takes the error that a node keeps for a socket.
pub(crate) fn pending_error(name: &Name) -> Result<Errno, Errno> {
    match ask_of(name, &Request::Error { id: name.id })?.0 {
        Reply::Error { errno } => Ok(errno),
        _ => Err(libc::EPROTO),
    }
}

/// Starts a connection, and waits for it where the descriptor is one that waits.
fn start(fd: RawFd, node: &node::Node, request: &Request) -> Result<(), Errno> {
    let starting = Starting::begin(fd);
    let before = descriptor::cookie(fd);
    swap(fd, before, &brought(node.ask(request)?)?)?;
    drop(starting);
    if system::is_nonblocking(fd) {
        return Err(libc::EINPROGRESS);
    }
    wait(fd)
}

/// Waits until a connection is made, or is not.
fn wait(fd: RawFd) -> Result<(), Errno> {
    let limit = system::send_timeout(fd).map(|timeout| Instant::now() + timeout);
    loop {
        let left = limit.map(|limit| limit.saturating_duration_since(Instant::now()));
        // A signal ends the waiting, not the connecting (connect(2)).
        let ready = system::poll_one(fd, libc::POLLOUT, left)?;
        if ready & (libc::POLLHUP | libc::POLLERR) != 0 {
            let name = identify(fd).ok_or(libc::EBADF)?;
            // What the kernel knows is told with it.
            let _ = system::kernel_int(fd, libc::SOL_SOCKET, libc::SO_ERROR);
            return match pending_error(&name)? {
                0 => Err(libc::ECONNREFUSED),
                errno => Err(errno),
            };
        }
        if ready & libc::POLLOUT != 0 {
            return Ok(());
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Err(libc::EINPROGRESS);
        }
    }
}

fn connect_datagram(fd: RawFd, name: &Name, address: SocketAddr) -> Result<(), Errno> {
    let (id, kind, family) = (Some(name.id), Kind::Udp, name.family);
    if descriptor::peer(fd).is_some() {
        // Only its old peer could talk to it.
        system::connect_name(fd, None)?;
    }
    match ask_of(name, &Request::Connect { id, kind, family, address, options: Vec::new() })?.0 {
        Reply::Peer { name } => system::connect_name(fd, Some(&name)),
        _ => Err(libc::EPROTO),
    }
}

/// `connect` with AF_UNSPEC: a datagram socket loses its peer.
pub(crate) fn disconnect(fd: RawFd) -> Result<Handled<()>, Errno> {
    match identify(fd) {
        None => Ok(System),
        Some(name @ Name { state: State::Datagram, id, .. }) => {
            ask_of(&name, &Request::Disconnect { id })?;
            system::connect_name(fd, None).map(Here)
        }
        Some(_) => Err(libc::EOPNOTSUPP),
    }
}

/// `getsockname`: the address, and the family that the program asked for.
pub(crate) fn own_address(fd: RawFd) -> Handled<(SocketAddr, Family)> {
    match identify(fd) {
        Some(mut name) => {
            // The name was given before the socket was connected; its peer's says where it sends from now.
            if name.state == State::Datagram
                && name.address.ip().is_unspecified()
                && let Some(own) = descriptor::peer(fd).and_then(|peer| peer.destination)
            {
                name.address.set_ip(own);
            }
            Here((name.address, name.family))
        }
        None => System,
    }
}

/// `getpeername`.
pub(crate) fn peer_address(fd: RawFd) -> Result<Handled<(SocketAddr, Family)>, Errno> {
    let Some(name) = identify(fd) else {
        return Ok(System);
    };
    let peer = descriptor::peer(fd).ok_or(libc::ENOTCONN)?;
    Ok(Here((peer.address, name.family)))
}

/// `shutdown`.
pub(crate) fn shutdown(fd: RawFd, how: c_int) -> Result<Handled<()>, Errno> {
    let Some(name) = identify(fd) else {
        return Ok(System);
    };
    if !(libc::SHUT_RD..=libc::SHUT_RDWR).contains(&how) {
        return Err(libc::EINVAL);
    }
    match name.state {
        State::Bound => {
            if !listens(&name)? {
                return Err(libc::ENOTCONN);
            }
            // As Linux: what a listener sends nobody has ever heard, and one that receives nothing listens no more.
            return match how {
                libc::SHUT_WR => Ok(Here(())),
                _ => system::shutdown(fd, libc::SHUT_RDWR).map(Here),
            };
        }
        State::Stream | State::Datagram if descriptor::peer(fd).is_some() => {}
        State::Datagram => {
            // As Linux: it says that it is not connected, and wakes whoever waits on it all the same.
            system::shutdown(fd, how)?;
            return Err(libc::ENOTCONN);
        }
        State::Stream => return Err(libc::ENOTCONN),
    }
    Ok(System)
}

/// `close`.
pub(crate) fn close(fd: RawFd) -> isize {
    let datagram = identify(fd).filter(|name| name.state == State::Datagram);
    crate::epoll::forget(fd);
    let result = system::close(fd);
    if let Some(name) = datagram {
        // The kernel tells the node of every other kind of descriptor by itself.
        let _ = ask_of(&name, &Request::Closed { id: name.id });
    }
    result
}
