//! Nodes of `node.rs` as the rows use them.

use std::cell::Cell;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use unisockets_wire::Wire;

use crate::processes::{Failure, Process, signal};

/// How long a flow may take to bring its first byte.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(30);
/// How many times a first link is tried.
const DIALS_MAX: usize = 3;
/// How often counters are asked for when something is waited for.
const LOOK: Duration = Duration::from_millis(2);

/// A signaling server, and where nodes are started that reach it.
pub(crate) struct Place<'a> {
    wire: Option<&'a Wire>,
    url: String,
    /// Nodes so far: a name is free again only when signaling has noticed the end of whoever had it.
    nodes: Cell<usize>,
    _signal: Process,
}

/// What a node has counted at a time of its own clock.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    pub(crate) at: Duration,
    pub(crate) streams: Vec<u64>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// A node in a process of its own.
pub(crate) struct Peer {
    pub(crate) name: String,
    process: Process,
}

impl Place<'_> {
    /// A server on loopback.
    pub(crate) fn loopback() -> Result<Place<'static>, Failure> {
        let (signal, url) = signal()?;
        Ok(Place { wire: None, url, nodes: Cell::new(0), _signal: signal })
    }

    /// A server at end 1 of a wire.
    pub(crate) fn wire(wire: &Wire) -> Result<Place<'_>, Failure> {
        let tool = crate::processes::program("unisockets")?;
        let mut command = wire.command(1, tool.to_str().ok_or("a strange path")?);
        command.args(["signal", "serve", "--open", "--listen", &format!("{}:0", wire.address(1))]);
        let mut signal = Process::of(&command, Stdio::null())?;
        let url = signal.line()?;
        Ok(Place { wire: Some(wire), url, nodes: Cell::new(0), _signal: signal })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Starts a node, on a wire at one of its ends.
    pub(crate) fn peer(&self, end: usize) -> Result<Peer, Failure> {
        let name = format!("node{}", self.nodes.replace(self.nodes.get() + 1));
        let program = std::env::current_exe()?;
        let mut command = match self.wire {
            Some(wire) => wire.command(end, program.to_str().ok_or("a strange path")?),
            None => Command::new(program),
        };
        let mut process = Process::of(command.args(["node", &self.url, &name]), Stdio::inherit())?;
        process.line()?;
        Ok(Peer { name, process })
    }

    /// Starts a sender at end 0 and a receiver at end 1.
    pub(crate) fn pair(&self) -> Result<(Peer, Peer), Failure> {
        Ok((self.peer(0)?, self.peer(1)?))
    }
}

impl Peer {
    /// Gives a command and returns its answer.
    pub(crate) fn ask(&mut self, command: &str) -> Result<Value, Failure> {
        self.process.say(command)?;
        let answer: Value = serde_json::from_str(&self.process.line()?)?;
        match answer.get("error") {
            Some(error) => Err(format!("{}, asked for '{command}': {error}", self.name).into()),
            None => Ok(answer),
        }
    }

    /// Stops the process where it stands; it is ended like any other.
    pub(crate) fn freeze(&self) -> Result<(), Failure> {
        let pid = self.process.child.id().to_string();
        match Command::new("kill").args(["-STOP", &pid]).status()?.success() {
            true => Ok(()),
            false => Err("a node could not be stopped".into()),
        }
    }

    /// Starts an endless stream. A link that could not be made is tried again, and told of.
    pub(crate) fn stream(&mut self, to: &Peer) -> Result<(), Failure> {
        for _ in 1..DIALS_MAX {
            match self.ask(&format!("stream {}", to.name)) {
                Ok(_) => return Ok(()),
                Err(error) => eprintln!("  {error}; {}", self.ask("status")?["incidents"]),
            }
        }
        self.ask(&format!("stream {}", to.name)).map(drop)
    }

    /// Starts an endless flood of datagrams: `rate` of them a second, or as many as go if it is zero.
    pub(crate) fn flood(&mut self, to: &Peer, size: usize, rate: u64) -> Result<(), Failure> {
        self.ask(&format!("flood {} {size} {rate}", to.name)).map(drop)
    }

    /// Ends all flows from here.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        self.ask("stop").map(drop)
    }

    pub(crate) fn counts(&mut self) -> Result<Counts, Failure> {
        let answer = self.ask("counts")?;
        let number = |key: &str| answer[key].as_u64().ok_or("no such count");
        let streams = answer["streams"].as_array().ok_or("no streams")?;
        Ok(Counts {
            at: Duration::from_micros(number("at_us")?),
            streams: streams.iter().filter_map(Value::as_u64).collect(),
            received: number("received")?,
            sent: number("sent")?,
        })
    }

    /// Waits until another byte of streams has come; returns how long that took.
    pub(crate) fn next_byte(&mut self, limit: Duration) -> Result<Duration, Failure> {
        let before: u64 = self.counts()?.streams.iter().sum();
        let started = Instant::now();
        while self.counts()?.streams.iter().sum::<u64>() == before {
            if started.elapsed() > limit {
                return Err(format!("{} got no byte within {limit:?}", self.name).into());
            }
            sleep(LOOK);
        }
        Ok(started.elapsed())
    }

    /// Measures what arrives: lets `warm_up` pass after the first byte, then counts for `duration`.
    pub(crate) fn measure(&mut self, warm_up: Duration, duration: Duration) -> Result<Arrived, Failure> {
        if self.counts()?.streams.iter().all(|bytes| *bytes == 0) {
            self.next_byte(FIRST_BYTE_LIMIT)?;
        }
        sleep(warm_up);
        let before = self.counts()?;
        sleep(duration);
        let after = self.counts()?;
        Ok(Arrived { before, after })
    }
}

/// What arrived between two moments.
pub(crate) struct Arrived {
    pub(crate) before: Counts,
    pub(crate) after: Counts,
}

impl Arrived {
    fn seconds(&self) -> f64 {
        (self.after.at - self.before.at).as_secs_f64()
    }

    /// The goodput of each stream, in MB/s.
    pub(crate) fn streams_mb_per_s(&self) -> Vec<f64> {
        let before = self.before.streams.iter().copied().chain(std::iter::repeat(0));
        let streams = self.after.streams.iter().zip(before);
        streams.map(|(after, before)| (after - before) as f64 / 1e6 / self.seconds()).collect()
    }

    /// The goodput of all streams, in MB/s.
    pub(crate) fn mb_per_s(&self) -> f64 {
        self.streams_mb_per_s().iter().sum()
    }

    pub(crate) fn datagrams_per_s(&self) -> f64 {
        (self.after.received - self.before.received) as f64 / self.seconds()
    }
}
