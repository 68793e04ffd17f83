//! Who holds which port, and ephemeral ports (RFC 6056, algorithm 3).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::errno::Error;
use crate::shard::SocketId;

/// First and last ephemeral port (ip_local_port_range of Linux).
pub(crate) const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// The number spaces that ports live in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Tcp,
    Udp,
    /// Identifiers of ICMP echo requests.
    Echo,
}

/// A claim on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) socket: SocketId,
    pub(crate) address: IpAddr,
    /// An unspecified IPv6 address also takes IPv4 traffic.
    pub(crate) dual_stack: bool,
    /// SO_REUSEADDR.
    pub(crate) reuse: bool,
    /// SO_REUSEPORT: all that have it share what comes.
    pub(crate) share: bool,
    pub(crate) listening: bool,
}

impl Binding {
    fn covers(&self, address: IpAddr) -> bool {
        if self.address.is_unspecified() {
            self.address.is_ipv4() == address.is_ipv4() || (self.address.is_ipv6() && self.dual_stack)
        } else {
            self.address == address
        }
    }

    fn overlaps(&self, other: &Binding) -> bool {
        self.covers(other.address) || other.covers(self.address)
    }

    /// How closely the binding names an address: an exact match wins over a wildcard.
    fn precision(&self) -> u8 {
        match (self.address.is_unspecified(), self.dual_stack) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }
}

/// The table of claimed ports.
#[derive(Default)]
pub(crate) struct Ports {
    bindings: HashMap<(Space, u16), Vec<Binding>>,
}

impl Ports {
    /// Claims a port. Two claims that overlap need SO_REUSEPORT on both, or SO_REUSEADDR on both and neither listening.
    pub(crate) fn claim(&mut self, space: Space, port: u16, binding: Binding) -> Result<(), Error> {
        if !self.is_free(space, port, &binding) {
            return Err(Error::AddressInUse);
        }
        self.bindings.entry((space, port)).or_default().push(binding);
        Ok(())
    }

    pub(crate) fn is_free(&self, space: Space, port: u16, binding: &Binding) -> bool {
        let shares = |held: &Binding| {
            let quiet = !held.listening && !binding.listening;
            (held.share && binding.share) || (held.reuse && binding.reuse && quiet)
        };
        let held = self.bindings.get(&(space, port));
        !held.is_some_and(|held| held.iter().any(|held| held.overlaps(binding) && !shares(held)))
    }

    pub(crate) fn is_claimed(&self, space: Space, port: u16) -> bool {
        self.bindings.contains_key(&(space, port))
    }

    /// Marks a claim as listening; fails if another overlapping claim listens already, unless both have SO_REUSEPORT.
    pub(crate) fn listen(&mut self, port: u16, socket: SocketId) -> Result<(), Error> {
        let bindings = self.bindings.get_mut(&(Space::Tcp, port)).ok_or(Error::Invalid)?;
        let own = *bindings.iter().find(|binding| binding.socket == socket).ok_or(Error::Invalid)?;
        let excludes = |held: &Binding| held.listening && held.overlaps(&own) && !(held.share && own.share);
        if bindings.iter().any(|held| held.socket != socket && excludes(held)) {
            return Err(Error::AddressInUse);
        }
        for binding in bindings.iter_mut().filter(|binding| binding.socket == socket) {
            binding.listening = true;
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, space: Space, port: u16, socket: SocketId) {
        if let Some(bindings) = self.bindings.get_mut(&(space, port)) {
            bindings.retain(|binding| binding.socket != socket);
            if bindings.is_empty() {
                self.bindings.remove(&(space, port));
            }
        }
    }

    /// Finds the best claim on `destination` among those that `suits`: the newest of equals, or with SO_REUSEPORT the one
    /// that `flow` stands for, which is the same for all that a peer's port sends while the claims stay.
    pub(crate) fn lookup(
        &self,
        space: Space,
        destination: SocketAddr,
        flow: &dyn Fn() -> u64,
        suits: &dyn Fn(&Binding) -> bool,
    ) -> Option<SocketId> {
        let bindings = self.bindings.get(&(space, destination.port()))?;
        let covering = || bindings.iter().filter(|binding| binding.covers(destination.ip()) && suits(binding));
        let best = covering().max_by_key(|binding| binding.precision())?;
        if !best.share {
            return Some(best.socket);
        }
        let equal = || covering().filter(|binding| binding.share && binding.precision() == best.precision());
        let count = equal().count() as u64;
        let turn = usize::try_from(flow() % count).expect("there are fewer claims than that");
        equal().nth(turn).map(|binding| binding.socket)
    }

    /// Returns every socket whose claim on a port covers an address.
    pub(crate) fn covering(&self, space: Space, port: u16, address: IpAddr) -> impl Iterator<Item = SocketId> + '_ {
        let bindings = self.bindings.get(&(space, port)).map_or(&[][..], Vec::as_slice);
        bindings.iter().filter(move |binding| binding.covers(address)).map(|binding| binding.socket)
    }

    /// Finds an ephemeral port for which `is_free`, walking from `start` around the whole range.
    pub(crate) fn ephemeral(start: u64, mut is_free: impl FnMut(u16) -> bool) -> Result<u16, Error> {
        let (first, count) = (*EPHEMERAL.start(), u64::from(EPHEMERAL.end() - EPHEMERAL.start()) + 1);
        let port = |n: u64| first + u16::try_from(start.wrapping_add(n) % count).expect("the range has 16 bits");
        (0..count).map(port).find(|port| is_free(*port)).ok_or(Error::AddressNotAvailable)
    }
}
