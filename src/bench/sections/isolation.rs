//! What shows inside an instance.

use super::{ACT_WAIT, Bench, Found, Watched};
use crate::bench::results::{Fact, Peer, Section};
use crate::bench::seccomp;

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
        self.watched(found);
    }

    /// What can be seen from outside while an instance does 30 things.
    fn watched(&mut self, found: &mut Found) {
        let mut filters =
            Fact { label: "system calls that its processes may use".into(), values: Vec::new() };
        let mut calls = Fact { label: "system calls seen here during 30 actions".into(), values: Vec::new() };
        for executor in &mut self.peers {
            let Peer { name, missing, .. } = executor.peer();
            (self.progress)(Section::Isolation, &name, 0, 1);
            let watched = match missing {
                Some(_) => Err("not seen".to_owned()),
                None if (self.stop)() => Err("interrupted".into()),
                None => executor
                    .start(&["act", &ACT_WAIT.as_secs().to_string()])
                    .and_then(|mut instance| (self.watch)(instance.as_mut())),
            };
            let (may, does) = match &watched {
                Ok(watched) => (permitted(watched), seen(watched)),
                Err(why) => (why.clone(), why.clone()),
            };
            filters.values.push(may);
            calls.values.push(does);
        }
        found.facts.extend([filters, calls]);
    }
}

/// Names of system calls that are told of each instance: the most frequent.
const NAMES: usize = 5;

fn permitted(watched: &Watched) -> String {
    let mut all: Vec<String> = Vec::new();
    for (name, count) in &watched.filters {
        let one = match count {
            Some(count) => format!("{name}: {count} of {}", seccomp::ALL),
            None => format!("{name}: no filter yet"),
        };
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all.join("; ")
}

fn seen(watched: &Watched) -> String {
    let calls = match &watched.calls {
        Ok(calls) => calls,
        Err(why) => return format!("not seen: {why}"),
    };
    let mut frequent: Vec<(&String, &u64)> = calls.iter().collect();
    frequent.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let names: Vec<&str> = frequent.iter().take(NAMES).map(|(name, _)| name.as_str()).collect();
    let total: u64 = calls.values().sum();
    let more = if calls.len() > NAMES { ", ..." } else { "" };
    let done = if watched.done == "30" { String::new() } else { format!("; {} of 30 done", watched.done) };
    format!("{} kinds, {total} calls: {}{more}{done}", calls.len(), names.join(", "))
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
