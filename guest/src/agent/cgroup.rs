//! The cgroups of containers: one for all of them, so that what they take together is bounded, and
//! one below it for each, so that it is counted, confined and ended in one go.
//!
//! The agent stays outside, in the root, with memory and process numbers that no container can get.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::mount::{MountFlags, mount};
use rustix::system::sysinfo;

use crate::say;

/// Where the agent has the hierarchy.
const HIERARCHY: &str = "/run/cgroup";
/// The parent of every container's cgroup.
const CONTAINERS: &str = "/run/cgroup/containers";

/// What containers may want to see or bound within their own.
const CONTROLLERS: [&str; 8] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb", "misc", "rdma"];

/// Kept from containers: a sixteenth of the memory, within these bounds.
const RESERVE_BYTES: [u64; 2] = [12 << 20, 64 << 20];
/// Process numbers kept from containers.
const RESERVED_PIDS: u64 = 512;
/// What a kernel has that doesn't say.
const LEAST_PID_MAX: u64 = 32768;

/// The parent of every container's cgroup, mounted and delegated.
#[derive(Debug)]
pub(crate) struct Cgroups(());

/// A container's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    directory: File,
}

impl Cgroups {
    /// Mounts the hierarchy and makes the parent. A controller that the kernel lacks is left out.
    pub(crate) fn make() -> io::Result<Self> {
        fs::create_dir_all(HIERARCHY)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup2", HIERARCHY, "cgroup2", flags, Some(c"nsdelegate"))?;
        delegate(HIERARCHY)?;
        make_directory(Path::new(CONTAINERS))?;
        delegate(CONTAINERS)?;
        Ok(Self(()))
    }

    /// Bounds all containers together by the memory and process numbers that the machine has now.
    pub(crate) fn bound(&self) {
        bound(Path::new(CONTAINERS));
    }

    /// Makes the cgroup of a container. It has the bounds of all containers for itself, because
    /// programs read the memory that they may use from their own cgroup only.
    pub(crate) fn add(&self, container: u32) -> io::Result<Cgroup> {
        let path = Path::new(CONTAINERS).join(container.to_string());
        make_directory(&path)?;
        bound(&path);
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        Ok(Cgroup { directory: File::from(rustix::fs::open(&path, flags, Mode::empty())?) })
    }

    /// How many processes are in the containers' cgroups.
    pub(crate) fn processes() -> u32 {
        let count = |cgroup: PathBuf| {
            let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            u32::try_from(text.lines().count()).unwrap_or(u32::MAX)
        };
        let entries = fs::read_dir(CONTAINERS).into_iter().flatten().flatten();
        entries.map(|entry| count(entry.path())).fold(0, u32::saturating_add)
    }

    /// Kills all containers.
    pub(crate) fn kill() {
        // Without cgroups nothing runs in one.
        let _ = fs::write(Path::new(CONTAINERS).join("cgroup.kill"), "1");
    }
}

/// Gives the controllers that containers may want to the cgroups below this one.
fn delegate(cgroup: &str) -> io::Result<()> {
    let known = fs::read_to_string(Path::new(cgroup).join("cgroup.controllers"))?;
    for controller in known.split_whitespace().filter(|name| CONTROLLERS.contains(name)) {
        write(Path::new(cgroup), "cgroup.subtree_control", &format!("+{controller}"));
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn bound(cgroup: &Path) {
    let controllers = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    let has = |name| controllers.split_whitespace().any(|controller| controller == name);
    if has("memory") {
        let info = sysinfo();
        let total = info.totalram.saturating_mul(info.mem_unit.into());
        write(cgroup, "memory.max", &memory_max(total).to_string());
    }
    if has("pids") {
        let all = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
        let all: u64 = all.trim().parse().unwrap_or(LEAST_PID_MAX);
        write(cgroup, "pids.max", &all.saturating_sub(RESERVED_PIDS).max(1).to_string());
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// What containers may have of this much memory.
fn memory_max(total: u64) -> u64 {
    let reserve = (total / 16).clamp(RESERVE_BYTES[0], RESERVE_BYTES[1]);
    total.saturating_sub(reserve).max(total / 2)
}

fn write(cgroup: &Path, file: &str, value: &str) {
    let path = cgroup.join(file);
    if let Err(error) = fs::write(&path, value) {
        say!("{}: {error}", path.display());
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
