//! Memory for the rings of connections: reserved at once, committed by the kernel only where bytes have been.
//!
//! A zeroed `Vec` is not lazy, and a mapping for each ring would meet the kernel's limit of 65,530. So rings
//! are slices of a few large reservations. What an idle ring had touched is given back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits;

mod region;

use region::Region;

/// Bytes of one reservation, and the least that is tried where the system counts reservations as memory.
const REGION_LEN: usize = 4 << 30;
/// See [`REGION_LEN`].
const REGION_LEN_MIN: usize = 64 << 20;
/// Reservations of a stack: enough for all connections with the largest rings.
const REGIONS_MAX: usize = 2 * limits::FLOWS_MAX * limits::BUFFER_MAX / REGION_LEN;
/// Ring lengths are powers of two from [`limits::BUFFER_MIN`] to [`limits::BUFFER_MAX`].
const CLASSES: usize = (limits::BUFFER_MAX / limits::BUFFER_MIN).ilog2() as usize + 1;
/// Committed bytes that free rings may keep, so that short connections do not ask the kernel each time.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// A free ring, and how much of it is committed.
struct Slot {
    region: Arc<Region>,
    offset: usize,
    touched: usize,
}

#[derive(Default)]
struct Free {
    slots: [Vec<Slot>; CLASSES],
    kept_bytes: usize,
}

/// All rings of a stack.
pub(crate) struct Pool {
    regions: Vec<Arc<Region>>,
    /// The first byte of the newest region that no ring has had yet.
    next: usize,
    free: Arc<Mutex<Free>>,
}

fn lock(free: &Mutex<Free>) -> MutexGuard<'_, Free> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The class of a length and the length of its rings.
fn class_of(len: usize) -> (usize, usize) {
    let len = len.clamp(limits::BUFFER_MIN, limits::BUFFER_MAX).next_power_of_two();
    ((len / limits::BUFFER_MIN).ilog2() as usize, len)
}

impl Pool {
    pub(crate) fn new() -> Pool {
        Pool { regions: Vec::new(), next: 0, free: Arc::default() }
    }

    /// Takes a ring of at least `len` bytes, or returns `None` if the system has no memory to reserve.
    pub(crate) fn take(&mut self, len: usize) -> Option<Ring> {
        let (class, capacity) = class_of(len);
        let mut free = lock(&self.free);
        if let Some(slot) = free.slots[class].pop() {
            free.kept_bytes -= slot.touched;
            return Some(Ring { slot, class, len, free: Arc::clone(&self.free) });
        }
        drop(free);
        let region = match self.regions.last() {
            Some(newest) if self.next + capacity <= newest.len() => Arc::clone(newest),
            _ => self.reserve()?,
        };
        let slot = Slot { region, offset: self.next, touched: 0 };
        self.next += capacity;
        Some(Ring { slot, class, len, free: Arc::clone(&self.free) })
    }

    fn reserve(&mut self) -> Option<Arc<Region>> {
        if self.regions.len() >= REGIONS_MAX {
            return None;
        }
        let lens = std::iter::successors(Some(REGION_LEN), |len| Some(len / 4).filter(|len| *len >= REGION_LEN_MIN));
        let region = Arc::new(lens.into_iter().find_map(Region::reserve)?);
        self.regions.push(Arc::clone(&region));
        self.next = 0;
        Some(region)
    }
}

/// The memory of one ring; it goes back to its pool when it is dropped.
pub(crate) struct Ring {
    slot: Slot,
    class: usize,
    /// Bytes that were asked for; the slot may be longer.
    len: usize,
    free: Arc<Mutex<Free>>,
}

impl Ring {
    /// Lends the bytes out. The caller lends them once, and drops what it made of them before the ring.
    pub(crate) fn lend(&mut self) -> &'static mut [u8] {
        self.slot.region.slice(self.slot.offset, self.len)
    }

    /// Bytes that the kernel may have committed.
    pub(crate) fn touched(&self) -> usize {
        self.slot.touched
    }

    /// Returns how many more bytes than now are committed once `len` of them have been written.
    pub(crate) fn growth(&self, len: usize) -> usize {
        len.min(self.len).next_multiple_of(limits::PAGE_LEN).saturating_sub(self.slot.touched)
    }

    /// Notes that up to `len` bytes may have been written; returns how many more are committed than before.
    pub(crate) fn touch(&mut self, len: usize) -> usize {
        let more = self.growth(len);
        self.slot.touched += more;
        more
    }

    /// Gives the committed memory of an empty ring back; returns how many bytes that were.
    pub(crate) fn discard(&mut self) -> usize {
        let touched = std::mem::take(&mut self.slot.touched);
        if touched > 0 {
            // A ring turns: what was touched may lie anywhere in it.
            self.slot.region.discard(self.slot.offset, self.len);
        }
        touched
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let pool = Arc::clone(&self.free);
        let mut free = lock(&pool);
        if free.kept_bytes + self.slot.touched > KEPT_BYTES_MAX {
            self.discard();
        }
        free.kept_bytes += self.slot.touched;
        let slot = Slot { region: Arc::clone(&self.slot.region), ..self.slot };
        free.slots[self.class].push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_do_not_overlap_and_are_used_again() {
        let mut pool = Pool::new();
        let lens = [4_096, 5_000, 1 << 20, 4 << 20, 4_096];
        let mut rings: Vec<Ring> = lens.iter().map(|len| pool.take(*len).unwrap()).collect();
        let slices: Vec<&'static mut [u8]> = rings.iter_mut().map(Ring::lend).collect();
        for (number, slice) in slices.into_iter().enumerate() {
            assert!(slice.iter().all(|byte| *byte == 0));
            slice.fill(number as u8 + 1);
        }
        for (number, ring) in rings.iter_mut().enumerate() {
            let len = lens[number];
            assert!(ring.lend().iter().all(|byte| *byte == number as u8 + 1), "{len}");
            assert_eq!(ring.touch(len), len.next_multiple_of(limits::PAGE_LEN));
        }
        let used = pool.next;
        drop(rings);
        let again: Vec<Ring> = lens.iter().map(|len| pool.take(*len).unwrap()).collect();
        assert_eq!(pool.next, used);
        drop(again);
        assert!(lock(&pool.free).kept_bytes <= KEPT_BYTES_MAX);
    }

    #[test]
    fn a_ring_touches_only_what_was_used_and_gives_it_back() {
        let mut pool = Pool::new();
        let mut ring = pool.take(1 << 20).unwrap();
        assert_eq!((ring.touch(1), ring.touch(4_096), ring.touch(5_000)), (4_096, 0, 4_096));
        assert_eq!(ring.touch(usize::MAX), (1 << 20) - 8_192);
        assert_eq!(ring.discard(), 1 << 20);
        assert_eq!(ring.touched(), 0);
    }
}
