//! The container's root file system: the image, and above it what takes what is written.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use bothy_guest::protocol::{self, Root, Upper};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, statat, statvfs, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::paths::{OWN_FILES, Paths};
use super::refusal::{Failing, Refusal};
use super::tree;
use crate::{say, sys};

/// The directories that a container's root must have. Docker, too, puts an empty one in the place
/// of a file or a link.
const SKELETON: [&str; 4] = ["proc", "sys", "dev", "etc"];
/// What older programs read for a table of mounts, in /etc, and where it is.
const MTAB: (&str, &str) = ("mtab", "/proc/mounts");
const SECTOR_BYTES: u64 = 512;

/// Mounts it at [`Paths::root`]. On an error nothing stays mounted.
pub(crate) fn build(root: &Root, paths: &Paths) -> Result<(), Refusal> {
    mount_all(root, paths).inspect_err(|_| unmount_all(paths))
}

fn mount_all(root: &Root, paths: &Paths) -> Result<(), Refusal> {
    if let Some(lent) = &root.lent {
        mount_at(
            &device(lent)?,
            &paths.lent(),
            "erofs",
            MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID,
            "",
        )?;
    }
    let (image, upper, merged) = (paths.image(), paths.upper(), paths.root());
    mount_at(&device(&root.image)?, &image, "erofs", MountFlags::RDONLY, "")?;
    match &root.upper {
        Upper::Scratch(name) => {
            // Nothing of it outlives the machine: no barriers, and no inode tables written ahead.
            mount_at(&self::device(name)?, &upper, "ext4", MountFlags::NOATIME, "nobarrier,noinit_itable")?;
            grow(name, &upper).failing(format_args!("cannot grow the file system on {name}"))?;
        }
        Upper::Memory | Upper::ReadOnly => {
            mount_at("tmpfs", &upper, "tmpfs", MountFlags::empty(), "mode=700")?;
        }
    }
    let make = || {
        for name in ["upper", "work"] {
            fs::create_dir_all(Path::new(&upper).join(name))?;
        }
        // The upper directory is the root that programs see: it looks as the image's.
        let metadata = fs::metadata(&image)?;
        let directory = Path::new(&upper).join("upper");
        fs::set_permissions(&directory, fs::Permissions::from_mode(metadata.mode()))?;
        std::os::unix::fs::chown(&directory, Some(metadata.uid()), Some(metadata.gid()))
    };
    make().failing(&upper)?;
    let options = format!("lowerdir={image},upperdir={upper}/upper,workdir={upper}/work,redirect_dir=on");
    mount_at("overlay", &merged, "overlay", MountFlags::empty(), &options)?;
    complete(&merged, root.lent.is_some()).failing("cannot complete the container's root")?;
    if root.upper == Upper::ReadOnly {
        mount_remount(&merged, MountFlags::BIND | MountFlags::RDONLY, c"").failing(&merged)?;
    }
    Ok(())
}

/// Gives the root what a container must find in every one. Each name is one part below a directory
/// that is open: no link of the image leads anywhere from here.
fn complete(root: &str, lent: bool) -> io::Result<()> {
    let root = tree::directory(CWD, root)?;
    for name in SKELETON {
        complete_directory(&root, name)?;
    }
    if lent {
        complete_directory(&root, protocol::LENT.trim_start_matches('/'))?;
    }
    let etc = openat(
        &root,
        "etc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for (name, _) in OWN_FILES {
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(&etc, name, new, Mode::from_raw_mode(0o644)) {
            // Whatever it is, the container's own file is mounted over it.
            Err(Errno::EXIST) => {}
            result => drop(result?),
        }
    }
    match symlinkat(MTAB.1, &etc, MTAB.0) {
        Err(Errno::EXIST) => Ok(()),
        result => Ok(result?),
    }
}

fn complete_directory(root: &OwnedFd, name: &str) -> io::Result<()> {
    match statat(root, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if tree::kind(&stat) == FileType::Directory => return Ok(()),
        Ok(_) => unlinkat(root, name, AtFlags::empty())?,
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(mkdirat(root, name, Mode::from_raw_mode(0o755))?)
}

/// Unmounts a container's file systems. One that is still in use is written and made read-only.
pub(crate) fn unmount_all(paths: &Paths) {
    // What isn't mounted needs no unmounting.
    let upper = paths.upper();
    let _ = unmount(paths.root(), UnmountFlags::empty());
    let _ = mount_remount(&upper, MountFlags::RDONLY, c"");
    let _ = unmount(&upper, UnmountFlags::empty());
    let _ = unmount(paths.image(), UnmountFlags::empty());
    let _ = unmount(paths.lent(), UnmountFlags::empty());
}

fn device(name: &str) -> Result<String, Refusal> {
    if name.is_empty() || name.contains(['/', '\0']) || name == ".." {
        return Err(Refusal::other(format!("{name:?} is no block device")));
    }
    Ok(format!("/dev/{name}"))
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), Refusal> {
    let mount = || -> io::Result<()> {
        fs::create_dir_all(target)?;
        Ok(mount(source, target, kind, flags, Some(CString::new(data)?.as_c_str()))?)
    };
    mount().failing(format_args!("cannot mount {source} as {kind}"))
}

/// Grows the file system of this device, mounted at `at`, to the device's size.
fn grow(device: &str, at: &str) -> io::Result<()> {
    let sectors: u64 = fs::read_to_string(format!("/sys/class/block/{device}/size"))?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    let block_bytes = statvfs(at)?.f_frsize.max(1);
    let blocks = sectors.saturating_mul(SECTOR_BYTES) / block_bytes;
    match sys::grow_ext4(File::open(at)?.as_fd(), blocks) {
        // It is larger already.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            say!("{device}: its file system can't be made {blocks} blocks long");
            Ok(())
        }
        result => result,
    }
}
