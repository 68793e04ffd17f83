//! `up` and `down`: this machine on the network, with everything that runs on it.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net;
use unisockets::{Node, Open, Tun};

use super::exit::{Failure, sentence};
use super::interface::{self, Addresses};
use super::output::{note, print};
use super::{args, with_node};

/// Where the machine's node is asked to end. Such names belong to a network namespace, as the device does.
const CONTROL: &str = "unisockets-up";
/// How long it may take to end.
const DOWN_LIMIT: Duration = Duration::from_secs(15);

fn control() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(CONTROL)
}

/// Joins; in the background unless it is to stay.
pub(super) async fn up(options: args::Up) -> Result<(), Failure> {
    if !options.foreground {
        return background().await;
    }
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let listener = UnixListener::bind_addr(&control()?).map_err(|_| taken())?;
    listener.set_nonblocking(true)?;
    let listener = net::UnixListener::from_std(listener)?;
    let tun = Tun::create(interface::NAME).map_err(|error| no_tun(&error))?;
    let mut asked = None;
    let result = with_node(&options.common, |node| {
        let asked = &mut asked;
        async move {
            let addresses = Addresses::of(&node);
            let open = options.publish.iter().map(|open| open.0).collect();
            let attached = node.attach(tun, Some(open))?;
            interface::configure(&interface::kernel()?, &addresses).await?;
            serve_names(&node, &addresses).await;
            let advice = "'unisockets down' and 'up' again";
            tokio::spawn(interface::watch(node.clone(), addresses.clone(), advice));
            let name = node.name().map_or(String::new(), |name| format!(" as {name}"));
            print(format_args!("up{name}: {} and {} on {}", addresses.ipv4, addresses.ipv6, interface::NAME))?;
            tokio::select! {
                () = attached.ended() => return Err(Failure::failed(interface::ENDED)),
                asking = asked_to_end(&listener) => *asked = Some(asking?),
            }
            drop(attached);
            Ok(())
        }
    })
    .await;
    // Whoever asked sees the end of the connection when all is over.
    drop(asked);
    result
}

/// Why this machine's control socket cannot be had.
fn taken() -> Failure {
    match control().and_then(|address| UnixStream::connect_addr(&address)).and_then(|holder| user_of(&holder)) {
        Ok(user) if is_trusted(user) => {
            Failure::failed("this machine is on the network already; 'unisockets down' ends that")
        }
        Ok(user) => foreign(user),
        Err(error) => Failure::failed(sentence(&error)),
    }
}

fn foreign(user: u32) -> Failure {
    Failure::failed(format!("a program of user {user} holds the name of this machine's node, @{CONTROL}; end it first"))
}

fn user_of(stream: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw())
}

fn is_trusted(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

fn no_tun(error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => "'up' needs root or CAP_NET_ADMIN; 'unisockets run' needs neither",
        io::ErrorKind::NotFound => "'modprobe tun' makes it, where the kernel has it",
        io::ErrorKind::ResourceBusy => "an interface of that name is there already",
        _ => "the kernel does not give one here",
    };
    Failure::failed(format!("no TUN device {}: {error}; {advice}", interface::NAME))
}

/// Answers for names at the machine's own address, and tells the machine's resolver of it where that can be told.
async fn serve_names(node: &Node, addresses: &Addresses) {
    let place = (addresses.ipv4, 53);
    let sockets = async { io::Result::Ok((net::UdpSocket::bind(place).await?, net::TcpListener::bind(place).await?)) };
    let (udp, tcp) = match sockets.await {
        Ok(sockets) => sockets,
        Err(error) => return note(format_args!("unisockets: names are not answered at {}: {error}", addresses.ipv4)),
    };
    let serving = node.clone();
    tokio::spawn(async move { serving.serve_names(udp, tcp).await });
    let server = addresses.ipv4.to_string();
    for arguments in [["dns", interface::NAME, &server], ["domain", interface::NAME, "~internal"]] {
        let mut resolver = tokio::process::Command::new("resolvectl");
        resolver.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = resolver.status().await;
    }
}

/// Waits for somebody who may end this: the same user, or root.
async fn asked_to_end(listener: &net::UnixListener) -> io::Result<net::UnixStream> {
    loop {
        let Ok((mut asking, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if !is_trusted(asking.peer_cred()?.uid()) {
            // Nothing is waited for that anybody on the machine could keep from coming.
            let _ = asking.try_write(&[1]);
            continue;
        }
        let mut word = [0];
        // Who only looks who is here asks for nothing.
        let word = tokio::time::timeout(Duration::from_secs(1), asking.read(&mut word)).await;
        if word.is_ok_and(|read| read.is_ok_and(|len| len == 1)) {
            return Ok(asking);
        }
    }
}

/// Starts the machine's node and waits until it is there.
async fn background() -> Result<(), Failure> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).arg("--foreground").process_group(0);
    let mut node = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let (Some(stdout), Some(mut words)) = (node.stdout.take(), node.stderr.take()) else {
        return Err(Failure::failed("the node has no output"));
    };
    let mut stdout = BufReader::new(stdout);
    {
        let line = stdout.read_line(&mut said);
        tokio::pin!(line);
        let mut text = [0; 4096];
        // What it says meanwhile is passed on: it may be much, and the pipe is short.
        loop {
            tokio::select! {
                line = &mut line => {
                    line?;
                    break;
                }
                Ok(len @ 1..) = words.read(&mut text) => {
                    let _ = io::Write::write_all(&mut io::stderr(), &text[..len]);
                }
            }
        }
    }
    if !said.is_empty() {
        return print(said.trim_end());
    }
    let mut reason = Vec::new();
    let _ = words.read_to_end(&mut reason).await;
    let _ = io::Write::write_all(&mut io::stderr(), &reason);
    Err(Failure::silent(node.wait().await?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Ends the machine's node, and waits until it has left.
pub(super) fn down() -> Result<(), Failure> {
    let stream = UnixStream::connect_addr(&control()?).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            Failure::failed("this machine is not on the network; 'unisockets up' joins")
        }
        _ => Failure::failed(sentence(&error)),
    })?;
    let user = user_of(&stream)?;
    if !is_trusted(user) {
        return Err(foreign(user));
    }
    if user == 0 && !rustix::process::geteuid().is_root() {
        return Err(Failure::failed("the machine's node is root's; only root may end it"));
    }
    stream.set_read_timeout(Some(DOWN_LIMIT))?;
    io::Write::write_all(&mut &stream, &[1])?;
    match io::Read::read(&mut &stream, &mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Failure::failed("the machine's node is root's; only root may end it")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Failure::failed("the machine's node does not end; its process is in 'unisockets status'"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads `80`, `80/tcp` or `53/udp`.
pub(super) fn parse_open(text: &str) -> Result<args::Opened, String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let port = port.parse().ok().filter(|port| *port != 0);
    match (port, protocol) {
        (Some(port), "tcp") => Ok(args::Opened(Open::Tcp(port))),
        (Some(port), "udp") => Ok(args::Opened(Open::Udp(port))),
        _ => Err(format!("'{text}' is no port; it looks like 80, 80/tcp or 53/udp")),
    }
}
