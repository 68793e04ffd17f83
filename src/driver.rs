//! The loop around a node: the clock, the links, signaling, and who waits for which socket.
//!
//! No task stands between a call on a socket and the link's queue: whoever calls runs the stack.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant as Clock;
use unisockets_link::native::{self as link, NativeLink};
use unisockets_link::{Event, Link, Sink};
use unisockets_signaling::member::{Event as MemberEvent, Failure};
use unisockets_signaling::native::{Client, Command, Notice};
use unisockets_signaling::protocol::{Code, Query, Welcome};
use unisockets_stack::{Instant, Readiness, SocketId};

use crate::config::save_pins;
use crate::lookup::{Lookup, LookupError};
use crate::node::{NodeCore, Output};
use crate::peers::LinkId;

/// STUN and TURN servers that signaling may name.
const ICE_SERVERS_MAX: usize = 16;
/// How long signaling may take to say who somebody is.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a capture is brought to the disk while packets pass.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Where the node stands with signaling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Membership {
    /// Not yet in; the text is the last failure.
    Joining(Option<String>),
    /// Not yet in, and the server's certificate is not trusted; the text says why.
    Untrusted(String),
    Joined(Box<Welcome>),
    /// It was in and is connecting again; everything goes on.
    Reconnecting(Box<Welcome>),
    Rejected(Code, String),
}

/// Which of a socket's two directions somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
}

#[derive(Default)]
struct Waiting {
    read: Vec<Waker>,
    write: Vec<Waker>,
}

pub(crate) struct State {
    pub(crate) core: NodeCore,
    waiting: HashMap<SocketId, Waiting>,
    lookups: HashMap<u64, oneshot::Sender<Lookup>>,
    queries: HashMap<u64, Query>,
    ready: Vec<SocketId>,
}

impl State {
    /// Remembers to wake somebody when a direction of a socket is ready.
    pub(crate) fn wait(&mut self, socket: SocketId, interest: Interest, waker: &Waker) {
        let waiting = self.waiting.entry(socket).or_default();
        let wakers = match interest {
            Interest::Read => &mut waiting.read,
            Interest::Write => &mut waiting.write,
        };
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    /// Closes a socket and wakes whoever still waits for it.
    pub(crate) fn close(&mut self, now: Instant, socket: SocketId, wake: &mut Vec<Waker>) {
        self.core.stack.close(now, socket);
        if let Some(waiting) = self.waiting.remove(&socket) {
            wake.extend(waiting.read);
            wake.extend(waiting.write);
        }
    }

    fn collect_wakers(&mut self, wake: &mut Vec<Waker>) {
        const READ: Readiness = Readiness::READABLE;
        let mut ready = std::mem::take(&mut self.ready);
        self.core.take_ready(&mut ready);
        for socket in ready.drain(..) {
            let Some(waiting) = self.waiting.get_mut(&socket) else {
                continue;
            };
            let readiness = self.core.stack.readiness(socket);
            let either = Readiness::ERROR | Readiness::HANG_UP;
            if readiness.intersects(READ | Readiness::READ_CLOSED | either) {
                wake.append(&mut waiting.read);
            }
            if readiness.intersects(Readiness::WRITABLE | either) {
                wake.append(&mut waiting.write);
            }
        }
        self.ready = ready;
    }
}

/// The shell of a node.
pub(crate) struct Driver {
    state: Mutex<State>,
    origin: Clock,
    /// The deadline that the timer task sleeps for, in microseconds.
    armed: AtomicU64,
    rearm: Arc<Notify>,
    handle: tokio::runtime::Handle,
    client: OnceLock<Client>,
    link_config: Mutex<link::Config>,
    pub(crate) membership: watch::Sender<Membership>,
    /// What signaling said last when it let the node in.
    welcome: Mutex<Option<Box<Welcome>>>,
    /// Servers of the node's own settings, to which signaling's are added.
    ice_servers: Vec<unisockets_link::IceServer>,
    pins_path: Option<PathBuf>,
    /// Woken when connections that were closed may have come to their end.
    pub(crate) changed: Notify,
}

/// Returns the time since 1970 in nanoseconds.
pub(crate) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Driver {
    pub(crate) fn new(
        core: NodeCore,
        origin: Clock,
        link_config: link::Config,
        pins_path: Option<PathBuf>,
    ) -> Arc<Driver> {
        let driver = Arc::new(Driver {
            state: Mutex::new(State {
                core,
                waiting: HashMap::new(),
                lookups: HashMap::new(),
                queries: HashMap::new(),
                ready: Vec::new(),
            }),
            origin,
            armed: AtomicU64::new(u64::MAX),
            rearm: Arc::new(Notify::new()),
            handle: tokio::runtime::Handle::current(),
            client: OnceLock::new(),
            membership: watch::channel(Membership::Joining(None)).0,
            welcome: Mutex::new(None),
            ice_servers: link_config.ice_servers.clone(),
            link_config: Mutex::new(link_config),
            pins_path,
            changed: Notify::new(),
        });
        tokio::spawn(keep_time(Arc::downgrade(&driver), Arc::clone(&driver.rearm)));
        driver
    }

    pub(crate) fn set_client(&self, client: Client) {
        let _ = self.client.set(client);
    }

    pub(crate) fn client(&self) -> Option<&Client> {
        self.client.get()
    }

    /// Returns where the node's tasks run.
    #[cfg(all(feature = "tun", target_os = "linux"))]
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.handle
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the node without giving it anything to do.
    pub(crate) fn look<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        f(&self.lock())
    }

    /// Does something with the node, moves every packet that follows from it, and wakes who waits.
    pub(crate) fn with<R>(self: &Arc<Self>, f: impl FnOnce(&mut State, Instant, &mut Vec<Waker>) -> R) -> R {
        let mut wake = Vec::new();
        let mut outputs = Vec::new();
        let (result, due) = {
            let mut state = self.lock();
            // The clock is read under the lock, so that time never runs backwards for the core.
            let now = self.now();
            let result = f(&mut state, now, &mut wake);
            state.core.pump(now);
            state.collect_wakers(&mut wake);
            while let Some(output) = state.core.poll_output() {
                if let Output::Resolve { id, query } = &output {
                    state.queries.insert(*id, query.clone());
                }
                outputs.push(output);
            }
            while let Some((id, answer)) = state.core.poll_answer() {
                if let Some(waiter) = state.lookups.remove(&id) {
                    let _ = waiter.send(answer);
                }
            }
            (result, state.core.poll_timeout())
        };
        // Wakers run after the lock is free.
        for waker in wake {
            waker.wake();
        }
        if let Some(due) = due
            && due.as_micros() < self.armed.load(Ordering::Acquire)
        {
            self.rearm.notify_one();
        }
        if !outputs.is_empty() {
            self.carry_out(outputs);
        }
        result
    }

    fn carry_out(self: &Arc<Self>, outputs: Vec<Output>) {
        // A socket may be dropped outside the runtime.
        let _entered = self.handle.enter();
        for output in outputs {
            match output {
                Output::OpenLink { link, role } => {
                    let config = self.link_config.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let sink = Arc::new(LinkSink { driver: Arc::downgrade(self), link });
                    let made: Arc<dyn Link> = NativeLink::open(config, role, sink);
                    self.with(|state, _, _| state.core.link_made(link, made));
                }
                Output::Resolve { id, query } => {
                    if !self.send(Command::Resolve(id, query)) {
                        self.resolved(id, Err(LookupError::unanswered("too much waits for the signaling server")));
                    }
                }
                Output::Signal { to, payload } => {
                    if !self.send(Command::Signal(to, payload)) {
                        tracing::warn!("too much waits for signaling; an introduction was dropped");
                    }
                }
            }
        }
    }

    /// Hands a command to signaling's task; returns whether it was taken.
    fn send(&self, command: Command) -> bool {
        self.client.get().is_some_and(|client| client.command(command))
    }

    fn resolved(self: &Arc<Self>, id: u64, answer: Lookup) {
        self.with(|state, now, _| {
            let query = state.queries.remove(&id);
            state.core.resolved(now, id, answer, query.as_ref());
        });
        self.keep_pins();
    }

    /// Returns what signaling said last when it let the node in.
    pub(crate) fn welcome(&self) -> Option<Box<Welcome>> {
        self.welcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks signaling who somebody is.
    pub(crate) async fn lookup(self: &Arc<Self>, query: Query) -> Lookup {
        let (sender, answer) = oneshot::channel();
        let id = self.with(|state, _, _| {
            let id = state.core.lookup(query);
            state.lookups.insert(id, sender);
            id
        });
        match tokio::time::timeout(LOOKUP_TIMEOUT, answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(LookupError::unanswered("the node has left the network"))),
            Err(_) => {
                self.with(|state, _, _| {
                    state.lookups.remove(&id);
                    state.queries.remove(&id);
                    state.core.abandon_lookup(id);
                });
                let text = "the signaling server does not answer; try again when it can be reached";
                Err(LookupError::unanswered(text))
            }
        }
    }

    /// Takes what the member of signaling learns.
    pub(crate) fn notice(self: &Arc<Self>, notice: Notice) {
        // The node's clock stands still while the machine sleeps; the calendar does not.
        let unix_ms = unix_ns() / 1_000_000;
        self.with(|state, now, _| state.core.set_calendar(now, unix_ms));
        match notice {
            Notice::Unreachable(reason) => {
                self.membership.send_if_modified(|membership| match membership {
                    Membership::Joining(last) => {
                        *last = Some(reason);
                        true
                    }
                    _ => false,
                });
            }
            Notice::Untrusted(reason) => self.untrusted(reason),
            Notice::Event(event) => self.member_event(event),
        }
    }

    /// Gives joining up; a node that was in stays, and tries again.
    fn untrusted(&self, reason: String) {
        self.membership.send_if_modified(|membership| match membership {
            Membership::Joining(_) => {
                *membership = Membership::Untrusted(reason);
                true
            }
            _ => {
                tracing::warn!(reason, "the signaling server's certificate is not trusted");
                false
            }
        });
    }

    fn member_event(self: &Arc<Self>, event: MemberEvent) {
        match event {
            MemberEvent::Joined(welcome) => self.joined(welcome),
            MemberEvent::Rejected(code, message) => {
                self.membership.send_replace(Membership::Rejected(code, message));
            }
            MemberEvent::Disconnected => {
                self.with(|state, _, _| state.core.signaling_lost());
                self.membership.send_modify(|membership| {
                    if let Membership::Joined(welcome) = membership {
                        *membership = Membership::Reconnecting(welcome.clone());
                    }
                });
            }
            MemberEvent::Resolved(id, answer) => {
                self.resolved(id, answer.map_err(LookupError::from));
            }
            MemberEvent::Signal(from, payload) => {
                self.with(|state, now, _| state.core.handle_signal(now, from, &payload))
            }
            MemberEvent::Undelivered { to, failure, .. } if failure.is_not_found() => {
                self.with(|state, now, _| state.core.undelivered(now, to));
            }
            MemberEvent::Undelivered { to, failure: Failure::Refused(Code::TooMuch, _), .. } => {
                self.with(|state, now, _| state.core.congested(now, to));
            }
            MemberEvent::Gone(key, reason) => self.with(|state, now, _| state.core.peer_gone(now, key, reason)),
            MemberEvent::Undelivered { .. } | MemberEvent::Members(..) | MemberEvent::Delivered(_) => {}
        }
    }

    fn joined(self: &Arc<Self>, welcome: Box<Welcome>) {
        let (result, peers) = self.with(|state, now, _| (state.core.joined(now, &welcome), state.core.peer_keys()));
        if let Err(text) = result {
            // Nothing of what another server than before says is taken over.
            self.membership.send_replace(Membership::Rejected(Code::BadProof, text));
            return;
        }
        let servers = welcome.ice_servers.iter().take(ICE_SERVERS_MAX).map(|server| unisockets_link::IceServer {
            url: server.url.clone(),
            username: server.username.clone(),
            credential: server.credential.clone(),
        });
        {
            let mut config = self.link_config.lock().unwrap_or_else(PoisonError::into_inner);
            config.ice_servers = self.ice_servers.iter().cloned().chain(servers).collect();
            config.avoid = welcome.prefixes.iter().map(|prefix| (prefix.address, prefix.len)).collect();
        }
        if !peers.is_empty() {
            self.send(Command::Watch(peers));
        }
        *self.welcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(welcome.clone());
        self.membership.send_replace(Membership::Joined(welcome));
        self.keep_pins();
    }

    /// Brings new pins to their file.
    fn keep_pins(self: &Arc<Self>) {
        let pins = self.with(|state, _, _| state.core.pins.take_changed().then(|| state.core.pins.clone()));
        if let (Some(pins), Some(path)) = (pins, &self.pins_path)
            && let Err(error) = save_pins(path, &pins)
        {
            tracing::warn!(%error, "pins are not kept");
        }
    }
}

/// Calls the node when its deadlines are due.
async fn keep_time(driver: Weak<Driver>, rearm: Arc<Notify>) {
    loop {
        let Some(strong) = driver.upgrade() else {
            return;
        };
        let due = strong.look(|state| state.core.poll_timeout());
        strong.armed.store(due.map_or(u64::MAX, Instant::as_micros), Ordering::Release);
        // The deadline may have changed between looking and arming: the node is asked once more.
        let again = strong.look(|state| state.core.poll_timeout());
        if again.is_some_and(|again| due.is_none_or(|due| again < due)) {
            continue;
        }
        let wait = due.map(|due| due.saturating_since(strong.now()));
        // The task must not keep alive what it serves.
        drop(strong);
        let sleep = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {
                if let Some(driver) = driver.upgrade() {
                    driver.with(|state, now, _| state.core.handle_timeout(now));
                    driver.changed.notify_waiters();
                }
            }
            () = rearm.notified() => {}
        }
    }
}

/// Brings a capture to its file now and then, so that it can be watched live.
pub(crate) async fn flush_capture(driver: Weak<Driver>) {
    loop {
        tokio::time::sleep(FLUSH_INTERVAL).await;
        let Some(driver) = driver.upgrade() else {
            return;
        };
        if !driver.with(|state, _, _| state.core.flush_tap()) {
            return;
        }
    }
}

impl Drop for Driver {
    /// Whoever drops a node and all its sockets without leaving still says goodbye.
    fn drop(&mut self) {
        let now = self.now();
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).core.leave(now);
        self.send(Command::Leave);
        self.rearm.notify_one();
    }
}

/// Takes what a link reports.
struct LinkSink {
    driver: Weak<Driver>,
    link: LinkId,
}

impl Sink for LinkSink {
    fn event(&self, event: Event<'_>) {
        let Some(driver) = self.driver.upgrade() else {
            return;
        };
        let id = self.link;
        driver.with(|state, now, _| match event {
            Event::Packets(message) => state.core.handle_message(now, id, message),
            Event::Writable => state.core.link_writable(id),
            Event::Signal(signal) => state.core.link_signal(now, id, &signal),
            Event::Opened => state.core.link_opened(now, id),
            Event::RoundTrip => state.core.link_measured(id),
            Event::Control(message) => state.core.handle_control(now, id, message),
            Event::Lost(lost) => state.core.link_lost(now, id, lost),
            _ => {}
        });
    }
}
