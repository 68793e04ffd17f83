//! `send` and `recv`: a file from member to member, checked, resumed, never overwriting.

use std::io;
use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt, BufReader,
};
use tokio::task::JoinSet;
use tokio::time::timeout;
use unisockets::{Node, TcpListener, TcpStream};

use super::args::{Recv, Send};
use super::exit::{Failure, sentence};
use super::nc::announce;
use super::output::{Lines, note};
use super::with_node;

/// The port of `recv`.
const PORT: u16 = 7_071;
/// Longest line of the conversation, in bytes.
const LINE_LEN_MAX: u64 = 4_096;
/// Bytes moved at a time.
const CHUNK_LEN: usize = 256 * 1024;
/// Connections whose offer is waited for at once; further ones wait in the listener's backlog.
const OFFERS_MAX: usize = 64;
/// How long a receiver waits for a sender: through an outage of 90 s, and until the peers have found each other again.
const PATIENCE: Patience = Patience { offer: Duration::from_secs(10), stall: Duration::from_secs(180) };

/// How long a sender may keep a receiver waiting. What the receiver's own user takes to answer does not count.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// From the connection to the whole offer.
    offer: Duration,
    /// Without a byte of an accepted file.
    stall: Duration,
}

/// What the sender offers.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    name: String,
    size: u64,
    sha256: String,
}

/// What the receiver answers, before and after the bytes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
enum Answer {
    /// Send from this byte on.
    Accepted {
        offset: u64,
    },
    Declined {
        reason: String,
    },
    Kept {
        name: String,
    },
    Damaged,
}

fn bar(size: u64, name: &str) -> ProgressBar {
    let bar = if io::stderr().is_terminal() { ProgressBar::new(size) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.expect("the template is legal"));
    bar.with_message(name.to_owned())
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let line = serde_json::to_string(message).expect("every message has a JSON form") + "\n";
    stream.write_all(line.as_bytes()).await
}

async fn hear<T: for<'a> Deserialize<'a>>(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<T> {
    let mut line = String::new();
    stream.take(LINE_LEN_MAX).read_line(&mut line).await?;
    if line.is_empty() {
        let text = "the other side ended the conversation; what it says there may tell why";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    serde_json::from_str(&line)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the other side speaks another language"))
}

/// Waits for a sender only so long.
async fn within<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| {
        // Of no particular kind, so that the sentence stays what it is.
        io::Error::other(format!("nothing came for {} seconds", limit.as_secs()))
    };
    timeout(limit, future).await.map_err(late)?
}

/// Returns text of the other side without what would command a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

async fn hash(path: &Path, mut limit: u64) -> io::Result<Sha256> {
    let mut file = File::open(path).await?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK_LEN];
    while limit > 0 {
        let len = buffer.len().min(usize::try_from(limit).unwrap_or(CHUNK_LEN));
        match file.read(&mut buffer[..len]).await? {
            0 => break,
            len => {
                hash.update(&buffer[..len]);
                limit -= len as u64;
            }
        }
    }
    Ok(hash)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) async fn send(options: Send) -> Result<(), Failure> {
    let path = &options.file;
    let unreadable = |error: io::Error| Failure::usage(format!("cannot read {}: {error}", path.display()));
    let entry = std::fs::metadata(path).map_err(unreadable)?;
    let name = path.file_name().and_then(|name| name.to_str()).filter(|_| entry.is_file());
    let name = name.ok_or_else(|| Failure::usage(format!("{} is no file with a readable name", path.display())))?;
    let sha256 = hex(hash(path, u64::MAX).await.map_err(unreadable)?);
    let offer = Offer { name: name.to_owned(), size: entry.len(), sha256 };
    let (lines, common) = (Lines::of(&options.common), options.common.clone());
    with_node(&common, |node| async move {
        let host = options.host.as_str();
        let stream = TcpStream::connect(&node, (host, PORT)).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                Failure::absent(format!("{host} does not receive files; run 'unisockets recv' there"))
            }
            _ => Failure::unreachable(host, &error),
        })?;
        let kept = hand_over(stream, &options.file, &offer).await?;
        let Offer { name, size, sha256 } = &offer;
        if options.json {
            lines.print(serde_json::json!({"sent": name, "kept_as": kept, "bytes": size, "sha256": sha256}))
        } else {
            lines.print(format_args!("{host} has {} as {kept}: {size} bytes, checked", printable(name)))
        }
    })
    .await
}

async fn hand_over(stream: TcpStream, path: &Path, offer: &Offer) -> Result<String, Failure> {
    let mut stream = BufReader::new(stream);
    say(&mut stream, offer).await?;
    let offset = match hear(&mut stream).await? {
        Answer::Accepted { offset } if offset <= offer.size => offset,
        Answer::Declined { reason } => {
            return Err(Failure::failed(format!("the other side declined: {}", printable(&reason))));
        }
        _ => return Err(Failure::failed("the other side speaks another language; update the older one")),
    };
    let mut file = File::open(path).await?;
    file.seek(io::SeekFrom::Start(offset)).await?;
    let bar = bar(offer.size, &printable(&offer.name));
    bar.set_position(offset);
    let mut buffer = vec![0; CHUNK_LEN];
    let mut file = file.take(offer.size - offset);
    loop {
        match file.read(&mut buffer).await? {
            0 => break,
            len => {
                stream.write_all(&buffer[..len]).await?;
                bar.inc(len as u64);
            }
        }
    }
    bar.finish_and_clear();
    match hear(&mut stream).await? {
        Answer::Kept { name } => Ok(printable(&name)),
        Answer::Damaged => Err(Failure::damaged("the file arrived damaged, or changed while it was sent; try again")),
        _ => Err(Failure::failed("the other side speaks another language; update the older one")),
    }
}

pub(super) async fn recv(options: Recv) -> Result<(), Failure> {
    let directory = options.directory.clone();
    if !directory.is_dir() {
        return Err(Failure::usage(format!("{} is no folder", directory.display())));
    }
    if !options.yes && !io::stdin().is_terminal() {
        return Err(Failure::usage("nobody can be asked here; give --yes to take files without asking"));
    }
    let common = options.common.clone();
    with_node(&common, |node| async move { take_files(&node, &options).await }).await
}

/// A sender whose offer has been heard.
struct Sender {
    stream: BufReader<TcpStream>,
    peer: SocketAddr,
    offer: io::Result<Offer>,
}

/// Hears offers as they come, and takes one file after the other: who says nothing keeps nobody waiting.
async fn take_files(node: &Node, options: &Recv) -> Result<(), Failure> {
    let listener = TcpListener::bind(node, ("::", PORT)).await?;
    announce(node, PORT);
    let mut offers = JoinSet::new();
    loop {
        let sender = tokio::select! {
            accepted = listener.accept(), if offers.len() < OFFERS_MAX => {
                let (stream, peer) = accepted?;
                offers.spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let offer = within(PATIENCE.offer, hear(&mut stream)).await;
                    Sender { stream, peer, offer }
                });
                continue;
            }
            Some(sender) = offers.join_next() => sender.expect("hearing an offer does not panic"),
        };
        let peer = sender.peer.ip();
        match take_file(sender, options).await {
            Ok(Some((name, offer))) => {
                let Offer { size, sha256, .. } = &offer;
                let lines = Lines::of(&options.common);
                if options.json {
                    lines
                        .print(serde_json::json!({"received": name, "bytes": size, "sha256": sha256, "from": peer}))?;
                } else {
                    lines.print(format_args!("received {name}: {size} bytes, checked"))?;
                }
                if !options.keep_going {
                    return Ok(());
                }
            }
            Ok(None) => {}
            // What has arrived stays in its .part file, and the next attempt goes on from there.
            Err(error) => note(format_args!("{peer} did not send a whole file: {}", sentence(&error))),
        }
    }
}

/// Returns what may be a file's name here: no folders, nothing hidden, nothing strange.
fn safe_name(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next()?;
    let clean = printable(last);
    let clean = clean.trim().trim_start_matches('.').to_owned();
    (!clean.is_empty() && clean.len() <= 200).then_some(clean)
}

/// Returns a path that does not exist yet: `name`, `name (1)`, `name (2)`...
fn free_path(directory: &Path, name: &str) -> PathBuf {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
        _ => (name, String::new()),
    };
    let numbered = (1..).map(|n| directory.join(format!("{stem} ({n}){extension}")));
    let mut paths = std::iter::once(directory.join(name)).chain(numbered);
    paths.find(|path| std::fs::symlink_metadata(path).is_err()).expect("some number is free")
}

/// Asks on the terminal, in a thread of its own: the network goes on meanwhile.
async fn consent(size: u64, name: String) -> bool {
    let ask = move || {
        let _ = write!(io::stderr(), "take {name} with {size} bytes? [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
    };
    tokio::task::spawn_blocking(ask).await.unwrap_or(false)
}

async fn take_file(sender: Sender, options: &Recv) -> io::Result<Option<(String, Offer)>> {
    let Sender { mut stream, offer, .. } = sender;
    let offer = offer?;
    let is_hash = offer.sha256.len() == 64 && offer.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = safe_name(&offer.name);
    let mut reason = match &name {
        None => Some("its name cannot be used here"),
        _ if !is_hash => Some("its checksum is none"),
        _ if offer.size > options.max_size => Some("it is larger than the receiver's --max-size"),
        Some(_) => None,
    };
    let name = name.unwrap_or_default();
    if reason.is_none() && !options.yes && !consent(offer.size, name.clone()).await {
        reason = Some("the receiver does not want it");
    }
    if let Some(reason) = reason {
        say(&mut stream, &Answer::Declined { reason: reason.to_owned() }).await?;
        stream.shutdown().await?;
        return Ok(None);
    }
    // The name of the unfinished file says which content it is a part of.
    let part = options.directory.join(format!("{name}.{}.part", &offer.sha256[..8]));
    let bar = bar(offer.size, &name);
    let verdict = take_bytes(&mut stream, &offer, &part, PATIENCE, &bar).await?;
    bar.finish_and_clear();
    if !verdict {
        tokio::fs::remove_file(&part).await?;
        say(&mut stream, &Answer::Damaged).await?;
        stream.shutdown().await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum is wrong; what arrived is thrown away"));
    }
    let path = keep(&part, &options.directory, &name)?;
    let kept = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    say(&mut stream, &Answer::Kept { name: kept.clone() }).await?;
    stream.shutdown().await?;
    Ok(Some((kept, offer)))
}

/// Gives a finished file its name; a file of that name that appears meanwhile stays as it is.
fn keep(part: &Path, directory: &Path, name: &str) -> io::Result<PathBuf> {
    loop {
        let path = free_path(directory, name);
        match std::fs::hard_link(part, &path) {
            Ok(()) => {
                std::fs::remove_file(part)?;
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Some file systems have no links.
            Err(_) => return std::fs::rename(part, &path).map(|()| path),
        }
    }
}

/// Takes a file's bytes, and returns whether they are the right ones.
async fn take_bytes(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    offer: &Offer,
    part: &Path,
    patience: Patience,
    bar: &ProgressBar,
) -> io::Result<bool> {
    if std::fs::symlink_metadata(part).is_ok_and(|entry| !entry.is_file()) {
        return Err(io::Error::other(format!("{} is in the way", part.display())));
    }
    let mut file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(part).await?;
    let offset = file.metadata().await?.len().min(offer.size);
    file.set_len(offset).await?;
    let mut hash = hash(part, offset).await?;
    file.seek(io::SeekFrom::Start(offset)).await?;
    say(stream, &Answer::Accepted { offset }).await?;
    bar.set_position(offset);
    let mut left = offer.size - offset;
    let mut buffer = vec![0; CHUNK_LEN];
    while left > 0 {
        let len = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK_LEN));
        match within(patience.stall, stream.read(&mut buffer[..len])).await? {
            0 => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the sender went; it can send again and goes on there",
                ));
            }
            len => {
                file.write_all(&buffer[..len]).await?;
                hash.update(&buffer[..len]);
                left -= len as u64;
                bar.inc(len as u64);
            }
        }
    }
    file.sync_all().await?;
    Ok(hex(hash) == offer.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_folders_and_dots() {
        assert_eq!(safe_name("../../etc/passwd").as_deref(), Some("passwd"));
        assert_eq!(safe_name("a\\b\\c.txt").as_deref(), Some("c.txt"));
        assert_eq!(safe_name(".bashrc").as_deref(), Some("bashrc"));
        assert_eq!(safe_name("a\nb").as_deref(), Some("ab"));
        for bad in ["", "..", "/", "a/"] {
            assert_eq!(safe_name(bad), None, "{bad}");
        }
    }

    /// A sender that stopped in the middle of a file once kept everybody else waiting for ever.
    #[tokio::test]
    async fn a_sender_that_stalls_is_given_up() {
        let (mut receiver, _sender) = tokio::io::duplex(64);
        let part = std::env::temp_dir().join(format!("unisockets-stall-{}.part", std::process::id()));
        let offer = Offer { name: "film".to_owned(), size: 1, sha256: "0".repeat(64) };
        let patience = Patience { offer: Duration::ZERO, stall: Duration::from_millis(1) };
        let bar = ProgressBar::hidden();
        let taking = take_bytes(&mut receiver, &offer, &part, patience, &bar);
        let error = timeout(Duration::from_secs(30), taking).await.expect("it ends by itself").unwrap_err();
        let _ = std::fs::remove_file(&part);
        assert!(error.to_string().contains("nothing came"), "{error}");
    }

    /// Who connects and says nothing has to make room for the next one.
    #[tokio::test]
    async fn an_offer_is_waited_for_only_so_long() {
        let (receiver, _sender) = tokio::io::duplex(64);
        let mut stream = BufReader::new(receiver);
        let hearing = within(Duration::from_millis(1), hear::<Offer>(&mut stream));
        let error = timeout(Duration::from_secs(30), hearing).await.expect("it ends by itself").unwrap_err();
        assert!(error.to_string().contains("nothing came"), "{error}");
    }
}
