//! Files in the making: temporary, locked by their maker, complete on disk before they get their name; and the sweeping of those
//! whose maker is gone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

use super::lease::{Guard, is_still_at, try_lock, try_own};
use super::{Part, Store, StoreError, sync_dir};

/// A file without a name that counts. Gone when dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Everything on disk.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(StoreError::io("write", &self.path))
    }

    /// Gives it its name, in place of what has it now, and unlocks it.
    pub(super) fn persist(mut self, path: &Path) -> Result<(), StoreError> {
        fs::rename(&self.path, path).map_err(StoreError::io("write", path))?;
        self.kept = true;
        sync_dir(path.parent().unwrap_or(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // Whoever locks the store next sweeps it.
            let _left = fs::remove_file(&self.path);
        }
    }
}

impl Store {
    /// A new, empty file.
    pub(super) fn temporary(&self) -> Result<Temporary, StoreError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = self.path(Part::Tmp, &format!("{}-{number}", std::process::id()));
            let create = || -> io::Result<Option<File>> {
                let mut options = OpenOptions::new();
                let file = match options.create_new(true).read(true).write(true).mode(0o600).open(&path) {
                    // Of a process before us with the same number, in another PID namespace perhaps.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
                    result => result?,
                };
                // A sweeper may have been faster.
                let ours =
                    try_lock(&file, FlockOperation::NonBlockingLockExclusive)? && is_still_at(&file, &path)?;
                Ok(ours.then_some(file))
            };
            if let Some(file) = create().map_err(StoreError::io("create", &path))? {
                return Ok(Temporary { file, path, kept: false });
            }
        }
    }

    /// A file in the store's file system that is gone with its last descriptor.
    pub(in crate::image) fn unlinked(&self) -> Result<File, StoreError> {
        let temporary = self.temporary()?;
        temporary.file().try_clone().map_err(StoreError::io("open", &temporary.path))
    }

    /// Writes a small file as a whole.
    pub(super) fn write(&self, part: Part, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let temporary = self.temporary()?;
        let path = self.path(part, name);
        io::Write::write_all(&mut temporary.file(), content).map_err(StoreError::io("write", &path))?;
        temporary.sync()?;
        temporary.persist(&path)
    }

    /// Waits for the store's own lock, and removes the temporary files that nobody makes any more.
    pub(super) fn lock(&self) -> Result<Guard, StoreError> {
        let guard = Guard::wait(&self.dir.join("lock"))?;
        for name in self.list(Part::Tmp)? {
            if let Some(_stale) = try_own(&self.path(Part::Tmp, &name))? {
                self.remove(Part::Tmp, &name)?;
            }
        }
        Ok(guard)
    }
}
