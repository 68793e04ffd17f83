//! A TCP connection between a program's descriptor and the stack.
//!
//! The program has one end of an AF_UNIX pair, the host the other. Three tricks make it look like TCP to the kernel's
//! own `poll`, `read` and `write`:
//!
//! - While the connection is being made the program's way is **plugged**: it is filled with bytes that are never
//!   forwarded, so that the descriptor is not writable. Drained, it becomes writable once.
//! - One byte that was forwarded already always stays in the host's queue, **stale**. If the host closes its end
//!   over it, the kernel tells the program ECONNRESET (unix(7)), after what it has not read yet.
//! - A program that closes with unread input gives the host ECONNRESET in turn, which becomes a reset on the network.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketType, recv, send, shutdown, sockopt};
use tokio::io::unix::AsyncFd;
use unisockets_descriptors::{Family, Name, State, passing};
use unisockets_stack::{Error, Readiness, SocketOption};

use super::Inner;
use super::descriptor::watch;
use crate::driver::Interest;
use crate::tcp::Socket;

/// Bytes of each descriptor's send buffer as asked for; the kernel takes twice as much (socket(7)). A writer is woken
/// when a quarter of that is in use at most, and the stale byte may hold a whole piece with its overhead: 36 KiB, or 68 KiB from `sendfile`.
const BUFFER_LEN: usize = 160 * 1024;
/// What a plug is made of.
static ZEROS: [u8; BUFFER_LEN] = [0; BUFFER_LEN];
/// How long a peer may take nothing of what a program has left behind: as long as the stack waits for its orphans.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Bytes moved at a time.
const CHUNK_LEN: usize = 64 * 1024;
/// Moves in a row before other connections have their turn.
const TURNS_MAX: usize = 8;

thread_local! {
    /// Where bytes pass through: a connection that is idle holds no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK_LEN + 1]);
}

/// A new pair: the program's end, the host's, and how many bytes are in the way.
pub(super) struct Pair {
    pub(super) program: OwnedFd,
    host: OwnedFd,
    filler: usize,
}

/// Whether the program's end of a new pair is writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plug {
    Full,
    Open,
}

impl Pair {
    /// Makes a pair, with the stale byte or a whole plug in the host's queue.
    pub(super) fn new(plug: Plug) -> io::Result<Pair> {
        let (program, host) = passing::unix_pair(SocketType::STREAM)?;
        for end in [&program, &host] {
            sockopt::set_socket_send_buffer_size(end, BUFFER_LEN)?;
        }
        rustix::io::ioctl_fionbio(&host, true)?;
        let mut filler = send(&program, &[0], SendFlags::DONTWAIT)?;
        if plug == Plug::Full {
            // Each piece takes half of what is left, so a few fill it, and the last ones are small: what stays of them as
            // the stale byte takes no room worth mention.
            let mut len = BUFFER_LEN;
            loop {
                match send(&program, &ZEROS[..len], SendFlags::DONTWAIT) {
                    Ok(sent) => filler += sent,
                    Err(Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
                len = (len / 2).max(1);
            }
        }
        Ok(Pair { program, host, filler })
    }

    /// Names the program's end after this side of the connection.
    pub(super) fn name_program(&self, name: &Name) -> io::Result<()> {
        passing::bind_abstract(&self.program, &name.to_string())
    }

    /// Names the host's end after the other side, once the connection stands: it is what `getpeername` finds.
    pub(super) fn name_host(&self, name: &Name) -> io::Result<()> {
        passing::bind_abstract(&self.host, &name.to_string())
    }

    /// Keeps the host's end; the program's goes to the program.
    pub(super) fn split(self) -> (OwnedFd, HostEnd) {
        (self.program, HostEnd { host: self.host, filler: self.filler })
    }
}

/// The host's end of a pair.
pub(super) struct HostEnd {
    host: OwnedFd,
    filler: usize,
}

/// What names a connection's other end: everything but the address, which is known when it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label {
    pub(super) id: u64,
    pub(super) family: Family,
    pub(super) instance: u64,
}

impl Label {
    /// Returns the name of one end of this connection; `serial` tells the ends apart.
    pub(super) fn name(&self, address: std::net::SocketAddr, serial: u32) -> Name {
        let Label { id, family, instance } = *self;
        Name { state: State::Stream, family, address, destination: None, instance, id, serial }
    }
}

/// How a connection ended.
enum End {
    /// The program has closed it, and everything it wrote is on its way.
    Closed,
    /// The program has closed it with unread input: the network hears a reset, as from Linux (RFC 2525, 2.17).
    Discarded,
    /// The network has ended it.
    Failed(i32),
}

/// Carries a connection from its start to its end.
pub(super) async fn carry(inner: Arc<Inner>, label: Label, socket: Arc<Socket>, end: HostEnd) {
    let _place = inner.place(label.id);
    let result = run(&label, &socket, end).await;
    match result.unwrap_or(End::Failed(libc::EIO)) {
        End::Closed => {}
        End::Discarded => drop(socket.set_option(SocketOption::Linger(Some(Duration::ZERO)))),
        End::Failed(errno) => inner.ended().insert(label.id, errno),
    }
}

async fn run(label: &Label, socket: &Arc<Socket>, end: HostEnd) -> io::Result<End> {
    let HostEnd { host, filler } = end;
    let mut pump = Pump {
        host: watch(host)?,
        socket: Arc::clone(socket),
        up: Vec::new(),
        down: Vec::new(),
        up_over: false,
        down_over: false,
        deaf: false,
        bounded: false,
        failed: None,
    };
    if let Some(end) = poll_fn(|cx| pump.poll_connected(cx)).await {
        return Ok(end);
    }
    if filler > 1 {
        // It was plugged: what the program may know only now comes before it is let on.
        if let Ok(peer) = socket.peer_addr() {
            passing::bind_abstract(pump.host.get_ref(), &label.name(peer, 2).to_string())?;
        }
        pump.drain(filler - 1)?;
    }
    let end = poll_fn(|cx| pump.poll(cx)).await;
    if matches!(end, End::Closed) {
        // Both directions may be shut while the program still has the descriptor: what it reads then is the end of the
        // stream, not a reset.
        pump.drain(1)?;
    }
    Ok(end)
}

struct Pump {
    host: AsyncFd<OwnedFd>,
    socket: Arc<Socket>,
    /// Read from the program, and not yet taken by the stack.
    up: Vec<u8>,
    /// Read from the stack, and not yet taken by the program.
    down: Vec<u8>,
    /// The program has shut its sending direction, and the stack knows.
    up_over: bool,
    /// The network has ended its direction, and the program knows.
    down_over: bool,
    /// The program has shut its receiving direction: what comes is dropped.
    deaf: bool,
    /// Whether the wait for the peer is bounded, since the program has closed.
    bounded: bool,
    /// Why the network takes no more, until the program has what came before.
    failed: Option<i32>,
}

/// What one direction could do.
enum Step {
    Moved,
    Waits,
    Ended(End),
}

impl Pump {
    /// Waits until the connection stands; gives the end if it never will.
    fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        let id = self.socket.id;
        let polled = self.socket.poll(cx, Interest::Write, |stack, _| {
            if let Some(error) = stack.take_error(id)? {
                return Err(error);
            }
            let up = stack.readiness(id).intersects(Readiness::WRITABLE | Readiness::HANG_UP);
            if up { Ok(()) } else { Err(Error::Again) }
        });
        match polled {
            Poll::Ready(Ok(())) => Poll::Ready(None),
            Poll::Ready(Err(error)) => Poll::Ready(Some(End::Failed(errno_of(&error)))),
            Poll::Pending if self.is_hung_up(cx) => Poll::Ready(Some(End::Closed)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Takes the plug out, all but the stale byte.
    fn drain(&self, mut len: usize) -> io::Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            while len > 0 {
                let chunk = len.min(scratch.len());
                let (taken, _) = recv(&self.host, &mut scratch[..chunk], RecvFlags::DONTWAIT)?;
                if taken == 0 {
                    break;
                }
                len -= taken;
            }
            Ok(())
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..TURNS_MAX {
            let mut moved = false;
            for step in [self.poll_up(cx), self.poll_down(cx)] {
                match step {
                    Step::Moved => moved = true,
                    Step::Waits => {}
                    Step::Ended(end) => return Poll::Ready(end),
                }
            }
            if !moved {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// From the program to the network.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Step {
        let id = self.socket.id;
        if !self.up.is_empty() {
            let up = &self.up;
            return match self.socket.poll(cx, Interest::Write, |stack, now| stack.send(now, id, up)) {
                Poll::Ready(Ok(sent)) => {
                    self.up.drain(..sent);
                    self.up.shrink_to(0);
                    Step::Moved
                }
                Poll::Ready(Err(error)) => self.write_failed(&error),
                Poll::Pending => self.bound_patience(cx).map_or(Step::Waits, Step::Ended),
            };
        }
        if self.up_over {
            return if self.is_hung_up(cx) { Step::Ended(self.closed()) } else { Step::Waits };
        }
        loop {
            let mut guard = match self.host.poll_read_ready(cx) {
                Poll::Ready(Ok(guard)) => guard,
                Poll::Ready(Err(error)) => return Step::Ended(End::Failed(errno_of(&error))),
                Poll::Pending => return Step::Waits,
            };
            match rustix::io::ioctl_fionread(self.host.get_ref()) {
                Ok(len) if len > 1 => return self.read_program(cx, len - 1),
                Ok(_) if guard.ready().is_read_closed() => return self.program_ended(cx),
                Ok(_) => guard.clear_ready(),
                Err(error) => return Step::Ended(End::Failed(error.raw_os_error())),
            }
        }
    }

    /// Reads what the program has written, and leaves its last byte in the queue.
    fn read_program(&mut self, cx: &mut Context<'_>, readable: u64) -> Step {
        let id = self.socket.id;
        let len = usize::try_from(readable).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
        let taken = SCRATCH.with_borrow_mut(|scratch| {
            let host = self.host.get_ref();
            let read = recv(host, &mut scratch[..len], RecvFlags::DONTWAIT);
            let read = read.and_then(|(read, _)| {
                recv(host, &mut scratch[read..=read], RecvFlags::DONTWAIT | RecvFlags::PEEK).map(|_| read)
            });
            // The first byte is the stale one, the last is the new stale one.
            let bytes = match read {
                Ok(read) => &scratch[1..=read],
                Err(Errno::CONNRESET) => return Ok(Step::Ended(End::Discarded)),
                Err(error) => return Ok(Step::Ended(End::Failed(error.raw_os_error()))),
            };
            match self.socket.poll(cx, Interest::Write, |stack, now| stack.send(now, id, bytes)) {
                Poll::Ready(sent) => self.up.extend_from_slice(&bytes[sent?..]),
                Poll::Pending => self.up.extend_from_slice(bytes),
            }
            Ok(Step::Moved)
        });
        // The scratch is free again: what follows uses it, too.
        taken.unwrap_or_else(|error: io::Error| self.write_failed(&error))
    }

    /// The program has written its last: it has shut this direction, or closed the descriptor.
    fn program_ended(&mut self, cx: &mut Context<'_>) -> Step {
        self.up_over = true;
        if matches!(sockopt::socket_error(self.host.get_ref()), Ok(Err(Errno::CONNRESET))) {
            return Step::Ended(End::Discarded);
        }
        if self.is_hung_up(cx) {
            // The stack decides by SO_LINGER whether this is a FIN or a reset.
            return Step::Ended(self.closed());
        }
        let _ = self.socket.shutdown(unisockets_stack::Shutdown::Write);
        Step::Moved
    }

    /// Waits no longer than for an orphan for a peer that takes nothing, once the program is gone; and not at all where
    /// SO_LINGER says that what was written is to be thrown away.
    fn bound_patience(&mut self, cx: &mut Context<'_>) -> Option<End> {
        if self.bounded || !self.is_hung_up(cx) {
            return None;
        }
        self.bounded = true;
        let linger = self.socket.options().ok().and_then(|options| options.linger);
        if linger.is_some_and(|linger| linger.is_zero()) {
            return Some(End::Discarded);
        }
        let _ = self.socket.set_option(SocketOption::UserTimeout(Some(PATIENCE)));
        None
    }

    /// Returns how a connection ends that the program has closed.
    fn closed(&self) -> End {
        // What the kernel had taken over is read nowhere any more.
        if self.down.is_empty() { End::Closed } else { End::Discarded }
    }

    /// Whether the program's end is closed; if not, the task is woken when it is.
    fn is_hung_up(&self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.host.poll_write_ready(cx) {
                Poll::Ready(Ok(guard)) if guard.ready().is_write_closed() => return true,
                Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
                Poll::Ready(Err(_)) => return true,
                Poll::Pending => return false,
            }
        }
    }

    /// From the network to the program.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Step {
        if !self.down.is_empty() {
            let down = std::mem::take(&mut self.down);
            let written = self.write_program(cx, &down);
            self.down = down[written..].to_vec();
            return if written > 0 { Step::Moved } else { Step::Waits };
        }
        if self.down_over {
            return Step::Waits;
        }
        let id = self.socket.id;
        SCRATCH.with_borrow_mut(|scratch| {
            match self.socket.poll(cx, Interest::Read, |stack, _| stack.recv(id, &mut scratch[..CHUNK_LEN])) {
                Poll::Ready(Ok(0)) => {
                    if let Some(errno) = self.failed {
                        return Step::Ended(End::Failed(errno));
                    }
                    self.down_over = true;
                    let _ = shutdown(self.host.get_ref(), Shutdown::Write);
                    Step::Moved
                }
                Poll::Ready(Ok(len)) => {
                    let written = self.write_program(cx, &scratch[..len]);
                    self.down.extend_from_slice(&scratch[written..len]);
                    Step::Moved
                }
                Poll::Ready(Err(error)) => Step::Ended(End::Failed(self.failed.unwrap_or(errno_of(&error)))),
                Poll::Pending => Step::Waits,
            }
        })
    }

    /// Writes to the program; returns how much it took, or would never have taken.
    fn write_program(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> usize {
        if self.deaf {
            return bytes.len();
        }
        loop {
            match send(self.host.get_ref(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(written) => return written,
                Err(Errno::AGAIN) => match self.host.poll_write_ready(cx) {
                    Poll::Ready(Ok(guard)) if guard.ready().is_write_closed() => return 0,
                    Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
                    Poll::Ready(Err(_)) | Poll::Pending => return 0,
                },
                Err(Errno::INTR) => {}
                // Closed, which the other direction finds out, or shut for reading.
                Err(_) if self.is_hung_up(cx) => return 0,
                Err(_) => {
                    self.deaf = true;
                    return bytes.len();
                }
            }
        }
    }

    /// The network takes no more; what it sent before must still reach the program, and then the error.
    fn write_failed(&mut self, error: &io::Error) -> Step {
        let errno = errno_of(error);
        self.up.clear();
        self.up_over = true;
        if self.down_over {
            return Step::Ended(End::Failed(errno));
        }
        self.failed = Some(errno);
        self.refuse_more();
        Step::Moved
    }

    /// Whoever waits for room is told at once that nothing is taken any more, also one who does not read: a write gives
    /// EPIPE, and there is room for it.
    fn refuse_more(&mut self) {
        let host = self.host.get_ref();
        let _ = shutdown(host, Shutdown::Read);
        SCRATCH.with_borrow_mut(|scratch| {
            while let Ok(len @ 2..) = rustix::io::ioctl_fionread(host) {
                // The stale byte stays.
                let len = usize::try_from(len - 1).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
                match recv(host, &mut scratch[..len], RecvFlags::DONTWAIT) {
                    Ok((1.., _)) => {}
                    _ => break,
                }
            }
        });
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
