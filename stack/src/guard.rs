//! What a segment must show before the engine sees it (RFC 5961): a guess must not end a connection, nor may
//! anything follow its end.

use crate::packet::Segment;
use crate::tcp::State;

/// What becomes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The engine takes it in.
    Pass,
    /// It is ignored.
    Drop,
    /// It is ignored, and the peer is told what is expected: a real peer answers with the right number.
    Challenge,
}

/// What a connection expects next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) state: State,
    /// RCV.NXT, once it is known.
    pub(crate) receive_next: Option<u32>,
    /// Bytes that may still be received.
    pub(crate) window: usize,
}

/// Judges a segment of a known connection.
pub(crate) fn judge(expected: Expected, segment: &Segment) -> Verdict {
    let Some(receive_next) = expected.receive_next else {
        return Verdict::Pass;
    };
    match expected.state {
        // Here a reset is checked by what it acknowledges (RFC 9293, section 3.10.7.3).
        State::Closed | State::Listen | State::SynSent => return Verdict::Pass,
        // A repeated SYN of the handshake itself: the engine's timer repeats the answer.
        State::SynReceived if segment.syn => return Verdict::Pass,
        _ => {}
    }
    if segment.rst {
        // Both directions are over: a peer that has forgotten the connection resets a second answer to its FIN, and
        // that must not end the wait (RFC 1337, section 3, fix F1).
        if expected.state == State::TimeWait {
            return Verdict::Drop;
        }
        // RFC 5961, section 3.2.
        let ahead = segment.sequence.wrapping_sub(receive_next);
        return match ahead {
            0 => Verdict::Pass,
            _ if (ahead as usize) < expected.window => Verdict::Challenge,
            _ => Verdict::Drop,
        };
    }
    // RFC 5961, section 4.2: whatever its number.
    if segment.syn {
        return Verdict::Challenge;
    }
    // RFC 9293, section 3.10.7.4: there is nothing to read after the peer's FIN, whose number is the last.
    let payload_end = segment.sequence.wrapping_add(segment.payload_len as u32);
    let after_fin = segment.payload_len > 0 && payload_end.wrapping_sub(receive_next) as i32 >= 0;
    if expected.state.has_heard_fin() && after_fin { Verdict::Challenge } else { Verdict::Pass }
}

/// How old an acknowledgement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// The engine knows what to do with it.
    Fresh,
    /// It is older than the newest, which is given, but its segment carries more than that. Only the ACK is to be
    /// ignored (RFC 9293, section 3.10.7.4); the engine would throw the segment away.
    Late(u32),
    /// Nothing that old is on its way any more (RFC 5961, section 5.2).
    Old,
}

/// What a peer may always let be in flight, in bytes: a window that is not scaled.
const WINDOW_MIN: u32 = 65_535;

/// What the peer has acknowledged.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Acknowledged {
    /// The newest number (SND.UNA), once both ends know each other's.
    newest: Option<u32>,
    /// The most bytes that were seen in flight.
    flight_max: u32,
}

impl Acknowledged {
    /// Notes a segment whose acknowledgement the engine has accepted as a new one.
    pub(crate) fn note(&mut self, segment: &Segment, send_next: u32) {
        if segment.ack && !segment.rst {
            let flight = send_next.wrapping_sub(self.newest.unwrap_or(send_next));
            *self = Self { newest: Some(segment.acknowledgement), flight_max: self.flight_max.max(flight) };
        }
    }

    /// Returns the newest number that the peer has acknowledged, once it is known.
    pub(crate) fn newest(&self) -> Option<u32> {
        self.newest
    }

    /// Compares a segment of an open connection with the newest acknowledgement.
    pub(crate) fn age(&self, segment: &Segment) -> Age {
        let Some(newest) = self.newest.filter(|_| segment.ack && !segment.syn && !segment.rst) else {
            return Age::Fresh;
        };
        match newest.wrapping_sub(segment.acknowledgement) {
            0 | 0x8000_0000.. => Age::Fresh,
            age if age > self.flight_max.max(WINDOW_MIN) => Age::Old,
            _ if segment.payload_len > 0 || segment.fin => Age::Late(newest),
            _ => Age::Fresh,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(state: State, sequence: u32, flags: &str) -> Verdict {
        let segment = Segment {
            sequence,
            acknowledgement: 0,
            syn: flags.contains('S'),
            fin: false,
            rst: flags.contains('R'),
            ack: true,
            ..Segment::default()
        };
        judge(Expected { state, receive_next: Some(u32::MAX - 10), window: 100 }, &segment)
    }

    #[test]
    fn only_a_reset_with_the_expected_number_ends_a_connection() {
        for state in [State::SynReceived, State::Established, State::FinWait2, State::LastAck] {
            assert_eq!(verdict(state, u32::MAX - 10, "R"), Verdict::Pass);
            assert_eq!(verdict(state, u32::MAX - 9, "R"), Verdict::Challenge);
            assert_eq!(verdict(state, 88, "R"), Verdict::Challenge);
            assert_eq!(verdict(state, 89, "R"), Verdict::Drop);
            assert_eq!(verdict(state, u32::MAX - 11, "R"), Verdict::Drop);
        }
        assert_eq!(verdict(State::SynSent, 0, "R"), Verdict::Pass);
        assert_eq!(verdict(State::TimeWait, u32::MAX - 10, "R"), Verdict::Drop);
    }

    #[test]
    fn an_acknowledgement_ages_by_what_can_be_in_flight() {
        let segment = |acknowledgement, payload_len| Segment {
            sequence: 0,
            acknowledgement,
            syn: false,
            fin: false,
            rst: false,
            ack: true,
            window: 0,
            payload_len,
        };
        let mut acknowledged = Acknowledged::default();
        assert_eq!(acknowledged.age(&segment(5, 1)), Age::Fresh);
        acknowledged.note(&segment(1_000, 0), 1_000);
        acknowledged.note(&segment(101_000, 0), 101_000);
        for (age, is) in [(0, Age::Fresh), (1, Age::Late(101_000)), (100_000, Age::Late(101_000)), (100_001, Age::Old)]
        {
            assert_eq!(acknowledged.age(&segment(101_000u32.wrapping_sub(age), 1)), is, "{age}");
        }
        assert_eq!(acknowledged.age(&segment(101_000 + (1 << 31) - 1, 1)), Age::Fresh, "not sent yet");
        assert_eq!(acknowledged.age(&segment(100_000, 0)), Age::Fresh, "a bare one is the engine's to ignore");
        assert_eq!(acknowledged.age(&Segment { rst: true, ..segment(100_000, 1) }), Age::Fresh);
    }

    #[test]
    fn a_syn_in_a_connection_is_answered_whatever_its_number() {
        for sequence in [0, u32::MAX - 10, 50, 1 << 31] {
            assert_eq!(verdict(State::Established, sequence, "S"), Verdict::Challenge);
            assert_eq!(verdict(State::SynReceived, sequence, "S"), Verdict::Pass);
        }
        assert_eq!(verdict(State::Established, 1 << 31, ""), Verdict::Pass);
    }
}
