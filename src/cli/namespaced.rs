//! The node of a program in a namespace: it stays outside, and holds the program's device.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net;
use tokio::sync::oneshot;
use unisockets::{Node, Tun};

use super::args;
use super::channel::{AsyncChannel, Channel};
use super::exit::{Failure, sentence};
use super::interface::{self, Addresses};
use super::output::note;
use super::with_node;

/// Connections from this machine that wait for the program's answer.
const ASKED_MAX: usize = 1_024;

type Asked = Arc<Mutex<HashMap<u64, oneshot::Sender<Option<OwnedFd>>>>>;

/// Serves the namespace whose channel is standard input.
pub(super) async fn run(options: &args::Node) -> Result<(), Failure> {
    // What a terminal sends to the program is not meant for its node.
    let _ = rustix::process::setsid();
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let channel = Channel(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut given = HashMap::new();
    while given.len() < 3 {
        match channel.receive()? {
            Some((what, Some(descriptor))) => drop(given.insert(what, descriptor)),
            // The command could not make the namespace, and says why.
            _ => return Err(Failure::silent(1)),
        }
    }
    let mut take =
        |what: &str| given.remove(what.as_bytes()).ok_or_else(|| Failure::failed("no namespace gave a device"));
    let (tun, udp, tcp) = (Tun::from_descriptor(take("tun")?), take("udp")?, take("tcp")?);
    let udp = std::net::UdpSocket::from(udp);
    let tcp = std::net::TcpListener::from(tcp);
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    // Before anything runs that would be in vain.
    let mut published = Vec::new();
    for publish in &options.publish {
        let listener = net::TcpListener::bind(publish.machine)
            .await
            .map_err(|error| Failure::failed(format!("cannot publish at {}: {}", publish.machine, sentence(&error))))?;
        published.push((listener, publish.port));
    }
    with_node(&options.common, |node| async move {
        let attached = node.attach(tun, None)?;
        let own = Addresses::of(&node);
        let addresses = serde_json::to_vec(&own).expect("addresses have a JSON form");
        tokio::spawn(interface::watch(node.clone(), own, "start the program again"));
        channel.send(&addresses, None)?;
        let channel = Arc::new(AsyncChannel::new(channel)?);
        let asked = Asked::default();
        for (listener, port) in published {
            tokio::spawn(lead(listener, port, Arc::clone(&channel), Arc::clone(&asked)));
        }
        let names = node.clone();
        let (udp, tcp) = (net::UdpSocket::from_std(udp)?, net::TcpListener::from_std(tcp)?);
        let names = tokio::spawn(async move { names.serve_names(udp, tcp).await });
        loop {
            let (message, descriptor) = tokio::select! {
                () = attached.ended() => return Err(Failure::failed(interface::ENDED)),
                received = channel.receive() => match received? {
                    Some(received) => received,
                    None => break,
                },
            };
            let id = String::from_utf8_lossy(&message).parse().unwrap_or(u64::MAX);
            let waiting = asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if let Some(waiting) = waiting {
                let _ = waiting.send(descriptor);
            }
        }
        names.abort();
        drained(&node).await;
        drop(attached);
        Ok(())
    })
    .await
}

/// Waits until what the namespace sent last is on its way.
async fn drained(node: &Node) {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
    /// What the device holds when the program ends is read meanwhile.
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);
    let _ = tokio::time::timeout(LIMIT, async {
        tokio::time::sleep(PAUSE).await;
        while node.device_waits() {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await;
}

/// The number of the next question, of whichever port.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Carries what connects to a port of this machine to one of the program.
async fn lead(listener: net::TcpListener, port: u16, channel: Arc<AsyncChannel>, asked: Asked) {
    loop {
        let (mut machine, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // What cannot be had now, such as a descriptor, may be had soon.
                note(format_args!("port {port} could not be published for a moment: {}", sentence(&error)));
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.len() >= ASKED_MAX {
                continue;
            }
            asked.insert(id, sender);
        }
        let request = format!("{id} {port}");
        if channel.send(request.as_bytes()).await.is_err() {
            return;
        }
        tokio::spawn(async move {
            let program = answer.await.ok().flatten().map(std::net::TcpStream::from);
            let Some(program) = program else {
                note(format_args!("{peer} could not be carried to port {port}: nobody listens on it"));
                let _ = machine.set_zero_linger();
                return;
            };
            let _ = program.set_nonblocking(true);
            if let Ok(mut program) = net::TcpStream::from_std(program)
                && tokio::io::copy_bidirectional(&mut machine, &mut program).await.is_err()
            {
                // A reset of one side resets the other.
                let _ = machine.set_zero_linger();
                let _ = program.set_zero_linger();
            }
        });
    }
}
