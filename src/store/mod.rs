//! Files that are published by rename and leased by flock(2): what images are kept in, and other
//! things that are made once and used by many.
//!
//! ```text
//! DIR/lock          held (exclusively, for moments) by a process that changes what belongs together, or removes anything
//! DIR/PART/NAME     a file; the caller of `open` says which parts there are
//! DIR/locks/NAME    held by the maker of the file of that name
//! DIR/tmp/          files in the making, each locked by its maker; none where the file system has files without a name (O_TMPFILE)
//! ```
//!
//! A file appears under its name only when it is complete, verified and on disk (write, fsync, link
//! or rename, fsync the directory), and never changes afterwards. So a process that is killed at
//! any moment leaves at most a temporary file or an empty one in `locks/`, which nobody has locked;
//! the next [`FileStore::open`] removes it.
//!
//! All locks are flock(2) locks. They belong to the open file description: they end with the
//! process, however it ends, and go with a descriptor into another one. A [`Lease`] is a shared
//! lock on a file of the store; what is leased is never removed. Lock order: a file's own lock in
//! `locks/`, then the store's; leases are only ever tried for, so nothing can wait in a circle.

mod lease;
mod temporary;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use lease::{Guard, Lease, try_own};
pub use temporary::Temporary;

/// Something couldn't be done with a file.
#[derive(Debug, Error)]
#[error("can't {what} {}", path.display())]
pub struct FileError {
    /// What was tried.
    pub what: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub fn new(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { what, path, source }
    }
}

/// A directory of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part(pub &'static str);

impl Part {
    /// Files in the making.
    const TMP: Self = Self("tmp");
    /// Files that are only there to be locked.
    pub const LOCKS: Self = Self("locks");
}

/// The store. Any number of processes may use it at once.
#[derive(Debug)]
pub struct FileStore {
    dir: PathBuf,
}

impl FileStore {
    /// Opens the store in `dir`, which has these parts, and makes what is missing.
    pub fn open(dir: PathBuf, parts: &[Part]) -> Result<Self, FileError> {
        let store = Self { dir };
        for part in parts.iter().copied().chain([Part::LOCKS, Part::TMP]) {
            let path = store.part(part);
            if !path.is_dir() {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
                made.map_err(FileError::new("create", &path))?;
            }
        }
        // What was killed has left little, if anything; a user who can't remove it can use the
        // store all the same.
        for part in [Part::TMP, Part::LOCKS] {
            let _left = store.sweep(part).inspect_err(|error| log::debug!("{error}"));
        }
        Ok(store)
    }

    fn part(&self, part: Part) -> PathBuf {
        self.dir.join(part.0)
    }

    /// Where a file is, or would be.
    pub fn path(&self, part: Part, name: &str) -> PathBuf {
        self.part(part).join(name)
    }

    /// The names of the files of a part, in order.
    pub fn list(&self, part: Part) -> Result<Vec<String>, FileError> {
        let path = self.part(part);
        let read = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&path)? {
                names.extend(entry?.file_name().into_string().ok());
            }
            names.sort();
            Ok(names)
        };
        read().map_err(FileError::new("read", &path))
    }

    /// Removes a file, if it is there. The caller owns it ([`try_own`]), or the store is locked and
    /// nothing leases it.
    pub fn remove(&self, part: Part, name: &str) -> Result<(), FileError> {
        let path = self.path(part, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::new("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Makes names in a directory durable.
fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(FileError::new("write", dir))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
