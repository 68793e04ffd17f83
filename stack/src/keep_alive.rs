//! Keep-alive: is the other end of an idle connection still there? (RFC 9293, section 3.8.4; `tcp(7)`)
//!
//! The stack sends the probes itself: the engine's have one interval for everything and never give up.

use std::time::Duration;

use crate::flow::{Flow, FlowId};
use crate::options::Options;
use crate::packet;
use crate::shard::Stack;
use crate::tcp::State;
use crate::time::Instant;

/// When probes are sent, and how many may stay unanswered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeepAlive {
    idle: Duration,
    interval: Duration,
    count: u8,
    /// Probes sent since the peer was last heard, and when the last one left.
    sent: u8,
    sent_at: Instant,
}

impl KeepAlive {
    /// What the options ask for; probes that are under way count on.
    pub(crate) fn new(options: &Options, before: Option<&KeepAlive>) -> Option<Box<KeepAlive>> {
        let (sent, sent_at) = before.map_or((0, Instant::ZERO), |before| (before.sent, before.sent_at));
        let Options { keep_idle: idle, keep_interval: interval, keep_count: count, .. } = *options;
        options.keep_alive.then(|| Box::new(KeepAlive { idle, interval, count, sent, sent_at }))
    }

    /// Notes a sign of life.
    pub(crate) fn heard(&mut self) {
        self.sent = 0;
    }

    /// Returns how many probes in a row had no answer.
    pub(crate) fn unanswered(&self) -> u8 {
        self.sent
    }
}

impl Flow {
    /// When the next probe is due, or when the peer is given up after the last one.
    pub(crate) fn keep_alive_due(&self) -> Option<Instant> {
        let keep_alive = self.keep_alive.as_ref()?;
        // What is unacknowledged is repeated until it is answered: that is probe enough.
        let idle = matches!(self.state, State::Established | State::CloseWait | State::FinWait2)
            && self.connection.send_queue() == 0;
        idle.then(|| match keep_alive.sent {
            0 => self.heard_at + keep_alive.idle,
            _ => keep_alive.sent_at + keep_alive.interval,
        })
    }

    /// Whether the peer has left every probe unanswered that it may: TCP_USER_TIMEOUT, where it is set, is the limit
    /// instead of the count (tcp(7)).
    fn is_dead(&self, now: Instant, keep_alive: &KeepAlive) -> bool {
        match self.user_timeout {
            Some(limit) => keep_alive.sent > 0 && self.heard_at + limit <= now,
            None => keep_alive.sent >= keep_alive.count,
        }
    }
}

impl Stack {
    /// Sends the probe that is due; returns whether the peer is to be given up instead.
    pub(crate) fn probe_if_due(&mut self, now: Instant, id: FlowId) -> bool {
        let Some(flow) = self.flows.get_mut(id) else {
            return false;
        };
        let (Some(keep_alive), true) =
            (flow.keep_alive.as_deref().copied(), flow.keep_alive_due().is_some_and(|due| due <= now))
        else {
            return false;
        };
        if flow.is_dead(now, &keep_alive) {
            return true;
        }
        let sent = keep_alive.sent.saturating_add(1);
        flow.keep_alive = Some(Box::new(KeepAlive { sent, sent_at: now, ..keep_alive }));
        // An old number, so that the peer has to say what it expects (RFC 1122, section 4.2.3.6).
        let numbers = packet::Numbers {
            sequence: flow.send_next.wrapping_sub(1),
            acknowledgement: flow.receive_next.unwrap_or(0),
            window: flow.window_said,
        };
        let probe = packet::acknowledgement(flow.tuple.local, flow.tuple.remote, numbers);
        let (path, class) = (flow.path, flow.class());
        self.reply(path, class, probe);
        false
    }
}
