//! What stands in front of a datagram that a program sends to an address of its choice.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Bytes of a destination: address, port, and two of padding.
pub const DESTINATION_LEN: usize = 20;

/// Writes a destination; an IPv4 address is written as `::ffff:a.b.c.d`.
pub fn emit_destination(address: SocketAddr) -> [u8; DESTINATION_LEN] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; DESTINATION_LEN];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..18].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

/// Splits what came into destination and payload; nothing if it is too short.
pub fn parse_destination(message: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (head, payload) = message.split_at_checked(DESTINATION_LEN)?;
    let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&head[..16]).ok()?);
    let port = u16::from_be_bytes([head[16], head[17]]);
    let address = SocketAddr::V6(SocketAddrV6::new(ip, port, 0, 0));
    Some((SocketAddr::new(address.ip().to_canonical(), port), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_come_back_as_they_were() {
        for text in ["10.80.0.1:53", "[fd75:6e69::1]:65535"] {
            let address = text.parse().unwrap();
            let mut message = emit_destination(address).to_vec();
            message.extend(b"payload");
            assert_eq!(parse_destination(&message), Some((address, &b"payload"[..])));
        }
        assert_eq!(parse_destination(&[0; DESTINATION_LEN - 1]), None);
    }
}
