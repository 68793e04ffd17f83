//! A socket that repeats the handshakes of DTLS and SCTP while a link is being made.
//!
//! The library's DTLS stops its retransmission timer at every message of the peer, also at one that it has had before,
//! and starts it for its next flight only. If a server's certificate or a client's answer to it is lost, and the peer's
//! repetition comes before the own timer is due, which is as likely as not, that flight is never sent again: the peer
//! ends the transport after seven repetitions, and this end waits until it has no path. SCTP doubles a pause of a second
//! instead. So the last datagrams are repeated here, as they are: DTLS takes in each once only (RFC 6347, section
//! 4.1.2.6), and a copy of what has come stops no timer.
//!
//! Not everybody's DTLS is so, and werift's is not: at a copy of what it has answered it begins with new keys, or with
//! SCTP anew. So each datagram is repeated only until there is a sign that it has arrived, and a server's flight, which a
//! busy client takes long to answer, when the client asks for it.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use webrtc::runtime::{AsyncUdpSocket, RecvMeta, Transmit};

use crate::sockets::Activity;

/// Datagrams that are repeated: a flight takes two at most, and once it is sent the one before has arrived.
const KEPT_MAX: usize = 4;
/// How long after it was sent a datagram is repeated first, in microseconds; each pause after that is twice as long.
const REPEAT_US: u64 = 100_000;
/// The same for a server's flight, which a client may take long to answer, and some begin with new keys at a copy of it:
/// one that lacks it asks by repeating its hello. This is what RFC 6347, section 4.2.4.1 recommends.
const REPEAT_SERVERS_US: u64 = 1_000_000;
/// A pause that does not end.
const NEVER_US: u64 = u64::MAX;
/// A hello that comes sooner after the answer to it is a copy that the wire has made; after each answer it is twice as long.
const ASKED_US: u64 = REPEAT_US / 2;
/// How often a datagram is repeated: the last time after 6.3 s.
const REPEATS_MAX: u32 = 6;

/// Returns what a datagram carries to or from a relay, as channel data or in a Send or Data indication (RFC 8656, sections
/// 12.4, 10.1 and 10.4); any other one as it is.
fn carried(datagram: &[u8]) -> &[u8] {
    match datagram {
        [0x40..=0x4f, _, _, _, carried @ ..] => carried,
        [0x00, 0x16 | 0x17, ..] => {
            let mut attributes = datagram.get(20..).unwrap_or_default();
            while let [kind_high, kind, high, low, rest @ ..] = attributes {
                let len = usize::from(u16::from_be_bytes([*high, *low]));
                if (*kind_high, *kind) == (0x00, 0x13) {
                    return rest.get(..len).unwrap_or_default();
                }
                attributes = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
            datagram
        }
        _ => datagram,
    }
}

/// Whether a datagram is one of DTLS (RFC 7983).
fn is_dtls(datagram: &[u8]) -> bool {
    matches!(carried(datagram), [20..=63, 0xfe, ..])
}

/// Returns the kind of the handshake's message that a datagram begins with in clear: it is behind the record's 13 bytes.
fn handshake(datagram: &[u8]) -> Option<u8> {
    matches!(carried(datagram), [22, 0xfe, _, 0, 0, ..]).then(|| carried(datagram).get(13).copied()).flatten()
}

/// Whether a datagram is a ClientHello in clear.
fn is_client_hello(datagram: &[u8]) -> bool {
    handshake(datagram) == Some(1)
}

/// Whether a datagram begins with a HelloVerifyRequest in clear.
fn verifies(datagram: &[u8]) -> bool {
    handshake(datagram) == Some(3)
}

/// Whether a ClientHello is the client's first, without a cookie: it is the first of its messages.
fn is_first_hello(datagram: &[u8]) -> bool {
    is_client_hello(datagram) && carried(datagram).get(17..19) == Some(&[0, 0])
}

/// Whether one of a datagram's records is a ChangeCipherSpec.
fn changes_cipher(datagram: &[u8]) -> bool {
    let mut rest = carried(datagram);
    while let [kind, 0xfe, _, _, _, _, _, _, _, _, _, high, low, records @ ..] = rest {
        if *kind == 20 {
            return true;
        }
        rest = records.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default();
    }
    false
}

/// Whether a datagram begins with application data: SCTP.
fn is_data(datagram: &[u8]) -> bool {
    matches!(carried(datagram), [23, 0xfe, ..])
}

#[derive(Debug)]
struct Datagram {
    destination: SocketAddr,
    contents: Vec<u8>,
    repeats: u32,
    /// The first pause; those after it are twice as long each.
    pause_us: u64,
    sent_us: u64,
    due_us: u64,
    /// How often the peer has asked for it, and whether it does so now.
    asked: u32,
    wanted: bool,
    /// Whether it is what SCTP begins with.
    is_first: bool,
}

impl Datagram {
    /// Takes the peer's asking, each time a longer while after the copy before.
    fn ask(&mut self, now_us: u64) {
        if !self.wanted && now_us >= self.sent_us + (ASKED_US << self.asked.min(REPEATS_MAX)) {
            self.asked += 1;
            self.wanted = true;
        }
    }
}

/// The last datagrams, and when they are repeated.
#[derive(Debug, Default)]
struct Kept {
    datagrams: VecDeque<Datagram>,
    /// Whether this end is the server of DTLS.
    serves: bool,
    /// Whether this end has begun with SCTP, and the peer has.
    speaks: bool,
    heard: bool,
}

impl Kept {
    fn sent(&mut self, now_us: u64, destination: SocketAddr, datagram: &[u8]) {
        // Whatever a client sends next shows that its hello has arrived. A later copy of it could be taken for the wish
        // to begin anew (RFC 6347, section 4.2.8), and the peer would drop the keys that were agreed on.
        self.datagrams.retain(|earlier| !is_client_hello(&earlier.contents));
        // A server's end of the handshake answers the client's: what it has said before has arrived. There are clients that
        // would begin with new keys at a copy of it.
        self.serves |= matches!(handshake(datagram), Some(2 | 3));
        if self.serves && changes_cipher(datagram) {
            self.datagrams.retain(|earlier| handshake(&earlier.contents).is_none());
        }
        // SCTP begins with questions and answers, an INIT or the INIT ACK to it (RFC 9260, section 5.1): what follows shows
        // that it has arrived. There are ends that would forget what they have received at a copy of it, for they let
        // copies of DTLS pass.
        let is_first = is_data(datagram) && (!self.heard || !self.speaks);
        if is_data(datagram) {
            self.datagrams.retain(|earlier| !earlier.is_first || is_first);
            self.speaks = true;
        }
        if self.datagrams.len() >= KEPT_MAX {
            self.datagrams.pop_front();
        }
        // A request for a cookie is repeated for one that asks, no other way (RFC 6347, section 4.2.1).
        let pause_us = match (self.serves, handshake(datagram)) {
            (true, Some(3)) => NEVER_US,
            (true, Some(_)) => REPEAT_SERVERS_US,
            _ => REPEAT_US,
        };
        self.datagrams.push_back(Datagram {
            destination,
            contents: datagram.to_vec(),
            repeats: 0,
            pause_us,
            sent_us: now_us,
            due_us: now_us.saturating_add(pause_us),
            asked: 0,
            wanted: false,
            is_first,
        });
    }

    /// Takes note of what has come from whom something was sent to: a hello that is repeated asks for the answer to it, and all
    /// else shows that something has arrived. There are servers that would begin with SCTP anew at a copy of a client's
    /// flight, and clients at one of a server's end.
    fn received(&mut self, now_us: u64, source: SocketAddr, datagram: &[u8]) {
        let end = |address: SocketAddr| (address.ip(), address.port());
        if !self.datagrams.iter().any(|kept| end(kept.destination) == end(source)) {
            return;
        }
        if is_data(datagram) {
            self.heard = true;
            let serves = self.serves;
            self.datagrams.retain(|kept| if serves { is_data(&kept.contents) } else { !kept.is_first });
        } else if !self.serves && changes_cipher(datagram) {
            self.datagrams.retain(|kept| is_data(&kept.contents));
        } else if self.serves && is_client_hello(datagram) {
            let is_first = is_first_hello(datagram);
            self.datagrams.retain(|kept| is_first || !verifies(&kept.contents));
            let answers = self.datagrams.iter_mut().filter(|kept| handshake(&kept.contents).is_some());
            answers.filter(|kept| verifies(&kept.contents) == is_first).for_each(|kept| kept.ask(now_us));
        }
    }

    /// Returns the next datagram to repeat.
    fn poll(&mut self, now_us: u64) -> Option<(SocketAddr, Vec<u8>)> {
        let place = self.datagrams.iter().position(|datagram| datagram.wanted || datagram.due_us <= now_us)?;
        let datagram = &mut self.datagrams[place];
        datagram.sent_us = now_us;
        if std::mem::take(&mut datagram.wanted) {
            return Some((datagram.destination, datagram.contents.clone()));
        }
        datagram.repeats += 1;
        if datagram.repeats >= REPEATS_MAX {
            return self.datagrams.remove(place).map(|datagram| (datagram.destination, datagram.contents));
        }
        datagram.due_us = now_us + (datagram.pause_us << datagram.repeats);
        Some((datagram.destination, datagram.contents.clone()))
    }

    fn due_us(&self) -> Option<u64> {
        let due = |datagram: &Datagram| if datagram.wanted { 0 } else { datagram.due_us };
        self.datagrams.iter().map(due).filter(|due_us| *due_us != NEVER_US).min()
    }
}

#[derive(Debug, Default)]
struct State {
    kept: Kept,
    /// Sleeps until something is repeated.
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whoever waits to receive, and repeats what is due.
    reader: Option<Waker>,
}

/// A socket that repeats. The task that receives also sends what is due.
#[derive(Debug)]
pub(super) struct Repeated {
    inner: Arc<dyn AsyncUdpSocket>,
    activity: Arc<Activity>,
    origin: Instant,
    /// Whether the link is made, and nothing is left to repeat.
    over: AtomicBool,
    state: Mutex<State>,
}

impl Repeated {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, activity: Arc<Activity>) -> Repeated {
        Repeated { inner, activity, origin: Instant::now(), over: AtomicBool::new(false), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Repeats what is due, and sees to it that this is called again for the rest.
    fn repeat(&self, cx: &mut Context<'_>) {
        let mut state = self.state();
        loop {
            while let Some((destination, contents)) = state.kept.poll(self.now_us()) {
                let transmit =
                    Transmit { destination, ecn: None, contents: &contents, segment_size: None, src_ip: None };
                // What the kernel has no room for is repeated later.
                let _ = self.inner.poll_send(cx, &transmit);
            }
            state.reader = Some(cx.waker().clone());
            let Some(due_us) = state.kept.due_us() else {
                // What was sent last, before the link was made, may be what the peer waits for.
                self.over.store(self.activity.is_made(), Ordering::Relaxed);
                return;
            };
            let pause = Duration::from_micros(due_us.saturating_sub(self.now_us()));
            let sleep = state.sleep.insert(Box::pin(tokio::time::sleep(pause)));
            if sleep.as_mut().poll(cx).is_pending() {
                return;
            }
        }
    }
}

impl AsyncUdpSocket for Repeated {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        let result = self.inner.poll_send(cx, transmit);
        if result.is_ready() && !self.activity.is_made() {
            let mut state = self.state();
            let len = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            for datagram in transmit.contents.chunks(len).filter(|datagram| is_dtls(datagram)) {
                state.kept.sent(self.now_us(), transmit.destination, datagram);
                if let Some(reader) = state.reader.take() {
                    reader.wake();
                }
            }
        }
        result
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if !self.over.load(Ordering::Relaxed) {
            self.repeat(cx);
        }
        let received = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = received
            && !self.over.load(Ordering::Relaxed)
        {
            let mut state = self.state();
            let now_us = self.now_us();
            for (buffer, meta) in bufs.iter().zip(meta.iter()).take(count) {
                // Whoever has received something comes back for more, and repeats then.
                for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                    state.kept.received(now_us, meta.addr, datagram);
                }
            }
        }
        received
    }

    fn max_gso_segments(&self) -> usize {
        self.inner.max_gso_segments()
    }

    fn max_gro_segments(&self) -> usize {
        self.inner.max_gro_segments()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_datagrams_are_repeated_with_growing_pauses() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut kept = Kept::default();
        for number in 0..=KEPT_MAX as u8 {
            kept.sent(0, peer, &[number]);
        }
        let mut repeated = Vec::new();
        while let Some(due_us) = kept.due_us() {
            let (_, contents) = kept.poll(due_us).unwrap();
            repeated.push((due_us / 1_000, contents[0]));
        }
        let wanted = [100, 300, 700, 1_500, 3_100, 6_300].into_iter();
        assert_eq!(repeated, wanted.flat_map(|ms| (1..=KEPT_MAX as u8).map(move |n| (ms, n))).collect::<Vec<_>>());
    }

    #[test]
    fn a_client_hello_is_repeated_only_until_the_next_flight() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let record = |kind: u8, message: u8| [&[kind, 0xfe, 0xfd][..], &[0; 10], &[message]].concat();
        let mut kept = Kept::default();
        kept.sent(0, peer, &record(22, 1));
        kept.sent(1, peer, &[&record(22, 1)[..], b"with a cookie"].concat());
        assert_eq!(kept.datagrams.len(), 1);
        assert!(kept.poll(REPEAT_US + 1).is_some_and(|(_, contents)| contents.ends_with(b"cookie")));
        kept.sent(2, peer, &record(22, 16));
        kept.sent(3, peer, &record(23, 0));
        let left: Vec<_> =
            kept.datagrams.iter().map(|datagram| (datagram.contents[0], datagram.contents[13])).collect();
        assert_eq!(left, [(22, 16), (23, 0)]);
    }

    #[test]
    fn a_servers_flight_is_repeated_only_until_its_last() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let record = |kind: u8, message: u8| [&[kind, 0xfe, 0xfd][..], &[0; 9], &[1, message]].concat();
        let left = |datagrams: &[(u8, u8)]| {
            let mut kept = Kept::default();
            for (kind, message) in datagrams {
                kept.sent(0, peer, &record(*kind, *message));
            }
            kept.datagrams.iter().map(|datagram| (datagram.contents[0], datagram.contents[13])).collect::<Vec<_>>()
        };
        assert_eq!(left(&[(22, 2), (22, 12)]), [(22, 2), (22, 12)], "no answer yet");
        assert_eq!(left(&[(22, 2), (22, 12), (20, 1), (23, 0)]), [(20, 1), (23, 0)]);
        assert_eq!(left(&[(22, 11), (20, 1)]), [(22, 11), (20, 1)], "a client's flight has both");
    }

    /// A record of DTLS that holds a message of the handshake with a number.
    fn message(kind: u8, number: u8) -> Vec<u8> {
        [&[22, 0xfe, 0xfd][..], &[0; 9], &[12, kind, 0, 0, 0, 0, number], &[0; 6]].concat()
    }

    fn copies(kept: &mut Kept, now_us: u64) -> Vec<u8> {
        std::iter::from_fn(|| kept.poll(now_us)).map(|(_, contents)| contents[13]).collect()
    }

    #[test]
    fn a_servers_flight_is_repeated_for_one_that_asks() {
        let (peer, mut kept) = (SocketAddr::from(([127, 0, 0, 1], 1)), Kept::default());
        kept.received(0, peer, &message(1, 0));
        kept.sent(1, peer, &message(3, 0));
        assert_eq!(kept.due_us(), None, "a request for a cookie waits for the client");
        kept.received(2, peer, &message(1, 0));
        assert_eq!(copies(&mut kept, 2), b"", "a copy of the wire's");
        kept.received(1 + ASKED_US, peer, &message(1, 0));
        assert_eq!(copies(&mut kept, 1 + ASKED_US), [3]);
        // It has the cookie now, however long that took.
        let now_us = 10 * ASKED_US;
        kept.received(now_us, peer, &message(1, 1));
        assert_eq!(copies(&mut kept, now_us), b"");
        kept.sent(now_us, peer, &message(2, 1));
        kept.sent(now_us, peer, &message(12, 3));
        assert_eq!((kept.datagrams.len(), kept.due_us()), (2, Some(now_us + REPEAT_SERVERS_US)));
        kept.received(now_us + ASKED_US, peer, &message(1, 0));
        assert_eq!(copies(&mut kept, now_us + ASKED_US), b"", "an old hello");
        for (turn, after_us) in [ASKED_US, 3 * ASKED_US].into_iter().enumerate() {
            kept.received(now_us + after_us, SocketAddr::from(([127, 0, 0, 2], 1)), &message(1, 1));
            assert_eq!(copies(&mut kept, now_us + after_us), b"", "{turn}: somebody else's");
            for hello in [1, 1] {
                kept.received(now_us + after_us, peer, &message(1, hello));
            }
            assert_eq!(copies(&mut kept, now_us + after_us), [2, 12], "{turn}");
        }
        kept.received(now_us + 4 * ASKED_US, peer, &message(1, 1));
        assert_eq!(copies(&mut kept, now_us + 4 * ASKED_US), b"", "each time a longer while");
        assert_eq!(kept.due_us(), Some(now_us + REPEAT_SERVERS_US), "asking takes nothing from what comes unasked");
        // What the client says in SCTP shows that it has the end of the handshake.
        kept.sent(now_us, peer, &[20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        kept.received(now_us, peer, &[23, 0xfe, 0xfd, 0, 1]);
        assert_eq!(kept.due_us(), None);
    }

    #[test]
    fn a_clients_flight_is_repeated_only_until_the_servers_end() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let record = |kind: u8, epoch: u8, body: &[u8]| {
            [&[kind, 0xfe, 0xfd, 0, epoch][..], &[0; 6], &[0, body.len() as u8], body].concat()
        };
        let said =
            |kept: &Kept| kept.datagrams.iter().map(|datagram| datagram.contents[13..].to_vec()).collect::<Vec<_>>();
        let mut kept = Kept::default();
        kept.sent(0, peer, &record(22, 0, &[11, 0]));
        kept.sent(0, peer, &[record(20, 0, &[1]), record(22, 1, &[0; 40])].concat());
        kept.sent(1, peer, &record(23, 1, b"INIT"));
        kept.received(2, peer, &record(22, 0, &[14]));
        kept.received(2, peer, &record(20, 0, &[])[..12]);
        assert_eq!(kept.datagrams.len(), 3, "that is no end");
        kept.received(3, peer, &[record(22, 0, &[4, 0]), record(20, 0, &[1]), record(22, 1, &[0; 40])].concat());
        assert_eq!(said(&kept), [b"INIT"]);
        // SCTP repeats it by itself, too.
        kept.sent(4, peer, &record(23, 1, b"INIT"));
        kept.received(5, peer, &record(23, 1, b"INIT ACK"));
        assert_eq!(kept.datagrams.len(), 0);
        for text in [b"COOKIE ECHO", b"hello world"] {
            kept.sent(6, peer, &record(23, 1, text));
        }
        kept.received(7, peer, &record(23, 1, b"COOKIE ACK"));
        assert_eq!(said(&kept), [b"COOKIE ECHO", b"hello world"]);
    }

    #[test]
    fn only_what_is_of_dtls_is_repeated() {
        let record = [22, 0xfe, 0xfd, 0, 0];
        let check = [0x00, 0x01, 0, 0];
        let indication =
            |carried: &[u8]| [&[0x00, 0x16], &[0; 18][..], &[0x00, 0x13, 0, carried.len() as u8], carried].concat();
        let peer = [0x00, 0x12, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0];
        let from_relay = [&[0x00, 0x17], &[0; 18][..], &peer, &[0x00, 0x13, 0, 5], &record, &[0; 3]].concat();
        assert_eq!(carried(&from_relay), record);
        assert!(is_dtls(&record));
        assert!(is_dtls(&[&[0x40, 0, 0, 5], &record[..]].concat()));
        assert!(is_dtls(&indication(&record)));
        for other in [&check[..], &[0x40, 0, 0, 4, 0, 1, 0, 0], &indication(&check), &[0xc5, 1], &[0x00, 0x16], &[]] {
            assert!(!is_dtls(other), "{other:?}");
        }
    }
}
