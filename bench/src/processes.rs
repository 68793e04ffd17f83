//! The processes that are measured, ended when they are dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

pub(crate) type Failure = Box<dyn std::error::Error>;

/// A program beside this one.
pub(crate) fn program(name: &str) -> Result<PathBuf, Failure> {
    let folder = std::env::current_exe()?.parent().ok_or("no folder")?.to_owned();
    Ok(folder.join(name))
}

/// A child with its output.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) output: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(program: PathBuf, arguments: &[&str]) -> Result<Process, Failure> {
        Self::of(Command::new(program).args(arguments), Stdio::null())
    }

    /// Starts what a command describes; it ends with the calling thread, however that ends.
    pub(crate) fn of(described: &Command, errors: Stdio) -> Result<Process, Failure> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(described.get_program()).args(described.get_args());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Process { child, output })
    }

    /// Starts `unisockets`.
    pub(crate) fn tool(arguments: &[&str]) -> Result<Process, Failure> {
        Self::start(program("unisockets")?, arguments)
    }

    pub(crate) fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("a measured process ended early".into());
        }
        Ok(line.trim().to_owned())
    }

    pub(crate) fn rest(&mut self) -> Result<String, Failure> {
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        Ok(text)
    }

    pub(crate) fn say(&mut self, line: &str) -> Result<(), Failure> {
        let input = self.child.stdin.as_mut().ok_or("no input")?;
        writeln!(input, "{line}")?;
        Ok(input.flush()?)
    }

    /// The processor time that all threads have used.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        self.scheduled(0)
    }

    /// How long all threads could have run, but had to wait for a processor that others had.
    pub(crate) fn waited(&self) -> Result<Duration, Failure> {
        self.scheduled(1)
    }

    /// Adds up a column of what the scheduler says of each thread.
    fn scheduled(&self, column: usize) -> Result<Duration, Failure> {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            total += text.split_whitespace().nth(column).and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(total))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A signaling server, and its URL.
pub(crate) fn signal() -> Result<(Process, String), Failure> {
    let mut server = Process::tool(&["signal", "serve", "--listen", "127.0.0.1:0"])?;
    let url = server.line()?;
    Ok((server, url))
}

/// Seconds that one raw run may take: the library is known to stall for good now and then.
const RAW_LIMIT_S: &str = "30";
/// Raw runs that may stall before the measurement is given up.
const RAW_STALLS_MAX: usize = 3;

/// One run over a bare data channel between two processes.
#[derive(Clone, Copy)]
pub(crate) enum Raw {
    /// So many bytes; the figure is MB/s.
    Bytes(u64),
    /// So many round trips; the figure is their median in microseconds.
    Echo(u64),
}

/// Measures a bare data channel with messages of a size.
pub(crate) fn raw(size: usize, run: Raw) -> Result<f64, Failure> {
    let mut stalls = 0;
    loop {
        match raw_once(size, run) {
            Err(_) if stalls < RAW_STALLS_MAX => stalls += 1,
            result => {
                if stalls > 0 {
                    eprintln!("  {stalls} raw runs of {size}-byte messages stalled and were repeated");
                }
                return result;
            }
        }
    }
}

fn raw_once(size: usize, run: Raw) -> Result<f64, Failure> {
    let example = program("examples/raw_channel")?;
    let example = example.to_str().ok_or("a strange path")?;
    let (what, count) = match run {
        Raw::Bytes(bytes) => ("bytes", bytes),
        Raw::Echo(count) => ("echo", count),
    };
    let (size, count) = (size.to_string(), count.to_string());
    let start =
        |role| Process::start(PathBuf::from("timeout"), &[RAW_LIMIT_S, example, role, what, &size, &count, "0"]);
    let (mut answer, mut offer) = (start("answer")?, start("offer")?);
    let description = offer.line()?;
    answer.say(&description)?;
    let description = answer.line()?;
    offer.say(&description)?;
    Ok(offer.line()?.parse()?)
}

/// Echoes what comes over an AF_UNIX socket until it ends.
pub(crate) fn unix_echo(path: &str) -> ExitCode {
    let echo = || -> std::io::Result<()> {
        let listener = UnixListener::bind(path)?;
        println!("ready");
        let (mut stream, _) = listener.accept()?;
        let mut buffer = [0; 4_096];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                len => stream.write_all(&buffer[..len])?,
            }
        }
    };
    if echo().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The median round trip of 128 bytes over AF_UNIX between two processes, in microseconds.
pub(crate) fn unix_round_trip(count: usize) -> Result<f64, Failure> {
    let path = std::env::temp_dir().join(format!("unisockets-bench-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let mut echo = Process::start(std::env::current_exe()?, &["unix-echo", path.to_str().ok_or("a strange path")?])?;
    echo.line()?;
    let mut stream = UnixStream::connect(&path)?;
    let (message, mut buffer) = ([0x5a; 128], [0; 128]);
    let mut micros = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut buffer)?;
        micros.push(started.elapsed().as_nanos() as f64 / 1e3);
    }
    let _ = std::fs::remove_file(&path);
    Ok(median(micros))
}

/// What else the machine is doing, in words.
pub(crate) fn machine() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("load {}", text.split_whitespace().next().unwrap_or("unknown"))
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
