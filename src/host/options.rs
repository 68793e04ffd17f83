//! Socket options in Linux's numbers: which the stack honours, which are kept for who asks, which are refused.

use std::sync::PoisonError;
use std::time::Duration;

use unisockets_descriptors::{Fault, Kind, Option as Setting};
use unisockets_stack::{Error, SocketOption, State, StreamInfo};

use super::errors::{fault, system};
use super::{Entry, Role};

/// Options that mean nothing on this network: kept, so that a program reads back what it set. The level, the name,
/// and the value that Linux begins with.
const KEPT: &[(i32, i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_DONTROUTE, 0),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE, 0),
    (libc::SOL_SOCKET, libc::SO_PRIORITY, 0),
    (libc::SOL_SOCKET, libc::SO_NO_CHECK, 0),
    (libc::SOL_SOCKET, libc::SO_INCOMING_CPU, -1),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL, 0),
    (libc::IPPROTO_TCP, libc::TCP_CORK, 0),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, 6),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2, 60),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 0),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 0),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 0),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 0),
    (libc::IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 0),
    (libc::IPPROTO_IP, libc::IP_TOS, 0),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 1),
    (libc::IPPROTO_IP, libc::IP_RECVERR, 0),
    (libc::IPPROTO_IP, libc::IP_PKTINFO, 0),
    (libc::IPPROTO_IP, libc::IP_RECVTOS, 0),
    (libc::IPPROTO_IP, libc::IP_RECVTTL, 0),
    (libc::IPPROTO_IP, libc::IP_FREEBIND, 0),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 1),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF, 0),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 0),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, 0),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 0),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 0),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 0),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 1),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 0),
];

fn refused() -> Fault {
    fault(Error::NoSuchOption)
}

fn invalid() -> Fault {
    fault(Error::Invalid)
}

/// Reads an `int`, or the single byte that options of IP take too (ip(7)).
fn int(value: &[u8]) -> Result<i32, Fault> {
    if let Some(bytes) = value.first_chunk::<4>() {
        return Ok(i32::from_ne_bytes(*bytes));
    }
    value.first().map(|byte| i32::from(*byte)).ok_or_else(invalid)
}

fn seconds(value: i32) -> Result<Duration, Fault> {
    u64::try_from(value).map(Duration::from_secs).map_err(|_| invalid())
}

fn byte(value: i32) -> Result<u8, Fault> {
    u8::try_from(value).map_err(|_| invalid())
}

fn len(value: i32) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// Finds the stack's option for one of Linux's; nothing if it has none.
fn stack_option(option: &Setting) -> Result<Option<SocketOption>, Fault> {
    let value = &option.value;
    Ok(Some(match (option.level, option.name) {
        (libc::SOL_SOCKET, libc::SO_REUSEADDR) => SocketOption::ReuseAddress(int(value)? != 0),
        (libc::SOL_SOCKET, libc::SO_REUSEPORT) => SocketOption::ReusePort(int(value)? != 0),
        (libc::SOL_SOCKET, libc::SO_BROADCAST) => SocketOption::Broadcast(int(value)? != 0),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => SocketOption::KeepAlive(int(value)? != 0),
        // Linux doubles what is asked for, and says so when it is read (socket(7)).
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => SocketOption::SendBuffer(len(int(value)?).saturating_mul(2)),
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => SocketOption::ReceiveBuffer(len(int(value)?).saturating_mul(2)),
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => SocketOption::ReceiveLowWater(len(int(value)?)),
        (libc::SOL_SOCKET, libc::SO_LINGER) => {
            let (on, time) = value.split_first_chunk::<4>().ok_or_else(invalid)?;
            let on = i32::from_ne_bytes(*on) != 0;
            // Linux takes a negative time for the longest.
            let time = Some(int(time)?).filter(|time| *time >= 0).unwrap_or(i32::MAX);
            SocketOption::Linger(if on { Some(seconds(time)?) } else { None })
        }
        (libc::IPPROTO_TCP, libc::TCP_NODELAY) => SocketOption::NoDelay(int(value)? != 0),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => SocketOption::KeepIdle(seconds(int(value)?)?),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => SocketOption::KeepInterval(seconds(int(value)?)?),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => SocketOption::KeepCount(byte(int(value)?)?),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => {
            let ms = u64::try_from(int(value)?).map_err(|_| invalid())?;
            SocketOption::UserTimeout((ms > 0).then_some(Duration::from_millis(ms)))
        }
        (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => match int(value)? {
            -1 => SocketOption::HopLimit(64),
            hops => SocketOption::HopLimit(byte(hops)?),
        },
        (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS) => {
            match int(value)? {
                -1 => SocketOption::MulticastHopLimit(1),
                hops => SocketOption::MulticastHopLimit(byte(hops)?),
            }
        }
        (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP) | (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP) => {
            SocketOption::MulticastLoop(int(value)? != 0)
        }
        (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => SocketOption::V6Only(int(value)? != 0),
        _ => return Ok(None),
    }))
}

/// Joins or leaves a group; nothing if the option is another one.
fn group_option(entry: &Entry, option: &Setting) -> Option<Result<(), Fault>> {
    let group = match (option.level, option.name) {
        (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP | libc::IP_DROP_MEMBERSHIP) => {
            option.value.first_chunk::<4>().map(|bytes| std::net::IpAddr::from(*bytes))
        }
        (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP | libc::IPV6_DROP_MEMBERSHIP) => {
            option.value.first_chunk::<16>().map(|bytes| std::net::IpAddr::from(*bytes))
        }
        _ => return None,
    };
    let Some(group) = group else {
        return Some(Err(invalid()));
    };
    let joins = matches!(option.name, libc::IP_ADD_MEMBERSHIP | libc::IPV6_ADD_MEMBERSHIP);
    let socket = entry.socket.id;
    Some(entry.socket.driver.with(|state, _, _| {
        let stack = &mut state.core.stack;
        if joins { stack.join_group(socket, group) } else { stack.leave_group(socket, group) }.map_err(fault)
    }))
}

/// The number of the network's interface, as IP_PKTINFO says it.
const INTERFACE: i32 = 1;

/// Chooses the interface of multicast, of which there is one, and returns what is kept of it; nothing if the option is
/// another one.
fn interface_option(entry: &Entry, option: &Setting) -> Option<Result<Vec<u8>, Fault>> {
    let absent =
        |errno| Err(Fault { errno, text: "the network is one interface: choose none, or that one".to_owned() });
    match (option.level, option.name) {
        (libc::IPPROTO_IP, libc::IP_MULTICAST_IF) => {
            // An address; or a group, an address, and perhaps the number of an interface (ip(7)).
            let (address, number) = match option.value.len() {
                4 => (option.value.first_chunk::<4>(), None),
                8 | 12 => (option.value[4..].first_chunk::<4>(), option.value[8..].first_chunk::<4>()),
                _ => return Some(Err(invalid())),
            };
            let (Some(address), number) = (address, number.map_or(0, |number| i32::from_ne_bytes(*number))) else {
                return Some(Err(invalid()));
            };
            let ip = std::net::IpAddr::from(*address);
            let is_own = || entry.socket.driver.look(|state| state.core.stack.addresses().contains(&ip));
            Some(match number {
                INTERFACE => Ok(address.to_vec()),
                0 if ip.is_unspecified() || ip.is_loopback() || is_own() => Ok(address.to_vec()),
                _ => absent(libc::EADDRNOTAVAIL),
            })
        }
        (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF) => Some(match int(&option.value) {
            Ok(0 | INTERFACE) => Ok(option.value.clone()),
            Ok(_) => absent(libc::ENODEV),
            Err(error) => Err(error),
        }),
        _ => None,
    }
}

/// Sets an option.
///
/// # Errors
/// As `setsockopt(2)`.
pub(super) fn set(entry: &Entry, option: &Setting) -> Result<(), Fault> {
    if option.value.len() > Setting::VALUE_LEN_MAX {
        return Err(invalid());
    }
    let of_tcp = option.level == libc::IPPROTO_TCP && entry.kind != Kind::Tcp;
    let of_v6 = option.level == libc::IPPROTO_IPV6 && entry.family == unisockets_descriptors::Family::V4;
    if of_tcp || of_v6 {
        return Err(refused());
    }
    match (option.level, option.name) {
        (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL | libc::IP_MULTICAST_IF) if entry.kind == Kind::Tcp => {
            return Err(invalid());
        }
        (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF) if entry.kind == Kind::Tcp => return Err(refused()),
        _ => {}
    }
    // Options of IP alone take a single byte (ip(7)).
    if option.level != libc::IPPROTO_IP && option.value.len() < size_of::<i32>() {
        return Err(invalid());
    }
    if let Some(known) = stack_option(option)? {
        return entry.socket.set_option(known).map_err(|error| system(&error));
    }
    if let Some(outcome) = group_option(entry, option) {
        return outcome;
    }
    let value = match interface_option(entry, option) {
        Some(interface) => interface?,
        None if KEPT.iter().any(|(level, name, _)| (*level, *name) == (option.level, option.name)) => {
            int(&option.value)?;
            option.value.clone()
        }
        None => return Err(refused()),
    };
    let mut kept = entry.kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.insert((option.level, option.name), value);
    Ok(())
}

/// Reads an option.
///
/// # Errors
/// As `getsockopt(2)`.
pub(super) fn get(entry: &Entry, level: i32, name: i32) -> Result<Vec<u8>, Fault> {
    let has_level = match level {
        libc::SOL_SOCKET | libc::IPPROTO_IP => true,
        libc::IPPROTO_TCP => entry.kind == Kind::Tcp,
        libc::IPPROTO_IPV6 => entry.family == unisockets_descriptors::Family::V6,
        _ => false,
    };
    if !has_level {
        // Each family of Linux has its own word for it.
        let v4 = entry.family == unisockets_descriptors::Family::V4;
        return Err(if v4 { fault(Error::NotSupported) } else { refused() });
    }
    let options = entry.socket.options().map_err(|error| system(&error))?;
    let whole = |time: Duration| i32::try_from(time.as_secs()).unwrap_or(i32::MAX);
    let bytes = |len: usize| i32::try_from(len).unwrap_or(i32::MAX);
    let number = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_TYPE) => match entry.kind {
            Kind::Tcp => libc::SOCK_STREAM,
            Kind::Udp => libc::SOCK_DGRAM,
        },
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => {
            i32::from(matches!(&entry.role, Role::Bound(bound) if bound.listens()))
        }
        (libc::SOL_SOCKET, libc::SO_REUSEADDR) => i32::from(options.reuse_address),
        (libc::SOL_SOCKET, libc::SO_REUSEPORT) => i32::from(options.reuse_port),
        (libc::SOL_SOCKET, libc::SO_BROADCAST) => i32::from(options.broadcast),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => i32::from(options.keep_alive),
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => bytes(options.send_buffer),
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => bytes(options.receive_buffer),
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => bytes(options.receive_low_water),
        (libc::SOL_SOCKET, libc::SO_LINGER) => {
            let mut value = i32::from(options.linger.is_some()).to_ne_bytes().to_vec();
            value.extend(options.linger.map_or(0, whole).to_ne_bytes());
            return Ok(value);
        }
        (libc::IPPROTO_TCP, libc::TCP_NODELAY) => i32::from(options.no_delay),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => whole(options.keep_idle),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => whole(options.keep_interval),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => i32::from(options.keep_count),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => {
            options.user_timeout.map_or(0, |time| i32::try_from(time.as_millis()).unwrap_or(i32::MAX))
        }
        (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => info(entry).map_or(536, |info| bytes(info.mtu.saturating_sub(40))),
        (libc::IPPROTO_TCP, libc::TCP_INFO) => return Ok(tcp_info(entry)),
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => return Ok(b"sctp\0".to_vec()),
        (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => {
            i32::from(options.hop_limit)
        }
        (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS) => {
            i32::from(options.multicast_hop_limit)
        }
        (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP) | (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP) => {
            i32::from(options.multicast_loop)
        }
        (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => {
            // Of an address of IPv6 alone, too (Linux, inet6_bind).
            let local = entry.socket.local_addr().map_err(|error| system(&error))?;
            i32::from(options.v6_only || (local.is_ipv6() && !local.ip().is_unspecified()))
        }
        _ => return kept(entry, level, name),
    };
    Ok(number.to_ne_bytes().to_vec())
}

fn kept(entry: &Entry, level: i32, name: i32) -> Result<Vec<u8>, Fault> {
    if let Some(value) = entry.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&(level, name)) {
        return Ok(value.clone());
    }
    let default = KEPT.iter().find(|(known_level, known_name, _)| (*known_level, *known_name) == (level, name));
    default.map(|(_, _, value)| value.to_ne_bytes().to_vec()).ok_or_else(refused)
}

/// Whether a program wants to know the address that each datagram was sent to (IP_PKTINFO, IPV6_RECVPKTINFO).
pub(super) fn wants_destination(entry: &Entry) -> bool {
    let kept = entry.kept.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = [(libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)];
    wanted.iter().any(|option| kept.get(option).is_some_and(|value| value.iter().any(|byte| *byte != 0)))
}

fn info(entry: &Entry) -> Option<StreamInfo> {
    entry.socket.driver.look(|state| state.core.stack.stream_info(entry.socket.id)).ok()
}

/// Fills `struct tcp_info` (tcp(7)) from the stack's own counters; what it does not count is zero.
fn tcp_info(entry: &Entry) -> Vec<u8> {
    /// Bytes of the structure up to `tcpi_segs_in`, as of Linux 4.2.
    const LEN: usize = 144;
    let mut value = vec![0; LEN];
    let Some(info) = info(entry) else {
        // Linux's number of TCP_LISTEN and TCP_CLOSE.
        let listens = matches!(&entry.role, Role::Bound(bound) if bound.listens());
        value[0] = if listens { 10 } else { 7 };
        return value;
    };
    value[0] = match info.state {
        State::Established => 1,
        State::SynSent => 2,
        State::SynReceived => 3,
        State::FinWait1 => 4,
        State::FinWait2 => 5,
        State::TimeWait => 6,
        State::Closed => 7,
        State::CloseWait => 8,
        State::LastAck => 9,
        State::Listen => 10,
        State::Closing => 11,
    };
    value[2] = u8::try_from(info.retries).unwrap_or(u8::MAX);
    value[3] = info.probes;
    let mss = u32::try_from(info.mtu.saturating_sub(40)).unwrap_or(u32::MAX);
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let mut put = |at: usize, number: u32| value[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    put(16, mss);
    put(20, mss);
    put(60, u32::try_from(info.mtu).unwrap_or(u32::MAX));
    if let Some(round_trip) = info.round_trip {
        put(68, micros(round_trip.smoothed));
        put(72, micros(round_trip.variation));
    }
    put(100, small(info.resent_segments));
    put(136, small(info.sent_segments));
    put(140, small(info.received_segments));
    value[120..128].copy_from_slice(&info.sent_bytes.to_ne_bytes());
    value[128..136].copy_from_slice(&info.received_bytes.to_ne_bytes());
    value
}
