//! The rows of the table.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use unisockets::{Config, Node, TcpListener, TcpStream};

use crate::processes::{Failure, Process, Raw, median, raw, signal, unix_round_trip};
use crate::{Reach, Row, c, load, members, programs, stack, tab, wire};

type Measure = fn() -> Result<Vec<Row>, Failure>;

/// What can be measured, and by which function.
pub(crate) const ALL: [(&[&str], Measure); 25] = [
    (&["tcp_vs_raw", "tcp_mb_per_s"], throughput),
    (&["small_rmem_vs_full"], small_buffers),
    (&["echo_vs_unix"], echo),
    (&["join_first_byte_ms"], first_byte),
    (&["idle_cpu_percent"], idle),
    (&["ping_under_load_ms"], load::ping),
    (&["tcp_beside_udp_flood"], load::flood),
    (&["fairness_jain"], load::fairness),
    (&["beside_stalled_peer"], load::stalled),
    (&["udp_datagrams_per_s"], load::datagrams),
    (&["loss_vs_kernel"], wire::loss),
    (&["delay_vs_loopback"], wire::delay),
    (&["redial_gap_ms"], wire::redial),
    (&["c_vs_rust"], c::stream),
    (&["c_round_trip_vs_rust"], c::round_trip),
    (&["connect_per_s_c"], c::connects),
    (&["run_iperf_vs_rust"], programs::iperf),
    (&["redis_set_per_s"], programs::redis),
    (&["step_10k_vs_10", "step_50k_vs_10"], stack::steps),
    (&["burst_accepted"], stack::burst),
    (&["connects_per_s"], stack::connects),
    (&["idle_connection_bytes"], stack::idle_bytes),
    (&["stack_gb_per_cpu_s"], stack::bulk),
    (&["signal_joins_per_s", "signal_member_kib", "signal_frames_per_join"], members::crowd),
    (
        &[
            "tab_to_native_vs_raw",
            "native_to_tab_vs_raw",
            "tab_echo_extra_us",
            "wasm_gzip_kib",
            "tab_join_first_byte_s",
            "tab_main_thread_block_ms",
        ],
        tab::all,
    ),
];

const BYTES: u64 = 256 << 20;
/// The most that may be asked for where net.core.rmem_max is 208 KiB (stock Debian).
const SMALL_BUFFER: &str = "212992";
/// Message sizes of the raw channel; the best of them counts.
const RAW_SIZES: [usize; 3] = [1_160, 16_384, 65_535];
pub(crate) const ROUNDS: usize = 5;

pub(crate) fn figure(text: &str, path: &[&str]) -> Result<f64, Failure> {
    let value: Value = serde_json::from_str(text)?;
    let found = path.iter().try_fold(&value, |value, key| value.get(key));
    found.and_then(Value::as_f64).ok_or_else(|| format!("no {} in {text}", path.join(".")).into())
}

/// One run of `bench` between two new processes.
pub(crate) fn bench(url: &str, bytes: u64, round_trips: u32, extra: &[&str]) -> Result<String, Failure> {
    let key = key();
    let serve = [&["bench", "serve", "--signal", url, "--name", "bench-server", "--key", &key], extra].concat();
    let _server = Process::tool(&serve)?;
    let (bytes, round_trips) = (bytes.to_string(), round_trips.to_string());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let run =
            ["bench", "bench-server", "--signal", url, "--json", "--bytes", &bytes, "--round-trips", &round_trips];
        let text = Process::tool(&[&run[..], extra].concat())?.rest()?;
        if !text.is_empty() {
            return Ok(text);
        }
        if Instant::now() > deadline {
            return Err("bench gave no figures".into());
        }
    }
}

/// A key file of this process alone, so that runs do not disturb each other or the user's keys.
fn key() -> String {
    let file = format!("unisockets-bench-{}.key", std::process::id());
    std::env::temp_dir().join(file).to_string_lossy().into_owned()
}

fn throughput() -> Result<Vec<Row>, Failure> {
    let (_signal, url) = signal()?;
    let (mut ours, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut best: f64 = 0.0;
        for size in RAW_SIZES {
            match raw(size, Raw::Bytes(BYTES)) {
                Ok(rate) => best = best.max(rate),
                // The best of the others counts.
                Err(error) => eprintln!("  no figure for messages of {size} bytes: {error}"),
            }
        }
        if best == 0.0 {
            return Err("no raw run came to its end".into());
        }
        let tcp = figure(&bench(&url, BYTES, 100, &[])?, &["up_mb_per_s"])?;
        eprintln!("  round {}: raw {best:.1} MB/s, TCP {tcp:.1} MB/s", round + 1);
        ours.push(tcp);
        ratios.push(tcp / best);
    }
    Ok(vec![
        Row::new("tcp_vs_raw", median(ratios), "ratio", Reach::AtLeast(0.85)),
        Row::new("tcp_mb_per_s", median(ours), "MB/s", Reach::AtLeast(150.0)),
    ])
}

fn small_buffers() -> Result<Vec<Row>, Failure> {
    let (_signal, url) = signal()?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let full = figure(&bench(&url, BYTES / 2, 100, &[])?, &["up_mb_per_s"])?;
        let small = bench(&url, BYTES / 2, 100, &["--socket-buffer-max", SMALL_BUFFER])?;
        let small = figure(&small, &["up_mb_per_s"])?;
        eprintln!("  round {}: full {full:.1} MB/s, small {small:.1} MB/s", round + 1);
        ratios.push(small / full);
    }
    Ok(vec![Row::new("small_rmem_vs_full", median(ratios), "ratio", Reach::AtLeast(0.5))])
}

fn echo() -> Result<Vec<Row>, Failure> {
    let (_signal, url) = signal()?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let unix = unix_round_trip(20_000)?;
        let text = bench(&url, 1 << 20, 20_000, &[])?;
        let (p50, p99) = (figure(&text, &["round_trip_us", "p50"])?, figure(&text, &["round_trip_us", "p99"])?);
        let raw = raw(128, Raw::Echo(20_000))?;
        eprintln!(
            "  round {}: AF_UNIX p50 {unix:.1} us, bare channel p50 {raw:.0} us, echo p50 {p50:.0} us, p99 {p99:.0} us",
            round + 1
        );
        ratios.push(p50 / unix);
    }
    Ok(vec![Row::new("echo_vs_unix", median(ratios), "ratio", Reach::AtMost(2.5))])
}

fn first_byte() -> Result<Vec<Row>, Failure> {
    let (_signal, url) = signal()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let millis = runtime.block_on(async {
        let server = Node::join(Config::new(url.clone()).name("first-byte").ephemeral()).await?;
        let listener = TcpListener::bind(&server, "[::]:7").await?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"!").await;
            }
        });
        let mut millis = Vec::new();
        for _ in 0..11 {
            let started = Instant::now();
            let node = Node::join(Config::new(url.clone())).await?;
            let mut stream = TcpStream::connect(&node, "first-byte:7").await?;
            stream.read_exact(&mut [0]).await?;
            millis.push(started.elapsed().as_micros() as f64 / 1e3);
            node.leave().await;
        }
        Ok::<_, Failure>(millis)
    })?;
    Ok(vec![Row::new("join_first_byte_ms", median(millis), "ms", Reach::AtMost(700.0))])
}

fn idle() -> Result<Vec<Row>, Failure> {
    const WATCH: Duration = Duration::from_secs(30);
    let (_signal, url) = signal()?;
    let server = Process::tool(&["bench", "serve", "--signal", &url, "--name", "idle", "--key", &key()])?;
    let deadline = Instant::now() + Duration::from_secs(20);
    // One echo makes the link; the next comes when nobody looks any more. Before it has joined nobody has the name.
    let _client = loop {
        let mut client = Process::tool(&["ping", "idle", "--signal", &url, "--interval", "3600", "--json"])?;
        match client.line() {
            Ok(_) => break client,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => {}
        }
    };
    std::thread::sleep(Duration::from_secs(2));
    let before = server.cpu()?;
    std::thread::sleep(WATCH);
    let used = server.cpu()? - before;
    let percent = 100.0 * used.as_secs_f64() / WATCH.as_secs_f64();
    Ok(vec![Row::new("idle_cpu_percent", percent, "%", Reach::AtMost(0.1))])
}
