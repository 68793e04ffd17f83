//! A TCP/UDP/ICMP stack in user space: what happens with this packet, now?
//!
//! No I/O, no clock, no threads, no randomness of its own. The caller hands in packets, the time and a
//! seed; it takes out packets, deadlines and events:
//!
//! ```
//! use unisockets_stack::{Event, Family, Instant, Kind, Room, Stack};
//!
//! let mut stack = Stack::new(7);
//! let now = Instant::ZERO;
//! let listener = stack.socket(Kind::Tcp, Family::V4).unwrap();
//! stack.bind(listener, "127.0.0.1:80".parse().unwrap()).unwrap();
//! stack.listen(listener, 8).unwrap();
//! let client = stack.socket(Kind::Tcp, Family::V4).unwrap();
//! let _in_progress = stack.connect(now, client, "127.0.0.1:80".parse().unwrap());
//!
//! // The caller's whole loop: what a path gives goes out, what comes in is handed over.
//! let room = Room { stream: 1 << 20, datagram: 1 << 20 };
//! let mut packet = Vec::new();
//! while let Some(path) = stack.poll_path() {
//!     while stack.poll_packet(now, path, room, &mut packet).is_some() {
//!         stack.handle_packet(now, path, &packet).unwrap();
//!         packet.clear();
//!     }
//! }
//! assert_eq!(stack.poll_event(), Some(Event::Ready(client)));
//! assert!(stack.accept(now, listener).is_ok());
//! ```
//!
//! TCP's state machine is smoltcp's, one socket set per connection; everything around it is here:
//! demultiplexing, timers, backlogs, orphans, TIME-WAIT, UDP, ICMP, ports, fragments, fairness.
//! A **path** is the stack's name for the link to a peer.

#[cfg(planted_bugs)]
#[macro_use]
pub mod planted;
#[cfg(not(planted_bugs))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

#[cfg(all(unix, target_pointer_width = "64"))]
mod buffers;
#[cfg(not(all(unix, target_pointer_width = "64")))]
#[path = "buffers/heap.rs"]
mod buffers;
pub mod checksum;
mod egress;
mod errno;
mod flight;
mod flow;
mod fragments;
mod group;
mod guard;
mod icmp;
mod ingress;
mod keep_alive;
mod ledger;
mod limits;
mod listener;
mod meter;
mod mtu;
mod options;
mod packet;
mod path;
mod paths;
mod ports;
mod readiness;
mod shard;
mod slab;
mod stream;
mod tcp;
mod time;
mod time_wait;
mod udp;
mod window;

pub use errno::Error;
pub use icmp::{Refusal, refuse};
pub use limits::{DATAGRAM_LEN_MAX, MTU_MIN, PACKET_LEN_MAX};
pub use meter::RoundTrip;
pub use options::{Options, SocketOption};
pub use packet::DropReason;
pub use path::{Class, PathConfig, PathId, Room};
pub use paths::PathEnd;
pub use readiness::Readiness;
pub use shard::{Event, Family, Kind, Prefix, SocketId, Stack};
pub use stream::{Shutdown, SocketInfo, StreamInfo};
pub use tcp::State;
pub use time::Instant;
pub use udp::Received;
