//! A member's connection to signaling, natively: a task around [`crate::member`].

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls::CertificateError;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use tracing::debug;

use crate::identity::PublicKey;
use crate::member::{Config, Event, Membership};
use crate::protocol::{FRAME_LEN_MAX, Nonce, Query};

/// Commands that wait for the task.
const COMMANDS_MAX: usize = 1_024;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After so long without an answer another attempt is begun beside those under way (the idea of RFC 8305, section 5):
/// the system repeats the first segment of a connection after 1, 3 and 7 s, and a wire that is whole again in between
/// would go unnoticed.
const CONNECT_STAGGER: Duration = Duration::from_secs(1);
/// A connection on which nothing comes, not even the server's ping, for so long is broken.
const SILENCE: Duration = Duration::from_secs(60);
/// One on which nothing comes for so long while an answer is due is broken, too: the system would go on sending into a
/// wire that is cut, or from an address that is gone, for many minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last frame may take to leave.
const LEAVE_GRACE: Duration = Duration::from_millis(500);

/// What a member wants of signaling.
#[derive(Debug, Clone)]
pub enum Command {
    /// Ask who has an address, a name or a key; the number comes back with the answer.
    Resolve(u64, Query),
    /// Ask for a page of members.
    List(u64, Option<PublicKey>, usize),
    /// Send a payload.
    Signal(PublicKey, String),
    /// Ask to be told when members go.
    Watch(Vec<PublicKey>),
    /// Leave for good.
    Leave,
}

/// A URL that is no address of a signaling server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadUrl(String);

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is no signaling URL; it looks like ws://HOST:PORT or wss://HOST", self.0)
    }
}

impl std::error::Error for BadUrl {}

/// A parsed signaling URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
    host: String,
}

impl Url {
    /// Parses `ws://HOST:PORT` or `wss://HOST`, with or without `/v1`; `http` and `https` do too.
    ///
    /// # Errors
    /// [`BadUrl`].
    pub fn parse(text: &str) -> Result<Url, BadUrl> {
        let bad = || BadUrl(text.to_owned());
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(bad)?;
        let scheme = match scheme {
            "ws" | "http" => "ws",
            "wss" | "https" => "wss",
            _ => return Err(bad()),
        };
        let rest = rest.trim_end_matches('/');
        let rest = rest.strip_suffix("/v1").unwrap_or(rest);
        let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
        let uri: Result<tokio_tungstenite::tungstenite::http::Uri, _> = format!("{scheme}://{host}/").parse();
        let uri = uri.map_err(|_| bad())?;
        // What is no port would be left out in silence, and another server be asked.
        let has_port = host.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
        let is_port = uri.port_u16().is_some_and(|port| port > 0);
        if host.is_empty() || host.contains('@') || (has_port && !is_port) {
            return Err(bad());
        }
        let path = if path.is_empty() { "/v1".to_owned() } else { format!("/{path}/v1") };
        Ok(Url { text: format!("{scheme}://{host}{path}"), host: host.to_owned() })
    }

    /// Returns host and port as the `Host` header has them.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the host without port and brackets.
    pub fn host_name(&self) -> &str {
        match self.host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => self.host.rsplit_once(':').map_or(&*self.host, |(host, _)| host),
        }
    }

    /// Returns whether the server is on this machine.
    pub fn is_loopback(&self) -> bool {
        let name = self.host_name();
        name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Returns the URL to connect to.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the task reports besides [`Event`]s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Something was learnt. The number is the caller's for answers, not the wire's.
    Event(Event),
    /// A connection could not be made; another attempt follows.
    Unreachable(String),
    /// The server's certificate is not trusted, which time alone seldom mends; the text says why and what to do.
    /// Another attempt follows.
    Untrusted(String),
}

/// A handle on the task.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
}

impl Client {
    /// Starts the task; `notify` is called for all that it learns and must not wait.
    pub fn start(url: Url, config: Config, notify: Arc<dyn Fn(Notice) + Send + Sync>) -> Client {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let shell = Shell { url, membership: Membership::new(config), notify, inbox, numbers: Vec::new() };
        tokio::spawn(shell.run());
        Client { commands }
    }

    /// Hands over a command; returns whether the task took it.
    pub fn command(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Leaves, and waits until the server had the chance to hear of it.
    pub async fn leave(&self) {
        let heard = async {
            if self.commands.send(Command::Leave).await.is_ok() {
                self.commands.closed().await;
            }
        };
        let _ = timeout(2 * LEAVE_GRACE, heard).await;
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

struct Shell {
    url: Url,
    membership: Membership,
    notify: Arc<dyn Fn(Notice) + Send + Sync>,
    inbox: mpsc::Receiver<Command>,
    /// (wire number, caller's number) of requests under way.
    numbers: Vec<(u64, u64)>,
}

fn now_ms(origin: tokio::time::Instant) -> u64 {
    u64::try_from(origin.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has a random source");
    bytes
}

impl Shell {
    async fn run(mut self) {
        let origin = tokio::time::Instant::now();
        while !self.membership.is_ended() {
            let due = self.membership.poll_timeout().unwrap_or(u64::MAX);
            let pause = Duration::from_millis(due.saturating_sub(now_ms(origin)));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                command = self.inbox.recv() => {
                    self.take(command);
                    continue;
                }
            }
            if !self.membership.handle_timeout(now_ms(origin)) {
                continue;
            }
            match connect(&self.url).await {
                Ok(socket) => self.converse(origin, socket).await,
                Err(notice) => {
                    debug!(?notice, "signaling cannot be reached");
                    (self.notify)(notice);
                }
            }
            self.membership.handle_closed(now_ms(origin), u64::from_be_bytes(random()));
            self.report();
        }
    }

    fn take(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Resolve(number, query)) => {
                let wire = self.membership.resolve(query);
                self.numbers.push((wire, number));
            }
            Some(Command::List(number, after, limit)) => {
                let wire = self.membership.list(after, limit);
                self.numbers.push((wire, number));
            }
            Some(Command::Signal(to, payload)) => drop(self.membership.signal(to, payload)),
            Some(Command::Watch(keys)) => self.membership.watch(&keys),
            Some(Command::Leave) | None => self.membership.leave(),
        }
        self.report();
    }

    fn report(&mut self) {
        while let Some(event) = self.membership.poll_event() {
            let event = match event {
                Event::Resolved(wire, result) => Event::Resolved(self.number(wire), result),
                Event::Members(wire, result) => Event::Members(self.number(wire), result),
                other => other,
            };
            (self.notify)(Notice::Event(event));
        }
    }

    fn number(&mut self, wire: u64) -> u64 {
        let known = self.numbers.iter().position(|(known, _)| *known == wire);
        known.map_or(0, |index| self.numbers.swap_remove(index).1)
    }

    async fn converse(&mut self, origin: tokio::time::Instant, mut socket: Socket) {
        let mut heard = tokio::time::Instant::now();
        // Since when an answer is due.
        let mut asked = None;
        loop {
            while let Some(frame) = self.membership.poll_frame() {
                // What is not taken for so long is not answered either.
                if !matches!(timeout(ANSWER_TIMEOUT, socket.send(Message::Text(frame.into()))).await, Ok(Ok(()))) {
                    return debug!("signaling takes nothing");
                }
            }
            if self.membership.is_ended() {
                let _ = timeout(LEAVE_GRACE, socket.close(None)).await;
                return;
            }
            let due = self.membership.poll_timeout().unwrap_or(u64::MAX);
            let pause = Duration::from_millis(due.saturating_sub(now_ms(origin)));
            asked = asked.or_else(|| Some(tokio::time::Instant::now())).filter(|_| self.membership.is_owed_an_answer());
            tokio::select! {
                message = timeout_at(broken_at(heard, asked), socket.next()) => {
                    heard = tokio::time::Instant::now();
                    match message {
                        Ok(Some(Ok(Message::Text(frame)))) => {
                            self.membership.handle_frame(now_ms(origin), &frame, Nonce::new(random()));
                            self.report();
                        }
                        Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return,
                        Err(_) => return debug!("signaling is silent"),
                        Ok(Some(Ok(_))) => {}
                    }
                }
                command = self.inbox.recv() => self.take(command),
                () = tokio::time::sleep(pause) => {
                    if self.membership.handle_timeout(now_ms(origin)) {
                        return;
                    }
                }
            }
        }
    }
}

/// Returns when a connection is taken to be broken.
fn broken_at(heard: tokio::time::Instant, asked: Option<tokio::time::Instant>) -> tokio::time::Instant {
    let silence = heard + SILENCE;
    asked.map_or(silence, |asked| silence.min(asked.max(heard) + ANSWER_TIMEOUT))
}

/// Connects, with more than one attempt where the first is not answered; the first answer counts, an error too.
async fn connect(url: &Url) -> Result<Socket, Notice> {
    let deadline = tokio::time::Instant::now() + CONNECT_TIMEOUT;
    let mut attempts = JoinSet::new();
    loop {
        attempts.spawn(attempt(url.clone()));
        let patience = deadline.min(tokio::time::Instant::now() + CONNECT_STAGGER);
        match timeout_at(patience, attempts.join_next()).await {
            Ok(Some(Ok(result))) => return result,
            Ok(_) => return Err(Notice::Unreachable("connecting was broken off".to_owned())),
            Err(_) if patience == deadline => {
                return Err(Notice::Unreachable(format!("no answer within {} seconds", CONNECT_TIMEOUT.as_secs())));
            }
            Err(_) => {}
        }
    }
}

async fn attempt(url: Url) -> Result<Socket, Notice> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * FRAME_LEN_MAX)
        .max_message_size(Some(4 * FRAME_LEN_MAX))
        .max_frame_size(Some(4 * FRAME_LEN_MAX));
    // The roots are read anew for each connection: a file that was mended meanwhile counts.
    match connect_async_with_config(url.as_str(), Some(config), true).await {
        Ok((socket, _)) => Ok(socket),
        Err(error) => Err(failure(&url, &error)),
    }
}

/// Says why a connection could not be made.
fn failure(url: &Url, error: &Error) -> Notice {
    let tls = match error {
        Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    match (tls, error) {
        (Some(rustls::Error::InvalidCertificate(error)), _) => Notice::Untrusted(distrust(url, error)),
        (Some(rustls::Error::InvalidMessage(_)), _) => {
            Notice::Unreachable("it does not speak TLS; perhaps its URL begins with ws://".to_owned())
        }
        (None, Error::Protocol(ProtocolError::HttparseError(_))) => {
            Notice::Unreachable("it does not speak HTTP; perhaps its URL begins with wss://".to_owned())
        }
        _ => Notice::Unreachable(error.to_string()),
    }
}

/// Says why a certificate is not trusted, and what to do about it.
fn distrust(url: &Url, error: &CertificateError) -> String {
    match error {
        // A signature is bad where what is trusted has the issuer's name but another key, as after a renewal.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => distrusted_issuer(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("it is not for {}; use a URL with a name or an address that is in it", url.host_name())
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired; renew it, or set this machine's clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; set this machine's clock".to_owned()
        }
        // The library that checks is not named here; its error has no other name.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "it is that of an authority (CA:TRUE), which no server may use; give the server one with CA:FALSE"
                .to_owned()
        }
        other => format!("{other}; give the server another one"),
    }
}

fn distrusted_issuer() -> String {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let unread = named.and_then(|path| Some((std::fs::File::open(&path).err()?, path)));
    if let Some((error, path)) = unread {
        return format!("SSL_CERT_FILE names {}, which cannot be read: {error}", path.display());
    }
    "nobody known here has signed it; set SSL_CERT_FILE to a PEM file with it or with its authority, \
     or give the server one of a known authority"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_what_is_no_port_is_refused() {
        for text in [
            "ws://host:99999",
            "ws://host:0",
            "ws://host:",
            "wss://[::1]:70000/v1",
            "ws://host:80x",
            "ws://u@host",
            "host:80",
        ] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
        for (text, url) in [
            ("ws://host:7080", "ws://host:7080/v1"),
            ("https://host/", "wss://host/v1"),
            ("wss://[::1]/at/v1", "wss://[::1]/at/v1"),
            ("ws://[fd75::1]:80", "ws://[fd75::1]:80/v1"),
        ] {
            assert_eq!(Url::parse(text).unwrap().as_str(), url);
        }
    }
}
