//! A directory for the sockets of one running container, named after it: only one of a name runs at a time.
//!
//! It lies in `$XDG_RUNTIME_DIR/bothy`, or where that isn't said in `/tmp/bothy-UID`, and nobody else may enter it. A lock that is held while the
//! container runs says that it does. Both the command and the VM's process remove the directory at the end; one whose lock nobody holds was left behind when
//! both were killed, and goes when the next container starts.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

/// Longest name: the path of a socket has 107 bytes at most.
const MAX_NAME: usize = 40;

/// The directory. It goes when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    lock: File,
}

impl Place {
    /// Makes the directory of a container.
    pub(super) fn make(name: &str) -> anyhow::Result<Self> {
        let known = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !known || name.starts_with(['-', '_', '.']) || !(1..=MAX_NAME).contains(&name.len()) {
            bail!("--name: {name:?} is not a name of up to {MAX_NAME} letters, digits, - _ and .");
        }
        let base = base();
        Self::make_in(&base, name)
            .with_context(|| format!("can't use {}", base.display()))?
            .with_context(|| format!("--name: a container of the name {name} is running already"))
    }

    /// None if one of that name is running.
    fn make_in(base: &Path, name: &str) -> anyhow::Result<Option<Self>> {
        make_private(base)?;
        // While it is held nobody makes or sweeps away directories.
        let whole = File::open(base)?;
        flock(&whole, FlockOperation::LockExclusive)?;
        sweep(base)?;
        let dir = base.join(name);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            done => done?,
        }
        let lock = File::open(&dir)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Some(Self { dir, lock }))
    }

    /// The directory and its lock, for the VM's process.
    pub(super) fn share(&self) -> io::Result<(PathBuf, OwnedFd)> {
        Ok((self.dir.clone(), self.lock.as_fd().try_clone_to_owned()?))
    }

    /// Where the vsock device's socket is to be.
    pub(super) fn vsock(&self) -> PathBuf {
        self.dir.join("vsock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            log::debug!("{}: {error}", self.dir.display());
        }
    }
}

/// Where the directories of all running containers are.
pub(in super::super) fn base() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && dir.is_dir());
    match runtime {
        Some(dir) => dir.join("bothy"),
        None => format!("/tmp/bothy-{}", rustix::process::getuid().as_raw()).into(),
    }
}

/// Makes a directory that nobody else may enter, or finds it so: in /tmp somebody else may have made one of that name.
fn make_private(dir: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        done => return Ok(done?),
    }
    let found = dir.symlink_metadata()?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        bail!("it must be a directory of yours that nobody else may enter");
    }
    Ok(())
}

/// Removes what was left behind.
fn sweep(base: &Path) -> io::Result<()> {
    for entry in fs::read_dir(base)? {
        let dir = entry?.path();
        let Ok(lock) = File::open(&dir) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = fs::remove_dir_all(&dir)
        {
            log::debug!("{}: {error}", dir.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_name_is_there_once_at_a_time_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b");
        let first = Place::make_in(&base, "one").unwrap().unwrap();
        assert!(Place::make_in(&base, "one").unwrap().is_none());
        let second = Place::make_in(&base, "two").unwrap().unwrap();
        fs::write(first.vsock(), b"").unwrap();
        assert!(second.vsock().parent().unwrap().is_dir());
        drop((first, second));
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_command_left_behind_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b");
        let left = Place::make_in(&base, "left").unwrap().unwrap();
        fs::write(left.vsock(), b"").unwrap();
        let Place { dir: path, lock } = &left;
        flock(lock, FlockOperation::Unlock).unwrap();
        assert!(path.is_dir());
        let again = Place::make_in(&base, "left").unwrap().unwrap();
        assert!(!again.vsock().exists());
        std::mem::forget(left);
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Place::make_in(dir.path(), "x").is_err());
        for name in ["", "a/b", ".", "..", "-x", &"x".repeat(MAX_NAME + 1)] {
            assert!(Place::make(name).is_err(), "{name}");
        }
    }
}
