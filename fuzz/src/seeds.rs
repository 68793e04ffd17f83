//! Where the corpus comes from: scripts and messages that reach deep, written by hand.
//!
//! `cargo run --example seeds` writes them; inputs that once failed lie beside them in the corpus.

use std::net::SocketAddr;

use unisockets_link::Signal;
use unisockets_link::frame::Probe;
use unisockets_signaling::identity::{KeyPair, Signature};
use unisockets_signaling::protocol::{
    Code, FromMember, FromServer, GoneReason, Hello, Lease, Nonce, Query, SignedLease, VERSION, emit,
};

use crate::packet::op;
use crate::wire::{self, Segment};
use crate::{member, room};

/// Returns the seeds of a target, each with the name of its file.
///
/// # Panics
/// If there is no such target.
pub fn seeds(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "frame" => frame(),
        "signal" => signal(),
        "protocol" => protocol(),
        "packet" => packet(),
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
    let segment = Segment { sequence: 7, acknowledgement: 0, flags: wire::SYN, window: 9_000, options, payload: &[] };
    wire::tcp(from, SocketAddr::new(to.ip(), 80), segment)
}

fn datagram(six: bool) -> Vec<u8> {
    let (from, to) = ends(six);
    wire::udp(from, to, b"hello")
}

fn echo(six: bool) -> Vec<u8> {
    let (from, to) = ends(six);
    wire::icmp(from.ip(), to.ip(), if six { 128 } else { 8 }, 0, &[0, 5, 0, 1, 7, 7, 7])
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
    let refused =
        FromServer::Refused { id: Some(1), code: Code::NotFound, message: "no".to_owned(), retry_after_ms: Some(5) };
    vec![
        ("hello", text(emit(&FromMember::Hello(hello())))),
        ("resolve", text(emit(&FromMember::Resolve { id: 7, query: Query::Ip([10, 80, 0, 1].into()) }))),
        ("watch", text(emit(&FromMember::Watch { keys: vec![key, key] }))),
        ("signal", text(emit(&FromMember::Signal { id: 1, to: key, payload: "x".to_owned() }))),
        ("gone", text(emit(&FromServer::Gone { key, reason: GoneReason::Left }))),
        ("refused", text(emit(&refused))),
        ("lease", text(emit(&lease()))),
        ("room_visit", [&[1, 0][..], &JOIN_TWO, &VISIT].concat()),
        ("room_contention", [&[1, 0][..], &JOIN_TWO, &CONTENTION].concat()),
        ("room_secret", [&[1, 1][..], &SECRET].concat()),
        ("room_strays", [&[1, 0][..], &JOIN_TWO, &STRAYS].concat()),
        ("room_long_nonsense", [&[1, 0, room::op::OPEN, 0, room::op::LONG, 0, 9], LONG_HEAD, &LONG_TAIL].concat()),
        ("member_joins", [&[2][..], &MEMBER_JOINS, &MEMBER_ASKS].concat()),
        ("member_refused", MEMBER_REFUSED.to_vec()),
        ("member_lease_for_ever", [&[2][..], &MEMBER_CONNECTS, &welcome(u64::MAX)].concat()),
        ("member_retry_at_the_end_of_time", MEMBER_RETRY.to_vec()),
    ]
}

const LONG_HEAD: &[u8] = br#"{"type":""#;
/// 65,520 letters, then the end of the frame: the answer must not quote them all.
const LONG_TAIL: [u8; 6] = [0xff, 0xf0, 2, b'"', b'}', 0];

/// Two members of one network come in, the first with a name and an address.
const JOIN_TWO: [u8; 26] = [
    room::op::OPEN,
    0,
    room::op::HELLO,
    0,
    0,
    0,
    1,
    1,
    3,
    0,
    0,
    0,
    room::op::ANSWER,
    0,
    0,
    room::op::OPEN,
    1,
    room::op::HELLO,
    1,
    1,
    0,
    2,
    0,
    1,
    0,
    0,
];

/// They ask, signal, watch, renew and go.
const VISIT: [u8; 72] = [
    room::op::ANSWER,
    0,
    0,
    room::op::RESOLVE,
    0,
    0,
    4,
    b'b',
    b'e',
    b't',
    b'a',
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    7,
    room::op::ANSWER,
    0,
    0,
    1,
    room::op::SIGNAL,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    8,
    1,
    2,
    b'h',
    b'i',
    room::op::LIST,
    1,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    9,
    0,
    5,
    room::op::ANSWER,
    0,
    0,
    room::op::WATCH,
    0,
    0,
    1,
    0,
    5,
    room::op::RENEW,
    1,
    room::op::ANSWER,
    0,
    3,
    room::op::LEAVE,
    0,
    room::op::TIME,
    4,
    0,
    room::op::CLOSE,
    1,
    1,
];

/// The first member's key comes again while its session lives; then again, and nobody answers for it.
const CONTENTION: [u8; 46] = [
    room::op::ANSWER,
    0,
    0,
    room::op::OPEN,
    2,
    room::op::HELLO,
    2,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    room::op::ANSWER,
    0,
    0,
    room::op::OPEN,
    3,
    room::op::HELLO,
    3,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    room::op::TIME,
    1,
    44,
    room::op::ANSWER,
    1,
    0,
    room::op::OPEN,
    4,
    room::op::HELLO,
    4,
    0,
    0,
    0,
    0,
    0,
    1,
    0,
    room::op::ANSWER,
];

/// Networks with a secret, proven and not.
const SECRET: [u8; 30] = [
    room::op::OPEN,
    0,
    room::op::HELLO,
    0,
    0,
    2,
    0,
    0,
    0,
    0,
    0,
    room::op::ANSWER,
    0,
    0,
    room::op::OPEN,
    1,
    room::op::HELLO,
    1,
    1,
    2,
    0,
    0,
    0,
    0,
    254,
    room::op::OPEN,
    2,
    room::op::TIME,
    5,
    0,
];

/// Answers that nobody waits for, bad frames, a drain.
const STRAYS: [u8; 66] = [
    room::op::STRAY,
    1,
    0,
    0,
    10,
    80,
    0,
    1,
    1,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    1,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    1,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    2,
    0,
    room::op::DELIVER,
    0,
    0,
    1,
    2,
    b'h',
    b'i',
    room::op::RAW,
    0,
    2,
    b'{',
    b'}',
    room::op::RAW,
    0,
    0,
    room::op::RAW,
    0,
    1,
    b'[',
    room::op::CLOSE,
    0,
    0,
    room::op::DRAIN,
    0,
    0,
    0,
    0,
    0,
    0,
    3,
    232,
    room::op::TIME,
];

const MEMBER_CONNECTS: [u8; 7] = [member::op::TIME, 0, 0, 0, 1, member::op::CHALLENGE, 7];

/// A welcome with a lease of so many seconds.
fn welcome(lease_s: u64) -> Vec<u8> {
    let head = [member::op::WELCOME, 0, 10, 80, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9];
    [&head[..], &lease_s.to_be_bytes(), &[3]].concat()
}

const MEMBER_JOINS: [u8; 38] = [
    member::op::TIME,
    0,
    0,
    0,
    1,
    member::op::CHALLENGE,
    7,
    member::op::WELCOME,
    0,
    10,
    80,
    0,
    1,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    1,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    9,
    0,
    0,
    0,
    0,
    0,
    0,
    14,
    16,
    3,
];

const MEMBER_ASKS: [u8; 42] = [
    member::op::RESOLVE,
    0,
    5,
    b'a',
    b'l',
    b'p',
    b'h',
    b'a',
    member::op::ANSWER,
    0,
    10,
    80,
    0,
    1,
    1,
    0,
    member::op::LIST,
    9,
    member::op::ANSWER,
    0,
    10,
    80,
    0,
    1,
    0,
    1,
    member::op::SIGNAL,
    1,
    b'x',
    member::op::REFUSE,
    1,
    3,
    0,
    0,
    member::op::TIME,
    0,
    54,
    238,
    128,
    member::op::LEAVE,
    member::op::TIME,
    9,
];

const MEMBER_REFUSED: [u8; 27] = [
    2,
    member::op::TIME,
    0,
    0,
    0,
    1,
    member::op::CHALLENGE,
    7,
    member::op::REFUSE,
    0,
    1,
    1,
    0,
    0,
    0,
    0,
    0,
    0,
    3,
    232,
    member::op::CLOSED,
    1,
    2,
    3,
    4,
    5,
    6,
];

const MEMBER_RETRY: [u8; 20] = [
    2,
    member::op::TIME,
    0,
    0,
    0,
    1,
    member::op::CHALLENGE,
    7,
    member::op::REFUSE,
    0,
    1,
    1,
    255,
    255,
    255,
    255,
    255,
    255,
    255,
    255,
];

/// The other side.
const PEER: u8 = 0x80;

/// The peer listens on port 80 and a client connects; the client is socket 0 here, the server socket 1
/// there. The address is 0 for IPv4 and 2 for IPv6.
fn connection(address: u8) -> Vec<u8> {
    vec![
        op::SOCKET | PEER,
        0,
        1,
        op::BIND | PEER,
        0,
        9,
        0,
        op::LISTEN | PEER,
        0,
        4,
        op::SOCKET,
        0,
        address / 2,
        op::CONNECT,
        0,
        address,
        0,
        op::SETTLE,
        op::ACCEPT | PEER,
        0,
    ]
}

/// Raw packets for side 0, each as it is.
fn raw(packets: &[Vec<u8>]) -> Vec<u8> {
    packets.iter().flat_map(|packet| [&[op::RAW, 0, packet.len() as u8], &packet[..], &[0]].concat()).collect()
}

fn packet() -> Vec<(&'static str, Vec<u8>)> {
    let listener = [op::SOCKET, 0, 1, op::BIND, 0, 9, 0, op::LISTEN, 0, 2];
    let datagrams = [op::SOCKET, 1, 1, op::BIND, 0, 9, 1, op::SOCKET | PEER, 1, 0, op::SOCKET | PEER, 2, 1];
    let bothways = [op::SEND, 0, 40, 0, op::SEND | PEER, 1, 3, 0, op::SETTLE, op::RECV | PEER, 1, 99, 0, 0];
    let again = [op::SETTLE, op::RECV, 0, 99, 0, 1, op::RECV, 0, 99, 0, 0, op::TIME, 1, 9, op::SETTLE];
    let goodbye = [op::SHUTDOWN, 0, 0, op::SETTLE, op::CLOSE | PEER, 1, op::SETTLE, op::TIME, 3, 9, op::QUERY, 0, 1];
    let wire = [
        op::SEND,
        0,
        40,
        0,
        op::FLUSH,
        0,
        1,
        op::REPEAT,
        1,
        0,
        op::LOSE,
        0,
        0,
        op::DELIVER,
        2,
        1,
        op::TIME,
        2,
        30,
        op::FLUSH,
        0,
        1,
        op::MUTATE,
        0,
        0,
        33,
        1,
        1,
        op::SETTLE,
    ];
    let paths = [
        op::SEND,
        0,
        9,
        0,
        op::PATH,
        0,
        op::TIME,
        2,
        20,
        op::PATH,
        1,
        op::SETTLE,
        op::PATH,
        6,
        op::PATH | PEER,
        6,
        op::SETTLE,
        op::PATH,
        3,
        op::PATH,
        5,
        1,
        op::ADDRESSES,
        2,
        op::PATH,
        6,
        op::SETTLE,
    ];
    let nearly = [
        op::SEND | PEER,
        1,
        1,
        0,
        op::FLUSH | PEER,
        0,
        1,
        op::SEND,
        0,
        1,
        0,
        op::FLUSH,
        0,
        1,
        op::SEGMENT,
        0,
        1,
        0,
        16,
        2,
        0,
        0,
        9,
        op::SEGMENT,
        5,
        1,
        0,
        24,
        0,
        6,
        1,
        0,
        op::SEGMENT,
        0,
        1,
        0,
        17,
        1,
        0,
        0,
        0,
        op::SEGMENT,
        210,
        0,
        231,
        20,
        2,
        1,
        0,
        0,
        op::SEGMENT,
        0,
        1,
        0,
        4,
        0,
        0,
        0,
        0,
        op::SETTLE,
    ];
    let errors = [op::SOCKET, 0, 0, op::CONNECT, 0, 0, 0, op::FLUSH, 0, 1, op::QUOTE, 0, 3, 40, op::QUERY, 0, 1];
    let pending =
        [op::SOCKET, 0, 0, op::CONNECT, 0, 6, 0, op::SOCKET, 1, 1, op::SEND_TO, 1, 1, 0, 1, 7, 1, op::TIME, 3, 9];
    let pieces =
        [op::FRAGMENT, 0, 9, 9, 1, 1, 15, 255, op::FRAGMENT, 1, 9, 9, 1, 2, 15, 3, op::RECV_FROM, 0, op::TIME, 3, 2];
    let large =
        [op::SEND_TO | PEER, 0, 255, 0, 1, 0, 1, op::SEND_TO | PEER, 1, 0, 9, 1, 2, 0, op::SETTLE, op::RECV_FROM, 0];
    let options = [
        op::OPTION,
        0,
        0,
        1,
        op::OPTION,
        0,
        1,
        3,
        232,
        op::OPTION,
        0,
        2,
        1,
        op::OPTION,
        0,
        7,
        39,
        16,
        op::OPTION,
        0,
        8,
        9,
        op::SEND,
        0,
        4,
        0,
        op::SETTLE,
        op::TIME,
        2,
        99,
        op::SETTLE,
        op::CLOSE,
        0,
        op::SETTLE,
    ];
    let loopback = [
        op::SOCKET,
        0,
        0,
        op::BIND,
        0,
        10,
        0,
        op::LISTEN,
        0,
        4,
        op::SOCKET,
        0,
        0,
        op::CONNECT,
        1,
        10,
        0,
        op::SETTLE,
        op::ACCEPT,
        0,
        op::SEND,
        1,
        30,
        0,
        op::SETTLE,
        op::RECV,
        2,
        99,
        0,
        0,
        op::CLOSE,
        2,
        op::CLOSE,
        1,
        op::SETTLE,
    ];
    let flood = [op::FLOOD, 0, 1, 0, 40, 0, op::FLUSH, 0, 1, op::FLOOD, 2, 1, 0, 90, 2, op::TIME, 3, 9, op::SETTLE];
    let packets = |six: bool| raw(&[syn(six), datagram(six), echo(six)]);
    vec![
        ("stream_v4", [&[1, 0][..], &connection(0), &bothways, &again, &goodbye].concat()),
        ("stream_v6", [&[0, 1][..], &connection(2), &bothways, &again, &goodbye].concat()),
        ("bad_wire", [&[1, 0][..], &connection(0), &wire, &again].concat()),
        ("paths", [&[2, 0][..], &connection(0), &paths].concat()),
        ("nearly_right", [&[1, 0][..], &connection(0), &nearly, &goodbye].concat()),
        ("options", [&[1, 0][..], &connection(2), &options].concat()),
        ("loopback", [&[1, 0][..], &loopback].concat()),
        ("flood", [&[1, 0][..], &listener, &flood].concat()),
        ("errors", [&[1, 0][..], &errors].concat()),
        ("pending", [&[1, 0][..], &pending].concat()),
        ("datagrams", [&[0, 0][..], &datagrams, &large].concat()),
        ("fragments", [&[1, 0][..], &datagrams, &pieces].concat()),
        ("raw_v4", [&[1, 0][..], &datagrams, &listener, &packets(false), &[op::SETTLE]].concat()),
        ("raw_v6", [&[1, 0][..], &datagrams, &listener, &packets(true), &[op::SETTLE]].concat()),
    ]
}
