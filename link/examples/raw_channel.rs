//! Raw bytes over one reliable data channel between two processes: what the stack is measured against.
//!
//! Descriptions are exchanged over standard input and output, one JSON line each way; `bench/` joins the
//! two. Arguments: `offer` or `answer`; `bytes` or `echo`; the message size; the bytes or round trips in all; and
//! 1 to hold socket buffers down as where net.core.rmem_max is 208 KiB. Prints MB/s, or the median round trip
//! in microseconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rtc::ice::mdns::MulticastDnsMode;
use rtc::peer_connection::configuration::setting_engine::SctpMaxMessageSize;
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio::sync::mpsc;
use tokio::time::timeout;
use webrtc::data_channel::{DataChannel, DataChannelEvent, RTCDataChannelInit};
use webrtc::peer_connection::{
    PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCIceGatheringState, RTCSessionDescription,
    SettingEngineBuilder,
};

#[path = "../src/sockets.rs"]
mod sockets;

/// The same as a link's (`native.rs`).
const OUTSTANDING_MAX: usize = 512 * 1024;
const RECEIVE_WINDOW: u32 = 4 * 1024 * 1024;
const SMALL_BUFFER: usize = 208 * 1024;
const GREETING_INTERVAL: Duration = Duration::from_millis(100);

type Failure = Box<dyn std::error::Error>;

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

async fn hear() -> Result<RTCSessionDescription, Failure> {
    let mut line = String::new();
    BufReader::new(stdin()).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

async fn send(channel: &dyn DataChannel, size: usize, bytes: usize) -> Result<(), Failure> {
    let message = vec![0x5a; size];
    let started = Instant::now();
    let mut sent = 0;
    while sent < bytes {
        channel.send(BytesMut::from(&message[..])).await?;
        sent += size;
    }
    // The other end says when it has everything.
    next_message(channel).await?;
    println!("{:.3}", sent as f64 / 1e6 / started.elapsed().as_secs_f64());
    Ok(())
}

async fn next_message(channel: &dyn DataChannel) -> Result<BytesMut, Failure> {
    loop {
        match channel.poll().await {
            Some(DataChannelEvent::OnMessage(message)) => return Ok(message.data),
            Some(_) => {}
            None => return Err("the channel ended".into()),
        }
    }
}

async fn ask(channel: &dyn DataChannel, size: usize, count: usize) -> Result<(), Failure> {
    // A message that overtakes the opening of the other end waits in the library for the next one, or is lost.
    let greeting = vec![0x5a; size + 1];
    loop {
        channel.send(BytesMut::from(&greeting[..])).await?;
        if timeout(GREETING_INTERVAL, next_message(channel)).await.is_ok() {
            break;
        }
    }
    let message = vec![0x5a; size];
    let mut micros = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        channel.send(BytesMut::from(&message[..])).await?;
        // Answers to greetings may still come.
        while next_message(channel).await?.len() != size {}
        micros.push(started.elapsed().as_nanos() as f64 / 1e3);
    }
    micros.sort_by(f64::total_cmp);
    println!("{:.3}", micros[count / 2]);
    Ok(())
}

async fn answer(channel: &dyn DataChannel) -> Result<(), Failure> {
    while let Ok(message) = next_message(channel).await {
        channel.send(message).await?;
    }
    Ok(())
}

async fn receive(channel: &dyn DataChannel, size: usize, bytes: usize) -> Result<(), Failure> {
    let (mut received, wanted) = (0, bytes.div_ceil(size) * size);
    while received < wanted {
        received += next_message(channel).await?.len();
    }
    channel.send(BytesMut::from(&b"done"[..])).await?;
    // Whoever sent ends both processes.
    while channel.poll().await.is_some() {}
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, role, what, size, count, small] = &arguments[..] else {
        return Err("usage: raw_channel offer|answer bytes|echo SIZE COUNT 0|1".into());
    };
    let (size, count): (usize, usize) = (size.parse()?, count.parse()?);
    let (gathered, mut gathering) = mpsc::channel(1);
    let settings = SettingEngineBuilder::new()
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .with_include_loopback_candidate(true)
        .with_sctp_max_message_size(SctpMaxMessageSize::Bounded(65_535))
        .with_sctp_max_receive_buffer_size(RECEIVE_WINDOW)
        .build();
    let runtime = sockets::TunedRuntime::new((small == "1").then_some(SMALL_BUFFER), Arc::default());
    let connection = PeerConnectionBuilder::<std::net::SocketAddr>::new()
        .with_setting_engine(settings)
        .with_runtime(Arc::new(runtime))
        .with_handler(Arc::new(Gathering(gathered)))
        .with_udp_addrs(vec![([127, 0, 0, 1], 0).into()])
        .with_data_channel_send_buffer_limit(OUTSTANDING_MAX)
        .build()
        .await?;
    let init = RTCDataChannelInit { negotiated: Some(0), ..RTCDataChannelInit::default() };
    let channel = connection.create_data_channel("raw", Some(init)).await?;
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
    while let Some(event) = channel.poll().await {
        if matches!(event, DataChannelEvent::OnOpen) {
            break;
        }
    }
    eprintln!("granted receive buffer: {:?}", sockets::granted_receive_buffer());
    match (role.as_str(), what.as_str()) {
        ("offer", "echo") => ask(&*channel, size, count).await,
        ("offer", _) => send(&*channel, size, count).await,
        (_, "echo") => answer(&*channel).await,
        _ => receive(&*channel, size, count).await,
    }
}
