//! One TCP connection: the only file that names smoltcp's TCP.
//!
//! A connection is a socket set of exactly one socket, so the cost of a packet does not depend on
//! how many other connections exist.

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration as WireDuration, Instant as WireInstant};
use smoltcp::wire::{HardwareAddress, IpEndpoint, IpListenEndpoint};

use crate::buffers::Ring;
use crate::checksum;
use crate::limits;
use crate::time::Instant;

/// The state of a connection (RFC 9293, section 3.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// No connection.
    Closed,
    /// Waiting for a SYN.
    Listen,
    /// A SYN is out, its answer is awaited.
    SynSent,
    /// A SYN was answered, the acknowledgement is awaited.
    SynReceived,
    /// Both directions are open.
    Established,
    /// This end has sent its FIN.
    FinWait1,
    /// This end's FIN is acknowledged, the other's is awaited.
    FinWait2,
    /// The other end has sent its FIN.
    CloseWait,
    /// Both have sent their FIN, this end's is not acknowledged.
    Closing,
    /// The other end's FIN came first, this end's is not acknowledged.
    LastAck,
    /// Both are done; late segments are still answered.
    TimeWait,
}

impl State {
    /// Whether the peer's FIN has come.
    pub(crate) const fn has_heard_fin(self) -> bool {
        matches!(self, State::CloseWait | State::Closing | State::LastAck | State::TimeWait)
    }

    /// Returns the name that `ss` and RFC 9293 use.
    pub const fn name(self) -> &'static str {
        match self {
            State::Closed => "CLOSED",
            State::Listen => "LISTEN",
            State::SynSent => "SYN-SENT",
            State::SynReceived => "SYN-RECEIVED",
            State::Established => "ESTABLISHED",
            State::FinWait1 => "FIN-WAIT-1",
            State::FinWait2 => "FIN-WAIT-2",
            State::CloseWait => "CLOSE-WAIT",
            State::Closing => "CLOSING",
            State::LastAck => "LAST-ACK",
            State::TimeWait => "TIME-WAIT",
        }
    }
}

/// The two rings of a connection.
pub(crate) struct Rings {
    pub(crate) receive: Ring,
    pub(crate) send: Ring,
}

/// What the engine must know of the path that a connection uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) mtu: usize,
    pub(crate) verify_checksums: bool,
}

/// The contexts that connections are polled through: one for each kind of path.
pub(crate) struct Engine {
    /// The one used last comes first.
    contexts: Vec<(Wire, Box<Interface>)>,
}

impl Engine {
    pub(crate) fn new() -> Self {
        Self { contexts: Vec::new() }
    }

    /// Returns the context for `wire`. A peer may name any MTU by an ICMP error: the context that was not used for longest
    /// makes room, and is made again when it is needed.
    fn context(&mut self, wire: Wire) -> &mut Interface {
        let found = self.contexts.iter().position(|(known, _)| *known == wire);
        if found != Some(0) {
            self.contexts.truncate(limits::CONTEXTS_MAX - usize::from(found.is_none()));
            let context = match found {
                Some(index) => self.contexts.remove(index),
                None => (wire, Box::new(interface(wire, 0))),
            };
            self.contexts.insert(0, context);
        }
        &mut self.contexts[0].1
    }
}

/// Makes a context that accepts every address: demultiplexing is the stack's, not smoltcp's.
fn interface(wire: Wire, random_seed: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = random_seed;
    let mut device = Port { wire, packet: None, out: &mut Vec::new(), sent: false };
    let mut interface = Interface::new(config, &mut device, WireInstant::ZERO);
    interface.set_any_ip(true);
    interface
}

/// Returns the seed with which a context of smoltcp draws `first` as the next initial sequence number, which it lets
/// nobody choose. Its generator is invertible (sPCG32): a state is multiplied and added to, and the number is 32 bits of
/// it, above the 29th where the highest three are zero. The draw before is that of an IPv4 identification, which is
/// drawn again if it is zero. The version of smoltcp is pinned, and a test looks at what is drawn.
fn seed_for(first: u32) -> u64 {
    const MULTIPLIER: u64 = 0xbb2e_fcec_3c39_611d;
    const INVERSE: u64 = inverse(MULTIPLIER);
    const ADDEND: u64 = 0x7590_ef39;
    let before = |state: u64| state.wrapping_sub(ADDEND).wrapping_mul(INVERSE);
    let drawn = |state: u64| (state >> (29 - (state >> 61))) as u32;
    let is_zero = |number: u32| (number ^ (number >> 16)) as u16 == 0;
    let states = (0..).map(|low: u64| before((u64::from(first) << 29) | low));
    let mut good = states.filter(|state| !is_zero(drawn(*state)));
    before(good.next().expect("one of few states will do"))
}

/// Returns the inverse of an odd number modulo 2^64, by Newton's iteration: each step doubles the bits that are right.
const fn inverse(odd: u64) -> u64 {
    let (mut inverse, mut step) = (odd, 0);
    while step < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

fn wire_instant(now: Instant) -> WireInstant {
    WireInstant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

fn wire_duration(duration: Duration) -> WireDuration {
    WireDuration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// A device of one packet in and one packet out.
struct Port<'a> {
    wire: Wire,
    packet: Option<&'a [u8]>,
    out: &'a mut Vec<u8>,
    sent: bool,
}

struct PortRx<'a>(&'a [u8]);
struct PortTx<'a> {
    out: &'a mut Vec<u8>,
    sent: &'a mut bool,
}

impl RxToken for PortRx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for PortTx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        *self.sent = true;
        let start = self.out.len();
        self.out.resize(start + len, 0);
        f(&mut self.out[start..])
    }
}

impl Device for Port<'_> {
    type RxToken<'b>
        = PortRx<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = PortTx<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: WireInstant) -> Option<(PortRx<'_>, PortTx<'_>)> {
        let packet = self.packet.take()?;
        Some((PortRx(packet), PortTx { out: self.out, sent: &mut self.sent }))
    }

    fn transmit(&mut self, _: WireInstant) -> Option<PortTx<'_>> {
        if self.sent {
            return None;
        }
        Some(PortTx { out: self.out, sent: &mut self.sent })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.wire.mtu;
        // Checksums over payloads are the stack's own: they are summed in a third of the time.
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// One TCP connection.
pub(crate) struct Connection {
    // The order matters: the engine's socket borrows from the rings, and is dropped before them.
    set: SocketSet<'static>,
    handle: SocketHandle,
    pub(crate) rings: Rings,
    /// Whether the program has closed after the peer has, and bytes are still to be acknowledged. In LAST-ACK the
    /// engine throws away every segment that acknowledges nothing new, and with it the window that it tells: a peer
    /// that had no room would never get the rest. So the engine learns of it when the peer has everything.
    closes_last: bool,
}

impl Connection {
    fn new(mut rings: Rings) -> Self {
        let receive = tcp::SocketBuffer::new(rings.receive.lend());
        let mut socket = tcp::Socket::new(receive, tcp::SocketBuffer::new(rings.send.lend()));
        socket.set_ack_delay(Some(wire_duration(limits::ACK_DELAY)));
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Self { set, handle, rings, closes_last: false }
    }

    /// Starts a connection attempt; the SYN leaves at the next [`Connection::emit`].
    ///
    /// `first` is the initial sequence number.
    pub(crate) fn connect(wire: Wire, first: u32, tuple: (SocketAddr, SocketAddr), rings: Rings) -> Self {
        let mut connection = Self::new(rings);
        let mut context = interface(wire, seed_for(first));
        let local: IpEndpoint = tuple.0.into();
        let remote: IpEndpoint = tuple.1.into();
        let result = connection.socket_mut().connect(context.context(), remote, IpListenEndpoint::from(local));
        result.expect("both ends were checked: ports are not zero, families agree, addresses are specified");
        connection
    }

    /// Answers a SYN; the SYN|ACK, with `first` as its number, leaves at the next [`Connection::emit`].
    pub(crate) fn accept(wire: Wire, first: u32, now: Instant, syn: &[u8], local: SocketAddr, rings: Rings) -> Self {
        let mut connection = Self::new(rings);
        let local: IpEndpoint = local.into();
        let result = connection.socket_mut().listen(IpListenEndpoint::from(local));
        result.expect("the socket is new and its port is not zero");
        let mut context = interface(wire, seed_for(first));
        let mut out = Vec::new();
        let mut port = Port { wire, packet: Some(syn), out: &mut out, sent: false };
        context.poll_ingress_single(wire_instant(now), &mut port, &mut connection.set);
        connection
    }

    fn socket(&self) -> &tcp::Socket<'static> {
        self.set.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    /// Takes in a packet whose checksums are right; an immediate answer, if any, is written to `reply`, which is empty.
    pub(crate) fn take_in(
        &mut self,
        engine: &mut Engine,
        wire: Wire,
        now: Instant,
        packet: &[u8],
        reply: &mut Vec<u8>,
    ) {
        let mut port = Port { wire, packet: Some(packet), out: reply, sent: false };
        engine.context(wire).poll_ingress_single(wire_instant(now), &mut port, &mut self.set);
        if port.sent {
            checksum::fill_tcp_checksum(reply);
        }
        if self.closes_last && self.send_queue() == 0 {
            self.closes_last = false;
            self.socket_mut().close();
        }
    }

    /// Appends at most one packet to `out`; returns whether it did.
    pub(crate) fn emit(&mut self, engine: &mut Engine, wire: Wire, now: Instant, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let mut port = Port { wire, packet: None, out, sent: false };
        engine.context(wire).poll_egress(wire_instant(now), &mut port, &mut self.set);
        let sent = port.sent;
        if sent {
            checksum::fill_tcp_checksum(&mut out[start..]);
        }
        sent
    }

    /// Returns when the connection next wants [`Connection::emit`]: `ZERO` means now.
    pub(crate) fn poll_at(&mut self, engine: &mut Engine, wire: Wire, now: Instant) -> Option<Instant> {
        let at = engine.context(wire).poll_at(wire_instant(now), &self.set)?;
        Some(Instant::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)))
    }

    pub(crate) fn state(&self) -> State {
        match self.socket().state() {
            tcp::State::Closed => State::Closed,
            tcp::State::Listen => State::Listen,
            tcp::State::SynSent => State::SynSent,
            tcp::State::SynReceived => State::SynReceived,
            tcp::State::Established => State::Established,
            tcp::State::FinWait1 => State::FinWait1,
            tcp::State::FinWait2 => State::FinWait2,
            tcp::State::CloseWait if self.closes_last => State::LastAck,
            tcp::State::CloseWait => State::CloseWait,
            tcp::State::Closing => State::Closing,
            tcp::State::LastAck => State::LastAck,
            tcp::State::TimeWait => State::TimeWait,
        }
    }

    /// Whether a reset still has to leave: an aborted connection knows its peer until then.
    pub(crate) fn owes_reset(&self) -> bool {
        self.state() == State::Closed && self.socket().remote_endpoint().is_some()
    }

    /// Queues bytes for sending and returns how many fitted.
    pub(crate) fn send(&mut self, data: &[u8]) -> usize {
        let mut sent = 0;
        // A ring hands out one contiguous piece at a time: twice fills it.
        while sent < data.len() {
            match self.socket_mut().send_slice(&data[sent..]) {
                Ok(0) | Err(_) => break,
                Ok(n) => sent += n,
            }
        }
        sent
    }

    /// Takes received bytes out and returns how many.
    pub(crate) fn recv(&mut self, data: &mut [u8]) -> usize {
        let mut received = 0;
        while received < data.len() {
            match self.socket_mut().recv_slice(&mut data[received..]) {
                Ok(0) | Err(_) => break,
                Ok(n) => received += n,
            }
        }
        received
    }

    /// Copies received bytes without taking them out.
    pub(crate) fn peek(&mut self, data: &mut [u8]) -> usize {
        self.socket_mut().peek_slice(data).unwrap_or(0)
    }

    pub(crate) fn close(&mut self) {
        match self.socket().state() {
            tcp::State::CloseWait if self.send_queue() > 0 => self.closes_last = true,
            _ => self.socket_mut().close(),
        }
    }

    pub(crate) fn abort(&mut self) {
        self.closes_last = false;
        self.socket_mut().abort();
    }

    pub(crate) fn may_send(&self) -> bool {
        self.socket().may_send() && !self.closes_last
    }

    pub(crate) fn may_recv(&self) -> bool {
        self.socket().may_recv()
    }

    pub(crate) fn send_queue(&self) -> usize {
        self.socket().send_queue()
    }

    pub(crate) fn recv_queue(&self) -> usize {
        self.socket().recv_queue()
    }

    /// Bytes that may still be received.
    pub(crate) fn receive_window(&self) -> usize {
        self.socket().recv_capacity() - self.socket().recv_queue()
    }

    pub(crate) fn receive_capacity(&self) -> usize {
        self.socket().recv_capacity()
    }

    pub(crate) fn send_capacity(&self) -> usize {
        self.socket().send_capacity()
    }

    pub(crate) fn set_nagle(&mut self, enabled: bool) {
        self.socket_mut().set_nagle_enabled(enabled);
    }

    /// Sets the hop limit of outgoing packets; zero was refused before (RFC 1122, 3.2.1.7).
    pub(crate) fn set_hop_limit(&mut self, hop_limit: u8) {
        self.socket_mut().set_hop_limit(Some(hop_limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that names one MTU after the other makes the node hold a few contexts, and find the one in use first.
    #[test]
    fn contexts_are_few_whatever_a_peer_names() {
        let mut engine = Engine::new();
        let used = Wire { mtu: 9_000, verify_checksums: true };
        for mtu in (576..9_000).rev() {
            engine.context(Wire { mtu, ..used });
            engine.context(used);
            assert!(engine.contexts.len() <= limits::CONTEXTS_MAX);
            assert_eq!(engine.contexts[0].0, used);
        }
    }

    #[test]
    fn a_connection_begins_with_the_number_that_was_chosen_for_it() {
        let wire = Wire { mtu: 1_500, verify_checksums: false };
        let local = IpEndpoint::from(SocketAddr::from(([10, 80, 0, 1], 4_000)));
        let remote = IpEndpoint::from(SocketAddr::from(([10, 80, 0, 2], 80)));
        let edges = [0, 1, u32::MAX, 1 << 31];
        // As many as make it likely that an identification of zero is among them.
        for first in edges.into_iter().chain((1..100_000u32).map(|n| n.wrapping_mul(2_654_435_761))) {
            let mut context = interface(wire, seed_for(first));
            let buffer = || tcp::SocketBuffer::new(vec![0; 64]);
            let mut set = SocketSet::new(Vec::new());
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.connect(context.context(), remote, IpListenEndpoint::from(local)).unwrap();
            set.add(socket);
            let mut out = Vec::new();
            let mut port = Port { wire, packet: None, out: &mut out, sent: false };
            context.poll_egress(WireInstant::ZERO, &mut port, &mut set);
            assert_eq!(out[24..28], first.to_be_bytes(), "the SYN's sequence number");
        }
    }
}
