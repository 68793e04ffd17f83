//! A signaling server that rewrites what it says: a true one, with somebody in between who alters its frames.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use unisockets_signaling::server::{Config, Server};

/// Turns a frame for a member, counted from 0 in the order of connecting, into those that it gets instead.
pub type Lie = Arc<dyn Fn(usize, Value) -> Vec<Value> + Send + Sync>;

/// Opcode of a whole text message in the first byte of a frame (RFC 6455, section 5.2).
const TEXT: u8 = 0x81;

/// A running liar; it ends with its tasks.
pub struct Liar {
    address: SocketAddr,
    _server: Server,
    _tasks: JoinSet<()>,
}

impl Liar {
    pub async fn start(lie: Lie) -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // The true server goes by the liar's name: one that did not would refuse what the liar passes on.
        let hosts = vec![listener.local_addr().unwrap().to_string().parse().unwrap()];
        let config = Config { hosts, ..Config::new("127.0.0.1:0".parse().unwrap()) };
        let server = Server::start(config).await.unwrap();
        let (address, truth) = (listener.local_addr().unwrap(), server.address());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut conversations, number) = (JoinSet::new(), AtomicUsize::new(0));
            while let Ok((member, _)) = listener.accept().await {
                conversations.spawn(converse(member, truth, number.fetch_add(1, Ordering::Relaxed), Arc::clone(&lie)));
            }
        });
        Liar { address, _server: server, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }
}

/// Hands the member's bytes on as they are, its `Host` header with them, and the server's as the lie wants.
async fn converse(member: TcpStream, truth: SocketAddr, number: usize, lie: Lie) {
    let server = TcpStream::connect(truth).await.unwrap();
    let (mut from_member, mut to_member) = member.into_split();
    let (from_server, mut to_server) = server.into_split();
    let asking = async { copy(&mut from_member, &mut to_server).await.map(drop) };
    let answering = async {
        let mut from_server = BufReader::new(from_server);
        let mut line = String::new();
        // The head of the answer ends with an empty line.
        while line != "\r\n" {
            line.clear();
            from_server.read_line(&mut line).await?;
            to_member.write_all(line.as_bytes()).await?;
        }
        loop {
            let (first, payload) = read_frame(&mut from_server).await?;
            if first != TEXT {
                to_member.write_all(&frame(first, &payload)).await?;
                continue;
            }
            let message = serde_json::from_slice(&payload).expect("the server speaks JSON");
            for message in lie(number, message) {
                to_member.write_all(&frame(TEXT, message.to_string().as_bytes())).await?;
            }
        }
    };
    // Whichever side ends first ends both.
    let _: std::io::Result<()> = tokio::select! {
        result = asking => result,
        result = answering => result,
    };
}

/// Reads a server's frame, which is never masked.
async fn read_frame(from: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let first = from.read_u8().await?;
    let len = match from.read_u8().await? {
        126 => u64::from(from.read_u16().await?),
        127 => from.read_u64().await?,
        len => u64::from(len),
    };
    let mut payload = vec![0; usize::try_from(len).expect("a frame fits the memory")];
    from.read_exact(&mut payload).await?;
    Ok((first, payload))
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ ..126 => frame.push(len as u8),
        len @ 126..=0xffff => {
            frame.push(126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// The payload, if a frame is another member's introduction.
pub fn signal_of(frame: &Value) -> Option<String> {
    frame["payload"].as_str().filter(|_| frame["type"] == "signal").map(str::to_owned)
}

/// The member, if a frame answers a lookup.
pub fn member_of(frame: &mut Value) -> Option<&mut Value> {
    if frame["type"] == "resolved" { frame.get_mut("member") } else { None }
}
