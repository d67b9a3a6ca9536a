//! `--timing`: where the time of one VM went, how often its guest was left, and what that gave back
//! of its memory.

use std::fmt;

use serde::Serialize;

use crate::timeline::{Mark, RunMoments, Times};
use crate::vmm::control::{BalloonFigures, Counts, Exits};

/// The phases of a VM's life, in order; times in microseconds.
#[derive(Debug, Serialize)]
pub struct Timing {
    phases: Vec<Phase>,
    total_us: Option<u64>,
    exits: Option<Exits>,
    memory: Option<BalloonFigures>,
}

#[derive(Debug, Serialize)]
struct Phase {
    name: &'static str,
    what: &'static str,
    /// `None` if it was not seen.
    us: Option<u64>,
}

/// Name, explanation, and the two moments in nanoseconds between which a phase lies.
type Step = (&'static str, &'static str, Option<u64>, Option<u64>);

/// The phases of every VM, up to its guest's PID 1.
fn to_init(times: &Times) -> [Step; 7] {
    [
        ("client", "exec to the request: words, image", Mark::Exec, Mark::Requested),
        ("monitor", "files, sockets and taps opened, the VM's process forked", Mark::Requested, Mark::Forked),
        ("KVM set-up", "the VM and its interrupt controller", Mark::Forked, Mark::KvmReady),
        ("memory", "guest memory mapped and known to KVM", Mark::KvmReady, Mark::MemoryReady),
        ("kernel load", "devices, kernel, initramfs, ACPI tables", Mark::MemoryReady, Mark::KernelLoaded),
        ("first guest instruction", "vCPUs made and started", Mark::KernelLoaded, Mark::FirstInstruction),
        ("kernel entry to init", "the guest's kernel boots", Mark::FirstInstruction, Mark::InitStarted),
    ]
    .map(|(name, what, from, to)| (name, what, times.at(from), times.at(to)))
}

impl Timing {
    /// From the VM's recorded times, and the moment at which the command is about to return.
    pub fn new(times: &Times, returned_ns: u64, counts: Option<&Counts>) -> Self {
        let [init, power_off, ended] =
            [Mark::InitStarted, Mark::PowerOffBegins, Mark::Ended].map(|mark| times.at(mark));
        let steps = [
            ("init to power-off", "the guest's user space", init, power_off),
            ("power-off to end", "the guest's kernel shuts down", power_off, ended),
            ("tear-down", "disks and taps released, output drained", ended, Some(returned_ns)),
        ];
        Self::of(times, &steps, returned_ns, counts)
    }

    /// From the VM's recorded times, those of the run, and the moment at which the command is about
    /// to return.
    pub fn of_run(times: &Times, run: &RunMoments, returned_ns: u64, counts: Option<&Counts>) -> Self {
        let init = times.at(Mark::InitStarted);
        let steps = [
            ("init to hello", "the agent starts and reaches the command", init, run.hello),
            ("hello to ready", "the container's file systems and network", run.hello, run.ready),
            ("ready to started", "namespaces, the program's start", run.ready, run.started),
            ("started to ended", "the command runs", run.started, run.ended),
            ("ended to return", "output drained, the VM ended", run.ended, Some(returned_ns)),
        ];
        Self::of(times, &steps, returned_ns, counts)
    }

    /// `steps` are those from PID 1 on.
    fn of(times: &Times, steps: &[Step], returned_ns: u64, counts: Option<&Counts>) -> Self {
        let us = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?) / 1000);
        let phases = to_init(times)
            .iter()
            .chain(steps)
            .map(|&(name, what, from, to)| Phase { name, what, us: us(from, to) })
            .collect();
        let total_us = us(times.at(Mark::Exec), Some(returned_ns));
        let (exits, memory) = counts.map(|counts| (counts.exits.clone(), counts.memory.clone())).unzip();
        Self { phases, total_us, exits, memory: memory.flatten() }
    }

    /// As one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }
}

/// KVM's counters that are exits or say what the guest was left for; the others (injections,
/// wake-ups) are left out.
fn is_exit(name: &str) -> bool {
    name.contains("exits")
        || ["hypercalls", "insn_emulation", "pf_taken", "pf_fixed", "pf_emulate"].contains(&name)
}

/// How many of KVM's exits of a kind reached user space.
fn user_share(name: &str, count: u64, exits: &Exits) -> Option<u64> {
    match name {
        "exits" => Some(exits.user.port_io + exits.user.mmio + exits.user.interrupted + exits.user.other),
        "io_exits" => Some(exits.user.port_io),
        "mmio_exits" => Some(exits.user.mmio),
        // KVM_RUN also returns at once, and uncounted, when it was told to before it entered the
        // guest.
        "signal_exits" => Some(exits.user.interrupted.min(count)),
        _ => None,
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<26}{:>12}", "phase", "µs")?;
        for phase in &self.phases {
            let us = phase.us.map_or("not seen".to_owned(), |us| us.to_string());
            writeln!(f, "  {:<24}{us:>12}   {}", phase.name, phase.what)?;
        }
        if let Some(total) = self.total_us {
            writeln!(f, "  {:<24}{total:>12}   exec to return", "total")?;
        }
        if let Some(memory) = &self.memory {
            writeln!(f, "{memory}")?;
        }
        let Some(exits) = &self.exits else { return Ok(()) };
        if exits.kvm.is_empty() {
            writeln!(f, "exits: this host's KVM keeps no statistics; {:?}", exits.user)?;
            return Ok(());
        }
        writeln!(f, "{:<26}{:>12}{:>14}", "exits by reason", "KVM", "user space")?;
        for (name, count) in exits.kvm.iter().filter(|(name, count)| *count > 0 && is_exit(name)) {
            let user = user_share(name, *count, exits).map_or(String::new(), |count| count.to_string());
            writeln!(f, "  {name:<24}{count:>12}{user:>14}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Timeline;
    use crate::vmm::control::UserExits;

    fn times(init: bool) -> Times {
        let timeline = Timeline::default();
        let marks = [Mark::Exec, Mark::Requested, Mark::Forked, Mark::KvmReady];
        let more = [Mark::MemoryReady, Mark::KernelLoaded, Mark::FirstInstruction];
        for (n, mark) in (1..).zip(marks.into_iter().chain(more)) {
            timeline.record_at(mark, n * 1_000_000);
        }
        if init {
            timeline.record_at(Mark::InitStarted, 10_000_000);
            timeline.record_at(Mark::PowerOffBegins, 12_000_000);
        }
        timeline.record_at(Mark::Ended, 13_000_000);
        timeline.times()
    }

    #[test]
    fn a_guest_without_timing_bytes_is_not_seen_and_never_zero() {
        let text = Timing::new(&times(false), 14_000_000, None).to_string();
        let line = text.lines().find(|line| line.contains("kernel entry to init")).unwrap();
        assert!(line.contains("not seen"), "{text}");
        let json = Timing::new(&times(false), 14_000_000, None).json();
        assert!(
            json.contains(r#""name":"init to power-off","what":"the guest's user space","us":null"#),
            "{json}"
        );
    }

    #[test]
    fn phases_add_up_to_the_total() {
        let timing = Timing::new(&times(true), 14_000_000, None);
        let sum: u64 = timing.phases.iter().map(|phase| phase.us.unwrap()).sum();
        assert_eq!((sum, timing.total_us), (13_000, Some(13_000)));
        assert_eq!(timing.phases[6].us, Some(3_000));
    }

    #[test]
    fn exits_that_reached_user_space_stand_in_a_column_of_their_own() {
        let exits = Exits {
            kvm: vec![
                ("exits".into(), 100),
                ("io_exits".into(), 60),
                ("halt_exits".into(), 40),
                ("irq_injections".into(), 7),
            ],
            user: UserExits { port_io: 50, mmio: 2, interrupted: 1, other: 0 },
        };
        let memory = Some(BalloonFigures { reported: 3 << 20, inflated: 5 << 20, ..Default::default() });
        let text = Timing::new(&times(true), 14_000_000, Some(&Counts { exits, memory })).to_string();
        let columns = |name: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.trim().starts_with(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert!(text.contains("memory given back: 3 MiB by reporting, 5 MiB on request"), "{text}");
        assert_eq!(columns("exits "), ["exits", "by", "reason", "KVM", "user", "space"]);
        assert_eq!(columns("io_exits"), ["io_exits", "60", "50"]);
        assert_eq!(columns("halt_exits"), ["halt_exits", "40"]);
        assert!(text.contains("100            53"), "{text}");
        assert!(!text.contains("irq_injections"));
    }
}
