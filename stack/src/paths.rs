//! What the outside says about paths: opened, up, writable, lost, replaced, ended.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::errno::Error;
use crate::flow::FlowId;
use crate::limits;
use crate::packet::{self, DropReason};
use crate::path::{Path, PathConfig, PathId, PathState};
use crate::shard::{SocketId, Stack};
use crate::stream::Role;
use crate::tcp::State;
use crate::time::Instant;

/// Why a path ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEnd {
    /// The peer left or restarted: its connections are gone (ECONNRESET).
    Reset,
    /// The peer cannot be reached, or nobody has the address (EHOSTUNREACH).
    Unreachable,
    /// Nothing used it any more; the next packet makes a new one, and nobody sees an error.
    Idle,
}

impl Stack {
    /// Opens a path to a peer that linked to us before we sent anything to it.
    ///
    /// # Errors
    /// [`Error::NoBuffers`] at the limit of 16,384 paths.
    pub fn open_path(&mut self, config: PathConfig) -> Result<PathId, Error> {
        if self.paths.len() >= limits::PATHS_MAX {
            return Err(Error::NoBuffers);
        }
        Ok(self.paths.insert(Path::new(config, PathState::Pending)))
    }

    /// Returns the path that an address is routed over, if there is one.
    pub fn route(&self, address: IpAddr) -> Option<PathId> {
        self.routes.get(&address).copied()
    }

    /// Routes an address over a path. What waited for that address on a pending path moves there; connections of
    /// another peer that had the address are reset: their bytes are not for this one.
    pub fn add_route(&mut self, now: Instant, address: IpAddr, path: PathId) {
        let Some(before) = self.routes.insert(address, path) else {
            return;
        };
        if before == path {
            return;
        }
        let pending = self.paths.get(before).is_some_and(|path| path.state == PathState::Pending);
        self.leave_address(now, before, address, pending.then_some(path));
        let Some(old) = self.paths.get_mut(before) else {
            return;
        };
        let (concerned, kept): (VecDeque<Vec<u8>>, VecDeque<Vec<u8>>) =
            old.datagrams.drain(..).partition(|datagram| packet::destination_of(datagram) == Some(address));
        old.datagram_bytes = kept.iter().map(Vec::len).sum();
        old.datagrams = kept;
        let waiters = std::mem::take(&mut old.waiters);
        if pending && let Some(new) = self.paths.get_mut(path) {
            new.datagram_bytes += concerned.iter().map(Vec::len).sum::<usize>();
            new.datagrams.extend(concerned);
        } else {
            for _ in concerned {
                self.count_drop(DropReason::PathLost);
            }
        }
        self.wake(waiters);
        self.drop_oversized(path);
        if !self.routes.values().any(|used| *used == before) {
            self.end_path(now, before, PathEnd::Unreachable);
        }
        self.queue_path(path);
    }

    /// Routes an address over a path no more, if it was: the peer behind it has another one now. Connections with the former
    /// address are reset.
    pub fn remove_route(&mut self, now: Instant, address: IpAddr, path: PathId) {
        if self.routes.get(&address) != Some(&path) {
            return;
        }
        self.routes.remove(&address);
        self.leave_address(now, path, address, None);
    }

    /// Moves the connections with an address to another path, or resets them where there is none for them.
    fn leave_address(&mut self, now: Instant, path: PathId, address: IpAddr, to: Option<PathId>) {
        self.forget_syns(|syn, from| syn == path && from.ip() == address);
        for id in self.flows_of(path) {
            if self.flows.get(id).is_some_and(|flow| flow.tuple.remote.ip() == address) {
                match to {
                    Some(to) => self.move_flow(now, id, to),
                    None => self.fail_flow(now, id, Error::ConnectionReset),
                }
            }
        }
    }

    fn move_flow(&mut self, now: Instant, id: FlowId, path: PathId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let before = std::mem::replace(&mut flow.path, path);
        let (committed, is_long) = (flow.committed(), usize::from(flow.is_long()));
        flow.dirty = false;
        if let Some(old) = self.paths.get_mut(before) {
            old.dirty.retain(|dirty| *dirty != id);
            old.flow_count -= 1;
            old.long_count -= is_long;
            old.committed -= committed;
        }
        if let Some(new) = self.paths.get_mut(path) {
            new.flow_count += 1;
            new.long_count += is_long;
            new.committed += committed;
            if new.state != PathState::Pending {
                self.fit_to_distance(now, id);
            }
        }
        self.mark_dirty(id);
    }

    /// Says how long the way to the peer and back takes, which decides how long the buffers of new connections are.
    /// Those that wait for a pending path get theirs when it is there.
    pub fn set_round_trip(&mut self, path: PathId, round_trip: Duration) {
        if let Some(entry) = self.paths.get_mut(path) {
            entry.fit_buffers(round_trip);
        }
    }

    /// Says that the path's link is there, at first or again; every flow of the path resumes at once.
    pub fn path_up(&mut self, now: Instant, path: PathId, config: PathConfig) {
        let Some(entry) = self.paths.get_mut(path) else {
            return;
        };
        let was_pending = entry.state == PathState::Pending;
        entry.state = PathState::Up;
        entry.wire = config.wire();
        self.drop_oversized(path);
        for flow in self.flows_of(path) {
            if was_pending {
                self.fit_to_distance(now, flow);
                self.mark_dirty(flow);
            } else {
                self.resume(now, flow);
            }
        }
        self.queue_path(path);
        self.wake_waiters(path);
    }

    /// Drops what was cut for a larger MTU than the path has now.
    fn drop_oversized(&mut self, path: PathId) {
        let Some(entry) = self.paths.get_mut(path) else {
            return;
        };
        let (mtu, before) = (entry.wire.mtu, entry.replies.len() + entry.datagrams.len());
        entry.replies.retain(|(_, packet)| packet.len() <= mtu);
        entry.datagrams.retain(|packet| packet.len() <= mtu);
        entry.datagram_bytes = entry.datagrams.iter().map(Vec::len).sum();
        for _ in entry.replies.len() + entry.datagrams.len()..before {
            self.count_drop(DropReason::PathLost);
        }
    }

    /// Says that the path's link broke: nothing leaves until [`Stack::path_up`], connections stay.
    pub fn path_lost(&mut self, path: PathId) {
        if let Some(entry) = self.paths.get_mut(path) {
            entry.state = PathState::Lost;
            let dropped = entry.replies.len() + entry.datagrams.len();
            entry.replies.clear();
            entry.datagrams.clear();
            entry.datagram_bytes = 0;
            for _ in 0..dropped {
                self.count_drop(DropReason::PathLost);
            }
            self.wake_waiters(path);
        }
    }

    /// Says that the path's link has room again.
    pub fn path_writable(&mut self, path: PathId) {
        self.queue_path(path);
    }

    /// Ends every connection of a path, keeping the path: the peer restarted under the same key.
    pub fn reset_flows(&mut self, now: Instant, path: PathId) {
        // What is only being asked for is asked for again, of the peer's new life.
        let asks = |flow: &FlowId| self.flows.get(*flow).is_some_and(|flow| flow.state == State::SynSent);
        let flows: Vec<FlowId> = self.flows_of(path).into_iter().filter(|flow| !asks(flow)).collect();
        self.forget_syns(|syn, _| syn == path);
        for flow in flows {
            self.fail_flow(now, flow, Error::ConnectionReset);
        }
    }

    /// Ends a path and its connections; datagram sockets that used it see the error once.
    pub fn end_path(&mut self, now: Instant, path: PathId, end: PathEnd) {
        if path == self.loopback() {
            return;
        }
        let error = match end {
            PathEnd::Reset => Error::ConnectionReset,
            PathEnd::Unreachable | PathEnd::Idle => Error::HostUnreachable,
        };
        self.forget_syns(|syn, _| syn == path);
        for flow in self.flows_of(path) {
            self.fail_flow(now, flow, error);
        }
        let ended: Vec<IpAddr> = self.routes.iter().filter(|(_, used)| **used == path).map(|(ip, _)| *ip).collect();
        for address in ended.iter().filter(|_| !planted!(RouteOutlivesPath)) {
            self.routes.remove(address);
        }
        if let Some(entry) = self.paths.remove(path) {
            for _ in 0..entry.replies.len() + entry.datagrams.len() {
                self.count_drop(DropReason::PathLost);
            }
            self.wake(entry.waiters);
        }
        if end == PathEnd::Idle {
            return;
        }
        // An error on its way back concerns the sockets that talk to that peer (ip(7), IP_RECVERR off).
        for socket in self.sockets.keys() {
            if let Some(entry) = self.sockets.get_mut(socket)
                && let Role::Datagram(datagram) = &entry.role
                && datagram.talks_to(entry.kind, &ended)
            {
                entry.error = Some(Error::HostUnreachable);
                self.mark_ready(socket);
            }
        }
    }

    /// Returns how many connections use a path; such a link is not closed for being idle.
    pub fn flow_count(&self, path: PathId) -> usize {
        self.paths.get(path).map_or(0, |path| path.flow_count)
    }

    fn flows_of(&self, path: PathId) -> Vec<FlowId> {
        self.flows.iter().filter(|(_, flow)| flow.path == path).map(|(id, _)| id).collect()
    }

    pub(crate) fn wake_waiters(&mut self, path: PathId) {
        let waiters = self.paths.get_mut(path).map(|path| std::mem::take(&mut path.waiters)).unwrap_or_default();
        self.wake(waiters);
    }

    /// Tells sockets that found no room to try again.
    fn wake(&mut self, waiters: Vec<SocketId>) {
        for socket in waiters {
            if let Some(Role::Datagram(datagram)) = self.sockets.get_mut(socket).map(|entry| &mut entry.role) {
                datagram.waits = false;
            }
            self.mark_ready(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{Family, Kind};

    /// A path that is down serves nobody: connections that came and went stayed in its queue, one after the other.
    #[test]
    fn a_path_without_a_link_remembers_no_connections_that_are_gone() {
        let now = Instant::ZERO;
        let mut stack = Stack::new(7);
        let (own, peer) = ("10.80.0.1".parse().unwrap(), "10.80.0.2".parse().unwrap());
        stack.set_addresses(&[own], &[]);
        let path = stack.open_path(PathConfig { mtu: 1_500, verify_checksums: false }).unwrap();
        stack.add_route(now, peer, path);
        let connect = |stack: &mut Stack| {
            let socket = stack.socket(Kind::Tcp, Family::V4).unwrap();
            let _ = stack.connect(now, socket, std::net::SocketAddr::new(peer, 80));
            socket
        };
        let kept = connect(&mut stack);
        for _ in 0..5_000 {
            let socket = connect(&mut stack);
            stack.close(now, socket);
        }
        let waiting = &stack.paths.get(path).unwrap().dirty;
        assert!(waiting.len() <= 2 + limits::TIMERS_SPARE, "{}", waiting.len());
        let live: Vec<FlowId> = stack.flows.iter().map(|(id, _)| id).collect();
        assert_eq!(live.len(), 1);
        assert!(waiting.contains(&live[0]), "who still waits is served: {kept:?}");
    }
}
