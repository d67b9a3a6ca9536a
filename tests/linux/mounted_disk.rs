//! A file system on a disk that is a file.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::scratch;

/// A directory on a disk of its own: what is put there can be out of the page cache, which in /tmp it often can't.
pub(crate) struct MountedDisk(tempfile::TempDir);

impl MountedDisk {
    /// Makes it, of so many bytes, as root.
    pub(crate) fn new(bytes: u64) -> Self {
        let dir = scratch();
        let file = dir.path().join("file");
        fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let mounted = dir.path().join("disk");
        fs::create_dir(&mounted).unwrap();
        let run = |program: &str, words: &[&std::ffi::OsStr]| {
            let output = Command::new(program).args(words).output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), file.as_ref()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), file.as_ref(), mounted.as_ref()]);
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
