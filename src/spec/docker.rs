//! Docker's defaults (moby 29), as far as they mean something in a virtual machine.

use bothy_guest::spec::{
    Capabilities, Container, Device, DeviceKind, DeviceRule, Filter, Limit, Link, Mount, Protect, Protection,
    Rights, Sysctl, access, attribute,
};

/// What root keeps in a container, by the numbers of capabilities(7).
pub const CAPABILITIES: [(&str, u32); 14] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FOWNER", 3),
    ("CAP_FSETID", 4),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_MKNOD", 27),
    ("CAP_AUDIT_WRITE", 29),
    ("CAP_SETFCAP", 31),
];

/// What a container can't look into. A kernel may lack each of them.
pub const MASKED: [&str; 12] = [
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

/// What a container can't write, and whether a kernel may lack it.
pub const READ_ONLY: [(&str, bool); 5] = [
    ("/proc/bus", true),
    ("/proc/fs", true),
    ("/proc/irq", true),
    ("/proc/sys", false),
    ("/proc/sysrq-trigger", true),
];

/// Name, major and minor number of what is in each container's /dev.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// What can be opened besides: the console, the multiplexer of terminals, and terminals.
const TERMINALS: [(u32, Option<u32>); 3] = [(5, Some(1)), (5, Some(2)), (136, None)];

const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Kernel parameters. The first two are docker's: neither a low port nor a ping takes a right. The
/// others are what Debian and Fedora set and what databases and tools that watch files ask an
/// administrator to raise: in a virtual machine of its own a container has no administrator but
/// itself.
pub const SYSCTLS: [(&str, &str); 5] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
    ("vm.max_map_count", "1048576"),
    ("fs.inotify.max_user_watches", "1048576"),
    ("fs.inotify.max_user_instances", "8192"),
];

/// Resource limits, by the names and numbers of setrlimit(2): open files, processes, the size of
/// core files.
pub const LIMITS: [(&str, u32, u64); 3] = [
    ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE, 1 << 20),
    ("RLIMIT_NPROC", libc::RLIMIT_NPROC, u64::MAX),
    ("RLIMIT_CORE", libc::RLIMIT_CORE, u64::MAX),
];

/// Where a container's processes find a file system of the kernel's.
pub fn mounts(privileged: bool) -> Vec<Mount> {
    use attribute::{NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, STRICT_ATIME};
    let protected = NO_SUID | NO_DEV | NO_EXEC;
    let sealed = if privileged { protected } else { protected | READ_ONLY };
    let mount = |target: &str, kind: &str, attributes: u32, options: &str| Mount {
        target: target.into(),
        kind: kind.into(),
        options: options.into(),
        attributes,
        optional: false,
    };
    vec![
        mount("/proc", "proc", protected, ""),
        mount("/sys", "sysfs", sealed, ""),
        Mount { optional: true, ..mount("/sys/fs/cgroup", "cgroup2", sealed, "") },
        if privileged {
            // All that the kernel has.
            mount("/dev", "devtmpfs", NO_SUID, "mode=755")
        } else {
            mount("/dev", "tmpfs", NO_SUID | STRICT_ATIME, "mode=755,size=65536k")
        },
        mount("/dev/pts", "devpts", NO_SUID | NO_EXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("/dev/shm", "tmpfs", protected, "mode=1777,size=65536k"),
        Mount { optional: true, ..mount("/dev/mqueue", "mqueue", protected, "") },
    ]
}

/// A container. `sysctls` are a user's, and count after docker's.
pub fn container(host_name: &str, privileged: bool, sysctls: &[(String, String)]) -> Container {
    let devices = DEVICES.iter().map(|(name, major, minor)| Device {
        path: format!("/dev/{name}"),
        major: *major,
        minor: *minor,
        mode: 0o666,
    });
    let links = LINKS.iter().map(|(path, target)| Link { path: (*path).into(), target: (*target).into() });
    let defaults = SYSCTLS.iter().map(|(name, value)| Sysctl {
        name: (*name).into(),
        value: (*value).into(),
        optional: true,
    });
    let wanted = sysctls.iter().map(|(name, value)| Sysctl {
        name: name.clone(),
        value: value.clone(),
        optional: false,
    });
    Container {
        host_name: host_name.into(),
        mounts: mounts(privileged),
        // A devtmpfs has them already.
        devices: if privileged { Vec::new() } else { devices.collect() },
        links: links.collect(),
        protections: if privileged { Vec::new() } else { protections() },
        sysctls: defaults.chain(wanted).collect(),
        device_rules: (!privileged).then(device_rules),
    }
}

fn protections() -> Vec<Protection> {
    let protection = |path: &str, how, optional| Protection { path: path.into(), how, optional };
    let masked = MASKED.iter().map(|path| protection(path, Protect::Mask, true));
    let read_only = READ_ONLY.iter().map(|(path, optional)| protection(path, Protect::ReadOnly, *optional));
    masked.chain(read_only).collect()
}

/// Any device node can be made, and only these devices can be opened.
pub fn device_rules() -> Vec<DeviceRule> {
    let make =
        |kind| DeviceRule { allow: true, kind: Some(kind), major: None, minor: None, access: access::MAKE };
    let open = |(major, minor): (u32, Option<u32>)| DeviceRule {
        allow: true,
        kind: Some(DeviceKind::Character),
        major: Some(major),
        minor,
        access: access::ALL,
    };
    let devices = DEVICES.iter().map(|(_, major, minor)| (*major, Some(*minor)));
    let mut rules = vec![make(DeviceKind::Character), make(DeviceKind::Block)];
    rules.extend(devices.chain(TERMINALS).map(open));
    rules
}

/// What a process may do. `filter` is its seccomp filter, if it has one.
pub fn rights(privileged: bool, no_new_privileges: bool, filter: Option<Filter>) -> Rights {
    let kept = if privileged { u64::MAX } else { default_capabilities() };
    let limits =
        LIMITS.iter().map(|(_, resource, value)| Limit { resource: *resource, soft: *value, hard: *value });
    Rights {
        capabilities: Capabilities { bounding: kept, effective: kept, permitted: kept, ..Default::default() },
        limits: limits.collect(),
        no_new_privileges,
        seccomp: filter,
    }
}

/// [`CAPABILITIES`], a bit for each.
pub fn default_capabilities() -> u64 {
    CAPABILITIES.iter().map(|(_, number)| 1 << number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernel() {
        // As /proc/self/status of a docker container shows it.
        assert_eq!(default_capabilities(), 0xa804_25fb);
        assert_eq!(rights(true, false, None).capabilities.bounding, u64::MAX);
    }

    #[test]
    fn a_privileged_container_is_not_restricted() {
        let container = container("h", true, &[]);
        assert_eq!((container.protections, container.device_rules), (Vec::new(), None));
        assert!(container.mounts.iter().all(|mount| mount.attributes & attribute::READ_ONLY == 0));
    }

    #[test]
    fn sysctls_of_a_user_count_last_and_must_exist() {
        let wanted = ("vm.max_map_count".to_owned(), "9".to_owned());
        let sysctls = container("h", false, std::slice::from_ref(&wanted)).sysctls;
        let last = sysctls.last().unwrap();
        assert_eq!((&last.name, &last.value, last.optional), (&wanted.0, &wanted.1, false));
        assert!(sysctls[..sysctls.len() - 1].iter().all(|sysctl| sysctl.optional));
    }
}
