//! `bothy doctor` on this machine.

use std::path::Path;

use crate::support::Bothy;

#[test]
fn the_doctor_names_everything_that_bothy_needs_and_mends_what_is_missing() {
    let finished = Bothy::new(["doctor"]).run();
    let text = String::from_utf8(finished.stdout.clone()).unwrap();
    for thing in [
        "/dev/kvm",
        "KVM API: version 12",
        "KVM_CAP_SPLIT_IRQCHIP",
        "KVM_CAP_IRQFD",
        "KVM_CAP_IOEVENTFD",
        "vCPUs",
        "processor:",
        "KVM module",
        "/dev/net/tun",
        "cgroup v2",
        "user namespaces",
        "memory:",
    ] {
        assert!(text.contains(thing), "{thing} in\n{text}");
    }
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("missing") || line.starts_with("FATAL") {
            let next = lines.peek().copied().unwrap_or_default();
            assert!(next.trim_start().starts_with("-> "), "nothing mends {line:?}\n{text}");
        }
    }
    let fatal = text.contains("FATAL");
    assert_eq!(finished.code, i32::from(fatal), "{text}");
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let hardware = flags.split_whitespace().any(|flag| ["vmx", "svm"].contains(&flag));
    assert_eq!(hardware, text.contains("hardware virtualization ("), "{text}");
    if Path::new("/sys/module/kvm_pvm").exists() && !hardware {
        assert!(fatal && text.contains("kvm_pvm") && text.contains("tests/host/run"), "{text}");
    }
    if hardware && Path::new("/dev/kvm").exists() {
        assert!(text.ends_with("Linux guests can run on this machine.\n"), "{text}");
    }
}

#[test]
fn a_reader_that_has_gone_ends_it_quietly_and_a_full_disk_does_not() {
    let gone = Bothy::new(["doctor"]).in_shell("(sleep 0.3; exec \"$@\") | :").run().code(0);
    assert_eq!(gone.stderr, "");
    let full = Bothy::new(["doctor"]).in_shell("exec \"$@\" >/dev/full").run().code(1);
    assert_eq!(full.stderr, "bothy: can't write to standard output: No space left on device (os error 28)\n");
}
