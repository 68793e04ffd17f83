//! IP packets as the demultiplexer reads them and as the stack's own protocols write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::checksum::{checksum, transport_checksum};

/// Why a packet was not delivered; every one of them is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The bytes are not a whole, legal IP packet.
    Malformed,
    /// A checksum is wrong.
    Checksum,
    /// The destination is not an address of this node.
    NotOurs,
    /// The packet belongs to a flow of another path.
    WrongPath,
    /// No socket wants it.
    NoSocket,
    /// The socket's receive queue is full.
    ReceiveQueueFull,
    /// The listener's backlog is full.
    BacklogFull,
    /// The path's queue of datagrams is full, and the datagram was one for many.
    SendQueueFull,
    /// The path's queue of answers is full.
    ReplyQueueFull,
    /// Too many incomplete datagrams, or one that never became whole.
    Reassembly,
    /// A reset or SYN does not fit its connection (RFC 5961).
    OutOfWindow,
    /// The protocol above IP is not one that the stack speaks.
    Protocol,
    /// The path was lost or closed while the packet waited.
    PathLost,
    /// The peer, or the node, holds as much memory as it may.
    Memory,
    /// A limit of the stack is reached.
    Limit,
}

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [DropReason; 15] = [
        DropReason::Malformed,
        DropReason::Checksum,
        DropReason::NotOurs,
        DropReason::WrongPath,
        DropReason::NoSocket,
        DropReason::ReceiveQueueFull,
        DropReason::BacklogFull,
        DropReason::SendQueueFull,
        DropReason::ReplyQueueFull,
        DropReason::Reassembly,
        DropReason::OutOfWindow,
        DropReason::Protocol,
        DropReason::PathLost,
        DropReason::Memory,
        DropReason::Limit,
    ];

    /// Returns the stable name used in counters, captures and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::Malformed => "malformed",
            DropReason::Checksum => "checksum",
            DropReason::NotOurs => "not_ours",
            DropReason::WrongPath => "wrong_path",
            DropReason::NoSocket => "no_socket",
            DropReason::ReceiveQueueFull => "receive_queue_full",
            DropReason::BacklogFull => "backlog_full",
            DropReason::SendQueueFull => "send_queue_full",
            DropReason::ReplyQueueFull => "reply_queue_full",
            DropReason::Reassembly => "reassembly",
            DropReason::OutOfWindow => "out_of_window",
            DropReason::Protocol => "protocol",
            DropReason::PathLost => "path_lost",
            DropReason::Memory => "memory",
            DropReason::Limit => "limit",
        }
    }
}

pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;
pub(crate) const PROTOCOL_ICMPV6: u8 = 58;
pub(crate) const PROTOCOL_FRAGMENT: u8 = 44;
pub(crate) const IPV4_HEADER_LEN: usize = 20;
pub(crate) const IPV6_HEADER_LEN: usize = 40;
pub(crate) const FRAGMENT_HEADER_LEN: usize = 8;
pub(crate) const UDP_HEADER_LEN: usize = 8;
const HOP_LIMIT_DEFAULT: u8 = 64;
/// Extension headers that are skipped before the upper layer; more is not legitimate traffic.
const EXTENSIONS_MAX: usize = 4;

/// A piece of a datagram (RFC 791, section 3.2; RFC 8200, section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    pub(crate) offset: usize,
    pub(crate) more: bool,
}

/// A legal IP packet; its payload is what follows the last IP header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    /// The packet as it came; empty if it came in fragments.
    pub(crate) bytes: &'a [u8],
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) hop_limit: u8,
    pub(crate) payload: &'a [u8],
    pub(crate) fragment: Option<Fragment>,
}

/// Returns the destination of a packet that this stack has written.
pub(crate) fn destination_of(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        _ => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl<'a> Packet<'a> {
    /// Reads a packet; trailing bytes beyond its length field are refused, not ignored.
    pub(crate) fn parse(bytes: &'a [u8], verify_checksums: bool) -> Result<Packet<'a>, DropReason> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes, verify_checksums),
            Some(6) => Self::parse_v6(bytes),
            _ => Err(DropReason::Malformed),
        }
    }

    fn parse_v4(bytes: &'a [u8], verify_checksums: bool) -> Result<Packet<'a>, DropReason> {
        if bytes.len() < IPV4_HEADER_LEN {
            return Err(DropReason::Malformed);
        }
        let header_len = usize::from(bytes[0] & 0x0f) * 4;
        let total_len = usize::from(be16(bytes, 2));
        if header_len < IPV4_HEADER_LEN || total_len < header_len || total_len != bytes.len() {
            return Err(DropReason::Malformed);
        }
        if verify_checksums && checksum(&[&bytes[..header_len]]) != 0 {
            return Err(DropReason::Checksum);
        }
        let flags = be16(bytes, 6);
        let offset = usize::from(flags & 0x1fff) * 8;
        let more = flags & 0x2000 != 0;
        let fragment = (offset != 0 || more).then(|| Fragment { id: u32::from(be16(bytes, 4)), offset, more });
        let address = |at: usize| IpAddr::V4(Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]));
        Ok(Packet {
            bytes,
            source: address(12),
            destination: address(16),
            protocol: bytes[9],
            hop_limit: bytes[8],
            payload: &bytes[header_len..],
            fragment,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Packet<'a>, DropReason> {
        if bytes.len() < IPV6_HEADER_LEN || usize::from(be16(bytes, 4)) + IPV6_HEADER_LEN != bytes.len() {
            return Err(DropReason::Malformed);
        }
        let address = |at: usize| {
            let mut octets = [0u8; 16];
            octets.copy_from_slice(&bytes[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let mut packet = Packet {
            bytes,
            source: address(8),
            destination: address(24),
            protocol: bytes[6],
            hop_limit: bytes[7],
            payload: &bytes[IPV6_HEADER_LEN..],
            fragment: None,
        };
        for _ in 0..=EXTENSIONS_MAX {
            match packet.protocol {
                // Hop-by-hop, routing and destination options carry nothing that an end node needs.
                0 | 43 | 60 => {
                    let rest = packet.payload;
                    let len = rest.get(1).map_or(usize::MAX, |len| (usize::from(*len) + 1) * 8);
                    if rest.len() < len {
                        return Err(DropReason::Malformed);
                    }
                    packet.protocol = rest[0];
                    packet.payload = &rest[len..];
                }
                PROTOCOL_FRAGMENT if packet.fragment.is_none() => {
                    let rest = packet.payload;
                    if rest.len() < 8 {
                        return Err(DropReason::Malformed);
                    }
                    let field = be16(rest, 2);
                    packet.fragment =
                        Some(Fragment { id: be32(rest, 4), offset: usize::from(field & 0xfff8), more: field & 1 != 0 });
                    packet.protocol = rest[0];
                    packet.payload = &rest[8..];
                    // What follows the header of a later fragment is not a header.
                    return Ok(packet);
                }
                _ => return Ok(packet),
            }
        }
        Err(DropReason::Malformed)
    }

    /// Copies an IPv6 packet without the extension headers that it has; nothing if it has none.
    pub(crate) fn without_extensions(&self) -> Option<Vec<u8>> {
        let extensions = self.bytes.len() - self.payload.len();
        if self.source.is_ipv4() || extensions <= IPV6_HEADER_LEN {
            return None;
        }
        let mut copy = self.bytes[..IPV6_HEADER_LEN].to_vec();
        copy[4..6].copy_from_slice(&u16::try_from(self.payload.len()).ok()?.to_be_bytes());
        copy[6] = self.protocol;
        copy.extend_from_slice(self.payload);
        Some(copy)
    }

    /// Copies a TCP packet with another acknowledgement and window; a checksum that was right stays right, and a wrong
    /// one wrong (RFC 1624).
    pub(crate) fn with_acknowledgement(&self, acknowledgement: u32, window: u16) -> Option<Vec<u8>> {
        let mut copy = self.bytes.to_vec();
        let at = copy.len().checked_sub(self.payload.len())?;
        let tcp = copy.get_mut(at..).filter(|tcp| tcp.len() >= 20)?;
        let mut sum = u32::from(!be16(tcp, 16));
        for (at, word) in [(8, (acknowledgement >> 16) as u16), (10, acknowledgement as u16), (14, window)] {
            sum += u32::from(!be16(tcp, at)) + u32::from(word);
            tcp[at..at + 2].copy_from_slice(&word.to_be_bytes());
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        Some(copy)
    }

    /// Returns the ports of a TCP or UDP payload.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        (self.payload.len() >= 4).then(|| (be16(self.payload, 0), be16(self.payload, 2)))
    }
}

/// The fields of a TCP header that the demultiplexer needs (RFC 9293, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Segment {
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) ack: bool,
    /// As written, not scaled.
    pub(crate) window: u16,
    pub(crate) payload_len: usize,
}

impl Segment {
    pub(crate) fn parse(tcp: &[u8]) -> Option<Segment> {
        if tcp.len() < 20 {
            return None;
        }
        let header_len = usize::from(tcp[12] >> 4) * 4;
        if header_len < 20 || header_len > tcp.len() {
            return None;
        }
        let flags = tcp[13];
        Some(Segment {
            sequence: be32(tcp, 4),
            acknowledgement: be32(tcp, 8),
            fin: flags & 1 != 0,
            syn: flags & 2 != 0,
            rst: flags & 4 != 0,
            ack: flags & 16 != 0,
            window: be16(tcp, 14),
            payload_len: tcp.len() - header_len,
        })
    }

    /// The sequence number after this segment (SYN and FIN count one each).
    pub(crate) fn sequence_end(&self) -> u32 {
        let len = self.payload_len as u32 + u32::from(self.syn) + u32::from(self.fin);
        self.sequence.wrapping_add(len)
    }
}

/// Reads the TCP header of a packet that the engine has just written.
pub(crate) fn written_segment(packet: &[u8]) -> Option<Segment> {
    let header_len = if packet.first()? >> 4 == 4 { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
    Segment::parse(packet.get(header_len..)?)
}

/// The header fields of a packet to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) hop_limit: u8,
}

impl Header {
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self { source, destination, protocol, hop_limit: HOP_LIMIT_DEFAULT }
    }

    fn len(&self) -> usize {
        if self.source.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN }
    }

    /// Writes one packet.
    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        self.piece(payload, None)
    }

    /// Writes a payload as one packet, or as fragments when it does not fit into `mtu` bytes.
    pub(crate) fn packets(&self, payload: &[u8], mtu: usize, id: u32) -> Vec<Vec<u8>> {
        if self.len() + payload.len() <= mtu {
            return vec![self.packet(payload)];
        }
        let header_len = self.len() + if self.source.is_ipv4() { 0 } else { 8 };
        let step = (mtu - header_len) & !7;
        let piece = |(index, data): (usize, &[u8])| {
            let offset = index * step;
            let more = offset + data.len() < payload.len();
            self.piece(data, Some(Fragment { id, offset, more }))
        };
        payload.chunks(step).enumerate().map(piece).collect()
    }

    fn piece(&self, payload: &[u8], fragment: Option<Fragment>) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.piece_v4(source, destination, payload, fragment),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.piece_v6(source, destination, payload, fragment),
            _ => unreachable!("a packet has one address family"),
        }
    }

    fn piece_v4(&self, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8], fragment: Option<Fragment>) -> Vec<u8> {
        let total_len = IPV4_HEADER_LEN + payload.len();
        let mut packet = Vec::with_capacity(total_len);
        packet.extend_from_slice(&[0x45, 0]);
        packet.extend_from_slice(&(total_len as u16).to_be_bytes());
        match fragment {
            Some(fragment) => {
                packet.extend_from_slice(&(fragment.id as u16).to_be_bytes());
                let field = (fragment.offset / 8) as u16 | if fragment.more { 0x2000 } else { 0 };
                packet.extend_from_slice(&field.to_be_bytes());
            }
            None => packet.extend_from_slice(&[0, 0, 0x40, 0]),
        }
        packet.extend_from_slice(&[self.hop_limit, self.protocol, 0, 0]);
        packet.extend_from_slice(&source.octets());
        packet.extend_from_slice(&destination.octets());
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend_from_slice(payload);
        packet
    }

    fn piece_v6(&self, source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8], fragment: Option<Fragment>) -> Vec<u8> {
        let len = payload.len() + if fragment.is_some() { 8 } else { 0 };
        let mut packet = Vec::with_capacity(IPV6_HEADER_LEN + len);
        packet.extend_from_slice(&[0x60, 0, 0, 0]);
        packet.extend_from_slice(&(len as u16).to_be_bytes());
        packet.push(if fragment.is_some() { PROTOCOL_FRAGMENT } else { self.protocol });
        packet.push(self.hop_limit);
        packet.extend_from_slice(&source.octets());
        packet.extend_from_slice(&destination.octets());
        if let Some(fragment) = fragment {
            packet.extend_from_slice(&[self.protocol, 0]);
            packet.extend_from_slice(&(fragment.offset as u16 | u16::from(fragment.more)).to_be_bytes());
            packet.extend_from_slice(&fragment.id.to_be_bytes());
        }
        packet.extend_from_slice(payload);
        packet
    }
}

/// Writes a UDP datagram without its IP header (RFC 768).
pub(crate) fn udp(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    let len = UDP_HEADER_LEN + data.len();
    let mut datagram = Vec::with_capacity(len);
    datagram.extend_from_slice(&source.port().to_be_bytes());
    datagram.extend_from_slice(&destination.port().to_be_bytes());
    datagram.extend_from_slice(&(len as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(data);
    let sum = match transport_checksum(source.ip(), destination.ip(), PROTOCOL_UDP, &datagram) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// Writes the reset that answers a segment which no connection expects (RFC 9293, section 3.10.7.1).
pub(crate) fn reset_for(local: SocketAddr, remote: SocketAddr, segment: &Segment) -> Vec<u8> {
    let (sequence, acknowledgement, flags) =
        if segment.ack { (segment.acknowledgement, 0, 4u8) } else { (0, segment.sequence_end(), 4 | 16) };
    tcp(local, remote, Numbers { sequence, acknowledgement, window: 0 }, flags)
}

/// What a bare segment says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    /// As written, not scaled.
    pub(crate) window: u16,
}

/// Writes the reset that aborts a connection (RFC 9293, section 3.10.5).
pub(crate) fn reset(local: SocketAddr, remote: SocketAddr, numbers: Numbers) -> Vec<u8> {
    tcp(local, remote, numbers, 4 | 16)
}

/// Writes a bare FIN.
pub(crate) fn fin(local: SocketAddr, remote: SocketAddr, numbers: Numbers) -> Vec<u8> {
    tcp(local, remote, numbers, 1 | 16)
}

/// Copies a TCP packet without its FIN, for the engine, which asks for no checksum.
pub(crate) fn without_fin(packet: &[u8]) -> Option<Vec<u8>> {
    let parsed = Packet::parse(packet, false).ok()?;
    let at = packet.len() - parsed.payload.len() + 13;
    let mut copy = packet.to_vec();
    *copy.get_mut(at)? &= !1;
    Some(copy)
}

/// Copies a TCP packet with `payload_len` bytes of its data only and without its FIN, for the engine, which asks for no
/// checksum.
pub(crate) fn cut(packet: &[u8], payload_len: usize) -> Option<Vec<u8>> {
    let parsed = Packet::parse(packet, false).ok()?;
    let start = packet.len() - parsed.payload.len();
    let header_len = usize::from(parsed.payload.get(12)? >> 4) * 4;
    let mut copy = packet.get(..(start + header_len + payload_len).min(packet.len()))?.to_vec();
    *copy.get_mut(start + 13)? &= !1;
    let (at, len) = if parsed.source.is_ipv4() { (2, copy.len()) } else { (4, copy.len() - IPV6_HEADER_LEN) };
    let len = u16::try_from(len).ok()?.to_be_bytes();
    copy.get_mut(at..at + 2)?.copy_from_slice(&len);
    Some(copy)
}

/// Writes a bare acknowledgement, as TIME-WAIT answers a repeated FIN (RFC 9293, section 3.10.7.4).
pub(crate) fn acknowledgement(local: SocketAddr, remote: SocketAddr, numbers: Numbers) -> Vec<u8> {
    tcp(local, remote, numbers, 16)
}

fn tcp(local: SocketAddr, remote: SocketAddr, numbers: Numbers, flags: u8) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend_from_slice(&local.port().to_be_bytes());
    segment.extend_from_slice(&remote.port().to_be_bytes());
    segment.extend_from_slice(&numbers.sequence.to_be_bytes());
    segment.extend_from_slice(&numbers.acknowledgement.to_be_bytes());
    segment.extend_from_slice(&[0x50, flags]);
    segment.extend_from_slice(&numbers.window.to_be_bytes());
    segment.extend_from_slice(&[0, 0, 0, 0]);
    let sum = transport_checksum(local.ip(), remote.ip(), PROTOCOL_TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    Header::new(local.ip(), remote.ip(), PROTOCOL_TCP).packet(&segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 80, 0, last))
    }

    fn v6(last: u16) -> IpAddr {
        IpAddr::V6(Ipv6Addr::new(0xfd75, 0x6e69, 1, 0, 0, 0, 0, last))
    }

    #[test]
    fn a_datagram_reads_back_as_it_was_written() {
        for (source, destination) in [(v4(1), v4(2)), (v6(1), v6(2))] {
            let datagram = udp(SocketAddr::new(source, 7), SocketAddr::new(destination, 9), b"hello");
            let packet = Header::new(source, destination, PROTOCOL_UDP).packet(&datagram);
            let parsed = Packet::parse(&packet, true).unwrap();
            assert_eq!((parsed.source, parsed.destination), (source, destination));
            assert_eq!(parsed.ports(), Some((7, 9)));
            assert_eq!(transport_checksum(source, destination, PROTOCOL_UDP, parsed.payload), 0);
        }
    }

    #[test]
    fn fragments_cover_the_payload_and_fit_the_mtu() {
        let payload = vec![7u8; 20_000];
        for (source, destination) in [(v4(1), v4(2)), (v6(1), v6(2))] {
            let packets = Header::new(source, destination, PROTOCOL_UDP).packets(&payload, 1_280, 5);
            let mut expected = 0;
            for (index, bytes) in packets.iter().enumerate() {
                assert!(bytes.len() <= 1_280);
                let piece = Packet::parse(bytes, true).unwrap();
                let fragment = piece.fragment.unwrap();
                assert_eq!((fragment.offset, fragment.id), (expected, 5));
                assert_eq!(fragment.more, index + 1 < packets.len());
                expected += piece.payload.len();
            }
            assert_eq!(expected, payload.len());
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let datagram = udp(SocketAddr::new(v6(1), 7), SocketAddr::new(v6(2), 9), b"hello");
        let packet = Header::new(v6(1), v6(2), PROTOCOL_UDP).packet(&datagram);
        for len in 0..packet.len() {
            assert!(Packet::parse(&packet[..len], true).is_err());
        }
    }
}
