//! virtio-rng (virtio 1.2 §5.4): random bytes from the host's kernel. One queue, one worker thread.

use std::io;
use std::sync::Arc;

use super::core::active::{ActiveQueue, Notify};
use super::core::chain::Chain;
use super::core::device::{Activation, VirtioDevice};
use super::core::limit::Throttle;
use super::core::queue::Queue;
use super::core::spec::{feature, id};
use super::core::worker::{Stop, Worker};
use crate::memory::GuestMemory;
use crate::random;
use crate::thread::Spawner;

/// The most that one request gets, in bytes: a driver asks again for more, and no request keeps the
/// thread for long.
const MAX_PER_REQUEST: u32 = 64 << 10;
/// The most in a second, in bytes: more than any use of randomness, and little of the host's time.
const MAX_PER_SECOND: u64 = 4 << 20;

/// The device.
pub struct Rng {
    worker: Worker<ActiveQueue>,
}

impl Rng {
    /// `name` is the thread's name, e.g. `rng0`.
    pub fn new(name: &str, spawner: &Spawner) -> io::Result<Self> {
        let throttle = Arc::new(Throttle::new(None, Some(MAX_PER_SECOND)));
        let worker = Worker::spawn(name, spawner, move |mut queue: ActiveQueue, stop: &Stop| {
            queue.limit(throttle.clone());
            queue.run(stop, Notify::EachChain, fill);
            queue
        })?;
        Ok(Self { worker })
    }
}

/// Fills the chain's writable part, or as much of it as one request gets.
fn fill(chain: &Chain, mem: &GuestMemory) -> u32 {
    let mut writer = chain.writer(mem).split_off_front(MAX_PER_REQUEST);
    let wanted = writer.len();
    while !writer.is_empty() {
        // The kernel has never too little: only its first second, long past with /dev/kvm there,
        // makes anybody wait.
        let bytes: [u8; 256] = random::bytes().expect("getrandom(2) can't fail");
        writer.write(&bytes);
    }
    wanted
}

impl VirtioDevice for Rng {
    fn kind(&self) -> u32 {
        id::RNG
    }

    fn features(&self) -> u64 {
        feature::RING
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    // There is no configuration space (§5.4.4).
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        if let Some(queue) = activation.queues.into_iter().next().flatten() {
            self.worker.start(queue);
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        self.worker.stop().map(|queue| vec![Some(queue.into_queue())]).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "rng_tests.rs"]
mod tests;
