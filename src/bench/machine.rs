//! The state of this machine, as a report has it.

use std::fs;

use super::results::Host;

/// What shows in /proc and /sys. What can't be read is `-`.
pub fn host() -> Host {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let release = read("/etc/os-release").unwrap_or_default();
    let vendor = read("/sys/class/dmi/id/sys_vendor").unwrap_or_default();
    let product = read("/sys/class/dmi/id/product_name").unwrap_or_default();
    Host {
        governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").unwrap_or_else(|| "-".into()),
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "-".into()),
        load: [load(), 0.0],
        ..parse(&cpuinfo, &meminfo, &release, &format!("{vendor} {product}"))
    }
}

/// The load average over a minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

/// MemAvailable, in bytes; `None` if the kernel doesn't say.
pub fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    kib(&text, "MemAvailable:").map(|kib| kib * 1024)
}

/// A line `KEY N kB` of a file in /proc.
pub(super) fn kib(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().trim_end_matches(" kB").parse().ok()
}

fn parse(cpuinfo: &str, meminfo: &str, release: &str, board: &str) -> Host {
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.split('\t').next() == Some(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processor = value("model name").unwrap_or_else(|| "-".into());
    let is_guest = value("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    // What QEMU calls its processors when it translates their instructions itself.
    let emulated = processor.contains("TCG");
    let virtualization = match (emulated, is_guest) {
        (true, _) => "emulated by QEMU (TCG)".to_owned(),
        (false, true) => match board.trim() {
            "" => "a virtual machine".into(),
            board => format!("a virtual machine ({board})"),
        },
        (false, false) => "none".into(),
    };
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    Host {
        processors: cpuinfo.lines().filter(|line| line.starts_with("processor\t")).count(),
        processor,
        memory_mib: kib(meminfo, "MemTotal:").unwrap_or(0) / 1024,
        system: name.map_or_else(|| "-".into(), |name| name.trim_matches('"').to_owned()),
        virtualization,
        emulated,
        ..Host::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described_by_what_the_kernel_says() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu hypervisor\n\nprocessor\t: 1\nmodel name\t: Some CPU\n";
        let host = parse(cpuinfo, "MemTotal:       2097152 kB\n", "NAME=x\nPRETTY_NAME=\"Debian 12\"\n", " ");
        assert_eq!((host.processor.as_str(), host.processors, host.memory_mib), ("Some CPU", 2, 2048));
        assert_eq!((host.system.as_str(), host.virtualization.as_str()), ("Debian 12", "a virtual machine"));
        assert!(!host.emulated);
        let bare = parse("processor\t: 0\nmodel name\t: X\nflags\t\t: fpu\n", "", "", "Vendor Board");
        assert_eq!(bare.virtualization, "none");
        assert!(parse("model name\t: QEMU TCG CPU version 2.5+\n", "", "", "").emulated);
        assert_eq!(parse("", "", "", "").processor, "-");
    }
}
