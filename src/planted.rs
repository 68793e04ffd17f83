//! Mistakes of a node: its peers, its routes and its links, one of which a simulation chooses to see whether it finds it. Not part of a normal build.

use std::cell::Cell;

#[cfg(not(debug_assertions))]
compile_error!("planted bugs are for tests, not for what is released");

/// A mistake; `planted!` marks its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Packets may come from any IPv6 address.
    SourceUncheckedV6,
    /// A link that was lost is not made again.
    RedialForgotten,
    /// Connections with the earlier life of a peer stay.
    RestartUnnoticed,
    /// A link that carries connections is closed when nothing passes for long.
    BusyLinkClosed,
    /// A peer is given up that is silent but not gone.
    GivenUpTooSoon,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Bug] = &[
        Bug::SourceUncheckedV6,
        Bug::RedialForgotten,
        Bug::RestartUnnoticed,
        Bug::BusyLinkClosed,
        Bug::GivenUpTooSoon,
    ];
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
