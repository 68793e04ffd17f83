//! A reservation of address space whose pages are committed when they are first written.
#![allow(unsafe_code, reason = "slices of one mapping are lent to rings; the rest of the crate forbids it")]

#[cfg(not(miri))]
use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};

/// Address space without memory.
pub(crate) struct Region {
    map: Map,
}

#[cfg(not(miri))]
type Map = MmapRaw;

/// Miri has no lazy mappings. Memory of the allocator shows it the same pointers, and as few bytes as will do.
#[cfg(miri)]
struct Map(*mut u8, usize);

// SAFETY: as a mapping, it belongs to no thread, and whoever writes has a part of it for himself.
#[cfg(miri)]
unsafe impl Send for Map {}

// SAFETY: see above.
#[cfg(miri)]
unsafe impl Sync for Map {}

#[cfg(miri)]
impl Map {
    fn len(&self) -> usize {
        self.1
    }

    fn as_mut_ptr(&self) -> *mut u8 {
        self.0
    }
}

#[cfg(miri)]
impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the parts are those of the vector that was leaked, and every ring of the region is gone.
        drop(unsafe { Vec::from_raw_parts(self.0, self.1, self.1) });
    }
}

impl Region {
    /// Reserves `len` bytes, all zero; `None` where the system refuses.
    #[cfg(not(miri))]
    pub(crate) fn reserve(len: usize) -> Option<Region> {
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon().ok()?;
        Some(Region { map: map.into() })
    }

    #[cfg(miri)]
    pub(crate) fn reserve(len: usize) -> Option<Region> {
        let memory = vec![0; len.min(16 << 20)].leak();
        Some(Region { map: Map(memory.as_mut_ptr(), memory.len()) })
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Returns a part of the region. Parts that are lent at the same time must not overlap, and none may be used
    /// when the region is gone: the pool gives every ring a part of its own, and a ring holds its region.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> &'static mut [u8] {
        assert!(offset + len <= self.map.len(), "a ring lies within its region");
        // SAFETY: the part lies within the mapping, as was just checked.
        let start = unsafe { self.map.as_mut_ptr().add(offset) };
        // SAFETY: the mapping is readable, writable and initialised with zeros; the pool lends no byte twice, and
        // whoever borrows drops the slice before the ring that keeps the mapping alive.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Gives the memory of a part back to the system; it reads as zeros afterwards.
    #[cfg(not(miri))]
    pub(crate) fn discard(&self, offset: usize, len: usize) {
        // SAFETY: the part belongs to a ring that is free or empty: nobody reads its bytes before writing them.
        let result = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) };
        // A refusal costs memory, no more.
        let _ = result;
    }

    #[cfg(miri)]
    pub(crate) fn discard(&self, offset: usize, len: usize) {
        self.slice(offset, len).fill(0);
    }
}
