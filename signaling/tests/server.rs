//! A real server on loopback, with real members and with strangers that mean it no good.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::{WebSocketStream, client_async};
use unisockets_signaling::bus::MemoryBus;
use unisockets_signaling::directory::LocalDirectory;
use unisockets_signaling::identity::{KeyPair, PublicKey};
use unisockets_signaling::member::{self, Event, Failure};
use unisockets_signaling::native::{Client, Command, Notice, Url};
use unisockets_signaling::network::{Network, PREFIX_V4, address_v6};
use unisockets_signaling::protocol::{
    Code, FRAME_LEN_MAX, FromMember, FromServer, GoneReason, Hello, Member, Nonce, Proven, Query, VERSION, Welcome,
    emit, parse,
};
use unisockets_signaling::room::Admission;
use unisockets_signaling::server::{Config, Limits, Server};

/// How long a test waits for something that is to happen.
const LIMIT: Duration = Duration::from_secs(20);

fn pair(n: u8) -> KeyPair {
    KeyPair::from_seed(&[n; 32])
}

fn key(n: u8) -> PublicKey {
    pair(n).public()
}

fn loopback() -> Config {
    Config::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

async fn start() -> Server {
    Server::start(loopback()).await.expect("the server starts")
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("nothing within {LIMIT:?}: {what}"))
}

/// Waits for a condition that nothing announces.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, wait).await;
}

/// A member with the client that programs use.
struct Joined {
    client: Client,
    notices: mpsc::UnboundedReceiver<Notice>,
}

impl Joined {
    fn start(server: &Server, config: member::Config) -> Self {
        let (notify, notices) = mpsc::unbounded_channel();
        let url = Url::parse(&server.url()).expect("a server's URL is one");
        // A test that is over does not listen any more.
        let notify = move |notice| drop(notify.send(notice));
        Self { client: Client::start(url, config, Arc::new(notify)), notices }
    }

    async fn join(server: &Server, config: member::Config) -> (Self, Box<Welcome>) {
        let mut joined = Self::start(server, config);
        let welcome = joined.joined().await;
        (joined, welcome)
    }

    /// Skips what is learnt until something is picked.
    async fn next<T>(&mut self, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let wait = async {
            loop {
                match self.notices.recv().await.expect("the task runs") {
                    Notice::Event(event) => {
                        if let Some(picked) = pick(event) {
                            return picked;
                        }
                    }
                    Notice::Unreachable(_) | Notice::Untrusted(_) => {}
                }
            }
        };
        within(what, wait).await
    }

    async fn joined(&mut self) -> Box<Welcome> {
        let result = self.next("the welcome", |event| match event {
            Event::Joined(welcome) => Some(Ok(welcome)),
            Event::Rejected(code, text) => Some(Err((code, text))),
            _ => None,
        });
        result.await.expect("it is let in")
    }

    async fn rejected(&mut self) -> Code {
        let result = self.next("the rejection", |event| match event {
            Event::Joined(_) => Some(None),
            Event::Rejected(code, _) => Some(Some(code)),
            _ => None,
        });
        result.await.expect("it is not let in")
    }

    async fn resolve(&mut self, query: Query) -> Result<Member, Failure> {
        assert!(self.client.command(Command::Resolve(77, query)));
        let picked = self.next("the answer", |event| match event {
            Event::Resolved(77, result) => Some(result),
            _ => None,
        });
        picked.await
    }

    async fn gone(&mut self, who: PublicKey) -> GoneReason {
        let picked = self.next("the end of a member", |event| match event {
            Event::Gone(key, reason) if key == who => Some(reason),
            _ => None,
        });
        picked.await
    }

    async fn signal(&mut self) -> (PublicKey, String) {
        let picked = self.next("a signal", |event| match event {
            Event::Signal(from, payload) => Some((from, payload)),
            _ => None,
        });
        picked.await
    }

    fn send(&self, to: PublicKey, payload: &str) {
        assert!(self.client.command(Command::Signal(to, payload.to_owned())));
    }
}

fn settings(server: &Server, n: u8) -> member::Config {
    member::Config {
        network: Arc::new(Network::new("home", None).unwrap()),
        pair: pair(n),
        name: None,
        ipv4: None,
        ephemeral: false,
        host: server.address().to_string(),
    }
}

fn named(server: &Server, n: u8, name: &str) -> member::Config {
    member::Config { name: Some(name.to_owned()), ..settings(server, n) }
}

/// Proves that the server still serves: somebody new joins, is found, and leaves.
async fn somebody_new_joins(server: &Server, n: u8) {
    let (mut joined, welcome) = Joined::join(server, settings(server, n)).await;
    let found = joined.resolve(Query::Ip(welcome.lease.lease.ipv4.into())).await.expect("it finds itself");
    assert_eq!((found.key, found.present), (key(n), true));
    joined.client.leave().await;
}

// A member by hand, for what no client would do.

type Socket = WebSocketStream<TcpStream>;

async fn websocket(address: SocketAddr, stream: TcpStream) -> Socket {
    let (socket, _) = within("the upgrade", client_async(format!("ws://{address}/v1"), stream)).await.unwrap();
    socket
}

async fn connect(address: SocketAddr) -> Socket {
    websocket(address, TcpStream::connect(address).await.unwrap()).await
}

async fn hear(socket: &mut Socket) -> FromServer {
    loop {
        match within("a message", socket.next()).await.expect("the connection is open").unwrap() {
            Message::Text(frame) => return parse(&frame).unwrap(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("expected a message, got {other:?}"),
        }
    }
}

async fn say(socket: &mut Socket, message: &FromMember) {
    socket.send(Message::Text(emit(message).into())).await.unwrap();
}

/// Waits until the server has closed the connection, whatever it says before.
async fn closed(socket: &mut Socket) {
    let end = async { while let Some(Ok(_)) = socket.next().await {} };
    within("the end of the connection", end).await;
}

async fn join_by_hand(address: SocketAddr, socket: Socket, n: u8) -> (Socket, Box<Welcome>) {
    match answer_challenge(&address.to_string(), socket, n).await {
        (socket, FromServer::Welcome(welcome)) => (socket, welcome),
        (_, other) => panic!("expected a welcome, got {other:?}"),
    }
}

/// Says a hello for a host; returns what comes back.
async fn answer_challenge(host: &str, mut socket: Socket, n: u8) -> (Socket, FromServer) {
    let FromServer::Challenge { nonce: server_nonce } = hear(&mut socket).await else {
        panic!("the first message is the challenge");
    };
    let (pair, nonce) = (pair(n), Nonce::new([5; 32]));
    let key = pair.public();
    let proven = Proven { host, network: "home", key: &key, server_nonce: &server_nonce, nonce: &nonce };
    let hello = Hello {
        protocol: VERSION,
        network: "home".to_owned(),
        key,
        name: None,
        ipv4: None,
        ephemeral: false,
        resume: None,
        nonce,
        proof: proven.sign(&pair),
        network_proof: None,
    };
    say(&mut socket, &FromMember::Hello(Box::new(hello))).await;
    let answer = hear(&mut socket).await;
    (socket, answer)
}

/// Connects from an address of this machine's own network.
async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> Socket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    websocket(address, socket.connect(address).await.unwrap()).await
}

// Members among each other.

#[tokio::test]
async fn two_members_meet() {
    let server = start().await;
    let (mut alpha, first) = Joined::join(&server, named(&server, 1, "alpha")).await;
    let (mut beta, second) = Joined::join(&server, named(&server, 2, "beta")).await;
    assert_eq!(server.member_count(), 2);
    assert!(first.lease.is_signed() && first.lease.server == second.lease.server);
    let port = server.address().port();
    assert_eq!(first.ice_servers[0].url, format!("stun:127.0.0.1:{port}"));
    let ipv4 = second.lease.lease.ipv4;
    let expected = Member { key: key(2), ipv4, ipv6: second.ipv6, name: Some("beta".to_owned()), present: true };
    assert_eq!(second.ipv6, address_v6("home", &key(2)));
    for query in
        [Query::Name("beta".to_owned()), Query::Ip(ipv4.into()), Query::Ip(second.ipv6.into()), Query::Key(key(2))]
    {
        assert_eq!(alpha.resolve(query).await, Ok(expected.clone()));
    }
    let nobody = alpha.resolve(Query::Name("gamma".to_owned())).await;
    assert!(matches!(nobody, Err(Failure::Refused(Code::NotFound, _))));
    assert!(beta.client.command(Command::List(5, None, 10)));
    let listed = beta.next("the page", |event| match event {
        Event::Members(5, result) => Some(result),
        _ => None,
    });
    assert_eq!(listed.await.map(|page| page.len()), Ok(2));

    alpha.send(key(2), "offer");
    assert_eq!(beta.signal().await, (key(1), "offer".to_owned()));
    alpha.next("the receipt", |event| matches!(event, Event::Delivered(_)).then_some(())).await;
    beta.send(key(1), "answer");
    assert_eq!(alpha.signal().await, (key(2), "answer".to_owned()));

    beta.client.leave().await;
    assert_eq!(alpha.gone(key(2)).await, GoneReason::Left);
    server.stop().await;
}

#[tokio::test]
async fn watchers_hear_at_once_that_a_connection_closed() {
    let server = start().await;
    let (mut alpha, _) = Joined::join(&server, settings(&server, 1)).await;
    let (mut bystander, _) = Joined::join(&server, settings(&server, 3)).await;
    let (socket, _) = join_by_hand(server.address(), connect(server.address()).await, 2).await;
    alpha.send(key(2), "offer");
    alpha.next("the receipt", |event| matches!(event, Event::Delivered(_)).then_some(())).await;
    let dropped = Instant::now();
    drop(socket);
    assert_eq!(alpha.gone(key(2)).await, GoneReason::Closed);
    assert!(dropped.elapsed() < Duration::from_secs(5), "no ping has to be missed for that");
    assert_eq!(alpha.resolve(Query::Key(key(2))).await.map(|found| found.present), Ok(false));
    // Whoever does not watch is answered, and hears nothing of it before.
    assert!(bystander.client.command(Command::Resolve(1, Query::Key(key(2)))));
    let first = bystander.next("anything", Some).await;
    assert!(matches!(first, Event::Resolved(1, Ok(_))), "{first:?}");
}

#[tokio::test]
async fn networks_with_a_secret_are_apart_from_those_with_another() {
    let server = Server::start(Config { admission: Admission::SecretOnly, ..loopback() }).await.unwrap();
    let with = |secret| Arc::new(Network::new("home", secret).unwrap());
    let (right, wrong) = (with(Some("right")), with(Some("wrong")));
    let config =
        |n, network: &Arc<Network>| member::Config { network: Arc::clone(network), ..named(&server, n, "alpha") };
    let (mut alpha, _) = Joined::join(&server, config(1, &right)).await;
    let (_other, welcome) = Joined::join(&server, config(2, &wrong)).await;
    assert_eq!(welcome.lease.lease.network, wrong.id());
    let found = alpha.resolve(Query::Key(key(2))).await;
    assert!(matches!(found, Err(Failure::Refused(Code::NotFound, _))));
    let mut open = Joined::start(&server, settings(&server, 3));
    assert_eq!(open.rejected().await, Code::SecretRequired);
}

#[tokio::test]
async fn a_member_that_calls_the_server_by_another_name_is_rejected() {
    let server = start().await;
    let config = member::Config { host: "signal.example:443".to_owned(), ..settings(&server, 1) };
    let mut joined = Joined::start(&server, config);
    assert_eq!(joined.rejected().await, Code::BadProof);
}

/// Any `Host` was once taken: a server in the middle passed on the proofs that members had made for it.
#[tokio::test]
async fn a_host_that_the_server_does_not_go_by_is_refused_and_named_ones_are_taken() {
    // The member has connected to a server in the middle, which passes all on, its own `Host` with it.
    let knock = async |server: &Server, host: &str, n: u8| {
        let stream = TcpStream::connect(server.address()).await.unwrap();
        let (socket, _) = client_async(format!("ws://{host}/v1"), stream).await.unwrap();
        answer_challenge(host, socket, n).await
    };
    let refusal = |message: FromServer| match message {
        FromServer::Refused { code: Code::BadProof, message, .. } => assert!(message.contains("--host"), "{message}"),
        other => panic!("expected a refusal, got {other:?}"),
    };
    let server = start().await;
    let port = server.address().port();
    for host in ["evil.example".to_owned(), format!("evil.example:{port}"), format!("127.0.0.1:{}", port ^ 1)] {
        refusal(knock(&server, &host, 1).await.1);
    }
    assert_eq!(server.member_count(), 0);
    for (n, host) in (1..).zip([format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("LOCALHOST.:{port}")])
    {
        let answer = knock(&server, &host, n).await.1;
        assert!(matches!(answer, FromServer::Welcome(_)), "{host}: {answer:?}");
    }
    let hosts = vec!["signal.example".parse().unwrap()];
    let server = Server::start(Config { hosts, ..loopback() }).await.unwrap();
    let port = server.address().port();
    let (_socket, welcomed) = knock(&server, "signal.example", 1).await;
    assert!(matches!(welcomed, FromServer::Welcome(_)), "{welcomed:?}");
    refusal(knock(&server, &format!("127.0.0.1:{port}"), 2).await.1);
}

#[tokio::test]
async fn a_server_on_all_addresses_goes_by_the_one_that_is_called() {
    let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let server = Server::start(Config { admission: Admission::Open, ..Config::new(all) }).await.unwrap();
    let port = server.address().port();
    for (n, host) in (1..).zip(["127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0"]) {
        let url = Url::parse(&format!("ws://{host}:{port}")).unwrap();
        let config = member::Config { host: url.host().to_owned(), ..settings(&server, n) };
        let (notify, notices) = mpsc::unbounded_channel();
        let client = Client::start(url, config, Arc::new(move |notice| drop(notify.send(notice))));
        Joined { client, notices }.joined().await;
    }
}

/// Only new connections were counted once: one address could take all places of a server and keep them.
#[tokio::test]
async fn an_address_with_too_many_connections_is_turned_away_and_told_when_to_retry() {
    let limits = Limits { per_loopback_address: 3, ..Limits::default() };
    let server = Server::start(Config { limits, ..loopback() }).await.unwrap();
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut socket = connect(server.address()).await;
        assert!(matches!(hear(&mut socket).await, FromServer::Challenge { .. }));
        sockets.push(socket);
    }
    let mut crowded = connect(server.address()).await;
    match hear(&mut crowded).await {
        FromServer::Refused { code: Code::TooMuch, message, retry_after_ms: Some(1..), .. } => {
            assert!(message.contains("try again later"), "{message}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    closed(&mut crowded).await;
    let mut other = connect_from(Ipv4Addr::new(127, 0, 0, 2), server.address()).await;
    assert!(matches!(hear(&mut other).await, FromServer::Challenge { .. }), "another address is not concerned");
    // Whoever goes makes room.
    sockets.clear();
    let (_member, _) = Joined::join(&server, settings(&server, 1)).await;
}

/// Only what asked to become a member was counted: an address could take all descriptors of a server in silence.
#[tokio::test]
async fn an_address_that_only_connects_is_closed_unheard_beyond_its_places() {
    let limits = Limits { per_loopback_address: 3, ..Limits::default() };
    let server = Server::start(Config { limits, ..loopback() }).await.unwrap();
    let mut silent = Vec::new();
    let mut closed = false;
    // Some more than its places are still told that they are too many.
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        closed = matches!(timeout(Duration::from_millis(100), stream.read(&mut [0])).await, Ok(Ok(0) | Err(_)));
        if closed {
            break;
        }
        silent.push(stream);
    }
    assert!(closed && silent.len() >= 3, "closed: {closed}, {} are open", silent.len());
    let mut other = connect_from(Ipv4Addr::new(127, 0, 0, 2), server.address()).await;
    assert!(matches!(hear(&mut other).await, FromServer::Challenge { .. }), "another address is not concerned");
    drop(silent);
    let (_member, _) = Joined::join(&server, settings(&server, 1)).await;
}

#[tokio::test]
async fn instances_that_share_a_directory_and_a_bus_deliver_to_each_other() {
    let directory = Arc::new(LocalDirectory::in_memory(PREFIX_V4, pair(200)));
    let bus = Arc::new(MemoryBus::default());
    let instance = || Server::start_with(loopback(), directory.clone(), bus.clone());
    let (first, second) = (instance().await.unwrap(), instance().await.unwrap());
    let (mut alpha, at_first) = Joined::join(&first, settings(&first, 1)).await;
    let (mut beta, at_second) = Joined::join(&second, named(&second, 2, "beta")).await;
    assert_ne!(at_first.lease.lease.ipv4, at_second.lease.lease.ipv4);
    assert_eq!(at_first.lease.server, at_second.lease.server);
    let found = alpha.resolve(Query::Name("beta".to_owned())).await.unwrap();
    assert_eq!((found.key, found.present), (key(2), true));
    alpha.send(key(2), "offer");
    assert_eq!(beta.signal().await, (key(1), "offer".to_owned()));
    alpha.next("the receipt", |event| matches!(event, Event::Delivered(_)).then_some(())).await;
    beta.client.leave().await;
    until("beta has left", || second.member_count() == 0).await;
    alpha.send(key(2), "too late");
    let failure = alpha.next("the failure", |event| match event {
        Event::Undelivered { to, failure, .. } => Some((to, failure)),
        _ => None,
    });
    assert!(matches!(failure.await, (to, Failure::Refused(Code::NotFound, _)) if to == key(2)));
}

// One live session per key.

#[tokio::test]
async fn the_same_key_twice_is_rejected_while_the_first_is_alive() {
    let server = start().await;
    let (mut first, welcome) = Joined::join(&server, settings(&server, 1)).await;
    let mut second = Joined::start(&server, settings(&server, 1));
    assert_eq!(second.rejected().await, Code::InUse);
    let found = first.resolve(Query::Ip(welcome.lease.lease.ipv4.into())).await;
    assert_eq!(found.map(|found| found.key), Ok(key(1)), "the first is not disturbed");
    assert_eq!(server.member_count(), 1);
}

#[tokio::test]
async fn a_key_is_free_as_soon_as_its_connection_is_dropped() {
    let server = start().await;
    let (socket, first) = join_by_hand(server.address(), connect(server.address()).await, 1).await;
    drop(socket);
    until("the server sees it", || server.member_count() == 0).await;
    let asked = Instant::now();
    let (_second, second) = Joined::join(&server, settings(&server, 1)).await;
    assert!(asked.elapsed() < Duration::from_millis(2_500), "nobody has to be probed for that");
    assert_eq!(second.lease.lease.ipv4, first.lease.lease.ipv4);
}

#[tokio::test]
async fn a_key_whose_connection_hangs_is_free_after_three_seconds() {
    let server = start().await;
    // It never reads again, so it answers no ping.
    let (_hanging, _) = join_by_hand(server.address(), connect(server.address()).await, 1).await;
    let asked = Instant::now();
    let (_second, _) = Joined::join(&server, settings(&server, 1)).await;
    assert!(asked.elapsed() >= Duration::from_millis(2_500), "it had its time");
    assert_eq!(server.member_count(), 1);
}

// The same port speaks HTTP and STUN.

/// Returns the status and the body.
async fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    within("the response", stream.read_to_string(&mut response)).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").expect("there is a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("there is a status");
    (status, body.to_owned())
}

/// The bounded form of what `bench/` measures with ten thousand members.
#[tokio::test]
async fn a_crowd_from_many_addresses_joins_at_once_and_nobody_hears_of_the_others() {
    const CROWD: u8 = 128;
    let server = start().await;
    let address = server.address();
    let joins = (1..=CROWD).map(|n| async move {
        let socket = connect_from(Ipv4Addr::new(127, n, n, n), address).await;
        join_by_hand(address, socket, n).await
    });
    let mut members = futures_util::future::join_all(joins).await;
    assert_eq!(server.member_count(), usize::from(CROWD));
    let leased: HashSet<Ipv4Addr> = members.iter().map(|(_, welcome)| welcome.lease.lease.ipv4).collect();
    assert_eq!(leased.len(), usize::from(CROWD), "every member has an address of its own");
    // What each hears next is the answer to its own question, so nothing came in between.
    for (n, (socket, welcome)) in (1..=CROWD).zip(&mut members) {
        let query = Query::Ip(welcome.lease.lease.ipv4.into());
        say(socket, &FromMember::Resolve { id: n.into(), query }).await;
        match hear(socket).await {
            FromServer::Resolved { id, member } => assert_eq!((id, member.key), (n.into(), key(n))),
            other => panic!("expected an answer, got {other:?}"),
        }
    }
    let (_, text) = http_get(address, "/metrics").await;
    let sent = format!("unisockets_signal_sent_total {}\n", 3 * u64::from(CROWD));
    assert!(text.contains(&sent), "a challenge, a welcome and an answer each: {text}");
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served() {
    let server = start().await;
    let address = server.address();
    assert_eq!(http_get(address, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(http_get(address, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(http_get(address, "/").await.0, 200);
    assert_eq!(http_get(address, "/nothing").await.0, 404);
    let status = http_get(address, "/v1").await.0;
    assert!((400..500).contains(&status), "{status}: it is no upgrade");
    let (_alpha, _) = Joined::join(&server, settings(&server, 1)).await;
    let (status, text) = http_get(address, "/metrics").await;
    assert_eq!(status, 200);
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    let values: HashMap<&str, u64> =
        rows.map(|row| row.split_once(' ').unwrap()).map(|(name, value)| (name, value.parse().unwrap())).collect();
    let expected = [("members", 1), ("connections", 1), ("joins_total", 1), ("refusals_total", 0), ("sent_total", 2)];
    for (name, value) in expected {
        assert_eq!(values.get(&*format!("unisockets_signal_{name}")), Some(&value), "{name}");
    }
    for name in values.keys() {
        assert!(text.contains(&format!("# TYPE {name} ")) && text.contains(&format!("# HELP {name} ")), "{name}");
    }
}

#[tokio::test]
async fn a_stun_request_on_the_same_port_is_answered_with_the_senders_address() {
    const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
    let server = start().await;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server.address()).await.unwrap();
    // What is no request gets no answer, and does no harm.
    for garbage in [&[0u8; 0][..], &[0xff; 1_400], &[0, 1, 0, 4], &[0, 1, 0, 0, 0, 0, 0, 0]] {
        socket.send(garbage).await.unwrap();
    }
    let transaction = *b"transaction!";
    let request = [&[0, 1, 0, 0][..], &COOKIE, &transaction].concat();
    socket.send(&request).await.unwrap();
    let mut reply = [0; 1_500];
    let len = within("the reply", socket.recv(&mut reply)).await.unwrap();
    let reply = &reply[..len];
    assert_eq!(reply[..2], [1, 1], "a success response");
    assert_eq!(usize::from(u16::from_be_bytes([reply[2], reply[3]])), len - 20);
    assert_eq!((&reply[4..8], &reply[8..20]), (&COOKIE[..], &transaction[..]));
    let attribute = &reply[20..];
    assert_eq!(attribute[..6], [0, 0x20, 0, 8, 0, 1], "XOR-MAPPED-ADDRESS, 8 bytes, IPv4");
    let port = u16::from_be_bytes([attribute[6] ^ COOKIE[0], attribute[7] ^ COOKIE[1]]);
    let octets: [u8; 4] = std::array::from_fn(|index| attribute[8 + index] ^ COOKIE[index]);
    assert_eq!(SocketAddr::new(IpAddr::from(octets), port), socket.local_addr().unwrap());
}

// Strangers.

/// Bytes that look random and are the same in each run (xorshift64*).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("it is below a usize")
    }

    fn bytes(&mut self, len_max: usize) -> Vec<u8> {
        (0..self.below(len_max + 1)).map(|_| self.next().to_be_bytes()[0]).collect()
    }
}

/// Writes bytes to a new connection, and closes it or waits a little for what comes back.
async fn write_raw(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may hang up in the middle of it.
    let _ = stream.write_all(bytes).await;
    let mut answer = [0; 256];
    let _ = timeout(Duration::from_millis(20), stream.read(&mut answer)).await;
}

#[tokio::test]
async fn garbage_instead_of_http_harms_nobody() {
    let server = start().await;
    let mut noise = Noise(0x5eed_0001);
    for _ in 0..40 {
        write_raw(server.address(), &noise.bytes(4_096)).await;
    }
    let upgrade = |rest: &str| format!("GET /v1 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n{rest}\r\n");
    let requests = [
        upgrade("upgrade: websocket\r\nsec-websocket-version: 13\r\n"),
        upgrade("upgrade: websocket\r\nsec-websocket-version: 99\r\nsec-websocket-key: dGVzdA==\r\n"),
        upgrade("upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: \u{7f}\r\n"),
        upgrade("upgrade: dance\r\n"),
        format!("GET /v1 HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(1 << 20)),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(1 << 20)),
        "POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551615\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        "\r\n".repeat(10_000),
    ];
    for request in &requests {
        write_raw(server.address(), request.as_bytes()).await;
    }
    somebody_new_joins(&server, 1).await;
    assert_eq!(http_get(server.address(), "/healthz").await.0, 200);
}

/// After a proper upgrade, bytes that are no WebSocket frames.
async fn write_after_upgrade(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /v1 HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    within("the upgrade", stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    let _ = stream.write_all(bytes).await;
    let mut answer = [0; 256];
    let _ = timeout(Duration::from_millis(20), stream.read(&mut answer)).await;
}

#[tokio::test]
async fn garbage_instead_of_websocket_frames_harms_nobody() {
    let server = start().await;
    let (mut witness, _) = Joined::join(&server, settings(&server, 9)).await;
    let mut noise = Noise(0x5eed_0002);
    for _ in 0..40 {
        write_after_upgrade(server.address(), &noise.bytes(2_048)).await;
    }
    let text_of = |len: u64| [&[0x81, 0xff][..], &len.to_be_bytes(), &[0; 4]].concat();
    let frames: [&[u8]; 7] = [
        &text_of(u64::MAX),
        &text_of(1 << 40),
        &[0x81, 0x05, b'h', b'e', b'l', b'l', b'o'],
        &[0x80, 0x80, 0, 0, 0, 0],
        &[0x89, 0xfe, 0x01, 0x00, 0, 0, 0, 0],
        &[0x88, 0x81, 0, 0, 0, 0, 0xff],
        &[0xff; 64],
    ];
    for frame in frames {
        write_after_upgrade(server.address(), frame).await;
    }
    somebody_new_joins(&server, 1).await;
    assert!(witness.resolve(Query::Key(key(9))).await.is_ok(), "who was there stays there");
    until("the strangers are gone", || server.member_count() == 1).await;
}

#[tokio::test]
async fn garbage_instead_of_messages_harms_nobody() {
    let server = start().await;
    let mut noise = Noise(0x5eed_0003);
    let deep = "[".repeat(60_000);
    let nested = format!(r#"{{"type":"resolve","id":1,"key":{}"#, "{\"a\":".repeat(10_000));
    let frames = [
        "",
        "null",
        "\u{0}",
        "{",
        &deep,
        &nested,
        r#"{"type":"hello"}"#,
        r#"{"type":"list","id":1e400,"limit":-1}"#,
        r#"{"type":"signal","id":18446744073709551616,"to":"x","payload":{}}"#,
        r#"{"type":"watch","keys":"all of them"}"#,
        r#"{"type":"resolve","id":1,"ip":"999.1.1.1"}"#,
        r#"{"type":"resolve","id":1,"id":2,"type":"leave"}"#,
    ];
    for joins in ["a stranger", "a member"] {
        let mut socket = connect(server.address()).await;
        if joins == "a member" {
            socket = join_by_hand(server.address(), socket, 1).await.0;
        }
        for frame in frames {
            // The tenth closes the connection.
            if socket.send(Message::Text(frame.to_owned().into())).await.is_err() {
                break;
            }
        }
        closed(&mut socket).await;
    }
    for _ in 0..20 {
        let mut socket = connect(server.address()).await;
        for _ in 0..20 {
            let bytes = noise.bytes(512);
            let message = if noise.below(2) == 0 {
                Message::Text(String::from_utf8_lossy(&bytes).into_owned().into())
            } else {
                Message::Binary(bytes.into())
            };
            if socket.send(message).await.is_err() {
                break;
            }
        }
        closed(&mut socket).await;
    }
    somebody_new_joins(&server, 2).await;
    until("the strangers are gone", || server.member_count() == 0).await;
}

#[tokio::test]
async fn frames_that_are_too_large_or_no_text_cost_their_sender_only() {
    let server = start().await;
    let (mut witness, _) = Joined::join(&server, settings(&server, 9)).await;
    for len in [FRAME_LEN_MAX + 1, 1 << 20] {
        let (mut socket, _) = join_by_hand(server.address(), connect(server.address()).await, 1).await;
        witness.send(key(1), "offer");
        assert!(matches!(hear(&mut socket).await, FromServer::Signal { .. }));
        let _ = socket.send(Message::Text(" ".repeat(len).into())).await;
        closed(&mut socket).await;
        assert_eq!(witness.gone(key(1)).await, GoneReason::Closed);
    }
    // The largest that is allowed is a bad frame, no more.
    let (mut socket, _) = join_by_hand(server.address(), connect(server.address()).await, 2).await;
    for message in [Message::Text(" ".repeat(FRAME_LEN_MAX).into()), Message::Binary(vec![0; 1_024].into())] {
        socket.send(message).await.unwrap();
        assert!(matches!(hear(&mut socket).await, FromServer::Refused { code: Code::BadMessage, .. }));
    }
    // Fragments that never end, each small.
    let fragment = |opcode| Frame::message(vec![b' '; 1_024], OpCode::Data(opcode), false);
    let mut sent = socket.send(Message::Frame(fragment(Data::Text))).await;
    for _ in 0..1_000 {
        if sent.is_err() {
            break;
        }
        sent = socket.send(Message::Frame(fragment(Data::Continue))).await;
    }
    closed(&mut socket).await;
    // Text that is no text.
    let (mut socket, _) = join_by_hand(server.address(), connect(server.address()).await, 3).await;
    let broken = Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Text), true);
    socket.send(Message::Frame(broken)).await.unwrap();
    closed(&mut socket).await;
    somebody_new_joins(&server, 4).await;
    assert!(witness.resolve(Query::Key(key(9))).await.is_ok());
}

#[tokio::test]
async fn a_connection_that_never_says_hello_is_closed() {
    let server = start().await;
    let mut socket = connect(server.address()).await;
    let opened = Instant::now();
    assert!(matches!(hear(&mut socket).await, FromServer::Challenge { .. }));
    assert!(matches!(hear(&mut socket).await, FromServer::Refused { code: Code::Unavailable, .. }));
    closed(&mut socket).await;
    assert!(opened.elapsed() >= Duration::from_secs(9), "it has ten seconds");
}

/// The deadline of a handshake is no use if the upgrade may take for ever.
#[tokio::test]
async fn a_connection_that_never_finishes_its_request_is_closed() {
    let server = start().await;
    for request in ["", "GET /v1 HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = within("the server hangs up on a silent client", stream.read_to_end(&mut answer)).await;
    }
}

#[tokio::test]
async fn a_member_that_never_reads_is_put_out_and_nobody_else_minds() {
    let server = start().await;
    let (mut sender, _) = Joined::join(&server, settings(&server, 1)).await;
    let (other, _) = Joined::join(&server, settings(&server, 2)).await;
    let small = TcpSocket::new_v4().unwrap();
    small.set_recv_buffer_size(4_096).unwrap();
    let stream = small.connect(server.address()).await.unwrap();
    let (_slow, _) = join_by_hand(server.address(), websocket(server.address(), stream).await, 3).await;
    // More than the operating system and the server are ready to keep for it.
    let payload = "x".repeat(32 * 1024);
    let mut put_out = false;
    for _ in 0..800 {
        sender.send(key(3), &payload);
        let outcome = sender.next("an outcome", |event| match event {
            Event::Delivered(_) => Some(false),
            Event::Gone(who, _) if who == key(3) => Some(true),
            _ => None,
        });
        if outcome.await {
            put_out = true;
            break;
        }
    }
    // Whether or not it is out already: others are served.
    other.send(key(1), "offer");
    assert_eq!(sender_signal(&mut sender, &mut put_out).await, (key(2), "offer".to_owned()));
    somebody_new_joins(&server, 4).await;
    if !put_out {
        sender.gone(key(3)).await;
    }
    assert_eq!(sender.resolve(Query::Key(key(3))).await.map(|found| found.present), Ok(false));
    until("the server forgets it", || server.member_count() == 2).await;
}

/// What others send is their fault: they are refused, and the member stays, reads on and can be reached again.
#[tokio::test]
async fn a_member_that_others_send_too_much_to_is_not_put_out_for_it() {
    let server = start().await;
    let (mut sender, _) = Joined::join(&server, settings(&server, 1)).await;
    let (mut busy, _) = join_by_hand(server.address(), connect(server.address()).await, 3).await;
    let payload = "x".repeat(32 * 1024);
    let mut delivered = 0;
    loop {
        sender.send(key(3), &payload);
        let outcome = sender.next("an outcome", |event| match event {
            Event::Delivered(_) => Some(true),
            Event::Undelivered { failure: Failure::Refused(Code::TooMuch, _), .. } => Some(false),
            _ => None,
        });
        if !outcome.await {
            break;
        }
        delivered += 1;
        assert!(delivered < 800, "so much is not kept for anybody");
    }
    for _ in 0..delivered {
        assert!(matches!(hear(&mut busy).await, FromServer::Signal { .. }), "nothing that was taken is lost");
    }
    busy.send(Message::Text(emit(&FromMember::Resolve { id: 7, query: Query::Key(key(1)) }).into())).await.unwrap();
    assert!(matches!(hear(&mut busy).await, FromServer::Resolved { id: 7, .. }), "it is a member still");
    sender.send(key(3), "offer");
    assert!(matches!(hear(&mut busy).await, FromServer::Signal { .. }));
}

/// HTTP/2 would be served without a limit in time.
#[tokio::test]
async fn another_http_than_the_first_is_not_spoken() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let _ = within("the server hangs up", stream.read_to_end(&mut answer)).await;
    // A frame of HTTP/2 begins with its length.
    assert_ne!(answer.first(), Some(&0), "{answer:?}");
}

/// Waits for a signal and notes an end of the slow member on the way.
async fn sender_signal(sender: &mut Joined, put_out: &mut bool) -> (PublicKey, String) {
    let picked = sender.next("a signal", |event| match event {
        Event::Gone(who, _) if who == key(3) => {
            *put_out = true;
            None
        }
        Event::Signal(from, payload) => Some((from, payload)),
        _ => None,
    });
    picked.await
}

// Stopping and coming back.

/// A file that is removed at the end of a test, however it ends.
struct File(PathBuf);

impl File {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("unisockets-server-{}-{number}.redb", std::process::id())))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn start_with_file(address: SocketAddr, file: &Path) -> Server {
    let config = Config { data: Some(file.to_owned()), ..Config::new(address) };
    let started = Instant::now();
    // The server before may still be closing the file.
    loop {
        match Server::start(config.clone()).await {
            Ok(server) => return server,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(5), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_member_is_back_with_its_address_after_a_restart() {
    let file = File::new();
    let server = start_with_file(loopback().listen, &file.0).await;
    let address = server.address();
    let (first, _) = Joined::join(&server, settings(&server, 1)).await;
    let (mut second, before) = Joined::join(&server, named(&server, 2, "beta")).await;
    // Only the second comes back: without the file it would get the first one's address.
    first.client.leave().await;
    until("the first has left", || server.member_count() == 1).await;
    server.stop().await;
    second.next("the end of the connection", |event| (event == Event::Disconnected).then_some(())).await;
    let server = start_with_file(address, &file.0).await;
    assert_eq!(server.address(), address);
    let after = second.joined().await;
    assert_eq!(after.lease.lease.ipv4, before.lease.lease.ipv4);
    assert_eq!(after.lease.lease.epoch, before.lease.lease.epoch);
    assert_eq!(after.lease.lease.name.as_deref(), Some("beta"));
    assert_eq!(after.lease.server, before.lease.server, "pins of the server's key hold");
    server.stop().await;
}

#[tokio::test]
async fn a_server_without_a_file_forgets_and_has_another_key() {
    let (first, second) = (start().await, start().await);
    let (_alpha, at_first) = Joined::join(&first, settings(&first, 1)).await;
    let (_beta, at_second) = Joined::join(&second, settings(&second, 1)).await;
    assert_ne!(at_first.lease.server, at_second.lease.server);
}

#[tokio::test]
async fn two_servers_cannot_use_one_file() {
    let file = File::new();
    let server = start_with_file(loopback().listen, &file.0).await;
    let second = Server::start(Config { data: Some(file.0.clone()), ..loopback() }).await;
    let error = second.err().expect("the file is in use").to_string();
    assert!(error.contains(&file.0.display().to_string()) && error.contains("another server"), "{error}");
    somebody_new_joins(&server, 1).await;
}

#[tokio::test]
async fn an_address_in_use_is_refused_with_a_clear_error() {
    let server = start().await;
    let error = Server::start(Config::new(server.address())).await.err().expect("it is in use").to_string();
    assert!(error.contains(&server.address().to_string()) && error.contains("--listen"), "{error}");
}

/// Its task would keep the server's state, and its data file, open behind the back of whoever stopped it.
#[tokio::test]
async fn a_stopped_server_lets_go_of_connections_that_are_not_members() {
    let file = File::new();
    let server = start_with_file(loopback().listen, &file.0).await;
    let address = server.address();
    let mut silent = connect(address).await;
    assert!(matches!(hear(&mut silent).await, FromServer::Challenge { .. }));
    let started = Instant::now();
    server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(4), "stopping is bounded");
    closed(&mut silent).await;
    start_with_file(address, &file.0).await.stop().await;
}

/// A member whose first segment was lost in an outage waited for the system to repeat it, up to ten seconds after the
/// wire was whole again.
#[tokio::test]
async fn a_member_begins_anew_while_nobody_answers_its_connection() {
    let front = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let host = front.local_addr().unwrap().to_string();
    let server = Server::start(Config { hosts: vec![host.parse().unwrap()], ..loopback() }).await.unwrap();
    let url = Url::parse(&format!("ws://{host}")).unwrap();
    let (notify, notices) = mpsc::unbounded_channel();
    let config = member::Config { host, ..settings(&server, 1) };
    let client = Client::start(url, config, Arc::new(move |notice| drop(notify.send(notice))));
    let mut joined = Joined { client, notices };
    let (mut silent, _) = within("an attempt", front.accept()).await.unwrap();
    let (mut second, _) = within("another one beside it", front.accept()).await.unwrap();
    // The first is still open: it has sent its request, and not its end.
    let mut request = [0; 4];
    within("its request", silent.read_exact(&mut request)).await.unwrap();
    assert_eq!(&request, b"GET ");
    let mut through = TcpStream::connect(server.address()).await.unwrap();
    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut second, &mut through).await });
    joined.joined().await;
}
