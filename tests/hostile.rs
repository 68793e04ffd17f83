//! A signaling server that lies (threats T1 and T2): everything that it can alter on the way is refused, each
//! with its own words, and nothing is sent to whom it points at.

mod liar;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use liar::{Liar, member_of, signal_of};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use unisockets::core::{Config as CoreConfig, LinkId, NodeCore, Output};
use unisockets::{Config, Key, Node, TcpListener, TcpStream};
use unisockets_link::memory::MemoryLink;
use unisockets_link::{Lane, Signal};
use unisockets_signaling::identity::KeyPair;
use unisockets_signaling::network::{Network, Prefix, address_v6};
use unisockets_signaling::pins::Pins;
use unisockets_signaling::protocol::{Lease, Member, Nonce, SignedLease, Welcome};
use unisockets_stack::{Family, Instant, Kind};

const LIMIT: Duration = Duration::from_secs(30);

async fn join(liar: &Liar, name: &str, secret: Option<&str>) -> Node {
    let config = Config::new(liar.url()).name(name).network("home", secret.map(str::to_owned)).ephemeral();
    Node::join(config).await.unwrap()
}

async fn connect(node: &Node, address: &str) -> std::io::Result<TcpStream> {
    timeout(LIMIT, TcpStream::connect(node, address)).await.expect("connecting ends by itself")
}

fn incidents(node: &Node, text: &str) -> usize {
    node.status().incidents.iter().filter(|(_, incident)| incident.contains(text)).count()
}

/// Waits until a node has noted something.
async fn incident(node: &Node, text: &str) {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let noted = async {
        while incidents(node, text) == 0 {
            ticks.tick().await;
        }
    };
    let noted = timeout(LIMIT, noted).await;
    assert!(noted.is_ok(), "{text:?} is not in {:?}", node.status().incidents);
}

/// Carries a byte each way.
async fn talk(client: &mut TcpStream, server: &mut TcpStream) {
    for byte in [1, 2] {
        client.write_all(&[byte]).await.unwrap();
        assert_eq!(timeout(LIMIT, server.read_u8()).await.unwrap().unwrap(), byte);
        server.write_all(&[!byte]).await.unwrap();
        assert_eq!(timeout(LIMIT, client.read_u8()).await.unwrap().unwrap(), !byte);
    }
}

/// Alters every signal and tries to connect; returns once the member at the other end has noted `text`.
async fn connect_while_signals_are_altered(secret: Option<&'static str>, text: &str) {
    let alter = |_: usize, mut frame: Value| {
        if let Some(payload) = signal_of(&frame) {
            // A fingerprint where there is one, so that somebody else's certificate would fit; else any byte.
            let place = payload.find("fingerprint:sha-256 ").map_or(payload.len() / 2, |at| at + 20);
            let other = if payload.as_bytes()[place] == b'A' { "B" } else { "A" };
            let altered = format!("{}{other}{}", &payload[..place], &payload[place + 1..]);
            frame["payload"] = Value::from(altered);
        }
        vec![frame]
    };
    let liar = Liar::start(Arc::new(alter)).await;
    let (alpha, beta) = (join(&liar, "alpha", secret).await, join(&liar, "beta", secret).await);
    let _listener = TcpListener::bind(&alpha, "[::]:80").await.unwrap();
    let error = connect(&beta, "alpha:80").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
    incident(&alpha, text).await;
    for node in [&alpha, &beta] {
        let status = node.status();
        assert_eq!(status.packets, 0, "nothing may be sent: {status:#?}");
        assert!(status.peers.iter().all(|peer| peer.path.is_none()), "{status:#?}");
    }
}

#[tokio::test]
async fn an_altered_fingerprint_is_refused_before_anything_flows() {
    let text = "the introduction is not signed by its sender: it was altered on the way";
    connect_while_signals_are_altered(None, text).await;
}

#[tokio::test]
async fn an_altered_byte_of_a_sealed_introduction_is_refused_before_anything_flows() {
    let text = "the introduction is not sealed with this network's secret";
    connect_while_signals_are_altered(Some("abcde-fghij-kmnpq-rstuv-wxyz2-34567"), text).await;
}

/// An IPv6 address is derived from a key: no server can give a key another one.
#[tokio::test]
async fn an_answer_with_another_members_ipv6_address_is_refused() {
    let (seen, last) = (Arc::new(Mutex::new(Value::Null)), Arc::new(Mutex::new(Value::Null)));
    let lie = {
        let (seen, last) = (Arc::clone(&seen), Arc::clone(&last));
        move |_: usize, mut frame: Value| {
            if let Some(member) = member_of(&mut frame) {
                let gamma = seen.lock().unwrap().clone();
                if !gamma.is_null() {
                    member["ipv6"] = gamma;
                }
                *last.lock().unwrap() = member.clone();
            }
            vec![frame]
        }
    };
    let liar = Liar::start(Arc::new(lie)).await;
    let (alpha, beta) = (join(&liar, "alpha", None).await, join(&liar, "beta", None).await);
    let gamma = join(&liar, "gamma", None).await;
    let _listener = TcpListener::bind(&alpha, "[::]:80").await.unwrap();
    *seen.lock().unwrap() = Value::from(gamma.ipv6().to_string());
    let text = "the signaling server's answer contradicts itself: do not trust it";
    let error = connect(&beta, "alpha:80").await.unwrap_err();
    assert!(error.to_string().contains(text), "{error}");
    // Also when gamma's address was asked for, and alpha is said to have it.
    *seen.lock().unwrap() = Value::from(alpha.ipv6().to_string());
    let error = beta.resolve(&gamma.ipv6().to_string()).await.unwrap_err();
    assert!(error.to_string().contains(text), "{error}");
    let error = connect(&beta, &format!("[{}]:80", gamma.ipv6())).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
    assert_eq!(last.lock().unwrap()["ipv6"], alpha.ipv6().to_string(), "the lie was told");
    assert!(beta.status().peers.is_empty() && beta.status().packets == 0);
}

/// A server that gives every member that is asked for the key and the IPv6 address of an impostor, once there is one.
async fn posing_server() -> (Liar, Arc<Mutex<Value>>) {
    let impostor = Arc::new(Mutex::new(Value::Null));
    let named = Arc::clone(&impostor);
    let lie = move |_: usize, mut frame: Value| {
        let impostor = named.lock().unwrap().clone();
        if let Some(member) = member_of(&mut frame).filter(|_| !impostor.is_null()) {
            (member["key"], member["ipv6"]) = (impostor["key"].clone(), impostor["ipv6"].clone());
            member["present"] = Value::from(true);
        }
        vec![frame]
    };
    (Liar::start(Arc::new(lie)).await, impostor)
}

#[tokio::test]
async fn another_key_behind_a_pinned_name_or_address_is_refused() {
    let (liar, impostor) = posing_server().await;
    let (alpha, beta) = (join(&liar, "alpha", None).await, join(&liar, "beta", None).await);
    let gamma = join(&liar, "gamma", None).await;
    let _trap = TcpListener::bind(&gamma, "[::]:80").await.unwrap();
    let address = alpha.ipv4().to_string();
    assert_eq!(beta.resolve("alpha").await.unwrap().key, alpha.key());
    assert_eq!(beta.resolve(&address).await.unwrap().key, alpha.key());

    *impostor.lock().unwrap() = json!({"key": gamma.key().to_string(), "ipv6": gamma.ipv6().to_string()});
    let error = connect(&beta, "alpha:80").await.unwrap_err().to_string();
    assert!(error.contains("the key of name alpha in home has changed"), "{error}");
    assert!(error.contains("unisockets key forget \"name alpha in home\""), "what to do is said: {error}");
    let error = beta.resolve(&address).await.unwrap_err().to_string();
    assert!(error.contains(&format!("the key of address {address} in home has changed")), "{error}");
    // The first lookup left nothing behind that the next connection would trust, except alpha's true key.
    let known = connect(&beta, &format!("{address}:80")).await.unwrap_err();
    assert_eq!(known.kind(), std::io::ErrorKind::ConnectionRefused, "the true alpha, which does not listen: {known}");
    assert_eq!(incidents(&beta, "has changed"), 2, "{:?}", beta.status().incidents);
    assert_eq!(gamma.status().packets, 0, "nothing reached the impostor");
}

#[tokio::test]
async fn an_address_whose_key_has_changed_is_not_dialled() {
    let (liar, impostor) = posing_server().await;
    let mut config = Config::new(liar.url()).name("alpha").network("home", None);
    // A key that is kept: so is the lease when alpha has gone.
    config.key = Key::Seed([1; 32]);
    let alpha = Node::join(config).await.unwrap();
    let beta = join(&liar, "beta", None).await;
    let gamma = join(&liar, "gamma", None).await;
    let _trap = TcpListener::bind(&gamma, "[::]:80").await.unwrap();
    let address = format!("{}:80", alpha.ipv4());
    // Nobody listens there, but the way is known now, and the key behind the address with it.
    assert_eq!(connect(&beta, &address).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    alpha.leave().await;
    *impostor.lock().unwrap() = json!({"key": gamma.key().to_string(), "ipv6": gamma.ipv6().to_string()});
    let error = connect(&beta, &address).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
    incident(&beta, &format!("the key of address {} in home has changed", alpha.ipv4())).await;
    assert_eq!(gamma.status().packets, 0, "nothing reached the impostor");
}

#[tokio::test]
async fn a_replayed_introduction_is_refused_and_the_link_stays() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let armed = Arc::new(Mutex::new(false));
    let replay = {
        let (heard, armed) = (Arc::clone(&heard), Arc::clone(&armed));
        move |member: usize, mut frame: Value| {
            if member == 0 && signal_of(&frame).is_some() {
                heard.lock().unwrap().push(frame.clone());
            }
            if member == 0 && member_of(&mut frame).is_some() && *armed.lock().unwrap() {
                return heard.lock().unwrap().drain(..).chain([frame]).collect();
            }
            vec![frame]
        }
    };
    let liar = Liar::start(Arc::new(replay)).await;
    let (alpha, beta) = (join(&liar, "alpha", None).await, join(&liar, "beta", None).await);
    let listener = TcpListener::bind(&alpha, "[::]:80").await.unwrap();
    let mut client = connect(&beta, "alpha:80").await.unwrap();
    let (mut server, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    talk(&mut client, &mut server).await;
    let sent = alpha.status().peers[0].counters.sent_packets;

    *armed.lock().unwrap() = true;
    let replayed = heard.lock().unwrap().len();
    assert!(replayed > 0, "the offer came through the liar");
    alpha.resolve("beta").await.unwrap();
    let text = "the introduction was seen before or is too old: somebody replays it";
    incident(&alpha, text).await;
    assert_eq!(incidents(&alpha, text), replayed, "every one of them: {:?}", alpha.status().incidents);
    talk(&mut client, &mut server).await;
    let status = alpha.status();
    assert!(status.peers.len() == 1 && !status.peers[0].dialling, "{status:#?}");
    assert!(status.peers[0].counters.sent_packets > sent, "it is still the same link: {status:#?}");
}

/// The cheat's lease is signed, for its own key, by a server that is not alpha's.
#[tokio::test]
async fn a_member_with_a_lease_of_another_server_gets_no_link_and_takes_no_address() {
    let wanted = Arc::new(Mutex::new(Value::Null));
    let forge = {
        let wanted = Arc::clone(&wanted);
        move |member: usize, mut frame: Value| {
            if member == 2 && frame["type"] == "welcome" {
                let mut lease: SignedLease = serde_json::from_value(frame["lease"].clone()).unwrap();
                lease.lease.ipv4 = serde_json::from_value(wanted.lock().unwrap().clone()).unwrap();
                lease.lease.epoch += 1_000;
                let lease = SignedLease::sign(lease.lease, &KeyPair::from_seed(&[9; 32]));
                frame["lease"] = serde_json::to_value(lease).unwrap();
            }
            vec![frame]
        }
    };
    let liar = Liar::start(Arc::new(forge)).await;
    let (alpha, beta) = (join(&liar, "alpha", None).await, join(&liar, "beta", None).await);
    let listener = TcpListener::bind(&alpha, "[::]:80").await.unwrap();
    let mut honest = connect(&beta, "alpha:80").await.unwrap();
    let (mut server, from) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    assert_eq!(from.ip(), beta.ipv4());
    *wanted.lock().unwrap() = Value::from(beta.ipv4().to_string());
    let cheat = join(&liar, "cheat", None).await;
    assert_eq!(cheat.ipv4(), beta.ipv4(), "the cheat believes to have beta's address");

    let error = connect(&cheat, &format!("[{}]:80", alpha.ipv6())).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
    // Each trusts another server: whoever heard the other's hello first has refused.
    let text = "its lease is not signed by this network's server";
    assert!(incidents(&alpha, text) + incidents(&cheat, text) > 0, "{:?}", alpha.status().incidents);
    let status = alpha.status();
    assert!(status.peers.iter().all(|peer| peer.key != cheat.key() || peer.ipv4.is_none()), "{status:#?}");
    talk(&mut honest, &mut server).await;
}

const NOW: Instant = Instant::from_micros(1_000_000);
const SERVER: [u8; 32] = [100; 32];
const CHEAT: [u8; 32] = [2; 32];

fn lease(member: [u8; 32]) -> Lease {
    let (network, key) = ("home".to_owned(), KeyPair::from_seed(&member).public());
    Lease { network, key, ipv4: [10, 80, 0, member[0]].into(), name: None, epoch: 1, not_after: 2_000 }
}

/// A node without I/O that believes to have been welcomed with a lease.
fn welcomed(seed: [u8; 32], lease: SignedLease) -> NodeCore {
    let network = Arc::new(Network::new("home", None).unwrap());
    let pair = KeyPair::from_seed(&seed);
    let ipv6 = address_v6(network.id(), &pair.public());
    let prefixes = vec![Prefix { address: ipv6.into(), len: 48 }, Prefix { address: lease.lease.ipv4.into(), len: 16 }];
    let (origin_unix_ms, pins, host) = (1_000_000, Pins::default(), "server".to_owned());
    let mut core = NodeCore::new(CoreConfig { network, pair, seed, origin_unix_ms, pins, host });
    let resume = Nonce::new([0; 32]);
    let welcome = Welcome { lease, ipv6, prefixes, lease_s: 600, resume, ice_servers: Vec::new() };
    core.joined(NOW, &welcome).unwrap();
    core
}

/// Lets a node open the link that it wants to make.
fn open(core: &mut NodeCore) -> (LinkId, Arc<MemoryLink>) {
    let Some(Output::OpenLink { link, .. }) = core.poll_output() else { panic!("the node makes a link") };
    let end = Arc::new(MemoryLink::new());
    core.link_made(link, end.clone());
    (link, end)
}

/// A cheat dials an honest node and shows a lease; returns what the honest node thinks of it.
fn introduce(shown: SignedLease) -> (NodeCore, Arc<MemoryLink>) {
    let server = KeyPair::from_seed(&SERVER);
    let mut honest = welcomed([1; 32], SignedLease::sign(lease([1; 32]), &server));
    let mut cheat = welcomed(CHEAT, shown);
    let ipv6 = address_v6("home", &honest.key());
    let socket = cheat.stack.socket(Kind::Tcp, Family::V6).unwrap();
    let _ = cheat.stack.connect(NOW, socket, (ipv6, 80).into());
    cheat.pump(NOW);
    let Some(Output::Resolve { id, query }) = cheat.poll_output() else { panic!("the cheat asks for the address") };
    let member = Member { key: honest.key(), ipv4: [10, 80, 0, 1].into(), ipv6, name: None, present: true };
    cheat.resolved(NOW, id, Ok(member), Some(&query));
    let (link, cheat_end) = open(&mut cheat);
    cheat.link_signal(NOW, link, &Signal::Offer { sdp: "v=0".to_owned() });
    let Some(Output::Signal { payload, .. }) = cheat.poll_output() else { panic!("the cheat sends its offer") };
    honest.handle_signal(NOW, cheat.key(), &payload);
    let (honest_link, honest_end) = open(&mut honest);
    honest.link_opened(NOW, honest_link);
    cheat.link_opened(NOW, link);
    let (lane, hello) = cheat_end.take().expect("the cheat introduces itself");
    assert_eq!(lane, Lane::Control);
    honest.handle_control(NOW, honest_link, &hello);
    (honest, honest_end)
}

#[test]
fn an_ipv4_address_needs_a_lease_of_its_own_that_the_networks_server_signed_and_that_has_not_ended() {
    let (server, foreign) = (KeyPair::from_seed(&SERVER), KeyPair::from_seed(&[101; 32]));
    let own = lease(CHEAT);
    let mut altered = SignedLease::sign(own.clone(), &server);
    altered.lease.ipv4 = [10, 80, 0, 3].into();
    let forgeries = [
        (SignedLease::sign(own.clone(), &foreign), "its lease is not signed by this network's server"),
        (altered, "its lease is not signed by this network's server"),
        (SignedLease::sign(lease([3; 32]), &server), "it presents another member's lease"),
        (SignedLease::sign(Lease { network: "work".into(), ..own.clone() }, &server), "another member's lease"),
        (SignedLease::sign(Lease { not_after: 1_000, ..own.clone() }, &server), "its lease has ended"),
    ];
    for (shown, text) in forgeries {
        let (honest, end) = introduce(shown);
        assert_eq!(honest.refusals().collect::<Vec<_>>(), [("lease_invalid", 1), ("no_link", 1)], "{text}");
        assert!(honest.incidents().any(|(_, incident)| incident.contains(text)), "{text}");
        assert!(end.is_closed() && honest.peer_keys().is_empty(), "{text}");
    }
    // The same with nothing forged.
    let (honest, end) = introduce(SignedLease::sign(own.clone(), &server));
    assert_eq!(honest.refusals().count(), 0);
    assert!(!end.is_closed());
    assert_eq!(honest.status(NOW).peers[0].ipv4, Some(own.ipv4));
}
