//! Two stacks over a hostile wire: every byte that is delivered is the one that was sent at its place.
//!
//! The wire loses, delays, reorders, repeats and corrupts packets, plays old ones again, and makes up segments that
//! know the addresses and ports of a connection, but not its numbers. At the end the wire heals: what was sent arrives,
//! programs close, and both stacks come to rest with nothing left.

mod forge;
mod programs;

use std::collections::VecDeque;
use std::time::Duration;

use unisockets_link::fault::{Conditions, Fault};
use unisockets_stack::{Instant, PathConfig};

use crate::packet::{ROOM, Side};
use crate::script::Script;
use crate::windows::Windows;

use programs::{Ledger, Program};

/// Steps of one script.
const STEPS_MAX: usize = 300;
/// Sockets that a script makes on one side; accepted ones count.
const SOCKETS_MAX: usize = 24;
/// Genuine packets of each direction that the attacker has kept.
const KEPT_MAX: usize = 32;
/// Times that the stacks may be asked at one moment, and while one step lasts: far above what a healthy network needs.
const ROUNDS_AT_ONCE_MAX: usize = 20_000;
/// See [`ROUNDS_AT_ONCE_MAX`].
const ROUNDS_MAX: usize = 400_000;
/// How long everything that was sent may take to arrive once the wire has healed. A sender that has met an outage of
/// minutes waits a minute for its next attempt, a window may be closed for as long, and both may come together.
const HEALED: Duration = Duration::from_secs(600);
/// How long two stacks without programs may take to come to rest: the user timeout, TIME-WAIT, and some more.
const REST: Duration = Duration::from_secs(2 * 924);

/// What one step does; the numbers are part of the corpus.
pub(crate) mod op {
    crate::script::steps! {
        SOCKET BIND LISTEN CONNECT ACCEPT SEND RECV SHUTDOWN CLOSE OPTION SEND_TO RECV_FROM GROUP QUERY RUN CONDITIONS CUT FORGE REPLAY SETTLE
    }
}

/// One side: a stack, and the programs that use it.
struct End {
    side: Side,
    programs: Vec<Program>,
}

struct World {
    now: Instant,
    ends: [End; 2],
    /// From each side to the other.
    wires: [Fault; 2],
    /// What has been on each of them.
    kept: [VecDeque<Vec<u8>>; 2],
    ledger: Ledger,
    windows: Windows,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let mut world = World::new(&mut script);
    for _ in 0..STEPS_MAX {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
    }
    world.heal();
    world.end();
}

impl World {
    fn new(script: &mut Script<'_>) -> World {
        let mtu = script.pick(&[1_280, 1_500, 9_000, 16_384]);
        // A wire that turns bits is no authenticated one.
        let config = PathConfig { mtu, verify_checksums: true };
        let end = |own| End { side: Side::new(own, config), programs: Vec::new() };
        World {
            now: Instant::from_millis(1_000),
            ends: [end(0), end(1)],
            wires: [1, 2].map(|seed| Fault::new(Conditions::default(), seed)),
            kept: [const { VecDeque::new() }; 2],
            ledger: Ledger::default(),
            windows: Windows::default(),
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let code = script.u8();
        // The highest bit says which side does it.
        let (kind, at) = ((code & 0x7f) % op::COUNT, usize::from(code >> 7));
        match kind {
            op::RUN => {
                let scale = script.pick(&[100, 1_000, 20_000, 500_000]);
                self.run_for(Duration::from_micros(u64::from(script.u8()) * scale));
            }
            op::SETTLE => self.run_for(Duration::from_secs(2)),
            op::CONDITIONS => {
                let conditions = conditions(script);
                self.ledger.corrupts |= conditions.corrupt > 0.0;
                self.wires[at].set_conditions(conditions);
            }
            op::CUT => {
                let until = self.now + Duration::from_millis(u64::from(script.u8()) * 500);
                self.wires[at].black_out(until.as_micros());
            }
            op::REPLAY => {
                let (to, count) = (at, script.u8());
                if let Some(index) = usize::from(count).checked_rem(self.kept[1 - to].len()) {
                    let packet = self.kept[1 - to][index].clone();
                    self.deliver(to, &packet);
                }
            }
            op::FORGE => {
                let index = usize::from(script.u8());
                let seen = index.checked_rem(self.kept[1 - at].len()).map(|index| self.kept[1 - at][index].clone());
                if let Some(packet) = seen.and_then(|seen| forge::forge(script, &seen)) {
                    self.deliver(at, &packet);
                }
            }
            _ => {
                let End { side, programs } = &mut self.ends[at];
                let called = programs::call(self.now, kind, at, (&mut side.stack, programs), &mut self.ledger, script);
                self.ends[at].notice(called);
            }
        }
    }

    fn deliver(&mut self, to: usize, packet: &[u8]) {
        let side = &mut self.ends[to].side;
        side.take(self.now, side.path, packet);
    }

    /// Lets time pass, with everything that happens meanwhile.
    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        let (mut rounds, mut at_once) = (0, 0);
        loop {
            (rounds, at_once) = (rounds + 1, at_once + 1);
            assert!(at_once <= ROUNDS_AT_ONCE_MAX && rounds <= ROUNDS_MAX, "a network that never falls silent");
            self.exchange();
            let Some(next) = self.next().filter(|next| *next <= until) else {
                break;
            };
            if next > self.now {
                (self.now, at_once) = (next, 0);
            }
            for end in &mut self.ends {
                if end.side.stack.poll_timeout().is_some_and(|due| due <= self.now) {
                    end.side.expire(self.now);
                }
            }
        }
        self.now = until;
        self.ends.iter_mut().for_each(|end| end.notice(None));
    }

    /// Carries what leaves at this moment, and what arrives.
    fn exchange(&mut self) {
        let now_us = self.now.as_micros();
        for from in 0..2 {
            let (wire, kept, windows) = (&mut self.wires[from], &mut self.kept[from], &mut self.windows);
            self.ends[from].side.flush(self.now, ROOM, |packet| {
                windows.sent(&packet);
                wire.handle_packet(now_us, &packet);
                if kept.len() == KEPT_MAX {
                    kept.pop_front();
                }
                kept.push_back(packet);
            });
            while let Some(packet) = self.wires[from].poll_packet(now_us) {
                self.deliver(1 - from, &packet);
            }
        }
    }

    /// When something happens by itself.
    fn next(&self) -> Option<Instant> {
        let timers = self.ends.iter().filter_map(|end| end.side.stack.poll_timeout());
        let arrivals = self.wires.iter().filter_map(Fault::poll_timeout_us).map(Instant::from_micros);
        timers.chain(arrivals).min()
    }

    /// The wire heals, programs read what there is: what was sent arrives, and then its end.
    fn heal(&mut self) {
        let mended = Conditions { delay_us: 1_000, ..Conditions::default() };
        for wire in &mut self.wires {
            wire.set_conditions(mended);
            wire.black_out(0);
        }
        let limit = self.now + HEALED;
        loop {
            for end in &mut self.ends {
                programs::read_all(self.now, &mut end.side.stack, &mut end.programs, &mut self.ledger);
                end.notice(None);
            }
            let held = self.ends.iter().flat_map(|end| &end.programs);
            let Some(missing) = self.ledger.missing(held) else {
                return;
            };
            assert!(self.now < limit, "a healed wire delivers everything: {missing}");
            self.run_for(Duration::from_secs(1));
        }
    }

    /// Programs end, and nothing may be left.
    fn end(&mut self) {
        for End { side, programs } in &mut self.ends {
            for program in programs.drain(..) {
                side.stack.close(self.now, program.socket);
            }
            assert_eq!(side.stack.socket_count(), 0, "what is closed is gone");
        }
        let limit = self.now + REST;
        self.run_for(Duration::from_millis(1));
        while let Some(next) = self.next() {
            assert!(next <= limit, "two stacks without programs that never come to rest");
            self.run_for(next - self.now + Duration::from_millis(1));
        }
        for End { side, .. } in &mut self.ends {
            let stack = &side.stack;
            assert_eq!(stack.connection_count(), 0, "no connection outlives its program for ever");
            assert_eq!((stack.orphan_count(), stack.undelivered_count(), stack.time_wait_count()), (0, 0, 0));
            assert_eq!(stack.committed_bytes(), 0, "no connection, no memory");
            assert_eq!(stack.flow_count(side.path), 0, "a path counts its connections");
        }
    }
}

impl End {
    /// Takes out what the stack reports, and checks that no socket has become ready in silence: whoever waits for it
    /// would wait for ever. The socket that a program has just called is the program's own business.
    fn notice(&mut self, called: Option<usize>) {
        programs::notice(&mut self.side.stack, &mut self.programs, called);
    }
}

/// How bad a wire is.
fn conditions(script: &mut Script<'_>) -> Conditions {
    let share = |script: &mut Script<'_>| script.pick(&[0.0, 0.01, 0.1, 0.5, 1.0]);
    Conditions {
        loss: share(script),
        delay_us: u64::from(script.u8()) * 1_000,
        jitter_us: u64::from(script.u8()) * 500,
        reorder: share(script),
        duplicate: share(script),
        corrupt: share(script),
        rate_bytes_per_s: script.pick(&[0, 100_000, 10_000_000]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers;
    use crate::seeds::seeds;

    /// The harness itself must reach what it is for.
    #[test]
    fn the_seeds_of_the_wire_move_bytes_through_bad_conditions() {
        for (name, bytes) in seeds("wire") {
            let mut script = Script::new(&bytes);
            let mut world = World::new(&mut script);
            while !script.is_over() {
                world.step(&mut script);
            }
            world.heal();
            let moved = world.ledger.moved();
            assert!(moved > 0 || name == "dialled", "{name} moves nothing");
            assert_eq!(world.windows.scaled() > 0, name == "large_windows", "{name} has windows with a scale");
            if name == "bad_conditions" {
                assert!(world.wires.iter().all(|wire| wire.lost() > 0), "{name} loses packets");
                let drops: u64 = world.ends.iter().flat_map(|end| end.side.stack.drops()).map(|(_, n)| n).sum();
                assert!(drops > 0, "{name} corrupts packets");
            }
            world.end();
        }
    }

    /// A byte that was changed on the way, past its checksum, is seen.
    #[test]
    #[should_panic(expected = "a stream delivers what was sent")]
    fn the_wire_sees_a_changed_byte() {
        let (_, bytes) = seeds("wire").into_iter().find(|(name, _)| *name == "dialled").expect("the seed exists");
        let mut script = Script::new(&bytes);
        let mut world = World::new(&mut script);
        while !script.is_over() {
            world.step(&mut script);
        }
        // What follows is changed on its way, by an attacker who knows all numbers.
        world.wires[0].black_out(u64::MAX);
        world.step(&mut Script::new(&[op::SEND, 0, 1, 0]));
        world.run_for(Duration::from_millis(10));
        for mut packet in world.kept[0].clone() {
            *packet.last_mut().expect("a packet has bytes") ^= 1;
            headers::mend(&mut packet);
            world.deliver(1, &packet);
        }
        world.heal();
    }
}
