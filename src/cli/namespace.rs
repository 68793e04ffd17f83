//! `run`: a program in a network namespace of its own, whose only way out is the network.
//!
//! Three processes: this command, which waits for the program and hands signals on; `init` (init.rs), the first process
//! of the program's namespaces; and the node (node.rs), outside. Each notices when one of the others is gone.

use std::ffi::OsString;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGWINCH, SIGXCPU,
};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};
use unisockets::Tun;

use super::channel::{Channel, Message};
use super::exit::Failure;
use super::interface::{self, Addresses};
use super::{args, isolate};

/// Where names are asked for inside.
const NAME_SERVER: &str = "127.0.0.53:53";
const RESOLVER: &str = "# Names of the network, by unisockets run\nnameserver 127.0.0.53\nsearch .\n";
const PRELOAD_INSTEAD: &str = "'unisockets run --preload' needs none of this";

/// Runs the program; its exit status becomes this command's.
pub(super) async fn run(options: &args::Run, program: &Path) -> Result<(), Failure> {
    if options.common.capture.as_deref() == Some(Path::new("-")) {
        return Err(Failure::usage("standard output is the program's; give --capture a file"));
    }
    let (ours, theirs) = Channel::pair()?;
    let mut node = {
        let mut command = node(&super::run::node_arguments(options))?;
        isolate::without_inherited(&mut command);
        // The command holds the node's end of the channel, which only the node shall have: it goes with this block.
        command.stdin(theirs.0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?
    };
    // Its words go through this command: who waits for the end of this command's output must not wait for the node.
    let mut words = node.stderr.take().map(OwnedFd::from);
    isolate::enter().map_err(|error| {
        let advice = "this system does not let its users have namespaces (user.max_user_namespaces, or a rule of \
                      AppArmor for user namespaces)";
        Failure::failed(format!("no namespace for the program: {error}; {advice}; {PRELOAD_INSTEAD}"))
    })?;
    let tun = Tun::create(interface::NAME).map_err(|error| no_tun(&error))?;
    let kernel = interface::kernel()?;
    interface::bring_loopback_up(&kernel).await?;
    let (udp, tcp) = (UdpSocket::bind(NAME_SERVER)?, TcpListener::bind(NAME_SERVER)?);
    for (what, descriptor) in [("tun", tun.into_descriptor()), ("udp", udp.into()), ("tcp", OwnedFd::from(tcp))] {
        ours.send(what.as_bytes(), Some(&descriptor))?;
    }
    // The node says why it could not join.
    let Some((addresses, _)) = answer(&ours, &mut words)? else {
        while relay(&mut words) {}
        let code = node.wait()?.code().and_then(|code| u8::try_from(code).ok());
        return Err(Failure::silent(code.unwrap_or(1)));
    };
    let text = String::from_utf8_lossy(&addresses).into_owned();
    let addresses: Addresses =
        serde_json::from_str(&text).map_err(|_| Failure::failed("the node and this program are of two versions"))?;
    interface::configure(&kernel, &addresses).await?;
    isolate::replace_file("/etc/resolv.conf", RESOLVER)?;
    if let Ok(services) = std::fs::read_to_string("/etc/nsswitch.conf") {
        isolate::replace_file("/etc/nsswitch.conf", &with_names_by_dns(&services))?;
    }
    // A cache of names would answer for the machine. What cannot be connected to is passed by (nscd(8)).
    let _ = isolate::replace_file("/run/nscd/socket", "");
    let (front, init) = Channel::pair()?;
    let signals = signals()?;
    let mut first = Command::new(std::env::current_exe()?);
    first.arg("init").arg(init.inherit()?.to_string()).arg(ours.inherit()?.to_string()).arg(text);
    first.arg(&options.program[0]).arg("--").arg(program).args(&options.program[1..]);
    isolate::keep_mount_capability()?;
    let mut first = first.spawn()?;
    drop((ours, init));
    let status = wait(&front, signals, &mut words)?;
    let Some(status) = status else {
        // What init could not start it has said itself.
        let ended = first.wait()?;
        let code = ended.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code > 1);
        return Err(match (code, ended.signal()) {
            (Some(code), _) => Failure::silent(code),
            (None, Some(signal)) => Failure::failed(format!(
                "signal {signal} has ended the first process of the program's namespace, and the program with it"
            )),
            (None, None) => Failure::failed("the program's node has ended, and the program with it"),
        });
    };
    let _ = front.send(&[0], None);
    end_like(status)
}

/// The command that holds the node.
fn node(arguments: &[OsString]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).arg("--namespace");
    Ok(command)
}

fn no_tun(error: &io::Error) -> Failure {
    let text = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "'sudo chmod 0666 /dev/net/tun' opens it to all users, as most distributions ship it"
        }
        io::ErrorKind::NotFound => "'sudo modprobe tun' makes it, where the kernel has it",
        _ => "the kernel does not give one here",
    };
    Failure::failed(format!("no TUN device: /dev/net/tun: {error}; {text}; {PRELOAD_INSTEAD}"))
}

/// Other services would ask daemons of the machine, which know nothing of the network.
fn with_names_by_dns(services: &str) -> String {
    let lines = services.lines().map(|line| if line.starts_with("hosts:") { "hosts: files dns" } else { line });
    lines.fold(String::new(), |text, line| text + line + "\n")
}

type Signals = SignalDelivery<UnixStream, WithOrigin>;

fn signals() -> io::Result<Signals> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    // What is ignored here stays ignored by the program, as nohup wants it.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let wanted =
        [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGWINCH, SIGIO, SIGXCPU];
    let wanted = wanted.into_iter().filter(|signal| ignored & 1 << (signal - 1) == 0);
    SignalDelivery::with_pipe(read, write, WithOrigin::default(), wanted)
}

/// Waits for a message of the node, passing on what it says meanwhile.
fn answer(node: &Channel, words: &mut Option<OwnedFd>) -> io::Result<Option<Message>> {
    while !look(&[node.0.as_fd()], words)? {}
    node.receive()
}

/// Waits until something can be read, and passes on what the node says; returns whether the first can be read.
fn look(wanted: &[BorrowedFd<'_>], words: &mut Option<OwnedFd>) -> io::Result<bool> {
    let (first, said) = {
        let all = wanted.iter().copied().chain(words.as_ref().map(AsFd::as_fd));
        let mut all: Vec<PollFd<'_>> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut all, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let readable = |at: usize| all.get(at).is_some_and(|fd| !fd.revents().is_empty());
        (readable(0), readable(wanted.len()))
    };
    if said {
        relay(words);
    }
    Ok(first)
}

/// Waits for the program's status, handing signals on meanwhile; nothing if nobody is there any more to tell it.
fn wait(front: &Channel, mut signals: Signals, words: &mut Option<OwnedFd>) -> io::Result<Option<i32>> {
    loop {
        let told = look(&[front.0.as_fd(), signals.get_read().as_fd()], words)?;
        for Origin { signal, cause, .. } in signals.pending() {
            // What the terminal sends it sends to the program too.
            if !matches!(cause, Cause::Kernel) {
                let _ = front.send(&[u8::try_from(signal).unwrap_or(0)], None);
            }
        }
        if told {
            let status = front.receive()?.and_then(|(status, _)| status.try_into().ok());
            return Ok(status.map(i32::from_ne_bytes));
        }
    }
}

/// Passes on what the node says; false when it says no more.
fn relay(words: &mut Option<OwnedFd>) -> bool {
    let mut text = [0; 4096];
    match words.as_ref().map(|words| rustix::io::read(words, &mut text)) {
        Some(Ok(len @ 1..)) => {
            let _ = io::Write::write_all(&mut io::stderr(), &text[..len]);
            true
        }
        Some(Err(rustix::io::Errno::INTR)) => true,
        _ => {
            *words = None;
            false
        }
    }
}

/// Ends as the program did.
fn end_like(status: i32) -> Result<(), Failure> {
    let status = std::process::ExitStatus::from_raw(status);
    if let Some(signal) = status.signal() {
        let _ = signal_hook::low_level::emulate_default_handler(signal);
        return Err(Failure::silent(u8::try_from(128 + signal).unwrap_or(255)));
    }
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(0) => Ok(()),
        code => Err(Failure::silent(code.unwrap_or(1))),
    }
}
