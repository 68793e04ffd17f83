//! A bad wire in virtual time: loss, delay, jitter, reordering, duplication, corruption, rate, black-outs.
//!
//! A core: packets and the time go in, packets and deadlines come out; one seed gives one behaviour.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::str::FromStr;

/// How bad the wire is. The default is a perfect one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Conditions {
    /// Share of packets that vanish, 0 to 1.
    pub loss: f64,
    /// One-way delay, in microseconds.
    pub delay_us: u64,
    /// Largest further delay, even in distribution, in microseconds.
    pub jitter_us: u64,
    /// Share of packets that are held back by one more delay.
    pub reorder: f64,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// Share of packets of which one bit is turned.
    pub corrupt: f64,
    /// Bytes per second; zero is no limit.
    pub rate_bytes_per_s: u64,
}

/// A description of conditions that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadConditions(String);

impl fmt::Display for BadConditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; write it like loss=1%,delay=20ms,jitter=5ms,reorder=1%,duplicate=1%,corrupt=1%,rate=100mbit",
            self.0
        )
    }
}

impl std::error::Error for BadConditions {}

/// Reads `1%`.
fn share(text: &str) -> Option<f64> {
    let percent: f64 = text.strip_suffix('%')?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

/// Reads `20ms`, `1.5s` or `300us` as microseconds.
fn time_us(text: &str) -> Option<u64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    let us = number.parse::<f64>().ok()? * factor;
    (0.0..=60e6).contains(&us).then_some(us as u64)
}

/// Reads `100mbit`, `1gbit` or `56kbit` as bytes per second.
fn rate(text: &str) -> Option<u64> {
    let units = [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)];
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    let bytes = number.parse::<f64>().ok()? * factor / 8.0;
    (1e3..=1e11).contains(&bytes).then_some(bytes as u64)
}

impl FromStr for Conditions {
    type Err = BadConditions;

    /// Reads `loss=1%,delay=20ms,rate=100mbit`; each direction gets what is said.
    fn from_str(text: &str) -> Result<Conditions, BadConditions> {
        let mut conditions = Conditions::default();
        for part in text.split(',') {
            let bad = || BadConditions(format!("'{part}' is no condition of a network"));
            let (key, value) = part.split_once('=').ok_or_else(bad)?;
            match key {
                "loss" => conditions.loss = share(value).ok_or_else(bad)?,
                "delay" => conditions.delay_us = time_us(value).ok_or_else(bad)?,
                "jitter" => conditions.jitter_us = time_us(value).ok_or_else(bad)?,
                "reorder" => conditions.reorder = share(value).ok_or_else(bad)?,
                "duplicate" => conditions.duplicate = share(value).ok_or_else(bad)?,
                "corrupt" => conditions.corrupt = share(value).ok_or_else(bad)?,
                "rate" => conditions.rate_bytes_per_s = rate(value).ok_or_else(bad)?,
                _ => return Err(bad()),
            }
        }
        Ok(conditions)
    }
}

/// Packets that may be on their way at one time; the rest is lost.
const FLIGHT_LEN_MAX: usize = 65_536;
/// Bytes that wait for a limited rate; the rest is lost, as in a router.
const QUEUE_BYTES_MAX: u64 = 256 * 1024;

/// One direction of a wire.
#[derive(Debug)]
pub struct Fault {
    conditions: Conditions,
    random: u64,
    /// Packets on their way: (arrival, number, bytes).
    flight: BinaryHeap<Reverse<(u64, u64, Vec<u8>)>>,
    number: u64,
    /// When the last byte queued so far will have left, in microseconds.
    busy_until_us: u64,
    black_out_until_us: u64,
    lost: u64,
}

impl Fault {
    /// Makes a wire; the same seed gives the same accidents.
    pub fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
            flight: BinaryHeap::new(),
            number: 0,
            busy_until_us: 0,
            black_out_until_us: 0,
            lost: 0,
        }
    }

    /// Changes the conditions for what follows.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// Loses everything until then.
    pub fn black_out(&mut self, until_us: u64) {
        self.black_out_until_us = until_us;
    }

    /// Returns how many packets were lost.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The next random number (splitmix64, public domain).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < share
    }

    /// Puts a packet on the wire.
    pub fn handle_packet(&mut self, now_us: u64, packet: &[u8]) {
        let crowded = self.flight.len() >= FLIGHT_LEN_MAX;
        if now_us < self.black_out_until_us || crowded || self.happens(self.conditions.loss) {
            self.lost += 1;
            return;
        }
        let mut leaves_us = now_us;
        let rate = self.conditions.rate_bytes_per_s;
        if rate > 0 {
            let start_us = self.busy_until_us.max(now_us);
            let waiting = (start_us - now_us).saturating_mul(rate) / 1_000_000;
            if waiting + packet.len() as u64 > QUEUE_BYTES_MAX {
                self.lost += 1;
                return;
            }
            leaves_us = start_us + (packet.len() as u64).saturating_mul(1_000_000) / rate;
            self.busy_until_us = leaves_us;
        }
        let mut packet = packet.to_vec();
        if self.happens(self.conditions.corrupt) && !packet.is_empty() {
            let bit = self.next() as usize % (packet.len() * 8);
            packet[bit / 8] ^= 1 << (bit % 8);
        }
        let copies = if self.happens(self.conditions.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut arrives_us = leaves_us + self.conditions.delay_us;
            if self.conditions.jitter_us > 0 {
                arrives_us += self.next() % (self.conditions.jitter_us + 1);
            }
            if self.happens(self.conditions.reorder) {
                arrives_us += self.conditions.delay_us.max(1_000);
            }
            self.number += 1;
            self.flight.push(Reverse((arrives_us, self.number, packet.clone())));
        }
    }

    /// Returns when the next packet arrives, in microseconds.
    pub fn poll_timeout_us(&self) -> Option<u64> {
        self.flight.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Takes the next packet that has arrived.
    pub fn poll_packet(&mut self, now_us: u64) -> Option<Vec<u8>> {
        if self.poll_timeout_us()? > now_us {
            return None;
        }
        self.flight.pop().map(|Reverse((_, _, packet))| packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_and_nonsense_is_told_what_to_write() {
        let read: Conditions = "loss=1%,delay=20ms,jitter=300us,reorder=2%,rate=100mbit".parse().unwrap();
        let wanted = Conditions {
            loss: 0.01,
            delay_us: 20_000,
            jitter_us: 300,
            reorder: 0.02,
            rate_bytes_per_s: 12_500_000,
            ..Conditions::default()
        };
        assert_eq!(read, wanted);
        for text in
            ["", "loss", "loss=1", "loss=101%", "delay=20", "delay=-1ms", "rate=0mbit", "rate=nanmbit", "speed=1%"]
        {
            let error = text.parse::<Conditions>().unwrap_err().to_string();
            assert!(error.contains("loss=1%,delay=20ms"), "{error}");
        }
    }

    fn arrivals(conditions: Conditions, seed: u64) -> Vec<(u64, Vec<u8>)> {
        let mut fault = Fault::new(conditions, seed);
        for n in 0..1_000u64 {
            fault.handle_packet(n * 10, &n.to_be_bytes());
        }
        let mut arrived = Vec::new();
        while let Some(at) = fault.poll_timeout_us() {
            arrived.push((at, fault.poll_packet(at).unwrap()));
        }
        arrived
    }

    #[test]
    fn a_perfect_wire_changes_nothing() {
        let arrived = arrivals(Conditions::default(), 1);
        assert!(arrived.iter().zip(0u64..).all(|((at, packet), n)| *at == n * 10 && *packet == n.to_be_bytes()));
    }

    #[test]
    fn one_seed_gives_one_behaviour() {
        let conditions =
            Conditions { loss: 0.1, jitter_us: 500, duplicate: 0.1, corrupt: 0.1, ..Conditions::default() };
        assert_eq!(arrivals(conditions, 7), arrivals(conditions, 7));
        assert_ne!(arrivals(conditions, 7), arrivals(conditions, 8));
        let count = arrivals(conditions, 7).len();
        assert!((900..1_080).contains(&count), "{count}");
    }

    #[test]
    fn a_rate_spreads_packets_and_overflow_is_lost() {
        let mut fault = Fault::new(Conditions { rate_bytes_per_s: 1_000_000, ..Conditions::default() }, 1);
        for _ in 0..1_000 {
            fault.handle_packet(0, &[0; 1_000]);
        }
        assert_eq!(fault.lost(), 1_000 - 262);
        let last = std::iter::from_fn(|| fault.poll_timeout_us().inspect(|at| drop(fault.poll_packet(*at)))).last();
        assert_eq!(last, Some(262_000));
    }

    #[test]
    fn nothing_passes_a_black_out() {
        let mut fault = Fault::new(Conditions::default(), 1);
        fault.black_out(100);
        fault.handle_packet(99, b"x");
        fault.handle_packet(100, b"y");
        assert_eq!(fault.poll_packet(100), Some(b"y".to_vec()));
        assert_eq!(fault.poll_timeout_us(), None);
    }
}
