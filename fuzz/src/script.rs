//! Input bytes read as decisions; when they run out, every decision is zero.

/// Numbers the steps of a script, in the order in which they are given, and keeps their names.
macro_rules! steps {
    ($($name:ident)+) => {
        pub(crate) const NAMES: &[&str] = &[$(stringify!($name)),+];
        pub(crate) const COUNT: u8 = NAMES.len() as u8;
        $crate::script::steps!(0; $($name)+);
    };
    ($number:expr; $name:ident $($rest:ident)*) => {
        pub(crate) const $name: u8 = $number;
        $crate::script::steps!($number + 1; $($rest)*);
    };
    ($number:expr;) => {};
}
pub(crate) use steps;

/// Writes a script: names of steps, `~NAME` for the other side's, numbers, and `=text`.
///
/// # Panics
/// If a word is none of these.
pub(crate) fn write(names: &[&str], text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        if let Some(text) = word.strip_prefix('=') {
            bytes.extend_from_slice(text.as_bytes());
            continue;
        }
        let (name, side) = word.strip_prefix('~').map_or((word, 0), |name| (name, 0x80));
        let step = names.iter().position(|known| *known == name).map(|at| at as u8 | side);
        bytes.push(step.or_else(|| word.parse().ok()).unwrap_or_else(|| panic!("no step is called {word}")));
    }
    bytes
}

/// The bytes that are left.
pub(crate) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes up to `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Takes all that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// Takes a number of up to eight bytes, highest first.
    fn number(&mut self, len: usize) -> u64 {
        let taken = self.bytes(len);
        taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.number(1) as u8
    }

    pub(crate) fn u16(&mut self) -> u16 {
        self.number(2) as u16
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.number(4) as u32
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.number(8)
    }

    /// Takes a byte and chooses with it.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    /// Takes a byte; true for odd ones.
    pub(crate) fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// Takes a byte as an index below `len`, which is not zero.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::from(self.u8()) % len
    }

    /// Takes a length byte and that many bytes, as text.
    pub(crate) fn text(&mut self) -> String {
        let len = usize::from(self.u8());
        String::from_utf8_lossy(self.bytes(len)).into_owned()
    }
}
