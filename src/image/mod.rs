//! Container images: what they are called, where they come from, and the store of file systems made
//! of them.
//!
//! ```text
//! source, reference     what people write   -> a Source
//! load                  a Source            -> images in the store
//!   files, archive      the files of an image, in a directory or a tar
//!   layout, docker      which of them are the image that was asked for
//!   descriptor, manifest, index, config
//!                       the documents, and budget: how many; json: how they are parsed
//!   import              one of them into the store; found: what is known of it before; progress
//!   blob, decode        layers, decompressed and verified while they stream
//!   rootfs              layers in, one EROFS file out; room says whether it fits
//! pull                  a name              -> an image in the store, the same way
//!   registry            its files there
//! store                 names, images, file systems; leases keep what is in use
//! ```
//!
//! An image is hostile until its digests say that it is the one that was asked for, and its content
//! is hostile even then. Each of these modules says what it refuses.
//!
//! Runs in the client's process, with its rights; nothing here is seen by a VM's process but the
//! descriptor of a lease.

mod archive;
mod blob;
mod budget;
mod config;
mod decode;
mod descriptor;
mod digest;
mod docker;
mod files;
mod found;
mod import;
mod index;
mod json;
mod layout;
mod load;
mod manifest;
mod progress;
mod pull;
mod reference;
mod registry;
mod room;
pub mod rootfs;
mod source;
mod store;
#[cfg(test)]
mod testing;

use crate::bounded_log::BoundedLog;

/// What images and registries can cause to be logged.
static LOG: BoundedLog = BoundedLog::fixed("images");

pub use blob::BlobError;
pub use config::RunConfig;
pub use descriptor::Platform;
pub use digest::{Algorithm, Digest, DigestError};
pub use files::ContentError;
pub use import::{LoadError, LoadOptions, Loaded, Naming};
pub use index::{Offered, Unusable};
pub use load::load;
pub use manifest::DocumentError;
pub use progress::Progress;
pub use pull::{Policy, PullOptions, pull};
pub use reference::{Reference, ReferenceError};
pub use registry::{Login, RegistryError};
pub use source::{ArchiveKind, Source, Which};
pub use store::{DigestOf, Image, ImageLease, ImageSummary, Moved, Pruned, Scope, Store, StoreError};
