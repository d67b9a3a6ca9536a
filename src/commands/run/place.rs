//! A directory for the sockets of one running container, named after it: only one of a name runs at a time.
//!
//! It lies in `$XDG_RUNTIME_DIR/bothy`, or where that isn't said in `/tmp/bothy-UID`, and nobody else may enter it. A lock that is held while the
//! container runs says that it does. The command removes the directory at the end, or the VM's process, if the command was killed: whichever comes first,
//! under the lock of all directories, and only if it still is the same one. By then another container may have the name. A directory whose lock nobody
//! holds was left behind when both were killed, and goes when the next container starts.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, fstat, openat, statat, unlinkat};
use rustix::io::Errno;

/// Longest name: the path of a socket has 107 bytes at most.
const MAX_NAME: usize = 40;

/// The directory. It goes when this is dropped.
#[derive(Debug)]
pub(in crate::commands) struct Place {
    path: PathBuf,
    own: Own,
}

/// The directory, to be removed.
#[derive(Debug)]
pub(super) struct Own {
    base: OwnedFd,
    name: String,
    /// The directory itself, locked.
    dir: OwnedFd,
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
        let path = base.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            done => done?,
        }
        let dir = File::open(&path)?;
        flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        let own = Own { base: File::open(base)?.into(), name: name.into(), dir: dir.into() };
        Ok(Some(Self { path, own }))
    }

    /// The same for the VM's process, which holds the lock with it.
    pub(super) fn share(&self) -> io::Result<Own> {
        let Own { base, name, dir } = &self.own;
        let copy = |fd: &OwnedFd| fd.as_fd().try_clone_to_owned();
        Ok(Own { base: copy(base)?, name: name.clone(), dir: copy(dir)? })
    }

    /// Where the vsock device's socket is to be.
    pub(super) fn vsock(&self) -> PathBuf {
        self.path.join("vsock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.own.remove();
    }
}

impl Own {
    /// What must stay open for it.
    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [self.base.as_raw_fd(), self.dir.as_raw_fd()]
    }

    /// Removes the directory, if it is still there.
    pub(super) fn remove(&self) {
        if let Err(error) = self.try_remove() {
            log::debug!("{}: {error}", self.name);
        }
    }

    fn try_remove(&self) -> io::Result<()> {
        // A descriptor of this process's own, since others share the lock of one that they have inherited.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = openat(&self.base, ".", flags, Mode::empty())?;
        flock(&base, FlockOperation::LockExclusive)?;
        let found = match statat(&base, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            found => found?,
        };
        let own = fstat(&self.dir)?;
        if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino) {
            return Ok(());
        }
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                // There are sockets in it, and no directories.
                unlinkat(&self.dir, entry.file_name(), AtFlags::empty())?;
            }
        }
        Ok(unlinkat(&base, &self.name, AtFlags::REMOVEDIR)?)
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
        flock(&left.own.dir, FlockOperation::Unlock).unwrap();
        assert!(left.path.is_dir());
        let again = Place::make_in(&base, "left").unwrap().unwrap();
        assert!(!again.vsock().exists());
        std::mem::forget(left);
    }

    #[test]
    fn the_end_of_one_leaves_the_directory_of_the_next_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b");
        let first = Place::make_in(&base, "name").unwrap().unwrap();
        fs::write(first.vsock(), b"").unwrap();
        // The VM's process comes to its end when the command has long removed the directory.
        let late = first.share().unwrap();
        drop(first);
        late.remove();
        let second = Place::make_in(&base, "name").unwrap().unwrap();
        fs::write(second.vsock(), b"").unwrap();
        late.remove();
        assert!(second.vsock().exists());
        // And while another one is being made, it waits.
        let whole = File::open(&base).unwrap();
        flock(&whole, FlockOperation::LockExclusive).unwrap();
        let removing = std::thread::spawn(move || drop(second));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!removing.is_finished());
        flock(&whole, FlockOperation::Unlock).unwrap();
        removing.join().unwrap();
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
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
