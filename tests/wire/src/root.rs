//! The rights that namespaces and devices need, and how a test gets them.

use std::process::{Command, Stdio};

/// Set in a process that was started again inside a user namespace.
const INSIDE: &str = "UNISOCKETS_INSIDE_USER_NAMESPACE";
/// Makes `/run` the namespace's own, because `ip netns` keeps its names there.
const SCRIPT: &str = "mount -t tmpfs tmpfs /run && exec \"$@\"";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn found(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// Starts a command in new user, network and mount namespaces, as their root.
fn unshared(words: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c", SCRIPT, "sh"]).args(words);
    command.env(INSIDE, "1");
    command
}

/// Says why no wire can be made here, if so; each reason with what to do about it.
pub fn obstacle() -> Option<String> {
    if !found("ip") {
        return Some("'ip' is missing: install the package iproute2".to_owned());
    }
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if let Err(error) = device {
        return Some(format!("/dev/net/tun cannot be opened ({error}): load the module tun, or run as root"));
    }
    if is_root() {
        return None;
    }
    let tried = unshared(&["true"]).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "not root, and this system makes no user namespaces ({}): run as root",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("not root, and 'unshare' does not start ({error}): run as root")),
    }
}

/// Returns whether the calling test has the rights of root. Where it has not, it has been run again inside a user
/// namespace, with success, and the caller must do nothing more.
///
/// # Panics
/// If no wire can be made here, with the reason, unless `UNISOCKETS_SKIP_NAMESPACES` is set: then it says so and
/// returns false. If the test failed inside. Outside of a test thread, whose name is the test's.
pub fn as_root() -> bool {
    if let Some(obstacle) = obstacle() {
        if std::env::var_os("UNISOCKETS_SKIP_NAMESPACES").is_some() {
            eprintln!("SKIPPED, as UNISOCKETS_SKIP_NAMESPACES wants: {obstacle}");
            return false;
        }
        panic!("{obstacle}; or set UNISOCKETS_SKIP_NAMESPACES to go without this test");
    }
    if is_root() {
        return true;
    }
    assert!(std::env::var_os(INSIDE).is_none(), "a user namespace without root");
    let test = std::thread::current().name().expect("a test's thread has its name").to_owned();
    let program = std::env::current_exe().expect("this program's path");
    let program = program.to_str().expect("a path in UTF-8");
    let status = unshared(&[program, "--exact", &test, "--nocapture"]).status().expect("unshare starts");
    assert!(status.success(), "{test} failed inside its user namespace: {status}");
    false
}
