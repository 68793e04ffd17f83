//! From what people write to addresses: `alpha:80`, `alpha.home.internal:80`, `10.80.0.1:80`, `[::]:80`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use unisockets_signaling::identity::PublicKey;
use unisockets_signaling::protocol::Query;

use crate::handle::Node;
use crate::lookup::LookupFailure;

/// A member that was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Its key.
    pub key: PublicKey,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Whether it is connected to signaling now.
    pub present: bool,
}

impl Node {
    /// Finds out who has a name, an address or a key.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if nobody has it, [`io::ErrorKind::PermissionDenied`] if its key is another than
    /// before, [`io::ErrorKind::TimedOut`] if the signaling server has not answered within 15 s; the text says what to
    /// do.
    pub async fn resolve(&self, host: &str) -> io::Result<Resolved> {
        let member = self.driver().lookup(Query::parse(host, self.network())).await;
        let member = member.map_err(|error| {
            let kind = match error.failure {
                LookupFailure::NotFound => io::ErrorKind::NotFound,
                LookupFailure::Untrusted => io::ErrorKind::PermissionDenied,
                LookupFailure::Unanswered => io::ErrorKind::TimedOut,
            };
            io::Error::new(kind, format!("{host}: {}", error.text))
        })?;
        Ok(Resolved {
            key: member.key,
            name: member.name,
            ipv4: member.ipv4,
            ipv6: member.ipv6,
            present: member.present,
        })
    }

    /// Finds the address to connect to: IPv4 for a name, which every program can show.
    pub(crate) async fn address(&self, target: &Target) -> io::Result<SocketAddr> {
        match target {
            Target::Address(address) => Ok(*address),
            Target::Name(name, port) if name == "localhost" => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))),
            Target::Name(name, port) => {
                let resolved = self.resolve(name).await?;
                if resolved.key == self.key() {
                    return Ok(SocketAddr::from((self.ipv4(), *port)));
                }
                if !resolved.present {
                    let text = format!("{name} is known, but not connected now; start it, then try again");
                    return Err(io::Error::new(io::ErrorKind::HostUnreachable, text));
                }
                Ok(SocketAddr::from((resolved.ipv4, *port)))
            }
        }
    }
}

/// Where to connect to, or to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An address and a port.
    Address(SocketAddr),
    /// A member's name and a port.
    Name(String, u16),
}

/// What can be written where an address is wanted.
pub trait ToAddress {
    /// Parses it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] with a sentence that says what it should look like.
    fn to_target(&self) -> io::Result<Target>;
}

impl ToAddress for str {
    fn to_target(&self) -> io::Result<Target> {
        if let Ok(address) = self.parse() {
            return Ok(Target::Address(address));
        }
        let parsed = self.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parsed {
            Some((host, port)) if !host.is_empty() => Ok(Target::Name(host.to_owned(), port)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("'{self}' is no address; it looks like NAME:PORT, 10.80.0.1:80 or [fd75:6e69::1]:80"),
            )),
        }
    }
}

impl ToAddress for String {
    fn to_target(&self) -> io::Result<Target> {
        self.as_str().to_target()
    }
}

impl ToAddress for (&str, u16) {
    fn to_target(&self) -> io::Result<Target> {
        match self.0.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => Ok(Target::Address(SocketAddr::new(ip, self.1))),
            Err(_) => Ok(Target::Name(self.0.to_owned(), self.1)),
        }
    }
}

impl ToAddress for SocketAddr {
    fn to_target(&self) -> io::Result<Target> {
        Ok(Target::Address(*self))
    }
}

impl<T: ToAddress + ?Sized> ToAddress for &T {
    fn to_target(&self) -> io::Result<Target> {
        (**self).to_target()
    }
}

/// Turns an error of the stack into one of the standard library, with its errno.
pub(crate) fn io_error(error: unisockets_stack::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_told_apart() {
        assert_eq!("[::]:80".to_target().unwrap(), Target::Address("[::]:80".parse().unwrap()));
        assert_eq!("alpha:80".to_target().unwrap(), Target::Name("alpha".into(), 80));
        assert_eq!(("::1", 80).to_target().unwrap(), Target::Address("[::1]:80".parse().unwrap()));
        for bad in ["alpha", ":80", "alpha:99999", ""] {
            assert_eq!(bad.to_target().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
