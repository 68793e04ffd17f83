//! A kernel beside the node's own stack: packets of a TUN device to the links and back, without I/O.
//!
//! With a device the node's addresses are the kernel's: what peers send goes there, except what a [`Filter`] keeps back.

#![cfg_attr(
    not(all(feature = "tun", target_os = "linux")),
    allow(dead_code, reason = "a node that no device can be given to knows of them by its types only")
)]

mod fair;
mod filter;
mod header;
#[cfg(all(feature = "tun", target_os = "linux"))]
mod names;
#[cfg(all(feature = "tun", target_os = "linux"))]
mod segments;
#[cfg(all(feature = "tun", target_os = "linux"))]
mod tun;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
#[cfg(all(feature = "tun", target_os = "linux"))]
use std::task::{Context, Poll};
use std::time::Duration;

use unisockets_link::Lane;
use unisockets_stack::{Instant, PathEnd, PathId, Refusal, refuse};

use crate::node::NodeCore;
use crate::tap::Direction;
use fair::Fair;
use filter::Filter;
pub use filter::Open;
use header::{Header, TCP};
#[cfg(all(feature = "tun", target_os = "linux"))]
pub use tun::{Attached, Tun};

/// Bytes that wait for all peers together.
const QUEUED_MAX: usize = 64 * 1024 * 1024;
/// A connection of the kernel's may be silent for so long: the two hours of keep-alive (tcp_keepalive_time), and its probes.
const SILENCE: Duration = Duration::from_secs(2 * 3_600 + 900);
/// Bytes that wait for the kernel.
const INBOUND_MAX: usize = 4 * 1024 * 1024;

#[derive(Default)]
struct Queues {
    streams: Fair,
    datagrams: Fair,
    is_ready: bool,
    /// When the kernel last sent TCP here.
    tcp_at: Option<Instant>,
}

/// Whole IP packets on their way to the kernel, one after the other.
#[derive(Default)]
pub(crate) struct Inbound {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    packets: Vec<u8>,
    closed: bool,
    dropped: u64,
    /// Whoever takes them.
    taker: Option<Waker>,
}

impl Inbound {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a packet; returns whether it was taken.
    fn push(&self, packet: &[u8]) -> bool {
        let mut waiting = self.lock();
        if waiting.packets.len() + packet.len() > INBOUND_MAX {
            waiting.dropped += 1;
            return false;
        }
        waiting.packets.extend_from_slice(packet);
        if let Some(taker) = waiting.taker.take() {
            taker.wake();
        }
        true
    }

    /// Puts packets in the place of `before` once there are some; false when the device is gone.
    #[cfg(all(feature = "tun", target_os = "linux"))]
    fn poll_take(&self, cx: &Context<'_>, before: &mut Vec<u8>) -> Poll<bool> {
        before.clear();
        let mut waiting = self.lock();
        if waiting.packets.is_empty() && !waiting.closed {
            waiting.taker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        std::mem::swap(&mut waiting.packets, before);
        Poll::Ready(!before.is_empty())
    }

    fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        if let Some(taker) = waiting.taker.take() {
            taker.wake();
        }
    }
}

/// The kernel's side of a node.
pub(crate) struct Device {
    queues: HashMap<PathId, Queues>,
    ready: VecDeque<PathId>,
    inbound: Arc<Inbound>,
    filter: Option<Filter>,
    hash: RandomState,
    queued: usize,
    /// Packets that found no room, and packets from addresses that are not the node's.
    dropped: u64,
    foreign: u64,
    /// What the queues of paths dropped that are no more.
    past: u64,
    /// Without devices to serve there is none, and a tab's module has nothing of all this.
    #[cfg(not(all(feature = "tun", target_os = "linux")))]
    _never: std::convert::Infallible,
}

impl Device {
    fn mark_ready(&mut self, path: PathId) {
        if let Some(queues) = self.queues.get_mut(&path)
            && !queues.is_ready
            && !(queues.streams.is_empty() && queues.datagrams.is_empty())
        {
            queues.is_ready = true;
            self.ready.push_back(path);
        }
    }

    /// Returns what tells a packet's flow from others, and whether it is one of TCP.
    fn flow_of(&self, header: &Header<'_>) -> (u64, bool) {
        // All fragments of a packet are of one flow.
        let ports = header.ports().filter(|_| !header.is_fragment);
        let flow = self.hash.hash_one((header.source, header.destination, header.protocol, ports));
        (flow, header.protocol == TCP)
    }

    fn push(&mut self, now: Instant, path: PathId, (flow, is_stream): (u64, bool), packet: Vec<u8>) {
        if self.queued + packet.len() > QUEUED_MAX {
            self.dropped += 1;
            return;
        }
        let queues = self.queues.entry(path).or_default();
        if is_stream {
            queues.tcp_at = Some(now);
        }
        let fair = if is_stream { &mut queues.streams } else { &mut queues.datagrams };
        let before = fair.bytes();
        fair.push(now, flow, packet);
        self.queued = self.queued - before + fair.bytes();
        self.mark_ready(path);
    }

    /// Takes back all that waits for a path that is no more.
    fn take_all(&mut self, path: PathId) -> Vec<Vec<u8>> {
        let Some(mut queues) = self.queues.remove(&path) else {
            return Vec::new();
        };
        self.queued -= queues.streams.bytes() + queues.datagrams.bytes();
        self.past += queues.streams.dropped + queues.datagrams.dropped;
        let mut packets = queues.streams.take_all();
        packets.append(&mut queues.datagrams.take_all());
        packets
    }
}

impl NodeCore {
    /// Gives the node's addresses to a kernel; what it is to get is put into `inbound`. With `open`, only that is
    /// reachable of it.
    #[cfg(all(feature = "tun", target_os = "linux"))]
    pub(crate) fn attach_device(&mut self, now: Instant, inbound: Arc<Inbound>, open: Option<Vec<Open>>) {
        self.device = Some(Device {
            queues: HashMap::new(),
            ready: VecDeque::new(),
            inbound,
            filter: open.map(|open| Filter::new(now, open)),
            hash: RandomState::new(),
            queued: 0,
            dropped: 0,
            foreign: 0,
            past: 0,
        });
    }

    /// Takes the addresses back.
    pub(crate) fn detach_device(&mut self) {
        if let Some(device) = self.device.take() {
            device.inbound.close();
        }
    }

    /// Takes a packet of the kernel's.
    pub(crate) fn send_from_device(&mut self, now: Instant, packet: Vec<u8>) {
        let Some(header) = Header::parse(&packet) else {
            return;
        };
        // What asks for routers and groups is for no peer.
        if header.destination.is_multicast() {
            return;
        }
        if !self.stack.addresses().contains(&header.source) {
            if let Some(device) = &mut self.device {
                device.foreign += 1;
            }
            return;
        }
        let path = match self.stack.path_to(header.destination) {
            Ok(path) if path != self.stack.loopback() => path,
            _ => return self.refuse_to_device(&packet, Refusal::HostUnreachable),
        };
        let Some(device) = &mut self.device else {
            return;
        };
        if let Some(filter) = &mut device.filter {
            filter.note(now, &header);
        }
        let flow = device.flow_of(&header);
        device.push(now, path, flow, packet);
    }

    /// Takes a packet from a peer, whose source was checked, and which holds some addresses; `None` if it is for the
    /// node's own stack.
    pub(crate) fn hand_to_device(
        &mut self,
        now: Instant,
        packet: &[u8],
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Option<Result<(), &'static str>> {
        let device = self.device.as_mut()?;
        let header = Header::parse(packet)?;
        if !self.stack.addresses().contains(&header.destination) {
            return Some(Err("not_ours"));
        }
        // An error may speak of what was sent to that peer only (threat T2).
        if let Some(quoted) = header.quoted()
            && !quoted.is_some_and(|(source, destination)| source == header.destination && is_peers(destination))
        {
            return Some(Err("wrong_path"));
        }
        if let Some(filter) = &mut device.filter
            && !filter.passes(now, &header)
        {
            return None;
        }
        Some(if device.inbound.push(packet) { Ok(()) } else { Err("device_full") })
    }

    fn refuse_to_device(&mut self, packet: &[u8], refusal: Refusal) {
        if let (Some(device), Some(answer)) = (&self.device, refuse(packet, refusal)) {
            device.inbound.push(&answer);
        }
    }

    /// Whether packets of the kernel wait for a link that is there.
    #[cfg(all(feature = "tun", target_os = "linux"))]
    pub(crate) fn device_waits(&self) -> bool {
        let waits = |queues: &Queues| !(queues.streams.is_empty() && queues.datagrams.is_empty());
        let mut queues = self.device.iter().flat_map(|device| &device.queues);
        queues.any(|(path, queues)| waits(queues) && self.link_of(*path).is_some())
    }

    /// Returns how many packets of a device were dropped, by reason: the queues', which tell the kernel's TCP to slow
    /// down, among them.
    pub(crate) fn device_drops(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.device.iter().flat_map(|device| {
            let queues = device.queues.values().map(|queues| queues.streams.dropped + queues.datagrams.dropped);
            let to_kernel = device.inbound.lock().dropped;
            [
                ("device_queue", device.past + queues.sum::<u64>()),
                ("device_full", device.dropped + to_kernel),
                ("device_source", device.foreign),
            ]
        })
    }

    /// Whether the kernel may have connections over a path.
    pub(crate) fn device_uses(&self, now: Instant, path: PathId) -> bool {
        let queues = self.device.as_ref().and_then(|device| device.queues.get(&path));
        queues.and_then(|queues| queues.tcp_at).is_some_and(|at| now.saturating_since(at) < SILENCE)
    }

    /// Says that a path has a link, or another one.
    pub(crate) fn device_up(&mut self, path: PathId) {
        if let Some(queues) = self.device.as_mut().and_then(|device| device.queues.get_mut(&path)) {
            queues.streams.link_up();
            queues.datagrams.link_up();
        }
        self.device_writable(path);
    }

    /// Says that a path may send, or again.
    pub(crate) fn device_writable(&mut self, path: PathId) {
        if let Some(device) = &mut self.device {
            device.mark_ready(path);
        }
    }

    /// Moves what waited for one path to another: it turned out to lead to the same peer.
    pub(crate) fn device_moved(&mut self, now: Instant, from: PathId, to: PathId) {
        if from == to {
            return;
        }
        let packets = self.device.as_mut().map(|device| device.take_all(from)).unwrap_or_default();
        for packet in packets {
            let (Some(device), Some(header)) = (&mut self.device, Header::parse(&packet)) else {
                return;
            };
            let flow = device.flow_of(&header);
            device.push(now, to, flow, packet);
        }
    }

    /// Ends a path, and tells the kernel of what could not be sent.
    pub(crate) fn end_path(&mut self, now: Instant, path: PathId, end: PathEnd) {
        self.stack.end_path(now, path, end);
        let packets = self.device.as_mut().map(|device| device.take_all(path)).unwrap_or_default();
        if end == PathEnd::Unreachable {
            for packet in &packets {
                self.refuse_to_device(packet, Refusal::HostUnreachable);
            }
        }
    }

    /// Sends what waits for one path and has room; returns whether there was one.
    pub(crate) fn pump_device(&mut self, now: Instant) -> bool {
        let Some(device) = &mut self.device else {
            return false;
        };
        let Some(path) = device.ready.pop_front() else {
            return false;
        };
        if let Some(queues) = device.queues.get_mut(&path) {
            queues.is_ready = false;
        }
        let Some((link, interface)) = self.link_of(path) else {
            return true;
        };
        let mtu = self.mtu_of(path);
        loop {
            let room = link.room();
            let Some(queues) = self.device.as_mut().and_then(|device| device.queues.get_mut(&path)) else {
                return true;
            };
            let before = queues.streams.bytes() + queues.datagrams.bytes();
            let stream = queues.streams.pop(now, room.stream);
            let datagram = queues.datagrams.pop(now, room.datagram);
            let freed = before - queues.streams.bytes() - queues.datagrams.bytes();
            if let Some(device) = &mut self.device {
                device.queued -= freed;
            }
            if stream.is_none() && datagram.is_none() {
                return true;
            }
            let lane = |large| if large { Lane::Bulk } else { Lane::Interactive };
            let stream = stream.map(|due| (lane(due.large), due.packet));
            for (lane, packet) in stream.into_iter().chain(datagram.map(|due| (Lane::Datagram, due.packet))) {
                if packet.len() > mtu {
                    self.refuse_to_device(&packet, Refusal::TooBig(mtu));
                    continue;
                }
                let dropped = link.send(lane, &packet).err().map(|_| "link_full");
                if let Some(tap) = &mut self.tap {
                    tap.packet(now, interface, Direction::Outbound, &packet, dropped);
                }
            }
        }
    }
}
