//! The examples in C, unchanged, with the system's headers alone and with ours.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[path = "../../tests/support/cargo.rs"]
mod cargo;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("capi lies in the repository").to_owned()
}

/// Where cargo puts what it builds: this test lies in `deps` there.
fn built() -> PathBuf {
    static BUILT: Once = Once::new();
    let own = std::env::current_exe().unwrap();
    let profile = own.parent().and_then(Path::parent).expect("a test is in a profile's folder").to_owned();
    let target = profile.parent().expect("a profile is in a target folder").to_owned();
    BUILT.call_once(|| {
        // Apart, as everything else builds them: together they would have other features, and be built anew.
        for packages in [&["-p", "unisockets-capi", "-p", "unisockets"][..], &["-p", "unisockets-preload"]] {
            let mut cargo = Command::new(env!("CARGO"));
            cargo::without_package(&mut cargo)
                .args(["build", "--locked"])
                .args(packages)
                .env("CARGO_TARGET_DIR", &target);
            assert!(cargo.current_dir(root()).status().unwrap().success(), "the library and the tool are built");
        }
    });
    profile
}

/// A folder with a network in it.
struct Place {
    folder: PathBuf,
    signal: Option<Running>,
    url: String,
    nodes: Vec<Running>,
}

/// A program that is killed at the end.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Running { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Place {
    fn new() -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("unisockets-c-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Place { folder, signal: None, url: String::new(), nodes: Vec::new() }
    }

    /// Starts a network of two members.
    fn network(&mut self) -> [String; 2] {
        let tool = built().join("unisockets");
        let mut signal = Running::start(Command::new(&tool).args(["signal", "serve", "--listen", "127.0.0.1:0"]));
        let url = signal.line();
        self.signal = Some(signal);
        self.url.clone_from(&url);
        ["alpha", "beta"].map(|name| {
            let control = self.folder.join(name).to_str().unwrap().to_owned();
            let mut node = Command::new(&tool);
            node.args(["node", "--name", name, "--control", &control, "--signal", &url]);
            node.env("XDG_DATA_HOME", &self.folder).env("XDG_RUNTIME_DIR", &self.folder);
            let mut node = Running::start(&mut node);
            assert_eq!(node.line(), format!("ready {control}"));
            self.nodes.push(node);
            control
        })
    }

    /// Compiles an example.
    fn compile(&self, name: &str, ours: bool) -> PathBuf {
        self.compile_from("examples/c", name, ours)
    }

    fn compile_from(&self, folder: &str, name: &str, ours: bool) -> PathBuf {
        self.compile_with(&["-O2", "-D_FORTIFY_SOURCE=2"], folder, name, ours)
    }

    fn compile_with(&self, flags: &[&str], folder: &str, name: &str, ours: bool) -> PathBuf {
        let program = self.folder.join(format!("{name}-{ours}"));
        let mut compiler = Command::new("cc");
        compiler.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).args(flags);
        compiler.arg(root().join(folder).join(format!("{name}.c")));
        if ours {
            let library = built();
            // The name that it is loaded by; 'make install' makes it too.
            let _ =
                std::os::unix::fs::symlink(library.join("libunisockets.so"), self.folder.join("libunisockets.so.0"));
            compiler.args(["-DUNISOCKETS_WITH_ALIAS", "-I"]).arg(root().join("capi/include"));
            compiler.arg("-L").arg(&library).arg("-lunisockets").arg(format!("-Wl,-rpath,{}", self.folder.display()));
        }
        let output = compiler.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        program
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.nodes.clear();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn command(program: &Path, node: Option<&String>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    for variable in ["UNISOCKETS_NODE", "UNISOCKETS_SIGNAL", "UNISOCKETS_NETWORK", "UNISOCKETS_NAME"] {
        command.env_remove(variable);
    }
    if let Some(node) = node {
        command.env("UNISOCKETS_NODE", node);
    }
    command
}

/// Gives a program its input, and returns what it printed.
fn filter(command: &mut Command, input: Vec<u8>) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let mut stdout = child.stdout.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{command:?} does not end");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    };
    assert!(status.success(), "{command:?}: {status}");
    let _ = feeding.join().unwrap();
    reading.join().unwrap().unwrap()
}

/// Runs a test with the system's sockets on loopback, and with ours over two members.
fn both(test: impl Fn(&Place, bool, Option<&String>, Option<&String>, &str)) {
    let place = Place::new();
    test(&place, false, None, None, "127.0.0.1");
    let mut place = Place::new();
    let [alpha, beta] = place.network();
    test(&place, true, Some(&alpha), Some(&beta), "alpha");
}

#[test]
fn an_echo_server_and_its_client() {
    both(|place, ours, alpha, beta, host| {
        let mut server = Running::start(&mut command(&place.compile("echo_server", ours), alpha, &[]));
        let port = server.line();
        let client = place.compile("echo_client", ours);
        let bytes: Vec<u8> = (0..4_000_000u32).map(|number| (number * 7 + number / 251) as u8).collect();
        for _ in 0..3 {
            assert!(
                filter(&mut command(&client, beta, &[host, &port]), bytes.clone()) == bytes,
                "every byte came back"
            );
        }
    });
}

#[test]
fn an_event_loop_with_fifty_connections_at_once() {
    both(|place, ours, alpha, beta, host| {
        let mut server = Running::start(&mut command(&place.compile("http_server", ours), alpha, &[]));
        let port = server.line();
        let client = place.compile("echo_client", ours);
        std::thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| {
                    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
                    let answer = filter(&mut command(&client, beta, &[host, &port]), request);
                    assert!(answer.ends_with(b"\r\n\r\nhello\n"), "{}", String::from_utf8_lossy(&answer));
                });
            }
        });
    });
}

#[test]
fn datagrams_of_every_size() {
    both(|place, ours, alpha, beta, host| {
        let mut server = Running::start(&mut command(&place.compile("udp_server", ours), alpha, &[]));
        let port = server.line();
        let said = filter(&mut command(&place.compile("udp_client", ours), beta, &[host, &port]), Vec::new());
        assert_eq!(String::from_utf8(said).unwrap(), "0\n1\n1000\n9000\n65507\n");
    });
}

/// Without a network the library is the operating system's sockets.
#[test]
fn without_a_network_every_call_goes_to_the_operating_system() {
    let place = Place::new();
    let mut server = Running::start(&mut command(&place.compile("echo_server", true), None, &[]));
    let port = server.line();
    let client = place.compile("echo_client", true);
    assert_eq!(filter(&mut command(&client, None, &["127.0.0.1", &port]), b"hello".to_vec()), b"hello");
}

/// A node that is not there is an error that says so, not a hang.
#[test]
fn a_node_that_is_not_there_is_network_down() {
    let place = Place::new();
    let nowhere = place.folder.join("nowhere").to_str().unwrap().to_owned();
    let output = command(&place.compile("echo_server", true), Some(&nowhere), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Network is down"), "{output:?}");
}

/// A program's own settings: each call is true to them, or says what is in the way.
#[test]
fn a_program_enters_and_leaves_networks() {
    let mut place = Place::new();
    place.network();
    let signal = place.url.clone();
    let capture = place.folder.join("network.pcapng");
    let program = place.compile_from("capi/tests/c", "network", true);
    let mut ours = command(&program, None, &[&signal, capture.to_str().unwrap()]);
    ours.env("UNISOCKETS_PROGRAM", built().join("unisockets"));
    ours.env("XDG_DATA_HOME", &place.folder).env("XDG_RUNTIME_DIR", &place.folder);
    let said = String::from_utf8(filter(&mut ours, Vec::new())).unwrap();
    let wanted = "of the header's version: yes
gamma: yes
\"gamma\" is in the status: yes
again: yes
as it is: yes
delta meanwhile: Transport endpoint is already connected
this program is on a network already, with another network; unisockets_down leaves it
a secret meanwhile: Transport endpoint is already connected
capture: yes
a child has left: yes
its address: yes
groups from it: yes
a first part: Operation not supported
a part: Operation not supported
bind: yes
listen: yes
down: yes
delta: yes
\"delta\" is in the status: yes
\"elsewhere\" is in the status: yes
the same node: no
bind: yes
an option of the other: yes
keep-alive: 1 and 0
listening: 1 and 0
down: yes
a node is left to others: no
down again: Network is down
a bad server: Network is down
and why
";
    assert_eq!(said, wanted);
    let mut bare = command(&program, None, &["bare"]);
    bare.env("UNISOCKETS_PROGRAM", built().join("unisockets")).env("UNISOCKETS_SIGNAL", &signal);
    bare.env("XDG_DATA_HOME", &place.folder).env("XDG_RUNTIME_DIR", &place.folder);
    let bare = bare.output().unwrap();
    assert!(bare.status.success(), "{bare:?}");
    assert!(std::fs::metadata(&capture).unwrap().len() > 0);
    let wanted = "another name: Transport endpoint is already connected
as it is: yes
bind: yes
capture: Permission denied
down: yes
a node is left to others: no
";
    let mut node = Command::new(built().join("unisockets"));
    node.args(["node", "--invites", "--name", "shared", "--signal", &signal]);
    node.env("XDG_DATA_HOME", &place.folder).env("XDG_RUNTIME_DIR", &place.folder);
    let mut node = Running::start(&mut node);
    assert!(node.line().starts_with("ready "));
    let invitation = node.line().strip_prefix("invitation ").expect("the node invites").to_owned();
    for _ in 0..2 {
        let said = filter(&mut command(&program, Some(&invitation), &[]), Vec::new());
        assert_eq!(String::from_utf8(said).unwrap(), wanted);
    }
}

/// What the script of socket calls says otherwise with our sockets, by the words behind the kind of socket, and why.
const DIFFERENT: [(&str, &str); 2] = [
    ("poll a listener", "a listener's descriptor can always be written to"),
    ("getpeername after a reset", "the name of a descriptor's other end stays"),
];

/// Some 900 calls with their errors and edges, on the operating system's sockets and on ours: what they say is the same.
#[test]
fn every_call_says_what_linux_says() {
    let mut place = Place::new();
    let [alpha, _] = place.network();
    let plain = place.compile_from("capi/tests/c", "calls", false);
    let said = |mut command: Command| String::from_utf8(filter(&mut command, Vec::new())).unwrap();
    let linux = said(command(&plain, None, &[]));
    let mut recompiled = command(&place.compile_from("capi/tests/c", "calls", true), Some(&alpha), &[]);
    recompiled.env("UNISOCKETS_LOOPBACK", "inside");
    let mut preloaded = command(&plain, Some(&alpha), &[]);
    preloaded.env("UNISOCKETS_LOOPBACK", "inside").env("LD_PRELOAD", built().join("libunisockets_preload.so"));
    for (how, ours) in [("recompiled", said(recompiled)), ("preloaded", said(preloaded))] {
        assert_eq!(linux.lines().count(), ours.lines().count(), "{how}");
        let is_known = |line: &str| DIFFERENT.iter().any(|(words, _)| line.contains(words));
        let differs = |(linux, ours): &(&str, &str)| linux != ours && !is_known(linux);
        let different: Vec<_> = linux.lines().zip(ours.lines()).filter(differs).collect();
        assert!(different.is_empty(), "{how}: {different:#?}");
    }
    assert!(linux.lines().count() > 800);
}

/// Ten thousand descriptors, and a limit that is too low for a few: EMFILE, never a hang.
#[test]
fn many_descriptors_and_too_few() {
    let mut place = Place::new();
    let [alpha, _] = place.network();
    let plain = place.compile_from("capi/tests/c", "limits", false);
    let mut recompiled = command(&place.compile_from("capi/tests/c", "limits", true), Some(&alpha), &[]);
    recompiled.env("UNISOCKETS_LOOPBACK", "inside");
    let mut preloaded = command(&plain, Some(&alpha), &[]);
    preloaded.env("UNISOCKETS_LOOPBACK", "inside").env("LD_PRELOAD", built().join("libunisockets_preload.so"));
    let linux = filter(&mut command(&plain, None, &[]), Vec::new());
    let lines = "sockets\nthen Too many open files\nand on\naccepted late\n";
    assert!(String::from_utf8_lossy(&linux).ends_with(lines));
    for mut ours in [recompiled, preloaded] {
        assert_eq!(filter(&mut ours, Vec::new()), linux);
    }
}

/// A child must not find locked what another thread of its parent held.
#[test]
fn children_of_a_program_with_threads_do_not_hang() {
    let mut place = Place::new();
    let [alpha, _] = place.network();
    let plain = place.compile_from("capi/tests/c", "forks", false);
    let mut preloaded = command(&plain, Some(&alpha), &[]);
    preloaded.env("LD_PRELOAD", built().join("libunisockets_preload.so"));
    for mut ours in [command(&place.compile_from("capi/tests/c", "forks", true), Some(&alpha), &[]), preloaded] {
        assert_eq!(String::from_utf8_lossy(&filter(&mut ours, Vec::new())), "no child hung\n");
    }
}

/// Threads, handlers of signals, vfork, the end of a program: what is said, and that nothing hangs or aborts.
#[test]
fn what_interrupts_a_call_finds_it_as_on_linux() {
    let mut place = Place::new();
    let [alpha, _] = place.network();
    let plain = place.compile_from("capi/tests/c", "interruptions", false);
    let mut recompiled = command(&place.compile_from("capi/tests/c", "interruptions", true), Some(&alpha), &[]);
    recompiled.env("UNISOCKETS_LOOPBACK", "inside");
    let mut preloaded = command(&plain, Some(&alpha), &[]);
    preloaded.env("UNISOCKETS_LOOPBACK", "inside").env("LD_PRELOAD", built().join("libunisockets_preload.so"));
    let said = |mut command: Command| String::from_utf8(filter(&mut command, Vec::new())).unwrap();
    let linux = said(command(&plain, None, &[]));
    assert!(linux.contains("a call that fails at exit: -1 ENOPROTOOPT"), "{linux}");
    for (how, ours) in [("recompiled", recompiled), ("preloaded", preloaded)] {
        assert_eq!(said(ours), linux, "{how}");
    }
}

/// A panic of ours is EIO in C, in the thread whose call it was; the program and its network go on.
#[test]
fn a_panic_reaches_c_as_eio() {
    let mut place = Place::new();
    let [alpha, _] = place.network();
    let mut program = command(&place.compile_with(&["-rdynamic"], "capi/tests/c", "panics", true), Some(&alpha), &[]);
    program.env("UNISOCKETS_LOOPBACK", "inside");
    let said = String::from_utf8(filter(&mut program, Vec::new())).unwrap();
    let round = "a limit: 0
connect where the clock fails: -1 EIO
a bug in unisockets ended the call; please report it
connect where it works again: 1
send: 3
recv: 3
yes
";
    assert_eq!(said, format!("bind: 0\nlisten: 0\ngetsockname: 0\n{}", round.repeat(3)));
}

const SANITIZED: [&str; 5] =
    ["-O1", "-gdwarf-4", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];

/// Some 900 calls, and very many descriptors, under AddressSanitizer: nothing is read or written beside the buffers of C.
#[test]
fn calls_are_clean_under_address_sanitizer() {
    let mut place = Place::new();
    let [alpha, _] = place.network();
    for (name, lines) in [("calls", 800), ("limits", 3)] {
        let program = place.compile_with(&SANITIZED, "capi/tests/c", name, true);
        let mut program = command(&program, Some(&alpha), &[]);
        let said = filter(program.env("UNISOCKETS_LOOPBACK", "inside"), Vec::new());
        assert!(String::from_utf8_lossy(&said).lines().count() >= lines, "{name}");
    }
}

/// The same under valgrind, which sees what our library does, too.
#[test]
fn calls_are_clean_under_valgrind() {
    let mut place = Place::new();
    let [alpha, _] = place.network();
    let program = place.compile_with(&["-O1", "-gdwarf-4"], "capi/tests/c", "calls", true);
    let checks = ["--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"];
    let mut valgrind = command(Path::new("valgrind"), Some(&alpha), &checks);
    valgrind.arg(program).env("UNISOCKETS_LOOPBACK", "inside");
    let said = filter(&mut valgrind, Vec::new());
    assert!(String::from_utf8_lossy(&said).lines().count() > 800);
}
