//! What shows inside an instance.

use super::{Bench, Found};
use crate::bench::results::{Fact, Peer, Section};

impl Bench<'_> {
    pub(super) fn isolation(&mut self, found: &mut Found) {
        const SHOWN: [(&str, &str); 15] = [
            ("kernel", "kernel"),
            ("boot_id", "boot id"),
            ("pid", "the load's process id"),
            ("processes", "processes in /proc"),
            ("host_name", "host name"),
            ("ns_pid", "process namespace"),
            ("ns_mnt", "mount namespace"),
            ("ns_net", "network namespace"),
            ("ns_user", "user namespace"),
            ("capabilities", "effective capabilities"),
            ("seccomp", "system-call filter"),
            ("no_new_privs", "no_new_privs"),
            ("kernel_parameters", "entries of /proc/sys/kernel"),
            ("sys_devices", "network devices in /sys"),
            ("kernel_log", "the kernel's log"),
        ];
        let mut facts: Vec<Fact> =
            SHOWN.map(|(_, label)| Fact { label: label.into(), values: Vec::new() }).into();
        for executor in &mut self.peers {
            let Peer { name, missing, .. } = executor.peer();
            (self.progress)(Section::Isolation, &name, 0, 1);
            let seen = match missing {
                Some(why) => Err(why),
                None if (self.stop)() => Err("interrupted".into()),
                None => executor.run(&["see"]).map(|run| run.output),
            };
            for (number, ((key, _), fact)) in SHOWN.iter().zip(&mut facts).enumerate() {
                fact.values.push(match &seen {
                    Ok(output) => value(output, key),
                    Err(why) if number == 0 => format!("not seen: {why}"),
                    Err(_) => "not seen".into(),
                });
            }
        }
        found.facts.extend(facts);
    }
}

/// What `KEY=VALUE` lines say of a key, in words where the kernel has a number for them.
fn value(output: &str, key: &str) -> String {
    let value = output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    match (key, value) {
        (_, None) => "not seen".into(),
        ("seccomp", Some("0")) => "no filter yet".into(),
        ("seccomp", Some("2")) => "a filter".into(),
        (_, Some(value)) => value.to_owned(),
    }
}
