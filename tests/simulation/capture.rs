//! One capture of the whole network: every packet of every node, in memory.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use unisockets::core::{Direction, Tap};
use unisockets_link::pcapng::{Encoder, Record};
use unisockets_stack::Instant;

use crate::world::ORIGIN_UNIX_MS;

/// What the taps of all nodes write into.
pub struct Recorder {
    encoder: Encoder,
    bytes: Vec<u8>,
}

/// The recorder, shared by all taps.
pub type Shared = Arc<Mutex<Recorder>>;

impl Recorder {
    pub fn shared() -> Shared {
        let mut bytes = Vec::new();
        let encoder = Encoder::new("unisockets simulation", 65_535, &mut bytes);
        Arc::new(Mutex::new(Recorder { encoder, bytes }))
    }

    pub fn take(shared: &Shared) -> Vec<u8> {
        std::mem::take(&mut shared.lock().unwrap_or_else(PoisonError::into_inner).bytes)
    }
}

/// The tap of one life of one node.
pub struct NodeTap {
    shared: Shared,
    node: String,
    loopback: u32,
}

impl NodeTap {
    pub fn new(shared: &Shared, node: &str) -> NodeTap {
        let mut tap = NodeTap { shared: Arc::clone(shared), node: node.to_owned(), loopback: 0 };
        tap.loopback = tap.interface("lo");
        tap
    }

    fn with<R>(&self, f: impl FnOnce(&mut Encoder, &mut Vec<u8>) -> R) -> R {
        let mut recorder = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Recorder { encoder, bytes } = &mut *recorder;
        f(encoder, bytes)
    }
}

impl Tap for NodeTap {
    fn interface(&mut self, name: &str) -> u32 {
        let (short, long) = (format!("{}-{name}", self.node), format!("{} to {name}", self.node));
        self.with(|encoder, bytes| encoder.interface(&short, &long, bytes))
    }

    fn name(&mut self, address: IpAddr, name: &str) {
        self.with(|encoder, bytes| encoder.name(address, name, bytes));
    }

    fn packet(
        &mut self,
        now: Instant,
        interface: Option<u32>,
        direction: Direction,
        packet: &[u8],
        dropped: Option<&'static str>,
    ) {
        let comment = dropped.map(|reason| format!("dropped: {reason}"));
        let record = Record {
            interface: interface.unwrap_or(self.loopback),
            time_ns: ORIGIN_UNIX_MS * 1_000_000 + now.as_micros() * 1_000,
            direction,
            packet,
            comment: comment.as_deref(),
        };
        self.with(|encoder, bytes| encoder.packet(&record, bytes));
    }
}
