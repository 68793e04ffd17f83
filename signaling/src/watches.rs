//! Who wants to hear of whose end.

use std::collections::{HashMap, HashSet};

use crate::identity::PublicKey;
use crate::outputs::{ConnectionId, Place};

/// Members that one member watches, asked for or implied.
pub(crate) const WATCHED_MAX: usize = 4_096;
/// Members of which it is asked whether they are present, where one has to make room.
const LOOKED_AT_MAX: usize = 16;

/// Watchers by member, and members by watcher.
#[derive(Default)]
pub(crate) struct Watches {
    watchers: HashMap<Place, HashSet<ConnectionId>>,
    watched: HashMap<ConnectionId, HashSet<PublicKey>>,
}

impl Watches {
    /// Makes a connection hear of a member's end. Where it watches too many already, one that is not present is watched no
    /// more.
    pub(crate) fn watch(&mut self, id: ConnectionId, place: Place, is_present: impl Fn(&Place) -> bool) {
        let (network, key) = place;
        let watched = self.watched.entry(id).or_default();
        if watched.contains(&key) {
            return;
        }
        if watched.len() >= WATCHED_MAX {
            // A few of them, whichever: this is done for every signal from somebody new.
            let absent = watched.iter().take(LOOKED_AT_MAX).copied().find(|key| !is_present(&(network.clone(), *key)));
            let Some(absent) = absent else {
                return;
            };
            watched.remove(&absent);
            self.unwatch(id, &(network.clone(), absent));
        }
        self.watched.entry(id).or_default().insert(key);
        self.watchers.entry((network, key)).or_default().insert(id);
    }

    /// Forgets what a connection watched.
    pub(crate) fn forget(&mut self, id: ConnectionId, network: &str) {
        for key in self.watched.remove(&id).unwrap_or_default() {
            self.unwatch(id, &(network.to_owned(), key));
        }
    }

    /// Returns who watches a member.
    pub(crate) fn of(&self, place: &Place) -> Vec<ConnectionId> {
        self.watchers.get(place).into_iter().flatten().copied().collect()
    }

    fn unwatch(&mut self, id: ConnectionId, place: &Place) {
        if let Some(watchers) = self.watchers.get_mut(place) {
            watchers.remove(&id);
            if watchers.is_empty() {
                self.watchers.remove(place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;

    fn place(n: u64) -> Place {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        ("home".to_owned(), KeyPair::from_seed(&seed).public())
    }

    #[test]
    fn one_that_is_gone_makes_room_for_one_that_is_there() {
        let mut watches = Watches::default();
        let id = ConnectionId(1);
        for n in 0..WATCHED_MAX as u64 {
            watches.watch(id, place(n), |_| true);
        }
        let new = place(1 << 32);
        watches.watch(id, new.clone(), |_| true);
        assert!(watches.of(&new).is_empty(), "all are there, and no more than so many are watched");
        watches.watch(id, new.clone(), |_| false);
        assert_eq!(watches.of(&new), [id]);
        assert_eq!((0..WATCHED_MAX as u64).filter(|n| watches.of(&place(*n)).is_empty()).count(), 1);
        watches.forget(id, "home");
        assert!(watches.watchers.is_empty() && watches.watched.is_empty());
    }
}
