//! The orderly end of the machine.

use std::path::Path;
use std::time::{Duration, Instant};

use bothy_guest::TimingMark;

use crate::signals::{End, Events};
use crate::sys::Reaped;
use crate::{console, mounts, say, sys};

/// How long programs have between SIGTERM and SIGKILL. The host gives the whole machine ten
/// seconds.
const GRACE: Duration = Duration::from_secs(3);
/// How long to wait for killed programs to be gone; one that hangs in the kernel must not keep the
/// machine.
const KILLED: Duration = Duration::from_secs(1);

/// Stops all programs, writes and unmounts the disks, and ends the machine. `shell` is the program
/// on the console: an interactive one ignores SIGTERM, so it is told that its terminal hangs up.
pub(crate) fn end(end: End, events: Option<&mut Events>, shell: Option<i32>) -> ! {
    if let Some(events) = events {
        stop_programs(events, shell);
    }
    mounts::unmount_all();
    now(end)
}

/// Ends the machine without asking anybody: what is left when init itself fails.
pub(crate) fn now(end: End) -> ! {
    sys::sync();
    console::drain();
    sys::mark_time(TimingMark::InitPowerOff);
    // Without ACPI nothing can cut the power, and the kernel would halt: a restart at least ends
    // the VM.
    let can_power_off = Path::new("/sys/firmware/acpi").exists();
    let error = match end {
        End::PowerOff if can_power_off => sys::reboot(libc::RB_POWER_OFF),
        End::PowerOff | End::Restart => sys::reboot(libc::RB_AUTOBOOT),
    };
    say!("cannot end the machine: {error}");
    // PID 1 that exits makes the kernel panic, and that ends the machine as well.
    std::process::exit(1)
}

fn stop_programs(events: &mut Events, shell: Option<i32>) {
    // The signals' errors don't matter: whether anybody is left, reaping finds out.
    if let Some(shell) = shell {
        let _ = sys::kill(shell, libc::SIGHUP);
    }
    for (signal, patience) in [(libc::SIGTERM, GRACE), (libc::SIGKILL, KILLED)] {
        if nobody_left() {
            return;
        }
        let _ = sys::kill(-1, signal);
        // A stopped program acts on no signal but SIGKILL until it is continued.
        let _ = sys::kill(-1, libc::SIGCONT);
        wait_for_all(events, patience);
    }
}

/// Waits until every program has ended, or the time is over.
fn wait_for_all(events: &mut Events, patience: Duration) {
    let start = Instant::now();
    while !nobody_left() {
        let Some(left) = patience.checked_sub(start.elapsed()) else { return };
        if events.wait(Some(left)).is_err() {
            return;
        }
    }
}

/// Reaps all who have ended; whether nobody else is left.
fn nobody_left() -> bool {
    loop {
        match sys::reap() {
            Reaped::Child { .. } => {}
            Reaped::NoneYet => return false,
            Reaped::Nobody => return true,
        }
    }
}
