//! Gives the shared library its name and the symbols that it exports.

fn main() {
    println!("cargo:rerun-if-changed=unisockets.map");
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libunisockets.so.0");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--version-script={folder}/unisockets.map");
}
