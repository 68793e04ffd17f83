//! Where every packet can be seen.

use std::net::IpAddr;

pub use unisockets_link::pcapng::Direction;
use unisockets_stack::Instant;

use crate::node::NodeCore;

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

impl NodeCore {
    /// Lets a tap see every packet.
    pub fn set_tap(&mut self, tap: Box<dyn Tap>) {
        self.tap = Some(tap);
    }

    /// Lets a tap see every packet from now on, of a node that may have peers already; returns the one before.
    pub fn replace_tap(&mut self, tap: Option<Box<dyn Tap>>) -> Option<Box<dyn Tap>> {
        let before = std::mem::replace(&mut self.tap, tap);
        for peer in self.peers.values_mut() {
            peer.interface = None;
            if let (Some(tap), true) = (&mut self.tap, peer.link.is_some()) {
                peer.describe(&mut **tap);
            }
        }
        before
    }

    /// Takes the tap back, so that it can be finished.
    pub fn take_tap(&mut self) -> Option<Box<dyn Tap>> {
        self.tap.take()
    }

    /// Asks the tap to bring what it saw to where it belongs; returns whether there is one.
    pub fn flush_tap(&mut self) -> bool {
        if let Some(tap) = &mut self.tap {
            tap.flush();
        }
        self.tap.is_some()
    }
}
