//! A file or a block device as a disk: read, write, flush, length. It knows nothing of virtio.
//!
//! A disk is opened and locked in the command's process, where errors meet the person who typed the path, and then handed to
//! the VM's process as a descriptor. The lock is an OFD lock: it belongs to the open file description, so it moves along with the
//! descriptor and ends when the last copy is closed, however the processes end. One writer, or any number of readers.
//!
//! Data moves between the file and guest memory directly. The file's length is taken once; a file that shrinks afterwards
//! gives errors where it is missing, never made-up data.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Config;
use crate::virtio::core::iovec::{GatherList, ScatterList};

/// The unit that a disk's length is a multiple of, in bytes.
const SECTOR_SIZE: u64 = 512;

/// Why a disk can't be used. One line each, with the way out.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No such file.
    #[error("disk {0} does not exist (create one with: truncate -s 1G {0})", path.display())]
    Missing { path: PathBuf },
    /// A directory, given for a file.
    #[error("disk {} is a directory: give a disk image or a block device", path.display())]
    Directory { path: PathBuf },
    /// A pipe, a socket, a character device.
    #[error("disk {} is neither a file nor a block device", path.display())]
    Kind { path: PathBuf },
    /// No bytes.
    #[error("disk {0} is empty (give it a size with: truncate -s 1G {0})", path.display())]
    Empty { path: PathBuf },
    /// Not whole sectors.
    #[error(
        "disk {} has {len} bytes, which is not a multiple of 512 (mend it with: truncate -s %512 {})",
        path.display(), path.display()
    )]
    PartialSector { path: PathBuf, len: u64 },
    /// Readable, but not writable.
    #[error("disk {} can't be written to: add \",ro\" to use it read-only", path.display())]
    ReadOnly { path: PathBuf },
    /// Somebody else has it.
    #[error("disk {} is in use by {holder}{}", path.display(), if *read_only { " for writing" } else { "" })]
    Locked { path: PathBuf, holder: String, read_only: bool },
    /// Anything else.
    #[error("disk {} can't be opened", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// An open disk. Closing the last descriptor of it ends its lock.
#[derive(Debug)]
pub struct Disk {
    file: File,
    len: u64,
    read_only: bool,
}

impl Disk {
    /// Opens, checks and locks the disk that `config` names. In the command's process.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let path = config.path.as_path();
        let io = |source| OpenError::Io { path: path.into(), source };
        let file = open_file(path, config.read_only)?;
        let kind = file.metadata().map_err(io)?.file_type();
        if kind.is_dir() {
            return Err(OpenError::Directory { path: path.into() });
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind { path: path.into() });
        }
        let disk = Self::from_fd(file.into(), config.read_only).map_err(io)?;
        if disk.len == 0 {
            return Err(OpenError::Empty { path: path.into() });
        }
        if disk.len % SECTOR_SIZE != 0 {
            return Err(OpenError::PartialSector { path: path.into(), len: disk.len });
        }
        if !lock(&disk.file, config.read_only).map_err(io)? {
            let holder = lock_holder(&disk.file);
            return Err(OpenError::Locked { path: path.into(), holder, read_only: config.read_only });
        }
        Ok(disk)
    }

    /// The disk behind a descriptor that came from [`Disk::open`], in the VM's process.
    pub fn from_fd(fd: OwnedFd, read_only: bool) -> io::Result<Self> {
        let mut file = File::from(fd);
        // The end of a file, and of a block device as well; its metadata would say 0.
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len, read_only })
    }

    /// Any file as a disk of any length.
    #[cfg(test)]
    pub(super) fn with_len(file: File, len: u64) -> Self {
        Self { file, len, read_only: false }
    }

    /// The descriptor, to be sent to the VM's process. The lock goes with it.
    pub fn into_fd(self) -> OwnedFd {
        self.file.into()
    }

    /// Length in bytes, a multiple of 512.
    #[expect(clippy::len_without_is_empty, reason = "an empty disk can't be opened")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Fills the whole list from `offset` bytes into the disk. A file that has become too short is an error.
    pub fn read_at(&self, list: &mut ScatterList<'_>, offset: u64) -> io::Result<()> {
        transfer(list.remaining(), offset, io::ErrorKind::UnexpectedEof, |at| list.read_at(self, at))
    }

    /// Writes the whole list at `offset` bytes into the disk. It is durable only after `flush`.
    pub fn write_at(&self, list: &mut GatherList<'_>, offset: u64) -> io::Result<()> {
        transfer(list.remaining(), offset, io::ErrorKind::WriteZero, |at| list.write_at(self, at))
    }

    /// Makes everything that was written durable (fdatasync).
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Repeats a call that may do less than it was asked to, until `left` bytes are done or it does nothing.
fn transfer(
    mut left: usize,
    mut offset: u64,
    stuck: io::ErrorKind,
    mut call: impl FnMut(u64) -> io::Result<usize>,
) -> io::Result<()> {
    while left > 0 {
        match call(offset)? {
            0 => return Err(stuck.into()),
            n => {
                left -= n;
                offset += n as u64;
            }
        }
    }
    Ok(())
}

fn open_file(path: &Path, read_only: bool) -> Result<File, OpenError> {
    // O_NONBLOCK: a named pipe must be refused, not waited for. On files and disks it has no effect.
    let open = |write| OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(path);
    open(!read_only).map_err(|source| {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => OpenError::Missing { path },
            io::ErrorKind::IsADirectory => OpenError::Directory { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                if !read_only && open(false).is_ok() =>
            {
                OpenError::ReadOnly { path }
            }
            _ => OpenError::Io { path, source },
        }
    })
}

/// Takes an OFD lock on the whole file, shared for a reader; false when somebody else's is in the way.
#[expect(unsafe_code, reason = "OFD locks are only reached by fcntl(2)")]
fn lock(file: &File, read_only: bool) -> io::Result<bool> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    // l_pid must be 0 for an OFD lock; a length of 0 is the whole file, however long it gets.
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).expect("lock types are small"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one `flock`, which lives on this stack.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Who has a lock on the file, as far as /proc tells: the kernel keeps no owner of an OFD lock, but `fdinfo` of a descriptor
/// shows the locks that are held through it.
fn lock_holder(file: &File) -> String {
    find_holder(file).map_or_else(
        || "another process (one of another user, perhaps)".to_owned(),
        |pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            match name.trim() {
                _ if pid == std::process::id() => "this very command (is it given twice?)".to_owned(),
                "" => format!("process {pid}"),
                name => format!("process {pid} ({name})"),
            }
        },
    )
}

fn find_holder(file: &File) -> Option<u32> {
    let wanted = file.metadata().ok()?;
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds = |fd: &std::fs::DirEntry| {
            let number = fd.file_name();
            let is_it = std::fs::metadata(fd.path())
                .is_ok_and(|meta| meta.dev() == wanted.dev() && meta.ino() == wanted.ino());
            let info = process.path().join("fdinfo").join(number);
            is_it && std::fs::read_to_string(info).is_ok_and(|info| info.contains("OFDLCK"))
        };
        std::fs::read_dir(process.path().join("fd")).ok()?.flatten().find(holds).map(|_| pid)
    })
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
