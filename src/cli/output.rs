//! Lines for whoever reads them. A reader that goes away ends a command quietly, as `head` expects.

use std::fmt::Display;
use std::io::{self, Write};

use super::args::Common;
use super::exit::Failure;

/// Where a command's own lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lines {
    /// To standard output.
    Output,
    /// To standard error, because standard output is a capture.
    Error,
}

impl Lines {
    /// Chooses by a command's options.
    pub(super) fn of(common: &Common) -> Lines {
        if common.captures_to_stdout() { Lines::Error } else { Lines::Output }
    }

    /// Prints a line.
    pub(super) fn print(self, text: impl Display) -> Result<(), Failure> {
        match self {
            Lines::Output => print(text),
            Lines::Error => {
                note(text);
                Ok(())
            }
        }
    }
}

/// Prints a line to standard output.
pub(super) fn print(text: impl Display) -> Result<(), Failure> {
    write(format!("{text}\n").as_bytes())
}

/// Writes bytes to standard output.
pub(super) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| unwritable(&error))
}

/// Says what it means that standard output takes no more.
pub(super) fn unwritable(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(0),
        _ => Failure::failed(format!("standard output cannot be written: {error}")),
    }
}

/// Tells the user something on standard error. That nobody can read it is no reason to fail.
pub(super) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
