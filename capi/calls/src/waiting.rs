//! Who waits in a receive on a descriptor whose place another one takes: the kernel goes on waiting on the one before.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};

/// Descriptors share places; what is said of another one costs little.
const PLACES: usize = 1_024;

/// Threads that are in a receive, and how often another descriptor has come.
struct Place {
    waiters: AtomicU32,
    swaps: AtomicU32,
}

static WAITING: [Place; PLACES] = [const { Place { waiters: AtomicU32::new(0), swaps: AtomicU32::new(0) } }; PLACES];

fn place(fd: RawFd) -> &'static Place {
    &WAITING[fd.unsigned_abs() as usize % PLACES]
}

/// A receive on a descriptor.
pub(crate) struct Waiting {
    place: &'static Place,
    swaps: u32,
}

impl Waiting {
    pub(crate) fn begin(fd: RawFd) -> Waiting {
        let place = place(fd);
        place.waiters.fetch_add(1, Ordering::SeqCst);
        Waiting { place, swaps: place.swaps.load(Ordering::SeqCst) }
    }

    /// Whether another descriptor has taken the place meanwhile: who waited was woken, and receives again.
    pub(crate) fn has_changed(&self) -> bool {
        self.place.swaps.load(Ordering::SeqCst) != self.swaps
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.place.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a thread may wait on a descriptor.
pub(crate) fn is_waited_on(fd: RawFd) -> bool {
    place(fd).waiters.load(Ordering::SeqCst) > 0
}

/// Forgets everybody: a child has none of its parent's threads.
pub(crate) fn begin() {
    WAITING.iter().for_each(|place| place.waiters.store(0, Ordering::SeqCst));
}

/// Notes that another descriptor has taken the place of one.
pub(crate) fn note_swap(fd: RawFd) {
    place(fd).swaps.fetch_add(1, Ordering::SeqCst);
}
