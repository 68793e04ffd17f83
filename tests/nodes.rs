//! Two nodes and a signaling server in one process, over real WebRTC on loopback.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use unisockets::{Config, Node, Ping, TcpListener, TcpStream, UdpSocket};
use unisockets_signaling::server::{Config as SignalConfig, Server};

const LIMIT: Duration = Duration::from_secs(30);

async fn signal() -> Server {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
    Server::start(SignalConfig::new("127.0.0.1:0".parse().unwrap())).await.unwrap()
}

async fn node(signal: &Server, name: &str) -> Node {
    Node::join(Config::new(signal.url()).name(name).ephemeral()).await.unwrap()
}

#[tokio::test]
async fn a_stream_by_name_and_by_both_addresses_carries_bytes_both_ways() {
    let signal = signal().await;
    let (alpha, beta) = (node(&signal, "alpha").await, node(&signal, "beta").await);
    let listener = TcpListener::bind(&alpha, "[::]:80").await.unwrap();
    for host in ["alpha:80".to_owned(), format!("{}:80", alpha.ipv4()), format!("[{}]:80", alpha.ipv6())] {
        let mut client = timeout(LIMIT, TcpStream::connect(&beta, &host)).await.unwrap().unwrap();
        let (mut server, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        client.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        timeout(LIMIT, server.read_exact(&mut buffer)).await.unwrap().unwrap();
        server.write_all(b"pong").await.unwrap();
        timeout(LIMIT, client.read_exact(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer, b"pong");
        client.shutdown().await.unwrap();
        assert_eq!(timeout(LIMIT, server.read(&mut buffer)).await.unwrap().unwrap(), 0);
    }
    beta.leave().await;
    alpha.leave().await;
    signal.stop().await;
}

#[tokio::test]
async fn datagrams_up_to_the_limit_and_echoes_arrive() {
    let signal = signal().await;
    let (alpha, beta) = (node(&signal, "alpha").await, node(&signal, "beta").await);
    let server = UdpSocket::bind(&alpha, "[::]:53").await.unwrap();
    let client = UdpSocket::bind(&beta, "0.0.0.0:0").await.unwrap();
    let mut buffer = vec![0; 70_000];
    for len in [1, 1_160, 9_000, 16_356, 65_507] {
        let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
        timeout(LIMIT, client.send_to(&data, "alpha:53")).await.unwrap().unwrap();
        let (received, _) = timeout(LIMIT, server.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(buffer[..received], data[..]);
    }
    let mut ping = Ping::new(&beta, "alpha").await.unwrap();
    ping.echo(56, LIMIT).await.unwrap();
    beta.leave().await;
    alpha.leave().await;
    signal.stop().await;
}

/// What was written is delivered; a connection that its program has not ended is broken off after that.
#[tokio::test]
async fn a_node_that_leaves_delivers_what_was_written() {
    let signal = signal().await;
    let (alpha, beta) = (node(&signal, "alpha").await, node(&signal, "beta").await);
    let listener = TcpListener::bind(&alpha, "[::]:80").await.unwrap();
    let data: Vec<u8> = (0..900_000u32).map(|n| (n / 3) as u8).collect();
    for ends in [false, true] {
        let leaver = node(&signal, if ends { "gamma" } else { "delta" }).await;
        let mut client = timeout(LIMIT, TcpStream::connect(&leaver, "alpha:80")).await.unwrap().unwrap();
        let (mut server, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            let end = server.read_to_end(&mut got).await.map_err(|error| error.kind());
            (got, end.map(|_| ()))
        });
        timeout(LIMIT, client.write_all(&data)).await.unwrap().unwrap();
        if ends {
            client.shutdown().await.unwrap();
        }
        leaver.leave().await;
        let (got, end) = timeout(LIMIT, reading).await.unwrap().unwrap();
        assert!(got == data, "{} of {} bytes", got.len(), data.len());
        assert_eq!(end, if ends { Ok(()) } else { Err(std::io::ErrorKind::ConnectionReset) });
    }
    beta.leave().await;
    alpha.leave().await;
    signal.stop().await;
}
