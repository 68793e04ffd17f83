//! What a socket can do now, as data that any interface can be built on: poll, epoll, wakers, events.

use std::ops::{BitOr, BitOrAssign};

/// A set of conditions, with the meaning of `poll(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Readiness(u8);

impl Readiness {
    /// Nothing can be done.
    pub const NONE: Readiness = Readiness(0);
    /// A receive, or an accept, would not wait (POLLIN).
    pub const READABLE: Readiness = Readiness(1);
    /// A send would not wait (POLLOUT).
    pub const WRITABLE: Readiness = Readiness(2);
    /// The other side will send no more (POLLRDHUP).
    pub const READ_CLOSED: Readiness = Readiness(4);
    /// Both directions have ended (POLLHUP).
    pub const HANG_UP: Readiness = Readiness(8);
    /// An error is pending (POLLERR).
    pub const ERROR: Readiness = Readiness(16);

    /// Returns whether all of `other`'s conditions hold.
    pub const fn contains(self, other: Readiness) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns whether any of `other`'s conditions holds.
    pub const fn intersects(self, other: Readiness) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns the set with `condition` added where `holds`.
    #[must_use]
    pub const fn with(self, condition: Readiness, holds: bool) -> Readiness {
        if holds { Readiness(self.0 | condition.0) } else { self }
    }
}

impl BitOr for Readiness {
    type Output = Readiness;
    fn bitor(self, rhs: Readiness) -> Readiness {
        Readiness(self.0 | rhs.0)
    }
}

impl BitOrAssign for Readiness {
    fn bitor_assign(&mut self, rhs: Readiness) {
        self.0 |= rhs.0;
    }
}
