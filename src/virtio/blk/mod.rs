//! virtio-blk (virtio 1.2 §5.2): a [`Disk`] for the guest. One queue, one worker thread.
//!
//! - [`disk`] is the backend, with no word of virtio in it;
//! - `request` translates a chain into calls of it.
//!
//! The device owns its thread and, through the disk, one file descriptor. Requests are served one after the other, in order.
//! What a driver wrote and didn't flush is flushed when the device stops.

pub mod disk;
mod request;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::disk::{Disk, OpenError};
use self::request::Server;
use super::core::active::{ActiveQueue, Notify};
use super::core::device::{Activation, VirtioDevice, read_config_bytes};
use super::core::guest_log::GuestLog;
use super::core::iovec::IoVecs;
use super::core::queue::Queue;
use super::core::spec::{blk, feature, id};
use super::core::worker::{Stop, Worker};
use crate::thread::Spawner;

const QUEUE_SIZE: u16 = 256;
/// Data segments of the largest request: a chain has at most the queue's size, and header and status take one each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// What a disk is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A disk image or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    #[serde(default, alias = "ro", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// What the guest finds it by (`/dev/disk/by-id`, `/sys/block/vda/serial`): up to 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// What can be wrong with a [`Config`] before anything is opened.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// An empty path.
    #[error("a disk needs a path")]
    NoPath,
    /// The protocol has 20 bytes for it (virtio 1.2 §5.2.6).
    #[error("disk id \"{0}\" is empty or longer than 20 bytes")]
    IdLength(String),
    /// udev and the kernel make names of files from it.
    #[error("disk id \"{}\" has characters other than letters, digits, '-', '_' and '.'", .0.escape_debug())]
    IdCharacters(String),
}

impl Config {
    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.path.as_os_str().is_empty() {
            return Err(ConfigError::NoPath);
        }
        let Some(id) = &self.id else { return Ok(()) };
        if id.is_empty() || id.len() > blk::ID_LEN {
            return Err(ConfigError::IdLength(id.clone()));
        }
        if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(ConfigError::IdCharacters(id.clone()));
        }
        Ok(())
    }
}

/// What the worker gets at `start` and gives back at `stop`.
struct Job {
    queue: ActiveQueue,
    write_through: bool,
}

/// The device.
pub struct Block {
    features: u64,
    config_space: [u8; 24],
    worker: Worker<Job>,
}

impl Block {
    /// A disk for the guest. `name` is its thread's name and stands in the log, e.g. `blk0`; it is also the id of a disk that
    /// was given none.
    pub fn new(config: &Config, disk: Disk, name: &str, spawner: &Spawner) -> io::Result<Self> {
        let read_only = if disk.read_only() { blk::F_RO } else { 0 };
        let features = feature::RING | blk::F_FLUSH | blk::F_SEG_MAX | blk::F_BLK_SIZE | read_only;
        let config_space = config_space(&disk);
        let mut id = [0; blk::ID_LEN];
        for (to, from) in id.iter_mut().zip(config.id.as_deref().unwrap_or(name).bytes()) {
            *to = from;
        }
        let mut server = Server { disk, id, log: GuestLog::new(name), dirty: false };
        let worker = Worker::spawn(name, spawner, move |mut job: Job, stop: &Stop| {
            let mut iovs = IoVecs::default();
            let write_through = job.write_through;
            job.queue.run(stop, Notify::EachChain, |chain, mem| {
                server.serve(chain, mem, &mut iovs, write_through)
            });
            server.flush_at_stop();
            job
        })?;
        Ok(Self { features, config_space, worker })
    }
}

/// `struct virtio_blk_config` (§5.2.4) as far as the features that are offered reach.
fn config_space(disk: &Disk) -> [u8; 24] {
    let mut space = [0; 24];
    space[0..8].copy_from_slice(&(disk.len() / blk::SECTOR_SIZE).to_le_bytes()); // capacity
    space[12..16].copy_from_slice(&SEG_MAX.to_le_bytes()); // seg_max
    space[20..24].copy_from_slice(&512_u32.to_le_bytes()); // blk_size
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
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config_space, offset, data);
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        // §5.2.6.2: a driver without FLUSH takes every completed write for durable.
        let write_through = activation.features & blk::F_FLUSH == 0;
        if let Some(queue) = activation.queues.into_iter().next().flatten() {
            self.worker.start(Job { queue, write_through });
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        self.worker.stop().map(|job| vec![Some(job.queue.into_queue())]).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "blk_tests.rs"]
mod tests;
