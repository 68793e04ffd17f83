//! A table whose keys say when they are stale.

use std::marker::PhantomData;

/// A key into a [`Slab`]: an index and the generation of the entry.
pub(crate) trait Key: Copy {
    fn new(index: u32, generation: u32) -> Self;
    fn index(self) -> u32;
    fn generation(self) -> u32;
}

/// Declares a key type for a [`Slab`].
macro_rules! key {
    ($(#[$meta:meta])* $vis:vis $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis struct $name { index: u32, generation: u32 }
        impl $crate::slab::Key for $name {
            fn new(index: u32, generation: u32) -> Self { Self { index, generation } }
            fn index(self) -> u32 { self.index }
            fn generation(self) -> u32 { self.generation }
        }
    };
}
pub(crate) use key;

/// Entries addressed by a generation-checked key; freed places are used again.
pub(crate) struct Slab<K, T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    len: usize,
    key: PhantomData<K>,
}

impl<K: Key, T> Slab<K, T> {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), len: 0, key: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, value: T) -> K {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.1 = Some(value);
            return K::new(index, entry.0);
        }
        let index = u32::try_from(self.entries.len()).expect("every table is capped far below 2^32");
        self.entries.push((0, Some(value)));
        K::new(index, 0)
    }

    pub(crate) fn get(&self, key: K) -> Option<&T> {
        match self.entries.get(key.index() as usize) {
            Some((generation, value)) if *generation == key.generation() => value.as_ref(),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut T> {
        match self.entries.get_mut(key.index() as usize) {
            Some((generation, value)) if *generation == key.generation() => value.as_mut(),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<T> {
        let entry = self.entries.get_mut(key.index() as usize)?;
        if entry.0 != key.generation() {
            return None;
        }
        let value = entry.1.take()?;
        entry.0 = entry.0.wrapping_add(1);
        self.free.push(key.index());
        self.len -= 1;
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, (generation, value))| {
            value.as_ref().map(|value| (K::new(index as u32, *generation), value))
        })
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().filter_map(|(_, value)| value.as_mut())
    }

    pub(crate) fn keys(&self) -> Vec<K> {
        self.iter().map(|(key, _)| key).collect()
    }
}
