//! The container's root file system: the image, and above it what takes what is written.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use bothy_guest::protocol::{Root, Upper};
use rustix::fs::statvfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::refusal::{Failing, Refusal};
use crate::{say, sys};

/// Where the container's root is, for the agent.
pub(crate) const ROOT: &str = "/run/root";
/// Where what the host lends is, for the agent.
pub(crate) const LENT: &str = "/run/lent";
const IMAGE: &str = "/run/image";
const UPPER: &str = "/run/upper";
/// The directories that a container's root must have, and where the agent has them for those that lack one.
const SKELETON: [&str; 3] = ["proc", "sys", "dev"];
const BELOW: &str = "/run/below";
const SECTOR_BYTES: u64 = 512;

/// Mounts it at [`ROOT`].
pub(crate) fn build(root: &Root) -> Result<(), Refusal> {
    if let Some(lent) = &root.lent {
        mount_at(
            &device(lent)?,
            LENT,
            "erofs",
            MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID,
            "",
        )?;
    }
    let device = device(&root.image)?;
    if root.upper == Upper::ReadOnly {
        mount_at(&device, ROOT, "erofs", MountFlags::RDONLY, "")?;
        return if SKELETON.iter().all(|path| Path::new(ROOT).join(path).is_dir()) {
            Ok(())
        } else {
            with_skeleton()
        };
    }
    mount_at(&device, IMAGE, "erofs", MountFlags::RDONLY, "")?;
    match &root.upper {
        Upper::Scratch(name) => {
            // Nothing of it outlives the machine: no barriers, and no inode tables written ahead.
            mount_at(&self::device(name)?, UPPER, "ext4", MountFlags::NOATIME, "nobarrier,noinit_itable")?;
            grow(name).failing(format_args!("cannot grow the file system on {name}"))?;
        }
        Upper::Memory | Upper::ReadOnly => {
            mount_at("tmpfs", UPPER, "tmpfs", MountFlags::empty(), "mode=700")?;
        }
    }
    let make = || {
        for name in ["upper", "work"] {
            fs::create_dir_all(Path::new(UPPER).join(name))?;
        }
        // The upper directory is the root that programs see: it looks as the image's.
        let image = fs::metadata(IMAGE)?;
        let upper = Path::new(UPPER).join("upper");
        fs::set_permissions(&upper, fs::Permissions::from_mode(image.mode()))?;
        std::os::unix::fs::chown(&upper, Some(image.uid()), Some(image.gid()))
    };
    make().failing(UPPER)?;
    let options = format!("lowerdir={IMAGE},upperdir={UPPER}/upper,workdir={UPPER}/work,redirect_dir=on");
    mount_at("overlay", ROOT, "overlay", MountFlags::empty(), &options)
}

/// Covers a read-only root that lacks what a container needs by one that has it, read-only as well.
fn with_skeleton() -> Result<(), Refusal> {
    let make = || -> io::Result<()> {
        for path in SKELETON {
            fs::create_dir_all(Path::new(BELOW).join(path))?;
        }
        Ok(())
    };
    make().failing(BELOW)?;
    mount_at("overlay", ROOT, "overlay", MountFlags::RDONLY, &format!("lowerdir={ROOT}:{BELOW}"))
}

/// Unmounts everything that is kept outside of memory. What is still in use is written and made read-only.
pub(crate) fn unmount_all() {
    // What isn't mounted needs no unmounting.
    let _ = unmount(ROOT, UnmountFlags::empty());
    let _ = mount_remount(UPPER, MountFlags::RDONLY, c"");
    let _ = unmount(UPPER, UnmountFlags::empty());
    let _ = unmount(IMAGE, UnmountFlags::empty());
    let _ = unmount(LENT, UnmountFlags::empty());
    sys::sync();
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

/// Grows the mounted file system to its device's size.
fn grow(device: &str) -> io::Result<()> {
    let sectors: u64 = fs::read_to_string(format!("/sys/class/block/{device}/size"))?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    let block_bytes = statvfs(UPPER)?.f_frsize.max(1);
    let blocks = sectors.saturating_mul(SECTOR_BYTES) / block_bytes;
    match sys::grow_ext4(File::open(UPPER)?.as_fd(), blocks) {
        // It is larger already.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            say!("{device}: its file system can't be made {blocks} blocks long");
            Ok(())
        }
        result => result,
    }
}
