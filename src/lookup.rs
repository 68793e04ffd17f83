//! What became of a question for a member.

use unisockets_signaling::member::Failure;
use unisockets_signaling::protocol::Member;

/// A lookup that a program asked for has ended.
pub type Lookup = Result<Member, LookupError>;

/// Why a lookup failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupFailure {
    /// Nobody has that name, address or key: the signaling server's word.
    NotFound,
    /// There is an answer, and it contradicts what was shown before (threat T1).
    Untrusted,
    /// There is no answer: asking again later may bring one.
    Unanswered,
}

/// Why a lookup failed, with a text that says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupError {
    /// What kind of failure it is.
    pub failure: LookupFailure,
    /// The text.
    pub text: String,
}

impl LookupError {
    /// An answer that is not believed.
    pub(crate) fn untrusted(text: String) -> Self {
        Self { failure: LookupFailure::Untrusted, text }
    }

    /// No answer.
    pub fn unanswered(text: impl Into<String>) -> Self {
        Self { failure: LookupFailure::Unanswered, text: text.into() }
    }
}

impl From<Failure> for LookupError {
    fn from(failure: Failure) -> Self {
        let kind = match &failure {
            Failure::Forged => LookupFailure::Untrusted,
            failure if failure.is_not_found() => LookupFailure::NotFound,
            _ => LookupFailure::Unanswered,
        };
        Self { failure: kind, text: failure.to_string() }
    }
}
