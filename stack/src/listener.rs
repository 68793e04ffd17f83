//! Listening sockets: a real backlog of connections, and a queue of SYNs for what exceeds it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use crate::errno::Error;
use crate::flow::{Flow, FlowId, Owner, Tuple};
use crate::limits;
use crate::packet::{self, DropReason, Packet, Segment};
use crate::path::{Class, PathId};
use crate::shard::{SocketId, Stack};
use crate::stream::Role;
use crate::tcp::Connection;
use crate::time::Instant;

/// The queues of a listening socket.
pub(crate) struct Listener {
    backlog: usize,
    /// Connections whose handshake is under way.
    half_open: usize,
    /// Connections that wait for `accept`.
    established: VecDeque<FlowId>,
    /// SYNs that wait for a place: queued, neither dropped nor reset.
    syns: VecDeque<Syn>,
    /// How many of these three each peer has.
    shares: HashMap<PathId, Share>,
}

/// What a peer has of a listener's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Share {
    connections: usize,
    syns: usize,
}

struct Syn {
    tuple: Tuple,
    path: PathId,
    packet: Vec<u8>,
}

impl Listener {
    fn new(backlog: usize) -> Listener {
        let (established, syns) = (VecDeque::new(), VecDeque::new());
        Listener { backlog, half_open: 0, established, syns, shares: HashMap::new() }
    }

    fn share(&self, path: PathId) -> Share {
        self.shares.get(&path).copied().unwrap_or_default()
    }

    /// Places that a peer finds even where others have filled the backlog: an eighth, up to as many places again as
    /// the backlog has. So a peer that floods a listener keeps nobody out but itself (threat T4).
    fn reserve(&self) -> usize {
        self.backlog.div_ceil(8)
    }

    fn has_place(&self, path: PathId) -> bool {
        let used = self.half_open + self.established.len();
        used < self.backlog || (self.share(path).connections < self.reserve() && used < 2 * self.backlog)
    }

    fn has_place_for_syn(&self, path: PathId) -> bool {
        let used = self.syns.len();
        used < self.backlog || (self.share(path).syns < self.reserve() && used < 2 * self.backlog)
    }

    /// Changes the share of a peer; one that has nothing is forgotten.
    fn enter(&mut self, path: PathId, change: impl FnOnce(&mut Share)) {
        let share = self.shares.entry(path).or_default();
        change(share);
        if *share == Share::default() {
            self.shares.remove(&path);
        }
    }

    /// Takes out the first waiting SYN whose peer has a place.
    fn next_syn(&mut self) -> Option<Syn> {
        let index = self.syns.iter().position(|syn| self.has_place(syn.path))?;
        let syn = self.syns.remove(index)?;
        self.enter(syn.path, |share| share.syns -= 1);
        Some(syn)
    }

    pub(crate) fn is_readable(&self) -> bool {
        !self.established.is_empty()
    }
}

impl Stack {
    /// Makes a bound TCP socket listen (`listen(2)`); the backlog is clamped to 1..=4,096.
    ///
    /// # Errors
    /// [`Error::NotSupported`] on another kind of socket, [`Error::Invalid`] on a connected or unbound
    /// one, [`Error::AddressInUse`] if another socket listens there.
    pub fn listen(&mut self, socket: SocketId, backlog: usize) -> Result<(), Error> {
        let entry = self.socket_ref(socket)?;
        let bound = entry.bound;
        let backlog = backlog.clamp(1, limits::BACKLOG_MAX);
        match entry.role {
            Role::Idle => {}
            Role::Listening(_) => {
                if let Role::Listening(listener) = &mut self.socket_mut(socket)?.role {
                    listener.backlog = backlog;
                }
                return Ok(());
            }
            Role::Stream(_) => return Err(Error::Invalid),
            Role::Datagram(_) => return Err(Error::NotSupported),
        }
        let port = bound.ok_or(Error::Invalid)?.port();
        self.ports.listen(port, socket)?;
        self.socket_mut(socket)?.role = Role::Listening(Listener::new(backlog));
        Ok(())
    }

    /// Takes the next established connection (`accept(2)`): its socket and the peer's address.
    ///
    /// # Errors
    /// [`Error::Again`] while the backlog is empty, [`Error::Invalid`] if the socket does not listen,
    /// [`Error::NoBuffers`] at the limit of sockets.
    pub fn accept(&mut self, now: Instant, socket: SocketId) -> Result<(SocketId, SocketAddr), Error> {
        if self.sockets.len() >= limits::SOCKETS_MAX {
            return Err(Error::NoBuffers);
        }
        let options = self.socket_ref(socket)?.options;
        loop {
            let entry = self.sockets.get_mut(socket).ok_or(Error::BadSocket)?;
            let Role::Listening(listener) = &mut entry.role else {
                return Err(Error::Invalid);
            };
            let Some(flow) = listener.established.pop_front() else {
                return Err(Error::Again);
            };
            if let Some(path) = self.flows.get(flow).and_then(|flow| flow.backlog_path) {
                listener.enter(path, |share| share.connections -= 1);
            }
            self.admit(now, socket);
            let Some(entry) = self.flows.get(flow) else {
                continue;
            };
            let remote = entry.tuple.remote;
            let accepted = self.adopt(flow, options);
            self.apply_options(flow, &options);
            return Ok((accepted, remote));
        }
    }

    /// Takes in a SYN for a listener, or queues it until the backlog has a place.
    pub(crate) fn take_syn(
        &mut self,
        now: Instant,
        path: PathId,
        listener: SocketId,
        tuple: Tuple,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let Some(Role::Listening(state)) = self.sockets.get_mut(listener).map(|entry| &mut entry.role) else {
            return Err(DropReason::NoSocket);
        };
        if state.has_place(path) {
            return self.open_passive(now, path, listener, tuple, packet);
        }
        // A repeated SYN of a waiting one adds nothing.
        if state.syns.iter().any(|syn| syn.tuple == tuple) {
            return Ok(());
        }
        // One that brings data is repeated by its peer as well; its bytes would be in no ledger.
        if packet.len() > limits::WAITING_SYN_LEN_MAX || !state.has_place_for_syn(path) {
            return Err(DropReason::BacklogFull);
        }
        state.enter(path, |share| share.syns += 1);
        state.syns.push_back(Syn { tuple, path, packet: packet.to_vec() });
        Ok(())
    }

    fn open_passive(
        &mut self,
        now: Instant,
        path: PathId,
        listener: SocketId,
        tuple: Tuple,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let of_peer = if path == self.loopback() { 0 } else { self.flow_count(path) };
        if self.flows.len() >= limits::FLOWS_MAX || of_peer >= limits::FLOWS_PEER_MAX {
            return Err(DropReason::Limit);
        }
        let options = self.sockets.get(listener).ok_or(DropReason::NoSocket)?.options;
        let wire = self.paths.get(path).ok_or(DropReason::PathLost)?.wire;
        let rings = self.rings(path, &options).ok_or(DropReason::Memory)?;
        let first = self.initial_sequence(now, &tuple);
        let parsed = Packet::parse(packet, false).map_err(|_| DropReason::Malformed)?;
        let syn = Segment::parse(parsed.payload).ok_or(DropReason::Malformed)?;
        // Data of a SYN comes again once the peer knows of this end (RFC 9293, section 3.10.7.2, allows both).
        let bare = (syn.payload_len > 0).then(|| packet::cut(packet, 0)).flatten();
        let opening = bare.as_deref().unwrap_or(packet);
        let connection = Connection::accept(wire, first, now, opening, tuple.local, rings);
        if connection.state() != crate::tcp::State::SynReceived {
            return Err(DropReason::Malformed);
        }
        let mut flow = Flow::new(now, tuple, path, connection, Owner::Backlog(listener));
        flow.backlog_path = Some(path);
        flow.receive_next = Some(syn.sequence.wrapping_add(1));
        let flow = self.insert_flow(flow);
        self.apply_options(flow, &options);
        if let Some(Role::Listening(state)) = self.sockets.get_mut(listener).map(|entry| &mut entry.role) {
            state.half_open += 1;
            state.enter(path, |share| share.connections += 1);
        }
        self.mark_dirty(flow);
        Ok(())
    }

    /// Moves a connection from half-open to the accept queue.
    pub(crate) fn passive_established(&mut self, flow: FlowId, listener: SocketId) {
        if let Some(Role::Listening(state)) = self.sockets.get_mut(listener).map(|entry| &mut entry.role) {
            state.half_open -= usize::from(!planted!(BacklogPlaceLost));
            state.established.push_back(flow);
        }
        self.mark_ready(listener);
    }

    /// Forgets a connection that ended before it was accepted.
    pub(crate) fn passive_ended(&mut self, now: Instant, flow: FlowId, listener: SocketId, was_half_open: bool) {
        let path = self.flows.get(flow).and_then(|flow| flow.backlog_path);
        if let Some(Role::Listening(state)) = self.sockets.get_mut(listener).map(|entry| &mut entry.role) {
            if was_half_open {
                state.half_open -= 1;
            }
            if let Some(path) = path {
                state.enter(path, |share| share.connections -= 1);
            }
            state.established.retain(|waiting| *waiting != flow);
        }
        self.admit(now, listener);
    }

    /// Turns waiting SYNs into connections while the backlog has places.
    fn admit(&mut self, now: Instant, listener: SocketId) {
        while let Some(Role::Listening(state)) = self.sockets.get_mut(listener).map(|entry| &mut entry.role) {
            let Some(syn) = state.next_syn() else {
                return;
            };
            // Its repetition has found a place before it did: another connection would take the name of that one.
            if self.tuples.contains_key(&syn.tuple) {
                continue;
            }
            if let Err(reason) = self.open_passive(now, syn.path, listener, syn.tuple, &syn.packet) {
                self.count_drop(reason);
            }
        }
    }

    /// Forgets the waiting SYNs of a peer that is gone, by its path and its end: they would take the places of the
    /// connections that end with it, and nothing would end these.
    pub(crate) fn forget_syns(&mut self, meant: impl Fn(PathId, SocketAddr) -> bool) {
        for socket in self.sockets.keys() {
            let Some(Role::Listening(state)) = self.sockets.get_mut(socket).map(|entry| &mut entry.role) else {
                continue;
            };
            for syn in std::mem::take(&mut state.syns) {
                if meant(syn.path, syn.tuple.remote) {
                    state.enter(syn.path, |share| share.syns -= 1);
                } else {
                    state.syns.push_back(syn);
                }
            }
        }
    }

    fn refuse_syn(&mut self, syn: &Syn) {
        let segment = Packet::parse(&syn.packet, false).ok().and_then(|packet| Segment::parse(packet.payload));
        if let Some(segment) = segment {
            let reset = packet::reset_for(syn.tuple.local, syn.tuple.remote, &segment);
            self.reply(syn.path, Class::Interactive, reset);
        }
    }

    /// Resets every connection that nobody accepted (POSIX `close` of a listening socket).
    pub(crate) fn close_listener(&mut self, now: Instant, listener: SocketId) {
        // From here on nothing takes the place of what is reset.
        if let Some(entry) = self.sockets.get_mut(listener)
            && let Role::Listening(state) = std::mem::replace(&mut entry.role, Role::Idle)
        {
            for syn in state.syns {
                self.refuse_syn(&syn);
            }
        }
        let owned = |flow: &Flow| flow.owner == Owner::Backlog(listener);
        let flows: Vec<FlowId> = self.flows.iter().filter(|(_, flow)| owned(flow)).map(|(id, _)| id).collect();
        for flow in flows {
            self.abort_flow(now, flow);
        }
    }
}
