//! Packets as bytes, written and read independently of the stack under test.

use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;

/// Adds up 16-bit words in one's complement (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u32 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut total = start + words.sum::<u32>();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The sum of a payload with its pseudo-header; 0xffff when its checksum is right.
fn transport_sum(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u32 {
    let mut pseudo = octets(source);
    pseudo.extend(octets(destination));
    pseudo.extend((payload.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    sum(payload, sum(&pseudo, 0))
}

/// Puts an IP header before a payload.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = if source.is_ipv4() {
        let len = ((20 + payload.len()) as u16).to_be_bytes();
        let mut header = vec![0x45, 0, len[0], len[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
        header.extend(octets(source));
        header.extend(octets(destination));
        let check = !(sum(&header, 0) as u16);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        header
    } else {
        let len = (payload.len() as u16).to_be_bytes();
        let mut header = vec![0x60, 0, 0, 0, len[0], len[1], protocol, 64];
        header.extend(octets(source));
        header.extend(octets(destination));
        header
    };
    packet.extend_from_slice(payload);
    packet
}

/// The fields of a TCP segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tcp {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
    pub data_offset: Option<u8>,
    pub payload: Vec<u8>,
}

/// What is wrong with the checksums of a packet, on purpose.
#[derive(Debug, Clone, Copy, Default)]
pub struct Damage {
    pub tcp: bool,
    pub ip: bool,
}

/// Writes a packet with a TCP segment.
pub fn tcp(source: SocketAddr, destination: SocketAddr, segment: &Tcp, damage: Damage) -> Vec<u8> {
    let mut options = segment.options.clone();
    options.resize(options.len().next_multiple_of(4), 0);
    let offset = segment.data_offset.unwrap_or(5 + (options.len() / 4) as u8);
    let mut bytes = source.port().to_be_bytes().to_vec();
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend(segment.seq.to_be_bytes());
    bytes.extend(segment.ack.to_be_bytes());
    bytes.extend([offset << 4, segment.flags]);
    bytes.extend(segment.window.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(segment.urgent.to_be_bytes());
    bytes.extend(options);
    bytes.extend_from_slice(&segment.payload);
    let check = !(transport_sum(source.ip(), destination.ip(), TCP, &bytes) as u16) ^ u16::from(damage.tcp);
    bytes[16..18].copy_from_slice(&check.to_be_bytes());
    let mut packet = ip(source.ip(), destination.ip(), TCP, &bytes);
    if damage.ip {
        packet[10] ^= 1;
    }
    packet
}

/// Writes an ICMP error about a packet (RFC 792, RFC 4443); `rest` is the second word of its header.
pub fn icmp(source: IpAddr, destination: IpAddr, kind: (u8, u8), rest: u32, about: &[u8]) -> Vec<u8> {
    let mut message = vec![kind.0, kind.1, 0, 0];
    message.extend(rest.to_be_bytes());
    message.extend_from_slice(about);
    let (protocol, check) = match source {
        IpAddr::V4(_) => (1, !(sum(&message, 0) as u16)),
        IpAddr::V6(_) => (58, !(transport_sum(source, destination, 58, &message) as u16)),
    };
    message[2..4].copy_from_slice(&check.to_be_bytes());
    ip(source, destination, protocol, &message)
}

/// A packet that the stack has sent.
#[derive(Debug, Clone)]
pub struct Read {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub hop_limit: u8,
    pub tcp: Tcp,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads a packet of ours; lengths and checksums must be right.
pub fn read(packet: &[u8]) -> Result<Read, String> {
    let v4 = packet.first().map(|first| first >> 4) == Some(4);
    let header_len = if v4 { 20 } else { 40 };
    if packet.len() < header_len + 20 {
        return Err(format!("{} bytes are no TCP packet", packet.len()));
    }
    let (len, hop_limit, protocol) = match v4 {
        true => (usize::from(be16(packet, 2)), packet[8], packet[9]),
        false => (usize::from(be16(packet, 4)) + 40, packet[7], packet[6]),
    };
    if len != packet.len() || protocol != TCP {
        return Err(format!("length {len} of {}, protocol {protocol}", packet.len()));
    }
    if v4 && sum(&packet[..20], 0) != 0xffff {
        return Err("the checksum of the IP header is wrong".to_owned());
    }
    let (source, destination): (IpAddr, IpAddr) = if v4 {
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes"));
        (address(12), address(16))
    } else {
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen bytes"));
        (address(8), address(24))
    };
    let bytes = &packet[header_len..];
    if transport_sum(source, destination, TCP, bytes) != 0xffff {
        return Err("the TCP checksum is wrong".to_owned());
    }
    let data = usize::from(bytes[12] >> 4) * 4;
    if data < 20 || data > bytes.len() || bytes[12] & 0x0f != 0 {
        return Err("the data offset is wrong, or reserved bits are set".to_owned());
    }
    Ok(Read {
        source: SocketAddr::new(source, be16(bytes, 0)),
        destination: SocketAddr::new(destination, be16(bytes, 2)),
        hop_limit,
        tcp: Tcp {
            flags: bytes[13],
            seq: be32(bytes, 4),
            ack: be32(bytes, 8),
            window: be16(bytes, 14),
            urgent: be16(bytes, 18),
            options: bytes[20..data].to_vec(),
            data_offset: None,
            payload: bytes[data..].to_vec(),
        },
    })
}

/// The options of a segment of ours, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub mss: Option<u16>,
    pub wscale: Option<u8>,
    pub sack_permitted: bool,
    pub sack: Vec<(u32, u32)>,
    pub timestamp: Option<(u32, u32)>,
}

/// Reads options; one that is not legal is an error.
pub fn options(mut bytes: &[u8]) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(kind) = bytes.first() {
        let len = match kind {
            0 => break,
            1 => 1,
            _ => usize::from(*bytes.get(1).unwrap_or(&0)),
        };
        if len == 0 || len > bytes.len() {
            return Err(format!("option {kind} is cut"));
        }
        match (kind, len) {
            (1, _) => {}
            (2, 4) => options.mss = Some(be16(bytes, 2)),
            (3, 3) => options.wscale = Some(bytes[2]),
            (4, 2) => options.sack_permitted = true,
            (5, 10..) => {
                options.sack = bytes[2..len].chunks_exact(8).map(|block| (be32(block, 0), be32(block, 4))).collect();
            }
            (8, 10) => options.timestamp = Some((be32(bytes, 2), be32(bytes, 6))),
            _ => return Err(format!("option {kind} of {len} bytes is not known")),
        }
        bytes = &bytes[len..];
    }
    Ok(options)
}

/// Writes options.
pub fn write_options(options: &Options) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mss) = options.mss {
        bytes.extend([2, 4]);
        bytes.extend(mss.to_be_bytes());
    }
    if let Some(shift) = options.wscale {
        bytes.extend([1, 3, 3, shift]);
    }
    if options.sack_permitted {
        bytes.extend([1, 1, 4, 2]);
    }
    if let Some((value, echo)) = options.timestamp {
        bytes.extend([1, 1, 8, 10]);
        bytes.extend(value.to_be_bytes());
        bytes.extend(echo.to_be_bytes());
    }
    if !options.sack.is_empty() {
        bytes.extend([1, 1, 5, 2 + 8 * options.sack.len() as u8]);
        for (left, right) in &options.sack {
            bytes.extend(left.to_be_bytes());
            bytes.extend(right.to_be_bytes());
        }
    }
    bytes
}
