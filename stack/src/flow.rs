//! A flow: one TCP connection with its 4-tuple, its path, its timers and its owner.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::Duration;

use crate::errno::Error;
use crate::guard::Acknowledged;
use crate::keep_alive::KeepAlive;
use crate::limits;
use crate::meter::Meter;
use crate::options::Options;
use crate::packet::{self, Numbers, Segment};
use crate::path::{Class, PathId, PathState};
use crate::shard::{SocketId, Stack};
use crate::slab::key;
use crate::tcp::{Connection, State};
use crate::time::Instant;
use crate::time_wait::Rest;

key! {
    /// Names a flow; stale names are recognised.
    pub(crate) FlowId
}

/// Both ends of a connection, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// Who drives a connection: the descriptor and the flow are separate things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Socket(SocketId),
    /// The connection waits in a listener's backlog.
    Backlog(SocketId),
    /// The program has closed it; the stack brings it to its end.
    Orphan,
}

pub(crate) struct Flow {
    pub(crate) tuple: Tuple,
    pub(crate) path: PathId,
    pub(crate) connection: Connection,
    pub(crate) owner: Owner,
    /// The path under which the connection is counted in a listener's backlog.
    pub(crate) backlog_path: Option<PathId>,
    pub(crate) error: Option<Error>,
    /// Whether the flow is in its path's queue.
    pub(crate) dirty: bool,
    /// Bytes that it may still send before the next flow has its turn.
    pub(crate) deficit: usize,
    pub(crate) state: State,
    /// When the connection came into its state.
    entered_at: Instant,
    pub(crate) reset_seen: bool,
    /// Whether the peer has said all that it will say; it stays said when the connection fails afterwards.
    pub(crate) fin_heard: bool,
    pub(crate) meter: Meter,
    /// Most connections have none: a pointer is all that it costs then.
    pub(crate) keep_alive: Option<Box<KeepAlive>>,
    /// The largest packet, in bytes, where less than the path's was learnt.
    pub(crate) mtu: Option<usize>,
    /// The next sequence numbers in both directions; what is received is known once it was acknowledged.
    pub(crate) send_next: u32,
    pub(crate) receive_next: Option<u32>,
    pub(crate) acknowledged: Acknowledged,
    /// The window last told to the peer, as written.
    pub(crate) window_said: u16,
    /// Whether a window that is scaled was sent: that of a SYN is not, and the engine scales it all the same.
    pub(crate) told_window: bool,
    /// The window that the peer told last, as written.
    pub(crate) window_heard: u16,
    /// When anything was last heard of the peer.
    pub(crate) heard_at: Instant,
    /// When the peer last answered, or when there began to be something to answer.
    pub(crate) progress_at: Instant,
    /// When the peer last took a byte, or when there began to be one to take.
    pub(crate) taken_at: Instant,
    /// TCP_USER_TIMEOUT, where the program has set it.
    pub(crate) user_timeout: Option<Duration>,
    /// The highest sequence number seen of the peer: above what was received there are holes.
    pub(crate) receive_high: Option<u32>,
    /// Bytes written to each ring since it was empty and unused.
    pub(crate) receive_used: usize,
    /// Bytes that may come though memory is used up: what this connection has given back for them.
    pub(crate) receive_credit: usize,
    pub(crate) send_used: usize,
    /// Whether the flow is in the queue of those whose memory may be given back.
    pub(crate) resting: bool,
    /// The earliest timer in the heap that is still meant.
    wake: Option<Instant>,
    /// How far the flow's clock runs ahead of the stack's: a replaced path resumes it at once.
    clock_offset: Duration,
    /// Where the flow's clock stands in TIME-WAIT: a delayed acknowledgement is due, and the engine's own
    /// TIME-WAIT, which would clear unread data, never ends.
    stopped_at: Option<Instant>,
}

impl Flow {
    pub(crate) fn new(now: Instant, tuple: Tuple, path: PathId, connection: Connection, owner: Owner) -> Self {
        let state = connection.state();
        Self {
            tuple,
            path,
            connection,
            owner,
            backlog_path: None,
            error: None,
            dirty: false,
            deficit: 0,
            state,
            entered_at: now,
            reset_seen: false,
            fin_heard: false,
            meter: Meter::default(),
            keep_alive: None,
            mtu: None,
            send_next: 0,
            receive_next: None,
            acknowledged: Acknowledged::default(),
            window_said: 0,
            told_window: false,
            window_heard: 0,
            heard_at: now,
            progress_at: now,
            taken_at: now,
            user_timeout: None,
            receive_high: None,
            receive_used: 0,
            receive_credit: 0,
            send_used: 0,
            resting: false,
            wake: None,
            clock_offset: Duration::ZERO,
            stopped_at: None,
        }
    }

    /// The time on the flow's own clock.
    pub(crate) fn clock(&self, now: Instant) -> Instant {
        self.stopped_at.unwrap_or(now + self.clock_offset)
    }

    /// A flow starts among the small ones and leaves them once, when it has moved much.
    pub(crate) fn class(&self) -> Class {
        if self.meter.sent_bytes > limits::BULK_AFTER { Class::Bulk } else { Class::Interactive }
    }

    /// Notes a sign of life of the peer.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        if let Some(keep_alive) = &mut self.keep_alive {
            keep_alive.heard();
        }
    }

    /// Notes a segment that the engine has written.
    pub(crate) fn wrote_segment(&mut self, now: Instant, segment: &Segment) {
        let first = self.meter.sent_segments == 0;
        self.meter.sent(now, segment, self.send_next);
        // A repeated segment is not the newest.
        if first || (segment.sequence_end().wrapping_sub(self.send_next) as i32) > 0 {
            self.send_next = segment.sequence_end();
        }
        self.receive_next = Some(segment.acknowledgement);
        self.window_said = segment.window;
        self.told_window |= !segment.syn;
    }

    /// Whether not even the SYN has left.
    pub(crate) fn has_said_nothing(&self) -> bool {
        self.state == State::SynSent && self.meter.sent_segments == 0
    }

    /// Whether the peer may still send bytes.
    pub(crate) fn may_hear_more(&self) -> bool {
        !self.fin_heard && !matches!(self.state, State::Closed | State::Listen)
    }

    /// Whether a sequence number is one that the peer has not acknowledged yet: an ICMP error about anything else is
    /// old, or forged (RFC 5927, section 4.1).
    pub(crate) fn is_in_flight(&self, sequence: u32) -> bool {
        let behind = self.send_next.wrapping_sub(sequence) as usize;
        // A SYN or FIN has a number and no byte.
        (1..=self.connection.send_queue() + 1).contains(&behind)
    }

    /// What is still to be delivered: bytes, and one for the end.
    pub(crate) fn owed(&self) -> usize {
        let fin = matches!(self.state, State::FinWait1 | State::Closing | State::LastAck);
        self.connection.send_queue() + usize::from(fin)
    }

    /// Bytes received and not yet read.
    pub(crate) fn unread(&self) -> usize {
        self.connection.recv_queue()
    }

    /// Whether a bare acknowledgement says once more that all but the FIN has come. The engine takes three of
    /// these for a loss, has no data to repeat, and forgets the timer that repeats the FIN.
    pub(crate) fn repeats_all_but_fin(&self, segment: &Segment) -> bool {
        matches!(self.state, State::FinWait1 | State::Closing | State::LastAck)
            && self.connection.send_queue() == 0
            && !(segment.syn || segment.fin || segment.rst)
            && segment.payload_len == 0
            // What the peer has sent meanwhile may be missing here.
            && self.receive_next.is_some_and(|next| {
                segment.sequence.wrapping_sub(next) as usize <= self.connection.receive_capacity()
            })
            && segment.acknowledgement.wrapping_add(1) == self.send_next
    }

    /// Returns what is new in the SYN ACK of a peer whose SYN has crossed ours: its acknowledgement (RFC 9293,
    /// section 3.5, figure 8). The engine takes the SYN for an old one and would drop all. It hears of no window,
    /// since that of a SYN is not scaled; the first byte asks for it.
    pub(crate) fn crossed(&self, segment: &Segment) -> Option<Segment> {
        let sequence = segment.sequence.wrapping_add(1);
        let crossed = self.state == State::SynReceived
            && segment.syn
            && segment.ack
            && !(segment.rst || segment.fin)
            && self.receive_next == Some(sequence)
            && segment.acknowledgement == self.send_next;
        crossed.then_some(Segment { sequence, syn: false, payload_len: 0, ..*segment })
    }

    /// When the stack gives the connection up, and with which error.
    fn deadline(&self) -> Option<Instant> {
        let user_timeout = self.user_timeout.unwrap_or(limits::USER_TIMEOUT);
        let waits = self.connection.send_queue() > 0;
        let timeout = match self.state {
            State::Closed | State::Listen | State::TimeWait => return None,
            State::SynSent => limits::CONNECT_TIMEOUT.min(user_timeout),
            // Nothing that the peer may send prolongs these two.
            State::SynReceived => return Some(self.entered_at + limits::SYN_RECEIVED_TIMEOUT),
            State::FinWait2 if self.owner == Owner::Orphan => {
                return Some(self.entered_at.max(self.taken_at) + limits::FIN_WAIT_2_TIMEOUT);
            }
            State::FinWait1 | State::Closing | State::LastAck => user_timeout,
            _ if waits => user_timeout,
            _ => return None,
        };
        let unanswered = self.progress_at + timeout;
        // A peer that answers every probe but never takes a byte (RFC 9293, section 3.8.6.1) is waited for as long
        // as a program holds the connection and has set no limit, as Linux does; nobody else waits for ever.
        let ends = self.owner == Owner::Orphan || (waits && self.user_timeout.is_some());
        Some(if ends { unanswered.min(self.taken_at + user_timeout) } else { unanswered })
    }
}

impl Stack {
    pub(crate) fn insert_flow(&mut self, mut flow: Flow) -> FlowId {
        let (tuple, path) = (flow.tuple, flow.path);
        flow.mtu = Some(self.learnt_mtus.limit(tuple.remote.ip(), usize::MAX)).filter(|mtu| *mtu < usize::MAX);
        let id = self.flows.insert(flow);
        self.tuples.insert(tuple, id);
        let (committed, is_long) = self.flows.get(id).map_or((0, false), |flow| (flow.committed(), flow.is_long()));
        self.committed += committed;
        if let Some(path) = self.paths.get_mut(path) {
            path.flow_count += 1;
            path.long_count += usize::from(is_long);
            path.committed += committed;
        }
        id
    }

    /// Takes a flow out of everything that knows it.
    pub(crate) fn remove_flow(&mut self, id: FlowId) {
        if self.flows.get(id).is_some_and(|flow| flow.owner == Owner::Orphan) {
            self.count_orphan(id, -1);
        }
        let Some(flow) = self.flows.remove(id) else {
            return;
        };
        if self.tuples.get(&flow.tuple) == Some(&id) {
            self.tuples.remove(&flow.tuple);
        }
        let committed = flow.committed();
        self.committed -= if planted!(LedgerLeaks) { 0 } else { committed };
        if let Some(path) = self.paths.get_mut(flow.path) {
            path.flow_count -= 1;
            path.long_count -= usize::from(flow.is_long());
            path.committed -= committed;
            // A path that is down serves none of them.
            if path.dirty.len() >= 2 * path.flow_count + limits::TIMERS_SPARE {
                path.dirty.retain(|id| self.flows.get(*id).is_some());
            }
        }
        if self.flows.len() == 0 {
            self.timers.clear();
        }
    }

    /// Puts a flow into its path's queue of flows to be served.
    pub(crate) fn mark_dirty(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let path = flow.path;
        if !flow.dirty {
            flow.dirty = true;
            flow.deficit = limits::QUANTUM;
            if let Some(path) = self.paths.get_mut(path) {
                path.dirty.push_back(id);
            }
        }
        self.queue_path(path);
    }

    /// Sets what options say about a connection.
    pub(crate) fn apply_options(&mut self, id: FlowId, options: &Options) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.connection.set_nagle(!options.no_delay);
            flow.keep_alive = KeepAlive::new(options, flow.keep_alive.as_deref());
            flow.connection.set_hop_limit(options.hop_limit);
            flow.user_timeout = options.user_timeout;
            if options.keep_alive {
                // Its timer is set when it has had its turn.
                self.mark_dirty(id);
            }
        }
    }

    /// Sets the timer of a flow that has nothing more to send now.
    pub(crate) fn schedule(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Some(path) = self.paths.get(flow.path) else {
            return;
        };
        let clock = flow.clock(now);
        let wire = flow.wire(path.wire);
        let at = match flow.state {
            // Its record, not the engine, keeps TIME-WAIT; the engine would clear unread data.
            State::TimeWait => None,
            _ => flow.connection.poll_at(&mut self.engine, wire, clock),
        };
        // The engine may want a turn that it cannot use now: it gets one a little later, not at once.
        let at = at.map(|at| if at <= clock { now + limits::ACK_DELAY } else { now + (at - clock) });
        let wake = [at, flow.deadline(), flow.keep_alive_due()].into_iter().flatten().min();
        if let Some(wake) = wake
            && flow.wake.is_none_or(|known| wake < known && !planted!(EarlierTimerIgnored))
        {
            flow.wake = Some(wake);
            self.push_timer(wake, id);
        }
        if at.is_none() {
            self.remind(now, id);
        }
    }

    /// Sets a timer. What the flow's earlier timers have become, and those of flows that are gone, stay in the heap
    /// until they are due, which may be hours for a keep-alive: they are thrown out when they are the greater part.
    fn push_timer(&mut self, at: Instant, id: FlowId) {
        if self.timers.len() >= 2 * self.flows.len() + limits::TIMERS_SPARE {
            let others = self.flows.iter().filter(|(other, _)| *other != id);
            self.timers = others.filter_map(|(id, flow)| Some(Reverse((flow.wake?, id)))).collect();
        }
        self.timers.push(Reverse((at, id)));
    }

    /// Returns when [`Stack::handle_timeout`] has to be called; it may be called earlier.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let flow = self.timers.peek().map(|Reverse((at, _))| *at);
        let others = [
            self.time_wait.poll_timeout(),
            self.reassembly.poll_timeout(),
            self.rest_timeout(),
            self.learnt_mtus.poll_timeout(),
        ];
        others.into_iter().chain([flow]).flatten().min()
    }

    /// Lets time pass: retransmissions, probes, delayed acknowledgements and the ends of waiting.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.time_wait.expire(now);
        self.rest_idle_flows(now);
        self.forget_mtus(now);
        for _ in 0..self.reassembly.expire(now) {
            self.count_drop(crate::packet::DropReason::Reassembly);
        }
        while let Some(Reverse((at, id))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            let Some(flow) = self.flows.get_mut(id) else {
                continue;
            };
            if flow.wake != Some(at) {
                continue;
            }
            flow.wake = None;
            let late = flow.deadline().is_some_and(|deadline| deadline <= now);
            if late || self.probe_if_due(now, id) {
                self.give_up(now, id);
            } else {
                self.mark_dirty(id);
                // A path without room or link serves nothing, but deadlines go on.
                self.schedule_deadline(now, id);
            }
        }
    }

    fn schedule_deadline(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        if let Some(deadline) = [flow.deadline(), flow.keep_alive_due()].into_iter().flatten().min() {
            let wake = deadline.max(now + limits::ACK_DELAY);
            flow.wake = Some(wake);
            self.push_timer(wake, id);
        }
    }

    /// Ends a connection whose peer did not answer in time.
    fn give_up(&mut self, now: Instant, id: FlowId) {
        match self.flows.get_mut(id) {
            // Nobody has ever answered: there is nobody to reset.
            Some(flow) if flow.state == State::SynSent => self.fail_flow(now, id, Error::TimedOut),
            // Its SYN ACK is due once more at this moment, for which the engine takes its number back. A reset with
            // that would be no acceptable one (RFC 9293, section 3.10.5: SND.NXT).
            Some(flow) if flow.state == State::SynReceived => {
                let (tuple, path) = (flow.tuple, flow.path);
                let acknowledgement = flow.receive_next.unwrap_or(0);
                let numbers = Numbers { sequence: flow.send_next, acknowledgement, window: 0 };
                let reset = packet::reset(tuple.local, tuple.remote, numbers);
                self.reply(path, Class::Interactive, reset);
                self.fail_flow(now, id, Error::TimedOut);
            }
            Some(flow) => {
                flow.error.get_or_insert(Error::TimedOut);
                self.abort_flow(now, id);
            }
            None => {}
        }
    }

    /// Aborts a connection: a reset leaves if the peer can know of it.
    pub(crate) fn abort_flow(&mut self, now: Instant, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.connection.abort();
            self.mark_dirty(id);
            self.after_change(now, id);
        }
    }

    /// Ends a connection without a word to the peer, with the error that its program will see.
    pub(crate) fn fail_flow(&mut self, now: Instant, id: FlowId, error: Error) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.error.get_or_insert(error);
            flow.connection.abort();
            flow.reset_seen = true;
            self.tuples.remove(&flow.tuple);
            self.after_change(now, id);
        }
    }

    /// Acts on a change of a connection's state; every entry into the engine ends here.
    pub(crate) fn after_change(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let (before, state) = (flow.state, flow.connection.state());
        flow.state = state;
        flow.fin_heard |= state.has_heard_fin();
        if before != state {
            (flow.progress_at, flow.entered_at) = (now, now);
            self.after_transition(now, id, before, state);
        }
        let Some(flow) = self.flows.get(id) else {
            return;
        };
        match flow.owner {
            Owner::Socket(socket) => self.mark_ready(socket),
            Owner::Orphan if self.is_over(id) => self.bury(now, id),
            Owner::Backlog(_) | Owner::Orphan => {}
        }
    }

    fn after_transition(&mut self, now: Instant, id: FlowId, before: State, state: State) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        if state == State::TimeWait && !planted!(TimeWaitEndsEarly) {
            flow.stopped_at = Some(flow.clock(now) + limits::ACK_DELAY);
        }
        // The engine puts a passive connection that was reset back into LISTEN.
        let ended = matches!(state, State::Closed | State::Listen);
        if ended && flow.error.is_none() && flow.reset_seen {
            // A program owns no connection in SYN-RECEIVED but one that it has asked for.
            let asked = before == State::SynReceived && matches!(flow.owner, Owner::Socket(_));
            let refused = before == State::SynSent || asked;
            flow.error = Some(if refused { Error::ConnectionRefused } else { Error::ConnectionReset });
        }
        if let Owner::Backlog(listener) = flow.owner {
            if ended {
                flow.owner = Owner::Orphan;
                self.count_orphan(id, 1);
                self.passive_ended(now, id, listener, before == State::SynReceived);
            } else if before == State::SynReceived {
                self.passive_established(id, listener);
            }
        }
    }

    /// Whether nothing more has to be sent or awaited for a connection that no program holds.
    pub(crate) fn is_over(&self, id: FlowId) -> bool {
        self.flows.get(id).is_some_and(|flow| match flow.state {
            // Where there is no way to the peer, nobody waits to tell it: what it still sends is reset (section 3.5.2).
            State::Closed => flow.reset_seen || !flow.connection.owes_reset() || !self.is_up(flow.path),
            State::Listen => true,
            State::TimeWait => !flow.dirty,
            _ => false,
        })
    }

    fn is_up(&self, path: PathId) -> bool {
        self.paths.get(path).is_some_and(|path| path.state == PathState::Up)
    }

    /// Removes a connection that is over, leaving a record where TIME-WAIT asks for one.
    pub(crate) fn bury(&mut self, now: Instant, id: FlowId) {
        if let Some(flow) = self.flows.get(id)
            && flow.state == State::TimeWait
            // A newer connection may have taken the name already.
            && self.tuples.get(&flow.tuple) == Some(&id)
            && !planted!(TimeWaitNotKept)
        {
            let (send_next, receive_next) = (flow.send_next, flow.receive_next.unwrap_or(0));
            let rest = Rest { send_next, receive_next, ends_at: now + limits::TIME_WAIT };
            self.time_wait.insert(flow.tuple, rest);
        }
        self.remove_flow(id);
    }

    /// Lets a flow go on at once instead of at its next retransmission.
    pub(crate) fn resume(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let Some(path) = self.paths.get(flow.path) else {
            return;
        };
        let clock = flow.clock(now);
        let wire = flow.wire(path.wire);
        let at = flow.connection.poll_at(&mut self.engine, wire, clock);
        // Only what waits for an answer is brought forward; a keep-alive is not.
        if let Some(at) = at
            && at > clock
            && (flow.connection.send_queue() > 0 || !matches!(flow.state, State::Established | State::CloseWait))
        {
            flow.clock_offset += at - clock;
        }
        self.mark_dirty(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::SocketOption;
    use crate::path::Room;
    use crate::shard::{Family, Kind};

    const ROOM: Room = Room { stream: 1 << 20, datagram: 1 << 20 };

    /// Carries what the node says to itself, until it falls silent.
    fn settle(stack: &mut Stack, now: Instant) {
        let mut packet = Vec::new();
        while let Some(path) = stack.poll_path() {
            while stack.poll_packet(now, path, ROOM, &mut packet).is_some() {
                let _ = stack.handle_packet(now, path, &packet);
                packet.clear();
            }
        }
    }

    /// A program that asked for keep-alive left a timer of two hours behind with every answer, and the stack of all
    /// of them grew for as long.
    #[test]
    fn timers_that_are_not_meant_any_more_are_thrown_out() {
        let mut now = Instant::from_millis(1);
        let mut stack = Stack::new(7);
        let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let listener = stack.socket(Kind::Tcp, Family::V4).unwrap();
        stack.bind(listener, address).unwrap();
        stack.listen(listener, 8).unwrap();
        let client = stack.socket(Kind::Tcp, Family::V4).unwrap();
        stack.set_option(client, SocketOption::KeepAlive(true)).unwrap();
        assert_eq!(stack.connect(now, client, address), Err(Error::InProgress));
        settle(&mut stack, now);
        let server = stack.accept(now, listener).unwrap().0;
        for _ in 0..2_000 {
            stack.send(now, client, b"ping").unwrap();
            settle(&mut stack, now);
            while let Some(due) = stack.poll_timeout().filter(|due| *due < now + Duration::from_secs(1)) {
                now = due;
                stack.handle_timeout(now);
                settle(&mut stack, now);
            }
            assert_eq!(stack.recv(server, &mut [0; 8]), Ok(4));
            now = now + Duration::from_secs(1);
        }
        assert!(stack.timers.len() <= 2 * stack.flows.len() + limits::TIMERS_SPARE, "{}", stack.timers.len());
        for socket in [client, server, listener] {
            stack.close(now, socket);
        }
        settle(&mut stack, now);
        now = now + 2 * limits::TIME_WAIT;
        stack.handle_timeout(now);
        settle(&mut stack, now);
        assert_eq!(stack.poll_timeout(), None, "nothing is left to wait for");
    }
}
