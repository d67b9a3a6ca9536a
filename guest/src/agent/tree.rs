//! Paths of a container, looked up by descriptors.
//!
//! An image is hostile: every path of it may be a symbolic link, a device or missing. So nothing
//! here resolves a path that an image could have changed on its way. A path belongs to the mount
//! that was made last at a prefix of it; from that mount's own descriptor on, no symbolic link is
//! followed and no other mount is entered. A mask lands on the kernel's file system, or the
//! container doesn't start.
//!
//! [`in_root`] is for the paths that an image or a user may choose freely: the working directory,
//! accounts. Symbolic links are followed there, within the container's root, but none of procfs'
//! magic ones, which lead to the descriptors of this process.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, mkdirat, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// Symbolic links on the way to one path: as many as Linux follows.
const MAX_LINKS: u32 = 40;
/// Parts of a path, those of its symbolic links included.
const MAX_STEPS: u32 = 4096;

/// The container's root, and what is mounted in it.
pub(crate) struct Tree {
    root: OwnedFd,
    mounts: Vec<(String, OwnedFd)>,
}

impl Tree {
    /// Of this process's root.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { root: directory(CWD, "/")?, mounts: Vec::new() })
    }

    /// The root itself.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The mount made here that a path lies on, if it isn't the root's, and the path from there on;
    /// empty if it is the mount itself.
    fn place<'a>(&self, path: &'a str) -> (Option<&OwnedFd>, &'a str) {
        let inside = |target: &str| match path.strip_prefix(target)? {
            "" => Some(""),
            rest => rest.strip_prefix('/'),
        };
        let found = self.mounts.iter().filter_map(|(target, mount)| Some((target, mount, inside(target)?)));
        // Of two at one path the last one covers the other.
        match found.max_by_key(|(target, ..)| target.len()) {
            Some((_, mount, rest)) => (Some(mount), rest),
            None => (None, path.trim_start_matches('/')),
        }
    }

    /// Opens a path. No symbolic link is followed, not even the last part; with `O_PATH` that is
    /// opened itself.
    pub(crate) fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let (mount, rest) = self.place(path);
        let path = if rest.is_empty() { "." } else { rest };
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat2(mount.unwrap_or(&self.root), path, flags, Mode::empty(), resolve)?)
    }

    /// The directory at a path, to mount something on it. On a mount made here it is made if it is
    /// missing.
    pub(crate) fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open(path, flags) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) && self.is_on_mount(path) => {
                let (parent, name) = self.parent(path)?;
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                self.open(path, flags)
            }
            result => result,
        }
    }

    /// The directory that a path lies in, and its last part.
    pub(crate) fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((self.open(parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    /// Whether a path lies on a mount that was made here, and so is none of the image's.
    pub(crate) fn is_on_mount(&self, path: &str) -> bool {
        matches!(self.place(path), (Some(_), rest) if !rest.is_empty())
    }

    /// Attaches a mount at what was opened at `path`; from now on that path belongs to it.
    pub(crate) fn attach(&mut self, mount: OwnedFd, at: &OwnedFd, path: &str) -> io::Result<()> {
        attach(&mount, at)?;
        self.mounts.push((path.to_owned(), mount));
        Ok(())
    }
}

/// Attaches a mount that is attached nowhere yet.
pub(crate) fn attach(mount: &OwnedFd, at: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", at, "", flags)?)
}

/// A mount of what is open, attached nowhere yet.
pub(crate) fn detached(of: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(of, "", flags | OpenTreeFlags::AT_RECURSIVE)?)
}

/// The directory at a path of the agent's own.
pub(crate) fn directory(at: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    Ok(openat(at, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a path that may have symbolic links in it, within `root`.
pub(crate) fn in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, OsStr::from_bytes(path), flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// The directory at a path, made with all that lead to it as far as they are missing; the targets
/// of dangling symbolic links, too. `.` and `..` in the path are taken away before anything is
/// looked up, as docker does; those in the targets of links are not.
pub(crate) fn make_directory(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let mut todo: VecDeque<Vec<u8>> = clean(path).into_iter().map(<[u8]>::to_vec).collect();
    let mut dirs = vec![root.try_clone_to_owned()?];
    let (mut links, mut steps) = (0, 0);
    while let Some(part) = todo.pop_front() {
        steps += 1;
        if steps > MAX_STEPS {
            return Err(Errno::LOOP.into());
        }
        if part == b".." {
            if dirs.len() > 1 {
                dirs.pop();
            }
            continue;
        }
        let Some(dir) = dirs.last() else { break };
        let next = match part_of(dir, &part) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                mkdirat(dir, OsStr::from_bytes(&part), Mode::from_raw_mode(0o755))?;
                part_of(dir, &part)?
            }
            result => result?,
        };
        match kind(&fstat(&next)?) {
            FileType::Directory => dirs.push(next),
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS || is_magic(dir, &part) {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&next, "", Vec::new())?.into_bytes();
                if target.starts_with(b"/") {
                    dirs.truncate(1);
                }
                for part in parts(&target).rev() {
                    todo.push_front(part.to_vec());
                }
            }
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    dirs.pop().ok_or_else(|| Errno::NOENT.into())
}

/// A part of a path, itself: a symbolic link is not followed.
fn part_of(dir: &OwnedFd, part: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, OsStr::from_bytes(part), flags, Mode::empty())?)
}

/// Whether a symbolic link is one of procfs' that lead to a file itself, whatever their text says.
fn is_magic(dir: &OwnedFd, link: &[u8]) -> bool {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let opened =
        openat2(dir, OsStr::from_bytes(link), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    matches!(opened, Err(Errno::LOOP))
}

/// What a file is.
pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// The parts of a path with `..` taken away together with what is before it; at the root it is
/// nothing.
fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut cleaned = Vec::new();
    for part in parts(path) {
        if part == b".." {
            cleaned.pop();
        } else {
            cleaned.push(part);
        }
    }
    cleaned
}

/// As a path for messages.
pub(crate) fn shown(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Makes it below a directory of its own, and says where it is from there.
    fn made(fill: impl FnOnce(&Path), path: &str) -> io::Result<String> {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        let root = directory(CWD, dir.path().to_str().unwrap()).unwrap();
        let found = make_directory(root.as_fd(), path.as_bytes())?;
        let raw = std::os::fd::AsRawFd::as_raw_fd(&found);
        let path = fs::read_link(format!("/proc/self/fd/{raw}")).unwrap();
        Ok(path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn what_is_missing_is_made_and_dots_are_cleaned_first() {
        assert_eq!(made(|_| (), "/").unwrap(), "");
        assert_eq!(made(|_| (), "/new/.").unwrap(), "new");
        assert_eq!(made(|_| (), "/a/x/../c/./d/").unwrap(), "a/c/d");
        assert_eq!(made(|_| (), "/../../a").unwrap(), "a");
    }

    #[test]
    fn links_are_followed_within_the_root_and_dangling_ones_get_their_target() {
        let link = |to: &'static str| move |root: &Path| symlink(to, root.join("link")).unwrap();
        assert_eq!(made(link("/data/missing"), "/link").unwrap(), "data/missing");
        assert_eq!(made(link("../../data"), "/link/sub").unwrap(), "data/sub");
        assert_eq!(made(link("a/../../b"), "/link").unwrap(), "b");
        let error = made(link("link"), "/link/x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn links_that_procfs_makes_up_are_not_followed() {
        let root = directory(CWD, "/").unwrap();
        assert!(make_directory(root.as_fd(), b"/proc/self").is_ok());
        let open = std::os::fd::AsRawFd::as_raw_fd(&root);
        for path in
            [format!("/proc/self/fd/{open}"), "/proc/self/root/tmp".into(), "/proc/self/cwd/..".into()]
        {
            let found = make_directory(root.as_fd(), path.as_bytes());
            // What is cleaned away isn't looked at.
            let is_refused = found.is_err_and(|error| error.raw_os_error() == Some(libc::ELOOP));
            assert_eq!(is_refused, !path.ends_with(".."), "{path}");
        }
    }

    #[test]
    fn a_file_is_no_directory() {
        let error = made(|root| fs::write(root.join("file"), "").unwrap(), "/file/x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
    }
}
