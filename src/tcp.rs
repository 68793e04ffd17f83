//! TCP sockets in the shape of tokio's.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use unisockets_stack::{Error, Family, Kind, Options, Readiness, Shutdown, SocketId, SocketOption, StreamInfo};

use crate::driver::{Driver, Interest};
use crate::handle::Node;
use crate::resolve::{Target, ToAddress, io_error};

/// Default backlog of a listener (as of the standard library on Linux).
const BACKLOG: usize = 4_096;

/// A socket of the stack that is closed when it is dropped.
pub(crate) struct Socket {
    pub(crate) driver: Arc<Driver>,
    pub(crate) id: SocketId,
}

impl Socket {
    pub(crate) fn open(node: &Node, kind: Kind, family: Family) -> io::Result<Socket> {
        let driver = Arc::clone(node.driver());
        let id = driver.with(|state, _, _| state.core.stack.socket(kind, family)).map_err(io_error)?;
        Ok(Socket { driver, id })
    }

    /// Tries something; while it would wait, the task is woken when the socket is ready.
    pub(crate) fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        f: impl FnOnce(&mut unisockets_stack::Stack, unisockets_stack::Instant) -> Result<R, Error>,
    ) -> Poll<io::Result<R>> {
        self.driver.with(|state, now, _| match f(&mut state.core.stack, now) {
            Ok(result) => Poll::Ready(Ok(result)),
            Err(Error::Again) => {
                state.wait(self.id, interest, cx.waker());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(io_error(error))),
        })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.driver.look(|state| state.core.stack.local_address(self.id)).map_err(io_error)
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.driver.look(|state| state.core.stack.peer_address(self.id)).map_err(io_error)
    }

    pub(crate) fn set_option(&self, option: SocketOption) -> io::Result<()> {
        self.driver.with(|state, _, _| state.core.stack.set_option(self.id, option)).map_err(io_error)
    }

    pub(crate) fn options(&self) -> io::Result<Options> {
        self.driver.look(|state| state.core.stack.options(self.id)).map_err(io_error)
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.driver.with(|state, now, _| state.core.stack.shutdown(now, self.id, how)).map_err(io_error)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.driver.with(|state, now, wake| state.close(now, self.id, wake));
        self.driver.changed.notify_waiters();
    }
}

/// Finds the address to bind to; a name must be the node's own.
pub(crate) async fn own_address(node: &Node, address: impl ToAddress) -> io::Result<SocketAddr> {
    match address.to_target()? {
        Target::Address(address) => Ok(address),
        Target::Name(name, port) if Some(&name) == node.name().as_ref() => {
            Ok(SocketAddr::new(IpAddr::V4(node.ipv4()), port))
        }
        target => node.address(&target).await,
    }
}

pub(crate) fn family_of(address: SocketAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// A listening TCP socket. `[::]:PORT` takes IPv6 and IPv4.
pub struct TcpListener {
    socket: Socket,
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener").field("local", &self.local_addr().ok()).finish()
    }
}

impl TcpListener {
    /// Listens at an address of the node; port 0 takes a free one.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`, `InvalidInput` as of `bind(2)` and `listen(2)`.
    pub async fn bind(node: &Node, address: impl ToAddress) -> io::Result<TcpListener> {
        let address = own_address(node, address).await?;
        let socket = Socket::open(node, Kind::Tcp, family_of(address))?;
        socket
            .driver
            .with(|state, _, _| {
                state.core.stack.bind(socket.id, address)?;
                state.core.stack.listen(socket.id, BACKLOG)
            })
            .map_err(io_error)?;
        Ok(TcpListener { socket })
    }

    /// Takes the next connection and the address of its other end.
    ///
    /// # Errors
    /// Those of `accept(2)`. Cancelling loses nothing.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`TcpListener::accept`], for those who poll.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let id = self.socket.id;
        let (socket, peer) = ready!(self.socket.poll(cx, Interest::Read, |stack, now| stack.accept(now, id)))?;
        let socket = Socket { driver: Arc::clone(&self.socket.driver), id: socket };
        Poll::Ready(Ok((TcpStream { socket }, peer)))
    }

    /// Returns the address that it listens on.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sets an option, which connections inherit.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn set_option(&self, option: SocketOption) -> io::Result<()> {
        self.socket.set_option(option)
    }
}

/// A TCP connection.
pub struct TcpStream {
    socket: Socket,
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream")
            .field("local", &self.local_addr().ok())
            .field("peer", &self.peer_addr().ok())
            .finish()
    }
}

impl TcpStream {
    /// Connects to a member: `alpha:80`, `10.80.0.1:80`, `[fd75:…]:80`.
    ///
    /// # Errors
    /// `ConnectionRefused`, `TimedOut`, `HostUnreachable`, `NetworkUnreachable` as of `connect(2)`, `NotFound` for
    /// a name that nobody has.
    pub async fn connect(node: &Node, address: impl ToAddress) -> io::Result<TcpStream> {
        Self::connect_with(node, address, &[]).await
    }

    /// Connects with options that must be set before, such as buffer sizes.
    ///
    /// # Errors
    /// As [`TcpStream::connect`] and `setsockopt(2)`.
    pub async fn connect_with(node: &Node, address: impl ToAddress, options: &[SocketOption]) -> io::Result<TcpStream> {
        let address = node.address(&address.to_target()?).await?;
        let socket = Socket::open(node, Kind::Tcp, family_of(address))?;
        for option in options {
            socket.set_option(*option)?;
        }
        match socket.driver.with(|state, now, _| state.core.stack.connect(now, socket.id, address)) {
            Ok(()) | Err(Error::InProgress) => {}
            Err(error) => return Err(io_error(error)),
        }
        let stream = TcpStream { socket };
        std::future::poll_fn(|cx| stream.poll_connected(cx)).await?;
        Ok(stream)
    }

    fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let id = self.socket.id;
        self.socket.poll(cx, Interest::Write, |stack, _| {
            if let Some(error) = stack.take_error(id)? {
                return Err(error);
            }
            if stack.readiness(id).intersects(Readiness::WRITABLE | Readiness::HANG_UP) {
                return Ok(());
            }
            Err(Error::Again)
        })
    }

    /// Returns this end's address.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Returns the other end's address.
    ///
    /// # Errors
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// Sets TCP_NODELAY: small segments leave at once.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn set_nodelay(&self, no_delay: bool) -> io::Result<()> {
        self.socket.set_option(SocketOption::NoDelay(no_delay))
    }

    /// Sets SO_LINGER; zero makes closing a reset.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.socket.set_option(SocketOption::Linger(linger))
    }

    /// Sets any option.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn set_option(&self, option: SocketOption) -> io::Result<()> {
        self.socket.set_option(option)
    }

    /// Returns the options.
    ///
    /// # Errors
    /// Those of `getsockopt(2)`.
    pub fn options(&self) -> io::Result<Options> {
        self.socket.options()
    }

    /// Returns the connection's counters (TCP_INFO).
    ///
    /// # Errors
    /// `NotConnected`.
    pub fn info(&self) -> io::Result<StreamInfo> {
        self.socket.driver.look(|state| state.core.stack.stream_info(self.socket.id)).map_err(io_error)
    }

    /// Copies received bytes without taking them (MSG_PEEK).
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub async fn peek(&self, data: &mut [u8]) -> io::Result<usize> {
        let id = self.socket.id;
        std::future::poll_fn(|cx| self.socket.poll(cx, Interest::Read, |stack, _| stack.peek(id, data))).await
    }

    /// Fills `data` (MSG_WAITALL); returns less only when the stream ends, or fails, before. What was received until
    /// then is not lost: an error after some bytes is given by the next call.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub async fn recv_all(&self, data: &mut [u8]) -> io::Result<usize> {
        let id = self.socket.id;
        let mut received = 0;
        while received < data.len() {
            let rest = &mut data[received..];
            let wait = std::future::poll_fn(|cx| {
                self.socket.poll(cx, Interest::Read, |stack, _| {
                    let least = rest.len();
                    stack.recv_at_least(id, rest, least)
                })
            });
            match wait.await {
                Ok(0) => break,
                Ok(n) => received += n,
                Err(_) if received > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(received)
    }

    /// Shuts one or both directions (`shutdown(2)`).
    ///
    /// # Errors
    /// `NotConnected`.
    pub fn shutdown_now(&self, how: Shutdown) -> io::Result<()> {
        self.socket.shutdown(how)
    }

    /// Waits until neither direction can carry anything any more: failed, or closed by both ends.
    pub async fn hung_up(&self) {
        let id = self.socket.id;
        let over = |stack: &mut unisockets_stack::Stack| {
            let over = stack.readiness(id).intersects(Readiness::HANG_UP | Readiness::ERROR);
            if over { Ok(()) } else { Err(Error::Again) }
        };
        let _ = std::future::poll_fn(|cx| self.socket.poll(cx, Interest::Write, |stack, _| over(stack))).await;
    }

    /// Splits into halves for two tasks; dropping the writing half shuts the sending direction.
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let stream = Arc::new(self);
        (OwnedReadHalf { stream: Arc::clone(&stream) }, OwnedWriteHalf { stream })
    }

    fn poll_recv(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let id = self.socket.id;
        let unfilled = buffer.initialize_unfilled();
        let received = ready!(self.socket.poll(cx, Interest::Read, |stack, _| {
            let least = stack.options(id)?.receive_low_water;
            stack.recv_at_least(id, unfilled, least)
        }))?;
        buffer.advance(received);
        Poll::Ready(Ok(()))
    }

    fn poll_send(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let id = self.socket.id;
        self.socket.poll(cx, Interest::Write, |stack, now| stack.send(now, id, data))
    }

    fn poll_shut(&self) -> Poll<io::Result<()>> {
        match self.shutdown_now(Shutdown::Write) {
            // What is not connected any more needs no shutting, as in tokio.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_recv(cx, buffer)
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_shut()
    }
}

/// The reading half of a connection.
#[derive(Debug)]
pub struct OwnedReadHalf {
    stream: Arc<TcpStream>,
}

impl OwnedReadHalf {
    /// As [`TcpStream::hung_up`].
    pub async fn hung_up(&self) {
        self.stream.hung_up().await;
    }
}

impl AsyncRead for OwnedReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_recv(cx, buffer)
    }
}

/// The writing half of a connection.
#[derive(Debug)]
pub struct OwnedWriteHalf {
    stream: Arc<TcpStream>,
}

impl AsyncWrite for OwnedWriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.poll_send(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_shut()
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        let _ = self.stream.shutdown_now(Shutdown::Write);
    }
}

/// Returns the unspecified address of a family.
pub(crate) fn unspecified(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
