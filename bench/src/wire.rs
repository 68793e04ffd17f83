//! Two kernels and a wire between them: delay, loss and outages below everything.

use std::thread::sleep;
use std::time::{Duration, Instant};

use unisockets_wire::{Conditions, Stream, Wire};

use crate::peers::{Peer, Place};
use crate::processes::{Failure, machine, median};
use crate::{Reach, Row};

const ROUNDS: usize = 3;
/// How long a stream runs before it is measured, and how long it is then.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// Long enough for a slow start to be over and for several hundred losses.
const TIMES: Times = Times { warm_up: Duration::from_secs(3), measured: Duration::from_secs(8) };
const MTU: usize = 1_500;
/// 20 ms round trip: half of it each way.
const FAR: &str = "delay=10ms";
const FAR_AND_LOSSY: &str = "delay=10ms,loss=1%";
/// Pairs of nodes at once: as many associations.
const PAIRS: [usize; 2] = [2, 4];
const OUTAGE: Duration = Duration::from_secs(30);
/// A transfer that has not gone on so long after the path is back has failed.
const GAP_LIMIT: Duration = Duration::from_secs(60);

/// A wire with the same conditions both ways, none if there is nothing to read.
pub(crate) fn wire(conditions: &str) -> Result<Wire, Failure> {
    if let Some(obstacle) = unisockets_wire::obstacle() {
        return Err(format!("no wire can be made here: {obstacle}").into());
    }
    let conditions = parse(conditions)?;
    let made = Wire::new(conditions, conditions, MTU);
    made.map_err(|error| format!("no wire can be made here, which needs root: {error}").into())
}

pub(crate) fn parse(conditions: &str) -> Result<Conditions, Failure> {
    if conditions.is_empty() {
        return Ok(Conditions::default());
    }
    Ok(conditions.parse()?)
}

/// The goodput of one stream of the kernel's, in MB/s; nothing if it does not have that congestion control.
pub(crate) fn kernel(wire: &Wire, times: Times, congestion: &'static str) -> Option<f64> {
    let goodput = wire.goodput(Stream { congestion, warm_up: times.warm_up, duration: times.measured });
    goodput.ok().map(|goodput| goodput.bytes_per_s() / 1e6)
}

/// The goodput of one stream between each of so many new pairs of nodes, in MB/s.
pub(crate) fn ours(place: &Place<'_>, times: Times, pairs: usize) -> Result<f64, Failure> {
    let mut peers: Vec<(Peer, Peer)> = (0..pairs).map(|_| place.pair()).collect::<Result<_, _>>()?;
    for (from, to) in &mut peers {
        from.stream(to)?;
    }
    sleep(times.warm_up);
    let mut before = Vec::new();
    for (_, to) in &mut peers {
        before.push(to.counts()?);
    }
    sleep(times.measured);
    let mut sum = 0.0;
    for ((_, to), before) in peers.iter_mut().zip(before) {
        sum += crate::peers::Arrived { before, after: to.counts()? }.mb_per_s();
    }
    Ok(sum)
}

/// A ratio in words.
fn against(figure: f64, other: Option<f64>) -> String {
    other
        .map_or("which this kernel has not".to_owned(), |other| format!("{other:.2} MB/s (ours {:.2})", figure / other))
}

pub(crate) fn loss() -> Result<Vec<Row>, Failure> {
    let wire = wire(FAR_AND_LOSSY)?;
    let place = Place::wire(&wire)?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let cubic = kernel(&wire, TIMES, "cubic").ok_or("this kernel has no cubic")?;
        let one = ours(&place, TIMES, 1)?;
        let bbr = kernel(&wire, TIMES, "bbr");
        let mut several = Vec::new();
        for pairs in PAIRS {
            several.push(format!("{pairs}: {:.2}", ours(&place, TIMES, pairs)?));
        }
        eprintln!(
            "  round {}: ours {one:.2} MB/s, cubic {}, bbr {}; pairs of nodes at once: {} MB/s; {}",
            round + 1,
            against(one, Some(cubic)),
            against(one, bbr),
            several.join(", "),
            machine()
        );
        ratios.push(one / cubic);
    }
    Ok(vec![Row::new("loss_vs_kernel", median(ratios), "ratio", Reach::AtLeast(2.5))])
}

pub(crate) fn delay() -> Result<Vec<Row>, Failure> {
    let wire = wire("")?;
    let place = Place::wire(&wire)?;
    let (near, far) = (Conditions::default(), parse(FAR)?);
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let mut figures = Vec::new();
        for conditions in [near, far] {
            wire.set_conditions(conditions, conditions);
            figures.push((ours(&place, TIMES, 1)?, kernel(&wire, TIMES, "cubic").ok_or("this kernel has no cubic")?));
        }
        eprintln!(
            "  round {}: ours {:.1} MB/s at 0 ms, {:.1} MB/s at 20 ms; the kernel's {:.1} and {:.1} MB/s; {}",
            round + 1,
            figures[0].0,
            figures[1].0,
            figures[0].1,
            figures[1].1,
            machine()
        );
        ratios.push(figures[1].0 / figures[0].0);
    }
    Ok(vec![Row::new("delay_vs_loopback", median(ratios), "ratio", Reach::AtLeast(0.3))])
}

pub(crate) fn redial() -> Result<Vec<Row>, Failure> {
    let wire = wire(FAR)?;
    let place = Place::wire(&wire)?;
    let mut gaps = Vec::new();
    for round in 0..ROUNDS {
        let (mut from, mut to) = place.pair()?;
        from.stream(&to)?;
        let speed = to.measure(Duration::ZERO, TIMES.warm_up)?.mb_per_s();
        let over = Instant::now() + OUTAGE;
        wire.black_out(OUTAGE);
        // What was on the wire has arrived long before half of the outage.
        sleep(OUTAGE / 2);
        let silent: u64 = to.counts()?.streams.iter().sum();
        sleep(over.saturating_duration_since(Instant::now()));
        if to.counts()?.streams.iter().sum::<u64>() != silent {
            return Err("bytes came through the outage".into());
        }
        let gap = to.next_byte(GAP_LIMIT)?.as_secs_f64() * 1e3;
        let after = to.measure(Duration::ZERO, TIMES.warm_up)?.mb_per_s();
        eprintln!("  round {}: {gap:.0} ms; {speed:.1} MB/s before, {after:.1} MB/s after; {}", round + 1, machine());
        gaps.push(gap);
    }
    Ok(vec![Row::new("redial_gap_ms", median(gaps), "ms", Reach::AtMost(2_000.0))])
}

/// Makes links one after the other on a bad wire and prints how long each took: `bench/run dials loss=5%,delay=10ms 20`.
pub(crate) fn dials(conditions: &str, count: usize) -> Result<(), Failure> {
    let wire = wire(conditions)?;
    let place = Place::wire(&wire)?;
    let (mut millis, mut failed) = (Vec::new(), 0);
    for _ in 0..count {
        let (mut from, to) = place.pair()?;
        let started = Instant::now();
        match from.ask(&format!("stream {}", to.name)) {
            Ok(_) => millis.push(started.elapsed().as_secs_f64() * 1e3),
            Err(error) => {
                let seconds = started.elapsed().as_secs_f64();
                eprintln!("  after {seconds:.1} s: {error}; {}", from.ask("status")?["incidents"]);
                failed += 1;
            }
        }
    }
    let longest = millis.iter().copied().fold(0.0, f64::max);
    println!("{conditions}: {failed} of {count} failed; p50 {:.0} ms, longest {longest:.0} ms", median(millis));
    Ok(())
}
