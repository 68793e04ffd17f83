//! One bulk stream of the kernels' TCP over the wire: what others are compared with.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::Wire;

/// How long the receiver waits for the next byte before the stream counts as stuck.
const STUCK: Duration = Duration::from_secs(60);
/// Bytes of one call.
const CHUNK_LEN: usize = 128 * 1024;

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    /// The sender's TCP_CONGESTION, such as `cubic` or `bbr`.
    pub congestion: &'static str,
    /// How long is sent before the clock starts, so that the slow start is not measured.
    pub warm_up: Duration,
    /// How long is measured.
    pub duration: Duration,
}

/// What arrived.
#[derive(Debug, Clone, Copy)]
pub struct Goodput {
    /// Bytes that the receiving program took.
    pub bytes: u64,
    /// Within this time.
    pub duration: Duration,
}

impl Goodput {
    /// Returns bytes per second.
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.duration.as_secs_f64()
    }
}

pub(crate) fn measure(wire: &Wire, address: IpAddr, stream: Stream) -> io::Result<Goodput> {
    let address = SocketAddr::new(address, 0);
    let listener = wire.namespace(1).run(move || TcpListener::bind(address))?;
    let to = listener.local_addr()?;
    let receiver = wire.namespace(1).spawn(move || receive(&listener, stream));
    let sender = wire.namespace(0).spawn(move || send(to, stream));
    let sent = sender.join().expect("the sender does not panic");
    if sent.is_err() {
        // The receiver may still wait for a connection.
        let _ = wire.namespace(1).run(move || TcpStream::connect(to));
    }
    let received = receiver.join().expect("the receiver does not panic");
    sent?;
    received
}

/// Sends until the receiver closes.
fn send(to: SocketAddr, stream: Stream) -> io::Result<()> {
    let mut connection = TcpStream::connect(to)?;
    sockopt::set_tcp_congestion(&connection, stream.congestion)?;
    connection.set_write_timeout(Some(STUCK))?;
    let chunk = vec![0x5a; CHUNK_LEN];
    loop {
        match connection.write_all(&chunk) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Takes what comes until the time is over, then resets the connection.
fn receive(listener: &TcpListener, stream: Stream) -> io::Result<Goodput> {
    let (mut connection, _) = listener.accept()?;
    connection.set_read_timeout(Some(STUCK))?;
    sockopt::set_socket_linger(&connection, Some(Duration::ZERO))?;
    let mut chunk = vec![0; CHUNK_LEN];
    let mut take = |until: Instant| {
        let mut bytes = 0;
        while Instant::now() < until {
            match connection.read(&mut chunk)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                len => bytes += len as u64,
            }
        }
        Ok(bytes)
    };
    take(Instant::now() + stream.warm_up)?;
    let start = Instant::now();
    let bytes = take(start + stream.duration)?;
    Ok(Goodput { bytes, duration: start.elapsed() })
}
