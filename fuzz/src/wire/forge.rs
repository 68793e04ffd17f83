//! What somebody makes up who sees where packets go, but not their numbers (RFC 5961, RFC 5927).
//!
//! All of it has right checksums, and must change no stream: not a byte, not its end.

use crate::headers::{self, ACK, FIN, RST, SYN, Segment};
use crate::script::Script;

/// Far outside of any window: what a stack of ours expects differs less from what was sent last.
const FAR: u32 = 1 << 30;

/// Makes a packet that nearly fits the connection of a genuine one, or nothing if that is no TCP segment.
pub(super) fn forge(script: &mut Script<'_>, genuine: &[u8]) -> Option<Vec<u8>> {
    let kind = script.u8() % 8;
    if kind == 7 {
        return too_big(script, genuine);
    }
    let seen = headers::seen(genuine)?;
    let payload = vec![0xaa; usize::from(script.u8())];
    let near = script.pick(&[0, 1, 100, 5_000]);
    let (sequence, acknowledgement, flags) = match kind {
        // In the window, but acknowledging what was never sent, or long ago (RFC 5961, section 5.2).
        0 => (seen.end.wrapping_add(near), seen.acknowledgement.wrapping_add(FAR), ACK),
        1 => (seen.end.wrapping_add(near), seen.acknowledgement.wrapping_sub(FAR), ACK | FIN),
        // In the window, without an acknowledgement (RFC 9293, section 3.10.7.4).
        2 => (seen.end.wrapping_add(near), 0, 0),
        3 => (seen.end.wrapping_add(near), 0, FIN),
        // Acknowledging rightly, but outside of the window.
        4 => (seen.end.wrapping_add(FAR), seen.acknowledgement, ACK | FIN),
        // Resets and SYNs that do not know the number (RFC 5961, sections 3.2 and 4.2).
        5 => (seen.end.wrapping_add(FAR), seen.acknowledgement, RST | ACK),
        _ => (seen.end.wrapping_add(FAR + near), 0, SYN),
    };
    let payload = if flags & (SYN | RST) == 0 { &payload[..] } else { &[] };
    let segment = Segment { sequence, acknowledgement, flags, window: 1_000, options: &[], payload };
    Some(headers::tcp(seen.source, seen.destination, segment))
}

/// An error that says that a packet was too long, which quotes one of the receiver's... or, made of a packet to the
/// receiver, one that it never sent.
fn too_big(script: &mut Script<'_>, genuine: &[u8]) -> Option<Vec<u8>> {
    let seen = headers::seen(genuine)?;
    let (from, to) = (seen.source.ip(), seen.destination.ip());
    let mtu = script.u16().to_be_bytes();
    let quoted = Segment {
        sequence: seen.acknowledgement.wrapping_add(FAR),
        acknowledgement: 0,
        flags: ACK,
        window: 0,
        options: &[],
        payload: &[],
    };
    let quoted = headers::tcp(seen.destination, seen.source, quoted);
    let (kind, code) = if from.is_ipv4() { (3, 4) } else { (2, 0) };
    Some(headers::icmp(from, to, kind, code, &[&[0, 0][..], &mtu, &quoted].concat()))
}
