//! The content-addressed store of images.
//!
//! ```text
//! v1/lock              held (exclusively, for moments) by whoever changes names, images, or removes anything
//! v1/names/SHA256      one name: JSON with the name itself and the image's digest; the file's name is the name's SHA-256
//! v1/images/ALG-HEX    one image, by its manifest's digest: JSON with what to run, and the key of its file system; those that came without a
//!                      manifest are config-ALG-HEX or dir-ALG-HEX: a digest of one kind never leads to an image of another
//! v1/rootfs/KEY        one EROFS file; its mtime says when it was last used
//! v1/blobs/ALG-HEX     blobs on their way from a registry into a file system
//! v1/locks/NAME        held by whoever makes the file of that name in rootfs/ or blobs/
//! v1/tmp/              files in the making, each locked by its maker; none where the file system has files without a name (O_TMPFILE)
//! ```
//!
//! A file appears under its name only when it is complete, verified and on disk (write, fsync, link or rename, fsync the directory), and never
//! changes afterwards. So a process that is killed at any moment leaves at most a temporary file or an empty one in `locks/`, which nobody has
//! locked and which whoever opens the store next removes; or a file system without an image, which the next load of the image takes and `prune` removes.
//!
//! All locks are flock(2) locks. They belong to the open file description: they end with the process, however it ends, and go with a
//! descriptor into another one. A [`Lease`] is a shared lock on a file of the store; what is leased is never removed. Lock order: a
//! file's own lock in `locks/`, then the store's; leases are only ever tried for, so nothing can wait in a circle.
//!
//! **Layers are not kept** once their file system is built: a store has each image's content once, uncompressed. Kept layers would cost half as much
//! disk again for all images in order to save a download for the few that are built from the same base; and a file system that is removed can be had again
//! from where its image came from.

mod blobs;
mod files;
mod images;
mod lease;
mod prune;
mod record;
mod release;
mod rootfs;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::digest::{DigestError, shown};
use crate::size::{self, Base, NotASize};

pub use images::{ImageSummary, Moved, Scope};
pub use lease::{ImageLease, Lease};
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
    /// The host's.
    #[error("can't {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
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

impl StoreError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// A store. Any number of processes may use it at once.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    limit: Option<u64>,
}

/// The parts of a store.
#[derive(Clone, Copy, Debug)]
enum Part {
    Names,
    Images,
    Rootfs,
    Blobs,
    Locks,
    Tmp,
}

impl Part {
    const ALL: [Self; 6] = [Self::Names, Self::Images, Self::Rootfs, Self::Blobs, Self::Locks, Self::Tmp];

    fn name(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Images => "images",
            Self::Rootfs => "rootfs",
            Self::Blobs => "blobs",
            Self::Locks => "locks",
            Self::Tmp => "tmp",
        }
    }
}

impl Store {
    /// Opens the user's store, and makes it if there is none: `$BOTHY_STORE`, `$XDG_DATA_HOME/bothy` or `~/.local/share/bothy`.
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
        let store = Self { dir: dir.join("v1"), limit };
        for part in Part::ALL {
            let path = store.dir.join(part.name());
            if !path.is_dir() {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
                made.map_err(StoreError::io("create", &path))?;
            }
        }
        // What was killed has left little, if anything; whoever can't remove it can use the store all the same.
        for part in [Part::Tmp, Part::Locks] {
            let _left = store.sweep(part).inspect_err(|error| log::debug!("{error}"));
        }
        Ok(store)
    }

    /// Most bytes on disk that all images may take together.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    fn part(&self, part: Part) -> PathBuf {
        self.dir.join(part.name())
    }

    fn path(&self, part: Part, name: &str) -> PathBuf {
        self.part(part).join(name)
    }

    /// The names of the files of a part, in order.
    fn list(&self, part: Part) -> Result<Vec<String>, StoreError> {
        let path = self.part(part);
        let read = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&path)? {
                names.extend(entry?.file_name().into_string().ok());
            }
            names.sort();
            Ok(names)
        };
        read().map_err(StoreError::io("read", &path))
    }

    fn remove(&self, part: Part, name: &str) -> Result<(), StoreError> {
        let path = self.path(part, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Makes names in a directory durable.
fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::io("write", dir))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
