//! `serve`: a folder's files over HTTP.

use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::any;
use tower_http::services::ServeDir;
use unisockets::TcpListener;

use super::args::Serve;
use super::exit::Failure;
use super::listen::Listener;
use super::nc::announce;
use super::with_node;

pub(super) async fn run(options: Serve) -> Result<(), Failure> {
    let directory = options.directory.clone();
    if !directory.is_dir() {
        return Err(Failure::usage(format!("{} is no folder", directory.display())));
    }
    with_node(&options.common, |node| async move {
        let listener = TcpListener::bind(&node, ("::", options.port)).await?;
        announce(&node, listener.local_addr()?.port());
        axum::serve(Listener(listener), files(directory)).await?;
        Ok(())
    })
    .await
}

/// Files, index pages, and a list of a folder that has none.
pub(super) fn files(directory: PathBuf) -> Router {
    let list = any(list).with_state(directory.clone());
    Router::new().fallback_service(ServeDir::new(directory).fallback(list))
}

async fn list(State(root): State<PathBuf>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let Some(folder) = inside(&root, &path).filter(|folder| folder.is_dir()) else {
        return (StatusCode::NOT_FOUND, "not found\n").into_response();
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return (StatusCode::FORBIDDEN, "this folder cannot be read\n").into_response();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    let item = |name: &String| format!("<li><a href=\"{}\">{}</a></li>\n", encode(name), escape(name));
    let rows: String = names.iter().map(item).collect();
    let title = escape(&decode(&path).unwrap_or(path));
    Html(format!("<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>\n<ul>\n{rows}</ul>\n"))
        .into_response()
}

/// Finds the folder that a path means, without leaving the root.
fn inside(root: &Path, path: &str) -> Option<PathBuf> {
    let mut folder = root.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let part = decode(part)?;
        if part == "." || part == ".." || part.contains(['/', '\\', '\0']) {
            return None;
        }
        folder.push(part);
    }
    Some(folder)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Undoes [`encode`] for one part of a path.
fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let digits = [char::from(rest.next()?).to_digit(16)?, char::from(rest.next()?).to_digit(16)?];
                (digits[0] * 16 + digits[1]) as u8
            }
            byte => byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

/// Percent-encodes what has a meaning in a URL (RFC 3986, section 2.1).
fn encode(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
