//! The definition of the command line: `--help`, man pages and completions all come from here.

mod programs;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use unisockets::{Config, Key};

pub(super) use programs::{Init, Node, Opened, Run, Up};

use super::exit::Failure;
use super::output::note;
use super::servers::own_server;

macro_rules! examples {
    () => {
        "Examples:
  unisockets demo                                  see it work on this machine
  unisockets signal serve                          start a signaling server
  unisockets serve 80 . --name alpha               serve this folder on the network
  unisockets forward 127.0.0.1:8080 alpha:80       make it reachable for this machine's programs
  unisockets nc -l 7 --name beta                   listen, as nc does
  unisockets nc beta 7                             connect, as nc does
  unisockets ping alpha --count 3
  unisockets ping alpha --capture - | wireshark -k -i -"
    };
}

macro_rules! exit_codes {
    () => {
        "Exit codes:
  0    done
  1    the command failed
  2    the command line is wrong
  3    the network could not be joined
  4    the other side could not be reached
  5    data arrived damaged
  126  'run': the program cannot be run
  127  'run': there is no such program
  130  interrupted"
    };
}

/// One virtual IP network for every program.
///
/// Members find each other through a signaling server and talk straight to each other over WebRTC data
/// channels. Signaling never sees their data.
#[derive(Debug, Parser)]
#[command(name = "unisockets", version, after_help = examples!(), after_long_help = concat!(examples!(), "\n\n", exit_codes!()))]
pub(super) struct Options {
    /// What to log, as in RUST_LOG: error, warn, info, debug, or unisockets=trace
    #[arg(long, global = true, env = "UNISOCKETS_LOG", default_value = "warn", value_name = "FILTER", value_parser = parse_filter)]
    pub(super) log: String,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a signaling server
    #[command(subcommand)]
    Signal(SignalCommand),
    /// Connect standard input and output to a member's port, or listen on one's own
    ///
    /// The end of standard input shuts the sending direction only; the command ends when both are shut.
    #[command(after_help = "\
Examples:
  unisockets nc -l 7 --name beta
  echo hello | unisockets nc beta 7
  unisockets nc -u beta 53")]
    Nc(Nc),
    /// Ask a member for echoes
    #[command(after_help = "\
Examples:
  unisockets ping alpha --count 3
  unisockets ping alpha --interval 0.2 --json
  unisockets ping alpha --capture - | wireshark -k -i -")]
    Ping(Ping),
    /// Listen on this machine and carry every connection to a member's port
    #[command(after_help = "\
Examples:
  unisockets forward 8080 alpha:80       # then: curl http://127.0.0.1:8080/
  unisockets forward 127.0.0.1:0 alpha:80     # any free port; the first line names it")]
    Forward(Forward),
    /// Listen on the network and carry every connection to an address of this machine
    #[command(after_help = "\
Examples:
  unisockets expose 22 127.0.0.1:22 --name box
  unisockets expose 80 8080 --name box")]
    Expose(Expose),
    /// Serve a folder's files over HTTP on the network
    ///
    /// Whoever is in the network can read all of it; symbolic links in it are followed.
    #[command(after_help = "\
Examples:
  unisockets serve 80 . --name alpha")]
    Serve(Serve),
    /// Send a file to a member that runs `recv`
    ///
    /// The file is checked with SHA-256; one that broke off goes on where it stopped.
    #[command(after_help = "\
Examples:
  unisockets send film.mkv inbox
  unisockets send film.mkv inbox --json")]
    Send(Send),
    /// Receive files from members that run `send`
    ///
    /// Nothing is ever overwritten: a name that is taken gets a number. Unfinished files end in .part.
    #[command(after_help = "\
Examples:
  unisockets recv --name inbox
  unisockets recv ~/Downloads --name inbox --yes --keep-going --max-size 2G")]
    Recv(Recv),
    /// Measure the way to a member that runs `bench serve`
    #[command(after_help = "\
Examples:
  unisockets bench serve --name target
  unisockets bench target --bytes 64M --json")]
    Bench(Bench),
    /// Show this user's running nodes: peers, paths, round trips, counters, sockets
    #[command(after_help = "\
Examples:
  unisockets status
  unisockets status alpha --json")]
    Status(Status),
    /// Show or make keys, and forget pinned ones
    #[command(after_help = "\
Examples:
  unisockets key new --network       # a secret for a network
  unisockets key new node.key
  unisockets key show alpha
  unisockets key forget \"name alpha in home\"")]
    #[command(subcommand)]
    Key(KeyCommand),
    /// Show everything at work on this machine: a server, two nodes, TCP, UDP, a capture
    ///
    /// On a terminal everything stays up until Ctrl-C.
    #[command(after_help = "\
Examples:
  unisockets demo
  unisockets demo --json --bytes 16M")]
    Demo(Demo),
    /// Run a program that knows nothing of the network, on it
    ///
    /// The program gets a network namespace of its own, whose only way out is the network: its servers are reachable
    /// under this member's name, its clients reach members by name, and nothing else is there. Exit status, signals,
    /// terminal and files are the program's own; its process numbers are those of the namespace. Needs no privilege, but
    /// user namespaces and /dev/net/tun.
    ///
    /// With --preload a library carries its sockets instead, which needs neither, for programs that are linked
    /// dynamically; what is not of the network then goes to the operating system's, unless UNISOCKETS_OTHERS is "refuse".
    #[command(after_help = "\
Examples:
  unisockets run --name web -- python3 -m http.server 80
  unisockets run -- curl http://web/
  unisockets run --preload -- curl http://web/
  unisockets run --preload --name db --publish 6379:6379 -- redis-server --protected-mode no")]
    Run(Run),
    /// Join with this machine and everything that runs on it, through a network interface
    ///
    /// Its programs reach members by address, and by name where systemd-resolved serves the machine
    /// (NAME.NETWORK.internal). Members reach only the ports that are published. Needs root or CAP_NET_ADMIN.
    #[command(after_help = "\
Examples:
  sudo unisockets up --name desk
  sudo unisockets up --name desk --publish 22 --publish 53/udp
  sudo unisockets down")]
    Up(Up),
    /// Take this machine off the network again
    Down,
    /// Start a program in its namespaces, as their first process
    #[command(hide = true)]
    Init(Init),
    /// Hold the sockets of programs that use the C library, or the preloaded one
    ///
    /// Programs find it by UNISOCKETS_NODE, which is the path of its control socket; several share one member so. The
    /// first line printed is "ready" and that path. Without UNISOCKETS_NODE each program starts a node of its own.
    #[command(after_help = "\
Examples:
  unisockets node --name alpha --control /run/user/1000/alpha.node
  UNISOCKETS_NODE=/run/user/1000/alpha.node ./my-server")]
    Node(Node),
    /// Write man pages into a folder
    #[command(hide = true)]
    Manual { directory: PathBuf },
    /// Write completions for a shell to standard output
    #[command(after_help = "\
Examples:
  unisockets completions bash > ~/.local/share/bash-completion/completions/unisockets")]
    Completions { shell: clap_complete::Shell },
}

/// The options of every command that joins a network.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network")]
pub(super) struct Common {
    /// The signaling server: ws://HOST:PORT, or wss://HOST with TLS; a private certificate is trusted if the PEM file
    /// that SSL_CERT_FILE names holds it
    #[arg(long, env = "UNISOCKETS_SIGNAL", default_value = "ws://127.0.0.1:7080", value_name = "URL")]
    pub(super) signal: String,
    /// The network's name
    #[arg(long, env = "UNISOCKETS_NETWORK", default_value = "default", value_name = "NAME")]
    pub(super) network: String,
    /// The network's secret; better given in the environment, where other users cannot see it
    #[arg(long, env = "UNISOCKETS_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub(super) secret: Option<String>,
    /// This node's name; its key and address are then kept for the next time
    #[arg(long, env = "UNISOCKETS_NAME", value_name = "NAME")]
    pub(super) name: Option<String>,
    /// The IPv4 address this node would like
    #[arg(long, env = "UNISOCKETS_IPV4", value_name = "ADDRESS")]
    pub(super) ipv4: Option<Ipv4Addr>,
    /// The file that keeps this node's key; made if it is not there
    #[arg(long, env = "UNISOCKETS_KEY", value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// Write every packet to a pcapng file; `-` is standard output
    #[arg(long, env = "UNISOCKETS_CAPTURE", value_name = "FILE")]
    pub(super) capture: Option<PathBuf>,
    /// Use relays only, so that peers do not learn this machine's addresses; needs a TURN server, of signaling's or with
    /// --ice-server
    #[arg(long, env = "UNISOCKETS_RELAY_ONLY")]
    pub(super) relay_only: bool,
    /// A STUN or TURN server besides those of signaling: stun:HOST:PORT, or turn:USER:PASSWORD@HOST:PORT; may be
    /// repeated. Better given in the environment, separated by spaces, where other users cannot see it
    #[arg(long, env = "UNISOCKETS_ICE_SERVER", hide_env_values = true, value_delimiter = ' ', value_name = "URL")]
    pub(super) ice_server: Vec<String>,
    /// A local address for links; every interface by default, or loopback if signaling is there
    #[arg(long, value_name = "ADDRESS")]
    pub(super) bind: Vec<IpAddr>,
    /// Put every link on a bad wire, each way: loss=1%,delay=20ms,jitter=5ms,reorder=1%,duplicate=1%,corrupt=1%,rate=100mbit
    #[arg(long, env = "UNISOCKETS_FAULT", value_name = "CONDITIONS")]
    pub(super) fault: Option<String>,
    /// Hold the kernel's socket buffers down, in bytes, for measuring
    #[arg(long, hide = true)]
    pub(super) socket_buffer_max: Option<usize>,
}

impl Common {
    /// Makes the settings of a node.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        if self.secret.as_deref() == Some("") {
            return Err(Failure::usage(
                "the secret is empty; give one, or unset UNISOCKETS_SECRET for a network without",
            ));
        }
        for ip in &self.bind {
            std::net::UdpSocket::bind((*ip, 0))
                .map_err(|error| Failure::usage(format!("links cannot use the address {ip} (--bind): {error}")))?;
        }
        if let Some(secret) = &self.secret
            && secret.len() < unisockets_signaling::network::SECRET_LEN_STRONG
        {
            note(
                "unisockets: this secret is short enough to be guessed; 'unisockets key new --network' makes a good one",
            );
        }
        let mut config = Config::new(self.signal.clone()).network(self.network.clone(), self.secret.clone());
        config.name = self.name.clone();
        config.ipv4 = self.ipv4;
        config.key = self.key.clone().map_or(Key::Automatic, Key::File);
        config.capture = self.capture.clone();
        config.relay_only = self.relay_only;
        config.ice_servers = self.ice_server.iter().map(|url| own_server(url)).collect::<Result<_, _>>()?;
        config.bind = self.bind.iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
        config.socket_buffer_max = self.socket_buffer_max;
        let fault = self.fault.as_ref().map(|text| text.parse::<unisockets::Conditions>()).transpose();
        config.fault = fault.map_err(Failure::usage)?;
        Ok(config)
    }

    /// Whether standard output belongs to the capture.
    pub(super) fn captures_to_stdout(&self) -> bool {
        self.capture.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum SignalCommand {
    /// Serve until interrupted; the first line printed is the server's URL
    ///
    /// Examples:
    ///   unisockets signal serve
    ///   unisockets signal serve --listen 0.0.0.0:7080 --host signal.example --data /var/lib/unisockets/leases
    ///   unisockets signal serve --listen [::]:443 --host signal.example --tls-cert cert.pem --tls-key key.pem
    #[command(verbatim_doc_comment)]
    Serve(SignalServe),
}

#[derive(Debug, Args)]
pub(super) struct SignalServe {
    /// Where to listen; the same port answers STUN on UDP
    #[arg(long, default_value = "127.0.0.1:7080", value_name = "ADDRESS", value_parser = parse_listen)]
    pub(super) listen: SocketAddr,
    /// The file that keeps leases and the server's key
    #[arg(long, value_name = "FILE")]
    pub(super) data: Option<PathBuf>,
    /// A name of this server, as in members' URLs, with any port if none is given; may be repeated. Needed behind a
    /// proxy and for DNS names; without it: its addresses at its port, the machine's name, and localhost on loopback
    #[arg(long, value_name = "NAME")]
    pub(super) host: Vec<String>,
    /// Let networks without a secret in, also when not on loopback
    #[arg(long)]
    pub(super) open: bool,
    /// Serve wss with this certificate, a PEM file; its authorities may follow it
    #[arg(long, value_name = "FILE")]
    pub(super) tls_cert: Option<PathBuf>,
    /// The certificate's key, a PEM file without a passphrase
    #[arg(long, value_name = "FILE")]
    pub(super) tls_key: Option<PathBuf>,
    /// A STUN or TURN server to tell members: stun:HOST:PORT, or turn:USER:PASSWORD@HOST:PORT; may be repeated
    #[arg(long, env = "UNISOCKETS_ICE_SERVER", hide_env_values = true, value_delimiter = ' ', value_name = "URL")]
    pub(super) ice_server: Vec<String>,
    /// The prefix that IPv4 addresses are leased from
    #[arg(long, default_value = "10.80.0.0/16", value_name = "PREFIX")]
    pub(super) prefix: String,
    /// The folder of the page that browsers get at /; without it the one that 'make page' has built, if it has
    #[arg(long, value_name = "FOLDER")]
    pub(super) page: Option<PathBuf>,
    /// Where the page shows members' pages, each at a name of its own, such as https://*.members.signal.example for
    /// https://signal.example, with the port if it is not the usual one; on this machine that is *.unisockets.localhost
    #[arg(long, value_name = "ORIGIN")]
    pub(super) frame_origin: Option<String>,
    /// Print the URL as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Nc {
    /// Listen instead of connecting
    #[arg(short, long)]
    pub(super) listen: bool,
    /// UDP instead of TCP
    #[arg(short, long)]
    pub(super) udp: bool,
    /// With UDP: end so many seconds after standard input has ended
    #[arg(short = 'w', long, default_value_t = 1.0, value_name = "SECONDS")]
    pub(super) wait: f64,
    /// HOST PORT, or just PORT with --listen
    #[arg(required = true, num_args = 1..=2, value_name = "HOST PORT")]
    pub(super) target: Vec<String>,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Ping {
    /// A member's name or address
    pub(super) host: String,
    /// Requests to send; 0 means until interrupted
    #[arg(short, long, default_value_t = 0, value_name = "N")]
    pub(super) count: u64,
    /// Seconds between requests
    #[arg(short, long, default_value_t = 1.0, value_name = "SECONDS")]
    pub(super) interval: f64,
    /// Bytes of payload
    #[arg(short, long, default_value_t = 56, value_name = "BYTES")]
    pub(super) size: usize,
    /// Print one JSON object for each echo
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Forward {
    /// Where to listen on this machine: [ADDRESS:]PORT
    pub(super) local: String,
    /// Where to carry connections to: HOST:PORT
    pub(super) target: String,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Expose {
    /// The port on the network
    pub(super) port: u16,
    /// Where to carry connections to on this machine: ADDRESS:PORT or PORT
    pub(super) target: String,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The port on the network
    pub(super) port: u16,
    /// The folder
    pub(super) directory: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Send {
    /// The file
    pub(super) file: PathBuf,
    /// A member's name or address
    pub(super) host: String,
    /// Print the outcome as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Recv {
    /// The folder to receive into
    #[arg(default_value = ".")]
    pub(super) directory: PathBuf,
    /// Take files without asking
    #[arg(short, long)]
    pub(super) yes: bool,
    /// Go on after the first file
    #[arg(short, long)]
    pub(super) keep_going: bool,
    /// Largest file to take, in bytes; K, M and G are understood
    #[arg(long, default_value = "16G", value_name = "SIZE", value_parser = parse_size)]
    pub(super) max_size: u64,
    /// Print one JSON object for each file
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// A member that runs `bench serve`, or `serve` to be one
    pub(super) host: String,
    /// Bytes in each direction; K, M and G are understood
    #[arg(long, default_value = "256M", value_name = "SIZE", value_parser = parse_size)]
    pub(super) bytes: u64,
    /// Round trips to measure
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) round_trips: u32,
    /// Print the figures as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// The node with this name only
    pub(super) name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Show the public key of a node's key file
    Show {
        /// The file, or the name of a node of this user
        key: String,
        /// The node's network, when it is given by name
        #[arg(long, env = "UNISOCKETS_NETWORK", default_value = "default")]
        network: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a key file, or a secret for a network
    New {
        /// The file to make
        #[arg(required_unless_present = "network")]
        file: Option<PathBuf>,
        /// Print a new secret for a network instead
        #[arg(long, conflicts_with = "file")]
        network: bool,
    },
    /// Forget the key pinned to a server, a name or an address, because its change is meant
    Forget {
        /// What the error named, such as "name alpha in home"
        subject: String,
        /// The node whose pins are meant; all of this user's by default
        #[arg(long)]
        name: Option<String>,
        /// The node's key file, where it was given one: its pins lie beside it
        #[arg(long, value_name = "FILE", conflicts_with = "name")]
        key: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Print one JSON object and exit
    #[arg(long)]
    pub(super) json: bool,
    /// Bytes in each direction; K, M and G are understood
    #[arg(long, default_value = "256M", value_name = "SIZE", value_parser = parse_size)]
    pub(super) bytes: u64,
    /// The capture to write
    #[arg(long, default_value = "demo.pcapng", value_name = "FILE")]
    pub(super) capture: PathBuf,
    /// Which of the two nodes this process is
    #[arg(long, hide = true)]
    pub(super) role: Option<String>,
    /// The demo's own signaling server
    #[arg(long, hide = true)]
    pub(super) url: Option<String>,
}

/// Parses a number of bytes with an optional K, M or G (powers of 1,024).
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let count: Option<u64> = digits.parse().ok();
    count.and_then(|count| count.checked_mul(unit)).ok_or_else(|| "a size looks like 1000, 64K, 256M or 2G".to_owned())
}

/// Parses the address of a server.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let address = text.replace("localhost:", "127.0.0.1:");
    address.parse().map_err(|_| "it looks like 127.0.0.1:7080, 0.0.0.0:7080 or [::]:7080".to_owned())
}

/// Checks a filter of the log.
fn parse_filter(text: &str) -> Result<String, String> {
    let filter = tracing_subscriber::EnvFilter::try_new(text);
    filter.map(|_| text.to_owned()).map_err(|error| format!("{error}; it looks like info, or unisockets=debug"))
}
