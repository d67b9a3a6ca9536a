//! When each step of a VM's life happened, always recorded: `--timing` only decides whether it is
//! printed.
//!
//! Times are CLOCK_MONOTONIC in nanoseconds, so those of different processes compare.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment in a VM's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The kernel began to execute the command: `main`'s time less the CPU time that the process
    /// had used by then.
    Exec,
    /// The client has sent its request to the monitor.
    Requested,
    /// The VM's process exists.
    Forked,
    /// KVM has made the VM.
    KvmReady,
    /// Guest memory is mapped and known to KVM.
    MemoryReady,
    /// Kernel, initramfs, command line and tables are in memory.
    KernelLoaded,
    /// The boot processor is about to execute its first instruction.
    FirstInstruction,
    /// The guest's init said that it runs.
    InitStarted,
    /// The guest's init said that it is about to power off.
    PowerOffBegins,
    /// The guest ended.
    Ended,
    /// Everything that others could wait for is released: disks, taps, sockets.
    Released,
}

const COUNT: usize = Mark::Released as usize + 1;

/// The moments seen so far. Each is recorded once; 0 stands for "not seen".
#[derive(Default)]
pub struct Timeline([AtomicU64; COUNT]);

/// A [`Timeline`] as plain data, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times(Vec<Option<u64>>);

/// When each step in the life of a container's first process happened, in nanoseconds of
/// CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMoments {
    /// The agent has connected.
    pub hello: Option<u64>,
    /// The container's file systems and network are there.
    pub ready: Option<u64>,
    /// The command's program runs.
    pub started: Option<u64>,
    /// The command has ended.
    pub ended: Option<u64>,
}

impl Timeline {
    /// Records that `mark` happens now, unless it has happened before. Callable from any thread.
    pub fn record(&self, mark: Mark) {
        self.record_at(mark, now_ns());
    }

    /// Records that `mark` happened at `ns`, unless it was recorded before.
    pub fn record_at(&self, mark: Mark, ns: u64) {
        // A second recording of the same mark changes nothing, and that is all an error could mean
        // here.
        let _first = self.0[mark as usize].compare_exchange(0, ns, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// What has been recorded.
    pub fn times(&self) -> Times {
        Times(self.0.iter().map(|ns| Some(ns.load(Ordering::Relaxed)).filter(|ns| *ns != 0)).collect())
    }
}

impl Times {
    /// When `mark` happened, in nanoseconds of CLOCK_MONOTONIC.
    pub fn at(&self, mark: Mark) -> Option<u64> {
        self.0.get(mark as usize).copied().flatten()
    }

    /// The time from one mark to another, if both were seen.
    pub fn between(&self, from: Mark, to: Mark) -> Option<Duration> {
        Some(Duration::from_nanos(self.at(to)?.saturating_sub(self.at(from)?)))
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn now_ns() -> u64 {
    clock_ns(ClockId::Monotonic)
}

/// When the kernel began to execute this program, as well as that can be known: now, less the CPU
/// time that the process has used (/proc/self/stat counts in hundredths of a second only). Call it
/// first thing in `main`.
pub fn exec_ns() -> u64 {
    now_ns().saturating_sub(clock_ns(ClockId::ProcessCPUTime))
}

fn clock_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_recorded_once_and_an_unseen_one_is_none() {
        let timeline = Timeline::default();
        timeline.record_at(Mark::Exec, 1_000);
        timeline.record_at(Mark::Forked, 4_000);
        timeline.record_at(Mark::Forked, 9_000);
        let times = timeline.times();
        assert_eq!(times.between(Mark::Exec, Mark::Forked), Some(Duration::from_nanos(3_000)));
        assert_eq!(times.at(Mark::InitStarted), None);
        assert_eq!(times.between(Mark::Forked, Mark::InitStarted), None);
    }

    #[test]
    fn exec_lies_in_the_past() {
        assert!(exec_ns() < now_ns());
    }
}
