//! Programs that are killed and started again: who is connected learns it, who comes back is the same member.

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;

use std::io::Write;
use std::time::Instant;

use serde_json::Value;
use support::{LIMIT, Place, Process};

/// Bytes whose order matters: no two blocks are the same.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

/// Writes to a program until it takes no more; returns how much that was.
fn feed(process: &mut Process) -> std::thread::JoinHandle<usize> {
    let mut stdin = process.stdin.take().unwrap();
    let block = pattern(1 << 20);
    std::thread::spawn(move || std::iter::repeat_with(|| stdin.write_all(&block)).take_while(Result::is_ok).count())
}

fn addresses(status: &Value) -> (String, String) {
    (status["ipv4"].to_string(), status["ipv6"].to_string())
}

/// The processes that have a word in their command line; they end with this.
#[cfg(target_os = "linux")]
struct Marked(String);

#[cfg(target_os = "linux")]
impl Marked {
    fn find(&self) -> Vec<String> {
        let is_marked = |entry: &std::fs::DirEntry| {
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains(&self.0)
        };
        let marked = std::fs::read_dir("/proc").unwrap().flatten().filter(is_marked);
        marked.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn kill(&self, signal: &str) {
        for process in self.find() {
            let _ = std::process::Command::new("kill").args([signal, &process]).status();
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Marked {
    fn drop(&mut self) {
        self.kill("-KILL");
    }
}

/// A node in the background stays there until it is ended, whoever has started it.
#[cfg(target_os = "linux")]
#[test]
fn a_node_in_the_background_stays() {
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let control = place.path("control").to_str().unwrap().to_owned();
    let node = Marked(control.clone());
    let started = place.start(&["node", "--background", "--name", "stayer", "--control", &control]).end();
    assert_eq!(started.code, Some(0), "{started:?}");
    assert!(started.out.starts_with(&format!("ready {control}\n")), "{started:?}");
    // It looked twice a second whether anybody is left who may want it.
    std::thread::park_timeout(std::time::Duration::from_millis(1_500));
    place.status("stayer", |_| true);
    assert_eq!(node.find().len(), 1);
    node.kill("-TERM");
    let deadline = Instant::now() + LIMIT;
    while std::path::Path::new(&control).exists() {
        assert!(Instant::now() < deadline, "the node does not end");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}

/// A killed peer once left its clients waiting for ever: nobody told them.
#[test]
fn a_client_of_a_killed_server_ends_with_an_error_and_the_server_comes_back_as_the_same_member() {
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let mut server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    let before = addresses(&place.status("alpha", |status| status["signaling"] == true));

    let mut client = place.start(&["nc", "alpha", "7"]);
    let feeding = feed(&mut client);
    server.out.wait_len(1 << 20);
    server.kill();
    let killed = Instant::now();
    let ended = client.end();
    assert!(killed.elapsed() < LIMIT, "{:?}", killed.elapsed());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.starts_with("unisockets: ") && ended.err.lines().count() == 1, "{ended:?}");
    assert!(feeding.join().unwrap() > 0, "it was in the middle");

    let mut server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    assert_eq!(addresses(&place.status("alpha", |status| status["signaling"] == true)), before);
    let mut client = place.start(&["nc", "alpha", "7"]);
    client.write(b"are you back?");
    assert_eq!(server.out.wait_len(13), b"are you back?");
    server.write(b"I am");
    client.end_input();
    assert_eq!(server.end().code, Some(0));
    assert_eq!(client.end().out, "I am");
}

#[test]
fn a_key_file_serves_one_node_at_a_time() {
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let mut first = place.listen(&["nc", "-l", "7", "--key", "node.key"]);
    let second = place.start(&["nc", "-l", "8", "--key", "node.key"]).end();
    assert_eq!(second.code, Some(3), "{second:?}");
    assert!(second.err.starts_with("unisockets: ") && second.err.contains("in use"), "{second:?}");

    first.kill();
    place.listen(&["nc", "-l", "8", "--key", "node.key"]);
}

/// The lock of a file says nothing about its copies: signaling has the last word.
#[test]
fn a_copied_key_is_refused_while_it_is_in_use_and_let_in_at_once_when_its_user_was_killed() {
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let mut first = place.listen(&["nc", "-l", "7", "--key", "first.key", "--name", "alpha"]);
    let before = addresses(&place.status("alpha", |status| status["signaling"] == true));
    std::fs::copy(place.path("first.key"), place.path("second.key")).unwrap();

    let second = place.start(&["nc", "-l", "8", "--key", "second.key", "--name", "alpha"]).end();
    assert_eq!(second.code, Some(3), "{second:?}");
    assert!(second.err.starts_with("unisockets: ") && second.err.contains("in use"), "{second:?}");
    assert_eq!(second.err.lines().count(), 1, "{second:?}");
    assert_eq!(addresses(&place.status("alpha", |status| status["signaling"] == true)), before, "the first stays");

    first.kill();
    // The dead program's file would be found under its pid, and is removed by the next status.
    let _second = place.listen(&["nc", "-l", "8", "--key", "second.key", "--name", "alpha"]);
    assert_eq!(addresses(&place.status("alpha", |status| status["signaling"] == true)), before);
}

/// Connections do not depend on signaling, and addresses outlive it.
#[test]
fn a_transfer_outlives_the_signaling_server_and_both_members_keep_their_addresses() {
    const LEN: usize = 24 << 20;
    let mut place = Place::new();
    let mut signal = place.signal(&["--listen", "127.0.0.1:0", "--data", "leases"]);
    let listen = place.url.strip_prefix("ws://").unwrap().to_owned();
    let mut server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    let mut client = place.start(&["nc", "alpha", "7", "--name", "beta"]);
    let sent = pattern(LEN);
    client.write(&sent[..LEN / 2]);
    server.out.wait_len(LEN / 4);
    let joined = |status: &Value| status["signaling"] == true;
    let before = ["alpha", "beta"].map(|name| addresses(&place.status(name, joined)));

    signal.kill();
    for name in ["alpha", "beta"] {
        place.status(name, |status| status["signaling"] == false);
    }
    client.write(&sent[LEN / 2..LEN * 3 / 4]);
    server.out.wait_len(LEN * 5 / 8);
    let _signal = place.signal(&["--listen", &listen, "--data", "leases"]);
    client.write(&sent[LEN * 3 / 4..]);
    assert!(server.out.wait_len(LEN) == sent, "every byte is right");
    let after = ["alpha", "beta"].map(|name| addresses(&place.status(name, joined)));
    assert_eq!(before, after);

    server.end_input();
    let (client, server) = (client.end(), server.end());
    assert_eq!((client.code, server.code), (Some(0), Some(0)), "{} {}", client.err, server.err);
}

/// Shells allow 1,024 open files by default: a server that was started in one let in no more members than that.
#[test]
fn a_signaling_server_takes_as_many_open_files_as_it_may() {
    let mut place = Place::new();
    place.prefix = ["sh", "-c", "ulimit -S -n 64 && exec \"$0\" \"$@\""].map(str::to_owned).to_vec();
    let server = place.signal(&["--listen", "127.0.0.1:0"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the limit is listed");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[0], words[1], "the soft limit is the hard one");
    assert_ne!(words[1], "64", "the machine allows more, or nothing is shown");
}
