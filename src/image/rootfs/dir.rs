//! `dir:DIR`: a directory of the host as a tree, and its fingerprint.
//!
//! The same tree gives the same image. File systems that are mounted below it are part of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{self, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::erofs::{self, Store, device, encode_xattrs};
use super::filesystem::FileSystems;
use super::flaw::{Flaw, Trouble};
use super::layer::symlink_target;
use super::tree::{Data, EntryId, Inode, InodeId, Kind, Meta, ROOT, Tree};
use super::walk::{Found, walk};
use super::{Built, Limits, RootfsError};

/// Parts of a sparse file that are worth their memory; one with more is taken without its holes.
const MAX_PARTS: usize = 1 << 20;

/// The same as [`build`](super::build) from a directory of the host, as it is, with its owners as
/// this process sees them.
pub fn build_from_dir(root: &Path, out: &File, limits: &Limits) -> Result<Built, RootfsError> {
    let mut tree = Tree::new(limits.max_entries);
    let itself = rustix::fs::fstat(out).map_err(|error| RootfsError::Write(error.into()))?;
    let mut builder = Builder {
        tree: &mut tree,
        store: Store::new(out, limits)?,
        itself: (itself.st_dev, itself.st_ino),
        seen: HashMap::new(),
        left: limits.max_bytes,
    };
    walk(root, |found| builder.add(&found))?;
    let store = builder.store;
    erofs::finish(tree, store)
}

/// A digest over names, metadata and content identity (file system, device, inode, size, mtime,
/// ctime) of a tree; equal if nothing changed, as far as `filesystem` can see.
pub fn fingerprint(root: &Path, limits: &Limits) -> Result<String, RootfsError> {
    let mut digest = Sha256::new();
    digest.update(b"bothy directory 2\n");
    let (mut left, mut number) = (limits.max_entries, 0_u64);
    let mut systems = FileSystems::default();
    walk(root, |found: Found<'_, u64>| {
        if found.parent.is_some() {
            left = left.checked_sub(1).ok_or(Flaw::TooManyEntries)?;
        }
        let stat = found.stat;
        if let Some(system) = systems.meet(stat.st_dev, found.dir, found.name)? {
            digest.update(b"file system");
            digest.update(system.bytes());
        }
        digest.update(found.parent.copied().unwrap_or_default().to_le_bytes());
        digest.update(found.name.to_bytes_with_nul());
        digest.update(stat.st_mode.to_le_bytes());
        for id in [stat.st_uid, stat.st_gid] {
            digest.update(id.to_le_bytes());
        }
        for number in [stat.st_dev, stat.st_ino, stat.st_rdev] {
            digest.update(number.to_le_bytes());
        }
        for number in [stat.st_size, stat.st_mtime, stat.st_ctime] {
            digest.update(number.to_le_bytes());
        }
        for nanoseconds in [stat.st_mtime_nsec, stat.st_ctime_nsec] {
            digest.update(nanoseconds.to_le_bytes());
        }
        number += 1;
        Ok(number)
    })?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Builder<'t, 'a> {
    tree: &'t mut Tree,
    store: Store<'a>,
    /// Device and inode of the image's file.
    itself: (u64, u64),
    /// What has several names, by device and inode.
    seen: HashMap<(u64, u64), InodeId>,
    /// Bytes of data that there may yet be.
    left: u64,
}

impl Builder<'_, '_> {
    fn add(&mut self, found: &Found<'_, EntryId>) -> Result<EntryId, Trouble> {
        let stat = found.stat;
        let id = (stat.st_dev, stat.st_ino);
        if id == self.itself {
            return Err(Flaw::Itself.into());
        }
        let xattrs = encode_xattrs(&xattrs(found.dir, found.name))?;
        let Some(&parent) = found.parent else {
            let inode = self.tree.inode_mut(ROOT);
            inode.meta = meta(stat)?;
            self.store.put_xattrs(inode, &xattrs)?;
            return Ok(ROOT);
        };
        self.tree.count()?;
        let linked = stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        let seen = self.seen.get(&id).copied().filter(|_| linked);
        let inode = match seen {
            Some(inode) => inode,
            None => {
                let inode = self.inode(found, &xattrs)?;
                let inode = self.tree.add_inode(inode);
                if linked {
                    self.seen.insert(id, inode);
                }
                inode
            }
        };
        Ok(self.tree.link(parent, found.name.to_bytes(), inode, 0)?)
    }

    fn inode(&mut self, found: &Found<'_, EntryId>, xattrs: &[u8]) -> Result<Inode, Trouble> {
        let stat = found.stat;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            FileType::Unknown => return Err(Flaw::Type(0).into()),
        };
        let mut inode = Inode::new(kind, meta(stat)?);
        match kind {
            Kind::File => self.file(&mut inode, found, xattrs)?,
            Kind::Symlink => {
                let target = fs::readlinkat(found.dir, found.name, Vec::new())?;
                self.store.put_target(&mut inode, xattrs, symlink_target(target.to_bytes())?)?;
            }
            Kind::Char | Kind::Block => {
                let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
                inode.data = Data::Device(device(major, minor));
                self.store.put_xattrs(&mut inode, xattrs)?;
            }
            Kind::Dir | Kind::Fifo | Kind::Socket => self.store.put_xattrs(&mut inode, xattrs)?,
        }
        Ok(inode)
    }

    fn file(&mut self, inode: &mut Inode, found: &Found<'_, EntryId>, xattrs: &[u8]) -> Result<(), Trouble> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = fs::openat(found.dir, found.name, flags, Mode::empty())?;
        let stat = fs::fstat(&file)?;
        if (stat.st_dev, stat.st_ino) != (found.stat.st_dev, found.stat.st_ino) {
            return Err(Flaw::Changed.into());
        }
        let size = u64::try_from(stat.st_size).map_err(|_| Flaw::Size)?;
        let sparse = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        let parts = if sparse { parts(|from| fs::seek(&file, from), size)? } else { None };
        let stored = parts.as_ref().map_or(size, |parts| parts.iter().map(|(_, len)| len).sum());
        self.left = self.left.checked_sub(stored).ok_or(Flaw::TooManyBytes)?;
        let mut file =
            Parts { file: file.into(), parts: parts.clone().unwrap_or_else(|| vec![(0, size)]), next: 0 };
        let read = &mut |bytes: &mut [u8]| file.read(bytes).map_err(Trouble::Read);
        match parts {
            Some(parts) => self.store.put_sparse(inode, xattrs, size, parts.into_iter(), read),
            None => self.store.put_file(inode, xattrs, size, read),
        }
    }
}

/// The parts of a file that have data, read one after the other.
struct Parts {
    file: File,
    /// Offset and length of what is yet to be read.
    parts: Vec<(u64, u64)>,
    next: usize,
}

impl Parts {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while let Some((offset, left)) = self.parts.get_mut(self.next) {
            if *left == 0 {
                self.next += 1;
                continue;
            }
            let len = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            let n = loop {
                match self.file.read_at(&mut bytes[..len], *offset) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result?,
                }
            };
            *offset += n as u64;
            *left -= n as u64;
            return Ok(n);
        }
        Ok(0)
    }
}

/// Where a file has data; None if that is everywhere, nobody knows, or it is in too many places.
/// A file that has changed while it is asked has no answer: the rest of it would become a hole.
fn parts(
    mut seek: impl FnMut(SeekFrom) -> rustix::io::Result<u64>,
    size: u64,
) -> Result<Option<Vec<(u64, u64)>>, Trouble> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            // No data from here on, or only what has been added.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = match seek(SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            // Where there was data just now is the file's end.
            Err(Errno::NXIO) => return Err(Flaw::Changed.into()),
            Err(error) => return Err(error.into()),
        };
        // Or a hole. Nor does a broken file system keep us here.
        if start < at || end <= start {
            return Err(Flaw::Changed.into());
        }
        if parts.len() == MAX_PARTS {
            return Ok(None);
        }
        parts.push((start, end - start));
        at = end;
    }
    Ok((parts != [(0, size)]).then_some(parts))
}

fn meta(stat: &Stat) -> Result<Meta, Flaw> {
    Ok(Meta {
        perm: u16::try_from(stat.st_mode & 0o7777).map_err(|_| Flaw::Number)?,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).map_err(|_| Flaw::Time)?,
    })
}

/// The xattrs that this process may read. A symbolic link's or a device's can only be reached by a
/// path, and through /proc that begins at the directory's descriptor; the last name in it isn't
/// followed.
fn xattrs(dir: &OwnedFd, name: &CStr) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    let path = OsStr::from_bytes(&path);
    let mut found = BTreeMap::new();
    let len = fs::llistxattr_query(path).unwrap_or(0);
    if len == 0 {
        return found;
    }
    // The longest list and the longest value that Linux gives.
    let mut list = vec![0; 65_536];
    let len = fs::llistxattr(path, &mut list).unwrap_or(0);
    let mut value = vec![0; 65_536];
    for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if let Ok(len) = fs::lgetxattr(path, OsStr::from_bytes(name), &mut value) {
            found.insert(name.to_vec(), value[..len].to_vec());
        }
    }
    found
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
