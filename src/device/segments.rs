//! Super-segments of a kernel: cut to packets on the way out, joined on the way in.
//!
//! With IFF_VNET_HDR the kernel hands over up to 64 KiB of TCP at once, with the checksum left open, behind a header of
//! ten bytes (virtio 1.3, section 5.1.6), and takes the same.

use unisockets_stack::checksum::{checksum, transport_checksum};

use super::header::{Flags, Header, TCP};

/// Length of the header before each packet.
pub(crate) const VNET_LEN: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;
/// Longest packet that is made of several.
const JOINED_LEN_MAX: usize = 65_535;
const SEQUENCE: usize = 4;
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;

fn be16(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 2).map_or(0, |b| usize::from(u16::from_be_bytes([b[0], b[1]])))
}

fn put16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

fn sequence(tcp: &[u8]) -> u32 {
    tcp.get(SEQUENCE..SEQUENCE + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

/// Gives `take` every packet of what was read from a device; returns whether it could be understood.
pub(crate) fn cut(read: &[u8], mut take: impl FnMut(Vec<u8>)) -> bool {
    let Some((vnet, packet)) = read.split_first_chunk::<VNET_LEN>() else {
        return false;
    };
    // The fields of this header have the machine's byte order.
    let ne16 = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
    let (gso_size, start, offset) = (ne16(4), ne16(6), ne16(8));
    match vnet[1] & !GSO_ECN {
        GSO_NONE => {
            let mut packet = packet.to_vec();
            if vnet[0] & NEEDS_CHECKSUM != 0 {
                let Some(sum) = packet.get(start..).map(|covered| checksum(&[covered])) else {
                    return false;
                };
                if start + offset + 2 > packet.len() {
                    return false;
                }
                // Zero is how UDP says that there is none (RFC 768).
                put16(&mut packet, start + offset, usize::from(if sum == 0 { 0xffff } else { sum }));
            }
            take(packet);
            true
        }
        GSO_TCPV4 | GSO_TCPV6 => cut_tcp(packet, start, gso_size, take).is_some(),
        _ => false,
    }
}

fn cut_tcp(packet: &[u8], start: usize, gso_size: usize, mut take: impl FnMut(Vec<u8>)) -> Option<()> {
    let parsed = Header::parse(packet)?;
    let tcp_len = usize::from(packet.get(start + 12)? >> 4) * 4;
    let header_len = start + tcp_len;
    let payload = packet.get(header_len..)?;
    if gso_size == 0 || tcp_len < 20 || start < 20 || (parsed.source.is_ipv6() && start < 40) {
        return None;
    }
    let (first_id, first_sequence, flags) = (be16(packet, 4), sequence(&packet[start..]), packet[start + FLAGS]);
    let count = payload.len().div_ceil(gso_size).max(1);
    for (index, chunk) in payload.chunks(gso_size).enumerate() {
        let mut segment = Vec::with_capacity(header_len + chunk.len());
        segment.extend_from_slice(&packet[..header_len]);
        segment.extend_from_slice(chunk);
        let len = segment.len();
        if parsed.source.is_ipv4() {
            put16(&mut segment, 2, len);
            put16(&mut segment, 4, first_id.wrapping_add(index));
            put16(&mut segment, 10, 0);
            let sum = checksum(&[&segment[..start]]);
            put16(&mut segment, 10, usize::from(sum));
        } else {
            put16(&mut segment, 4, len - 40);
        }
        let tcp = &mut segment[start..];
        let next = first_sequence.wrapping_add((index * gso_size) as u32);
        tcp[SEQUENCE..SEQUENCE + 4].copy_from_slice(&next.to_be_bytes());
        let mut kept = flags;
        if index + 1 < count {
            kept &= !(Flags::FIN | Flags::PSH);
        }
        if index > 0 {
            kept &= !Flags::CWR;
        }
        tcp[FLAGS] = kept;
        put16(tcp, CHECKSUM, 0);
        let sum = transport_checksum(parsed.source, parsed.destination, TCP, tcp);
        put16(tcp, CHECKSUM, usize::from(sum));
        take(segment);
    }
    Some(())
}

/// One write to a device: its headers, and the parts of the packets' payloads that follow them.
pub(crate) struct Joined<'a> {
    /// The header of [`VNET_LEN`], then that of the packet.
    pub(crate) head: Vec<u8>,
    pub(crate) parts: Vec<&'a [u8]>,
}

/// The parts of a TCP segment that may be joined with others.
struct Plain<'a> {
    packet: &'a [u8],
    start: usize,
    header_len: usize,
}

impl<'a> Plain<'a> {
    /// Reads a segment with data and no flags but ACK and PSH, in a packet without options and fragments.
    fn parse(packet: &'a [u8]) -> Option<Plain<'a>> {
        let start = match packet.first()? {
            0x45 if packet.get(9) == Some(&TCP) && be16(packet, 6) & 0x3fff == 0 => 20,
            first if first >> 4 == 6 && packet.get(6) == Some(&TCP) => 40,
            _ => return None,
        };
        let header_len = start + usize::from(packet.get(start + 12)? >> 4) * 4;
        let flags = *packet.get(start + FLAGS)? & !Flags::PSH;
        let fits = header_len >= start + 20 && packet.len() > header_len && flags == Flags::ACK;
        fits.then_some(Plain { packet, start, header_len })
    }

    fn payload(&self) -> &'a [u8] {
        &self.packet[self.header_len..]
    }

    /// Whether all that a joined packet says once is the same in both.
    fn is_alike(&self, other: &Plain<'_>) -> bool {
        if self.start != other.start || self.header_len != other.header_len {
            return false;
        }
        let (a, b) = (self.packet, other.packet);
        let ip = match self.start {
            20 => a[1] == b[1] && a[6..10] == b[6..10] && a[12..20] == b[12..20],
            _ => a[..4] == b[..4] && a[6..40] == b[6..40],
        };
        let tcp = self.start;
        // Ports, acknowledgement, window, and options; not sequence, flags and checksum.
        let fixed = a[tcp..tcp + 4] == b[tcp..tcp + 4] && a[tcp + 8..tcp + 13] == b[tcp + 8..tcp + 13];
        ip && fixed
            && a[tcp + 14..tcp + 16] == b[tcp + 14..tcp + 16]
            && a[tcp + 18..self.header_len] == b[tcp + 18..self.header_len]
    }
}

/// Joins a packet with what follows it where both belong to one stream; returns the write and how many packets it takes.
pub(crate) fn join<'a>(packets: &[&'a [u8]]) -> Option<(Joined<'a>, usize)> {
    let first = *packets.first()?;
    let single = || {
        let mut head = vec![0; VNET_LEN];
        head[1] = GSO_NONE;
        (Joined { head, parts: vec![first] }, 1)
    };
    let Some(plain) = Plain::parse(first) else {
        return Some(single());
    };
    let gso_size = plain.payload().len();
    let (mut parts, mut total) = (vec![plain.payload()], first.len());
    let mut next = sequence(&first[plain.start..]).wrapping_add(gso_size as u32);
    let mut flags = first[plain.start + FLAGS];
    for packet in &packets[1..] {
        let Some(other) = Plain::parse(packet).filter(|other| plain.is_alike(other)) else {
            break;
        };
        let payload = other.payload();
        let follows = sequence(&packet[other.start..]) == next && payload.len() <= gso_size;
        if !follows || total + payload.len() > JOINED_LEN_MAX || parts.last().is_some_and(|l| l.len() < gso_size) {
            break;
        }
        parts.push(payload);
        total += payload.len();
        next = next.wrapping_add(payload.len() as u32);
        flags |= packet[other.start + FLAGS];
    }
    if parts.len() == 1 {
        return Some(single());
    }
    let mut head = Vec::with_capacity(VNET_LEN + plain.header_len);
    head.push(NEEDS_CHECKSUM);
    head.push(if plain.start == 20 { GSO_TCPV4 } else { GSO_TCPV6 });
    for field in [plain.header_len, gso_size, plain.start, CHECKSUM] {
        head.extend_from_slice(&(field as u16).to_ne_bytes());
    }
    head.extend_from_slice(&first[..plain.header_len]);
    let header = &mut head[VNET_LEN..];
    header[plain.start + FLAGS] = flags;
    if plain.start == 20 {
        put16(header, 2, total);
        put16(header, 10, 0);
        let sum = checksum(&[&header[..20]]);
        put16(header, 10, usize::from(sum));
    } else {
        put16(header, 4, total - 40);
    }
    // The kernel completes the sum, which has only the pseudo-header's part yet.
    let len = ((total - plain.start) as u32).to_be_bytes();
    let addresses = if plain.start == 20 { 12..20 } else { 8..40 };
    let sum = !checksum(&[&first[addresses], &len, &[0, 0, 0, TCP]]);
    put16(header, plain.start + CHECKSUM, usize::from(sum));
    let count = parts.len();
    Some((Joined { head, parts }, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet of one stream; its checksums are right.
    fn segment(v4: bool, at: u32, payload: &[u8], flags: u8) -> Vec<u8> {
        let mut tcp = vec![0, 80, 0x13, 0x88];
        tcp.extend(at.to_be_bytes());
        tcp.extend(77u32.to_be_bytes());
        tcp.extend([0x80, flags, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        tcp[12] = 0x80;
        tcp.truncate(32);
        tcp.extend(payload);
        let mut packet = match v4 {
            true => vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 80, 0, 2, 10, 80, 0, 1],
            false => {
                let mut header = vec![0x60, 0, 0, 0, 0, 0, TCP, 64];
                header.extend([0xfd; 15].iter().chain(&[2]).chain(&[0xfd; 15]).chain(&[1]));
                header
            }
        };
        let start = packet.len();
        packet.extend(&tcp);
        let len = packet.len();
        if v4 {
            put16(&mut packet, 2, len);
            let sum = checksum(&[&packet[..20]]);
            put16(&mut packet, 10, usize::from(sum));
        } else {
            put16(&mut packet, 4, len - 40);
        }
        let header = Header::parse(&packet).unwrap();
        let sum = transport_checksum(header.source, header.destination, TCP, header.payload);
        put16(&mut packet, start + CHECKSUM, usize::from(sum));
        packet
    }

    fn is_right(packet: &[u8]) -> bool {
        let header = Header::parse(packet).unwrap();
        transport_checksum(header.source, header.destination, TCP, header.payload) == 0
            && (packet[0] >> 4 == 6 || checksum(&[&packet[..20]]) == 0)
    }

    #[test]
    fn what_is_joined_and_cut_again_is_what_it_was() {
        for v4 in [true, false] {
            let bytes: Vec<u8> = (0..10_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
            let mut packets: Vec<Vec<u8>> =
                bytes.chunks(3_000).enumerate().map(|(i, c)| segment(v4, (i * 3_000) as u32, c, 0x10)).collect();
            let last = packets.len() - 1;
            packets[last] = segment(v4, 9_000, &bytes[9_000..], 0x18);
            let views: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
            let (joined, count) = join(&views).unwrap();
            assert_eq!(count, 4);
            let written: Vec<u8> = joined.head.iter().chain(joined.parts.concat().iter()).copied().collect();
            let mut again = Vec::new();
            assert!(cut(&written, |packet| again.push(packet)));
            assert!(again.iter().all(|packet| is_right(packet)));
            if v4 {
                // Each packet has an identification of its own.
                for (index, packet) in again.iter_mut().enumerate() {
                    assert_eq!(be16(packet, 4), index);
                    packet[4..6].fill(0);
                    packet[10..12].copy_from_slice(&packets[0][10..12]);
                }
                packets.iter_mut().for_each(|packet| packet[10..12].copy_from_slice(&again[0][10..12]));
            }
            assert_eq!(again, packets);
        }
    }

    #[test]
    fn what_does_not_follow_or_differs_is_not_joined() {
        let first = segment(true, 0, &[1; 1_000], 0x10);
        let others = [
            segment(true, 2_000, &[1; 1_000], 0x10),
            segment(true, 1_000, &[1; 1_001], 0x10),
            segment(true, 1_000, &[1; 1_000], 0x11),
            segment(false, 1_000, &[1; 1_000], 0x10),
        ];
        for other in &others {
            assert_eq!(join(&[&first, other]).unwrap().1, 1);
        }
        let mut other_options = segment(true, 1_000, &[1; 1_000], 0x10);
        other_options[45] ^= 1;
        assert_eq!(join(&[&first, &other_options]).unwrap().1, 1);
    }

    /// Whatever ends early goes to the kernel as it is: what it is worth, the kernel knows.
    #[test]
    fn a_packet_of_any_length_is_written_and_never_joined_wrongly() {
        for v4 in [true, false] {
            let whole = segment(v4, 0, &[1; 10], 0x10);
            for len in 0..whole.len() {
                let mut short = whole[..len].to_vec();
                if v4 && len >= 4 {
                    put16(&mut short, 2, len);
                } else if len >= 40 {
                    put16(&mut short, 4, len - 40);
                }
                let (written, count) = join(&[&short, &whole]).unwrap();
                assert_eq!((count, written.parts.concat()), (1, short));
            }
        }
    }

    #[test]
    fn a_broken_header_is_refused() {
        let mut written = vec![NEEDS_CHECKSUM, GSO_NONE, 0, 0, 0, 0, 255, 255, 255, 255];
        written.extend(segment(true, 0, &[1; 10], 0x10));
        assert!(!cut(&written, |_| {}));
        written[1] = GSO_TCPV4;
        assert!(!cut(&written, |_| {}));
        assert!(!cut(&[0; 5], |_| {}));
    }
}
