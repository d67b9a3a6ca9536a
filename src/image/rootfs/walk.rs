//! Walks a directory of the host by descriptors, each opened without following symbolic links, so
//! that nothing that changes meanwhile leads out of it. Names are taken in the order of their
//! bytes. Few descriptors are open at a time, however deep it goes.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::RootfsError;
use super::flaw::{Flaw, Trouble};
use super::layer::MAX_DEPTH;

/// Something that a walk has come to. The root has no parent and the name `.`.
pub(super) struct Found<'f, T> {
    /// What the walk's caller made of the directory that it is in.
    pub(super) parent: Option<&'f T>,
    pub(super) dir: &'f OwnedFd,
    pub(super) name: &'f CStr,
    pub(super) stat: &'f Stat,
}

/// A directory on the way.
struct Dir<T> {
    parent: usize,
    name: CString,
    depth: usize,
    made: T,
}

/// Calls `each` for the root and everything below it, a directory before what is in it and names in
/// order. What it returns for a directory comes with the directory's own entries.
pub(super) fn walk<T>(
    root: &Path,
    mut each: impl FnMut(Found<'_, T>) -> Result<T, Trouble>,
) -> Result<(), RootfsError> {
    let read = |source: Errno| RootfsError::ReadPath { path: root.into(), source: source.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The root itself may be a symbolic link: whoever gave it meant what it leads to.
    let top = fs::open(root, flags, Mode::empty()).map_err(read)?;
    let stat = fs::fstat(&top).map_err(read)?;
    let made = each(Found { parent: None, dir: &top, name: c".", stat: &stat });
    let made = made.map_err(|trouble| blame(trouble, root.into()))?;
    let mut dirs = vec![Dir { parent: 0, name: c".".into(), depth: 0, made }];
    let mut todo = vec![0];
    // The directory that was read last: what comes next is often in it, and else opened from the
    // root on.
    let mut last: Option<(usize, OwnedFd)> = None;
    while let Some(number) = todo.pop() {
        let here = |name: &CStr| path(root, &dirs, number, name);
        let near = last.as_ref().filter(|(last, _)| number != 0 && dirs[number].parent == *last);
        let dir = match near {
            Some((_, parent)) => enter(parent, &dirs[number].name),
            None => open(&top, &dirs, number),
        };
        let dir = dir.map_err(|error| blame(error.into(), here(c".")))?;
        let names = list(&dir).map_err(|error| blame(error.into(), here(c".")))?;
        let depth = dirs[number].depth + 1;
        let first = dirs.len();
        for name in names {
            let blame = |trouble| blame(trouble, path(root, &dirs, number, &name));
            let stat = fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(|error| blame(error.into()))?;
            let found = Found { parent: Some(&dirs[number].made), dir: &dir, name: &name, stat: &stat };
            let made = each(found).map_err(blame)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                if depth > MAX_DEPTH {
                    return Err(blame(Flaw::Depth.into()));
                }
                dirs.push(Dir { parent: number, name, depth, made });
            }
        }
        todo.extend((first..dirs.len()).rev());
        last = Some((number, dir));
    }
    Ok(())
}

fn blame(trouble: Trouble, path: PathBuf) -> RootfsError {
    match trouble {
        Trouble::Flaw(flaw) => RootfsError::Path { path, flaw },
        Trouble::Read(source) => RootfsError::ReadPath { path, source },
        Trouble::Out(error) => error,
    }
}

impl From<Errno> for Trouble {
    fn from(error: Errno) -> Self {
        Self::Read(error.into())
    }
}

/// The names that lead to a directory from the root on.
fn chain<T>(dirs: &[Dir<T>], mut number: usize) -> Vec<&CStr> {
    let mut names = Vec::new();
    while number != 0 {
        names.push(dirs[number].name.as_c_str());
        number = dirs[number].parent;
    }
    names.reverse();
    names
}

fn path<T>(root: &Path, dirs: &[Dir<T>], number: usize, name: &CStr) -> PathBuf {
    let names = chain(dirs, number).into_iter().chain((name != c".").then_some(name));
    names.fold(root.to_path_buf(), |path, name| path.join(OsStr::from_bytes(name.to_bytes())))
}

/// Opens a directory, a name at a time.
fn open<T>(top: &OwnedFd, dirs: &[Dir<T>], number: usize) -> rustix::io::Result<OwnedFd> {
    chain(dirs, number).into_iter().try_fold(enter(top, c".")?, |dir, name| enter(&dir, name))
}

fn enter(dir: &OwnedFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )
}

fn list(dir: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
