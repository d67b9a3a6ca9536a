//! What a VM's processes hold: Pss, less the mappings behind memory slots.

use std::fs;
use std::iter::Sum;

/// Sums over mappings, in KiB.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) pss: u64,
    pub(crate) private_dirty: u64,
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, own| Self {
            pss: sum.pss + own.pss,
            private_dirty: sum.private_dirty + own.private_dirty,
        })
    }
}

/// A process, and all that it and its children have started and not waited for.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("our child runs");
    let children = text.split_whitespace().map(|pid| pid.parse().expect("a number"));
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

/// A mapping of a process.
pub(crate) struct Mapping {
    start: u64,
    end: u64,
    /// Left out of core dumps: only guest memory is.
    dont_dump: bool,
    pub(crate) usage: Usage,
}

/// What a process holds but for guest memory, of so many bytes.
pub(crate) fn own(pid: u32, guest_memory: u64) -> Usage {
    let mappings = mappings(pid);
    // The kernel's file is mapped amid guest memory, so the whole stretch between the first and the
    // last part counts as guest memory.
    let guest: Vec<&Mapping> = mappings
        .iter()
        .filter(|mapping| mapping.dont_dump && mapping.end - mapping.start >= 1 << 20)
        .collect();
    let stretch = guest.first().map_or(0..0, |first| first.start..guest[guest.len() - 1].end);
    assert!(
        stretch.is_empty() || stretch.end - stretch.start == guest_memory,
        "guest memory is one stretch: {stretch:x?}"
    );
    mappings.iter().filter(|mapping| !stretch.contains(&mapping.start)).map(|mapping| mapping.usage).sum()
}

/// All of a process.
pub(crate) fn mappings(pid: u32) -> Vec<Mapping> {
    parse(&fs::read_to_string(format!("/proc/{pid}/smaps")).expect("our child runs"))
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        if let Some((start, end)) = key.split_once('-') {
            let hex = |text| u64::from_str_radix(text, 16).expect("an address");
            mappings.push(Mapping {
                start: hex(start),
                end: hex(end),
                dont_dump: false,
                usage: Usage::default(),
            });
            continue;
        }
        let Some(mapping) = mappings.last_mut() else { continue };
        let kib = || value.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        match key {
            "Pss:" => mapping.usage.pss = kib(),
            "Private_Dirty:" => mapping.usage.private_dirty = kib(),
            "VmFlags:" => mapping.dont_dump = value.split_whitespace().any(|flag| flag == "dd"),
            _ => {}
        }
    }
    mappings
}
