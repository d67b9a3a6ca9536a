//! Why a command doesn't run: what the host is told instead of `Started`.

use std::fmt::Display;
use std::io;

use bothy_guest::protocol::{NotStarted, ProcessId, Report};

/// Longer messages are cut: a name in them may be as long as an argument.
const MAX_MESSAGE: usize = 4096;

/// A reason and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: NotStarted,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(reason: NotStarted, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(NotStarted::Other, message)
    }

    /// As it goes to the host.
    pub(crate) fn report(self, id: ProcessId) -> Report {
        Report::NotStarted { id, reason: self.reason, message: shortened(self.message) }
    }
}

/// Cuts what is too long to be sent.
pub(crate) fn shortened(mut message: String) -> String {
    let end = (0..=MAX_MESSAGE.min(message.len())).rev().find(|end| message.is_char_boundary(*end));
    message.truncate(end.unwrap_or(0));
    message
}

/// Names what failed.
pub(crate) trait Failing<T> {
    fn failing(self, what: impl Display) -> Result<T, Refusal>;
}

impl<T, E: Into<io::Error>> Failing<T> for Result<T, E> {
    fn failing(self, what: impl Display) -> Result<T, Refusal> {
        self.map_err(|error| Refusal::other(format!("{what}: {}", error.into())))
    }
}
