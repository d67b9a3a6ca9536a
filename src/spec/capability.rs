//! Names of capabilities(7).

/// All of Linux 6.12, by their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability, with or without `CAP_` before its name, in letters of either case.
pub fn number(name: &str) -> Option<u32> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    (0..).zip(NAMES).find_map(|(number, known)| (known == name).then_some(number))
}

/// The names of those in a set, a bit for each. What this file has no name for is left out.
pub fn names(set: u64) -> Vec<String> {
    let has = |number: u32| set & (1 << number) != 0;
    (0..).zip(NAMES).filter(|(number, _)| has(*number)).map(|(_, name)| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_numbers() {
        assert_eq!(number("CAP_CHOWN"), Some(0));
        assert_eq!(number("sys_admin"), Some(21));
        assert_eq!(number("Cap_Checkpoint_Restore"), Some(40));
        assert_eq!(number("CAP_"), None);
        assert_eq!(names(1 << 40 | 1), ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"]);
        for (name, number) in crate::spec::docker::CAPABILITIES {
            assert_eq!(super::number(name), Some(number), "{name}");
        }
    }
}
