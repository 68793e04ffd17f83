//! Who is on the network, at which address, and how do two of them meet?
//!
//! Signaling leases addresses and names, and carries sealed and signed introductions from member to
//! member. It is never in the data path, and it knows nothing of sockets.
//!
//! [`protocol`] is the one file that both sides share; [`room`], [`leases`] and [`member`] are cores
//! without I/O; `server` and `native` are the shells around them (feature `net`, on by default).

#[cfg(planted_bugs)]
#[macro_use]
pub mod planted;
#[cfg(not(planted_bugs))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

mod admission;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
pub mod bus;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
mod callers;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
pub mod directory;
pub mod envelope;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
mod greeting;
pub mod hosts;
pub mod identity;
pub mod leases;
pub mod member;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
pub mod native;
pub mod network;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
mod outgoing;
mod outputs;
mod pace;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
mod page;
pub mod pins;
pub mod protocol;
mod quarantine;
pub mod room;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
pub mod server;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
mod store;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
pub mod stun;
#[cfg(all(feature = "net", not(target_family = "wasm")))]
pub mod tls;
mod watches;
