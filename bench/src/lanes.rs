//! The lane design of a link against others, at several delays and losses: `bench/run lanes`, or `bench/run lanes 20`.
//!
//! What a link does now is measured with real nodes; the others with `link/examples/lanes.rs`: bare reliable channels
//! of one association, and one unreliable channel that carries packets of 1,160 bytes for the kernels' own Cubic.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use unisockets_wire::{Stream, Tun, Wire, readable};

use crate::peers::Place;
use crate::processes::{Failure, Process, machine, median, program};
use crate::wire::{Times, kernel, ours, parse, wire};

/// Round trips in milliseconds, each with the bytes that the bare channels may have outstanding: about what a link's
/// budget comes to.
const ROUND_TRIPS_MS: [(u64, &str); 3] = [(0, "524288"), (20, "2097152"), (100, "4194304")];
const LOSSES: [&str; 3] = ["0", "0.1", "1"];
const ROUNDS: usize = 3;
const TIMES: Times = Times { warm_up: Duration::from_secs(3), measured: Duration::from_secs(4) };
/// Bytes of a message of the reliable lanes: what a link sends.
const MESSAGE_LEN: &str = "16384";
/// Bytes of a packet of the unreliable lane: one chunk of SCTP.
const PACKET_LEN: usize = 1_160;
/// The tunnel's two ends (RFC 2544, appendix C.2.2).
const TUNNEL: [&str; 2] = ["198.18.1.1", "198.18.1.2"];
/// How long a pump waits before it looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

/// Prints the table, or its lines for some round trips.
pub(crate) fn run(wanted: &[String]) -> ExitCode {
    println!(
        "| round trip | loss | link, now | 1 lane | 4 lanes | 16 lanes | unreliable, Cubic | the kernel's Cubic |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (round_trip_ms, outstanding) in ROUND_TRIPS_MS {
        if !wanted.is_empty() && !wanted.contains(&round_trip_ms.to_string()) {
            continue;
        }
        for loss in LOSSES {
            match cell(round_trip_ms, loss, outstanding) {
                Ok(figures) => println!("| {round_trip_ms} ms | {loss} % | {} |", figures.join(" | ")),
                Err(error) => {
                    eprintln!("{round_trip_ms} ms, {loss} %: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}

/// The medians of all designs under one set of conditions, in MB/s.
fn cell(round_trip_ms: u64, loss: &str, outstanding: &str) -> Result<Vec<String>, Failure> {
    let wire = wire("")?;
    let conditions = parse(&format!("delay={}us,loss={loss}%", round_trip_ms * 500))?;
    wire.set_conditions(conditions, conditions);
    let mut columns: [Vec<f64>; 6] = Default::default();
    for _ in 0..ROUNDS {
        let place = Place::wire(&wire)?;
        let figures = [
            ours(&place, TIMES, 1)?,
            repeated(|| streams(&wire, "1", outstanding))?,
            repeated(|| streams(&wire, "4", outstanding))?,
            repeated(|| streams(&wire, "16", outstanding))?,
            repeated(|| tunnel(&wire, outstanding))?,
            kernel(&wire, TIMES, "cubic").ok_or("this kernel has no cubic")?,
        ];
        let text: Vec<String> = figures.iter().map(|figure| format!("{figure:.2}")).collect();
        eprintln!("  {round_trip_ms} ms, {loss} %: {} MB/s; {}", text.join(", "), machine());
        columns.iter_mut().zip(figures).for_each(|(column, figure)| column.push(figure));
    }
    let digits = |figure: f64| if figure < 10.0 { format!("{figure:.2}") } else { format!("{figure:.0}") };
    Ok(columns.into_iter().map(|column| digits(median(column))).collect())
}

/// The library may fail to connect; once more is tried.
fn repeated(measure: impl Fn() -> Result<f64, Failure>) -> Result<f64, Failure> {
    measure().or_else(|error| {
        eprintln!("  once more: {error}");
        measure()
    })
}

/// Starts both ends of an experiment and waits until they are connected.
fn ends(wire: &Wire, words: [&[&str]; 2]) -> Result<[Process; 2], Failure> {
    let example = program("examples/lanes")?;
    let start = |end: usize, role: &str| {
        let mut command = wire.command(end, example.to_str().ok_or("a strange path")?);
        Process::of(command.args([role, &wire.address(end).to_string()]).args(words[end]), Stdio::inherit())
    };
    let [mut offer, mut answer] = [start(0, "offer")?, start(1, "answer")?];
    answer.say(&offer.line()?)?;
    offer.say(&answer.line()?)?;
    for process in [&mut offer, &mut answer] {
        process.line()?;
    }
    Ok([offer, answer])
}

/// Bytes received so far, and when.
fn received(process: &mut Process) -> Result<(f64, f64), Failure> {
    process.say("")?;
    let line = process.line()?;
    let (bytes, micros) = line.split_once(' ').ok_or("no count")?;
    Ok((bytes.parse()?, micros.parse()?))
}

/// The goodput of bare reliable channels of one association, in MB/s.
fn streams(wire: &Wire, number: &str, outstanding: &str) -> Result<f64, Failure> {
    let words: &[&str] = &["streams", number, MESSAGE_LEN, outstanding];
    let [_offer, mut answer] = ends(wire, [words, words])?;
    sleep(TIMES.warm_up);
    let before = received(&mut answer)?;
    sleep(TIMES.measured);
    let after = received(&mut answer)?;
    Ok((after.0 - before.0) / (after.1 - before.1))
}

/// A TUN device and a Unix socket, joined by two threads until this is dropped.
struct Joined {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    path: PathBuf,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Joined {
    /// Makes the device of an end, for a program that binds `other`.
    fn new(wire: &Wire, end: usize, path: PathBuf, other: PathBuf) -> Result<Joined, Failure> {
        let tun = Tun::new(wire.namespace(end), "lane", PACKET_LEN)?;
        wire.namespace(end).add_addresses("lane", &[&format!("{}/30", TUNNEL[end])])?;
        let (tun, stop) = (Arc::new(tun), Arc::new(AtomicBool::new(false)));
        let socket = Arc::new(UnixDatagram::bind(&path)?);
        socket.set_read_timeout(Some(LOOK))?;
        socket.set_write_timeout(Some(LOOK))?;
        let out = {
            let (tun, socket, stop) = (Arc::clone(&tun), Arc::clone(&socket), Arc::clone(&stop));
            move || {
                let mut packet = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    match tun.recv(&mut packet) {
                        // What does not fit waits: the device's queue holds the rest.
                        Ok(len) => while_full(&stop, || socket.send_to(&packet[..len], &other)),
                        Err(_) => drop(readable([std::os::fd::AsFd::as_fd(&*tun)], Some(LOOK))),
                    }
                }
            }
        };
        let back = {
            let stop = Arc::clone(&stop);
            move || {
                let mut packet = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(len) = socket.recv(&mut packet) {
                        let _ = tun.send(&packet[..len]);
                    }
                }
            }
        };
        Ok(Joined { stop, threads: vec![std::thread::spawn(out), std::thread::spawn(back)], path })
    }
}

/// Repeats what found no room in time.
fn while_full(stop: &AtomicBool, mut send: impl FnMut() -> io::Result<usize>) {
    while !stop.load(Ordering::Relaxed) {
        match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// The goodput of the kernel's Cubic over one unreliable channel, in MB/s.
fn tunnel(wire: &Wire, outstanding: &str) -> Result<f64, Failure> {
    let path = |what: &str, end: usize| {
        std::env::temp_dir().join(format!("unisockets-lanes-{}-{what}{end}.sock", std::process::id()))
    };
    let paths = [[path("tun", 0), path("lane", 0)], [path("tun", 1), path("lane", 1)]];
    let sweep = || paths.iter().flatten().for_each(|path| drop(std::fs::remove_file(path)));
    sweep();
    let join = |end: usize| Joined::new(wire, end, paths[end][0].clone(), paths[end][1].clone());
    let _joined = [join(0)?, join(1)?];
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let words =
        [0, 1].map(|end| ["tunnel".to_owned(), text(&paths[end][1]), text(&paths[end][0]), outstanding.to_owned()]);
    let words = [0, 1].map(|end| words[end].each_ref().map(String::as_str));
    let connected = ends(wire, [&words[0], &words[1]]);
    let goodput = connected.and_then(|_ends| {
        let stream = Stream { congestion: "cubic", warm_up: TIMES.warm_up, duration: TIMES.measured };
        Ok(wire.goodput_to(TUNNEL[1].parse()?, stream)?.bytes_per_s() / 1e6)
    });
    sweep();
    goodput
}
