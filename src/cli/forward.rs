//! `forward` and `expose`: between the machine's TCP and the network's.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net;
use tokio::task::JoinSet;
use unisockets::{Node, TcpListener, TcpStream, ToAddress};

use super::args::{Expose, Forward};
use super::exit::{Failure, sentence};
use super::nc::announce;
use super::output::{Lines, note};
use super::with_node;

/// Connections carried at once; further ones wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1_024;
/// A listener of the network that fails so often in a row has ended.
const FAILURES_MAX: u32 = 50;
/// Bytes moved at a time.
const CHUNK_LEN: usize = 64 * 1024;

fn machine_address(text: &str) -> Result<SocketAddr, Failure> {
    let address = if text.contains(':') { text.to_owned() } else { format!("127.0.0.1:{text}") };
    let address = address.replace("localhost:", "127.0.0.1:");
    address.parse().map_err(|_| {
        Failure::usage(format!("'{text}' is no address of this machine; it looks like 8080 or 127.0.0.1:8080"))
    })
}

pub(super) async fn forward(options: Forward) -> Result<(), Failure> {
    let local = machine_address(&options.local)?;
    options.target.to_target().map_err(Failure::usage)?;
    let lines = Lines::of(&options.common);
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    with_node(&options.common, |node| async move {
        let listener = net::TcpListener::bind(local)
            .await
            .map_err(|error| Failure::failed(format!("cannot listen on {local}: {}", sentence(&error))))?;
        // Whoever started this may read this line and then close the pipe.
        let _ = lines.print(format_args!("forwarding {} to {}", listener.local_addr()?, options.target));
        lead(node, listener, options.target).await
    })
    .await
}

/// Carries every connection that this machine's programs make to a listener on to `target`.
pub(super) async fn lead(node: Node, listener: net::TcpListener, target: String) -> Result<(), Failure> {
    let mut tasks = JoinSet::new();
    loop {
        make_room(&mut tasks).await;
        let (machine, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                pause("forward", &error).await;
                continue;
            }
        };
        let (node, target) = (node.clone(), target.clone());
        tasks.spawn(async move {
            match TcpStream::connect(&node, target.as_str()).await {
                Ok(network) => carry(machine, network).await,
                Err(error) => {
                    note(format_args!("{peer} could not be carried to {target}: {}", sentence(&error)));
                    // The program learns it as it would from a direct connection.
                    let _ = machine.set_zero_linger();
                }
            }
        });
    }
}

pub(super) async fn expose(options: Expose) -> Result<(), Failure> {
    let target = machine_address(&options.target)?;
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    with_node(&options.common, |node| async move {
        let listener = TcpListener::bind(&node, ("::", options.port)).await?;
        announce(&node, listener.local_addr()?.port());
        let mut tasks = JoinSet::new();
        let mut failures = 0;
        loop {
            make_room(&mut tasks).await;
            let (network, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if failures >= FAILURES_MAX => return Err(error.into()),
                Err(error) => {
                    failures += 1;
                    pause("expose", &error).await;
                    continue;
                }
            };
            failures = 0;
            tasks.spawn(async move {
                match net::TcpStream::connect(target).await {
                    Ok(machine) => carry(machine, network).await,
                    Err(error) => {
                        note(format_args!("{peer} could not be carried to {target}: {}", sentence(&error)));
                        let _ = network.set_linger(Some(std::time::Duration::ZERO));
                    }
                }
            });
        }
    })
    .await
}

/// Says why a connection was not taken. What cannot be had now, such as a descriptor, may be had soon.
async fn pause(what: &str, error: &std::io::Error) {
    note(format_args!("{what}: no connection can be taken for a moment: {}", sentence(error)));
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
}

async fn make_room(tasks: &mut JoinSet<()>) {
    while tasks.try_join_next().is_some() {}
    if tasks.len() >= CONNECTIONS_MAX {
        tasks.join_next().await;
    }
}

/// Carries both directions; each half-close is handed on, and a reset of one side resets the other.
async fn carry(machine: net::TcpStream, network: TcpStream) {
    let _ = machine.set_nodelay(true);
    let _ = network.set_nodelay(true);
    let (mut machine, mut network) = (machine, network);
    if copy_bidirectional_with_sizes(&mut machine, &mut network, CHUNK_LEN, CHUNK_LEN).await.is_err() {
        let _ = machine.set_zero_linger();
        let _ = network.set_linger(Some(std::time::Duration::ZERO));
    }
}
