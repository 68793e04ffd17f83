//! What leaves a link: the queue, and how much of it may be below.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::Full;
use crate::budget::Budget;
use crate::frame::Probe;
use crate::lanes::{Lane, Lanes};

/// Probes that may wait; a peer that sends more pings than are answered gets fewer answers.
const PROBES_MAX: usize = 4;

/// What waits in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    Nothing,
    /// Something may be sent.
    Ready,
    /// Everything waits for acknowledgements.
    HeldBack,
}

/// The sending side of a link.
#[derive(Default)]
pub(crate) struct Outgoing {
    pub(crate) lanes: Lanes,
    pub(crate) budget: Budget,
    /// Pings and their answers, which wait for nothing: they measure.
    probes: VecDeque<Probe>,
    /// Marks of the peer that were reached and not answered yet, by the positions of their lanes: the last one of a
    /// lane counts.
    reached: [Option<u64>; Lane::ALL.len()],
}

impl Outgoing {
    /// Makes one for peers that take so many bytes in one burst.
    pub(crate) fn with_burst_max(bytes: usize) -> Self {
        Self { budget: Budget::with_burst_max(bytes), ..Self::default() }
    }

    /// Queues a packet or message; returns whether the task that drains the queue has to be told.
    pub(crate) fn push(&mut self, lane: Lane, packet: &[u8]) -> Result<bool, Full> {
        let first = !self.lanes.waits(lane);
        self.lanes.push(lane, packet)?;
        Ok(first)
    }

    /// Queues a ping or an answer.
    pub(crate) fn probe(&mut self, probe: Probe) {
        if self.probes.len() < PROBES_MAX {
            self.probes.push_back(probe);
        }
    }

    /// Queues the answer to a mark of the peer.
    pub(crate) fn reached(&mut self, lane: Lane, mark: u64) {
        self.reached[lane.index()] = Some(mark);
    }

    fn next_probe(&mut self) -> Option<Probe> {
        let answer = |lane: Lane| Some(Probe::Reached(lane, self.reached[lane.index()].take()?));
        Lane::ALL.into_iter().find_map(answer).or_else(|| self.probes.pop_front())
    }

    /// Takes the next message that may go below, and counts it there.
    pub(crate) fn pop(&mut self) -> Option<(Lane, BytesMut)> {
        let probe = self.next_probe().map(|probe| (Lane::Datagram, BytesMut::from(&probe.emit()[..])));
        let Self { lanes, budget, .. } = self;
        let next = probe.or_else(|| lanes.pop(|lane| budget.may_send(lane)));
        if let Some((lane, message)) = &next {
            budget.sent(*lane, message.len());
        }
        next
    }

    /// Returns whether something waits, and whether only the budget holds it back, which is noted.
    pub(crate) fn waits(&mut self) -> Waits {
        let Self { lanes, budget, probes, reached } = self;
        if !probes.is_empty() || reached.iter().any(Option::is_some) {
            return Waits::Ready;
        }
        if lanes.is_empty() {
            return Waits::Nothing;
        }
        if Lane::ALL.into_iter().any(|lane| lanes.waits(lane) && budget.may_send(lane)) {
            return Waits::Ready;
        }
        budget.hold_back();
        Waits::HeldBack
    }
}
