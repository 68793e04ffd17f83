//! The library that comes before the C library, for the tests that need it.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Takes away what the cargo of this test says of its package: to another cargo it looks like a reason to build anew.
fn without_package(command: &mut Command) {
    let of_package =
        |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR";
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        command.env_remove(name);
    }
}

/// Builds the library for preloading beside the tool that is tested, once; returns the folder of both.
pub fn preload() -> &'static Path {
    static FOLDER: OnceLock<&Path> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_unisockets")).parent().expect("the tool is in a profile's folder");
        let target = folder.parent().expect("a profile's folder is in the target's");
        let mut cargo = Command::new(env!("CARGO"));
        without_package(&mut cargo);
        cargo.args(["build", "--locked", "-p", "unisockets-preload"]).env("CARGO_TARGET_DIR", target);
        let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(status.expect("cargo runs").success(), "the preloaded library is built");
        folder
    })
}
