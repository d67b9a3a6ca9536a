//! The cgroup that holds all of the container, so that what it takes is bounded, counted, and ended in one go.
//!
//! The agent stays outside of it, in the root, with memory and process numbers that the container can't get.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::{MountFlags, mount};
use rustix::system::sysinfo;

use crate::say;

/// Where the agent has the hierarchy.
const HIERARCHY: &str = "/run/cgroup";
const CONTAINER: &str = "/run/cgroup/container";

/// What containers may want to see or bound within their own.
const CONTROLLERS: [&str; 8] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb", "misc", "rdma"];

/// Kept from the container: a sixteenth of the memory, within these bounds.
const RESERVE_BYTES: [u64; 2] = [12 << 20, 64 << 20];
/// Process numbers kept from the container.
const RESERVED_PIDS: u64 = 512;
/// What a kernel has that doesn't say.
const LEAST_PID_MAX: u64 = 32768;

/// The container's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    directory: File,
}

impl Cgroup {
    /// Mounts the hierarchy and makes the container's cgroup. A controller that the kernel lacks is left out.
    pub(crate) fn make() -> io::Result<Self> {
        fs::create_dir_all(HIERARCHY)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup2", HIERARCHY, "cgroup2", flags, Some(c"nsdelegate"))?;
        let known = fs::read_to_string(Path::new(HIERARCHY).join("cgroup.controllers"))?;
        for controller in known.split_whitespace().filter(|name| CONTROLLERS.contains(name)) {
            write(HIERARCHY, "cgroup.subtree_control", &format!("+{controller}"));
        }
        match fs::create_dir(CONTAINER) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        Ok(Self { directory: File::from(rustix::fs::open(CONTAINER, flags, Mode::empty())?) })
    }

    /// Bounds it by what the machine has now.
    pub(crate) fn bound(&self) {
        let controllers =
            fs::read_to_string(Path::new(CONTAINER).join("cgroup.controllers")).unwrap_or_default();
        let has = |name| controllers.split_whitespace().any(|controller| controller == name);
        if has("memory") {
            let info = sysinfo();
            let total = info.totalram.saturating_mul(info.mem_unit.into());
            write(CONTAINER, "memory.max", &memory_max(total).to_string());
        }
        if has("pids") {
            let all = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
            let all: u64 = all.trim().parse().unwrap_or(LEAST_PID_MAX);
            write(CONTAINER, "pids.max", &all.saturating_sub(RESERVED_PIDS).max(1).to_string());
        }
    }

    /// How many processes are in it.
    pub(crate) fn processes() -> u32 {
        let text = fs::read_to_string(Path::new(CONTAINER).join("cgroup.procs")).unwrap_or_default();
        u32::try_from(text.lines().count()).unwrap_or(u32::MAX)
    }

    /// Kills all of it.
    pub(crate) fn kill() {
        // Where there is none, nothing runs in it.
        let _ = fs::write(Path::new(CONTAINER).join("cgroup.kill"), "1");
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// What the container may have of this much memory.
fn memory_max(total: u64) -> u64 {
    let reserve = (total / 16).clamp(RESERVE_BYTES[0], RESERVE_BYTES[1]);
    total.saturating_sub(reserve).max(total / 2)
}

fn write(cgroup: &str, file: &str, value: &str) {
    if let Err(error) = fs::write(Path::new(cgroup).join(file), value) {
        say!("{cgroup}/{file}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_keeps_some_memory_of_small_and_large_machines() {
        let mib = |n: u64| n << 20;
        assert_eq!(memory_max(mib(64)), mib(52));
        assert_eq!(memory_max(mib(512)), mib(480));
        assert_eq!(memory_max(mib(8192)), mib(8128));
        assert_eq!(memory_max(mib(16)), mib(8));
    }
}
