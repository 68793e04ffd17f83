//! What a message of a lane may hold.
//!
//! A stream message is one or more whole IP packets, which say their own lengths. A datagram message is
//! one IP packet. Either may be a probe instead: a first byte below 0x10 is no IP version.

use crate::lanes::Lane;

/// Largest message of a stream lane, in bytes: what every WebRTC implementation takes.
pub const MESSAGE_LEN_MAX: usize = 65_535;
const PING: u8 = 1;
const PONG: u8 = 2;
const MARK: u8 = 3;
/// With the number of a lane in the lowest bits.
const REACHED: u8 = 8;

/// A message is no legal frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A message of the link itself, which finds out whether, how fast, and how far bytes reach the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Wants a pong with the same number.
    Ping(u64),
    /// Answers a ping.
    Pong(u64),
    /// Stands in a stream lane behind so many bytes, and wants to know when it has arrived.
    Mark(u64),
    /// Answers a mark of that lane.
    Reached(Lane, u64),
}

impl Probe {
    /// Writes the probe as a message.
    pub fn emit(self) -> [u8; 9] {
        let (kind, number) = match self {
            Probe::Ping(number) => (PING, number),
            Probe::Pong(number) => (PONG, number),
            Probe::Mark(number) => (MARK, number),
            Probe::Reached(lane, number) => (REACHED | lane.index() as u8, number),
        };
        let mut message = [kind; 9];
        message[1..].copy_from_slice(&number.to_be_bytes());
        message
    }

    /// Returns whether a message is none of packets.
    pub fn is_one(message: &[u8]) -> bool {
        message.first().is_some_and(|first| *first < 0x10)
    }

    /// Reads a probe; `None` if the message is something else.
    pub fn parse(message: &[u8]) -> Option<Probe> {
        let (kind, number) = message.split_first()?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        match *kind {
            PING => Some(Probe::Ping(number)),
            PONG => Some(Probe::Pong(number)),
            MARK => Some(Probe::Mark(number)),
            _ => {
                let lane = Lane::ALL.into_iter().find(|lane| *kind == REACHED | lane.index() as u8)?;
                Some(Probe::Reached(lane, number))
            }
        }
    }
}

/// Returns the length of the IP packet at the start of `bytes`, from its header.
fn packet_len(bytes: &[u8]) -> Result<usize, Malformed> {
    let be16 = |at: usize| bytes.get(at..at + 2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    let (len, header_len) = match bytes.first().map(|first| first >> 4) {
        Some(4) => (be16(2).ok_or(Malformed)?, 20),
        Some(6) => (be16(4).ok_or(Malformed)? + 40, 40),
        _ => return Err(Malformed),
    };
    if len < header_len || len > bytes.len() { Err(Malformed) } else { Ok(len) }
}

/// Walks the IP packets of a message. After an error nothing follows.
pub fn packets(message: &[u8]) -> impl Iterator<Item = Result<&[u8], Malformed>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match packet_len(rest) {
            Ok(len) => {
                let (packet, after) = rest.split_at(len);
                rest = after;
                Some(Ok(packet))
            }
            Err(malformed) => {
                rest = &[];
                Some(Err(malformed))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(len: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend_from_slice(&len.to_be_bytes());
        packet.resize(usize::from(len), 7);
        packet
    }

    #[test]
    fn a_message_splits_into_its_packets() {
        let message = [packet(20), packet(60), packet(1_500)].concat();
        let lens: Vec<usize> = packets(&message).map(|packet| packet.unwrap().len()).collect();
        assert_eq!(lens, [20, 60, 1_500]);
    }

    #[test]
    fn a_cut_or_foreign_message_is_malformed_and_ends() {
        let message = [packet(20), packet(60)[..59].to_vec()].concat();
        assert_eq!(packets(&message).collect::<Vec<_>>().len(), 2);
        assert_eq!(packets(&message).last(), Some(Err(Malformed)));
        assert_eq!(packets(&[0x45, 0, 0, 0, 1]).next(), Some(Err(Malformed)));
        assert_eq!(packets(&[0x15]).next(), Some(Err(Malformed)));
    }

    #[test]
    fn probes_read_back() {
        let reached = Lane::ALL.map(|lane| Probe::Reached(lane, 1 << 40));
        for probe in [Probe::Ping(7), Probe::Pong(u64::MAX), Probe::Mark(0)].into_iter().chain(reached) {
            assert!(Probe::is_one(&probe.emit()));
            assert_eq!(Probe::parse(&probe.emit()), Some(probe));
        }
        assert_eq!(Probe::parse(&packet(20)), None);
    }
}
