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

/// The load of each section, and how many of a benchmark's runs it takes: those that take long run
/// less often.
const LOADS: [(Section, usize, &[Figure]); 4] = [
    (Section::Cpu, 1, &[ns("cpu_ns", "cpu", "1000 steps of arithmetic")]),
    (
        Section::Syscall,
        1,
        &[
            ns("syscall_ns", "syscall", "a system call (getppid)"),
            ns("switch_ns", "switch", "a byte to another process and back"),
            ns("fault_ns", "fault", "the first write to a page"),
            ns("fork_ns", "fork", "a process started and waited for"),
        ],
    ),
    (
        Section::Disk,
        2,
        &[
            mibs("write_mibs", "write", "64 MiB written in order, and synced"),
            mibs("read_mibs", "read", "64 MiB read in order"),
            ns("random_ns", "random", "4 KiB read anywhere"),
            ns("sync_ns", "sync", "4 KiB written anywhere, and synced"),
        ],
    ),
    (
        Section::Net,
        2,
        &[
            ns("round_trip_ns", "round_trip", "a byte to the host and back by TCP"),
            mibs("out_mibs", "out", "bytes to the host by TCP"),
            mibs("in_mibs", "in", "bytes from the host by TCP"),
        ],
    ),
];
/// Most rounds of a load: each is the best of several already.
const MOST_ROUNDS: usize = 10;

impl Bench<'_> {
    /// A load that measures itself, and is called as its section.
    pub(super) fn work(&mut self, found: &mut Found, section: Section) {
        let Some((_, part, figures)) = LOADS.iter().find(|(own, ..)| *own == section) else { return };
        let rounds = self.runs.div_ceil(*part).min(MOST_ROUNDS);
        let all = self.rounds(section, (0, rounds), figures.len(), |executor| {
            let run = executor.run(&[section.name()])?;
            let said = |key: &str| {
                run.output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
            };
            let figures: Option<Vec<f64>> = figures.iter().map(|figure| said(figure.key)).collect();
            figures.ok_or_else(|| format!("it says {:?}", run.output))
        });
        let names: Vec<_> = figures.iter().map(|figure| (figure.id, figure.label, figure.unit)).collect();
        self.measures(section, &names, all, found);
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
