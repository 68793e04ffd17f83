//! Socket options, settable before and after a connection exists.

use std::time::Duration;

use crate::errno::Error;
use crate::limits;
use crate::shard::{Kind, SocketId, Stack};
use crate::stream::Role;

/// One option with its value; names follow `socket(7)`, `tcp(7)`, `ip(7)` and `ipv6(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SocketOption {
    /// TCP_NODELAY: small segments leave at once.
    NoDelay(bool),
    /// SO_KEEPALIVE with the interval of its probes; `None` is off.
    KeepAlive(Option<Duration>),
    /// SO_LINGER: zero resets at close; longer is for the caller to wait for.
    Linger(Option<Duration>),
    /// SO_REUSEADDR.
    ReuseAddress(bool),
    /// IPV6_V6ONLY: an unspecified IPv6 address takes no IPv4 traffic.
    V6Only(bool),
    /// SO_RCVBUF in bytes; for TCP it counts before the connection is made.
    ReceiveBuffer(usize),
    /// SO_SNDBUF in bytes; for TCP it counts before the connection is made.
    SendBuffer(usize),
    /// TCP_USER_TIMEOUT; `None` is the default of about 15 minutes (RFC 5482).
    UserTimeout(Option<Duration>),
    /// IP_TTL and IPV6_UNICAST_HOPS, 1 to 255.
    HopLimit(u8),
}

/// The values of all options of a socket.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// See [`SocketOption::NoDelay`].
    pub no_delay: bool,
    /// See [`SocketOption::KeepAlive`].
    pub keep_alive: Option<Duration>,
    /// See [`SocketOption::Linger`].
    pub linger: Option<Duration>,
    /// See [`SocketOption::ReuseAddress`].
    pub reuse_address: bool,
    /// See [`SocketOption::V6Only`].
    pub v6_only: bool,
    /// See [`SocketOption::ReceiveBuffer`].
    pub receive_buffer: usize,
    /// See [`SocketOption::SendBuffer`].
    pub send_buffer: usize,
    /// See [`SocketOption::UserTimeout`].
    pub user_timeout: Option<Duration>,
    /// See [`SocketOption::HopLimit`].
    pub hop_limit: u8,
}

impl Options {
    pub(crate) fn new(kind: Kind) -> Self {
        let receive_buffer = match kind {
            Kind::Tcp => limits::TCP_BUFFER_DEFAULT,
            Kind::Udp | Kind::Echo => limits::UDP_RECEIVE_BYTES_DEFAULT,
        };
        Self {
            no_delay: false,
            keep_alive: None,
            linger: None,
            reuse_address: false,
            v6_only: false,
            receive_buffer,
            send_buffer: limits::TCP_BUFFER_DEFAULT,
            user_timeout: None,
            hop_limit: 64,
        }
    }
}

impl Stack {
    /// Returns the options of a socket.
    ///
    /// # Errors
    /// [`Error::BadSocket`] if there is no such socket.
    pub fn options(&self, socket: SocketId) -> Result<Options, Error> {
        Ok(self.socket_ref(socket)?.options)
    }

    /// Sets an option; on a connection it takes effect at once where TCP allows that.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a value out of range, or V6ONLY on a bound socket; [`Error::NoSuchOption`]
    /// for an option of TCP on another kind of socket; [`Error::BadSocket`].
    pub fn set_option(&mut self, socket: SocketId, option: SocketOption) -> Result<(), Error> {
        let entry = self.socket_mut(socket)?;
        let is_tcp = entry.kind == Kind::Tcp;
        let flow = match entry.role {
            Role::Stream(flow) => Some(flow),
            _ => None,
        };
        let options = &mut entry.options;
        match option {
            SocketOption::NoDelay(_) | SocketOption::KeepAlive(_) | SocketOption::UserTimeout(_) if !is_tcp => {
                return Err(Error::NoSuchOption);
            }
            SocketOption::NoDelay(value) => options.no_delay = value,
            SocketOption::KeepAlive(Some(Duration::ZERO)) | SocketOption::HopLimit(0) => return Err(Error::Invalid),
            SocketOption::KeepAlive(value) => options.keep_alive = value,
            SocketOption::Linger(value) => options.linger = value,
            SocketOption::ReuseAddress(value) => options.reuse_address = value,
            SocketOption::V6Only(_) if entry.bound.is_some() => return Err(Error::Invalid),
            SocketOption::V6Only(value) => options.v6_only = value,
            // Linux clamps both sizes instead of refusing them (socket(7)).
            SocketOption::ReceiveBuffer(len) => {
                options.receive_buffer = len.clamp(limits::BUFFER_MIN, limits::BUFFER_MAX);
            }
            SocketOption::SendBuffer(len) => options.send_buffer = len.clamp(limits::BUFFER_MIN, limits::BUFFER_MAX),
            SocketOption::UserTimeout(value) => options.user_timeout = value,
            SocketOption::HopLimit(value) => options.hop_limit = value,
        }
        let options = *options;
        if let Some(flow) = flow {
            self.apply_options(flow, &options);
        }
        Ok(())
    }
}
