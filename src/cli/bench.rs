//! `bench`: the speed of the way to a member.

use unisockets::{PeerStatus, Route, Status};

use super::args::Bench;
use super::exit::Failure;
use super::nc::announce;
use super::output::Lines;
use super::with_node;
use super::workload;

pub(super) async fn run(options: Bench) -> Result<(), Failure> {
    let lines = Lines::of(&options.common);
    with_node(&options.common, |node| async move {
        if options.host == "serve" {
            announce(&node, workload::PORT);
            return Ok(workload::serve(&node).await?);
        }
        let host = options.host.as_str();
        let explain = |error: &std::io::Error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                Failure::absent(format!("{host} does not serve the benchmark; run 'unisockets bench serve' there"))
            }
            std::io::ErrorKind::InvalidData => Failure::damaged(error),
            _ => Failure::unreachable(host, error),
        };
        let trips = workload::round_trips(&node, host, options.round_trips).await.map_err(|e| explain(&e))?;
        let up = workload::upload(&node, host, options.bytes).await.map_err(|e| explain(&e))?;
        let down = workload::download(&node, host, options.bytes).await.map_err(|e| explain(&e))?;
        let sizes: Vec<usize> = (0..100).map(|n| 1 + n * 90).collect();
        let udp = workload::datagrams(&node, host, &sizes).await.map_err(|e| explain(&e))?;
        let (p50, p99) = (trips.percentile(50), trips.percentile(99));
        let path = path_to(&node.status(), host);
        if options.json {
            let figures = serde_json::json!({
                "host": host, "path": path, "bytes": options.bytes, "up_mb_per_s": up, "down_mb_per_s": down,
                "round_trip_us": {"p50": p50, "p99": p99}, "udp": udp,
            });
            return lines.print(figures);
        }
        lines.print(format_args!("round trip, 128 bytes   p50 {p50} us, p99 {p99} us"))?;
        lines.print(format_args!("to {host:<20} {up:8.1} MB/s"))?;
        lines.print(format_args!("from {host:<18} {down:8.1} MB/s"))?;
        lines.print(format_args!(
            "datagrams               {} of {} came back, the largest with {} bytes",
            udp.received, udp.sent, udp.largest
        ))
    })
    .await
}

/// Returns how packets travel to a member that is named by its name or one of its addresses.
fn path_to(status: &Status, host: &str) -> Option<Route> {
    let is_meant = |peer: &&PeerStatus| {
        peer.name.as_deref() == Some(host)
            || peer.ipv6.to_string() == host
            || peer.ipv4.is_some_and(|ipv4| ipv4.to_string() == host)
    };
    status.peers.iter().find(is_meant).and_then(|peer| peer.path)
}
