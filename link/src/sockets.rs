//! What the library's runtime lacks: large socket buffers, and rest for an idle link.
//!
//! With the usual 208 KiB a burst of segmented sends overruns the receiver, the lost tail waits a
//! second for SCTP, and throughput falls to a few percent. Where the system refuses more, bursts are cut
//! to what fits.
//!
//! The library looks after its path five times a second for as long as it lives. While only consent passes on a
//! link, once a second is enough, and an idle node costs a third.
//!
//! What leaves through a relay the library hands on in its next round only, and what came from there it reads a round
//! late; without anything else to do it would begin that round up to 200 ms later. So while a relay may be in use, some
//! rounds without a pause follow every one that had a cause.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

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

/// A link over which nothing but consent passed for so long is idle: longer than an acknowledgement is delayed
/// (200 ms), and than the first retransmission takes (1 s, RFC 9260, section 16).
const IDLE_AFTER: Duration = Duration::from_millis(1_500);
/// Pauses of an idle link from here to [`PAUSE`] are the library's own rhythm, and become [`IDLE_PAUSE`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PAUSE_MIN`].
const PAUSE: Duration = Duration::from_millis(200);
/// How often the library looks after the path of an idle link.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// Rounds without a pause after one that had a cause: a datagram that comes from a relay is read in the first, answered
/// in the second, and the answer leaves in the third.
const ROUNDS: u8 = 3;
/// After those: deadlines that passed within them have been met, and what they made leaves in as many rounds more.
const ROUND_PAUSE: Duration = Duration::from_millis(1);

/// The receive buffer that the system granted the last socket, in bytes; zero before the first.
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

/// When something else than the transport's own consent passed last. Until the link says for the first time that
/// something did, it is being made, and never idle.
#[derive(Debug)]
pub(crate) struct Activity {
    origin: Instant,
    last_ms: AtomicU64,
    /// Whether a relay may be in use.
    relays: AtomicBool,
    /// Rounds that had no cause but the one before.
    rounds: AtomicU8,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            last_ms: AtomicU64::new(u64::MAX),
            relays: AtomicBool::new(false),
            rounds: AtomicU8::new(0),
        }
    }
}

impl Activity {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes that something passes, or is waited for.
    #[allow(dead_code, reason = "the bench of the bare channel shares this file")]
    pub(crate) fn note(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Returns whether the link has been made.
    #[allow(dead_code, reason = "the bench of the bare channel shares this file")]
    pub(crate) fn is_made(&self) -> bool {
        self.last_ms.load(Ordering::Relaxed) != u64::MAX
    }

    /// Says whether a relay may be in use.
    #[allow(dead_code, reason = "the bench of the bare channel shares this file")]
    pub(crate) fn relays(&self, relays: bool) {
        self.relays.store(relays, Ordering::Relaxed);
    }

    /// Returns the pause before a round that follows another one at once, and the number of that round. Whoever ends
    /// the pause early has a cause, and the count begins anew.
    fn round(&self) -> Option<(Duration, u8)> {
        let round = self.rounds.swap(0, Ordering::Relaxed) + 1;
        let pause = if round == ROUNDS + 1 { ROUND_PAUSE } else { Duration::ZERO };
        (self.relays.load(Ordering::Relaxed) && round <= 2 * ROUNDS + 1).then_some((pause, round))
    }

    fn is_idle(&self) -> bool {
        let idle_ms = self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed));
        Duration::from_millis(idle_ms) >= IDLE_AFTER
    }

    /// Returns how long the library shall pause when it asks for `wanted`.
    fn pause(&self, wanted: Duration) -> Duration {
        if (PAUSE_MIN..=PAUSE).contains(&wanted) && self.is_idle() { IDLE_PAUSE } else { wanted }
    }
}

/// Tokio, with sockets whose buffers are large.
pub(crate) struct TunedRuntime {
    tokio: TokioRuntime,
    buffer_bytes: usize,
    activity: Arc<Activity>,
    /// What is put around every socket.
    wrap: Box<Wrap>,
}

/// Makes a socket of another one.
pub(crate) type Wrap = dyn Fn(Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> + Send + Sync;

impl std::fmt::Debug for TunedRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunedRuntime").field("buffer_bytes", &self.buffer_bytes).finish_non_exhaustive()
    }
}

impl TunedRuntime {
    /// `buffer_bytes_max` holds the buffers down, for measuring; normally there is no such wish.
    pub(crate) fn new(buffer_bytes_max: Option<usize>, activity: Arc<Activity>) -> Self {
        let buffer_bytes = buffer_bytes_max.unwrap_or(BUFFER_BYTES);
        Self { tokio: TokioRuntime, buffer_bytes, activity, wrap: Box::new(|socket| socket) }
    }

    /// Puts something around every socket.
    #[allow(dead_code, reason = "the bench of the bare channel shares this file")]
    pub(crate) fn wrapped(self, wrap: Box<Wrap>) -> Self {
        Self { wrap, ..self }
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
        Ok((self.wrap)(Arc::new(TunedSocket { inner, segments })))
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
        let Some((pause, round)) = self.activity.round() else {
            return self.tokio.sleep(self.activity.pause(duration));
        };
        let activity = Arc::clone(&self.activity);
        let sleep = (!pause.is_zero() && !duration.is_zero()).then(|| self.tokio.sleep(pause.min(duration)));
        Box::pin(async move {
            if let Some(sleep) = sleep {
                sleep.await;
            }
            activity.rounds.store(round, Ordering::Relaxed);
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rhythm_of_an_idle_link_is_slowed() {
        let origin = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let activity = Activity { origin, ..Activity::default() };
        let millis = Duration::from_millis;
        assert_eq!(activity.pause(millis(200)), millis(200), "a link in the making is never idle");
        activity.last_ms.store(0, Ordering::Relaxed);
        assert_eq!(activity.pause(millis(200)), IDLE_PAUSE);
        assert_eq!(activity.pause(millis(20)), millis(20));
        assert_eq!(activity.pause(millis(1_000)), millis(1_000));
        activity.note();
        assert_eq!(activity.pause(millis(200)), millis(200));
    }

    #[test]
    fn with_a_relay_rounds_follow_each_other_until_nothing_can_be_left() {
        let activity = Activity::default();
        assert_eq!(activity.round(), None, "without a relay every pause is as wanted");
        activity.relays(true);
        // Returns the pause in milliseconds, if the library's own is not taken, once it has passed.
        let pause = || {
            let (pause, round) = activity.round()?;
            activity.rounds.store(round, Ordering::Relaxed);
            Some(pause.as_millis())
        };
        let settled = [Some(0), Some(0), Some(0), Some(1), Some(0), Some(0), Some(0), None];
        for _ in 0..2 {
            assert_eq!(settled.map(|_| pause()), settled);
        }
        assert_eq!(pause(), Some(0));
        // Something else than the end of a pause is the cause of the next round.
        assert!(activity.round().is_some());
        assert_eq!(settled.map(|_| pause()), settled);
    }
}
