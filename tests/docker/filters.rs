//! The filters that docker gives its containers, beside bothy's: the same calls are allowed and
//! refused, of each kind and with each argument that matters.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use bothy::bench::seccomp::filters_of;
use bothy::spec::docker::default_capabilities;
use bothy::spec::seccomp::run::{Call, I386, X86_64, run};
use bothy::spec::seccomp::{Profile, Seccomp};
use bothy_guest::spec::Instruction;

use crate::engine::{Docker, IMAGE};
use crate::needs_docker;
use crate::support::eventually;

/// The filter of a container that docker starts with these flags.
fn docker_s(docker: &Docker, name: &str, seconds: &str, flags: &[&str]) -> Vec<Instruction> {
    let run = ["run", "-d", "--rm", "--network=none", "--name", name].into_iter();
    docker.run(run.chain(flags.iter().copied()).chain([IMAGE, "sleep", seconds]));
    let mut pid = None;
    // Its processes have other numbers in there.
    assert!(eventually(Duration::from_secs(10), || {
        pid = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            (command == format!("sleep\0{seconds}\0").as_bytes()).then_some(pid)
        });
        pid.is_some()
    }));
    let filters = filters_of(pid.unwrap()).unwrap();
    docker.run(["rm", "-f", name]);
    assert!(filters.len() <= 1, "{} filters", filters.len());
    filters.into_iter().next().unwrap_or_default()
}

/// Each call that is asked for, with what it is called here.
fn calls() -> Vec<(String, Call)> {
    const X32: u32 = 0x4000_0000;
    let mut calls = Vec::new();
    for (kind, arch, bit) in [("x86-64", X86_64, 0), ("i386", I386, 0), ("x32", X86_64, X32)] {
        for number in 0..470 {
            let call = Call { number: number | bit, arch, ..Call::default() };
            calls.push((format!("{kind} {number}"), call));
        }
        let with = |number: u32, argument: u64| {
            let call = Call { number: number | bit, arch, arguments: [argument, 0, 0, 0, 0, 0] };
            (format!("{kind} {number} ({argument:#x})"), call)
        };
        let [socket, clone, personality] = if arch == I386 { [359, 120, 136] } else { [41, 56, 135] };
        calls.extend((0..46).map(|family| with(socket, family)));
        calls.extend((0..32).map(|flag| with(clone, 1 << flag)));
        calls.extend([0, 1, 8, 0x20000, 0x20008, 0xffff_ffff].map(|value| with(personality, value)));
    }
    calls
}

fn answers(filter: &[Instruction]) -> BTreeMap<String, u32> {
    let answer = |(name, call): (String, Call)| (name, run(filter, &call).expect("a filter of the kernel's"));
    calls().into_iter().map(answer).collect()
}

/// What later versions of docker than Debian's treat in another way, which bothy follows (moby 29):
/// name_to_handle_at, process_vm_readv and process_vm_writev, pkey_*, uretprobe and calls from
/// Linux 5.17 on are allowed now; those of io_uring no longer are; nor sockets of AF_ALG and
/// AF_VSOCK.
fn has_changed(name: &str) -> bool {
    let mut words = name.split(' ');
    let (kind, number) = (words.next().unwrap(), words.next().unwrap().parse::<u32>().unwrap());
    let changed: &[u32] = match kind {
        "i386" => &[341, 347, 348, 380, 381, 382],
        _ => &[303, 310, 311, 329, 330, 331, 335],
    };
    let family = words.next().is_some_and(|family| ["(0x26)", "(0x28)"].contains(&family));
    changed.contains(&number) || (425..=427).contains(&number) || number >= 450 || family
}

#[test]
fn the_same_calls_are_allowed_and_refused() {
    let docker = needs_docker!();
    let theirs = answers(&docker_s(docker, "filtered", "1000.25", &[]));
    let ours = answers(&Seccomp::Default.filter(default_capabilities()).unwrap().unwrap().program);
    let mut differences: Vec<String> = ours
        .iter()
        .filter(|(name, answer)| theirs[*name] != **answer && !has_changed(name))
        .map(|(name, answer)| format!("{name}: {:#x}, docker {:#x}", answer, theirs[name]))
        .collect();
    differences.sort();
    assert!(differences.is_empty(), "{} of {}\n{}", differences.len(), ours.len(), differences.join("\n"));
    assert!(ours.len() > 1600, "{}", ours.len());
}

#[test]
fn a_profile_of_the_user_s_means_the_same() {
    let docker = needs_docker!();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["socket", "mkdir", "shmget"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_GE"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
             "args": [{"index": 0, "value": 268435456, "valueTwo": 268435456, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["kcmp"], "action": "SCMP_ACT_LOG", "includes": {"caps": ["CAP_SYS_PTRACE"]}},
            {"names": ["keyctl"], "action": "SCMP_ACT_LOG", "excludes": {"caps": ["CAP_SYS_PTRACE"]}},
            {"names": ["getcpu"], "action": "SCMP_ACT_TRAP"},
            {"names": ["no_such_call"], "action": "SCMP_ACT_KILL"}]}"#;
    let dir = crate::support::scratch();
    let path = crate::support::file(dir.path(), "profile.json", profile.as_bytes());
    let flag = format!("--security-opt=seccomp={}", path.display());
    let theirs = answers(&docker_s(docker, "profiled", "1000.5", &[&flag]));
    let seccomp = Seccomp::Profile(Box::new(Profile::parse(profile.as_bytes()).unwrap()));
    let ours = answers(&seccomp.filter(default_capabilities()).unwrap().unwrap().program);
    assert_eq!(ours, theirs);
}
