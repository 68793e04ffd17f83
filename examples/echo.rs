//! An echo server and its client: the smallest pair of programs on the network.
//!
//! With a signaling server (`cargo run --release -- signal serve`) running, in two terminals:
//!
//! ```text
//! cargo run --release --example echo -- serve
//! cargo run --release --example echo -- "hello, network"
//! ```
//!
//! `UNISOCKETS_SIGNAL` names another signaling server than `ws://127.0.0.1:7080`.

use std::error::Error;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use unisockets::{Config, Node, TcpListener, TcpStream};

/// The port of echo (RFC 862).
const PORT: u16 = 7;

fn signal() -> String {
    std::env::var("UNISOCKETS_SIGNAL").unwrap_or_else(|_| "ws://127.0.0.1:7080".to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve().await,
        Some(text) => ask(text).await,
        None => Err("say 'serve', or the text to be echoed".into()),
    }
}

/// Listens as `echo:7` until Ctrl-C.
async fn serve() -> Result<(), Box<dyn Error>> {
    let node = Node::join(Config::new(signal()).name("echo").ephemeral()).await?;
    let listener = TcpListener::bind(&node, ("::", PORT)).await?;
    println!("listening on echo:{PORT}, {}:{PORT} and [{}]:{PORT}", node.ipv4(), node.ipv6());
    tokio::select! {
        result = accept(&listener) => result?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    node.leave().await;
    Ok(())
}

async fn accept(listener: &TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut read, mut write) = stream.into_split();
            // Dropping the writing half afterwards shuts the sending direction.
            match copy(&mut read, &mut write).await {
                Ok(len) => println!("{peer}: {len} bytes"),
                Err(error) => println!("{peer}: {error}"),
            }
        });
    }
}

/// Sends a text to `echo:7` and prints what comes back.
async fn ask(text: &str) -> Result<(), Box<dyn Error>> {
    let node = Node::join(Config::new(signal()).ephemeral()).await?;
    let mut stream = TcpStream::connect(&node, ("echo", PORT)).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut echo = String::new();
    stream.read_to_string(&mut echo).await?;
    println!("{echo}");
    drop(stream);
    node.leave().await;
    Ok(())
}
