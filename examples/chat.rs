//! A chat room: one member keeps it, others come by name and type lines.
//!
//! With a signaling server (`cargo run --release -- signal serve`) running, in two or more terminals:
//!
//! ```text
//! cargo run --release --example chat -- serve
//! cargo run --release --example chat -- ann
//! cargo run --release --example chat -- ben
//! ```
//!
//! A line is shown under the name that the network knows its sender by, not under one that the sender
//! claims. `UNISOCKETS_SIGNAL` names another signaling server than `ws://127.0.0.1:7080`.

use std::error::Error;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, stdin};
use tokio::sync::broadcast::{self, Sender, error::RecvError};
use unisockets::{Config, Node, TcpListener, TcpStream};

const PORT: u16 = 7_072;
/// Longest line, in bytes; a longer one is cut into several.
const LINE_LEN_MAX: u64 = 1_024;
/// Lines that a slow reader may be behind; it misses what exceeds them.
const LINES_MAX: usize = 256;

fn signal() -> String {
    std::env::var("UNISOCKETS_SIGNAL").unwrap_or_else(|_| "ws://127.0.0.1:7080".to_owned())
}

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).ok_or("say 'serve', or your name")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async { if name == "serve" { serve().await } else { join(&name).await } });
    // A read of standard input may still hang in a thread of its own.
    runtime.shutdown_background();
    result
}

/// Keeps the room as `chat:7072` until Ctrl-C.
async fn serve() -> Result<(), Box<dyn Error>> {
    let node = Node::join(Config::new(signal()).name("chat").ephemeral()).await?;
    let listener = TcpListener::bind(&node, ("::", PORT)).await?;
    println!("the room is open at chat:{PORT}");
    let (room, _) = broadcast::channel(LINES_MAX);
    tokio::select! {
        result = accept(&node, &listener, &room) => result?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    node.leave().await;
    Ok(())
}

async fn accept(node: &Node, listener: &TcpListener, room: &Sender<String>) -> std::io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        let (node, room) = (node.clone(), room.clone());
        tokio::spawn(async move {
            let member = node.resolve(&peer.ip().to_string()).await.ok();
            let name = member.and_then(|member| member.name).unwrap_or_else(|| peer.ip().to_string());
            let _ = room.send(format!("* {name} has come\n"));
            let _ = talk(stream, &name, &room).await;
            let _ = room.send(format!("* {name} has gone\n"));
        });
    }
}

/// Carries lines between one member and the room until either ends.
async fn talk(stream: TcpStream, name: &str, room: &Sender<String>) -> std::io::Result<()> {
    let mut lines = room.subscribe();
    let (read, mut write) = stream.into_split();
    let hearing = async {
        let mut read = BufReader::new(read);
        loop {
            let mut line = String::new();
            if (&mut read).take(LINE_LEN_MAX).read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let _ = room.send(format!("{name}: {}\n", line.trim_end()));
        }
    };
    let telling = async {
        loop {
            match lines.recv().await {
                Ok(line) => write.write_all(line.as_bytes()).await?,
                Err(RecvError::Lagged(missed)) => write.write_all(format!("* {missed} missed\n").as_bytes()).await?,
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    };
    tokio::select! {
        result = hearing => result,
        result = telling => result,
    }
}

/// Enters the room under a name; the end of standard input leaves it.
async fn join(name: &str) -> Result<(), Box<dyn Error>> {
    let node = Node::join(Config::new(signal()).name(name).ephemeral()).await?;
    let (mut read, mut write) = TcpStream::connect(&node, ("chat", PORT)).await?.into_split();
    let (mut typed, mut screen) = (stdin(), tokio::io::stdout());
    let result = tokio::select! {
        sent = tokio::io::copy(&mut typed, &mut write) => sent,
        shown = tokio::io::copy(&mut read, &mut screen) => shown,
        interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| 0),
    };
    drop((read, write));
    node.leave().await;
    result?;
    Ok(())
}
