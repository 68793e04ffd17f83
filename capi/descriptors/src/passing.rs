//! Bytes and descriptors over a control socket.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::net::{bind, connect, recvmsg, sendmsg, shutdown, socket_with, socketpair, sockopt};

use crate::message::{Answer, Call, Request};
use crate::{ANSWER_LEN_MAX, REQUEST_LEN_MAX};

/// Sends bytes, and a descriptor with the first of them; a full socket is [`io::ErrorKind::WouldBlock`].
///
/// # Errors
/// Those of `sendmsg(2)`.
pub fn send_with(socket: impl AsFd, bytes: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.iter().map(|descriptor| descriptor.as_fd()).collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    retry(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))
}

/// Receives bytes, and a descriptor if one comes along; it is closed on exec.
///
/// # Errors
/// Those of `recvmsg(2)`.
pub fn recv_with(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            // More than one is nobody's: they are closed here.
            descriptor = descriptors.into_iter().next().or(descriptor);
        }
    }
    Ok((received.bytes, descriptor))
}

fn retry<R>(mut f: impl FnMut() -> rustix::io::Result<R>) -> io::Result<R> {
    loop {
        match f() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Makes a socket of the AF_UNIX family that is closed on exec.
///
/// # Errors
/// Those of `socket(2)`.
pub fn unix_socket(kind: SocketType, flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, kind, flags | SocketFlags::CLOEXEC, None)?)
}

/// Makes a pair of sockets that are closed on exec.
///
/// # Errors
/// Those of `socketpair(2)`.
pub fn unix_pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// Gives a socket a name in the abstract namespace.
///
/// # Errors
/// Those of `bind(2)`; `AddrInUse` while another socket has the name.
pub fn bind_abstract(socket: impl AsFd, name: &str) -> io::Result<()> {
    Ok(bind(socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?)
}

/// Connects a socket to a name in the abstract namespace.
///
/// # Errors
/// Those of `connect(2)`.
pub fn connect_abstract(socket: impl AsFd, name: &str) -> io::Result<()> {
    Ok(connect(socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?)
}

/// Where a node answers: the path of its control socket, or an invitation.
///
/// A path serves the user who runs the node. An invitation is `@NAME#TOKEN#UID`, a name in the abstract namespace, what
/// proves that whoever asks was started with it, and the user who runs the node: it serves also those that have given up
/// that user's rights since. When the node has gone, anybody may take its name; nobody else has its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    address: String,
    token: Option<String>,
    user: Option<u32>,
}

impl Place {
    /// Reads a path or an invitation.
    pub fn new(text: &str) -> Place {
        match text.strip_prefix('@').and_then(|rest| rest.split_once('#')) {
            Some((name, rest)) => {
                let (token, user) = rest.split_once('#').unwrap_or((rest, ""));
                Place { address: format!("@{name}"), token: Some(token.to_owned()), user: user.parse().ok() }
            }
            None => Place { address: text.to_owned(), token: None, user: None },
        }
    }

    /// Checks that whoever has taken a connection is the node's user, or root (SO_PEERCRED, unix(7)).
    fn check(&self, socket: &OwnedFd) -> io::Result<()> {
        let Some(user) = self.user else {
            return Ok(());
        };
        let answers = sockopt::socket_peercred(socket)?.uid.as_raw();
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        if [user, 0, seen_as(user, &map)].contains(&answers) {
            return Ok(());
        }
        let text = format!("user {answers} answers in the place of the node, which was user {user}'s");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }

    /// Returns where it is, without what proves anything.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn socket_address(&self) -> rustix::io::Result<SocketAddrUnix> {
        match self.address.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
            None => SocketAddrUnix::new(self.address.as_str()),
        }
    }
}

/// What users look like who have no number in a user namespace (user_namespaces(7), overflowuid).
const OVERFLOW_USER: u32 = 65_534;

/// Returns what a user of the namespace around this one is in this one, whose `map` is /proc/self/uid_map.
fn seen_as(user: u32, map: &str) -> u32 {
    let numbers = |line: &str| -> Option<(u32, u32, u32)> {
        let mut numbers = line.split_whitespace().map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    let inside = |(inside, outside, count): (u32, u32, u32)| {
        let place = user.checked_sub(outside).filter(|place| *place < count)?;
        inside.checked_add(place)
    };
    map.lines().filter_map(numbers).find_map(inside).unwrap_or(OVERFLOW_USER)
}

/// Asks a node.
///
/// # Errors
/// The kernel's if nobody answers there, `InvalidData` for an answer of another version.
pub fn ask(place: &Place, request: &Request) -> io::Result<(Answer, Option<OwnedFd>)> {
    let socket = unix_socket(SocketType::STREAM, SocketFlags::empty())?;
    retry(|| connect(&socket, &place.socket_address()?))?;
    place.check(&socket)?;
    let call = Call { token: place.token.clone(), request: request.clone() };
    let mut rest = &*serde_json::to_vec(&call).map_err(invalid)?;
    if rest.len() > REQUEST_LEN_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    while !rest.is_empty() {
        rest = &rest[send_with(&socket, rest, None)?..];
    }
    retry(|| shutdown(&socket, Shutdown::Write))?;
    let mut answer = Vec::new();
    let mut descriptor = None;
    let mut chunk = vec![0; 4096];
    loop {
        let (len, brought) = match recv_with(&socket, &mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        descriptor = brought.or(descriptor);
        if len == 0 {
            break;
        }
        answer.extend_from_slice(&chunk[..len]);
        if answer.len() > ANSWER_LEN_MAX {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
    }
    if answer.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok((serde_json::from_slice(&answer).map_err(invalid)?, descriptor))
}

fn invalid(error: serde_json::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_descriptor_travels_with_the_first_byte() {
        let (here, there) = unix_pair(SocketType::STREAM).unwrap();
        let (passed, other) = unix_pair(SocketType::STREAM).unwrap();
        assert_eq!(send_with(&here, b"x", Some(&passed)).unwrap(), 1);
        let mut bytes = [0; 8];
        let (len, descriptor) = recv_with(&there, &mut bytes).unwrap();
        let descriptor = descriptor.expect("one came along");
        assert_eq!((len, bytes[0]), (1, b'x'));
        assert_ne!(descriptor.as_raw_fd(), passed.as_raw_fd());
        send_with(&descriptor, b"through", None).unwrap();
        assert_eq!(recv_with(&other, &mut bytes).unwrap().0, 7);
    }

    /// When a node has been killed, its programs go on; whoever takes its name must not answer them.
    #[test]
    fn only_the_user_of_an_invitation_is_asked() {
        let name = format!("unisockets-test-user/{}", std::process::id());
        let listener = unix_socket(SocketType::STREAM, SocketFlags::empty()).unwrap();
        bind_abstract(&listener, &name).unwrap();
        rustix::net::listen(&listener, 4).unwrap();
        let own = rustix::process::geteuid().as_raw();
        let connected = |user: u32| {
            let place = Place::new(&format!("@{name}#token#{user}"));
            let socket = unix_socket(SocketType::STREAM, SocketFlags::empty()).unwrap();
            connect(&socket, &place.socket_address().unwrap()).unwrap();
            place.check(&socket)
        };
        assert!(connected(own).is_ok());
        // Root may answer for everybody.
        let other = connected(own + 1).map_err(|error| error.kind());
        assert_eq!(other, if own == 0 { Ok(()) } else { Err(io::ErrorKind::PermissionDenied) });
        assert_eq!(seen_as(1_000, "         0          0 4294967295\n"), 1_000);
        assert_eq!((seen_as(1_000, "5 1000 1\n"), seen_as(1_001, "5 1000 1\n")), (5, OVERFLOW_USER));
        assert_eq!(Place::new("@a#b#7").token.as_deref(), Some("b"));
        assert_eq!(Place::new("@a#b"), Place { address: "@a".to_owned(), token: Some("b".to_owned()), user: None });
    }

    #[test]
    fn a_name_in_the_abstract_namespace_is_taken_once() {
        let name = format!("unisockets-test/{}", std::process::id());
        let socket = || unix_socket(SocketType::DGRAM, SocketFlags::empty()).unwrap();
        let (first, second) = (socket(), socket());
        bind_abstract(&first, &name).unwrap();
        assert_eq!(bind_abstract(&second, &name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        bind_abstract(&second, &name).unwrap();
    }
}
