//! virtio-blk (virtio 1.2 §5.2): a [`Disk`] for the guest. One worker thread for each queue, or
//! fewer where there are fewer processors.
//!
//! - [`config`] is what it is made from;
//! - [`disk`] is the backend, with no word of virtio in it, and `lock` keeps others away from it;
//! - `request` translates a chain into calls of it;
//! - `uring` makes many of those calls at once. Without it the requests of a queue are served one
//!   after the other, in order.
//!
//! The device owns its threads and rings and, through the disk, its file descriptors. What a driver
//! wrote and didn't flush is flushed when the device stops.

pub mod config;
pub mod disk;
mod lock;
mod request;
mod uring;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use self::config::{Aio, Bandwidth, Cache, Config, ConfigError, Format};
use self::disk::PAGE;
pub use self::disk::{Disk, OpenError};
use self::request::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_ZEROES_SECTORS, Server};
use self::uring::Ring;
use super::core::active::{ActiveQueue, Notify};
use super::core::device::{Activation, VirtioDevice, read_config_bytes};
use super::core::iovec::IoVecs;
use super::core::queue::Queue;
use super::core::spec::{blk, feature, id};
use super::core::state::{Remembered, recall, remember};
use super::core::worker::{Stop, Worker};
use crate::bounded_log::BoundedLog;
use crate::sys::process;
use crate::thread::Spawner;

const QUEUE_SIZE: u16 = 256;
/// Data segments of the largest request: a chain has at most the queue's size, and header and
/// status take one each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// What the worker gets at `start` and gives back at `stop`.
struct Job {
    queues: Vec<ActiveQueue>,
    write_through: bool,
}

/// The device.
pub struct Block {
    features: u64,
    config_space: [u8; CONFIG_LEN],
    queue_sizes: Vec<u16>,
    workers: Vec<Worker<Job>>,
}

impl Block {
    /// A disk for the guest. `name` is its thread's name and stands in the log, e.g. `blk0`; it is
    /// also the id of a disk that was given none. Where there are several queues there are threads
    /// `blk0.q0`, `blk0.q1` and so on: of two the first serves queues 0, 2 and so on.
    pub fn new(config: &Config, disk: Disk, name: &str, spawner: &Spawner) -> io::Result<Self> {
        let queues = config.queues();
        let mut features = feature::RING | blk::F_FLUSH | blk::F_SEG_MAX | blk::F_BLK_SIZE | blk::F_TOPOLOGY;
        features |= if disk.read_only() { blk::F_RO } else { blk::F_DISCARD | blk::F_WRITE_ZEROES };
        features |= if queues > 1 { blk::F_MQ } else { 0 };
        let config_space = config_space(&disk, queues);
        let mut id = [0; blk::ID_LEN];
        for (to, from) in id.iter_mut().zip(config.id.as_deref().unwrap_or(name).bytes()) {
            *to = from;
        }
        let throttle = Arc::new(config.throttle());
        let server = Arc::new(Server {
            disk,
            id,
            log: BoundedLog::new(name),
            dirty: AtomicBool::new(false),
            throttle: throttle.clone(),
        });
        let worker = |(index, mut ring): (usize, Option<Ring>)| {
            let name = if queues > 1 { format!("{name}.q{index}") } else { name.to_owned() };
            let (server, throttle) = (server.clone(), throttle.clone());
            Worker::spawn(&name, spawner, move |mut job: Job, stop: &Stop| {
                process::set_batch_policy();
                let mut iovs = IoVecs::default();
                let Job { queues, write_through } = &mut job;
                queues.iter_mut().for_each(|queue| queue.limit(throttle.clone()));
                match (&mut ring, queues.as_mut_slice()) {
                    (Some(ring), queues) => ring.run(queues, stop, &server, *write_through),
                    (None, [queue]) => queue.run(stop, Notify::EachChain, |chain, mem| {
                        server.serve(chain, mem, &mut iovs, *write_through)
                    }),
                    (None, _) => unreachable!("there is a thread for each queue"),
                }
                server.flush_at_stop();
                job
            })
        };
        let threads = rings(config, &server.disk, name)?;
        let workers = threads.into_iter().enumerate().map(worker).collect::<io::Result<_>>()?;
        Ok(Self { features, config_space, queue_sizes: vec![QUEUE_SIZE; queues.into()], workers })
    }
}

/// What each of the disk's threads serves its queues with: a ring, or nothing.
///
/// A thread that takes its requests one after the other has one queue. One with a ring hardly waits
/// for any, and more of those than there are processors would only take turns.
fn rings(config: &Config, disk: &Disk, name: &str) -> io::Result<Vec<Option<Ring>>> {
    let queues = usize::from(config.queues());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if Ring::takes_reads(disk) { queues.min(processors) } else { queues };
    let rings = || {
        (0..threads).map(|_| Ring::new(disk, queues.div_ceil(threads)).map(Some)).collect::<io::Result<_>>()
    };
    let without = || (0..queues).map(|_| None).collect();
    match config.aio {
        Some(Aio::Sync) => Ok(without()),
        Some(Aio::IoUring) => rings().map_err(|error| {
            let why = format!("{name}: aio=io_uring: this host has none, or not for us: {error}");
            io::Error::new(error.kind(), why)
        }),
        None => Ok(rings().unwrap_or_else(|error| {
            log::debug!("{name}: one request after the other: no io_uring: {error}");
            without()
        })),
    }
}

/// Bytes of `struct virtio_blk_config` (§5.2.4) as far as the features that are offered reach.
const CONFIG_LEN: usize = 60;

fn config_space(disk: &Disk, queues: u16) -> [u8; CONFIG_LEN] {
    let mut space = [0; CONFIG_LEN];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    let block = disk.block_size();
    // A transfer of less than a page may cost the host a read before it writes.
    let blocks_in_page = (PAGE / block).max(1);
    let page_sectors = u64::from(block * blocks_in_page) / blk::SECTOR_SIZE;
    put(0, &(disk.len() / blk::SECTOR_SIZE).to_le_bytes()); // capacity
    put(12, &SEG_MAX.to_le_bytes()); // seg_max
    put(20, &block.to_le_bytes()); // blk_size
    put(24, &[u8::try_from(blocks_in_page.ilog2()).unwrap_or(0)]); // physical_block_exp
    put(26, &1_u16.to_le_bytes()); // min_io_size, in blocks
    put(28, &blocks_in_page.to_le_bytes()); // opt_io_size, in blocks
    put(34, &queues.to_le_bytes()); // num_queues
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes()); // max_discard_sectors
    put(40, &MAX_RANGES.to_le_bytes()); // max_discard_seg
    put(44, &u32::try_from(page_sectors).unwrap_or(1).to_le_bytes()); // discard_sector_alignment
    put(48, &MAX_ZEROES_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    put(52, &MAX_RANGES.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    space
}

impl VirtioDevice for Block {
    fn kind(&self) -> u32 {
        id::BLOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config_space, offset, data);
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        // §5.2.6.2: a driver without FLUSH takes every completed write for durable.
        let write_through = activation.features & blk::F_FLUSH == 0;
        let mut jobs: Vec<Job> =
            self.workers.iter().map(|_| Job { queues: Vec::new(), write_through }).collect();
        let count = jobs.len();
        for queue in activation.queues.into_iter().flatten() {
            jobs[queue.index() % count].queues.push(queue);
        }
        for (worker, job) in self.workers.iter_mut().zip(jobs).filter(|(_, job)| !job.queues.is_empty()) {
            worker.start(job);
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        let mut queues = Vec::new();
        for queue in self.workers.iter_mut().filter_map(Worker::stop).flat_map(|job| job.queues) {
            // One that was stopped already gives none.
            queues.resize_with(self.queue_sizes.len(), || None);
            let index = queue.index();
            queues[index] = Some(queue.into_queue());
        }
        queues
    }

    /// The configuration space, which a driver has read: it must be the same.
    fn state(&self) -> Remembered {
        remember(&self.config_space.as_slice())
    }

    fn restore(&mut self, state: &Remembered) -> Result<(), String> {
        let space: Vec<u8> = recall(state)?;
        if space == self.config_space { Ok(()) } else { Err("a disk of another size or kind".to_owned()) }
    }
}

#[cfg(test)]
#[path = "blk_tests.rs"]
mod tests;
