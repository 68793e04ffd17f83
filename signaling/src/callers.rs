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

/// Connections at one time of all addresses together, members or not.
pub(crate) const CONNECTIONS_MAX: usize = 50_000;
/// Connections of an address above its limit that are still told so; one more is closed unheard.
const SURPLUS_MAX: usize = 32;

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
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// Connections by address; an address without any is not in it.
    by_address: HashMap<IpAddr, usize>,
    total: usize,
}

/// A place among the connections of an address, from its first packet on; dropping it gives it back.
pub(crate) struct Call {
    callers: Arc<Callers>,
    address: IpAddr,
    limit: usize,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut open = self.callers.open();
        open.total -= 1;
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
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

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection that was accepted, whatever it is for: whoever never asks for anything has a place as well.
    /// Nothing if the address has far too many, or all have.
    pub(crate) fn enter(self: &Arc<Self>, caller: IpAddr) -> Option<Call> {
        let address = counted(caller);
        let is_loopback = caller.to_canonical().is_loopback();
        let limit = if is_loopback { self.limits.per_loopback_address } else { self.limits.per_address };
        let mut open = self.open();
        let count = open.by_address.get(&address).copied().unwrap_or_default();
        if count >= limit + SURPLUS_MAX || open.total >= CONNECTIONS_MAX + SURPLUS_MAX {
            return None;
        }
        open.total += 1;
        open.by_address.insert(address, count + 1);
        Some(Call { callers: Arc::clone(self), address, limit })
    }

    /// Forgets the buckets of addresses that have been quiet.
    pub(crate) fn forget_quiet(&self) {
        self.buckets.retain_recent();
    }
}

impl Call {
    /// Lets the connection become a member's, or not.
    pub(crate) fn admit(&self) -> Result<(), Refused> {
        if self.callers.buckets.check_key(&self.address).is_err() {
            return Err(Refused::TooFast);
        }
        let count = self.callers.open().by_address.get(&self.address).copied().unwrap_or_default();
        if count > self.limit { Err(Refused::TooMany) } else { Ok(()) }
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
#[derive(Clone)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    /// The connection's place; the listener itself has none.
    pub(crate) call: Option<Arc<Call>>,
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

/// A listener that tells both ends of each connection, and closes those of an address that has too many.
pub(crate) struct EndsListener {
    pub(crate) listener: TcpListener,
    pub(crate) callers: Arc<Callers>,
}

impl AddrListener<TcpStream, Ends> for EndsListener {
    async fn bind_to(ends: Ends) -> std::io::Result<Self> {
        let callers = Callers::new(Limits::default());
        TcpListener::bind(ends.local).await.map(|listener| Self { listener, callers })
    }

    async fn accept_stream(&self) -> std::io::Result<(TcpStream, Ends)> {
        loop {
            let (stream, caller) = self.listener.accept().await?;
            if let Some(call) = self.callers.enter(caller.ip()) {
                let local = stream.local_addr()?;
                // The challenge follows the answer to the upgrade at once: it must not wait until that was acknowledged.
                let _ = stream.set_nodelay(true);
                return Ok((stream, Ends { local, call: Some(Arc::new(call)) }));
            }
        }
    }

    fn get_local_addr(&self) -> std::io::Result<Ends> {
        Ok(Ends { local: self.listener.local_addr()?, call: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(callers: &Arc<Callers>, from: &str) -> Call {
        callers.enter(from.parse().unwrap()).expect("it is not far too many")
    }

    /// Only the rate was limited once: one address could take all connections of a server, and keep them. Then only
    /// members were counted: whoever connected and said nothing was not.
    #[test]
    fn an_address_has_a_bounded_number_of_connections_at_one_time() {
        let callers = Callers::new(Limits::default());
        let stranger = "192.0.2.1";
        let mut calls: Vec<Call> = (0..256).map(|_| enter(&callers, stranger)).collect();
        assert!(calls.iter().all(|call| call.admit().is_ok()));
        let surplus: Vec<Call> = (0..SURPLUS_MAX).map(|_| enter(&callers, "::ffff:192.0.2.1")).collect();
        assert_eq!(surplus[0].admit(), Err(Refused::TooMany));
        assert!(callers.enter(stranger.parse().unwrap()).is_none(), "nobody listens to more");
        assert!(enter(&callers, "192.0.2.2").admit().is_ok(), "another address is not concerned");
        drop(surplus);
        calls.pop();
        assert!(enter(&callers, stranger).admit().is_ok(), "whoever goes makes room");
        calls.clear();
        assert!(
            callers.open().by_address.is_empty() && callers.open().total == 0,
            "an address without connections is forgotten"
        );
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_each_address_of_loopback_has_more() {
        let callers = Callers::new(Limits { per_address: 2, per_loopback_address: 3 });
        let calls = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|ip| enter(&callers, ip));
        assert_eq!(calls[2].admit(), Err(Refused::TooMany));
        for loopback in ["127.0.0.1", "127.0.0.2", "::1"] {
            let calls: Vec<Call> = (0..3).map(|_| enter(&callers, loopback)).collect();
            assert!(calls.iter().all(|call| call.admit().is_ok()));
            assert_eq!(enter(&callers, loopback).admit(), Err(Refused::TooMany));
        }
    }

    #[test]
    fn all_addresses_together_have_a_bounded_number_too() {
        let callers = Callers::new(Limits::default());
        let address = |n: usize| IpAddr::V6((((n / 256 + 1) as u128) << 64 | 0x2001 << 112).into());
        let calls: Vec<Call> = (0..).map_while(|n| callers.enter(address(n))).collect();
        assert_eq!(calls.len(), CONNECTIONS_MAX + SURPLUS_MAX);
    }

    #[test]
    fn an_address_that_connects_too_fast_is_refused() {
        let callers = Callers::new(Limits::default());
        let refused = (0..2 * CONNECTS_BURST).filter_map(|_| enter(&callers, "192.0.2.1").admit().err()).next();
        assert_eq!(refused, Some(Refused::TooFast));
    }
}
