//! Cargo, for tests that build something.

use std::process::Command;

/// Takes away what the cargo of this test says of its package: to another cargo it looks like a reason to build anew.
pub fn without_package(command: &mut Command) -> &mut Command {
    let of_package =
        |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR";
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        command.env_remove(name);
    }
    command
}
