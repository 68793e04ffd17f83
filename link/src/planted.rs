//! Mistakes of links and their lanes, one of which a simulation chooses to see whether it finds it. Not part of a normal build.

use std::cell::Cell;

#[cfg(not(debug_assertions))]
compile_error!("planted bugs are for tests, not for what is released");

/// A mistake; `planted!` marks its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A lane gets its next turn only after it has used up the one before.
    DeficitNotRefilled,
    /// The answer to a probe is no sign of life.
    PongNotCounted,
    /// Probes that nobody answers do not end a link.
    SilenceIgnored,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Bug] = &[Bug::DeficitNotRefilled, Bug::PongNotCounted, Bug::SilenceIgnored];
}

thread_local! {
    static CHOSEN: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Chooses the mistake of this thread.
pub fn choose(bug: Option<Bug>) {
    CHOSEN.set(bug);
}

pub(crate) fn is(bug: Bug) -> bool {
    CHOSEN.get() == Some(bug)
}

/// Says whether a mistake is to be made here.
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is($crate::planted::Bug::$bug)
    };
}
