//! `nc`: standard input and output, joined to a socket of the network.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Stdout, stdin, stdout};
use unisockets::{Node, TcpListener, TcpStream, UdpSocket};

use super::args::Nc;
use super::exit::Failure;
use super::output::{note, unwritable};
use super::with_node;

pub(super) async fn run(options: Nc) -> Result<(), Failure> {
    if options.common.captures_to_stdout() {
        return Err(Failure::usage("nc writes to standard output itself; give the capture a file"));
    }
    let (host, port) = match &options.target[..] {
        [port] if options.listen => ("::", port),
        [host, port] => (host.as_str(), port),
        _ => return Err(Failure::usage("nc needs a host and a port: unisockets nc HOST PORT")),
    };
    let port: u16 = port.parse().map_err(|_| Failure::usage(format!("'{port}' is no port; ports are 0 to 65535")))?;
    let wait = Duration::try_from_secs_f64(options.wait)
        .map_err(|_| Failure::usage("--wait takes a number of seconds, such as 0.5"))?;
    with_node(&options.common, |node| async move {
        match (options.udp, options.listen) {
            (false, false) => {
                let stream = TcpStream::connect(&node, (host, port)).await;
                join(stream.map_err(|error| Failure::unreachable(host, &error))?).await
            }
            (false, true) => {
                let listener = TcpListener::bind(&node, (host, port)).await?;
                announce(&node, listener.local_addr()?.port());
                let (stream, peer) = listener.accept().await?;
                drop(listener);
                tracing::info!(%peer, "connected");
                join(stream).await
            }
            (true, listen) => datagrams(&node, host, port, listen, wait).await,
        }
    })
    .await
}

/// Tells where a listener can be reached.
pub(super) fn announce(node: &Node, port: u16) {
    let name = node.name().map(|name| format!("{name}:{port}, ")).unwrap_or_default();
    note(format_args!("listening on {name}{}:{port} and [{}]:{port}", node.ipv4(), node.ipv6()));
}

/// Joins standard input and output to a connection; each direction ends by itself.
async fn join(stream: TcpStream) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        let mut stdin = stdin();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match stdin.read(&mut buffer).await? {
                0 => return write.shutdown().await,
                len => write.write_all(&buffer[..len]).await?,
            }
        }
    };
    let receiving = async {
        let mut stdout = stdout();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match read.read(&mut buffer).await? {
                0 => return Ok::<_, Failure>(read),
                len => put(&mut stdout, &buffer[..len]).await?,
            }
        }
    };
    tokio::pin!(sending, receiving);
    tokio::select! {
        received = &mut receiving => {
            // The other side may still read: what is typed goes on until it is gone.
            let read = received?;
            tokio::select! {
                sent = &mut sending => sent?,
                () = read.hung_up() => {}
            }
        }
        sent = &mut sending => {
            sent?;
            receiving.await?;
        }
    }
    Ok(())
}

async fn put(stdout: &mut Stdout, data: &[u8]) -> Result<(), Failure> {
    stdout.write_all(data).await.map_err(|error| unwritable(&error))?;
    stdout.flush().await.map_err(|error| unwritable(&error))
}

/// A line or chunk of standard input is a datagram; a listener answers whoever spoke last.
async fn datagrams(node: &Node, host: &str, port: u16, listen: bool, linger: Duration) -> Result<(), Failure> {
    let socket = if listen {
        let socket = UdpSocket::bind(node, (host, port)).await?;
        announce(node, socket.local_addr()?.port());
        socket
    } else {
        let socket = UdpSocket::bind(node, "[::]:0").await?;
        socket.connect((host, port)).await.map_err(|error| Failure::unreachable(host, &error))?;
        socket
    };
    let mut stdin = stdin();
    let mut stdout = stdout();
    let mut line = vec![0; 65_507];
    let mut peer = None;
    let mut open = true;
    loop {
        tokio::select! {
            read = stdin.read(&mut line), if open && (peer.is_some() || !listen) => match (read?, peer) {
                (0, _) => open = false,
                (len, Some(peer)) => drop(socket.send_to(&line[..len], peer).await?),
                (len, None) => {
                    let sent = socket.send(&line[..len]).await;
                    sent.map_err(|error| Failure::unreachable(host, &error))?;
                }
            },
            received = socket.recv_message() => {
                let received = received.map_err(|error| Failure::unreachable(host, &error))?;
                if listen {
                    peer = Some(received.source);
                }
                put(&mut stdout, &received.data).await?;
            }
            () = tokio::time::sleep(linger), if !open => return Ok(()),
        }
    }
}
