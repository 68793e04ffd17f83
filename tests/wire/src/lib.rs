//! The project's own bad wire between two Linux kernels, because many kernels have no netem.
//!
//! Two network namespaces have one TUN device each, and a pump moves every IP packet between them through the
//! [`Fault`] core: loss, delay, jitter, reordering, duplication, corruption, rate and black-outs. Any program runs
//! over it: the kernel's TCP, the command-line tool, a browser.
//!
//! ```no_run
//! use unisockets_wire::Wire;
//!
//! let bad = "loss=1%,delay=10ms".parse().unwrap();
//! let wire = Wire::new(bad, bad, 1_500)?;
//! let server = wire.address(1).to_string();
//! wire.command(0, "ping").args(["-c", "3", &server]).status()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! It needs Linux and root, or a user namespace ([`as_root`]).
#![cfg(target_os = "linux")]

mod namespace;
mod pump;
mod root;
mod stream;
mod tun;
mod wire;

pub use namespace::Namespace;
pub use pump::{Counts, readable};
pub use root::{as_root, obstacle};
pub use stream::{Goodput, Stream};
pub use tun::{Batch, Tun};
pub use unisockets_link::fault::{Conditions, Fault};
pub use wire::Wire;
