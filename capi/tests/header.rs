//! The header is made of the sources, compiles everywhere, and its version is the library's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(folder().join("cbindgen.toml")).expect("cbindgen.toml is valid");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["network", "sockets", "transfer", "options", "names"] {
        builder = builder.with_src(folder().join("src").join(format!("{file}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().expect("the sources have a header").write(&mut text);
    let text = String::from_utf8(text).expect("a header is text");
    let text = text.replace("\"VERSION\"", concat!("\"", env!("CARGO_PKG_VERSION"), "\""));
    without_safety(&text)
}

/// Leaves out what the sources say to Rust only.
fn without_safety(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        skipping = (skipping || line == "// # Safety") && line.starts_with("//");
        if skipping {
            if lines.last() == Some(&"//") {
                lines.pop();
            }
        } else {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_header_is_that_of_the_sources() {
    let path = folder().join("include/unisockets.h");
    if std::env::var_os("UNISOCKETS_ACCEPT_HEADER").is_some() {
        fs::write(&path, generated()).expect("the header can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == generated(), "the header is stale: make accept-header writes it anew");
}

/// A program of two units that uses every part of the header.
fn units(folder: &Path, prologue: &str) -> [PathBuf; 2] {
    let body = format!(
        "{prologue}\n#include <unisockets.h>\n#include <unisockets.h>\n\
         int other(void);\n\
         int UNIT(void) {{\n\
         struct sockaddr_storage address;\n\
         socklen_t len = sizeof address;\n\
         struct unisockets_config config = {{0, 0, 0, 0, 0}};\n\
         int fd = unisockets_socket(AF_INET, SOCK_STREAM, 0);\n\
         if (unisockets_up(&config) != 0) return unisockets_errmsg()[0];\n\
         return unisockets_getsockname(fd, (struct sockaddr *)&address, &len) + unisockets_fcntl(fd, F_GETFL)\n\
         + (int)unisockets_recv(fd, &address, 1, 0) + unisockets_close(fd) + UNISOCKETS_VERSION[0];\n}}\n"
    );
    let (first, second) = (folder.join("first.c"), folder.join("second.c"));
    fs::write(&first, body.replace("UNIT", "main")).unwrap();
    fs::write(&second, body.replace("UNIT", "other")).unwrap();
    [first, second]
}

/// Whether a compiler knows a standard; a compiler that is not there is a failure.
fn knows(compiler: &str, language: &str, standard: &str) -> bool {
    let mut asked = Command::new(compiler);
    asked.args(["-x", language, &format!("-std={standard}"), "-fsyntax-only", "/dev/null"]);
    asked
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}; packaging/setup test installs it"))
        .status
        .success()
}

const PROLOGUES: [&str; 4] = [
    "#define _GNU_SOURCE 1",
    "#define _GNU_SOURCE 1\n#define UNISOCKETS_WITH_ALIAS",
    "#define _GNU_SOURCE 1\n#define UNISOCKETS_WITH_INVERSE_ALIAS",
    "#define _POSIX_C_SOURCE 200809L\n#define _DEFAULT_SOURCE 1",
];

/// Compiles a program of two units with one compiler in every way that it has; returns how many those were.
fn compile_everywhere(work: &Path, (compiler, language, standards): (&str, &str, &[&str])) -> usize {
    fs::create_dir_all(work).unwrap();
    let mut tried = 0;
    for standard in standards {
        // The name that a standard had before it was one.
        let known = knows(compiler, language, standard);
        let standard = if known { (*standard).to_owned() } else { standard.replace("c23", "c2x") };
        for (prologue, optimise) in PROLOGUES.iter().flat_map(|prologue| ["-O0", "-O2"].map(|o| (prologue, o))) {
            let objects = units(work, prologue).map(|unit| {
                let object = unit.with_extension("o");
                let mut compiling = Command::new(compiler);
                compiling.args(["-x", language, &format!("-std={standard}"), optimise, "-D_FORTIFY_SOURCE=2"]);
                compiling.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-cpp", "-Wno-macro-redefined"]);
                compiling.arg("-I").arg(folder().join("include")).arg("-c").arg("-o").arg(&object).arg(&unit);
                let output = compiling.output().expect("the compiler runs");
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{compiler} -std={standard} {optimise}\n{prologue}\n{said}");
                object
            });
            // Two units, no definition twice.
            let linked = Command::new("ld").arg("-r").arg("-o").arg(work.join("both.o")).args(&objects).output();
            let linked = linked.expect("the linker runs");
            assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
            tried += 1;
        }
    }
    tried
}

#[test]
fn the_header_compiles_without_a_warning_in_every_standard() {
    let work = tempfile();
    let (c, cpp) = (["c99", "c11", "c17", "c23", "gnu17"], ["c++11", "c++14", "c++17", "c++20"]);
    let compilers: [(&str, &str, &[&str]); 4] =
        [("gcc", "c", &c), ("clang", "c", &c), ("g++", "c++", &cpp), ("clang++", "c++", &cpp)];
    let tried: usize = std::thread::scope(|scope| {
        let work = &work;
        let all = compilers.map(|way| scope.spawn(move || compile_everywhere(&work.join(way.0), way)));
        all.map(|one| one.join().expect("every way compiles")).iter().sum()
    });
    assert_eq!(tried, 2 * (c.len() + cpp.len()) * PROLOGUES.len() * 2, "every standard, prologue and optimisation");
    let _ = fs::remove_dir_all(work);
}

fn tempfile() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("unisockets-header-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}
