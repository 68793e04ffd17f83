//! Requests to a node, and its answers.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The address family that a program asked for with `socket(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6; IPv4 addresses appear as `::ffff:a.b.c.d`.
    V6,
}

/// The type of socket that a program asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// SOCK_STREAM.
    Tcp,
    /// SOCK_DGRAM.
    Udp,
}

/// A socket option as `setsockopt(2)` takes it, in Linux's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Option {
    /// SOL_SOCKET, IPPROTO_TCP, and so on.
    pub level: i32,
    /// SO_KEEPALIVE, TCP_NODELAY, and so on.
    pub name: i32,
    /// The value's bytes in the machine's order; 256 of them at most.
    pub value: Vec<u8>,
}

impl Option {
    /// Bytes of the longest value that is taken.
    pub const VALUE_LEN_MAX: usize = 256;

    /// Makes an option that is an `int`.
    pub fn int(level: i32, name: i32, value: i32) -> Option {
        Option { level, name, value: value.to_ne_bytes().to_vec() }
    }
}

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Who are you? Answered once the node has joined its network.
    About,
    /// Makes a socket and binds it (`bind(2)`); the answer brings its descriptor.
    Bind {
        /// Its type.
        kind: Kind,
        /// Its family.
        family: Family,
        /// Where to; port 0 takes a free one.
        address: SocketAddr,
        /// What was set on it before.
        options: Vec<Option>,
    },
    /// Lets a bound socket listen (`listen(2)`); again with another backlog as often as wished.
    Listen {
        /// The socket.
        id: u64,
        /// Connections that may wait.
        backlog: u32,
    },
    /// Starts a connection (`connect(2)`). For TCP the answer brings a descriptor, which becomes writable when the
    /// connection is there. For a bound UDP socket it names what to connect the descriptor to.
    Connect {
        /// The socket, if it was bound before.
        id: std::option::Option<u64>,
        /// Its type.
        kind: Kind,
        /// Its family.
        family: Family,
        /// Where to.
        address: SocketAddr,
        /// What was set on it before.
        options: Vec<Option>,
    },
    /// Takes the peer from a UDP socket (`connect(2)` with AF_UNSPEC).
    Disconnect {
        /// The socket.
        id: u64,
    },
    /// Takes the pending error of a socket (SO_ERROR).
    Error {
        /// The socket.
        id: u64,
    },
    /// Sets an option (`setsockopt(2)`).
    SetOption {
        /// The socket.
        id: u64,
        /// The option.
        option: Option,
    },
    /// Reads an option (`getsockopt(2)`).
    GetOption {
        /// The socket.
        id: u64,
        /// SOL_SOCKET, IPPROTO_TCP, and so on.
        level: i32,
        /// SO_KEEPALIVE, TCP_NODELAY, and so on.
        name: i32,
    },
    /// Says that a descriptor was closed, perhaps the last one of its socket.
    Closed {
        /// The socket.
        id: u64,
    },
    /// Finds the addresses of a member's name.
    Resolve {
        /// `alpha`, or `alpha.home.internal`.
        name: String,
    },
    /// Finds the name of a member's address.
    Reverse {
        /// The address.
        address: IpAddr,
    },
    /// Describes the node, as `unisockets status --json` does.
    Status,
    /// Writes every packet from now on to a file in the pcapng format; without a path, ends that.
    Capture {
        /// The file.
        path: std::option::Option<String>,
    },
    /// Ends the node once its last descriptor has drained.
    Leave,
    /// The program uses the node no more: it need not stay for it.
    Forget,
}

/// A request with what proves the right to make it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The token of an invitation; none is needed by the user who runs the node.
    #[serde(default, skip_serializing_if = "std::option::Option::is_none")]
    pub token: std::option::Option<String>,
    /// What is asked.
    pub request: Request,
}

/// A node's answer; an error carries Linux's errno.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done.
    Done(Reply),
    /// It was not.
    Failed(Fault),
}

/// What a node answers when something was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Nothing more to say; a descriptor comes along where the request says so.
    Ok,
    /// Who the node is.
    About(About),
    /// The abstract name to connect a UDP descriptor to.
    Peer {
        /// The name without its leading zero byte.
        name: String,
    },
    /// The pending error, 0 for none.
    Error {
        /// Linux's number.
        errno: i32,
    },
    /// An option's value.
    Option {
        /// Its bytes in the machine's order.
        value: Vec<u8>,
    },
    /// Addresses of a name: IPv4 first.
    Addresses {
        /// The addresses; none if nobody has the name.
        addresses: Vec<IpAddr>,
    },
    /// The name of an address.
    Name {
        /// The name, if a member has that address and a name.
        name: std::option::Option<String>,
    },
    /// A JSON object for people and programs.
    Status {
        /// The object.
        json: String,
    },
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Linux's number.
    pub errno: i32,
    /// A sentence that says what to do.
    pub text: String,
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// Its first address.
    pub address: IpAddr,
    /// Bits that count.
    pub len: u8,
}

impl Prefix {
    /// Returns whether an address is in the range; an IPv4 address in IPv6 clothes counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len.min(32))).unwrap_or(0);
                (u32::from(first) ^ u32::from(address)) & mask == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.len.min(128))).unwrap_or(0);
                (u128::from(first) ^ u128::from(address)) & mask == 0
            }
            _ => false,
        }
    }
}

/// Who a node is, and what it takes from programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Distinguishes this life of this node from every other.
    pub instance: u64,
    /// The version of the node's program.
    pub version: String,
    /// Its network's id.
    pub network: String,
    /// Its name, if it has one.
    pub name: std::option::Option<String>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// All addresses of the network.
    pub prefixes: Vec<Prefix>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_what_its_bits_say() {
        let prefix = |address: &str, len| Prefix { address: address.parse().unwrap(), len };
        let holds = |prefix: Prefix, address: &str| prefix.contains(address.parse().unwrap());
        assert!(holds(prefix("10.80.0.0", 16), "10.80.255.1"));
        assert!(holds(prefix("10.80.0.0", 16), "::ffff:10.80.0.1"));
        assert!(!holds(prefix("10.80.0.0", 16), "10.81.0.1"));
        assert!(holds(prefix("fd75:6e69:5f98::", 48), "fd75:6e69:5f98:1::1"));
        assert!(!holds(prefix("fd75:6e69:5f98::", 48), "fd75:6e69:5f99::1"));
        assert!(holds(prefix("0.0.0.0", 0), "192.0.2.1") && !holds(prefix("0.0.0.0", 0), "2001:db8::1"));
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let request = Request::Connect {
            id: Some(7),
            kind: Kind::Tcp,
            family: Family::V6,
            address: "[fd75:6e69::1]:80".parse().unwrap(),
            options: vec![Option::int(6, 1, 1)],
        };
        let text = serde_json::to_vec(&request).unwrap();
        assert_eq!(serde_json::from_slice::<Request>(&text).unwrap(), request);
        let answer = Answer::Failed(Fault { errno: 111, text: "nobody listens".into() });
        let text = serde_json::to_vec(&answer).unwrap();
        assert_eq!(serde_json::from_slice::<Answer>(&text).unwrap(), answer);
    }
}
