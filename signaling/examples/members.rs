//! Many members in one process, each from an address of its own in 127.0.0.0/8: the load of `bench/src/members.rs`.
//!
//! `members URL NETWORK` reads orders from its input, one in a line, and answers each with a line of JSON. `join COUNT
//! IN_FLIGHT` lets that many new members in, so many at a time, and keeps them. `frames` says how many messages all
//! members have heard. The end of the input ends the process. A member that is refused, or put out, ends it with an
//! error: nothing is tried again.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use unisockets_signaling::identity::{KeyPair, digest};
use unisockets_signaling::member::{Config, Event, Membership};
use unisockets_signaling::native::Url;
use unisockets_signaling::network::Network;
use unisockets_signaling::protocol::Nonce;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long all joins of one order may take.
const LIMIT: Duration = Duration::from_secs(120);

struct Load {
    url: Url,
    server: SocketAddr,
    network: Arc<Network>,
    /// Tells the keys of this process from those of another.
    seed: [u8; 32],
    next: AtomicU32,
    frames: AtomicU64,
    origin: Instant,
}

/// How long a join took, or why there was none.
type Outcome = Result<Duration, Failure>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, url, network] = &arguments[..] else {
        return Err("usage: members URL NETWORK".into());
    };
    // Each member is an open file.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let url = Url::parse(url)?;
    let load = Arc::new(Load {
        server: url.host().parse()?,
        url,
        network: Arc::new(Network::new(network, None)?),
        seed: random(),
        next: AtomicU32::new(0),
        frames: AtomicU64::new(0),
        origin: Instant::now(),
    });
    let (orders, mut inbox) = mpsc::channel(1);
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| orders.blocking_send(line))
    });
    let (outcomes, mut joined) = mpsc::unbounded_channel();
    loop {
        let order = tokio::select! {
            order = inbox.recv() => order,
            // Only a member that was let in before can report something now.
            late = joined.recv() => return Err(late.and_then(Result::err).unwrap_or_else(|| "nobody is left".into())),
        };
        let Some(order) = order else {
            return Ok(());
        };
        let words: Vec<&str> = order.split_whitespace().collect();
        let answer = match words[..] {
            ["join", count, in_flight] => {
                let join = join(&load, count.parse()?, in_flight.parse()?, &outcomes, &mut joined);
                tokio::time::timeout(LIMIT, join).await??
            }
            ["frames"] => serde_json::json!({ "frames": load.frames.load(Ordering::Relaxed) }),
            _ => return Err(format!("'{order}' is no order").into()),
        };
        writeln!(std::io::stdout(), "{answer}")?;
    }
}

/// Lets new members in and says how long it took.
async fn join(
    load: &Arc<Load>,
    count: usize,
    in_flight: usize,
    outcomes: &mpsc::UnboundedSender<Outcome>,
    joined: &mut mpsc::UnboundedReceiver<Outcome>,
) -> Result<serde_json::Value, Failure> {
    let room = Arc::new(Semaphore::new(in_flight));
    let started = Instant::now();
    for _ in 0..count {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let (load, outcomes) = (Arc::clone(load), outcomes.clone());
        tokio::spawn(async move {
            if let Err(error) = be_a_member(&load, permit, &outcomes).await {
                let _ = outcomes.send(Err(error));
            }
        });
    }
    let mut millis = Vec::with_capacity(count);
    for _ in 0..count {
        let took = joined.recv().await.ok_or("the members are gone")??;
        millis.push(took.as_secs_f64() * 1e3);
    }
    let seconds = started.elapsed().as_secs_f64();
    millis.sort_by(f64::total_cmp);
    let at = |part: usize| millis.get((millis.len() * part / 100).min(millis.len().saturating_sub(1)));
    Ok(serde_json::json!({ "seconds": seconds, "p50_ms": at(50), "p99_ms": at(99) }))
}

/// One member, from its connection to the end of the process.
async fn be_a_member(
    load: &Load,
    permit: OwnedSemaphorePermit,
    outcomes: &mpsc::UnboundedSender<Outcome>,
) -> Result<(), Failure> {
    let started = Instant::now();
    let now_ms = || u64::try_from(load.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let number = load.next.fetch_add(1, Ordering::Relaxed);
    let mut membership = Membership::new(Config {
        network: Arc::clone(&load.network),
        pair: KeyPair::from_seed(&digest("load", &[&load.seed, &number.to_be_bytes()])),
        name: None,
        ipv4: None,
        ephemeral: true,
        host: load.url.host().to_owned(),
    });
    membership.handle_timeout(now_ms());
    let mut socket = connect(load, number).await?;
    let mut permit = Some(permit);
    while let Some(message) = socket.next().await {
        // Pings are answered by the library. A run is over long before a lease has to be renewed.
        let Message::Text(frame) = message? else {
            continue;
        };
        load.frames.fetch_add(1, Ordering::Relaxed);
        membership.handle_frame(now_ms(), &frame, Nonce::new(random()));
        while let Some(frame) = membership.poll_frame() {
            socket.send(Message::Text(frame.into())).await?;
        }
        match membership.poll_event() {
            Some(Event::Joined(_)) => {
                let _ = outcomes.send(Ok(started.elapsed()));
                permit.take();
            }
            Some(event) => return Err(format!("a member has heard: {event:?}").into()),
            None => {}
        }
    }
    Err("the server has closed a connection".into())
}

async fn connect(load: &Load, number: u32) -> Result<WebSocketStream<tokio::net::TcpStream>, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source(number), 0)))?;
    let stream = socket.connect(load.server).await?;
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default().read_buffer_size(4 * 1024).write_buffer_size(0);
    Ok(client_async_with_config(load.url.as_str(), stream, Some(config)).await?.0)
}

/// Returns an address of loopback that no other member of this process has.
fn source(number: u32) -> Ipv4Addr {
    let [high, middle, low] = [number / 62_500, number / 250, number].map(|n| u8::try_from(n % 250).unwrap_or(0));
    Ipv4Addr::new(127, 1 + low, middle, 1 + high)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has a random source");
    bytes
}
