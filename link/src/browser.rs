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

/// What the page has to do for a link.
#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// Hand a signal of the peer to the connection.
    Negotiate(Signal),
    /// Send a message on the channel of a lane.
    Send(Lane, BytesMut),
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
            outgoing: Outgoing::default(),
            liveness: Liveness::new(now_us),
            counters: Counters::default(),
            signals: VecDeque::new(),
            candidates: 0,
            open: [false; 4],
            doubted: false,
            route: None,
            now_us,
            look_at_us: None,
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
            Lane::Datagram if data.first().is_some_and(|first| *first < 0x10) => {
                inner.take_probe(now_us, data);
                None
            }
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

    /// Takes how many bytes are buffered in the channels (`bufferedAmount`), by the position of their lanes.
    pub fn handle_buffered(&self, now_us: u64, buffered: [usize; 4]) {
        let mut inner = self.inner();
        inner.now_us = now_us;
        inner.outgoing.budget.begin_refresh();
        for lane in Lane::ALL {
            inner.outgoing.budget.refresh(lane, buffered[lane.index()]);
            // Datagrams that are lost are given up, which is no progress.
            if lane != Lane::Datagram {
                inner.liveness.outstanding_in(now_us, lane, buffered[lane.index()]);
            }
        }
        inner.outgoing.budget.handle_progress(now_us);
        inner.liveness.outstanding(now_us, buffered.iter().sum());
        inner.look_at_us = None;
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
                Some(inner.look_at_us.map_or(due, |at| at.min(due)))
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
        if let Some((lane, message)) = inner.outgoing.pop() {
            // What the channel has buffered was not sent yet: it says nothing about what has arrived.
            if lane != Lane::Datagram {
                inner.liveness.sent(now_us);
            }
            return Some(Task::Send(lane, message));
        }
        inner.plan();
        inner.watches.pop_front().map(|(lane, bytes)| Task::Watch(lane, bytes))
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
    fn take_probe(&mut self, now_us: u64, data: &[u8]) {
        match Probe::parse(data) {
            Some(Probe::Ping(number)) => {
                self.liveness.heard(now_us);
                self.outgoing.probe(Probe::Pong(number));
            }
            Some(Probe::Pong(number)) => {
                if let Some(round_trip) = self.liveness.pong(now_us, number) {
                    self.outgoing.budget.handle_round_trip(now_us, round_trip);
                }
            }
            None => self.counters.malformed += 1,
        }
    }

    /// Decides when to look at the buffered bytes again, and asks for news of them.
    fn plan(&mut self) {
        let waits = self.outgoing.waits();
        let pause = match waits {
            Waits::HeldBack => NEWS_INTERVAL_US,
            _ if self.outgoing.budget.outstanding() > 0 => PROGRESS_INTERVAL_US,
            _ => return self.look_at_us = None,
        };
        let at = self.now_us + pause;
        if self.look_at_us.is_some_and(|known| known <= at) {
            return;
        }
        self.look_at_us = Some(at);
        if waits == Waits::HeldBack {
            for lane in Lane::ALL {
                let outstanding = self.outgoing.budget.outstanding_in(lane);
                if outstanding > 0 {
                    self.watches.push_back((lane, outstanding / 2));
                }
            }
        }
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

    #[test]
    fn what_is_buffered_holds_the_rest_back_and_is_asked_for() {
        let link = open();
        let mut buffered = [0; 4];
        while link.room().stream >= crate::MTU {
            link.send(Lane::Bulk, &[0x45; crate::MTU]).unwrap();
            for (lane, len) in sent(&link) {
                buffered[lane.index()] += len;
            }
        }
        assert!(buffered[Lane::Bulk.index()] >= crate::budget::BUDGET_MIN);
        assert!(!link.wants_buffered(1) && link.wants_buffered(1 + NEWS_INTERVAL_US));
        assert!(link.poll_writable().is_none());
        link.handle_buffered(2, [0; 4]);
        assert!(!sent(&link).is_empty());
        assert!(link.poll_writable().is_some());
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
