//! Listening sockets: a real backlog of connections, and a queue of SYNs for what exceeds it.

use std::collections::VecDeque;
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
}

struct Syn {
    tuple: Tuple,
    path: PathId,
    packet: Vec<u8>,
}

impl Listener {
    fn has_place(&self) -> bool {
        self.half_open + self.established.len() < self.backlog
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
        let listener = Listener { backlog, half_open: 0, established: VecDeque::new(), syns: VecDeque::new() };
        self.socket_mut(socket)?.role = Role::Listening(listener);
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
            let Role::Listening(listener) = &mut self.socket_mut(socket)?.role else {
                return Err(Error::Invalid);
            };
            let Some(flow) = listener.established.pop_front() else {
                return Err(Error::Again);
            };
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
        if state.has_place() {
            return self.open_passive(now, path, listener, tuple, packet);
        }
        // A repeated SYN of a waiting one adds nothing.
        if state.syns.iter().any(|syn| syn.tuple == tuple) {
            return Ok(());
        }
        if state.syns.len() >= state.backlog {
            return Err(DropReason::BacklogFull);
        }
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
        let seed = self.random();
        let connection = Connection::accept(wire, seed, now, packet, tuple.local, rings);
        if connection.state() != crate::tcp::State::SynReceived {
            return Err(DropReason::Malformed);
        }
        let flow = Flow::new(now, tuple, path, connection, Owner::Backlog(listener));
        let flow = self.insert_flow(flow);
        self.apply_options(flow, &options);
        if let Some(Role::Listening(state)) = self.sockets.get_mut(listener).map(|entry| &mut entry.role) {
            state.half_open += 1;
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
        if let Some(Role::Listening(state)) = self.sockets.get_mut(listener).map(|entry| &mut entry.role) {
            if was_half_open {
                state.half_open -= 1;
            }
            state.established.retain(|waiting| *waiting != flow);
        }
        self.admit(now, listener);
    }

    /// Turns waiting SYNs into connections while the backlog has places.
    fn admit(&mut self, now: Instant, listener: SocketId) {
        while let Some(Role::Listening(state)) = self.sockets.get_mut(listener).map(|entry| &mut entry.role) {
            if !state.has_place() {
                return;
            }
            let Some(syn) = state.syns.pop_front() else {
                return;
            };
            if let Err(reason) = self.open_passive(now, syn.path, listener, syn.tuple, &syn.packet) {
                self.count_drop(reason);
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
