//! virtio-console (virtio 1.2 §5.3): one port, a terminal. One worker thread.
//!
//! [`Port`] is the host's side. A chain of the guest's is one piece of output, and costs it one
//! exit, where a serial port has two for each byte. Bytes wait on the host's side in buffers of
//! bounded size: while the one for output is full the device takes no more chains. (Linux's driver
//! then waits for the device in a loop that uses up its processor, where it sleeps for a serial
//! port.)
//!
//! Several ports and the emergency write aren't offered: there is one terminal, and a serial port
//! beside it for early words.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bothy_guest::protocol::WindowSize;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::core::active::ActiveQueue;
use super::core::chain::Chain;
use super::core::device::{Activation, VirtioDevice, read_config_bytes};
use super::core::interrupt::ConfigChange;
use super::core::queue::Queue;
use super::core::spec::{console, feature, id};
use super::core::state::{Remembered, recall, remember};
use super::core::worker::{Stop, Worker};
use crate::memory::GuestMemory;
use crate::poll::{self, Source};
use crate::thread::Spawner;

const QUEUE_SIZES: [u16; 2] = [64, 64];
/// Bytes for the guest that wait.
const INPUT_CAPACITY: usize = 4096;
/// Bytes from the guest that wait before no more chains are taken.
const OUTPUT_CAPACITY: usize = 64 << 10;
/// What is taken of one chain, in bytes: the rest is lost. Linux sends a page at a time.
const MAX_PER_CHAIN: u32 = 64 << 10;

/// The host's side.
pub struct Port {
    state: Mutex<State>,
    /// Whether the driver can ask for the terminal's size.
    has_size: bool,
    // There are bytes to take, or is room for more.
    host_evt: EventFd,
    // The same for the worker, and a new size.
    wake_evt: EventFd,
}

struct State {
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    size: WindowSize,
    /// What the guest hasn't been told yet.
    new_size: Option<WindowSize>,
}

impl Port {
    /// Gives the guest as many of `bytes` as fit, and says how many that were. When there is room
    /// again, `host_evt` says so.
    pub fn give(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let fitting = &bytes[..bytes.len().min(INPUT_CAPACITY - state.input.len())];
        state.input.extend(fitting);
        if !fitting.is_empty() {
            signal(&self.wake_evt);
        }
        fitting.len()
    }

    /// Takes all bytes that the guest sent. When there are some again, `host_evt` says so.
    pub fn take(&self) -> Vec<u8> {
        let mut state = self.state();
        if state.output.len() >= OUTPUT_CAPACITY {
            signal(&self.wake_evt);
        }
        state.output.drain(..).collect()
    }

    /// Tells the guest that the terminal has another size.
    pub fn resize(&self, size: WindowSize) {
        self.state().new_size = Some(size);
        signal(&self.wake_evt);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic under this lock ends the process")
    }
}

fn signal(evt: &EventFd) {
    // EAGAIN when the counter is full: then it is signalled anyway.
    let _ = evt.write(1);
}

/// The device.
pub struct Console {
    port: Arc<Port>,
    worker: Worker<Job>,
}

impl Console {
    /// A console of this size, if it is known. `name` is its thread's name, e.g. `console0`;
    /// `host_evt` is signalled when the port has bytes to [`take`](Port::take), or room for some.
    pub fn new(
        name: &str,
        size: Option<WindowSize>,
        host_evt: EventFd,
        spawner: &Spawner,
    ) -> io::Result<Self> {
        let state = State {
            input: VecDeque::new(),
            output: VecDeque::new(),
            size: size.unwrap_or(WindowSize { rows: 0, columns: 0 }),
            new_size: None,
        };
        let port = Arc::new(Port {
            state: Mutex::new(state),
            has_size: size.is_some(),
            host_evt,
            wake_evt: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        });
        let worker = Worker::spawn(name, spawner, {
            let port = port.clone();
            move |mut job: Job, stop: &Stop| {
                job.run(&port, stop);
                job
            }
        })?;
        Ok(Self { port, worker })
    }

    /// The host's side.
    pub fn port(&self) -> Arc<Port> {
        self.port.clone()
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> u32 {
        id::CONSOLE
    }

    fn features(&self) -> u64 {
        feature::RING | if self.port.has_size { console::F_SIZE } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `struct virtio_console_config` (§5.3.4) as far as the features that are offered reach.
        let WindowSize { rows, columns } = self.port.state().size;
        let [[a, b], [c, d]] = [columns.to_le_bytes(), rows.to_le_bytes()];
        read_config_bytes(&[a, b, c, d], offset, data);
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { queues, config_change, .. } = activation;
        let mut queues = queues.into_iter();
        let mut next = || queues.next().flatten();
        self.worker.start(Job { receive: next(), transmit: next(), config_change });
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        let queues = |job: Job| [job.receive, job.transmit].map(|queue| queue.map(ActiveQueue::into_queue));
        self.worker.stop().map(|job| queues(job).into()).unwrap_or_default()
    }

    fn state(&self) -> Remembered {
        let state = self.port.state();
        remember(&Waiting {
            input: state.input.iter().copied().collect(),
            output: state.output.iter().copied().collect(),
        })
    }

    fn restore(&mut self, state: &Remembered) -> Result<(), String> {
        let Waiting { input, output } = recall(state)?;
        // A last chain may have gone over the output's limit.
        if input.len() > INPUT_CAPACITY || output.len() > OUTPUT_CAPACITY + MAX_PER_CHAIN as usize {
            return Err("more bytes wait than can".to_owned());
        }
        let mut state = self.port.state();
        (state.input, state.output) = (input.into(), output.into());
        // There is something to take.
        signal(&self.port.host_evt);
        Ok(())
    }
}

/// Bytes on their way.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Waiting {
    input: Vec<u8>,
    output: Vec<u8>,
}

/// What the worker works on between `start` and `stop`.
struct Job {
    /// Of the guest, so for our input (§5.3.2).
    receive: Option<ActiveQueue>,
    transmit: Option<ActiveQueue>,
    config_change: ConfigChange,
}

impl Job {
    fn run(&mut self, port: &Port, stop: &Stop) {
        // What is available, or was asked for, before the start may have no signal to come.
        while !stop.is_set() {
            self.resize(port);
            let wants_chains = self.transmit.as_mut().is_some_and(|queue| take_output(queue, port, stop));
            let wants_buffers = self.receive.as_mut().is_some_and(|queue| give_input(queue, port, stop));
            let sources = [
                Source::readable(stop),
                Source::readable(&port.wake_evt),
                kick(&self.transmit, wants_chains),
                kick(&self.receive, wants_buffers),
            ];
            poll::wait_readable(sources, None);
            // Nobody else reads it.
            let _ = port.wake_evt.read();
            for queue in self.receive.iter().chain(&self.transmit) {
                queue.drain_kick();
            }
        }
    }

    fn resize(&self, port: &Port) {
        // The driver's read of the space takes this lock within the one that `apply` takes.
        let new_size = port.state().new_size.take();
        if let Some(size) = new_size.filter(|_| port.has_size) {
            self.config_change.apply(|| port.state().size = size);
        }
    }
}

fn kick(queue: &Option<ActiveQueue>, is_wanted: bool) -> Source<'_> {
    match queue {
        Some(queue) if is_wanted => Source::readable(queue),
        _ => Source::none(),
    }
}

/// Takes what the guest sends, as far as there is room for it; whether to wait for its next kick.
fn take_output(queue: &mut ActiveQueue, port: &Port, stop: &Stop) -> bool {
    let is_full = || port.state().output.len() >= OUTPUT_CAPACITY;
    serve(queue, stop, is_full, |chain, mem| {
        let bytes = chain.reader(mem).split_off_front(MAX_PER_CHAIN);
        let mut state = port.state();
        if state.output.is_empty() && !bytes.is_empty() {
            signal(&port.host_evt);
        }
        bytes.append_to(&mut state.output);
        0
    })
}

/// Gives the guest what there is for it, as far as it has buffers; whether to wait for its next
/// kick.
fn give_input(queue: &mut ActiveQueue, port: &Port, stop: &Stop) -> bool {
    let is_empty = || port.state().input.is_empty();
    serve(queue, stop, is_empty, |chain, mem| {
        let mut state = port.state();
        let written = chain.writer(mem).write(state.input.make_contiguous());
        state.input.drain(..written as usize);
        if state.input.is_empty() {
            signal(&port.host_evt);
        }
        written
    })
}

/// Hands chains to `answer`, which returns how many bytes it wrote, until there are no more or the
/// host's side is done. Whether to wait for the driver's next kick: otherwise it waits for the
/// host's side.
fn serve(
    queue: &mut ActiveQueue,
    stop: &Stop,
    is_done: impl Fn() -> bool,
    mut answer: impl FnMut(&Chain, &GuestMemory) -> u32,
) -> bool {
    queue.disable_notification();
    // A driver that adds more all the time is heard in turn with everything else.
    for _ in 0..queue.size() {
        if stop.is_set() || is_done() {
            queue.interrupt_if_needed();
            return false;
        }
        if let Some(chain) = queue.pop() {
            let written = answer(&chain, queue.mem());
            queue.complete(chain, written);
        } else {
            queue.interrupt_if_needed();
            if !queue.enable_notification() {
                return true;
            }
            queue.disable_notification();
        }
    }
    queue.interrupt_if_needed();
    queue.kick();
    true
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
