//! The content-addressed store of images.
//!
//! ```text
//! v1/names/SHA256      one name: JSON with the name itself and the image's digest; the file's name is the name's SHA-256
//! v1/images/ALG-HEX    one image, by its manifest's digest: JSON with what to run, and the key of its file system; those that came without a
//!                      manifest are config-ALG-HEX or dir-ALG-HEX: a digest of one kind never leads to an image of another
//! v1/rootfs/KEY        one EROFS file; its mtime says when it was last used
//! v1/blobs/ALG-HEX     blobs on their way from a registry into a file system
//! ```
//!
//! How files are made, published, leased and removed is [`crate::store`]'s. A file system without
//! an image, which `kill -9` may leave, is taken by the next load of the image, or removed by
//! `prune`.
//!
//! **Layers are not kept** once their file system is built: a store has each image's content once,
//! uncompressed. Kept layers would cost half as much disk again for all images in order to save a
//! download for the few that are built from the same base; and a file system that is removed can be
//! had again from where its image came from.

mod blobs;
mod images;
mod prune;
mod record;
mod release;
mod rootfs;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::digest::{DigestError, shown};
use crate::size::{self, Base, NotASize};
use crate::store::{FileError, FileStore, Lease, Part};

pub use images::{ImageSummary, Moved, Scope};
pub use prune::Pruned;
pub use record::{DigestOf, Image};
pub(super) use rootfs::RootfsKey;

/// Names the directory of the store.
const DIR_VARIABLE: &str = "BOTHY_STORE";
/// Limits its size, like `20G`.
pub(super) const LIMIT_VARIABLE: &str = "BOTHY_STORE_LIMIT";

/// Why the store can't do what it was asked for.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Neither variable is set.
    #[error("there is no place for images: set {DIR_VARIABLE}, XDG_DATA_HOME or HOME to a directory")]
    NoPlace,
    /// Not a size.
    #[error("{LIMIT_VARIABLE}: {0}")]
    Limit(NotASize),
    /// A file of it.
    #[error(transparent)]
    File(#[from] FileError),
    /// A blob couldn't be written.
    #[error("can't get {name}")]
    Blob {
        /// What errors call it.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// No such image.
    #[error("no image {} in the store (see: bothy images)", shown(.0))]
    Unknown(String),
    /// The first digits of several digests.
    #[error("{} is the beginning of several images' digests: {}", shown(text), digests.join(", "))]
    Several {
        /// What was given.
        text: String,
        /// The digests.
        digests: Vec<String>,
    },
    /// It can't be removed now.
    #[error("image {} is in use by a virtual machine or by another bothy", shown(.0))]
    InUse(String),
    /// A digest in a file name; only by another's hand.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// The lease of an image's file system, for as long as a VM uses it.
pub type ImageLease = Lease;

/// A store. Any number of processes may use it at once.
#[derive(Debug)]
pub struct Store {
    files: FileStore,
    limit: Option<u64>,
}

const NAMES: Part = Part("names");
const IMAGES: Part = Part("images");
const ROOTFS: Part = Part("rootfs");
const BLOBS: Part = Part("blobs");

impl Store {
    /// Opens the user's store, and makes it if there is none: `$BOTHY_STORE`,
    /// `$XDG_DATA_HOME/bothy` or `~/.local/share/bothy`.
    pub fn open() -> Result<Self, StoreError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dir = variable(DIR_VARIABLE).map(PathBuf::from);
        // The XDG specification has relative paths ignored.
        let xdg = || variable("XDG_DATA_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
        let home = || variable("HOME").map(|home| PathBuf::from(home).join(".local/share"));
        let dir = dir.or_else(|| Some(xdg().or_else(home)?.join("bothy"))).ok_or(StoreError::NoPlace)?;
        let limit = match variable(LIMIT_VARIABLE) {
            Some(text) => {
                let text = text.to_string_lossy().into_owned();
                Some(size::parse(&text, Base::Binary).map_err(StoreError::Limit)?)
            }
            None => None,
        };
        Self::at(&dir, limit)
    }

    /// Opens the store in `dir`, and makes it if there is none. `limit` is in bytes.
    pub fn at(dir: &Path, limit: Option<u64>) -> Result<Self, StoreError> {
        Ok(Self { files: FileStore::open(dir.join("v1"), &[NAMES, IMAGES, ROOTFS, BLOBS])?, limit })
    }

    /// Most bytes on disk that all images may take together.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// A file in the store's file system that is gone with its last descriptor.
    pub(super) fn unlinked(&self) -> Result<File, StoreError> {
        Ok(self.files.unlinked()?)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
