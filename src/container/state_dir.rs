//! The state directory of a container: its sockets, and a lock that says that it runs.
//!
//! It lies in `$XDG_RUNTIME_DIR/bothy`, or where that isn't set in `/tmp/bothy-UID`, and nobody
//! else may enter it. It has the container's name: only one of a name runs at a time. The monitor
//! makes it, holds its lock while the container runs, and removes it, under the lock of all
//! directories, and only if it still is the same one: by then another container may have the name.
//! A directory whose lock nobody holds was left behind by a monitor that was killed; the next
//! container's monitor removes it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, fstat, openat, statat, unlinkat};
use rustix::io::Errno;

/// Longest name: the path of a socket has 107 bytes at most.
const MAX_NAME: usize = 40;

/// The directory. Dropping it removes it.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    base: OwnedFd,
    name: String,
    /// The directory itself, locked.
    dir: OwnedFd,
}

impl StateDir {
    /// Makes the directory of a container in `base`, which [`runtime_dir`] names.
    pub(super) fn make(base: &Path, name: &str) -> anyhow::Result<Self> {
        check_name(name)?;
        Self::make_in(base, name)
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
        Ok(Some(Self { path, base: File::open(base)?.into(), name: name.into(), dir: dir.into() }))
    }

    /// Where the vsock device's socket is to be.
    pub fn vsock(&self) -> PathBuf {
        self.path.join("vsock")
    }

    /// The directory's lock, to be held by the VM's process as well: where the monitor is killed,
    /// no other container has the name before the VM has ended.
    pub(super) fn lock(&self) -> io::Result<OwnedFd> {
        self.dir.try_clone()
    }

    /// Removes the directory, if it is still there.
    fn remove(&self) {
        if let Err(error) = self.try_remove() {
            log::debug!("{}: {error}", self.name);
        }
    }

    fn try_remove(&self) -> io::Result<()> {
        // A descriptor of this process's own, since others share the lock of one that they have
        // inherited.
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

impl Drop for StateDir {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Refuses what can't be a directory's name, or makes the path of a socket in it too long.
fn check_name(name: &str) -> anyhow::Result<()> {
    let known = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !known || name.starts_with(['-', '_', '.']) || !(1..=MAX_NAME).contains(&name.len()) {
        bail!("--name: {name:?} is not a name of up to {MAX_NAME} letters, digits, - _ and .");
    }
    Ok(())
}

/// Where the state directories of this user's containers are, by the client's environment.
pub fn runtime_dir() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && dir.is_dir());
    match runtime {
        Some(dir) => dir.join("bothy"),
        None => format!("/tmp/bothy-{}", rustix::process::getuid().as_raw()).into(),
    }
}

/// Makes a directory that nobody else may enter, or finds it so: in /tmp somebody else may have
/// made one of that name.
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
        let first = StateDir::make_in(&base, "one").unwrap().unwrap();
        assert!(StateDir::make_in(&base, "one").unwrap().is_none());
        let second = StateDir::make_in(&base, "two").unwrap().unwrap();
        fs::write(first.vsock(), b"").unwrap();
        assert!(second.vsock().parent().unwrap().is_dir());
        drop((first, second));
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_command_left_behind_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b");
        let left = StateDir::make_in(&base, "left").unwrap().unwrap();
        fs::write(left.vsock(), b"").unwrap();
        flock(&left.dir, FlockOperation::Unlock).unwrap();
        assert!(left.path.is_dir());
        let again = StateDir::make_in(&base, "left").unwrap().unwrap();
        assert!(!again.vsock().exists());
        std::mem::forget(left);
    }

    #[test]
    fn the_end_of_one_leaves_the_directory_of_the_next_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b");
        let first = StateDir::make_in(&base, "name").unwrap().unwrap();
        fs::write(first.vsock(), b"").unwrap();
        // A directory that has gone, and the next one of its name.
        let late = StateDir {
            path: first.path.clone(),
            base: first.base.try_clone().unwrap(),
            name: first.name.clone(),
            dir: first.dir.try_clone().unwrap(),
        };
        drop(first);
        late.remove();
        let second = StateDir::make_in(&base, "name").unwrap().unwrap();
        fs::write(second.vsock(), b"").unwrap();
        drop(late);
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
        assert!(StateDir::make_in(dir.path(), "x").is_err());
        for name in ["", "a/b", ".", "..", "-x", &"x".repeat(MAX_NAME + 1)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
