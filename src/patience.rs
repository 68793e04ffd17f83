//! How long a program that has ended is survived by what it wrote.

use std::time::{Duration, Instant};

/// How long what was written may take to be delivered in all.
const LIMIT: Duration = Duration::from_secs(600);
/// How long nobody may take any of it: a destination that has vanished must not keep a name from the next program.
const STALL: Duration = Duration::from_secs(20);

/// Waits for others to take something, as long as they take some of it: 10 minutes at most, and no longer than 20 s in
/// which nobody does.
#[derive(Debug)]
pub struct Patience {
    began: Instant,
    moved: Instant,
    least: usize,
}

impl Patience {
    /// How often it should be looked at.
    pub const LOOK: Duration = Duration::from_millis(20);

    /// Begins to wait.
    pub fn begin() -> Patience {
        let now = Instant::now();
        Patience { began: now, moved: now, least: usize::MAX }
    }

    /// Returns whether the wait is over, with so much left: nothing, or nobody has taken any for too long.
    pub fn is_over(&mut self, left: usize) -> bool {
        let now = Instant::now();
        if left < self.least {
            (self.least, self.moved) = (left, now);
        }
        left == 0 || now - self.began >= LIMIT || now - self.moved >= STALL
    }
}
