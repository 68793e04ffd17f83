//! UDP sockets in the shape of tokio's.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use unisockets_stack::{Kind, Received, SocketOption};

use crate::driver::Interest;
use crate::handle::Node;
use crate::resolve::{ToAddress, io_error};
use crate::tcp::{Socket, family_of, own_address};

/// A UDP socket. `[::]:PORT` takes IPv6 and IPv4. Datagrams of up to 65,507 bytes arrive whole or not at all.
pub struct UdpSocket {
    socket: Socket,
    node: Node,
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket").field("local", &self.local_addr().ok()).finish()
    }
}

impl UdpSocket {
    /// Binds to an address of the node; port 0 takes a free one.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub async fn bind(node: &Node, address: impl ToAddress) -> io::Result<UdpSocket> {
        let address = own_address(node, address).await?;
        let socket = Socket::open(node, Kind::Udp, family_of(address))?;
        socket.driver.with(|state, _, _| state.core.stack.bind(socket.id, address)).map_err(io_error)?;
        Ok(UdpSocket { socket, node: node.clone() })
    }

    /// Sets the peer: only its datagrams are received, and [`UdpSocket::send`] goes there.
    ///
    /// # Errors
    /// Those of `connect(2)`, `NotFound` for a name that nobody has.
    pub async fn connect(&self, address: impl ToAddress) -> io::Result<()> {
        let address = self.node.address(&address.to_target()?).await?;
        let id = self.socket.id;
        self.socket.driver.with(|state, now, _| state.core.stack.connect(now, id, address)).map_err(io_error)
    }

    /// Sends a datagram, waiting while the way to the peer is full.
    ///
    /// # Errors
    /// Those of `sendto(2)`.
    pub async fn send_to(&self, data: &[u8], address: impl ToAddress) -> io::Result<usize> {
        let address = self.node.address(&address.to_target()?).await?;
        std::future::poll_fn(|cx| self.poll_send(cx, data, Some(address))).await
    }

    /// Sends a datagram to the connected peer.
    ///
    /// # Errors
    /// Those of `send(2)`.
    pub async fn send(&self, data: &[u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_send(cx, data, None)).await
    }

    fn poll_send(&self, cx: &mut Context<'_>, data: &[u8], to: Option<SocketAddr>) -> Poll<io::Result<usize>> {
        let id = self.socket.id;
        self.socket.poll(cx, Interest::Write, |stack, now| stack.send_to(now, id, data, to))
    }

    /// Takes the next datagram into `data`; what does not fit is cut off.
    ///
    /// # Errors
    /// Those of `recvfrom(2)`.
    pub async fn recv_from(&self, data: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let received = self.recv_message().await?;
        let len = received.data.len().min(data.len());
        data[..len].copy_from_slice(&received.data[..len]);
        Ok((len, received.source))
    }

    /// Takes the next datagram of the connected peer.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub async fn recv(&self, data: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv_from(data).await?.0)
    }

    /// Takes the next datagram whole, with its source, its destination and its hop limit.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`.
    pub async fn recv_message(&self) -> io::Result<Received> {
        let id = self.socket.id;
        std::future::poll_fn(|cx| self.socket.poll(cx, Interest::Read, |stack, _| stack.recv_from(id))).await
    }

    /// Joins a multicast group: its datagrams come from every member that is linked.
    ///
    /// # Errors
    /// `InvalidInput` if the address is no group, `AddrInUse` if the socket is in it.
    pub fn join_group(&self, group: IpAddr) -> io::Result<()> {
        let id = self.socket.id;
        self.socket.driver.with(|state, _, _| state.core.stack.join_group(id, group)).map_err(io_error)
    }

    /// Leaves a multicast group.
    ///
    /// # Errors
    /// `AddrNotAvailable` if the socket is not in it.
    pub fn leave_group(&self, group: IpAddr) -> io::Result<()> {
        let id = self.socket.id;
        self.socket.driver.with(|state, _, _| state.core.stack.leave_group(id, group)).map_err(io_error)
    }

    /// Returns the socket's address.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Returns the connected peer's address.
    ///
    /// # Errors
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// Sets an option.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn set_option(&self, option: SocketOption) -> io::Result<()> {
        self.socket.set_option(option)
    }
}
