//! What a new user sees first: which machine this is.

use std::fs;
use std::io::{self, Write};
use std::time::Duration;

use crate::network::{self, Interface};

const SECTOR_BYTES: u64 = 512;

/// Prints kernel, memory, processors, disks and network. `up` is how long the kernel had run when
/// init started.
pub(crate) fn print(up: Duration, configured: &[Interface]) {
    let mut text = String::from("\n");
    let mut row = |label: &str, value: &str| {
        text.push_str(&format!("  {label:<9}{value}\n"));
    };
    row("Kernel", &format!("Linux {}", first_line("/proc/sys/kernel/osrelease")));
    row("Booted", &format!("in {} ms", up.as_millis()));
    row("Memory", &memory());
    row("CPUs", &processors());
    each(&mut row, "Disks", &disks());
    each(&mut row, "Network", &interfaces(configured));
    text.push('\n');
    // If nobody listens there is nobody to tell.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// One row per item, with the label only in the first.
fn each(row: &mut impl FnMut(&str, &str), label: &str, items: &[String]) {
    match items {
        [] => row(label, "none"),
        [first, rest @ ..] => {
            row(label, first);
            rest.iter().for_each(|item| row("", item));
        }
    }
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or("unknown").to_owned()
}

fn memory() -> String {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match (meminfo_mib(&info, "MemTotal:"), meminfo_mib(&info, "MemAvailable:")) {
        (Some(total), Some(available)) => format!("{total} MiB, {available} MiB available"),
        _ => "unknown".to_owned(),
    }
}

fn meminfo_mib(info: &str, key: &str) -> Option<u64> {
    let kib: u64 =
        info.lines().find_map(|l| l.strip_prefix(key))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

fn processors() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut models =
        info.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|m| m.1));
    match models.next() {
        Some(model) => format!("{} x {}", models.count().saturating_add(1), model.trim()),
        None => "unknown".to_owned(),
    }
}

fn disks() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.retain(|name| !name.starts_with("loop") && !name.starts_with("ram"));
    names.sort();
    names.iter().map(|name| disk(name)).collect()
}

fn disk(name: &str) -> String {
    let attribute = |file: &str| first_line(&format!("/sys/block/{name}/{file}"));
    let bytes = attribute("size").parse::<u64>().unwrap_or(0).saturating_mul(SECTOR_BYTES);
    let mode = if attribute("ro") == "1" { ", read-only" } else { "" };
    format!("{name}, {}{mode}", size(bytes))
}

/// A size in the largest unit that shows it as a number of at least ten, or exactly.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    UNITS
        .iter()
        .find(|(_, unit)| bytes >= unit.saturating_mul(10) || (bytes >= *unit && bytes.is_multiple_of(*unit)))
        .map_or_else(|| format!("{bytes} bytes"), |(name, unit)| format!("{} {name}", bytes / unit))
}

fn interfaces(configured: &[Interface]) -> Vec<String> {
    network::interfaces()
        .iter()
        .map(|interface| {
            let ours = configured.iter().find(|c| c.name == interface.name);
            let addresses: Vec<String> =
                ours.map(|c| c.addresses.iter().map(ToString::to_string).collect()).unwrap_or_default();
            let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
            format!("{}, {}, {addresses}", interface.name, interface.mac)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_or_have_two_digits() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(512), "512 bytes");
        assert_eq!(size(1 << 20), "1 MiB");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(3 << 29), "1536 MiB");
        assert_eq!(size(8 << 30), "8 GiB");
    }

    #[test]
    fn memory_is_read_in_mib() {
        let info = "MemTotal:         501760 kB\nMemFree: 1 kB\n";
        assert_eq!(meminfo_mib(info, "MemTotal:"), Some(490));
        assert_eq!(meminfo_mib(info, "MemAvailable:"), None);
    }

    #[test]
    fn the_label_stands_once() {
        let mut rows = Vec::new();
        let mut row = |label: &str, value: &str| rows.push(format!("{label}|{value}"));
        each(&mut row, "Disks", &["a".to_owned(), "b".to_owned()]);
        each(&mut row, "Network", &[]);
        assert_eq!(rows, ["Disks|a", "|b", "Network|none"]);
    }
}
