//! What the first command finds: the container's root with the file systems, devices, files and
//! protections that the host has sent ([`spec`](bothy_guest::spec)).
//!
//! All of it runs in the child that becomes the first command, in namespaces of its own, and before
//! anything of the image has run. The image is hostile all the same: it is reached only through
//! [`Tree`]. The agent's own mounts are taken off before, so that nothing of them is left in the
//! container's mount namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bothy_guest::protocol;
use bothy_guest::spec::{Device, Link, Mount, Protect, Protection, Sysctl};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, major, makedev, minor, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, mount_move, unmount,
};
use rustix::process::{chdir, chroot, fchdir};
use rustix::system::sethostname;

use super::paths::{OWN_FILES, Paths, RUN};
use super::refusal::{Failing, Refusal};
use super::setup::Container;
use super::tree::{self, Tree, attach, detached};
use crate::sys;

/// The terminal of the first command, as a device.
const CONSOLE: &str = "/dev/console";
const NULL: &str = "/dev/null";
/// Of /dev/null.
const NULL_DEVICE: (u32, u32) = (1, 3);

/// Makes this process's namespaces those of the container. The umask must be 0.
pub(crate) fn enter(container: &Container) -> Result<Tree, Refusal> {
    let Container { spec, paths, lent, .. } = container;
    sethostname(spec.host_name.as_bytes()).failing("cannot set the host name")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).failing("mounts")?;
    let files = own_files(paths).failing(paths.files())?;
    let lent = lent.then(|| own(&paths.lent())).transpose().failing(paths.lent())?;
    enter_root(paths).failing("cannot enter the container's root")?;
    let mut tree = Tree::new().failing("/")?;
    for mount in &spec.mounts {
        mount_new(&mut tree, mount).failing(format_args!("cannot mount {}", mount.target))?;
    }
    for device in &spec.devices {
        make_device(&tree, device).failing(&device.path)?;
    }
    for link in &spec.links {
        make_link(&tree, link).failing(&link.path)?;
    }
    for (file, (_, path)) in files.iter().zip(OWN_FILES) {
        let attached = tree.open(path, OFlags::PATH).and_then(|at| {
            if tree::kind(&fstat(&at)?) == FileType::Directory {
                return Err(io::Error::other("the image has a directory there"));
            }
            attach(file, &at)
        });
        attached.failing(format_args!("cannot mount {path}"))?;
    }
    if let Some(lent) = lent {
        let attached = tree
            .open(protocol::LENT, OFlags::PATH | OFlags::DIRECTORY)
            .and_then(|at| tree.attach(lent, &at, protocol::LENT));
        attached.failing(format_args!("cannot mount {}", protocol::LENT))?;
    }
    for sysctl in &spec.sysctls {
        set_sysctl(&tree, sysctl)?;
    }
    for protection in &spec.protections {
        protect(&mut tree, protection).failing(format_args!("cannot protect {}", protection.path))?;
    }
    Ok(tree)
}

/// Makes the terminal /dev/console as well.
pub(crate) fn bind_console(tree: &Tree, terminal: &OwnedFd) -> io::Result<()> {
    let (dev, name) = tree.parent(CONSOLE)?;
    let new = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(&dev, name, new, Mode::from_raw_mode(0o600)) {
        // All devices are there, this one included.
        Err(Errno::EXIST) => {}
        result => drop(result?),
    }
    attach(&detached(terminal.as_fd())?, &tree.open(CONSOLE, OFlags::PATH)?)
}

/// The container's own files, each as a mount that is attached nowhere yet.
fn own_files(paths: &Paths) -> io::Result<Vec<OwnedFd>> {
    let files = paths.files();
    OWN_FILES.iter().map(|(name, _)| own(&format!("{files}/{name}"))).collect()
}

/// What is at this path of the agent's, as a mount that is attached nowhere yet.
fn own(path: &str) -> io::Result<OwnedFd> {
    let file = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    detached(file.as_fd())
}

/// Puts the container's root in place of everything, the roots of other containers included. This
/// is how a system leaves its initramfs, too: the root of an initramfs can be covered, and neither
/// be moved nor pivoted away. Nothing leads below it again: `..` of the topmost root is itself.
fn enter_root(paths: &Paths) -> io::Result<()> {
    let (root, run) = (tree::directory(CWD, &paths.root())?, tree::directory(CWD, RUN)?);
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

fn mount_new(tree: &mut Tree, mount: &Mount) -> io::Result<()> {
    let made = new_file_system(&mount.kind, &mount.options, mount.attributes).and_then(|made| {
        let at = tree.directory(&mount.target)?;
        tree.attach(made, &at, &mount.target)
    });
    match made {
        // The kernel has no such file system, or no place for it in another one of its own.
        Err(error)
            if mount.optional
                && (error.raw_os_error() == Some(libc::ENODEV)
                    || (error.raw_os_error() == Some(libc::ENOENT) && tree.is_on_mount(&mount.target))) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// A new file system, attached nowhere yet.
fn new_file_system(kind: &str, options: &str, attributes: u32) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", kind)?;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value)?,
            None => fsconfig_set_flag(&context, option)?,
        }
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes);
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn make_device(tree: &Tree, device: &Device) -> io::Result<()> {
    let (parent, name) = on_mount(tree, &device.path)?;
    let mode = Mode::from_raw_mode(device.mode);
    Ok(mknodat(parent, name, FileType::CharacterDevice, mode, makedev(device.major, device.minor))?)
}

fn make_link(tree: &Tree, link: &Link) -> io::Result<()> {
    let (parent, name) = on_mount(tree, &link.path)?;
    match symlinkat(&link.target, parent, name) {
        Err(Errno::EXIST) => Ok(()),
        result => Ok(result?),
    }
}

/// A directory on a mount made here, and the name in it: nothing is written into an image this way.
fn on_mount<'a>(tree: &Tree, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
    if !tree.is_on_mount(path) {
        return Err(io::Error::other("it lies on no mount of the container's own"));
    }
    tree.parent(path)
}

/// Writes a kernel parameter. Dots and slashes in its name change places, as for sysctl(8), if a
/// dot is the first of them.
fn set_sysctl(tree: &Tree, sysctl: &Sysctl) -> Result<(), Refusal> {
    let name = &sysctl.name;
    let path = sysctl_path(name);
    let opened = if tree.is_on_mount("/proc/sys") {
        tree.open(&path, OFlags::WRONLY | OFlags::TRUNC)
    } else {
        Err(io::Error::other("there is no /proc"))
    };
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            return if sysctl.optional {
                Ok(())
            } else {
                Err(Refusal::other(format!("sysctl {name}: the guest's kernel has no such parameter")))
            };
        }
        result => result.failing(format_args!("sysctl {name}"))?,
    };
    let written = rustix::io::write(&file, sysctl.value.as_bytes()).map(drop);
    written.failing(format_args!("sysctl {name}={}", sysctl.value))
}

fn sysctl_path(name: &str) -> String {
    let is_dotted = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('.'));
    let swapped = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let path: String = if is_dotted { name.chars().map(swapped).collect() } else { name.to_owned() };
    format!("/proc/sys/{path}")
}

fn protect(tree: &mut Tree, protection: &Protection) -> io::Result<()> {
    let path = &protection.path;
    let at = match tree.open(path, OFlags::PATH) {
        // Only where the kernel says what there is, a missing path is none that was hidden.
        Err(error)
            if error.raw_os_error() == Some(libc::ENOENT)
                && protection.optional
                && tree.is_on_mount(path) =>
        {
            return Ok(());
        }
        result => result?,
    };
    match protection.how {
        Protect::Mask if tree::kind(&fstat(&at)?) == FileType::Directory => {
            let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            attach(&new_file_system("tmpfs", "size=0", attributes.bits())?, &at)
        }
        Protect::Mask => attach(&detached(null(tree)?.as_fd())?, &at),
        Protect::ReadOnly => {
            let copy = detached(at.as_fd())?;
            sys::make_read_only(copy.as_fd())?;
            tree.attach(copy, &at, path)
        }
    }
}

/// /dev/null itself: what stands in its place and is something else would be no mask.
fn null(tree: &Tree) -> io::Result<OwnedFd> {
    let null = tree.open(NULL, OFlags::PATH)?;
    let stat = fstat(&null)?;
    if is_null(&stat) { Ok(null) } else { Err(io::Error::other(format!("{NULL} is another file"))) }
}

/// Whether this is the device that /dev/null is.
pub(crate) fn is_null(stat: &rustix::fs::Stat) -> bool {
    tree::kind(stat) == FileType::CharacterDevice && (major(stat.st_rdev), minor(stat.st_rdev)) == NULL_DEVICE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_named_as_for_sysctl() {
        assert_eq!(sysctl_path("vm.max_map_count"), "/proc/sys/vm/max_map_count");
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding"),
            "/proc/sys/net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/1.forwarding"),
            "/proc/sys/net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(sysctl_path("kernel"), "/proc/sys/kernel");
    }
}
