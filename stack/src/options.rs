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
    /// SO_KEEPALIVE: an idle connection is probed, and ends with ETIMEDOUT if nobody answers.
    KeepAlive(bool),
    /// TCP_KEEPIDLE: how long it is idle before the first probe, 1 to 32,767 s.
    KeepIdle(Duration),
    /// TCP_KEEPINTVL: the time between probes, 1 to 32,767 s.
    KeepInterval(Duration),
    /// TCP_KEEPCNT: probes that may stay unanswered, 1 to 127.
    KeepCount(u8),
    /// SO_RCVLOWAT: bytes from which on the socket is readable, and a waiting read returns.
    ReceiveLowWater(usize),
    /// SO_BROADCAST: datagrams may be sent to a broadcast address.
    Broadcast(bool),
    /// IP_MULTICAST_TTL and IPV6_MULTICAST_HOPS, 0 to 255; 0 stays on this node.
    MulticastHopLimit(u8),
    /// IP_MULTICAST_LOOP and IPV6_MULTICAST_LOOP: what is sent to a group comes to this node's members too.
    MulticastLoop(bool),
    /// SO_LINGER: zero resets at close; longer is for the caller to wait for.
    Linger(Option<Duration>),
    /// SO_REUSEADDR.
    ReuseAddress(bool),
    /// SO_REUSEPORT, before binding: sockets that all have it share an address and port, and each peer's port belongs to one
    /// of them.
    ReusePort(bool),
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
    pub keep_alive: bool,
    /// See [`SocketOption::KeepIdle`].
    pub keep_idle: Duration,
    /// See [`SocketOption::KeepInterval`].
    pub keep_interval: Duration,
    /// See [`SocketOption::KeepCount`].
    pub keep_count: u8,
    /// See [`SocketOption::ReceiveLowWater`].
    pub receive_low_water: usize,
    /// See [`SocketOption::Broadcast`].
    pub broadcast: bool,
    /// See [`SocketOption::MulticastHopLimit`].
    pub multicast_hop_limit: u8,
    /// See [`SocketOption::MulticastLoop`].
    pub multicast_loop: bool,
    /// See [`SocketOption::Linger`].
    pub linger: Option<Duration>,
    /// See [`SocketOption::ReuseAddress`].
    pub reuse_address: bool,
    /// See [`SocketOption::ReusePort`].
    pub reuse_port: bool,
    /// See [`SocketOption::V6Only`].
    pub v6_only: bool,
    /// See [`SocketOption::ReceiveBuffer`]; of a connection that was not told one, what it has.
    pub receive_buffer: usize,
    /// See [`SocketOption::SendBuffer`]; as above.
    pub send_buffer: usize,
    /// See [`SocketOption::UserTimeout`].
    pub user_timeout: Option<Duration>,
    /// See [`SocketOption::HopLimit`].
    pub hop_limit: u8,
}

/// The length of a buffer that no program has chosen: the distance of the peer does.
pub(crate) const BY_DISTANCE: usize = 0;

impl Options {
    pub(crate) fn new(kind: Kind) -> Self {
        let receive_buffer = match kind {
            Kind::Tcp => BY_DISTANCE,
            Kind::Udp | Kind::Echo => limits::UDP_RECEIVE_BYTES_DEFAULT,
        };
        Self {
            no_delay: false,
            keep_alive: false,
            keep_idle: limits::KEEP_IDLE_DEFAULT,
            keep_interval: limits::KEEP_INTERVAL_DEFAULT,
            keep_count: limits::KEEP_COUNT_DEFAULT,
            receive_low_water: 1,
            broadcast: false,
            multicast_hop_limit: 1,
            multicast_loop: true,
            linger: None,
            reuse_address: false,
            reuse_port: false,
            v6_only: false,
            receive_buffer,
            send_buffer: BY_DISTANCE,
            user_timeout: None,
            hop_limit: 64,
        }
    }
}

impl SocketOption {
    /// Whether a kind of socket has the option.
    fn suits(self, kind: Kind) -> bool {
        match self {
            SocketOption::NoDelay(_)
            | SocketOption::KeepIdle(_)
            | SocketOption::KeepInterval(_)
            | SocketOption::KeepCount(_)
            | SocketOption::UserTimeout(_) => kind == Kind::Tcp,
            SocketOption::MulticastHopLimit(_) => kind != Kind::Tcp,
            // Every socket has the rest, as on Linux, whether it means anything there or not.
            _ => true,
        }
    }
}

/// Checks a time of keep-alive.
fn keep_time(time: Duration) -> Result<Duration, Error> {
    let is_legal = (Duration::from_secs(1)..=limits::KEEP_TIME_MAX).contains(&time);
    if is_legal { Ok(time) } else { Err(Error::Invalid) }
}

impl Stack {
    /// Returns the options of a socket.
    ///
    /// # Errors
    /// [`Error::BadSocket`] if there is no such socket.
    pub fn options(&self, socket: SocketId) -> Result<Options, Error> {
        let entry = self.socket_ref(socket)?;
        let flow = match entry.role {
            Role::Stream(flow) => self.flows.get(flow),
            _ => None,
        };
        let (receive, send) = flow.map_or((limits::TCP_BUFFER_DEFAULT, limits::TCP_BUFFER_DEFAULT), |flow| {
            (flow.connection.receive_capacity(), flow.connection.send_capacity())
        });
        let mut options = entry.options;
        for (buffer, len) in [(&mut options.receive_buffer, receive), (&mut options.send_buffer, send)] {
            if *buffer == BY_DISTANCE {
                *buffer = len;
            }
        }
        Ok(options)
    }

    /// Sets an option; on a connection it takes effect at once where TCP allows that.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a value out of range, or V6ONLY on a bound socket; [`Error::NoSuchOption`]
    /// for an option of TCP on another kind of socket; [`Error::BadSocket`].
    pub fn set_option(&mut self, socket: SocketId, option: SocketOption) -> Result<(), Error> {
        let entry = self.socket_mut(socket)?;
        if !option.suits(entry.kind) {
            return Err(Error::NoSuchOption);
        }
        let flow = match entry.role {
            Role::Stream(flow) => Some(flow),
            _ => None,
        };
        let options = &mut entry.options;
        match option {
            SocketOption::HopLimit(0) => return Err(Error::Invalid),
            SocketOption::NoDelay(value) => options.no_delay = value,
            SocketOption::KeepAlive(value) => options.keep_alive = value,
            SocketOption::KeepIdle(time) => options.keep_idle = keep_time(time)?,
            SocketOption::KeepInterval(time) => options.keep_interval = keep_time(time)?,
            SocketOption::KeepCount(count @ 1..=limits::KEEP_COUNT_MAX) => options.keep_count = count,
            SocketOption::KeepCount(_) => return Err(Error::Invalid),
            // Linux takes zero for one (socket(7)).
            SocketOption::ReceiveLowWater(bytes) => options.receive_low_water = bytes.clamp(1, limits::BUFFER_MAX),
            SocketOption::Broadcast(value) => options.broadcast = value,
            SocketOption::MulticastHopLimit(value) => options.multicast_hop_limit = value,
            SocketOption::MulticastLoop(value) => options.multicast_loop = value,
            SocketOption::Linger(value) => options.linger = value,
            SocketOption::ReuseAddress(value) => options.reuse_address = value,
            SocketOption::ReusePort(value) => options.reuse_port = value,
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
