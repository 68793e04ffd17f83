//! A node as programs hold it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant as Clock, timeout};
use unisockets_link::native as link;
use unisockets_signaling::identity::PublicKey;
use unisockets_signaling::member;
use unisockets_signaling::native::{BadUrl, Client, Url};
use unisockets_signaling::network::{Network, parse_member_name};
use unisockets_signaling::protocol::{Code, Welcome};

use crate::capture::Capture;
use crate::config::{Config, Identity, KeyError};
use crate::driver::{Driver, Membership, flush_capture, unix_ns};
use crate::node::{self, NodeCore};
use crate::status::Status;
use crate::tap::Tap;

/// How long leaving may wait for connections that were closed but not yet brought to their end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long links may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(250);

/// Why a node could not join; the text says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum JoinError {
    /// The settings are not usable.
    Settings(String),
    /// The key's file is not usable, or in use.
    Key(KeyError),
    /// The signaling server did not answer in time.
    Unreachable {
        /// The server's URL.
        url: String,
        /// What was tried last.
        reason: String,
    },
    /// The signaling server's certificate is not trusted.
    Untrusted {
        /// The server's URL.
        url: String,
        /// Why, and what to do about it.
        reason: String,
    },
    /// The signaling server does not let the node in.
    Rejected(Code, String),
    /// The capture's file cannot be written.
    Capture(std::io::Error),
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinError::Settings(text) => f.write_str(text),
            JoinError::Key(error) => error.fmt(f),
            JoinError::Unreachable { url, reason } => write!(
                f,
                "the signaling server {url} cannot be reached ({reason}); start one with 'unisockets signal serve', \
                 or give another one with --signal"
            ),
            JoinError::Untrusted { url, reason } => {
                write!(f, "the certificate of the signaling server {url} is not trusted: {reason}")
            }
            JoinError::Rejected(_, text) => f.write_str(text),
            JoinError::Capture(error) => write!(f, "the capture cannot be written: {error}"),
        }
    }
}

impl std::error::Error for JoinError {}

impl From<KeyError> for JoinError {
    fn from(error: KeyError) -> Self {
        JoinError::Key(error)
    }
}

impl From<BadUrl> for JoinError {
    fn from(error: BadUrl) -> Self {
        JoinError::Settings(error.to_string())
    }
}

struct Inner {
    driver: Arc<Driver>,
    network: String,
    ephemeral: bool,
    /// Keeps the lock on the key's file.
    _identity: Identity,
}

/// A member of a virtual network. Clones are handles on the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("network", &self.inner.network).finish_non_exhaustive()
    }
}

impl Node {
    /// Joins a network. Must be called within a tokio runtime, on which the node then lives.
    ///
    /// # Errors
    /// [`JoinError`]; its text says what to do.
    pub async fn join(config: Config) -> Result<Node, JoinError> {
        let url = Url::parse(&config.signal)?;
        let settings = |bad: unisockets_signaling::network::BadName| JoinError::Settings(bad.to_string());
        let name = config.name.as_deref().map(parse_member_name).transpose().map_err(settings)?;
        let identity = Identity::load(&config)?;
        let (network_name, secret) = (config.network.clone(), config.secret.clone());
        // Deriving a secret's keys takes 64 MiB and a while: not on a thread that others need.
        let network = tokio::task::spawn_blocking(move || Network::new(&network_name, secret.as_deref()));
        let network = Arc::new(network.await.expect("the derivation does not panic").map_err(settings)?);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the operating system has a random source");
        let origin_unix_ns = unix_ns();
        let origin = Clock::now();
        let mut core = NodeCore::new(node::Config {
            network: Arc::clone(&network),
            pair: identity.pair.clone(),
            seed,
            origin_unix_ms: origin_unix_ns / 1_000_000,
            pins: identity.pins.clone(),
            host: url.host().to_owned(),
        });
        if let Some(path) = &config.capture {
            core.set_tap(Box::new(
                Capture::create(path, config.capture_snap_len, origin_unix_ns).map_err(JoinError::Capture)?,
            ));
        }
        let driver = Driver::new(core, origin, link_config(&config, &url), identity.pins_path());
        if config.capture.is_some() {
            tokio::spawn(flush_capture(Arc::downgrade(&driver)));
        }
        let membership = member::Config {
            network: Arc::clone(&network),
            pair: identity.pair.clone(),
            name,
            ipv4: config.ipv4,
            ephemeral: identity.ephemeral,
            host: url.host().to_owned(),
        };
        let weak = Arc::downgrade(&driver);
        let notify = Arc::new(move |notice| {
            if let Some(driver) = weak.upgrade() {
                driver.notice(notice);
            }
        });
        driver.set_client(Client::start(url.clone(), membership, notify));
        let ephemeral = identity.ephemeral;
        let inner = Inner { driver, network: network.id().to_owned(), ephemeral, _identity: identity };
        let node = Node { inner: Arc::new(inner) };
        node.wait_joined(&url, config.join_timeout).await?;
        Ok(node)
    }

    async fn wait_joined(&self, url: &Url, limit: Duration) -> Result<(), JoinError> {
        let mut membership = self.inner.driver.membership.subscribe();
        let decided = membership.wait_for(|membership| !matches!(membership, Membership::Joining(_)));
        let decided = timeout(limit, decided).await.ok().and_then(Result::ok).map(|membership| membership.clone());
        match decided {
            Some(Membership::Rejected(code, text)) => Err(JoinError::Rejected(code, text)),
            Some(Membership::Untrusted(reason)) => Err(JoinError::Untrusted { url: url.to_string(), reason }),
            Some(_) => Ok(()),
            None => {
                let last = match &*self.inner.driver.membership.borrow() {
                    Membership::Joining(Some(reason)) => reason.clone(),
                    _ => format!("no answer within {} seconds", limit.as_secs()),
                };
                let url = url.to_string();
                Err(JoinError::Unreachable { url, reason: last })
            }
        }
    }

    pub(crate) fn driver(&self) -> &Arc<Driver> {
        &self.inner.driver
    }

    fn welcome(&self) -> Box<Welcome> {
        self.driver().welcome().expect("a node is handed out once it has joined, and its last welcome is kept")
    }

    /// Returns the node's key.
    pub fn key(&self) -> PublicKey {
        self.driver().look(|state| state.core.key())
    }

    /// Returns the node's IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.welcome().lease.lease.ipv4
    }

    /// Returns the node's IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.welcome().ipv6
    }

    /// Returns the network's prefixes with their lengths in bits.
    pub fn prefixes(&self) -> Vec<(IpAddr, u8)> {
        self.welcome().prefixes.iter().map(|prefix| (prefix.address, prefix.len)).collect()
    }

    /// Whether an address is in one of them.
    #[cfg(all(target_os = "linux", any(feature = "descriptors", feature = "tun")))]
    pub(crate) fn is_in_network(&self, address: IpAddr) -> bool {
        self.welcome().prefixes.iter().any(|prefix| prefix.contains(address))
    }

    /// Returns the node's name, if it has one.
    pub fn name(&self) -> Option<String> {
        self.welcome().lease.lease.name
    }

    /// Returns the network's id.
    pub fn network(&self) -> &str {
        &self.inner.network
    }

    /// Returns whether the node gives its lease back when it leaves.
    pub fn is_ephemeral(&self) -> bool {
        self.inner.ephemeral
    }

    /// Describes the node, its peers and its sockets.
    pub fn status(&self) -> Status {
        let mut status = self.driver().look(|state| state.core.status(self.driver().now()));
        status.receive_buffer = link::granted_receive_buffer();
        status
    }

    /// Writes every packet from now on to a file in the pcapng format; without a path, ends that. A capture that was
    /// running before is finished.
    ///
    /// # Errors
    /// Those of creating the file.
    pub fn capture(&self, path: Option<&Path>) -> io::Result<()> {
        let driver = self.driver();
        let now = driver.now();
        let origin_unix_ns = unix_ns().saturating_sub(now.as_micros().saturating_mul(1_000));
        let snap_len = unisockets_stack::PACKET_LEN_MAX;
        let capture = path.map(|path| Capture::create(path, snap_len, origin_unix_ns)).transpose()?;
        let starts = capture.is_some();
        let addresses = [IpAddr::V4(self.ipv4()), IpAddr::V6(self.ipv6())];
        let name = self.name().unwrap_or_else(|| "this-node".to_owned());
        let tap = capture.map(|mut capture| {
            addresses.into_iter().for_each(|address| capture.name(address, &name));
            Box::new(capture) as Box<dyn Tap>
        });
        let before = driver.with(|state, _, _| state.core.replace_tap(tap));
        let flushed = before.is_some();
        // The end of a capture waits for the disk.
        tokio::task::spawn_blocking(move || drop(before));
        if starts && !flushed {
            tokio::spawn(flush_capture(Arc::downgrade(driver)));
        }
        Ok(())
    }

    /// Leaves the network: what was written is delivered first, within 5 s; peers and signaling are told, the capture is
    /// finished. A connection that the program has neither shut nor closed is broken off: its peer reads what was
    /// written, then ECONNRESET.
    pub async fn leave(&self) {
        let driver = self.driver();
        driver.with(|state, _, _| state.core.stack.finish());
        let drained = async {
            while driver.look(|state| state.core.stack.undelivered_count()) > 0 {
                let _ = timeout(Duration::from_millis(20), driver.changed.notified()).await;
            }
        };
        let _ = timeout(DRAIN_TIMEOUT, drained).await;
        let linked = driver.with(|state, now, _| {
            let linked = state.core.status(now).peers.iter().any(|peer| peer.path.is_some());
            state.core.leave(now);
            linked
        });
        if let Some(client) = driver.client() {
            client.leave().await;
        }
        if linked {
            tokio::time::sleep(GOODBYE).await;
        }
        let tap = driver.with(|state, _, _| state.core.take_tap());
        let _ = tokio::task::spawn_blocking(move || drop(tap)).await;
    }
}

/// Chooses the local addresses for links: with signaling on this machine everybody is, and loopback is
/// the shortest way. Where relays are, nobody knows yet.
fn link_config(config: &Config, url: &Url) -> link::Config {
    let bind = if !config.bind.is_empty() {
        config.bind.clone()
    } else if url.is_loopback() && !config.relay_only {
        vec![SocketAddr::from(([127, 0, 0, 1], 0))]
    } else {
        Vec::new()
    };
    link::Config {
        ice_servers: config.ice_servers.clone(),
        relay_only: config.relay_only,
        bind,
        avoid: Vec::new(),
        socket_buffer_max: config.socket_buffer_max,
        conditions: config.fault,
    }
}
