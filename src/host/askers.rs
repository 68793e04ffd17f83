//! The programs that have asked a node: it stays for them as long as they run.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Programs that are remembered; of further ones only the environment tells.
const ASKERS_MAX: usize = 256;

/// Processes, by number.
#[derive(Default)]
pub(super) struct Askers(Mutex<HashMap<i32, OwnedFd>>);

impl Askers {
    fn known(&self) -> MutexGuard<'_, HashMap<i32, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a process.
    pub(super) fn note(&self, process: i32) {
        let mut known = self.known();
        if known.get(&process).is_some_and(runs) {
            return;
        }
        if known.len() >= ASKERS_MAX {
            known.retain(|_, process| runs(process));
        }
        if known.len() < ASKERS_MAX
            && let Some(Ok(descriptor)) = Pid::from_raw(process).map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK))
        {
            known.insert(process, descriptor);
        }
    }

    /// Forgets a process that has left the node.
    pub(super) fn forget(&self, process: i32) {
        self.known().remove(&process);
    }

    /// Returns whether one of them still runs.
    pub(super) fn any_runs(&self) -> bool {
        let mut known = self.known();
        known.retain(|_, process| runs(process));
        !known.is_empty()
    }
}

/// A process descriptor is readable when the process has ended (pidfd_open(2)).
fn runs(process: &OwnedFd) -> bool {
    let mut wanted = [PollFd::new(process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut wanted, Some(&now)).is_ok_and(|ready| ready == 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_counts_while_it_runs() {
        let askers = Askers::default();
        let mut children: Vec<_> = (0..2).map(|_| Command::new("sleep").arg("60").spawn().unwrap()).collect();
        for child in &children {
            askers.note(child.id() as i32);
            askers.note(child.id() as i32);
        }
        while let Some(mut child) = children.pop() {
            assert!(askers.any_runs());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(askers.known().values().filter(|process| runs(process)).count(), children.len());
        }
        assert!(!askers.any_runs() && askers.known().is_empty());
        let own = std::process::id() as i32;
        askers.note(own);
        assert!(askers.any_runs());
        askers.forget(own);
        assert!(!askers.any_runs(), "it has left");
    }
}
