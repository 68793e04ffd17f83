//! Datagrams for many: broadcast (RFC 919) and multicast (RFC 1112; RFC 4291, section 2.7) over the links that exist.
//!
//! There is no membership protocol: a datagram for many goes to everybody who is linked, and whoever has not joined
//! drops it. Nobody is dialled for it, and it is not passed on.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::errno::Error;
use crate::limits;
use crate::packet::{DropReason, Header, Packet};
use crate::path::{PathId, PathState};
use crate::ports::Space;
use crate::shard::{Kind, SocketId, Stack};
use crate::stream::Role;
use crate::udp::Received;

/// Which sockets have joined which group.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    members: HashMap<IpAddr, Vec<SocketId>>,
}

impl Groups {
    fn has(&self, group: IpAddr) -> bool {
        self.members.contains_key(&group)
    }

    fn of(&self, socket: SocketId) -> usize {
        self.members.values().filter(|members| members.contains(&socket)).count()
    }

    /// Takes a socket out of all groups.
    pub(crate) fn forget(&mut self, socket: SocketId) {
        self.members.retain(|_, members| {
            members.retain(|member| *member != socket);
            !members.is_empty()
        });
    }
}

/// Whether a group's datagrams stay on the node (RFC 4291, section 2.7: scope 1).
fn is_local_scope(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.segments()[0] & 0xff0f == 0xff01)
}

impl Stack {
    /// Joins a multicast group (IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP): from then on its datagrams come to sockets of
    /// this node that are bound to their port.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the address is no group, [`Error::NoSuchOption`] on TCP, [`Error::AddressInUse`] if the
    /// socket is in it, [`Error::NoBuffers`] above 20 groups, [`Error::BadSocket`].
    pub fn join_group(&mut self, socket: SocketId, group: IpAddr) -> Result<(), Error> {
        if self.socket_ref(socket)?.kind != Kind::Udp {
            return Err(Error::NoSuchOption);
        }
        if !group.is_multicast() {
            return Err(Error::Invalid);
        }
        if self.groups.members.get(&group).is_some_and(|members| members.contains(&socket)) {
            return Err(Error::AddressInUse);
        }
        if self.groups.of(socket) >= limits::GROUPS_MAX {
            return Err(Error::NoBuffers);
        }
        self.groups.members.entry(group).or_default().push(socket);
        Ok(())
    }

    /// Leaves a multicast group (IP_DROP_MEMBERSHIP, IPV6_LEAVE_GROUP); closing the socket leaves all.
    ///
    /// # Errors
    /// [`Error::AddressNotAvailable`] if the socket is not in it, [`Error::BadSocket`].
    pub fn leave_group(&mut self, socket: SocketId, group: IpAddr) -> Result<(), Error> {
        self.socket_ref(socket)?;
        let members = self.groups.members.get_mut(&group).ok_or(Error::AddressNotAvailable)?;
        let place = members.iter().position(|member| *member == socket).ok_or(Error::AddressNotAvailable)?;
        members.swap_remove(place);
        if members.is_empty() {
            self.groups.members.remove(&group);
        }
        Ok(())
    }

    /// Whether an address means everybody: the limited broadcast, or that of one of the node's prefixes.
    pub(crate) fn is_broadcast(&self, address: IpAddr) -> bool {
        let IpAddr::V4(v4) = address else {
            return false;
        };
        let ends =
            |len: u8| len <= 30 && u32::from(v4) | u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0) == u32::MAX;
        v4.is_broadcast() || self.prefixes.iter().any(|prefix| prefix.contains(address) && ends(prefix.len))
    }

    /// Whether a datagram to that address goes to more than one node.
    pub(crate) fn is_for_many(&self, address: IpAddr) -> bool {
        address.is_multicast() || self.is_broadcast(address)
    }

    /// Whether this node takes what is sent to that address of many.
    pub(crate) fn takes_for_many(&self, address: IpAddr) -> bool {
        self.groups.has(address) || self.is_broadcast(address)
    }

    /// Sends a datagram to everybody who is linked, and to this node where it takes part itself. A path without room
    /// loses it: one slow peer does not hold the others up.
    pub(crate) fn queue_for_many(&mut self, header: Header, payload: &[u8], loops: bool) {
        let to_itself = self.takes_for_many(header.destination) && loops;
        let leaves = header.hop_limit > 0 && !is_local_scope(header.destination);
        let loopback = self.loopback();
        let wanted = |id: PathId, state: PathState| match id == loopback {
            true => to_itself,
            false => leaves && state == PathState::Up,
        };
        let paths: Vec<PathId> =
            self.paths.iter().filter(|(id, path)| wanted(*id, path.state)).map(|(id, _)| id).collect();
        // What comes to this node itself has not travelled.
        let header = Header { hop_limit: header.hop_limit.max(1), ..header };
        for path in paths {
            if self.queue_packets(path, header, payload).is_err() {
                self.count_drop(DropReason::SendQueueFull);
            }
        }
    }

    /// Hands a datagram for many to every socket that is bound to its port.
    pub(crate) fn deliver_to_many(&mut self, packet: &Packet<'_>, received: &Received) -> Result<(), DropReason> {
        let port = packet.ports().ok_or(DropReason::Malformed)?.1;
        let hears = |socket: SocketId| match self.sockets.get(socket).map(|entry| &entry.role) {
            Some(Role::Datagram(datagram)) => datagram.peer.is_none_or(|peer| peer == received.source),
            _ => false,
        };
        let sockets: Vec<SocketId> =
            self.ports.covering(Space::Udp, port, packet.destination).filter(|socket| hears(*socket)).collect();
        if sockets.is_empty() {
            // Nobody is told: an error for a datagram to many would make a storm (RFC 1122, section 3.2.2).
            return Err(DropReason::NoSocket);
        }
        let mut result = Ok(());
        for socket in sockets {
            if let Err(reason) = self.deliver(socket, received.clone()) {
                result = Err(reason);
            }
        }
        result
    }
}
