//! What the first command finds: the container's root with /proc, /sys, /dev and three files of its own, as docker makes them.
//!
//! All of it runs in the child that becomes the first command, in namespaces of its own, and before anything of the image has run. The image is
//! hostile all the same: the root is entered first, so every path is looked up within it, and a symbolic link of the image's leads nowhere else.
//! The agent's own mounts are taken off before, so that nothing of them is left in the container's mount namespace.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use bothy_guest::protocol;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_move, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir};
use rustix::system::sethostname;

use super::refusal::{Failing, Refusal};
use super::root::{LENT, ROOT};
use super::setup::{Container, FILES};

const PROTECTED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Name, major and minor number of what is in every container's /dev.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// What docker hides.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What docker makes read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Name below [`FILES`], and path in the container.
const OWN_FILES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];

/// Makes this process's namespaces those of the container. The umask must be 0.
pub(crate) fn enter(container: &Container) -> Result<(), Refusal> {
    sethostname(container.host_name.as_bytes()).failing("cannot set the host name")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).failing("mounts")?;
    let files = own_files().failing(FILES)?;
    let lent = container.lent.then(|| detached(LENT)).transpose().failing(LENT)?;
    enter_root().failing("cannot enter the container's root")?;
    kernel_file_systems(container.privileged)?;
    devices(container.privileged)?;
    for (file, (_, path)) in files.into_iter().zip(OWN_FILES) {
        put_file(&file, path).failing(format_args!("cannot mount {path}"))?;
    }
    if let Some(lent) = lent {
        make_directory(protocol::LENT)
            .and_then(|()| attach(&lent, protocol::LENT))
            .failing(format_args!("cannot mount {}", protocol::LENT))?;
    }
    if !container.privileged {
        MASKED.iter().try_for_each(|path| mask(path).failing(format_args!("cannot mask {path}")))?;
        READ_ONLY.iter().try_for_each(|path| {
            make_read_only(path).failing(format_args!("cannot make {path} read-only"))
        })?;
    }
    Ok(())
}

/// Makes the terminal /dev/console as well.
pub(crate) fn bind_console(terminal: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).mode(0o600).open("/dev/console")?;
    Ok(mount_bind(terminal, "/dev/console")?)
}

/// The container's own files, each as a mount that is attached nowhere yet.
fn own_files() -> io::Result<Vec<OwnedFd>> {
    OWN_FILES.iter().map(|(name, _)| detached(&format!("{FILES}/{name}"))).collect()
}

/// What is at this path, as a mount that is attached nowhere yet.
fn detached(path: &str) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

fn attach(mount: &OwnedFd, path: &str) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Puts the container's root in place of everything. This is how a system leaves its initramfs, too: the root of an initramfs can be covered, and
/// neither be moved nor pivoted away. Nothing leads below it again: `..` of the topmost root is itself.
fn enter_root() -> io::Result<()> {
    let directory =
        |path: &str| open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let (root, run) = (directory(ROOT)?, directory("/run")?);
    for path in ["/proc", "/sys", "/dev"] {
        unmount(path, UnmountFlags::DETACH)?;
    }
    fchdir(&root)?;
    mount_move(".", "/")?;
    fchdir(&run)?;
    unmount(".", UnmountFlags::DETACH)?;
    fchdir(&root)?;
    chroot(".")?;
    Ok(chdir("/")?)
}

fn kernel_file_systems(privileged: bool) -> Result<(), Refusal> {
    let read_only = if privileged { MountFlags::empty() } else { MountFlags::RDONLY };
    mount_new("/proc", "proc", PROTECTED, c"")?;
    mount_new("/sys", "sysfs", PROTECTED | read_only, c"")?;
    match mount("cgroup2", "/sys/fs/cgroup", "cgroup2", PROTECTED | read_only, Some(c"")) {
        // A kernel without cgroups.
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        result => result.failing("cannot mount /sys/fs/cgroup"),
    }
}

fn devices(privileged: bool) -> Result<(), Refusal> {
    if privileged {
        // All that the kernel has.
        mount_new("/dev", "devtmpfs", MountFlags::NOSUID, c"mode=755")?;
    } else {
        mount_new("/dev", "tmpfs", MountFlags::NOSUID | MountFlags::STRICTATIME, c"mode=755,size=65536k")?;
        for (name, major, minor) in DEVICES {
            let path = format!("/dev/{name}");
            mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))
                .failing(path)?;
        }
    }
    for (to, link) in LINKS {
        match symlink(to, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).failing(link),
            _ => {}
        }
    }
    let no_code = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_new("/dev/pts", "devpts", no_code, c"newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    mount_new("/dev/shm", "tmpfs", PROTECTED, c"mode=1777,size=65536k")?;
    mount_new("/dev/mqueue", "mqueue", PROTECTED, c"")
}

fn mount_new(target: &str, kind: &str, flags: MountFlags, data: &std::ffi::CStr) -> Result<(), Refusal> {
    make_directory(target)
        .and_then(|()| Ok(mount(kind, target, kind, flags, Some(data))?))
        .failing(format_args!("cannot mount {target}"))
}

/// As `mkdir -p`. What is there already is taken as it is.
pub(crate) fn make_directory(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))?;
    Ok(())
}

/// Mounts the file over the image's, which is made if it is missing. A symbolic link is covered, not followed; in a root that can't be
/// written, what is missing stays missing.
fn put_file(file: &OwnedFd, path: &str) -> io::Result<()> {
    if fs::symlink_metadata(path).is_err() {
        let make = || {
            make_directory(Path::new(path).parent().unwrap_or(Path::new("/")))?;
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)
        };
        match make() {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    attach(file, path)
}

/// Covers a file by /dev/null, and a directory by an empty one.
fn mask(path: &str) -> io::Result<()> {
    match mount_bind("/dev/null", path) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTDIR) => {
            Ok(mount("tmpfs", path, "tmpfs", PROTECTED | MountFlags::RDONLY, Some(c"size=0"))?)
        }
        result => Ok(result?),
    }
}

fn make_read_only(path: &str) -> io::Result<()> {
    match mount_bind_recursive(path, path) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | PROTECTED, c"")?),
    }
}
