//! `ping`: echoes from a member.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use unisockets::Ping;

use super::args;
use super::exit::{Failure, sentence};
use super::output::{Lines, note};
use super::with_node;

/// How long an echo is waited for.
const LIMIT: Duration = Duration::from_secs(10);

/// What came of the echoes.
#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    answered: u64,
    least: Duration,
    most: Duration,
    sum: Duration,
}

impl Tally {
    fn answer(&mut self, round_trip: Duration) {
        self.least = if self.answered == 0 { round_trip } else { self.least.min(round_trip) };
        self.most = self.most.max(round_trip);
        self.sum += round_trip;
        self.answered += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = (self.sent - self.answered) as f64 * 100.0 / self.sent.max(1) as f64;
        write!(f, "{} sent, {} answered, {lost:.0} % lost", self.sent, self.answered)?;
        if self.answered > 0 {
            let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
            let mean = millis(self.sum) / self.answered as f64;
            write!(f, "; round trip {:.3} to {:.3} ms, {mean:.3} in the mean", millis(self.least), millis(self.most))?;
        }
        Ok(())
    }
}

pub(super) async fn run(options: args::Ping) -> Result<(), Failure> {
    if options.size > 60_000 {
        return Err(Failure::usage("an echo carries at most 60000 bytes"));
    }
    let pause = Duration::try_from_secs_f64(options.interval)
        .map_err(|_| Failure::usage("the interval is a number of seconds, such as 0.2"))?;
    let lines = Lines::of(&options.common);
    let tally = Mutex::new(Tally::default());
    let tally = || tally.lock().unwrap_or_else(PoisonError::into_inner);
    let result = with_node(&options.common, |node| async move {
        let unreachable = |error: &std::io::Error| Failure::unreachable(&options.host, error);
        let mut ping = Ping::new(&node, &options.host).await.map_err(|error| unreachable(&error))?;
        let target = ping.target();
        while options.count == 0 || tally().sent < options.count {
            if tally().sent > 0 {
                tokio::time::sleep(pause).await;
            }
            tally().sent += 1;
            match ping.echo(options.size, LIMIT).await {
                Ok(echo) => {
                    tally().answer(echo.round_trip);
                    let micros = echo.round_trip.as_micros();
                    let line = if options.json {
                        let host = &options.host;
                        serde_json::json!({"host": host, "address": target, "sequence": echo.sequence,
                            "bytes": echo.len, "hop_limit": echo.hop_limit, "round_trip_us": micros})
                        .to_string()
                    } else {
                        let (sequence, len, millis) = (echo.sequence, echo.len, micros as f64 / 1_000.0);
                        format!("{len} bytes from {} ({target}): seq={sequence} time={millis:.3} ms", options.host)
                    };
                    lines.print(line)?;
                }
                Err(error) if is_final(&error) => return Err(unreachable(&error)),
                Err(error) => note(format_args!("no echo from {} ({target}): {}", options.host, sentence(&error))),
            }
        }
        if tally().answered == 0 { Err(Failure::silent(4)) } else { Ok(()) }
    })
    .await;
    // Whoever interrupts it wants to know, too.
    let tally = tally();
    if tally.sent > 1 && !options.json {
        lines.print(&*tally)?;
    }
    result
}

/// Whether asking again would fail in the same way.
fn is_final(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable)
}
