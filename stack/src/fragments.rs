//! Reassembly of datagrams, bounded in count, bytes, pieces and age (threat T5).

use std::collections::HashMap;
use std::net::IpAddr;

use crate::limits;
use crate::packet::{DropReason, Packet};
use crate::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

struct Datagram {
    /// Where each begins, in order, and its bytes.
    pieces: Vec<(usize, Vec<u8>)>,
    bytes: usize,
    total_len: Option<usize>,
    expires_at: Instant,
}

/// The incomplete datagrams of a stack.
#[derive(Default)]
pub(crate) struct Reassembly {
    datagrams: HashMap<Key, Datagram>,
    bytes: usize,
    /// Datagrams that made room for others and are not counted yet.
    crowded_out: usize,
}

/// Whether pieces of different datagrams make one, and nobody looks at its sum: a planted bug.
pub(crate) fn mixes() -> bool {
    planted!(FragmentIdIgnored)
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
        let key = if mixes() { Key { id: 0, ..key } } else { key };
        let known = self.datagrams.get(&key).and_then(|datagram| datagram.pieces.get(datagram.place(fragment.offset)));
        if known.is_some_and(|(at, known)| *at == fragment.offset && known == data) {
            return Ok(None);
        }
        self.make_room(key, data.len())?;
        let datagram = self.datagrams.entry(key).or_insert_with(|| Datagram {
            pieces: Vec::new(),
            bytes: 0,
            total_len: None,
            expires_at: now + limits::REASSEMBLY_TIMEOUT,
        });
        if !datagram.accepts(fragment.offset, data.len(), fragment.more) {
            self.forget(&key);
            return Err(DropReason::Reassembly);
        }
        datagram.pieces.insert(datagram.place(fragment.offset), (fragment.offset, data.to_vec()));
        datagram.bytes += data.len();
        self.bytes += data.len();
        if datagram.total_len != Some(datagram.bytes) {
            return Ok(None);
        }
        let whole = datagram.pieces.iter().flat_map(|(_, data)| data).copied().collect();
        self.forget(&key);
        Ok(Some(whole))
    }

    /// Ends the oldest others until a piece fits, those of its own source where that has too much: a datagram that has
    /// lost a piece waits in vain, and must not keep out those that follow.
    fn make_room(&mut self, key: Key, piece_len: usize) -> Result<(), DropReason> {
        loop {
            let new = usize::from(!self.datagrams.contains_key(&key));
            let of_source = self.datagrams.keys().filter(|known| known.source == key.source);
            let source_is_full = of_source.count() + new > limits::REASSEMBLY_LEN_PEER_MAX;
            if !source_is_full
                && self.datagrams.len() + new <= limits::REASSEMBLY_LEN_MAX
                && self.bytes + piece_len <= limits::REASSEMBLY_BYTES_MAX
            {
                return Ok(());
            }
            let others = self.datagrams.iter().filter(|(known, _)| **known != key);
            let choice = others.filter(|(known, _)| !source_is_full || known.source == key.source);
            let oldest = choice.map(|(known, datagram)| (datagram.expires_at, *known)).min();
            self.forget(&oldest.ok_or(DropReason::Reassembly)?.1);
            self.crowded_out += 1;
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(datagram) = self.datagrams.remove(key) {
            self.bytes -= datagram.bytes;
        }
    }

    /// Drops what has waited too long, and returns how many datagrams that were, with those that made room for others.
    pub(crate) fn expire(&mut self, now: Instant) -> usize {
        let old: Vec<Key> = self.datagrams.iter().filter(|(_, d)| d.expires_at <= now).map(|(k, _)| *k).collect();
        for key in &old {
            self.forget(key);
        }
        old.len() + std::mem::take(&mut self.crowded_out)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.datagrams.values().map(|datagram| datagram.expires_at).min()
    }
}

impl Datagram {
    /// Returns the place among the pieces of one that begins at `offset`.
    fn place(&self, offset: usize) -> usize {
        self.pieces.partition_point(|(at, _)| *at < offset)
    }

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
        let (before, after) = self.pieces.split_at(self.place(offset));
        before.last().is_none_or(|(at, data)| at + data.len() <= offset)
            && after.first().is_none_or(|(at, _)| *at >= end)
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
    fn holes_that_never_end_are_bounded_and_make_room_for_what_follows() {
        let mut reassembly = Reassembly::default();
        let hole = |reassembly: &mut Reassembly, source: u32, id| {
            let source = format!("10.0.1.{source}");
            assert_eq!(add(reassembly, &pieces_of(&source, id, 9_000)[1]), Ok(None));
        };
        hole(&mut reassembly, 1, 0);
        for id in 0..1_000 {
            hole(&mut reassembly, 0, id);
        }
        // A source crowds out its own first.
        assert_eq!(reassembly.datagrams.len(), limits::REASSEMBLY_LEN_PEER_MAX + 1);
        assert_eq!(reassembly.expire(Instant::ZERO), 1_000 - limits::REASSEMBLY_LEN_PEER_MAX);
        for (source, id) in (1..100).flat_map(|source| (1..17).map(move |id| (source, id))) {
            hole(&mut reassembly, source, id);
        }
        assert_eq!(reassembly.datagrams.len(), limits::REASSEMBLY_LEN_MAX);
        let whole = pieces_of("10.0.2.1", 1, 9_000);
        assert!(whole.iter().filter_map(|piece| add(&mut reassembly, piece).unwrap()).count() == 1, "there is room");
        let crowded_out = 1 + 99 * 16 + 16 + 1 - limits::REASSEMBLY_LEN_MAX;
        let kept = reassembly.datagrams.len();
        assert_eq!(reassembly.expire(Instant::ZERO + limits::REASSEMBLY_TIMEOUT), crowded_out + kept);
        assert_eq!((reassembly.bytes, reassembly.poll_timeout()), (0, None));
    }

    #[test]
    fn waiting_bytes_are_bounded() {
        let mut reassembly = Reassembly::default();
        for source in (0..32).map(|source| format!("10.0.1.{source}")) {
            for id in 0..limits::REASSEMBLY_LEN_PEER_MAX as u32 {
                for piece in &pieces_of(&source, id, 60_000)[1..] {
                    assert_eq!(add(&mut reassembly, piece), Ok(None));
                    assert!(reassembly.bytes <= limits::REASSEMBLY_BYTES_MAX);
                }
            }
        }
        assert!(reassembly.bytes + 60_000 > limits::REASSEMBLY_BYTES_MAX, "the bound was reached");
        let held: usize = reassembly.datagrams.values().map(|known| known.bytes).sum();
        assert_eq!(reassembly.bytes, held);
    }

    #[test]
    fn a_datagram_has_no_more_pieces_than_it_may() {
        let (mut reassembly, payload) = (Reassembly::default(), vec![0; 8 * limits::FRAGMENTS_MAX + 16]);
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        // Pieces of eight bytes, the shortest that there may be.
        let pieces = Header::new(a, b, 17).packets(&payload, 28, 1);
        for piece in &pieces[..limits::FRAGMENTS_MAX] {
            assert_eq!(add(&mut reassembly, piece), Ok(None));
        }
        assert_eq!(add(&mut reassembly, &pieces[limits::FRAGMENTS_MAX]), Err(DropReason::Reassembly));
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
