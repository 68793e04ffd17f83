//! Options of commands that run other programs, or hold their sockets.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::Common;

#[derive(Debug, Args)]
pub(in crate::cli) struct Run {
    #[command(flatten)]
    pub(in crate::cli) common: Common,
    /// Put a library before the program that carries its sockets to the network
    #[arg(long)]
    pub(in crate::cli) preload: bool,
    /// Let this machine's programs reach a port of the program: 8080:80 leads from 127.0.0.1:8080 to its port 80; may be
    /// repeated
    #[arg(long, value_name = "PORT:PORT", value_parser = parse_publish)]
    pub(in crate::cli) publish: Vec<Publish>,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    pub(in crate::cli) program: Vec<std::ffi::OsString>,
}

/// A port of this machine that leads to one on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) struct Publish {
    /// Where this machine's programs connect to.
    pub(in crate::cli) machine: SocketAddr,
    /// Where that leads.
    pub(in crate::cli) port: u16,
}

/// Reads `8080:80`, `80` for the same port, or `192.0.2.1:8080:80`.
fn parse_publish(text: &str) -> Result<Publish, String> {
    let wrong = || format!("'{text}' is no pair of ports; it looks like 8080:80, or 127.0.0.1:8080:80");
    let (machine, port) = text.rsplit_once(':').unwrap_or((text, text));
    let port = port.parse().map_err(|_| wrong())?;
    let machine = if machine.contains(':') { machine.to_owned() } else { format!("127.0.0.1:{machine}") };
    let machine: SocketAddr = machine.parse().map_err(|_| wrong())?;
    // Nobody would know which port the machine has taken for it.
    if port == 0 || machine.port() == 0 {
        return Err(format!("'{text}' names port 0, which nobody can connect to; it looks like 8080:80"));
    }
    Ok(Publish { machine, port })
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Node {
    #[command(flatten)]
    pub(in crate::cli) common: Common,
    /// Let this machine's programs reach a port on this member: 8080:80 leads from 127.0.0.1:8080 to its port 80; may be
    /// repeated
    #[arg(long, value_name = "PORT:PORT", value_parser = parse_publish)]
    pub(in crate::cli) publish: Vec<Publish>,
    /// The path of the control socket; one in the user's runtime folder by default
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) control: Option<PathBuf>,
    /// End when this process has ended and its sockets, and those of its children, have drained
    #[arg(long, value_name = "PID")]
    pub(in crate::cli) follow: Option<u32>,
    /// Stay for ten seconds more without a socket, for a program that goes into the background
    #[arg(long, hide = true)]
    pub(in crate::cli) linger: bool,
    /// Say what lets other users' programs in, and leave the terminal
    #[arg(long, hide = true)]
    pub(in crate::cli) invites: bool,
    /// Hold the device of a namespace, which standard input leads to
    #[arg(long, hide = true)]
    pub(in crate::cli) namespace: bool,
    /// Return as soon as the node is there, and leave it running
    #[arg(long)]
    pub(in crate::cli) background: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Up {
    #[command(flatten)]
    pub(in crate::cli) common: Common,
    /// Let members reach a port of this machine: 80, 80/tcp or 53/udp; may be repeated
    #[arg(long, value_name = "PORT", value_parser = crate::cli::up::parse_open)]
    pub(in crate::cli) publish: Vec<Opened>,
    /// Stay in the foreground, as services do
    #[arg(long)]
    pub(in crate::cli) foreground: bool,
}

/// A port that members may reach.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Opened(pub(in crate::cli) unisockets::Open);

/// What the first process of a namespace is given.
#[derive(Debug, Args)]
pub(in crate::cli) struct Init {
    /// The descriptor that leads to the command
    pub(in crate::cli) front: i32,
    /// The descriptor that leads to the node
    pub(in crate::cli) node: i32,
    /// The member's addresses, as JSON
    pub(in crate::cli) addresses: String,
    /// The program's name, as it was given
    pub(in crate::cli) name: std::ffi::OsString,
    /// The program's file and its arguments
    #[arg(required = true, last = true)]
    pub(in crate::cli) program: Vec<std::ffi::OsString>,
}
