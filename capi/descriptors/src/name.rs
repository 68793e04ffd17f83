//! The name of one end of a descriptor: an address of the network inside an AF_UNIX name.
//!
//! `unisockets/tcp4/10.80.0.1:80/INSTANCE.ID.SERIAL` in the abstract namespace (unix(7)). The kernel keeps it with
//! the socket, so `dup`, `fork`, `exec` and SCM_RIGHTS carry it along, and no table of descriptors is needed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::message::Family;

/// How every name begins.
const PREFIX: &str = "unisockets/";
/// What the name of a datagram socket's way in begins with: here go datagrams with a destination in front.
pub const INGRESS: &str = "unisockets/to/";

/// What kind of descriptor has the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// A TCP socket that is bound, and may listen.
    Bound,
    /// A TCP connection, or the start of one.
    Stream,
    /// A UDP socket.
    Datagram,
}

/// The name of one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    /// What kind of descriptor it is.
    pub state: State,
    /// The family that the program asked for.
    pub family: Family,
    /// This end's address on the network.
    pub address: SocketAddr,
    /// The address that a datagram was sent to, in the names of those who deliver it.
    pub destination: Option<IpAddr>,
    /// Which node holds the socket.
    pub instance: u64,
    /// The socket, as that node counts them.
    pub id: u64,
    /// Tells apart names that are otherwise the same.
    pub serial: u32,
}

/// The text is no name of a virtual socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameError;

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is no name of a virtual socket")
    }
}

impl std::error::Error for NameError {}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.state {
            State::Bound => "bound",
            State::Stream => "tcp",
            State::Datagram => "udp",
        };
        let family = if self.family == Family::V4 { 4 } else { 6 };
        write!(f, "{PREFIX}{word}{family}/")?;
        address_text(f, self.address.ip())?;
        write!(f, "/{:x}/{:x}.{:x}.{:x}", self.address.port(), self.instance, self.id, self.serial)?;
        match self.destination {
            Some(destination) => {
                f.write_str("/")?;
                address_text(f, destination)
            }
            None => Ok(()),
        }
    }
}

/// Writes an address in few letters, for a name has 107: an IPv6 address in base 36.
fn address_text(f: &mut fmt::Formatter<'_>, address: IpAddr) -> fmt::Result {
    match address {
        IpAddr::V4(address) => write!(f, "{address}"),
        IpAddr::V6(address) => {
            let mut rest = u128::from(address);
            let mut digits = [0; 25];
            for digit in digits.iter_mut().rev() {
                *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
                rest /= 36;
            }
            f.write_str(std::str::from_utf8(&digits).expect("digits are ASCII"))
        }
    }
}

fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains('.') {
        return text.parse().ok();
    }
    Some(IpAddr::V6(u128::from_str_radix(text, 36).ok()?.into()))
}

impl Name {
    /// Reads the bytes of an abstract name, without its leading zero.
    ///
    /// # Errors
    /// [`NameError`] if it is another program's name.
    pub fn parse(bytes: &[u8]) -> Result<Name, NameError> {
        Name::read(bytes).ok_or(NameError)
    }

    fn read(bytes: &[u8]) -> Option<Name> {
        let text = std::str::from_utf8(bytes).ok()?.strip_prefix(PREFIX)?;
        let mut parts = text.split('/');
        let (state, family) = match parts.next()? {
            "bound4" => (State::Bound, Family::V4),
            "bound6" => (State::Bound, Family::V6),
            "tcp4" => (State::Stream, Family::V4),
            "tcp6" => (State::Stream, Family::V6),
            "udp4" => (State::Datagram, Family::V4),
            "udp6" => (State::Datagram, Family::V6),
            _ => return None,
        };
        let ip = parse_address(parts.next()?)?;
        let port = u16::from_str_radix(parts.next()?, 16).ok()?;
        let mut numbers = parts.next()?.split('.');
        let instance = u64::from_str_radix(numbers.next()?, 16).ok()?;
        let id = u64::from_str_radix(numbers.next()?, 16).ok()?;
        let serial = u32::from_str_radix(numbers.next()?, 16).ok()?;
        let destination = parts.next().map(parse_address);
        if numbers.next().is_some() || parts.next().is_some() || destination == Some(None) {
            return None;
        }
        let address = SocketAddr::new(ip, port);
        Some(Name { state, family, address, destination: destination.flatten(), instance, id, serial })
    }

    /// Returns the name of the way in for datagrams with a destination in front.
    pub fn ingress(&self) -> String {
        format!("{INGRESS}{:x}.{:x}", self.instance, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(state: State, family: Family, address: &str) -> Name {
        let address = address.parse().unwrap();
        Name { state, family, address, destination: None, instance: u64::MAX, id: 0xabc, serial: 3 }
    }

    #[test]
    fn names_come_back_as_they_were_and_fit() {
        let long = "[fd75:6e69:5f98:1d9:f251:7380:3fc7:d2c8]:65535";
        for (state, family, address) in [
            (State::Bound, Family::V4, "0.0.0.0:80"),
            (State::Stream, Family::V4, "10.80.0.1:80"),
            (State::Stream, Family::V6, "10.80.0.1:80"),
            (State::Datagram, Family::V6, "[::]:53"),
            (State::Datagram, Family::V6, long),
        ] {
            let mut name = name(state, family, address);
            assert_eq!(Name::parse(name.to_string().as_bytes()), Ok(name));
            name.destination = Some("fd75:6e69::1".parse().unwrap());
            assert_eq!(Name::parse(name.to_string().as_bytes()), Ok(name));
        }
        let longest = Name {
            destination: Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()),
            id: u64::from(u32::MAX),
            serial: u32::MAX,
            ..name(State::Datagram, Family::V6, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")
        };
        // One of sun_path's 108 bytes is the zero in front (unix(7)).
        assert!(longest.to_string().len() <= 107, "{}", longest.to_string().len());
    }

    #[test]
    fn other_names_are_refused() {
        for bad in [
            &b""[..],
            b"unisockets",
            b"unisockets/tcp4/10.80.0.1",
            b"unisockets/tcp5/10.80.0.1/50/1.2.3",
            b"unisockets/tcp4/10.80.0.1/99999/1.2.3",
            b"unisockets/tcp4/10.80.0.1/50/1.2",
            b"unisockets/tcp4/10.80.0.1/50/1.2.3.4",
            b"unisockets/tcp4/10.80.0.1/50/1.2.3/-",
            b"unisockets/tcp4/10.80.0.1/50/1.2.3/1.2.3.4/5",
            b"\xff\xfe",
        ] {
            assert_eq!(Name::parse(bad), Err(NameError), "{bad:?}");
        }
    }
}
