//! Every limit of the stack, with its unit and its reason.

use std::time::Duration;

/// Largest IP packet on any path, in bytes: the IPv4 total length field has 16 bits.
pub const PACKET_LEN_MAX: usize = 65_535;
/// Largest UDP payload over IPv4, in bytes (65,535 less both headers).
pub const DATAGRAM_LEN_MAX: usize = 65_507;
/// MTU of the loopback path, in bytes.
pub const LOOPBACK_MTU: usize = 65_535;
/// Smallest MTU of a path, in bytes: what IPv6 requires (RFC 8200, section 5).
pub const MTU_MIN: usize = 1_280;
/// Answers (ACK, RST, echo) that wait per path while it has no room, in packets: taking packets in
/// must never wait for sending.
pub(crate) const REPLY_QUEUE_LEN_MAX: usize = 64;
/// Datagrams that wait per path, in bytes; what does not fit is `EAGAIN` for the sender.
pub(crate) const DATAGRAM_QUEUE_BYTES_MAX: usize = 256 * 1024;
/// The same while the peer is still being looked up and dialled.
pub(crate) const PENDING_QUEUE_BYTES_MAX: usize = 64 * 1024 + 1_024;
/// Received datagrams that wait per socket, in bytes; the rest is dropped and counted.
pub(crate) const UDP_RECEIVE_BYTES_DEFAULT: usize = 1024 * 1024;
/// Bytes that one waiting datagram is charged above its payload, so that empty ones are bounded too.
pub(crate) const DATAGRAM_OVERHEAD: usize = 128;
/// Receive and send buffer of a TCP connection to a near peer, in bytes.
#[cfg(not(target_family = "wasm"))]
pub(crate) const TCP_BUFFER_DEFAULT: usize = 1024 * 1024;
/// The same where memory is dear.
#[cfg(target_family = "wasm")]
pub(crate) const TCP_BUFFER_DEFAULT: usize = 256 * 1024;
/// Buffers of the connections to a far peer, in bytes: longer ones would serve nobody nearby, but leave the caches of the
/// processor (6.7 against 4.3 GB a second in memory, with 1 and 4 MiB).
#[cfg(not(target_family = "wasm"))]
pub(crate) const TCP_BUFFER_FAR: usize = BUFFER_MAX;
/// The same where memory is dear.
#[cfg(target_family = "wasm")]
pub(crate) const TCP_BUFFER_FAR: usize = 1024 * 1024;
/// Bytes that a connection shall be able to move in a millisecond of the round trip to its peer.
pub(crate) const BYTES_PER_MS: usize = 256 * 1024;
/// Connections of a peer that may have longer buffers than [`TCP_BUFFER_DEFAULT`]: filled, theirs are less than the half
/// of [`PEER_MEMORY_MAX`] above which others get short ones.
pub(crate) const FAR_FLOWS_MAX: usize = 3;
/// Smallest and largest buffer that an option may ask for, in bytes.
pub(crate) const BUFFER_MIN: usize = 4 * 1024;
/// See [`BUFFER_MIN`].
pub(crate) const BUFFER_MAX: usize = 4 * 1024 * 1024;
/// Memory that the connections of one peer may commit, in bytes; above half of it new ones get
/// [`TCP_BUFFER_SHORT`].
pub(crate) const PEER_MEMORY_MAX: usize = 64 << 20;
/// The same of all peers.
pub(crate) const NODE_MEMORY_MAX: usize = 512 << 20;
/// Of [`NODE_MEMORY_MAX`], what every peer may commit, however much others have, in bytes.
pub(crate) const PEER_MEMORY_SHARE: usize = 256 * 1024;
/// Ring length while memory is short, in bytes.
pub(crate) const TCP_BUFFER_SHORT: usize = 64 * 1024;
/// How long a connection is idle before the memory of its rings is given back.
pub(crate) const REST_AFTER: Duration = Duration::from_secs(10);
/// The unit in which the system commits memory, in bytes.
pub(crate) const PAGE_LEN: usize = 4 * 1024;
/// Sockets per stack.
pub(crate) const SOCKETS_MAX: usize = 65_536;
/// TCP connections per stack, those in backlogs and orphans included.
pub(crate) const FLOWS_MAX: usize = 65_536;
/// Of these, connections with one peer: an eighth is left to others.
pub(crate) const FLOWS_PEER_MAX: usize = FLOWS_MAX / 8 * 7;
/// Bytes of a SYN that waits for a place in a backlog: the longest headers, and nothing worth mention behind them.
pub(crate) const WAITING_SYN_LEN_MAX: usize = 160;
/// Orphans of one peer; further ones are reset.
pub(crate) const ORPHANS_PEER_MAX: usize = 4_096;
/// Orphans that every peer may have, however many others have.
pub(crate) const ORPHANS_SHARE: usize = 64;
/// Connections whose program has closed them, still being brought to their end.
pub(crate) const ORPHANS_MAX: usize = 8_192;
/// Connections in TIME-WAIT; the oldest makes room.
pub(crate) const TIME_WAIT_MAX: usize = 16_384;
/// Timers in the heap, and connections in the queue of a path, above two for each connection: those that are not meant
/// any more.
pub(crate) const TIMERS_SPARE: usize = 64;
/// Largest backlog of a listener (SOMAXCONN of Linux).
pub(crate) const BACKLOG_MAX: usize = 4_096;
/// Contexts of the engine, one for each MTU in use.
pub(crate) const CONTEXTS_MAX: usize = 16;
/// Paths per stack.
pub(crate) const PATHS_MAX: usize = 16_384;
/// Groups that a socket may join (IP_MAX_MEMBERSHIPS of Linux).
pub(crate) const GROUPS_MAX: usize = 20;
/// Incomplete datagrams under reassembly per stack.
pub(crate) const REASSEMBLY_LEN_MAX: usize = 256;
/// Bytes held by incomplete datagrams per stack.
pub(crate) const REASSEMBLY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Incomplete datagrams of one source: a sixteenth, 1 MiB at most, so that one member does not keep others' fragments
/// out.
pub(crate) const REASSEMBLY_LEN_PEER_MAX: usize = 16;
/// Fragments of one datagram: 65,535 bytes at the smallest MTU need 53.
pub(crate) const FRAGMENTS_MAX: usize = 64;
/// How long fragments wait for the rest (RFC 8200, section 4.5 says 60 s; a link is faster).
pub(crate) const REASSEMBLY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection attempt lasts (six SYNs of Linux: 127 s).
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(127);
/// How long data may stay unacknowledged (tcp_retries2 of Linux: about 15 minutes).
pub(crate) const USER_TIMEOUT: Duration = Duration::from_secs(924);
/// Smallest MTU that an ICMP error may name, in bytes: what every link of IPv4 carries (RFC 791, section 3.2).
pub(crate) const MTU_LEAST_NAMED: usize = 68;
/// Keep-alive as of tcp(7): idle time before the first probe, time between probes, probes without an answer.
pub(crate) const KEEP_IDLE_DEFAULT: Duration = Duration::from_secs(7_200);
/// See [`KEEP_IDLE_DEFAULT`].
pub(crate) const KEEP_INTERVAL_DEFAULT: Duration = Duration::from_secs(75);
/// See [`KEEP_IDLE_DEFAULT`].
pub(crate) const KEEP_COUNT_DEFAULT: u8 = 9;
/// Longest time that may be set between probes (MAX_TCP_KEEPIDLE of Linux).
pub(crate) const KEEP_TIME_MAX: Duration = Duration::from_secs(32_767);
/// Most probes that may be asked for (MAX_TCP_KEEPCNT of Linux).
pub(crate) const KEEP_COUNT_MAX: u8 = 127;
/// How long an orphan waits in FIN-WAIT-2 (tcp_fin_timeout of Linux).
pub(crate) const FIN_WAIT_2_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a half-open passive connection lasts (five SYN|ACKs of Linux: 63 s).
pub(crate) const SYN_RECEIVED_TIMEOUT: Duration = Duration::from_secs(63);
/// How long TIME-WAIT lasts (TCP_TIMEWAIT_LEN of Linux).
pub(crate) const TIME_WAIT: Duration = Duration::from_secs(60);
/// Longest delay of an acknowledgement: short, because a link's round trip is short.
pub(crate) const ACK_DELAY: Duration = Duration::from_millis(2);
/// Bytes that a flow may send before the next flow of the path has its turn.
pub(crate) const QUANTUM: usize = 64 * 1024;
/// Sent bytes after which a flow leaves the lane for small transfers.
pub(crate) const BULK_AFTER: u64 = 256 * 1024;
