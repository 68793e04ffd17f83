//! Reassembly of datagrams, bounded in count, bytes, pieces and age (threat T5).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::limits;
use crate::packet::{DropReason, Packet};
use crate::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

struct Datagram {
    pieces: BTreeMap<usize, Vec<u8>>,
    bytes: usize,
    total_len: Option<usize>,
    expires_at: Instant,
}

/// The incomplete datagrams of a stack.
#[derive(Default)]
pub(crate) struct Reassembly {
    datagrams: HashMap<Key, Datagram>,
    bytes: usize,
}

impl Reassembly {
    /// Adds a fragment; returns the whole payload once nothing is missing.
    ///
    /// Overlapping fragments end the datagram, in IPv4 as RFC 8200, section 4.5 wants for IPv6; an exact duplicate,
    /// which a network may make, is ignored as it allows and as Linux does.
    pub(crate) fn add(&mut self, now: Instant, packet: &Packet<'_>) -> Result<Option<Vec<u8>>, DropReason> {
        let fragment = packet.fragment.ok_or(DropReason::Malformed)?;
        let data = packet.payload;
        let end = fragment.offset + data.len();
        if data.is_empty() || end > limits::PACKET_LEN_MAX || (fragment.more && !data.len().is_multiple_of(8)) {
            return Err(DropReason::Malformed);
        }
        let key =
            Key { source: packet.source, destination: packet.destination, protocol: packet.protocol, id: fragment.id };
        let key = if planted!(FragmentIdIgnored) { Key { id: 0, ..key } } else { key };
        let known = self.datagrams.get(&key).and_then(|datagram| datagram.pieces.get(&fragment.offset));
        if known.is_some_and(|known| known == data) {
            return Ok(None);
        }
        if !self.datagrams.contains_key(&key) && self.datagrams.len() >= limits::REASSEMBLY_LEN_MAX {
            return Err(DropReason::Reassembly);
        }
        let of_source = self.datagrams.iter().filter(|(known, _)| known.source == key.source);
        let (len, bytes) = of_source.fold((0, 0), |(len, bytes), (_, datagram)| (len + 1, bytes + datagram.bytes));
        let one_more = usize::from(!self.datagrams.contains_key(&key));
        if self.bytes + data.len() > limits::REASSEMBLY_BYTES_MAX
            || bytes + data.len() > limits::REASSEMBLY_BYTES_PEER_MAX
            || len + one_more > limits::REASSEMBLY_LEN_PEER_MAX
        {
            return Err(DropReason::Reassembly);
        }
        let datagram = self.datagrams.entry(key).or_insert_with(|| Datagram {
            pieces: BTreeMap::new(),
            bytes: 0,
            total_len: None,
            expires_at: now + limits::REASSEMBLY_TIMEOUT,
        });
        if !datagram.accepts(fragment.offset, data.len(), fragment.more) {
            self.forget(&key);
            return Err(DropReason::Reassembly);
        }
        datagram.pieces.insert(fragment.offset, data.to_vec());
        datagram.bytes += data.len();
        self.bytes += data.len();
        if datagram.total_len != Some(datagram.bytes) {
            return Ok(None);
        }
        let whole = datagram.pieces.values().flatten().copied().collect();
        self.forget(&key);
        Ok(Some(whole))
    }

    fn forget(&mut self, key: &Key) {
        if let Some(datagram) = self.datagrams.remove(key) {
            self.bytes -= datagram.bytes;
        }
    }

    /// Drops what has waited too long and returns how many datagrams that were.
    pub(crate) fn expire(&mut self, now: Instant) -> usize {
        let old: Vec<Key> = self.datagrams.iter().filter(|(_, d)| d.expires_at <= now).map(|(k, _)| *k).collect();
        for key in &old {
            self.forget(key);
        }
        old.len()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.datagrams.values().map(|datagram| datagram.expires_at).min()
    }
}

impl Datagram {
    fn accepts(&mut self, offset: usize, len: usize, more: bool) -> bool {
        let end = offset + len;
        if self.pieces.len() >= limits::FRAGMENTS_MAX {
            return false;
        }
        if !more {
            if self.total_len.is_some_and(|total| total != end) {
                return false;
            }
            self.total_len = Some(end);
        }
        if self.total_len.is_some_and(|total| end > total) {
            return false;
        }
        let before = self.pieces.range(..=offset).next_back().is_none_or(|(at, data)| at + data.len() <= offset);
        let after = self.pieces.range(offset..).next().is_none_or(|(at, _)| *at >= end);
        before && after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Header;

    fn pieces(id: u32, len: usize) -> Vec<Vec<u8>> {
        pieces_of("10.0.0.1", id, len)
    }

    fn pieces_of(source: &str, id: u32, len: usize) -> Vec<Vec<u8>> {
        let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let (a, b) = (source.parse().unwrap(), "10.0.0.2".parse().unwrap());
        Header::new(a, b, 17).packets(&payload, 1_280, id)
    }

    fn add(reassembly: &mut Reassembly, bytes: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        reassembly.add(Instant::ZERO, &Packet::parse(bytes, true).unwrap())
    }

    #[test]
    fn fragments_in_reverse_order_become_whole() {
        let mut reassembly = Reassembly::default();
        let pieces = pieces(1, 9_000);
        for piece in pieces.iter().skip(1).rev() {
            assert_eq!(add(&mut reassembly, piece), Ok(None));
        }
        let whole = add(&mut reassembly, &pieces[0]).unwrap().unwrap();
        assert_eq!(whole.len(), 9_000);
        assert!(whole.iter().enumerate().all(|(n, byte)| *byte == n as u8));
        assert_eq!(reassembly.bytes, 0);
    }

    #[test]
    fn holes_that_never_end_are_bounded_and_expire() {
        let mut reassembly = Reassembly::default();
        let mut hole = |source: u32, id| {
            let source = format!("10.0.1.{source}");
            add(&mut reassembly, &pieces_of(&source, id, 9_000)[1]).is_ok()
        };
        let of_one = (0..1_000).filter(|id| hole(0, *id)).count();
        assert_eq!(of_one, limits::REASSEMBLY_LEN_PEER_MAX);
        assert!(hole(1, 0), "another source still has room");
        let kept = of_one
            + 1
            + (1..100).flat_map(|source| (1..17).map(move |id| (source, id))).filter(|(s, i)| hole(*s, *i)).count();
        assert_eq!(kept, limits::REASSEMBLY_LEN_MAX);
        assert_eq!(reassembly.expire(Instant::ZERO + limits::REASSEMBLY_TIMEOUT), kept);
        assert_eq!(reassembly.bytes, 0);
    }

    #[test]
    fn an_overlap_ends_the_datagram() {
        let mut reassembly = Reassembly::default();
        let first = &pieces(1, 9_000)[0];
        assert_eq!(add(&mut reassembly, first), Ok(None));
        let mut other = first.clone();
        *other.last_mut().unwrap() ^= 1;
        assert_eq!(add(&mut reassembly, &other), Err(DropReason::Reassembly));
        assert_eq!(reassembly.bytes, 0);
    }

    /// A wire that duplicated one packet of many lost the whole datagram.
    #[test]
    fn a_piece_that_comes_twice_is_taken_once() {
        let mut reassembly = Reassembly::default();
        let pieces = pieces(1, 9_000);
        let (last, rest) = pieces.split_last().unwrap();
        for piece in rest.iter().chain(rest) {
            assert_eq!(add(&mut reassembly, piece), Ok(None));
        }
        assert_eq!(add(&mut reassembly, last).unwrap().unwrap().len(), 9_000);
        assert_eq!(reassembly.bytes, 0);
    }
}
