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
/// A hello that comes sooner after the answer to it is a copy that the wire has made.
const ASKED_US: u64 = REPEAT_US / 2;
/// How often a datagram is repeated: the last time after 6.3 s.
const REPEATS_MAX: u32 = 6;

/// Returns what a datagram carries to a relay, as channel data or, with the data first as the library writes it, in a
/// Send indication (RFC 8656, sections 12.4 and 10.1); any other one as it is.
fn carried(datagram: &[u8]) -> &[u8] {
    match datagram {
        [0x40..=0x4f, _, _, _, carried @ ..] => carried,
        [0x00, 0x16, ..] if datagram.get(20..22) == Some(&[0x00, 0x13]) => datagram.get(24..).unwrap_or_default(),
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

/// Whether a datagram begins with a ServerHello or a HelloVerifyRequest in clear.
fn answers_hello(datagram: &[u8]) -> bool {
    matches!(handshake(datagram), Some(2 | 3))
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
    /// Whether it is what SCTP begins with.
    is_first: bool,
}

/// The last datagrams, and when they are repeated.
#[derive(Debug, Default)]
struct Kept {
    datagrams: VecDeque<Datagram>,
    /// Whether this end is the server of DTLS.
    serves: bool,
    /// Whether this end has begun with SCTP.
    speaks: bool,
}

impl Kept {
    fn sent(&mut self, now_us: u64, destination: SocketAddr, datagram: &[u8]) {
        // Whatever a client sends next shows that its hello has arrived. A later copy of it could be taken for the wish
        // to begin anew (RFC 6347, section 4.2.8), and the peer would drop the keys that were agreed on.
        self.datagrams.retain(|earlier| !is_client_hello(&earlier.contents));
        // A hello with the cookie shows that the request for it has arrived.
        if handshake(datagram) == Some(2) {
            self.datagrams.retain(|earlier| handshake(&earlier.contents) != Some(3));
        }
        // A server's end of the handshake answers the client's: what it has said before has arrived. There are clients that
        // would begin with new keys at a copy of it.
        self.serves |= answers_hello(datagram);
        if self.serves && changes_cipher(datagram) {
            self.datagrams.retain(|earlier| handshake(&earlier.contents).is_none());
        }
        // SCTP begins with questions and answers, an INIT or the INIT ACK to it (RFC 9260, section 5.1): what follows shows
        // that it has arrived. There are ends that would forget what they have received at a copy of it, for they let
        // copies of DTLS pass.
        let is_first = is_data(datagram) && !std::mem::replace(&mut self.speaks, true);
        if is_data(datagram) && !is_first {
            self.datagrams.retain(|earlier| !earlier.is_first);
        }
        if self.datagrams.len() >= KEPT_MAX {
            self.datagrams.pop_front();
        }
        let is_servers = self.serves && handshake(datagram).is_some();
        let pause_us = if is_servers { REPEAT_SERVERS_US } else { REPEAT_US };
        let (contents, sent_us, due_us) = (datagram.to_vec(), now_us, now_us + pause_us);
        self.datagrams.push_back(Datagram { destination, contents, repeats: 0, pause_us, sent_us, due_us, is_first });
    }

    /// Takes note of what has come: a hello that is repeated asks for the answer to it, and a server's end of the handshake
    /// shows that the client's has arrived. There are servers that would begin with SCTP anew at a copy of that.
    fn received(&mut self, now_us: u64, datagram: &[u8]) {
        if !self.serves && changes_cipher(datagram) {
            return self.datagrams.retain(|earlier| is_data(&earlier.contents));
        }
        if !self.serves || !is_client_hello(datagram) {
            return;
        }
        for answer in &mut self.datagrams {
            if handshake(&answer.contents).is_some() && now_us >= answer.sent_us + ASKED_US {
                answer.due_us = now_us;
            }
        }
    }

    /// Returns the next datagram to repeat.
    fn poll(&mut self, now_us: u64) -> Option<(SocketAddr, Vec<u8>)> {
        let place = self.datagrams.iter().position(|datagram| datagram.due_us <= now_us)?;
        let datagram = &mut self.datagrams[place];
        datagram.repeats += 1;
        if datagram.repeats >= REPEATS_MAX {
            return self.datagrams.remove(place).map(|datagram| (datagram.destination, datagram.contents));
        }
        datagram.sent_us = now_us;
        datagram.due_us = now_us + (datagram.pause_us << datagram.repeats);
        Some((datagram.destination, datagram.contents.clone()))
    }

    fn due_us(&self) -> Option<u64> {
        self.datagrams.iter().map(|datagram| datagram.due_us).min()
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
                    state.kept.received(now_us, datagram);
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

    #[test]
    fn a_servers_flight_is_repeated_for_one_that_asks() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let record = |message: u8| [&[22, 0xfe, 0xfd][..], &[0; 10], &[message]].concat();
        let (hello, mut kept) = (record(1), Kept::default());
        kept.received(0, &hello);
        kept.sent(1, peer, &record(3));
        assert_eq!(kept.due_us(), Some(1 + REPEAT_SERVERS_US), "who takes long to answer is not pressed");
        kept.received(2, &hello);
        kept.sent(3, peer, &record(2));
        kept.sent(3, peer, &record(12));
        kept.received(4, &hello);
        assert_eq!((kept.datagrams.len(), kept.due_us()), (2, Some(3 + REPEAT_SERVERS_US)), "a copy of the wire's");
        let asked_us = 3 + ASKED_US;
        kept.received(asked_us, &hello);
        let repeated: Vec<_> = std::iter::from_fn(|| kept.poll(asked_us)).map(|(_, contents)| contents[13]).collect();
        assert_eq!(repeated, [2, 12]);
        assert_eq!(kept.due_us(), Some(asked_us + 2 * REPEAT_SERVERS_US));
    }

    #[test]
    fn a_clients_flight_is_repeated_only_until_the_servers_end() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let record = |kind: u8, epoch: u8, body: &[u8]| {
            [&[kind, 0xfe, 0xfd, 0, epoch][..], &[0; 6], &[0, body.len() as u8], body].concat()
        };
        let mut kept = Kept::default();
        kept.sent(0, peer, &record(22, 0, &[11, 0]));
        kept.sent(0, peer, &[record(20, 0, &[1]), record(22, 1, &[0; 40])].concat());
        kept.sent(1, peer, &record(23, 1, b"SCTP"));
        kept.received(2, &record(22, 0, &[14]));
        kept.received(2, &record(20, 0, &[])[..12]);
        assert_eq!(kept.datagrams.len(), 3, "that is no end");
        kept.received(3, &[record(22, 0, &[4, 0]), record(20, 0, &[1]), record(22, 1, &[0; 40])].concat());
        assert_eq!(kept.datagrams.len(), 1);
        assert!(is_data(&kept.datagrams[0].contents));
        for said in [b"COOKIE ECHO", b"hello world"] {
            kept.sent(4, peer, &record(23, 1, said));
        }
        let left: Vec<_> = kept.datagrams.iter().map(|datagram| &datagram.contents[13..]).collect();
        assert_eq!(left, [b"COOKIE ECHO", b"hello world"], "what came first has arrived");
    }

    #[test]
    fn only_what_is_of_dtls_is_repeated() {
        let record = [22, 0xfe, 0xfd, 0, 0];
        let check = [0x00, 0x01, 0, 0];
        let indication = |carried: &[u8]| [&[0x00, 0x16], &[0; 18][..], &[0x00, 0x13, 0, 5], carried].concat();
        assert!(is_dtls(&record));
        assert!(is_dtls(&[&[0x40, 0, 0, 5], &record[..]].concat()));
        assert!(is_dtls(&indication(&record)));
        for other in [&check[..], &[0x40, 0, 0, 4, 0, 1, 0, 0], &indication(&check), &[0xc5, 1], &[0x00, 0x16], &[]] {
            assert!(!is_dtls(other), "{other:?}");
        }
    }
}
