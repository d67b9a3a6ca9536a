//! What of the system shows inside.

use std::fs;
use std::io;

use crate::say;

/// What can't be read is not there to be seen: `-`.
pub(crate) fn see() -> io::Result<()> {
    let read =
        |path: &str| fs::read_to_string(path).map_or_else(|_| "-".into(), |text| text.trim().to_owned());
    let status = read("/proc/self/status");
    let of_status = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .map_or_else(|| "-".into(), |value| value.trim().to_owned())
    };
    let link = |name: &str| {
        fs::read_link(format!("/proc/self/ns/{name}"))
            .map_or_else(|_| "-".into(), |path| path.display().to_string())
    };
    say(format_args!("kernel={}", rustix::system::uname().release().to_string_lossy()))?;
    say(format_args!("boot_id={}", read("/proc/sys/kernel/random/boot_id")))?;
    say(format_args!("pid={}", std::process::id()))?;
    let processes = fs::read_dir("/proc").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
            .count()
    });
    say(format_args!("processes={processes}"))?;
    say(format_args!("host_name={}", rustix::system::uname().nodename().to_string_lossy()))?;
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        say(format_args!("ns_{name}={}", link(name)))?;
    }
    say(format_args!("capabilities={}", of_status("CapEff")))?;
    say(format_args!("seccomp={}", of_status("Seccomp")))?;
    say(format_args!("no_new_privs={}", of_status("NoNewPrivs")))?;
    let entries = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
    say(format_args!("sys_devices={}", entries("/sys/devices/virtual/net")))?;
    say(format_args!("kernel_parameters={}", entries("/proc/sys/kernel")))?;
    say(format_args!("kernel_log={}", if log_is_readable() { "readable" } else { "refused" }))
}

/// Whether the kernel's log can be read (SYSLOG_ACTION_SIZE_UNREAD needs the same right as
/// reading).
fn log_is_readable() -> bool {
    #[expect(unsafe_code, reason = "no crate of ours has klogctl")]
    // SAFETY: this action takes no buffer.
    let ret = unsafe { libc::klogctl(9, std::ptr::null_mut(), 0) };
    ret >= 0
}

/// What programs and their files hold of the memory that this kernel has, and what nobody holds, in
/// KiB. The rest it has for itself. 0 if it doesn't say.
pub(crate) fn memory_kib() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
    };
    (of("AnonPages") + of("Cached") + of("Buffers"), of("MemFree"))
}
