//! Large socket buffers for the library, which never asks for any.
//!
//! With the usual 208 KiB a burst of segmented sends overruns the receiver, the lost tail waits a
//! second for SCTP, and throughput falls to a few percent. Where the system refuses more, bursts are cut
//! to what fits.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use webrtc::runtime::{
    AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, RecvMeta, Runtime, TokioRuntime,
    Transmit,
};

/// Bytes asked for in each direction.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Below this a burst of 64 segments may overrun the receiver.
const BUFFER_BYTES_FULL: usize = 1024 * 1024;
/// Bytes that a segment occupies in a receive buffer, bookkeeping included.
const SEGMENT_COST: usize = 2_304;
/// Bytes of a segment that are payload.
const SEGMENT_PAYLOAD: usize = 1_160;

/// The smallest receive buffer that the system granted, in bytes; zero before the first socket.
static GRANTED: AtomicUsize = AtomicUsize::new(0);

/// Returns the receive buffer that the system granted, in bytes, once a socket was made.
pub(crate) fn granted_receive_buffer() -> Option<usize> {
    Some(GRANTED.load(Ordering::Relaxed)).filter(|granted| *granted > 0)
}

/// Returns the payload bytes that a granted receive buffer takes in one burst, with some to spare.
#[allow(dead_code, reason = "the bench of the bare channel shares this file")]
pub(crate) fn burst_max() -> usize {
    granted_receive_buffer().map_or(usize::MAX, |granted| granted / SEGMENT_COST * SEGMENT_PAYLOAD / 2)
}

/// Tokio, with sockets whose buffers are large.
#[derive(Debug)]
pub(crate) struct TunedRuntime {
    tokio: TokioRuntime,
    buffer_bytes: usize,
}

impl TunedRuntime {
    /// `buffer_bytes_max` holds the buffers down, for measuring; normally there is no such wish.
    pub(crate) fn new(buffer_bytes_max: Option<usize>) -> Self {
        Self { tokio: TokioRuntime, buffer_bytes: buffer_bytes_max.unwrap_or(BUFFER_BYTES) }
    }

    fn enlarge(&self, socket: &std::net::UdpSocket) -> usize {
        // The privileged way first: it is not capped by net.core.rmem_max. Failure is no error.
        let bytes = self.buffer_bytes;
        if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
            let _ = setsockopt(socket, sockopt::RcvBuf, &bytes);
        }
        if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
            let _ = setsockopt(socket, sockopt::SndBuf, &bytes);
        }
        getsockopt(socket, sockopt::RcvBuf).unwrap_or(0)
    }
}

impl Runtime for TunedRuntime {
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) -> Box<dyn JoinHandle> {
        self.tokio.spawn(future)
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let granted = self.enlarge(&socket);
        GRANTED.store(granted, Ordering::Relaxed);
        let inner = self.tokio.wrap_udp_socket(socket)?;
        // The kernel reports twice what it lets payload use.
        let segments = if granted >= 2 * BUFFER_BYTES_FULL { usize::MAX } else { (granted / SEGMENT_COST / 8).max(1) };
        Ok(Arc::new(TunedSocket { inner, segments }))
    }

    fn wrap_tcp_listener(&self, listener: std::net::TcpListener) -> io::Result<Arc<dyn AsyncTcpListener>> {
        self.tokio.wrap_tcp_listener(listener)
    }

    fn connect_tcp<'a>(
        &'a self,
        remote: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<Arc<dyn AsyncTcpStream>>> + Send + 'a>> {
        self.tokio.connect_tcp(remote)
    }

    fn resolve_host<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        self.tokio.resolve_host(host)
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        self.tokio.sleep(duration)
    }

    fn interval(&self, period: Duration) -> Box<dyn AsyncInterval> {
        self.tokio.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        self.tokio.block_on(future);
    }

    fn yield_now(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        self.tokio.yield_now()
    }

    fn name(&self) -> &'static str {
        "tokio"
    }
}

/// A socket whose bursts fit the receiver.
#[derive(Debug)]
struct TunedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    segments: usize,
}

impl AsyncUdpSocket for TunedSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        self.inner.poll_send(cx, transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn max_gso_segments(&self) -> usize {
        self.inner.max_gso_segments().min(self.segments)
    }

    fn max_gro_segments(&self) -> usize {
        self.inner.max_gro_segments()
    }
}
