//! Networks: a name, and a secret or none. Everything else follows from the two.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use crate::identity::{KeyPair, PublicKey, digest};

/// Argon2id: 64 MiB, 3 passes, one lane (RFC 9106, section 4, second recommended option, cut to one lane so
/// that it is the same where there are no threads).
const ARGON2: (u32, u32, u32) = (64 * 1024, 3, 1);
/// Longest name of a network or a member, in bytes: one DNS label (RFC 1035, section 2.3.4).
pub const NAME_LEN_MAX: usize = 63;
/// Secrets with fewer characters get a warning: the network's id lets others guess offline.
pub const SECRET_LEN_STRONG: usize = 20;

/// Why a name cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadName {
    /// It breaks the rules of a DNS label.
    NoLabel,
    /// Programs would take it for an address, and never ask for the member.
    Address,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadName::NoLabel => {
                "a name has 1 to 63 of the letters a-z, digits and '-', and does not begin or end with '-'"
            }
            BadName::Address => {
                "programs take 'localhost' and numbers such as 80 or 0x50 for addresses: a member's name has a letter more"
            }
        })
    }
}

impl std::error::Error for BadName {}

/// Checks a name and returns it in lower case.
///
/// # Errors
/// [`BadName::NoLabel`] unless it is a DNS label (RFC 1123, section 2.1).
pub fn parse_name(name: &str) -> Result<String, BadName> {
    let name = name.to_ascii_lowercase();
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = !name.starts_with('-') && !name.ends_with('-');
    if name.is_empty() || name.len() > NAME_LEN_MAX || !ends || !name.bytes().all(legal) {
        return Err(BadName::NoLabel);
    }
    Ok(name)
}

/// Checks a member's name and returns it in lower case.
///
/// # Errors
/// [`BadName`] unless it is a DNS label that programs look up: `localhost` is the caller's own machine (RFC 6761,
/// section 6.3), and a number is an address (`inet_addr` of POSIX).
pub fn parse_member_name(name: &str) -> Result<String, BadName> {
    let name = parse_name(name)?;
    let hexadecimal = name.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if name == "localhost" || hexadecimal || name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadName::Address);
    }
    Ok(name)
}

/// The keys that come of a network's secret.
struct Keys {
    signing: KeyPair,
    sealing: Zeroizing<[u8; 32]>,
}

/// A network as its members know it.
pub struct Network {
    name: String,
    id: String,
    keys: Option<Keys>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({})", self.id)
    }
}

impl Network {
    /// Derives a network from its name and secret. With a secret this takes 64 MiB and a fraction of a
    /// second.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn new(name: &str, secret: Option<&str>) -> Result<Network, BadName> {
        let name = parse_name(name)?;
        let Some(secret) = secret else {
            return Ok(Network { id: name.clone(), name, keys: None });
        };
        let mut derived = Zeroizing::new([0u8; 64]);
        let (memory, passes, lanes) = ARGON2;
        let params = Params::new(memory, passes, lanes, Some(64)).expect("the parameters are legal");
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        // The salt must have 8 bytes at least; short names are told apart by the digest.
        let salt = digest("unisockets-salt-v1", &[name.as_bytes()]);
        argon2.hash_password_into(secret.as_bytes(), &salt, &mut derived[..]).expect("the lengths are legal");
        let (mut signing, mut sealing) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        signing.copy_from_slice(&derived[..32]);
        sealing.copy_from_slice(&derived[32..]);
        let signing = KeyPair::from_seed(&signing);
        let id = secret_id(&name, &signing.public());
        Ok(Network { name, id, keys: Some(Keys { signing, sealing }) })
    }

    /// Returns the name that people use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the id that rooms, leases, pins and prefixes belong to.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the key pair that proves knowledge of the secret.
    pub fn signing(&self) -> Option<&KeyPair> {
        self.keys.as_ref().map(|keys| &keys.signing)
    }

    /// Returns the key that seals introductions.
    pub fn sealing(&self) -> Option<&[u8; 32]> {
        self.keys.as_ref().map(|keys| &*keys.sealing)
    }
}

/// Returns the id of a network with a secret: its name and 16 bytes of its verifying key's hash.
pub fn secret_id(name: &str, key: &PublicKey) -> String {
    let hash = digest("unisockets-network-v1", &[name.as_bytes(), key.as_bytes()]);
    let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}~{hex}")
}

/// Returns whether a text can be a network's id.
pub fn is_id(id: &str) -> bool {
    let hex = |hash: &str| hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match id.split_once('~') {
        Some((name, hash)) => parse_name(name).as_deref() == Ok(name) && hex(hash),
        None => parse_name(id).as_deref() == Ok(id),
    }
}

/// Returns the /48 that a network's IPv6 addresses are in (RFC 4193).
pub fn prefix_v6(id: &str) -> Ipv6Addr {
    let hash = digest("unisockets-prefix-v1", &[id.as_bytes()]);
    Ipv6Addr::new(0xfd75, 0x6e69, u16::from_be_bytes([hash[0], hash[1]]), 0, 0, 0, 0, 0)
}

/// Returns a member's IPv6 address: it proves itself, for it is derived from the key.
pub fn address_v6(id: &str, key: &PublicKey) -> Ipv6Addr {
    let hash = digest("unisockets-ip6-v1", &[id.as_bytes(), key.as_bytes()]);
    let mut octets = prefix_v6(id).octets();
    octets[6..].copy_from_slice(&hash[..10]);
    Ipv6Addr::from(octets)
}

/// A range of addresses that belongs to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Prefix {
    /// Its first address.
    pub address: IpAddr,
    /// Its length in bits.
    pub len: u8,
}

impl Prefix {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = match (self.address, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => (u32::from(first) ^ u32::from(address)).leading_zeros(),
            (IpAddr::V6(first), IpAddr::V6(address)) => (u128::from(first) ^ u128::from(address)).leading_zeros(),
            _ => return false,
        };
        same >= u32::from(self.len)
    }
}

/// The prefix of a network unless its operator says otherwise.
pub const PREFIX_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 80, 0, 0), 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_secret_is_another_network() {
        let (right, wrong) = (Network::new("home", Some("a")).unwrap(), Network::new("home", Some("b")).unwrap());
        assert_ne!(right.id(), wrong.id());
        assert!(is_id(right.id()) && right.id().starts_with("home~"));
        assert_eq!(Network::new("home", None).unwrap().id(), "home");
    }

    #[test]
    fn a_prefix_holds_its_addresses() {
        let holds = |prefix: &str, address: &str| {
            let (first, len) = prefix.split_once('/').unwrap();
            let prefix = Prefix { address: first.parse().unwrap(), len: len.parse().unwrap() };
            prefix.contains(address.parse().unwrap())
        };
        for (prefix, address) in [
            ("10.80.0.0/16", "10.80.255.255"),
            ("0.0.0.0/0", "1.1.1.1"),
            ("10.80.0.1/32", "10.80.0.1"),
            ("::/0", "fe80::1"),
        ] {
            assert!(holds(prefix, address), "{prefix} {address}");
        }
        for (prefix, address) in [
            ("10.80.0.0/16", "10.81.0.0"),
            ("10.80.0.0/33", "10.80.0.0"),
            ("::/0", "1.1.1.1"),
            ("fd00::/48", "fd00:0:1::"),
        ] {
            assert!(!holds(prefix, address), "{prefix} {address}");
        }
    }

    #[test]
    fn the_derivation_does_not_change() {
        let network = Network::new("home", Some("correct horse battery staple")).unwrap();
        let key = KeyPair::from_seed(&[7; 32]).public();
        assert_eq!(network.id(), VECTOR.0);
        assert_eq!(address_v6(network.id(), &key).to_string(), VECTOR.1);
    }

    const VECTOR: (&str, &str) = ("home~86561d2a815fcacab4a430d9a9366698", "fd75:6e69:945b:e1d0:2f5f:870f:170b:fa0c");

    #[test]
    fn a_members_name_is_not_taken_for_an_address() {
        for good in ["alpha", "80a", "0xyz", "1-2", "0x-1"] {
            assert_eq!(parse_member_name(good).as_deref(), Ok(good));
        }
        for bad in ["localhost", "LocalHost", "80", "0", "4294967296", "0x50", "0xff", "0x"] {
            assert_eq!(parse_member_name(bad), Err(BadName::Address), "{bad}");
        }
        assert_eq!(parse_name("80").as_deref(), Ok("80"), "a network may be called so");
        assert_eq!(parse_member_name("-"), Err(BadName::NoLabel));
    }

    #[test]
    fn names_are_dns_labels() {
        assert_eq!(parse_name("Alpha-1").as_deref(), Ok("alpha-1"));
        for bad in ["", "-a", "a-", "a.b", "a b", "ä", &"a".repeat(64)] {
            assert_eq!(parse_name(bad), Err(BadName::NoLabel), "{bad}");
        }
    }
}
