//! Which way a link's packets take, and what the peer may learn of this machine.

use std::net::IpAddr;

use webrtc::peer_connection::{PeerConnection, RTCIceCandidate, RTCIceCandidateType};

use crate::Route;
use crate::signal::IceServer;

/// Whether one of the servers relays.
pub(super) fn has_relay(servers: &[IceServer]) -> bool {
    servers.iter().any(|server| server.url.starts_with("turn:") || server.url.starts_with("turns:"))
}

/// Finds out from the candidate pair in use whether a relay stands between.
pub(super) async fn find(connection: &dyn PeerConnection) -> Option<Route> {
    let ice = connection.sctp().await?.transport().ice_transport();
    let pair = ice.get_selected_candidate_pair().await.ok()??;
    let relays = |candidate: &RTCIceCandidate| candidate.typ == RTCIceCandidateType::Relay;
    if relays(pair.local()) || relays(pair.remote()) {
        return Some(Route::Relayed);
    }
    // A check through the peer's relay may overtake the news of that relay, and the relay's address then counts as
    // one that the check has revealed (RFC 8445, section 7.3.1.3).
    let known = ice.get_remote_candidates().await.unwrap_or_default();
    let address = |candidate: &RTCIceCandidate| (candidate.address.clone(), candidate.port);
    let used = address(pair.remote());
    let relayed = known.iter().any(|candidate| relays(candidate) && address(candidate) == used);
    Some(if relayed { Route::Relayed } else { Route::Direct })
}

/// Returns a candidate's attribute as a peer may see it who shall learn of relays only: nothing for other kinds, and
/// without the address that the relay is reached from (RFC 8839, section 5.1).
pub(super) fn conceal(candidate: &str) -> Option<String> {
    let mut words: Vec<&str> = candidate.split_ascii_whitespace().collect();
    let value = |words: &[&str], name: &str| words.iter().position(|word| *word == name).map(|at| at + 1);
    if value(&words, "typ").and_then(|at| words.get(at).copied()) != Some("relay") {
        return None;
    }
    let anywhere = if words.get(4)?.contains(':') { "::" } else { "0.0.0.0" };
    for (name, nothing) in [("raddr", anywhere), ("rport", "9")] {
        if let Some(word) = value(&words, name).and_then(|at| words.get_mut(at)) {
            *word = nothing;
        }
    }
    Some(words.join(" "))
}

/// Whether a candidate's address (RFC 8839, section 5.1) lies within one of some ranges.
pub(super) fn is_within(candidate: &str, ranges: &[(IpAddr, u8)]) -> bool {
    let address = candidate.split_ascii_whitespace().nth(4).and_then(|word| word.parse::<IpAddr>().ok());
    let Some(address) = address.map(|address| address.to_canonical()) else {
        return false;
    };
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    };
    ranges.iter().any(|(first, len)| {
        let differing = bits(*first) ^ bits(address);
        first.is_ipv4() == address.is_ipv4() && differing.leading_zeros() >= u32::from(*len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_network_itself_are_told_from_others() {
        let ranges = ["10.80.0.0", "fd75:6e69:5f98::"].map(|first| first.parse().unwrap());
        let ranges = [(ranges[0], 16), (ranges[1], 48)];
        let candidate = |address: &str| format!("candidate:1 1 udp 2130706431 {address} 5000 typ host");
        for (address, within) in [
            ("10.80.3.4", true),
            ("::ffff:10.80.3.4", true),
            ("10.81.0.1", false),
            ("fd75:6e69:5f98:1::2", true),
            ("fd75:6e69:5f99::", false),
        ] {
            assert_eq!(is_within(&candidate(address), &ranges), within, "{address}");
        }
        assert!(!is_within("candidate:1 1 udp 1 a.local 1 typ host", &ranges));
        assert!(!is_within("", &ranges));
    }

    #[test]
    fn a_relays_candidate_loses_the_address_behind_it_and_others_are_kept_back() {
        let relay = "candidate:1 1 udp 16777215 50.0.0.1 5000 typ relay raddr 192.168.0.1 rport 5001";
        let shown = "candidate:1 1 udp 16777215 50.0.0.1 5000 typ relay raddr 0.0.0.0 rport 9";
        assert_eq!(conceal(relay).as_deref(), Some(shown));
        let relay = "candidate:1 1 udp 16777215 2001:db8::1 5000 typ relay raddr fd00::1 rport 5001";
        let shown = "candidate:1 1 udp 16777215 2001:db8::1 5000 typ relay raddr :: rport 9";
        assert_eq!(conceal(relay).as_deref(), Some(shown));
        assert_eq!(conceal("candidate:1 1 udp 2130706431 192.168.0.1 5001 typ host"), None);
        assert_eq!(conceal("candidate:1 1 udp 1 50.0.0.2 5 typ srflx raddr 192.168.0.1 rport 5001"), None);
        assert_eq!(conceal("candidate:1 1 udp 1 192.168.0.1 5 typ"), None);
    }
}
