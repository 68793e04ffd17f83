//! What flows do to each other on one machine.

use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::peers::{Peer, Place};
use crate::processes::{Failure, Process, machine, median};
use crate::{Reach, Row};

const ROUNDS: usize = 5;
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(3);
/// Echoes of one round, and the milliseconds between them.
const ECHOES: usize = 500;
const ECHO_PAUSE_MS: u64 = 5;
/// Flows of the fairness row, half of them to either peer.
const FLOWS: usize = 8;
/// Bytes of a datagram.
const DATAGRAM_LEN: usize = 1_000;
/// The share of datagrams that may be lost.
const LOSS_MAX: f64 = 0.01;
/// Rates that are tried in a round; each next one is so much of what was received.
const RATES_MAX: usize = 4;
const RATE_STEP: f64 = 0.92;

fn p99(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    let index = (values.len() * 99 / 100).min(values.len().saturating_sub(1));
    values.get(index).map_or(f64::NAN, |us| *us as f64 / 1e3)
}

/// The p99 of `unisockets ping` to a member, in milliseconds: a node of its own, so a link of its own.
fn tool_ping(url: &str, host: &str) -> Result<f64, Failure> {
    let (count, pause) = (ECHOES.to_string(), format!("0.{ECHO_PAUSE_MS:03}"));
    let arguments = ["ping", host, "--signal", url, "--count", &count, "--interval", &pause, "--json"];
    let text = Process::tool(&arguments)?.rest()?;
    let trip = |line| serde_json::from_str::<Value>(line).ok()?.get("round_trip_us")?.as_u64();
    let trips: Vec<u64> = text.lines().filter_map(trip).collect();
    match trips.len() {
        len if len * 10 < ECHOES * 9 => Err(format!("only {len} of {ECHOES} echoes came").into()),
        _ => Ok(p99(trips)),
    }
}

/// The p99 of echoes from a node of ours, in milliseconds: over the link that its flows use.
fn node_ping(from: &mut Peer, host: &str) -> Result<(f64, u64), Failure> {
    let answer = from.ask(&format!("ping {host} {ECHOES} {ECHO_PAUSE_MS}"))?;
    let trips = answer["round_trips_us"].as_array().ok_or("no round trips")?;
    let unanswered = answer["unanswered"].as_u64().unwrap_or(0);
    Ok((p99(trips.iter().filter_map(Value::as_u64).collect()), unanswered))
}

/// Echoes beside a transfer at full speed: over the same link, and by the tool over another link to the receiver.
pub(crate) fn ping() -> Result<Vec<Row>, Failure> {
    let place = Place::loopback()?;
    let mut worst = Vec::new();
    for round in 0..ROUNDS {
        let (mut from, mut to) = place.pair()?;
        let (quiet, _) = node_ping(&mut from, &to.name)?;
        from.stream(&to)?;
        let speed = to.measure(WARM_UP, Duration::from_secs(1))?.mb_per_s();
        let (same, unanswered) = node_ping(&mut from, &to.name)?;
        let other = tool_ping(place.url(), &to.name)?;
        let after = to.measure(Duration::ZERO, Duration::from_millis(500))?.mb_per_s();
        eprintln!(
            "  round {}: p99 {same:.2} ms on the same link ({unanswered} unanswered), {other:.2} ms by the tool, {quiet:.2} \
             ms without the transfer, which has {speed:.1} and at the end {after:.1} MB/s; {}",
            round + 1,
            machine()
        );
        worst.push(same.max(other));
    }
    Ok(vec![Row::new("ping_under_load_ms", median(worst), "ms", Reach::AtMost(30.0))])
}

/// A stream beside a flood of datagrams, from the same node to the same peer, against the stream alone.
pub(crate) fn flood() -> Result<Vec<Row>, Failure> {
    let place = Place::loopback()?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let (mut from, mut to) = place.pair()?;
        from.stream(&to)?;
        let alone = to.measure(WARM_UP, MEASURED)?.mb_per_s();
        from.flood(&to, DATAGRAM_LEN, 0)?;
        let beside = to.measure(WARM_UP, MEASURED)?;
        let (stream, datagrams) = (beside.mb_per_s(), beside.datagrams_per_s());
        eprintln!(
            "  round {}: TCP {alone:.1} MB/s alone, {stream:.1} MB/s beside {datagrams:.0} datagrams/s; {}",
            round + 1,
            machine()
        );
        ratios.push(stream / alone);
    }
    Ok(vec![Row::new("tcp_beside_udp_flood", median(ratios), "ratio", Reach::AtLeast(0.4))])
}

/// Jain's index: 1 if all have the same, 1/n if one has all.
fn jain(shares: &[f64]) -> f64 {
    let (sum, squares) = (shares.iter().sum::<f64>(), shares.iter().map(|share| share * share).sum::<f64>());
    sum * sum / (shares.len() as f64 * squares)
}

pub(crate) fn fairness() -> Result<Vec<Row>, Failure> {
    let place = Place::loopback()?;
    let mut indices = Vec::new();
    for round in 0..ROUNDS {
        let mut from = place.peer(0)?;
        let mut to = [place.peer(1)?, place.peer(1)?];
        for flow in 0..FLOWS {
            from.stream(&to[flow % 2])?;
        }
        sleep(WARM_UP);
        let before = [to[0].counts()?, to[1].counts()?];
        sleep(MEASURED);
        let mut shares = Vec::new();
        for (peer, before) in to.iter_mut().zip(before) {
            let arrived = crate::peers::Arrived { before, after: peer.counts()? };
            shares.extend(arrived.streams_mb_per_s());
        }
        if shares.len() != FLOWS {
            return Err(format!("{} of {FLOWS} flows have come", shares.len()).into());
        }
        let text: Vec<String> = shares.iter().map(|share| format!("{share:.1}")).collect();
        eprintln!("  round {}: {:.3}, MB/s: {}; {}", round + 1, jain(&shares), text.join(" "), machine());
        indices.push(jain(&shares));
    }
    Ok(vec![Row::new("fairness_jain", median(indices), "", Reach::AtLeast(0.95))])
}

/// A stream while another peer, to which the same node sends as much as goes, has stopped, against the stream alone.
pub(crate) fn stalled() -> Result<Vec<Row>, Failure> {
    let place = Place::loopback()?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let (mut from, mut to) = place.pair()?;
        let stopped = place.peer(1)?;
        from.stream(&to)?;
        let before = to.measure(WARM_UP, MEASURED)?.mb_per_s();
        from.stream(&stopped)?;
        sleep(WARM_UP / 2);
        stopped.freeze()?;
        let beside = to.measure(WARM_UP, MEASURED)?.mb_per_s();
        eprintln!(
            "  round {}: {before:.1} MB/s alone, {beside:.1} MB/s beside a peer that has stopped; {}",
            round + 1,
            machine()
        );
        ratios.push(beside / before);
    }
    Ok(vec![Row::new("beside_stalled_peer", median(ratios), "ratio", Reach::AtLeast(0.9))])
}

/// One flood at a rate: datagrams received a second, and the share lost of all that were sent.
fn datagrams_at(place: &Place<'_>, rate: u64) -> Result<(f64, f64), Failure> {
    let (mut from, mut to) = place.pair()?;
    from.flood(&to, DATAGRAM_LEN, rate)?;
    sleep(WARM_UP);
    let before = to.counts()?;
    sleep(MEASURED);
    let after = to.counts()?;
    from.stop()?;
    let sent = from.counts()?.sent;
    // What is under way comes within moments; what does not is lost.
    let mut received = to.counts()?.received;
    loop {
        sleep(Duration::from_millis(200));
        let now = to.counts()?.received;
        if now == received {
            break;
        }
        received = now;
    }
    let loss = 1.0 - received as f64 / sent as f64;
    Ok((crate::peers::Arrived { before, after }.datagrams_per_s(), loss))
}

pub(crate) fn datagrams() -> Result<Vec<Row>, Failure> {
    let place = Place::loopback()?;
    let mut best = Vec::new();
    for round in 0..ROUNDS {
        let (mut rate, mut reached) = (0, 0.0);
        for _ in 0..RATES_MAX {
            let (received, loss) = datagrams_at(&place, rate)?;
            let offered = if rate == 0 { "as many as go".to_owned() } else { format!("{rate}/s") };
            eprintln!(
                "  round {}: {received:.0} datagrams/s received, {:.2} % lost, offered {offered}; {}",
                round + 1,
                loss * 100.0,
                machine()
            );
            if loss <= LOSS_MAX {
                reached = received;
                break;
            }
            rate = (received * RATE_STEP) as u64;
        }
        best.push(reached);
    }
    Ok(vec![Row::new("udp_datagrams_per_s", median(best), "1/s", Reach::AtLeast(80_000.0))])
}
