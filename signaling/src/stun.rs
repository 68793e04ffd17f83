//! STUN Binding requests and their answers (RFC 8489): what address does the outside see?

use std::net::{IpAddr, SocketAddr};

const BINDING_REQUEST: [u8; 2] = [0, 1];
const BINDING_SUCCESS: [u8; 2] = [1, 1];
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER_LEN: usize = 20;
const XOR_MAPPED_ADDRESS: [u8; 2] = [0, 0x20];

/// Answers a Binding request, or nothing at all: no other packet gets a reply, and no reply is much
/// longer than its request.
pub fn answer(packet: &[u8], source: SocketAddr) -> Option<Vec<u8>> {
    let header = packet.get(..HEADER_LEN)?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let whole = len.is_multiple_of(4) && packet.len() == HEADER_LEN + len;
    if header[..2] != BINDING_REQUEST || header[4..8] != COOKIE || !whole {
        return None;
    }
    let mut mask = COOKIE.to_vec();
    mask.extend_from_slice(&header[8..20]);
    let (family, octets) = match source.ip().to_canonical() {
        IpAddr::V4(v4) => (1u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (2u8, v6.octets().to_vec()),
    };
    let xored: Vec<u8> = octets.iter().zip(&mask).map(|(octet, mask)| octet ^ mask).collect();
    let port = source.port() ^ u16::from_be_bytes([COOKIE[0], COOKIE[1]]);
    let value_len = 4 + xored.len() as u16;
    let mut reply = Vec::with_capacity(HEADER_LEN + 4 + usize::from(value_len));
    reply.extend_from_slice(&BINDING_SUCCESS);
    reply.extend_from_slice(&(value_len + 4).to_be_bytes());
    reply.extend_from_slice(&mask);
    reply.extend_from_slice(&XOR_MAPPED_ADDRESS);
    reply.extend_from_slice(&value_len.to_be_bytes());
    reply.extend_from_slice(&[0, family]);
    reply.extend_from_slice(&port.to_be_bytes());
    reply.extend_from_slice(&xored);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The IPv4 response of RFC 5769, section 2.2: 192.0.2.1 port 32853.
    #[test]
    fn the_answer_is_that_of_the_rfc() {
        let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        request.extend_from_slice(&[0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae]);
        let reply = answer(&request, "192.0.2.1:32853".parse().unwrap()).unwrap();
        assert_eq!(reply[20..32], [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        assert_eq!(reply[8..20], request[8..20]);
    }

    #[test]
    fn nothing_else_is_answered() {
        let source = "192.0.2.1:1".parse().unwrap();
        assert_eq!(answer(&[], source), None);
        assert_eq!(answer(&[0; 20], source), None);
        let reply_like = [&[1, 1, 0, 0][..], &COOKIE, &[0; 12]].concat();
        assert_eq!(answer(&reply_like, source), None);
        let cut = [&[0, 1, 0, 8][..], &COOKIE, &[0; 12]].concat();
        assert_eq!(answer(&cut, source), None);
    }
}
