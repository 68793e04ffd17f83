//! How commands end: exit codes, errors as one sentence, interruption.

use std::fmt;
use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use unisockets::JoinError;

use super::output::note;

/// The end of a command that did not do what was asked.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    text: Option<String>,
}

impl Failure {
    /// The command failed.
    pub(super) fn failed(text: impl fmt::Display) -> Failure {
        Failure { code: 1, text: Some(text.to_string()) }
    }

    /// The command line is wrong.
    pub(super) fn usage(text: impl fmt::Display) -> Failure {
        Failure { code: 2, text: Some(text.to_string()) }
    }

    /// The other side could not be reached.
    pub(super) fn unreachable(what: &str, error: &io::Error) -> Failure {
        let text = sentence(error);
        // A name that nobody has is named by the error already.
        let named = text.starts_with(&format!("{what}: "));
        Failure { code: 4, text: Some(if named { text } else { format!("{what}: {text}") }) }
    }

    /// The other side is there, but does not run what is needed.
    pub(super) fn absent(text: impl fmt::Display) -> Failure {
        Failure { code: 4, text: Some(text.to_string()) }
    }

    /// Data arrived damaged.
    pub(super) fn damaged(text: impl fmt::Display) -> Failure {
        Failure { code: 5, text: Some(text.to_string()) }
    }

    /// A program to run is not there: what shells say.
    pub(super) fn not_found(text: impl fmt::Display) -> Failure {
        Failure { code: 127, text: Some(text.to_string()) }
    }

    /// A program to run is there, but cannot be run: what shells say.
    pub(super) fn not_runnable(text: impl fmt::Display) -> Failure {
        Failure { code: 126, text: Some(text.to_string()) }
    }

    /// The failure was reported already.
    pub(super) fn silent(code: u8) -> Failure {
        Failure { code, text: None }
    }

    pub(super) fn report(&self) {
        if let Some(text) = &self.text {
            note(format_args!("unisockets: {text}"));
        }
    }

    pub(super) fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        let code = if matches!(error, JoinError::Settings(_)) { 2 } else { 3 };
        Failure { code, text: Some(error.to_string()) }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure { code: 1, text: Some(sentence(&error)) }
    }
}

/// Says what an error means and what to do about it.
pub(super) fn sentence(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens on that port",
        io::ErrorKind::HostUnreachable => {
            "no such member is there, or no way to it was found (a TURN server given to 'signal serve --ice-server' would be one)"
        }
        io::ErrorKind::NetworkUnreachable => "that address is outside the virtual network",
        io::ErrorKind::TimedOut => "there was no answer in time",
        io::ErrorKind::ConnectionReset => "the other side ended the connection",
        io::ErrorKind::AddrInUse => "that port is in use; choose another one",
        io::ErrorKind::AddrNotAvailable => "that address is not this node's",
        _ => return error.to_string(),
    };
    advice.to_owned()
}

/// Waits for Ctrl-C or SIGTERM.
pub(super) async fn interrupted() -> Failure {
    let mut terminate = signal(SignalKind::terminate()).expect("the runtime listens for signals");
    let mut interrupt = signal(SignalKind::interrupt()).expect("the runtime listens for signals");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Failure::silent(130)
}
