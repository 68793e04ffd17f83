//! Ten thousand members of one signaling server.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::processes::{Failure, Process, median, program};
use crate::rows::figure;
use crate::{Reach, Row};

const MEMBERS: u64 = 10_000;
const FEW: u64 = 10;
/// Joins that are under way at one time.
const IN_FLIGHT: u64 = 256;
const ROUNDS: usize = 3;
const NETWORK: &str = "crowd";

/// A folder for the leases, removed when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    /// Makes one beside this program: what is built lies on a disk, temporary files may lie in memory.
    fn new() -> Result<Folder, Failure> {
        let folder = program(&format!("bench-leases-{}", std::process::id()))?;
        fs::create_dir_all(&folder)?;
        Ok(Folder(folder))
    }
}

/// A server with its leases on a disk, and the process with its members.
struct Crowd {
    server: Process,
    address: String,
    members: Process,
}

/// The server's processor time and the members', and how long the server waited for a processor, while something was
/// done.
struct Used {
    server: Duration,
    members: Duration,
    waited: Duration,
}

impl Crowd {
    fn start(data: &Path) -> Result<Crowd, Failure> {
        let data = data.to_str().ok_or("a strange path")?;
        let mut server = Process::tool(&["signal", "serve", "--listen", "127.0.0.1:0", "--data", data])?;
        let url = server.line()?;
        let address = url.trim_start_matches("ws://").to_owned();
        let members = Process::start(program("examples/members")?, &[&url, NETWORK])?;
        Ok(Crowd { server, address, members })
    }

    /// Lets new members in; returns what the load says of it, and who used the processors.
    fn join(&mut self, count: u64) -> Result<(String, Used), Failure> {
        let before = (self.server.cpu()?, self.members.cpu()?, self.server.waited()?);
        self.members.say(&format!("join {count} {IN_FLIGHT}"))?;
        let text = self.members.line()?;
        let used = Used {
            server: self.server.cpu()? - before.0,
            members: self.members.cpu()? - before.1,
            waited: self.server.waited()? - before.2,
        };
        Ok((text, used))
    }

    /// Messages that the server has sent, by its own count.
    fn sent(&self) -> Result<f64, Failure> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.strip_prefix("unisockets_signal_sent_total "));
        Ok(line.ok_or("the server counts no messages")?.trim().parse()?)
    }

    /// Messages that a join costs now: of one new member after the other, as the server counts them and, to be sure,
    /// as all members together hear them.
    fn frames_per_join(&mut self) -> Result<f64, Failure> {
        let before = (self.sent()?, self.heard()?);
        for _ in 0..FEW {
            self.join(1)?;
        }
        let (sent, heard) = (self.sent()? - before.0, self.heard()? - before.1);
        if sent != heard {
            return Err(format!("{sent} messages were sent, {heard} heard").into());
        }
        Ok(sent / FEW as f64)
    }

    fn heard(&mut self) -> Result<f64, Failure> {
        self.members.say("frames")?;
        figure(&self.members.line()?, &["frames"])
    }

    /// The server's resident memory, in KiB.
    fn memory_kib(&self) -> Result<f64, Failure> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.server.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

pub(crate) fn crowd() -> Result<Vec<Row>, Failure> {
    let (mut rates, mut sizes) = (Vec::new(), Vec::new());
    let (mut few, mut many) = (0.0, 0.0);
    for round in 0..ROUNDS {
        let folder = Folder::new()?;
        let mut crowd = Crowd::start(&folder.0.join("leases"))?;
        let empty_kib = crowd.memory_kib()?;
        crowd.join(FEW)?;
        few = crowd.frames_per_join()?;
        let rest = MEMBERS - 2 * FEW;
        let (text, used) = crowd.join(rest)?;
        let (seconds, p50, p99) =
            (figure(&text, &["seconds"])?, figure(&text, &["p50_ms"])?, figure(&text, &["p99_ms"])?);
        let rate = rest as f64 / seconds;
        let kib = (crowd.memory_kib()? - empty_kib) / MEMBERS as f64;
        many = crowd.frames_per_join()?;
        eprintln!(
            "  round {}: {rate:.0} joins/s in {seconds:.1} s, p50 {p50:.0} ms, p99 {p99:.0} ms; processor time: server \
             {:.1} s, members {:.1} s, the server waited {:.1} s for others; {kib:.1} KiB a member and {empty_kib:.0} \
             KiB without any; {few} and {many} messages a join",
            round + 1,
            used.server.as_secs_f64(),
            used.members.as_secs_f64(),
            used.waited.as_secs_f64(),
        );
        rates.push(rate);
        sizes.push(kib);
        if few != many {
            break;
        }
    }
    Ok(vec![
        Row::new("signal_joins_per_s", median(rates), "joins/s", Reach::AtLeast(1_000.0)),
        Row::new("signal_member_kib", median(sizes), "KiB", Reach::AtMost(20.0)),
        Row::new("signal_frames_per_join", many, "frames", Reach::Same(few)),
    ])
}
