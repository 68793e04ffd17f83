//! ICMP echo and errors, for both families (RFC 792, RFC 4443).

use std::net::SocketAddr;

use crate::checksum;
use crate::errno::Error;
use crate::flow::Tuple;
use crate::mtu;
use crate::packet::{self, DropReason, Header, Packet};
use crate::path::{Class, PathId};
use crate::ports::Space;
use crate::shard::{SocketId, Stack};
use crate::stream::Role;
use crate::tcp::State;
use crate::time::Instant;
use crate::udp::Received;

const V4_ECHO_REPLY: u8 = 0;
const V4_UNREACHABLE: u8 = 3;
const V4_ECHO_REQUEST: u8 = 8;
const V6_UNREACHABLE: u8 = 1;
const V6_TOO_BIG: u8 = 2;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;
const V4_HOST_UNREACHABLE: u8 = 1;
const V6_ADDRESS_UNREACHABLE: u8 = 3;
const V4_PORT_UNREACHABLE: u8 = 3;
const V6_PORT_UNREACHABLE: u8 = 4;
const V4_FRAGMENTATION_NEEDED: u8 = 4;
const HEADER_LEN: usize = 8;
/// An error quotes as much as fits into the smallest MTU of each family (RFC 1812, 4.3.2.3; RFC 4443, 2.4).
const QUOTE_LEN_MAX_V4: usize = 576 - packet::IPV4_HEADER_LEN - HEADER_LEN;
const QUOTE_LEN_MAX_V6: usize = 1_280 - packet::IPV6_HEADER_LEN - HEADER_LEN;

/// Writes an echo request; `data` starts with the 2-byte sequence number, the identifier is the
/// source's port.
pub(crate) fn echo_request(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Result<(u8, Vec<u8>), Error> {
    if data.len() < 2 {
        return Err(Error::Invalid);
    }
    let kind = if source.is_ipv4() { V4_ECHO_REQUEST } else { V6_ECHO_REQUEST };
    let id = source.port().to_be_bytes();
    let mut message = vec![kind, 0, 0, 0, id[0], id[1]];
    message.extend_from_slice(data);
    Ok(finish(source.ip(), destination.ip(), message))
}

/// Sets the checksum and returns the message with its protocol number.
fn finish(source: std::net::IpAddr, destination: std::net::IpAddr, mut message: Vec<u8>) -> (u8, Vec<u8>) {
    let (protocol, sum) = if source.is_ipv4() {
        (packet::PROTOCOL_ICMP, checksum::checksum(&[&message]))
    } else {
        let sum = checksum::transport_checksum(source, destination, packet::PROTOCOL_ICMPV6, &message);
        (packet::PROTOCOL_ICMPV6, sum)
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    (protocol, message)
}

/// Writes the error that answers a datagram to a port without a socket.
pub(crate) fn port_unreachable(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let (kind, code) = match packet.source.is_ipv4() {
        true => (V4_UNREACHABLE, V4_PORT_UNREACHABLE),
        false => (V6_UNREACHABLE, V6_PORT_UNREACHABLE),
    };
    Some(error_message(packet, [kind, code], 0))
}

/// Writes an error that quotes a packet, on its way back from where that was going to.
fn error_message(packet: &Packet<'_>, [kind, code]: [u8; 2], rest: u32) -> Vec<u8> {
    let quote = if packet.source.is_ipv4() { QUOTE_LEN_MAX_V4 } else { QUOTE_LEN_MAX_V6 };
    let whole;
    let mut bytes = packet.bytes;
    if bytes.is_empty() {
        // No single fragment has what the sender must recognise (RFC 1122, section 3.2.2).
        let header =
            Header { hop_limit: packet.hop_limit, ..Header::new(packet.source, packet.destination, packet.protocol) };
        whole = header.packet(packet.payload);
        bytes = &whole;
    }
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(&rest.to_be_bytes());
    message.extend_from_slice(&bytes[..bytes.len().min(quote)]);
    let (protocol, message) = finish(packet.destination, packet.source, message);
    Header::new(packet.destination, packet.source, protocol).packet(&message)
}

/// Why a packet of a kernel that sends through this network goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody is at its destination, or nobody can be reached there.
    HostUnreachable,
    /// It is longer than this MTU, in bytes, which its destination's link has.
    TooBig(usize),
}

/// Writes the ICMP error that tells the sender of an IP packet why it goes no further (RFC 792, RFC 4443); nothing if
/// the packet is one that no error may answer: an error itself, a later fragment, for many, or broken (RFC 1122,
/// section 3.2.2).
pub fn refuse(packet: &[u8], refusal: Refusal) -> Option<Vec<u8>> {
    let packet = Packet::parse(packet, false).ok()?;
    let v4 = packet.source.is_ipv4();
    let is_error = match (packet.protocol, packet.payload.first()) {
        (packet::PROTOCOL_ICMP, Some(kind)) => !matches!(*kind, V4_ECHO_REPLY | V4_ECHO_REQUEST),
        (packet::PROTOCOL_ICMPV6, Some(kind)) => *kind < V6_ECHO_REQUEST,
        _ => false,
    };
    let is_later = packet.fragment.as_ref().is_some_and(|fragment| fragment.offset > 0);
    if is_error || is_later || packet.destination.is_multicast() || packet.source.is_unspecified() {
        return None;
    }
    let (code, rest) = match (refusal, v4) {
        (Refusal::HostUnreachable, true) => ([V4_UNREACHABLE, V4_HOST_UNREACHABLE], 0),
        (Refusal::HostUnreachable, false) => ([V6_UNREACHABLE, V6_ADDRESS_UNREACHABLE], 0),
        (Refusal::TooBig(mtu), true) => ([V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED], mtu),
        (Refusal::TooBig(mtu), false) => ([V6_TOO_BIG, 0], mtu),
    };
    Some(error_message(&packet, code, u32::try_from(rest).unwrap_or(u32::MAX)))
}

impl Stack {
    pub(crate) fn take_icmp(&mut self, now: Instant, path: PathId, packet: &Packet<'_>) -> Result<(), DropReason> {
        let v4 = packet.source.is_ipv4();
        if v4 != (packet.protocol == packet::PROTOCOL_ICMP) || packet.payload.len() < HEADER_LEN {
            return Err(DropReason::Malformed);
        }
        let verify = self.paths.get(path).ok_or(DropReason::PathLost)?.wire.verify_checksums || packet.bytes.is_empty();
        let sum = || match v4 {
            true => checksum::checksum(&[packet.payload]),
            false => checksum::transport_checksum(packet.source, packet.destination, packet.protocol, packet.payload),
        };
        if verify && sum() != 0 {
            return Err(DropReason::Checksum);
        }
        match (v4, packet.payload[0]) {
            (true, V4_ECHO_REQUEST) => self.answer_echo(path, packet, V4_ECHO_REPLY),
            (false, V6_ECHO_REQUEST) => self.answer_echo(path, packet, V6_ECHO_REPLY),
            (true, V4_ECHO_REPLY) | (false, V6_ECHO_REPLY) => self.take_echo_reply(packet),
            (true, V4_UNREACHABLE) | (false, V6_UNREACHABLE | V6_TOO_BIG) => self.take_error_message(now, path, packet),
            _ => Err(DropReason::Protocol),
        }
    }

    fn answer_echo(&mut self, path: PathId, packet: &Packet<'_>, reply: u8) -> Result<(), DropReason> {
        let mut message = packet.payload.to_vec();
        message[0] = reply;
        message[2..4].fill(0);
        let (protocol, message) = finish(packet.destination, packet.source, message);
        let mtu = self.paths.get(path).ok_or(DropReason::PathLost)?.wire.mtu;
        let id = self.random() as u32;
        let header = Header::new(packet.destination, packet.source, protocol);
        for answer in header.packets(&message, mtu, id) {
            self.reply(path, Class::Datagram, answer);
        }
        Ok(())
    }

    fn take_echo_reply(&mut self, packet: &Packet<'_>) -> Result<(), DropReason> {
        let id = u16::from_be_bytes([packet.payload[4], packet.payload[5]]);
        let local = SocketAddr::new(packet.destination, id);
        let source = SocketAddr::new(packet.source, 0);
        let socket = self.datagram_socket(Space::Echo, local, source).ok_or(DropReason::NoSocket)?;
        let received = Received {
            source,
            destination: packet.destination,
            hop_limit: packet.hop_limit,
            data: packet.payload[6..].to_vec(),
        };
        self.deliver(socket, received)
    }

    /// Hands an error to the socket whose packet it quotes. The quoted packet must be one that we sent to
    /// the peer behind this path (threat T2).
    fn take_error_message(&mut self, now: Instant, path: PathId, packet: &Packet<'_>) -> Result<(), DropReason> {
        let quoted = quoted(&packet.payload[HEADER_LEN..]).ok_or(DropReason::Malformed)?;
        let remote = quoted.remote.ip();
        let route = if self.is_own(remote) { Some(self.loopback()) } else { self.route(remote) };
        if !self.is_own(quoted.local.ip()) || route != Some(path) {
            return Err(DropReason::WrongPath);
        }
        if let Some(mtu) = too_big(packet, &quoted) {
            return self.take_too_big(now, path, &quoted, mtu);
        }
        let port_code = if packet.source.is_ipv4() { V4_PORT_UNREACHABLE } else { V6_PORT_UNREACHABLE };
        let refused = packet.payload[1] == port_code;
        let error = if refused { Error::ConnectionRefused } else { Error::HostUnreachable };
        if quoted.protocol == packet::PROTOCOL_TCP {
            let tuple = Tuple { local: quoted.local, remote: quoted.remote };
            let id = *self.tuples.get(&tuple).ok_or(DropReason::NoSocket)?;
            let flow = self.flows.get(id).ok_or(DropReason::NoSocket)?;
            if flow.path != path {
                return Err(DropReason::WrongPath);
            }
            if !flow.is_in_flight(quoted.sequence) {
                return Err(DropReason::OutOfWindow);
            }
            // A soft error of an established connection is no reason to end it (RFC 5461).
            if flow.state == State::SynSent {
                self.fail_flow(now, id, error);
            }
            return Ok(());
        }
        let socket = self.datagram_socket(Space::Udp, quoted.local, quoted.remote).ok_or(DropReason::NoSocket)?;
        self.report(socket, error);
        Ok(())
    }

    /// Learns that a packet was too long for a link behind the peer (RFC 1191, section 3; RFC 8201, section 4).
    fn take_too_big(&mut self, now: Instant, path: PathId, quoted: &Quoted, mtu: usize) -> Result<(), DropReason> {
        if quoted.protocol == packet::PROTOCOL_TCP {
            let tuple = Tuple { local: quoted.local, remote: quoted.remote };
            let id = *self.tuples.get(&tuple).ok_or(DropReason::NoSocket)?;
            let flow = self.flows.get(id).filter(|flow| flow.path == path).ok_or(DropReason::WrongPath)?;
            if !flow.is_in_flight(quoted.sequence) {
                return Err(DropReason::OutOfWindow);
            }
        } else {
            self.datagram_socket(Space::Udp, quoted.local, quoted.remote).ok_or(DropReason::NoSocket)?;
        }
        if mtu < self.learnt_mtus.limit(quoted.remote.ip(), quoted.packet_len) {
            self.learn_mtu(now, quoted.remote.ip(), mtu);
        }
        Ok(())
    }

    /// Sets the pending error of a connected datagram socket; an unconnected one hears nothing (udp(7)).
    fn report(&mut self, socket: SocketId, error: Error) {
        if let Some(entry) = self.sockets.get_mut(socket)
            && let Role::Datagram(datagram) = &entry.role
            && datagram.peer.is_some()
        {
            entry.error = Some(error);
            self.mark_ready(socket);
        }
    }
}

/// What an ICMP error quotes of the packet that caused it.
struct Quoted {
    protocol: u8,
    local: SocketAddr,
    remote: SocketAddr,
    /// Length of the whole packet, in bytes.
    packet_len: usize,
    /// The sequence number, for TCP.
    sequence: u32,
}

/// Returns the MTU that an error is about, if its packet was too long for a link.
fn too_big(packet: &Packet<'_>, quoted: &Quoted) -> Option<usize> {
    let message = packet.payload;
    match (packet.source.is_ipv4(), message[0], message[1]) {
        (true, V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED) => {
            let next_hop = u16::from_be_bytes([message[6], message[7]]);
            Some(mtu::named(usize::from(next_hop), quoted.packet_len))
        }
        (false, V6_TOO_BIG, _) => {
            let next_hop = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
            Some(usize::try_from(next_hop).unwrap_or(usize::MAX))
        }
        _ => None,
    }
}

/// Reads the field that says where a fragment's data lies, with its flags.
fn packet_offset(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn quoted(bytes: &[u8]) -> Option<Quoted> {
    // The quote may be cut, so its length field is not that of a whole packet.
    let first = bytes.first()? >> 4;
    let (header_len, protocol, source, destination): (usize, u8, std::net::IpAddr, std::net::IpAddr) = match first {
        4 => {
            let address = |at: usize| -> Option<std::net::IpAddr> {
                let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
                Some(octets.into())
            };
            if packet_offset(bytes, 6)? & 0x1fff != 0 {
                // Only the first fragment has ports.
                return None;
            }
            (usize::from(bytes[0] & 0x0f) * 4, *bytes.get(9)?, address(12)?, address(16)?)
        }
        6 => {
            let address = |at: usize| -> Option<std::net::IpAddr> {
                let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
                Some(octets.into())
            };
            let mut start = (packet::IPV6_HEADER_LEN, *bytes.get(6)?);
            if start.1 == packet::PROTOCOL_FRAGMENT {
                if packet_offset(bytes, start.0 + 2)? & 0xfff8 != 0 {
                    return None;
                }
                start = (start.0 + packet::FRAGMENT_HEADER_LEN, *bytes.get(start.0)?);
            }
            (start.0, start.1, address(8)?, address(24)?)
        }
        _ => return None,
    };
    let ports = bytes.get(header_len..header_len + 4)?;
    let sequence = bytes.get(header_len + 4..header_len + 8)?;
    let sequence = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
    let len_field = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let packet_len = if first == 4 { len_field(2) } else { packet::IPV6_HEADER_LEN + len_field(4) };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    matches!(protocol, packet::PROTOCOL_TCP | packet::PROTOCOL_UDP).then(|| Quoted {
        protocol,
        local: SocketAddr::new(source, port(0)),
        remote: SocketAddr::new(destination, port(2)),
        packet_len,
        sequence,
    })
}
