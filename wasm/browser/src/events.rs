//! What the module tells its page, as texts of JSON.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;
use unisockets::core::{LookupError, LookupFailure};
use unisockets_signaling::identity::PublicKey;
use unisockets_signaling::pins::Pins;
use unisockets_signaling::protocol::{Code, Member};

/// What was learnt about the membership.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Event<'a> {
    Joined {
        key: PublicKey,
        network: &'a str,
        name: Option<&'a str>,
        ipv4: Ipv4Addr,
        ipv6: Ipv6Addr,
    },
    Rejected {
        code: Code,
        message: &'a str,
    },
    Disconnected,
    /// The keys that names were pinned to have changed.
    Pins {
        pins: &'a Pins,
    },
}

/// The answer to a question.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    Member(Member),
    Members(Vec<Member>),
    Error { code: &'static str, text: String },
}

impl From<LookupError> for Answer {
    fn from(error: LookupError) -> Self {
        let code = match error.failure {
            LookupFailure::NotFound => "ENOTFOUND",
            LookupFailure::Untrusted => "EACCES",
            LookupFailure::Unanswered => "EAI_AGAIN",
        };
        Answer::Error { code, text: error.text }
    }
}

pub(crate) fn text(said: &impl Serialize) -> String {
    serde_json::to_string(said).expect("all that is told has a JSON form")
}
