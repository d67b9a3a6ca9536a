//! Images from registries (OCI distribution-spec 1.1, and what docker's registries do besides).
//!
//! ```text
//! remote                 an image's files, as if they were in a directory
//!   download             a blob that goes on after a broken connection
//!   client               manifests and blobs; redirects; who gets credentials
//!     auth, challenge    tokens and passwords, as the registry asks for them
//!     credentials        what docker login and podman login have saved
//!     status             answers that are no success
//!     retry              failures that may pass
//!     http               one request: timeouts, TLS
//!       proxy, roots     what the environment says
//!     address            hosts, and where answers may lead
//! ```
//!
//! HTTP is blocking: there is no runtime, and no thread but up to two that download beside the
//! caller's and are gone when a pull returns. Nothing here is touched before the first request:
//! whoever pulls nothing pays nothing.
//!
//! **A registry is hostile**, and so is the network. Names and documents are capped, the index of
//! an index of an index is the end, lengths are compared with descriptors before the first byte,
//! digests before anything is used, and what is unpacked goes the same way as an image from a file.
//! See `client` and `auth` for where credentials go. What a registry can do: waste our time within
//! bounds, and give an older image for a tag.

mod address;
mod auth;
mod challenge;
mod client;
mod credentials;
mod download;
mod error;
mod http;
mod proxy;
mod remote;
mod retry;
mod roots;
mod status;

pub(super) use self::client::Client;
pub use self::error::{Login, RegistryError};
pub(super) use self::http::Patience;
pub(super) use self::remote::Remote;
