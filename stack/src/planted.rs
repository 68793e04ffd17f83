//! Mistakes of a TCP/UDP/ICMP stack, one of which a simulation chooses to see whether it finds it. Not part of a normal build.

use std::cell::Cell;

#[cfg(not(debug_assertions))]
compile_error!("planted bugs are for tests, not for what is released");

/// A mistake; `planted!` marks its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A connection that is over leaves no record for TIME-WAIT.
    TimeWaitNotKept,
    /// The engine ends TIME-WAIT, and unread bytes with it.
    TimeWaitEndsEarly,
    /// A timer that is due before the one that is set is not set.
    EarlierTimerIgnored,
    /// The memory of an idle connection is given back although bytes in it are unread.
    UnreadBytesGivenBack,
    /// A connection that was established still takes the place of one that is being made.
    BacklogPlaceLost,
    /// The memory of a connection that is over is not taken off the account.
    LedgerLeaks,
    /// Fragments of different datagrams are put together.
    FragmentIdIgnored,
    /// Addresses are still routed over a path that has ended.
    RouteOutlivesPath,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Bug] = &[
        Bug::TimeWaitNotKept,
        Bug::TimeWaitEndsEarly,
        Bug::EarlierTimerIgnored,
        Bug::UnreadBytesGivenBack,
        Bug::BacklogPlaceLost,
        Bug::LedgerLeaks,
        Bug::FragmentIdIgnored,
        Bug::RouteOutlivesPath,
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
