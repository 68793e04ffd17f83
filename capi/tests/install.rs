//! What `make install` lays down is found by pkg-config, by CMake, by the loader and by man.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../tests/support/cargo.rs"]
mod cargo;

const PROGRAM: &str = r#"
#include <stdio.h>
#include <string.h>
#include <unisockets.h>
int main(void) {
    int fd = unisockets_socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || unisockets_close(fd) != 0) return 1;
    if (strcmp(unisockets_version(), UNISOCKETS_VERSION) != 0) return 2;
    puts(unisockets_version());
    return 0;
}
"#;

const LISTS: &str = "
cmake_minimum_required(VERSION 3.16)
project(user C)
find_package(unisockets VERSION REQUIRED)
foreach(kind unisockets static)
  add_executable(by-${kind} program.c)
  target_link_libraries(by-${kind} unisockets::${kind})
endforeach()
";

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let folder = std::env::temp_dir().join(format!("unisockets-install-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    /// Runs a shell's words in the folder and returns what they print.
    fn sh(&self, words: &str) -> String {
        let mut sh = Command::new("sh");
        sh.args(["-euc", words]).current_dir(&self.0).env_remove("LD_LIBRARY_PATH");
        sh.env("PKG_CONFIG_PATH", self.0.join("usr/lib/pkgconfig"));
        let output = sh.output().expect("sh runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}\n{said}{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_installed_is_found_by_everything_that_builds() {
    let folder = Folder::new();
    let own = std::env::current_exe().unwrap();
    let target = own.ancestors().nth(3).expect("a test is in a profile's deps, in a target folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("capi lies in the repository");
    let mut install = Command::new(root.join("packaging/install"));
    install.arg(folder.0.join("usr")).env("PROFILE", "dev").env("CARGO_TARGET_DIR", target);
    let output = cargo::without_package(&mut install).output().expect("packaging/install runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let version = env!("CARGO_PKG_VERSION");
    std::fs::write(folder.0.join("program.c"), PROGRAM).unwrap();
    assert_eq!(folder.sh("pkg-config --modversion unisockets"), version);
    let shared = "cc -Wall -Werror program.c -o shared $(pkg-config --cflags --libs unisockets) && \
                  LD_LIBRARY_PATH=usr/lib ldd ./shared | grep -c libunisockets.so.0 && LD_LIBRARY_PATH=usr/lib ./shared";
    assert_eq!(folder.sh(shared), format!("1\n{version}"));
    // As pkg-config's own manual has it: what is private comes with --static.
    let alone = "cc -Wall -Werror program.c -o alone $(pkg-config --cflags unisockets) \
                 $(pkg-config --static --libs unisockets | sed s/-lunisockets/-l:libunisockets.a/) && \
                 ! ldd ./alone | grep libunisockets && ./alone";
    assert_eq!(folder.sh(alone), version);
    // A program that is recompiled, and not changed.
    let aliased = "printf '#include <sys/socket.h>\n#include <unistd.h>\n\
                   int main(void) { return close(socket(AF_INET, SOCK_STREAM, 0)); }' >plain.c && \
                   cc -DUNISOCKETS_WITH_ALIAS -include unisockets.h plain.c -o plain \
                   $(pkg-config --cflags --libs unisockets) && LD_LIBRARY_PATH=usr/lib ./plain && \
                   nm -D plain | grep -c 'U unisockets_socket'";
    assert_eq!(folder.sh(aliased), "1");

    std::fs::write(folder.0.join("CMakeLists.txt"), LISTS.replace("VERSION REQUIRED", &format!("{version} REQUIRED")))
        .unwrap();
    let cmake = "cmake -S . -B made -DCMAKE_PREFIX_PATH=\"$PWD/usr\" -DCMAKE_C_FLAGS=-Werror >/dev/null && \
                 cmake --build made >/dev/null && made/by-unisockets && made/by-static";
    assert_eq!(folder.sh(cmake), format!("{version}\n{version}"));
    // A newer version than the one that is there is refused.
    let newer = "sed 's/find_package(unisockets [0-9.]*/find_package(unisockets 99/' -i CMakeLists.txt && \
                 ! cmake -S . -B newer -DCMAKE_PREFIX_PATH=\"$PWD/usr\" >/dev/null 2>&1";
    folder.sh(newer);

    assert_eq!(folder.sh("usr/bin/unisockets --version"), format!("unisockets {version}"));
    assert!(folder.sh("cat usr/share/man/man1/unisockets-run.1").contains("namespace"));
    folder.sh("bash -n usr/share/bash-completion/completions/unisockets");
    // Nothing is exported but what the header declares.
    let exported = "nm -D --defined-only usr/lib/libunisockets.so | grep ' T ' | grep -vc ' unisockets_' || true";
    assert_eq!(folder.sh(exported), "0");
}
