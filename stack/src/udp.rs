//! UDP, all ours: connected and unconnected sockets, bounded queues, whole datagrams (RFC 768).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::checksum;
use crate::errno::Error;
use crate::flow::Tuple;
use crate::fragments;
use crate::limits;
use crate::packet::{self, DropReason, Header, Packet};
use crate::path::{Class, PathId};
use crate::ports::{Binding, Space};
use crate::readiness::Readiness;
use crate::shard::{Kind, SocketId, Stack, canonical};
use crate::stream::Role;
use crate::time::Instant;

/// A received datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Who sent it.
    pub source: SocketAddr,
    /// The address of this node that it was sent to (IP_PKTINFO).
    pub destination: IpAddr,
    /// The hop limit it arrived with (IP_RECVTTL).
    pub hop_limit: u8,
    /// Its whole payload.
    pub data: Vec<u8>,
}

/// The state of a datagram socket.
#[derive(Default)]
pub(crate) struct Datagram {
    pub(crate) peer: Option<SocketAddr>,
    queue: VecDeque<Received>,
    queued_bytes: usize,
    /// The destination last sent to, so that errors on the way find the socket.
    last_destination: Option<IpAddr>,
    /// Whether a path had no room for its last datagram and has not told it yet that there is some: only then is it
    /// not writable. What other sockets send is not its business, for nobody would tell it when that has left.
    pub(crate) waits: bool,
}

impl Datagram {
    /// Whether an error of these addresses is this socket's: an unconnected UDP socket hears of none
    /// (udp(7)), an echo socket waits for one answer at a time.
    pub(crate) fn talks_to(&self, kind: Kind, addresses: &[IpAddr]) -> bool {
        let asked = self.last_destination.filter(|_| kind == Kind::Echo);
        let peer = self.peer.map(|peer| peer.ip()).or(asked);
        peer.is_some_and(|peer| addresses.contains(&peer))
    }

    pub(crate) fn readiness(&self) -> Readiness {
        Readiness::NONE.with(Readiness::READABLE, !self.queue.is_empty()).with(Readiness::WRITABLE, !self.waits)
    }

    /// Queues a datagram, or refuses it at the limit of the receive buffer.
    pub(crate) fn deliver(&mut self, received: Received, limit: usize) -> Result<(), DropReason> {
        let cost = received.data.len() + limits::DATAGRAM_OVERHEAD;
        if self.queued_bytes + cost > limit && !self.queue.is_empty() {
            return Err(DropReason::ReceiveQueueFull);
        }
        self.queued_bytes += cost;
        self.queue.push_back(received);
        Ok(())
    }
}

impl Stack {
    pub(crate) fn connect_datagram(&mut self, socket: SocketId, remote: SocketAddr) -> Result<(), Error> {
        let source = self.source_for(remote.ip())?;
        if self.is_broadcast(remote.ip()) && !self.socket_ref(socket)?.options.broadcast {
            return Err(Error::AccessDenied);
        }
        self.autobind(socket)?;
        let entry = self.socket_mut(socket)?;
        if let Some(bound) = &mut entry.bound
            && bound.ip().is_unspecified()
        {
            bound.set_ip(source);
        }
        if let Role::Datagram(datagram) = &mut entry.role {
            datagram.peer = Some(remote);
        }
        Ok(())
    }

    /// Takes the peer from a datagram socket (`connect(2)` with AF_UNSPEC); its port stays.
    ///
    /// # Errors
    /// [`Error::NotSupported`] on TCP, [`Error::BadSocket`].
    pub fn disconnect(&mut self, socket: SocketId) -> Result<(), Error> {
        match &mut self.socket_mut(socket)?.role {
            Role::Datagram(datagram) => datagram.peer = None,
            _ => return Err(Error::NotSupported),
        }
        Ok(())
    }

    /// Sends one datagram (`sendto(2)`); without a destination, to the connected peer.
    ///
    /// # Errors
    /// [`Error::AccessDenied`] to a broadcast address without [`crate::SocketOption::Broadcast`],
    /// [`Error::MessageSize`] above 65,507 bytes, [`Error::DestinationRequired`], [`Error::Again`] while the
    /// path's queue is full, [`Error::NetworkUnreachable`], the pending error of the socket once,
    /// [`Error::NotSupported`] on TCP.
    pub fn send_to(
        &mut self,
        _now: Instant,
        socket: SocketId,
        data: &[u8],
        destination: Option<SocketAddr>,
    ) -> Result<usize, Error> {
        let entry = self.socket_mut(socket)?;
        let Role::Datagram(datagram) = &entry.role else {
            return Err(Error::NotSupported);
        };
        let peer = datagram.peer;
        if let Some(error) = entry.error.take() {
            return Err(error);
        }
        let destination = destination.map(canonical).or(peer).ok_or(Error::DestinationRequired)?;
        if data.len() > limits::DATAGRAM_LEN_MAX {
            return Err(Error::MessageSize);
        }
        if destination.port() == 0 && entry.kind == Kind::Udp {
            return Err(Error::Invalid);
        }
        self.autobind(socket)?;
        let entry = self.socket_ref(socket)?;
        let (kind, options) = (entry.kind, entry.options);
        let bound = entry.bound.ok_or(Error::Invalid)?;
        let is_source = !bound.ip().is_unspecified() && !self.is_for_many(bound.ip());
        let ip = if is_source { bound.ip() } else { self.source_for(destination.ip())? };
        if ip.is_ipv4() != destination.is_ipv4() {
            return Err(Error::AddressFamily);
        }
        let source = SocketAddr::new(ip, bound.port());
        let (protocol, payload) = match kind {
            Kind::Udp => (packet::PROTOCOL_UDP, packet::udp(source, destination, data)),
            Kind::Echo => crate::icmp::echo_request(source, destination, data)?,
            Kind::Tcp => return Err(Error::NotSupported),
        };
        let to_group = destination.ip().is_multicast();
        let hop_limit = if to_group { options.multicast_hop_limit } else { options.hop_limit };
        let header = Header { hop_limit, ..Header::new(ip, destination.ip(), protocol) };
        if self.is_for_many(destination.ip()) {
            if !to_group && !options.broadcast {
                return Err(Error::AccessDenied);
            }
            self.queue_for_many(header, &payload, !to_group || options.multicast_loop);
        } else {
            self.queue_datagram(socket, header, &payload)?;
        }
        if let Role::Datagram(datagram) = &mut self.socket_mut(socket)?.role {
            datagram.last_destination = Some(destination.ip());
        }
        Ok(data.len())
    }

    /// Queues a datagram; a socket that finds no room is told when there is some.
    fn queue_datagram(&mut self, socket: SocketId, header: Header, payload: &[u8]) -> Result<(), Error> {
        let path = self.path_to(header.destination)?;
        let result = self.queue_packets(path, header, payload);
        if result == Err(Error::Again)
            && let Some(entry) = self.paths.get_mut(path)
            && let Some(Role::Datagram(datagram)) = self.sockets.get_mut(socket).map(|entry| &mut entry.role)
        {
            datagram.waits = true;
            if !entry.waiters.contains(&socket) {
                entry.waiters.push(socket);
            }
        }
        result
    }

    /// Queues a datagram on a path, in as many fragments as it needs there.
    pub(crate) fn queue_packets(&mut self, path: PathId, header: Header, payload: &[u8]) -> Result<(), Error> {
        let id = self.random() as u32;
        let entry = self.paths.get_mut(path).ok_or(Error::HostUnreachable)?;
        let mtu = self.learnt_mtus.limit(header.destination, entry.wire.mtu);
        let packets = header.packets(payload, mtu, id);
        let len: usize = packets.iter().map(Vec::len).sum();
        if !entry.fits(len) {
            return Err(Error::Again);
        }
        entry.datagram_bytes += len;
        entry.datagrams.extend(packets);
        self.queue_path(path);
        Ok(())
    }

    /// Takes the next received datagram (`recvfrom(2)`).
    ///
    /// # Errors
    /// [`Error::Again`] while there is none, the pending error of the socket once, [`Error::NotSupported`]
    /// on TCP.
    pub fn recv_from(&mut self, socket: SocketId) -> Result<Received, Error> {
        let entry = self.socket_mut(socket)?;
        let Role::Datagram(datagram) = &mut entry.role else {
            return Err(Error::NotSupported);
        };
        if let Some(received) = datagram.queue.pop_front() {
            datagram.queued_bytes -= received.data.len() + limits::DATAGRAM_OVERHEAD;
            return Ok(received);
        }
        Err(entry.error.take().unwrap_or(Error::Again))
    }

    /// Returns the next received datagram without taking it (MSG_PEEK).
    ///
    /// # Errors
    /// As [`Stack::recv_from`].
    pub fn peek_from(&mut self, socket: SocketId) -> Result<&Received, Error> {
        let entry = self.socket_mut(socket)?;
        let Role::Datagram(datagram) = &mut entry.role else {
            return Err(Error::NotSupported);
        };
        match datagram.queue.front() {
            Some(received) => Ok(received),
            None => Err(entry.error.take().unwrap_or(Error::Again)),
        }
    }

    pub(crate) fn take_udp(&mut self, path: PathId, packet: &Packet<'_>) -> Result<(), DropReason> {
        let payload = packet.payload;
        let (source, destination) = packet.ports().ok_or(DropReason::Malformed)?;
        let len = payload.get(4..6).map_or(0, |len| usize::from(u16::from_be_bytes([len[0], len[1]])));
        if len < packet::UDP_HEADER_LEN || len != payload.len() {
            return Err(DropReason::Malformed);
        }
        let verify = self.paths.get(path).ok_or(DropReason::PathLost)?.wire.verify_checksums;
        // What was put together may be of two datagrams, whatever the link is (RFC 4963).
        let verify = verify || (packet.bytes.is_empty() && !fragments::mixes());
        // Zero means "none" over IPv4 only (RFC 768; RFC 8200, section 8.1).
        let absent = payload[6] == 0 && payload[7] == 0;
        if absent && packet.source.is_ipv6() {
            return Err(DropReason::Checksum);
        }
        let sum = || checksum::transport_checksum(packet.source, packet.destination, packet.protocol, payload);
        if verify && !absent && sum() != 0 {
            return Err(DropReason::Checksum);
        }
        let source = SocketAddr::new(packet.source, source);
        let destination = SocketAddr::new(packet.destination, destination);
        let received = Received {
            source,
            destination: packet.destination,
            hop_limit: packet.hop_limit,
            data: payload[packet::UDP_HEADER_LEN..].to_vec(),
        };
        if self.is_for_many(packet.destination) {
            return self.deliver_to_many(packet, &received);
        }
        let Some(socket) = self.datagram_socket(Space::Udp, destination, source) else {
            self.answer_port_unreachable(path, packet);
            return Err(DropReason::NoSocket);
        };
        self.deliver(socket, received)
    }

    /// Finds the socket for a datagram: a connected one wins over one that takes from anybody.
    pub(crate) fn datagram_socket(&self, space: Space, local: SocketAddr, remote: SocketAddr) -> Option<SocketId> {
        let peer = |socket: SocketId| match self.sockets.get(socket).map(|entry| &entry.role) {
            Some(Role::Datagram(datagram)) => Some(datagram.peer),
            _ => None,
        };
        let same =
            |known: SocketAddr| known.ip() == remote.ip() && (space == Space::Echo || known.port() == remote.port());
        let flow = || self.flow_number(&Tuple { local, remote });
        let connected = |binding: &Binding| peer(binding.socket).flatten().is_some_and(same);
        let open = |binding: &Binding| peer(binding.socket) == Some(None);
        let connected = self.ports.lookup(space, local, &flow, &connected);
        connected.or_else(|| self.ports.lookup(space, local, &flow, &open))
    }

    pub(crate) fn deliver(&mut self, socket: SocketId, received: Received) -> Result<(), DropReason> {
        let entry = self.sockets.get_mut(socket).ok_or(DropReason::NoSocket)?;
        let limit = entry.options.receive_buffer;
        if let Role::Datagram(datagram) = &mut entry.role {
            datagram.deliver(received, limit)?;
        }
        self.mark_ready(socket);
        Ok(())
    }

    fn answer_port_unreachable(&mut self, path: PathId, packet: &Packet<'_>) {
        if let Some(answer) = crate::icmp::port_unreachable(packet) {
            self.reply(path, Class::Datagram, answer);
        }
    }
}
