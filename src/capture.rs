//! Captures: every packet of a node, written by a thread of its own so that nothing waits for a disk.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use unisockets_link::pcapng::{Encoder, Record};
use unisockets_stack::Instant;

use crate::tap::{Direction, Tap};

/// Chunks that wait for the disk; with a chunk's size this is 16 MiB.
const CHUNKS_MAX: usize = 256;
/// Bytes of interfaces and names that are kept for a disk that takes nothing; a capture that lacks more is over.
const DESCRIPTIONS_LEN_MAX: usize = 1024 * 1024;
/// How long the end of a capture may take: whoever reads it through a pipe may have stopped reading.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
/// A chunk is handed to the thread when it has so many bytes, or when [`Capture::flush`] is called.
const CHUNK_LEN: usize = 64 * 1024;
/// Number of the loopback interface.
const LOOPBACK: u32 = 0;

/// Writes a capture.
pub(crate) struct Capture {
    encoder: Encoder,
    chunk: Vec<u8>,
    /// The blocks of the chunk that later packets cannot do without: interfaces and names.
    descriptions: Vec<u8>,
    /// Packets in the chunk.
    packets: u64,
    origin_unix_ns: u64,
    /// Packets that the disk was too slow for.
    lost: u64,
    /// Chunks on their way to the disk.
    waiting: Arc<AtomicUsize>,
    chunks: Option<Sender<Vec<u8>>>,
    /// Says that the thread has written everything.
    written: Receiver<()>,
}

impl Capture {
    /// Starts a capture into a file, or into standard output for `-`.
    pub(crate) fn create(path: &Path, snap_len: usize, origin_unix_ns: u64) -> std::io::Result<Capture> {
        let out: Box<dyn Write + Send> =
            if path.as_os_str() == "-" { Box::new(std::io::stdout()) } else { Box::new(std::fs::File::create(path)?) };
        Capture::write_to(out, snap_len, origin_unix_ns)
    }

    fn write_to(out: Box<dyn Write + Send>, snap_len: usize, origin_unix_ns: u64) -> std::io::Result<Capture> {
        let (chunks, inbox) = mpsc::channel();
        let (done, written) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let taken = Arc::clone(&waiting);
        thread::Builder::new().name("capture".into()).spawn(move || {
            write_all(out, &inbox, &taken);
            let _ = done.send(());
        })?;
        let mut chunk = Vec::with_capacity(CHUNK_LEN);
        let mut encoder = Encoder::new(concat!("unisockets ", env!("CARGO_PKG_VERSION")), snap_len, &mut chunk);
        encoder.interface("lo", "this node to itself", &mut chunk);
        let (descriptions, packets, lost, chunks) = (chunk.clone(), 0, 0, Some(chunks));
        Ok(Capture { encoder, chunk, descriptions, packets, origin_unix_ns, lost, waiting, chunks, written })
    }

    /// Gives the chunk to the thread. While that has too much already, packets are dropped, but not what
    /// describes later ones: a packet of an interface that is nowhere described makes the rest unreadable.
    fn hand_over(&mut self) {
        if self.chunks.is_none() {
            self.chunk.clear();
            self.descriptions.clear();
            return;
        }
        if self.waiting.load(Ordering::Acquire) < CHUNKS_MAX {
            return self.pass_on();
        }
        if self.packets == 0 {
            return;
        }
        if self.lost == 0 {
            tracing::warn!("the capture is written too slowly: packets will be missing from it");
        }
        self.lost += std::mem::take(&mut self.packets);
        self.chunk.clone_from(&self.descriptions);
        if self.chunk.len() > DESCRIPTIONS_LEN_MAX {
            self.end("nothing of it can be written");
        }
    }

    fn pass_on(&mut self) {
        if self.chunk.is_empty() {
            return;
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_LEN));
        self.descriptions.clear();
        self.packets = 0;
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if self.chunks.as_ref().is_some_and(|chunks| chunks.send(chunk).is_err()) {
            // The thread has said why.
            self.chunks = None;
        }
    }

    fn end(&mut self, reason: &str) {
        tracing::warn!(reason, "the capture ends here");
        self.chunks = None;
    }

    /// Appends a block that later ones need.
    fn describe<R>(&mut self, f: impl FnOnce(&mut Encoder, &mut Vec<u8>) -> R) -> R {
        let start = self.chunk.len();
        let result = f(&mut self.encoder, &mut self.chunk);
        self.descriptions.extend_from_slice(&self.chunk[start..]);
        result
    }
}

fn write_all(mut out: Box<dyn Write + Send>, inbox: &Receiver<Vec<u8>>, waiting: &AtomicUsize) {
    while let Ok(chunk) = inbox.recv() {
        waiting.fetch_sub(1, Ordering::AcqRel);
        if let Err(error) = out.write_all(&chunk).and_then(|()| out.flush()) {
            tracing::warn!(%error, "the capture ends here");
            return;
        }
    }
}

impl Tap for Capture {
    fn interface(&mut self, name: &str) -> u32 {
        let number = self.describe(|encoder, chunk| encoder.interface(name, &format!("link to {name}"), chunk));
        self.hand_over();
        number
    }

    fn name(&mut self, address: IpAddr, name: &str) {
        self.describe(|encoder, chunk| encoder.name(address, name, chunk));
    }

    fn packet(
        &mut self,
        now: Instant,
        interface: Option<u32>,
        direction: Direction,
        packet: &[u8],
        dropped: Option<&'static str>,
    ) {
        if self.chunks.is_none() {
            return;
        }
        let comment = dropped.map(|reason| format!("dropped: {reason}"));
        let record = Record {
            interface: interface.unwrap_or(LOOPBACK),
            time_ns: self.origin_unix_ns + now.as_micros() * 1_000,
            direction,
            packet,
            comment: comment.as_deref(),
        };
        self.encoder.packet(&record, &mut self.chunk);
        self.packets += 1;
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
        self.pass_on();
        if self.chunks.take().is_some() && self.written.recv_timeout(FINISH_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the capture is not whole: nobody has taken the rest of it");
        }
        if self.lost > 0 {
            tracing::warn!(packets = self.lost, "the capture was written too slowly and lacks packets");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that takes nothing until it is told to.
    struct Disk {
        go: Option<Receiver<()>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Disk {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            if let Some(go) = self.go.take() {
                go.recv().expect("somebody lets the disk go on");
            }
            self.written.send(data.to_vec()).expect("somebody takes what is written");
            Ok(data.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn packets(capture: &mut Capture, interface: Option<u32>, count: usize) {
        for _ in 0..count {
            capture.packet(Instant::from_micros(1), interface, Direction::Outbound, &[0x45; 60_000], None);
        }
    }

    /// A slow disk once swallowed the description of an interface, and tshark refused every later packet of it.
    #[test]
    fn a_slow_disk_loses_packets_but_no_interface() {
        let (go, wait) = mpsc::channel();
        let (written, blocks) = mpsc::channel();
        let disk = Disk { go: Some(wait), written };
        let mut capture = Capture::write_to(Box::new(disk), 65_535, 0).unwrap();
        packets(&mut capture, None, 3 * CHUNKS_MAX);
        let interface = capture.interface("beta");
        capture.name("10.80.0.2".parse().unwrap(), "beta");
        packets(&mut capture, Some(interface), 3);
        let lost = capture.lost;
        assert!(lost > 0, "the disk was slow");
        go.send(()).unwrap();
        while capture.waiting.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
        packets(&mut capture, Some(interface), 3);
        assert_eq!(capture.lost, lost, "nothing is lost any more");
        drop(capture);
        let bytes: Vec<u8> = blocks.into_iter().flatten().collect();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (mut at, mut interfaces, mut found) = (0, 0, 0);
        while at < bytes.len() {
            match word(at) {
                1 => interfaces += 1,
                6 => {
                    assert!(word(at + 8) < interfaces, "packet {found} is of an interface that is not described");
                    found += 1;
                }
                _ => {}
            }
            at += word(at + 4) as usize;
        }
        assert_eq!((interfaces, found + lost), (2, 3 * CHUNKS_MAX as u64 + 6));
    }

    /// A program once hung at its end because nobody read its capture's pipe any more.
    #[test]
    fn a_reader_that_takes_nothing_does_not_hold_up_the_end() {
        let (_go, wait) = mpsc::channel();
        let (written, _blocks) = mpsc::channel();
        let capture = Capture::write_to(Box::new(Disk { go: Some(wait), written }), 65_535, 0).unwrap();
        let (done, ended) = mpsc::channel();
        thread::spawn(move || {
            drop(capture);
            done.send(()).unwrap();
        });
        ended.recv_timeout(4 * FINISH_LIMIT).expect("the capture ends by itself");
    }
}
