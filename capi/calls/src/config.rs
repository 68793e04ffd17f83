//! What a program has set: by call, or in its environment.

use std::net::IpAddr;

use unisockets_descriptors::{About, Prefix};

use crate::system;

/// The variables, which are those of the command-line tool where it has the same.
pub(crate) const SIGNAL: &str = "UNISOCKETS_SIGNAL";
pub(crate) const NETWORK: &str = "UNISOCKETS_NETWORK";
pub(crate) const SECRET: &str = "UNISOCKETS_SECRET";
pub(crate) const NAME: &str = "UNISOCKETS_NAME";
pub(crate) const NODE: &str = "UNISOCKETS_NODE";
/// The program to start a node with.
pub(crate) const PROGRAM: &str = "UNISOCKETS_PROGRAM";
/// `system`, the default, or `refuse`: what becomes of addresses outside the network.
const OTHERS: &str = "UNISOCKETS_OTHERS";
/// `inside` puts 127/8 and ::1 into the node's stack, for suites that talk to themselves.
const LOOPBACK: &str = "UNISOCKETS_LOOPBACK";

/// The settings of [`crate::up`]; what is not set is taken from the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The signaling server's URL.
    pub signal: Option<String>,
    /// The network's name.
    pub network: Option<String>,
    /// The network's secret.
    pub secret: Option<String>,
    /// This member's name.
    pub name: Option<String>,
    /// The control socket of a node that runs already.
    pub node: Option<String>,
}

impl Config {
    /// Returns the settings with what they leave to the environment.
    pub(crate) fn or_variables(&self) -> Config {
        let or = |value: &Option<String>, name| value.clone().or_else(|| variable(name));
        Config {
            signal: or(&self.signal, SIGNAL),
            network: or(&self.network, NETWORK),
            secret: or(&self.secret, SECRET),
            name: or(&self.name, NAME),
            node: None,
        }
    }
}

/// Reads a variable; an empty one counts as none, and so does each one in a program that has more rights than who
/// started it (secure_getenv(3)).
pub(crate) fn variable(name: &str) -> Option<String> {
    if system::is_privileged() {
        return None;
    }
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns whether the environment names a network.
pub(crate) fn is_set() -> bool {
    [NODE, SIGNAL, NETWORK, NAME].iter().any(|name| variable(name).is_some())
}

/// Where a call with an address goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the network.
    Network,
    /// To the operating system.
    System,
    /// Nowhere: the program gets ENETUNREACH.
    Refused,
}

/// Which addresses are the network's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Routes {
    prefixes: Vec<Prefix>,
    refuse_others: bool,
    loopback_inside: bool,
}

impl Routes {
    pub(crate) fn new(about: &About) -> Routes {
        Routes {
            prefixes: about.prefixes.clone(),
            refuse_others: variable(OTHERS).is_some_and(|others| others != "system"),
            loopback_inside: variable(LOOPBACK).as_deref() == Some("inside"),
        }
    }

    fn is_network(&self, ip: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(ip)) || (self.loopback_inside && ip.is_loopback())
    }

    fn other(&self, ip: IpAddr) -> Route {
        if self.refuse_others && !ip.is_loopback() { Route::Refused } else { Route::System }
    }

    /// Where to bind: "any" means the network, which is what a server is started for here.
    pub(crate) fn bind(&self, ip: IpAddr) -> Route {
        let ip = ip.to_canonical();
        let network = ip.is_unspecified() || ip.is_multicast() || self.is_network(ip);
        if network { Route::Network } else { self.other(ip) }
    }

    /// Where to connect or to send to.
    pub(crate) fn connect(&self, ip: IpAddr) -> Route {
        let ip = ip.to_canonical();
        // Linux takes "any" for this machine (as `connect` of the stack does).
        let own = ip.is_unspecified() && self.loopback_inside;
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        let network = own || broadcast || ip.is_multicast() || self.is_network(ip);
        if network { Route::Network } else { self.other(ip) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_networks_addresses_go_to_the_network_and_others_where_the_setting_says() {
        let prefixes =
            vec![Prefix { address: ip("10.80.0.0"), len: 16 }, Prefix { address: ip("fd75:6e69:1::"), len: 48 }];
        let mut routes = Routes { prefixes, refuse_others: false, loopback_inside: false };
        assert_eq!(routes.connect(ip("10.80.3.4")), Route::Network);
        assert_eq!(routes.connect(ip("::ffff:10.80.3.4")), Route::Network);
        assert_eq!(routes.connect(ip("192.0.2.1")), Route::System);
        assert_eq!(routes.connect(ip("127.0.0.1")), Route::System);
        assert_eq!((routes.bind(ip("0.0.0.0")), routes.bind(ip("::"))), (Route::Network, Route::Network));
        assert_eq!((routes.bind(ip("127.0.0.1")), routes.bind(ip("192.0.2.1"))), (Route::System, Route::System));
        routes.refuse_others = true;
        assert_eq!((routes.connect(ip("192.0.2.1")), routes.connect(ip("::1"))), (Route::Refused, Route::System));
        routes.loopback_inside = true;
        assert_eq!((routes.connect(ip("::1")), routes.connect(ip("0.0.0.0"))), (Route::Network, Route::Network));
    }
}
