//! What a room wants its shell to carry out.

use crate::identity::PublicKey;
use crate::leases::{Claim, Kept};
use crate::protocol::{FromServer, Query};

/// Names a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A member in a network.
pub type Place = (String, PublicKey);

/// What the shell has to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message.
    Send(ConnectionId, FromServer),
    /// Close a connection once what was sent has left.
    Close(ConnectionId),
    /// Ping a connection and call [`crate::room::Room::alive`] if it answers.
    Probe(ConnectionId),
    /// Ask the directory for a lease, then call [`crate::room::Room::claimed`].
    Claim(ConnectionId, Claim),
    /// Tell the directory that a member has come.
    Enter(Place),
    /// Tell the directory that a member has gone, and whether its lease is given back.
    Exit(Place, Kept),
    /// Ask the directory, then call [`crate::room::Room::found`].
    Find(ConnectionId, u64, String, Query),
    /// Ask the directory, then call [`crate::room::Room::listed`].
    List(ConnectionId, u64, String, Option<PublicKey>, usize),
    /// Hand a payload to the instance that has the recipient, then call [`crate::room::Room::forwarded`].
    Forward {
        /// Who sends, and where.
        connection: ConnectionId,
        /// The sender's number for it.
        id: u64,
        /// The sender.
        from: PublicKey,
        /// The recipient.
        to: Place,
        /// The payload.
        payload: String,
    },
}
