//! virtio-net (virtio 1.2 §5.1): a network of the host's for the guest. One worker thread for each
//! queue pair.
//!
//! - `port` is the host's side as the device sees it, and [`tap`] is one;
//! - `pump` moves packets between a port and the queues;
//! - `control` is how the driver says how many pairs it uses;
//! - `offload` is what of the work on packets is left to the other side: checksums and
//!   segmentation, in both directions.
//!
//! An interface that vanishes from the host is a link that is down for the guest. The device owns
//! its threads and, through the ports, its file descriptors. What the guest uses as its IP address
//! is in [`Config`] for the guest's init to take; the device itself doesn't look at it.

mod control;
mod held;
mod interface;
mod offload;
mod port;
mod pump;
pub mod tap;
#[cfg(test)]
mod testing;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU64};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bothy_guest::addr::{IpPrefix, MacAddr};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use self::control::Pairs;
use self::offload::Offloads;
use self::port::Port;
pub use self::port::Ports;
use self::pump::{Job, Pump};
pub use self::tap::{OpenError, Tap};
use super::core::active::{ActiveQueue, Notify};
use super::core::device::{Activation, VirtioDevice, read_config_bytes};
use super::core::limit::{self, Throttle};
use super::core::queue::Queue;
use super::core::spec::{feature, id, net};
use super::core::state::{Remembered, recall, remember};
use super::core::worker::{Stop, Worker};
use crate::bounded_log::BoundedLog;
use crate::size::Base;
use crate::thread::Spawner;

const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 16;
/// The most commands of the control queue in a second: a driver has one or two when it starts.
const MAX_COMMANDS: u64 = 40;
/// The most queue pairs of a device: one for each of the most vCPUs.
pub const MAX_QUEUES: u16 = 64;

/// What a network device is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What is behind it on the host.
    #[serde(rename = "tap")]
    pub backend: Backend,
    /// The guest's Ethernet address; one that depends on the tap's name where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Queue pairs, 1 to [`MAX_QUEUES`], each with a thread of its own; default 1. Several take a
    /// tap with `multi_queue`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<NonZeroU16>,
    /// The most bits in a second, in each direction; without limit where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<BitRate>,
    /// The guest's IP address, for its init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpPrefix>,
    /// The guest's default gateway, for its init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The guest's name server, for its init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<IpAddr>,
}

/// What is behind a network device on the host; in words the tap's name, or `auto`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Backend {
    /// The tap of this name, which must exist.
    Tap(String),
    /// A tap of the VM's own.
    OwnTap,
}

const OWN_TAP: &str = "auto";

impl Backend {
    fn as_str(&self) -> &str {
        match self {
            Self::Tap(name) => name,
            Self::OwnTap => OWN_TAP,
        }
    }
}

impl Default for Backend {
    /// A name that is none.
    fn default() -> Self {
        Self::Tap(String::new())
    }
}

impl From<String> for Backend {
    fn from(text: String) -> Self {
        if text == OWN_TAP { Self::OwnTap } else { Self::Tap(text) }
    }
}

impl From<Backend> for String {
    fn from(backend: Backend) -> Self {
        backend.as_str().to_owned()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bits in a second, written with a unit like `500K`, `100M` or `10G` (of 1000, as networks count).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BitRate(NonZeroU64);

impl BitRate {
    fn bytes_per_second(self) -> u64 {
        self.0.get() / 8
    }
}

impl FromStr for BitRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        limit::parse_amount(text, Base::Decimal).map(Self)
    }
}

impl TryFrom<String> for BitRate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BitRate> for String {
    fn from(rate: BitRate) -> Self {
        rate.0.to_string()
    }
}

/// What can be wrong with a [`Config`] before anything is opened.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The kernel takes 1 to 15 bytes, and no slash, colon or space.
    #[error("\"{}\" can't be the name of a network interface", .0.escape_debug())]
    Name(String),
    /// A group's address, or none.
    #[error("{0} can't be the address of one machine (the first byte must be even, e.g. 02)")]
    Mac(MacAddr),
    /// More than there can be vCPUs.
    #[error("queues={0} is outside 1 to {MAX_QUEUES}")]
    Queues(u16),
    /// A gateway or a name server for a guest without an address.
    #[error("{0}= needs ip= as well")]
    NoIp(&'static str),
    /// A gateway that the guest could not reach.
    #[error("the gateway {gw} is not in the network of {ip}")]
    Gateway { gw: IpAddr, ip: IpPrefix },
}

impl Config {
    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let name = self.backend.as_str();
        let printable = name.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || !printable || name == "." || name == ".." {
            return Err(ConfigError::Name(name.to_owned()));
        }
        if let Some(mac) = self.mac.filter(|mac| !mac.is_unicast()) {
            return Err(ConfigError::Mac(mac));
        }
        if self.queues() > MAX_QUEUES {
            return Err(ConfigError::Queues(self.queues()));
        }
        match (self.ip, self.gw, self.dns) {
            (None, Some(_), _) => Err(ConfigError::NoIp("gw")),
            (None, None, Some(_)) => Err(ConfigError::NoIp("dns")),
            (Some(ip), Some(gw), _) if !ip.contains(gw) => Err(ConfigError::Gateway { gw, ip }),
            _ => Ok(()),
        }
    }

    /// Queue pairs.
    pub fn queues(&self) -> u16 {
        self.queues.map_or(1, NonZeroU16::get)
    }

    /// The guest's Ethernet address.
    pub fn mac(&self) -> MacAddr {
        self.mac.unwrap_or_else(|| default_mac(self.backend.as_str()))
    }
}

/// The address of a guest that was given none: the same for the same tap each time, locally
/// administered, and its own.
fn default_mac(tap: &str) -> MacAddr {
    // FNV-1a: fixed for all time, which the standard library's hash is not.
    let hash = tap.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_le_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

/// The device.
pub struct Net {
    mac: MacAddr,
    mtu: u16,
    features: u64,
    queue_sizes: Vec<u16>,
    link: Arc<AtomicBool>,
    pairs: Arc<Pairs>,
    /// One for each pair.
    workers: Vec<Worker<Job>>,
    /// Where there are several pairs.
    control: Option<Worker<ActiveQueue>>,
    /// Which queue it serves.
    control_index: usize,
    /// How many pairs the driver uses when the device starts: one, unless it goes on after a pause.
    first_count: usize,
}

impl Net {
    /// A network device for the guest. `name` is its thread's name and stands in the log, e.g.
    /// `net0`. Where there are several pairs their threads are `net0.q0` and so on.
    pub fn new(config: &Config, ports: Ports, name: &str, spawner: &Spawner) -> io::Result<Self> {
        let mut features =
            feature::RING | net::F_MAC | net::F_MTU | net::F_STATUS | offload::offered(ports.has_uso);
        let mtu = ports.mtu;
        let limit = || Arc::new(Throttle::new(None, config.rate.map(BitRate::bytes_per_second)));
        let limits = [limit(), limit()];
        let log = |name: &str| BoundedLog::new(format!("{name} ({})", config.backend));
        let with_wake = |port| {
            let evt = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            Ok((port, Arc::new(evt)))
        };
        let queues = ports.ports.into_iter().map(with_wake).collect::<io::Result<Vec<_>>>()?;
        let several = queues.len() > 1;
        let worker = |(index, queue): (usize, &(Arc<dyn Port>, Arc<EventFd>))| {
            let name = if several { format!("{name}.q{index}") } else { name.to_owned() };
            let mut pump = Pump::new(queue.clone(), mtu, index == 0, log(&name), limits.clone());
            Worker::spawn(&name, spawner, move |mut job: Job, stop: &Stop| {
                pump.run(&mut job, stop);
                job
            })
        };
        let workers = queues.iter().enumerate().map(worker).collect::<io::Result<Vec<_>>>()?;
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * queues.len()];
        let pairs = Arc::new(Pairs::new(queues, log(name)));
        let mut control = None;
        if several {
            features |= net::F_MQ | net::F_CTRL_VQ;
            queue_sizes.push(CONTROL_QUEUE_SIZE);
            let pairs = pairs.clone();
            // What a command does waits for all of the host's network.
            let throttle = Arc::new(Throttle::new(Some(MAX_COMMANDS), None));
            let serve = move |mut queue: ActiveQueue, stop: &Stop| {
                queue.limit(throttle.clone());
                queue.run(stop, Notify::EachChain, |chain, mem| pairs.obey(chain, mem));
                queue
            };
            control = Some(Worker::spawn(&format!("{name}.ctrl"), spawner, serve)?);
        }
        let link = Arc::new(AtomicBool::new(true));
        Ok(Self {
            mac: config.mac(),
            mtu,
            features,
            queue_sizes,
            link,
            pairs,
            workers,
            control,
            control_index: 2,
            first_count: 1,
        })
    }
}

/// What a driver has read, which must be the same, and how many pairs it uses.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Driver {
    mac: MacAddr,
    mtu: u16,
    pairs: usize,
}

impl VirtioDevice for Net {
    fn kind(&self) -> u32 {
        id::NET
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `struct virtio_net_config` (§5.1.4) as far as the features that are offered reach.
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.mac.0);
        let status = if self.link.load(Ordering::Relaxed) { net::S_LINK_UP } else { 0 };
        space[6..8].copy_from_slice(&status.to_le_bytes());
        let pairs = u16::try_from(self.workers.len()).expect("MAX_QUEUES at the most");
        space[8..10].copy_from_slice(&pairs.to_le_bytes());
        space[10..].copy_from_slice(&self.mtu.to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let mut queues = activation.queues;
        // §5.1.2: behind the pairs that there are, or behind the only one that a driver without MQ
        // knows of.
        self.control_index = if activation.features & net::F_MQ != 0 { 2 * self.workers.len() } else { 2 };
        let control = queues.get_mut(self.control_index).and_then(Option::take);
        // Until the driver says otherwise.
        self.pairs.set_count(std::mem::replace(&mut self.first_count, 1));
        if let (Some(worker), Some(queue)) = (&mut self.control, control) {
            worker.start(queue);
        }
        let offloads = Offloads::new(activation.features);
        let mut queues = queues.into_iter();
        for worker in &mut self.workers {
            let (rx, tx) = (queues.next().flatten(), queues.next().flatten());
            let (link, change) = (self.link.clone(), activation.config_change.clone());
            let link_is_down = Box::new(move || {
                if link.load(Ordering::Relaxed) {
                    change.apply(|| link.store(false, Ordering::Relaxed));
                }
            });
            worker.start(Job { rx, tx, offloads, link_is_down });
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        let control = self.control.as_mut().and_then(|worker| worker.stop().map(ActiveQueue::into_queue));
        let back = |job: Job| [job.rx, job.tx].map(|queue| queue.map(ActiveQueue::into_queue));
        let mut queues: Vec<Option<Queue>> =
            self.workers.iter_mut().filter_map(|worker| worker.stop().map(back)).flatten().collect();
        // One that was stopped already gives nothing.
        if !queues.is_empty() {
            queues.resize_with(self.queue_sizes.len(), || None);
            if let Some(control) = control {
                queues[self.control_index] = Some(control);
            }
        }
        queues
    }

    fn state(&self) -> Remembered {
        remember(&Driver { mac: self.mac, mtu: self.mtu, pairs: self.pairs.count() })
    }

    fn restore(&mut self, state: &Remembered) -> Result<(), String> {
        let Driver { mac, mtu, pairs } = recall(state)?;
        if (mac, mtu) != (self.mac, self.mtu) {
            return Err(format!("an interface with address {mac} and MTU {mtu}"));
        }
        if !(1..=self.workers.len()).contains(&pairs) {
            return Err(format!("{pairs} queue pairs"));
        }
        self.first_count = pairs;
        Ok(())
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
