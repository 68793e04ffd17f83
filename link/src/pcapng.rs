//! Captures in the pcapng format (draft-ietf-opsawg-pcapng): an encoder without I/O.
//!
//! One interface for each link and one for loopback, nanosecond stamps, names of members, and comments
//! that say why a packet was dropped.

use std::net::IpAddr;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const NAME_RESOLUTION: u32 = 4;
const ENHANCED_PACKET: u32 = 6;
/// LINKTYPE_RAW: packets begin with the IP header.
const LINKTYPE_RAW: u16 = 101;
const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const OPTION_HARDWARE: u16 = 2;
const OPTION_APPLICATION: u16 = 4;
const OPTION_INTERFACE_NAME: u16 = 2;
const OPTION_INTERFACE_DESCRIPTION: u16 = 3;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_PACKET_FLAGS: u16 = 2;
const NAME_IPV4: u16 = 1;
const NAME_IPV6: u16 = 2;
/// Largest packet in a capture, in bytes.
const SNAP_LEN_MAX: usize = 65_535;

/// Which way a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the peer to this node.
    Inbound,
    /// From this node to the peer.
    Outbound,
}

/// A captured packet.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The number that [`Encoder::interface`] gave.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Which way it went.
    pub direction: Direction,
    /// The IP packet.
    pub packet: &'a [u8],
    /// A remark, such as why it was dropped.
    pub comment: Option<&'a str>,
}

/// Writes blocks into a buffer that the caller empties.
#[derive(Debug)]
pub struct Encoder {
    interfaces: u32,
    snap_len: usize,
}

struct Block<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Block<'a> {
    fn new(out: &'a mut Vec<u8>, kind: u32) -> Self {
        let start = out.len();
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        Self { out, start }
    }

    fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.out.resize(self.out.len().next_multiple_of(4).max(self.out.len()), 0);
        // Blocks start at multiples of four, so absolute and relative padding agree.
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.u16(code);
        self.u16(value.len() as u16);
        self.padded(value);
    }

    fn finish(mut self) {
        let len = (self.out.len() - self.start + 4) as u32;
        self.u32(len);
        self.out[self.start + 4..self.start + 8].copy_from_slice(&len.to_le_bytes());
    }
}

impl Encoder {
    /// Starts a capture that keeps `snap_len` bytes of each packet: appends the section header to `out`, whose length must be a multiple of four.
    pub fn new(application: &str, snap_len: usize, out: &mut Vec<u8>) -> Self {
        let mut block = Block::new(out, SECTION_HEADER);
        block.u32(0x1a2b_3c4d);
        block.u16(1);
        block.u16(0);
        block.u32(u32::MAX);
        block.u32(u32::MAX);
        block.option(OPTION_HARDWARE, b"virtual IP network");
        block.option(OPTION_APPLICATION, application.as_bytes());
        block.option(OPTION_END, &[]);
        block.finish();
        Self { interfaces: 0, snap_len: snap_len.clamp(64, SNAP_LEN_MAX) }
    }

    /// Describes an interface and returns its number.
    pub fn interface(&mut self, name: &str, description: &str, out: &mut Vec<u8>) -> u32 {
        let mut block = Block::new(out, INTERFACE_DESCRIPTION);
        block.u16(LINKTYPE_RAW);
        block.u16(0);
        block.u32(self.snap_len as u32);
        block.option(OPTION_INTERFACE_NAME, name.as_bytes());
        block.option(OPTION_INTERFACE_DESCRIPTION, description.as_bytes());
        block.option(OPTION_RESOLUTION, &[9]);
        block.option(OPTION_END, &[]);
        block.finish();
        self.interfaces += 1;
        self.interfaces - 1
    }

    /// Gives an address a name.
    pub fn name(&mut self, address: IpAddr, name: &str, out: &mut Vec<u8>) {
        let mut record = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        record.extend_from_slice(name.as_bytes());
        record.push(0);
        let mut block = Block::new(out, NAME_RESOLUTION);
        block.option(if address.is_ipv4() { NAME_IPV4 } else { NAME_IPV6 }, &record);
        block.option(OPTION_END, &[]);
        block.finish();
    }

    /// Appends a packet.
    pub fn packet(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        debug_assert!(record.interface < self.interfaces);
        let packet = &record.packet[..record.packet.len().min(self.snap_len)];
        let mut block = Block::new(out, ENHANCED_PACKET);
        block.u32(record.interface);
        block.u32((record.time_ns >> 32) as u32);
        block.u32(record.time_ns as u32);
        block.u32(packet.len() as u32);
        block.u32(record.packet.len() as u32);
        block.padded(packet);
        let flags: u32 = match record.direction {
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        block.option(OPTION_PACKET_FLAGS, &flags.to_le_bytes());
        if let Some(comment) = record.comment {
            block.option(OPTION_COMMENT, comment.as_bytes());
        }
        block.option(OPTION_END, &[]);
        block.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_chain_by_their_lengths() {
        let mut out = Vec::new();
        let mut encoder = Encoder::new("unisockets", 65_535, &mut out);
        let interface = encoder.interface("beta", "link to beta", &mut out);
        encoder.name("10.80.0.2".parse().unwrap(), "beta", &mut out);
        for len in 0..9 {
            let packet = vec![0x45; len];
            let record = Record {
                interface,
                time_ns: 1,
                direction: Direction::Inbound,
                packet: &packet,
                comment: Some("dropped: no_socket"),
            };
            encoder.packet(&record, &mut out);
        }
        let (mut at, mut kinds) = (0, Vec::new());
        while at < out.len() {
            let word = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().unwrap());
            let len = word(at + 4) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(word(at + len - 4) as usize, len);
            kinds.push(word(at));
            at += len;
        }
        assert_eq!(kinds[..3], [SECTION_HEADER, INTERFACE_DESCRIPTION, NAME_RESOLUTION]);
        assert_eq!(kinds[3..], [ENHANCED_PACKET; 9]);
    }
}
