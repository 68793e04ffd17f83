//! Rows of the stack alone: two of them in one thread, joined by memory, with checksums.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use unisockets_stack::{Error, Family, Instant, Kind, PathConfig, PathId, Prefix, Room, SocketId, SocketOption, Stack};

use crate::processes::{Failure, Process, median};
use crate::{Reach, Row};

const ROOM: Room = Room { stream: 1 << 20, datagram: 1 << 20 };
const ROUNDS: usize = 5;

/// The processor time that this thread has had, without the time in which others had the processor.
struct Clock(Duration);

impl Clock {
    fn read() -> Result<Duration, Failure> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
        Ok(Duration::from_nanos(text.split_whitespace().next().ok_or("no time in schedstat")?.parse()?))
    }

    fn start() -> Result<Clock, Failure> {
        Ok(Clock(Self::read()?))
    }

    fn elapsed(&self) -> Result<Duration, Failure> {
        Ok(Self::read()?.saturating_sub(self.0))
    }
}

struct Side {
    stack: Stack,
    path: PathId,
    address: IpAddr,
}

/// Two stacks and the time that both are told.
struct Pair {
    sides: [Side; 2],
    now: Instant,
    packets: u64,
}

impl Pair {
    fn new(mtu: usize) -> Result<Pair, Failure> {
        let side = |own: u8, other: u8| -> Result<Side, Failure> {
            let address: IpAddr = format!("10.80.0.{own}").parse()?;
            let mut stack = Stack::new(u128::from(own) << 64 | 0x5eed);
            stack.set_addresses(&[address], &[Prefix { address: "10.80.0.0".parse()?, len: 16 }]);
            let config = PathConfig { mtu, verify_checksums: true };
            let path = stack.open_path(config)?;
            stack.add_route(Instant::ZERO, format!("10.80.0.{other}").parse()?, path);
            stack.path_up(Instant::ZERO, path, config);
            Ok(Side { stack, path, address })
        };
        Ok(Pair { sides: [side(1, 2)?, side(2, 1)?], now: Instant::from_millis(1_000), packets: 0 })
    }

    /// Moves packets until there are none.
    fn settle(&mut self) {
        let mut packet = Vec::with_capacity(1 << 16);
        let mut idle = 0;
        for from in [0, 1].into_iter().cycle() {
            let before = self.packets;
            let [first, second] = &mut self.sides;
            let (sender, receiver) = if from == 0 { (first, second) } else { (second, first) };
            while let Some(path) = sender.stack.poll_path() {
                while sender.stack.poll_packet(self.now, path, ROOM, &mut packet).is_some() {
                    self.packets += 1;
                    let _ = receiver.stack.handle_packet(self.now, receiver.path, &packet);
                    packet.clear();
                }
            }
            while sender.stack.poll_event().is_some() {}
            idle = if self.packets == before { idle + 1 } else { 0 };
            if idle >= 2 {
                return;
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        for side in &mut self.sides {
            side.stack.handle_timeout(self.now);
        }
        self.settle();
    }

    fn listen(&mut self, port: u16, options: &[SocketOption]) -> Result<SocketId, Failure> {
        let stack = &mut self.sides[1].stack;
        let listener = stack.socket(Kind::Tcp, Family::V4)?;
        for option in options {
            stack.set_option(listener, *option)?;
        }
        stack.bind(listener, SocketAddr::new("0.0.0.0".parse()?, port))?;
        stack.listen(listener, 1_024)?;
        Ok(listener)
    }

    fn start(&mut self, port: u16, options: &[SocketOption]) -> Result<SocketId, Failure> {
        let to = SocketAddr::new(self.sides[1].address, port);
        let stack = &mut self.sides[0].stack;
        let client = stack.socket(Kind::Tcp, Family::V4)?;
        for option in options {
            stack.set_option(client, *option)?;
        }
        match stack.connect(self.now, client, to) {
            Ok(()) | Err(Error::InProgress) => Ok(client),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens connections; returns both ends of each.
    fn connect(&mut self, count: usize, options: &[SocketOption]) -> Result<Vec<(SocketId, SocketId)>, Failure> {
        let mut ends = Vec::with_capacity(count);
        // A 4-tuple has 28,000 ephemeral ports for each port of the other end.
        for (port, share) in (0..count.div_ceil(20_000)).map(|n| (80 + n as u16, count.saturating_sub(n * 20_000))) {
            let listener = self.listen(port, options)?;
            for _ in 0..share.min(20_000) {
                let client = self.start(port, options)?;
                self.settle();
                let (server, _) = self.sides[1].stack.accept(self.now, listener)?;
                ends.push((client, server));
            }
        }
        self.pass(Duration::from_millis(10));
        Ok(ends)
    }

    fn receive(&mut self, side: usize, socket: SocketId, buffer: &mut [u8]) -> usize {
        let mut received = 0;
        while let Ok(len @ 1..) = self.sides[side].stack.recv(socket, buffer) {
            received += len;
        }
        received
    }
}

/// Nanoseconds of one packet's step with so many idle connections beside.
fn step(idle: usize) -> Result<f64, Failure> {
    const STEPS: u32 = 200_000;
    let small = [SocketOption::ReceiveBuffer(4_096), SocketOption::SendBuffer(4_096)];
    let mut pair = Pair::new(1_500)?;
    let ends = pair.connect(idle + 1, &small)?;
    let (client, server) = ends[0];
    let mut buffer = [0; 4_096];
    let before = pair.packets;
    let started = Clock::start()?;
    for _ in 0..STEPS {
        pair.sides[0].stack.send(pair.now, client, &[1; 100])?;
        pair.settle();
        pair.receive(1, server, &mut buffer);
        pair.sides[1].stack.send(pair.now, server, &[1; 100])?;
        pair.settle();
        pair.receive(0, client, &mut buffer);
        pair.now = pair.now + Duration::from_micros(50);
    }
    Ok(started.elapsed()?.as_nanos() as f64 / (pair.packets - before) as f64)
}

pub(crate) fn steps() -> Result<Vec<Row>, Failure> {
    let (mut ten, mut fifty) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (few, some, many) = (step(10)?, step(10_000)?, step(50_000)?);
        eprintln!(
            "  round {}: {few:.0} ns beside 10, {some:.0} ns beside 10,000, {many:.0} ns beside 50,000",
            round + 1
        );
        ten.push(some / few);
        fifty.push(many / few);
    }
    Ok(vec![
        Row::new("step_10k_vs_10", median(ten), "ratio", Reach::AtMost(1.3)),
        Row::new("step_50k_vs_10", median(fifty), "ratio", Reach::AtMost(1.5)),
    ])
}

pub(crate) fn burst() -> Result<Vec<Row>, Failure> {
    let mut pair = Pair::new(1_500)?;
    let listener = pair.listen(80, &[])?;
    let clients = (0..1_000).map(|_| pair.start(80, &[])).collect::<Result<Vec<_>, _>>()?;
    pair.settle();
    let mut accepted = 0;
    while pair.sides[1].stack.accept(pair.now, listener).is_ok() {
        accepted += 1;
        pair.settle();
    }
    let failed = clients.iter().filter(|client| pair.sides[0].stack.take_error(**client) != Ok(None)).count();
    eprintln!("  {accepted} accepted, {failed} failed");
    Ok(vec![Row::new("burst_accepted", f64::from(accepted) - failed as f64, "", Reach::AtLeast(1_000.0))])
}

pub(crate) fn connects() -> Result<Vec<Row>, Failure> {
    const COUNT: u32 = 100_000;
    let mut rates = Vec::new();
    for round in 0..ROUNDS {
        let mut pair = Pair::new(1_500)?;
        let listener = pair.listen(80, &[])?;
        let started = Clock::start()?;
        for _ in 0..COUNT {
            let client = pair.start(80, &[])?;
            pair.settle();
            let (server, _) = pair.sides[1].stack.accept(pair.now, listener)?;
            // The server closes first: the record of TIME-WAIT is then not in the way of the client's ports.
            pair.sides[1].stack.close(pair.now, server);
            pair.settle();
            pair.sides[0].stack.close(pair.now, client);
            pair.settle();
            // The records of TIME-WAIT end before their ports come round again.
            pair.pass(Duration::from_millis(5));
        }
        rates.push(f64::from(COUNT) / started.elapsed()?.as_secs_f64());
        eprintln!("  round {}: {:.0} connections a second", round + 1, rates[round]);
    }
    Ok(vec![Row::new("connects_per_s", median(rates), "1/s", Reach::AtLeast(150_000.0))])
}

/// The memory of this process that is in use, in bytes.
fn resident() -> Result<f64, Failure> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = text.split_whitespace().nth(1).ok_or("no resident pages")?.parse()?;
    Ok(pages * 4_096.0)
}

/// Prints what an idle connection costs both ends together; in a process of its own, whose memory is still untouched.
pub(crate) fn print_idle_bytes() -> Result<(), Failure> {
    const COUNT: usize = 20_000;
    let mut pair = Pair::new(1_500)?;
    let before = resident()?;
    let ends = pair.connect(COUNT, &[])?;
    println!("{:.1}", (resident()? - before) / COUNT as f64);
    drop(ends);
    Ok(())
}

pub(crate) fn idle_bytes() -> Result<Vec<Row>, Failure> {
    let mut child = Process::start(std::env::current_exe()?, &["idle-connections"])?;
    let bytes = child.line()?.parse()?;
    Ok(vec![Row::new("idle_connection_bytes", bytes, "B", Reach::AtMost(4_096.0))])
}

pub(crate) fn bulk() -> Result<Vec<Row>, Failure> {
    const BYTES: usize = 2 << 30;
    // Rings of which both fit a processor's second cache: what is measured is the stack, not the memory.
    const RING_LEN: usize = 256 * 1024;
    // What a program gives and takes with one call.
    const CALL_LEN: usize = 64 * 1024;
    let mut rates = Vec::new();
    for round in 0..ROUNDS {
        let mut pair = Pair::new(9_000)?;
        let options = [SocketOption::ReceiveBuffer(RING_LEN), SocketOption::SendBuffer(RING_LEN)];
        let (client, server) = pair.connect(1, &options)?[0];
        let data = vec![0x5a; CALL_LEN];
        let mut buffer = vec![0; CALL_LEN];
        let (mut received, started) = (0, Clock::start()?);
        while received < BYTES {
            let _ = pair.sides[0].stack.send(pair.now, client, &data);
            pair.settle();
            received += pair.receive(1, server, &mut buffer);
            pair.now = pair.now + Duration::from_micros(50);
        }
        rates.push(received as f64 / 1e9 / started.elapsed()?.as_secs_f64());
        eprintln!("  round {}: {:.2} GB a second", round + 1, rates[round]);
    }
    Ok(vec![Row::new("stack_gb_per_cpu_s", median(rates), "GB/s", Reach::AtLeast(5.5))])
}
