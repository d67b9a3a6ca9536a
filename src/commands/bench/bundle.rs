//! The Open Container Initiative's bundle of a container, as docker asks for it.

use std::path::Path;

use bothy_guest::protocol::LENT;
use serde_json::{Value, json};

use super::work::LOAD;

/// What runc and crun give a container, as docker asks them to.
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
const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What docker asks of a runtime for a container. Without a network namespace it gets a new one.
pub(super) fn specification(root: &Path, lent: &Path, load: &[String], network: Option<&str>) -> Value {
    let args: Vec<&str> = std::iter::once(LOAD).chain(load.iter().map(String::as_str)).collect();
    let capabilities: Value = json!({
        "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
    });
    let mount = |kind: &str, at: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let device = |access: &str, rest: Value| {
        let mut rule = json!({ "allow": true, "access": access });
        if let (Some(rule), Some(rest)) = (rule.as_object_mut(), rest.as_object()) {
            rule.extend(rest.clone());
        }
        rule
    };
    let mut namespaces: Vec<Value> =
        ["mount", "uts", "pid", "ipc", "cgroup"].into_iter().map(|kind| json!({ "type": kind })).collect();
    namespaces.push(match network {
        Some(path) => json!({ "type": "network", "path": path }),
        None => json!({ "type": "network" }),
    });
    json!({
        "ociVersion": "1.0.2",
        "hostname": "bench",
        "root": { "path": root, "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=bench", "HOME=/"],
            "cwd": "/",
            "capabilities": capabilities,
        },
        "mounts": [
            mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
            mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
            mount("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
            mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            json!({ "destination": LENT, "type": "bind", "source": lent, "options": ["bind", "ro"] }),
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": super::filter::filter(),
            "resources": { "devices": [
                { "allow": false, "access": "rwm" },
                device("rwm", json!({ "type": "c", "major": 1, "minor": 3 })),
                device("rwm", json!({ "type": "c", "major": 1, "minor": 5 })),
                device("rwm", json!({ "type": "c", "major": 1, "minor": 8 })),
                device("rwm", json!({ "type": "c", "major": 1, "minor": 9 })),
                device("rwm", json!({ "type": "c", "major": 5, "minor": 0 })),
                device("m", json!({ "type": "c" })),
                device("m", json!({ "type": "b" })),
            ] },
        },
    })
}
