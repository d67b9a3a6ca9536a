//! Which file system something is on, for the fingerprint of a directory.
//!
//! Where nothing can be written, times and inode numbers say little: an image of squashfs or EROFS
//! that is mounted where another one was has the same device number, and files of the same numbers,
//! sizes and times if it was made by the same recipe. So the mount itself is part of what such a
//! file system is: its number, which no other mount gets until the machine boots again (from Linux
//! 6.8 on; before, one that was unmounted is given away again), and the boot.
//!
//! What remains unseen: content that changes below a read-only mount, because another machine
//! writes to the disk, or the file that a loop device shows is written to; and on a file system
//! that can be written, content that changes without its file's ctime, which nobody can set but who
//! sets the clock.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags, StatxFlags};

/// STATX_MNT_ID_UNIQUE; kernels that don't know it give the number that can come again.
const UNIQUE_MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The devices that have been met.
#[derive(Default)]
pub(super) struct FileSystems {
    met: HashSet<u64>,
}

impl FileSystems {
    /// What there is to say about the file system of something in a directory, if it is the first
    /// on its device.
    pub(super) fn meet(
        &mut self,
        device: u64,
        dir: &OwnedFd,
        name: &CStr,
    ) -> rustix::io::Result<Option<FileSystem>> {
        if !self.met.insert(device) {
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        let numbers = rustix::fs::fstatvfs(&fd)?;
        let mount = if numbers.f_flag.contains(StatVfsMountFlags::RDONLY) {
            let what = StatxFlags::MNT_ID | UNIQUE_MOUNT;
            let number = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, what)?.stx_mnt_id;
            // Without /proc there is less to say.
            let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
            Some(Mount { number, boot, blocks: numbers.f_blocks, files: numbers.f_files })
        } else {
            None
        };
        Ok(Some(FileSystem { id: numbers.f_fsid, mount }))
    }
}

/// A file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileSystem {
    id: u64,
    /// If it is read-only.
    mount: Option<Mount>,
}

/// A mount of a file system that doesn't change while it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    number: u64,
    boot: Vec<u8>,
    blocks: u64,
    files: u64,
}

impl FileSystem {
    /// For a digest: different for all that are different.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.id.to_le_bytes().to_vec();
        bytes.push(u8::from(self.mount.is_some()));
        if let Some(mount) = &self.mount {
            for number in [mount.number, mount.blocks, mount.files, mount.boot.len() as u64] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(&mount.boot);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meet(path: &std::path::Path) -> FileSystem {
        let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        FileSystems::default().meet(1, &dir, c".").unwrap().unwrap()
    }

    #[test]
    fn a_file_system_is_met_once() {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        let mut systems = FileSystems::default();
        let first = systems.meet(7, &fd, c".").unwrap();
        assert_eq!(first, Some(meet(dir.path())));
        assert_eq!(systems.meet(7, &fd, c".").unwrap(), None);
        assert!(systems.meet(8, &fd, c".").unwrap().is_some());
    }

    #[test]
    fn of_a_read_only_file_system_the_mount_counts() {
        let mount = |number, boot: &[u8], blocks, files| FileSystem {
            id: 1,
            mount: Some(Mount { number, boot: boot.to_vec(), blocks, files }),
        };
        let all = [
            FileSystem { id: 1, mount: None },
            FileSystem { id: 2, mount: None },
            mount(1, b"boot", 1, 1),
            mount(2, b"boot", 1, 1),
            mount(1, b"later", 1, 1),
            mount(1, b"boot", 2, 1),
            mount(1, b"boot", 1, 2),
        ];
        let different: HashSet<Vec<u8>> = all.iter().map(FileSystem::bytes).collect();
        assert_eq!(different.len(), all.len());
    }
}
