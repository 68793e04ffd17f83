//! The Berkeley calls on virtual descriptors, for the C library and the preloaded one.
//!
//! Each function has the shape of the call in C: it takes what the program gave, returns what the program gets, and
//! sets `errno`. A descriptor that is not virtual, and an address outside the network, go to the operating system
//! unchanged. Nothing is kept about descriptors: a virtual one is known by its name, which the kernel keeps.

#![cfg(target_os = "linux")]

mod address;
mod boundary;
mod config;
mod datagrams;
mod descriptor;
mod epoll;
mod fork;
mod names;
mod node;
mod options;
mod sockets;
mod system;
mod transfer;
mod waiting;

pub use boundary::{accept, bind, close, connect, getpeername, getsockname, listen, shutdown, socket};
pub use boundary::{capture, down, errmsg, refuse, status, up, version};
pub use boundary::{epoll_ctl, fcntl, getsockopt, ioctl, poll, select, setsockopt};
pub use boundary::{freeaddrinfo, getaddrinfo, gethostbyname, getnameinfo};
pub use boundary::{recv, recvfrom, recvmmsg, recvmsg, send, sendmmsg, sendmsg, sendto};
pub use config::Config;
pub use names::System;
pub use node::report_failures;
pub use system::use_system;
