//! What `bench` and `demo` move: bytes whose every position is known, round trips, datagrams.

use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;
use unisockets::{Node, TcpListener, TcpStream, UdpSocket};

/// The port of the workload on a serving node.
pub(super) const PORT: u16 = 7_070;
/// Longest request line, in bytes.
const LINE_LEN_MAX: u64 = 1_024;
/// Bytes of the repeated pattern: odd, so that no packet size divides it.
const PATTERN_LEN: usize = 1_048_573;
/// Bytes written or read at a time.
const CHUNK_LEN: usize = 256 * 1024;
/// How long a datagram's echo is waited for.
const DATAGRAM_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "test", rename_all = "lowercase")]
enum Request {
    /// The client sends so many bytes.
    Sink { bytes: u64 },
    /// The server sends so many bytes.
    Source { bytes: u64 },
    /// The server sends back what comes.
    Echo,
}

#[derive(Debug, Serialize, Deserialize)]
struct Verdict {
    bytes: u64,
    right: bool,
}

/// The bytes that travel: pseudo-random, the same on both sides.
struct Pattern(Vec<u8>);

impl Pattern {
    fn new() -> Pattern {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let words = PATTERN_LEN / 8 + 1;
        let mut bytes: Vec<u8> = (0..words).flat_map(|_| next()).collect();
        bytes.truncate(PATTERN_LEN);
        Pattern(bytes)
    }

    /// The longest piece at a position of the stream.
    fn at(&self, position: u64) -> &[u8] {
        let start = (position % PATTERN_LEN as u64) as usize;
        &self.0[start..]
    }

    fn matches(&self, mut position: u64, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            let piece = self.at(position);
            let len = piece.len().min(data.len());
            if piece[..len] != data[..len] {
                return false;
            }
            position += len as u64;
            data = &data[len..];
        }
        true
    }
}

async fn write_pattern(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: u64) -> io::Result<()> {
    let pattern = Pattern::new();
    let mut position = 0;
    while position < bytes {
        let piece = pattern.at(position);
        let len = piece.len().min(CHUNK_LEN).min(usize::try_from(bytes - position).unwrap_or(CHUNK_LEN));
        stream.write_all(&piece[..len]).await?;
        position += len as u64;
    }
    Ok(())
}

async fn read_pattern(stream: &mut (impl tokio::io::AsyncRead + Unpin), bytes: u64) -> io::Result<Verdict> {
    let pattern = Pattern::new();
    let mut buffer = vec![0; CHUNK_LEN];
    let mut verdict = Verdict { bytes: 0, right: true };
    while verdict.bytes < bytes {
        let len = buffer.len().min(usize::try_from(bytes - verdict.bytes).unwrap_or(CHUNK_LEN));
        match stream.read(&mut buffer[..len]).await? {
            0 => break,
            len => {
                verdict.right &= pattern.matches(verdict.bytes, &buffer[..len]);
                verdict.bytes += len as u64;
            }
        }
    }
    verdict.right &= verdict.bytes == bytes;
    Ok(verdict)
}

/// Serves the workload until the node ends.
pub(super) async fn serve(node: &Node) -> io::Result<()> {
    let listener = TcpListener::bind(node, ("::", PORT)).await?;
    let socket = UdpSocket::bind(node, ("::", PORT)).await?;
    let echoes = async {
        loop {
            // Errors of single datagrams, such as a peer that went, are no reason to stop.
            if let Ok(received) = socket.recv_message().await {
                let _ = socket.send_to(&received.data, received.source).await;
            }
        }
    };
    let streams = async {
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                if let Err(error) = answer(stream).await {
                    tracing::debug!(%error, "a client of the workload went");
                }
            });
        }
    };
    tokio::select! {
        () = echoes => Ok(()),
        result = streams => result,
    }
}

async fn answer(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(LINE_LEN_MAX).read_line(&mut line).await?;
    let request = serde_json::from_str(&line).map_err(io::Error::other)?;
    match request {
        Request::Sink { bytes } => {
            let verdict = read_pattern(&mut stream, bytes).await?;
            let verdict = serde_json::to_vec(&verdict).expect("a verdict has a JSON form");
            stream.write_all(&verdict).await?;
        }
        Request::Source { bytes } => write_pattern(&mut stream, bytes).await?,
        Request::Echo => {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    len => stream.write_all(&buffer[..len]).await?,
                }
            }
        }
    }
    stream.shutdown().await
}

async fn request(node: &Node, host: &str, request: Request) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(node, (host, PORT)).await?;
    stream.set_nodelay(true)?;
    let line = serde_json::to_string(&request).expect("a request has a JSON form") + "\n";
    stream.write_all(line.as_bytes()).await?;
    Ok(stream)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "bytes arrived damaged or not at all")
}

fn mb_per_s(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64()
}

/// Sends bytes to the other side, which checks every one; returns MB/s.
pub(super) async fn upload(node: &Node, host: &str, bytes: u64) -> io::Result<f64> {
    let mut stream = request(node, host, Request::Sink { bytes }).await?;
    let started = Instant::now();
    write_pattern(&mut stream, bytes).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let elapsed = started.elapsed();
    let verdict: Verdict = serde_json::from_slice(&answer).map_err(|_| damaged())?;
    if verdict.right && verdict.bytes == bytes { Ok(mb_per_s(bytes, elapsed)) } else { Err(damaged()) }
}

/// Takes bytes from the other side and checks every one; returns MB/s.
pub(super) async fn download(node: &Node, host: &str, bytes: u64) -> io::Result<f64> {
    let mut stream = request(node, host, Request::Source { bytes }).await?;
    let started = Instant::now();
    let verdict = read_pattern(&mut stream, bytes).await?;
    let elapsed = started.elapsed();
    if verdict.right { Ok(mb_per_s(bytes, elapsed)) } else { Err(damaged()) }
}

/// Round trips in order of their length, in microseconds.
#[derive(Debug, Clone)]
pub(super) struct RoundTrips(Vec<u64>);

impl RoundTrips {
    pub(super) fn percentile(&self, percent: usize) -> u64 {
        let index = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(index).copied().unwrap_or(0)
    }
}

/// Measures round trips of 128 bytes over one connection.
pub(super) async fn round_trips(node: &Node, host: &str, count: u32) -> io::Result<RoundTrips> {
    let mut stream = request(node, host, Request::Echo).await?;
    let (message, mut echo) = ([0x5a; 128], [0; 128]);
    let mut micros = Vec::with_capacity(count as usize);
    for round in 0..count + count / 10 {
        let started = Instant::now();
        stream.write_all(&message).await?;
        stream.read_exact(&mut echo).await?;
        if echo != message {
            return Err(damaged());
        }
        // The first tenth warms caches up.
        if round >= count / 10 {
            micros.push(started.elapsed().as_micros() as u64);
        }
    }
    micros.sort_unstable();
    Ok(RoundTrips(micros))
}

/// What became of datagrams that the other side sends back.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Datagrams {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) largest: usize,
}

/// Sends datagrams of many sizes one after the other and compares what comes back.
pub(super) async fn datagrams(node: &Node, host: &str, sizes: &[usize]) -> io::Result<Datagrams> {
    let socket = UdpSocket::bind(node, "[::]:0").await?;
    socket.connect((host, PORT)).await?;
    let pattern = Pattern::new();
    let mut result = Datagrams::default();
    for size in sizes {
        let data = &pattern.at(*size as u64)[..*size];
        socket.send(data).await?;
        result.sent += 1;
        match timeout(DATAGRAM_LIMIT, socket.recv_message()).await {
            Ok(received) if received.as_ref().is_ok_and(|received| received.data == data) => {
                result.received += 1;
                result.largest = result.largest.max(*size);
            }
            Ok(Ok(_)) => return Err(damaged()),
            Ok(Err(error)) => return Err(error),
            // A datagram may be lost; it is counted.
            Err(_) => {}
        }
    }
    Ok(result)
}
