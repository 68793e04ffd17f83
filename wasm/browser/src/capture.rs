//! A capture in memory, in the pcapng format.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unisockets::core::{Direction, Tap};
use unisockets_link::pcapng::{Encoder, Record};
use unisockets_stack::{Instant, PACKET_LEN_MAX};
use wasm_bindgen::prelude::*;

use crate::Core;

/// Bytes that a capture may hold until the page takes them; what exceeds it is dropped, and counted.
const HELD_MAX: usize = 32 * 1024 * 1024;

#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    lost: u32,
}

/// Packets that wait for the page, shared with the node's tap.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Held>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Recorder {
    encoder: Encoder,
    held: Shared,
    origin_unix_ns: u64,
}

/// A capture of every packet of a node, from its beginning on.
#[wasm_bindgen]
pub struct Capture {
    held: Shared,
}

#[wasm_bindgen]
impl Capture {
    /// Takes what was captured since the last time: appended to one another, these are a file.
    pub fn take(&self) -> js_sys::Uint8Array {
        let bytes = std::mem::take(&mut self.held.lock().bytes);
        js_sys::Uint8Array::from(&bytes[..])
    }

    /// Returns how many packets were dropped because nobody took those before.
    #[wasm_bindgen(getter)]
    pub fn lost(&self) -> u32 {
        self.held.lock().lost
    }
}

#[wasm_bindgen]
impl Core {
    /// Captures every packet from now on; a capture that ran before ends.
    pub fn capture(&mut self, now_us: f64, unix_ms: f64) -> Capture {
        let held = Shared::default();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new("unisockets in a browser", PACKET_LEN_MAX, &mut bytes);
        encoder.interface("loopback", "this node to itself", &mut bytes);
        held.lock().bytes = bytes;
        let origin_unix_ns = ((unix_ms * 1_000.0 - now_us).max(0.0) as u64).saturating_mul(1_000);
        let mut recorder = Recorder { encoder, held: held.clone(), origin_unix_ns };
        if let Some(lease) = self.node.lease() {
            let name = lease.lease.name.clone().unwrap_or_else(|| "this-tab".to_owned());
            for address in self.node.stack.addresses().to_vec() {
                recorder.name(address, &name);
            }
        }
        self.node.replace_tap(Some(Box::new(recorder)));
        Capture { held }
    }

    /// Ends the capture.
    #[wasm_bindgen(js_name = endCapture)]
    pub fn end_capture(&mut self) {
        self.node.take_tap();
    }
}

impl Tap for Recorder {
    fn interface(&mut self, name: &str) -> u32 {
        self.encoder.interface(name, &format!("link to {name}"), &mut self.held.lock().bytes)
    }

    fn name(&mut self, address: IpAddr, name: &str) {
        self.encoder.name(address, name, &mut self.held.lock().bytes);
    }

    fn packet(
        &mut self,
        now: Instant,
        interface: Option<u32>,
        direction: Direction,
        packet: &[u8],
        dropped: Option<&'static str>,
    ) {
        let mut held = self.held.lock();
        if held.bytes.len() + packet.len() > HELD_MAX {
            held.lost = held.lost.saturating_add(1);
            return;
        }
        let comment = dropped.map(|reason| format!("dropped: {reason}"));
        let record = Record {
            interface: interface.unwrap_or(0),
            time_ns: self.origin_unix_ns + now.as_micros() * 1_000,
            direction,
            packet,
            comment: comment.as_deref(),
        };
        self.encoder.packet(&record, &mut held.bytes);
    }
}
