//! What the guest takes: `Request::Figures`.

use std::fs;

use bothy_guest::protocol::Figures;

use super::cgroup::Cgroups;

/// Of /proc/stat's times, as every Linux on x86-64 counts them.
const TICK_US: u64 = 10_000;

/// Reads them.
pub(crate) fn read() -> Figures {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    Figures {
        memory_total: meminfo_bytes(&memory, "MemTotal:"),
        memory_available: meminfo_bytes(&memory, "MemAvailable:"),
        cpu_busy_us: busy_us(&stat),
        processes: Cgroups::processes(),
    }
}

fn meminfo_bytes(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"));
    value.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

/// user, nice, system, irq and softirq of the line for all CPUs; a guest's own guests are in user
/// already.
fn busy_us(text: &str) -> u64 {
    let Some(times) = text.lines().find_map(|line| line.strip_prefix("cpu ")) else { return 0 };
    let times: Vec<u64> = times.split_whitespace().map(|time| time.parse().unwrap_or(0)).collect();
    let ticks: u64 = [0, 1, 2, 5, 6].iter().filter_map(|at| times.get(*at)).sum();
    ticks.saturating_mul(TICK_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_neither_idle_nor_waiting() {
        assert_eq!(busy_us("cpu  1 2 3 1000 1000 4 5 1000 0 0\ncpu0 9 9 9\n"), 150_000);
        assert_eq!(busy_us(""), 0);
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(meminfo_bytes("MemTotal:         4 kB\nMemAvailable: 3 kB\n", "MemAvailable:"), 3072);
        assert_eq!(meminfo_bytes("", "MemTotal:"), 0);
    }
}
