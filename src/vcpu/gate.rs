//! Where vCPUs wait while the VM is paused.
//!
//! A closed gate stops each vCPU's thread before it enters its guest again; the main thread kicks
//! those that are inside, and waits until all have come. Only then each says what it is, if that is
//! wanted: while one of them runs it may still send interrupts to the others. Only a vCPU's own
//! thread touches it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use kvm_ioctls::VcpuFd;

use super::VcpuError;
use super::state::{self, State};

/// Between the VM's main thread and its vCPUs' threads.
#[derive(Default)]
pub struct Gate {
    // The same as in `inner`, for a vCPU that has no time for a lock.
    closed: AtomicBool,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    /// Each is to say what it is; these are the MSRs that there are.
    wanted: Option<Arc<[u32]>>,
    waiting: usize,
    states: Vec<(u8, Result<State, VcpuError>)>,
}

impl Gate {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic under this lock ends the process")
    }

    /// No vCPU enters its guest from now on.
    pub(super) fn close(&self) {
        let mut inner = self.inner();
        inner.closed = true;
        inner.states.clear();
        self.closed.store(true, Ordering::SeqCst);
    }

    /// All go on, or go: whoever ends the VM opens it as well. Returns when none waits any more.
    pub fn open(&self) {
        let mut inner = self.inner();
        inner.closed = false;
        self.closed.store(false, Ordering::SeqCst);
        self.changed.notify_all();
        let inner = self.changed.wait_while(inner, |inner| inner.waiting > 0);
        drop(inner.expect("a panic under this lock ends the process"));
    }

    /// Whether all of `count` vCPUs wait, within this time.
    pub(super) fn all_wait(&self, count: usize, patience: Duration) -> bool {
        let wait = self.changed.wait_timeout_while(self.inner(), patience, |inner| inner.waiting < count);
        wait.expect("a panic under this lock ends the process").0.waiting == count
    }

    /// What each of the vCPUs that wait, which is all of them, is, in the order of their numbers.
    /// `msrs` are the numbers of all MSRs that this host's KVM has.
    pub(super) fn states(&self, msrs: Arc<[u32]>) -> Result<Vec<State>, VcpuError> {
        let mut inner = self.inner();
        inner.wanted = Some(msrs);
        self.changed.notify_all();
        let inner = self.changed.wait_while(inner, |inner| inner.states.len() < inner.waiting);
        let mut inner = inner.expect("a panic under this lock ends the process");
        inner.wanted = None;
        let mut states = std::mem::take(&mut inner.states);
        drop(inner);
        states.sort_unstable_by_key(|(id, _)| *id);
        states.into_iter().map(|(_, state)| state).collect()
    }

    /// Whether vCPUs are to wait.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// On a vCPU's thread, outside of the guest, when no access of it is half done: waits while the
    /// gate is closed.
    pub(super) fn wait(&self, id: u8, vcpu: &VcpuFd) {
        let mut inner = self.inner();
        inner.waiting += 1;
        self.changed.notify_all();
        while inner.closed {
            let has_said = inner.states.iter().any(|(of, _)| *of == id);
            match inner.wanted.clone().filter(|_| !has_said) {
                Some(msrs) => {
                    drop(inner);
                    let state = state::take(vcpu, &msrs);
                    inner = self.inner();
                    inner.states.push((id, state));
                    self.changed.notify_all();
                }
                None => {
                    let woken = self.changed.wait(inner);
                    inner = woken.expect("a panic under this lock ends the process");
                }
            }
        }
        inner.waiting -= 1;
        self.changed.notify_all();
    }
}
