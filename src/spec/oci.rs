//! A container as the runtime specification of the Open Container Initiative has it, for runc and
//! crun: what they run beside bothy is the same.

use bothy_guest::spec::{
    Capabilities, Container, DeviceKind, DeviceRule, Mount, Protect, Rights, access, attribute,
};
use serde_json::{Value, json};

use super::{capability, docker};

/// `mounts`.
pub fn mounts(container: &Container) -> Vec<Value> {
    container.mounts.iter().map(mount).collect()
}

fn mount(mount: &Mount) -> Value {
    const NAMES: [(u32, &str); 5] = [
        (attribute::READ_ONLY, "ro"),
        (attribute::NO_SUID, "nosuid"),
        (attribute::NO_DEV, "nodev"),
        (attribute::NO_EXEC, "noexec"),
        (attribute::STRICT_ATIME, "strictatime"),
    ];
    let of_attributes = NAMES.iter().filter(|(bit, _)| mount.attributes & bit != 0).map(|(_, name)| *name);
    let options = mount.options.split(',').filter(|option| !option.is_empty());
    // A runtime finds out itself which version this machine has.
    let kind = if mount.kind == "cgroup2" { "cgroup" } else { &mount.kind };
    json!({
        "destination": mount.target, "type": kind, "source": kind,
        "options": of_attributes.chain(options).collect::<Vec<_>>(),
    })
}

/// `linux`, with new namespaces of all kinds but the user's, and a network that exists already if
/// `network` is its path.
pub fn linux(container: &Container, network: Option<&str>, seccomp: Option<&Value>) -> Value {
    let mut namespaces: Vec<Value> =
        ["mount", "uts", "pid", "ipc", "cgroup"].iter().map(|kind| json!({ "type": kind })).collect();
    namespaces.push(match network {
        Some(path) => json!({ "type": "network", "path": path }),
        None => json!({ "type": "network" }),
    });
    let paths = |how| -> Vec<&str> {
        let protections = container.protections.iter().filter(|protection| protection.how == how);
        protections.map(|protection| protection.path.as_str()).collect()
    };
    // The others belong to the whole machine, which runs other things, too.
    let sysctls = container.sysctls.iter().filter(|sysctl| sysctl.name.starts_with("net."));
    let sysctls: serde_json::Map<String, Value> =
        sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone().into())).collect();
    json!({
        "namespaces": namespaces,
        "maskedPaths": paths(Protect::Mask),
        "readonlyPaths": paths(Protect::ReadOnly),
        "sysctl": sysctls,
        "seccomp": seccomp,
        "resources": { "devices": devices(container.device_rules.as_deref()) },
    })
}

fn devices(rules: Option<&[DeviceRule]>) -> Vec<Value> {
    let Some(rules) = rules else { return vec![json!({ "allow": true, "access": "rwm" })] };
    let rule = |rule: &DeviceRule| {
        const LETTERS: [(u32, char); 3] = [(access::READ, 'r'), (access::WRITE, 'w'), (access::MAKE, 'm')];
        let letters: String =
            LETTERS.iter().filter(|(bit, _)| rule.access & bit != 0).map(|(_, letter)| *letter).collect();
        let kind = rule.kind.map(|kind| if kind == DeviceKind::Block { "b" } else { "c" });
        let mut json = json!({ "allow": rule.allow, "access": letters });
        for (key, value) in [
            ("type", kind.map(Value::from)),
            ("major", rule.major.map(Value::from)),
            ("minor", rule.minor.map(Value::from)),
        ] {
            if let Some(value) = value {
                json[key] = value;
            }
        }
        json
    };
    std::iter::once(json!({ "allow": false, "access": "rwm" })).chain(rules.iter().map(rule)).collect()
}

/// `process.capabilities`.
pub fn capabilities(of: &Capabilities) -> Value {
    json!({
        "bounding": capability::names(of.bounding),
        "effective": capability::names(of.effective),
        "permitted": capability::names(of.permitted),
        "inheritable": capability::names(of.inheritable),
        "ambient": capability::names(of.ambient),
    })
}

/// `process.rlimits`.
pub fn limits(rights: &Rights) -> Vec<Value> {
    let limit = |limit: &bothy_guest::spec::Limit| {
        let name = docker::LIMITS.iter().find(|(_, resource, _)| *resource == limit.resource)?.0;
        Some(json!({ "type": name, "soft": limit.soft, "hard": limit.hard }))
    };
    rights.limits.iter().filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_s_container_is_one_for_runc() {
        let container = docker::container("h", false, &[]);
        let dev = mount(&container.mounts[3]);
        assert_eq!(
            dev,
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] })
        );
        let linux = linux(&container, Some("/ns"), None);
        assert_eq!(linux["namespaces"][5], json!({ "type": "network", "path": "/ns" }));
        assert_eq!(linux["maskedPaths"].as_array().unwrap().len(), docker::MASKED.len());
        assert_eq!(linux["sysctl"]["net.ipv4.ping_group_range"], "0 2147483647");
        assert_eq!(linux["sysctl"].as_object().unwrap().len(), 2);
        let devices = linux["resources"]["devices"].as_array().unwrap();
        assert_eq!(devices[0], json!({ "allow": false, "access": "rwm" }));
        assert_eq!(devices[1], json!({ "allow": true, "access": "m", "type": "c" }));
        assert_eq!(
            devices[3],
            json!({ "allow": true, "access": "rwm", "type": "c", "major": 1, "minor": 3 })
        );
        let rights = docker::rights(false, false, None);
        assert_eq!(capabilities(&rights.capabilities)["bounding"].as_array().unwrap().len(), 14);
        assert_eq!(limits(&rights)[0], json!({ "type": "RLIMIT_NOFILE", "soft": 1 << 20, "hard": 1 << 20 }));
    }
}
