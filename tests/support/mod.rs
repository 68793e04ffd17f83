//! Programs as processes of their own: a fresh home for each test, a deadline for every wait, nothing left behind.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A home of its own for some programs, removed at the end.
pub struct Place {
    folder: PathBuf,
    /// The signaling server that programs are told of.
    pub url: String,
    /// What stands before every command, such as another program that starts it.
    pub prefix: Vec<String>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What makes root an ordinary user without any right, who owns the folder, and finds a TUN device of that mode.
pub fn as_ordinary_user(device_mode: &str) -> Vec<String> {
    let script = format!(
        "mount -t tmpfs none /dev/net && mknod -m {device_mode} /dev/net/tun c 10 200 && \
         chown -R 65534:65534 . && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\""
    );
    ["unshare", "-m", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
}

impl Place {
    pub fn new() -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("unisockets-{}-{number}", std::process::id()));
        for name in ["home", "data", "run"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        Place { folder, url: String::new(), prefix: Vec::new() }
    }

    /// Returns a path in the place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts a signaling server and tells all later programs of it.
    pub fn signal(&mut self, options: &[&str]) -> Process {
        let server = self.start(&[&["signal", "serve"], options].concat());
        let line = server.out.wait("the server's URL", |text| text.contains('\n'));
        self.url = line.trim().to_owned();
        server
    }

    /// Starts the tool.
    pub fn start(&self, arguments: &[&str]) -> Process {
        self.start_other(&[&[env!("CARGO_BIN_EXE_unisockets")], arguments].concat())
    }

    /// Starts any program in the place.
    pub fn start_other(&self, arguments: &[&str]) -> Process {
        let words: Vec<String> =
            self.prefix.iter().cloned().chain(arguments.iter().copied().map(str::to_owned)).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&self.folder).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path("home")).env("XDG_DATA_HOME", self.path("data"));
        command.env("XDG_RUNTIME_DIR", self.path("run"));
        if !self.url.is_empty() {
            command.env("UNISOCKETS_SIGNAL", &self.url);
        }
        Process::start(command)
    }

    /// Starts the tool as a listener and waits until it can be reached.
    pub fn listen(&self, arguments: &[&str]) -> Process {
        let process = self.start(arguments);
        process.err.wait("a listener", |text| text.contains("listening on "));
        process
    }

    /// Asks a running node of this place for its status until it is as wanted.
    pub fn status(&self, name: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let ended = self.start(&["status", name, "--json"]).end();
            let rows: serde_json::Value = serde_json::from_str(&ended.out).expect("status prints JSON");
            let status = &rows[0]["status"];
            if wanted(status) {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "the status of {name} did not become as wanted: {rows:#}");
        }
    }
}

/// What a program has written so far.
#[derive(Clone)]
pub struct Output {
    shared: Arc<(Mutex<Written>, Condvar)>,
}

#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    closed: bool,
}

impl Output {
    fn follow(mut from: impl Read + Send + 'static) -> Output {
        let output = Output { shared: Arc::default() };
        let shared = Arc::clone(&output.shared);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let read = from.read(&mut buffer);
                let mut written = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                match read {
                    Ok(len @ 1..) => written.bytes.extend_from_slice(&buffer[..len]),
                    _ => written.closed = true,
                }
                shared.1.notify_all();
                if written.closed {
                    return;
                }
            }
        });
        output
    }

    fn wait_until(&self, what: &str, wanted: impl Fn(&Written) -> bool) -> Vec<u8> {
        self.wait_within(LIMIT, what, wanted)
    }

    fn wait_within(&self, limit: Duration, what: &str, wanted: impl Fn(&Written) -> bool) -> Vec<u8> {
        let written = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (written, timeout) = self
            .shared
            .1
            .wait_timeout_while(written, limit, |written| !wanted(written) && !written.closed)
            .unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&written.bytes[..written.bytes.len().min(2_000)]);
        assert!(!timeout.timed_out(), "waited in vain for {what}; {} bytes so far: {text}", written.bytes.len());
        assert!(wanted(&written), "the program ended before {what}: {text}");
        written.bytes.clone()
    }

    /// Waits for text.
    pub fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_long(LIMIT, what, wanted)
    }

    /// Waits for text that comes only after a deadline of the network's own.
    pub fn wait_long(&self, limit: Duration, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let bytes = self.wait_within(limit, what, |written| wanted(&String::from_utf8_lossy(&written.bytes)));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for so many bytes and returns all that came.
    pub fn wait_len(&self, len: usize) -> Vec<u8> {
        self.wait_until(&format!("{len} bytes"), |written| written.bytes.len() >= len)
    }

    fn to_end(&self, what: &str, limit: Duration) -> String {
        let bytes = self.wait_within(limit, what, |written| written.closed);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Nothing if a signal killed it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A running program, killed at the end of the test.
pub struct Process {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    pub out: Output,
    pub err: Output,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    /// Starts any program.
    pub fn start(mut command: Command) -> Process {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = Output::follow(child.stdout.take().unwrap());
        let err = Output::follow(child.stderr.take().unwrap());
        Process { stdin: child.stdin.take(), child, out, err }
    }

    /// Writes to its standard input.
    pub fn write(&mut self, bytes: &[u8]) {
        let (mut stdin, bytes) = (self.stdin.take().expect("standard input is open"), bytes.to_vec());
        let (done, written) = mpsc::channel();
        std::thread::spawn(move || {
            let result = stdin.write_all(&bytes);
            let _ = done.send((stdin, result));
        });
        let (stdin, result) = written.recv_timeout(LIMIT).expect("the program reads its standard input");
        self.stdin = Some(stdin);
        result.unwrap();
    }

    /// Kills it as SIGKILL does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end (SIGTERM).
    #[cfg(target_os = "linux")]
    #[allow(dead_code, reason = "tests of signals alone use it")]
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends it a signal.
    #[cfg(target_os = "linux")]
    #[allow(dead_code, reason = "tests of signals alone use it")]
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends its standard input; what it still receives it goes on with.
    pub fn end_input(&mut self) {
        drop(self.stdin.take());
    }

    /// Ends its standard input and waits until it has ended by itself.
    pub fn end(self) -> Ended {
        self.end_within(LIMIT)
    }

    /// The same for a program that may take longer.
    pub fn end_within(mut self, limit: Duration) -> Ended {
        drop(self.stdin.take());
        let err = self.err.to_end("the end of a program", limit);
        let out = self.out.to_end("the end of a program", limit);
        Ended { code: self.child.wait().unwrap().code(), out, err }
    }
}
