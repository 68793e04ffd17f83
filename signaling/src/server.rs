//! The signaling server: sockets, clocks and tasks around [`crate::room`].

use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum_server::accept::DefaultAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use futures_util::{SinkExt, StreamExt};
use governor::{DefaultDirectRateLimiter, RateLimiter};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use crate::bus::{Bus, MemoryBus, Parcel};
use crate::callers::{CONNECTIONS_MAX, Callers, Ends, EndsListener, Refused, quota};
pub use crate::callers::{CONNECTIONS_PER_ADDRESS_MAX, CONNECTIONS_PER_LOOPBACK_ADDRESS_MAX, Limits};
use crate::directory::{Directory, LocalDirectory};
use crate::greeting::FirstHttp;
pub use crate::hosts::{BadHost, HostName, PAGE_ON_LOOPBACK};
use crate::hosts::{Host, Hosts};
use crate::identity::KeyPair;
use crate::leases::Claim;
use crate::network::PREFIX_V4;
use crate::outgoing::{self, Outgoing};
use crate::page::with_page;
pub use crate::page::{BadFrameOrigin, FrameOrigin, Page};
use crate::protocol::{Code, FRAME_LEN_MAX, FromServer, GoneReason, IceServer, Nonce, emit};
use crate::room::{self, Admission, ConnectionId, Output, Room};
use crate::tls;

/// A connection that is silent for so long is pinged.
const PING_AFTER: Duration = Duration::from_secs(20);
/// A connection that answers no ping for so long is gone.
const GONE_AFTER: Duration = Duration::from_secs(30);
/// Frames a second from one connection, and at once; the rest waits in the sender's own socket.
const FRAMES_PER_S: u32 = 200;
/// See [`FRAMES_PER_S`].
const FRAMES_BURST: u32 = 1_000;
/// How long a client may take to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request's head: members' pages are of one site with the page, and may give it all the cookies that a browser
/// keeps for a site. Nothing here reads them.
const HEAD_MAX: usize = 1024 * 1024;
/// How long one message may take to leave; a reader that takes longer is put out.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// How often the limiter of new connections forgets addresses.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);
/// How often leases that are kept no longer are forgotten: it takes a walk over all of them.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// When an address with too many connections may try again.
const CROWDED_MS: u64 = 5_000;
/// How long a connection that is turned away may take to hear why.
const TURN_AWAY_LIMIT: Duration = Duration::from_secs(2);
/// When members shall come back after a server that stops.
const RETURN_MS: u64 = 500;
/// How long stopping may take.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 takes a free one. The same port serves STUN on UDP.
    pub listen: SocketAddr,
    /// The file that keeps leases and the server's key; without it both end with the process.
    pub data: Option<PathBuf>,
    /// Whether networks without a secret are let in.
    pub admission: Admission,
    /// Certificate and key, for TLS.
    pub tls: Option<tls::Files>,
    /// Further STUN and TURN servers to tell members.
    pub ice_servers: Vec<IceServer>,
    /// The IPv4 prefix of every network.
    pub prefix: (Ipv4Addr, u8),
    /// The server's names. If there are none, it goes by the address and port that a connection leads to, by the
    /// machine's name, and on loopback by `localhost`.
    pub hosts: Vec<HostName>,
    /// How many connections one address may have.
    pub limits: Limits,
    /// A page that browsers are served at `/`.
    pub page: Option<Page>,
}

impl Config {
    /// Settings for a server at an address: open on loopback only, in memory, without TLS.
    pub fn new(listen: SocketAddr) -> Self {
        let admission = if listen.ip().is_loopback() { Admission::Open } else { Admission::SecretOnly };
        Self {
            listen,
            data: None,
            admission,
            tls: None,
            ice_servers: Vec::new(),
            prefix: PREFIX_V4,
            hosts: Vec::new(),
            limits: Limits::default(),
            page: None,
        }
    }
}

/// Why a server cannot start; the text says what to do.
#[derive(Debug)]
pub struct ServeError(pub(crate) String);

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServeError {}

struct Shared {
    room: Mutex<Room>,
    outgoing: Mutex<HashMap<ConnectionId, outgoing::Sender>>,
    directory: Arc<dyn Directory>,
    bus: Arc<dyn Bus>,
    instance: u64,
    next_connection: AtomicU64,
    callers: Arc<Callers>,
    hosts: Hosts,
    /// The start of the room's time, which no change of the machine's clock moves.
    origin: Instant,
    deadline_changed: Notify,
    draining: AtomicBool,
}

/// The time of leases, which outlive the process.
fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has a random source");
    bytes
}

impl Shared {
    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outgoing(&self) -> MutexGuard<'_, HashMap<ConnectionId, outgoing::Sender>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Does something with the room and carries out what follows from it.
    fn with_room(self: &Arc<Self>, f: impl FnOnce(&mut Room)) {
        // Everything is handed on under the lock: its order is the room's order.
        let mut room = self.room();
        let due = room.poll_timeout();
        f(&mut room);
        while let Some(output) = room.poll_output() {
            match output {
                Output::Send(id, message) => {
                    if self.hand(id, Outgoing::Text(emit(&message))) {
                        room.crowd(id, true);
                    }
                }
                Output::Close(id) => drop(self.hand(id, Outgoing::Close)),
                Output::Probe(id) => drop(self.hand(id, Outgoing::Ping)),
                other => self.carry_out(other),
            }
        }
        if room.poll_timeout() != due {
            self.deadline_changed.notify_one();
        }
    }

    /// Queues something for a connection, and returns whether much waits for it; one that does not read is put out.
    fn hand(&self, id: ConnectionId, outgoing: Outgoing) -> bool {
        let mut table = self.outgoing();
        let sent = table.get(&id).map_or(Ok(false), |sender| sender.send(outgoing));
        sent.unwrap_or_else(|_| {
            debug!(?id, "a slow reader is put out");
            table.remove(&id);
            false
        })
    }

    /// Asks the directory or the bus; answers come back in tasks of their own.
    fn carry_out(self: &Arc<Self>, output: Output) {
        let shared = Arc::clone(self);
        match output {
            Output::Enter(place) => self.directory.enter(&place, self.instance),
            Output::Exit(place, kept) => self.directory.exit(&place, self.instance, kept, unix_s()),
            Output::Claim(id, claim) => {
                let answer = self.directory.claim(Claim { now_s: unix_s(), ..claim });
                tokio::spawn(async move {
                    let result = answer.await;
                    shared.with_room(|room| room.claimed(shared.now_ms(), id, result, Nonce::new(random())));
                });
            }
            Output::Find(id, number, network, query) => {
                let answer = self.directory.find(&network, &query);
                tokio::spawn(async move {
                    let found = answer.await.map(|found| (found.record, found.instance.is_some()));
                    shared.with_room(|room| room.found(id, number, found));
                });
            }
            Output::List(id, number, network, after, limit) => {
                let answer = self.directory.list(&network, after, limit);
                tokio::spawn(async move {
                    let found = answer.await.into_iter().map(|found| (found.record, found.instance.is_some()));
                    let found = found.collect();
                    shared.with_room(|room| room.listed(id, number, found));
                });
            }
            Output::Forward { connection, id, from, to, payload } => {
                tokio::spawn(async move {
                    let query = crate::protocol::Query::Key(to.1);
                    let found = shared.directory.find(&to.0, &query).await;
                    let instance = found.and_then(|found| found.instance).filter(|other| *other != shared.instance);
                    let publish = |instance| shared.bus.publish(instance, Parcel { to, from, payload });
                    let delivered = instance.ok_or(()).and_then(|instance| publish(instance).map_err(|_| ()));
                    shared.with_room(|room| room.forwarded(connection, id, delivered));
                });
            }
            Output::Send(..) | Output::Close(_) | Output::Probe(_) => {}
        }
    }
}

/// A running server; dropping it does not stop it, [`Server::stop`] does.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    scheme: &'static str,
    handle: axum_server::Handle<Ends>,
    tasks: tokio::task::JoinSet<()>,
}

impl Server {
    /// Starts a server.
    ///
    /// # Errors
    /// [`ServeError`] if the address, the certificate or the data file cannot be used.
    pub async fn start(config: Config) -> Result<Server, ServeError> {
        let directory = open_directory(&config)?;
        Self::start_with(config, directory, Arc::new(MemoryBus::default())).await
    }

    /// Starts an instance on a directory and a bus that it shares with others.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_with(
        config: Config,
        directory: Arc<dyn Directory>,
        bus: Arc<dyn Bus>,
    ) -> Result<Server, ServeError> {
        let tls = config.tls.as_ref().map(tls::Files::load).transpose()?;
        let (listener, stun) = bind(config.listen).await?;
        let address = listener.local_addr().map_err(|error| ServeError(error.to_string()))?;
        let stun_server = IceServer {
            url: format!("stun:{{host}}:{}", address.port()),
            username: String::new(),
            credential: String::new(),
        };
        let ice_servers = std::iter::once(stun_server).chain(config.ice_servers.clone()).collect();
        let room = Room::new(room::Config {
            key: directory.server_key(),
            prefix: config.prefix,
            admission: config.admission,
            ice_servers,
        });
        let instance = u64::from_be_bytes(random());
        let inbox = bus.subscribe(instance);
        let shared = Arc::new(Shared {
            room: Mutex::new(room),
            outgoing: Mutex::new(HashMap::new()),
            directory,
            bus,
            instance,
            next_connection: AtomicU64::new(0),
            callers: Callers::new(config.limits),
            hosts: Hosts::new(config.hosts.clone(), machine_name().as_deref()),
            origin: Instant::now(),
            deadline_changed: Notify::new(),
            draining: AtomicBool::new(false),
        });
        let handle = axum_server::Handle::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(answer_stun(stun));
        tasks.spawn(keep_time(Arc::clone(&shared)));
        tasks.spawn(take_parcels(Arc::clone(&shared), inbox));
        let scheme =
            serve(tls, listener, Arc::clone(&shared), (config.page.as_ref(), &config.hosts), &handle, &mut tasks)?;
        info!(%address, "signaling serves");
        Ok(Server { shared, address, scheme, handle, tasks })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL that members on this machine use.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Returns how many members are connected.
    pub fn member_count(&self) -> usize {
        self.shared.room().member_count()
    }

    /// Tells members to come back soon, lets what was sent leave, and stops.
    pub async fn stop(mut self) {
        self.shared.draining.store(true, Ordering::Release);
        self.shared.with_room(|room| room.drain(RETURN_MS));
        let gone = async {
            while self.shared.room().connection_count() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = timeout(STOP_GRACE, gone).await;
        self.handle.shutdown();
        self.tasks.shutdown().await;
    }
}

/// Reads the machine's name, where the system says it in a file.
fn machine_name() -> Option<String> {
    let read = |path| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    ["/proc/sys/kernel/hostname", "/etc/hostname"].into_iter().filter_map(read).find(|name| !name.is_empty())
}

fn open_directory(config: &Config) -> Result<Arc<dyn Directory>, ServeError> {
    let Some(path) = &config.data else {
        return Ok(Arc::new(LocalDirectory::in_memory(config.prefix, KeyPair::from_seed(&random()))));
    };
    let directory = LocalDirectory::in_file(config.prefix, path, random(), unix_s());
    Ok(Arc::new(directory.map_err(|error| ServeError(format!("{}: {error}", path.display())))?))
}

/// Binds TCP and UDP at the same port; where a free one is asked for, some tries may be needed.
async fn bind(listen: SocketAddr) -> Result<(std::net::TcpListener, UdpSocket), ServeError> {
    let failed = |error: std::io::Error| {
        ServeError(format!("cannot listen on {listen}: {error}; choose another address with --listen"))
    };
    for attempt in 0.. {
        let listener = std::net::TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        match UdpSocket::bind(address).await {
            Ok(udp) => return Ok((listener, udp)),
            Err(_) if listen.port() == 0 && attempt < 16 => {}
            Err(error) => return Err(failed(error)),
        }
    }
    unreachable!("the loop returns")
}

fn serve(
    tls: Option<RustlsConfig>,
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    (page, hosts): (Option<&Page>, &[HostName]),
    handle: &axum_server::Handle<Ends>,
    tasks: &mut tokio::task::JoinSet<()>,
) -> Result<&'static str, ServeError> {
    let router = Router::new()
        .route("/v1", get(upgrade))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    let router = match page {
        Some(page) => with_page(router, page, hosts),
        None => router.route("/", get(front)),
    };
    let callers = Arc::clone(&shared.callers);
    let router = router.with_state(shared).into_make_service_with_connect_info::<Ends>();
    let listener = TcpListener::from_std(listener).map_err(|error| ServeError(format!("cannot serve: {error}")))?;
    let mut server = axum_server::Server::<Ends>::from_listener(EndsListener { listener, callers })
        .handle(handle.clone())
        .first_request_timeout(REQUEST_LIMIT);
    server.http_builder().http1().header_read_timeout(REQUEST_LIMIT).max_buf_size(HEAD_MAX);
    match tls {
        None => {
            let server = server.acceptor(FirstHttp(DefaultAcceptor::new()));
            tasks.spawn(async move { drop(server.serve(router).await) });
            Ok("ws")
        }
        Some(tls) => {
            let server = server.acceptor(FirstHttp(RustlsAcceptor::new(tls)));
            tasks.spawn(async move { drop(server.serve(router).await) });
            Ok("wss")
        }
    }
}

async fn front() -> &'static str {
    "unisockets signaling server\n\nMembers connect with: unisockets ... --signal URL-of-this-server\n"
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.draining.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    "ready\n".into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let (members, connections, totals) = {
        let room = shared.room();
        (room.member_count(), room.connection_count(), room.totals)
    };
    let rows = [
        ("members", "gauge", "Members connected.", members as u64),
        ("connections", "gauge", "Connections open.", connections as u64),
        ("joins_total", "counter", "Members let in.", totals.joins),
        ("refusals_total", "counter", "Requests refused.", totals.refusals),
        ("signals_total", "counter", "Signals handed on.", totals.signals),
        ("bad_frames_total", "counter", "Frames that were no messages.", totals.bad_frames),
        ("sent_total", "counter", "Messages sent to members.", totals.sent),
    ];
    let text: String = rows
        .iter()
        .map(|(name, kind, help, value)| {
            let name = format!("unisockets_signal_{name}");
            format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n")
        })
        .collect();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn upgrade(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(ends): ConnectInfo<Ends>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let admitted = ends.call.as_ref().map_or(Ok(()), |call| call.admit());
    if admitted == Err(Refused::TooFast) {
        return (StatusCode::TOO_MANY_REQUESTS, "too many connections from this address; slow down\n").into_response();
    }
    if shared.draining.load(Ordering::Acquire) || shared.outgoing().len() >= CONNECTIONS_MAX {
        return (StatusCode::SERVICE_UNAVAILABLE, "the server is full or stopping; try again later\n").into_response();
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let host = shared.hosts.check(host, ends.local);
    upgrade
        .max_message_size(FRAME_LEN_MAX)
        .max_frame_size(FRAME_LEN_MAX)
        .read_buffer_size(4 * 1024)
        .write_buffer_size(4 * 1024)
        .max_write_buffer_size(4 * FRAME_LEN_MAX)
        .on_upgrade(async move |socket| {
            match admitted {
                Ok(()) => converse(shared, socket, host).await,
                Err(_) => turn_away(socket).await,
            }
            drop(ends);
        })
}

/// Says why there is no place for a connection: a client of a failed upgrade, such as a browser, would not hear it.
async fn turn_away(mut socket: WebSocket) {
    let refused = FromServer::Refused {
        id: None,
        code: Code::TooMuch,
        message: "too many connections from this address at one time; close some, or try again later".to_owned(),
        retry_after_ms: Some(CROWDED_MS),
    };
    let say = async {
        if socket.send(Message::Text(emit(&refused).into())).await.is_ok() {
            let _ = socket.close().await;
        }
    };
    let _ = timeout(TURN_AWAY_LIMIT, say).await;
}

/// Sends a message to somebody who reads.
async fn say(sink: &mut (impl futures_util::Sink<Message> + Unpin), message: Message) -> Result<(), ()> {
    timeout(SEND_LIMIT, sink.send(message)).await.map_err(|_| ())?.map_err(|_| ())
}

/// Follows one connection to its end.
async fn converse(shared: Arc<Shared>, socket: WebSocket, host: Host) {
    let id = ConnectionId(shared.next_connection.fetch_add(1, Ordering::Relaxed));
    let (mut sink, mut stream) = socket.split();
    let (sender, mut outgoing) = outgoing::queue();
    shared.outgoing().insert(id, sender);
    shared.with_room(|room| room.open(shared.now_ms(), id, host, Nonce::new(random())));
    let mut heard = Instant::now();
    let mut pinged = false;
    let frames: DefaultDirectRateLimiter = RateLimiter::direct(quota(FRAMES_PER_S, FRAMES_BURST));
    let reason = loop {
        let quiet_until = heard + if pinged { GONE_AFTER } else { PING_AFTER };
        let sent = tokio::select! {
            message = stream.next() => {
                heard = Instant::now();
                pinged = false;
                if matches!(message, Some(Ok(_))) {
                    frames.until_ready().await;
                }
                match message {
                    Some(Ok(Message::Text(frame))) => shared.with_room(|room| room.frame(shared.now_ms(), id, &frame)),
                    Some(Ok(Message::Binary(_))) => shared.with_room(|room| room.frame(shared.now_ms(), id, "")),
                    Some(Ok(Message::Pong(_))) => shared.with_room(|room| room.alive(id)),
                    Some(Ok(Message::Ping(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break GoneReason::Closed,
                }
                Ok(())
            }
            next = outgoing.next() => match next {
                Some(Outgoing::Text(text)) => say(&mut sink, Message::Text(text.into())).await,
                Some(Outgoing::Ping) => say(&mut sink, Message::Ping(Vec::new().into())).await,
                Some(Outgoing::Close) | None => {
                    let _ = timeout(Duration::from_secs(1), sink.close()).await;
                    break GoneReason::Closed;
                }
            },
            () = sleep_until(quiet_until) => {
                if pinged {
                    break GoneReason::Timeout;
                }
                pinged = true;
                say(&mut sink, Message::Ping(Vec::new().into())).await
            }
        };
        if sent.is_err() {
            break GoneReason::Closed;
        }
        if outgoing.has_room_again() {
            shared.with_room(|room| room.crowd(id, false));
        }
    };
    shared.outgoing().remove(&id);
    shared.with_room(|room| room.closed(id, reason));
}

/// Calls the room when its deadlines are due.
async fn keep_time(shared: Arc<Shared>) {
    let mut forget_at = Instant::now() + FORGET_INTERVAL;
    let mut sweep_at = Instant::now() + SWEEP_INTERVAL;
    loop {
        if Instant::now() >= forget_at {
            forget_at = Instant::now() + FORGET_INTERVAL;
            shared.callers.forget_quiet();
        }
        if Instant::now() >= sweep_at {
            sweep_at = Instant::now() + SWEEP_INTERVAL;
            shared.directory.sweep(unix_s());
        }
        let due = shared.room().poll_timeout();
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep(Duration::from_millis(due.saturating_sub(shared.now_ms()))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => shared.with_room(|room| room.handle_timeout(shared.now_ms())),
            () = shared.deadline_changed.notified() => {}
            () = sleep_until(forget_at) => {}
        }
    }
}

async fn take_parcels(shared: Arc<Shared>, mut inbox: mpsc::Receiver<Parcel>) {
    while let Some(parcel) = inbox.recv().await {
        shared.with_room(|room| {
            room.deliver(&parcel.to, parcel.from, &parcel.payload);
        });
    }
}

async fn answer_stun(socket: UdpSocket) {
    let mut packet = [0; 2_048];
    loop {
        // Errors of single packets (an unreachable sender) are no reason to stop.
        let Ok((len, source)) = socket.recv_from(&mut packet).await else {
            tokio::task::yield_now().await;
            continue;
        };
        if let Some(answer) = crate::stun::answer(&packet[..len], source) {
            let _ = socket.send_to(&answer, source).await;
        }
    }
}
