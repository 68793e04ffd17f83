//! A node that loads the network as it is told: `unisockets-bench node URL NAME`.
//!
//! One command a line on standard input, one line of JSON as its answer; the end of standard input ends it. It takes
//! every stream and datagram that comes, and counts; bytes are not compared here, other suites do that.

use std::cell::RefCell;
use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};
use tracing_subscriber::EnvFilter;
use unisockets::{Config, Node, Ping, TcpListener, TcpStream, UdpSocket};

use crate::processes::Failure;

/// Where every such node takes streams and datagrams.
const PORT: u16 = 7_070;
/// Bytes written or read at a time.
const CHUNK_LEN: usize = 256 * 1024;
/// Datagrams sent before other tasks of the node have their turn.
const BURST_LEN: u64 = 64;
/// How often a paced flood is caught up with.
const PACE: Duration = Duration::from_millis(1);
/// How long joining is tried: the wire may be a bad one.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// How long an echo is waited for.
const ECHO_LIMIT: Duration = Duration::from_secs(5);

/// What came and went so far.
#[derive(Default)]
struct Counts {
    /// Bytes of each stream, in the order of their arrival.
    streams: Vec<u64>,
    received: u64,
    sent: u64,
}

struct Load {
    node: Node,
    counts: Rc<RefCell<Counts>>,
    started: Instant,
    flows: Vec<JoinHandle<()>>,
}

/// Runs until standard input ends.
pub(crate) fn run(url: &str, name: &str) -> ExitCode {
    // Says nothing unless UNISOCKETS_LOG asks for it.
    let filter = EnvFilter::from_env("UNISOCKETS_LOG");
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    // One thread, as the command-line tool has.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("the operating system gives a runtime its descriptors");
    let result = LocalSet::new().block_on(&runtime, obey(url, name));
    // A read of standard input may still hang in a thread of its own.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn obey(url: &str, name: &str) -> Result<(), Failure> {
    let mut config = Config::new(url).name(name).ephemeral();
    config.join_timeout = JOIN_LIMIT;
    let node = Node::join(config).await?;
    let counts = Rc::default();
    spawn_local(take_streams(TcpListener::bind(&node, ("::", PORT)).await?, Rc::clone(&counts)));
    spawn_local(take_datagrams(UdpSocket::bind(&node, ("::", PORT)).await?, Rc::clone(&counts)));
    let mut load = Load { node, counts, started: Instant::now(), flows: Vec::new() };
    println!("{}", json!({"name": name}));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = load.carry_out(&words).await.unwrap_or_else(|error| json!({"error": error.to_string()}));
        println!("{answer}");
    }
    Ok(())
}

impl Load {
    async fn carry_out(&mut self, words: &[&str]) -> Result<Value, Failure> {
        match words {
            ["stream", host] => {
                let stream = TcpStream::connect(&self.node, (*host, PORT)).await?;
                self.flows.push(spawn_local(fill(stream)));
                Ok(json!({}))
            }
            ["flood", host, size, rate] => {
                let socket = UdpSocket::bind(&self.node, "[::]:0").await?;
                socket.connect((*host, PORT)).await?;
                let (size, rate) = (size.parse()?, rate.parse()?);
                self.flows.push(spawn_local(flood(socket, size, rate, Rc::clone(&self.counts))));
                Ok(json!({}))
            }
            ["ping", host, count, pause_ms] => {
                self.ping(host, count.parse()?, Duration::from_millis(pause_ms.parse()?)).await
            }
            ["counts"] => {
                let counts = self.counts.borrow();
                let at_us = self.started.elapsed().as_micros() as u64;
                Ok(json!({
                    "at_us": at_us, "streams": counts.streams, "received": counts.received, "sent": counts.sent,
                }))
            }
            ["status"] => Ok(serde_json::to_value(self.node.status())?),
            ["stop"] => {
                self.flows.drain(..).for_each(|flow| flow.abort());
                Ok(json!({}))
            }
            _ => Err("no such command".into()),
        }
    }

    /// Asks for echoes over the same link that the flows use.
    async fn ping(&self, host: &str, count: usize, pause: Duration) -> Result<Value, Failure> {
        let mut ping = Ping::new(&self.node, host).await?;
        let (mut round_trips_us, mut unanswered) = (Vec::with_capacity(count), 0);
        for _ in 0..count {
            match ping.echo(56, ECHO_LIMIT).await {
                Ok(echo) => round_trips_us.push(echo.round_trip.as_micros() as u64),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => unanswered += 1,
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(pause).await;
        }
        Ok(json!({"round_trips_us": round_trips_us, "unanswered": unanswered}))
    }
}

async fn take_streams(listener: TcpListener, counts: Rc<RefCell<Counts>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let counts = Rc::clone(&counts);
        let number = counts.borrow().streams.len();
        counts.borrow_mut().streams.push(0);
        spawn_local(async move {
            let mut chunk = vec![0; CHUNK_LEN];
            while let Ok(len @ 1..) = stream.read(&mut chunk).await {
                counts.borrow_mut().streams[number] += len as u64;
            }
        });
    }
}

async fn take_datagrams(socket: UdpSocket, counts: Rc<RefCell<Counts>>) {
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors of single datagrams, such as a peer that went, are no reason to stop.
        if socket.recv_from(&mut buffer).await.is_ok() {
            counts.borrow_mut().received += 1;
        }
    }
}

/// Writes until the flow is stopped.
async fn fill(mut stream: TcpStream) {
    let chunk = vec![0x5a; CHUNK_LEN];
    while stream.write_all(&chunk).await.is_ok() {}
}

/// Sends datagrams of a size until the flow is stopped: so many a second, or as many as go.
async fn flood(socket: UdpSocket, size: usize, rate: u64, counts: Rc<RefCell<Counts>>) {
    let data = vec![0x5a; size];
    let (started, mut sent) = (Instant::now(), 0);
    loop {
        let due = match rate {
            0 => sent + BURST_LEN,
            rate => (started.elapsed().as_micros() as u64 * rate / 1_000_000).min(sent + BURST_LEN),
        };
        if sent == due {
            tokio::time::sleep(PACE).await;
            continue;
        }
        while sent < due {
            if socket.send(&data).await.is_ok() {
                counts.borrow_mut().sent += 1;
            }
            sent += 1;
        }
        yield_now().await;
    }
}
