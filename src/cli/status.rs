//! `status`: this user's running nodes.

use unisockets::Status;

use super::args;
use super::control;
use super::exit::Failure;

pub(super) async fn run(options: args::Status) -> Result<(), Failure> {
    let mut nodes = control::ask_all().await;
    if let Some(name) = &options.name {
        nodes.retain(|(_, status)| status.name.as_ref() == Some(name));
    }
    if options.json {
        let rows: Vec<_> =
            nodes.iter().map(|(pid, status)| serde_json::json!({"pid": pid, "status": status})).collect();
        println!("{}", serde_json::to_string_pretty(&rows).expect("a status has a JSON form"));
        return Ok(());
    }
    if nodes.is_empty() {
        let which = options.name.map(|name| format!(" named {name}")).unwrap_or_default();
        return Err(Failure::failed(format!(
            "no node{which} of this user runs; start one, such as: unisockets serve 80 . --name alpha"
        )));
    }
    for (pid, status) in &nodes {
        show(*pid, status);
    }
    Ok(())
}

fn show(pid: u32, status: &Status) {
    let name = status.name.as_deref().unwrap_or("(no name)");
    let ipv4 = status.ipv4.map(|ip| ip.to_string()).unwrap_or_default();
    let signaling = if status.signaling { "connected" } else { "reconnecting" };
    println!("{name}  pid {pid}  network {}  {ipv4}  {}", status.network, status.ipv6);
    println!("  key {}  signaling {signaling}", status.key);
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
        println!(
            "  peer {name}  {path}  {round_trip}  {} connections  {} MB out  {} MB in",
            peer.connections,
            counters.sent_bytes / 1_000_000,
            counters.received_bytes / 1_000_000
        );
    }
    for socket in &status.sockets {
        let show = |address: Option<std::net::SocketAddr>| address.map(|a| a.to_string()).unwrap_or_else(|| "*".into());
        let state = socket.state.as_deref().unwrap_or("");
        println!("  {}  {}  {}  {state}", socket.kind, show(socket.local), show(socket.remote));
    }
    for (reason, count) in &status.dropped {
        println!("  dropped {count} packets: {reason}");
    }
    for (_, text) in &status.incidents {
        println!("  incident: {text}");
    }
    if status.receive_buffer.is_some_and(|bytes| bytes < 1024 * 1024) {
        println!(
            "  hint: the kernel holds socket buffers down; 'sysctl -w net.core.rmem_max=4194304' makes links faster"
        );
    }
}
