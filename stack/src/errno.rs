//! The errors a program must be able to tell apart, and their one table to errno.

use std::fmt;

/// Why a call on a socket failed; each variant is one POSIX error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Error {
    /// Nothing can be done now: wait for readiness and call again.
    Again,
    /// The connection is being made: wait for writability, then ask for the pending error.
    InProgress,
    /// The connection is already being made.
    Already,
    /// The other side answered the connection attempt with a reset: nobody listens there.
    ConnectionRefused,
    /// The other side reset the connection, or it restarted and no longer knows it.
    ConnectionReset,
    /// The connection was given up before it could be accepted.
    ConnectionAborted,
    /// The other side did not answer in time.
    TimedOut,
    /// No member of the network has this address, or its link failed for good.
    HostUnreachable,
    /// The address is outside the virtual network.
    NetworkUnreachable,
    /// Another socket holds this address and port.
    AddressInUse,
    /// The address is not one of this node's.
    AddressNotAvailable,
    /// The socket is not connected.
    NotConnected,
    /// The socket is connected already.
    IsConnected,
    /// The sending direction is shut, or the connection has ended.
    BrokenPipe,
    /// The argument, or the socket's state, does not allow this call.
    Invalid,
    /// The datagram is longer than UDP can carry.
    MessageSize,
    /// This kind of socket does not have this operation.
    NotSupported,
    /// The option is not known, or not for this kind of socket.
    NoSuchOption,
    /// No socket has this identifier.
    BadSocket,
    /// A limit on memory or sockets is reached: close something, then try again.
    NoBuffers,
    /// The datagram socket has no destination.
    DestinationRequired,
    /// The address family of the socket and of the address differ.
    AddressFamily,
    /// Broadcast was not allowed on this socket.
    AccessDenied,
}

impl Error {
    /// Returns the errno of Linux for this error (asm-generic numbers, the same on x86-64 and arm64).
    pub const fn errno(self) -> i32 {
        match self {
            Error::BadSocket => 9,
            Error::Again => 11,
            Error::AccessDenied => 13,
            Error::Invalid => 22,
            Error::BrokenPipe => 32,
            Error::DestinationRequired => 89,
            Error::MessageSize => 90,
            Error::NoSuchOption => 92,
            Error::NotSupported => 95,
            Error::AddressFamily => 97,
            Error::AddressInUse => 98,
            Error::AddressNotAvailable => 99,
            Error::NetworkUnreachable => 101,
            Error::ConnectionAborted => 103,
            Error::ConnectionReset => 104,
            Error::NoBuffers => 105,
            Error::IsConnected => 106,
            Error::NotConnected => 107,
            Error::TimedOut => 110,
            Error::ConnectionRefused => 111,
            Error::HostUnreachable => 113,
            Error::Already => 114,
            Error::InProgress => 115,
        }
    }
}

impl Error {
    /// Returns the name that POSIX gives this error.
    pub const fn name(self) -> &'static str {
        match self {
            Error::BadSocket => "EBADF",
            Error::Again => "EAGAIN",
            Error::AccessDenied => "EACCES",
            Error::Invalid => "EINVAL",
            Error::BrokenPipe => "EPIPE",
            Error::DestinationRequired => "EDESTADDRREQ",
            Error::MessageSize => "EMSGSIZE",
            Error::NoSuchOption => "ENOPROTOOPT",
            Error::NotSupported => "EOPNOTSUPP",
            Error::AddressFamily => "EAFNOSUPPORT",
            Error::AddressInUse => "EADDRINUSE",
            Error::AddressNotAvailable => "EADDRNOTAVAIL",
            Error::NetworkUnreachable => "ENETUNREACH",
            Error::ConnectionAborted => "ECONNABORTED",
            Error::ConnectionReset => "ECONNRESET",
            Error::NoBuffers => "ENOBUFS",
            Error::IsConnected => "EISCONN",
            Error::NotConnected => "ENOTCONN",
            Error::TimedOut => "ETIMEDOUT",
            Error::ConnectionRefused => "ECONNREFUSED",
            Error::HostUnreachable => "EHOSTUNREACH",
            Error::Already => "EALREADY",
            Error::InProgress => "EINPROGRESS",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Again => "the operation would block: wait until the socket is ready",
            Error::InProgress => "the connection is being made",
            Error::Already => "the connection is already being made",
            Error::ConnectionRefused => "connection refused: nobody listens on that port",
            Error::ConnectionReset => "connection reset by the other side",
            Error::ConnectionAborted => "the connection was given up before it was accepted",
            Error::TimedOut => "the other side did not answer in time",
            Error::HostUnreachable => "no route to that member: it left, or cannot be linked to",
            Error::NetworkUnreachable => "that address is outside the virtual network",
            Error::AddressInUse => "another socket holds this address and port",
            Error::AddressNotAvailable => "that address is not one of this node's",
            Error::NotConnected => "the socket is not connected",
            Error::IsConnected => "the socket is connected already",
            Error::BrokenPipe => "the sending direction of the connection is shut",
            Error::Invalid => "the argument does not fit the state of the socket",
            Error::MessageSize => "the datagram is longer than 65,507 bytes",
            Error::NotSupported => "this kind of socket does not have that operation",
            Error::NoSuchOption => "this kind of socket does not have that option",
            Error::BadSocket => "no socket has that identifier",
            Error::NoBuffers => "a limit on memory or sockets is reached",
            Error::DestinationRequired => "the datagram has no destination",
            Error::AddressFamily => "the address is of another family than the socket",
            Error::AccessDenied => "broadcast is not allowed on this socket",
        })
    }
}

impl std::error::Error for Error {}
