//! The room and the member against each other, without I/O and on a virtual clock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use unisockets_signaling::identity::{KeyPair, PublicKey};
use unisockets_signaling::leases::{Claim, KEEP_BRIEF_S, KEEP_S, Leases, PROOF_S, Record};
use unisockets_signaling::member::{self, Event, Failure, Membership};
use unisockets_signaling::network::{Network, PREFIX_V4, Prefix, address_v6};
use unisockets_signaling::protocol::{
    Code, FRAME_LEN_MAX, FromMember, FromServer, GoneReason, Hello, IceServer, LIST_LEN_MAX, Member, NetworkProof,
    Nonce, PAYLOAD_LEN_MAX, Proven, Query, SignedLease, VERSION, WATCH_LEN_MAX, Welcome, emit, parse,
};
use unisockets_signaling::room::{
    Admission, BAD_FRAMES_MAX, CONTENTION_MS, Config, ConnectionId, HANDSHAKE_MS, Host, Kept, LEASE_INTERVAL_MS,
    LEASES_BURST, Output, Place, RENEW_S, Room,
};

const HOST: &str = "signal.example:8443";
/// The virtual clock starts late enough for leases to be a day old.
const START_MS: u64 = 1_000_000_000;

fn server_pair() -> KeyPair {
    KeyPair::from_seed(&[200; 32])
}

/// The key pair of member number `n`.
fn pair(n: u64) -> KeyPair {
    let mut seed = [3; 32];
    seed[..8].copy_from_slice(&n.to_be_bytes());
    KeyPair::from_seed(&seed)
}

fn key(n: u64) -> PublicKey {
    pair(n).public()
}

fn open_network() -> Arc<Network> {
    Arc::new(Network::new("home", None).unwrap())
}

/// Deriving keys of a secret takes a while: once is enough.
fn secret_network() -> Arc<Network> {
    static NETWORK: OnceLock<Arc<Network>> = OnceLock::new();
    let derive = || Arc::new(Network::new("home", Some("a secret that nobody guesses")).unwrap());
    Arc::clone(NETWORK.get_or_init(derive))
}

fn other_secret_network() -> Arc<Network> {
    static NETWORK: OnceLock<Arc<Network>> = OnceLock::new();
    let derive = || Arc::new(Network::new("home", Some("a wrong secret")).unwrap());
    Arc::clone(NETWORK.get_or_init(derive))
}

fn settings(n: u64) -> member::Config {
    member::Config {
        network: open_network(),
        pair: pair(n),
        name: None,
        ipv4: None,
        ephemeral: false,
        host: HOST.to_owned(),
    }
}

fn named(n: u64, name: &str) -> member::Config {
    member::Config { name: Some(name.to_owned()), ..settings(n) }
}

/// A hello that a server at `host` accepts.
fn hello(n: u64, network: &Network, host: &str, server_nonce: &Nonce) -> Hello {
    let (pair, nonce) = (pair(n), Nonce::new([5; 32]));
    let key = pair.public();
    let proven = Proven { host, network: network.id(), key: &key, server_nonce, nonce: &nonce };
    let network_proof = network.signing().map(|pair| NetworkProof { key: pair.public(), signature: proven.sign(pair) });
    Hello {
        protocol: VERSION,
        network: network.id().to_owned(),
        key,
        name: None,
        ipv4: None,
        ephemeral: false,
        resume: None,
        nonce,
        proof: proven.sign(&pair),
        network_proof,
    }
}

struct Peer {
    membership: Membership,
    connection: Option<ConnectionId>,
    events: VecDeque<Event>,
}

/// What happens to claims that the room asks for.
#[derive(PartialEq, Eq)]
enum Claims {
    /// They are answered at once.
    Answered,
    /// The lease is given out at once, the answer waits for [`World::answer_claims`].
    Delayed,
}

/// A room, its directory, and members, all on one clock.
struct World {
    now_ms: u64,
    room: Room,
    leases: Leases,
    present: HashSet<Place>,
    claims: Claims,
    delayed: Vec<(ConnectionId, Record)>,
    /// All that was sent, by connection.
    sent: HashMap<ConnectionId, Vec<FromServer>>,
    closed: HashSet<ConnectionId>,
    probed: Vec<ConnectionId>,
    exits: Vec<(Place, Kept)>,
    peers: Vec<Peer>,
    owner: HashMap<ConnectionId, usize>,
    next: u64,
}

impl World {
    fn new() -> Self {
        Self::with(Admission::Open)
    }

    fn with(admission: Admission) -> Self {
        let stun = IceServer { url: "stun:{host}:8443".to_owned(), username: String::new(), credential: String::new() };
        let config = Config { key: server_pair(), prefix: PREFIX_V4, admission, ice_servers: vec![stun] };
        Self {
            now_ms: START_MS,
            room: Room::new(config),
            leases: Leases::new(PREFIX_V4),
            present: HashSet::new(),
            claims: Claims::Answered,
            delayed: Vec::new(),
            sent: HashMap::new(),
            closed: HashSet::new(),
            probed: Vec::new(),
            exits: Vec::new(),
            peers: Vec::new(),
            owner: HashMap::new(),
            next: 0,
        }
    }

    fn nonce(&mut self) -> Nonce {
        self.next += 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.next.to_be_bytes());
        Nonce::new(bytes)
    }

    /// Opens a connection that is driven by hand; returns it with the server's nonce.
    fn open(&mut self) -> (ConnectionId, Nonce) {
        let nonce = self.nonce();
        let id = ConnectionId(self.next);
        self.room.open(self.now_ms, id, Host::Known(HOST.to_owned()), nonce);
        self.settle();
        (id, nonce)
    }

    fn say(&mut self, id: ConnectionId, message: &FromMember) {
        self.room.frame(self.now_ms, id, &emit(message));
        self.settle();
    }

    /// Opens a connection and says hello by hand, as altered.
    fn knock(&mut self, n: u64, network: &Network, alter: impl FnOnce(&mut Hello)) -> ConnectionId {
        let (id, nonce) = self.open();
        let mut hello = hello(n, network, HOST, &nonce);
        alter(&mut hello);
        self.say(id, &FromMember::Hello(Box::new(hello)));
        id
    }

    fn last(&self, id: ConnectionId) -> &FromServer {
        self.sent[&id].last().expect("the challenge at least was sent")
    }

    fn welcome(&self, id: ConnectionId) -> Option<&Welcome> {
        self.sent[&id].iter().rev().find_map(|message| match message {
            FromServer::Welcome(welcome) => Some(&**welcome),
            _ => None,
        })
    }

    /// Returns the code of the last message, which must be a refusal.
    fn refusal(&self, id: ConnectionId) -> Code {
        match self.last(id) {
            FromServer::Refused { code, message, .. } => {
                assert!(message.contains(' '), "a refusal says what to do: {message}");
                *code
            }
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn drop_connection(&mut self, id: ConnectionId, reason: GoneReason) {
        self.room.closed(id, reason);
        self.settle();
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.room.handle_timeout(self.now_ms);
        self.settle();
    }

    /// Adds a member that is not connected yet.
    fn add(&mut self, config: member::Config) -> usize {
        self.peers.push(Peer { membership: Membership::new(config), connection: None, events: VecDeque::new() });
        self.peers.len() - 1
    }

    /// Lets a member connect if it is due.
    fn connect(&mut self, peer: usize) {
        assert!(self.peers[peer].membership.handle_timeout(self.now_ms), "the member wants a connection now");
        let nonce = self.nonce();
        let id = ConnectionId(self.next);
        self.owner.insert(id, peer);
        self.peers[peer].connection = Some(id);
        self.room.open(self.now_ms, id, Host::Known(HOST.to_owned()), nonce);
        self.settle();
    }

    fn join(&mut self, config: member::Config) -> usize {
        let peer = self.add(config);
        self.connect(peer);
        assert!(self.peers[peer].membership.is_joined());
        assert!(matches!(self.peers[peer].events.pop_front(), Some(Event::Joined(_))));
        peer
    }

    /// Breaks a member's connection: it knows, and the server does too.
    fn break_connection(&mut self, peer: usize, reason: GoneReason) {
        let id = self.peers[peer].connection.take().expect("it is connected");
        self.peers[peer].membership.handle_closed(self.now_ms, 0);
        self.drop_connection(id, reason);
    }

    /// Lets all due time of a member that waits pass, and connects it again.
    fn reconnect(&mut self, peer: usize) {
        self.now_ms = self.now_ms.max(self.peers[peer].membership.poll_timeout().expect("it waits"));
        self.connect(peer);
    }

    fn event(&mut self, peer: usize) -> Option<Event> {
        self.peers[peer].events.pop_front()
    }

    fn ipv4(&self, peer: usize) -> Ipv4Addr {
        self.peers[peer].membership.welcome().expect("it is in").lease.lease.ipv4
    }

    fn resolve(&mut self, peer: usize, query: Query) -> Result<Member, Failure> {
        let asked = self.peers[peer].membership.resolve(query);
        self.settle();
        match self.event(peer) {
            Some(Event::Resolved(id, result)) if id == asked => result,
            other => panic!("expected the answer to {asked}, got {other:?}"),
        }
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            while let Some(output) = self.room.poll_output() {
                moved = true;
                self.carry_out(output);
            }
            for peer in 0..self.peers.len() {
                while let Some(event) = self.peers[peer].membership.poll_event() {
                    self.peers[peer].events.push_back(event);
                }
                let Some(id) = self.peers[peer].connection else {
                    continue;
                };
                while let Some(frame) = self.peers[peer].membership.poll_frame() {
                    moved = true;
                    self.room.frame(self.now_ms, id, &frame);
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(id, message) => self.deliver(id, message),
            Output::Close(id) => {
                self.closed.insert(id);
                let owner = self.owner.get(&id).copied();
                if let Some(peer) = owner.filter(|peer| self.peers[*peer].connection == Some(id)) {
                    self.peers[peer].membership.handle_closed(self.now_ms, 0);
                    self.peers[peer].connection = None;
                }
                self.room.closed(id, GoneReason::Closed);
            }
            Output::Probe(id) => self.probed.push(id),
            Output::Claim(id, claim) => self.claim(id, &claim),
            Output::Enter(place) => drop(self.present.insert(place)),
            Output::Exit(place, kept) => {
                self.present.remove(&place);
                self.leases.exit(&place.0, &place.1, kept, self.now_ms / 1_000);
                self.exits.push((place, kept));
            }
            Output::Find(id, number, network, query) => {
                let found = self.find(&network, &query);
                self.room.found(id, number, found);
            }
            Output::List(id, number, network, after, limit) => {
                let present = |record: &Record| self.present.contains(&(network.clone(), record.key));
                let records = self.leases.after(&network, after).take(limit);
                let found = records.map(|record| (record.clone(), present(record))).collect();
                self.room.listed(id, number, found);
            }
            Output::Forward { connection, id, .. } => self.room.forwarded(connection, id, Err(())),
        }
    }

    fn deliver(&mut self, id: ConnectionId, message: FromServer) {
        if let Some(peer) = self.owner.get(&id).copied() {
            let nonce = self.nonce();
            let frame = emit(&message);
            assert!(frame.len() <= FRAME_LEN_MAX, "the room sends legal frames only");
            self.peers[peer].membership.handle_frame(self.now_ms, &frame, nonce);
        }
        self.sent.entry(id).or_default().push(message);
    }

    fn claim(&mut self, id: ConnectionId, claim: &Claim) {
        let present = &self.present;
        let result = self.leases.claim(claim, |key| present.contains(&(claim.network.clone(), *key)));
        match result {
            Ok((record, _)) if self.claims == Claims::Delayed => self.delayed.push((id, record)),
            result => {
                let nonce = self.nonce();
                self.room.claimed(self.now_ms, id, result.map(|(record, _)| record), nonce);
            }
        }
    }

    fn answer_claims(&mut self) {
        for (id, record) in std::mem::take(&mut self.delayed) {
            let nonce = self.nonce();
            self.room.claimed(self.now_ms, id, Ok(record), nonce);
        }
        self.settle();
    }

    fn find(&self, network: &str, query: &Query) -> Option<(Record, bool)> {
        let record = match query {
            Query::Key(key) => self.leases.by_key(network, key),
            Query::Name(name) => self.leases.by_name(network, name),
            Query::Ip(IpAddr::V4(address)) => self.leases.by_address(network, *address),
            Query::Ip(IpAddr::V6(address)) => {
                self.leases.after(network, None).find(|record| address_v6(network, &record.key) == *address)
            }
        }?;
        Some((record.clone(), self.present.contains(&(network.to_owned(), record.key))))
    }
}

// Joining.

#[test]
fn a_member_is_welcomed_with_a_signed_lease_and_both_addresses() {
    let mut world = World::new();
    let peer = world.join(named(1, "alpha"));
    let welcome = world.peers[peer].membership.welcome().unwrap().clone();
    assert!(welcome.lease.is_signed());
    assert_eq!(welcome.lease.server, server_pair().public());
    let lease = &welcome.lease.lease;
    assert_eq!((lease.key, lease.network.as_str(), lease.name.as_deref()), (key(1), "home", Some("alpha")));
    assert_eq!(lease.ipv4, Ipv4Addr::new(10, 80, 0, 1));
    assert!(lease.not_after > START_MS / 1_000 + welcome.lease_s);
    assert_eq!(welcome.ipv6, address_v6("home", &key(1)));
    assert_eq!(welcome.prefixes.iter().map(|prefix| prefix.len).collect::<Vec<_>>(), [16, 48]);
    assert_eq!(welcome.ice_servers[0].url, "stun:signal.example:8443", "the host is the one that the member called");
    assert_eq!(world.room.member_count(), 1);
    assert!(world.room.has_member("home", &key(1)));
}

#[test]
fn a_member_of_a_network_with_a_secret_is_welcomed() {
    let mut world = World::with(Admission::SecretOnly);
    let peer = world.join(member::Config { network: secret_network(), ..settings(1) });
    assert_eq!(world.peers[peer].membership.welcome().unwrap().lease.lease.network, secret_network().id());
}

#[test]
fn a_network_without_a_secret_is_refused_where_secrets_are_required() {
    let mut world = World::with(Admission::SecretOnly);
    let peer = world.add(settings(1));
    world.connect(peer);
    assert!(matches!(world.event(peer), Some(Event::Rejected(Code::SecretRequired, _))));
    assert!(world.peers[peer].membership.is_ended());
    assert_eq!(world.room.member_count(), 0);
}

#[test]
fn a_proof_for_another_host_is_refused() {
    let mut world = World::new();
    let (id, nonce) = world.open();
    // A server at another name passes the challenge on, and the answer back.
    let relayed = hello(1, &open_network(), "evil.example:8443", &nonce);
    world.say(id, &FromMember::Hello(Box::new(relayed)));
    assert_eq!(world.refusal(id), Code::BadProof);
    assert!(world.closed.contains(&id));
    assert!(world.leases.is_empty(), "nothing is leased to whom proves nothing");
}

#[test]
fn a_proof_for_another_challenge_is_refused() {
    let mut world = World::new();
    let (first, nonce) = world.open();
    let said = hello(1, &open_network(), HOST, &nonce);
    world.say(first, &FromMember::Hello(Box::new(said.clone())));
    assert!(world.welcome(first).is_some());
    let (replayed, _) = world.open();
    world.say(replayed, &FromMember::Hello(Box::new(said)));
    assert_eq!(world.refusal(replayed), Code::BadProof);
}

#[test]
fn a_proof_by_another_key_is_refused() {
    let mut world = World::new();
    let id = world.knock(1, &open_network(), |hello| hello.key = key(2));
    assert_eq!(world.refusal(id), Code::BadProof);
}

#[test]
fn a_wrong_proof_of_the_networks_secret_is_refused() {
    let (right, wrong) = (secret_network(), other_secret_network());
    assert_ne!(right.id(), wrong.id());
    let wrong_signing = wrong.signing().unwrap().clone();
    let mut world = World::new();
    let missing = world.knock(1, &right, |hello| hello.network_proof = None);
    assert_eq!(world.refusal(missing), Code::BadProof);
    // The proof of another secret, presented as it is.
    let (id, nonce) = world.open();
    let mut foreign = hello(1, &right, HOST, &nonce);
    foreign.network_proof = hello(1, &wrong, HOST, &nonce).network_proof;
    world.say(id, &FromMember::Hello(Box::new(foreign)));
    assert_eq!(world.refusal(id), Code::BadProof);
    // The right key, which is no secret, with a signature of another.
    let (id, nonce) = world.open();
    let mut forged = hello(1, &right, HOST, &nonce);
    let (member, member_nonce) = (forged.key, forged.nonce);
    let proven = Proven { host: HOST, network: right.id(), key: &member, server_nonce: &nonce, nonce: &member_nonce };
    let signature = proven.sign(&wrong_signing);
    forged.network_proof = Some(NetworkProof { key: right.signing().unwrap().public(), signature });
    world.say(id, &FromMember::Hello(Box::new(forged)));
    assert_eq!(world.refusal(id), Code::BadProof);
    assert!(world.leases.is_empty());
}

#[test]
fn malformed_hellos_are_refused_each_with_its_own_code() {
    let mut world = World::new();
    let network = open_network();
    let id = world.knock(1, &network, |hello| hello.protocol = VERSION + 1);
    assert_eq!(world.refusal(id), Code::BadVersion);
    for bad in ["", "Home", "a/b", "home~", "home~xyz", "~00000000000000000000000000000000"] {
        let id = world.knock(1, &network, |hello| hello.network = bad.to_owned());
        assert_eq!(world.refusal(id), Code::BadNetwork, "{bad}");
    }
    for bad in ["", "Alpha", "-a", "a.b", &"a".repeat(64)] {
        let id = world.knock(1, &network, |hello| hello.name = Some(bad.to_owned()));
        assert_eq!(world.refusal(id), Code::BadName, "{bad}");
    }
    assert_eq!((world.room.member_count(), world.room.connection_count()), (0, 0));
}

#[test]
fn a_taken_name_and_a_taken_address_are_refused() {
    let mut world = World::new();
    let alpha = world.join(named(1, "alpha"));
    let taken = world.ipv4(alpha);
    let second = world.add(named(2, "alpha"));
    world.connect(second);
    assert!(matches!(world.event(second), Some(Event::Rejected(Code::NameTaken, _))));
    let third = world.add(member::Config { ipv4: Some(taken), ..settings(3) });
    world.connect(third);
    assert!(matches!(world.event(third), Some(Event::Rejected(Code::AddressTaken, _))));
    assert_eq!(world.room.member_count(), 1);
}

#[test]
fn a_connection_without_hello_is_closed_after_ten_seconds() {
    let mut world = World::new();
    let (id, _) = world.open();
    assert_eq!(world.room.poll_timeout(), Some(START_MS + HANDSHAKE_MS));
    assert_eq!(HANDSHAKE_MS, 10_000);
    world.pass(HANDSHAKE_MS - 1);
    assert!(!world.closed.contains(&id));
    world.pass(1);
    assert!(world.closed.contains(&id));
    assert_eq!(world.refusal(id), Code::Unavailable);
    assert_eq!((world.room.connection_count(), world.room.poll_timeout()), (0, None));
}

#[test]
fn frames_that_are_no_messages_do_not_extend_the_handshake() {
    let mut world = World::new();
    let (id, _) = world.open();
    world.pass(HANDSHAKE_MS - 1);
    world.room.frame(world.now_ms, id, "{}");
    world.settle();
    world.pass(1);
    assert!(world.closed.contains(&id));
}

#[test]
fn ten_bad_frames_close_the_connection_and_no_other() {
    let mut world = World::new();
    let good = world.join(settings(1));
    let bad = world.knock(2, &open_network(), |_| {});
    assert_eq!(BAD_FRAMES_MAX, 10);
    let frames = ["", "{", "[]", "null", "\u{0}", r#"{"type":"dance"}"#, r#"{"type":"list"}"#, "0", "{}"];
    for frame in frames {
        world.room.frame(world.now_ms, bad, frame);
        world.settle();
        assert_eq!(world.refusal(bad), Code::BadMessage);
        assert!(!world.closed.contains(&bad), "nine are forgiven");
    }
    world.room.frame(world.now_ms, bad, &" ".repeat(FRAME_LEN_MAX + 1));
    world.settle();
    assert!(world.closed.contains(&bad));
    assert_eq!(world.room.totals.bad_frames, 10);
    assert!(world.room.has_member("home", &key(1)));
    assert!(world.event(good).is_none());
}

/// Its session was once left behind: present for ever, and signals to it were receipted.
#[test]
fn a_member_that_is_put_out_for_bad_frames_is_gone() {
    let mut world = World::new();
    let watcher = world.join(settings(1));
    let bad = world.knock(2, &open_network(), |_| {});
    world.say(bad, &FromMember::Signal { id: 1, to: key(1), payload: "offer".to_owned() });
    assert!(matches!(world.event(watcher), Some(Event::Signal(..))));
    for _ in 0..BAD_FRAMES_MAX {
        world.room.frame(world.now_ms, bad, "{}");
        world.settle();
    }
    assert!(world.closed.contains(&bad));
    assert!(!world.room.has_member("home", &key(2)));
    assert_eq!(world.exits, [(("home".to_owned(), key(2)), Kept::Lease)]);
    assert_eq!(world.event(watcher), Some(Event::Gone(key(2), GoneReason::Closed)));
}

#[test]
fn the_first_message_is_hello_and_only_the_first() {
    let mut world = World::new();
    let (id, nonce) = world.open();
    world.say(id, &FromMember::Renew);
    assert_eq!(world.refusal(id), Code::BadState);
    let said = hello(1, &open_network(), HOST, &nonce);
    world.say(id, &FromMember::Hello(Box::new(said.clone())));
    assert!(world.welcome(id).is_some());
    world.say(id, &FromMember::Hello(Box::new(said)));
    assert_eq!(world.refusal(id), Code::BadState);
    assert!(world.room.has_member("home", &key(1)));
}

#[test]
fn a_join_costs_the_same_number_of_frames_at_10_and_at_10_000_members() {
    let mut world = World::new();
    let network = open_network();
    let cost = |world: &mut World, until: u64| {
        while (world.room.member_count() as u64) < until {
            let n = world.next;
            world.knock(n, &network, |_| {});
        }
        let before = (world.room.totals.sent, world.sent.values().filter(|sent| sent.len() > 2).count());
        let n = world.next;
        let newest = world.knock(n, &network, |_| {});
        assert!(world.welcome(newest).is_some());
        assert_eq!(world.sent.values().filter(|sent| sent.len() > 2).count(), before.1, "nobody else hears of it");
        world.room.totals.sent - before.0
    };
    let few = cost(&mut world, 10);
    let many = cost(&mut world, 10_000);
    assert_eq!((few, many), (2, 2), "the challenge and the welcome");
    assert_eq!(world.room.member_count(), 10_001);
}

// Asking.

#[test]
fn members_are_found_by_name_key_and_both_addresses() {
    let mut world = World::new();
    let (alpha, beta) = (world.join(named(1, "alpha")), world.join(named(2, "beta")));
    let (ipv4, ipv6) = (world.ipv4(beta), address_v6("home", &key(2)));
    let expected = Member { key: key(2), ipv4, ipv6, name: Some("beta".to_owned()), present: true };
    for query in [Query::Name("beta".to_owned()), Query::Key(key(2)), Query::Ip(ipv4.into()), Query::Ip(ipv6.into())] {
        assert_eq!(world.resolve(alpha, query), Ok(expected.clone()));
    }
    world.break_connection(beta, GoneReason::Closed);
    let away = Member { present: false, ..expected };
    assert_eq!(world.resolve(alpha, Query::Name("beta".to_owned())), Ok(away), "its lease is kept");
}

#[test]
fn whoever_is_not_there_is_not_found() {
    let mut world = World::new();
    let alpha = world.join(settings(1));
    let elsewhere =
        world.join(member::Config { network: Arc::new(Network::new("work", None).unwrap()), ..named(2, "beta") });
    assert_eq!(world.ipv4(elsewhere), world.ipv4(alpha), "networks do not share addresses");
    for query in [
        Query::Name("beta".to_owned()),
        Query::Key(key(2)),
        Query::Ip(Ipv4Addr::new(10, 80, 0, 99).into()),
        Query::Ip(Ipv6Addr::LOCALHOST.into()),
    ] {
        assert!(matches!(world.resolve(alpha, query), Err(Failure::Refused(Code::NotFound, _))));
    }
    let signal = world.peers[alpha].membership.signal(key(2), "offer".to_owned());
    world.settle();
    match world.event(alpha) {
        Some(Event::Undelivered { id, failure: Failure::Refused(Code::NotFound, _), .. }) if id == signal => {}
        other => panic!("a signal does not cross networks: {other:?}"),
    }
    assert!(world.event(elsewhere).is_none());
}

#[test]
fn members_are_listed_in_pages_in_the_order_of_their_keys() {
    let mut world = World::new();
    let asker = world.join(settings(1));
    for n in 2..=7 {
        world.join(settings(n));
    }
    let mut expected: Vec<PublicKey> = (1..=7).map(key).collect();
    expected.sort_unstable();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let asked = world.peers[asker].membership.list(after, 3);
        world.settle();
        let page = match world.event(asker) {
            Some(Event::Members(id, Ok(page))) if id == asked => page,
            other => panic!("expected a page, got {other:?}"),
        };
        assert!(page.len() <= 3);
        let Some(last) = page.last() else {
            break;
        };
        after = Some(last.key);
        seen.extend(page.iter().map(|member| member.key));
    }
    assert_eq!(seen, expected);
}

#[test]
fn a_page_has_at_most_256_members_and_fits_in_a_frame() {
    let mut world = World::new();
    let network = open_network();
    for n in 100..400 {
        let name = format!("{n}{}", "x".repeat(60));
        world.knock(n, &network, |hello| hello.name = Some(name));
    }
    // The world checks the length of every frame that a member gets.
    let asker = world.join(settings(1));
    for limit in [256, 257, usize::MAX] {
        world.peers[asker].membership.list(None, limit);
        world.settle();
        match world.event(asker) {
            Some(Event::Members(_, Ok(page))) => assert_eq!(page.len(), LIST_LEN_MAX),
            other => panic!("expected a page, got {other:?}"),
        }
    }
}

// Signals, and who hears of whose end.

#[test]
fn a_signal_reaches_its_recipient_only_and_the_sender_is_told() {
    let mut world = World::new();
    let peers: Vec<usize> = (1..=3).map(|n| world.join(settings(n))).collect();
    let sent = world.peers[peers[0]].membership.signal(key(2), "offer \"1\"\n".to_owned());
    world.settle();
    assert_eq!(world.event(peers[1]), Some(Event::Signal(key(1), "offer \"1\"\n".to_owned())));
    assert_eq!(world.event(peers[0]), Some(Event::Delivered(sent)));
    assert!(world.event(peers[2]).is_none());
    assert_eq!(world.room.totals.signals, 1);
}

#[test]
fn a_payload_beyond_the_limit_is_refused() {
    let mut world = World::new();
    let from = world.knock(1, &open_network(), |_| {});
    let to = world.join(settings(2));
    world.say(from, &FromMember::Signal { id: 1, to: key(2), payload: "x".repeat(PAYLOAD_LEN_MAX + 1) });
    assert_eq!(world.refusal(from), Code::TooMuch);
    assert!(world.event(to).is_none());
    world.say(from, &FromMember::Signal { id: 2, to: key(2), payload: "x".repeat(PAYLOAD_LEN_MAX) });
    assert_eq!(world.last(from), &FromServer::Delivered { id: 2 });
    assert!(matches!(world.event(to), Some(Event::Signal(..))));
}

/// JSON spends six bytes on a control character: such a payload is within its limit and its frame is not.
#[test]
fn a_payload_that_fits_no_frame_fails_alone() {
    let mut world = World::new();
    let (from, to) = (world.join(settings(1)), world.join(settings(2)));
    for payload in ["x".repeat(FRAME_LEN_MAX), "\u{1}".repeat(PAYLOAD_LEN_MAX)] {
        let sent = world.peers[from].membership.signal(key(2), payload);
        while let Some(frame) = world.peers[from].membership.poll_frame() {
            assert!(frame.len() <= FRAME_LEN_MAX, "a longer frame costs the connection, again after each rejoin");
        }
        world.settle();
        match world.event(from) {
            Some(Event::Undelivered { id, .. }) if id == sent => {}
            other => panic!("expected that it is not delivered, got {other:?}"),
        }
    }
    assert!(world.event(to).is_none());
}

#[test]
fn gone_is_told_to_watchers_only() {
    let mut world = World::new();
    let ids: Vec<ConnectionId> = (1..=5).map(|n| world.knock(n, &open_network(), |_| {})).collect();
    world.say(ids[1], &FromMember::Watch { keys: vec![key(1)] });
    world.say(ids[2], &FromMember::Signal { id: 1, to: key(1), payload: "offer".to_owned() });
    world.say(ids[0], &FromMember::Signal { id: 1, to: key(4), payload: "offer".to_owned() });
    let before: Vec<usize> = ids.iter().map(|id| world.sent[id].len()).collect();
    world.drop_connection(ids[0], GoneReason::Timeout);
    for watcher in [1, 2, 3] {
        let told = &world.sent[&ids[watcher]][before[watcher]..];
        assert_eq!(told, [FromServer::Gone { key: key(1), reason: GoneReason::Timeout }], "member {watcher}");
    }
    assert_eq!(world.sent[&ids[4]].len(), before[4], "whoever has nothing to do with it hears nothing");
    assert_eq!(world.sent[&ids[0]].len(), before[0]);
}

#[test]
fn a_watcher_of_another_network_hears_nothing() {
    let mut world = World::new();
    let work = Network::new("work", None).unwrap();
    let watcher = world.knock(2, &work, |_| {});
    world.say(watcher, &FromMember::Watch { keys: vec![key(1)] });
    let watched = world.knock(1, &open_network(), |_| {});
    let before = world.sent[&watcher].len();
    world.drop_connection(watched, GoneReason::Closed);
    assert_eq!(world.sent[&watcher].len(), before);
}

#[test]
fn a_member_that_leaves_is_gone_once_and_for_that_reason() {
    let mut world = World::new();
    let (watcher, leaver) = (world.join(settings(1)), world.join(settings(2)));
    world.peers[watcher].membership.signal(key(2), "offer".to_owned());
    world.settle();
    assert!(matches!(world.event(watcher), Some(Event::Delivered(_))));
    world.peers[leaver].membership.leave();
    world.settle();
    assert_eq!(world.event(watcher), Some(Event::Gone(key(2), GoneReason::Left)));
    assert_eq!(world.event(watcher), None);
    assert!(world.peers[leaver].membership.is_ended());
    assert_eq!((world.room.member_count(), world.room.connection_count()), (1, 1));
}

#[test]
fn a_watch_of_too_many_keys_is_refused() {
    let mut world = World::new();
    let id = world.knock(1, &open_network(), |_| {});
    let keys = |len| (0..len as u64).map(|n| PublicKey::from_bytes(*world_key(n).as_bytes())).collect();
    world.say(id, &FromMember::Watch { keys: keys(WATCH_LEN_MAX + 1) });
    assert_eq!(world.refusal(id), Code::TooMuch);
    let before = world.sent[&id].len();
    world.say(id, &FromMember::Watch { keys: keys(WATCH_LEN_MAX) });
    assert_eq!(world.sent[&id].len(), before);
}

/// A key that costs no curve arithmetic.
fn world_key(n: u64) -> Nonce {
    let mut bytes = [9; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Nonce::new(bytes)
}

/// A stopping server once gave all leases of nameless members back, and they came home to each other's addresses.
#[test]
fn the_lease_of_an_ephemeral_member_is_given_back_when_it_leaves_and_only_then() {
    let mut world = World::new();
    let ephemeral = |n| member::Config { ephemeral: true, ..settings(n) };
    let peers: Vec<usize> = (1..=3).map(|n| world.join(ephemeral(n))).collect();
    let durable = world.join(settings(4));
    world.break_connection(peers[0], GoneReason::Closed);
    world.break_connection(peers[1], GoneReason::Timeout);
    world.peers[peers[2]].membership.leave();
    world.settle();
    world.break_connection(durable, GoneReason::Closed);
    let place = |n| ("home".to_owned(), key(n));
    let expected =
        [(place(1), Kept::Briefly), (place(2), Kept::Briefly), (place(3), Kept::Nothing), (place(4), Kept::Lease)];
    assert_eq!(world.exits, expected);
    let keep = |n| world.leases.by_key("home", &key(n)).map(|record| record.keep_s);
    assert_eq!([1, 2, 3, 4].map(keep), [Some(KEEP_BRIEF_S), Some(KEEP_BRIEF_S), None, Some(KEEP_S)]);
    for peer in [peers[1], peers[0]] {
        let before = world.ipv4(peer);
        world.reconnect(peer);
        assert_eq!(world.ipv4(peer), before);
    }
}

/// A member once kept the proof of a lease that it had given back, and convinced peers of an address that was another
/// member's by then.
#[test]
fn an_address_that_was_given_back_is_nobody_elses_while_its_proof_holds() {
    let mut world = World::new();
    let network = open_network();
    let thief = world.knock(1, &network, |hello| hello.ephemeral = true);
    let proof = world.welcome(thief).unwrap().lease.clone();
    world.say(thief, &FromMember::Leave);
    assert!(world.leases.by_key("home", &key(1)).is_none(), "it is given back");
    let mut n = 2;
    while world.now_ms / 1_000 <= proof.lease.not_after {
        let id = world.knock(n, &network, |_| {});
        assert_ne!(world.welcome(id).unwrap().lease.lease.ipv4, proof.lease.ipv4, "two keys can prove one address");
        world.pass(RENEW_S * 1_000);
        n += 1;
    }
    let id = world.knock(n, &network, |_| {});
    let heir = &world.welcome(id).unwrap().lease.lease;
    assert_eq!(heir.ipv4, proof.lease.ipv4, "it is free once the proof has ended");
    assert!(heir.epoch > proof.lease.epoch);
}

#[test]
fn a_refusal_for_the_sake_of_a_proof_says_when_to_retry() {
    let mut world = World::new();
    let network = open_network();
    let first = world.knock(1, &network, |hello| {
        hello.ephemeral = true;
        hello.name = Some("alpha".to_owned());
    });
    world.say(first, &FromMember::Leave);
    let second = world.knock(2, &network, |hello| hello.name = Some("alpha".to_owned()));
    match world.last(second) {
        FromServer::Refused { code: Code::NameTaken, message, retry_after_ms: Some(ms), .. } => {
            assert_eq!(*ms, (PROOF_S + 1) * 1_000);
            assert!(message.contains("for 3601 more seconds; try again then"), "{message}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    let again = world.knock(1, &network, |hello| hello.name = Some("alpha".to_owned()));
    assert!(world.welcome(again).is_some(), "its own key gets it back at once");
}

/// Any host was once taken: a server in the middle named itself, and passed on the proof that was made for it.
#[test]
fn a_proof_for_a_host_that_the_server_does_not_go_by_is_refused() {
    let mut world = World::new();
    let nonce = world.nonce();
    let id = ConnectionId(world.next);
    world.room.open(world.now_ms, id, Host::Unknown, nonce);
    world.settle();
    world.say(id, &FromMember::Hello(Box::new(hello(1, &open_network(), "evil.example:8443", &nonce))));
    match world.last(id) {
        FromServer::Refused { code: Code::BadProof, message, .. } => assert!(message.contains("--host"), "{message}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
    assert!(world.closed.contains(&id) && world.leases.is_empty());
}

// One live session per key.

#[test]
fn a_session_with_the_resume_token_replaces_the_old_one_at_once_and_silently() {
    let mut world = World::new();
    let network = open_network();
    let watcher = world.join(settings(9));
    let old = world.knock(1, &network, |_| {});
    world.peers[watcher].membership.signal(key(1), "offer".to_owned());
    world.settle();
    assert!(matches!(world.event(watcher), Some(Event::Delivered(_))));
    let first = world.welcome(old).unwrap().clone();
    let new = world.knock(1, &network, |hello| hello.resume = Some(first.resume));
    let second = world.welcome(new).expect("it is in at once");
    assert_eq!(second.lease.lease.ipv4, first.lease.lease.ipv4);
    assert_ne!(second.resume, first.resume, "a token serves once");
    assert!(world.closed.contains(&old) && world.probed.is_empty());
    assert_eq!(world.event(watcher), None, "a member that resumes is not gone");
    world.peers[watcher].membership.signal(key(1), "again".to_owned());
    world.settle();
    assert_eq!(world.last(new), &FromServer::Signal { from: key(9), payload: "again".to_owned() });
    assert!(world.present.contains(&("home".to_owned(), key(1))));
    assert_eq!(world.room.member_count(), 2);
}

#[test]
fn a_second_session_is_refused_when_the_first_is_alive() {
    let mut world = World::new();
    let network = open_network();
    let old = world.knock(1, &network, |_| {});
    let guess = world.nonce();
    let new = world.knock(1, &network, |hello| hello.resume = Some(guess));
    assert_eq!(world.probed, [old]);
    assert!(world.welcome(new).is_none() && !world.closed.contains(&new), "it waits");
    world.pass(CONTENTION_MS - 1);
    assert!(!world.closed.contains(&new));
    world.room.alive(old);
    world.settle();
    assert_eq!(world.refusal(new), Code::InUse);
    assert!(world.closed.contains(&new) && !world.closed.contains(&old));
    world.pass(CONTENTION_MS);
    assert_eq!(world.room.member_count(), 1);
}

/// Addresses had buckets once and keys had none: one key, from many addresses, could have the server sign and write
/// leases without end (threat T7).
#[test]
fn a_key_that_joins_too_often_is_told_to_wait_and_nobody_else_is() {
    let mut world = World::new();
    let network = open_network();
    let mut resume = None;
    for _ in 0..LEASES_BURST {
        let id = world.knock(1, &network, |hello| hello.resume = resume);
        resume = Some(world.welcome(id).expect("it is let in").resume);
    }
    let id = world.knock(1, &network, |hello| hello.resume = resume);
    match world.last(id) {
        FromServer::Refused { code: Code::TooMuch, retry_after_ms: Some(LEASE_INTERVAL_MS), .. } => {}
        other => panic!("expected a refusal, got {other:?}"),
    }
    assert!(world.closed.contains(&id));
    assert!(world.room.has_member("home", &key(1)), "the session that it has stays");
    let other = world.knock(2, &network, |_| {});
    assert!(world.welcome(other).is_some(), "another key is not concerned");
    world.pass(LEASE_INTERVAL_MS);
    let id = world.knock(1, &network, |hello| hello.resume = resume);
    assert!(world.welcome(id).is_some());
}

#[test]
fn a_key_that_renews_too_often_is_refused_and_stays() {
    let mut world = World::new();
    let id = world.knock(1, &open_network(), |_| {});
    let stored = world.sent[&id].len();
    for _ in 0..2 * LEASES_BURST {
        world.say(id, &FromMember::Renew);
    }
    let renewed = world.sent[&id][stored..].iter().filter(|sent| matches!(sent, FromServer::Welcome(_))).count();
    assert_eq!(renewed as u64, LEASES_BURST - 1, "the join has taken one");
    assert_eq!(world.refusal(id), Code::TooMuch);
    assert!(world.room.has_member("home", &key(1)) && !world.closed.contains(&id));
}

/// Otherwise whoever knows a member's key could keep it out.
#[test]
fn hellos_without_proof_use_up_nothing_of_the_key_that_they_name() {
    let mut world = World::new();
    let network = open_network();
    for _ in 0..2 * LEASES_BURST {
        let id = world.knock(1, &network, |hello| hello.nonce = Nonce::new([6; 32]));
        assert_eq!(world.refusal(id), Code::BadProof);
    }
    let id = world.knock(1, &network, |_| {});
    assert!(world.welcome(id).is_some());
}

#[test]
fn the_newest_session_wins_when_the_old_one_is_silent_for_three_seconds() {
    let mut world = World::new();
    let network = open_network();
    let old = world.knock(1, &network, |_| {});
    let new = world.knock(1, &network, |_| {});
    assert_eq!((world.room.poll_timeout(), CONTENTION_MS), (Some(START_MS + 3_000), 3_000));
    world.pass(CONTENTION_MS);
    assert!(world.welcome(new).is_some());
    assert!(world.closed.contains(&old));
    assert_eq!(world.room.member_count(), 1);
}

#[test]
fn a_contender_gets_in_as_soon_as_the_old_session_ends() {
    let mut world = World::new();
    let network = open_network();
    let old = world.knock(1, &network, |_| {});
    let new = world.knock(1, &network, |_| {});
    assert!(world.welcome(new).is_none());
    world.drop_connection(old, GoneReason::Closed);
    assert!(world.welcome(new).is_some(), "there is nobody left to wait for");
}

#[test]
fn a_probe_that_another_key_answers_decides_nothing() {
    let mut world = World::new();
    let network = open_network();
    let old = world.knock(1, &network, |_| {});
    let bystander = world.knock(2, &network, |_| {});
    let new = world.knock(1, &network, |_| {});
    world.room.alive(bystander);
    world.room.alive(new);
    world.settle();
    assert!(!world.closed.contains(&new) && !world.closed.contains(&old));
}

/// A member whose connection broke is back before the server notices the end of the old one, which comes while
/// the directory stores the new lease.
#[test]
fn an_ephemeral_lease_survives_the_end_of_a_session_that_is_being_resumed() {
    let mut world = World::new();
    let network = open_network();
    let old = world.knock(1, &network, |hello| hello.ephemeral = true);
    let resume = world.welcome(old).unwrap().resume;
    world.claims = Claims::Delayed;
    let new = world.knock(1, &network, |hello| {
        hello.ephemeral = true;
        hello.resume = Some(resume);
    });
    world.drop_connection(old, GoneReason::Closed);
    world.claims = Claims::Answered;
    world.answer_claims();
    let held = world.welcome(new).expect("it is in").lease.lease.ipv4;
    let second = world.knock(2, &network, |_| {});
    assert_ne!(world.welcome(second).unwrap().lease.lease.ipv4, held, "two live members have one address");
    assert!(world.leases.by_key("home", &key(1)).is_some(), "a live member has no lease");
}

// What a server keeps for connections that have come and gone.

/// Each connection was once kept in a list of deadlines that nobody cleaned, and the list walked at every message.
#[test]
fn connections_of_the_past_cost_nothing() {
    let mut world = World::new();
    for _ in 0..300_000u32 {
        let nonce = world.nonce();
        let id = ConnectionId(world.next);
        world.room.open(world.now_ms, id, Host::Known(HOST.to_owned()), nonce);
        world.room.closed(id, GoneReason::Closed);
        while world.room.poll_output().is_some() {}
    }
    let started = Instant::now();
    for _ in 0..200 {
        assert_eq!(world.room.poll_timeout(), None);
    }
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_millis(200), "200 looks at the clock took {elapsed:?}");
}

#[test]
fn a_server_that_stops_tells_every_member() {
    let mut world = World::new();
    let peers: Vec<usize> = (1..=3).map(|n| world.join(settings(n))).collect();
    world.room.drain(500);
    world.settle();
    for peer in peers {
        assert_eq!(world.event(peer), Some(Event::Disconnected));
        assert!(!world.peers[peer].membership.is_ended());
    }
    assert_eq!(world.room.member_count(), 0);
}

#[test]
fn a_server_that_stops_closes_connections_that_are_not_members_too() {
    let mut world = World::new();
    let (silent, _) = world.open();
    world.room.drain(500);
    world.settle();
    assert!(world.closed.contains(&silent), "it would keep the server, and its data file, open");
}

// A server that lies.

/// A member and a server that says whatever the test wants.
struct Liar {
    membership: Membership,
}

impl Liar {
    /// A member that was let in honestly.
    fn joined() -> Self {
        let mut liar = Self { membership: Membership::new(settings(1)) };
        liar.challenge();
        liar.say(&FromServer::Welcome(Box::new(honest_welcome())));
        assert!(matches!(liar.membership.poll_event(), Some(Event::Joined(_))));
        liar
    }

    /// A member that waits for its welcome.
    fn joining() -> Self {
        let mut liar = Self { membership: Membership::new(settings(1)) };
        liar.challenge();
        liar
    }

    fn challenge(&mut self) {
        let due = self.membership.poll_timeout().expect("it waits");
        assert!(self.membership.handle_timeout(due.max(START_MS)));
        self.say(&FromServer::Challenge { nonce: Nonce::new([1; 32]) });
        let frame = self.membership.poll_frame().expect("it says hello");
        assert!(matches!(parse::<FromMember>(&frame), Ok(FromMember::Hello(_))));
    }

    fn say(&mut self, message: &FromServer) {
        self.membership.handle_frame(START_MS, &emit(message), Nonce::new([2; 32]));
    }

    /// Asks, and hears an answer about somebody.
    fn answer(&mut self, query: &Query, member: &Member) -> Result<Member, Failure> {
        let id = self.membership.resolve(query.clone());
        self.say(&FromServer::Resolved { id, member: member.clone() });
        match self.membership.poll_event() {
            Some(Event::Resolved(answered, result)) if answered == id => result,
            other => panic!("expected the answer to {id}, got {other:?}"),
        }
    }
}

fn honest_welcome() -> Welcome {
    let lease = unisockets_signaling::protocol::Lease {
        network: "home".to_owned(),
        key: key(1),
        ipv4: Ipv4Addr::new(10, 80, 0, 1),
        name: None,
        epoch: 1,
        not_after: START_MS / 1_000 + PROOF_S,
    };
    Welcome {
        lease: SignedLease::sign(lease, &server_pair()),
        ipv6: address_v6("home", &key(1)),
        prefixes: vec![Prefix { address: Ipv4Addr::new(10, 80, 0, 0).into(), len: 16 }],
        lease_s: RENEW_S,
        resume: Nonce::new([4; 32]),
        ice_servers: Vec::new(),
    }
}

fn honest_member(n: u64) -> Member {
    let ipv4 = Ipv4Addr::new(10, 80, 0, 2);
    Member { key: key(n), ipv4, ipv6: address_v6("home", &key(n)), name: Some("beta".to_owned()), present: true }
}

#[test]
fn an_answer_with_anothers_ipv6_address_is_forged() {
    let mut liar = Liar::joined();
    let honest = honest_member(2);
    let by_key = Query::Key(key(2));
    assert_eq!(liar.answer(&by_key, &honest), Ok(honest.clone()));
    let stolen = Member { ipv6: address_v6("home", &key(3)), ..honest.clone() };
    assert_eq!(liar.answer(&by_key, &stolen), Err(Failure::Forged));
    // The right address for a wrong key: the address proves the key.
    let wanted = Query::Ip(honest.ipv6.into());
    let swapped = Member { key: key(3), ..honest.clone() };
    assert_eq!(liar.answer(&wanted, &swapped), Err(Failure::Forged));
    let outside = Member { ipv4: Ipv4Addr::new(1, 1, 1, 1), ..honest.clone() };
    assert_eq!(liar.answer(&by_key, &outside), Err(Failure::Forged));
    let elsewhere = Member { ipv6: address_v6("work", &key(2)), ..honest };
    assert_eq!(liar.answer(&by_key, &elsewhere), Err(Failure::Forged));
}

#[test]
fn an_answer_about_somebody_else_is_forged() {
    let mut liar = Liar::joined();
    let honest = honest_member(2);
    for query in [
        Query::Key(key(3)),
        Query::Name("gamma".to_owned()),
        Query::Ip(Ipv4Addr::new(10, 80, 0, 3).into()),
        Query::Ip(address_v6("home", &key(3)).into()),
    ] {
        assert_eq!(liar.answer(&query, &honest), Err(Failure::Forged), "{query:?}");
    }
}

#[test]
fn a_page_with_one_forged_member_is_forged() {
    let mut liar = Liar::joined();
    let id = liar.membership.list(None, 10);
    let forged = Member { ipv6: address_v6("home", &key(1)), ..honest_member(3) };
    liar.say(&FromServer::Members { id, members: vec![honest_member(2), forged] });
    assert_eq!(liar.membership.poll_event(), Some(Event::Members(id, Err(Failure::Forged))));
}

#[test]
fn answers_that_nobody_asked_for_are_ignored() {
    let mut liar = Liar::joined();
    let asked = liar.membership.resolve(Query::Key(key(2)));
    liar.say(&FromServer::Resolved { id: asked + 1, member: honest_member(2) });
    liar.say(&FromServer::Members { id: asked, members: Vec::new() });
    liar.say(&FromServer::Challenge { nonce: Nonce::new([1; 32]) });
    assert_eq!(liar.membership.poll_event(), None);
    assert!(liar.membership.is_joined());
}

#[test]
fn a_welcome_that_does_not_hold_is_rejected() {
    let sign = |welcome: &mut Welcome| {
        welcome.lease = SignedLease::sign(welcome.lease.lease.clone(), &server_pair());
    };
    type Lie<'a> = (&'a str, &'a dyn Fn(&mut Welcome));
    let lies: [Lie<'_>; 7] = [
        ("an address that is not the network's", &|welcome| {
            welcome.lease.lease.ipv4 = Ipv4Addr::new(1, 1, 1, 1);
            sign(welcome);
        }),
        ("an altered address", &|welcome| welcome.lease.lease.ipv4 = Ipv4Addr::new(10, 80, 0, 9)),
        ("another server's name on it", &|welcome| welcome.lease.server = key(8)),
        ("an altered epoch", &|welcome| welcome.lease.lease.epoch += 1),
        ("another member's lease", &|welcome| {
            welcome.lease.lease.key = key(2);
            sign(welcome);
        }),
        ("another network's lease", &|welcome| {
            welcome.lease.lease.network = "work".to_owned();
            sign(welcome);
        }),
        ("another's IPv6 address", &|welcome| welcome.ipv6 = address_v6("home", &key(2))),
    ];
    for (what, lie) in lies {
        let mut liar = Liar::joining();
        let mut welcome = honest_welcome();
        lie(&mut welcome);
        liar.say(&FromServer::Welcome(Box::new(welcome)));
        match liar.membership.poll_event() {
            Some(Event::Rejected(Code::BadProof, text)) => assert_eq!(text, Failure::Forged.to_string()),
            other => panic!("{what}: {other:?}"),
        }
        assert!(liar.membership.is_ended() && liar.membership.welcome().is_none(), "{what}");
    }
}

#[test]
fn a_conversation_that_is_over_stays_over() {
    for message in [FromServer::Welcome(Box::new(honest_welcome())), FromServer::Draining { retry_after_ms: 1 }] {
        let mut liar = Liar::joined();
        liar.membership.leave();
        liar.say(&message);
        assert!(liar.membership.is_ended(), "{message:?}");
        assert_eq!(liar.membership.poll_timeout(), None);
    }
}

#[test]
fn a_member_survives_any_frame() {
    let mut liar = Liar::joined();
    let frames = ["", "{", "\u{0}", r#"{"type":"welcome"}"#, r#"{"type":"gone","key":"x","reason":"closed"}"#];
    for frame in frames.into_iter().chain([&*"[".repeat(FRAME_LEN_MAX), &*" ".repeat(FRAME_LEN_MAX + 1)]) {
        liar.membership.handle_frame(START_MS, frame, Nonce::new([2; 32]));
        assert_eq!(liar.membership.poll_event(), None);
        assert!(liar.membership.is_joined());
    }
}

// When the connection breaks.

#[test]
fn pauses_between_attempts_grow_and_are_bounded() {
    for random in [0, 1, u64::MAX] {
        let mut membership = Membership::new(settings(1));
        let (mut now_ms, mut pauses) = (START_MS, Vec::new());
        for _ in 0..80 {
            assert!(membership.handle_timeout(now_ms), "it is due");
            membership.handle_closed(now_ms, random);
            let until_ms = membership.poll_timeout().unwrap();
            assert!(!membership.handle_timeout(until_ms - 1), "it is not due before");
            pauses.push(until_ms - now_ms);
            now_ms = until_ms;
        }
        assert!((100..=200).contains(&pauses[0]), "{pauses:?}");
        assert!(pauses.iter().all(|pause| (100..=15_000).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().skip(10).all(|pause| *pause >= 7_500), "{pauses:?}");
        assert_eq!(membership.poll_event(), None, "it was never in");
    }
}

#[test]
fn members_do_not_come_back_all_at_once() {
    let pause = |random| {
        let mut liar = Liar::joined();
        liar.membership.handle_closed(START_MS, random);
        liar.membership.poll_timeout().unwrap() - START_MS
    };
    let pauses: HashSet<u64> = (0..50).map(pause).collect();
    assert!(pauses.len() > 25, "{pauses:?}");
}

#[test]
fn a_join_resets_the_pause() {
    let mut world = World::new();
    let peer = world.join(settings(1));
    world.break_connection(peer, GoneReason::Closed);
    for _ in 0..8 {
        let due = world.peers[peer].membership.poll_timeout().unwrap();
        assert!(world.peers[peer].membership.handle_timeout(due));
        world.peers[peer].membership.handle_closed(due, 0);
        world.now_ms = due;
    }
    world.reconnect(peer);
    assert!(world.peers[peer].membership.is_joined());
    world.break_connection(peer, GoneReason::Closed);
    assert!(world.peers[peer].membership.poll_timeout().unwrap() <= world.now_ms + 200);
}

#[test]
fn requests_of_before_are_asked_again_after_the_rejoin() {
    let mut world = World::new();
    let alpha = world.join(settings(1));
    world.join(named(2, "beta"));
    // The frame is on its way when the connection breaks: it is lost.
    let resolve = world.peers[alpha].membership.resolve(Query::Name("beta".to_owned()));
    while world.peers[alpha].membership.poll_frame().is_some() {}
    world.break_connection(alpha, GoneReason::Closed);
    // This one is asked while there is no connection.
    let list = world.peers[alpha].membership.list(None, 10);
    assert_eq!(world.peers[alpha].membership.poll_frame(), None);
    world.reconnect(alpha);
    assert_eq!(world.event(alpha), Some(Event::Disconnected));
    assert!(matches!(world.event(alpha), Some(Event::Joined(_))));
    let answers: Vec<Event> = std::iter::from_fn(|| world.event(alpha)).collect();
    let has = |is: &dyn Fn(&Event) -> bool| answers.iter().any(is);
    assert!(has(&|event| matches!(event, Event::Resolved(id, Ok(_)) if *id == resolve)), "{answers:?}");
    assert!(has(&|event| matches!(event, Event::Members(id, Ok(_)) if *id == list)), "{answers:?}");
    assert_eq!(answers.len(), 2, "each is answered once");
    // What was answered is not asked again.
    world.break_connection(alpha, GoneReason::Closed);
    world.reconnect(alpha);
    assert_eq!(world.event(alpha), Some(Event::Disconnected));
    assert!(matches!(world.event(alpha), Some(Event::Joined(_))));
    assert_eq!(world.event(alpha), None);
}

/// Up to 1,024 offers of before an outage once went out after it, and what found no room was taken for a peer's end.
#[test]
fn payloads_are_not_kept_across_connections_and_say_that_there_was_none() {
    let mut world = World::new();
    let (alpha, beta) = (world.join(settings(1)), world.join(settings(2)));
    let lost = |id| Event::Undelivered { id, to: key(2), failure: Failure::NotConnected };
    assert!(!Failure::NotConnected.is_not_found() && !Failure::Busy.is_not_found());
    // The frame is on its way when the connection breaks.
    let sent = world.peers[alpha].membership.signal(key(2), "offer".to_owned());
    while world.peers[alpha].membership.poll_frame().is_some() {}
    world.break_connection(alpha, GoneReason::Closed);
    let without = world.peers[alpha].membership.signal(key(2), "another".to_owned());
    world.reconnect(alpha);
    assert_eq!(world.event(alpha), Some(Event::Disconnected));
    assert_eq!([world.event(alpha), world.event(alpha)], [Some(lost(sent)), Some(lost(without))]);
    assert!(matches!(world.event(alpha), Some(Event::Joined(_))));
    assert_eq!((world.event(alpha), world.event(beta)), (None, None), "nothing stale goes out");
    // A server that is about to stop takes nothing more either.
    let sent = world.peers[alpha].membership.signal(key(2), "offer".to_owned());
    let draining = emit(&FromServer::Draining { retry_after_ms: 500 });
    world.peers[alpha].membership.handle_frame(world.now_ms, &draining, Nonce::new([2; 32]));
    assert_eq!(world.peers[alpha].membership.poll_event(), Some(Event::Disconnected));
    assert_eq!(world.peers[alpha].membership.poll_event(), Some(lost(sent)));
}

#[test]
fn too_many_requests_without_a_connection_are_refused_and_not_kept() {
    let mut membership = Membership::new(settings(1));
    for _ in 0..1_024 {
        membership.resolve(Query::Key(key(2)));
    }
    assert_eq!(membership.poll_event(), None);
    let id = membership.resolve(Query::Key(key(2)));
    assert_eq!(membership.poll_event(), Some(Event::Resolved(id, Err(Failure::Busy))));
}

/// A server without a file forgets all leases when it restarts; who came back first once got the lowest address.
#[test]
fn a_member_asks_a_new_server_for_the_address_and_the_name_that_it_had() {
    let mut world = World::new();
    let (first, second) = (world.join(settings(1)), world.join(named(2, "beta")));
    let before = [first, second].map(|peer| world.ipv4(peer));
    world.break_connection(first, GoneReason::Closed);
    world.break_connection(second, GoneReason::Closed);
    world.leases = Leases::new(PREFIX_V4);
    world.reconnect(second);
    world.reconnect(first);
    assert_eq!([first, second].map(|peer| world.ipv4(peer)), before);
    let name = world.peers[second].membership.welcome().unwrap().lease.lease.name.clone();
    assert_eq!(name.as_deref(), Some("beta"));
}

#[test]
fn a_member_whose_address_and_name_are_anothers_by_now_comes_in_without_them() {
    let mut world = World::new();
    let peer = world.join(settings(1));
    let had = world.ipv4(peer);
    world.break_connection(peer, GoneReason::Closed);
    world.leases = Leases::new(PREFIX_V4);
    world.join(settings(2));
    world.reconnect(peer);
    assert!(!world.peers[peer].membership.is_ended(), "it did not insist on them");
    world.reconnect(peer);
    assert!(world.peers[peer].membership.is_joined());
    assert_ne!(world.ipv4(peer), had);
    // What its configuration names is another matter.
    let config = member::Config { ipv4: Some(had), ..settings(3) };
    let insisting = world.add(config);
    world.connect(insisting);
    assert!(matches!(world.event(insisting), Some(Event::Rejected(Code::AddressTaken, _))));
}

#[test]
fn a_member_that_resumes_replaces_its_own_old_session_and_keeps_its_addresses() {
    let mut world = World::new();
    world.join(settings(1));
    let peer = world.join(settings(2));
    let ipv4 = world.ipv4(peer);
    // The member knows that its connection is gone, the server does not.
    let old = world.peers[peer].connection.take().unwrap();
    world.peers[peer].membership.handle_closed(world.now_ms, 0);
    world.reconnect(peer);
    assert!(world.peers[peer].membership.is_joined());
    assert!(world.closed.contains(&old));
    assert!(world.probed.is_empty(), "the token proves that it is the same");
    assert_eq!(world.ipv4(peer), ipv4);
}

#[test]
fn a_lease_is_renewed_before_it_ends() {
    let mut world = World::new();
    let peer = world.join(settings(1));
    let before = world.peers[peer].membership.welcome().unwrap().clone();
    world.now_ms = world.peers[peer].membership.poll_timeout().unwrap();
    assert!(world.now_ms / 1_000 < before.lease.lease.not_after);
    assert!(!world.peers[peer].membership.handle_timeout(world.now_ms), "the connection stays");
    world.settle();
    let after = world.peers[peer].membership.welcome().unwrap().clone();
    assert!(after.lease.lease.not_after > before.lease.lease.not_after && after.lease.is_signed());
    assert_eq!((after.lease.lease.ipv4, after.lease.lease.epoch), (before.lease.lease.ipv4, before.lease.lease.epoch));
    assert_eq!(world.room.totals.joins, 1);
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    for stage in ["no challenge", "no welcome"] {
        let mut membership = Membership::new(settings(1));
        assert!(membership.handle_timeout(START_MS));
        if stage == "no welcome" {
            let challenge = emit(&FromServer::Challenge { nonce: Nonce::new([1; 32]) });
            membership.handle_frame(START_MS, &challenge, Nonce::new([2; 32]));
        }
        let due = membership.poll_timeout().expect("there is a deadline");
        assert!(due <= START_MS + 15_000, "{stage}");
        assert!(membership.handle_timeout(due), "the shell shall connect anew: {stage}");
    }
}

/// A member whose hello came too late over a slow line was once rejected for good.
#[test]
fn a_member_whose_hello_comes_too_late_tries_again() {
    let mut world = World::new();
    let (id, nonce) = world.open();
    let mut membership = Membership::new(settings(1));
    assert!(membership.handle_timeout(START_MS));
    membership.handle_frame(START_MS, &emit(&FromServer::Challenge { nonce }), Nonce::new([2; 32]));
    world.pass(HANDSHAKE_MS);
    let code = world.refusal(id);
    let refused = FromServer::Refused { id: None, code, message: String::new(), retry_after_ms: None };
    membership.handle_frame(world.now_ms, &emit(&refused), Nonce::new([2; 32]));
    membership.handle_closed(world.now_ms, 0);
    assert_eq!(membership.poll_event(), None);
    let due = membership.poll_timeout().expect("it comes back");
    assert!(membership.handle_timeout(due), "the shell shall connect anew");
}

/// The server closes a connection that it refused, or drains: that end is no reason to come back earlier.
#[test]
fn a_server_that_asks_for_patience_gets_it() {
    let refused = |code| FromServer::Refused {
        id: None,
        code,
        message: "try again later".to_owned(),
        retry_after_ms: Some(5_000),
    };
    for message in [refused(Code::TooMuch), refused(Code::Unavailable)] {
        let mut liar = Liar::joining();
        liar.say(&message);
        liar.membership.handle_closed(START_MS, 0);
        assert!(liar.membership.poll_timeout() >= Some(START_MS + 5_000), "{message:?}");
    }
    let mut liar = Liar::joined();
    liar.say(&FromServer::Draining { retry_after_ms: 5_000 });
    liar.membership.handle_closed(START_MS, 0);
    assert!(liar.membership.poll_timeout() >= Some(START_MS + 5_000), "draining");
    // A server with too many connections of one address says so before any challenge.
    let mut membership = Membership::new(settings(1));
    assert!(membership.handle_timeout(START_MS));
    membership.handle_frame(START_MS, &emit(&refused(Code::TooMuch)), Nonce::new([2; 32]));
    membership.handle_closed(START_MS, 0);
    assert!(membership.poll_timeout() >= Some(START_MS + 5_000), "crowded");
}
