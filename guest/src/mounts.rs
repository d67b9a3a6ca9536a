//! The file systems that programs expect, and their end.

use std::ffi::CStr;
use std::fs;
use std::io;

use crate::say;
use crate::sys::{c_string, mount, unmount};

const NODEV: u64 = libc::MS_NODEV;
const NOSUID: u64 = libc::MS_NOSUID;
const NOEXEC: u64 = libc::MS_NOEXEC;

struct Mount {
    target: &'static CStr,
    kind: &'static CStr,
    flags: u64,
    data: &'static CStr,
}

const PROC: Mount = Mount { target: c"/proc", kind: c"proc", flags: NOSUID | NODEV | NOEXEC, data: c"" };

/// How init finds devices.
const DEVICES: [Mount; 2] = [
    Mount { target: c"/sys", kind: c"sysfs", flags: NOSUID | NODEV | NOEXEC, data: c"" },
    Mount { target: c"/dev", kind: c"devtmpfs", flags: NOSUID, data: c"mode=755" },
];

/// What programs expect; a kernel may lack one.
const USUAL: [Mount; 6] = [
    Mount {
        target: c"/dev/pts",
        kind: c"devpts",
        flags: NOSUID | NOEXEC,
        data: c"gid=5,mode=620,ptmxmode=666",
    },
    Mount { target: c"/dev/shm", kind: c"tmpfs", flags: NOSUID | NODEV, data: c"mode=1777" },
    Mount { target: c"/dev/mqueue", kind: c"mqueue", flags: NOSUID | NODEV | NOEXEC, data: c"" },
    Mount { target: c"/run", kind: c"tmpfs", flags: NOSUID | NODEV, data: c"mode=755" },
    Mount { target: c"/tmp", kind: c"tmpfs", flags: NOSUID | NODEV, data: c"mode=1777" },
    Mount {
        target: c"/sys/fs/cgroup",
        kind: c"cgroup2",
        flags: NOSUID | NODEV | NOEXEC,
        data: c"nsdelegate",
    },
];

/// What udev would make in /dev.
const DEV_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// File systems that hold nothing which could be lost.
const IN_MEMORY: [&str; 9] =
    ["proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "mqueue", "cgroup2", "rootfs", "ramfs"];

/// Mounts /proc, without which init doesn't know what it is for.
pub(crate) fn proc() -> io::Result<()> {
    essential(&PROC)
}

/// Mounts /sys and /dev.
pub(crate) fn devices() -> io::Result<()> {
    DEVICES.iter().try_for_each(essential)
}

fn essential(m: &Mount) -> io::Result<()> {
    let target = m.target.to_string_lossy();
    fs::create_dir_all(&*target)
        .and_then(|()| mount(m.kind, m.target, m.kind, m.flags, m.data))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot mount {target}: {error}")))
}

/// Mounts the rest. What fails is reported and left out.
pub(crate) fn usual() {
    for m in &USUAL {
        let target = m.target.to_string_lossy();
        // In /sys the kernel made the directory, and nobody else can.
        let directory = if target.starts_with("/sys") { Ok(()) } else { fs::create_dir_all(&*target) };
        if let Err(error) = directory.and_then(|()| mount(m.kind, m.target, m.kind, m.flags, m.data)) {
            say!("cannot mount {target}: {error}");
        }
    }
    for (to, link) in DEV_LINKS {
        // A link that is there already does as well.
        let _ = std::os::unix::fs::symlink(to, link);
    }
}

/// Unmounts everything that is kept outside the machine's memory, the last mounted first.
pub(crate) fn unmount_all() {
    let Ok(table) = fs::read_to_string("/proc/self/mounts") else { return };
    for (target, kind) in table.lines().rev().filter_map(parse_mount) {
        if IN_MEMORY.contains(&kind) {
            continue;
        }
        if let Err(error) = unmount(&c_string(&target)) {
            say!("cannot unmount {target}: {error}");
        }
    }
}

/// Mount point and type of a line in /proc/self/mounts, where white space and backslashes in paths
/// are octal.
fn parse_mount(line: &str) -> Option<(String, &str)> {
    let mut fields = line.split(' ');
    let target = fields.nth(1)?;
    let kind = fields.next()?;
    let target =
        target.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    Some((target, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_a_space_is_decoded() {
        let line = r"/dev/vda /mnt/my\040disk ext4 rw,relatime 0 0";
        assert_eq!(parse_mount(line), Some(("/mnt/my disk".to_owned(), "ext4")));
        assert_eq!(parse_mount("short"), None);
    }
}
