//! Why nothing came from a registry, and which of it may pass.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::image::digest::shown;
use crate::image::files::ContentError;

/// Why a registry, or what stands in front of it, gives nothing. `host` is the registry as people
/// write it, or another host that it names.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// No connection, or one that broke.
    #[error("can't talk to {host}")]
    Transport {
        /// Whom.
        host: String,
        /// Why not.
        source: io::Error,
        /// Whether the same may work in a moment.
        transient: bool,
    },
    /// The image isn't there.
    #[error("{host} has no {}", shown(what))]
    NotFound {
        /// The registry.
        host: String,
        /// The image, or a part of it.
        what: String,
    },
    /// 401 or 403, with or without credentials.
    #[error("{host} refuses {}: {}", shown(what), denied(host, *login))]
    Denied {
        /// The registry.
        host: String,
        /// The image, or a part of it.
        what: String,
        /// Which credentials it got.
        login: Login,
    },
    /// A web page, with any status: not a registry, or a proxy's own answer.
    #[error(
        "{host} sent a web page (HTTP status {status}) in place of {}: it may not be a registry, or a proxy answers for it",
        shown(what)
    )]
    WebPage {
        /// Who.
        host: String,
        /// For what.
        what: String,
        /// Of HTTP.
        status: u16,
    },
    /// An answer that says to come back: 408, 429, 500 to 504.
    #[error("{host} is busy (HTTP status {status} for {}){}", shown(what), later(*after))]
    Busy {
        /// Who.
        host: String,
        /// For what.
        what: String,
        /// Of HTTP.
        status: u16,
        /// When to come back, if it says so.
        after: Option<Duration>,
    },
    /// Another status.
    #[error("{host} answers with HTTP status {status} for {}{}", shown(what), if message.is_empty() { String::new() } else { format!(": {}", shown(message)) })]
    Status {
        /// Who.
        host: String,
        /// Of HTTP.
        status: u16,
        /// What was asked for.
        what: String,
        /// The registry's words.
        message: String,
    },
    /// An answer that no registry may give.
    #[error("{host} gives a wrong answer: {what}")]
    Answer {
        /// Who.
        host: String,
        /// What is wrong.
        what: String,
    },
    /// Plain HTTP, where it wasn't allowed.
    #[error("{host} leads to {}, without TLS: only --insecure-registry allows that", shown(url))]
    Plain {
        /// The registry.
        host: String,
        /// Where it leads.
        url: String,
    },
    /// A file of credentials that can't be used.
    #[error("can't use the credentials in {}: {why}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A credential helper that gives none.
    #[error("the credential helper {} fails: {}", shown(helper), shown(why))]
    Helper {
        /// The program.
        helper: String,
        /// Its words, or why it can't be run.
        why: String,
    },
    /// No list of certificates.
    #[error("there are no root certificates{}: install ca-certificates, or set SSL_CERT_FILE", if looked.is_empty() { String::new() } else { format!(" in {looked}") })]
    Roots {
        /// Where.
        looked: String,
    },
    /// A variable that can't be used.
    #[error("{variable} is not the address of an HTTP proxy")]
    Proxy {
        /// Its name; the value may have a password in it.
        variable: &'static str,
    },
    /// Another part of the image has failed.
    #[error("the download was given up, because another one failed")]
    GivenUp,
}

/// The credentials that a registry got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// None: there are none.
    None,
    /// Those that are saved for it.
    Saved,
    /// None, because the connection is plain HTTP.
    Withheld,
}

fn denied(host: &str, login: Login) -> String {
    match login {
        Login::None => format!(
            "there is no such image, or it needs credentials (docker login {host}, or podman login {host})"
        ),
        Login::Saved => format!("there is no such image, or the credentials for {host} don't open it"),
        Login::Withheld => {
            "there is no such image, or it needs credentials; saved ones are sent without TLS only with \
             --insecure-registry"
                .into()
        }
    }
}

fn later(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| format!("; try again in {} s", after.as_secs()))
}

impl RegistryError {
    /// Whether the same request may work later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. } => true,
            Self::Transport { transient, .. } => *transient,
            Self::WebPage { status, .. } => is_busy(*status),
            _ => false,
        }
    }

    /// Whether that is not there which was asked for.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::WebPage { status: 404, .. })
    }
}

impl From<RegistryError> for ContentError {
    fn from(error: RegistryError) -> Self {
        if error.is_missing() { Self::NotThere(Box::new(error)) } else { Self::NotServed(Box::new(error)) }
    }
}

/// Whether a status says to come back.
pub(super) fn is_busy(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=504)
}

impl From<RegistryError> for io::Error {
    fn from(error: RegistryError) -> Self {
        io::Error::other(error)
    }
}
