//! Files in the making: without a name, or with a temporary one and locked by their maker; complete
//! on disk before they get their name. And the sweeping of those whose maker is gone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, linkat};
use rustix::io::Errno;

use super::lease::{Guard, is_still_at, try_lock, try_own};
use super::{FileError, FileStore, Part, sync_dir};

/// A file without a name that counts, or without any name where the file system can do that: then
/// nothing is left of it by `kill -9`. Gone when dropped.
#[derive(Debug)]
pub struct Temporary {
    file: File,
    /// Where temporary files are.
    dir: PathBuf,
    /// Its name there.
    path: Option<PathBuf>,
}

impl Temporary {
    /// The file, empty at first.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Everything on disk.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_all().map_err(FileError::new("write", &self.dir))
    }

    /// Gives it its name, in place of what has it now, and unlocks it.
    pub fn persist(mut self, path: &Path) -> Result<(), FileError> {
        let error = |source| FileError::new("write", path)(source);
        if self.path.is_none() {
            match link(&self.file, path) {
                Err(Errno::EXIST) => self.path = Some(self.name().map_err(error)?),
                result => {
                    result.map_err(|source| error(source.into()))?;
                    return sync_dir(path.parent().unwrap_or(path));
                }
            }
        }
        if let Some(own) = &self.path {
            fs::rename(own, path).map_err(error)?;
        }
        self.path = None;
        sync_dir(path.parent().unwrap_or(path))
    }

    /// A name for what has none, because only something with a name can take another file's.
    fn name(&self) -> io::Result<PathBuf> {
        // Nobody else knows the file.
        try_lock(&self.file, FlockOperation::NonBlockingLockExclusive)?;
        loop {
            let path = next_name(&self.dir);
            match link(&self.file, &path) {
                Err(Errno::EXIST) => {}
                result => return Ok(result.map(|()| path)?),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Whoever opens the store next sweeps it.
            let _left = fs::remove_file(path);
        }
    }
}

/// One that no other process has that is alive, in this PID namespace at least.
fn next_name(dir: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    dir.join(format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)))
}

/// Gives a file without a name its first one (open(2), "O_TMPFILE": without privileges, only by
/// this path).
fn link(file: &File, path: &Path) -> rustix::io::Result<()> {
    let own = format!("{DESCRIPTORS}/{}", file.as_raw_fd());
    linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

const DESCRIPTORS: &str = "/proc/self/fd";

/// A file that has no name, if there can be such files in this directory.
fn unnamed(dir: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR).ok().map(File::from)
}

impl FileStore {
    /// A new, empty file.
    pub fn temporary(&self) -> Result<Temporary, FileError> {
        let dir = self.part(Part::TMP);
        // Without /proc it could never get a name.
        match unnamed(&dir).filter(|_| Path::new(DESCRIPTORS).is_dir()) {
            Some(file) => Ok(Temporary { file, dir, path: None }),
            None => self.named(),
        }
    }

    /// The same with a temporary name, where it needs one.
    pub fn named(&self) -> Result<Temporary, FileError> {
        let dir = self.part(Part::TMP);
        loop {
            let path = next_name(&dir);
            let create = || -> io::Result<Option<File>> {
                let mut options = OpenOptions::new();
                let file = match options.create_new(true).read(true).write(true).mode(0o600).open(&path) {
                    // Of a process before us with the same number, in another PID namespace
                    // perhaps.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
                    result => result?,
                };
                // A sweeper may have been faster.
                let ours =
                    try_lock(&file, FlockOperation::NonBlockingLockExclusive)? && is_still_at(&file, &path)?;
                Ok(ours.then_some(file))
            };
            if let Some(file) = create().map_err(FileError::new("create", &path))? {
                return Ok(Temporary { file, dir, path: Some(path) });
            }
        }
    }

    /// A file in the store's file system that is gone with its last descriptor.
    pub fn unlinked(&self) -> Result<File, FileError> {
        match unnamed(&self.part(Part::TMP)) {
            Some(file) => Ok(file),
            None => {
                let temporary = self.named()?;
                temporary.file().try_clone().map_err(FileError::new("open", &temporary.dir))
            }
        }
    }

    /// Writes a small file as a whole.
    pub fn write(&self, part: Part, name: &str, content: &[u8]) -> Result<(), FileError> {
        let temporary = self.temporary()?;
        let path = self.path(part, name);
        io::Write::write_all(&mut temporary.file(), content).map_err(FileError::new("write", &path))?;
        temporary.sync()?;
        temporary.persist(&path)
    }

    /// Waits for the store's own lock, and removes the temporary files that nobody makes any more.
    pub fn lock(&self) -> Result<Guard, FileError> {
        let guard = Guard::wait(&self.dir.join("lock"))?;
        self.sweep(Part::TMP)?;
        Ok(guard)
    }

    /// Removes the files of a part that nobody has locked. Needs no lock of the store's: whoever
    /// makes or waits for such a file looks whether it is still there.
    pub fn sweep(&self, part: Part) -> Result<(), FileError> {
        for name in self.list(part)? {
            if let Some(_stale) = try_own(&self.path(part, &name))? {
                self.remove(part, &name)?;
            }
        }
        Ok(())
    }
}
