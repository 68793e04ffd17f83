//! A socket on a bad wire: the faults lie below the data channels, in both directions, so that a program can be
//! tried on a network that is slow, far or lossy.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use webrtc::runtime::{AsyncUdpSocket, RecvMeta, Transmit};

use crate::fault::{Conditions, Fault};

/// Peers that have a wire of their own; strangers beyond that are not heard.
const WIRES_MAX: usize = 64;
/// Datagrams taken from the kernel at one time.
const BATCH_MAX: usize = 64;
/// Longest datagram of the kernel, in bytes.
const DATAGRAM_LEN_MAX: usize = 65_535;

/// One direction, with a wire for each peer.
#[derive(Debug, Default)]
struct Wires(HashMap<SocketAddr, Fault>);

impl Wires {
    fn put(&mut self, conditions: Conditions, now_us: u64, peer: SocketAddr, datagrams: &[u8], len: usize) {
        if self.0.len() >= WIRES_MAX && !self.0.contains_key(&peer) {
            return;
        }
        let seed = || RandomState::new().hash_one(peer);
        let wire = self.0.entry(peer).or_insert_with(|| Fault::new(conditions, seed()));
        for datagram in datagrams.chunks(len.max(1)) {
            wire.handle_packet(now_us, datagram);
        }
    }

    fn take(&mut self, now_us: u64) -> Option<(SocketAddr, Vec<u8>)> {
        self.0.iter_mut().find_map(|(peer, wire)| Some((*peer, wire.poll_packet(now_us)?)))
    }

    fn due_us(&self) -> Option<u64> {
        self.0.values().filter_map(Fault::poll_timeout_us).min()
    }
}

#[derive(Debug)]
struct State {
    outgoing: Wires,
    incoming: Wires,
    /// A datagram for which the kernel had no room.
    stuck: Option<(SocketAddr, Vec<u8>)>,
    /// Sleeps until the next datagram arrives at its end of a wire.
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whoever waits to receive, and moves what is on the wires.
    reader: Option<Waker>,
    buffer: Vec<u8>,
}

/// A socket whose datagrams pass through bad wires. The task that receives moves both directions.
#[derive(Debug)]
pub(crate) struct BadWire {
    inner: Arc<dyn AsyncUdpSocket>,
    conditions: Conditions,
    origin: Instant,
    state: Mutex<State>,
}

impl BadWire {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>, conditions: Conditions) -> BadWire {
        let buffer = vec![0; DATAGRAM_LEN_MAX];
        let (outgoing, incoming) = (Wires::default(), Wires::default());
        let state = State { outgoing, incoming, stuck: None, sleep: None, reader: None, buffer };
        BadWire { inner, conditions, origin: Instant::now(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Sends what has come to the end of the outgoing wires.
    fn send_due(&self, cx: &mut Context<'_>, state: &mut State) {
        while let Some((peer, datagram)) = state.stuck.take().or_else(|| state.outgoing.take(self.now_us())) {
            let transmit =
                Transmit { destination: peer, ecn: None, contents: &datagram, segment_size: None, src_ip: None };
            // An error concerns an earlier datagram; this one is lost with it, as on a wire.
            if self.inner.poll_send(cx, &transmit).is_pending() {
                state.stuck = Some((peer, datagram));
                return;
            }
        }
    }

    /// Puts what the kernel has onto the incoming wires.
    fn take_arrived(&self, cx: &mut Context<'_>, state: &mut State) -> io::Result<()> {
        for _ in 0..BATCH_MAX {
            let mut meta = [RecvMeta::default()];
            let mut bufs = [IoSliceMut::new(&mut state.buffer)];
            match self.inner.poll_recv(cx, &mut bufs, &mut meta) {
                Poll::Ready(Ok(_)) => {
                    let [meta] = meta;
                    let datagrams = &state.buffer[..meta.len.min(DATAGRAM_LEN_MAX)];
                    state.incoming.put(self.conditions, self.now_us(), meta.addr, datagrams, meta.stride);
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }
}

impl AsyncUdpSocket for BadWire {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, _: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        let len = transmit.segment_size.unwrap_or(transmit.contents.len());
        state.outgoing.put(self.conditions, self.now_us(), transmit.destination, transmit.contents, len);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(transmit.contents.len()))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        self.take_arrived(cx, &mut state)?;
        loop {
            self.send_due(cx, &mut state);
            if let Some((peer, datagram)) = state.incoming.take(self.now_us()) {
                let len = datagram.len().min(bufs[0].len());
                bufs[0][..len].copy_from_slice(&datagram[..len]);
                meta[0] = RecvMeta::default();
                (meta[0].addr, meta[0].len, meta[0].stride) = (peer, len, len);
                return Poll::Ready(Ok(1));
            }
            state.reader = Some(cx.waker().clone());
            let due_us = [state.outgoing.due_us(), state.incoming.due_us()].into_iter().flatten().min();
            let Some(due_us) = due_us else {
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
}
