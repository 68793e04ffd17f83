//! What waits for a connection: bounded in messages and in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc;

/// Messages that wait for a slow reader before it is put out: as many answers as a member may ask for in one burst.
const LEN_MAX: usize = 1024;
/// The same in bytes: the longest messages would be 32 MiB for each reader otherwise.
const BYTES_MAX: usize = 1024 * 1024;

/// Something to be sent, or done, in its turn.
pub(crate) enum Outgoing {
    Text(String),
    Ping,
    Close,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        match self {
            Outgoing::Text(text) => text.len(),
            Outgoing::Ping | Outgoing::Close => 0,
        }
    }
}

/// The reader is too slow.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The end that is filled.
pub(crate) struct Sender {
    queue: mpsc::Sender<Outgoing>,
    bytes: Arc<AtomicUsize>,
    crowded: Arc<AtomicBool>,
}

/// The end that is emptied.
pub(crate) struct Receiver {
    queue: mpsc::Receiver<Outgoing>,
    bytes: Arc<AtomicUsize>,
    crowded: Arc<AtomicBool>,
}

pub(crate) fn queue() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel(LEN_MAX);
    let bytes = Arc::new(AtomicUsize::new(0));
    let crowded = Arc::new(AtomicBool::new(false));
    let filled = Sender { queue: sender, bytes: Arc::clone(&bytes), crowded: Arc::clone(&crowded) };
    (filled, Receiver { queue: receiver, bytes, crowded })
}

impl Sender {
    /// Queues something, unless too much waits or nobody receives any more; returns whether half of all places are taken.
    pub(crate) fn send(&self, outgoing: Outgoing) -> Result<bool, Full> {
        let len = outgoing.bytes();
        let waiting = self.bytes.fetch_add(len, Ordering::AcqRel);
        let sent = waiting + len <= BYTES_MAX && self.queue.try_send(outgoing).is_ok();
        if sent {
            let is_crowded = waiting + len > BYTES_MAX / 2 || self.queue.capacity() < LEN_MAX / 2;
            if is_crowded {
                self.crowded.store(true, Ordering::Release);
            }
            return Ok(is_crowded);
        }
        self.bytes.fetch_sub(len, Ordering::AcqRel);
        Err(Full)
    }
}

impl Receiver {
    /// Waits for the next thing; nothing once the sender is gone.
    pub(crate) async fn next(&mut self) -> Option<Outgoing> {
        let outgoing = self.queue.recv().await?;
        self.bytes.fetch_sub(outgoing.bytes(), Ordering::AcqRel);
        Some(outgoing)
    }

    /// Whether few places are taken, for the first time since half of them were.
    pub(crate) fn has_room_again(&self) -> bool {
        let has_room = self.bytes.load(Ordering::Acquire) <= BYTES_MAX / 4 && self.queue.len() <= LEN_MAX / 4;
        has_room && self.crowded.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Outgoing {
        Outgoing::Text("x".repeat(len))
    }

    /// 512 messages were once the only bound: 20 MiB of payloads for each reader that does not read.
    #[tokio::test]
    async fn a_queue_is_full_at_its_bytes_long_before_its_messages() {
        let (sender, mut receiver) = queue();
        let sent = (0..LEN_MAX).take_while(|_| sender.send(text(40 * 1024)).is_ok()).count();
        assert_eq!(sent, BYTES_MAX / (40 * 1024));
        assert_eq!(sender.send(Outgoing::Close), Ok(true), "what has no bytes has room");
        receiver.next().await;
        assert_eq!(sender.send(text(40 * 1024)), Ok(true), "what was read makes room");
        assert_eq!(sender.send(text(40 * 1024)), Err(Full));
    }

    #[tokio::test]
    async fn a_queue_says_once_that_it_has_room_again() {
        let (sender, mut receiver) = queue();
        let crowded = (0..20).map(|_| sender.send(text(40 * 1024)).unwrap()).filter(|crowded| *crowded).count();
        assert_eq!(crowded, 20 - BYTES_MAX / 2 / (40 * 1024));
        let mut told = 0;
        for _ in 0..20 {
            receiver.next().await;
            told += u32::from(receiver.has_room_again());
        }
        assert_eq!((told, sender.send(text(40 * 1024))), (1, Ok(false)));
    }

    #[tokio::test]
    async fn a_queue_is_full_at_its_messages_too() {
        let (sender, _receiver) = queue();
        assert_eq!((0..2 * LEN_MAX).filter(|_| sender.send(text(1)).is_ok()).count(), LEN_MAX);
    }
}
