//! A file system on a disk that is a file.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::scratch;
use crate::tools::run;

/// A directory on a disk of its own: what is put there can be out of the page cache, which in /tmp
/// it often can't.
pub(crate) struct MountedDisk(tempfile::TempDir);

impl MountedDisk {
    /// Makes it, of so many bytes, as root.
    pub(crate) fn new(bytes: u64) -> Self {
        let dir = scratch();
        let file = dir.path().join("file");
        fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let mounted = dir.path().join("disk");
        fs::create_dir(&mounted).unwrap();
        run("mke2fs", &["-q", "-t", "ext4", file.to_str().unwrap()]);
        run("mount", &["-o", "loop", file.to_str().unwrap(), mounted.to_str().unwrap()]);
        Self(dir)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }
}

impl Drop for MountedDisk {
    fn drop(&mut self) {
        // What can't be unmounted stays, and the directory with it.
        let _status = Command::new("umount").arg(self.path()).status();
    }
}
