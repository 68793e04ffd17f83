//! The stack itself: sockets, flows, paths and the queues between them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use siphasher::sip::SipHasher13;

use crate::buffers::Pool;
use crate::errno::Error;
use crate::flow::{Flow, FlowId, Tuple};
use crate::fragments::Reassembly;
use crate::group::Groups;
use crate::limits;
use crate::mtu::LearntMtus;
use crate::options::Options;
use crate::packet::DropReason;
use crate::path::{Path, PathConfig, PathId, PathState};
use crate::ports::{Binding, Ports, Space};
use crate::readiness::Readiness;
use crate::slab::{Slab, key};
use crate::stream::Role;
use crate::tcp::Engine;
use crate::time::Instant;
use crate::time_wait::TimeWait;

key! {
    /// Names a socket; stale names are recognised.
    pub SocketId
}

/// What a socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// SOCK_STREAM.
    Tcp,
    /// SOCK_DGRAM.
    Udp,
    /// ICMP echo, as Linux's `IPPROTO_ICMP` datagram sockets: the port is the identifier.
    Echo,
}

/// The address family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6; carries IPv4 too unless [`crate::SocketOption::V6Only`] is set.
    V6,
}

/// What the caller has to do something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The readiness of a socket may have changed: an edge. [`Stack::readiness`] tells the level.
    Ready(SocketId),
    /// Packets wait on a new, pending path: find out who has the address, dial, then call
    /// [`Stack::path_up`] or [`Stack::end_path`].
    PathWanted {
        /// The path that waits.
        path: PathId,
        /// The address that a program wants to reach.
        destination: IpAddr,
    },
}

/// A keyed hash, so that peers cannot choose collisions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyedHash(pub(crate) u64, pub(crate) u64);

impl BuildHasher for KeyedHash {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

/// A prefix of the virtual network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// An address of the prefix.
    pub address: IpAddr,
    /// The length of the prefix in bits.
    pub len: u8,
}

impl Prefix {
    /// Returns whether the prefix holds `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len.min(32))).unwrap_or(0);
                u32::from(own) & mask == u32::from(other) & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.len.min(128))).unwrap_or(0);
                u128::from(own) & mask == u128::from(other) & mask
            }
            _ => false,
        }
    }
}

pub(crate) struct Socket {
    pub(crate) kind: Kind,
    pub(crate) family: Family,
    pub(crate) bound: Option<SocketAddr>,
    pub(crate) options: Options,
    pub(crate) role: Role,
    pub(crate) error: Option<Error>,
    /// Whether the socket is in the queue of [`Event::Ready`].
    pub(crate) announced: bool,
    pub(crate) receive_shut: bool,
}

impl Socket {
    pub(crate) fn space(&self) -> Space {
        match self.kind {
            Kind::Tcp => Space::Tcp,
            Kind::Udp => Space::Udp,
            Kind::Echo => Space::Echo,
        }
    }
}

/// A TCP/UDP/ICMP stack that does no I/O.
pub struct Stack {
    pub(crate) engine: Engine,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) prefixes: Vec<Prefix>,
    pub(crate) sockets: Slab<SocketId, Socket>,
    pub(crate) flows: Slab<FlowId, Flow>,
    pub(crate) tuples: HashMap<Tuple, FlowId, KeyedHash>,
    /// Whether connections take no more bytes, for the node leaves.
    pub(crate) finishing: bool,
    pub(crate) time_wait: TimeWait,
    pub(crate) ports: Ports,
    pub(crate) paths: Slab<PathId, Path>,
    pub(crate) routes: HashMap<IpAddr, PathId>,
    pub(crate) timers: BinaryHeap<Reverse<(Instant, FlowId)>>,
    pub(crate) reassembly: Reassembly,
    pub(crate) learnt_mtus: LearntMtus,
    pub(crate) groups: Groups,
    pub(crate) orphans: usize,
    pub(crate) pool: Pool,
    /// Bytes that all rings have committed.
    pub(crate) committed: usize,
    /// Connections whose memory may be given back when they are still idle then.
    pub(crate) resting: VecDeque<(Instant, FlowId)>,
    /// Where an answer is written before it is queued.
    pub(crate) scratch: Vec<u8>,
    ready: VecDeque<SocketId>,
    wanted: VecDeque<(PathId, IpAddr)>,
    path_queue: VecDeque<PathId>,
    drops: [u64; DropReason::ALL.len()],
    hash: KeyedHash,
    counter: u64,
    /// Ephemeral ports chosen so far.
    ports_chosen: u64,
    loopback: PathId,
}

impl Stack {
    /// Makes a stack. `seed` must come from the operating system's random source: initial sequence
    /// numbers, ports and hash keys are derived from it.
    pub fn new(seed: u128) -> Stack {
        let hash = KeyedHash((seed >> 64) as u64, seed as u64);
        let mut paths = Slab::new();
        let config = PathConfig { mtu: limits::LOOPBACK_MTU, verify_checksums: false };
        let loopback = paths.insert(Path::new(config, PathState::Up));
        Stack {
            engine: Engine::new(),
            addresses: Vec::new(),
            prefixes: Vec::new(),
            sockets: Slab::new(),
            flows: Slab::new(),
            tuples: HashMap::with_hasher(hash),
            finishing: false,
            time_wait: TimeWait::new(hash),
            ports: Ports::default(),
            paths,
            routes: HashMap::new(),
            timers: BinaryHeap::new(),
            reassembly: Reassembly::default(),
            learnt_mtus: LearntMtus::default(),
            groups: Groups::default(),
            orphans: 0,
            pool: Pool::new(),
            committed: 0,
            resting: VecDeque::new(),
            scratch: Vec::new(),
            ready: VecDeque::new(),
            wanted: VecDeque::new(),
            path_queue: VecDeque::new(),
            drops: [0; DropReason::ALL.len()],
            hash,
            counter: 0,
            ports_chosen: 0,
            loopback,
        }
    }

    /// Returns the path on which the node talks to itself: the caller hands what
    /// [`Stack::poll_packet`] gives for it back to [`Stack::handle_packet`].
    pub fn loopback(&self) -> PathId {
        self.loopback
    }

    /// Whether an address is in one of the network's prefixes.
    pub fn is_in_network(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(address))
    }

    /// Sets the node's addresses and the prefixes of its network. Connections from an address that is
    /// gone stay until they fail.
    pub fn set_addresses(&mut self, addresses: &[IpAddr], prefixes: &[Prefix]) {
        self.addresses = addresses.to_vec();
        self.prefixes = prefixes.to_vec();
    }

    /// Returns the node's addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// Returns a number that nobody outside can predict.
    pub(crate) fn random(&mut self) -> u64 {
        self.counter += 1;
        let mut hasher = self.hash.build_hasher();
        hasher.write_u64(self.counter);
        hasher.write(b"random");
        hasher.finish()
    }

    /// Returns where the walk over ephemeral ports begins: a keyed hash of the destination, and a step for each
    /// connection (RFC 6056, section 3.3.3).
    pub(crate) fn port_offset(&mut self, local: IpAddr, remote: SocketAddr) -> u64 {
        self.ports_chosen += 1;
        self.hash.hash_one((local, remote)).wrapping_add(self.ports_chosen)
    }

    /// Returns the initial sequence number of a connection: a clock of 4 µs, and a keyed hash of the ends (RFC 9293,
    /// section 3.4.1, MUST-8; RFC 6528). Where a name is used again, the peer that waits in TIME-WAIT can tell.
    pub(crate) fn initial_sequence(&self, now: Instant, tuple: &Tuple) -> u32 {
        let clock = (now.as_micros() / 4) as u32;
        clock.wrapping_add(self.number_of(b's', tuple) as u32)
    }

    /// Returns the number that stands for a flow among sockets that share a port; nobody outside can choose it.
    pub(crate) fn flow_number(&self, tuple: &Tuple) -> u64 {
        self.number_of(b'f', tuple)
    }

    // Out of line: the browser's module has it once.
    #[inline(never)]
    fn number_of(&self, purpose: u8, tuple: &Tuple) -> u64 {
        self.hash.hash_one((purpose, tuple))
    }

    /// Returns the node's address to send from (RFC 6724, cut down to one address per family).
    pub(crate) fn source_for(&self, destination: IpAddr) -> Result<IpAddr, Error> {
        if self.is_own(destination) {
            return Ok(destination);
        }
        let own = self.addresses.iter().find(|own| own.is_ipv4() == destination.is_ipv4());
        own.copied().ok_or(Error::NetworkUnreachable)
    }

    /// Returns the path to an address, making a pending one for an address of the network, which then is wanted
    /// ([`Event::PathWanted`]).
    ///
    /// # Errors
    /// [`Error::NetworkUnreachable`] outside the network's prefixes, [`Error::NoBuffers`] at the limit of 16,384 paths.
    pub fn path_to(&mut self, destination: IpAddr) -> Result<PathId, Error> {
        if self.is_own(destination) {
            return Ok(self.loopback);
        }
        if let Some(path) = self.routes.get(&destination) {
            return Ok(*path);
        }
        if !self.is_in_network(destination) {
            return Err(Error::NetworkUnreachable);
        }
        if self.paths.len() >= limits::PATHS_MAX {
            return Err(Error::NoBuffers);
        }
        let config = PathConfig { mtu: limits::MTU_MIN, verify_checksums: true };
        let path = self.paths.insert(Path::new(config, PathState::Pending));
        self.routes.insert(destination, path);
        self.wanted.push_back((path, destination));
        Ok(path)
    }

    /// Makes a socket (`socket(2)`).
    ///
    /// # Errors
    /// [`Error::NoBuffers`] at the limit of 65,536 sockets.
    pub fn socket(&mut self, kind: Kind, family: Family) -> Result<SocketId, Error> {
        if self.sockets.len() >= limits::SOCKETS_MAX {
            return Err(Error::NoBuffers);
        }
        Ok(self.sockets.insert(Socket {
            kind,
            family,
            bound: None,
            options: Options::new(kind),
            role: Role::new(kind),
            error: None,
            announced: false,
            receive_shut: false,
        }))
    }

    pub(crate) fn socket_ref(&self, socket: SocketId) -> Result<&Socket, Error> {
        self.sockets.get(socket).ok_or(Error::BadSocket)
    }

    pub(crate) fn socket_mut(&mut self, socket: SocketId) -> Result<&mut Socket, Error> {
        self.sockets.get_mut(socket).ok_or(Error::BadSocket)
    }

    /// Binds a socket to an address of this node, a loopback address or an unspecified one
    /// (`bind(2)`); port 0 takes an ephemeral port.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is bound already, or is of IPv6 alone and the address is IPv4's, [`Error::AddressFamily`],
    /// [`Error::AddressNotAvailable`], [`Error::AddressInUse`].
    pub fn bind(&mut self, socket: SocketId, address: SocketAddr) -> Result<SocketAddr, Error> {
        let entry = self.socket_ref(socket)?;
        if entry.bound.is_some() {
            return Err(Error::Invalid);
        }
        if address.is_ipv6() && entry.family == Family::V4 {
            return Err(Error::AddressFamily);
        }
        let address = canonical(address);
        if address.is_ipv4() && entry.family == Family::V6 && entry.options.v6_only {
            return Err(Error::Invalid);
        }
        let ip = address.ip();
        // A datagram socket may take only what is sent to a group, or to everybody (ip(7)).
        let for_many = entry.kind == Kind::Udp && self.is_for_many(ip);
        if !ip.is_unspecified() && !self.is_own(ip) && !for_many {
            return Err(Error::AddressNotAvailable);
        }
        let space = entry.space();
        let binding = Binding {
            socket,
            address: ip,
            dual_stack: entry.family == Family::V6 && !entry.options.v6_only,
            reuse: entry.options.reuse_address,
            share: entry.options.reuse_port,
            listening: false,
        };
        let port = if address.port() == 0 {
            let start = self.random();
            Ports::ephemeral(start, |port| !self.ports.is_claimed(space, port))?
        } else {
            address.port()
        };
        self.ports.claim(space, port, binding)?;
        let bound = SocketAddr::new(ip, port);
        self.socket_mut(socket)?.bound = Some(bound);
        Ok(bound)
    }

    /// Returns the socket's own address (`getsockname(2)`); unspecified before it has one.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn local_address(&self, socket: SocketId) -> Result<SocketAddr, Error> {
        let entry = self.socket_ref(socket)?;
        if let Role::Stream(flow) = entry.role
            && let Some(flow) = self.flows.get(flow)
        {
            return Ok(flow.tuple.local);
        }
        let unspecified = match entry.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Ok(entry.bound.unwrap_or(SocketAddr::new(unspecified, 0)))
    }

    /// Takes the pending error of a socket (SO_ERROR).
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn take_error(&mut self, socket: SocketId) -> Result<Option<Error>, Error> {
        let entry = self.socket_mut(socket)?;
        let error = entry.error.take();
        let flow = match entry.role {
            Role::Stream(flow) => Some(flow),
            _ => None,
        };
        Ok(error.or_else(|| self.flows.get_mut(flow?)?.error.take()))
    }

    /// Returns what the socket can do now; a stale name hangs up.
    pub fn readiness(&self, socket: SocketId) -> Readiness {
        let Some(entry) = self.sockets.get(socket) else {
            return Readiness::READABLE | Readiness::WRITABLE | Readiness::HANG_UP;
        };
        let base = Readiness::NONE.with(Readiness::ERROR, entry.error.is_some());
        match &entry.role {
            Role::Idle => base | Readiness::HANG_UP | Readiness::WRITABLE,
            Role::Listening(listener) => base.with(Readiness::READABLE, listener.is_readable()),
            Role::Stream(flow) => base | self.stream_readiness(*flow, &entry.options, entry.receive_shut),
            Role::Datagram(datagram) => base | datagram.readiness(),
        }
    }

    /// Queues an [`Event::Ready`] for a socket, once until it is polled.
    pub(crate) fn mark_ready(&mut self, socket: SocketId) {
        if let Some(entry) = self.sockets.get_mut(socket)
            && !entry.announced
        {
            entry.announced = true;
            self.ready.push_back(socket);
        }
    }

    /// Returns the next thing that the caller has to act on.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some((path, destination)) = self.wanted.pop_front() {
            return Some(Event::PathWanted { path, destination });
        }
        let socket = self.ready.pop_front()?;
        if let Some(entry) = self.sockets.get_mut(socket) {
            entry.announced = false;
        }
        Some(Event::Ready(socket))
    }

    /// Puts a path into the queue of [`Stack::poll_path`] if something waits on it.
    pub(crate) fn queue_path(&mut self, path: PathId) {
        if let Some(entry) = self.paths.get_mut(path)
            && !entry.queued
            && entry.state == PathState::Up
            && entry.has_work()
        {
            entry.queued = true;
            self.path_queue.push_back(path);
        }
    }

    /// Returns the next path with packets to send: call [`Stack::poll_packet`] for it until that gives
    /// nothing, and [`Stack::path_writable`] once its link has room again.
    pub fn poll_path(&mut self) -> Option<PathId> {
        while let Some(path) = self.path_queue.pop_front() {
            if let Some(entry) = self.paths.get_mut(path) {
                entry.queued = false;
                return Some(path);
            }
        }
        None
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// Returns how many packets were dropped, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|reason| (*reason, self.drops[*reason as usize]))
    }

    /// Returns how many sockets there are.
    pub fn socket_count(&self) -> usize {
        self.sockets.len()
    }
}

/// Turns an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) into the IPv4 address that it means.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
