//! Where every packet can be seen.

use std::net::IpAddr;

pub use unisockets_link::pcapng::Direction;
use unisockets_stack::Instant;

/// Sees every packet of a node. It must not wait.
pub trait Tap: Send {
    /// Gives an interface for the link to a peer.
    fn interface(&mut self, name: &str) -> u32;
    /// Gives an address a name.
    fn name(&mut self, address: IpAddr, name: &str);
    /// Sees a packet; without an interface it is on loopback. `dropped` says why it went no further.
    fn packet(
        &mut self,
        now: Instant,
        interface: Option<u32>,
        direction: Direction,
        packet: &[u8],
        dropped: Option<&'static str>,
    );
    /// Called at intervals: brings what was seen to where it belongs.
    fn flush(&mut self) {}
}
