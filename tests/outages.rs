//! What a transfer goes through and finishes: a cut wire, a new address, a channel that stalls, a full wire.
//!
//! Real processes at the two ends of the project's own bad wire. One end has the signaling server and the receivers, the
//! other the senders: what happens to the wire happens to their introductions, too. The wire is cut for 30 s;
//! `UNISOCKETS_CUT_S` cuts it for as many seconds as it says, and `make prove` does so for 90.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::{Ended, Place, Process};
use unisockets_wire::{Conditions, Wire, as_root};

/// The wire's MTU, in bytes.
const MTU: usize = 1_500;
/// Length of the cut unless the environment says otherwise.
const CUT_S: u64 = 30;
/// What is on its way when a wire is cut still arrives, within this time.
const DRAINED: Duration = Duration::from_secs(2);
/// How long a transfer may take from when nothing hinders it any more: a pause of signaling (15 s) and one of
/// dialling (15 s) may have begun just before.
const LIMIT: Duration = Duration::from_secs(90);
/// How often a condition is looked at.
const PACE: Duration = Duration::from_millis(2);
/// A line for a reader that waits.
const LINE: &[u8] = b"are you still there?\n";

/// Lets large UDP packets vanish that leave a host.
const STALL: &str = "
    table inet stall {
        chain out { type filter hook output priority filter; udp length > 300 drop; }
    }";

/// Waits for a condition and returns when it was met.
fn until(what: &str, mut condition: impl FnMut() -> bool) -> Instant {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::park_timeout(PACE);
    }
    Instant::now()
}

/// Lets time pass: what is waited for is that nothing happens.
fn pass(until: Instant) {
    while Instant::now() < until {
        std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn succeeded(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
}

/// Two members at one end of a wire, and what they say to two at the other.
struct Network {
    wire: Wire,
    home: Place,
    away: Place,
    _signal: Process,
}

impl Network {
    fn new(conditions: &str) -> Network {
        let conditions: Conditions = conditions.parse().unwrap();
        let wire = Wire::new(conditions, conditions, MTU).unwrap();
        let place = |end: usize| {
            let mut place = Place::new();
            place.prefix = wire.namespace(end).prefix().to_vec();
            place
        };
        let (mut home, mut away) = (place(0), place(1));
        let signal = home.signal(&["--listen", &format!("{}:0", wire.address(0)), "--open"]);
        away.url.clone_from(&home.url);
        Network { wire, home, away, _signal: signal }
    }

    /// Starts a transfer from the far end and returns once it is under way.
    fn transfer(&self, len: usize) -> Transfer {
        let data = pattern(len);
        std::fs::write(self.away.path("film"), &data).unwrap();
        std::fs::create_dir(self.home.path("inbox")).unwrap();
        let recv = self.home.listen(&["recv", "inbox", "--name", "inbox", "--yes"]);
        let send = self.away.start(&["send", "film", "inbox", "--name", "source"]);
        let mut transfer = Transfer { inbox: self.home.path("inbox"), data, recv, send };
        until("the transfer is under way", || transfer.arrived() > len as u64 / 8);
        transfer
    }

    /// Connects a reader at home, which waits, with a writer at the far end.
    fn conversation(&self) -> Conversation {
        let reader = self.home.listen(&["nc", "-l", "7", "--name", "reader"]);
        let mut writer = self.away.start(&["nc", "reader", "7", "--name", "writer"]);
        writer.write(LINE);
        assert_eq!(reader.out.wait_len(LINE.len()), LINE);
        Conversation { reader, writer }
    }
}

/// A file on its way. Neither program connects twice: if both end well, one connection has carried all of it.
struct Transfer {
    inbox: std::path::PathBuf,
    data: Vec<u8>,
    recv: Process,
    send: Process,
}

impl Transfer {
    /// Returns how many bytes the receiver has, and makes sure that both programs go on until it has all.
    fn arrived(&mut self) -> u64 {
        let entries = std::fs::read_dir(&self.inbox).unwrap().flatten();
        let len = entries.filter_map(|entry| entry.metadata().ok()).map(|entry| entry.len()).max().unwrap_or(0);
        for (name, process) in [("recv", &mut self.recv), ("send", &mut self.send)] {
            if let Some(status) = process.child.try_wait().unwrap()
                && !self.inbox.join("film").exists()
            {
                panic!("{name} has ended with {status} and {len} bytes: {}", process.err.wait("", |_| true));
            }
        }
        len
    }

    /// Waits for the next byte and returns when it came.
    fn next_byte(&mut self) -> Instant {
        let before = self.arrived();
        assert!(before < self.data.len() as u64, "the transfer was over before anything happened to it");
        until("the next byte", || self.arrived() > before)
    }

    /// Waits until all has arrived and checks every byte.
    fn finish(mut self) {
        let len = self.data.len() as u64;
        until("all bytes", || self.arrived() >= len);
        succeeded(&self.send.end());
        succeeded(&self.recv.end());
        let data = std::fs::read(self.inbox.join("film")).unwrap();
        assert!(data == self.data, "every byte is right");
    }
}

/// A connection on which little is said.
struct Conversation {
    reader: Process,
    writer: Process,
}

impl Conversation {
    /// Waits for a second line, says a third, and ends.
    fn finish(mut self) {
        self.reader.out.wait_len(2 * LINE.len());
        self.writer.write(LINE);
        assert_eq!(self.reader.out.wait_len(3 * LINE.len()), [LINE; 3].concat());
        self.writer.end_input();
        self.reader.end_input();
        succeeded(&self.writer.end());
        succeeded(&self.reader.end());
    }
}

#[test]
fn connections_outlive_a_cut_wire() {
    if !as_root() {
        return;
    }
    let seconds =
        std::env::var("UNISOCKETS_CUT_S").map_or(CUT_S, |text| text.parse().expect("UNISOCKETS_CUT_S is a number"));
    eprintln!("THE WIRE IS CUT FOR {seconds} s; set UNISOCKETS_CUT_S for another time");
    let cut = Duration::from_secs(seconds);
    let network = Network::new("rate=40mbit,delay=5ms");
    let mut conversation = network.conversation();
    let mut transfer = network.transfer(24_000_000);
    let start = Instant::now();
    network.wire.black_out(cut);
    conversation.writer.write(LINE);
    pass(start + DRAINED);
    let before = transfer.arrived();
    assert!(before < transfer.data.len() as u64, "the transfer was over before the cut");
    pass(start + cut);
    assert_eq!(transfer.arrived(), before, "no byte crosses a wire that is cut");
    let back = Instant::now();
    println!("after a cut of {seconds} s the next byte came after {:?}", transfer.next_byte() - back);
    transfer.finish();
    conversation.finish();
}

#[test]
fn connections_outlive_a_change_of_address() {
    if !as_root() {
        return;
    }
    let network = Network::new("rate=40mbit,delay=5ms");
    let (was, was_v6) = (network.wire.address(1), network.wire.address_v6(1));
    let conversation = network.conversation();
    let mut transfer = network.transfer(24_000_000);
    let namespace = network.wire.namespace(1);
    // First the new ones: the last address of a device takes the routes with it.
    namespace.add_addresses("wire", &["198.18.0.6/30", "2001:2::6/64"]).unwrap();
    namespace.ip(&format!("address del {was}/30 dev wire\naddress del {was_v6}/64 dev wire")).unwrap();
    let start = Instant::now();
    pass(start + DRAINED);
    let next = transfer.next_byte();
    println!("with another address the next byte came after {:?}", next - start);
    transfer.finish();
    let mut conversation = conversation;
    conversation.writer.write(LINE);
    conversation.finish();
}

/// Runs `nft` at the far end.
fn nft(wire: &Wire, rules: &str) {
    let output = wire.command(1, "nft").arg(rules).output().unwrap();
    assert!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_transfer_outlives_a_channel_that_stalls() {
    if !as_root() {
        return;
    }
    if Command::new("nft").arg("--version").output().is_err() {
        panic!("'nft' is missing: install the package nftables");
    }
    let network = Network::new("rate=40mbit,delay=5ms");
    let mut transfer = network.transfer(24_000_000);
    let start = Instant::now();
    nft(&network.wire, STALL);
    // Consent, acknowledgements and pings pass: only the missing progress tells.
    network.away.status("source", |status| status["peers"][0]["path"].is_null());
    let lost = start.elapsed();
    nft(&network.wire, "delete table inet stall");
    let back = Instant::now();
    let next = transfer.next_byte();
    println!("a stall was noticed after {lost:?}; when it was over the next byte came after {:?}", next - back);
    transfer.finish();
}

#[test]
fn queues_stay_short_beside_a_transfer() {
    if !as_root() {
        return;
    }
    let network = Network::new("rate=50mbit,delay=10ms");
    let mut transfer = network.transfer(40_000_000);
    let ping = network.away.start(&["ping", "inbox", "--count", "20", "--interval", "0.1", "--json"]).end();
    let arrived = transfer.arrived();
    assert!(arrived < transfer.data.len() as u64, "the transfer was over before the last ping");
    succeeded(&ping);
    let rows = ping.out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let mut round_trips: Vec<u64> = rows.map(|row| row["round_trip_us"].as_u64().unwrap()).collect();
    round_trips.sort_unstable();
    let at = |share: usize| Duration::from_micros(round_trips[(round_trips.len() - 1) * share / 100]);
    println!("beside a transfer a ping takes {:?} (p50), {:?} (p90), {:?} (most)", at(50), at(90), at(100));
    assert!(round_trips.len() >= 18, "echoes are lost: {}", ping.err);
    // The wire takes 20 ms; what is more than that has waited.
    assert!(at(50) < Duration::from_millis(150) && at(90) < Duration::from_millis(500), "{round_trips:?}");
    transfer.finish();
}
