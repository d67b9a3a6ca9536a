//! A device's thread, and the off switch that goes with it.
//!
//! A [`Worker`] is made when the VM is built, and its thread is parked at once: later, when guest
//! code runs, nothing comes into being. `start` hands the thread a job (queues, mostly), `stop`
//! takes the job back. A worker that is dropped is stopped and joined. It owns one thread and one
//! eventfd.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use crate::poll;
use crate::thread::Spawner;

/// Tells a worker to stop. Readable (for [`poll::readable`]) once it is set, and cheap to ask
/// between two requests.
pub struct Stop {
    evt: EventFd,
    set: AtomicBool,
}

impl Stop {
    /// A stop signal that isn't set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { evt: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?, set: AtomicBool::new(false) })
    }

    /// Whether the worker is to return as soon as its current request is done.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Sets it.
    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        // Only a counter near 2^64 can refuse, and then the eventfd is readable anyway.
        let _ = self.evt.write(1);
    }

    fn wait_and_clear(&self) {
        poll::readable([Some(self)]);
        let _ = self.evt.read();
        self.set.store(false, Ordering::Release);
    }
}

impl AsRawFd for Stop {
    fn as_raw_fd(&self) -> RawFd {
        self.evt.as_raw_fd()
    }
}

/// A parked thread that runs jobs of type `J`, one at a time.
pub struct Worker<J: Send + 'static> {
    stop: Arc<Stop>,
    // None only while being dropped: then the thread's `recv` fails, and it ends.
    jobs: Option<SyncSender<J>>,
    done: Receiver<J>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
}

impl<J: Send + 'static> Worker<J> {
    /// Starts the thread and parks it. Each job runs as `body(job, stop)`, which gives the job
    /// back; it is expected to do so when `stop` is set, and may do so earlier (the thread then
    /// waits for `stop`).
    pub fn spawn(
        name: &str,
        spawner: &Spawner,
        mut body: impl FnMut(J, &Stop) -> J + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(Stop::new()?);
        // Room for one: neither side ever blocks on a send, and no send allocates.
        let (jobs, inbox) = sync_channel::<J>(1);
        let (outbox, done) = sync_channel::<J>(1);
        let thread = spawner.spawn(name, {
            let stop = stop.clone();
            move || {
                while let Ok(job) = inbox.recv() {
                    let job = body(job, &stop);
                    stop.wait_and_clear();
                    if outbox.send(job).is_err() {
                        return;
                    }
                }
            }
        })?;
        Ok(Self { stop, jobs: Some(jobs), done, thread: Some(thread), busy: false })
    }

    /// Hands the job over and returns at once. The worker must be parked.
    pub fn start(&mut self, job: J) {
        assert!(!self.busy, "a worker takes one job at a time");
        let jobs = self.jobs.as_ref().expect("only drop takes the sender");
        if jobs.send(job).is_err() {
            unreachable!("the thread lives as long as its worker: a panic would have ended the process");
        }
        self.busy = true;
    }

    /// Asks the running job to stop, waits for it and returns it; `None` when nothing runs.
    pub fn stop(&mut self) -> Option<J> {
        if !self.busy {
            return None;
        }
        self.busy = false;
        self.stop.set();
        Some(self.done.recv().expect("the thread lives as long as its worker, and always answers"))
    }
}

impl<J: Send + 'static> Drop for Worker<J> {
    fn drop(&mut self) {
        drop(self.stop());
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // An error would be a panic, which has ended the process.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
