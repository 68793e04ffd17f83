//! `ping`: echoes from a member.

use std::time::Duration;

use unisockets::Ping;

use super::args;
use super::exit::{Failure, sentence};
use super::output::{Lines, note};
use super::with_node;

/// How long an echo is waited for.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn run(options: args::Ping) -> Result<(), Failure> {
    if options.size > 60_000 {
        return Err(Failure::usage("an echo carries at most 60000 bytes"));
    }
    let pause = Duration::try_from_secs_f64(options.interval)
        .map_err(|_| Failure::usage("the interval is a number of seconds, such as 0.2"))?;
    let lines = Lines::of(&options.common);
    with_node(&options.common, |node| async move {
        let unreachable = |error: &std::io::Error| Failure::unreachable(&options.host, error);
        let mut ping = Ping::new(&node, &options.host).await.map_err(|error| unreachable(&error))?;
        let target = ping.target();
        let mut answered = 0;
        let mut sent = 0;
        while options.count == 0 || sent < options.count {
            if sent > 0 {
                tokio::time::sleep(pause).await;
            }
            sent += 1;
            match ping.echo(options.size, LIMIT).await {
                Ok(echo) => {
                    answered += 1;
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
        if answered == 0 { Err(Failure::silent(4)) } else { Ok(()) }
    })
    .await
}

/// Whether asking again would fail in the same way.
fn is_final(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable)
}
