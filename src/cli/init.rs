//! The first process of a program's namespaces: it starts the program, and the kernel ends all others with it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use unisockets::Patience;

use super::channel::Channel;
use super::exit::Failure;
use super::interface::Addresses;
use super::{args, isolate};

/// States of connections that still send (net/tcp_states.h): FIN_WAIT1, LAST_ACK and CLOSING.
const SENDING: [&str; 3] = ["04", "09", "0B"];

/// Starts the program and waits until nothing of it is left.
pub(super) fn run(options: &args::Init) -> Result<(), Failure> {
    isolate::hear_of_children()?;
    let front = Channel(isolate::inherited(options.front)?);
    let node = Arc::new(Channel(isolate::inherited(options.node)?));
    // Processes that look at each other see those of their own namespace. Where it is not allowed they see all.
    let _ = isolate::mount_proc();
    isolate::drop_capabilities()?;
    let mut command = Command::new(&options.program[0]);
    command.arg0(&options.name).args(&options.program[1..]);
    let started = command.spawn().or_else(|error| match error.raw_os_error() {
        // A script that does not say by whom it is run is the shell's, as wherever programs are started (execvp(3)).
        Some(libc::ENOEXEC) => Command::new("/bin/sh").args(&options.program).spawn(),
        _ => Err(error),
    });
    let program = match started {
        Ok(program) => program,
        Err(error) => {
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            super::output::note(format_args!("unisockets: cannot run {}: {error}", options.name.display()));
            return Err(Failure::silent(code));
        }
    };
    let program = i32::try_from(program.id()).ok().and_then(Pid::from_raw);
    let program = program.ok_or_else(|| Failure::failed("the program has no process number"))?;
    close_standard_streams();
    isolate::close_inherited([options.front, options.node]);
    let front = Arc::new(front);
    {
        let front = Arc::clone(&front);
        std::thread::spawn(move || obey(&front, program));
    }
    {
        let (node, addresses) = (Arc::clone(&node), options.addresses.clone());
        std::thread::spawn(move || serve(&node, &addresses));
    }
    reap(&front, program);
    drain();
    Ok(())
}

/// Lets go of what is the program's: who reads its output waits for the end of it.
fn close_standard_streams() {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    if let Ok(null) = null {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Sends the program the signals that the command got, and ends everything when the command is no more.
fn obey(front: &Channel, program: Pid) {
    while let Ok(Some((message, _))) = front.receive() {
        match message.as_slice() {
            // The command has its answer and ends; what the program left running goes on.
            [0] => return,
            [number] => {
                if let Some(signal) = Signal::from_named_raw(i32::from(*number)) {
                    let _ = kill_process(program, signal);
                }
            }
            _ => {}
        }
    }
    std::process::exit(1);
}

/// Opens connections to the program's ports for the node, and ends everything when the node is no more.
fn serve(node: &Arc<Channel>, addresses: &str) {
    let own: Option<Addresses> = serde_json::from_str(addresses).ok();
    let virtual_address = own.map(|own| IpAddr::V4(own.ipv4));
    while let Ok(Some((message, _))) = node.receive() {
        let text = String::from_utf8_lossy(&message).into_owned();
        let request = text.split_once(' ').and_then(|(id, port)| Some((id.to_owned(), port.parse::<u16>().ok()?)));
        let Some((id, port)) = request else {
            continue;
        };
        let node = Arc::clone(node);
        // A full backlog makes this wait: not for the others. Without a thread it is refused.
        let refused = Arc::clone(&node);
        let number = id.clone();
        let started = std::thread::Builder::new().spawn(move || {
            let places =
                [Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)), virtual_address];
            let connected = places
                .into_iter()
                .flatten()
                .find_map(|ip| TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(30)).ok());
            let descriptor = connected.map(OwnedFd::from);
            let _ = node.send(id.as_bytes(), descriptor.as_ref());
        });
        if started.is_err() {
            let _ = refused.send(number.as_bytes(), None);
        }
    }
    std::process::exit(1);
}

/// Waits for every process; tells the command how the program ended.
fn reap(front: &Channel, program: Pid) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == program => {
                let _ = front.send(&status.as_raw().to_ne_bytes(), None);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Waits until the kernel has sent what programs wrote before they ended.
fn drain() {
    let mut patience = Patience::begin();
    while !patience.is_over(unsent()) {
        std::thread::sleep(Patience::LOOK);
    }
}

/// Returns what connections that still send have not delivered: bytes, and one for each end of a stream.
fn unsent() -> usize {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    tables.iter().map(|table| unsent_of(&std::fs::read_to_string(table).unwrap_or_default())).sum()
}

/// Reads a table of connections (proc_pid_net(5)): the state is the fourth field, the fifth begins with the bytes to send.
fn unsent_of(table: &str) -> usize {
    let of = |line: &str| {
        let mut fields = line.split_whitespace().skip(3);
        let state = fields.next()?;
        let (bytes, _) = fields.next()?.split_once(':')?;
        SENDING.contains(&state).then_some(1 + usize::from_str_radix(bytes, 16).ok()?)
    };
    table.lines().skip(1).filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_still_sends_is_counted() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1
   1: 0A50000A:9C40 0B50000A:0007 04 00000100:00000000 01:00000014 00000003 0 0 2
   2: 0A50000A:9C41 0B50000A:0007 01 00000200:00000000 01:00000014 00000003 0 0 3
   3: 0A50000A:9C42 0B50000A:0007 09 00000000:00000000 01:00000014 00000003 0 0 4\n";
        assert_eq!(unsent_of(table), 0x100 + 1 + 1);
        assert_eq!(unsent_of(""), 0);
    }
}
