//! Processes: fork, and what a child does with itself.

use std::io;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, kill_process, set_parent_process_death_signal, setsid, waitpid,
};

use super::signals;

/// A child of this process that hasn't been waited for, so that its number isn't another's.
#[derive(Debug)]
pub struct Child(Pid);

/// Exit status of a child that panicked.
pub const PANICKED: i32 = 101;

/// Of a process that forks. A test runs in a thread of its own, and the harness's other one waits
/// for it.
const MOST_THREADS: u64 = if cfg!(test) { 2 } else { 1 };

/// Forks: `None` is the child, which has all that this process has. A process with several threads
/// is refused, since the child would have one of them, and the locks of all.
pub fn fork() -> io::Result<Option<Child>> {
    if threads()? > MOST_THREADS {
        return Err(io::Error::other("a process that forks must have a single thread"));
    }
    #[expect(unsafe_code, reason = "std has no fork")]
    // SAFETY: the process has a single thread, so the child may do anything that the parent could.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Child(Pid::from_raw(pid).expect("a child's number is positive")))),
    }
}

/// Runs a child's body, and ends the process.
pub fn in_child(body: impl FnOnce()) -> ! {
    exit_now(catch_unwind(AssertUnwindSafe(body)).map_or(PANICKED, |()| 0))
}

/// Takes this process off the user's terminal: job control and the signals that ask for an end are
/// meant for others.
pub fn detach() {
    if let Err(error) = setsid() {
        log::debug!("setsid: {error}");
    }
    signals::ignore_ends();
}

/// Whether the kernel kills this process when its parent dies.
pub fn end_with_parent(ends: bool) {
    if let Err(error) = set_parent_process_death_signal(ends.then_some(Signal::KILL)) {
        log::debug!("prctl: {error}");
    }
}

/// How many threads this process has: each has a directory, which is a link to its parent's
/// (proc(5)).
fn threads() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}

impl Child {
    /// A child that std has started, and that it doesn't wait for any more.
    #[expect(clippy::needless_pass_by_value, reason = "nothing else may wait for it")]
    pub fn of_std(child: std::process::Child) -> Self {
        Self(Pid::from_child(&child))
    }

    /// Kills it, if it still runs.
    pub fn kill(&self) {
        if let Err(error) = kill_process(self.0, Signal::KILL) {
            log::debug!("kill: {error}");
        }
    }

    /// Waits for its end.
    pub fn wait(mut self) -> io::Result<WaitStatus> {
        self.reap()
    }

    /// Waits for its end. A second time it is an error, for another process may have its number.
    pub fn reap(&mut self) -> io::Result<WaitStatus> {
        loop {
            match waitpid(Some(self.0), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(Some((_, status))) => return Ok(status),
                Ok(None) => return Err(io::ErrorKind::NotFound.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Ends this process, a child of [`fork`], at once: nothing that its parent has registered or
/// buffered is done a second time.
pub fn exit_now(status: i32) -> ! {
    #[expect(unsafe_code, reason = "std's exit runs handlers that belong to the parent")]
    // SAFETY: nothing runs after it; what the kernel releases is what is to be released.
    unsafe {
        libc::_exit(status)
    }
}

/// The program that a command starts gets all signals, and is killed when this process ends,
/// whatever ends it.
pub fn tie(command: &mut Command) {
    #[expect(unsafe_code, reason = "std sets neither a child's signal mask nor when it dies")]
    // SAFETY: between fork and exec only calls that are safe after a fork, and no memory but their
    // own.
    unsafe {
        command.pre_exec(|| {
            signals::unblock_all();
            Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
        });
    }
}

/// One malloc arena for all threads that this process will have: a second one costs each of them
/// two system calls and some page faults. To be called while it has a single thread.
pub fn share_one_heap() {
    #[expect(unsafe_code, reason = "malloc is tuned through the C library")]
    // SAFETY: the call only sets a number, which the C library reads when it makes an arena.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// The calling thread, when it wakes, no longer takes a processor from a thread that runs
/// (`SCHED_BATCH`): where none is free it waits for its turn. For a thread that a vCPU wakes with
/// work of which more is to come: it would run for the first piece, sleep, and be woken for the
/// next.
#[expect(unsafe_code, reason = "neither std nor rustix has sched_setscheduler")]
pub fn set_batch_policy() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: they take no pointer but one to a struct of ours, which is read. Where something
    // forbids it the thread is as it was.
    unsafe {
        // A policy that somebody has chosen for bothy stays.
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_does_not_fork() {
        let (keep, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _closed = wait.recv();
        });
        assert!(fork().unwrap_err().to_string().contains("single thread"));
        drop(keep);
        thread.join().unwrap();
    }

    #[test]
    fn a_tied_program_has_no_signal_blocked() {
        let mut command = Command::new("grep");
        command.args(["SigBlk", "/proc/self/status"]);
        tie(&mut command);
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "SigBlk:\t0000000000000000");
    }
}
