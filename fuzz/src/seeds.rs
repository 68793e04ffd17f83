//! Where the corpus comes from: scripts and messages that reach deep, written by hand.
//!
//! `cargo run --example seeds` writes them; inputs that once failed lie beside them in the corpus.

use std::net::SocketAddr;

use unisockets_link::frame::Probe;
use unisockets_link::{Lane, Signal};
use unisockets_signaling::identity::{KeyPair, Signature};
use unisockets_signaling::protocol::{
    Code, FromMember, FromServer, GoneReason, Hello, Lease, Nonce, Query, SignedLease, VERSION, emit,
};

use crate::headers::{self, Segment};
use crate::script::write;
use crate::{decoders, member, packet, ports, room, wire};

/// Returns the seeds of a target, each with the name of its file.
///
/// # Panics
/// If there is no such target.
pub fn seeds(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "frame" => frame(),
        "signal" => signal(),
        "protocol" => protocol(),
        "packet" => packets(),
        "ports" => ports(),
        "wire" => wire(),
        "decoders" => decoders(),
        _ => panic!("there is no target {target}"),
    }
}

fn ends(six: bool) -> (SocketAddr, SocketAddr) {
    let (from, to) = if six { ("[fd75:6e69:1::2]:9", "[fd75:6e69:1::1]:53") } else { ("10.80.0.2:9", "10.80.0.1:53") };
    (from.parse().expect("a literal address"), to.parse().expect("a literal address"))
}

fn syn(six: bool) -> Vec<u8> {
    let (from, to) = ends(six);
    let options = &[2, 4, 5, 180, 1, 3, 3, 7, 4, 2, 1, 1];
    let segment =
        Segment { sequence: 7, acknowledgement: 0, flags: headers::SYN, window: 9_000, options, payload: &[] };
    headers::tcp(from, SocketAddr::new(to.ip(), 80), segment)
}

fn datagram(six: bool) -> Vec<u8> {
    let (from, to) = ends(six);
    headers::udp(from, to, b"hello")
}

fn echo(six: bool) -> Vec<u8> {
    let (from, to) = ends(six);
    headers::icmp(from.ip(), to.ip(), if six { 128 } else { 8 }, 0, &[0, 5, 0, 1, 7, 7, 7])
}

fn frame() -> Vec<(&'static str, Vec<u8>)> {
    let mut cut = [datagram(false), syn(true)].concat();
    cut.pop();
    vec![
        ("datagram_v4", datagram(false)),
        ("segment_v6", syn(true)),
        ("several", [syn(false), datagram(true), echo(false), echo(true)].concat()),
        ("cut", cut),
        ("ping", Probe::Ping(7).emit().to_vec()),
        ("pong", Probe::Pong(u64::MAX).emit().to_vec()),
        ("mark", Probe::Mark(16_384).emit().to_vec()),
        ("reached", Probe::Reached(Lane::Bulk, 16_384).emit().to_vec()),
        ("foreign", vec![0x15, 0, 0, 40]),
        ("shorter_than_its_header", vec![0x45, 0, 0, 19]),
    ]
}

fn signal() -> Vec<(&'static str, Vec<u8>)> {
    let offer = Signal::Offer { sdp: "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n".to_owned() };
    let candidate = Signal::Candidate {
        candidate: "candidate:1 1 udp 2130706431 10.80.0.1 5000 typ host".to_owned(),
        mid: Some("0".to_owned()),
    };
    let text = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    let json = |signal: &Signal| serde_json::to_string(signal).expect("a signal has a JSON form");
    let content = |sent_at_ms: u64, counter: u32| {
        let body = json(&candidate);
        let session = format!("{:032x}", 5);
        serde_json::json!({ "session": session, "counter": counter, "sent_at_ms": sent_at_ms, "body": body })
            .to_string()
    };
    let honest = |now_ms: u64, content: &str| [&[3], &now_ms.to_be_bytes()[..], content.as_bytes()].concat();
    let altered = |network: u8, at: u16, change: u8| {
        let place = at.to_be_bytes();
        [&[4, network, place[0], place[1], change], &[0; 7][..], &[5, 0, 0, 0, 1], &[0; 8], &[1, 1], b"v=0"].concat()
    };
    vec![
        ("offer", text(0, &json(&offer))),
        ("candidate", text(0, &json(&candidate))),
        ("open_nonsense", text(1, r#"{"content":"{}","signature":"AAAA"}"#)),
        ("sealed_nonsense", text(2, &"A".repeat(80))),
        ("honest", honest(1_000_000, &content(1_000_000, 0))),
        ("from_the_end_of_time", honest(1_000_000, &content(u64::MAX, 1))),
        ("too_many", honest(1_000_000, &content(1_000_000, 128))),
        ("altered_open", altered(0, 12, 1)),
        ("altered_sealed", altered(1, 40, 128)),
    ]
}

fn hello() -> Hello {
    Hello {
        protocol: VERSION,
        network: "home".to_owned(),
        key: KeyPair::from_seed(&[1; 32]).public(),
        name: Some("alpha".to_owned()),
        ipv4: Some([10, 80, 0, 7].into()),
        ephemeral: true,
        resume: Some(Nonce::new([9; 32])),
        nonce: Nonce::new([5; 32]),
        proof: Signature::from_bytes([0; 64]),
        network_proof: None,
    }
}

fn lease() -> SignedLease {
    let lease = Lease {
        network: "home".to_owned(),
        key: KeyPair::from_seed(&[1; 32]).public(),
        ipv4: [10, 80, 0, 7].into(),
        name: Some("alpha".to_owned()),
        epoch: 3,
        not_after: 9,
    };
    SignedLease::sign(lease, &KeyPair::from_seed(&[200; 32]))
}

fn protocol() -> Vec<(&'static str, Vec<u8>)> {
    let key = KeyPair::from_seed(&[1; 32]).public();
    let text = |frame: String| [&[0], frame.as_bytes()].concat();
    let room = |scripts: &[&str]| scripts.iter().flat_map(|script| write(room::op::NAMES, script)).collect::<Vec<u8>>();
    let member =
        |scripts: &[&str]| scripts.iter().flat_map(|script| write(member::op::NAMES, script)).collect::<Vec<u8>>();
    let refused =
        FromServer::Refused { id: Some(1), code: Code::NotFound, message: "no".to_owned(), retry_after_ms: Some(5) };
    vec![
        ("hello", text(emit(&FromMember::Hello(Box::new(hello()))))),
        ("resolve", text(emit(&FromMember::Resolve { id: 7, query: Query::Ip([10, 80, 0, 1].into()) }))),
        ("watch", text(emit(&FromMember::Watch { keys: vec![key, key] }))),
        ("signal", text(emit(&FromMember::Signal { id: 1, to: key, payload: "x".to_owned() }))),
        ("gone", text(emit(&FromServer::Gone { key, reason: GoneReason::Left }))),
        ("refused", text(emit(&refused))),
        ("lease", text(emit(&lease()))),
        ("room_visit", room(&["1 0", JOIN_TWO, VISIT])),
        ("room_contention", room(&["1 0", JOIN_TWO, CONTENTION])),
        ("room_secret", room(&["1 1", SECRET])),
        ("room_strays", room(&["1 0", JOIN_TWO, STRAYS])),
        ("room_long_nonsense", room(&["1 0", LONG_NONSENSE])),
        ("member_joins", member(&["2", MEMBER_JOINS, MEMBER_ASKS])),
        ("member_refused", member(&["2", MEMBER_CONNECTS, MEMBER_REFUSED])),
        ("member_lease_for_ever", member(&["2", MEMBER_LEASE])),
        ("member_retry_at_the_end_of_time", member(&["2", MEMBER_CONNECTS, MEMBER_RETRY])),
    ]
}

/// A type of 65,520 letters: the answer must not quote them all.
const LONG_NONSENSE: &str = r#"OPEN 0 LONG 0 9 ={"type":" 255 240 2 ="} 0"#;

/// Two members of one network come in, the first with a name and an address.
const JOIN_TWO: &str = "OPEN 0 HELLO 0 0 0 1 1 3 0 0 0 ANSWER 0 0 OPEN 1 HELLO 1 1 0 2 0 1 0 0";

/// They ask, signal, watch, renew and go.
const VISIT: &str = "ANSWER 0 0 RESOLVE 0 0 4 =beta 0 0 0 0 0 0 0 7 ANSWER 0 0 1 SIGNAL 0 0 0 0 0 0 0 0 8 1 2 =hi \
    LIST 1 0 0 0 0 0 0 0 0 9 0 5 ANSWER 0 0 WATCH 0 0 1 0 5 RENEW 1 ANSWER 0 3 LEAVE 0 \
    TIME 4 0 CLOSE 1 1";

/// The first member's key comes again while its session lives; then again, and nobody answers for it.
const CONTENTION: &str = "ANSWER 0 0 OPEN 2 HELLO 2 0 0 0 0 0 0 0 ANSWER 0 0 OPEN 3 HELLO 3 0 0 0 0 0 0 0 \
    TIME 1 44 ANSWER 1 0 OPEN 4 HELLO 4 0 0 0 0 0 1 0 ANSWER";

/// Networks with a secret, proven and not.
const SECRET: &str = "OPEN 0 HELLO 0 0 2 0 0 0 0 0 ANSWER 0 0 OPEN 1 HELLO 1 1 2 0 0 0 0 254 OPEN 2 \
    TIME 5 0";

/// Answers that nobody waits for, bad frames, a drain.
const STRAYS: &str = "STRAY 1 0 0 10 80 0 1 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 2 0 DELIVER 0 0 1 2 =hi \
    RAW 0 2 ={} RAW 0 0 RAW 0 1 =[ CLOSE 0 0 DRAIN 0 0 0 0 0 0 3 232 TIME";

const MEMBER_CONNECTS: &str = "TIME 0 0 0 1 CHALLENGE 7";

const MEMBER_JOINS: &str = "TIME 0 0 0 1 CHALLENGE 7 WELCOME 0 10 80 0 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 9 \
    0 0 0 0 0 0 14 16 3";

const MEMBER_LEASE: &str = "TIME 0 0 0 1 CHALLENGE 7 WELCOME 0 10 80 0 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 9 \
    255 255 255 255 255 255 255 255 3";

const MEMBER_ASKS: &str = "RESOLVE 0 5 =alpha ANSWER 0 10 80 0 1 1 0 LIST 9 ANSWER 0 10 80 0 1 0 1 SIGNAL 1 =x \
    REFUSE 1 3 0 0 TIME 0 54 238 128 LEAVE TIME 9";

const MEMBER_REFUSED: &str = "REFUSE 0 1 1 0 0 0 0 0 0 3 232 CLOSED 1 2 3 4 5 6";

const MEMBER_RETRY: &str = "REFUSE 0 1 1 255 255 255 255 255 255 255 255";

/// The peer listens on port 80 and a client connects; the client is socket 0 here, the server socket 1
/// there.
const CONNECTION_V4: &str = "~SOCKET 0 1 ~BIND 0 9 0 ~LISTEN 0 4 SOCKET 0 0 CONNECT 0 0 0 SETTLE ~ACCEPT 0";
/// The same over IPv6.
const CONNECTION_V6: &str = "~SOCKET 0 1 ~BIND 0 9 0 ~LISTEN 0 4 SOCKET 0 1 CONNECT 0 2 0 SETTLE ~ACCEPT 0";

/// Raw packets for side 0, each as it is.
fn raw(packets: &[Vec<u8>]) -> Vec<u8> {
    packets.iter().flat_map(|bytes| [&[packet::op::RAW, 0, bytes.len() as u8], &bytes[..], &[0]].concat()).collect()
}

fn packets() -> Vec<(&'static str, Vec<u8>)> {
    let listener = "SOCKET 0 1 BIND 0 9 0 LISTEN 0 2";
    let datagrams = "SOCKET 1 1 BIND 0 9 1 ~SOCKET 1 0 ~SOCKET 2 1";
    let bothways = "SEND 0 40 0 ~SEND 1 3 0 SETTLE ~RECV 1 99 0 0";
    let again = "SETTLE RECV 0 99 0 1 RECV 0 99 0 0 TIME 1 9 SETTLE";
    let goodbye = "SHUTDOWN 0 0 SETTLE ~CLOSE 1 SETTLE TIME 3 9 QUERY 0 1";
    let wire = "SEND 0 40 0 FLUSH 0 1 REPEAT 1 0 LOSE 0 0 DELIVER 2 1 TIME 2 30 FLUSH 0 1 MUTATE 0 0 33 1 1 \
        SETTLE";
    let paths = "SEND 0 9 0 PATH 0 TIME 2 20 PATH 1 SETTLE PATH 6 ~PATH 6 SETTLE PATH 3 PATH 5 1 \
        ADDRESSES 2 PATH 6 SETTLE";
    let nearly = "~SEND 1 1 0 ~FLUSH 0 1 SEND 0 1 0 FLUSH 0 1 SEGMENT 0 1 0 16 2 0 0 9 SEGMENT 5 1 0 24 0 6 1 0 \
        SEGMENT 0 1 0 17 1 0 0 0 SEGMENT 210 0 231 20 2 1 0 0 SEGMENT 0 1 0 4 0 0 0 0 \
        SETTLE";
    let errors = "SOCKET 0 0 CONNECT 0 0 0 FLUSH 0 1 QUOTE 0 3 40 QUERY 0 1";
    let pending = "SOCKET 0 0 CONNECT 0 6 0 SOCKET 1 1 SEND_TO 1 1 0 1 7 1 TIME 3 9";
    let pieces = "FRAGMENT 0 9 9 1 1 15 255 FRAGMENT 1 9 9 1 2 15 3 RECV_FROM 0 TIME 3 2";
    let large = "~SEND_TO 0 255 0 1 0 1 ~SEND_TO 1 0 9 1 2 0 SETTLE RECV_FROM 0";
    let options = "OPTION 0 0 1 OPTION 0 1 3 232 OPTION 0 2 1 OPTION 0 7 39 16 OPTION 0 8 9 SEND 0 4 0 \
        SETTLE TIME 2 99 SETTLE CLOSE 0 SETTLE";
    let loopback = "SOCKET 0 0 BIND 0 10 0 LISTEN 0 4 SOCKET 0 0 CONNECT 1 10 0 SETTLE ACCEPT 0 SEND 1 30 0 \
        SETTLE RECV 2 99 0 0 CLOSE 2 CLOSE 1 SETTLE";
    let flood = "FLOOD 0 1 0 40 0 FLUSH 0 1 FLOOD 2 1 0 90 2 TIME 3 9 SETTLE";
    let play =
        |scripts: &[&str]| scripts.iter().flat_map(|script| write(packet::op::NAMES, script)).collect::<Vec<u8>>();
    let raw = |six: bool| [play(&["1 0", datagrams, listener]), raw(&[syn(six), datagram(six), echo(six)])].concat();
    vec![
        ("stream_v4", play(&["1 0", CONNECTION_V4, bothways, again, goodbye])),
        ("stream_v6", play(&["0 1", CONNECTION_V6, bothways, again, goodbye])),
        ("bad_wire", play(&["1 0", CONNECTION_V4, wire, again])),
        ("paths", play(&["2 0", CONNECTION_V4, paths])),
        ("nearly_right", play(&["1 0", CONNECTION_V4, nearly, goodbye])),
        ("options", play(&["1 0", CONNECTION_V6, options])),
        ("loopback", play(&["1 0", loopback])),
        ("flood", play(&["1 0", listener, flood])),
        ("errors", play(&["1 0", errors])),
        ("pending", play(&["1 0", pending])),
        ("datagrams", play(&["0 0", datagrams, large])),
        ("fragments", play(&["1 0", datagrams, pieces])),
        ("raw_v4", raw(false)),
        ("raw_v6", raw(true)),
    ]
}

fn ports() -> Vec<(&'static str, Vec<u8>)> {
    let play = |script: &str| write(ports::op::NAMES, script);
    // Addresses: 0 own v4, 1 own v6, 2 and 3 groups, 4 broadcast, 5 and 6 loopback, 7 and 8 any, 9 the peer's.
    vec![
        ("conflicts", play("SOCKET 0 0 BIND 0 7 0 SOCKET 0 1 BIND 1 8 0 SOCKET 0 0 BIND 2 0 0 SOCKET 0 0 BIND 3 9 1")),
        ("shared", play("SOCKET 0 0 REUSE 0 1 BIND 0 7 0 SOCKET 0 0 REUSE 1 1 BIND 1 7 0 DATAGRAM 0 0")),
        ("closest", play("SOCKET 0 1 REUSE 0 1 BIND 0 8 0 SOCKET 0 0 REUSE 1 1 BIND 1 0 0 DATAGRAM 0 0 DATAGRAM 1 0")),
        ("connected", play("SOCKET 0 0 BIND 0 7 1 CONNECT 0 0 DATAGRAM 0 1 CLOSE 0 DATAGRAM 0 1")),
        ("group", play("SOCKET 0 0 BIND 0 7 1 DATAGRAM 2 1 JOIN 0 0 DATAGRAM 2 1 LEAVE 0 0 DATAGRAM 2 1 DATAGRAM 4 1")),
        (
            "listeners",
            play("SOCKET 1 1 ONLY_V6 0 1 BIND 0 8 0 LISTEN 0 SYN 1 0 SYN 0 0 SOCKET 1 0 BIND 1 7 0 LISTEN 1 SYN 0 0"),
        ),
        (
            "two_listeners",
            play("SOCKET 1 0 REUSE 0 1 BIND 0 7 0 SOCKET 1 0 REUSE 1 1 BIND 1 7 0 LISTEN 0 LISTEN 1 SYN 0 0"),
        ),
        ("echo", play("SOCKET 2 0 BIND 0 7 2 ECHO 0 2 ECHO 1 2 SOCKET 0 0 BIND 1 7 3")),
    ]
}

fn wire() -> Vec<(&'static str, Vec<u8>)> {
    let play = |scripts: &[&str]| scripts.iter().flat_map(|script| write(wire::op::NAMES, script)).collect::<Vec<u8>>();
    let dial = |host: u8, buffer: u8| {
        format!("~SOCKET 0 {buffer} ~BIND 0 1 0 ~LISTEN 0 9 SOCKET 0 {buffer} CONNECT 0 {host} 0 SETTLE ~ACCEPT 0")
    };
    let (four, six, large) = (dial(0, 1), dial(3, 1), dial(3, 3));
    let much = "SEND 0 255 255 SEND 0 255 255 SEND 0 255 255 SEND 0 255 255 SEND 0 255 255 SETTLE \
        ~RECV 1 0 255 255 SEND 0 255 255 SETTLE";
    let talk = "SEND 0 30 0 ~SEND 1 60 0 SETTLE ~RECV 1 0 99 0 RECV 0 1 99 0 RECV 0 2 99 0 0 9";
    let close = "SHUTDOWN 0 0 RUN 1 9 ~CLOSE 1 SETTLE";
    let bad = "CONDITIONS 2 20 40 2 1 1 0 ~CONDITIONS 2 20 40 2 1 1 0 SEND 0 60 0 RUN 2 200 ~RECV 1 0 255 0 \
        SEND 0 60 0 RUN 2 200 CUT 9 ~CUT 2 SEND 0 9 9 RUN 3 9 ~SEND 1 9 9";
    let forged = "SEND 0 9 0 RUN 1 2 ~FORGE 0 0 9 1 ~FORGE 0 1 9 0 ~FORGE 1 2 9 2 ~FORGE 0 3 0 0 ~FORGE 0 4 5 0 \
        ~FORGE 0 5 0 0 ~FORGE 0 6 0 1 FORGE 0 7 2 0 ~REPLAY 0 ~REPLAY 1 SETTLE ~RECV 1 0 99 0";
    let options = "OPTION 0 1 1 OPTION 0 8 1 OPTION 0 9 1 OPTION 0 10 3 ~OPTION 1 11 0 200 SEND 0 1 0 SETTLE RUN 3 20 \
        ~RECV 1 2 1 0 0 250 ~CUT 200 RUN 3 200 QUERY 0";
    let datagrams = "~SOCKET 1 1 ~BIND 0 1 1 ~GROUP 0 0 SOCKET 1 0 SEND_TO 0 255 0 0 0 1 SEND_TO 0 0 9 1 0 1 \
        OPTION 0 12 1 SETTLE ~RECV_FROM 0 ~RECV_FROM 0 CONDITIONS 2 9 9 2 2 2 0 SEND_TO 0 99 0 0 0 1 SETTLE ~RECV_FROM 0";
    let loopback = "SOCKET 0 1 BIND 0 1 0 LISTEN 0 9 SOCKET 0 0 CONNECT 1 7 0 SETTLE ACCEPT 0 SEND 1 50 0 SETTLE \
        RECV 2 0 99 0 CLOSE 2 SETTLE";
    vec![
        ("dialled", play(&["1", &four])),
        ("stream_v4", play(&["1", &four, talk])),
        ("stream_v6", play(&["0", &six, talk, talk, close])),
        ("large_windows", play(&["2", &large, much, talk])),
        ("bad_conditions", play(&["1", &four, bad, talk])),
        ("forged", play(&["0", &four, talk, forged, talk])),
        ("options", play(&["1", &six, talk, options])),
        ("datagrams", play(&["1", datagrams])),
        ("loopback", play(&["2", loopback])),
    ]
}

/// A segment's head, and three times what makes another one of its stream.
fn streams() -> Vec<u8> {
    let mut head = vec![0x45, 0, 0, 152, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 80, 0, 2, 10, 80, 0, 1];
    head.extend([0, 80, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0]);
    head.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    head.extend([1, 0, 1, 0, 1, 0]);
    head
}

fn decoders() -> Vec<(&'static str, Vec<u8>)> {
    let with = |name: &str, rest: &[u8]| [&write(decoders::op::NAMES, name), rest].concat();
    let key = KeyPair::from_seed(&[1; 32]).public().to_string();
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    let hello = serde_json::json!({
        "type": "hello", "version": 1, "stage": "opened", "incarnation": 7, "acquaintance": 8, "mtu": 16_384,
        "session": format!("{:032x}", 5), "lease": lease(), "signature": Signature::from_bytes([0; 64]),
    });
    let record = serde_json::json!({ "network": "home", "key": key, "ipv4": "10.80.0.7", "name": "alpha", "epoch": 1, "seen_s": 9 });
    let reservation =
        serde_json::json!({ "network": "home", "resource": { "name": "alpha" }, "key": key, "until_s": 9 });
    let pins = serde_json::json!({ "name alpha in home": key, "server 127.0.0.1:7080": key });
    let all = "loss=1%,delay=20ms,jitter=5ms,reorder=1%,duplicate=1%,corrupt=1%,rate=100mbit";
    let named = |name: &str| [&[name.len() as u8], name.as_bytes(), name.as_bytes()].concat();
    vec![
        ("conditions", with("CONDITIONS", all.as_bytes())),
        ("conditions_at_their_ends", with("CONDITIONS", b"loss=100%,delay=60s,jitter=60000ms,rate=8kbit")),
        ("host", with("HOST 0", &named("signal.example:8443"))),
        ("host_v6", with("HOST 1", &named("[2001:db8::1]"))),
        ("key", with("KEY", key.as_bytes())),
        ("name", with("NAME", b"alpha-1")),
        ("network", with("NAME", b"home~86561d2a815fcacab4a430d9a9366698")),
        ("pins", with("PINS", pins.to_string().as_bytes())),
        ("record", with("RECORD", record.to_string().as_bytes())),
        ("reservation", with("RECORD", reservation.to_string().as_bytes())),
        ("stun", with("STUN", &stun)),
        ("hello", with("CONTROL", hello.to_string().as_bytes())),
        ("bye", with("CONTROL", br#"{"type":"bye","reason":"idle"}"#)),
        ("segments", with("SEGMENTS 0 100 52", &streams())),
        ("capture", with("CAPTURE 1 0 4 =beta 0 0 3 =why 1 0 0 0 0 0 0 0 9", &datagram(false))),
    ]
}
