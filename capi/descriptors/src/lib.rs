//! What a program and the node that holds its sockets say to each other.
//!
//! A virtual socket is a kernel descriptor: one end of an AF_UNIX socket whose other end a node pumps into its
//! stack. Its addresses are the *names* of both ends, so that every copy of the descriptor, in every process,
//! finds them out from the kernel ([`Name`]). What the kernel cannot do is asked of the node over its control
//! socket: one connection, one [`Request`], one [`Answer`], perhaps one descriptor ([`passing`]).
//!
//! The same words serve the node (`unisockets node`), the C library and the preloaded library.

pub mod datagram;
mod message;
mod name;
pub mod passing;

pub use message::{About, Answer, Call, Family, Fault, Kind, Option, Prefix, Reply, Request};
pub use name::{INGRESS, Name, NameError, State};

/// Bytes of a request, descriptors aside.
pub const REQUEST_LEN_MAX: usize = 64 * 1024;
/// Bytes of an answer, descriptors aside: a status describes every socket.
pub const ANSWER_LEN_MAX: usize = 64 * 1024 * 1024;
