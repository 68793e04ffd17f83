//! `node`: a member that holds the sockets of other programs.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open, setsid};
use tokio::io::AsyncReadExt;
use unisockets::Host;

use super::args;
use super::control;
use super::exit::Failure;
use super::output::print;
use super::with_node;

/// How often a node without sockets looks whether a program that may want one is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a node waits that a library has started: a program that goes into the background by itself closes
/// everything, opens its sockets only then, and has no sign of the node in its environment.
const LINGER: Duration = Duration::from_secs(10);
/// The first word of what a node in the background says when it is there; the path of its control socket follows.
const READY: &str = "ready ";
/// The first word of what it says next to whoever started it for a program: what goes into UNISOCKETS_NODE.
pub(super) const INVITATION: &str = "invitation ";

pub(super) async fn run(options: args::Node) -> Result<(), Failure> {
    if options.namespace {
        return super::namespaced::run(&options).await;
    }
    if options.background {
        return background().await;
    }
    // Every socket of a program takes a descriptor or two here.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    if options.invites {
        // A terminal that is closed must not end what daemons of it still use.
        let _ = setsid();
    }
    let followed = options.follow.map(follow).transpose()?;
    let path = match &options.control {
        Some(path) => path.clone(),
        None => control::folder().join(format!("{}.node", std::process::id())),
    };
    if let Some(folder) = path.parent().filter(|folder| options.control.is_none() && !folder.as_os_str().is_empty()) {
        control::make_folder(folder)?;
    }
    with_node(&options.common, |node| async move {
        let unusable = |error| Failure::failed(format!("cannot serve programs at {}: {error}", path.display()));
        control::remove_dead(&path);
        let host = Host::serve(&node, &path).map_err(unusable)?;
        let _served = Served(path.clone());
        for publish in &options.publish {
            let listener = tokio::net::TcpListener::bind(publish.machine).await;
            let listener = listener.map_err(|error| {
                Failure::failed(format!("cannot publish at {}: {}", publish.machine, super::exit::sentence(&error)))
            })?;
            let target = std::net::SocketAddr::from((node.ipv4(), publish.port)).to_string();
            tokio::spawn(super::forward::lead(node.clone(), listener, target));
        }
        print(format_args!("{READY}{}", path.display()))?;
        if options.invites {
            print(format_args!("{INVITATION}{}", host.invitation()))?;
        }
        tokio::select! {
            () = outlive(&host, followed, if options.linger { LINGER } else { Duration::ZERO }) => {}
            () = async { host.asked_to_leave().await; host.drained().await; host.delivered().await } => {}
        }
        Ok(())
    })
    .await
}

/// Removes the control socket when the node ends.
struct Served(PathBuf);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn follow(pid: u32) -> Result<OwnedFd, Failure> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or_else(|| Failure::usage(format!("{pid} is no process number")))?;
    pidfd_open(raw, PidfdFlags::NONBLOCK)
        .map_err(|error| Failure::failed(format!("cannot follow process {pid}: {error}")))
}

/// Waits until the followed process has ended, no socket is open, and no process is there that was given the node or has
/// asked it.
async fn outlive(host: &Host, followed: Option<OwnedFd>, linger: Duration) {
    let Some(followed) = followed else {
        return std::future::pending().await;
    };
    // A process descriptor is readable when the process has ended (pidfd_open(2)); that wait has a thread of its own.
    let _ = tokio::task::spawn_blocking(move || {
        loop {
            let mut wanted = [rustix::event::PollFd::new(&followed, rustix::event::PollFlags::IN)];
            if rustix::event::poll(&mut wanted, None) != Err(rustix::io::Errno::INTR) {
                return;
            }
        }
    })
    .await;
    let mut idle_since = tokio::time::Instant::now();
    loop {
        if host.socket_count() > 0 {
            host.drained().await;
            idle_since = tokio::time::Instant::now();
        }
        let invitation = host.invitation().to_owned();
        let lingers = idle_since.elapsed() < linger || host.socket_count() > 0;
        let heirs = lingers
            || host.is_needed()
            || tokio::task::spawn_blocking(move || has_heirs(&invitation)).await.unwrap_or(false);
        if !heirs && host.socket_count() == 0 {
            host.delivered().await;
            if host.socket_count() == 0 {
                return;
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether a process was started with this invitation in its environment. Where a program has put a title there, which
/// overwrites it, only what it has asked for tells.
fn has_heirs(invitation: &str) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return false;
    };
    let own = std::process::id().to_string();
    let is_number = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let mut others = processes.flatten().filter(|entry| {
        let name = entry.file_name();
        is_number(&name) && name != own.as_str()
    });
    others.any(|entry| {
        // Of other users' processes it cannot be read; theirs are not this node's.
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| {
            variable.strip_prefix(b"UNISOCKETS_NODE=").is_some_and(|value| value == invitation.as_bytes())
        })
    })
}

/// Starts a node that outlives this command, and waits until it is there.
async fn background() -> Result<(), Failure> {
    let itself = std::env::current_exe()?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--background");
    let mut command = tokio::process::Command::new(itself);
    command.args(arguments).arg("--invites");
    super::isolate::without_inherited(command.as_std_mut());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut node = command.spawn()?;
    // However much it has to say, it must not wait for somebody to read it.
    let words = node.stderr.take();
    let words = tokio::spawn(async move {
        let mut reason = String::new();
        if let Some(mut words) = words {
            let _ = words.read_to_string(&mut reason).await;
        }
        reason
    });
    let mut said = String::new();
    let mut stdout = node.stdout.take().expect("it was asked for");
    let mut line = [0; 4096];
    while !(said.contains(INVITATION) && said.ends_with('\n')) {
        let len = stdout.read(&mut line).await?;
        if len == 0 {
            break;
        }
        said.push_str(&String::from_utf8_lossy(&line[..len]));
    }
    if said.starts_with(READY) {
        return print(said.trim_end());
    }
    let reason = words.await.unwrap_or_default();
    let status = node.wait().await?;
    super::output::note(reason.trim_end());
    Err(Failure::silent(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
