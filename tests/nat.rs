//! Two members, each behind a router of its own that translates addresses: signaling alone brings them together.

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;

use std::process::Command;

use support::Place;

/// Where the signaling server is (TEST-NET-1, RFC 5737).
const SERVER: &str = "192.0.2.1:7080";
/// What a router at home does: translate what goes out, and let nothing in that nobody asked for.
const RULES: &str = "
    table ip home {
        chain translate { type nat hook postrouting priority srcnat; oifname \"wan\" masquerade; }
        chain input { type filter hook input priority filter; iifname \"wan\" ct state new drop; }
        chain forward { type filter hook forward priority filter; iifname \"wan\" ct state new drop; }
    }";

/// Says why namespaces cannot be used here, if they cannot.
fn obstacle() -> Option<String> {
    let found = |program: &str| {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
    };
    let missing = [("ip", "iproute2"), ("nft", "nftables")].into_iter().find(|(program, _)| !found(program));
    if let Some((program, package)) = missing {
        return Some(format!("'{program}' is missing: install the package {package}"));
    }
    let user = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
    (user != 0).then(|| "network namespaces need root: run the test as root".to_owned())
}

/// A public network with a server's host and two routers, each with a member's host behind it.
struct Internet {
    prefix: String,
    namespaces: Vec<String>,
}

impl Drop for Internet {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Internet {
    fn new() -> Internet {
        let mut internet = Internet { prefix: format!("us{}", std::process::id()), namespaces: Vec::new() };
        for host in ["pub", "ra", "rb", "a", "b"] {
            let namespace = internet.name(host);
            run(&["ip", "netns", "add", &namespace]);
            internet.namespaces.push(namespace);
            internet.ip(host, &["link", "set", "lo", "up"]);
        }
        internet.ip("pub", &["link", "add", "wan", "type", "bridge"]);
        internet.up("pub", "wan", "192.0.2.1/24");
        internet.home("ra", "a", 11);
        internet.home("rb", "b", 12);
        internet
    }

    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn ip(&self, host: &str, words: &[&str]) {
        run(&[&["ip", "-n", &self.name(host)], words].concat());
    }

    fn up(&self, host: &str, link: &str, address: &str) {
        self.ip(host, &["address", "add", address, "dev", link]);
        self.ip(host, &["link", "set", link, "up"]);
    }

    /// Connects a router to the public network and a member's host to the router.
    fn home(&self, router: &str, host: &str, number: u8) {
        let (public, home) = (self.name("pub"), self.name(host));
        self.ip(router, &["link", "add", "wan", "type", "veth", "peer", "name", router, "netns", &public]);
        self.ip("pub", &["link", "set", router, "master", "wan", "up"]);
        self.ip(router, &["link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", &home]);
        self.up(router, "wan", &format!("192.0.2.{number}/24"));
        self.up(router, "lan", &format!("10.{number}.0.1/24"));
        self.up(host, "lan", &format!("10.{number}.0.2/24"));
        self.ip(host, &["route", "add", "default", "via", &format!("10.{number}.0.1")]);
        let router = self.name(router);
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        run(&["ip", "netns", "exec", &router, "sh", "-c", forward]);
        run(&["ip", "netns", "exec", &router, "nft", RULES]);
    }

    /// A place whose programs run on a host.
    fn place(&self, host: &str) -> Place {
        let mut place = Place::new();
        place.prefix = ["ip", "netns", "exec", &self.name(host)].map(str::to_owned).to_vec();
        place.url = format!("ws://{SERVER}");
        place
    }

    fn reaches(&self, host: &str, address: &str) -> bool {
        let script = format!("exec 3<>/dev/tcp/{}", address.replace(':', "/"));
        let words = ["netns", "exec", &self.name(host), "timeout", "5", "bash", "-c", &script];
        Command::new("ip").args(words).output().unwrap().status.success()
    }
}

#[test]
fn members_behind_two_translating_routers_reach_each_other_with_nothing_but_signaling() {
    if let Some(obstacle) = obstacle() {
        if std::env::var_os("UNISOCKETS_SKIP_NAMESPACES").is_some() {
            return eprintln!("SKIPPED, as UNISOCKETS_SKIP_NAMESPACES wants: {obstacle}");
        }
        panic!("{obstacle}; or set UNISOCKETS_SKIP_NAMESPACES to go without this test");
    }
    let internet = Internet::new();
    let mut public = internet.place("pub");
    let _signal = public.signal(&["--listen", SERVER, "--open"]);
    assert!(internet.reaches("a", SERVER) && internet.reaches("b", SERVER), "both hosts reach the public network");
    assert!(!internet.reaches("a", "10.12.0.2:1"), "but not each other");

    let (one, other) = (internet.place("a"), internet.place("b"));
    for (name, host, peer) in [("alpha", &one, &other), ("beta", &other, &one)] {
        let mut server = host.listen(&["nc", "-l", "7", "--name", name]);
        let mut client = peer.start(&["nc", name, "7"]);
        client.write(b"through two walls");
        assert_eq!(server.out.wait_len(17), b"through two walls");
        let status = host.status(name, |status| status["peers"][0]["path"] == "direct");
        assert_eq!(status["signaling"], true, "{status:#}");
        let answer: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        server.write(&answer);
        assert!(client.out.wait_len(answer.len()) == answer, "every byte is right");
        server.end_input();
        for ended in [client.end(), server.end()] {
            assert_eq!(ended.code, Some(0), "{}", ended.err);
        }
    }
}
