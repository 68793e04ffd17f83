//! The Internet checksum (RFC 1071).
//!
//! The stack computes it itself over what TCP carries: with wide registers that takes half as long as in the
//! engine, and it is the larger part of the cost of a long segment.

use std::net::IpAddr;

use crate::packet::{PROTOCOL_TCP, Packet};

/// Bytes that [`sum_strides`] adds at once: as many as a compiler turns into a few instructions on whole registers.
const STRIDE: usize = 64;
/// Strides from which on the choice of registers at run time pays.
const STRIDES_MIN: usize = 4;

/// Adds 32-bit words of the machine's own byte order in wide registers, where there are any.
#[cfg_attr(target_arch = "x86_64", multiversion::multiversion(targets("x86_64+avx2")))]
fn sum_strides(strides: &[[u8; STRIDE]]) -> u64 {
    let mut lanes = [0u64; STRIDE / 4];
    for stride in strides {
        let (words, _) = stride.as_chunks::<4>();
        #[allow(clippy::needless_range_loop, reason = "the loop over indices is the one that becomes vector code")]
        for lane in 0..lanes.len() {
            lanes[lane] += u64::from(u32::from_ne_bytes(words[lane]));
        }
    }
    lanes.iter().sum()
}

/// Adds 32-bit words of the machine's own byte order, the last one filled up with zeros; carries are folded later
/// (RFC 1071, section 2.(B)).
#[inline]
fn sum(bytes: &[u8]) -> u64 {
    let mut sum = 0;
    let mut rest = bytes;
    if bytes.len() >= STRIDES_MIN * STRIDE {
        let strides;
        (strides, rest) = bytes.as_chunks::<STRIDE>();
        sum = sum_strides(strides);
    }
    let (words, last) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let mut filled = [0; 4];
    filled[..last.len()].copy_from_slice(last);
    sum + u64::from(u32::from_ne_bytes(filled))
}

/// Computes the Internet checksum (RFC 1071) over the concatenation of `parts`, of which all but the
/// last have even lengths.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    // A part of 4n+2 bytes is filled up with zeros; the one's complement sum does not mind which half of a word
    // its last 16 bits land in.
    let mut sum: u64 = parts.iter().map(|part| sum(part)).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::from_be(sum as u16)
}

/// Writes the TCP checksum of a packet without extension headers, whose checksum field is zero.
pub(crate) fn fill_tcp_checksum(packet: &mut [u8]) {
    let Ok(parsed) = Packet::parse(packet, false) else {
        return;
    };
    let sum = transport_checksum(parsed.source, parsed.destination, PROTOCOL_TCP, parsed.payload);
    let at = packet.len() - parsed.payload.len() + 16;
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Computes the checksum of a transport payload with its pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).
///
/// # Panics
/// If the addresses are of two families.
pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let len = (payload.len() as u32).to_be_bytes();
    let tail = [0, 0, 0, protocol];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            checksum(&[&source.octets(), &destination.octets(), &len, &tail, payload])
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            checksum(&[&source.octets(), &destination.octets(), &len, &tail, payload])
        }
        _ => unreachable!("a packet has one address family"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum as RFC 1071, section 1 describes it, 16 bits at a time.
    fn plainly(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let sum = words.fold(0u32, |sum, word| (sum + word) % 0xffff);
        // Zero has two forms; a sum of anything but zeros is the one with all bits set.
        let sum = if sum == 0 && bytes.iter().any(|byte| *byte != 0) { 0xffff } else { sum };
        !(sum as u16)
    }

    #[test]
    fn every_length_and_every_split_gives_the_plain_sum() {
        let bytes: Vec<u8> = (0..1_000u32).map(|n| ((n * n) >> 3) as u8 ^ 0xa5).collect();
        for len in (0..300).chain([999, 1_000]) {
            assert_eq!(checksum(&[&bytes[..len]]), plainly(&bytes[..len]), "{len} bytes");
            for at in (0..len.min(80)).step_by(2) {
                assert_eq!(
                    checksum(&[&bytes[..at], &bytes[at..len]]),
                    plainly(&bytes[..len]),
                    "{len} bytes cut at {at}"
                );
            }
        }
        assert_eq!(checksum(&[&[0xff; 65_535]]), plainly(&[0xff; 65_535]));
        assert_eq!(checksum(&[&[0; 64]]), 0xffff);
    }
}
