//! The page that browsers are served, and the origins at which it shows members' pages.
//!
//! Whatever a member serves is a stranger's code. It is shown at an origin of its own, one for each member's port, which
//! has nothing to do with the page's: no storage, no keys, no connections to this server. At these origins the server
//! hands out three files of its own, whatever is asked for, and a browser's service worker answers everything else.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower_http::services::ServeDir;

use crate::hosts::{HostName, PAGE_ON_LOOPBACK};

/// The folder of the files that frames get, beside the page.
const FRAME_FOLDER: &str = "frame";
/// What a browser asks for first, and what its service worker leaves to the server.
const OWN_FILES: &str = "/~unisockets/";
/// Characters of a member's name below the page's, or below a wildcard.
const LABEL_LEN: usize = 40;

/// What browsers are served.
#[derive(Debug, Clone)]
pub struct Page {
    /// The folder with the page, as `make page` builds it.
    pub folder: PathBuf,
    /// Where members' pages are shown; when the page is at [`PAGE_ON_LOOPBACK`], that is below this name.
    pub frame_origin: Option<FrameOrigin>,
}

/// An origin for each member: `https://*.frames.example`, perhaps with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameOrigin {
    scheme: &'static str,
    /// With the dot before it, in lower case.
    suffix: String,
    port: Option<u16>,
}

/// A text that is no origin for members' pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFrameOrigin(String);

impl fmt::Display for BadFrameOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is no origin for members' pages; it looks like https://*.frames.example", self.0)
    }
}

impl std::error::Error for BadFrameOrigin {}

impl FromStr for FrameOrigin {
    type Err = BadFrameOrigin;

    fn from_str(text: &str) -> Result<Self, BadFrameOrigin> {
        let bad = || BadFrameOrigin(text.chars().take(300).collect());
        let (scheme, rest) = match text.split_once("://") {
            Some(("https", rest)) => ("https", rest),
            Some(("http", rest)) => ("http", rest),
            _ => return Err(bad()),
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| bad())?)),
            None => (rest, None),
        };
        let suffix =
            host.strip_prefix('*').filter(|suffix| suffix.starts_with('.') && suffix.len() > 1).ok_or_else(bad)?;
        let plain = |sign: char| sign.is_ascii_alphanumeric() || matches!(sign, '.' | '-');
        if !suffix.chars().all(plain) || suffix.contains("..") {
            return Err(bad());
        }
        Ok(FrameOrigin { scheme, suffix: suffix.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for FrameOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://*{}", self.scheme, self.suffix)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Which hosts are members' origins, and who may show them.
struct Frames {
    page: Page,
    /// Origins of the page, for a wildcard.
    parents: String,
}

impl Frames {
    /// Returns which origins may show what is at a host (CSP, `frame-ancestors`); nothing if it is no member's.
    fn parents_of(&self, host: &str) -> Option<String> {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => (name, format!(":{port}")),
            _ => (host, String::new()),
        };
        let name = name.to_ascii_lowercase();
        // A part of a SHA-256, as the page makes it; the server's own name below a wildcard is none.
        let is_label = |label: &str| label.len() == LABEL_LEN && label.bytes().all(|byte| byte.is_ascii_hexdigit());
        let below = name.strip_suffix(PAGE_ON_LOOPBACK).and_then(|rest| rest.strip_suffix('.'));
        if below.is_some_and(is_label) {
            return Some(format!("http://{PAGE_ON_LOOPBACK}{port} https://{PAGE_ON_LOOPBACK}{port}"));
        }
        let suffix = &self.page.frame_origin.as_ref()?.suffix;
        name.strip_suffix(suffix.as_str()).is_some_and(is_label).then(|| self.parents.clone())
    }
}

impl Frames {
    /// Returns what the page may show when it is called by a host, and who may show the page: nobody. No port of this
    /// machine but the server's own is let in: a member's page may lead the frame around it to any.
    fn policy_at(&self, host: &str) -> String {
        let port = host
            .strip_prefix(PAGE_ON_LOOPBACK)
            .filter(|port| port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok()));
        let loopback = port.map(|port| format!("http://*.{PAGE_ON_LOOPBACK}{port} https://*.{PAGE_ON_LOOPBACK}{port}"));
        let wildcard = self.page.frame_origin.as_ref().map(ToString::to_string);
        let sources = [loopback, wildcard].into_iter().flatten().collect::<Vec<_>>().join(" ");
        format!("frame-src 'self' {sources}; frame-ancestors 'none'")
    }
}

/// Adds the page to what a server answers.
pub(crate) fn with_page<S>(router: Router<S>, page: &Page, hosts: &[HostName]) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let origin = page.frame_origin.as_ref();
    let scheme = origin.map_or("https", |origin| origin.scheme);
    // The page is on the port of the frames: one server hands both out.
    let port = origin.and_then(|origin| origin.port).map(|port| format!(":{port}")).unwrap_or_default();
    let parent = |host: &HostName| {
        // One that was given with its port has it already.
        let port = if host.port().is_some() { "" } else { &port };
        format!("{scheme}://{host}{port}")
    };
    let parents: Vec<_> = hosts.iter().map(parent).collect();
    let told = origin.map(ToString::to_string).unwrap_or_default();
    let tell = move || std::future::ready(told.clone());
    let frames = Frames { page: page.clone(), parents: parents.join(" ") };
    router
        .route("/frame-origin", get(tell))
        .fallback_service(ServeDir::new(&page.folder))
        .layer(from_fn_with_state(Arc::new(frames), divide))
}

/// Answers for members' origins itself, and lets everything else pass.
async fn divide(State(frames): State<Arc<Frames>>, request: Request, next: Next) -> Response {
    let headers = request.headers().clone();
    let mut response = answer(&frames, request, next, &headers).await;
    // Members' origins are below the page's own site: without this a script of theirs that never ends would stop the
    // page with them (HTML, origin-keyed agent clusters).
    response.headers_mut().insert("origin-agent-cluster", HeaderValue::from_static("?1"));
    response
}

async fn answer(frames: &Frames, request: Request, next: Next, headers: &HeaderMap) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    match frames.parents_of(host) {
        Some(parents) if matches!(*request.method(), Method::GET | Method::HEAD) => {
            own_file(&frames.page.folder, request.uri().path(), &parents).await
        }
        Some(_) => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        None => {
            let policy = frames.policy_at(host);
            let mut response = next.run(request).await;
            if let Ok(policy) = HeaderValue::from_str(&policy) {
                response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
            }
            response
        }
    }
}

/// Serves what every member's origin has: a script, a service worker, and the frame for everything else.
async fn own_file(folder: &Path, path: &str, parents: &str) -> Response {
    let (file, kind) = match path.strip_prefix(OWN_FILES) {
        Some("frame.js") => ("frame.js", "text/javascript"),
        Some("worker.js") => ("worker.js", "text/javascript"),
        _ => ("index.html", "text/html; charset=utf-8"),
    };
    let Ok(contents) = tokio::fs::read(folder.join(FRAME_FOLDER).join(file)).await else {
        return (StatusCode::NOT_FOUND, "this page was built without frames: build it again with 'make page'\n")
            .into_response();
    };
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors {parents}"
    );
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("service-worker-allowed"), HeaderValue::from_static("/")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'")),
        ),
    ];
    (headers, contents).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(origin: Option<&str>) -> Frames {
        let frame_origin = origin.map(|origin| origin.parse().unwrap());
        Frames { page: Page { folder: PathBuf::new(), frame_origin }, parents: "https://signal.example".to_owned() }
    }

    #[test]
    fn an_origin_is_read_and_written() {
        for good in ["https://*.frames.example", "http://*.frames.example:8080", "https://*.a"] {
            assert_eq!(good.parse::<FrameOrigin>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "frames.example",
            "https://frames.example",
            "https://*",
            "https://*.",
            "ftp://*.a",
            "https://*.a/b",
            "https://*.a..b",
            "https://*.a:b",
            "https://*.a; x",
        ] {
            assert!(bad.parse::<FrameOrigin>().is_err(), "{bad}");
        }
    }

    const LABEL: &str = "0123456789abcdefABCD0123456789abcdef0123";

    #[test]
    fn only_one_label_below_is_a_members_origin() {
        let local = frames(None);
        let parents = local.parents_of(&format!("{LABEL}.unisockets.LOCALHOST:7080")).unwrap();
        assert!(parents.starts_with("http://unisockets.localhost:7080 "), "{parents}");
        for host in [
            "localhost:7080",
            "unisockets.localhost:7080",
            ".unisockets.localhost",
            "a.b.unisockets.localhost",
            "a-b.unisockets.localhost",
            "aunisockets.localhost",
            "127.0.0.1:7080",
            "",
            "abc123.unisockets.localhost",
            &format!("{LABEL}.frames.example"),
        ] {
            assert_eq!(local.parents_of(host), None, "{host}");
        }
        let wide = frames(Some("https://*.frames.example"));
        assert_eq!(wide.parents_of(&format!("{LABEL}.frames.example")).as_deref(), Some("https://signal.example"));
        assert_eq!(wide.parents_of("signal.frames.example"), None, "the server itself may be below the wildcard");
        assert_eq!(wide.parents_of("frames.example"), None);
        assert_eq!(wide.parents_of("signal.example"), None);
        assert_eq!(
            wide.policy_at("signal.example"),
            "frame-src 'self' https://*.frames.example; frame-ancestors 'none'"
        );
        let policy = local.policy_at("unisockets.localhost:7080");
        assert!(policy.contains("http://*.unisockets.localhost:7080 ") && !policy.contains(":*"), "{policy}");
        assert_eq!(local.policy_at("unisockets.localhost:7080; x"), "frame-src 'self' ; frame-ancestors 'none'");
    }
}
