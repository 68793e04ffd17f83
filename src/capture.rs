//! Captures: every packet of a node, written by a thread of its own so that nothing waits for a disk.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

use unisockets_link::pcapng::{Encoder, Record};
use unisockets_stack::Instant;

use crate::tap::{Direction, Tap};

/// Chunks that wait for the disk; with a chunk's size this is 16 MiB.
const CHUNKS_MAX: usize = 256;
/// A chunk is handed to the thread when it has so many bytes, or when [`Capture::flush`] is called.
const CHUNK_LEN: usize = 64 * 1024;
/// Number of the loopback interface.
const LOOPBACK: u32 = 0;

/// Writes a capture.
pub(crate) struct Capture {
    encoder: Encoder,
    chunk: Vec<u8>,
    origin_unix_ns: u64,
    lost: u64,
    chunks: Option<SyncSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts a capture into a file, or into standard output for `-`.
    pub(crate) fn create(path: &Path, snap_len: usize, origin_unix_ns: u64) -> std::io::Result<Capture> {
        let out: Box<dyn Write + Send> =
            if path.as_os_str() == "-" { Box::new(std::io::stdout()) } else { Box::new(std::fs::File::create(path)?) };
        let (chunks, inbox) = mpsc::sync_channel(CHUNKS_MAX);
        let thread = thread::Builder::new().name("capture".into()).spawn(move || write_all(out, &inbox))?;
        let mut chunk = Vec::with_capacity(CHUNK_LEN);
        let mut encoder = Encoder::new(concat!("unisockets ", env!("CARGO_PKG_VERSION")), snap_len, &mut chunk);
        encoder.interface("lo", "this node to itself", &mut chunk);
        Ok(Capture { encoder, chunk, origin_unix_ns, lost: 0, chunks: Some(chunks), thread: Some(thread) })
    }

    fn hand_over(&mut self) {
        if self.chunk.is_empty() {
            return;
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_LEN));
        if let Some(chunks) = &self.chunks
            && chunks.try_send(chunk).is_err()
        {
            self.lost += 1;
        }
    }
}

fn write_all(mut out: Box<dyn Write + Send>, inbox: &mpsc::Receiver<Vec<u8>>) {
    while let Ok(chunk) = inbox.recv() {
        if let Err(error) = out.write_all(&chunk).and_then(|()| out.flush()) {
            tracing::warn!(%error, "the capture ends here");
            return;
        }
    }
}

impl Tap for Capture {
    fn interface(&mut self, name: &str) -> u32 {
        let number = self.encoder.interface(name, &format!("link to {name}"), &mut self.chunk);
        self.hand_over();
        number
    }

    fn name(&mut self, address: IpAddr, name: &str) {
        self.encoder.name(address, name, &mut self.chunk);
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
            interface: interface.unwrap_or(LOOPBACK),
            time_ns: self.origin_unix_ns + now.as_micros() * 1_000,
            direction,
            packet,
            comment: comment.as_deref(),
        };
        self.encoder.packet(&record, &mut self.chunk);
        if self.chunk.len() >= CHUNK_LEN {
            self.hand_over();
        }
    }

    fn flush(&mut self) {
        self.hand_over();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.hand_over();
        drop(self.chunks.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if self.lost > 0 {
            tracing::warn!(chunks = self.lost, "the disk was too slow: the capture has gaps");
        }
    }
}
