//! Our stack as a host on a TUN device: a plain thread, the real time, and a bad wire on the way.

use std::collections::HashSet;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clock};

use unisockets_stack::{
    Error, Event, Family, Instant, Kind, PathConfig, PathId, Prefix, Readiness, Room, SocketId, Stack,
};
use unisockets_wire::{Batch, Conditions, Fault, Tun};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How often whoever waits looks, whether something has happened or not.
const LOOK: Duration = Duration::from_millis(200);
/// Packets that are taken in before what follows from them is sent.
const BATCH_LEN: usize = 256;
/// A device has no queue of ours: what leaves is with the kernel at once.
const ROOM: Room = Room { stream: 1 << 20, datagram: 1 << 20 };

/// What the member's thread and its callers share.
pub struct State {
    pub stack: Stack,
    pub path: PathId,
    /// Packets that left the stack, and that came from the kernel.
    pub sent: u64,
    pub received: u64,
    outward: Fault,
    inward: Fault,
    ready: HashSet<SocketId>,
    tun: Arc<Tun>,
    epoch: Clock,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A host whose network is our stack.
pub struct Member {
    shared: Arc<Shared>,
    wake: PipeWriter,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.wake.write_all(b"e");
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl State {
    fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    pub fn now(&self) -> Instant {
        Instant::from_micros(self.now_us())
    }

    /// When something has to be done although no packet comes.
    fn due_us(&self) -> Option<u64> {
        let stack = self.stack.poll_timeout().map(Instant::as_micros);
        [stack, self.outward.poll_timeout_us(), self.inward.poll_timeout_us()].into_iter().flatten().min()
    }

    /// Lets everything happen that is due.
    pub fn turn(&mut self) {
        let now_us = self.now_us();
        let now = Instant::from_micros(now_us);
        while let Some(packet) = self.inward.poll_packet(now_us) {
            let _ = self.stack.handle_packet(now, self.path, &packet);
        }
        self.stack.handle_timeout(now);
        let mut packet = Vec::new();
        while let Some(path) = self.stack.poll_path() {
            while self.stack.poll_packet(now, path, ROOM, &mut packet).is_some() {
                if path == self.path {
                    self.sent += 1;
                    self.outward.handle_packet(now_us, &packet);
                } else {
                    let _ = self.stack.handle_packet(now, path, &packet);
                }
                packet.clear();
            }
        }
        while let Some(packet) = self.outward.poll_packet(now_us) {
            // The kernel refuses what the wire has made no IP packet of.
            let _ = self.tun.send(&packet);
        }
        while let Some(event) = self.stack.poll_event() {
            if let Event::Ready(socket) = event {
                self.ready.insert(socket);
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the stack until somebody says the end.
    fn serve(&self, tun: &Tun, wake: &mut PipeReader) {
        let mut batch = Batch::default();
        loop {
            let wait = {
                let state = self.state();
                state.due_us().map(|due| Duration::from_micros(due.saturating_sub(state.now_us())))
            };
            let [packets, called] = unisockets_wire::readable([tun.as_fd(), wake.as_fd()], wait);
            if called {
                let mut bytes = [0; 64];
                let len = wake.read(&mut bytes).unwrap_or(0);
                if len == 0 || bytes[..len].contains(&b'e') {
                    return;
                }
            }
            let mut state = self.state();
            let now_us = state.now_us();
            if packets {
                let state = &mut *state;
                let take = |packet: &[u8]| state.inward.handle_packet(now_us, packet);
                state.received += batch.take(tun, BATCH_LEN, take).expect("the device works") as u64;
            }
            state.turn();
            self.changed.notify_all();
        }
    }
}

impl Member {
    /// Puts a member with these addresses on a device; `peers` are all addresses that it can reach.
    pub fn new(tun: Tun, own: [IpAddr; 2], peers: &[IpAddr], mtu: usize) -> Member {
        static SEED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let seed = u128::from(SEED.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) << 64 | 0x5eed;
        let mut stack = Stack::new(seed);
        let prefixes = own.map(|address| Prefix { address, len: if address.is_ipv4() { 24 } else { 64 } });
        stack.set_addresses(&own, &prefixes);
        let config = PathConfig { mtu, verify_checksums: true };
        let path = stack.open_path(config).unwrap();
        for peer in peers {
            stack.add_route(Instant::ZERO, *peer, path);
        }
        stack.path_up(Instant::ZERO, path, config);
        let tun = Arc::new(tun);
        let state = State {
            stack,
            path,
            sent: 0,
            received: 0,
            outward: Fault::new(Conditions::default(), 1),
            inward: Fault::new(Conditions::default(), 2),
            ready: HashSet::new(),
            tun: Arc::clone(&tun),
            epoch: Clock::now(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (mut reader, wake) = io::pipe().unwrap();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.serve(&tun, &mut reader)
        });
        Member { shared, wake, thread: Some(thread) }
    }

    /// Makes a call on the stack; what follows from it is done when this returns.
    pub fn call<T>(&self, call: impl FnOnce(&mut Stack, Instant) -> T) -> T {
        let mut state = self.shared.state();
        let now = state.now();
        let before = state.due_us();
        let result = call(&mut state.stack, now);
        state.turn();
        self.rearm(before, state.due_us());
        drop(state);
        self.shared.changed.notify_all();
        result
    }

    /// Wakes the thread if it has to do something sooner than it knew.
    fn rearm(&self, before: Option<u64>, after: Option<u64>) {
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            (&self.wake).write_all(b"w").expect("the member's thread lives");
        }
    }

    /// Calls until there is a result, each time after something has happened.
    pub fn wait<T>(&self, what: &str, mut call: impl FnMut(&mut Stack, Instant) -> Option<T>) -> T {
        self.wait_state(what, |state| {
            let now = state.now();
            let result = call(&mut state.stack, now);
            state.turn();
            result
        })
    }

    /// Looks at everything until there is a result.
    pub fn wait_state<T>(&self, what: &str, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        let deadline = Clock::now() + LIMIT;
        let mut state = self.shared.state();
        loop {
            let before = state.due_us();
            let result = look(&mut state);
            self.rearm(before, state.due_us());
            if let Some(result) = result {
                return result;
            }
            let left = deadline.saturating_duration_since(Clock::now());
            assert!(!left.is_zero(), "never: {what}; {:?}", state.stack.sockets());
            state = self.shared.changed.wait_timeout(state, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn set_conditions(&self, conditions: Conditions) {
        let mut state = self.shared.state();
        state.outward.set_conditions(conditions);
        state.inward.set_conditions(conditions);
    }

    /// Loses everything in both directions from now on.
    pub fn cut(&self) {
        let mut state = self.shared.state();
        state.outward.black_out(u64::MAX);
        state.inward.black_out(u64::MAX);
    }

    /// Returns the packets that left the stack and that came from the kernel so far.
    pub fn packets(&self) -> (u64, u64) {
        let state = self.shared.state();
        (state.sent, state.received)
    }

    pub fn listen(&self, address: SocketAddr, backlog: usize) -> SocketId {
        self.call(|stack, _| {
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            let socket = stack.socket(Kind::Tcp, family).unwrap();
            stack.bind(socket, address).unwrap();
            stack.listen(socket, backlog).unwrap();
            socket
        })
    }

    pub fn accept(&self, listener: SocketId) -> SocketId {
        self.wait("a connection from the kernel", |stack, now| stack.accept(now, listener).ok()).0
    }

    /// Starts a connection.
    pub fn start(&self, to: SocketAddr) -> SocketId {
        self.call(|stack, now| {
            let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
            let socket = stack.socket(Kind::Tcp, family).unwrap();
            assert_eq!(stack.connect(now, socket, to), Err(Error::InProgress));
            socket
        })
    }

    pub fn connect(&self, to: SocketAddr) -> Result<SocketId, Error> {
        let socket = self.start(to);
        self.wait("a connection to the kernel", |stack, _| {
            let readiness = stack.readiness(socket);
            if readiness.contains(Readiness::ERROR) {
                return Some(Err(stack.take_error(socket).unwrap().unwrap()));
            }
            readiness.contains(Readiness::WRITABLE).then_some(Ok(socket))
        })
    }

    /// Waits until some sockets are ready and returns them.
    pub fn ready(&self) -> HashSet<SocketId> {
        self.wait_state("a socket that is ready", |state| {
            state.turn();
            (!state.ready.is_empty()).then(|| std::mem::take(&mut state.ready))
        })
    }

    pub fn close(&self, socket: SocketId) {
        self.call(|stack, now| stack.close(now, socket));
    }
}
