//! Other designs of lanes than the link's, to be compared with it (`bench/run lanes`).
//!
//! Arguments: `offer` or `answer`; the local address; then `streams`, their number, the size of messages and the bytes
//! that may be outstanding in all: the one who offers fills reliable ordered channels of one association. Or `tunnel`,
//! the paths of two Unix sockets, the own and the other end's, and the bytes again: their datagrams travel on one
//! channel, unordered and sent once. Descriptions are exchanged over standard input and output, one JSON line each way;
//! each further line of input is answered with the bytes received and the microseconds passed, and the end of input
//! ends the program.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rtc::ice::mdns::MulticastDnsMode;
use rtc::peer_connection::configuration::setting_engine::SctpMaxMessageSize;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin, stdin};
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::time::timeout;
use webrtc::data_channel::{DataChannel, DataChannelEvent, RTCDataChannelInit};
use webrtc::peer_connection::{
    PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCIceGatheringState, SettingEngineBuilder,
};

#[path = "../src/sockets.rs"]
mod sockets;

/// The same as a link's (`native.rs`).
const RECEIVE_WINDOW: u32 = 4 * 1024 * 1024;
/// No experiment takes longer.
const LIFE: Duration = Duration::from_secs(120);

type Failure = Box<dyn std::error::Error>;
type Channels = Vec<Arc<dyn DataChannel>>;

struct Gathering(mpsc::Sender<()>);

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Gathering {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        if state == RTCIceGatheringState::Complete {
            let _ = self.0.try_send(());
        }
    }
}

async fn describe(connection: &dyn PeerConnection) -> Result<(), Failure> {
    let description = connection.local_description().await.ok_or("no description")?;
    println!("{}", serde_json::to_string(&description)?);
    Ok(())
}

/// Opens the channels and waits until all are.
async fn open(
    role: &str,
    address: IpAddr,
    kind: &RTCDataChannelInit,
    (number, outstanding_max): (u16, usize),
    input: &mut Lines<BufReader<Stdin>>,
) -> Result<(Box<dyn PeerConnection>, Channels), Failure> {
    let (gathered, mut gathering) = mpsc::channel(1);
    let settings = SettingEngineBuilder::new()
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .with_include_loopback_candidate(true)
        .with_sctp_max_message_size(SctpMaxMessageSize::Bounded(65_535))
        .with_sctp_max_receive_buffer_size(RECEIVE_WINDOW)
        .build();
    let connection = PeerConnectionBuilder::<std::net::SocketAddr>::new()
        .with_setting_engine(settings)
        .with_runtime(Arc::new(sockets::TunedRuntime::new(None, Arc::default())))
        .with_handler(Arc::new(Gathering(gathered)))
        .with_udp_addrs(vec![(address, 0).into()])
        .with_data_channel_send_buffer_limit(outstanding_max / usize::from(number))
        .build()
        .await?;
    let mut channels: Channels = Vec::new();
    for id in 0..number {
        let init = RTCDataChannelInit { negotiated: Some(id), ..kind.clone() };
        channels.push(connection.create_data_channel("lane", Some(init)).await?);
    }
    let mut hear = async || -> Result<_, Failure> {
        Ok(serde_json::from_str(&input.next_line().await?.ok_or("no description of the other end")?)?)
    };
    if role == "offer" {
        let offer = connection.create_offer(None).await?;
        connection.set_local_description(offer).await?;
        gathering.recv().await;
        describe(&connection).await?;
        connection.set_remote_description(hear().await?).await?;
    } else {
        connection.set_remote_description(hear().await?).await?;
        let answer = connection.create_answer(None).await?;
        connection.set_local_description(answer).await?;
        gathering.recv().await;
        describe(&connection).await?;
    }
    for channel in &channels {
        while !matches!(channel.poll().await.ok_or("a channel ended")?, DataChannelEvent::OnOpen) {}
    }
    Ok((Box::new(connection), channels))
}

/// Sends for ever.
async fn fill(channel: Arc<dyn DataChannel>, size: usize) {
    let message = vec![0x5a; size];
    while channel.send(BytesMut::from(&message[..])).await.is_ok() {}
}

/// Takes what comes, and hands it on if there is somebody.
async fn take(channel: Arc<dyn DataChannel>, received: Arc<AtomicU64>, to: Option<Arc<UnixDatagram>>) {
    while let Some(event) = channel.poll().await {
        if let DataChannelEvent::OnMessage(message) = event {
            received.fetch_add(message.data.len() as u64, Ordering::Relaxed);
            if let Some(to) = &to {
                let _ = to.send(&message.data).await;
            }
        }
    }
}

async fn carry(from: Arc<UnixDatagram>, channel: Arc<dyn DataChannel>) {
    let mut packet = vec![0; 65_536];
    while let Ok(len) = from.recv(&mut packet).await {
        if channel.send(BytesMut::from(&packet[..len])).await.is_err() {
            return;
        }
    }
}

async fn run(arguments: &[String]) -> Result<(), Failure> {
    let mut input = BufReader::new(stdin()).lines();
    let received = Arc::new(AtomicU64::new(0));
    let reliable = RTCDataChannelInit { ordered: true, ..RTCDataChannelInit::default() };
    let once = RTCDataChannelInit { ordered: false, max_retransmits: Some(0), ..RTCDataChannelInit::default() };
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (_connection, _channels) = match words[..] {
        [role, address, "streams", number, size, outstanding] => {
            let opened =
                open(role, address.parse()?, &reliable, (number.parse()?, outstanding.parse()?), &mut input).await?;
            for channel in &opened.1 {
                if role == "offer" {
                    tokio::spawn(fill(Arc::clone(channel), size.parse()?));
                }
                tokio::spawn(take(Arc::clone(channel), Arc::clone(&received), None));
            }
            opened
        }
        [role, address, "tunnel", own, other, outstanding] => {
            let socket = Arc::new(UnixDatagram::bind(own)?);
            socket.connect(other)?;
            let opened = open(role, address.parse()?, &once, (1, outstanding.parse()?), &mut input).await?;
            let channel = &opened.1[0];
            tokio::spawn(take(Arc::clone(channel), Arc::clone(&received), Some(Arc::clone(&socket))));
            tokio::spawn(carry(socket, Arc::clone(channel)));
            opened
        }
        _ => {
            return Err(
                "usage: lanes offer|answer ADDRESS streams NUMBER SIZE OUTSTANDING | tunnel OWN OTHER OUTSTANDING"
                    .into(),
            );
        }
    };
    println!("open");
    let started = Instant::now();
    while input.next_line().await?.is_some() {
        println!("{} {}", received.load(Ordering::Relaxed), started.elapsed().as_micros());
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async { timeout(LIFE, run(&arguments)).await });
    // A read of standard input may still hang in a thread of its own.
    runtime.shutdown_background();
    result?
}
