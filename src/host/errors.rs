//! Errors: what the stack says as a fault, and what has become of connections that are over.

use std::collections::VecDeque;

use unisockets_descriptors::Fault;
use unisockets_stack::Error;

/// Ended connections whose error somebody may still ask for.
const ENDED_MAX: usize = 4_096;

/// Makes a fault of an error of the stack.
pub(super) fn fault(error: Error) -> Fault {
    Fault { errno: error.errno(), text: error.to_string() }
}

/// Makes a fault of an error of the kernel.
pub(super) fn system(error: &std::io::Error) -> Fault {
    Fault { errno: error.raw_os_error().unwrap_or(libc::EIO), text: error.to_string() }
}

/// The errors with which connections ended, until they are taken.
#[derive(Default)]
pub(super) struct Ended {
    errors: VecDeque<(u64, i32)>,
}

impl Ended {
    /// Remembers an error; the oldest goes where there are too many.
    pub(super) fn insert(&mut self, id: u64, errno: i32) {
        if self.errors.len() >= ENDED_MAX {
            self.errors.pop_front();
        }
        self.errors.push_back((id, errno));
    }

    /// Takes the error of a connection, 0 if there is none.
    pub(super) fn take(&mut self, id: u64) -> i32 {
        let Some(at) = self.errors.iter().rposition(|(known, _)| *known == id) else {
            return 0;
        };
        self.errors.remove(at).map_or(0, |(_, errno)| errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_taken_once_and_the_oldest_is_forgotten() {
        let mut ended = Ended::default();
        ended.insert(1, 111);
        assert_eq!((ended.take(1), ended.take(1)), (111, 0));
        for id in 0..=ENDED_MAX as u64 {
            ended.insert(id, 104);
        }
        assert_eq!((ended.take(0), ended.take(1)), (0, 104));
    }
}
