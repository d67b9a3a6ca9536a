//! `bothy doctor`: what this machine has of what bothy needs, and the one command or setting that
//! mends what is missing.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use super::{Failure, print};
use crate::bench::machine::available;
use crate::kvm::{self, CAPABILITIES, KvmError};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// It is there.
    Present,
    /// It isn't, and something that isn't essential will lack it.
    Missing,
    /// It isn't, and without it no Linux guest runs here.
    Fatal,
}

struct Finding {
    level: Level,
    what: String,
    /// How to mend it, or what its absence means.
    mend: Option<String>,
}

impl Finding {
    fn present(what: impl Into<String>) -> Self {
        Self { level: Level::Present, what: what.into(), mend: None }
    }

    fn missing(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Missing, what: what.into(), mend: Some(mend.into()) }
    }

    fn fatal(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Fatal, what: what.into(), mend: Some(mend.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.level {
            Level::Present => "ok     ",
            Level::Missing => "missing",
            Level::Fatal => "FATAL  ",
        };
        write!(f, "{mark}  {}", self.what)?;
        match &self.mend {
            Some(mend) => write!(f, "\n         -> {mend}"),
            None => Ok(()),
        }
    }
}

/// Prints every finding; exit code 1 if Linux guests can't run here.
pub(super) fn doctor() -> Result<u8, Failure> {
    let mut findings = vec![processor()];
    findings.extend(kvm_findings(Path::new("/dev/kvm")));
    findings.extend([tun(), cgroup(), user_namespaces(), memory()]);
    let is_fatal = findings.iter().any(|finding| finding.level == Level::Fatal);
    let can = if is_fatal { "can't" } else { "can" };
    let findings: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    print(&format!("{findings}Linux guests {can} run on this machine.\n"))?;
    Ok(u8::from(is_fatal))
}

fn processor() -> Finding {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match kvm::hardware_virtualization(&cpuinfo) {
        Some(flag) => Finding::present(format!("processor: hardware virtualization ({flag})")),
        None if kvm::cannot_run_linux().is_some() => Finding::fatal(
            "processor: no vmx or svm",
            "in a virtual machine: have its host enable nested virtualization (`modprobe kvm_intel nested=1` or `kvm_amd`)",
        ),
        None => Finding::fatal(
            "processor: no vmx or svm",
            "enable VT-x or AMD-V in the firmware's set-up; in a virtual machine, nested virtualization on its host",
        ),
    }
}

fn kvm_findings(path: &Path) -> Vec<Finding> {
    let file = match kvm::open(path) {
        Ok(file) => file,
        Err(error) => return vec![kvm_unavailable(path, &error)],
    };
    let mut findings = vec![Finding::present(format!("{}: can be opened", path.display()))];
    findings.push(match kvm::cannot_run_linux() {
        Some(why) => Finding::fatal(
            format!("KVM module: {why}"),
            "use a host with kvm_intel or kvm_amd, or run bothy in an emulated one: `tests/host/run -- bothy boot`",
        ),
        None => Finding::present("KVM module: one that runs Linux"),
    });
    let kvm = kvm::system(file);
    let version = kvm.get_api_version();
    if version == kvm::API_VERSION {
        findings.push(Finding::present(format!("KVM API: version {version}")));
    } else {
        findings.push(Finding::fatal(
            format!("KVM API: version {version}"),
            "boot a Linux kernel of this century",
        ));
        return findings;
    }
    findings.extend(CAPABILITIES.iter().map(|capability| {
        let what = format!("{}: {}", capability.name, capability.why);
        match (capability.present(&kvm), capability.required) {
            (true, _) => Finding::present(what),
            (false, true) => Finding::fatal(what, "upgrade this host's kernel to Linux 5.10 or later"),
            (false, false) => Finding::missing(what, "upgrade this host's kernel to Linux 5.14 or later"),
        }
    }));
    findings.push(Finding::present(format!("KVM: up to {} vCPUs per VM", kvm.get_max_vcpus())));
    findings
}

fn kvm_unavailable(path: &Path, error: &KvmError) -> Finding {
    let mend = match error {
        KvmError::Missing { .. } => "sudo modprobe kvm_intel || sudo modprobe kvm_amd",
        KvmError::Denied { .. } => "sudo usermod -aG kvm $USER, then log in again",
        _ => "see the kernel's log: sudo dmesg | grep -i kvm",
    };
    Finding::fatal(format!("{}: {error}", path.display()), mend)
}

/// Not for booting: `--net` needs it.
fn tun() -> Finding {
    let what = "/dev/net/tun (for --net)";
    match fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::present(what),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::missing(format!("{what}: no right to open it"), "sudo chmod 666 /dev/net/tun")
        }
        Err(_) => Finding::missing(what, "sudo modprobe tun"),
    }
}

fn cgroup() -> Finding {
    let what = "cgroup v2 (for limits on what a VM uses)";
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Finding::present(what)
    } else {
        Finding::missing(what, "boot this host with systemd.unified_cgroup_hierarchy=1")
    }
}

fn user_namespaces() -> Finding {
    let what = "user namespaces (for a VM process without rights)";
    let number = |path| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if number("/proc/sys/user/max_user_namespaces").unwrap_or(0) == 0 {
        return Finding::missing(what, "sudo sysctl user.max_user_namespaces=10000");
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Finding::missing(what, "sudo sysctl kernel.unprivileged_userns_clone=1");
    }
    Finding::present(what)
}

/// The default guest gets 512 MiB, of which it touches less than half.
fn memory() -> Finding {
    const ENOUGH_MIB: u64 = 256;
    match available().map(|bytes| bytes >> 20) {
        Some(mib) if mib >= ENOUGH_MIB => Finding::present(format!("memory: {mib} MiB available")),
        Some(mib) => Finding::missing(
            format!("memory: only {mib} MiB available"),
            "end other programs, or give the VM less with --memory",
        ),
        None => Finding::missing("memory: unknown", "mount -t proc proc /proc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_kvm_is_told_which_module_to_load() {
        let findings = kvm_findings(Path::new("/nonexistent/kvm"));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].level, Level::Fatal);
        assert!(findings[0].to_string().contains("modprobe kvm_intel"));
    }

    #[test]
    fn what_is_missing_comes_with_its_remedy() {
        let text = Finding::missing("a", "b").to_string();
        assert_eq!(text, "missing  a\n         -> b");
    }
}
