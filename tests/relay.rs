//! Members that see each other through a TURN server only, a real one: everything works, and nobody's address is told.

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Ended, LIMIT, Place, Process};
use unisockets_link::native::{Config, NativeLink};
use unisockets_link::{Event, IceServer, Link, Role, Route, Signal, Sink};

const USER: &str = "member";
const PASSWORD: &str = "of:the@network";
/// Where the relay's own ports are: no host's candidate is there.
const RELAY: &str = "127.0.0.2";

/// Says why there can be no TURN server here, if there cannot.
fn obstacle() -> Option<&'static str> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).any(|folder| folder.join("turnserver").is_file());
    (!found).then_some("'turnserver' is missing: install the package coturn")
}

/// A TURN server in a folder of its own, ended with the test.
struct TurnServer {
    place: Place,
    port: u16,
    process: Process,
}

impl TurnServer {
    fn new() -> TurnServer {
        if let Some(obstacle) = obstacle() {
            panic!("{obstacle}");
        }
        let place = Place::new();
        let settings = format!(
            "listening-ip=127.0.0.1\nrelay-ip={RELAY}\nallow-loopback-peers\nno-tls\nno-dtls\nno-tcp\nno-tcp-relay\nno-cli\n\
             lt-cred-mech\nrealm=unisockets.test\nuser={USER}:{PASSWORD}\nsimple-log\nlog-file=stdout\n\
             pidfile={}\nuserdb={}\n",
            place.path("pid").display(),
            place.path("users").display()
        );
        fs::write(place.path("turnserver.conf"), settings).unwrap();
        let deadline = Instant::now() + LIMIT;
        loop {
            // The port may be taken by somebody else before the server has it.
            let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(process) = serve(&place, port) {
                return TurnServer { place, port, process };
            }
            assert!(Instant::now() < deadline, "no TURN server could be started");
        }
    }

    fn kill(&mut self) {
        self.process.kill();
    }

    fn restart(&mut self) {
        self.process = serve(&self.place, self.port).expect("the port is free again");
    }

    /// The server as an option names it.
    fn option(&self) -> String {
        format!("turn:{USER}:{PASSWORD}@127.0.0.1:{}?transport=udp", self.port)
    }

    fn ice_server(&self) -> IceServer {
        let url = format!("turn:127.0.0.1:{}", self.port);
        IceServer { url, username: USER.to_owned(), credential: PASSWORD.to_owned() }
    }
}

/// Starts the server and returns it when it answers; nothing if it ends instead.
fn serve(place: &Place, port: u16) -> Option<Process> {
    let mut command = Command::new("turnserver");
    command.arg("-c").arg(place.path("turnserver.conf")).arg(format!("--listening-port={port}"));
    command.current_dir(place.path(""));
    let mut process = Process::start(command);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    // A binding request (RFC 8489, section 5).
    let mut request = [0; 20];
    request[..8].copy_from_slice(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
    let deadline = Instant::now() + LIMIT;
    while process.child.try_wait().unwrap().is_none() {
        let answered = socket.send(&request).is_ok() && socket.recv(&mut [0; 512]).is_ok();
        if answered {
            return Some(process);
        }
        assert!(Instant::now() < deadline, "the TURN server does not answer");
    }
    None
}

/// A signaling server that names the TURN server, and the place of its members.
fn network(turn: &TurnServer) -> (Place, Process) {
    let mut place = Place::new();
    let signal = place.signal(&["--listen", "127.0.0.1:0", "--ice-server", &turn.option()]);
    (place, signal)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn succeeded(ended: Ended) -> String {
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    ended.out
}

fn is_relayed(status: &Value) -> bool {
    status["peers"][0]["path"] == "relayed"
}

#[test]
fn everything_works_through_a_relay_and_the_path_says_so() {
    let turn = TurnServer::new();
    let (place, _signal) = network(&turn);

    let mut server = place.listen(&["nc", "-l", "7", "--name", "alpha", "--relay-only"]);
    let mut client = place.start(&["nc", "alpha", "7", "--name", "beta", "--relay-only"]);
    let (question, answer) = (pattern(1 << 20), pattern(3 << 19));
    client.write(&question);
    assert!(server.out.wait_len(question.len()) == question, "every byte is right");
    for name in ["alpha", "beta"] {
        place.status(name, is_relayed);
    }
    let shown = succeeded(place.start(&["status", "alpha"]).end());
    assert!(shown.contains("peer beta  relayed"), "{shown}");
    server.write(&answer);
    server.end_input();
    assert!(client.out.wait_len(answer.len()) == answer, "every byte is right");
    client.write(b"one more");
    assert_eq!(server.out.wait_len(question.len() + 8)[question.len()..], *b"one more");
    succeeded(client.end());
    succeeded(server.end());

    let mut server = place.listen(&["nc", "-u", "-l", "53", "--name", "gamma", "--relay-only"]);
    let pings = place.start(&["ping", "gamma", "--count", "3", "--interval", "0.05", "--json", "--relay-only"]).end();
    assert_eq!(succeeded(pings).lines().count(), 3);
    let mut client = place.start(&["nc", "-u", "gamma", "53", "--relay-only"]);
    client.write(b"query");
    assert_eq!(server.out.wait_len(5), b"query");
    server.write(b"reply");
    assert_eq!(client.out.wait_len(5), b"reply");
    succeeded(client.end());
    succeeded(server.end());
}

/// The path of either end was once called direct, whatever it was.
#[test]
fn one_end_that_wants_a_relay_is_enough_and_both_ends_say_so() {
    let turn = TurnServer::new();
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let option = turn.option();
    let hidden = ["--relay-only", "--ice-server", option.as_str()];
    for (server_has, client_has) in [(&hidden[..], &[][..]), (&[][..], &hidden[..])] {
        let mut server = place.listen(&[&["nc", "-l", "7", "--name", "alpha"], server_has].concat());
        let mut client = place.start(&[&["nc", "alpha", "7", "--name", "beta"], client_has].concat());
        client.write(b"who are you?");
        server.out.wait_len(12);
        server.write(b"nobody");
        client.out.wait_len(6);
        for name in ["alpha", "beta"] {
            place.status(name, is_relayed);
        }
        server.end_input();
        succeeded(client.end());
        succeeded(server.end());
    }
}

#[test]
fn without_a_turn_server_relays_only_makes_no_link_and_says_why() {
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let _alpha = place.listen(&["nc", "-l", "7", "--name", "alpha", "--relay-only"]);
    let begun = Instant::now();
    let ended = place.start(&["ping", "alpha", "--name", "beta", "--relay-only"]).end();
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    assert!(ended.err.contains("a TURN server"), "{}", ended.err);
    assert!(begun.elapsed() < Duration::from_secs(10), "nobody looks for a path: {:?}", begun.elapsed());
    // The one who is called finds out as well, though its caller could do without.
    let _caller = place.start(&["nc", "alpha", "7"]);
    let told = "only relays may be used, and no TURN server is known";
    let status = place.status("alpha", |status| status["incidents"].to_string().contains(told));
    let linked = |peer: &Value| !peer["path"].is_null();
    assert!(!status["peers"].as_array().unwrap().iter().any(linked), "{status:#}");
}

#[test]
fn a_transfer_survives_the_relay_that_is_killed_and_started_again() {
    const LEN: usize = 24 << 20;
    let mut turn = TurnServer::new();
    let (place, _signal) = network(&turn);
    let file = pattern(LEN);
    fs::create_dir_all(place.path("inbox")).unwrap();
    fs::write(place.path("film.bin"), &file).unwrap();
    let receiver = place.listen(&["recv", "inbox", "--yes", "--json", "--name", "alpha", "--relay-only"]);
    let sender = place.start(&["send", "film.bin", "alpha", "--json", "--name", "beta", "--relay-only"]);
    let received = |status: &Value| status["peers"][0]["counters"]["received_bytes"].as_u64().unwrap_or(0);
    place.status("alpha", |status| received(status) > 2 << 20 && is_relayed(status));

    turn.kill();
    for name in ["alpha", "beta"] {
        place.status(name, |status| status["peers"][0]["path"].is_null());
    }
    let status = place.status("alpha", |_| true);
    assert!(received(&status) < LEN as u64, "nothing came by another way: {status:#}");
    turn.restart();
    let restarted = Instant::now();
    place.status("alpha", is_relayed);
    println!("a link through the relay again after {:.1} s", restarted.elapsed().as_secs_f64());

    let sent: Value = serde_json::from_str(&succeeded(sender.end())).unwrap();
    assert_eq!(sent["bytes"], Value::from(LEN), "{sent}");
    succeeded(receiver.end());
    assert!(fs::read(place.path("inbox/film.bin")).unwrap() == file, "every byte is right");
}

#[test]
fn goodput_through_a_relay_is_measured_beside_the_direct_one() {
    let turn = TurnServer::new();
    let (place, _signal) = network(&turn);
    let _server = place.listen(&["bench", "serve", "--name", "alpha"]);
    let bench = ["bench", "alpha", "--bytes", "4M", "--round-trips", "50", "--json"];
    let measured = |options: &[&str]| -> Value {
        serde_json::from_str(&succeeded(place.start(&[&bench, options].concat()).end())).unwrap()
    };
    let (direct, relayed) = (measured(&[]), measured(&["--relay-only"]));
    assert_eq!((&direct["path"], &relayed["path"]), (&Value::from("direct"), &Value::from("relayed")));
    println!("direct:  {direct}\nrelayed: {relayed}");
}

/// One of two ends in this process, each of which hears everything that the other tells of itself.
struct End {
    peer: OnceLock<Arc<NativeLink>>,
    signals: Mutex<Vec<Signal>>,
    opened: mpsc::Sender<()>,
}

impl Sink for End {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Signal(signal) => {
                self.signals.lock().unwrap().push(signal.clone());
                self.peer.get().unwrap().handle_signal(signal);
            }
            Event::Opened => self.opened.send(()).unwrap(),
            _ => {}
        }
    }
}

/// A relay's candidate once named the address behind it (threat T12).
#[test]
fn with_relays_only_no_signal_names_an_address_of_this_machine() {
    let turn = TurnServer::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let config = || Config { ice_servers: vec![turn.ice_server()], relay_only: true, ..Config::default() };
    let (opened, opens) = mpsc::channel();
    let end = || Arc::new(End { peer: OnceLock::new(), signals: Mutex::default(), opened: opened.clone() });
    let (a, b) = (end(), end());
    let answering = NativeLink::open(config(), Role::Answer, b.clone());
    assert!(a.peer.set(answering.clone()).is_ok());
    let offering = NativeLink::open(config(), Role::Offer, a.clone());
    assert!(b.peer.set(offering.clone()).is_ok());
    for _ in 0..2 {
        opens.recv_timeout(LIMIT).expect("both ends open");
    }
    let deadline = Instant::now() + LIMIT;
    while [&offering, &answering].iter().any(|link| link.route() != Some(Route::Relayed)) {
        assert!(Instant::now() < deadline, "{:?}, {:?}", offering.route(), answering.route());
        std::thread::yield_now();
    }
    for end in [a, b] {
        let signals = end.signals.lock().unwrap();
        let candidates = signals.iter().filter_map(|signal| match signal {
            Signal::Candidate { candidate, .. } => Some(candidate.as_str()),
            Signal::Offer { .. } | Signal::Answer { .. } => None,
        });
        let candidates: Vec<&str> = candidates.collect();
        assert!(!candidates.is_empty());
        for candidate in candidates {
            let words: Vec<&str> = candidate.split(' ').collect();
            assert_eq!(words[4], RELAY, "{candidate}");
            assert_eq!(words[6..12], ["typ", "relay", "raddr", "0.0.0.0", "rport", "9"], "{candidate}");
        }
        for signal in signals.iter() {
            if let Signal::Offer { sdp } | Signal::Answer { sdp } = signal {
                assert!(!sdp.contains("a=candidate") && !sdp.contains("127.0.0."), "{sdp}");
                let named = |line: &&str| line.starts_with("c=") || line.starts_with("o=");
                assert!(sdp.lines().filter(named).all(|line| line.ends_with(" 0.0.0.0")), "{sdp}");
            }
        }
    }
    offering.close();
    answering.close();
}
