//! virtio-vsock (virtio 1.2 §5.10): byte streams between the guest and the host, by Unix sockets on
//! the host's side. One worker thread.
//!
//! - `packet` has the header;
//! - `connection` is one stream, with the credit that bounds what each side can make the other
//!   keep;
//! - `muxer` is the thread, with all streams and both queues;
//! - `greeting` and `host` are the sockets.
//!
//! A guest that connects to port P of context 2 reaches whoever listens at `PATH_P`; whoever
//! connects to `PATH` and says `CONNECT P` reaches port P of the guest. No kernel module and no
//! right is needed. The device owns its thread, the listening socket, an epoll set and a descriptor
//! per connection; it opens nothing but those sockets. A driver that resets the device loses all
//! connections.
//!
//! Only streams are offered, no datagrams and no seqpackets, and nothing is sent on the event
//! queue: a VM doesn't change its context id.

mod connection;
mod greeting;
mod host;
mod muxer;
mod packet;
#[cfg(test)]
mod testing;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::host::{Listener, Place};
use self::muxer::{Muxer, Queues};
use super::core::device::{Activation, VirtioDevice, read_config_bytes};
use super::core::queue::Queue;
use super::core::spec::{feature, id};
use super::core::state::{Remembered, recall, remember};
use super::core::worker::{Stop, Worker};
use crate::bounded_log::BoundedLog;
use crate::thread::Spawner;

const QUEUE_SIZE: u16 = 256;
const EVENT_QUEUE_SIZE: u16 = 16;
/// The guest's context id where none is said; 0 to 2 stand for others (§5.10.4).
const DEFAULT_CID: u32 = 3;
/// What a socket's path may have, less `_4294967295` behind it (unix(7)).
const MAX_PATH: usize = 107 - 11;

/// What a vsock device is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The Unix socket on which the host reaches the guest.
    pub path: PathBuf,
    /// The guest's context id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cid: Option<u32>,
}

/// What can be wrong with a [`Config`] before anything is opened.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A context id that isn't a guest's.
    #[error("cid={0}: a guest's context id is 3 to 4294967294")]
    Cid(u32),
    /// A path that doesn't fit into a socket's address.
    #[error("the path of a socket has 1 to {MAX_PATH} bytes, {0:?} has {len}", len = .0.as_os_str().len())]
    Path(PathBuf),
}

impl Config {
    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(DEFAULT_CID..u32::MAX).contains(&self.cid()) {
            return Err(ConfigError::Cid(self.cid()));
        }
        if !(1..=MAX_PATH).contains(&self.path.as_os_str().len()) {
            return Err(ConfigError::Path(self.path.clone()));
        }
        Ok(())
    }

    /// The guest's context id.
    pub fn cid(&self) -> u32 {
        self.cid.unwrap_or(DEFAULT_CID)
    }

    /// Begins to listen at the path. The caller removes the socket, by [`Listener::place`].
    pub fn listen(&self) -> io::Result<Listener> {
        Listener::new(&self.path)
    }
}

/// The device.
pub struct Vsock {
    cid: u64,
    worker: Worker<Queues>,
    /// The driver goes on after a pause, and has to hear that its connections are gone.
    lost_connections: bool,
}

impl Vsock {
    /// `name` is the thread's name and stands in the log, e.g. `vsock0`.
    pub fn new(config: &Config, listener: Listener, name: &str, spawner: &Spawner) -> io::Result<Self> {
        let cid = u64::from(config.cid());
        let mut muxer = Muxer::new(cid, listener, BoundedLog::new(name))?;
        let worker = Worker::spawn(name, spawner, move |mut queues: Queues, stop: &Stop| {
            muxer.run(&mut queues, stop);
            queues
        })?;
        Ok(Self { cid, worker, lost_connections: false })
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> u32 {
        id::VSOCK
    }

    fn features(&self) -> u64 {
        feature::RING
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `struct virtio_vsock_config` (§5.10.4).
        read_config_bytes(&self.cid.to_le_bytes(), offset, data);
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let mut queues = activation.queues.into_iter();
        let mut next = || queues.next().flatten();
        let [rx, tx, event] = [next(), next(), next()];
        let reset_due = std::mem::take(&mut self.lost_connections);
        self.worker.start(Queues { rx, tx, event, reset_due });
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        let back = |queues: Queues| {
            [queues.rx, queues.tx, queues.event].map(|queue| queue.map(|queue| queue.into_queue()))
        };
        self.worker.stop().map(back).map(Vec::from).unwrap_or_default()
    }

    /// What a driver has read, which must be the same.
    fn state(&self) -> Remembered {
        remember(&self.cid)
    }

    /// No connection outlives a stop, so that the driver is told so when it goes on.
    fn restore(&mut self, state: &Remembered) -> Result<(), String> {
        if recall::<u64>(state)? != self.cid {
            return Err("a guest with another context id".to_owned());
        }
        self.lost_connections = true;
        Ok(())
    }
}

#[cfg(test)]
#[path = "vsock_tests.rs"]
mod tests;
