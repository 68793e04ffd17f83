//! The library that comes before the C library, for the tests that need it.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

#[path = "cargo.rs"]
mod cargo;

/// Builds the library for preloading beside the tool that is tested, once; returns the folder of both.
pub fn preload() -> &'static Path {
    static FOLDER: OnceLock<&Path> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_unisockets")).parent().expect("the tool is in a profile's folder");
        let target = folder.parent().expect("a profile's folder is in the target's");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "-p", "unisockets-preload"]).env("CARGO_TARGET_DIR", target);
        let status = cargo::without_package(&mut build).current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(status.expect("cargo runs").success(), "the preloaded library is built");
        folder
    })
}
