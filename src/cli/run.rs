//! `run`: a program that knows nothing of the network, on it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::args;
use super::exit::Failure;

/// The library that is put before programs.
const LIBRARY: &str = "libunisockets_preload.so";

/// Becomes the program: its process number, terminal, signals and exit status are those of this command.
pub(super) async fn run(options: &args::Run) -> Result<(), Failure> {
    super::isolate::hear_of_children()?;
    let program = find(&options.program[0])?;
    if !options.preload {
        return super::namespace::run(options, &program).await;
    }
    check(&program)?;
    let library = library()?;
    let node = start_node(options)?;
    let mut preload = library.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let mut command = Command::new(&program);
    command.arg0(&options.program[0]).args(&options.program[1..]);
    let error = command.env("LD_PRELOAD", preload).env("UNISOCKETS_NODE", node).exec();
    Err(Failure::not_runnable(format!("cannot run {}: {error}", program.display())))
}

/// Starts a node that follows this process, which becomes the program; returns what goes into UNISOCKETS_NODE.
fn start_node(options: &args::Run) -> Result<OsString, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(node_arguments(options)).arg("--background").arg("--follow").arg(std::process::id().to_string());
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().find_map(|line| line.strip_prefix(super::node::INVITATION)) {
        Some(path) => Ok(OsString::from(path)),
        None => Err(Failure::silent(output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
    }
}

/// Returns what starts the node of a program: the options of this command that are the node's too.
pub(super) fn node_arguments(options: &args::Run) -> Vec<OsString> {
    // The same options are this command's and the node's.
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let own = given.len() - options.program.len();
    let kept = given[..own].iter().filter(|argument| *argument != "--preload" && *argument != "--");
    let mut named = false;
    let arguments = kept.map(|argument| {
        // The command's name is the first that equals it: a value of an option before it would be one of --log's.
        if !named && argument == "run" {
            named = true;
            return OsString::from("node");
        }
        argument.clone()
    });
    arguments.collect()
}

/// Finds a program as the shell does.
fn find(name: &OsString) -> Result<PathBuf, Failure> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return Ok(path.to_owned());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(path)).find(|file| is_program(file));
    found.ok_or_else(|| Failure::not_found(format!("{}: no such program is on PATH", path.display())))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|entry| entry.is_file() && entry.permissions().mode() & 0o111 != 0)
}

/// Finds the preloaded library: beside this program, or where it is installed.
fn library() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let places =
        [folder.join(LIBRARY), folder.join("../lib/unisockets").join(LIBRARY), folder.join("../lib").join(LIBRARY)];
    places.into_iter().find(|place| place.is_file()).ok_or_else(|| {
        let folder = folder.display();
        Failure::failed(format!("{LIBRARY} is not beside {folder} nor in ../lib; 'make install' installs it"))
    })
}

/// Refuses what a preloaded library does nothing for: programs that are linked statically.
fn check(program: &Path) -> Result<(), Failure> {
    let bytes = std::fs::read(program).map_err(|error| {
        let text = format!("cannot run {}: {error}", program.display());
        if error.kind() == std::io::ErrorKind::NotFound {
            Failure::not_found(text)
        } else {
            Failure::not_runnable(text)
        }
    })?;
    if is_static(&bytes) == Some(true) {
        return Err(Failure::failed(format!(
            "{} is linked statically, so nothing can be preloaded; 'unisockets run' without --preload runs it",
            program.display()
        )));
    }
    Ok(())
}

/// Whether a program names no loader (elf(5), PT_INTERP); nothing if it is no 64-bit program of this byte order.
fn is_static(bytes: &[u8]) -> Option<bool> {
    const PROGRAM: usize = 2;
    const INTERPRETER: u32 = 3;
    let number = |at: usize, len: usize| -> Option<usize> {
        let mut number = [0; 8];
        number[..len].copy_from_slice(bytes.get(at..at + len)?);
        usize::try_from(u64::from_le_bytes(number)).ok()
    };
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let has_interpreter = (0..count).any(|index| number(table + index * entry, 4) == Some(INTERPRETER as usize));
    Some(!has_interpreter && (number(16, 2)? == PROGRAM || number(16, 2)? == PROGRAM + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_not_static_and_a_script_is_no_program() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(is_static(&own), Some(false));
        assert_eq!(is_static(b"#!/bin/sh\n"), None);
        assert_eq!(is_static(b"\x7fELF\x02\x01"), None);
    }
}
