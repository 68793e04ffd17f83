//! What must be read of a kernel's packets: addresses, protocol, ports, flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
/// IPv6's header of fragments (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;

/// Flags of a TCP segment (RFC 9293, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u8);

impl Flags {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const CWR: u8 = 0x80;

    /// Whether it can only begin a connection: no ACK and no RST.
    pub(crate) fn opens(self) -> bool {
        self.0 & (Flags::ACK | Flags::RST) == 0
    }
}

/// The start of an IP packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// In bytes.
    pub(crate) fragment_offset: usize,
    /// Whether it is a fragment, the first one among them.
    pub(crate) is_fragment: bool,
    /// What follows IP's header, and IPv6's header of fragments.
    pub(crate) payload: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads a packet whose length field says its true length.
    pub(crate) fn parse(packet: &'a [u8]) -> Option<Header<'a>> {
        match packet.first()? >> 4 {
            4 => {
                let len = usize::from(packet[0] & 0xf) * 4;
                let fixed: &[u8; 20] = packet.first_chunk()?;
                let source: [u8; 4] = fixed[12..16].try_into().ok()?;
                let destination: [u8; 4] = fixed[16..20].try_into().ok()?;
                Some(Header {
                    source: IpAddr::V4(Ipv4Addr::from(source)),
                    destination: IpAddr::V4(Ipv4Addr::from(destination)),
                    protocol: fixed[9],
                    fragment_offset: usize::from(u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff) * 8,
                    is_fragment: u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0,
                    payload: packet.get(len.max(20)..)?,
                })
            }
            6 => {
                let fixed: &[u8; 40] = packet.first_chunk()?;
                let source: [u8; 16] = fixed[8..24].try_into().ok()?;
                let destination: [u8; 16] = fixed[24..40].try_into().ok()?;
                let mut header = Header {
                    source: IpAddr::V6(Ipv6Addr::from(source)),
                    destination: IpAddr::V6(Ipv6Addr::from(destination)),
                    protocol: fixed[6],
                    fragment_offset: 0,
                    is_fragment: false,
                    payload: &packet[40..],
                };
                if header.protocol == FRAGMENT {
                    let (fragment, payload) = header.payload.split_first_chunk::<8>()?;
                    header.protocol = fragment[0];
                    let position = u16::from_be_bytes([fragment[2], fragment[3]]);
                    header.fragment_offset = usize::from(position & 0xfff8);
                    header.is_fragment = position & 0xfff9 != 0;
                    header.payload = payload;
                }
                Some(header)
            }
            _ => None,
        }
    }

    /// Returns the source's and the destination's port; a later fragment has none.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        if self.fragment_offset > 0 {
            return None;
        }
        let ports: &[u8; 4] = self.payload.first_chunk().filter(|_| matches!(self.protocol, TCP | UDP))?;
        Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
    }

    /// Returns who sent the packet that an ICMP error quotes, and to whom; nothing if this is no error.
    pub(crate) fn quoted(&self) -> Option<Option<(IpAddr, IpAddr)>> {
        let kind = *self.payload.first()?;
        let is_error = match self.protocol {
            ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
            ICMPV6 => kind < 128,
            _ => false,
        };
        // The quotation may be cut anywhere after the header.
        let quoted = || {
            let quoted = self.payload.get(8..)?;
            Header::parse(quoted).map(|header| (header.source, header.destination))
        };
        is_error.then(quoted)
    }

    pub(crate) fn tcp_flags(&self) -> Option<Flags> {
        self.payload.get(13).filter(|_| self.protocol == TCP).map(|flags| Flags(*flags))
    }
}
