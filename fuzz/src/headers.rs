//! Packets written and checked without the stack's own code.

use std::net::{IpAddr, SocketAddr};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// The Internet checksum (RFC 1071) of the concatenated parts.
fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Writes an IP packet with a right header.
pub(crate) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = if source.is_ipv4() {
        vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]
    } else {
        vec![0x60, 0, 0, 0, 0, 0, protocol, 64]
    };
    packet.extend(octets(source));
    packet.extend(octets(destination));
    packet.extend_from_slice(payload);
    mend(&mut packet);
    packet
}

/// The fields of a TCP header that matter here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// Options, a multiple of four bytes.
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// Writes a TCP segment in its IP packet.
pub(crate) fn tcp(source: SocketAddr, destination: SocketAddr, segment: Segment<'_>) -> Vec<u8> {
    let mut bytes = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    bytes.extend(segment.sequence.to_be_bytes());
    bytes.extend(segment.acknowledgement.to_be_bytes());
    bytes.extend([(((20 + segment.options.len()) / 4) << 4) as u8, segment.flags]);
    bytes.extend(segment.window.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend_from_slice(segment.options);
    bytes.extend_from_slice(segment.payload);
    ip(source.ip(), destination.ip(), TCP, &bytes)
}

/// Writes a UDP datagram without its IP header and with a right checksum.
pub(crate) fn udp_payload(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    let packet = udp(source, destination, data);
    packet[if source.is_ipv4() { 20 } else { 40 }..].to_vec()
}

/// Writes a UDP datagram in its IP packet.
pub(crate) fn udp(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut bytes = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    bytes.extend((8 + data.len() as u16).to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend_from_slice(data);
    ip(source.ip(), destination.ip(), UDP, &bytes)
}

/// Writes an ICMP message of either family; `rest` follows the checksum.
pub(crate) fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let protocol = if source.is_ipv4() { ICMP } else { ICMPV6 };
    ip(source, destination, protocol, &[&[kind, code, 0, 0], rest].concat())
}

/// Writes one fragment of a payload; the offset counts bytes and is a multiple of eight.
pub(crate) fn fragment(ends: (IpAddr, IpAddr), id: u16, offset: u16, more: bool, piece: &[u8]) -> Vec<u8> {
    if ends.0.is_ipv4() {
        let mut packet = ip(ends.0, ends.1, UDP, piece);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[6..8].copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
        mend(&mut packet);
        packet
    } else {
        let field = (offset & !7) | u16::from(more);
        let header = [&[UDP, 0][..], &field.to_be_bytes(), &[0, 0], &id.to_be_bytes(), piece].concat();
        ip(ends.0, ends.1, FRAGMENT, &header)
    }
}

/// Where the upper layer starts, and which it is; nothing for fragments and broken headers.
fn upper(packet: &[u8]) -> Option<(u8, usize)> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            let header_len = usize::from(packet[0] & 15) * 4;
            let whole = packet[6] & 0x3f == 0 && packet[7] == 0;
            (whole && (20..=packet.len()).contains(&header_len)).then(|| (packet[9], header_len))
        }
        6 if packet.len() >= 40 => {
            let (mut protocol, mut at) = (packet[6], 40);
            while matches!(protocol, 0 | 43 | 60) {
                let len = (usize::from(*packet.get(at + 1)?) + 1) * 8;
                protocol = packet[at];
                at += len;
            }
            (at <= packet.len() && protocol != FRAGMENT).then_some((protocol, at))
        }
        _ => None,
    }
}

/// What a transport checksum covers besides the payload.
fn pseudo_header(packet: &[u8], protocol: u8, len: usize) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    if protocol == ICMP {
        return Vec::new();
    }
    [addresses, &(len as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

/// Sets the lengths and checksums of whatever the bytes hold, so that a changed packet gets past them.
pub(crate) fn mend(packet: &mut [u8]) {
    let len = packet.len();
    match packet.first().map(|first| first >> 4) {
        Some(4) if len >= 20 => {
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[10..12].fill(0);
            let header_len = (usize::from(packet[0] & 15) * 4).clamp(20, len);
            let sum = checksum(&[&packet[..header_len]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Some(6) if len >= 40 => packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes()),
        _ => return,
    }
    let Some((protocol, start)) = upper(packet) else {
        return;
    };
    let Some(at) = checksum_at(protocol).map(|at| start + at).filter(|at| at + 2 <= len) else {
        return;
    };
    if protocol == UDP {
        packet[start + 4..start + 6].copy_from_slice(&((len - start) as u16).to_be_bytes());
    }
    packet[at..at + 2].fill(0);
    let sum = checksum(&[&pseudo_header(packet, protocol, len - start), &packet[start..]]);
    let sum = if sum == 0 && protocol == UDP { 0xffff } else { sum };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Checks what a stack has written: lengths, checksums, and that it is one of our protocols.
pub(crate) fn check(packet: &[u8]) -> Result<(), &'static str> {
    let v4 = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => true,
        Some(6) if packet.len() >= 40 => false,
        _ => return Err("no IP header"),
    };
    let be16 = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if v4 && (packet[0] != 0x45 || be16(2) != packet.len() || checksum(&[&packet[..20]]) != 0) {
        return Err("a wrong IPv4 header");
    }
    if !v4 && be16(4) + 40 != packet.len() {
        return Err("a wrong IPv6 length");
    }
    let Some((protocol, start)) = upper(packet) else {
        let fragment = v4 || packet[6] == FRAGMENT;
        return if fragment { Ok(()) } else { Err("a broken chain of headers") };
    };
    if checksum_at(protocol).is_none() {
        return Err("a protocol that the stack does not speak");
    }
    match checksum(&[&pseudo_header(packet, protocol, packet.len() - start), &packet[start..]]) {
        0 => Ok(()),
        _ => Err("a wrong transport checksum"),
    }
}

/// A TCP packet as its receiver sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) sequence: u32,
    /// The sequence number after it.
    pub(crate) end: u32,
    pub(crate) acknowledgement: u32,
    /// As written, not scaled.
    pub(crate) window: u16,
}

/// Reads a legal TCP packet.
pub(crate) fn seen(packet: &[u8]) -> Option<Seen> {
    let (protocol, start) = upper(packet)?;
    let tcp = packet.get(start..)?;
    if protocol != TCP || tcp.len() < 20 {
        return None;
    }
    let be16 = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let be32 = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let address = |v4: usize, v6: usize| -> IpAddr {
        if packet[0] >> 4 == 4 {
            IpAddr::from([packet[v4], packet[v4 + 1], packet[v4 + 2], packet[v4 + 3]])
        } else {
            let octets: [u8; 16] = packet[v6..v6 + 16].try_into().expect("sixteen bytes were taken");
            IpAddr::from(octets)
        }
    };
    let payload_len = tcp.len().saturating_sub(usize::from(tcp[12] >> 4) * 4) as u32;
    let counted = payload_len + u32::from(tcp[13] & FIN) + u32::from(tcp[13] & SYN) / 2;
    Some(Seen {
        source: SocketAddr::new(address(12, 8), be16(0)),
        destination: SocketAddr::new(address(16, 24), be16(2)),
        sequence: be32(4),
        end: be32(4).wrapping_add(counted),
        acknowledgement: be32(8),
        window: be16(14),
    })
}

/// Returns the shift count that a legal TCP packet offers (RFC 7323, 2.2).
pub(crate) fn window_scale(packet: &[u8]) -> Option<u8> {
    let (_, start) = upper(packet)?;
    let header_len = usize::from(packet.get(start + 12)? >> 4) * 4;
    let mut options = packet.get(start + 20..start + header_len)?;
    loop {
        match *options {
            [3, 3, shift, ..] => return Some(shift),
            [] | [0, ..] => return None,
            [1, ..] => options = &options[1..],
            [_, len, ..] if len >= 2 => options = options.get(usize::from(len)..)?,
            _ => return None,
        }
    }
}

/// Returns the flags of a legal TCP packet.
pub(crate) fn flags(packet: &[u8]) -> Option<u8> {
    let (protocol, start) = upper(packet)?;
    packet.get(start + 13).copied().filter(|_| protocol == TCP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_legal_and_what_is_changed_is_mended() {
        for (a, b) in [("10.80.0.1:7", "10.80.0.2:9"), ("[fd75::1]:7", "[fd75::2]:9")] {
            let (a, b): (SocketAddr, SocketAddr) = (a.parse().unwrap(), b.parse().unwrap());
            let segment =
                Segment { sequence: 1, acknowledgement: 2, flags: ACK, window: 3, options: &[], payload: b"odd" };
            for mut packet in [udp(a, b, b"hello"), tcp(a, b, segment), icmp(a.ip(), b.ip(), 8, 0, &[0; 4])] {
                assert_eq!(check(&packet), Ok(()));
                *packet.last_mut().unwrap() ^= 1;
                assert!(check(&packet).is_err());
                mend(&mut packet);
                assert_eq!(check(&packet), Ok(()));
            }
            assert_eq!(seen(&tcp(a, b, segment)).map(|seen| (seen.source, seen.end)), Some((a, 4)));
            assert_eq!(check(&fragment((a.ip(), b.ip()), 5, 8, true, &[0; 16])), Ok(()));
        }
    }
}
