//! Datagrams: where they go, and where they came from.

use std::net::SocketAddr;
use std::os::fd::RawFd;

use unisockets_descriptors::{Family, Kind, Name, State, datagram};

use crate::config::Route;
use crate::descriptor::{identify, inet};
use crate::node;
use crate::sockets::{make_datagram, pending_error};
use crate::system::Errno;

/// Bytes of the longest datagram (RFC 768 over IPv4).
pub(crate) const LEN_MAX: usize = 65_507;

/// What stands in front of a datagram, and whom it is handed to.
pub(crate) struct Way {
    /// The abstract name of the ingress.
    pub(crate) ingress: String,
    /// The destination's bytes.
    pub(crate) destination: [u8; datagram::DESTINATION_LEN],
}

/// Finds the way of a datagram to an address; nothing if it is for the operating system. An ordinary datagram socket
/// that sends to the network becomes virtual.
pub(crate) fn way(fd: RawFd, destination: SocketAddr) -> Result<Option<Way>, Errno> {
    let name = match identify(fd) {
        Some(name) => name,
        None => match make_virtual(fd, destination)? {
            Some(name) => name,
            None => return Ok(None),
        },
    };
    match name.state {
        State::Datagram => {}
        // A connection has its destination (send(2)): the address is not looked at.
        State::Stream => return Ok(None),
        State::Bound => return Err(libc::EPIPE),
    }
    if destination.is_ipv6() && name.family == Family::V4 {
        return Err(libc::EAFNOSUPPORT);
    }
    if destination.port() == 0 {
        return Err(libc::EINVAL);
    }
    if node::of(&name)?.routes.connect(destination.ip()) != Route::Network {
        return Err(libc::ENETUNREACH);
    }
    Ok(Some(Way { ingress: name.ingress(), destination: datagram::emit_destination(destination) }))
}

/// Says what Linux says of an address of a family that a virtual datagram socket cannot send to (`ip(7)`, `ipv6(7)`).
pub(crate) fn check_family(fd: RawFd, len: libc::socklen_t) -> Result<(), Errno> {
    match identify(fd) {
        Some(name) if name.state == State::Datagram => {
            let whole = len as usize >= std::mem::size_of::<libc::sockaddr_in>();
            Err(if name.family == Family::V4 && whole { libc::EAFNOSUPPORT } else { libc::EINVAL })
        }
        _ => Ok(()),
    }
}

/// Makes an ordinary datagram socket virtual that has to do with an address of the network; returns its name, or nothing
/// if it is for the operating system.
pub(crate) fn make_virtual(fd: RawFd, destination: SocketAddr) -> Result<Option<Name>, Errno> {
    let Some(inet) = inet(fd).filter(|inet| inet.kind == Kind::Udp) else {
        return Ok(None);
    };
    let Some(node) = node::node()? else {
        return Ok(None);
    };
    match node.routes.connect(destination.ip()) {
        Route::System => return Ok(None),
        Route::Refused => return Err(libc::ENETUNREACH),
        Route::Network => {}
    }
    if destination.is_ipv6() && inet.family == Family::V4 {
        return Err(libc::EAFNOSUPPORT);
    }
    make_datagram(fd, inet)?;
    Ok(identify(fd))
}

/// Finds out what an error of a virtual descriptor is: the kernel knows only that there is one.
pub(crate) fn error_of(fd: RawFd, seen: Errno) -> Errno {
    let vague = matches!(seen, libc::ECONNRESET | libc::EPIPE);
    let Some(name) = Some(fd).filter(|_| vague).and_then(identify) else {
        return seen;
    };
    match pending_error(&name) {
        Ok(errno) if errno != 0 => errno,
        _ => seen,
    }
}
