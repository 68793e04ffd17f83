//! The commands, as people and scripts run them: processes, pipes, exit codes, signals.

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Ended, LIMIT, Place, Process};

/// A place with a signaling server.
fn network() -> (Place, Process) {
    let mut place = Place::new();
    let signal = place.signal(&["--listen", "127.0.0.1:0"]);
    assert!(place.url.starts_with("ws://127.0.0.1:"), "{}", place.url);
    (place, signal)
}

fn interrupt(process: &Process, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &process.child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// Asserts an exit code and one line that says what is wrong.
fn assert_fails(ended: &Ended, code: i32, text: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(ended.err.trim_end().lines().count(), 1, "{ended:?}");
    assert!(ended.err.starts_with("unisockets: ") && ended.err.contains(text), "{ended:?}");
    assert!(ended.out.is_empty(), "{ended:?}");
}

fn succeeded(ended: Ended) -> String {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.out
}

/// The address after "forwarding " in a forward's first line.
fn forwarded(forward: &Process) -> SocketAddr {
    let line = forward.out.wait("the forwarded address", |text| text.contains('\n'));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn nc_keeps_the_other_direction_open_when_standard_input_ends() {
    let (place, _signal) = network();
    let mut server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    let mut client = place.start(&["nc", "alpha", "7"]);
    client.write(b"the question");
    drop(client.stdin.take());
    assert_eq!(server.out.wait_len(12), b"the question");
    for part in [&b"a long "[..], b"answer"] {
        server.write(part);
    }
    assert_eq!(client.out.wait_len(13), b"a long answer");
    assert_eq!(succeeded(server.end()), "the question");
    assert_eq!(succeeded(client.end()), "a long answer");
}

#[test]
fn nc_carries_datagrams_and_answers_whoever_spoke() {
    let (place, _signal) = network();
    let mut server = place.listen(&["nc", "-u", "-l", "53", "--name", "alpha"]);
    let mut client = place.start(&["nc", "-u", "alpha", "53"]);
    client.write(b"query");
    assert_eq!(server.out.wait_len(5), b"query");
    server.write(b"reply");
    assert_eq!(client.out.wait_len(5), b"reply");
    succeeded(client.end());
    succeeded(server.end());
}

#[test]
fn ping_prints_an_object_for_each_echo() {
    let (place, _signal) = network();
    let _server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    let ping = ["ping", "alpha", "--count", "3", "--interval", "0.01", "--json"];
    let out = succeeded(place.start(&ping).end());
    let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 3, "{out}");
    for (index, row) in rows.iter().enumerate() {
        assert_eq!((&row["host"], &row["bytes"]), (&Value::from("alpha"), &Value::from(56)), "{row}");
        assert!(row["round_trip_us"].as_u64().unwrap() > 0, "{row}");
        assert_eq!(row["sequence"].as_u64(), rows[0]["sequence"].as_u64().map(|first| first + index as u64), "{row}");
    }
}

#[test]
fn ping_sums_up_however_it_ends() {
    let (place, _signal) = network();
    let _server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    let out = succeeded(place.start(&["ping", "alpha", "--count", "3", "--interval", "0.01"]).end());
    assert!(out.lines().last().unwrap().starts_with("3 sent, 3 answered, 0 % lost; round trip "), "{out}");
    let endless = place.start(&["ping", "alpha", "--interval", "0.01"]);
    endless.out.wait("some echoes", |text| text.lines().count() > 3);
    endless.terminate();
    let ended = endless.end();
    assert!(ended.out.lines().last().unwrap().contains(" answered, "), "{ended:?}");
}

#[test]
fn a_bad_wire_delays_both_ways_and_loses_nothing_of_a_stream() {
    let (place, _signal) = network();
    let _server = place.listen(&["bench", "serve", "--name", "alpha"]);
    let fault = ["--fault", "delay=20ms,jitter=1ms,loss=0.2%,reorder=0.2%,duplicate=0.2%"];
    let ping = [&["ping", "alpha", "--count", "2", "--interval", "0.01", "--json"][..], &fault].concat();
    for line in succeeded(place.start(&ping).end()).lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert!(row["round_trip_us"].as_u64().is_none_or(|us| us >= 40_000), "{row}");
    }
    let bench = [&["bench", "alpha", "--bytes", "500000", "--round-trips", "3", "--json"][..], &fault].concat();
    let row: Value = serde_json::from_str(succeeded(place.start(&bench).end()).trim()).unwrap();
    assert_eq!(row["bytes"], 500_000, "{row}");
    assert_fails(&place.start(&["ping", "alpha", "--fault", "speed=1"]).end(), 2, "write it like loss=1%");
}

#[test]
fn a_folder_is_served_over_http_and_reached_through_a_forward() {
    let (place, _signal) = network();
    let folder = place.path("folder");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("hello.txt"), "hello from a file").unwrap();
    fs::write(place.path("secret.txt"), "not for anybody").unwrap();
    let _server = place.listen(&["serve", "80", "folder", "--name", "alpha"]);
    let forward = place.start(&["forward", "127.0.0.1:0", "alpha:80"]);
    let address = forwarded(&forward);
    let page = get(address, "/hello.txt");
    assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("hello from a file"), "{page}");
    let list = get(address, "/");
    assert!(list.contains("hello.txt") && list.contains("sub/"), "{list}");
    for path in ["/../secret.txt", "/%2e%2e/secret.txt", "/sub/..%2f..%2fsecret.txt", "/nothing"] {
        let answer = get(address, path);
        assert!(answer.starts_with("HTTP/1.1 4") && !answer.contains("not for anybody"), "{path}: {answer}");
    }
}

#[test]
fn a_port_of_this_machine_is_exposed_and_each_half_close_is_carried() {
    let (place, _signal) = network();
    let machine = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = machine.local_addr().unwrap().port().to_string();
    let _expose = place.listen(&["expose", "90", &port, "--name", "alpha"]);
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = machine.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        write!(stream, "you said {question}").unwrap();
    });
    let mut client = place.start(&["nc", "alpha", "90"]);
    client.write(b"hello");
    assert_eq!(succeeded(client.end()), "you said hello");
    answering.join().unwrap();
}

/// A forward whose far end refuses must not look like a server that hangs up politely.
#[test]
fn a_forward_to_a_closed_port_resets_the_machines_connection() {
    let (place, _signal) = network();
    let _server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    let forward = place.start(&["forward", "127.0.0.1:0", "alpha:81"]);
    let mut stream = TcpStream::connect(forwarded(&forward)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    forward.err.wait("the reason", |text| text.contains("nobody listens on that port"));
}

#[test]
fn a_file_whose_sender_was_killed_is_sent_again_from_where_it_stopped() {
    const LEN: usize = 30 << 20;
    let (place, _signal) = network();
    let file: Vec<u8> = (0..LEN as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    fs::create_dir_all(place.path("inbox")).unwrap();
    fs::write(place.path("film.bin"), &file).unwrap();
    // A name that is taken stays what it is.
    fs::write(place.path("inbox/film.bin"), "older").unwrap();
    let receiver = place.listen(&["recv", "inbox", "--yes", "--json", "--name", "alpha"]);

    let mut sender = place.start(&["send", "film.bin", "alpha", "--name", "beta"]);
    place.status("alpha", |status| {
        status["peers"][0]["counters"]["received_bytes"].as_u64().is_some_and(|bytes| bytes > 4 << 20)
    });
    sender.kill();
    // The link falls silent, then the peer has its time to come back.
    receiver.err.wait_long(3 * LIMIT, "the receiver notices", |text| text.contains("did not send a whole file"));
    let part = fs::read_dir(place.path("inbox")).unwrap().flatten().map(|entry| entry.path());
    let part = part.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "part")).unwrap();
    let arrived = fs::metadata(&part).unwrap().len();
    assert!(arrived > 0 && arrived < LEN as u64, "killed in the middle: {arrived}");

    let resumed = place.start(&["send", "film.bin", "alpha", "--json", "--capture", "again.pcapng"]).end();
    let sent: Value = serde_json::from_str(&succeeded(resumed)).unwrap();
    assert_eq!((&sent["kept_as"], &sent["bytes"]), (&Value::from("film (1).bin"), &Value::from(LEN)), "{sent}");
    let again = fs::metadata(place.path("again.pcapng")).unwrap().len();
    assert!(again < LEN as u64 - arrived / 2, "{arrived} bytes were there, and still {again} went");
    let received: Value = serde_json::from_str(&succeeded(receiver.end())).unwrap();
    assert_eq!(received["received"], "film (1).bin", "{received}");
    assert_eq!(received["sha256"], sent["sha256"]);
    assert!(fs::read(place.path("inbox/film (1).bin")).unwrap() == file, "every byte is right");
    assert_eq!(fs::read(place.path("inbox/film.bin")).unwrap(), b"older");
    assert!(!part.exists(), "the unfinished file has become the finished one");
}

/// Offers a file as a foreign program may, with any name; returns what the receiver says to it.
fn offer(place: &Place, name: &str, size: u64) -> String {
    let mut client = place.start(&["nc", "alpha", "7071"]);
    // The hash of nothing: an empty file needs no more bytes.
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let line = serde_json::json!({"name": name, "size": size, "sha256": sha256}).to_string() + "\n";
    client.write(line.as_bytes());
    succeeded(client.end())
}

#[test]
fn recv_keeps_to_its_folder_and_to_its_limit() {
    let (place, _signal) = network();
    fs::create_dir_all(place.path("deep/inbox")).unwrap();
    let receive = ["recv", "deep/inbox", "--yes", "--keep-going", "--max-size", "1K", "--name", "alpha"];
    let receiver = place.listen(&receive);
    for (name, kept) in [("../../escaped", "escaped"), ("/etc/absolute", "absolute"), (".hidden", "hidden")] {
        let answer = offer(&place, name, 0);
        assert!(answer.contains(&format!("{{\"answer\":\"kept\",\"name\":\"{kept}\"}}")), "{answer}");
        assert!(place.path("deep/inbox").join(kept).is_file(), "{kept}");
    }
    assert!(offer(&place, "..", 0).contains("its name cannot be used here"));
    assert!(offer(&place, "large", 1_025).contains("--max-size"));
    fs::write(place.path("large"), vec![0; 1_025]).unwrap();
    assert_fails(&place.start(&["send", "large", "alpha"]).end(), 1, "--max-size");
    let names = fs::read_dir(place.path("deep/inbox")).unwrap().flatten();
    let mut names: Vec<String> = names.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["absolute", "escaped", "hidden"]);
    assert!(!place.path("escaped").exists() && !place.path("deep/escaped").exists());
    interrupt(&receiver, "TERM");
    assert_eq!(receiver.end().code, Some(130));
}

#[test]
fn bench_measures_both_directions_and_datagrams() {
    let (place, _signal) = network();
    let _server = place.listen(&["bench", "serve", "--name", "alpha"]);
    let bench = ["bench", "alpha", "--bytes", "1M", "--round-trips", "20", "--json"];
    let figures: Value = serde_json::from_str(&succeeded(place.start(&bench).end())).unwrap();
    for figure in [&figures["up_mb_per_s"], &figures["down_mb_per_s"], &figures["round_trip_us"]["p50"]] {
        assert!(figure.as_f64().unwrap() > 0.0, "{figures}");
    }
    assert_eq!(figures["udp"]["sent"], 100, "{figures}");
    assert_eq!(figures["udp"]["received"], 100, "{figures}");
}

#[test]
fn status_lists_a_running_node_its_peer_and_its_sockets() {
    let (place, _signal) = network();
    let mut server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    let mut client = place.start(&["nc", "alpha", "7", "--name", "beta"]);
    client.write(b"x");
    server.out.wait_len(1);
    let status = place.status("alpha", |status| status["peers"][0]["path"] == "direct");
    let peer = &status["peers"][0];
    assert_eq!((&peer["name"], &peer["connections"]), (&Value::from("beta"), &Value::from(1)), "{status:#}");
    let beta = place.status("beta", |_| true);
    assert_eq!((&beta["key"], &beta["ipv4"], &beta["ipv6"]), (&peer["key"], &peer["ipv4"], &peer["ipv6"]));
    let sockets = status["sockets"].as_array().unwrap();
    assert!(sockets.iter().any(|socket| socket["state"] == "ESTABLISHED"), "{status:#}");
    let shown = succeeded(place.start(&["status"]).end());
    assert!(shown.contains("peer beta  direct") && shown.contains("peer alpha  direct"), "{shown}");
    server.write(b"y");
    client.out.wait_len(1);
    server.end_input();
    succeeded(client.end());
    succeeded(server.end());
    assert_fails(&place.start(&["status"]).end(), 1, "no node of this user runs");
}

#[test]
fn keys_are_made_once_shown_and_used() {
    let (place, _signal) = network();
    let made = succeeded(place.start(&["key", "new", "node.key"]).end());
    assert_eq!(succeeded(place.start(&["key", "show", "node.key"]).end()), made);
    let shown: Value =
        serde_json::from_str(&succeeded(place.start(&["key", "show", "node.key", "--json"]).end())).unwrap();
    assert_eq!(shown["key"], made.trim());
    assert_fails(&place.start(&["key", "new", "node.key"]).end(), 1, "never overwritten");
    assert_fails(&place.start(&["key", "show", "nobody"]).end(), 1, "cannot read");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(place.path("node.key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let _node = place.listen(&["nc", "-l", "7", "--key", "node.key", "--name", "alpha"]);
    assert_eq!(place.status("alpha", |_| true)["key"], made.trim());
    let secrets = [(); 2].map(|()| succeeded(place.start(&["key", "new", "--network"]).end()));
    assert!(secrets[0] != secrets[1] && secrets[0].trim().len() >= 26, "{secrets:?}");
}

#[test]
fn a_signaling_server_that_is_not_there_is_3() {
    let mut place = Place::new();
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    place.url = format!("ws://{free}");
    assert_fails(&place.start(&["nc", "alpha", "7"]).end(), 3, "cannot be reached");
    assert_fails(&place.start(&["ping", "alpha"]).end(), 3, "unisockets signal serve");
}

#[test]
fn a_member_that_is_not_there_or_does_not_listen_is_4() {
    let (place, _signal) = network();
    assert_fails(&place.start(&["nc", "nobody", "7"]).end(), 4, "nobody");
    assert_fails(&place.start(&["ping", "nobody"]).end(), 4, "nobody");
    assert_fails(&place.start(&["nc", "192.0.2.1", "7"]).end(), 4, "outside the virtual network");
    let _server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    assert_fails(&place.start(&["nc", "alpha", "8"]).end(), 4, "nobody listens on that port");
}

#[test]
fn a_wrong_command_line_is_2() {
    let place = Place::new();
    assert_fails(&place.start(&["nc", "alpha"]).end(), 2, "nc HOST PORT");
    assert_fails(&place.start(&["nc", "alpha", "http"]).end(), 2, "'http' is no port");
    assert_fails(&place.start(&["send", "nothing.bin", "alpha"]).end(), 2, "cannot read nothing.bin");
    assert_fails(&place.start(&["serve", "80", "no-folder"]).end(), 2, "no-folder is no folder");
    assert_fails(&place.start(&["signal", "serve", "--prefix", "10.0.0.0/99"]).end(), 2, "is no prefix");
    for arguments in [&["frobnicate"][..], &["nc", "--no-such-option"], &[]] {
        assert_eq!(place.start(arguments).end().code, Some(2), "{arguments:?}");
    }
}

#[test]
fn an_interrupted_node_leaves_cleanly_and_its_peer_ends() {
    for signal in ["TERM", "INT"] {
        let (place, server) = network();
        let mut listener = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
        let mut client = place.start(&["nc", "alpha", "7"]);
        client.write(b"x");
        listener.out.wait_len(1);
        interrupt(&client, signal);
        let ended = client.end();
        assert_eq!((ended.code, ended.err.as_str()), (Some(130), ""), "{signal}");
        // The listener's standard input stays open: only the end of the connection can end it.
        let stdin = listener.stdin.take();
        let ended = listener.end();
        drop(stdin);
        assert_eq!((ended.code, ended.out.as_str()), (Some(0), "x"), "{ended:?}");
        interrupt(&server, signal);
        assert_eq!(server.end().code, Some(0));
    }
}

/// A member that connected to a receiver and said nothing once kept everybody else from sending.
#[test]
fn a_silent_connection_does_not_keep_a_receiver_from_others() {
    let (place, _signal) = network();
    fs::create_dir_all(place.path("inbox")).unwrap();
    fs::write(place.path("note"), "hello").unwrap();
    let receiver = place.listen(&["recv", "inbox", "--yes", "--name", "alpha"]);
    let _silent = place.start(&["nc", "alpha", "7071"]);
    place.status("alpha", |status| status["peers"][0]["connections"] == 1);
    let started = Instant::now();
    succeeded(place.start(&["send", "note", "alpha"]).end());
    assert!(started.elapsed() < Duration::from_secs(9), "nobody waits for the silent one: {:?}", started.elapsed());
    assert_eq!(succeeded(receiver.end()), "received note: 5 bytes, checked\n");
}

/// Runs the tool with an output that nobody reads; returns how it ended, and what it said on standard error.
fn unread(place: &Place, arguments: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_unisockets"));
    command.args(arguments).current_dir(place.path("")).env("UNISOCKETS_SIGNAL", &place.url);
    command.env("HOME", place.path("home")).env("XDG_DATA_HOME", place.path("data"));
    command.env("XDG_RUNTIME_DIR", place.path("run")).stdin(std::process::Stdio::null()).stdout(writer);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// `ping alpha | head -1` once ended in a panic, and without leaving the network.
#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let (place, _signal) = network();
    let _server = place.listen(&["bench", "serve", "--name", "alpha"]);
    for arguments in [
        &["ping", "alpha"][..],
        &["status"],
        &["status", "--json"],
        &["completions", "bash"],
        &["key", "new", "--network"],
        &["bench", "alpha", "--bytes", "1K", "--round-trips", "1"],
    ] {
        assert_eq!(unread(&place, arguments), (Some(0), String::new()), "{arguments:?}");
    }
    let left = fs::read_dir(place.path("run/unisockets")).unwrap().count();
    assert_eq!(left, 1, "only the server's control socket is there");
}

/// A stopped node once made `status` wait for ever.
#[test]
fn status_does_not_wait_for_a_node_that_is_stopped() {
    let (place, _signal) = network();
    let stopped = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    let _other = place.listen(&["nc", "-l", "7", "--name", "beta"]);
    interrupt(&stopped, "STOP");
    let ended = place.start(&["status"]).end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.starts_with("beta  pid ") && ended.err.contains("does not answer"), "{ended:?}");
}

/// A folder whose name needs percent-encoding was listed, but not found behind its own link.
#[test]
fn a_folder_with_a_space_in_its_name_is_listed() {
    let (place, _signal) = network();
    fs::create_dir_all(place.path("folder/my films")).unwrap();
    fs::write(place.path("folder/my films/100%.txt"), "all of it").unwrap();
    let _server = place.listen(&["serve", "80", "folder", "--name", "alpha"]);
    let forward = place.start(&["forward", "127.0.0.1:0", "alpha:80"]);
    let address = forwarded(&forward);
    assert!(get(address, "/").contains("my%20films/"));
    let list = get(address, "/my%20films/");
    assert!(list.starts_with("HTTP/1.1 200") && list.contains("<h1>/my films/</h1>"), "{list}");
    assert!(get(address, "/my%20films/100%25.txt").ends_with("all of it"));
}

/// Wrong settings were once told only after joining, as another failure, or not at all.
#[test]
fn settings_that_cannot_work_are_told_before_anything_starts() {
    let place = Place::new();
    assert_fails(&place.start(&["ping", "alpha", "--name", "not good"]).end(), 2, "a name has");
    assert_fails(&place.start(&["ping", "alpha", "--secret", ""]).end(), 2, "the secret is empty");
    assert_fails(&place.start(&["ping", "alpha", "--bind", "192.0.2.1"]).end(), 2, "--bind");
    assert_fails(&place.start(&["nc", "-u", "alpha", "7", "--wait", "nan"]).end(), 2, "--wait");
    assert_fails(&place.start(&["signal", "serve", "--prefix", "127.0.0.0/8"]).end(), 2, "such as 127.0.0.0");
    assert_fails(&place.start(&["demo", "--capture", "-"]).end(), 2, "give the capture a file");
    assert_fails(&place.start(&["demo", "--capture", "no/folder"]).end(), 1, "cannot write the capture no/folder");
    for arguments in [
        &["--log", "unisockets=loud", "status"][..],
        &["bench", "alpha", "--round-trips", "4000000000"],
        &["signal", "serve", "--listen", "7080"],
    ] {
        assert_eq!(place.start(arguments).end().code, Some(2), "{arguments:?}");
    }
}

/// The long help once had no examples, and no command of its own had any.
#[test]
fn help_teaches_with_examples() {
    let place = Place::new();
    for command in [
        "",
        "nc",
        "ping",
        "forward",
        "expose",
        "serve",
        "send",
        "recv",
        "bench",
        "status",
        "key",
        "demo",
        "completions",
    ] {
        for help in ["-h", "--help"] {
            let arguments = [command, help].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>();
            let shown = succeeded(place.start(&arguments).end());
            assert!(shown.contains(&format!("Examples:\n  unisockets {command}")), "{arguments:?}: {shown}");
        }
    }
    assert!(succeeded(place.start(&["--help"]).end()).contains("130  interrupted"));
}

/// A demo that was killed once left both its nodes running for ever.
#[test]
fn nodes_of_a_demo_that_was_killed_end() {
    let place = Place::new();
    let mut demo = place.start(&["demo", "--json", "--bytes", "16G"]);
    place.status("beta", |status| status["peers"][0]["path"] == "direct");
    demo.kill();
    let deadline = Instant::now() + LIMIT;
    while !place.start(&["status"]).end().err.contains("no node of this user runs") {
        assert!(Instant::now() < deadline, "the nodes of the demo still run");
    }
}

/// A program that was interrupted could not be hurried up while it waited for its peer's last word.
#[test]
fn a_second_interruption_ends_at_once() {
    let (place, _signal) = network();
    fs::write(place.path("note"), "hello").unwrap();
    let silent = place.listen(&["nc", "-l", "7071", "--name", "alpha"]);
    let mut sender = place.start(&["send", "note", "alpha"]);
    silent.out.wait("the offer", |text| text.contains("note"));
    let started = Instant::now();
    while sender.child.try_wait().unwrap().is_none() {
        interrupt(&sender, "INT");
        assert!(started.elapsed() < Duration::from_secs(4), "it still waits for a silent peer");
    }
    assert_eq!(sender.end().code, Some(130));
}
