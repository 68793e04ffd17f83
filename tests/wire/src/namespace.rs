//! A network namespace of its own, with what `ip netns` gives it.

use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps its names.
const FOLDER: &str = "/run/netns";
/// How the names of this crate begin; the process's number follows.
const PREFIX: &str = "uswire-";
/// How long the kernel may take to admit an address.
const ADMITTED: Duration = Duration::from_secs(20);

/// A network namespace, removed at the end.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// Removes the namespaces of processes that were killed before they could.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(FOLDER) else {
        return;
    };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
        }
    }
}

/// Runs a command to its end and turns a failure into an error with what it said.
fn run(command: &mut Command, input: &str) -> io::Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{command:?}: {said}")))
}

/// Moves the calling thread into a namespace.
fn enter(name: &str) -> io::Result<()> {
    let file = File::open(Path::new(FOLDER).join(name))?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

impl Namespace {
    /// Makes a namespace with its loopback up; its name is unique on this machine.
    ///
    /// # Errors
    /// What `ip netns add` says.
    pub fn new() -> io::Result<Namespace> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]), "")?;
        let namespace = Namespace { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Returns the name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Carries out `ip` commands inside, one a line.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, lines: &str) -> io::Result<()> {
        run(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), lines)
    }

    /// Sets a value below `/proc/sys/net` inside, such as `ipv4/ip_forward`.
    ///
    /// # Errors
    /// Those of writing to that file.
    pub fn sysctl(&self, key: &str, value: &str) -> io::Result<()> {
        let (path, value) = (Path::new("/proc/sys/net").join(key), value.to_owned());
        self.run(move || std::fs::write(path, value))
    }

    /// Gives a device its addresses, written like `198.18.0.1/30`, and returns once packets for them are taken: the
    /// kernel admits those of IPv6 a little later than `ip` returns.
    ///
    /// # Errors
    /// What `ip` says, and [`io::ErrorKind::TimedOut`].
    pub fn add_addresses(&self, device: &str, addresses: &[&str]) -> io::Result<()> {
        for address in addresses {
            let option = if address.contains(':') { " nodad" } else { "" };
            self.ip(&format!("address add {address} dev {device}{option}"))?;
        }
        let v6 = addresses.iter().filter_map(|address| address.split('/').next()?.parse().ok());
        let wanted: Vec<String> = v6.map(|address: Ipv6Addr| format!("{:032x} 80 ", u128::from(address))).collect();
        let deadline = Instant::now() + ADMITTED;
        loop {
            let routes = self.run(|| std::fs::read_to_string("/proc/thread-self/net/ipv6_route"))?;
            if wanted.iter().all(|wanted| routes.lines().any(|route| route.starts_with(wanted))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{device} does not take {addresses:?}")));
            }
            std::thread::yield_now();
        }
    }

    /// Returns the words that start a program inside: put them before its own.
    pub fn prefix(&self) -> [String; 4] {
        ["ip", "netns", "exec", &self.name].map(str::to_owned)
    }

    /// Returns a command that runs a program inside.
    pub fn command(&self, program: &str) -> Command {
        let [first, rest @ ..] = self.prefix();
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    /// Moves the calling thread inside; threads that it starts begin there.
    ///
    /// # Errors
    /// Those of `setns(2)`.
    pub fn enter(&self) -> io::Result<()> {
        enter(&self.name)
    }

    /// Runs `work` in a new thread inside: every socket that it opens is of this namespace.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let name = self.name.clone();
        std::thread::spawn(move || {
            enter(&name).unwrap_or_else(|error| panic!("the namespace {name}: {error}"));
            work()
        })
    }

    /// Runs `work` in a thread inside and waits for what it returns.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
