//! Who receives on a descriptor whose place another one takes: the kernel goes on waiting on the one before, and of one
//! that another thread is connecting it says what was true before.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::system;

/// Descriptors share places; what is said of another one costs little.
const PLACES: usize = 1_024;

/// For how long a receive waits for the descriptor that another thread's `connect` brings: the node answers at once, and
/// what a signal's handler has interrupted does not go on meanwhile.
const START_MAX: Duration = Duration::from_secs(1);

/// Threads that are in a receive, those that bring another descriptor by `connect`, and how often one has come.
struct Place {
    waiters: AtomicU32,
    starts: AtomicU32,
    swaps: AtomicU32,
}

impl Place {
    const fn new() -> Place {
        Place { waiters: AtomicU32::new(0), starts: AtomicU32::new(0), swaps: AtomicU32::new(0) }
    }
}

static WAITING: [Place; PLACES] = [const { Place::new() }; PLACES];

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

    /// Whether to receive again what ended with `received` and perhaps an errno, because another descriptor has taken the
    /// place meanwhile: who waited was woken, and who came while another thread's `connect` was under way was told that
    /// there is no connection. As in SYN-SENT (RFC 9293, 3.10.4) the receive is then one of the connection to be.
    pub(crate) fn again(&self, received: isize) -> bool {
        if received < 0 {
            let seen = system::errno();
            if seen != libc::ENOTCONN {
                return false;
            }
            let limit = Instant::now() + START_MAX;
            while self.place.starts.load(Ordering::SeqCst) > 0 && !self.has_changed() && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(1));
            }
            system::set_errno(seen);
        }
        received <= 0 && self.has_changed()
    }

    fn has_changed(&self) -> bool {
        self.place.swaps.load(Ordering::SeqCst) != self.swaps
    }
}

/// A `connect` that brings another descriptor.
pub(crate) struct Starting(&'static Place);

impl Starting {
    pub(crate) fn begin(fd: RawFd) -> Starting {
        let place = place(fd);
        place.starts.fetch_add(1, Ordering::SeqCst);
        Starting(place)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.starts.fetch_sub(1, Ordering::SeqCst);
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
    for place in &WAITING {
        place.waiters.store(0, Ordering::SeqCst);
        place.starts.store(0, Ordering::SeqCst);
    }
}

/// Notes that another descriptor has taken the place of one.
pub(crate) fn note_swap(fd: RawFd) {
    place(fd).swaps.fetch_add(1, Ordering::SeqCst);
}
