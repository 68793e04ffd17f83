//! An axum server on the network, unchanged: only its listener is ours.
//!
//! With a signaling server (`cargo run --release -- signal serve`) running, in two terminals:
//!
//! ```text
//! cargo run --release --example http -- serve
//! cargo run --release --example http -- get /visits
//! ```
//!
//! For a browser on this machine: `cargo run --release -- forward 8080 web:80`, then open
//! `http://127.0.0.1:8080/`. `UNISOCKETS_SIGNAL` names another signaling server than `ws://127.0.0.1:7080`.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Html;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use unisockets::{Config, Node, TcpListener, TcpStream};

const PORT: u16 = 80;

fn signal() -> String {
    std::env::var("UNISOCKETS_SIGNAL").unwrap_or_else(|_| "ws://127.0.0.1:7080".to_owned())
}

/// All that axum needs to serve connections of the network.
struct Listener(TcpListener);

impl axum::serve::Listener for Listener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                // A limit of sockets is reached: wait for some to end.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => serve().await,
        ["get", path] => fetch(path).await,
        _ => Err("say 'serve', or 'get /PATH'".into()),
    }
}

/// Serves as `web:80` until Ctrl-C.
async fn serve() -> Result<(), Box<dyn Error>> {
    let node = Node::join(Config::new(signal()).name("web").ephemeral()).await?;
    let listener = TcpListener::bind(&node, ("::", PORT)).await?;
    println!("serving http://web/, http://{}/ and http://[{}]/", node.ipv4(), node.ipv6());
    let visits = Arc::new(AtomicU64::new(0));
    let router = Router::new()
        .route("/", get(|| async { Html("<h1>Hello from web</h1>\n<a href=\"/visits\">visits</a>\n") }))
        .route("/visits", get(count))
        .with_state(visits);
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(Listener(listener), router).with_graceful_shutdown(interrupted).await?;
    node.leave().await;
    Ok(())
}

async fn count(State(visits): State<Arc<AtomicU64>>) -> String {
    format!("visit {}\n", visits.fetch_add(1, Ordering::Relaxed) + 1)
}

/// Fetches a page of `web` and prints the whole answer.
async fn fetch(path: &str) -> Result<(), Box<dyn Error>> {
    let node = Node::join(Config::new(signal()).ephemeral()).await?;
    let mut stream = TcpStream::connect(&node, ("web", PORT)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    println!("{answer}");
    drop(stream);
    node.leave().await;
    Ok(())
}
