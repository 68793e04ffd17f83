//! The C interface: every call under its name with the prefix `unisockets_`. What they do is in `unisockets-calls`; the
//! header is made of these files.

#![cfg(target_os = "linux")]

pub mod names;
pub mod network;
pub mod options;
pub mod sockets;
pub mod transfer;
