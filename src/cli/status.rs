//! `status`: this user's running nodes.

use unisockets::Status;

use super::args;
use super::control;
use super::exit::Failure;
use super::output::print;

pub(super) async fn run(options: args::Status) -> Result<(), Failure> {
    let mut nodes = control::ask_all().await;
    if let Some(name) = &options.name {
        nodes.retain(|(_, status)| status.name.as_ref() == Some(name));
    }
    if options.json {
        let rows: Vec<_> =
            nodes.iter().map(|(pid, status)| serde_json::json!({"pid": pid, "status": status})).collect();
        return print(serde_json::to_string_pretty(&rows).expect("a status has a JSON form"));
    }
    if nodes.is_empty() {
        let which = options.name.map(|name| format!(" named {name}")).unwrap_or_default();
        return Err(Failure::failed(format!(
            "no node{which} of this user runs; start one, such as: unisockets serve 80 . --name alpha"
        )));
    }
    for (pid, status) in &nodes {
        show(*pid, status)?;
    }
    Ok(())
}

/// Returns a number of bytes as people say it.
fn amount(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

fn show(pid: u32, status: &Status) -> Result<(), Failure> {
    let name = status.name.as_deref().unwrap_or("(no name)");
    let ipv4 = status.ipv4.map(|ip| ip.to_string()).unwrap_or_default();
    let signaling = if status.signaling { "connected" } else { "reconnecting" };
    print(format_args!("{name}  pid {pid}  network {}  {ipv4}  {}", status.network, status.ipv6))?;
    print(format_args!("  key {}  signaling {signaling}", status.key))?;
    for peer in &status.peers {
        let path = match peer.path {
            Some(unisockets::Route::Direct) => "direct",
            Some(unisockets::Route::Relayed) => "relayed",
            None if peer.dialling => "dialling",
            None => "no link",
        };
        let name = peer.name.clone().unwrap_or_else(|| peer.key.short());
        let round_trip = peer.round_trip_us.map(|us| format!("{:.3} ms", us as f64 / 1_000.0)).unwrap_or_default();
        let counters = peer.counters;
        print(format_args!(
            "  peer {name}  {path}  {round_trip}  {} connections  {} out  {} in",
            peer.connections,
            amount(counters.sent_bytes),
            amount(counters.received_bytes)
        ))?;
    }
    for socket in &status.sockets {
        let show = |address: Option<std::net::SocketAddr>| address.map(|a| a.to_string()).unwrap_or_else(|| "*".into());
        let state = socket.state.as_deref().unwrap_or("");
        print(format_args!("  {}  {}  {}  {state}", socket.kind, show(socket.local), show(socket.remote)))?;
    }
    for (reason, count) in &status.dropped {
        print(format_args!("  dropped {count} packets: {reason}"))?;
    }
    for (_, text) in &status.incidents {
        print(format_args!("  incident: {text}"))?;
    }
    if status.receive_buffer.is_some_and(|bytes| bytes < 1024 * 1024) {
        print(
            "  hint: the kernel holds socket buffers down; 'sysctl -w net.core.rmem_max=4194304' makes links faster",
        )?;
    }
    Ok(())
}
