//! Programs that nobody changed, in namespaces of their own.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::processes::{Failure, Process, median, signal};
use crate::rows::{ROUNDS, bench, figure};
use crate::{Reach, Row};

/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(20);
/// Settings that the rows of redis share with the issue that asks for them: no pipeline, 20 clients, 64 bytes.
const REDIS: [&str; 11] = ["-t", "set", "-P", "1", "-c", "20", "-d", "64", "-n", "100000", "--csv"];

fn run(url: &str, options: &[&str], program: &[&str]) -> Result<Process, Failure> {
    Process::tool(&[&["run", "--signal", url], options, &["--"], program].concat())
}

/// Runs a client until its server answers; returns what it printed.
fn until(url: &str, program: &[&str]) -> Result<String, Failure> {
    let deadline = Instant::now() + START;
    loop {
        let text = run(url, &[], program)?.rest()?;
        if !text.trim().is_empty() && !text.contains("\"error\"") {
            return Ok(text);
        }
        if Instant::now() > deadline {
            return Err(format!("{} gave no figures", program[0]).into());
        }
    }
}

/// `run -- iperf3` against `bench` of the tool, both between two processes, in turn.
pub(crate) fn iperf() -> Result<Vec<Row>, Failure> {
    let (_signal, url) = signal()?;
    let _server = run(&url, &["--name", "iperf"], &["iperf3", "-s"])?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let text = until(&url, &["iperf3", "-c", "iperf", "-t", "3", "--json"])?;
        let program = figure(&text, &["end", "sum_received", "bits_per_second"])? / 8e6;
        let ours = figure(&bench(&url, 256 << 20, 100, &[])?, &["up_mb_per_s"])?;
        eprintln!("  round {}: iperf3 {program:.1} MB/s, bench {ours:.1} MB/s", round + 1);
        ratios.push(program / ours);
    }
    Ok(vec![Row::new("run_iperf_vs_rust", median(ratios), "ratio", Reach::AtLeast(0.6))])
}

/// SET of redis over the network, and over the machine's loopback to compare.
pub(crate) fn redis() -> Result<Vec<Row>, Failure> {
    let (_signal, url) = signal()?;
    let server = ["redis-server", "--protected-mode", "no", "--save", ""];
    let _server = run(&url, &["--name", "redis"], &server)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let _local = Process::start(PathBuf::from("redis-server"), &["--save", "", "--port", &port])?;
    let mut figures = Vec::new();
    for round in 0..ROUNDS {
        let ours = per_second(&until(&url, &[&["redis-benchmark", "-h", "redis"], &REDIS[..]].concat())?)?;
        let local = [&["-p", &port], &REDIS[..]].concat();
        let local = per_second(&Process::start(PathBuf::from("redis-benchmark"), &local)?.rest()?)?;
        eprintln!("  round {}: {ours:.0}/s, over loopback {local:.0}/s, ratio {:.2}", round + 1, ours / local);
        figures.push(ours);
    }
    Ok(vec![Row::new("redis_set_per_s", median(figures), "1/s", Reach::AtLeast(25_000.0))])
}

fn per_second(csv: &str) -> Result<f64, Failure> {
    let row = csv.lines().find(|line| line.starts_with("\"SET\"")).ok_or("redis-benchmark gave no figures")?;
    let value = row.split(',').nth(1).ok_or("redis-benchmark gave a strange line")?;
    Ok(value.trim_matches('"').parse()?)
}
