//! Addresses as C has them.

use std::ffi::c_int;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::{sa_family_t, sockaddr, sockaddr_in, sockaddr_in6, socklen_t};
use unisockets_descriptors::Family;

use crate::system::Errno;

/// Bytes of the longest address that is read or written here.
pub(crate) const LEN_MAX: usize = size_of::<sockaddr_in6>();

/// Reads the family of an address that a program gave.
///
/// # Safety
/// `address` must be null or valid for `len` bytes.
pub(crate) unsafe fn family(address: *const sockaddr, len: socklen_t) -> Option<c_int> {
    if address.is_null() || (len as usize) < size_of::<sa_family_t>() {
        return None;
    }
    // SAFETY: the address has at least a family.
    Some(c_int::from(unsafe { address.cast::<sa_family_t>().read_unaligned() }))
}

/// Reads an internet address that a program gave; nothing if it is of another family.
///
/// # Safety
/// `address` must be null or valid for `len` bytes.
///
/// # Errors
/// EINVAL if it is too short.
pub(crate) unsafe fn read(address: *const sockaddr, len: socklen_t) -> Result<Option<SocketAddr>, Errno> {
    // SAFETY: the caller has promised it.
    let Some(family) = (unsafe { family(address, len) }) else {
        return Ok(None);
    };
    // A length below zero, too: it has no sign here.
    if len as usize > size_of::<libc::sockaddr_storage>() {
        return Err(libc::EINVAL);
    }
    let wanted = match family {
        libc::AF_INET => size_of::<sockaddr_in>(),
        // RFC 2133 had no scope: Linux takes both lengths.
        libc::AF_INET6 => offset_of!(sockaddr_in6, sin6_scope_id),
        _ => return Ok(None),
    };
    if (len as usize) < wanted {
        return Err(libc::EINVAL);
    }
    let mut bytes = [0; LEN_MAX];
    let len = (len as usize).min(LEN_MAX);
    // SAFETY: the address has `len` bytes, and so has the buffer.
    unsafe { std::ptr::copy_nonoverlapping(address.cast::<u8>(), bytes.as_mut_ptr(), len) };
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    if family == libc::AF_INET {
        let ip = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
        return Ok(Some(SocketAddr::new(IpAddr::V4(ip), port)));
    }
    let ip = Ipv6Addr::from(*bytes[8..].first_chunk::<16>().expect("the buffer is longer"));
    Ok(Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, 0))))
}

/// Writes an address in the form of a family: an IPv4 address as `::ffff:a.b.c.d` for IPv6.
pub(crate) fn bytes(address: SocketAddr, family: Family) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    let ip = match (family, address.ip()) {
        (Family::V4, IpAddr::V4(ip)) => {
            let mut bytes = (libc::AF_INET as sa_family_t).to_ne_bytes().to_vec();
            bytes.extend(port);
            bytes.extend(ip.octets());
            bytes.resize(size_of::<sockaddr_in>(), 0);
            return bytes;
        }
        // Any address, where the socket can have both.
        (_, IpAddr::V4(ip)) if ip.is_unspecified() => Ipv6Addr::UNSPECIFIED,
        (_, IpAddr::V4(ip)) => ip.to_ipv6_mapped(),
        (_, IpAddr::V6(ip)) => ip,
    };
    let mut bytes = (libc::AF_INET6 as sa_family_t).to_ne_bytes().to_vec();
    bytes.extend(port);
    bytes.extend([0; 4]);
    bytes.extend(ip.octets());
    bytes.resize(size_of::<sockaddr_in6>(), 0);
    bytes
}

/// Gives an address to a program, cut off where its place ends, with its whole length (`getsockname(2)`).
///
/// # Safety
/// `place` must be null or valid for as many bytes as `len` says, and `len` null or valid.
pub(crate) unsafe fn give(bytes: &[u8], place: *mut sockaddr, len: *mut socklen_t) {
    // SAFETY: the caller has promised it.
    let Some(len) = (unsafe { len.as_mut() }) else {
        return;
    };
    if !place.is_null() {
        let room = (*len as usize).min(bytes.len());
        // SAFETY: the place has room for so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.cast::<u8>(), room) };
    }
    *len = bytes.len() as socklen_t;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were() {
        for (text, family) in [("10.80.0.1:80", Family::V4), ("[fd75:6e69::1]:65535", Family::V6)] {
            let address: SocketAddr = text.parse().unwrap();
            let bytes = bytes(address, family);
            // SAFETY: the bytes are as long as they say.
            let back = unsafe { read(bytes.as_ptr().cast(), bytes.len() as socklen_t) };
            assert_eq!(back, Ok(Some(address)));
            // SAFETY: fewer bytes are read than there are.
            let short = unsafe { read(bytes.as_ptr().cast(), 8) };
            assert_eq!(short, Err(libc::EINVAL));
        }
        let mapped = bytes("10.80.0.1:80".parse().unwrap(), Family::V6);
        assert_eq!(&mapped[8..24], Ipv4Addr::new(10, 80, 0, 1).to_ipv6_mapped().octets());
    }

    #[test]
    fn a_place_that_is_too_short_gets_what_fits_and_the_whole_length() {
        let address = bytes("10.80.0.1:80".parse().unwrap(), Family::V4);
        let mut place = [0xffu8; 16];
        let mut len = 4;
        // SAFETY: the place is longer than the length says.
        unsafe { give(&address, place.as_mut_ptr().cast(), &raw mut len) };
        assert_eq!((&place[..4], place[4], len), (&address[..4], 0xff, 16));
    }
}
