//! What receivers have allowed, and whether senders keep to it (RFC 9293, 3.8.6; RFC 7323, 2.2 and 2.3).
//!
//! It reads the packets of both sides as they leave: all that a sender can know of the other's window was sent before.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::headers::{self, ACK, RST, SYN, Seen};

/// What one end of a connection has said.
#[derive(Debug, Default, Clone, Copy)]
struct Said {
    /// The shift count of its SYN, if it had one.
    scale: Option<u8>,
    /// The sequence number after the furthest byte that it has ever allowed.
    edge: Option<u32>,
    /// The sequence number after the furthest byte that it has sent.
    next: Option<u32>,
}

/// All connections of a pair of stacks.
#[derive(Default)]
pub(crate) struct Windows {
    /// By who speaks and to whom.
    said: HashMap<(SocketAddr, SocketAddr), Said>,
    /// Segments of data that were held against a window with a scale.
    scaled: u64,
}

impl Windows {
    /// Notes a packet that a stack has sent.
    ///
    /// # Panics
    /// If it carries bytes that its receiver has not allowed.
    pub(crate) fn sent(&mut self, packet: &[u8]) {
        let (Some(seen), Some(flags)) = (headers::seen(packet), headers::flags(packet)) else {
            return;
        };
        if flags & RST != 0 {
            return;
        }
        let (own, other) = ((seen.source, seen.destination), (seen.destination, seen.source));
        let peer = self.said.get(&other).copied().unwrap_or_default();
        if flags & SYN != 0 {
            let edge = (flags & ACK != 0).then(|| seen.acknowledgement.wrapping_add(u32::from(seen.window)));
            self.said.insert(own, Said { scale: headers::window_scale(packet), edge, next: None });
            return;
        }
        let Some(said) = self.said.get_mut(&own) else {
            return;
        };
        let shift = said.scale.zip(peer.scale).map_or(0, |(own, _)| own);
        assert!(shift <= 14, "a window is shifted by no more than 14 (RFC 7323, 2.3)");
        let edge = seen.acknowledgement.wrapping_add(u32::from(seen.window) << shift);
        if said.edge.is_none_or(|known| before(known, edge)) {
            said.edge = Some(edge);
        }
        let repeats = said.next.is_some_and(|next| before(seen.sequence, next));
        if said.next.is_none_or(|next| before(next, seen.end)) {
            said.next = Some(seen.end);
        }
        // What is repeated is whole segments, also where a shorter one was sent that filled the window.
        if !repeats {
            self.judge(&seen, flags, peer);
        }
    }

    fn judge(&mut self, seen: &Seen, flags: u8, peer: Said) {
        let payload = seen.end.wrapping_sub(seen.sequence).wrapping_sub(u32::from(flags & headers::FIN));
        // A probe of a closed window is one byte long and lies behind it (RFC 9293, 3.8.6.1).
        let Some(edge) = peer.edge.filter(|_| payload > 1) else {
            return;
        };
        let last = seen.sequence.wrapping_add(payload);
        assert!(!before(edge, last), "{} bytes beyond the window: {seen:?}, {peer:?}", last.wrapping_sub(edge));
        self.scaled += u64::from(peer.scale.is_some_and(|scale| scale > 0));
    }

    /// Returns how many segments of data were held against a window with a scale.
    #[cfg(test)]
    pub(crate) fn scaled(&self) -> u64 {
        self.scaled
    }
}

/// Whether a sequence number lies before another one.
fn before(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::{FIN, Segment, tcp};

    fn segment(from: &str, to: &str, numbers: (u32, u32), window: u16, flags: u8, rest: (&[u8], usize)) -> Vec<u8> {
        let (sequence, acknowledgement) = numbers;
        let payload = vec![7; rest.1];
        let segment = Segment { sequence, acknowledgement, flags, window, options: rest.0, payload: &payload };
        tcp(from.parse().unwrap(), to.parse().unwrap(), segment)
    }

    /// A client and a server whose SYNs offer these shift counts; the server has allowed `window` as written.
    fn dialled(shifts: (&[u8], &[u8]), window: u16) -> Windows {
        let (mut windows, client, server) = (Windows::default(), "10.80.0.1:9", "10.80.0.2:80");
        windows.sent(&segment(client, server, (99, 0), 1_000, SYN, (shifts.0, 0)));
        windows.sent(&segment(server, client, (499, 100), 1_000, SYN | ACK, (shifts.1, 0)));
        windows.sent(&segment(client, server, (100, 500), 1_000, ACK, (&[], 0)));
        windows.sent(&segment(server, client, (500, 100), window, ACK, (&[], 0)));
        windows
    }

    #[test]
    fn a_window_is_what_its_receiver_has_written_and_scaled() {
        let data = |len, flags| segment("10.80.0.1:9", "10.80.0.2:80", (100, 500), 9, ACK | flags, (&[], len));
        let (offer, none): (&[u8], &[u8]) = (&[1, 3, 3, 3], &[]);
        // Shifted only where both have offered it, and never in a SYN.
        dialled((offer, offer), 1_000).sent(&data(8_000, FIN));
        dialled((offer, none), 2_000).sent(&data(2_000, 0));
        dialled((none, offer), 2_000).sent(&data(2_000, 0));
        dialled((offer, offer), 0).sent(&data(1_000, 0));
        for (shifts, window, len) in
            [((offer, offer), 1_000, 8_001), ((none, offer), 2_000, 2_001), ((offer, offer), 0, 1_001)]
        {
            let beyond = || dialled(shifts, window).sent(&data(len, 0));
            assert!(std::panic::catch_unwind(beyond).is_err(), "{len} bytes are beyond {window}");
        }
    }
}
