//! ICMP echo: is a member there, and how far away?

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use unisockets_stack::{Kind, Received};

use crate::driver::Interest;
use crate::handle::Node;
use crate::resolve::{ToAddress, io_error};
use crate::tcp::{Socket, family_of, unspecified};

/// Asks a member for echoes.
pub struct Ping {
    socket: Socket,
    target: SocketAddr,
    sequence: u16,
}

/// An echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Number of the request, from 0.
    pub sequence: u16,
    /// The time from request to echo.
    pub round_trip: Duration,
    /// Bytes of payload.
    pub len: usize,
    /// Hop limit of the echo.
    pub hop_limit: u8,
}

impl Ping {
    /// Prepares to ping a member by name or address.
    ///
    /// # Errors
    /// `NotFound` for a name that nobody has, `NetworkUnreachable`.
    pub async fn new(node: &Node, host: &str) -> io::Result<Ping> {
        let target = node.address(&(host, 0).to_target()?).await?;
        let socket = Socket::open(node, Kind::Echo, family_of(target))?;
        let any = SocketAddr::new(unspecified(target.is_ipv4()), 0);
        socket.driver.with(|state, _, _| state.core.stack.bind(socket.id, any)).map_err(io_error)?;
        Ok(Ping { socket, target, sequence: 0 })
    }

    /// Returns the address that is pinged.
    pub fn target(&self) -> IpAddr {
        self.target.ip()
    }

    /// Sends a request with `len` bytes of payload and waits for its echo.
    ///
    /// # Errors
    /// `TimedOut` after `limit`, `HostUnreachable`, `InvalidData` if the echo differs from the request.
    pub async fn echo(&mut self, len: usize, limit: Duration) -> io::Result<Echo> {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = sequence.to_be_bytes().to_vec();
        request.extend((0..len).map(|n| n as u8));
        let (id, target) = (self.socket.id, self.target);
        let sent = Instant::now();
        let exchange = async {
            std::future::poll_fn(|cx| {
                self.socket.poll(cx, Interest::Write, |stack, now| stack.send_to(now, id, &request, Some(target)))
            })
            .await?;
            loop {
                let received =
                    std::future::poll_fn(|cx| self.socket.poll(cx, Interest::Read, |stack, _| stack.recv_from(id)))
                        .await?;
                // Echoes of earlier requests may still be on their way.
                if received.data.get(..2) == Some(&request[..2]) {
                    return Ok::<Received, io::Error>(received);
                }
            }
        };
        let received = timeout(limit, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let round_trip = sent.elapsed();
        if received.data != request {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the echo differs from the request"));
        }
        Ok(Echo { sequence, round_trip, len, hop_limit: received.hop_limit })
    }
}
