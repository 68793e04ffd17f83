//! The kernel's side of a TUN device: its addresses, routes and MTU, by rtnetlink(7).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use serde::{Deserialize, Serialize};
use unisockets::Node;
use unisockets_signaling::network::Prefix;

/// The device's name.
pub(super) const NAME: &str = "unisockets0";
/// TCP's least time-out over the network, in milliseconds: links repeat what is lost by themselves, and may take longer
/// for it than the 200 ms after which the kernel would send everything again.
const RTO_MIN_MS: u32 = 1_000;

/// What a member's interface has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Addresses {
    pub(super) ipv4: Ipv4Addr,
    pub(super) ipv6: Ipv6Addr,
    /// The network's prefixes with their lengths.
    pub(super) prefixes: Vec<(IpAddr, u8)>,
}

impl Addresses {
    pub(super) fn of(node: &Node) -> Addresses {
        Addresses { ipv4: node.ipv4(), ipv6: node.ipv6(), prefixes: node.prefixes() }
    }
}

/// Asks this thread's network namespace; must be called within a runtime.
pub(super) fn kernel() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

fn error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// Returns an interface's number in this thread's network namespace.
fn index(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, name)?)
}

/// Brings the namespace's loopback interface up.
pub(super) async fn bring_loopback_up(kernel: &Handle) -> io::Result<()> {
    let loopback = index("lo")?;
    kernel.link().set(LinkUnspec::new_with_index(loopback).up().build()).execute().await.map_err(error)
}

/// Why a device that is no more ends the command.
pub(super) const ENDED: &str = "the TUN device can be used no more: somebody took it away, or this node failed at it";

/// Refuses what a signaling server must not draw to itself: addresses that are not for private use, and those of other
/// networks that this machine is on.
async fn check(kernel: &Handle, addresses: &Addresses) -> io::Result<()> {
    let others = routes(kernel).await?;
    for &(address, len) in &addresses.prefixes {
        if !is_private(address, len) {
            return Err(io::Error::other(format!(
                "the signaling server leases from {address}/{len}, which is no range for private networks; no route leads there"
            )));
        }
        let prefix = Prefix { address, len };
        // Halves of everything, as tunnels have them that take all traffic, are no network of their own.
        let is_around = |other: &Prefix| other.contains(address) && is_private(other.address, other.len);
        let overlaps = |other: &&Prefix| is_around(other) || prefix.contains(other.address);
        if let Some(other) = others.iter().find(overlaps) {
            return Err(io::Error::other(format!(
                "this machine has a route for {}/{} already, to another network, and this one has {address}/{len}; \
                 'signal serve --prefix' leases others",
                other.address, other.len
            )));
        }
    }
    if !addresses.prefixes.iter().any(|&(address, len)| Prefix { address, len }.contains(addresses.ipv4.into())) {
        return Err(io::Error::other(format!("{} is no address of the network", addresses.ipv4)));
    }
    Ok(())
}

/// Returns where this network namespace's routes lead, except those for everything else, and the kernel's own.
async fn routes(kernel: &Handle) -> io::Result<Vec<Prefix>> {
    let questions = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    let mut found = Vec::new();
    for question in questions {
        let mut routes = pin!(kernel.route().get(question).execute());
        while let Some(route) = routes.try_next().await.map_err(error)? {
            let header = &route.header;
            let is_other = header.kind == RouteType::Unicast && header.table == RouteHeader::RT_TABLE_MAIN;
            let address = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
                _ => None,
            });
            let len = header.destination_prefix_length;
            found.extend(address.filter(|_| is_other && len > 0).map(|address| Prefix { address, len }));
        }
    }
    Ok(found)
}

/// Gives the device its addresses, and routes the network's prefixes over it.
pub(super) async fn configure(kernel: &Handle, addresses: &Addresses) -> io::Result<()> {
    check(kernel, addresses).await?;
    let device = index(NAME)?;
    let mtu = u32::try_from(Node::TUN_MTU).unwrap_or(u32::MAX);
    let link = LinkUnspec::new_with_index(device).mtu(mtu).up().build();
    kernel.link().set(link).execute().await.map_err(error)?;
    for (address, len) in [(IpAddr::V4(addresses.ipv4), 32), (IpAddr::V6(addresses.ipv6), 128)] {
        kernel.address().add(device, address, len).execute().await.map_err(error)?;
    }
    for (prefix, len) in &addresses.prefixes {
        let route = match prefix {
            IpAddr::V4(prefix) => with_rto_min(
                RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(*prefix, *len)
                    .pref_source(addresses.ipv4)
                    .scope(RouteScope::Link)
                    .output_interface(device)
                    .build(),
            ),
            IpAddr::V6(prefix) => with_rto_min(
                RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(*prefix, *len)
                    .output_interface(device)
                    .build(),
            ),
        };
        kernel.route().add(route).execute().await.map_err(error)?;
    }
    Ok(())
}

/// Says so when the node is given another address than its device has: after a long sleep somebody else may have the old one.
pub(super) async fn watch(node: Node, addresses: Addresses, advice: &str) {
    const INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
    while node.ipv4() == addresses.ipv4 {
        tokio::time::sleep(INTERVAL).await;
    }
    super::output::note(format_args!(
        "unisockets: this member's address is now {}, and {} of {NAME} leads nowhere any more; {advice}",
        node.ipv4(),
        addresses.ipv4
    ));
}

/// Whether a range is for private use (RFC 1918, RFC 6598, RFC 4193): a server must not draw a machine's other traffic.
fn is_private(first: IpAddr, len: u8) -> bool {
    let ranges: &[([u8; 4], u8)] =
        &[([10, 0, 0, 0], 8), ([172, 16, 0, 0], 12), ([192, 168, 0, 0], 16), ([100, 64, 0, 0], 10)];
    match first {
        IpAddr::V4(v4) => ranges.iter().any(|(range, range_len)| {
            len >= *range_len && (u32::from(v4) ^ u32::from_be_bytes(*range)).leading_zeros() >= u32::from(*range_len)
        }),
        IpAddr::V6(v6) => len >= 8 && v6.octets()[0] == 0xfd,
    }
}

fn with_rto_min(mut route: RouteMessage) -> RouteMessage {
    route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::RtoMin(RTO_MIN_MS)]));
    route
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_ranges_are_routed() {
        let is_private = |text: &str| {
            let (first, len) = text.split_once('/').unwrap();
            is_private(first.parse().unwrap(), len.parse().unwrap())
        };
        for range in
            ["10.80.0.0/16", "10.0.0.0/8", "172.20.0.0/16", "192.168.7.0/24", "100.64.0.0/10", "fd75:6e69:5f98::/48"]
        {
            assert!(is_private(range), "{range}");
        }
        for range in
            ["0.0.0.0/1", "128.0.0.0/1", "8.8.8.8/32", "10.0.0.0/7", "172.32.0.0/16", "2000::/3", "::/0", "fc00::/7"]
        {
            assert!(!is_private(range), "{range}");
        }
    }
}
