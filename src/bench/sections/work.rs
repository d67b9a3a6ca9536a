//! Loads that measure themselves, and how often a guest is left meanwhile.

use super::{Bench, Found};
use crate::bench::results::{Exits, Peer, Section, Unit};

/// What a load prints.
struct Figure {
    key: &'static str,
    id: &'static str,
    label: &'static str,
    unit: Unit,
}

const fn ns(key: &'static str, id: &'static str, label: &'static str) -> Figure {
    Figure { key, id, label, unit: Unit::Nanoseconds }
}

const fn mibs(key: &'static str, id: &'static str, label: &'static str) -> Figure {
    Figure { key, id, label, unit: Unit::MebibytesPerSecond }
}

/// The loads of each section.
const LOADS: [(Section, &str, &[Figure]); 7] = [
    (Section::Cpu, "cpu", &[ns("ns", "cpu", "1000 steps of arithmetic")]),
    (Section::Syscall, "syscall", &[ns("ns", "syscall", "a system call (getppid)")]),
    (Section::Syscall, "switch", &[ns("ns", "switch", "a byte to another process and back")]),
    (Section::Syscall, "fault", &[ns("ns", "fault", "the first write to a page")]),
    (Section::Syscall, "fork", &[ns("ns", "fork", "a process started and waited for")]),
    (
        Section::Disk,
        "disk",
        &[
            mibs("write_mibs", "write", "64 MiB written in order, and on the disk"),
            mibs("read_mibs", "read", "64 MiB read in order"),
            ns("random_ns", "random", "4 KiB read anywhere"),
            ns("sync_ns", "sync", "4 KiB written anywhere, and on the disk"),
        ],
    ),
    (
        Section::Net,
        "net",
        &[
            ns("round_trip_ns", "round_trip", "a byte to the host and back by TCP"),
            mibs("out_mibs", "out", "bytes to the host by TCP"),
            mibs("in_mibs", "in", "bytes from the host by TCP"),
        ],
    ),
];

impl Bench<'_> {
    /// Loads that measure themselves.
    pub(super) fn work(&mut self, found: &mut Found, section: Section) {
        for (load, figures) in
            LOADS.iter().filter(|(own, ..)| *own == section).map(|(_, load, figures)| (load, figures))
        {
            let all = self.rounds(section, self.runs.min(10), figures.len(), |executor| {
                let run = executor.run(&[load])?;
                let said = |key: &str| {
                    run.output
                        .lines()
                        .find_map(|line| line.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
                };
                let figures: Option<Vec<f64>> = figures.iter().map(|figure| said(figure.key)).collect();
                figures.ok_or_else(|| format!("it says {:?}", run.output))
            });
            let names: Vec<_> = figures.iter().map(|figure| (figure.id, figure.label, figure.unit)).collect();
            self.measures(section, &names, all, found);
        }
    }

    pub(super) fn exits(&mut self, found: &mut Found) {
        for executor in &mut self.peers {
            let Peer { name, missing, .. } = executor.peer();
            if missing.is_some() || (self.stop)() {
                continue;
            }
            // One that fails has its row among the figures.
            let Ok(Some(details)) = executor.details(&["cpu"]) else { continue };
            let seconds: f64 = details.phases.iter().map(|(_, milliseconds)| milliseconds / 1e3).sum();
            if seconds > 0.0 && !details.exits.is_empty() {
                let rate = |(reason, count): (String, f64)| (reason, count / seconds);
                found
                    .exits
                    .push(Exits { peer: name, per_second: details.exits.into_iter().map(rate).collect() });
            }
        }
    }
}
