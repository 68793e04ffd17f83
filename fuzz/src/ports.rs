//! Who holds which port, and who gets which packet: one stack against a model that knows sets of addresses only.
//!
//! The model lists every address that a socket takes packets for. Two sockets are in each other's way if they share
//! one.

use std::net::{IpAddr, SocketAddr};

use unisockets_stack::{DropReason, Error, Family, Instant, Kind, PathConfig, SocketId, SocketOption, Stack};

use crate::headers::{self, Segment};
use crate::packet::{ROOM, Side, v4, v6};
use crate::script::Script;

/// Steps of one script.
const STEPS_MAX: usize = 300;
/// Sockets of a script.
const SOCKETS_MAX: usize = 24;
/// Ports that scripts use: few, so that they meet; 0 asks for any.
const PORTS: &[u16] = &[80, 53, 7, 0];
/// What an ephemeral port is (ip_local_port_range of Linux).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;
/// Far more than a script has SYNs for.
const BACKLOG: usize = 4_096;
const NOW: Instant = Instant::from_millis(1_000);

/// What one step does; the numbers are part of the corpus.
pub(crate) mod op {
    crate::script::steps! {
        SOCKET REUSE ONLY_V6 BIND LISTEN CONNECT JOIN LEAVE CLOSE DATAGRAM SYN ECHO
    }
}

/// A socket as the model knows it.
struct Model {
    socket: SocketId,
    kind: Kind,
    six: bool,
    only_six: bool,
    /// SO_REUSEADDR; scripts set it before they bind.
    reuse: bool,
    /// SO_REUSEPORT, likewise.
    share: bool,
    listening: bool,
    /// The addresses that it takes packets for, and the port.
    claim: Option<(Vec<IpAddr>, u16)>,
    peer: Option<SocketAddr>,
    groups: Vec<IpAddr>,
}

struct World {
    side: Side,
    /// In the order in which they were bound.
    models: Vec<Model>,
    /// The sender's port of the next SYN: every connection is a new one.
    next_port: u16,
}

fn group(six: bool) -> IpAddr {
    if six { [0xff02, 0, 0, 0, 0, 0, 0, 0x77].into() } else { [239, 1, 2, 3].into() }
}

fn broadcast() -> IpAddr {
    [10, 80, 255, 255].into()
}

/// Every address that a packet of a script can have.
fn universe() -> Vec<IpAddr> {
    let loopback: [IpAddr; 2] = [[127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into()];
    [&[v4(0), v6(0), group(false), group(true), broadcast()], &loopback[..]].concat()
}

fn is_for_many(address: IpAddr) -> bool {
    address.is_multicast() || address == broadcast()
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let side = Side::new(0, PathConfig { mtu: 1_500, verify_checksums: true });
    let mut world = World { side, models: Vec::new(), next_port: 1_000 };
    for _ in 0..STEPS_MAX {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
    }
}

impl Model {
    /// The addresses that a bound address stands for.
    fn covered(&self, address: IpAddr) -> Vec<IpAddr> {
        let all = universe().into_iter();
        match address {
            IpAddr::V4(any) if any.is_unspecified() => all.filter(IpAddr::is_ipv4).collect(),
            IpAddr::V6(any) if any.is_unspecified() => all.filter(|ip| ip.is_ipv6() || !self.only_six).collect(),
            _ => vec![address],
        }
    }

    /// Whether two sockets cannot both have a port.
    fn excludes(&self, other: &Model, covered: &[IpAddr], port: u16) -> bool {
        let Some((held, held_port)) = &other.claim else {
            return false;
        };
        let meets = self.kind == other.kind && port == *held_port && held.iter().any(|ip| covered.contains(ip));
        let shares = (self.share && other.share) || (self.reuse && other.reuse && !other.listening);
        meets && !shares
    }

    fn takes(&self, kind: Kind, destination: SocketAddr) -> bool {
        let claim = self.claim.as_ref();
        self.kind == kind
            && claim.is_some_and(|(held, port)| *port == destination.port() && held.contains(&destination.ip()))
    }
}

impl World {
    fn stack(&mut self) -> &mut Stack {
        &mut self.side.stack
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let kind = script.u8() % op::COUNT;
        // What an earlier step has caused, such as the end of a connection that nobody accepts, is no answer to this.
        let _ = self.answers();
        match kind {
            op::SOCKET => return self.socket(script),
            op::DATAGRAM => return self.datagram(script),
            op::SYN => return self.syn(script),
            op::ECHO => return self.echo(script),
            _ => {}
        }
        let Some(index) = usize::from(script.u8()).checked_rem(self.models.len()) else {
            return;
        };
        let (model, stack) = (&mut self.models[index], &mut self.side.stack);
        match kind {
            op::REUSE if model.claim.is_none() => {
                let which = script.u8();
                (model.reuse, model.share) = (which & 1 != 0, which & 2 != 0);
                assert_eq!(stack.set_option(model.socket, SocketOption::ReuseAddress(model.reuse)), Ok(()));
                assert_eq!(stack.set_option(model.socket, SocketOption::ReusePort(model.share)), Ok(()));
            }
            op::ONLY_V6 => {
                let only = script.flag();
                let result = stack.set_option(model.socket, SocketOption::V6Only(only));
                let wanted = if model.claim.is_some() { Err(Error::Invalid) } else { Ok(()) };
                assert_eq!(result, wanted, "IPV6_V6ONLY is set before binding");
                model.only_six = if wanted.is_ok() { only } else { model.only_six };
            }
            op::BIND => self.bind(index, script),
            op::LISTEN => self.listen(index),
            op::CONNECT => self.connect(index, script),
            op::JOIN | op::LEAVE => self.group(index, kind, script),
            op::CLOSE => {
                let model = self.models.remove(index);
                self.stack().close(NOW, model.socket);
                assert_eq!(self.side.stack.socket_count(), self.models.len(), "what is closed is gone");
            }
            _ => {}
        }
    }

    fn socket(&mut self, script: &mut Script<'_>) {
        if self.models.len() == SOCKETS_MAX {
            return;
        }
        let kind = script.pick(&[Kind::Udp, Kind::Tcp, Kind::Echo]);
        let six = script.flag();
        let socket =
            self.stack().socket(kind, if six { Family::V6 } else { Family::V4 }).expect("there are few sockets");
        let (only_six, reuse, share, listening) = (false, false, false, false);
        let (claim, peer, groups) = (None, None, Vec::new());
        self.models.push(Model { socket, kind, six, only_six, reuse, share, listening, claim, peer, groups });
    }

    /// What bind(2) has to say.
    fn judge(&self, index: usize, address: SocketAddr) -> Result<(), Error> {
        let (model, ip) = (&self.models[index], address.ip());
        if model.claim.is_some() {
            return Err(Error::Invalid);
        }
        let own = ip.is_unspecified() || [v4(0), v6(0)].contains(&ip) || ip.is_loopback();
        match ip {
            IpAddr::V6(_) if !model.six => return Err(Error::AddressFamily),
            IpAddr::V4(_) if model.six && model.only_six => return Err(Error::Invalid),
            _ if !own && !(is_for_many(ip) && model.kind == Kind::Udp) => return Err(Error::AddressNotAvailable),
            _ => {}
        }
        let covered = model.covered(ip);
        let taken = |other: &Model| model.excludes(other, &covered, address.port());
        if address.port() != 0 && self.models.iter().any(taken) { Err(Error::AddressInUse) } else { Ok(()) }
    }

    fn bind(&mut self, index: usize, script: &mut Script<'_>) {
        let any: [IpAddr; 3] = [[0; 4].into(), [0; 16].into(), v4(1)];
        let ip = script.pick(&[&universe()[..], &any].concat());
        let mut address = SocketAddr::new(ip, script.pick(PORTS));
        let wanted = self.judge(index, address);
        let result = self.side.stack.bind(self.models[index].socket, address);
        assert_eq!(result.map(|_| ()), wanted, "bind to {address}");
        let Ok(bound) = result else {
            return;
        };
        if address.port() == 0 {
            let kind = self.models[index].kind;
            assert!(EPHEMERAL.contains(&bound.port()), "any port is an ephemeral one");
            let taken = self
                .models
                .iter()
                .any(|other| other.kind == kind && other.claim.as_ref().is_some_and(|(_, port)| *port == bound.port()));
            assert!(!taken, "an ephemeral port was free");
            address.set_port(bound.port());
        }
        assert_eq!(bound, address, "bind gives what was asked for");
        // A bound socket goes to the end of the list: the newest wins among equals.
        let mut model = self.models.remove(index);
        model.claim = Some((model.covered(ip), bound.port()));
        self.models.push(model);
    }

    fn listen(&mut self, index: usize) {
        let model = &self.models[index];
        let wanted = match (&model.claim, model.kind) {
            (_, Kind::Udp | Kind::Echo) => Err(Error::NotSupported),
            (None, Kind::Tcp) => Err(Error::Invalid),
            (Some((covered, port)), Kind::Tcp) => {
                let meets = |other: &Model| {
                    let held = other.claim.as_ref().is_some_and(|(held, held_port)| {
                        held_port == port && held.iter().any(|ip| covered.contains(ip))
                    });
                    let shares = other.share && model.share;
                    other.socket != model.socket && other.kind == Kind::Tcp && other.listening && held && !shares
                };
                if self.models.iter().any(meets) { Err(Error::AddressInUse) } else { Ok(()) }
            }
        };
        assert_eq!(self.side.stack.listen(self.models[index].socket, BACKLOG), wanted, "listen");
        self.models[index].listening |= wanted.is_ok();
    }

    /// Connects a bound datagram socket: what others send does not come any more.
    fn connect(&mut self, index: usize, script: &mut Script<'_>) {
        let model = &self.models[index];
        let Some((held, _)) = model.claim.as_ref().filter(|_| model.kind == Kind::Udp) else {
            return;
        };
        let peer = sender(script.flag());
        // A bound address of the other family is left out: what it means is the sender's business.
        if !held.iter().any(|ip| ip.is_ipv4() == peer.is_ipv4()) || (peer.is_ipv6() && !model.six) {
            return;
        }
        if self.side.stack.connect(NOW, model.socket, peer).is_ok() {
            self.models[index].peer = Some(peer);
        }
    }

    fn group(&mut self, index: usize, kind: u8, script: &mut Script<'_>) {
        let (group, model) = (group(script.flag()), &mut self.models[index]);
        let (stack, known) = (&mut self.side.stack, model.groups.contains(&group));
        if kind == op::LEAVE {
            let wanted = if known { Ok(()) } else { Err(Error::AddressNotAvailable) };
            assert_eq!(stack.leave_group(model.socket, group), wanted, "leave");
            model.groups.retain(|held| *held != group);
            return;
        }
        let wanted = match model.kind {
            Kind::Udp if known => Err(Error::AddressInUse),
            Kind::Udp => Ok(()),
            Kind::Tcp | Kind::Echo => Err(Error::NoSuchOption),
        };
        assert_eq!(stack.join_group(model.socket, group), wanted, "join");
        if wanted.is_ok() {
            model.groups.push(group);
        }
    }

    /// Who gets a datagram; of those that share a port, any one.
    fn receivers(&self, source: SocketAddr, destination: SocketAddr) -> Vec<SocketId> {
        let hears =
            |model: &&Model| model.takes(Kind::Udp, destination) && model.peer.is_none_or(|peer| peer == source);
        let candidates: Vec<&Model> = self.models.iter().filter(hears).collect();
        let ip = destination.ip();
        if is_for_many(ip) {
            let joined = ip == broadcast() || self.models.iter().any(|model| model.groups.contains(&ip));
            return candidates.iter().filter(|_| joined).map(|model| model.socket).collect();
        }
        // A connected socket before the others; then one address before any; then, as on Linux, any address of one
        // family before that of a socket for both; then the newest.
        let rank = |model: &&&Model| {
            let one = model.claim.as_ref().is_some_and(|(covered, _)| covered.len() == 1);
            (model.peer.is_some(), one, one || !model.six || model.only_six)
        };
        let Some(best) = candidates.iter().max_by_key(rank) else {
            return Vec::new();
        };
        let shares = |model: &&&Model| best.share && model.share && rank(model) == rank(&best);
        let of_one = |model: &&&Model| shares(model) || model.socket == best.socket;
        candidates.iter().filter(of_one).map(|model| model.socket).collect()
    }

    fn datagram(&mut self, script: &mut Script<'_>) {
        let destination = SocketAddr::new(script.pick(&universe()[..5]), script.pick(&PORTS[..3]));
        let source = sender(destination.is_ipv6());
        let wanted = self.receivers(source, destination);
        let packet = headers::udp(source, destination, b"who gets this?");
        let result = self.side.stack.handle_packet(NOW, self.side.path, &packet);
        let mut came = 0;
        for model in self.models.iter().filter(|model| model.kind == Kind::Udp) {
            if let Ok(received) = self.side.stack.recv_from(model.socket) {
                came += 1;
                let may = wanted.contains(&model.socket);
                assert!(may, "{source} to {destination} and a socket of {:?}", model.claim);
                assert_eq!((received.source, received.destination), (source, destination.ip()));
            }
        }
        let copies = if is_for_many(destination.ip()) { wanted.len() } else { wanted.len().min(1) };
        assert_eq!(came, copies, "{source} to {destination}");
        assert_eq!(result.is_ok(), !wanted.is_empty(), "a datagram for nobody is counted: {result:?}");
        let answers = self.answers();
        let refused = wanted.is_empty() && !is_for_many(destination.ip());
        assert_eq!(answers.len(), usize::from(refused), "nobody answers but for a closed port");
    }

    /// A SYN comes to the listener whose address is closest, or is refused.
    fn syn(&mut self, script: &mut Script<'_>) {
        let destination = SocketAddr::new(script.pick(&[v4(0), v6(0)]), script.pick(&PORTS[..3]));
        self.next_port += 1;
        let source = SocketAddr::new(sender(destination.is_ipv6()).ip(), self.next_port);
        let listens = self.models.iter().any(|model| model.listening && model.takes(Kind::Tcp, destination));
        let segment =
            Segment { sequence: 7, acknowledgement: 0, flags: headers::SYN, window: 9, options: &[], payload: &[] };
        let packet = headers::tcp(source, destination, segment);
        let result = self.side.stack.handle_packet(NOW, self.side.path, &packet);
        let wanted = if listens { Ok(()) } else { Err(DropReason::NoSocket) };
        assert_eq!(result, wanted, "a SYN to {destination}");
        let answers = self.answers();
        let flags: Vec<u8> = answers.iter().filter_map(|answer| headers::flags(answer)).collect();
        let answer = headers::ACK | if listens { headers::SYN } else { headers::RST };
        assert_eq!(flags, [answer], "a SYN is taken, or refused");
    }

    /// An echo reply comes to the socket whose identifier it has.
    fn echo(&mut self, script: &mut Script<'_>) {
        let destination = SocketAddr::new(script.pick(&[v4(0), v6(0)]), script.pick(&PORTS[..3]));
        let wanted: Vec<&Model> = self.models.iter().filter(|model| model.takes(Kind::Echo, destination)).collect();
        let source = sender(destination.is_ipv6()).ip();
        let id = destination.port().to_be_bytes();
        let kind = if destination.is_ipv4() { 0 } else { 129 };
        let packet = headers::icmp(source, destination.ip(), kind, 0, &[id[0], id[1], 0, 1]);
        let result = self.side.stack.handle_packet(NOW, self.side.path, &packet);
        assert_eq!(result.is_ok(), !wanted.is_empty(), "an echo reply to {destination}");
        let came = self.models.iter().filter(|model| model.kind == Kind::Echo);
        let came = came.filter(|model| self.side.stack.recv_from(model.socket).is_ok()).count();
        assert_eq!(came, usize::from(!wanted.is_empty()), "one socket gets it");
    }

    /// What the stack answers.
    fn answers(&mut self) -> Vec<Vec<u8>> {
        let mut answers = Vec::new();
        self.side.flush(NOW, ROOM, |packet| answers.push(packet));
        answers
    }
}

fn sender(six: bool) -> SocketAddr {
    SocketAddr::new(if six { v6(1) } else { v4(1) }, 9)
}
