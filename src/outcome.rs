//! How a VM ends: the reasons, their exit codes, and the one place where whoever sees an end
//! reports it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset; bothy ends instead of starting it again.
    Reset,
    /// The user ended the VM from the console (`Ctrl-a x`).
    Quit,
    /// The guest's kernel panicked, and said so by pvpanic.
    Panic,
    /// A vCPU met an exception that it couldn't deliver; where, as far as it is known.
    TripleFault(String),
    /// KVM gave up: an instruction that it can't emulate, a failed entry, an internal error.
    KvmError(String),
    /// The guest didn't answer the power button in time, or was told to go at once.
    Killed,
}

impl Outcome {
    /// The exit code of `bothy boot`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Outcome::PowerOff | Outcome::Reset | Outcome::Quit => 0,
            Outcome::Panic => 3,
            Outcome::TripleFault(_) => 4,
            Outcome::KvmError(_) => 5,
            Outcome::Killed => 6,
        }
    }

    /// One line for people, for the ends that aren't the guest's own wish.
    pub fn message(&self) -> Option<String> {
        match self {
            Outcome::PowerOff | Outcome::Reset | Outcome::Quit => None,
            Outcome::Panic => Some("the guest's kernel panicked".into()),
            Outcome::TripleFault(at) => Some(format!("the guest ended with a triple fault, {at}")),
            Outcome::KvmError(reason) => Some(reason.clone()),
            Outcome::Killed => Some("the guest was killed before it powered off".into()),
        }
    }
}

/// Where devices and vCPUs report the VM's end. The first report counts.
pub struct End {
    outcome: OnceLock<Outcome>,
    panicked: AtomicBool,
    evt: EventFd,
}

impl End {
    /// `evt` becomes readable when the VM has ended, and when its guest has panicked.
    pub fn new(evt: EventFd) -> Self {
        Self { outcome: OnceLock::new(), panicked: AtomicBool::new(false), evt }
    }

    /// Reports an end. Callable from any thread; never blocks. Later reports change nothing.
    /// Whatever ends a guest that has panicked, the panic is why.
    pub fn report(&self, outcome: Outcome) {
        let outcome = if self.has_panicked() { Outcome::Panic } else { outcome };
        if self.outcome.set(outcome).is_ok() {
            self.signal();
        }
    }

    /// Reports that the guest's kernel has panicked. It may go on for a while: a kernel says so
    /// before its last words are out. Callable from any thread; never blocks.
    pub fn report_panic(&self) {
        self.panicked.store(true, Ordering::SeqCst);
        self.signal();
    }

    /// Whether the guest's kernel has panicked.
    pub fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::SeqCst)
    }

    fn signal(&self) {
        if self.evt.write(1).is_err() {
            log::error!("can't signal the end of the VM");
        }
    }

    /// What was reported, if anything. A vCPU that reads `Some` runs no further guest instruction.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reported_end_counts() {
        let evt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let end = End::new(evt.try_clone().unwrap());
        assert_eq!(end.outcome(), None);
        end.report(Outcome::Panic);
        end.report(Outcome::TripleFault(String::new()));
        assert_eq!(end.outcome(), Some(&Outcome::Panic));
        assert_eq!(evt.read().unwrap(), 1);
    }

    #[test]
    fn a_guest_that_has_panicked_ends_by_that_however_it_ends() {
        let end = End::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        end.report_panic();
        assert_eq!(end.outcome(), None);
        end.report(Outcome::Reset);
        assert_eq!(end.outcome(), Some(&Outcome::Panic));
    }

    #[test]
    fn each_end_that_is_not_the_guests_wish_has_a_code_and_a_line() {
        let ends = [
            Outcome::Panic,
            Outcome::TripleFault("x".into()),
            Outcome::KvmError("x".into()),
            Outcome::Killed,
        ];
        for (end, code) in ends.iter().zip([3, 4, 5, 6]) {
            assert_eq!(end.exit_code(), code);
            assert!(end.message().is_some());
        }
    }
}
