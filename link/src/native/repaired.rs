//! A socket that repairs single losses of its datagrams, where the peer does so too.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use webrtc::runtime::{AsyncUdpSocket, RecvMeta, Transmit};

use crate::repair::{Protector, Repairer, is_repair};

/// Addresses of the peer that are looked after; it has a few, of which one is used.
const PEERS_MAX: usize = 8;
/// Datagrams of the repair that wait for the kernel.
const WAITING_MAX: usize = 64;
/// The attribute of a session description that says: I understand parity. Who does not know it ignores it (RFC 8866,
/// section 5.13).
const ATTRIBUTE: &str = "a=x-unisockets-repair:1";

/// Adds to a session description that this end repairs.
pub(super) fn offered(sdp: &str) -> String {
    // Attributes of the session stand before the first media section.
    match sdp.find("m=") {
        Some(place) => format!("{}{ATTRIBUTE}\r\n{}", &sdp[..place], &sdp[place..]),
        None => sdp.to_owned(),
    }
}

/// Whether a peer's session description says that it repairs.
pub(super) fn is_offered(sdp: &str) -> bool {
    sdp.lines().any(|line| line.trim_end() == ATTRIBUTE)
}

/// What the sockets of a link know of its peer's repair, and the link of theirs.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// Whether the peer understands parity.
    agreed: AtomicBool,
    /// Datagrams put together again.
    count: AtomicU64,
}

impl Repairs {
    pub(super) fn agree(&self, agreed: bool) {
        self.agreed.store(agreed, Ordering::Relaxed);
    }

    fn agreed(&self) -> bool {
        self.agreed.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Peer {
    protector: Protector,
    repairer: Repairer,
    /// When something was last sent there.
    sent_us: u64,
}

#[derive(Debug, Default)]
struct State {
    peers: HashMap<SocketAddr, Peer>,
    /// What the repair has to send.
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Sleeps until something held back is due.
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whoever waits to receive, and moves what waits.
    reader: Option<Waker>,
}

impl State {
    fn due_us(&self) -> Option<u64> {
        let due = |peer: &Peer| [peer.protector.poll_timeout_us(), peer.repairer.poll_timeout_us()];
        self.peers.values().flat_map(due).flatten().min()
    }

    fn is_active(&self, now_us: u64) -> bool {
        self.peers.values().any(|peer| peer.repairer.is_active(now_us))
    }

    /// Forgets the address that was not sent to for longest: one that was tried only, or a stranger's.
    fn make_room(&mut self) {
        if self.peers.len() >= PEERS_MAX
            && let Some(address) = self.peers.iter().min_by_key(|(_, peer)| peer.sent_us).map(|(address, _)| *address)
        {
            self.peers.remove(&address);
        }
    }

    /// Collects what the repair has to send.
    fn collect(&mut self, now_us: u64) {
        for (address, peer) in &mut self.peers {
            while let Some(parity) = peer.protector.poll_parity(now_us) {
                push(&mut self.waiting, *address, parity);
            }
            if let Some(report) = peer.repairer.poll_report(now_us) {
                push(&mut self.waiting, *address, report);
            }
        }
    }
}

/// Queues a datagram of the repair; without it one loss more is not repaired.
fn push(waiting: &mut VecDeque<(SocketAddr, Vec<u8>)>, address: SocketAddr, datagram: Vec<u8>) {
    if waiting.len() < WAITING_MAX {
        waiting.push_back((address, datagram));
    }
}

/// A socket with repair. The task that receives also sends what is due.
#[derive(Debug)]
pub(super) struct Repaired {
    inner: Arc<dyn AsyncUdpSocket>,
    repairs: Arc<Repairs>,
    origin: Instant,
    state: Mutex<State>,
}

impl Repaired {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, repairs: Arc<Repairs>) -> Repaired {
        Repaired { inner, repairs, origin: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn send_waiting(&self, cx: &mut Context<'_>, state: &mut State) {
        state.collect(self.now_us());
        while let Some((destination, datagram)) = state.waiting.pop_front() {
            let contents = &datagram;
            let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None };
            if self.inner.poll_send(cx, &transmit).is_pending() {
                state.waiting.push_front((destination, datagram));
                return;
            }
        }
    }

    /// Looks at what was received; returns whether it may be handed on as it is.
    fn inspect(&self, state: &mut State, bufs: &[IoSliceMut<'_>], meta: &[RecvMeta]) -> bool {
        let now_us = self.now_us();
        let datagrams = |at: usize| bufs[at][..meta[at].len].chunks(meta[at].stride.max(1));
        let active = state.is_active(now_us);
        if !active && !(0..meta.len()).any(|at| datagrams(at).any(is_repair)) {
            for (at, meta) in meta.iter().enumerate() {
                if let Some(peer) = state.peers.get_mut(&meta.addr) {
                    datagrams(at).for_each(|datagram| peer.repairer.note(datagram));
                }
            }
            return true;
        }
        for (at, meta) in meta.iter().enumerate() {
            // What comes from an address that nothing was sent to may be a stranger's, and is forgotten first.
            if !state.peers.contains_key(&meta.addr) {
                state.make_room();
            }
            let peer = state.peers.entry(meta.addr).or_default();
            let before = peer.repairer.repaired();
            for datagram in datagrams(at) {
                peer.protector.handle_report(datagram);
                peer.repairer.handle(now_us, datagram);
            }
            self.repairs.count.fetch_add(peer.repairer.repaired() - before, Ordering::Relaxed);
        }
        false
    }

    /// Hands on what was received, one datagram a buffer; returns how many.
    fn hand_on(&self, state: &mut State, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let now_us = self.now_us();
        let mut count = 0;
        for (address, peer) in &mut state.peers {
            while count < bufs.len().min(meta.len())
                && let Some(datagram) = peer.repairer.poll_datagram(now_us)
            {
                let len = datagram.len().min(bufs[count].len());
                bufs[count][..len].copy_from_slice(&datagram[..len]);
                meta[count] = RecvMeta::default();
                (meta[count].addr, meta[count].len, meta[count].stride) = (*address, len, len.max(1));
                count += 1;
            }
        }
        count
    }
}

impl AsyncUdpSocket for Repaired {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        let result = self.inner.poll_send(cx, transmit);
        if matches!(result, Poll::Ready(Ok(_))) && self.repairs.agreed() {
            let mut state = self.state();
            let now_us = self.now_us();
            if !state.peers.contains_key(&transmit.destination) {
                state.make_room();
            }
            let peer = state.peers.entry(transmit.destination).or_default();
            // Never zero: who was sent to is no stranger.
            peer.sent_us = now_us.max(1);
            let len = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            transmit.contents.chunks(len).for_each(|datagram| peer.protector.sent(now_us, datagram));
            if peer.protector.poll_timeout_us().is_some()
                && let Some(reader) = state.reader.take()
            {
                reader.wake();
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
        if !self.repairs.agreed() {
            return self.inner.poll_recv(cx, bufs, meta);
        }
        let mut state = self.state();
        loop {
            self.send_waiting(cx, &mut state);
            let count = self.hand_on(&mut state, bufs, meta);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            match self.inner.poll_recv(cx, bufs, meta) {
                Poll::Ready(Ok(count)) => {
                    if self.inspect(&mut state, bufs, &meta[..count]) {
                        self.send_waiting(cx, &mut state);
                        return Poll::Ready(Ok(count));
                    }
                    continue;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            state.reader = Some(cx.waker().clone());
            let Some(due_us) = state.due_us() else {
                return Poll::Pending;
            };
            let pause = Duration::from_micros(due_us.saturating_sub(self.now_us()));
            let sleep = state.sleep.insert(Box::pin(tokio::time::sleep(pause)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
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
    fn a_description_says_whether_its_end_repairs() {
        let sdp =
            "v=0\r\no=- 1 2 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n";
        assert!(!is_offered(sdp));
        let offered = offered(sdp);
        assert!(is_offered(&offered));
        assert!(offered.find(ATTRIBUTE) < offered.find("m="), "{offered}");
    }
}
