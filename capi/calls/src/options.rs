//! `getsockopt` and `setsockopt` on virtual descriptors.

use std::ffi::c_int;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use unisockets_descriptors::{Family, Kind, Name, Option as Setting, Reply, Request, State};

use crate::datagrams::make_virtual;
use crate::descriptor::identify;
use crate::node::ask_of;
use crate::sockets::Handled::{self, Here, System};
use crate::sockets::pending_error;
use crate::system::{self, Errno};

/// Options that the kernel honours on a virtual descriptor as on any other.
fn is_kernels(level: c_int, name: c_int) -> bool {
    level == libc::SOL_SOCKET
        && matches!(
            name,
            libc::SO_RCVTIMEO | libc::SO_SNDTIMEO | libc::SO_TIMESTAMP | libc::SO_TIMESTAMPNS | libc::SO_PEEK_OFF
        )
}

fn kind(name: &Name) -> Kind {
    if name.state == State::Datagram { Kind::Udp } else { Kind::Tcp }
}

/// `getsockopt`.
pub(crate) fn get(fd: RawFd, level: c_int, option: c_int) -> Result<Handled<Vec<u8>>, Errno> {
    let Some(name) = identify(fd) else {
        return Ok(System);
    };
    if is_kernels(level, option) {
        return Ok(System);
    }
    let number = match (level, option, kind(&name)) {
        (libc::SOL_SOCKET, libc::SO_ERROR, _) => error(fd, &name)?,
        (libc::SOL_SOCKET, libc::SO_TYPE, Kind::Tcp) => libc::SOCK_STREAM,
        (libc::SOL_SOCKET, libc::SO_TYPE, Kind::Udp) => libc::SOCK_DGRAM,
        (libc::SOL_SOCKET, libc::SO_PROTOCOL, Kind::Tcp) => libc::IPPROTO_TCP,
        (libc::SOL_SOCKET, libc::SO_PROTOCOL, Kind::Udp) => libc::IPPROTO_UDP,
        (libc::SOL_SOCKET, libc::SO_DOMAIN, _) if name.family == Family::V4 => libc::AF_INET,
        (libc::SOL_SOCKET, libc::SO_DOMAIN, _) => libc::AF_INET6,
        _ => {
            return match ask_of(&name, &Request::GetOption { id: name.id, level, name: option })?.0 {
                Reply::Option { value } => Ok(Here(value)),
                _ => Err(libc::EPROTO),
            };
        }
    };
    Ok(Here(number.to_ne_bytes().to_vec()))
}

/// SO_ERROR: the kernel knows that there is one, the node which.
fn error(fd: RawFd, name: &Name) -> Result<c_int, Errno> {
    let ready = system::poll_one(fd, libc::POLLOUT, Some(std::time::Duration::ZERO))?;
    let seen = system::kernel_int(fd, libc::SOL_SOCKET, libc::SO_ERROR)?;
    if seen == 0 && ready & (libc::POLLHUP | libc::POLLERR) == 0 {
        return Ok(0);
    }
    let known = pending_error(name).unwrap_or(0);
    Ok(if known != 0 { known } else { seen })
}

/// Returns the address that groups are to be sent from, if that is what is set: of `in_addr`, `ip_mreq` or `ip_mreqn`
/// (ip(7), IP_MULTICAST_IF).
fn interface(level: c_int, option: c_int, value: &[u8]) -> Option<SocketAddr> {
    if (level, option) != (libc::IPPROTO_IP, libc::IP_MULTICAST_IF) {
        return None;
    }
    let octets: [u8; 4] = *if value.len() < 8 { value.first_chunk()? } else { value[4..].first_chunk()? };
    Some(SocketAddr::from((octets, 0))).filter(|own| !own.ip().is_unspecified())
}

/// `setsockopt` without a value, of a virtual descriptor: the kernel would say what it says of its own kind of socket.
pub(crate) fn set_from_nowhere(
    fd: RawFd,
    level: c_int,
    option: c_int,
    len: libc::socklen_t,
) -> Option<Result<Handled<()>, Errno>> {
    let name = identify(fd).filter(|_| level != libc::SOL_SOCKET)?;
    Some(match (level, kind(&name)) {
        (libc::IPPROTO_TCP, Kind::Tcp) if (len as usize) < size_of::<c_int>() => Err(libc::EINVAL),
        (libc::IPPROTO_TCP, Kind::Tcp) | (libc::IPPROTO_IP, _) => Err(libc::EFAULT),
        // Here Linux takes nothing for zero.
        (libc::IPPROTO_IPV6, _) if name.family == Family::V6 => {
            set(fd, level, option, &[0; size_of::<c_int>()][..size_of::<c_int>().min(len as usize)])
        }
        _ => Err(libc::ENOPROTOOPT),
    })
}

/// `setsockopt`.
pub(crate) fn set(fd: RawFd, level: c_int, option: c_int, value: &[u8]) -> Result<Handled<()>, Errno> {
    let name = match identify(fd) {
        Some(name) => name,
        // The kernel does not have the network's addresses: a socket that is to send groups from one is the network's.
        None => match interface(level, option, value).and_then(|own| make_virtual(fd, own).ok().flatten()) {
            Some(name) => name,
            None => return Ok(System),
        },
    };
    if is_kernels(level, option) {
        return Ok(System);
    }
    let option = Setting { level, name: option, value: value.to_vec() };
    ask_of(&name, &Request::SetOption { id: name.id, option })?;
    Ok(Here(()))
}
