//! How a packet reaches that peer: one link for each peer, with lanes for kinds of traffic.
//!
//! A [`Link`] takes packets synchronously into a bounded queue and delivers what arrives to a
//! [`Sink`]. The real link is four WebRTC data channels: `native` (feature `webrtc`, on by default), and `browser`, whose
//! channels are a page's. [`memory`] joins two ends in one process, [`fault`] is a bad wire in virtual time, [`pcapng`] writes what passed.
//!
//! The cores, [`budget`], [`frame`], [`lanes`], [`liveness`], [`fault`], [`repair`] and [`pcapng`], do no I/O.

#[cfg(planted_bugs)]
#[macro_use]
pub mod planted;
#[cfg(not(planted_bugs))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

#[cfg(any(feature = "webrtc", target_family = "wasm"))]
pub mod browser;
pub mod budget;
pub mod fault;
pub mod frame;
pub mod lanes;
pub mod liveness;
#[cfg(any(feature = "webrtc", target_family = "wasm"))]
mod marks;
pub mod memory;
#[cfg(all(feature = "webrtc", not(target_family = "wasm")))]
pub mod native;
#[cfg(any(feature = "webrtc", target_family = "wasm"))]
mod outgoing;
pub mod pcapng;
pub mod repair;
pub mod signal;
#[cfg(all(feature = "webrtc", not(target_family = "wasm")))]
mod sockets;

use std::fmt;

pub use lanes::Lane;
pub use signal::{IceServer, Role, Signal};

/// Largest IP packet that a link offers to carry, in bytes, headers included. Above 16 KiB nothing is
/// gained, and SCTP fragments it for the wire.
pub const MTU: usize = 16_384;

/// Free bytes of a link's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// In the lanes for TCP.
    pub stream: usize,
    /// In the lane for datagrams.
    pub datagram: usize,
}

/// Whether a link's packets travel straight between the peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// From host to host, through address translation where there is one.
    Direct,
    /// Through a TURN server.
    Relayed,
}

/// What a link has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Packets taken for sending.
    pub sent_packets: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Packets delivered.
    pub received_packets: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Messages that were no legal frames.
    pub malformed: u64,
    /// Datagrams of the transport that were lost, and put together again from parity.
    #[serde(default)]
    pub repaired: u64,
}

/// Why a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lost {
    /// The two peers found no way to each other.
    NoPath,
    /// Only relays may be used, and no TURN server is known.
    NoRelay,
    /// What was sent made no progress, or nothing was heard although something was expected.
    Silent,
    /// The transport below said that it is over.
    Transport,
    /// It could not be set up on this machine: no socket, or an unusable description.
    Setup,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lost::NoPath => "no path to the peer was found; a TURN server would give one",
            Lost::NoRelay => "only relays may be used, and no TURN server is known",
            Lost::Silent => "the peer fell silent",
            Lost::Transport => "the transport ended",
            Lost::Setup => "the link could not be set up",
        })
    }
}

/// Something that a link reports to the one who opened it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// This has to reach the peer by other means.
    Signal(Signal),
    /// All lanes are open.
    Opened,
    /// A message with whole IP packets; walk it with [`frame::packets`].
    Packets(&'a [u8]),
    /// A message of the control lane.
    Control(&'a [u8]),
    /// The queue has room again after it had none.
    Writable,
    /// A round trip was measured: [`Link::round_trip_us`] has news.
    RoundTrip,
    /// The link has ended; nothing follows.
    Lost(Lost),
}

/// Takes what a link reports. Calls come from the link's own tasks and must not wait.
pub trait Sink: Send + Sync {
    /// Takes one event.
    fn event(&self, event: Event<'_>);
}

/// The queue had no room; the packet was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A way to one peer.
pub trait Link: Send + Sync {
    /// Returns the free bytes of the queue.
    fn room(&self) -> Room;
    /// Queues one IP packet.
    ///
    /// # Errors
    /// [`Full`] if it does not fit; [`Event::Writable`] follows when there is room.
    fn send(&self, lane: Lane, packet: &[u8]) -> Result<(), Full>;
    /// Queues a message of the control lane.
    ///
    /// # Errors
    /// [`Full`] above 4 KiB of waiting control messages.
    fn send_control(&self, message: &[u8]) -> Result<(), Full>;
    /// Takes a signal from the peer.
    fn handle_signal(&self, signal: Signal);
    /// Returns the counters.
    fn counters(&self) -> Counters;
    /// Returns the smallest of the last round trips, in microseconds, once one was measured.
    fn round_trip_us(&self) -> Option<u64>;
    /// Returns how packets travel, once that is known.
    fn route(&self) -> Option<Route>;
    /// Takes the news that the peer is said to be gone: it is asked at once whether it is still there, and given up
    /// after 3 s of silence. A peer that answers has lost nothing.
    fn doubt(&self);
    /// Sends what is queued on the control lane, then ends the link.
    fn close(&self);
}
