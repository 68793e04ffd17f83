//! STUN and TURN servers as options name them: `stun:HOST:PORT` and `turn:USER:PASSWORD@HOST:PORT`, which adds the
//! user to RFC 7064 and RFC 7065.

use unisockets_signaling::protocol::IceServer;

use super::exit::Failure;

/// Parses a server for members, browsers among them.
pub(super) fn members_server(url: &str) -> Result<IceServer, Failure> {
    let bad = || {
        Failure::usage(format!(
            "'{}' is no server; it looks like stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT",
            without_password(url)
        ))
    };
    let (scheme, rest) = url.split_once(':').ok_or_else(bad)?;
    match (scheme, rest.rsplit_once('@')) {
        // These have no options (RFC 7064, section 3.1); browsers refuse them.
        ("stun" | "stuns", None) if !rest.is_empty() && !rest.contains('?') => {
            Ok(IceServer { url: url.to_owned(), username: String::new(), credential: String::new() })
        }
        ("turn" | "turns", Some((user, host))) if !host.is_empty() => {
            let (username, credential) = user.split_once(':').ok_or_else(bad)?;
            let (username, credential) = (username.to_owned(), credential.to_owned());
            Ok(IceServer { url: format!("{scheme}:{host}"), username, credential })
        }
        _ => Err(bad()),
    }
}

/// Parses a server for a node of this machine, which reaches servers over UDP only.
pub(super) fn own_server(url: &str) -> Result<unisockets_link::IceServer, Failure> {
    let IceServer { url, username, credential } = members_server(url)?;
    let transport = url.split_once("?transport=").map_or("udp", |(_, transport)| transport);
    if !(url.starts_with("stun:") || url.starts_with("turn:")) || transport != "udp" {
        return Err(Failure::usage(format!("'{url}' cannot be used here: links reach servers over UDP, without TLS")));
    }
    Ok(unisockets_link::IceServer { url, username, credential })
}

/// Returns a server's URL as it may be shown.
fn without_password(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((user, host)) => format!("{}:...@{host}", user.split(':').take(2).collect::<Vec<_>>().join(":")),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_server_has_its_user_and_any_password() {
        let server = own_server("turn:me:p:w@2@relay.example:3478?transport=udp").unwrap_or_else(|_| panic!("usable"));
        assert_eq!(server.url, "turn:relay.example:3478?transport=udp");
        assert_eq!((server.username.as_str(), server.credential.as_str()), ("me", "p:w@2"));
    }

    #[test]
    fn what_links_cannot_reach_is_refused_for_a_node_only() {
        for url in ["turns:me:pw@relay.example", "turn:me:pw@relay.example?transport=tcp"] {
            assert!(members_server(url).is_ok() && own_server(url).is_err(), "{url}");
        }
        for url in [
            "turn:relay.example",
            "turn:me@relay.example",
            "turn:me:pw@",
            "stun:",
            "stun:relay.example?transport=udp",
            "relay.example",
        ] {
            assert!(members_server(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(without_password("turm:me:pa:ss@relay.example"), "turm:me:...@relay.example");
        assert_eq!(without_password("stun"), "stun");
    }
}
