//! Locks of files: waiting for one, trying for one, and the leases that keep a file from being
//! removed.
//!
//! A lock on a file says nothing about its name: between opening and locking, the file may have
//! been removed and another put in its place. So whoever gets a lock looks whether the name still
//! leads to the same file. With that, holding a file's lock exclusively is leave to remove it.

use std::fs::{File, FileTimes, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use super::{FileError, FileStore, Part};

/// Tries for a lock; false when somebody else's is in the way.
pub(super) fn try_lock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the path still leads to this file.
pub(super) fn is_still_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match path.symlink_metadata() {
        Ok(there) => Ok((own.dev(), own.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// An exclusive lock on a file that is only there to be locked. Ends when dropped.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

impl Guard {
    /// Waits for the lock.
    pub fn wait(path: &Path) -> Result<Self, FileError> {
        let error = |source| FileError::new("lock", path)(source);
        loop {
            let mut options = OpenOptions::new();
            let file =
                options.create(true).truncate(false).write(true).mode(0o600).open(path).map_err(error)?;
            match flock(&file, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result.map_err(|source| error(source.into()))?,
            }
            if is_still_at(&file, path).map_err(error)? {
                return Ok(Self { _file: file });
            }
        }
    }
}

/// The right to remove a file: nobody else uses it, and nobody can begin to. `None` if somebody
/// does, or it is gone.
pub fn try_own(path: &Path) -> Result<Option<File>, FileError> {
    let own = || -> io::Result<Option<File>> {
        // NFS has exclusive locks only for what can be written.
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(path)?,
            result => result?,
        };
        let owned = try_lock(&file, FlockOperation::NonBlockingLockExclusive)? && is_still_at(&file, path)?;
        Ok(owned.then_some(file))
    };
    own().map_err(FileError::new("lock", path))
}

/// A file of the store that isn't removed as long as this, or a copy of its descriptor in any
/// process, is there.
#[derive(Debug)]
pub struct Lease {
    file: File,
    path: PathBuf,
}

impl Lease {
    /// The file, open for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor, to be sent to another process. The lease goes with it.
    pub fn into_fd(self) -> OwnedFd {
        self.file.into()
    }
}

impl FileStore {
    /// Leases a file; `None` if there is none.
    pub fn lease(&self, part: Part, name: &str) -> Result<Option<Lease>, FileError> {
        let path = self.path(part, name);
        let lease = || -> io::Result<Option<File>> {
            loop {
                let file = match File::open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    result => result?,
                };
                match flock(&file, FlockOperation::LockShared) {
                    Err(rustix::io::Errno::INTR) => continue,
                    result => result?,
                }
                if is_still_at(&file, &path)? {
                    // It says when the file was last used; on a store that can't be written it says
                    // nothing.
                    let _unwritable = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
                    return Ok(Some(file));
                }
            }
        };
        let file = lease().map_err(FileError::new("open", &path))?;
        Ok(file.map(|file| Lease { file, path }))
    }

    /// The file of that name, leased; `make` writes it if there is none. When several processes
    /// want it at once, one makes it and the others wait. True if it was made just now.
    pub fn once<E: From<FileError>>(
        &self,
        part: Part,
        name: &str,
        make: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<(Lease, bool), E> {
        if let Some(lease) = self.lease(part, name)? {
            return Ok((lease, false));
        }
        let _making = Guard::wait(&self.path(Part::LOCKS, name))?;
        let result = match self.lease(part, name)? {
            Some(lease) => Ok((lease, false)),
            None => self.make(part, name, make).map(|lease| (lease, true)),
        };
        // Whoever holds a lock may remove its file; the others look whether it is still there.
        self.remove(Part::LOCKS, name)?;
        result
    }

    fn make<E: From<FileError>>(
        &self,
        part: Part,
        name: &str,
        make: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<Lease, E> {
        let temporary = self.temporary()?;
        make(temporary.file())?;
        temporary.sync()?;
        // Under the store's lock nobody removes it between its appearance and the lease.
        let _store = self.lock()?;
        temporary.persist(&self.path(part, name))?;
        let lease = self.lease(part, name)?;
        Ok(lease.ok_or_else(|| {
            let path = self.path(part, name);
            FileError::new("open", &path)(io::ErrorKind::NotFound.into())
        })?)
    }
}
