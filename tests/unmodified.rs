//! Real programs, as their distribution built them, over two members: on a good network and on a bad one.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;
#[path = "support/preload.rs"]
mod with;

use std::fs::OpenOptions;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Ended, Place, Process};

/// How long a program may take over a bad network.
const PATIENCE: Duration = Duration::from_secs(180);
/// Each end's own link is as bad as this, each way.
const BAD: &str = "loss=0.5%,delay=2ms,jitter=1ms";

const PYTHON: &str = "/usr/bin/python3";

/// How programs get onto the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Their own namespace, behind a device.
    Namespace,
    /// A library before the C library.
    Preload,
}

/// Two members on a network of some quality.
struct Net {
    way: Way,
    place: Place,
    _signal: Process,
    fault: Option<String>,
}

impl Net {
    fn new(way: Way, fault: Option<String>) -> Net {
        if way == Way::Preload {
            with::preload();
        }
        let mut place = Place::new();
        let signal = place.signal(&["--listen", "127.0.0.1:0"]);
        Net { way, place, _signal: signal, fault }
    }

    fn start(&self, name: &str, program: &[&str]) -> Process {
        let fault = self.fault.as_ref().map(|fault| ["--fault", fault]);
        let fault = fault.as_ref().map_or(&[][..], |fault| &fault[..]);
        let way: &[&str] = if self.way == Way::Preload { &["--preload"] } else { &[] };
        self.place.start(&[&["run"], way, &["--name", name], fault, &["--"], program].concat())
    }

    fn run(&self, name: &str, program: &[&str]) -> Ended {
        let ended = self.start(name, program).end_within(PATIENCE);
        assert_eq!(ended.code, Some(0), "{program:?}: {ended:?}");
        ended
    }

    /// Runs a client until the server that it talks to is there.
    fn until(&self, name: &str, program: &[&str]) -> Ended {
        self.until_right(name, program, |_| true)
    }

    /// The same for a program that says in its output alone that the server is not there yet.
    fn until_right(&self, name: &str, program: &[&str], right: fn(&Ended) -> bool) -> Ended {
        for _ in 0..20 {
            let ended = self.start(name, program).end_within(PATIENCE);
            if ended.code == Some(0) && right(&ended) {
                return ended;
            }
            std::thread::park_timeout(Duration::from_millis(250));
        }
        panic!("{program:?} never came through")
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.place.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Both ways, and both qualities of a network, one after the other; with `UNISOCKETS_MATRIX`, a file that a table is
/// added to, every cell of loss and delay.
fn each(program: &str, test: fn(&Net)) {
    let Some(table) = std::env::var_os("UNISOCKETS_MATRIX") else {
        for way in [Way::Namespace, Way::Preload] {
            for fault in [None, Some(BAD.to_owned())] {
                test(&Net::new(way, fault));
            }
        }
        return;
    };
    let mut failed = 0;
    for way in [Way::Namespace, Way::Preload] {
        for loss in [0, 1, 5] {
            for delay in [0, 20, 100] {
                // Each end has half of it.
                let fault = format!("loss={}%,delay={}ms", f64::from(loss) / 2.0, f64::from(delay) / 2.0);
                let started = Instant::now();
                let fault = (loss + delay > 0).then_some(fault);
                let passed = std::panic::catch_unwind(|| test(&Net::new(way, fault))).is_ok();
                failed += u32::from(!passed);
                let result =
                    if passed { format!("{:.1} s", started.elapsed().as_secs_f64()) } else { "FAILED".to_owned() };
                let row = format!("| {program} | {way:?} | {loss} % | {delay} ms | {result} |\n");
                let mut file = OpenOptions::new().create(true).append(true).open(&table).unwrap();
                file.write_all(row.as_bytes()).unwrap();
            }
        }
    }
    assert_eq!(failed, 0, "cells that failed: the table says which");
}

/// Ends programs that went into the background, by a part of their command line.
fn end_background(mark: &str) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_master = words.starts_with(b"nginx: master");
        if let (true, Some(pid)) = (is_master, entry.file_name().to_str())
            && String::from_utf8_lossy(&words).contains(mark)
        {
            let _ = Command::new("kill").arg(pid).status();
        }
    }
}

/// A web server in the background with two workers, files by sendfile, TLS, and as a proxy of another member.
#[test]
fn nginx_and_curl() {
    each("nginx, curl", |net| {
        let folder = net.place.path("");
        let folder = folder.to_str().unwrap().trim_end_matches('/');
        let bytes: Vec<u8> = (0..2_000_000u32).map(|number| (number * 7 + number / 251) as u8).collect();
        net.write("big", &bytes);
        let certificate = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=web";
        let mut openssl = Command::new("openssl");
        openssl.args(certificate.split(' ')).args(["-keyout", "key.pem", "-out", "cert.pem"]).current_dir(folder);
        assert!(openssl.output().unwrap().status.success());
        let configuration = |name: &str, server: &str| {
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("{kind}_temp_path {folder}/{name}-{kind};"))
                .concat();
            let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
            let text = format!(
                "{user} pid {folder}/{name}.pid; error_log {folder}/{name}.log; worker_processes 2; \
                 events {{ worker_connections 64; }} \
                 http {{ access_log off; {temporary} sendfile on; server {{ {server} }} }}"
            );
            net.write(&format!("{name}.conf"), text.as_bytes())
        };
        let web = configuration(
            "web",
            &format!(
                "listen 80; listen [::]:443 ssl; root {folder}; ssl_certificate {folder}/cert.pem; \
                 ssl_certificate_key {folder}/key.pem;"
            ),
        );
        let front = configuration("front", "listen 80; location / { proxy_pass http://web/; }");
        // It goes into the background by itself, and its node stays.
        net.run("web", &["/usr/sbin/nginx", "-c", &web]);
        net.run("front", &["/usr/sbin/nginx", "-c", &front]);
        let get = |url: &str| {
            let path = net.place.path("got");
            net.until("client", &["curl", "-sSf", "-k", "-o", path.to_str().unwrap(), url]);
            assert!(std::fs::read(path).unwrap() == bytes, "{url} came otherwise");
        };
        get("http://web/big");
        get("https://web/big");
        get("http://front/big");
        end_background(folder);
    });
}

#[test]
fn redis_and_its_benchmark() {
    each("redis", |net| {
        let _server = net.start("db", &["redis-server", "--protected-mode", "no", "--save", "", "--port", "6379"]);
        net.until("probe", &["redis-cli", "-h", "db", "ping"]);
        let count = if net.fault.is_some() { "2000" } else { "10000" };
        let said = net.run("load", &["redis-benchmark", "-h", "db", "-n", count, "-c", "20", "-t", "set,get", "--csv"]);
        assert!(said.out.contains("\"SET\"") && said.out.contains("\"GET\""), "{said:?}");
    });
}

#[test]
fn socat_over_udp_and_openssl() {
    each("socat, openssl", |net| {
        // Its children outlive it, as they do on Linux; nobody ends them but their own patience.
        let _echo = net.start("echo", &["socat", "-T", "15", "UDP-LISTEN:5000,fork", "EXEC:cat"]);
        let ask = "for _ in 1 2 3 4 5; do got=$(echo question | timeout 5 socat -t 1 - UDP:echo:5000); \
                   [ \"$got\" = question ] && exit 0; done; exit 1";
        net.until("asker", &["sh", "-c", ask]);
        let (key, certificate) = (net.place.path("k.pem"), net.place.path("c.pem"));
        let (key, certificate) = (key.to_str().unwrap(), certificate.to_str().unwrap());
        let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=tls";
        let made = Command::new("openssl").args(new.split(' ')).args(["-keyout", key, "-out", certificate]).output();
        assert!(made.unwrap().status.success());
        let _server =
            net.start("tls", &["openssl", "s_server", "-key", key, "-cert", certificate, "-accept", "4433", "-www"]);
        let client = "echo Q | openssl s_client -connect tls:4433 2>/dev/null | grep -q 'Cipher is TLS'";
        net.until("client", &["sh", "-c", client]);
    });
}

#[test]
fn iperf3() {
    each("iperf3", |net| {
        let _server = net.start("far", &["iperf3", "-s", "-p", "5201"]);
        // With --json it exits with 0 although it could not connect.
        let client = ["iperf3", "-c", "far", "-p", "5201", "-n", "2M", "--json"];
        let said = net.until_right("near", &client, |ended| !ended.out.contains("unable to connect"));
        let report: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        assert!(report["end"]["sum_received"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{}", said.out);
    });
}

/// Go programs make their system calls themselves, past any library: they need their own namespace.
#[test]
fn a_server_and_a_client_in_go() {
    each("webhook, hey", |net| {
        if net.way == Way::Preload {
            return;
        }
        let hooks = br#"[{"id": "greet", "execute-command": "/bin/echo", "response-message": "hello from go"}]"#;
        let hooks = net.write("hooks.json", hooks);
        let _server = net.start("hooks", &["webhook", "-hooks", &hooks, "-port", "9000"]);
        let got = net.until("one", &["curl", "-sSf", "http://hooks:9000/hooks/greet"]);
        assert_eq!(got.out, "hello from go");
        let load = ["hey", "-n", "60", "-c", "6", "-t", "60", "http://hooks:9000/hooks/greet"];
        let said = net.run("many", &load);
        assert!(said.out.contains("[200]\t60 responses"), "{said:?}");
    });
}

#[test]
fn asyncio_and_node() {
    each("asyncio, node", |net| {
        let server = net.write(
            "server.py",
            b"
import asyncio
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(echo, '', 7000, backlog=200)
    await server.serve_forever()
asyncio.run(main())
",
        );
        let client = net.write(
            "client.py",
            b"
import asyncio
async def one(number):
    reader, writer = await asyncio.open_connection('loop', 7000)
    sent = bytes([number]) * 20000
    writer.write(sent)
    writer.write_eof()
    assert await reader.read() == sent, number
    writer.close()
    await writer.wait_closed()
async def main():
    await asyncio.gather(*(one(number) for number in range(30)))
asyncio.run(main())
",
        );
        let _server = net.start("loop", &[PYTHON, &server]);
        net.until("loops", &[PYTHON, &client]);
        let web = "require('http').createServer((request, response) => {
            const hash = require('crypto').createHash('sha256');
            request.on('data', (bytes) => hash.update(bytes)).on('end', () => response.end(hash.digest('hex')));
        }).listen(80)";
        let ask = "const body = Buffer.alloc(300000, 'node');
            const wanted = require('crypto').createHash('sha256').update(body).digest('hex');
            const http = require('http'), agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
            const post = () => new Promise((resolve, reject) => {
                const request = http.request({ host: 'noded', method: 'POST', agent }, async (response) => {
                    let said = '';
                    for await (const part of response) said += part;
                    if (said === wanted) resolve(); else reject(new Error(said));
                });
                request.on('error', reject).end(body);
            });
            Promise.all(Array.from({ length: 12 }, post)).then(() => process.exit(0), () => process.exit(1))";
        let _web = net.start("noded", &["node", "-e", web]);
        net.until("asks", &["node", "-e", ask]);
    });
}
