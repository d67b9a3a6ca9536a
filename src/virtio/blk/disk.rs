//! A file or a block device as a disk: read, write, discard, flush, length. It knows nothing of
//! virtio.
//!
//! A disk is opened and locked in the monitor's process, whose errors the client shows to the
//! person who typed the path, and then handed to the VM's process as a descriptor. The lock is an
//! OFD lock: it belongs to the open file description, so it moves along with the descriptor and
//! ends when the last copy is closed, however the processes end. One writer, or any number of
//! readers. What requests go to is a second opening of the file, without the lock.
//!
//! Past the page cache (`cache=none`) a transfer must be aligned in the file and in memory. Nearly
//! all of a guest's are; one that isn't goes through the page cache, by the first descriptor, and
//! the kernel keeps the two in step as long as nobody writes to other sectors of the same page at
//! the same moment. Within a queue that is seen to.
//!
//! Data moves between the file and guest memory directly. The file's length is taken once; a file
//! that shrinks afterwards gives errors where it is missing, never made-up data.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::config::{Cache, Config};
use super::lock::{lock, lock_holder};
use crate::virtio::core::iovec::{GatherList, ScatterList};

/// The unit that a disk's length is a multiple of, in bytes.
const SECTOR: u32 = 512;
/// Bytes of a block that any file system can transfer past the page cache.
pub(super) const PAGE: u32 = 4096;

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
    /// Its file system has no O_DIRECT.
    #[error("disk {} can't be used past the page cache: its file system doesn't offer it; leave cache=none out", path.display())]
    NoDirect { path: PathBuf },
    /// Readable, but not writable.
    #[error("disk {} can't be written to: add \",ro\" to use it read-only", path.display())]
    ReadOnly { path: PathBuf },
    /// Somebody else has it.
    #[error("disk {} is in use by {holder}{}", path.display(), if *read_only { " for writing" } else { "" })]
    Locked { path: PathBuf, holder: String, read_only: bool },
    /// A guest would see, and write into, what isn't meant for it.
    #[error(
        "disk {} is {kind}, and bothy takes raw ones: qemu-img convert -O raw FROM TO (with format=raw the guest sees it as it is)",
        path.display()
    )]
    Foreign { path: PathBuf, kind: &'static str },
    /// Anything else.
    #[error("disk {} can't be opened", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// An open disk. Closing the last descriptor of it ends its lock.
#[derive(Debug)]
pub struct Disk {
    /// What requests go to.
    file: File,
    /// What was opened first: it has the lock, and what isn't aligned goes here if the other one
    /// insists on that. The other one is a second opening of the same file, because an io_uring may
    /// let go of its files some time after its process has ended.
    first: Option<File>,
    len: u64,
    read_only: bool,
    cache: Cache,
    block_size: u32,
    /// What transfers past the page cache must be a multiple of, in bytes.
    alignment: u32,
    is_device: bool,
}

/// What images of other formats begin with: no boot sector and no file system does.
const FOREIGN: [(&[u8], &str); 3] =
    [(b"QFI\xfb", "a qcow2 image"), (b"KDMV", "a VMDK image"), (b"vhdxfile", "a VHDX image")];

/// Zeros to be written where the kernel has no better way.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

fn foreign_format(file: &File) -> io::Result<Option<&'static str>> {
    let mut start = [0; 8];
    // What is too short for that is too short for a disk.
    let _len = file.read_at(&mut start, 0)?;
    Ok(FOREIGN.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, kind)| *kind))
}

impl Disk {
    /// Opens, checks and locks the disk that `config` names. In the monitor's process.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let path = config.path.as_path();
        let io = |source| OpenError::Io { path: path.into(), source };
        let file = open_file(path, config.read_only, 0)?;
        let kind = file.metadata().map_err(io)?.file_type();
        if kind.is_dir() {
            return Err(OpenError::Directory { path: path.into() });
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind { path: path.into() });
        }
        let mut disk = Self::from_fd(file.into(), config.read_only, config.cache()).map_err(io)?;
        if disk.len == 0 {
            return Err(OpenError::Empty { path: path.into() });
        }
        // First of all: images of other formats may have any length.
        if config.format.is_none()
            && let Some(kind) = foreign_format(&disk.file).map_err(io)?
        {
            return Err(OpenError::Foreign { path: path.into(), kind });
        }
        if !disk.len.is_multiple_of(SECTOR.into()) {
            return Err(OpenError::PartialSector { path: path.into(), len: disk.len });
        }
        if !lock(&disk.file, config.read_only).map_err(io)? {
            let holder = lock_holder(&disk.file);
            return Err(OpenError::Locked { path: path.into(), holder, read_only: config.read_only });
        }
        match disk.cache {
            Cache::None => disk.go_direct(path)?,
            Cache::Writeback | Cache::Unsafe => disk.open_again(),
        }
        Ok(disk)
    }

    /// The disk behind a descriptor of a file or block device, by whatever it was opened for.
    pub fn from_fd(fd: OwnedFd, read_only: bool, cache: Cache) -> io::Result<Self> {
        let mut file = File::from(fd);
        // The end of a file, and of a block device as well; its metadata would say 0.
        let len = file.seek(SeekFrom::End(0))?;
        let is_device = file.metadata()?.file_type().is_block_device();
        let block_size = if is_device { logical_block_size(&file).unwrap_or(SECTOR) } else { SECTOR };
        Ok(Self { file, first: None, len, read_only, cache, block_size, alignment: 1, is_device })
    }

    /// Goes on past the page cache. The lock stays with the descriptor that was there first.
    fn go_direct(&mut self, path: &Path) -> Result<(), OpenError> {
        let no_direct = || OpenError::NoDirect { path: path.into() };
        let file = reopen(&self.file, self.read_only, libc::O_DIRECT).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EINVAL) => no_direct(),
                _ => OpenError::Io { path: path.into(), source },
            }
        })?;
        self.alignment = direct_alignment(&file).ok_or_else(no_direct)?;
        self.first = Some(std::mem::replace(&mut self.file, file));
        Ok(())
    }

    /// Goes on with a second opening, if there can be one.
    pub fn open_again(&mut self) {
        if let Ok(file) = reopen(&self.file, self.read_only, 0) {
            self.first = Some(std::mem::replace(&mut self.file, file));
        }
    }

    /// Any file as a disk of any length.
    #[cfg(test)]
    pub(super) fn with_len(file: File, len: u64) -> Self {
        Self {
            file,
            first: None,
            len,
            read_only: false,
            cache: Cache::default(),
            block_size: 512,
            alignment: 1,
            is_device: false,
        }
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

    /// Bytes of a block: what the guest's transfers should be a multiple of. 512 at least.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Every descriptor of it.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.first.iter().chain([&self.file]).map(AsRawFd::as_raw_fd)
    }

    /// The file for a transfer of these buffers there.
    fn file_for(&self, offset: u64, is_aligned: impl FnOnce(usize) -> bool) -> &File {
        let align = self.alignment;
        match &self.first {
            Some(first) if !offset.is_multiple_of(align.into()) || !is_aligned(align as usize) => first,
            _ => &self.file,
        }
    }

    /// What requests go to, unless [`takes`](Self::takes) says otherwise.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether [`file`](Self::file) takes a transfer of these buffers there.
    pub(super) fn takes(&self, offset: u64, is_aligned: impl FnOnce(usize) -> bool) -> bool {
        std::ptr::eq(self.file_for(offset, is_aligned), &raw const self.file)
    }

    /// Whether what is written goes to the page cache.
    pub(super) fn is_cached(&self) -> bool {
        self.cache != Cache::None
    }

    /// Whether a flush is one of the host's.
    pub(super) fn flushes(&self) -> bool {
        self.cache != Cache::Unsafe
    }

    /// Fills the whole list from `offset` bytes into the disk. A file that has become too short is
    /// an error.
    pub fn read_at(&self, list: &mut ScatterList<'_>, offset: u64) -> io::Result<()> {
        let file = self.file_for(offset, |align| list.is_aligned(align));
        transfer(list.remaining(), offset, io::ErrorKind::UnexpectedEof, |at| list.read_at(file, at))
    }

    /// Writes the whole list at `offset` bytes into the disk. It is durable only after `flush`.
    pub fn write_at(&self, list: &mut GatherList<'_>, offset: u64) -> io::Result<()> {
        let file = self.file_for(offset, |align| list.is_aligned(align));
        transfer(list.remaining(), offset, io::ErrorKind::WriteZero, |at| list.write_at(file, at))
    }

    /// Gives `len` bytes at `offset` back to whoever the file's space is from. What they read as
    /// afterwards is nobody's business; where that can't be done, nothing is.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_device {
            return self.discard_device(offset, len);
        }
        self.allocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len).map(|_| ())
    }

    /// A block device has a command of its own for it; a hole in one would be zeros that are
    /// written.
    #[expect(unsafe_code, reason = "a block device's ioctl")]
    fn discard_device(&self, offset: u64, len: u64) -> io::Result<()> {
        /// `_IO(0x12, 119)` of linux/fs.h.
        const BLKDISCARD: libc::Ioctl = 0x1277;
        let range = [offset, len];
        // SAFETY: BLKDISCARD reads two 64-bit numbers, which live on this stack.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // It can't, or not so small a piece.
            Some(libc::EOPNOTSUPP | libc::EINVAL) => Ok(()),
            _ => Err(error),
        }
    }

    /// Makes `len` bytes at `offset` zeros, and gives their space back if it may.
    pub fn write_zeroes(&self, offset: u64, len: u64, may_discard: bool) -> io::Result<()> {
        let ways = [(may_discard, libc::FALLOC_FL_PUNCH_HOLE), (true, libc::FALLOC_FL_ZERO_RANGE)];
        for (_, way) in ways.into_iter().filter(|(may, _)| *may) {
            if self.allocate(way, offset, len)? {
                return Ok(());
            }
        }
        let file = self.first.as_ref().unwrap_or(&self.file);
        let mut at = offset;
        while at < offset + len {
            let piece = usize::try_from(offset + len - at).unwrap_or(usize::MAX).min(ZEROS.len());
            match file.write_at(&ZEROS[..piece], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => at += written as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// fallocate(2), for files and block devices alike; false where it is not possible.
    #[expect(unsafe_code, reason = "std has no fallocate")]
    fn allocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<bool> {
        let range = |number: u64| libc::off64_t::try_from(number).map_err(io::Error::other);
        let (fd, mode) = (self.file.as_raw_fd(), mode | libc::FALLOC_FL_KEEP_SIZE);
        loop {
            // SAFETY: takes no pointers.
            if unsafe { libc::fallocate64(fd, mode, range(offset)?, range(len)?) } == 0 {
                return Ok(true);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(false),
                // A block device that wants larger blocks than the range has.
                Some(libc::EINVAL) => return Ok(false),
                _ => return Err(error),
            }
        }
    }

    /// Makes everything that was written durable (fdatasync), unless nobody cares.
    pub fn flush(&self) -> io::Result<()> {
        if self.flushes() { self.file.sync_data() } else { Ok(()) }
    }
}

/// Repeats a call that may do less than it was asked to, until `left` bytes are done or it does
/// nothing.
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

fn open_file(path: &Path, read_only: bool, flags: libc::c_int) -> Result<File, OpenError> {
    // O_NONBLOCK: a named pipe must be refused, not waited for. On files and disks it has no
    // effect.
    let flags = flags | libc::O_NONBLOCK;
    let open = |write| OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
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

/// The same file again, whatever has become of its name.
fn reopen(file: &File, read_only: bool, flags: libc::c_int) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)
}

/// What a block device wants its transfers to be a multiple of, in bytes.
#[expect(unsafe_code, reason = "a block device's ioctl")]
fn logical_block_size(file: &File) -> Option<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int, which lives on this stack.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut size) };
    u32::try_from(size)
        .ok()
        .filter(|size| ret == 0 && size.is_power_of_two() && (SECTOR..=PAGE).contains(size))
}

/// What transfers past the page cache must be a multiple of, in the file and in memory, in bytes;
/// `None` if there is no such way. Linux tells since 6.1, and not of every file system: for others
/// a page is right.
#[expect(unsafe_code, reason = "std's metadata doesn't have it")]
fn direct_alignment(file: &File) -> Option<u32> {
    // SAFETY: plain numbers, for which zeros will do.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, mask) = (file.as_raw_fd(), libc::STATX_DIOALIGN);
    // SAFETY: an empty path, which is a live string, and a live statx.
    let ret = unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut status) };
    if ret != 0 || status.stx_mask & mask == 0 {
        return Some(PAGE);
    }
    let (offset, memory) = (status.stx_dio_offset_align, status.stx_dio_mem_align);
    (offset > 0 && memory > 0).then_some(offset.max(memory).max(SECTOR))
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
