//! The control socket of a running command: this user's `status` asks it.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use unisockets::{Node, Status};

use super::output::note;

/// Largest answer, in bytes.
const ANSWER_LEN_MAX: u64 = 64 * 1024 * 1024;
/// How long a node may take to answer, and whoever asks to take the answer: either may be stopped.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Returns the folder of this user's control sockets.
pub(super) fn folder() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("unisockets"),
        None => std::env::temp_dir().join(format!("unisockets-{}", nix_uid())),
    }
}

fn nix_uid() -> u32 {
    // The owner of this process's own entry is this process's user.
    std::fs::metadata("/proc/self").map_or(0, |entry| std::os::unix::fs::MetadataExt::uid(&entry))
}

/// Removes the socket when the command ends.
pub(super) struct Control {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens the control socket. A command works without one, so failing is only worth a line in the log.
pub(super) fn serve(node: &Node) -> Option<Control> {
    let path = folder().join(format!("{}.sock", std::process::id()));
    let listener = match bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "no control socket: 'status' will not see this node");
            return None;
        }
    };
    let node = node.clone();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let text = serde_json::to_vec(&node.status()).expect("a status has a JSON form");
            let _ = timeout(ANSWER_LIMIT, stream.write_all(&text)).await;
        }
    });
    Some(Control { path, task })
}

/// Makes the folder of control sockets, which must be this user's own even in a shared place.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let entry = std::fs::symlink_metadata(folder)?;
    if !entry.is_dir() || std::os::unix::fs::MetadataExt::uid(&entry) != nix_uid() {
        return Err(io::Error::other("the folder belongs to somebody else"));
    }
    sweep(folder);
    Ok(())
}

/// Removes what killed nodes have left: sockets named by processes that are no more.
fn sweep(folder: &Path) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let process = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists()) {
            remove_dead(&path);
        }
    }
}

/// Removes a control socket that nobody serves any more; anything else stays, and is in the way.
pub(super) fn remove_dead(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|entry| entry.file_type().is_socket());
    let refused = || std::os::unix::net::UnixStream::connect(path).err().map(|error| error.kind());
    if is_socket && refused() == Some(io::ErrorKind::ConnectionRefused) {
        let _ = std::fs::remove_file(path);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Asks every running node of this user; sockets that nobody serves any more are removed.
pub(super) async fn ask_all() -> Vec<(u32, Status)> {
    let mut answers = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder()) else {
        return answers;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        // Beside them are the sockets that serve programs.
        let stem = path.file_stem().filter(|_| path.extension().is_some_and(|extension| extension == "sock"));
        let pid = stem.and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let Some(pid) = pid else {
            continue;
        };
        match timeout(ANSWER_LIMIT, ask(&path)).await {
            Ok(Ok(status)) => answers.push((pid, status)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => drop(std::fs::remove_file(&path)),
            Ok(Err(error)) => note(format_args!("unisockets: the node with pid {pid} gave no answer: {error}")),
            Err(_) => note(format_args!("unisockets: the node with pid {pid} does not answer; it may be stopped")),
        }
    }
    answers.sort_by_key(|(pid, _)| *pid);
    answers
}

async fn ask(path: &Path) -> io::Result<Status> {
    let mut answer = Vec::new();
    UnixStream::connect(path).await?.take(ANSWER_LEN_MAX).read_to_end(&mut answer).await?;
    Ok(serde_json::from_slice(&answer)?)
}
