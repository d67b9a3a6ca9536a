//! The image run by runc, with what docker gives a container that has no network: capabilities, masked and read-only paths, mounts, namespaces,
//! limits, devices. There is no seccomp filter: what it refuses of docker's, the capabilities refuse as well where these tests look.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::image::{Image, words};
use crate::support::{Bothy, Finished};

/// For docker's container of the name `box`.
pub(super) const HOST_NAME: &str = "box";
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const LIMIT: Duration = Duration::from_secs(60);
/// What setrlimit(2) takes for "no limit".
const UNLIMITED: u64 = u64::MAX;

const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.0.1\tbox\n";

/// What is run.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) cwd: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// Runs it in a container of its own.
pub(super) fn run(image: &Image, process: &Process) -> Finished {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let id = format!("bothy-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let bundle = image.dir.join("bundles").join(&id);
    for name in ["rootfs", "upper", "work"] {
        fs::create_dir_all(bundle.join(name)).unwrap();
    }
    for (name, text) in [("hostname", "box\n"), ("hosts", HOSTS), ("resolv.conf", "")] {
        fs::write(bundle.join(name), text).unwrap();
    }
    fs::write(bundle.join("config.json"), config(&bundle, process).to_string()).unwrap();
    let root = Mounted::new(image, &bundle);
    let state = image.dir.join("runc");
    let runc = Bothy::program(
        "runc",
        [Path::new("--root"), &state, Path::new("run"), Path::new("--bundle"), &bundle],
    );
    let finished = runc.args([&id]).limit(LIMIT).run();
    drop(root);
    fs::remove_dir_all(bundle).unwrap();
    finished
}

/// An overlay above the image, which is unmounted when this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Image, bundle: &Path) -> Self {
        let (lower, dir) = (image.root.display(), bundle.display());
        let options = format!("lowerdir={lower},upperdir={dir}/upper,workdir={dir}/work");
        words(bundle, &format!("mount -t overlay -o {options} overlay rootfs"));
        Self(bundle.join("rootfs"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        words(Path::new("/"), &format!("umount {}", self.0.display()));
    }
}

fn config(bundle: &Path, process: &Process) -> Value {
    let Process { args, env, cwd, uid, gid, groups } = process;
    let kept: &[&str] = if *uid == 0 { &CAPABILITIES } else { &[] };
    let limit = |kind: &str, value: u64| json!({"type": kind, "hard": value, "soft": value});
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "cgroup"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": gid, "additionalGids": groups},
            "args": args, "env": env, "cwd": cwd,
            "capabilities": {"bounding": CAPABILITIES, "effective": kept, "permitted": kept},
            "rlimits": [limit("RLIMIT_NOFILE", 1 << 20), limit("RLIMIT_NPROC", UNLIMITED), limit("RLIMIT_CORE", UNLIMITED)],
        },
        "root": {"path": "rootfs"},
        "hostname": HOST_NAME,
        "mounts": mounts(bundle),
        "linux": {
            "namespaces": namespaces,
            "resources": {"devices": devices()},
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn mounts(bundle: &Path) -> Vec<Value> {
    let mount = |target: &str, kind: &str, source: &str, options: &str| {
        let options: Vec<_> = options.split(',').collect();
        json!({"destination": target, "type": kind, "source": source, "options": options})
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
    ];
    for name in ["hostname", "hosts", "resolv.conf"] {
        let source = bundle.join(name).display().to_string();
        mounts.push(mount(&format!("/etc/{name}"), "bind", &source, "rbind,rprivate"));
    }
    mounts
}

/// Nothing but making nodes, the memory devices, terminals and pseudo-terminals.
fn devices() -> Vec<Value> {
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for kind in ["c", "b"] {
        rules.push(json!({"allow": true, "type": kind, "access": "m"}));
    }
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}));
    }
    rules.push(json!({"allow": true, "type": "c", "major": 136, "access": "rwm"}));
    rules
}
