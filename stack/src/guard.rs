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
            payload_len: 0,
        };
        judge(Expected { state, receive_next: Some(u32::MAX - 10), window: 100 }, &segment)
    }

    #[test]
    fn only_a_reset_with_the_expected_number_ends_a_connection() {
        for state in [State::SynReceived, State::Established, State::FinWait2, State::TimeWait] {
            assert_eq!(verdict(state, u32::MAX - 10, "R"), Verdict::Pass);
            assert_eq!(verdict(state, u32::MAX - 9, "R"), Verdict::Challenge);
            assert_eq!(verdict(state, 88, "R"), Verdict::Challenge);
            assert_eq!(verdict(state, 89, "R"), Verdict::Drop);
            assert_eq!(verdict(state, u32::MAX - 11, "R"), Verdict::Drop);
        }
        assert_eq!(verdict(State::SynSent, 0, "R"), Verdict::Pass);
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
