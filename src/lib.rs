//! One virtual IP network for every program.
//!
//! A [`Node`] joins a network through a signaling server, gets an IPv4 and an IPv6 address and perhaps a
//! name, and has Berkeley sockets on it: [`TcpListener`], [`TcpStream`], [`UdpSocket`], [`Ping`]. Every peer is
//! reached over WebRTC data channels, straight or through a relay; signaling is never in the data path.
//!
//! ```
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use unisockets::{Config, Node, TcpListener, TcpStream};
//! use unisockets_signaling::server::{Config as SignalConfig, Server};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Usually a server of its own: unisockets signal serve
//! let signal = Server::start(SignalConfig::new("127.0.0.1:0".parse()?)).await?;
//!
//! let alpha = Node::join(Config::new(signal.url()).name("alpha").ephemeral()).await?;
//! let beta = Node::join(Config::new(signal.url()).name("beta").ephemeral()).await?;
//!
//! let listener = TcpListener::bind(&alpha, "[::]:7").await?;
//! let mut client = TcpStream::connect(&beta, "alpha:7").await?;
//! let (mut server, peer) = listener.accept().await?;
//! println!("{peer} has connected");
//!
//! client.write_all(b"hello").await?;
//! let mut greeting = [0; 5];
//! server.read_exact(&mut greeting).await?;
//! assert_eq!(&greeting, b"hello");
//!
//! beta.leave().await;
//! alpha.leave().await;
//! signal.stop().await;
//! # Ok(())
//! # }
//! ```

#[cfg(planted_bugs)]
#[macro_use]
pub mod planted;
#[cfg(not(planted_bugs))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

mod attempts;
#[cfg(not(target_family = "wasm"))]
mod capture;
#[cfg(not(target_family = "wasm"))]
mod config;
#[cfg_attr(target_family = "wasm", allow(dead_code, reason = "a tab has no kernel whose packets it could carry"))]
mod device;
mod dial;
#[cfg(not(target_family = "wasm"))]
mod driver;
#[cfg(not(target_family = "wasm"))]
mod handle;
mod hello;
#[cfg(all(feature = "descriptors", target_os = "linux"))]
mod host;
mod lookup;
mod node;
#[cfg(all(feature = "descriptors", target_os = "linux"))]
mod patience;
mod peers;
#[cfg(not(target_family = "wasm"))]
mod ping;
#[cfg(not(target_family = "wasm"))]
mod resolve;
mod status;
mod tap;
#[cfg(not(target_family = "wasm"))]
mod tcp;
#[cfg(not(target_family = "wasm"))]
mod udp;

/// The node without I/O, for shells other than the native one and for simulations.
pub mod core {
    pub use crate::lookup::{Lookup, LookupError, LookupFailure};
    pub use crate::node::{Config, NodeCore, Output};
    pub use crate::peers::LinkId;
    pub use crate::tap::{Direction, Tap};
}

#[cfg(not(target_family = "wasm"))]
pub use config::{Config, Key, KeyError, create_key, data_folder, forget_pin, key_path, keys_with_pins, read_key};
pub use device::Open;
#[cfg(all(feature = "tun", target_os = "linux"))]
pub use device::{Attached, Tun};
#[cfg(not(target_family = "wasm"))]
pub use handle::{JoinError, Node};
#[cfg(all(feature = "descriptors", target_os = "linux"))]
pub use host::Host;
#[cfg(all(feature = "descriptors", target_os = "linux"))]
pub use patience::Patience;
#[cfg(not(target_family = "wasm"))]
pub use ping::{Echo, Ping};
#[cfg(not(target_family = "wasm"))]
pub use resolve::{Resolved, ToAddress};
pub use status::{PeerStatus, SocketStatus, Status};
#[cfg(not(target_family = "wasm"))]
pub use tcp::{OwnedReadHalf, OwnedWriteHalf, TcpListener, TcpStream};
#[cfg(not(target_family = "wasm"))]
pub use udp::UdpSocket;
pub use unisockets_link::fault::{BadConditions, Conditions};
pub use unisockets_link::{IceServer, Route};
pub use unisockets_signaling::identity::PublicKey;
pub use unisockets_stack::{Shutdown, SocketOption};
