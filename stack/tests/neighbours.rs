//! One node with many peers: what one of them does, or takes, is not at the expense of the others.

mod wire;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use unisockets_stack::{
    Error, Event, Family, Instant, Kind, PathConfig, PathEnd, PathId, Prefix, Readiness, Shutdown, SocketId,
    SocketOption, Stack,
};

const SECOND: Duration = Duration::from_secs(1);
const CONFIG: PathConfig = PathConfig { mtu: 16_384, verify_checksums: true };
const NODE_MEMORY_MAX: usize = 512 << 20;
const ORPHANS_MAX: usize = 8_192;
const BACKLOG_MAX: usize = 4_096;
const FLOWS_PEER_MAX: usize = 57_344;

struct Peer {
    stack: Stack,
    /// The path to the node in the middle.
    path: PathId,
    /// The path of the node in the middle to this peer.
    from: PathId,
    /// Whether what it sends arrives nowhere, and it hears nothing.
    cut: bool,
}

/// A node in the middle, and its peers.
struct Star {
    middle: Stack,
    peers: Vec<Peer>,
    now: Instant,
}

fn stack(own: IpAddr, seed: u128) -> Stack {
    let mut stack = Stack::new(seed << 64 | 0x5eed);
    stack.set_addresses(&[own], &[Prefix { address: "10.80.0.0".parse().unwrap(), len: 16 }]);
    stack
}

fn middle() -> IpAddr {
    "10.80.0.1".parse().unwrap()
}

impl Star {
    fn new(peers: usize) -> Star {
        let mut star = Star { middle: stack(middle(), 1), peers: Vec::new(), now: Instant::from_millis(1_000) };
        for number in 0..peers {
            let address = Star::address(number);
            let mut stack = stack(address, number as u128 + 2);
            let path = stack.open_path(CONFIG).unwrap();
            stack.add_route(star.now, middle(), path);
            stack.path_up(star.now, path, CONFIG);
            let from = star.link(number);
            star.peers.push(Peer { stack, path, from, cut: false });
        }
        star
    }

    fn address(number: usize) -> IpAddr {
        format!("10.80.1.{number}").parse().unwrap()
    }

    /// Links the node in the middle to a peer; returns its path.
    fn link(&mut self, number: usize) -> PathId {
        let path = self.middle.open_path(CONFIG).unwrap();
        self.middle.add_route(self.now, Star::address(number), path);
        self.middle.path_up(self.now, path, CONFIG);
        path
    }

    /// Carries packets until everybody is silent.
    fn flush(&mut self) {
        let mut packet = Vec::new();
        loop {
            let mut silent = true;
            for peer in &mut self.peers {
                while peer.stack.poll_packet(self.now, peer.path, wire::ROOM, &mut packet).is_some() {
                    if !peer.cut {
                        let _ = self.middle.handle_packet(self.now, peer.from, &packet);
                    }
                    packet.clear();
                    silent = false;
                }
                while self.middle.poll_packet(self.now, peer.from, wire::ROOM, &mut packet).is_some() {
                    if !peer.cut {
                        let _ = peer.stack.handle_packet(self.now, peer.path, &packet);
                    }
                    packet.clear();
                    silent = false;
                }
            }
            if silent {
                return;
            }
        }
    }

    fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        self.flush();
        loop {
            let stacks = || std::iter::once(&self.middle).chain(self.peers.iter().map(|peer| &peer.stack));
            let due = stacks().filter_map(Stack::poll_timeout).min().filter(|due| *due <= until);
            let Some(due) = due else {
                break;
            };
            self.now = due.max(self.now + Duration::from_micros(100));
            self.middle.handle_timeout(self.now);
            for peer in &mut self.peers {
                peer.stack.handle_timeout(self.now);
            }
            self.flush();
        }
        self.now = until;
    }

    fn listen(&mut self, port: u16, backlog: usize) -> SocketId {
        let socket = self.middle.socket(Kind::Tcp, Family::V4).unwrap();
        self.middle.bind(socket, SocketAddr::new("0.0.0.0".parse().unwrap(), port)).unwrap();
        self.middle.listen(socket, backlog).unwrap();
        socket
    }

    fn start(&mut self, peer: usize, port: u16) -> SocketId {
        let stack = &mut self.peers[peer].stack;
        let socket = stack.socket(Kind::Tcp, Family::V4).unwrap();
        assert_eq!(stack.connect(self.now, socket, SocketAddr::new(middle(), port)), Err(Error::InProgress));
        socket
    }

    /// Connects a peer to a listener of the node in the middle; returns the peer's socket and the node's.
    fn pair(&mut self, peer: usize, port: u16, listener: SocketId) -> (SocketId, SocketId) {
        let client = self.start(peer, port);
        self.run(SECOND / 100);
        let (server, _) = self.middle.accept(self.now, listener).expect("a connection");
        (client, server)
    }

    /// Moves bytes from a peer to the node in the middle.
    fn transfer(&mut self, peer: usize, (client, server): (SocketId, SocketId), data: &[u8]) -> Vec<u8> {
        let (mut sent, mut got) = (0, Vec::new());
        let (mut buffer, limit) = (vec![0; 1 << 16], self.now + 60 * SECOND);
        while got.len() < data.len() && self.now < limit {
            if let Ok(len) = self.peers[peer].stack.send(self.now, client, &data[sent..]) {
                sent += len;
            }
            self.run(SECOND / 100);
            while let Ok(len) = self.middle.recv(server, &mut buffer) {
                got.extend_from_slice(&buffer[..len]);
                if len == 0 {
                    break;
                }
            }
        }
        got
    }
}

/// SYNs that waited for a place took those of the connections that ended with their peer, on a path that was no more:
/// nothing ended them, and a listener was shut for everybody after a few such peers.
#[test]
fn a_peer_that_leaves_takes_its_waiting_syns_along() {
    let mut star = Star::new(2);
    let listener = star.listen(80, 8);
    for _ in 0..20 {
        for _ in 0..40 {
            star.start(0, 80);
        }
        star.flush();
        assert!(star.middle.connection_count() >= 8);
        // The member leaves, comes back, and nothing of its former life is left.
        let from = star.peers[0].from;
        star.middle.end_path(star.now, from, PathEnd::Reset);
        assert_eq!(star.middle.connection_count(), 0);
        star.peers[0].stack = stack(Star::address(0), 9);
        let path = star.peers[0].stack.open_path(CONFIG).unwrap();
        star.peers[0].stack.add_route(star.now, middle(), path);
        star.peers[0].stack.path_up(star.now, path, CONFIG);
        star.peers[0].path = path;
        star.peers[0].from = star.link(0);
        star.run(SECOND);
    }
    // All places are there for another one.
    for _ in 0..8 {
        star.start(1, 80);
    }
    star.flush();
    for _ in 0..8 {
        assert!(star.middle.accept(star.now, listener).is_ok());
    }
}

/// An address that another member has now, and a peer that has restarted under its key: both as above.
#[test]
fn an_address_that_moves_and_a_restart_take_waiting_syns_along() {
    for restart in [false, true] {
        let mut star = Star::new(2);
        let listener = star.listen(80, 4);
        for _ in 0..12 {
            star.start(0, 80);
        }
        star.flush();
        let (from, other, now) = (star.peers[0].from, star.peers[1].from, star.now);
        if restart {
            star.middle.reset_flows(now, from);
        } else {
            star.middle.add_route(now, Star::address(0), other);
        }
        assert_eq!(star.middle.connection_count(), 0, "restart: {restart}");
        let kept = star.start(1, 80);
        star.flush();
        assert_eq!(star.peers[1].stack.take_error(kept), Ok(None));
        assert!(star.middle.accept(star.now, listener).is_ok());
    }
}

/// Whoever has little goes on, and is let in, though others have used up all memory; and so does a quiet connection of
/// one who has used up its own.
#[test]
fn who_has_little_goes_on_beside_full_memory() {
    let data = wire::pattern(1 << 20);
    let mut star = Star::new(10);
    let listener = star.listen(80, 1_024);
    let honest = star.pair(9, 80, listener);
    let own = star.pair(0, 80, listener);
    // Each fills its allowance, and nothing of it is read.
    let clients: Vec<(usize, SocketId)> =
        (0..9 * 64).map(|number| (number / 64, star.start(number / 64, 80))).collect();
    star.flush();
    for (peer, client) in clients {
        let _ = star.peers[peer].stack.send(star.now, client, &data);
        star.flush();
    }
    star.run(3 * SECOND);
    let committed = star.middle.committed_bytes();
    assert!((NODE_MEMORY_MAX..NODE_MEMORY_MAX + (8 << 20)).contains(&committed), "{committed}: memory is not used up");
    for (peer, pair) in [(9, honest), (0, own)] {
        let got = star.transfer(peer, pair, &data[..200_000]);
        assert!(got == data[..200_000], "peer {peer}: {} bytes have come", got.len());
    }
    // What has come before is acknowledged again, also where nothing new has room: else its peer repeats it for ever.
    let (own_client, first) = (own.0, star.peers[0].path);
    let mut seen = Vec::new();
    star.run(SECOND);
    assert!(star.peers[0].stack.send(star.now, own_client, &data[..1_000]).is_ok());
    assert!(star.peers[0].stack.poll_packet(star.now, first, wire::ROOM, &mut seen).is_some());
    let from = star.peers[0].from;
    star.middle.handle_packet(star.now, from, &seen).unwrap();
    for _ in 0..8 {
        let _ = star.peers[0].stack.send(star.now, own_client, &data[..1_000]);
        star.run(SECOND);
    }
    assert_eq!(star.middle.handle_packet(star.now, from, &seen), Ok(()));
    assert!(star.middle.poll_packet(star.now, from, wire::ROOM, &mut Vec::new()).is_some(), "acknowledged again");
    while star.middle.accept(star.now, listener).is_ok() {}
    let new = star.pair(9, 80, listener);
    let got = star.transfer(9, new, b"hello");
    assert_eq!(got, b"hello");
    assert!(star.middle.committed_bytes() < NODE_MEMORY_MAX + (8 << 20));
}

/// A look at what is unread takes nothing out of the ring, wherever that turns: nothing is held beside it.
#[test]
fn bytes_that_are_looked_at_stay_where_they_are() {
    let mut star = Star::new(1);
    let listener = star.listen(80, 4);
    let (client, server) = star.pair(0, 80, listener);
    let data = wire::pattern(900_000);
    let mut part = vec![0; 600_000];
    assert_eq!(star.peers[0].stack.send(star.now, client, &data), Ok(data.len()));
    star.run(SECOND);
    assert_eq!(star.middle.recv(server, &mut part), Ok(part.len()));
    assert_eq!(star.peers[0].stack.send(star.now, client, &data[..600_000]), Ok(600_000));
    star.run(SECOND);
    let data = [&data[600_000..], &data[..600_000]].concat();
    let (before, mut buffer) = (star.middle.committed_bytes(), vec![0; data.len()]);
    for len in [1, 440_000, 460_000, data.len()] {
        buffer.fill(0);
        assert_eq!(star.middle.peek(server, &mut buffer[..len]), Ok(len));
        assert!(buffer[..len] == data[..len]);
    }
    assert_eq!(star.middle.committed_bytes(), before);
    buffer.fill(0);
    assert_eq!(star.middle.recv(server, &mut buffer), Ok(data.len()));
    assert!(buffer == data);
}

/// All orphans are bounded; a peer that has few keeps its own.
#[test]
fn orphans_of_all_peers_are_bounded() {
    let mut star = Star::new(4);
    let listener = star.listen(80, 4_096);
    let mut held = Vec::new();
    let mut few = Vec::new();
    for peer in 0..4 {
        let (groups, count) = if peer == 3 { (1, 10) } else { (6, 512) };
        for _ in 0..groups {
            for _ in 0..count {
                star.start(peer, 80);
            }
            star.flush();
            for _ in 0..count {
                let (server, _) = star.middle.accept(star.now, listener).unwrap();
                if peer == 3 { few.push(server) } else { held.push(server) }
            }
        }
        star.peers[peer].cut = true;
    }
    for server in held.into_iter().chain(few) {
        star.middle.send(star.now, server, b"unheard").unwrap();
        star.middle.close(star.now, server);
    }
    star.flush();
    let of_last = star.peers[3].from;
    assert!(star.middle.orphan_count() <= ORPHANS_MAX + 64, "{}", star.middle.orphan_count());
    assert!(star.middle.orphan_count() > ORPHANS_MAX / 2);
    assert_eq!(star.middle.flow_count(of_last), 10, "whoever has few keeps them");
}

/// Sockets that found no room and were closed are forgotten.
#[test]
fn a_lost_path_remembers_no_sockets_that_are_closed() {
    let mut star = Star::new(1);
    let from = star.peers[0].from;
    star.middle.path_lost(from);
    let to = SocketAddr::new(Star::address(0), 9);
    let mut woken = 0;
    for _ in 0..2_000 {
        let socket = star.middle.socket(Kind::Udp, Family::V4).unwrap();
        let sent = star.middle.send_to(star.now, socket, &[7; 1_000], Some(to));
        star.middle.close(star.now, socket);
        woken += usize::from(sent == Err(Error::Again));
    }
    assert!(woken > 1_000, "the queue was full");
    let waiting = star.middle.socket(Kind::Udp, Family::V4).unwrap();
    assert_eq!(star.middle.send_to(star.now, waiting, &[7; 1_000], Some(to)), Err(Error::Again));
    assert!(!star.middle.readiness(waiting).contains(Readiness::WRITABLE));
    star.middle.path_up(star.now, from, CONFIG);
    star.flush();
    assert!(star.middle.readiness(waiting).contains(Readiness::WRITABLE), "who still waits is told");
}

/// Who waits for more than has come (MSG_WAITALL, SO_RCVLOWAT) gets what there is where memory is used up: nothing more
/// comes before something is read, and all connections of a peer stood still.
#[test]
fn who_waits_for_more_than_there_is_room_for_gets_what_has_come() {
    let mut star = Star::new(1);
    let listener = star.listen(80, 256);
    let data = wire::pattern(1 << 20);
    let clients: Vec<SocketId> = (0..100).map(|_| star.start(0, 80)).collect();
    star.flush();
    let servers: Vec<SocketId> = (0..100).map(|_| star.middle.accept(star.now, listener).unwrap().0).collect();
    for server in &servers[50..] {
        star.middle.set_option(*server, SocketOption::ReceiveLowWater(1 << 19)).unwrap();
    }
    let (mut sent, mut got) = (vec![0; 100], vec![0; 100]);
    let mut buffer = vec![0; data.len()];
    let limit = star.now + 120 * SECOND;
    while got.iter().any(|got| *got < data.len()) {
        assert!(star.now < limit, "all stand still: {got:?}");
        for (client, sent) in clients.iter().zip(&mut sent) {
            if *sent < data.len() {
                *sent += star.peers[0].stack.send(star.now, *client, &data[*sent..]).unwrap_or(0);
            } else {
                // What is left may be less than the low water mark.
                let _ = star.peers[0].stack.shutdown(star.now, *client, Shutdown::Write);
            }
        }
        star.run(SECOND / 10);
        // Programs that sleep until they are told.
        let told: Vec<Event> = std::iter::from_fn(|| star.middle.poll_event()).collect();
        for (number, server) in servers.iter().enumerate() {
            let rest = data.len() - got[number];
            if rest == 0 || !told.contains(&Event::Ready(*server)) {
                continue;
            }
            let readable = star.middle.readiness(*server).contains(Readiness::READABLE);
            let least = if number < 50 { rest } else { 1 };
            if readable && let Ok(len) = star.middle.recv_at_least(*server, &mut buffer[..rest], least) {
                assert!(buffer[..len] == data[got[number]..got[number] + len], "{number}");
                got[number] += len;
            }
        }
    }
}

/// Connections of one peer leave places for those of others (threat T4).
#[test]
fn one_peer_does_not_take_all_connections() {
    let mut star = Star::new(2);
    for port in 0..16 {
        star.listen(80 + port, BACKLOG_MAX);
    }
    let last = star.listen(79, BACKLOG_MAX);
    for port in 0..16 {
        for _ in 0..BACKLOG_MAX {
            star.start(0, 80 + port);
            star.flush();
        }
    }
    assert_eq!(star.middle.flow_count(star.peers[0].from), FLOWS_PEER_MAX);
    let (client, _) = star.pair(1, 79, last);
    assert_eq!(star.peers[1].stack.take_error(client), Ok(None));
}
