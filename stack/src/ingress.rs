//! Packets in: checked, demultiplexed by 4-tuple, handed to exactly one flow or socket.

use std::net::{IpAddr, SocketAddr};

use crate::checksum;
use crate::flow::{FlowId, Owner, Tuple};
use crate::guard::{self, Age, Expected, Verdict};
use crate::limits;
use crate::packet::{self, DropReason, Numbers, Packet, Segment};
use crate::path::{Class, PathId};
use crate::ports::Space;
use crate::shard::Stack;
use crate::stream::Role;
use crate::tcp::State;
use crate::time::Instant;

impl Stack {
    /// Takes in one IP packet that arrived over `path`. The caller has checked that its source belongs to
    /// that peer.
    ///
    /// # Errors
    /// The reason why it was dropped, which has been counted.
    pub fn handle_packet(&mut self, now: Instant, path: PathId, bytes: &[u8]) -> Result<(), DropReason> {
        let result = self.dispatch(now, path, bytes);
        if let Err(reason) = result {
            self.count_drop(reason);
        }
        result
    }

    fn dispatch(&mut self, now: Instant, path: PathId, bytes: &[u8]) -> Result<(), DropReason> {
        let verify = self.paths.get(path).ok_or(DropReason::PathLost)?.wire.verify_checksums;
        let packet = Packet::parse(bytes, verify)?;
        let from_outside = path != self.loopback();
        let for_many = packet.protocol == packet::PROTOCOL_UDP && self.takes_for_many(packet.destination);
        let is_ours = self.is_own(packet.destination) || for_many;
        if !is_ours || (from_outside && packet.destination.is_loopback()) {
            return Err(DropReason::NotOurs);
        }
        // RFC 1122, section 3.2.1.3: what can be no host's address is no source.
        if is_martian(packet.source) || (from_outside && self.is_own(packet.source)) {
            return Err(DropReason::Malformed);
        }
        if packet.fragment.is_some() {
            let Some(payload) = self.reassembly.add(now, &packet)? else {
                return Ok(());
            };
            let whole = Packet { bytes: &[], payload: &payload, fragment: None, ..packet };
            return match whole.protocol {
                packet::PROTOCOL_UDP => self.take_udp(path, &whole),
                packet::PROTOCOL_ICMP | packet::PROTOCOL_ICMPV6 => self.take_icmp(now, path, &whole),
                // A TCP sender that knows the MTU does not fragment.
                _ => Err(DropReason::Protocol),
            };
        }
        match packet.protocol {
            packet::PROTOCOL_TCP => self.take_tcp(now, path, &packet),
            packet::PROTOCOL_UDP => self.take_udp(path, &packet),
            packet::PROTOCOL_ICMP | packet::PROTOCOL_ICMPV6 => self.take_icmp(now, path, &packet),
            _ => Err(DropReason::Protocol),
        }
    }

    fn take_tcp(&mut self, now: Instant, path: PathId, packet: &Packet<'_>) -> Result<(), DropReason> {
        if let Some(plain) = packet.without_extensions() {
            // The engine would take the extensions for something that it has to complain of.
            let packet = Packet::parse(&plain, false).map_err(|_| DropReason::Malformed)?;
            return self.take_tcp(now, path, &packet);
        }
        let segment = Segment::parse(packet.payload).ok_or(DropReason::Malformed)?;
        let (source, destination) = packet.ports().ok_or(DropReason::Malformed)?;
        if source == 0 || destination == 0 {
            return Err(DropReason::Malformed);
        }
        let verify = self.paths.get(path).ok_or(DropReason::PathLost)?.wire.verify_checksums;
        let sum = || checksum::transport_checksum(packet.source, packet.destination, packet.protocol, packet.payload);
        if verify && sum() != 0 {
            return Err(DropReason::Checksum);
        }
        let tuple = Tuple {
            local: SocketAddr::new(packet.destination, destination),
            remote: SocketAddr::new(packet.source, source),
        };
        if let Some(flow) = self.tuples.get(&tuple).copied()
            && !self.makes_way(flow, &tuple, &segment)
        {
            return self.take_segment(now, path, flow, packet, &segment);
        }
        if let Some((send_next, receive_next)) = self.time_wait.numbers(&tuple) {
            let newer = segment.syn && !segment.ack && (segment.sequence.wrapping_sub(receive_next) as i32) > 0;
            if !newer {
                // Only what repeats the last number is a FIN of this connection.
                if segment.fin && segment.sequence_end() == receive_next {
                    self.time_wait.restart(now, &tuple);
                }
                return self.answer_late(path, tuple, &segment, (send_next, receive_next));
            }
            self.time_wait.remove(&tuple);
        }
        if !segment.ack && !segment.rst {
            let listening =
                |stack: &Stack, id| matches!(stack.sockets.get(id).map(|s| &s.role), Some(Role::Listening(_)));
            let suits = |binding: &crate::ports::Binding| listening(self, binding.socket);
            let flow = || self.flow_number(&tuple);
            match self.ports.lookup(Space::Tcp, tuple.local, &flow, &suits) {
                Some(listener) if segment.syn => return self.take_syn(now, path, listener, tuple, packet.bytes),
                // What is neither SYN nor ACK is dropped in LISTEN (RFC 9293, section 3.10.7.2).
                Some(_) => return Err(DropReason::NoSocket),
                None => {}
            }
        }
        if !segment.rst {
            let reset = packet::reset_for(tuple.local, tuple.remote, &segment);
            self.reply(path, Class::Interactive, reset);
        }
        Err(DropReason::NoSocket)
    }

    /// Whether a connection that is over, and that only a program's descriptor still keeps, leaves its name to the new
    /// one that a SYN asks for (RFC 9293, section 3.6.1).
    fn makes_way(&mut self, id: FlowId, tuple: &Tuple, segment: &Segment) -> bool {
        let newer = |last: u32| segment.sequence.wrapping_sub(last) as i32 > 0;
        let over = |flow: &crate::flow::Flow| match flow.state {
            State::Closed => !flow.connection.owes_reset(),
            State::TimeWait => flow.receive_next.is_some_and(newer),
            _ => false,
        };
        let is_new = segment.syn && !segment.ack && !segment.rst;
        if !is_new || !self.flows.get(id).is_some_and(over) {
            return false;
        }
        self.tuples.remove(tuple);
        true
    }

    fn take_segment(
        &mut self,
        now: Instant,
        path: PathId,
        id: FlowId,
        packet: &Packet<'_>,
        segment: &Segment,
    ) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(id).ok_or(DropReason::NoSocket)?;
        if flow.path != path {
            return Err(DropReason::WrongPath);
        }
        if flow.repeats_all_but_fin(segment) {
            flow.progress_at = now;
            return Ok(());
        }
        if let Some(opening) = flow.crossed(segment) {
            let (local, remote) = (flow.tuple.local, flow.tuple.remote);
            let numbers = Numbers { sequence: opening.sequence, acknowledgement: opening.acknowledgement, window: 0 };
            let bytes = packet::acknowledgement(remote, local, numbers);
            return self.take_accepted(now, path, id, &bytes, &opening);
        }
        let repeats_fin = flow.state == State::TimeWait && segment.fin && !segment.rst && !segment.syn;
        if let Some(acknowledgement) = flow.receive_next.filter(|next| repeats_fin && *next == segment.sequence_end()) {
            // The peer repeats its FIN until that is acknowledged. The engine does so once a second of the flow's own
            // clock, which stands.
            let numbers = Numbers { sequence: flow.send_next, acknowledgement, window: 0 };
            let answer = packet::acknowledgement(flow.tuple.local, flow.tuple.remote, numbers);
            self.reply(path, Class::Interactive, answer);
            return Ok(());
        }
        let expected =
            Expected { state: flow.state, receive_next: flow.receive_next, window: flow.connection.receive_window() };
        let age = flow.acknowledged.age(segment);
        match guard::judge(expected, segment) {
            Verdict::Pass if age == Age::Old => self.challenge(now, path, id, segment),
            Verdict::Pass => match age {
                Age::Late(acknowledgement) => {
                    let window = flow.window_heard;
                    let bytes = packet.with_acknowledgement(acknowledgement, window).ok_or(DropReason::Malformed)?;
                    self.take_with_fin(now, path, id, &bytes, &Segment { acknowledgement, window, ..*segment })
                }
                Age::Fresh | Age::Old => {
                    if let Some(numbers) = flow.acknowledged_beyond(segment) {
                        let bare = packet::acknowledgement(flow.tuple.remote, flow.tuple.local, numbers);
                        let judged = Segment { sequence: numbers.sequence, payload_len: 0, ..*segment };
                        self.take_accepted(now, path, id, &bare, &judged)?;
                        if segment.payload_len == 0 {
                            return Ok(());
                        }
                    }
                    self.take_with_fin(now, path, id, packet.bytes, segment)
                }
            },
            Verdict::Drop => Err(DropReason::OutOfWindow),
            Verdict::Challenge => self.challenge(now, path, id, segment),
        }
    }

    /// Drops a segment and tells the peer what is expected, at most once a second (RFC 5961, section 7).
    fn challenge(&mut self, now: Instant, path: PathId, id: FlowId, segment: &Segment) -> Result<(), DropReason> {
        let flow = self.flows.get(id).ok_or(DropReason::NoSocket)?;
        // The engine answers a probe with what it knows.
        let sequence = flow.receive_next.unwrap_or(0).wrapping_sub(1);
        let acknowledgement = flow.send_next;
        let numbers = Numbers { sequence, acknowledgement, window: 0 };
        let probe = packet::acknowledgement(flow.tuple.remote, flow.tuple.local, numbers);
        let judged = Segment { sequence, syn: false, rst: false, fin: false, ack: false, payload_len: 0, ..*segment };
        self.take_accepted(now, path, id, &probe, &judged)?;
        Err(DropReason::OutOfWindow)
    }

    /// Hands a segment to its connection, its FIN only when all that precedes it has come (RFC 9293, section
    /// 3.10.7.4). The engine cuts off what lies beyond the window, whose edge moves back by a few bytes where its scale
    /// rounds it, and would take the FIN for the next number all the same: the stream would end short.
    fn take_with_fin(
        &mut self,
        now: Instant,
        path: PathId,
        id: FlowId,
        bytes: &[u8],
        segment: &Segment,
    ) -> Result<(), DropReason> {
        let payload_len = self.receivable(id, path, segment)?;
        if payload_len < segment.payload_len {
            // The engine reckons with twice the window until it has sent one that is scaled, and marks as received what
            // it had no place for.
            let cut = packet::cut(bytes, payload_len).ok_or(DropReason::Malformed)?;
            return self.take_accepted(now, path, id, &cut, &Segment { fin: false, payload_len, ..*segment });
        }
        if !segment.fin || segment.payload_len == 0 || segment.rst {
            return self.take_accepted(now, path, id, bytes, segment);
        }
        let data = packet::without_fin(bytes).ok_or(DropReason::Malformed)?;
        self.take_accepted(now, path, id, &data, &Segment { fin: false, ..*segment })?;
        let Some(flow) = self.flows.get(id).filter(|flow| flow.state != State::Closed) else {
            return Ok(());
        };
        let sequence = segment.sequence.wrapping_add(segment.payload_len as u32);
        if flow.receive_next != Some(sequence) {
            // Its data waits behind a hole, or did not fit: the peer repeats the FIN.
            return Ok(());
        }
        let (local, remote) = (flow.tuple.local, flow.tuple.remote);
        let numbers = Numbers { sequence, acknowledgement: segment.acknowledgement, window: segment.window };
        let fin = packet::fin(remote, local, numbers);
        self.take_accepted(now, path, id, &fin, &Segment { sequence, payload_len: 0, ..*segment })
    }

    /// Hands a segment to its connection.
    fn take_accepted(
        &mut self,
        now: Instant,
        path: PathId,
        id: FlowId,
        bytes: &[u8],
        segment: &Segment,
    ) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(id).ok_or(DropReason::NoSocket)?;
        let wire = flow.wire(self.paths.get(path).ok_or(DropReason::PathLost)?.wire);
        let clock = flow.clock(now);
        let landing = flow.landing(segment);
        let bytes_landing = landing.map_or(0, |_| segment.payload_len);
        let mut reply = std::mem::take(&mut self.scratch);
        reply.clear();
        let flow = self.flows.get_mut(id).ok_or(DropReason::NoSocket)?;
        let (received, unsent) = (flow.connection.recv_queue(), flow.connection.send_queue());
        flow.reset_seen = segment.rst;
        flow.connection.take_in(&mut self.engine, wire, clock, bytes, &mut reply);
        let received = flow.connection.recv_queue().saturating_sub(received);
        let ended = !flow.state.has_heard_fin() && flow.connection.state().has_heard_fin();
        flow.meter.received_bytes += received as u64;
        flow.meter.heard(now, segment);
        flow.heard(now);
        if segment.syn && flow.state == State::SynSent && flow.connection.state() != flow.state {
            // The answer to our SYN: only now is it known what comes next.
            flow.receive_next = Some(segment.sequence.wrapping_add(1));
        }
        flow.receive_next = flow.receive_next.map(|next| next.wrapping_add(received as u32 + u32::from(ended)));
        flow.progress_at = now;
        let taken = flow.connection.send_queue() < unsent;
        if taken {
            flow.taken_at = now;
        }
        // The engine takes no acknowledgement of a segment that it throws away.
        if taken || flow.connection.state() != flow.state {
            flow.acknowledged.note(segment, flow.send_next);
        }
        // What comes late says what the window was (RFC 9293, section 3.10.7.4).
        if segment.ack && !segment.syn && !segment.rst && flow.acknowledged.newest() == Some(segment.acknowledgement) {
            flow.window_heard = segment.window;
        }
        // Nobody will read this: a reset says so (RFC 2525, section 2.17), also where TIME-WAIT would begin.
        if flow.owner == Owner::Orphan && received > 0 {
            flow.connection.abort();
        }
        let committed = landing.map_or(0, |end| flow.landed(end, bytes_landing));
        let class = flow.class();
        if !reply.is_empty() {
            if let Some(written) = packet::written_segment(&reply) {
                flow.wrote_segment(now, &written);
            }
            self.reply(path, class, reply.clone());
        }
        self.scratch = reply;
        self.charge(id, committed);
        self.mark_dirty(id);
        self.after_change(now, id);
        Ok(())
    }

    /// Answers a segment for a connection in TIME-WAIT (RFC 9293, section 3.10.7.4); resets are ignored
    /// (RFC 1337).
    fn answer_late(
        &mut self,
        path: PathId,
        tuple: Tuple,
        segment: &Segment,
        (send_next, receive_next): (u32, u32),
    ) -> Result<(), DropReason> {
        if segment.rst || (segment.payload_len == 0 && !segment.fin && !segment.syn) {
            return Ok(());
        }
        let numbers = Numbers { sequence: send_next, acknowledgement: receive_next, window: 0 };
        let answer = packet::acknowledgement(tuple.local, tuple.remote, numbers);
        self.reply(path, Class::Interactive, answer);
        Ok(())
    }

    /// Queues an answer to something taken in; the queue is short, and what exceeds it is dropped.
    pub(crate) fn reply(&mut self, path: PathId, class: Class, bytes: Vec<u8>) {
        let Some(entry) = self.paths.get_mut(path) else {
            return;
        };
        if entry.replies.len() >= limits::REPLY_QUEUE_LEN_MAX {
            self.count_drop(DropReason::ReplyQueueFull);
            return;
        }
        entry.replies.push_back((class, bytes));
        self.queue_path(path);
    }
}

fn is_martian(source: IpAddr) -> bool {
    let broadcast = matches!(source, IpAddr::V4(v4) if v4.is_broadcast());
    source.is_unspecified() || source.is_multicast() || broadcast
}
