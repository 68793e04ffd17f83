//! Programs that nobody changed, in namespaces behind a TUN device: `run`, and `up` for a whole machine.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Ended, LIMIT, Place, Process};

struct Net {
    place: Place,
    _signal: Process,
}

fn net() -> Net {
    let mut place = Place::new();
    let signal = place.signal(&["--listen", "127.0.0.1:0"]);
    Net { place, _signal: signal }
}

impl Net {
    fn start(&self, options: &[&str], program: &[&str]) -> Process {
        self.place.start(&[&["run"], options, &["--"], program].concat())
    }

    fn run(&self, program: &[&str]) -> Ended {
        self.start(&[], program).end()
    }

    /// Runs a client until the server that it talks to is there.
    fn until(&self, program: &[&str]) -> Ended {
        let deadline = Instant::now() + LIMIT;
        loop {
            let ended = self.run(program);
            if ended.code == Some(0) || Instant::now() > deadline {
                return ended;
            }
        }
    }
}

/// Builds a C program, linked statically.
fn static_program(place: &Place, name: &str, source: &str) -> String {
    let (file, program) = (place.path(&format!("{name}.c")), place.path(name));
    std::fs::write(&file, source).unwrap();
    let built = Command::new("cc").args(["-O1", "-static", "-o"]).arg(&program).arg(&file).status().unwrap();
    assert!(built.success());
    program.to_str().unwrap().to_owned()
}

#[test]
fn two_programs_find_each_other_by_name_and_see_nothing_else() {
    let net = net();
    std::fs::write(net.place.path("page"), "hello from a namespace").unwrap();
    let _server = net.start(&["--name", "web"], &["python3", "-m", "http.server", "80", "--bind", "::"]);
    let page = net.until(&["curl", "-sS", "--max-time", "20", "http://web/page"]);
    assert_eq!(page.out, "hello from a namespace", "{page:?}");
    let six = net.run(&["curl", "-6", "-sS", "--max-time", "20", "http://web.default.internal/page"]);
    assert_eq!(six.out, "hello from a namespace", "{six:?}");
    let port = net.place.url.rsplit(':').next().unwrap().trim_end_matches(|c: char| !c.is_ascii_digit()).to_owned();
    let outside = net.run(&["curl", "-sS", "--max-time", "5", &format!("http://127.0.0.1:{port}/")]);
    assert_eq!(outside.code, Some(7), "the machine's own loopback is another one: {outside:?}");
    let nobody = net.run(&["curl", "-sS", "--max-time", "20", "http://nobody/"]);
    assert_eq!(nobody.code, Some(6), "{nobody:?}");
    let began = Instant::now();
    let empty = net.run(&["curl", "-sS", "--max-time", "25", "http://10.80.99.99/"]);
    assert_eq!(empty.code, Some(7), "{empty:?}");
    assert!(began.elapsed() < Duration::from_secs(25), "an address that nobody has is told as such");
}

#[test]
fn status_signals_and_input_pass_through_and_bad_programs_are_named() {
    let net = net();
    assert_eq!(net.run(&["sh", "-c", "exit 7"]).code, Some(7));
    let mut cat = net.start(&[], &["cat"]);
    cat.write(b"through");
    assert_eq!(cat.end().out, "through");
    let trap =
        net.start(&[], &["sh", "-c", "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done"]);
    trap.out.wait("the program", |text| text.contains("ready"));
    trap.terminate();
    let ended = trap.end();
    assert_eq!((ended.code, ended.out.as_str()), (Some(3), "ready\ngot it\n"), "{ended:?}");
    let killed = net.run(&["sh", "-c", "kill -KILL $$"]);
    assert_eq!(killed.code, None, "it ends by the signal that ended the program: {killed:?}");
    // Whoever started it may not want to hear of its children.
    for way in [&["run"][..], &["run", "--preload"]] {
        let start = ["env", "--ignore-signal=CHLD", env!("CARGO_BIN_EXE_unisockets")];
        let deaf = net.place.start_other(&[&start[..], way, &["--", "sh", "-c", "exit 7"]].concat()).end();
        assert_eq!(deaf.code, Some(7), "{deaf:?}");
    }
    let missing = net.run(&["no-such-program"]);
    assert!(missing.code == Some(127) && missing.err.contains("no-such-program"), "{missing:?}");
    std::fs::write(net.place.path("text"), "no program").unwrap();
    let unusable = net.run(&["./text"]);
    assert_eq!(unusable.code, Some(126), "{unusable:?}");
}

/// A terminal is the program's as if nothing stood before it: its size, its lines, its end, and its keys.
/// What every shell runs.
#[test]
fn a_script_that_does_not_say_by_whom_it_is_run_is_the_shells() {
    let net = net();
    let script = net.place.path("script");
    std::fs::write(&script, "echo \"said $1\"; exit 3").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ended = net.run(&[script.to_str().unwrap(), "it"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(3), "said it\n"), "{ended:?}");
}

#[test]
fn a_terminal_passes_through() {
    let net = net();
    let tool = env!("CARGO_BIN_EXE_unisockets");
    let program = "trap 'echo interrupted; exit 5' INT; test -t 0 && test -t 1 && test -t 2 && tty && stty size && \
                   read line && echo \"had $line\" && { read more || echo ended; } && echo ready; \
                   while :; do sleep 0.1; done";
    std::fs::write(net.place.path("program"), program).unwrap();
    for way in ["", "--preload "] {
        if way.is_empty() {
            // The first time, what is slow is done before anything is typed.
            assert_eq!(net.run(&["true"]).code, Some(0));
        }
        let command = format!("stty rows 31 cols 97 -echo; exec {tool} run {way}-- sh ./program");
        // Whoever runs the tests in the background has these signals ignored, and a shell cannot trap what is.
        let heard = ["env", "--default-signal=INT,QUIT", "script", "-qefc", &command, "/dev/null"];
        let mut terminal = net.place.start_other(&heard);
        terminal.out.wait("the terminal's size", |text| text.contains("/dev/pts/") && text.contains("31 97"));
        terminal.write(b"a line\n");
        terminal.out.wait("the line", |text| text.contains("had a line"));
        terminal.write(b"\x04");
        terminal.out.wait("the end of the input", |text| text.contains("ended") && text.contains("ready"));
        terminal.write(b"\x03");
        // The end of its own input would reach the terminal as one more key.
        terminal.out.wait("the program's last word", |text| text.contains("interrupted"));
        let ended = terminal.end();
        assert_eq!(ended.code, Some(5), "{ended:?}");
        assert_eq!(ended.out.matches("interrupted").count(), 1, "{ended:?}");
    }
}

/// Returns the command lines of all processes that have a file open.
fn holders(file: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let holds = |process: &PathBuf| {
        let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        open.map(|entry| entry.path()).any(|open| std::fs::read_link(open).is_ok_and(|to| to == file))
    };
    let line = |process: PathBuf| std::fs::read(process.join("cmdline")).unwrap_or_default();
    processes.filter(holds).map(|process| String::from_utf8_lossy(&line(process)).replace('\0', " ")).collect()
}

/// A lock that a program was started with is held for as long as it runs, not for as long as its node delivers; and
/// signals that programs use among themselves reach it.
#[test]
fn what_a_program_inherits_is_its_own() {
    let net = net();
    let tool = env!("CARGO_BIN_EXE_unisockets");
    let program = "trap 'echo alarm' ALRM; echo ready; while :; do sleep 0.1; done";
    for way in [&[][..], &["--preload"]] {
        let opened = ["sh", "-c", "exec 9>held; exec \"$@\"", "sh", tool, "run"];
        let running = net.place.start_other(&[&opened[..], way, &["--", "sh", "-c", program]].concat());
        running.out.wait("the program", |text| text.contains("ready"));
        let holders = holders(&net.place.path("held").canonicalize().unwrap());
        assert!(holders.iter().any(|line| line.starts_with("sh -c trap")), "{way:?}: {holders:?}");
        let others = [format!("{tool} node"), format!("{tool} init")];
        assert!(!holders.iter().any(|line| others.iter().any(|other| line.starts_with(other))), "{way:?}: {holders:?}");
        running.signal(rustix::process::Signal::ALARM);
        running.out.wait("the signal", |text| text.contains("alarm"));
    }
}

/// What is written last arrives though the program is gone at once, and nothing stays behind.
/// What the name server inside says to questions of every kind, and to what is none.
#[test]
fn every_question_for_a_name_is_answered() {
    let net = net();
    let script = r#"
import socket, struct
def ask(name, kind, more=b'', count=0):
    labels = b''.join(bytes([len(part)]) + part.encode() for part in name.split('.')) + b'\0'
    question = labels + struct.pack('>HH', kind, 1)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(20)
    s.sendto(struct.pack('>HHHHHH', 7, 0x0100, 1, 0, 0, count) + question + more, ('127.0.0.53', 53))
    reply = s.recv(4096)
    id, flags, _, answers, _, additional = struct.unpack('>HHHHHH', reply[:12])
    assert id == 7 and flags & 0x8100 == 0x8100, reply
    assert flags & 15 == 1 or reply[12:12 + len(question)] == question, reply
    return flags & 15, answers, additional
own = socket.gethostbyname('web')
back = '.'.join(reversed(own.split('.'))) + '.in-addr.arpa'
print(ask('web', 1), ask('web', 28), ask('WEB.default.internal', 255))
# Types that nobody here has a record of, the newer and the unknown ones among them.
print(ask('web', 16), ask('web', 52), ask('web', 44), ask('web', 65280))
# Names that are nobody's, and those that no member can have.
print(ask('nobody', 1), ask('nobody', 52), ask('www.example.com', 1), ask('1.1.1.1.in-addr.arpa', 12))
print(ask(back, 12), ask(back, 1))
# EDNS is answered with EDNS, and what is none of it as a mistake.
print(ask('web', 1, b'\0\0\x29\x10\0\0\0\0\0\0\0', 1), ask('web', 1, b'\0\0\x29', 1))
"#;
    std::fs::write(net.place.path("ask.py"), script).unwrap();
    let said = net.start(&["--name", "web"], &["python3", "ask.py"]).end();
    let wanted = "(0, 1, 0) (0, 1, 0) (0, 2, 0)\n(0, 0, 0) (0, 0, 0) (0, 0, 0) (0, 0, 0)\n\
                  (3, 0, 0) (3, 0, 0) (3, 0, 0) (3, 0, 0)\n(0, 1, 0) (0, 0, 0)\n(0, 1, 1) (1, 0, 0)\n";
    assert_eq!(said.out, wanted, "{said:?}");
}

#[test]
fn a_static_program_that_ends_right_after_a_write_loses_nothing() {
    let net = net();
    let burst = static_program(
        &net.place,
        "burst",
        r#"
        #include <arpa/inet.h>
        #include <netinet/in.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/socket.h>
        #include <unistd.h>
        #include <signal.h>
        int main(int argc, char **argv) {
            struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9000)};
            inet_pton(AF_INET, argv[1], &to.sin_addr);
            int s = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(s, (struct sockaddr *)&to, sizeof to)) return 1;
            static char data[300000];
            memset(data, 'x', sizeof data);
            size_t sent = 0;
            while (sent < sizeof data) {
                ssize_t n = write(s, data + sent, sizeof data - sent);
                if (n < 0) return 2;
                sent += n;
            }
            raise(SIGKILL);
        }
        "#,
    );
    let server = net.start(&["--name", "sink"], &["socat", "-u", "tcp-listen:9000,reuseaddr", "stdio"]);
    let found = net.until(&["getent", "ahostsv4", "sink"]);
    let address = found.out.split_whitespace().next().unwrap().to_owned();
    net.place.status("sink", |status| status["name"] == "sink");
    let ended = net.until_killed(&[&burst, &address]);
    assert_eq!(ended.code, None, "{ended:?}");
    let received = server.end();
    assert_eq!(received.out.len(), 300_000);
}

impl Net {
    /// Runs a program that ends by a signal once its server is there.
    fn until_killed(&self, program: &[&str]) -> Ended {
        let deadline = Instant::now() + LIMIT;
        loop {
            let ended = self.run(program);
            if ended.code != Some(1) || Instant::now() > deadline {
                return ended;
            }
        }
    }
}

#[test]
fn a_published_port_leads_to_the_program() {
    let net = net();
    std::fs::write(net.place.path("page"), "published").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publish = format!("{port}:80");
    let server = net.start(&["--name", "web", "--publish", &publish], &["python3", "-m", "http.server", "80"]);
    net.until(&["curl", "-sS", "http://web/page"]);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.ends_with("published"), "{page}");
    // Nothing runs where the port is somebody's already.
    let taken = net.place.start(&["run", "--publish", &publish, "--", "echo", "it ran"]).end();
    assert_eq!((taken.code, taken.out.as_str()), (Some(1), ""), "{taken:?}");
    assert!(taken.err.contains("that port is in use"), "{taken:?}");
    drop(server);
}

/// A device is one queue for all peers: one that takes nothing must not stop what goes to another.
#[test]
fn a_stalled_peer_does_not_stop_another() {
    let net = net();
    let sink = ["socat", "-u", "tcp-listen:9000,reuseaddr,fork", "open:/dev/null"];
    let _stalled = net.start(&["--name", "stalled"], &sink);
    let good = net.start(&["--name", "good"], &["socat", "-u", "tcp-listen:9000,reuseaddr", "stdio"]);
    for name in ["stalled", "good"] {
        assert_eq!(net.until(&["getent", "hosts", name]).code, Some(0));
    }
    let script = "
        echo x | socat -u stdio tcp:stalled:9000 || exit 1
        (dd if=/dev/zero bs=64k count=100000 2>/dev/null | socat -u stdio tcp:stalled:9000 2>/dev/null) &
        read go
        dd if=/dev/zero bs=64k count=160 2>/dev/null | socat -u stdio tcp:good:9000 && echo done
        sleep 300";
    let mut client = net.start(&["--name", "client"], &["sh", "-c", script]);
    // Its node is stopped once it has received something, and then takes nothing any more.
    let received = |status: &serde_json::Value| {
        status["peers"][0]["counters"]["received_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20)
    };
    net.place.status("stalled", received);
    let url = net.place.url.clone();
    let is_its_node =
        |words: &[String]| ["--namespace", "stalled"].iter().all(|word| words.iter().any(|other| other == word));
    let nodes: Vec<u32> =
        processes("no mark", &url).filter(|(_, words)| is_its_node(words)).map(|(pid, _)| pid).collect();
    assert_eq!(nodes.len(), 1);
    let signal = |name: &str| Command::new("kill").args([name, &nodes[0].to_string()]).status().unwrap();
    assert!(signal("-STOP").success());
    client.write(b"go\n");
    // What it started in the background ends with it, when this test lets go of it.
    client.out.wait("the other transfer", |text| text.contains("done"));
    assert_eq!(good.end().out.len(), 160 * 64 * 1024);
    assert!(signal("-CONT").success());
}

/// Whichever of the three processes is killed, the others end, and so does all that the program started.
#[test]
fn nothing_is_left_when_any_part_is_killed() {
    for part in ["command", "node", "init"] {
        let net = net();
        let mark = format!("30.{}{}", std::process::id(), part.len());
        let script = format!("setsid sleep {mark} & echo started; wait");
        let process = net.start(&["--name", "victim"], &["sh", "-c", &script]);
        process.out.wait("the program", |text| text.contains("started"));
        let url = net.place.url.clone();
        let ours = |words: &[String]| match part {
            "command" => words.iter().any(|word| word == "run"),
            "node" => words.iter().any(|word| word == "--namespace"),
            _ => words.iter().any(|word| word == "init"),
        };
        let victims: Vec<u32> = processes(&mark, &url).filter(|(_, words)| ours(words)).map(|(pid, _)| pid).collect();
        assert_eq!(victims.len(), 1, "{part}");
        assert!(Command::new("kill").args(["-KILL", &victims[0].to_string()]).status().unwrap().success());
        let deadline = Instant::now() + LIMIT;
        while processes(&mark, &url).next().is_some() {
            assert!(Instant::now() < deadline, "{part} was killed and something is left");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// All processes of one `run`: those with a mark in their command line, and the tool's with the URL in their environment.
fn processes(mark: &str, url: &str) -> impl Iterator<Item = (u32, Vec<String>)> {
    let (mark, url) = (mark.to_owned(), format!("UNISOCKETS_SIGNAL={url}"));
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let read = |name: &str| {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>()
        };
        let words = read("cmdline");
        let is_tool = words.first().is_some_and(|word| word.ends_with("unisockets"));
        let ours = is_tool && read("environ").contains(&url) && !words.iter().any(|word| word == "serve");
        (words.iter().any(|word| word.contains(&mark)) || ours).then_some((pid, words))
    })
}

/// A user without any right, where the device is open to all, and where it is not.
#[test]
fn an_ordinary_user_needs_no_right_but_an_open_device() {
    if !rustix::process::geteuid().is_root() {
        // Then every other test of this file is this one.
        return;
    }
    let mut net = net();
    // The tool may be where only root can go.
    let tool = net.place.path("unisockets");
    std::fs::copy(env!("CARGO_BIN_EXE_unisockets"), &tool).unwrap();
    let tool = tool.to_str().unwrap().to_owned();
    let started = |net: &Net, options: &[&str], program: &[&str]| {
        net.place.start_other(&[&[tool.as_str(), "run"], options, &["--"], program].concat())
    };
    net.place.prefix = support::as_ordinary_user("0600");
    let refused = started(&net, &[], &["true"]).end();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("chmod 0666 /dev/net/tun") && refused.err.contains("--preload"), "{refused:?}");
    net.place.prefix = support::as_ordinary_user("0666");
    let _server = started(&net, &["--name", "web"], &["python3", "-m", "http.server", "80"]);
    let deadline = Instant::now() + LIMIT;
    loop {
        let ended = started(&net, &[], &["curl", "-sS", "http://web/"]).end();
        if ended.code == Some(0) {
            break;
        }
        assert!(Instant::now() < deadline, "{ended:?}");
    }
    let rights = started(&net, &[], &["sh", "-c", "id -u; grep -c 'CapEff:.0000000000000000' /proc/self/status"]).end();
    assert_eq!(rights.out, "65534\n1\n", "{rights:?}");
}

#[test]
fn a_device_that_is_taken_away_ends_the_command() {
    let (_machine, net) = machine();
    let up = net.place.start(&["up", "--foreground", "--name", "desk"]);
    up.out.wait("the network", |text| text.starts_with("up as desk: "));
    let taken = net.place.start_other(&["ip", "link", "del", "unisockets0"]).end();
    assert_eq!(taken.code, Some(0), "{taken:?}");
    let ended = up.end();
    assert!(ended.code == Some(1) && ended.err.contains("somebody took it away"), "{ended:?}");
}

/// The whole machine, which here is a network namespace: only what is published can be reached.
#[test]
fn a_machine_joins_and_only_what_it_publishes_is_reachable() {
    let (_machine, net) = machine();
    std::fs::write(net.place.path("page"), "from the machine").unwrap();
    let down = net.place.start(&["down"]).end();
    assert!(down.code == Some(1) && down.err.contains("unisockets up"), "{down:?}");
    let up = net.place.start(&["up", "--name", "desk", "--publish", "8000", "--publish", "8000/udp"]).end();
    assert!(up.code == Some(0) && up.out.starts_with("up as desk: 10.80."), "{up:?}");
    let again = net.place.start(&["up"]).end();
    assert!(again.code == Some(1) && again.err.contains("unisockets down"), "{again:?}");
    let servers = ["8000", "8001"].map(|port| net.place.start_other(&["python3", "-m", "http.server", port]));
    let page = net.until(&["curl", "-sS", "--max-time", "20", "http://desk:8000/page"]);
    assert_eq!(page.out, "from the machine", "{page:?}");
    let closed = net.run(&["curl", "-sS", "--max-time", "20", "http://desk:8001/page"]);
    assert_eq!(closed.code, Some(7), "what is not published is refused: {closed:?}");
    // The same for datagrams, of which one port is published: two servers say which they are.
    let server = "import socket, sys; at = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); \
                  at.bind(('::', int(sys.argv[1]))); print('bound', flush=True)\n\
                  while True: said, who = at.recvfrom(99); at.sendto(said + b' at ' + sys.argv[1].encode(), who)";
    let datagrams = ["8000", "8001"].map(|port| {
        let server = net.place.start_other(&["python3", "-c", server, port]);
        server.out.wait("a datagram socket", |text| text.contains("bound"));
        server
    });
    for (way, answers) in [("UDP4:desk:8000", true), ("UDP6:desk:8000", true), ("UDP4:desk:8001", false)] {
        let ask = format!(
            "for _ in 1 2 3 4 5; do got=$(echo -n asked | timeout 5 socat -t 1 - {way} 2>/dev/null); \
             [ \"$got\" ] && break; done; echo \"$got\""
        );
        let said = net.run(&["sh", "-c", &ask]);
        let wanted = if answers { "asked at 8000\n" } else { "\n" };
        assert_eq!(said.out, wanted, "{way}: {said:?}");
    }
    drop(datagrams);
    // The machine's own programs reach members, and get their answers.
    let _web = net.start(&["--name", "web"], &["python3", "-m", "http.server", "80"]);
    net.until(&["curl", "-sS", "http://web/page"]);
    let address = net.run(&["getent", "ahostsv4", "web"]).out.split_whitespace().next().unwrap().to_owned();
    let from_machine = net.place.start_other(&["curl", "-sS", "--max-time", "20", &format!("http://{address}/page")]);
    let from_machine = from_machine.end();
    assert_eq!(from_machine.out, "from the machine", "{from_machine:?}");
    let down = net.place.start(&["down"]).end();
    assert_eq!(down.code, Some(0), "{down:?}");
    let left = net.place.start_other(&["ip", "-br", "link"]).end();
    assert!(!left.out.contains("unisockets0"), "{left:?}");
    drop(servers);
}

/// Makes one, with a signaling server in it.
fn machine() -> (Machine, Net) {
    let machine = Machine(Command::new("unshare").args(["-n", "sleep", "120"]).spawn().expect("unshare starts"));
    let mut place = Place::new();
    std::thread::park_timeout(Duration::from_millis(300));
    place.prefix = ["nsenter", "-t", &machine.0.id().to_string(), "-n"].map(str::to_owned).to_vec();
    assert_eq!(place.start_other(&["ip", "link", "set", "lo", "up"]).end().code, Some(0));
    let signal = place.signal(&["--listen", "127.0.0.1:0"]);
    (machine, Net { place, _signal: signal })
}

/// A network namespace in the place of a machine; its node ends with it, however the test ends.
struct Machine(std::process::Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let tool = env!("CARGO_BIN_EXE_unisockets");
        let target = self.0.id().to_string();
        let _ = Command::new("nsenter").args(["-t", &target, "-n", tool, "down"]).output();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
