//! What a server is called: it takes proofs for its own names only. No I/O.
//!
//! A proof covers the host that the member called. A server that took any host would take the proofs that a member
//! made for another server, which can ask for them and pass them on.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Longest `Host` that is looked at, in bytes: a DNS name and a port.
const HOST_LEN_MAX: usize = 253 + 6;
/// The page's name on this machine. Browsers take it for loopback (RFC 6761), and it shares a site with names below it,
/// which names below `localhost` do not: at those, browsers refuse service workers as they refuse third parties'.
pub const PAGE_ON_LOOPBACK: &str = "unisockets.localhost";
/// Ports that go without saying, for `ws` and `wss`.
const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// What a connection calls this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// One of its names, with the port if the member gave one, as written.
    Known(String),
    /// Something else.
    Unknown,
}

/// A name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    name: Name,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Ip(IpAddr),
    /// In lower case, without a dot at the end.
    Dns(String),
}

/// A text that is no host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadHost(String);

impl fmt::Display for BadHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is no host; it looks like signal.example, 192.0.2.1 or [2001:db8::1], perhaps with :PORT",
            self.0
        )
    }
}

impl std::error::Error for BadHost {}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Name::Ip(ip) => write!(f, "{ip}"),
            Name::Dns(name) => f.write_str(name),
        }?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for HostName {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        let bad = || BadHost(text.chars().take(HOST_LEN_MAX).collect());
        if text.len() > HOST_LEN_MAX {
            return Err(bad());
        }
        if let Ok(ip) = text.parse() {
            return Ok(HostName { name: Name::ip(ip), port: None });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, Some(port.parse().map_err(|_| bad())?)),
            _ => (text, None),
        };
        let bracketed = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let name = match (bracketed, name.parse()) {
            (Some(inside), _) => Name::ip(IpAddr::V6(inside.parse().map_err(|_| bad())?)),
            (None, Ok(ip @ IpAddr::V4(_))) => Name::Ip(ip),
            (None, _) => Name::dns(name).ok_or_else(bad)?,
        };
        Ok(HostName { name, port })
    }
}

impl Name {
    fn ip(ip: IpAddr) -> Name {
        Name::Ip(ip.to_canonical())
    }

    fn dns(name: &str) -> Option<Name> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        (!name.is_empty() && name.bytes().all(is_part)).then_some(Name::Dns(name))
    }
}

impl HostName {
    /// Returns the port, if one was given.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    fn has_port(&self, port: u16) -> bool {
        self.port.map_or_else(|| DEFAULT_PORTS.contains(&port), |own| own == port)
    }
}

/// The names of a server.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    /// What the operator has named; if anything, nothing else counts.
    named: Vec<HostName>,
    machine: Option<Name>,
}

impl Hosts {
    /// Takes the operator's names and the machine's.
    pub fn new(named: Vec<HostName>, machine: Option<&str>) -> Self {
        Self { named, machine: machine.and_then(Name::dns) }
    }

    /// Says whether a `Host` header names this server; `local` is the server's end of the connection.
    ///
    /// A proof for `localhost` is good for a connection on loopback only: everybody has a `localhost`.
    pub fn check(&self, header: &str, local: SocketAddr) -> Host {
        let knows = |called: &HostName| {
            if self.named.is_empty() {
                return called.has_port(local.port()) && self.is_own(&called.name, local.ip().to_canonical());
            }
            let port_fits = |own: &HostName| match (own.port, called.port) {
                (None, _) => true,
                (Some(port), _) => called.has_port(port),
            };
            self.named.iter().any(|own| own.name == called.name && port_fits(own))
        };
        match header.parse::<HostName>() {
            Ok(called) if knows(&called) => Host::Known(header.to_owned()),
            _ => Host::Unknown,
        }
    }

    fn is_own(&self, called: &Name, local: IpAddr) -> bool {
        match called {
            // Connecting to "any address" leads to loopback.
            Name::Ip(ip) => *ip == local || (ip.is_unspecified() && local.is_loopback()),
            Name::Dns(name) if name == "localhost" || name == PAGE_ON_LOOPBACK => local.is_loopback(),
            name => self.machine.as_ref() == Some(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(named: &[&str]) -> Hosts {
        Hosts::new(named.iter().map(|name| name.parse().unwrap()).collect(), Some("Shed"))
    }

    fn knows(hosts: &Hosts, called: &str, local: &str) -> bool {
        hosts.check(called, local.parse().unwrap()) == Host::Known(called.to_owned())
    }

    #[test]
    fn a_server_without_names_knows_its_end_of_the_connection_and_the_machine() {
        let hosts = hosts(&[]);
        for (called, local) in [
            ("192.0.2.1:7080", "192.0.2.1:7080"),
            ("192.0.2.1:7080", "[::ffff:192.0.2.1]:7080"),
            ("[2001:db8::1]:7080", "[2001:db8::1]:7080"),
            ("127.0.0.1:7080", "127.0.0.1:7080"),
            ("localhost:7080", "127.0.0.1:7080"),
            ("localhost:7080", "[::1]:7080"),
            ("unisockets.localhost:7080", "127.0.0.1:7080"),
            ("0.0.0.0:7080", "127.0.0.1:7080"),
            ("shed:7080", "192.0.2.1:7080"),
            ("SHED.", "192.0.2.1:443"),
            ("192.0.2.1", "192.0.2.1:80"),
        ] {
            assert!(knows(&hosts, called, local), "{called} at {local}");
        }
    }

    /// Any host was once taken: whoever got a member to connect to another server could be that member here.
    #[test]
    fn a_server_without_names_knows_nothing_else() {
        let hosts = hosts(&[]);
        for (called, local) in [
            ("", "192.0.2.1:7080"),
            ("evil.example:7080", "192.0.2.1:7080"),
            ("192.0.2.2:7080", "192.0.2.1:7080"),
            ("192.0.2.1:7081", "192.0.2.1:7080"),
            ("192.0.2.1", "192.0.2.1:7080"),
            ("localhost:7080", "192.0.2.1:7080"),
            ("unisockets.localhost:7080", "192.0.2.1:7080"),
            ("other.localhost:7080", "127.0.0.1:7080"),
            ("127.0.0.1:7080", "192.0.2.1:7080"),
            ("0.0.0.0:7080", "192.0.2.1:7080"),
            ("shed.evil.example:7080", "192.0.2.1:7080"),
            ("192.0.2.1:7080:7080", "192.0.2.1:7080"),
            ("[192.0.2.1]:7080", "192.0.2.1:7080"),
            ("shed:70800", "192.0.2.1:7080"),
        ] {
            assert_eq!(hosts.check(called, local.parse().unwrap()), Host::Unknown, "{called} at {local}");
        }
        let long = format!("{}:7080", "a".repeat(HOST_LEN_MAX));
        assert_eq!(hosts.check(&long, "192.0.2.1:7080".parse().unwrap()), Host::Unknown);
    }

    #[test]
    fn names_of_the_operator_are_the_only_ones_with_any_port_or_their_own() {
        let hosts = hosts(&["Signal.Example", "proxy.example:443", "[2001:db8::1]"]);
        let local = "127.0.0.1:7080";
        for called in ["signal.example", "signal.example:9", "proxy.example:443", "proxy.example", "[2001:db8::1]:7080"]
        {
            assert!(knows(&hosts, called, local), "{called}");
        }
        for called in ["127.0.0.1:7080", "localhost:7080", "shed:7080", "proxy.example:7080", "example"] {
            assert!(!knows(&hosts, called, local), "{called}");
        }
    }

    #[test]
    fn a_text_that_is_no_host_is_refused_with_a_sentence() {
        for text in ["", ":80", "a b", "ws://signal.example", "[::1", "a:b", "signal.example:", "a/b", "1:2:3"] {
            assert!(text.parse::<HostName>().unwrap_err().to_string().contains("it looks like"), "{text}");
        }
    }
}
