//! `send` and `recv` in all their forms: destinations are put in front of datagrams, sources are read from names.

use std::ffi::{c_int, c_void};
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::RawFd;

use libc::{iovec, msghdr, sockaddr, sockaddr_un, socklen_t};
use unisockets_descriptors::{Family, Name, State, datagram};

use crate::address;
use crate::datagrams::{self, Way};
use crate::descriptor::{self, identify};
use crate::sockets::{self, Handled};
use crate::system::{self, Errno, call, checked};
use crate::waiting::Waiting;

/// Bytes that are thrown away at once.
const DISCARD_MAX: usize = 64 * 1024;
/// Parts of a message (UIO_MAXIOV of Linux).
const PARTS_MAX: usize = 1_024;

fn int(number: c_int) -> usize {
    number as isize as usize
}

/// Whether a family is none that an internet socket could send to.
fn is_strange(family: c_int) -> bool {
    ![libc::AF_INET, libc::AF_INET6, libc::AF_UNSPEC].contains(&family)
}

/// Sends a message.
///
/// # Safety
/// `message` must be what `sendmsg(2)` wants.
pub(crate) unsafe fn sendmsg(fd: RawFd, message: *const msghdr, flags: c_int) -> Result<usize, Errno> {
    // SAFETY: the caller has promised it.
    let Some(given) = (unsafe { message.as_ref() }) else {
        return Err(libc::EFAULT);
    };
    // SAFETY: the message's name is as long as it says.
    let destination = unsafe { address::read(given.msg_name.cast(), given.msg_namelen) }?;
    if flags & libc::MSG_OOB != 0 && identify(fd).is_some() {
        return Err(libc::EOPNOTSUPP);
    }
    if flags & libc::MSG_FASTOPEN != 0
        && let Some(destination) = destination
        && descriptor::is_stream(fd)
        && sockets::connect(fd, destination)? == Handled::Here(())
    {
        // The network opens no connection with data (tcp(7), TCP_FASTOPEN): it is made, and the data follows.
        // SAFETY: the caller has promised it.
        return unsafe { send_plain(fd, message, flags & !libc::MSG_FASTOPEN, true) };
    }
    let way = match destination {
        Some(destination) => datagrams::way(fd, destination)?,
        // SAFETY: the message's name is as long as it says.
        None if unsafe { address::family(given.msg_name.cast(), given.msg_namelen) }.is_some_and(is_strange) => {
            datagrams::check_family(fd, given.msg_namelen)?;
            None
        }
        None if descriptor::is_bound(fd) => return Err(libc::EPIPE),
        None => None,
    };
    // Whatever it was before, it is virtual now if it sends to the network.
    refuse_more(fd, flags)?;
    let Some(way) = way else {
        // SAFETY: the caller has promised it.
        return unsafe { send_plain(fd, message, flags, destination.is_some()) };
    };
    // SAFETY: the message's parts are as many as it says.
    unsafe { send_with_destination(fd, given, flags, &way) }
}

/// Sends as the kernel does; the address is left out where a virtual connection has one already.
///
/// # Safety
/// As [`sendmsg`].
unsafe fn send_plain(fd: RawFd, message: *const msghdr, flags: c_int, has_address: bool) -> Result<usize, Errno> {
    // SAFETY: the caller has promised that it is a message.
    let mut copy = unsafe { message.read() };
    let mut place = message;
    if has_address && identify(fd).is_some() {
        copy.msg_name = std::ptr::null_mut();
        copy.msg_namelen = 0;
        place = &raw const copy;
    }
    if identify(fd).is_some_and(|name| name.state == State::Datagram) {
        // SAFETY: the message's parts are as many as it says.
        let len = unsafe { len_of(&copy) }?;
        if len > datagrams::LEN_MAX {
            return Err(libc::EMSGSIZE);
        }
    }
    // SAFETY: the message is the program's, or a copy without its name.
    let sent = unsafe { call(libc::SYS_sendmsg, [int(fd), place as usize, int(flags), 0, 0, 0]) };
    checked(sent).map_err(|seen| plain_error(fd, seen))
}

/// Returns how many bytes the parts of a message have.
///
/// # Safety
/// The message must have as many parts as it says.
unsafe fn len_of(message: &msghdr) -> Result<usize, Errno> {
    if message.msg_iovlen > PARTS_MAX {
        return Err(libc::EMSGSIZE);
    }
    let mut len = 0usize;
    for index in 0..message.msg_iovlen {
        // SAFETY: the message has so many parts.
        let place = unsafe { message.msg_iov.add(index) };
        // SAFETY: see above.
        len = len.saturating_add(unsafe { (*place).iov_len });
    }
    Ok(len)
}

/// # Safety
/// The parts of `given` must be valid for reading.
unsafe fn send_with_destination(fd: RawFd, given: &msghdr, flags: c_int, way: &Way) -> Result<usize, Errno> {
    let count = given.msg_iovlen;
    if count > PARTS_MAX - 1 {
        return Err(libc::EMSGSIZE);
    }
    let mut parts = Vec::with_capacity(count + 1);
    parts.push(iovec { iov_base: way.destination.as_ptr() as *mut c_void, iov_len: way.destination.len() });
    for index in 0..count {
        // SAFETY: the message has so many parts.
        let place = unsafe { given.msg_iov.add(index) };
        // SAFETY: see above.
        parts.push(unsafe { place.read() });
    }
    let len: usize = parts[1..].iter().map(|part| part.iov_len).fold(0, usize::saturating_add);
    if len > datagrams::LEN_MAX {
        return Err(libc::EMSGSIZE);
    }
    let (name, name_len) = system::name_address(&way.ingress);
    // SAFETY: a message of zeros is an empty one.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw const name) as *mut c_void;
    message.msg_namelen = name_len;
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    // SAFETY: every part of the message lives until the call returns.
    let sent = unsafe { call(libc::SYS_sendmsg, [int(fd), (&raw const message) as usize, int(flags), 0, 0, 0]) };
    let sent = checked(sent).map_err(|seen| match seen {
        // The node's end is gone.
        libc::ECONNREFUSED | libc::ENOENT => libc::ENETDOWN,
        seen => datagrams::error_of(fd, seen),
    })?;
    Ok(sent.saturating_sub(datagram::DESTINATION_LEN))
}

/// Sends bytes.
///
/// # Safety
/// `data` must be valid for `len` bytes, and the address for its length.
pub(crate) unsafe fn sendto(
    fd: RawFd,
    data: *const c_void,
    len: usize,
    flags: c_int,
    to: (*const sockaddr, socklen_t),
) -> Result<usize, Errno> {
    if to.0.is_null() {
        if flags & libc::MSG_OOB != 0 && identify(fd).is_some() {
            return Err(libc::EOPNOTSUPP);
        }
        if descriptor::is_bound(fd) {
            return Err(libc::EPIPE);
        }
        refuse_more(fd, flags)?;
        if len > datagrams::LEN_MAX && identify(fd).is_some_and(|name| name.state == State::Datagram) {
            return Err(libc::EMSGSIZE);
        }
        // SAFETY: the caller has promised it.
        let sent = unsafe { system::sendto(fd, data, len, flags, to) };
        return checked(sent).map_err(|seen| plain_error(fd, seen));
    }
    let mut part = iovec { iov_base: data.cast_mut(), iov_len: len };
    // SAFETY: a message of zeros is an empty one.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.0 as *mut c_void;
    message.msg_namelen = to.1;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    // SAFETY: the message is made of what the caller gave.
    unsafe { sendmsg(fd, &raw const message, flags) }
}

/// A datagram in parts of several calls (MSG_MORE, udp(7)) would be several datagrams on AF_UNIX.
fn refuse_more(fd: RawFd, flags: c_int) -> Result<(), Errno> {
    let in_parts = flags & libc::MSG_MORE != 0 && identify(fd).is_some_and(|name| name.state == State::Datagram);
    if in_parts { Err(libc::EOPNOTSUPP) } else { Ok(()) }
}

/// What a failed `send` without a destination means on a virtual descriptor.
fn plain_error(fd: RawFd, seen: Errno) -> Errno {
    match seen {
        // An AF_UNIX socket without a peer says ENOTCONN; of UDP Linux says EDESTADDRREQ.
        libc::ENOTCONN if identify(fd).is_some_and(|name| name.state == State::Datagram) => libc::EDESTADDRREQ,
        seen => datagrams::error_of(fd, seen),
    }
}

/// The source of a message, as the kernel gave it.
enum Source {
    /// Of a virtual socket.
    Virtual(Name),
    /// Of another one: the bytes of its address.
    Other(Vec<u8>),
}

fn source(place: &Place, len: socklen_t) -> Source {
    match system::name_of(&place.0, len).and_then(|name| Name::parse(&name).ok()) {
        Some(name) => Source::Virtual(name),
        None => {
            let len = (len as usize).min(size_of::<Place>());
            Source::Other(place.bytes()[..len].to_vec())
        }
    }
}

/// Room for the address of any family (it is longer than every internet address).
struct Place(sockaddr_un);

impl Place {
    fn new() -> Place {
        Place(system::empty_name())
    }

    fn bytes(&self) -> [u8; size_of::<sockaddr_un>()] {
        let mut bytes = [0; size_of::<sockaddr_un>()];
        bytes[..2].copy_from_slice(&self.0.sun_family.to_ne_bytes());
        for (place, byte) in bytes[2..].iter_mut().zip(self.0.sun_path) {
            *place = byte as u8;
        }
        bytes
    }
}

/// Receives bytes.
///
/// # Safety
/// `data` must be valid for `len` bytes, and the place of the address for its length.
pub(crate) unsafe fn recvfrom(
    fd: RawFd,
    data: *mut c_void,
    len: usize,
    flags: c_int,
    from: (*mut sockaddr, *mut socklen_t),
) -> Result<usize, Errno> {
    let mut place = Place::new();
    let mut place_len = size_of::<Place>() as socklen_t;
    let (name, name_len) = match from.0.is_null() {
        true => (0, 0),
        false => ((&raw mut place.0) as usize, (&raw mut place_len) as usize),
    };
    refuse_special(fd, flags)?;
    // It would wait, and take a connection for bytes.
    if descriptor::is_bound(fd) {
        return Err(libc::ENOTCONN);
    }
    if flags & libc::MSG_TRUNC != 0 && identify(fd).is_some_and(|name| name.state == State::Stream) {
        return discard(fd, len, flags & !libc::MSG_TRUNC);
    }
    let waiting = Waiting::begin(fd);
    // SAFETY: the caller has promised it of the data; the place is as long as its length.
    let receive = || unsafe { call(libc::SYS_recvfrom, [int(fd), data as usize, len, int(flags), name, name_len]) };
    let mut received = receive();
    if waiting.again(received) {
        place_len = size_of::<Place>() as socklen_t;
        received = receive();
    }
    let received = checked(received).map_err(|seen| receive_error(fd, seen))?;
    if !from.0.is_null() {
        let bytes = address_of(&source(&place, place_len));
        // SAFETY: the caller has promised it.
        unsafe { address::give(&bytes, from.0, from.1) };
    }
    Ok(received)
}

/// Takes bytes of a connection and throws them away (MSG_TRUNC, tcp(7)).
fn discard(fd: RawFd, len: usize, flags: c_int) -> Result<usize, Errno> {
    let mut place = vec![0u8; len.min(DISCARD_MAX)];
    let (data, len) = (place.as_mut_ptr() as usize, place.len());
    // SAFETY: the place is as long as it says.
    let received = unsafe { call(libc::SYS_recvfrom, [int(fd), data, len, int(flags), 0, 0]) };
    checked(received).map_err(|seen| receive_error(fd, seen))
}

/// Returns the bytes of the address that a receive gives: of a connection none (recv(2)).
fn address_of(source: &Source) -> Vec<u8> {
    match source {
        Source::Virtual(Name { state: State::Stream, .. }) => Vec::new(),
        Source::Virtual(source) => address::bytes(source.address, source.family),
        Source::Other(bytes) => bytes.clone(),
    }
}

/// What AF_UNIX sockets do not have, and would take for a plain receive: urgent data, and a queue of errors, in which
/// nothing ever is (ip(7), IP_RECVERR).
fn refuse_special(fd: RawFd, flags: c_int) -> Result<(), Errno> {
    let errno = match flags {
        flags if flags & libc::MSG_ERRQUEUE != 0 => libc::EAGAIN,
        flags if flags & libc::MSG_OOB != 0 => libc::EINVAL,
        _ => return Ok(()),
    };
    if identify(fd).is_some() { Err(errno) } else { Ok(()) }
}

/// What a failed receive means on a virtual descriptor.
fn receive_error(fd: RawFd, seen: Errno) -> Errno {
    match seen {
        // An AF_UNIX pair of packets that carries connections is no stream to read from.
        libc::EINVAL if identify(fd).is_some_and(|name| name.state == State::Bound) => libc::ENOTCONN,
        seen => datagrams::error_of(fd, seen),
    }
}

/// Receives a message.
///
/// # Safety
/// `message` must be what `recvmsg(2)` wants.
pub(crate) unsafe fn recvmsg(fd: RawFd, message: *mut msghdr, flags: c_int) -> Result<usize, Errno> {
    // SAFETY: the caller has promised it.
    let Some(given) = (unsafe { message.as_mut() }) else {
        return Err(libc::EFAULT);
    };
    refuse_special(fd, flags)?;
    // It would wait, and take a connection for bytes.
    if descriptor::is_bound(fd) {
        return Err(libc::ENOTCONN);
    }
    let mut place = Place::new();
    let mut inner = *given;
    // Also for whoever does not ask: the name says where a datagram was sent to (IP_PKTINFO).
    inner.msg_name = (&raw mut place.0).cast();
    inner.msg_namelen = size_of::<Place>() as socklen_t;
    let wanted = !given.msg_name.is_null();
    let room = given.msg_controllen;
    let waiting = Waiting::begin(fd);
    let fresh = inner;
    let receive = |inner: &mut msghdr| {
        let place = (&raw mut *inner) as usize;
        // SAFETY: the message is the program's, but for the place of the name.
        unsafe { call(libc::SYS_recvmsg, [int(fd), place, int(flags), 0, 0, 0]) }
    };
    let mut received = receive(&mut inner);
    if waiting.again(received) {
        inner = fresh;
        received = receive(&mut inner);
    }
    let received = checked(received).map_err(|seen| receive_error(fd, seen))?;
    given.msg_controllen = inner.msg_controllen;
    given.msg_flags = inner.msg_flags & !libc::MSG_CMSG_CLOEXEC;
    if !wanted && room == 0 {
        return Ok(received);
    }
    let source = source(&place, inner.msg_namelen);
    if wanted {
        let mut len = given.msg_namelen;
        // SAFETY: the name's place is as long as the program said.
        unsafe { address::give(&address_of(&source), given.msg_name.cast(), &raw mut len) };
        given.msg_namelen = len;
    }
    if let Source::Virtual(Name { destination: Some(destination), family, .. }) = source {
        // SAFETY: the control part has room for as many bytes as the program said.
        unsafe { give_destination(given, room, destination, family) };
    }
    Ok(received)
}

/// Adds the address that a datagram was sent to (IP_PKTINFO, IPV6_PKTINFO; ip(7), ipv6(7)).
///
/// # Safety
/// The control part of `message` must be valid for `room` bytes.
unsafe fn give_destination(message: &mut msghdr, room: usize, destination: IpAddr, family: Family) {
    let (level, kind, data) = match (family, destination) {
        (Family::V4, IpAddr::V4(ip)) => {
            let mut data = 1i32.to_ne_bytes().to_vec();
            data.extend(ip.octets());
            data.extend(ip.octets());
            (libc::IPPROTO_IP, libc::IP_PKTINFO, data)
        }
        (_, ip) => {
            let ip = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let mut data = ip.octets().to_vec();
            data.extend(1u32.to_ne_bytes());
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, data)
        }
    };
    let used = message.msg_controllen;
    let len = data.len() as u32;
    // SAFETY: these compute sizes only.
    let (space, whole) = (unsafe { libc::CMSG_SPACE(len) } as usize, unsafe { libc::CMSG_LEN(len) } as usize);
    if message.msg_control.is_null() || used + space > room {
        if used < room || room > 0 {
            message.msg_flags |= libc::MSG_CTRUNC;
        }
        return;
    }
    let header = libc::cmsghdr { cmsg_len: whole as _, cmsg_level: level, cmsg_type: kind };
    // SAFETY: so much room is left behind what is used.
    let place = unsafe { message.msg_control.cast::<u8>().add(used) };
    // SAFETY: see above.
    unsafe { place.cast::<libc::cmsghdr>().write_unaligned(header) };
    // SAFETY: the data follows the header, within the space.
    let data_place = unsafe { place.add(whole - data.len()) };
    // SAFETY: see above.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), data_place, data.len()) };
    message.msg_controllen = (used + space) as _;
}

/// Sends several messages (`sendmmsg(2)`): an error counts only before the first one is sent.
///
/// # Safety
/// `messages` must be valid for `count` entries.
pub(crate) unsafe fn sendmmsg(
    fd: RawFd,
    messages: *mut libc::mmsghdr,
    count: u32,
    flags: c_int,
) -> Result<usize, Errno> {
    let count = (count as usize).min(PARTS_MAX);
    for index in 0..count {
        // SAFETY: there are so many.
        let place = unsafe { messages.add(index) };
        // SAFETY: see above.
        let header = unsafe { &raw const (*place).msg_hdr };
        // SAFETY: the caller has promised that each is a message.
        match unsafe { sendmsg(fd, header, flags) } {
            // SAFETY: see above.
            Ok(sent) => unsafe { (*place).msg_len = sent as u32 },
            Err(error) => return if index == 0 { Err(error) } else { Ok(index) },
        }
    }
    Ok(count)
}

/// Receives several messages (`recvmmsg(2)`).
///
/// # Safety
/// `messages` must be valid for `count` entries, and `timeout` null or valid.
pub(crate) unsafe fn recvmmsg(
    fd: RawFd,
    messages: *mut libc::mmsghdr,
    count: u32,
    flags: c_int,
    timeout: *const libc::timespec,
) -> Result<usize, Errno> {
    let count = (count as usize).min(PARTS_MAX);
    // SAFETY: the caller has promised it.
    let limit = match unsafe { timeout.as_ref() } {
        None => None,
        Some(time) => match (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec)) {
            (Ok(seconds), Ok(nanoseconds @ 0..1_000_000_000)) => {
                // One that the clock cannot tell does not come.
                std::time::Instant::now().checked_add(std::time::Duration::new(seconds, nanoseconds))
            }
            _ => return Err(libc::EINVAL),
        },
    };
    let mut flags = flags;
    for index in 0..count {
        // SAFETY: there are so many.
        let place = unsafe { messages.add(index) };
        // SAFETY: see above.
        let header = unsafe { &raw mut (*place).msg_hdr };
        // SAFETY: the caller has promised that each is a message.
        match unsafe { recvmsg(fd, header, flags & !libc::MSG_WAITFORONE) } {
            // SAFETY: see above.
            Ok(received) => unsafe { (*place).msg_len = received as u32 },
            Err(error) => return if index == 0 { Err(error) } else { Ok(index) },
        }
        if flags & libc::MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT;
        }
        // The time is looked at only after a message (recvmmsg(2), BUGS).
        if limit.is_some_and(|limit| std::time::Instant::now() >= limit) {
            return Ok(index + 1);
        }
    }
    Ok(count)
}

/// Passes a call on that is none of ours.
pub(crate) fn result(outcome: Result<usize, Errno>) -> isize {
    match outcome {
        Ok(len) => len as isize,
        Err(error) => {
            system::set_errno(error);
            -1
        }
    }
}
