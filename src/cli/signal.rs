//! `signal serve`: a signaling server.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use unisockets_signaling::room::Admission;
use unisockets_signaling::server::{Config, PAGE_ON_LOOPBACK, Page, Server};
use unisockets_signaling::tls::Files;

use super::args::{SignalCommand, SignalServe};
use super::exit::{Failure, interrupted};
use super::servers::members_server;

pub(super) async fn run(SignalCommand::Serve(options): SignalCommand) -> Result<(), Failure> {
    let mut config = Config::new(options.listen);
    config.prefix = parse_prefix(&options.prefix)?;
    config.ice_servers = options.ice_server.iter().map(|url| members_server(url)).collect::<Result<_, _>>()?;
    config.hosts = options.host.iter().map(|host| host.parse().map_err(Failure::usage)).collect::<Result<_, _>>()?;
    if options.open {
        config.admission = Admission::Open;
    }
    let SignalServe { data, tls_cert, tls_key, json, page, frame_origin, .. } = options;
    config.data = data;
    let folder = match page {
        Some(folder) if folder.join("index.html").is_file() => Some(folder),
        Some(folder) => {
            let text =
                format!("{} holds no index.html; 'make page' builds the page in wasm/browser/site", folder.display());
            return Err(Failure::usage(text));
        }
        None => built_page(),
    };
    let frame_origin = frame_origin.map(|origin| origin.parse().map_err(Failure::usage)).transpose()?;
    if frame_origin.is_some() && (folder.is_none() || config.hosts.is_empty()) {
        let text = "--frame-origin says where a page shows members' pages: it needs a page ('make page'), and the page's \
                    own name with --host";
        return Err(Failure::usage(text));
    }
    config.page = folder.map(|folder| Page { folder, frame_origin });
    let serves_page = config.page.is_some();
    config.tls = match (tls_cert, tls_key) {
        (Some(certificate), Some(key)) => Some(Files { certificate, key }),
        (None, None) => None,
        _ => return Err(Failure::usage("--tls-cert and --tls-key belong together: give both, or neither")),
    };
    // Each member is an open file, and shells allow 1,024 by default, for the sake of programs that use select. More is
    // better than that, but what the system refuses is no reason not to serve.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files, and so of members, stays as it is");
    }
    let server = Server::start(config).await.map_err(Failure::failed)?;
    // Whoever started this reads the first line and may then close the pipe.
    let line = if json { serde_json::json!({ "url": server.url() }).to_string() } else { server.url() };
    let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("{line}\n").as_bytes());
    if serves_page && !json {
        eprintln!("a browser joins at {}/", page_url(&server.url()));
    }
    let _ = interrupted().await;
    server.stop().await;
    Ok(())
}

/// Finds the page that was installed with this program, or built beside it.
pub(super) fn built_page() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?;
    let places = ["../share/unisockets/page", "../../wasm/browser/site"];
    places.iter().map(|place| folder.join(place)).find(|place| place.join("index.html").is_file())
}

/// Returns what a browser calls a signaling server.
pub(super) fn page_url(url: &str) -> String {
    // Without a certificate, browsers allow keys and clipboards to localhost only.
    url.replacen("ws", "http", 1).replace("//127.0.0.1:", &format!("//{PAGE_ON_LOOPBACK}:"))
}

fn parse_prefix(text: &str) -> Result<(Ipv4Addr, u8), Failure> {
    let parsed = text.split_once('/').and_then(|(address, len)| Some((address.parse().ok()?, len.parse().ok()?)));
    match parsed {
        Some((address, _)) if !is_usable(address) => Err(Failure::usage(format!(
            "members cannot have addresses such as {address}; take a prefix like 10.80.0.0/16"
        ))),
        Some((address, len @ 8..=30)) => Ok((address, len)),
        _ => Err(Failure::usage(format!("'{text}' is no prefix; it looks like 10.80.0.0/16, with 8 to 30 bits"))),
    }
}

/// Whether a member may have such an address: this machine's own, groups and the reserved rest are nobody's.
fn is_usable(address: Ipv4Addr) -> bool {
    !address.is_loopback() && (1..224).contains(&address.octets()[0])
}
