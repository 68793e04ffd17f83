//! Captures, read by Wireshark's own dissectors: nothing malformed, nothing wrong, everything named.

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;

use std::path::Path;
use std::process::Command;

use support::Place;

const CHECKS: [&str; 6] =
    ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"];

/// Runs one of Wireshark's programs; what it says besides its output is a failure.
fn wireshark(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be started ({error}): run 'make setup' first"));
    let complaints = String::from_utf8_lossy(&output.stderr);
    // That it would rather not be run by root is no complaint about the capture.
    let mut complaints =
        complaints.lines().filter(|line| !line.trim().is_empty() && !line.contains("as user \"root\""));
    assert!(output.status.success() && complaints.next().is_none(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn tshark(capture: &Path, arguments: &[&str]) -> String {
    wireshark("tshark", &[&["-r", capture.to_str().unwrap()], &CHECKS[..], arguments].concat())
}

/// Every packet is legal, every checksum right, and every interface counts in nanoseconds.
fn assert_clean(capture: &Path) {
    let packets = tshark(capture, &["-T", "fields", "-e", "frame.number"]);
    assert!(packets.lines().count() >= 4, "there are packets: {packets}");
    for filter in [
        "_ws.malformed",
        "ip.checksum.status == \"Bad\" || tcp.checksum.status == \"Bad\" || udp.checksum.status == \"Bad\"",
        "_ws.expert.severity == error",
        "_ws.expert.group == \"Checksum\" || _ws.expert.group == \"Malformed\" || _ws.expert.group == \"Protocol\"",
        // Small packets whole enough for a sum have a right one, not an unchecked one.
        "tcp.len == 0 && tcp.checksum.status != \"Good\"",
    ] {
        let found = tshark(capture, &["-Y", filter]);
        assert!(found.is_empty(), "{filter}:\n{found}");
    }
    let infos = wireshark("capinfos", &["-I", capture.to_str().unwrap()]);
    let interfaces = infos.lines().find_map(|line| line.split("Number of interfaces in file:").nth(1)).unwrap();
    let interfaces: usize = interfaces.trim().parse().unwrap();
    assert!(interfaces >= 2, "loopback and at least one link:\n{infos}");
    assert_eq!(infos.matches("Time precision = nanoseconds (9)").count(), interfaces, "{infos}");
}

/// Says which address the capture names how.
fn hosts(capture: &Path) -> Vec<(String, String)> {
    let text = tshark(capture, &["-q", "-z", "hosts"]);
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|line| line.split_once('\t')).map(|(address, name)| (address.into(), name.into())).collect()
}

/// The bytes of the first TCP connection in both directions, as Wireshark puts them together.
fn follow(capture: &Path) -> [Vec<u8>; 2] {
    let text = tshark(capture, &["-q", "-z", "follow,tcp,raw,0"]);
    let mut directions = [Vec::new(), Vec::new()];
    for line in text.lines() {
        let (direction, digits) = line.strip_prefix('\t').map_or((0, line), |digits| (1, digits));
        let bytes =
            digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        if let Some(bytes) = bytes.collect::<Option<Vec<u8>>>() {
            directions[direction].extend(bytes);
        }
    }
    directions
}

#[test]
fn the_demo_writes_a_capture_that_wireshark_has_nothing_to_say_against() {
    let place = Place::new();
    let ended = place.start(&["demo", "--json", "--bytes", "8M", "--capture", "demo.pcapng"]).end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(report["ok"], true, "{report:#}");
    let capture = place.path("demo.pcapng");
    assert_clean(&capture);
    let hosts = hosts(&capture);
    for (member, name) in [(&report["alpha"], "alpha"), (&report["beta"], "beta")] {
        for address in [&member["ipv4"], &member["ipv6"]] {
            let row = (address.as_str().unwrap().to_owned(), name.to_owned());
            assert!(hosts.contains(&row), "{row:?} is not in {hosts:?}");
        }
    }
    let asked = tshark(&capture, &["-Y", "http.request.method == GET", "-N", "n", "-T", "fields", "-e", "ip.dst_host"]);
    assert_eq!(asked.trim(), "alpha", "the page was asked for over HTTP");
}

#[test]
fn both_ends_capture_the_same_conversation_and_all_its_bytes() {
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let mut server = place.listen(&["nc", "-l", "7", "--name", "alpha", "--capture", "alpha.pcapng"]);
    let mut client = place.start(&["nc", "alpha", "7", "--name", "beta", "--capture", "beta.pcapng"]);
    let (question, answer): (Vec<u8>, Vec<u8>) = ((0..=255).collect(), (0..=255).rev().cycle().take(40_000).collect());
    client.write(&question);
    server.out.wait_len(question.len());
    server.write(&answer);
    client.out.wait_len(answer.len());
    server.end_input();
    assert_eq!((client.end().code, server.end().code), (Some(0), Some(0)));
    for name in ["alpha.pcapng", "beta.pcapng"] {
        let capture = place.path(name);
        assert_clean(&capture);
        assert!(follow(&capture) == [question.clone(), answer.clone()], "{name}");
        let names: Vec<String> = hosts(&capture).into_iter().map(|(_, name)| name).collect();
        assert!(["alpha", "beta"].iter().all(|name| names.iter().any(|known| known == name)), "{names:?}");
    }
    // The checks can fail: one byte of the conversation is altered.
    let capture = place.path("beta.pcapng");
    let mut bytes = std::fs::read(&capture).unwrap();
    let at = bytes.windows(question.len()).position(|window| window == question).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&capture, bytes).unwrap();
    assert_eq!(tshark(&capture, &["-Y", "tcp.checksum.status == \"Bad\""]).lines().count(), 1);
}

#[test]
fn a_benchmark_in_full_is_clean() {
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let _server = place.listen(&["bench", "serve", "--name", "alpha"]);
    let bench = ["bench", "alpha", "--bytes", "2M", "--round-trips", "20", "--json", "--capture", "bench.pcapng"];
    let ended = place.start(&bench).end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_clean(&place.path("bench.pcapng"));
}

#[test]
fn a_dropped_packet_says_why() {
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let mut server = place.listen(&["nc", "-l", "7", "--name", "alpha", "--capture", "alpha.pcapng"]);
    let mut client = place.start(&["nc", "-u", "alpha", "9"]);
    client.write(b"is anybody there?");
    place.status("alpha", |status| status["dropped"]["no_socket"] == 1);
    drop(client);
    server.end_input();
    // Whoever listens ends after its first connection, and then the capture is whole.
    for ended in [place.start(&["nc", "alpha", "7"]).end(), server.end()] {
        assert_eq!(ended.code, Some(0), "{}", ended.err);
    }
    let capture = place.path("alpha.pcapng");
    assert_clean(&capture);
    let comments =
        tshark(&capture, &["-Y", "frame.comment", "-T", "fields", "-e", "udp.dstport", "-e", "frame.comment"]);
    assert_eq!(comments.trim(), "9\tdropped: no_socket");
}

/// Commands that print on standard output once wrote into the middle of a capture that went there.
#[test]
fn a_capture_on_standard_output_is_nothing_but_a_capture() {
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    std::fs::write(place.path("note"), "hello").unwrap();
    let _bench = place.listen(&["bench", "serve", "--name", "alpha"]);
    let _receiver = place.listen(&["recv", "home", "--yes", "--name", "beta"]);
    for (arguments, line) in [
        (&["bench", "alpha", "--bytes", "1K", "--round-trips", "1"][..], "datagrams"),
        (&["bench", "alpha", "--bytes", "1K", "--round-trips", "1", "--json"], "up_mb_per_s"),
        (&["ping", "alpha", "--count", "2", "--interval", "0.1", "--json"], "round_trip_us"),
        (&["send", "note", "beta"], "5 bytes, checked"),
    ] {
        let process = place.start(&[arguments, &["--capture", "-"]].concat());
        let (out, err) = (process.out.clone(), process.err.clone());
        assert_eq!(process.end().code, Some(0), "{arguments:?}");
        std::fs::write(place.path("out.pcapng"), out.wait_len(1)).unwrap();
        assert_clean(&place.path("out.pcapng"));
        assert!(err.wait("the line", |text| text.contains(line)).contains(line), "{arguments:?}");
    }
}
