//! Who may connect, how often and how many times: buckets and counts by address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::connect_info::Connected;
use axum_server::{AddrListener, Address};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::net::{TcpListener, TcpStream};

/// New connections a second from one address, and at once.
const CONNECTS_PER_S: u32 = 50;
/// See [`CONNECTS_PER_S`].
const CONNECTS_BURST: u32 = 500;
/// Connections at one time from one address: a stranger needs many addresses to fill a server.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 256;
/// The same for each address of loopback, where a proxy, or a whole test, is one address.
pub const CONNECTIONS_PER_LOOPBACK_ADDRESS_MAX: usize = 16_384;

/// How many connections one address may have at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From another machine; an IPv6 /64 counts as one address.
    pub per_address: usize,
    /// From this machine; each address of `127.0.0.0/8` counts by itself.
    pub per_loopback_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_address: CONNECTIONS_PER_ADDRESS_MAX, per_loopback_address: CONNECTIONS_PER_LOOPBACK_ADDRESS_MAX }
    }
}

/// Why a connection is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many in a short time.
    TooFast,
    /// Too many at one time.
    TooMany,
}

/// The addresses that connections come from.
pub(crate) struct Callers {
    limits: Limits,
    buckets: DefaultKeyedRateLimiter<IpAddr>,
    /// Connections by address; an address without any is not in it.
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among the connections of an address; dropping it gives it back.
pub(crate) struct Call {
    callers: Arc<Callers>,
    address: IpAddr,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut open = self.callers.open();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

pub(crate) fn quota(per_s: u32, burst: u32) -> Quota {
    let nonzero = |n| NonZeroU32::new(n).expect("the limits are not zero");
    Quota::per_second(nonzero(per_s)).allow_burst(nonzero(burst))
}

impl Callers {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        let buckets = RateLimiter::keyed(quota(CONNECTS_PER_S, CONNECTS_BURST));
        Arc::new(Self { limits, buckets, open: Mutex::default() })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, or not.
    pub(crate) fn admit(self: &Arc<Self>, caller: IpAddr) -> Result<Call, Refused> {
        let address = counted(caller);
        if self.buckets.check_key(&address).is_err() {
            return Err(Refused::TooFast);
        }
        let is_loopback = caller.to_canonical().is_loopback();
        let limit = if is_loopback { self.limits.per_loopback_address } else { self.limits.per_address };
        let mut open = self.open();
        let count = open.entry(address).or_default();
        if *count >= limit {
            return Err(Refused::TooMany);
        }
        *count += 1;
        Ok(Call { callers: Arc::clone(self), address })
    }

    /// Forgets the buckets of addresses that have been quiet.
    pub(crate) fn forget_quiet(&self) {
        self.buckets.retain_recent();
    }
}

/// Returns what is counted as one address: an IPv6 host owns a whole /64.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        v4 => v4,
    }
}

/// Both ends of a connection: what a server is called depends on its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) caller: SocketAddr,
    pub(crate) local: SocketAddr,
}

impl Address for Ends {
    type Stream = TcpStream;
    type Listener = EndsListener;
}

impl Connected<Ends> for Ends {
    fn connect_info(ends: Ends) -> Self {
        ends
    }
}

/// A listener that tells both ends of each connection.
pub(crate) struct EndsListener(pub(crate) TcpListener);

impl AddrListener<TcpStream, Ends> for EndsListener {
    async fn bind_to(ends: Ends) -> std::io::Result<Self> {
        TcpListener::bind(ends.local).await.map(Self)
    }

    async fn accept_stream(&self) -> std::io::Result<(TcpStream, Ends)> {
        let (stream, caller) = self.0.accept().await?;
        let local = stream.local_addr()?;
        // The challenge follows the answer to the upgrade at once: it must not wait until that was acknowledged.
        let _ = stream.set_nodelay(true);
        Ok((stream, Ends { caller, local }))
    }

    fn get_local_addr(&self) -> std::io::Result<Ends> {
        let local = self.0.local_addr()?;
        Ok(Ends { caller: local, local })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the rate was limited once: one address could take all connections of a server, and keep them.
    #[test]
    fn an_address_has_a_bounded_number_of_connections_at_one_time() {
        let callers = Callers::new(Limits::default());
        let stranger: IpAddr = "192.0.2.1".parse().unwrap();
        let mut calls: Vec<Call> = (0..256).map(|_| callers.admit(stranger).ok().unwrap()).collect();
        assert_eq!(callers.admit(stranger).err(), Some(Refused::TooMany));
        assert_eq!(callers.admit("::ffff:192.0.2.1".parse().unwrap()).err(), Some(Refused::TooMany));
        assert!(callers.admit("192.0.2.2".parse().unwrap()).is_ok(), "another address is not concerned");
        calls.pop();
        assert!(callers.admit(stranger).is_ok(), "whoever goes makes room");
        calls.clear();
        assert!(callers.open().is_empty(), "an address without connections is forgotten");
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_each_address_of_loopback_has_more() {
        let callers = Callers::new(Limits { per_address: 2, per_loopback_address: 3 });
        let _calls = ["2001:db8::1", "2001:db8::2"].map(|ip| callers.admit(ip.parse().unwrap()).ok().unwrap());
        assert_eq!(callers.admit("2001:db8::3".parse().unwrap()).err(), Some(Refused::TooMany));
        for loopback in ["127.0.0.1", "127.0.0.2", "::1"].map(|ip| ip.parse().unwrap()) {
            let calls: Vec<Call> = (0..3).map(|_| callers.admit(loopback).ok().unwrap()).collect();
            assert_eq!(callers.admit(loopback).err(), Some(Refused::TooMany));
            drop(calls);
        }
    }

    #[test]
    fn an_address_that_connects_too_fast_is_refused() {
        let callers = Callers::new(Limits::default());
        let stranger: IpAddr = "192.0.2.1".parse().unwrap();
        let refused = (0..2 * CONNECTS_BURST).filter_map(|_| callers.admit(stranger).err()).next();
        assert_eq!(refused, Some(Refused::TooFast));
    }
}
