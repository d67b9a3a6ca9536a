//! virtio-balloon (virtio 1.2 §5.5): memory that the guest doesn't need goes back to the host. One
//! worker thread.
//!
//! - By *free page reporting* the guest tells of large free blocks by itself, some seconds after
//!   they became free;
//! - by the *balloon*, [`Handle::reclaim`], it is asked for pages. They are discarded as it hands
//!   them over, and once it has handed over all of them, or some time has passed, it gets them
//!   back: then they are free, and cost nothing until they are used again. A guest that runs out of
//!   memory meanwhile takes pages back by itself (deflate-on-oom).
//!
//! - `pages` reads what the guest writes: page numbers and statistics.
//!
//! What is discarded is only what the driver names, and only in guest memory, so a driver that lies
//! harms its own guest. Nothing is kept of the pages: that they come back is the guest's business
//! alone. A driver that fills its free pages with a value and expects to find it
//! (`VIRTIO_BALLOON_F_PAGE_POISON` isn't offered) does not negotiate reporting. Free page hinting
//! isn't offered either: it is for migration.
//!
//! The specification gives queue 3 to hints and queue 4 to reporting; Linux counts only those that
//! exist, and then reporting is queue 3, or 2 without statistics. Both are understood: whatever is
//! behind the two of the balloon, and isn't for statistics, is for reporting.

mod pages;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::core::active::{ActiveQueue, Notify};
use super::core::chain::Chain;
use super::core::device::{Activation, VirtioDevice, read_config_bytes};
use super::core::interrupt::ConfigChange;
use super::core::queue::Queue;
use super::core::spec::{balloon, feature, id};
use super::core::state::{Remembered, recall, remember};
use super::core::worker::{Stop, Worker};
use crate::memory::{self, Afterwards, GuestMemory};
use crate::poll::{self, Source};
use crate::thread::Spawner;
pub use pages::Statistics;
use pages::{Numbers, runs};

/// Balloon, statistics, and two places where reporting may be.
const QUEUES: usize = 5;
/// Linux takes no queue for reporting with less than 32 places; a driver without statistics has it
/// where they would be.
const QUEUE_SIZES: [u16; QUEUES] = [128, 128, 64, 64, 64];
/// How long the guest may take to hand over what it was asked for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The device.
pub struct Balloon {
    shared: Arc<Shared>,
    worker: Worker<Job>,
}

/// What asks the guest, from any thread, for as long as it likes.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

/// What the worker shares with whoever asks, and with the vCPUs' accesses to the configuration
/// space.
struct Shared {
    state: Mutex<State>,
    // Wakes the worker: something was asked for, or the driver has written `actual`.
    wake_evt: EventFd,
    reported: AtomicU64,
    inflated: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The size that the guest is asked for, in pages (`num_pages` of §5.5.4).
    target: u32,
    /// The size that the guest says that it has, in pages.
    actual: u32,
    /// What somebody wants it to be for a while, and until when.
    wish: Option<(u32, Instant)>,
    /// The guest has handed something over, and has not been asked yet how it uses its memory now.
    asks_statistics: bool,
    statistics: Option<Statistics>,
}

/// What the balloon has done since the VM's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes that the guest has reported as free, each time that it did.
    pub reported: u64,
    /// Bytes that the guest has handed over on request, each time that it did.
    pub inflated: u64,
    /// Bytes that the guest says are in the balloon now.
    pub actual: u64,
    /// What the guest said of its memory when it had last handed something over, or at its start.
    pub statistics: Option<Statistics>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        let (reported, inflated) = (mib(self.reported), mib(self.inflated));
        write!(f, "memory given back: {reported} MiB by reporting, {inflated} MiB on request")?;
        match self.statistics {
            Some(Statistics { total: Some(total), free: Some(free), available: Some(available), .. }) => {
                let (total, free, available) = (mib(total), mib(free), mib(available));
                write!(f, "; of its {total} MiB the guest had {free} free and {available} available")
            }
            _ => Ok(()),
        }
    }
}

impl Handle {
    /// Asks the guest to hand over `bytes` of what it has free. They are its own again afterwards.
    /// Returns at once.
    pub fn reclaim(&self, bytes: u64) {
        let pages = u32::try_from(bytes / balloon::PAGE_SIZE).unwrap_or(u32::MAX);
        self.0.state().wish = Some((pages, Instant::now() + PATIENCE));
        self.0.wake();
    }

    /// What has happened so far.
    pub fn figures(&self) -> Figures {
        let state = self.0.state();
        Figures {
            reported: self.0.reported.load(Ordering::Relaxed),
            inflated: self.0.inflated.load(Ordering::Relaxed),
            actual: u64::from(state.actual) * balloon::PAGE_SIZE,
            statistics: state.statistics,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic under this lock ends the process")
    }

    /// The guest has handed over so many bytes.
    fn took(&self, counter: &AtomicU64, bytes: u64) {
        counter.fetch_add(bytes, Ordering::Relaxed);
        self.state().asks_statistics = true;
    }

    fn wake(&self) {
        // EAGAIN when the counter is full: then it is awake anyway.
        let _ = self.wake_evt.write(1);
    }
}

impl Balloon {
    /// An empty balloon. `name` is its thread's name, e.g. `balloon0`.
    pub fn new(name: &str, spawner: &Spawner) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake_evt: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            reported: AtomicU64::new(0),
            inflated: AtomicU64::new(0),
        });
        let worker = Worker::spawn(name, spawner, {
            let shared = shared.clone();
            move |mut job: Job, stop: &Stop| {
                job.run(&shared, stop);
                job
            }
        })?;
        Ok(Self { shared, worker })
    }

    /// What asks the guest.
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> u32 {
        id::BALLOON
    }

    fn features(&self) -> u64 {
        feature::RING | balloon::F_STATS_VQ | balloon::F_DEFLATE_ON_OOM | balloon::F_PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `struct virtio_balloon_config` (§5.5.4) as far as the features that are offered reach.
        let state = self.shared.state();
        let mut space = [0; 8];
        space[..4].copy_from_slice(&state.target.to_le_bytes());
        space[4..].copy_from_slice(&state.actual.to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Drivers write the whole of `actual`, and nothing else can be written.
        if let (balloon::ACTUAL, Ok(bytes)) = (offset, data.try_into()) {
            self.shared.state().actual = u32::from_le_bytes(bytes);
            self.shared.wake();
        }
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { queues, features, config_change, .. } = activation;
        self.worker.start(Job { queues, features, config_change });
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        let queues =
            |job: Job| job.queues.into_iter().map(|queue| queue.map(ActiveQueue::into_queue)).collect();
        self.worker.stop().map(queues).unwrap_or_default()
    }

    /// The size that the guest says that it has. What it was asked for it is asked for no more.
    fn state(&self) -> Remembered {
        remember(&self.shared.state().actual)
    }

    fn restore(&mut self, state: &Remembered) -> Result<(), String> {
        self.shared.state().actual = recall(state)?;
        Ok(())
    }
}

/// What the worker works on between `start` and `stop`.
struct Job {
    queues: Vec<Option<ActiveQueue>>,
    features: u64,
    config_change: ConfigChange,
}

/// What a queue is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

impl Job {
    fn run(&mut self, shared: &Shared, stop: &Stop) {
        // The driver's buffer for statistics: it is given back when something has changed
        // (§5.5.6.3).
        let mut held = None;
        // What was available before the start may have no kick to come.
        let mut kicked = [true; QUEUES];
        loop {
            let deadline = self.adjust(shared);
            for index in (0..QUEUES).filter(|index| kicked[*index]) {
                self.serve(index, shared, stop, &mut held);
            }
            self.ask_statistics(shared, &mut held);
            if stop.is_set() {
                break;
            }
            let queue = |index: usize| match self.queues.get(index) {
                Some(Some(queue)) => Source::readable(queue),
                _ => Source::none(),
            };
            let sources = std::array::from_fn(|at| match at {
                0 => Source::readable(stop),
                1 => Source::readable(&shared.wake_evt),
                _ => queue(at - 2),
            });
            let ready: [bool; 2 + QUEUES] = poll::wait_readable(sources, deadline);
            let [_, woken, ready @ ..] = ready;
            kicked = ready;
            if woken {
                // Nobody else reads it.
                let _ = shared.wake_evt.read();
            }
        }
        if let (Some(chain), Some(queue)) = (held, self.statistics_queue()) {
            queue.put_back(chain);
        }
    }

    fn statistics_queue(&mut self) -> Option<&mut ActiveQueue> {
        let offered = self.features & balloon::F_STATS_VQ != 0;
        self.queues.get_mut(balloon::STATISTICS).filter(|_| offered)?.as_mut()
    }

    /// What the driver uses a queue for.
    fn use_of(&self, index: usize) -> Use {
        match index {
            balloon::INFLATE => Use::Inflate,
            balloon::DEFLATE => Use::Deflate,
            balloon::STATISTICS if self.features & balloon::F_STATS_VQ != 0 => Use::Statistics,
            _ => Use::Reporting,
        }
    }

    /// Makes the target what it should be by now, and says when to look again.
    fn adjust(&self, shared: &Shared) -> Option<Instant> {
        let mut state = shared.state();
        if state.wish.is_some_and(|(pages, until)| state.actual >= pages || Instant::now() >= until) {
            state.wish = None;
        }
        let (target, until) = state.wish.map_or((0, None), |(pages, until)| (pages, Some(until)));
        let changes = target != state.target;
        // The driver's read of the space takes this lock within the one that `apply` takes.
        drop(state);
        if changes {
            self.config_change.apply(|| shared.state().target = target);
        }
        until
    }

    fn serve(&mut self, index: usize, shared: &Shared, stop: &Stop, held: &mut Option<Chain>) {
        let purpose = self.use_of(index);
        let Some(Some(queue)) = self.queues.get_mut(index) else { return };
        queue.drain_kick();
        // Nothing is limited here, so that nothing says when to come again.
        let _never: Option<Instant> = match purpose {
            Use::Inflate => queue.serve(stop, Notify::Burst, |chain, mem| {
                shared.took(&shared.inflated, discard_listed(chain, mem, stop));
                0
            }),
            // That they are used again shows when they are used.
            Use::Deflate => queue.serve(stop, Notify::Burst, |_, _| 0),
            Use::Reporting => queue.serve(stop, Notify::Burst, |chain, mem| {
                shared.took(&shared.reported, discard_buffers(chain, mem, stop));
                0
            }),
            Use::Statistics => {
                hold_statistics(queue, shared, held);
                None
            }
        };
    }

    /// Gives the driver's buffer back, if something has changed: that is the question.
    fn ask_statistics(&mut self, shared: &Shared, held: &mut Option<Chain>) {
        if held.is_none() || !std::mem::take(&mut shared.state().asks_statistics) {
            return;
        }
        if let (Some(queue), Some(chain)) = (self.statistics_queue(), held.take()) {
            queue.complete(chain, 0);
            queue.interrupt_if_needed();
        }
    }
}

/// Takes what the driver says of its memory, and keeps the buffer. A driver has one: an older one
/// is given back, unasked.
fn hold_statistics(queue: &mut ActiveQueue, shared: &Shared, held: &mut Option<Chain>) {
    queue.disable_notification();
    // A driver that adds more all the time is heard in turn with everything else.
    for _ in 0..QUEUE_SIZES[balloon::STATISTICS] {
        let Some(chain) = queue.pop() else {
            if queue.enable_notification() {
                queue.disable_notification();
                continue;
            }
            return queue.interrupt_if_needed();
        };
        let statistics = Statistics::read(&mut chain.reader(queue.mem()));
        shared.state().statistics = Some(statistics);
        if let Some(old) = held.replace(chain) {
            queue.complete(old, 0);
        }
    }
    queue.interrupt_if_needed();
    queue.kick();
}

/// Discards pages by their numbers, and returns how many bytes.
fn discard_listed(chain: &Chain, mem: &GuestMemory, stop: &Stop) -> u64 {
    let mut numbers = Numbers::new(chain.reader(mem));
    let mut bytes = 0;
    // A device that stops has no use for more memory.
    while let Some(piece) = numbers.next_piece().filter(|_| !stop.is_set()) {
        for (first, count) in runs(piece) {
            let (gpa, len) = (u64::from(first) * balloon::PAGE_SIZE, count * balloon::PAGE_SIZE);
            bytes += discard(mem, GuestAddress(gpa), len, Afterwards::UsedSoon);
        }
    }
    bytes
}

/// Discards the buffers themselves, and returns how many bytes.
fn discard_buffers(chain: &Chain, mem: &GuestMemory, stop: &Stop) -> u64 {
    // A long list of large buffers takes its time, and it is only an offer.
    let buffers = chain.writable().iter().take_while(|_| !stop.is_set());
    buffers.map(|buffer| discard(mem, buffer.gpa, buffer.len.into(), Afterwards::Unused)).sum()
}

/// Discards a range, and returns how many bytes that are; 0 if that can't be, e.g. because there is
/// no such memory.
fn discard(mem: &GuestMemory, gpa: GuestAddress, len: u64, afterwards: Afterwards) -> u64 {
    let done = usize::try_from(len)
        .map_err(io::Error::other)
        .and_then(|len| memory::discard(mem, gpa, len, afterwards));
    match done {
        Ok(given) => given as u64,
        Err(error) => {
            log::debug!("{len:#x} bytes at {:#x} can't be given back: {error}", gpa.0);
            0
        }
    }
}

#[cfg(test)]
#[path = "balloon_tests.rs"]
mod tests;
