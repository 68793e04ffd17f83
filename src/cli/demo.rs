//! `demo`: a signaling server and two nodes as processes of their own, everything at work, every byte checked.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin};
use tokio::process::{Child, Command};
use unisockets::{Config, Node, Ping, TcpListener, TcpStream};
use unisockets_signaling::server::{Config as SignalConfig, Page, Server};

use super::args::Demo;
use super::control;
use super::exit::{Failure, interrupted};
use super::listen::Listener;
use super::output::print;
use super::signal::{built_page, page_url};
use super::workload::{self, Datagrams};

/// How long one step may take before the demo says that it hangs.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// Bytes of each packet that the demo's capture keeps: all headers, and every small packet whole.
const SNAP_LEN: usize = 512;
const PAGE: &str =
    "<!doctype html><title>alpha</title><h1>Hello from alpha</h1><p>This page came over the virtual network.</p>\n";

#[derive(Debug, Serialize, Deserialize)]
struct Member {
    name: String,
    ipv4: std::net::Ipv4Addr,
    ipv6: std::net::Ipv6Addr,
}

impl Member {
    fn of(node: &Node) -> Member {
        Member { name: node.name().unwrap_or_default(), ipv4: node.ipv4(), ipv6: node.ipv6() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Percentiles {
    p50: u64,
    p99: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Http {
    status: u16,
    bytes: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Tcp {
    bytes: u64,
    up_mb_per_s: f64,
    down_mb_per_s: f64,
}

/// Everything that the demo finds out, in the form of `--json`.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    ok: bool,
    alpha: Option<Member>,
    beta: Member,
    join_ms: u64,
    link_ms: u64,
    path: Option<unisockets::Route>,
    round_trip_us: Percentiles,
    ping_us: u64,
    http: Http,
    tcp: Tcp,
    udp: Datagrams,
    packets: u64,
    dropped: BTreeMap<String, u64>,
    capture: PathBuf,
}

pub(super) async fn run(options: Demo) -> Result<(), Failure> {
    match (options.role.as_deref(), &options.url) {
        (Some("alpha"), Some(url)) => alpha(url).await,
        (Some("beta"), Some(url)) => beta(url, &options).await,
        _ => conduct(&options).await,
    }
}

/// Starts everything, waits for the figures, prints them, and ends everything in order.
async fn conduct(options: &Demo) -> Result<(), Failure> {
    if options.capture.as_os_str() == "-" {
        return Err(Failure::usage("the demo writes to standard output itself; give the capture a file"));
    }
    let unwritable = |error| format!("cannot write the capture {}: {error}", options.capture.display());
    std::fs::File::create(&options.capture).map_err(|error| Failure::failed(unwritable(error)))?;
    let mut signal = SignalConfig::new(([127, 0, 0, 1], 0).into());
    signal.page = built_page().map(|folder| Page { folder, frame_origin: None });
    let server = Server::start(signal).await.map_err(Failure::failed)?;
    let (url, mut children) = (server.url(), Vec::new());
    let result = tokio::select! {
        report = figures(options, &url, &mut children) => report,
        interrupted = interrupted() => Err(interrupted),
    };
    let result = match result {
        Ok(report) => show(options, &url, &report).await,
        Err(failure) => Err(failure),
    };
    for child in children {
        stop(child).await;
    }
    server.stop().await;
    result
}

/// Starts both nodes and returns what beta has measured.
async fn figures(options: &Demo, url: &str, children: &mut Vec<Child>) -> Result<Report, Failure> {
    let member = first_line("alpha joins", spawn("alpha", url, options)?, children).await?;
    let member: Option<Member> = member.and_then(|line| serde_json::from_str(&line).ok());
    if member.is_none() {
        return Err(Failure::failed("alpha could not join; its own message says why"));
    }
    let report = first_line("beta measures", spawn("beta", url, options)?, children).await?;
    let report: Option<Report> = report.and_then(|line| serde_json::from_str(&line).ok());
    let mut report = report.ok_or_else(|| Failure::failed("beta did not finish; its own message says why"))?;
    report.alpha = member;
    report.ok = report.http.status == 200 && report.udp.received == report.udp.sent;
    Ok(report)
}

/// Returns the one line that a child prints, and keeps the child.
async fn first_line(what: &str, mut child: Child, children: &mut Vec<Child>) -> Result<Option<String>, Failure> {
    let mut lines = BufReader::new(child.stdout.take().expect("its output is a pipe")).lines();
    children.push(child);
    Ok(step(what, lines.next_line()).await??)
}

/// Prints the figures; on a terminal both nodes then stay up until somebody has seen enough.
async fn show(options: &Demo, url: &str, report: &Report) -> Result<(), Failure> {
    if options.json {
        print(serde_json::to_string(report).expect("a report has a JSON form"))?;
    } else {
        print(table(report))?;
    }
    if !report.ok {
        return Err(Failure::damaged("not everything arrived as it was sent"));
    }
    if !options.json && std::io::stdout().is_terminal() {
        print(suggestions(url, report))?;
        // Enough has been seen: that is the end that was asked for, and no failure.
        let _ = interrupted().await;
    }
    Ok(())
}

async fn step<T>(what: &str, future: impl Future<Output = T>) -> Result<T, Failure> {
    let limit = STEP_LIMIT.as_secs();
    tokio::time::timeout(STEP_LIMIT, future)
        .await
        .map_err(|_| Failure::failed(format!("{what}: nothing happened for {limit} seconds")))
}

fn spawn(role: &str, url: &str, options: &Demo) -> Result<Child, Failure> {
    let program = std::env::current_exe()?;
    let child = Command::new(program)
        .args(["demo", "--role", role, "--url", url, "--bytes", &options.bytes.to_string(), "--capture"])
        .arg(&options.capture)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

/// Lets a child leave the network, and ends it if it does not.
async fn stop(mut child: Child) {
    drop(child.stdin.take());
    if tokio::time::timeout(Duration::from_secs(8), child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Waits until the demo has ended, in whatever way: its end of the pipe is closed then.
async fn released() {
    let (mut input, mut nothing) = (stdin(), [0; 1]);
    tokio::select! {
        _ = input.read(&mut nothing) => {}
        _ = interrupted() => {}
    }
}

/// The node that serves.
async fn alpha(url: &str) -> Result<(), Failure> {
    let node = Node::join(Config::new(url).name("alpha").ephemeral()).await?;
    let listener = TcpListener::bind(&node, "[::]:80").await?;
    let page = Router::new().route("/", get(|| async { axum::response::Html(PAGE) }));
    let control = control::serve(&node);
    print(serde_json::to_string(&Member::of(&node)).expect("a member has a JSON form"))?;
    let result = tokio::select! {
        result = async { axum::serve(Listener(listener), page).await } => result,
        result = workload::serve(&node) => result,
        () = released() => Ok(()),
    };
    drop(control);
    node.leave().await;
    Ok(result?)
}

/// The node that measures.
async fn beta(url: &str, options: &Demo) -> Result<(), Failure> {
    let started = Instant::now();
    let mut config = Config::new(url).name("beta").ephemeral();
    config.capture = Some(options.capture.clone());
    config.capture_snap_len = SNAP_LEN;
    let node = Node::join(config).await?;
    let join_ms = started.elapsed().as_millis() as u64;
    let control = control::serve(&node);
    let result = tokio::select! {
        report = measure(&node, options, join_ms) => report.map(Some),
        () = released() => Ok(None),
    };
    if let Ok(Some(report)) = &result {
        print(serde_json::to_string(report).expect("a report has a JSON form"))?;
        released().await;
    }
    drop(control);
    node.leave().await;
    result.map(|_| ()).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => Failure::damaged(&error),
        _ => Failure::unreachable("alpha", &error),
    })
}

async fn measure(node: &Node, options: &Demo, join_ms: u64) -> std::io::Result<Report> {
    let started = Instant::now();
    let stream = TcpStream::connect(node, "alpha:80").await?;
    let link_ms = started.elapsed().as_millis() as u64;
    let http = fetch(stream).await?;
    let mut ping = Ping::new(node, "alpha").await?;
    let ping_us = ping.echo(56, STEP_LIMIT).await?.round_trip.as_micros() as u64;
    let trips = workload::round_trips(node, "alpha", 2_000).await?;
    let bytes = options.bytes;
    let up_mb_per_s = workload::upload(node, "alpha", bytes).await?;
    let down_mb_per_s = workload::download(node, "alpha", bytes).await?;
    let sizes: Vec<usize> = std::iter::once(1).chain((1..100).map(|n| n * 90)).chain([9_000]).collect();
    let udp = workload::datagrams(node, "alpha", &sizes).await?;
    let status = node.status();
    Ok(Report {
        ok: true,
        alpha: None,
        beta: Member::of(node),
        join_ms,
        link_ms,
        path: status.peers.first().and_then(|peer| peer.path),
        round_trip_us: Percentiles { p50: trips.percentile(50), p99: trips.percentile(99) },
        ping_us,
        http,
        tcp: Tcp { bytes, up_mb_per_s, down_mb_per_s },
        udp,
        packets: status.packets,
        dropped: status.dropped,
        capture: absolute(&options.capture),
    })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

async fn fetch(stream: TcpStream) -> std::io::Result<Http> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    let request = hyper::Request::get("/").header("host", "alpha").body(Empty::<bytes::Bytes>::new());
    let request = request.map_err(std::io::Error::other)?;
    let response = sender.send_request(request).await.map_err(std::io::Error::other)?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    if body != PAGE.as_bytes() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "the page arrived damaged"));
    }
    Ok(Http { status, bytes: body.len() })
}

fn table(report: &Report) -> String {
    let mut table = "unisockets demo: two processes, one virtual network\n".to_owned();
    let mut row = |name: &str, value: String| table.push_str(&format!("\n  {name:<24} {value}"));
    for member in report.alpha.iter().chain([&report.beta]) {
        row(&member.name, format!("{}   {}", member.ipv4, member.ipv6));
    }
    let path = match report.path {
        Some(unisockets::Route::Direct) => "direct",
        Some(unisockets::Route::Relayed) => "relayed",
        None => "unknown",
    };
    row("time to join", format!("{} ms", report.join_ms));
    row("time to link", format!("{} ms, {path}, over WebRTC", report.link_ms));
    row("round trip, 128 bytes", format!("p50 {} us, p99 {} us", report.round_trip_us.p50, report.round_trip_us.p99));
    row("ping", format!("{} us", report.ping_us));
    row("GET http://alpha/", format!("{}, {} bytes", report.http.status, report.http.bytes));
    let mib = report.tcp.bytes / (1 << 20);
    row(&format!("TCP, {mib} MiB to alpha"), format!("{:.1} MB/s, every byte right", report.tcp.up_mb_per_s));
    row(&format!("TCP, {mib} MiB from alpha"), format!("{:.1} MB/s, every byte right", report.tcp.down_mb_per_s));
    let udp = &report.udp;
    row(
        "UDP, 1 to 9000 bytes",
        format!("{} of {} came back, the largest with {} bytes", udp.received, udp.sent, udp.largest),
    );
    row("packets", report.packets.to_string());
    let dropped: Vec<String> = report.dropped.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    row("dropped", if dropped.is_empty() { "none".to_owned() } else { dropped.join(", ") });
    row("capture", report.capture.display().to_string());
    table
}

fn suggestions(url: &str, report: &Report) -> String {
    let browser = match built_page() {
        Some(_) => format!("In a browser, this tab becomes a host of the network:\n  {}/?name=tab", page_url(url)),
        None => "A browser tab can be a host, too: 'make page' builds what it needs, then start this again.".to_owned(),
    };
    format!(
        "\n{browser}\n\nEverything stays up until Ctrl-C. In another terminal, try:
  export UNISOCKETS_SIGNAL={url}
  unisockets status
  unisockets ping alpha --count 3
  unisockets forward 8080 alpha:80      # then: curl http://127.0.0.1:8080/
  unisockets bench alpha
  wireshark {}",
        report.capture.display()
    )
}
