//! The commands, as people and scripts run them: processes, pipes, exit codes, signals.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

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
    receiver.err.wait("the receiver notices", |text| text.contains("did not send a whole file"));
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
