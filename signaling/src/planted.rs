//! Mistakes of a signaling server and its members, one of which a simulation chooses to see whether it finds it. Not part of a normal build.

use std::cell::Cell;

#[cfg(not(debug_assertions))]
compile_error!("planted bugs are for tests, not for what is released");

/// A mistake; `planted!` marks its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A lease that was renewed or given is not made durable.
    LeaseNotStored,
    /// An address that was given back is free while a proof of it still holds.
    ReleasedAtOnce,
    /// Who comes back without asking gets another address.
    AddressNotKept,
    /// The end of a session that was replaced takes the new one out.
    OldSessionStays,
    /// Who shows the token of its session is taken for a stranger with its key.
    ResumeIgnored,
    /// What was asked before the connection broke is not asked again.
    QuestionsForgotten,
    /// An introduction that was seen before is believed again.
    ReplayAccepted,
    /// An introduction is believed whoever has signed it.
    SignatureUnchecked,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Bug] = &[
        Bug::LeaseNotStored,
        Bug::ReleasedAtOnce,
        Bug::AddressNotKept,
        Bug::OldSessionStays,
        Bug::ResumeIgnored,
        Bug::QuestionsForgotten,
        Bug::ReplayAccepted,
        Bug::SignatureUnchecked,
    ];
}

thread_local! {
    static CHOSEN: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Chooses the mistake of this thread.
pub fn choose(bug: Option<Bug>) {
    CHOSEN.set(bug);
}

pub(crate) fn is(bug: Bug) -> bool {
    CHOSEN.get() == Some(bug)
}

/// Says whether a mistake is to be made here.
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is($crate::planted::Bug::$bug)
    };
}
