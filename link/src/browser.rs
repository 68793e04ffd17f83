//! The real link in a browser: four data channels of a page's RTCPeerConnection.
//!
//! No I/O: only JavaScript can call the channels. The page's shell reports what they say, and asks after every call
//! for what has to be done. So it runs, and is tested, everywhere.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

use crate::frame::{self, Probe};
use crate::lanes::Lane;
use crate::liveness::{Action, Liveness};
use crate::marks::Marks;
use crate::outgoing::{Outgoing, Waits};
use crate::signal::{self, Signal};
use crate::{Counters, Event, Full, Link, Lost, Room, Route};

/// How long two peers may look for a path to each other, in microseconds.
const OPEN_TIMEOUT_US: u64 = 20_000_000;
/// How often outstanding bytes are looked at while there are some, in microseconds.
const PROGRESS_INTERVAL_US: u64 = 1_000_000;
/// The same while something waits for the budget, should the browser's news be lost, in microseconds.
const NEWS_INTERVAL_US: u64 = 50_000;
/// How long the last control message may take to leave before the connection is closed, in microseconds.
const CLOSE_GRACE_US: u64 = 200_000;
/// Signals of the peer that wait to be worked on.
const SIGNALS_MAX: usize = 2 * signal::CANDIDATES_MAX;
/// Bytes that a browser takes in one burst: its sockets have buffers for half as many, and it empties them meanwhile.
const BURST_MAX: usize = 128 * 1024;

/// What the page has to do for a link.
#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// Hand a signal of the peer to the connection.
    Negotiate(Signal),
    /// Send a message on the channel of a lane.
    Send(Lane, BytesMut),
    /// Report now what the channels have buffered ([`BrowserLink::handle_buffered`]).
    Look,
    /// Tell when no more than so many bytes are buffered in the channel of a lane (`bufferedAmountLowThreshold`).
    Watch(Lane, usize),
    /// Close the connection; nothing follows.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening {
        since_us: u64,
    },
    Open,
    /// This end wants it closed, then at the latest.
    Closing {
        until_us: u64,
    },
    Closed,
}

struct Inner {
    state: State,
    outgoing: Outgoing,
    liveness: Liveness,
    marks: Marks,
    /// Marks that have to be set now.
    to_set: VecDeque<(Lane, u64)>,
    counters: Counters,
    signals: VecDeque<Signal>,
    /// Candidates of the peer that were taken in all: each is an address that checks are sent to (threat T8).
    candidates: usize,
    open: [bool; 4],
    /// The peer is said to be gone, and the clock has not been told yet.
    doubted: bool,
    route: Option<Route>,
    now_us: u64,
    /// When outstanding bytes are looked at again.
    look_at_us: Option<u64>,
    /// What the channels had buffered then.
    buffered: [usize; 4],
    /// Something was sent since the buffered bytes were looked at: what is known of them is too much.
    stale: bool,
    watches: VecDeque<(Lane, usize)>,
}

/// A link over a page's data channels.
pub struct BrowserLink {
    inner: Mutex<Inner>,
}

impl BrowserLink {
    /// Makes a link that is not open yet.
    pub fn new(now_us: u64) -> BrowserLink {
        let inner = Inner {
            state: State::Opening { since_us: now_us },
            outgoing: Outgoing::with_burst_max(BURST_MAX),
            liveness: Liveness::new(now_us),
            marks: Marks::default(),
            to_set: VecDeque::new(),
            counters: Counters::default(),
            signals: VecDeque::new(),
            candidates: 0,
            open: [false; 4],
            doubted: false,
            route: None,
            now_us,
            look_at_us: None,
            buffered: [0; 4],
            stale: false,
            watches: VecDeque::new(),
        };
        BrowserLink { inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the news that a lane's channel is open; returns [`Event::Opened`] once all are.
    pub fn handle_open(&self, now_us: u64, lane: Lane) -> Option<Event<'static>> {
        let mut inner = self.inner();
        inner.now_us = now_us;
        inner.open[lane.index()] = true;
        if !inner.open.iter().all(|open| *open) || !matches!(inner.state, State::Opening { .. }) {
            return None;
        }
        inner.state = State::Open;
        inner.liveness.heard(now_us);
        Some(Event::Opened)
    }

    /// Takes a message of a lane's channel; returns what it means to whoever opened the link.
    pub fn handle_message<'a>(&self, now_us: u64, lane: Lane, data: &'a [u8]) -> Option<Event<'a>> {
        let mut inner = self.inner();
        inner.now_us = now_us;
        match lane {
            Lane::Control => {
                inner.liveness.heard(now_us);
                Some(Event::Control(data))
            }
            _ if Probe::is_one(data) => inner.take_probe(now_us, lane, data).then_some(Event::RoundTrip),
            Lane::Interactive | Lane::Bulk | Lane::Datagram => {
                inner.liveness.heard(now_us);
                let counters = &mut inner.counters;
                for packet in frame::packets(data) {
                    match packet {
                        Ok(_) => counters.received_packets += 1,
                        Err(_) => counters.malformed += 1,
                    }
                }
                counters.received_bytes += data.len() as u64;
                Some(Event::Packets(data))
            }
        }
    }

    /// Takes how many bytes are buffered in the channels (`bufferedAmount`), by the position of their lanes. Of the
    /// stream lanes the peer's answers to marks say more.
    pub fn handle_buffered(&self, now_us: u64, buffered: [usize; 4]) {
        let mut inner = self.inner();
        inner.now_us = now_us;
        // Datagrams that are lost are given up, which is no progress.
        for lane in [Lane::Control, Lane::Interactive, Lane::Bulk] {
            if buffered[lane.index()] < inner.buffered[lane.index()] {
                inner.liveness.advanced(now_us, lane);
            }
        }
        inner.buffered = buffered;
        inner.outgoing.budget.begin_refresh();
        for lane in [Lane::Control, Lane::Datagram] {
            inner.outgoing.budget.refresh(lane, buffered[lane.index()]);
        }
        inner.liveness.outstanding_in(now_us, Lane::Control, buffered[Lane::Control.index()]);
        inner.note_progress(now_us);
        (inner.look_at_us, inner.stale) = (None, false);
    }

    /// Lets time pass; the link is lost where that is returned.
    pub fn handle_timeout(&self, now_us: u64) -> Option<Lost> {
        let mut inner = self.inner();
        inner.now_us = now_us;
        match inner.state {
            State::Opening { since_us } if now_us >= since_us + OPEN_TIMEOUT_US => {
                inner.state = State::Closing { until_us: now_us };
                return Some(Lost::NoPath);
            }
            State::Open => {}
            _ => return None,
        }
        while let Some(mark) = inner.marks.again(now_us) {
            inner.to_set.push_back(mark);
        }
        if std::mem::take(&mut inner.doubted) {
            inner.liveness.doubt(now_us);
        }
        match inner.liveness.poll(now_us) {
            Some(Action::Lost) => {
                inner.state = State::Closing { until_us: now_us };
                return Some(Lost::Silent);
            }
            Some(Action::Ping(number)) => inner.outgoing.probe(Probe::Ping(number)),
            None => {
                let wanted = inner.outgoing.budget.wants_round_trip(now_us);
                if inner.liveness.measure(now_us).is_some() || wanted {
                    inner.outgoing.probe(Probe::Ping(now_us));
                }
            }
        }
        None
    }

    /// Returns whether the channels' buffered bytes should be reported now.
    pub fn wants_buffered(&self, now_us: u64) -> bool {
        self.inner().look_at_us.is_some_and(|at| at <= now_us)
    }

    /// Returns when [`BrowserLink::handle_timeout`] is due, in microseconds.
    pub fn poll_timeout_us(&self) -> Option<u64> {
        let inner = self.inner();
        match inner.state {
            State::Opening { since_us } => Some(since_us + OPEN_TIMEOUT_US),
            State::Open if inner.doubted => Some(inner.now_us),
            State::Open => {
                let due = inner.liveness.poll_timeout_us();
                [inner.look_at_us, inner.marks.poll_timeout_us()].into_iter().flatten().chain([due]).min()
            }
            State::Closing { until_us } => Some(until_us),
            State::Closed => None,
        }
    }

    /// Takes the end of the connection; returns whether it is news.
    pub fn handle_closed(&self) -> bool {
        let mut inner = self.inner();
        let news = matches!(inner.state, State::Opening { .. } | State::Open);
        inner.state = State::Closing { until_us: 0 };
        news
    }

    /// Returns the next thing that the page has to do; it is asked for until there is none.
    pub fn poll_task(&self, now_us: u64) -> Option<Task> {
        let mut inner = self.inner();
        inner.now_us = now_us;
        match inner.state {
            State::Opening { .. } => return inner.signals.pop_front().map(Task::Negotiate),
            State::Open => {
                if let Some(signal) = inner.signals.pop_front() {
                    return Some(Task::Negotiate(signal));
                }
            }
            State::Closing { until_us } => {
                let flushed = !inner.outgoing.lanes.waits(Lane::Control)
                    && inner.outgoing.budget.outstanding_in(Lane::Control) == 0;
                if flushed || inner.now_us >= until_us {
                    inner.state = State::Closed;
                    return Some(Task::Close);
                }
            }
            State::Closed => return None,
        }
        if let Some((lane, mark)) = inner.to_set.pop_front() {
            return Some(Task::Send(lane, BytesMut::from(&Probe::Mark(mark).emit()[..])));
        }
        if let Some((lane, message)) = inner.outgoing.pop() {
            // What the channel has buffered was not sent yet: it says nothing about what has arrived.
            if lane != Lane::Datagram {
                inner.liveness.sent(now_us);
            }
            match lane {
                Lane::Interactive | Lane::Bulk => {
                    let mark = inner.marks.sent(now_us, lane, message.len());
                    inner.to_set.extend(mark.map(|mark| (lane, mark)));
                }
                Lane::Control | Lane::Datagram => inner.stale = true,
            }
            return Some(Task::Send(lane, message));
        }
        inner.plan()
    }

    /// Returns [`Event::Writable`] once when the queue has room again after it had none.
    pub fn poll_writable(&self) -> Option<Event<'static>> {
        self.inner().outgoing.lanes.take_writable().then_some(Event::Writable)
    }

    /// Takes how packets travel.
    pub fn set_route(&self, route: Route) {
        self.inner().route = Some(route);
    }
}

impl Inner {
    /// Tells budget and memory what is outstanding of the stream lanes.
    fn note_progress(&mut self, now_us: u64) {
        let mut total = 0;
        for lane in [Lane::Interactive, Lane::Bulk] {
            self.outgoing.budget.refresh(lane, self.marks.outstanding(lane));
            let unanswered = self.marks.unanswered(lane);
            self.liveness.outstanding_in(now_us, lane, unanswered);
            total += unanswered;
        }
        self.outgoing.budget.handle_progress(now_us);
        self.liveness.outstanding(now_us, total);
    }

    /// Takes a probe; returns whether a round trip was measured.
    fn take_probe(&mut self, now_us: u64, lane: Lane, data: &[u8]) -> bool {
        match Probe::parse(data) {
            Some(Probe::Mark(mark)) => {
                self.liveness.heard(now_us);
                self.outgoing.reached(lane, mark);
            }
            Some(Probe::Reached(lane, mark)) => {
                self.liveness.heard(now_us);
                if self.marks.answered(now_us, lane, mark) {
                    self.liveness.advanced(now_us, lane);
                    self.outgoing.budget.begin_refresh();
                    self.note_progress(now_us);
                }
            }
            Some(Probe::Ping(number)) => {
                self.liveness.heard(now_us);
                self.outgoing.probe(Probe::Pong(number));
            }
            Some(Probe::Pong(number)) => {
                if let Some(round_trip) = self.liveness.pong(now_us, number) {
                    self.outgoing.budget.handle_round_trip(now_us, round_trip);
                    return true;
                }
            }
            None => self.counters.malformed += 1,
        }
        false
    }

    /// Whether something is outstanding that the channels or the peer will tell of.
    fn waits_for_news(&self) -> bool {
        let budget = &self.outgoing.budget;
        let buffered = [Lane::Control, Lane::Datagram].into_iter().any(|lane| budget.outstanding_in(lane) > 0);
        buffered || [Lane::Interactive, Lane::Bulk].into_iter().any(|lane| self.marks.unanswered(lane) > 0)
    }

    /// Decides when to look at the buffered bytes again, and asks for news of them.
    fn plan(&mut self) -> Option<Task> {
        let waits = self.outgoing.waits();
        let pause = match waits {
            // Half of a number that is too large may be more than there is, and the channel would never tell.
            Waits::HeldBack if std::mem::take(&mut self.stale) => return Some(Task::Look),
            Waits::HeldBack => NEWS_INTERVAL_US,
            _ if self.waits_for_news() => PROGRESS_INTERVAL_US,
            _ => {
                self.look_at_us = None;
                return None;
            }
        };
        let at = self.now_us + pause;
        if waits == Waits::HeldBack && self.look_at_us.is_none_or(|known| known > at) {
            for lane in [Lane::Control, Lane::Datagram] {
                let outstanding = self.outgoing.budget.outstanding_in(lane);
                if outstanding > 0 {
                    self.watches.push_back((lane, outstanding / 2));
                }
            }
        }
        self.look_at_us = Some(self.look_at_us.map_or(at, |known| known.min(at)));
        self.watches.pop_front().map(|(lane, bytes)| Task::Watch(lane, bytes))
    }
}

impl Link for BrowserLink {
    fn room(&self) -> Room {
        self.inner().outgoing.lanes.room()
    }

    fn send(&self, lane: Lane, packet: &[u8]) -> Result<(), Full> {
        let mut inner = self.inner();
        inner.outgoing.push(lane, packet)?;
        inner.counters.sent_packets += 1;
        inner.counters.sent_bytes += packet.len() as u64;
        Ok(())
    }

    fn send_control(&self, message: &[u8]) -> Result<(), Full> {
        self.inner().outgoing.lanes.push(Lane::Control, message)
    }

    fn handle_signal(&self, signal: Signal) {
        let mut inner = self.inner();
        if matches!(signal, Signal::Candidate { .. }) {
            inner.candidates += 1;
        }
        let too_many = inner.candidates > signal::CANDIDATES_MAX || inner.signals.len() >= SIGNALS_MAX;
        if !signal.is_reasonable() || too_many {
            tracing::debug!("a signal of the peer was dropped: too large or too many");
            return;
        }
        inner.signals.push_back(signal);
    }

    fn counters(&self) -> Counters {
        self.inner().counters
    }

    fn round_trip_us(&self) -> Option<u64> {
        self.inner().liveness.round_trip_us()
    }

    fn route(&self) -> Option<Route> {
        self.inner().route
    }

    fn doubt(&self) {
        self.inner().doubted = true;
    }

    fn close(&self) {
        let mut inner = self.inner();
        if matches!(inner.state, State::Opening { .. } | State::Open) {
            let until_us = inner.now_us + CLOSE_GRACE_US;
            inner.state = State::Closing { until_us };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> BrowserLink {
        let link = BrowserLink::new(0);
        for lane in Lane::ALL {
            let opened = link.handle_open(1, lane);
            assert_eq!(opened.is_some(), lane == Lane::Datagram);
        }
        link
    }

    fn time_of(link: &BrowserLink) -> u64 {
        link.inner().now_us
    }

    fn sent(link: &BrowserLink) -> Vec<(Lane, usize)> {
        let tasks = std::iter::from_fn(|| link.poll_task(time_of(link)));
        tasks
            .filter_map(|task| if let Task::Send(lane, bytes) = task { Some((lane, bytes.len())) } else { None })
            .collect()
    }

    #[test]
    fn packets_wait_for_the_channels_and_then_share_messages() {
        let link = BrowserLink::new(0);
        link.send(Lane::Bulk, &[0x45; 100]).unwrap();
        link.send(Lane::Bulk, &[0x45; 100]).unwrap();
        assert_eq!(link.poll_task(time_of(&link)), None);
        for lane in Lane::ALL {
            link.handle_open(1, lane);
        }
        assert_eq!(sent(&link), [(Lane::Bulk, 200)]);
    }

    /// Fills the link, and returns the last mark and what was sent in all.
    fn fill(link: &BrowserLink) -> (u64, usize) {
        let (mut mark, mut total) = (0, 0);
        while link.room().stream >= crate::MTU {
            link.send(Lane::Bulk, &[0x45; crate::MTU]).unwrap();
            while let Some(task) = link.poll_task(time_of(link)) {
                let Task::Send(Lane::Bulk, message) = task else {
                    continue;
                };
                match Probe::parse(&message) {
                    Some(Probe::Mark(set)) => mark = set,
                    _ => total += message.len(),
                }
            }
        }
        (mark, total)
    }

    #[test]
    fn what_the_peer_has_not_answered_for_holds_the_rest_back() {
        let link = open();
        let (mark, total) = fill(&link);
        assert_eq!(mark, total as u64);
        assert!((crate::budget::BUDGET_MIN..=BURST_MAX).contains(&total), "{total}");
        assert!(link.poll_writable().is_none());
        // That the channels have sent everything says nothing.
        link.handle_buffered(2, [0; 4]);
        assert_eq!(sent(&link), []);
        let answer = Probe::Reached(Lane::Bulk, mark).emit();
        assert!(link.handle_message(3, Lane::Datagram, &answer).is_none());
        assert!(sent(&link).iter().any(|(_, bytes)| *bytes > 9));
        assert!(link.poll_writable().is_some());
    }

    #[test]
    fn a_peer_that_answers_no_mark_is_lost_and_is_asked_again_before() {
        let link = open();
        fill(&link);
        link.handle_buffered(1, [0; 4]);
        let (mut now, mut marks) = (1, 0);
        let lost = loop {
            now = link.poll_timeout_us().unwrap().max(now + 1);
            // Its answers are as good as lost, and so are those to pings.
            if let Some(lost) = link.handle_timeout(now) {
                break lost;
            }
            if link.wants_buffered(now) {
                link.handle_buffered(now, [0; 4]);
            }
            marks += sent(&link).iter().filter(|(lane, _)| *lane == Lane::Bulk).count();
        };
        assert_eq!((lost, now), (Lost::Silent, 1 + crate::liveness::STALL_US));
        assert!(marks >= 10, "{marks}");
    }

    #[test]
    fn a_slow_wire_that_moves_is_no_dead_one() {
        let link = open();
        let (mark, total) = fill(&link);
        let mut buffered = [0; 4];
        buffered[Lane::Bulk.index()] = total;
        // 4 kB a second: the mark arrives after half a minute, and no ping overtakes a message.
        let mut now = 1;
        while buffered[Lane::Bulk.index()] > 0 {
            now += 1_000_000;
            buffered[Lane::Bulk.index()] = buffered[Lane::Bulk.index()].saturating_sub(4_000);
            link.handle_buffered(now, buffered);
            assert_eq!(link.handle_timeout(now), None, "{now}");
            sent(&link);
        }
        assert!(now > 20_000_000);
        link.handle_message(now, Lane::Datagram, &Probe::Reached(Lane::Bulk, mark).emit());
        assert!(sent(&link).iter().any(|(_, bytes)| *bytes > 9));
    }

    /// What is outstanding looks the same at every look, although all of it arrives.
    #[test]
    fn a_steady_sender_whose_marks_are_answered_is_not_stuck() {
        const PERIOD_US: u64 = 100_000;
        let link = open();
        let mut answers = VecDeque::new();
        for now in (1..60_000_000).step_by(5_000) {
            while answers.front().is_some_and(|(due, _)| *due <= now) {
                let (_, mark) = answers.pop_front().unwrap();
                link.handle_message(now, Lane::Datagram, &Probe::Reached(Lane::Bulk, mark).emit());
            }
            if now % PERIOD_US == 1 {
                link.send(Lane::Bulk, &[0x45; 16_400]).unwrap();
            }
            if now % 1_000_000 == 75_001 {
                link.handle_buffered(now, [0; 4]);
            }
            assert_eq!(link.handle_timeout(now), None, "{now}");
            while let Some(task) = link.poll_task(now) {
                if let Task::Send(Lane::Bulk, message) = task
                    && let Some(Probe::Mark(mark)) = Probe::parse(&message)
                {
                    answers.push_back((now + 250_000, mark));
                }
            }
        }
    }

    #[test]
    fn what_is_buffered_of_datagrams_holds_them_back_and_is_asked_for() {
        let link = open();
        let mut buffered = [0; 4];
        while link.send(Lane::Datagram, &[0x45; 1_200]).is_ok() {
            for (lane, len) in sent(&link) {
                buffered[lane.index()] += len;
            }
        }
        assert!(buffered[Lane::Datagram.index()] >= crate::budget::BUDGET_MIN / 4);
        assert!(!link.wants_buffered(1) && link.wants_buffered(1 + NEWS_INTERVAL_US));
        link.handle_buffered(2, [0; 4]);
        assert!(!sent(&link).is_empty());
    }

    #[test]
    fn marks_of_the_peer_are_answered_once_for_each_lane() {
        let link = open();
        for mark in [16_384, 32_768] {
            assert!(link.handle_message(2, Lane::Bulk, &Probe::Mark(mark).emit()).is_none());
        }
        let answer = Probe::Reached(Lane::Bulk, 32_768).emit();
        assert_eq!(link.poll_task(2), Some(Task::Send(Lane::Datagram, BytesMut::from(&answer[..]))));
        assert_eq!(sent(&link), []);
    }

    #[test]
    fn a_silent_peer_is_probed_and_lost_and_one_that_is_never_reached_has_no_path() {
        let link = open();
        let mut now = 1;
        let mut pings = 0;
        let lost = loop {
            now = link.poll_timeout_us().unwrap().max(now + 1);
            if let Some(lost) = link.handle_timeout(now) {
                break lost;
            }
            link.handle_buffered(now, [0; 4]);
            pings += sent(&link).len();
        };
        assert_eq!(lost, Lost::Silent);
        assert!(pings >= 3 && now < 60_000_000, "{pings} pings, {now} us");
        assert_eq!(link.poll_task(time_of(&link)), Some(Task::Close));
        assert_eq!(link.poll_timeout_us(), None);

        let link = BrowserLink::new(5);
        assert_eq!(link.handle_timeout(OPEN_TIMEOUT_US), None);
        assert_eq!(link.handle_timeout(OPEN_TIMEOUT_US + 5), Some(Lost::NoPath));
    }

    #[test]
    fn goodbye_leaves_before_the_connection_is_closed() {
        let link = open();
        assert!(sent(&link).is_empty());
        link.send_control(b"bye").unwrap();
        link.close();
        assert_eq!(link.poll_task(time_of(&link)), Some(Task::Send(Lane::Control, BytesMut::from(&b"bye"[..]))));
        assert_eq!(link.poll_task(time_of(&link)), None);
        link.handle_buffered(2, [0; 4]);
        assert_eq!(link.poll_task(time_of(&link)), Some(Task::Close));
        assert!(!link.handle_closed(), "this end has closed it");
    }

    #[test]
    fn pings_are_answered_and_nonsense_is_counted() {
        let link = open();
        assert!(link.handle_message(2, Lane::Datagram, &Probe::Ping(7).emit()).is_none());
        assert_eq!(
            link.poll_task(time_of(&link)),
            Some(Task::Send(Lane::Datagram, BytesMut::from(&Probe::Pong(7).emit()[..])))
        );
        assert!(link.handle_message(3, Lane::Datagram, &[0x07]).is_none());
        assert!(matches!(link.handle_message(3, Lane::Control, b"x"), Some(Event::Control(b"x"))));
        assert_eq!(link.counters().malformed, 1);
    }
}
