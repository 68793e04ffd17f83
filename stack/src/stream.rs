//! The calls of `socket(7)` on TCP.

use std::net::SocketAddr;

use crate::errno::Error;
use crate::flow::{Flow, FlowId, Owner, Tuple};
use crate::limits;
use crate::listener::Listener;
use crate::meter::RoundTrip;
use crate::options::Options;
use crate::path::PathId;
use crate::ports::{Ports, Space};
use crate::readiness::Readiness;
use crate::shard::{Family, Kind, Socket, SocketId, Stack, canonical};
use crate::tcp::{Connection, State};
use crate::time::Instant;
use crate::udp::Datagram;

/// What a socket is being used for.
pub(crate) enum Role {
    Idle,
    Listening(Listener),
    Stream(FlowId),
    Datagram(Datagram),
}

impl Role {
    pub(crate) fn new(kind: Kind) -> Role {
        match kind {
            Kind::Tcp => Role::Idle,
            Kind::Udp | Kind::Echo => Role::Datagram(Datagram::default()),
        }
    }
}

/// Which direction of a connection is shut (`shutdown(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// SHUT_RD: reads give end of file.
    Read,
    /// SHUT_WR: a FIN follows what was sent.
    Write,
    /// SHUT_RDWR.
    Both,
}

/// What `ss -i` would show of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamInfo {
    /// The state of RFC 9293.
    pub state: State,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Bytes sent, repetitions included.
    pub sent_bytes: u64,
    /// Bytes received in order.
    pub received_bytes: u64,
    /// Bytes sent more than once (tcpi_bytes_retrans).
    pub resent_bytes: u64,
    /// Segments sent, those without data included (tcpi_segs_out).
    pub sent_segments: u64,
    /// Segments received and accepted (tcpi_segs_in).
    pub received_segments: u64,
    /// Segments sent more than once (tcpi_total_retrans).
    pub resent_segments: u64,
    /// How often in a row the oldest unacknowledged segment was repeated (tcpi_retransmits).
    pub retries: u32,
    /// Keep-alive probes that have no answer yet (tcpi_probes).
    pub probes: u8,
    /// The round trip time, once one was measured (tcpi_rtt, tcpi_rttvar, tcpi_min_rtt).
    pub round_trip: Option<RoundTrip>,
    /// Largest packet that is sent, in bytes (tcpi_pmtu).
    pub mtu: usize,
    /// Bytes not yet acknowledged or not yet sent.
    pub send_queue: usize,
    /// Bytes not yet read.
    pub receive_queue: usize,
}

impl Stack {
    /// Starts a connection (`connect(2)`); it is made when the socket becomes writable without an error.
    /// On a datagram socket it sets the peer.
    ///
    /// # Errors
    /// [`Error::InProgress`] is the rule for TCP. [`Error::Already`], [`Error::IsConnected`],
    /// [`Error::AddressFamily`], [`Error::Invalid`] (port 0, or a listening socket),
    /// [`Error::NetworkUnreachable`], [`Error::AddressNotAvailable`] when no port is free,
    /// [`Error::NoBuffers`].
    pub fn connect(&mut self, now: Instant, socket: SocketId, remote: SocketAddr) -> Result<(), Error> {
        let entry = self.socket_ref(socket)?;
        let v6_only = entry.family == Family::V6 && entry.options.v6_only;
        if remote.is_ipv6() && entry.family == Family::V4 {
            return Err(Error::AddressFamily);
        }
        let mut remote = canonical(remote);
        if remote.is_ipv4() && v6_only {
            return Err(Error::NetworkUnreachable);
        }
        if remote.ip().is_unspecified() {
            // Linux takes "any" for this machine.
            let loopback = if remote.is_ipv4() { "127.0.0.1" } else { "::1" };
            remote.set_ip(loopback.parse().expect("a literal address"));
        }
        match &entry.role {
            Role::Datagram(_) => return self.connect_datagram(socket, remote),
            Role::Listening(_) => return Err(Error::IsConnected),
            Role::Stream(flow) => self.retry(now, socket, *flow)?,
            Role::Idle => {}
        }
        let entry = self.socket_ref(socket)?;
        if remote.port() == 0 {
            return Err(Error::ConnectionRefused);
        }
        let options = entry.options;
        let tuple = self.choose_tuple(socket, remote)?;
        let path = self.path_to(remote.ip())?;
        if self.flows.len() >= limits::FLOWS_MAX {
            return Err(Error::NoBuffers);
        }
        let wire = self.paths.get(path).ok_or(Error::HostUnreachable)?.wire;
        let first = self.initial_sequence(now, &tuple);
        let rings = self.rings(path, &options).ok_or(Error::NoBuffers)?;
        let connection = Connection::connect(wire, first, (tuple.local, tuple.remote), rings);
        let flow = self.insert_flow(Flow::new(now, tuple, path, connection, Owner::Socket(socket)));
        self.apply_options(flow, &options);
        self.socket_mut(socket)?.role = Role::Stream(flow);
        self.mark_dirty(flow);
        self.schedule(now, flow);
        Err(Error::InProgress)
    }

    /// Makes a socket ready for another attempt if its connection never came about, and its error is known: as on Linux
    /// the call that follows a failure reports it, and the next one may try again.
    fn retry(&mut self, now: Instant, socket: SocketId, id: FlowId) -> Result<(), Error> {
        let flow = self.flows.get_mut(id).ok_or(Error::IsConnected)?;
        match flow.state {
            State::SynSent | State::SynReceived => return Err(Error::Already),
            State::Closed if flow.acknowledged.newest().is_none() => {}
            _ => return Err(Error::IsConnected),
        }
        if let Some(error) = flow.error.take() {
            return Err(error);
        }
        self.socket_mut(socket)?.role = Role::Idle;
        self.orphan(now, id, true);
        Ok(())
    }

    /// Chooses this end of a new connection: the bound address, or an ephemeral port that makes the
    /// 4-tuple new.
    fn choose_tuple(&mut self, socket: SocketId, remote: SocketAddr) -> Result<Tuple, Error> {
        let bound = self.socket_ref(socket)?.bound;
        let ip = match bound {
            Some(bound) if !bound.ip().is_unspecified() => bound.ip(),
            _ => self.source_for(remote.ip())?,
        };
        if ip.is_ipv4() != remote.is_ipv4() {
            return Err(Error::AddressFamily);
        }
        if let Some(bound) = bound {
            let tuple = Tuple { local: SocketAddr::new(ip, bound.port()), remote };
            let used = self.tuples.contains_key(&tuple) || self.time_wait.contains(&tuple);
            return if used { Err(Error::AddressNotAvailable) } else { Ok(tuple) };
        }
        let start = self.port_offset(ip, remote);
        let tuple = |port| Tuple { local: SocketAddr::new(ip, port), remote };
        let is_free = |port| {
            let tuple = tuple(port);
            !self.ports.is_claimed(Space::Tcp, port)
                && !self.tuples.contains_key(&tuple)
                && !self.time_wait.contains(&tuple)
        };
        Ports::ephemeral(start, is_free).map(tuple)
    }

    /// Makes a socket for an established connection of a backlog.
    pub(crate) fn adopt(&mut self, flow: FlowId, options: Options) -> SocketId {
        let family = match self.flows.get(flow).map(|flow| flow.tuple.local) {
            Some(SocketAddr::V6(_)) => Family::V6,
            _ => Family::V4,
        };
        let socket = self.sockets.insert(Socket {
            kind: Kind::Tcp,
            family,
            bound: None,
            options,
            role: Role::Stream(flow),
            error: None,
            announced: false,
            receive_shut: false,
        });
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.owner = Owner::Socket(socket);
        }
        self.mark_ready(socket);
        socket
    }

    fn flow_of(&self, socket: SocketId) -> Result<FlowId, Error> {
        match self.socket_ref(socket)?.role {
            Role::Stream(flow) => Ok(flow),
            Role::Idle | Role::Listening(_) => Err(Error::NotConnected),
            Role::Datagram(_) => Err(Error::NotSupported),
        }
    }

    /// Queues bytes of a connection for sending and returns how many were taken (`send(2)`).
    ///
    /// # Errors
    /// [`Error::Again`] while the send buffer is full or the connection is being made, the pending error
    /// of the connection once, [`Error::BrokenPipe`] after the end or [`Stack::finish`], [`Error::NotConnected`].
    pub fn send(&mut self, now: Instant, socket: SocketId, data: &[u8]) -> Result<usize, Error> {
        let id = self.flow_of(socket)?;
        let flow = self.flows.get_mut(id).ok_or(Error::NotConnected)?;
        if let Some(error) = flow.error.take() {
            return Err(error);
        }
        if matches!(flow.state, State::SynSent | State::SynReceived) {
            return Err(Error::Again);
        }
        if self.finishing || !flow.connection.may_send() {
            return Err(Error::BrokenPipe);
        }
        let was_empty = flow.connection.send_queue() == 0;
        let (path, asked) = (flow.path, data.len());
        let data = &data[..self.affordable(id, path, data.len())];
        let flow = self.flows.get_mut(id).ok_or(Error::NotConnected)?;
        let sent = flow.connection.send(data);
        let committed = flow.wrote(was_empty, sent);
        if sent == 0 && asked > 0 {
            return Err(Error::Again);
        }
        if was_empty {
            (flow.progress_at, flow.taken_at) = (now, now);
        }
        self.charge(id, committed);
        self.mark_dirty(id);
        Ok(sent)
    }

    /// Returns how many bytes a send ring may take: all, unless they would commit memory that its peer must not have.
    /// What has been committed is used again when it has been acknowledged, so that a connection goes on, slowly.
    fn affordable(&self, id: FlowId, path: PathId, len: usize) -> usize {
        let Some(flow) = self.flows.get(id).filter(|_| self.is_full(path)) else {
            return len;
        };
        let used = if flow.connection.send_queue() == 0 { 0 } else { flow.send_used };
        let room = flow.connection.rings.send.touched().max(limits::PAGE_LEN).saturating_sub(used);
        len.min(room)
    }

    /// Takes received bytes of a connection (`recv(2)`); 0 is the end of the stream.
    ///
    /// # Errors
    /// [`Error::Again`] while there is nothing, the pending error of the connection once its bytes are
    /// read, [`Error::NotConnected`].
    pub fn recv(&mut self, socket: SocketId, data: &mut [u8]) -> Result<usize, Error> {
        let shut = self.socket_ref(socket)?.receive_shut;
        let id = self.flow_of(socket)?;
        let flow = self.flows.get_mut(id).ok_or(Error::NotConnected)?;
        let received = flow.connection.recv(data);
        if received > 0 {
            // Reading opens the window, and only the next packet says so.
            self.mark_dirty(id);
            return Ok(received);
        }
        if data.is_empty() {
            return Ok(0);
        }
        // As Linux (tcp_recvmsg asks for SOCK_DONE before sk_err): what was whole when the peer left stays whole,
        // and the error is for whoever still writes.
        if flow.fin_heard {
            return Ok(0);
        }
        if let Some(error) = flow.error.take() {
            return Err(error);
        }
        match flow.state {
            State::SynSent | State::SynReceived if !shut => Err(Error::Again),
            _ if flow.connection.may_recv() && !shut => Err(Error::Again),
            _ => Ok(0),
        }
    }

    /// As [`Stack::recv`], for a caller that waits until `least` bytes have come: SO_RCVLOWAT, or MSG_WAITALL with
    /// the whole length. The end of the stream, an error, and a full receive buffer end the waiting earlier.
    ///
    /// # Errors
    /// As [`Stack::recv`].
    pub fn recv_at_least(&mut self, socket: SocketId, data: &mut [u8], least: usize) -> Result<usize, Error> {
        let shut = self.socket_ref(socket)?.receive_shut;
        let flow = self.flows.get(self.flow_of(socket)?).ok_or(Error::NotConnected)?;
        // Where memory is used up, nothing more comes before something is read.
        let least = if self.is_full(flow.path) { 1 } else { least.min(flow.connection.receive_capacity()) };
        let least = least.min(data.len());
        if flow.unread() < least && flow.may_hear_more() && flow.error.is_none() && !shut {
            return Err(Error::Again);
        }
        self.recv(socket, data)
    }

    /// Copies received bytes without taking them (MSG_PEEK).
    ///
    /// # Errors
    /// As [`Stack::recv`].
    pub fn peek(&mut self, socket: SocketId, data: &mut [u8]) -> Result<usize, Error> {
        let id = self.flow_of(socket)?;
        let flow = self.flows.get_mut(id).ok_or(Error::NotConnected)?;
        let wanted = data.len().min(flow.unread());
        if wanted == 0 {
            return self.recv(socket, data);
        }
        Ok(flow.connection.peek(&mut data[..wanted]))
    }

    /// Shuts one or both directions of a connection (`shutdown(2)`).
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::NotSupported`].
    pub fn shutdown(&mut self, now: Instant, socket: SocketId, how: Shutdown) -> Result<(), Error> {
        let id = self.flow_of(socket)?;
        let flow = self.flows.get_mut(id).ok_or(Error::NotConnected)?;
        if matches!(flow.state, State::Closed | State::SynSent | State::SynReceived) {
            return Err(Error::NotConnected);
        }
        if how != Shutdown::Read {
            flow.connection.close();
            self.mark_dirty(id);
            self.after_change(now, id);
        }
        if how != Shutdown::Write {
            self.socket_mut(socket)?.receive_shut = true;
            self.mark_ready(socket);
        }
        Ok(())
    }

    /// Closes a socket of any kind (`close(2)`); its name is stale afterwards.
    ///
    /// A connection with unread bytes, or with SO_LINGER zero, is reset as on Linux; any other is brought
    /// to its end by the stack.
    pub fn close(&mut self, now: Instant, socket: SocketId) {
        if let Some(Role::Listening(_)) = self.sockets.get(socket).map(|entry| &entry.role) {
            self.close_listener(now, socket);
        }
        let Some(entry) = self.sockets.remove(socket) else {
            return;
        };
        self.groups.forget(socket);
        if let Some(bound) = entry.bound {
            self.ports.release(entry.space(), bound.port(), socket);
        }
        match entry.role {
            Role::Stream(flow) => self.orphan(now, flow, entry.options.linger.is_some_and(|linger| linger.is_zero())),
            // Nobody waits for room any more.
            Role::Datagram(datagram) if datagram.waits => {
                for path in self.paths.values_mut() {
                    path.waiters.retain(|waiting| *waiting != socket);
                }
            }
            _ => {}
        }
    }

    /// Whether a connection that is closed has to be reset, because too many wait for their end: of its peer, or in
    /// all, but then only of peers that have many.
    fn is_crowded(&self, id: FlowId) -> bool {
        let path = self.flows.get(id).map(|flow| flow.path).filter(|path| *path != self.loopback());
        let of_peer =
            path.and_then(|path| self.paths.get(path)).map_or(limits::ORPHANS_SHARE, |path| path.orphan_count);
        let all = self.orphans >= limits::ORPHANS_MAX && of_peer >= limits::ORPHANS_SHARE;
        all || of_peer >= limits::ORPHANS_PEER_MAX
    }

    /// Counts a connection that lost its program, or one of these that is over.
    pub(crate) fn count_orphan(&mut self, id: FlowId, change: isize) {
        let Some(path) = self.flows.get(id).map(|flow| flow.path) else {
            return;
        };
        self.orphans = self.orphans.saturating_add_signed(change);
        if let Some(path) = self.paths.get_mut(path) {
            path.orphan_count = path.orphan_count.saturating_add_signed(change);
        }
    }

    fn orphan(&mut self, now: Instant, id: FlowId, reset_at_close: bool) {
        let crowded = self.is_crowded(id);
        self.count_orphan(id, 1);
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        flow.owner = Owner::Orphan;
        flow.taken_at = now;
        match flow.state {
            State::SynSent | State::Listen => return self.remove_flow(id),
            State::Closed | State::TimeWait => {}
            // A program that closes while SYNs cross: the engine would never send the FIN.
            State::SynReceived => flow.connection.abort(),
            _ if reset_at_close || crowded || flow.unread() > 0 => flow.connection.abort(),
            _ => flow.connection.close(),
        }
        self.mark_dirty(id);
        self.after_change(now, id);
    }

    /// Returns the other end of a connection or of a connected datagram socket (`getpeername(2)`).
    ///
    /// # Errors
    /// [`Error::NotConnected`].
    pub fn peer_address(&self, socket: SocketId) -> Result<SocketAddr, Error> {
        match &self.socket_ref(socket)?.role {
            Role::Stream(flow) => {
                let flow = self.flows.get(*flow).ok_or(Error::NotConnected)?;
                let connected = !matches!(flow.state, State::SynSent | State::Closed);
                if connected { Ok(flow.tuple.remote) } else { Err(Error::NotConnected) }
            }
            Role::Datagram(datagram) => datagram.peer.ok_or(Error::NotConnected),
            Role::Idle | Role::Listening(_) => Err(Error::NotConnected),
        }
    }

    /// Returns the counters of a connection (TCP_INFO).
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::NotSupported`].
    pub fn stream_info(&self, socket: SocketId) -> Result<StreamInfo, Error> {
        let id = self.flow_of(socket)?;
        let flow = self.flows.get(id).ok_or(Error::NotConnected)?;
        Ok(StreamInfo {
            state: flow.state,
            local: flow.tuple.local,
            remote: flow.tuple.remote,
            sent_bytes: flow.meter.sent_bytes,
            received_bytes: flow.meter.received_bytes,
            resent_bytes: flow.meter.resent_bytes,
            sent_segments: flow.meter.sent_segments,
            received_segments: flow.meter.received_segments,
            resent_segments: flow.meter.resent_segments,
            retries: flow.meter.repeats(),
            probes: flow.keep_alive.as_ref().map_or(0, |keep_alive| keep_alive.unanswered()),
            round_trip: flow.meter.round_trip(),
            mtu: self.paths.get(flow.path).map_or(0, |path| flow.wire(path.wire).mtu),
            send_queue: flow.connection.send_queue(),
            receive_queue: flow.unread(),
        })
    }

    pub(crate) fn stream_readiness(&self, flow: FlowId, options: &Options, receive_shut: bool) -> Readiness {
        let Some(flow) = self.flows.get(flow) else {
            return Readiness::HANG_UP | Readiness::READABLE | Readiness::WRITABLE;
        };
        let failed = flow.error.is_some();
        if matches!(flow.state, State::SynSent | State::SynReceived) {
            return Readiness::NONE.with(Readiness::ERROR, failed);
        }
        let connection = &flow.connection;
        let low_water = if self.is_full(flow.path) { 1 } else { options.receive_low_water };
        let (unread, enough) = (flow.unread(), low_water.min(connection.receive_capacity() / 2).max(1));
        let read_closed = receive_shut || (!connection.may_recv() && unread == 0);
        // As Linux: writable from a third of the buffer on, so that writers are not woken for crumbs.
        let free = connection.send_capacity() - connection.send_queue();
        let affordable = connection.send_queue() == 0 || !self.is_full(flow.path);
        let writable = !connection.may_send() || (free >= connection.send_capacity() / 3 && affordable);
        Readiness::NONE
            .with(Readiness::ERROR, failed)
            .with(Readiness::READABLE, unread >= enough || !flow.may_hear_more() || read_closed || failed)
            .with(Readiness::READ_CLOSED, read_closed)
            .with(Readiness::WRITABLE, writable || failed)
            .with(Readiness::HANG_UP, matches!(flow.state, State::Closed | State::TimeWait))
    }

    /// Describes every socket for `status`: kind, addresses, and the counters of connections.
    pub fn sockets(&self) -> Vec<SocketInfo> {
        let describe = |(id, entry): (SocketId, &Socket)| SocketInfo {
            kind: entry.kind,
            local: self.local_address(id).ok(),
            remote: self.peer_address(id).ok(),
            listening: matches!(entry.role, Role::Listening(_)),
            stream: self.stream_info(id).ok(),
        };
        self.sockets.iter().map(describe).collect()
    }

    /// Claims an ephemeral port for a datagram socket that sends before it is bound.
    pub(crate) fn autobind(&mut self, socket: SocketId) -> Result<(), Error> {
        let entry = self.socket_ref(socket)?;
        if entry.bound.is_some() {
            return Ok(());
        }
        let any = match entry.family {
            Family::V4 => SocketAddr::from(([0, 0, 0, 0], 0)),
            Family::V6 => SocketAddr::from(([0u16; 8], 0)),
        };
        self.bind(socket, any).map(|_| ())
    }

    /// Lets no connection take more bytes, before the node leaves: what was written is delivered
    /// ([`Stack::undelivered_count`]). No end is sent for a program that has not ended its direction itself: its peer
    /// would take what came for the whole.
    pub fn finish(&mut self) {
        self.finishing = true;
    }

    /// Returns how many connections still have something to deliver: bytes, or their end.
    pub fn undelivered_count(&self) -> usize {
        self.flows.iter().filter(|(_, flow)| flow.owed() > 0).count()
    }

    /// Returns what connections still have to deliver: bytes, and one for each end.
    pub fn undelivered_bytes(&self) -> usize {
        self.flows.iter().map(|(_, flow)| flow.owed()).sum()
    }

    /// Returns how many connections are in TIME-WAIT.
    pub fn time_wait_count(&self) -> usize {
        self.time_wait.len()
    }

    /// Returns how many connections exist, those in backlogs and orphans included.
    pub fn connection_count(&self) -> usize {
        self.flows.len()
    }

    /// Returns how many connections have lost their program and are being brought to their end.
    pub fn orphan_count(&self) -> usize {
        self.orphans
    }
}

/// A line of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketInfo {
    /// What it carries.
    pub kind: Kind,
    /// Its own address, once it has one.
    pub local: Option<SocketAddr>,
    /// Its peer, if it is connected.
    pub remote: Option<SocketAddr>,
    /// Whether it listens.
    pub listening: bool,
    /// The connection's counters.
    pub stream: Option<StreamInfo>,
}
