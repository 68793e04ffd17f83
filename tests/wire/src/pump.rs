//! One direction of the wire: from one device through the fault core into the other.

use std::io::PipeReader;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use unisockets_link::fault::{Conditions, Fault};

use crate::tun::{Batch, Tun};

/// Packets that are taken in before those due are sent on.
const BATCH_LEN: usize = 256;

/// What one direction of the wire has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets that the sending kernel gave.
    pub packets: u64,
    /// Their bytes, IP headers included.
    pub bytes: u64,
    /// Packets that the other kernel took; duplicates count.
    pub delivered: u64,
    /// Packets that the wire lost: by chance, in a black-out, or because its queue was full.
    pub lost: u64,
    /// Packets that the other kernel refused, such as corrupted ones.
    pub refused: u64,
}

/// Waits until a file can be read or its other end is closed, at most for `wait` and as precisely as the kernel can;
/// says which. An interrupted wait is as good as one that ended.
pub fn readable<const N: usize>(files: [BorrowedFd<'_>; N], wait: Option<Duration>) -> [bool; N] {
    let wait = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() });
    let mut fds = files.map(|file| PollFd::from_borrowed_fd(file, PollFlags::IN));
    let _ = poll(&mut fds, wait.as_ref());
    fds.map(|fd| !fd.revents().is_empty())
}

/// One direction.
pub(crate) struct Pump {
    fault: Mutex<Fault>,
    epoch: Instant,
    packets: AtomicU64,
    bytes: AtomicU64,
    delivered: AtomicU64,
    refused: AtomicU64,
}

impl Pump {
    pub(crate) fn new(conditions: Conditions, seed: u64) -> Pump {
        Pump {
            fault: Mutex::new(Fault::new(conditions, seed)),
            epoch: Instant::now(),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    fn fault(&self) -> MutexGuard<'_, Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_conditions(&self, conditions: Conditions) {
        self.fault().set_conditions(conditions);
    }

    pub(crate) fn black_out(&self, duration: Duration) {
        let until_us = self.now_us().saturating_add(duration.as_micros() as u64);
        self.fault().black_out(until_us);
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            lost: self.fault().lost(),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Moves packets until the other end of `stop` is closed.
    pub(crate) fn run(&self, from: &Tun, to: &Tun, stop: &PipeReader) {
        // The default of 50 us is added to every sleep.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut batch = Batch::default();
        let mut due = Vec::new();
        loop {
            let next_us = self.fault().poll_timeout_us();
            let wait = next_us.map(|at| Duration::from_micros(at).saturating_sub(self.epoch.elapsed()));
            let [packets, ended] = readable([from.as_fd(), stop.as_fd()], wait);
            if ended {
                return;
            }
            let now_us = self.now_us();
            let mut fault = self.fault();
            if packets {
                let mut bytes = 0;
                let taken = batch.take(from, BATCH_LEN, |packet| {
                    bytes += packet.len() as u64;
                    fault.handle_packet(now_us, packet);
                });
                self.packets.fetch_add(taken.unwrap_or(0) as u64, Ordering::Relaxed);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            due.extend(std::iter::from_fn(|| fault.poll_packet(now_us)));
            drop(fault);
            for packet in due.drain(..) {
                let count = if to.send(&packet).is_ok() { &self.delivered } else { &self.refused };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
