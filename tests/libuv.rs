//! libuv's own suite on the network: what its authors expect of sockets, in the namespace and through the descriptors.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;
#[path = "support/preload.rs"]
mod with;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::Place;

/// Runs each of its tests that has to do with sockets, and prints those that fail with what they say. The programs
/// are where an ordinary user may be: the suite refuses root.
const RUNNER: &str = r#"
ran=0 failed=0
for test in $(./uv_run_tests --list | grep -x '[a-z0-9_]*' | sort -u); do
    case $test in
    tcp*|udp*|getaddrinfo*|getnameinfo*|getsockname*|poll_*|shutdown*|connect*|ipc_*tcp*|delayed_accept|\
    multiple_listen|callback_stack|close_*|closed_*|socket_buffer_size|spawn_tcp_server|emfile|not_*|active|\
    has_ref|ip*_addr*|threadpool_cancel_get*|read*|stream*|walk*) ;;
    *) continue ;;
    esac
    case " $SKIPPED " in *" $test "*) continue ;; esac
    said=$(timeout 60 ./uv_run_tests "$test" 2>&1)
    ran=$((ran + 1))
    case $said in
    *"not ok "*) failed=$((failed + 1)); echo "$said" ;;
    *"ok 1 - "*) ;;
    *) failed=$((failed + 1)); echo "$test ended without a word: $said" ;;
    esac
done
echo "ran $ran, failed $failed"
[ "$failed" = 0 ] && [ "$ran" -gt "$WANTED" ]
"#;

/// Tests that do not hold through the descriptors, with the reason of each.
const SKIPPED: &[&str] = &[
    // Urgent data is refused (capi/README.md, "What differs").
    "tcp_oob",
    "poll_oob",
    // It lets a program connect that may open no descriptor more; a connect opens one for a moment.
    "emfile",
    // They connect to addresses outside of the network: the machine answers, not the stack.
    "tcp_close_while_connecting",
    "tcp_connect_timeout",
    // It writes until a reset comes, which on the kernel's loopback is there before any buffer is full. Here it is on its
    // way, as on a network: three of four times it comes first.
    "tcp_try_write_error",
    // It sends 32 datagrams before the receiver may look. Ten wait between program and node; then the sender is told so.
    "udp_mmsg",
    // They choose whose datagrams of a group come (IP_ADD_SOURCE_MEMBERSHIP), which is refused.
    "udp_multicast_join",
    "udp_multicast_join6",
];

/// Builds the suite's program.
fn built() -> PathBuf {
    let folder = with::preload().with_file_name("libuv");
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libuv/build");
    let made = Command::new(build).arg(&folder).output().expect("the script starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    folder.join("uv_run_tests")
}

fn suite(way: &[&str], skipped: &[&str], wanted: u32) {
    let (program, library) = (built(), with::preload().join("libunisockets_preload.so"));
    let mut place = Place::new();
    let _signal = place.signal(&["--listen", "127.0.0.1:0"]);
    let tool = PathBuf::from(env!("CARGO_BIN_EXE_unisockets"));
    for file in [program, library, tool] {
        std::fs::copy(&file, place.path(file.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        place.prefix = support::as_ordinary_user("0666");
    }
    let skipped = format!("SKIPPED={}", skipped.join(" "));
    let wanted = format!("WANTED={wanted}");
    let environment = ["env", "UNISOCKETS_LOOPBACK=inside", &skipped, &wanted, "sh", "-c", RUNNER];
    let ended = place.start_other(&[&["./unisockets", "run"], way, &["--"], &environment].concat());
    let ended = ended.end_within(Duration::from_secs(180));
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    println!("{}", ended.out);
}

/// One after the other: the suite has files of one name for all.
#[test]
fn its_suite_passes_in_the_namespace_and_through_the_descriptors() {
    suite(&[], &[], 110);
    suite(&["--preload"], SKIPPED, 105);
}
