//! What a VM is to be, as plain data: from flags, from a TOML file, or from one over the other.
//!
//! Nothing is opened here; [`VmConfig::validate`] finds what can be found without opening anything.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::memory::{self, layout};
use crate::vcpu::MAX_VCPUS;
use crate::virtio::{blk, net, vsock};

/// A VM, with everything that was said about it. `None` stands for the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// The kernel; bothy's own guest without one.
    pub kernel: Option<PathBuf>,
    /// The initramfs; that of bothy's own guest, if its kernel is used too.
    pub initrd: Option<PathBuf>,
    /// Added to the kernel's command line.
    pub append: Option<String>,
    /// vCPUs, 1 to 64; default 1.
    pub cpus: Option<u32>,
    /// Memory; default 512M.
    pub memory: Option<MemorySize>,
    /// The console; default serial.
    pub console: Option<Console>,
    /// Block devices, in the guest's order.
    pub disk: Vec<blk::Config>,
    /// Network devices, in the guest's order.
    pub net: Vec<net::Config>,
    /// A vsock device, if there is to be one.
    pub vsock: Option<vsock::Config>,
    /// The memory balloon; default on.
    pub balloon: Option<Balloon>,
}

/// Where the guest's console is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Console {
    /// A serial port, wired to standard input and output.
    #[default]
    Serial,
    /// There is none.
    None,
}

/// Whether memory that the guest doesn't need goes back to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balloon {
    /// It does.
    #[default]
    On,
    /// It stays with the VM.
    Off,
}

/// An amount of memory in whole MiB, written like `512M` or `2G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemorySize {
    mib: u64,
}

/// What is wrong with a [`VmConfig`], by the name of the flag.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a size.
    #[error("{0:?} is not a memory size: write a number and a unit, like 512M or 2G")]
    NotASize(String),
    /// Less or more than a VM can have.
    #[error("--memory: {0} is outside {min}M to {max}G", min = memory::MIN_MIB, max = memory::MAX_MIB >> 10)]
    MemoryRange(MemorySize),
    /// More than the host has.
    #[error("--memory: {wanted} is more than the {host_mib}M that this host has: ask for less")]
    MemoryExceedsHost {
        /// What was asked for.
        wanted: MemorySize,
        /// What there is, in MiB.
        host_mib: u64,
    },
    /// No vCPU, or too many.
    #[error("--cpus: {0} is outside 1 to {MAX_VCPUS}")]
    Cpus(u32),
    /// More devices than there are interrupts.
    #[error("--disk and --net: {0} devices are more than the {max} that a VM can have", max = MAX_DEVICES)]
    TooManyDevices(usize),
    /// A disk is wrong.
    #[error("--disk: {0}")]
    Disk(String),
    /// A network device is wrong.
    #[error("--net: {0}")]
    Net(String),
    /// The vsock device is wrong.
    #[error("--vsock: {0}")]
    Vsock(#[from] vsock::ConfigError),
}

/// Disks and network devices together; three more interrupts belong to the entropy device, the vsock device and the balloon.
pub const MAX_DEVICES: usize = layout::VIRTIO_GSIS.len() - 3;

const DEFAULT_MEMORY: MemorySize = MemorySize { mib: 512 };

impl MemorySize {
    /// The amount in MiB.
    pub fn mib(self) -> u64 {
        self.mib
    }
}

impl FromStr for MemorySize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let malformed = || ConfigError::NotASize(text.to_owned());
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let factor = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "M" | "MB" | "MIB" => 1,
            "G" | "GB" | "GIB" => 1024,
            _ => return Err(malformed()),
        };
        let number: u64 = digits.parse().map_err(|_| malformed())?;
        let mib = number.checked_mul(factor).ok_or_else(malformed)?;
        Ok(Self { mib })
    }
}

impl TryFrom<String> for MemorySize {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<MemorySize> for String {
    fn from(size: MemorySize) -> Self {
        size.to_string()
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.mib)
    }
}

impl VmConfig {
    /// `flags` over `self`: what was given as a flag wins, and a list that was given at all replaces the whole list.
    pub fn overridden_by(self, flags: Self) -> Self {
        Self {
            kernel: flags.kernel.or(self.kernel),
            initrd: flags.initrd.or(self.initrd),
            append: flags.append.or(self.append),
            cpus: flags.cpus.or(self.cpus),
            memory: flags.memory.or(self.memory),
            console: flags.console.or(self.console),
            disk: if !flags.disk.is_empty() { flags.disk } else { self.disk },
            net: if !flags.net.is_empty() { flags.net } else { self.net },
            vsock: flags.vsock.or(self.vsock),
            balloon: flags.balloon.or(self.balloon),
        }
    }

    /// vCPUs. Within bounds once [`validate`](Self::validate) has passed.
    pub fn cpus(&self) -> u8 {
        self.cpus.and_then(|cpus| u8::try_from(cpus).ok()).unwrap_or(1)
    }

    /// Memory in MiB.
    pub fn memory_mib(&self) -> u64 {
        self.memory.unwrap_or(DEFAULT_MEMORY).mib
    }

    /// The console.
    pub fn console(&self) -> Console {
        self.console.unwrap_or_default()
    }

    /// The memory balloon.
    pub fn balloon(&self) -> Balloon {
        self.balloon.unwrap_or_default()
    }

    /// Finds everything that is wrong without opening anything. `host_mib` is the host's memory.
    pub fn validate(&self, host_mib: u64) -> Result<(), ConfigError> {
        let memory = self.memory.unwrap_or(DEFAULT_MEMORY);
        if !(memory::MIN_MIB..=memory::MAX_MIB).contains(&memory.mib) {
            return Err(ConfigError::MemoryRange(memory));
        }
        if memory.mib > host_mib {
            return Err(ConfigError::MemoryExceedsHost { wanted: memory, host_mib });
        }
        let cpus = self.cpus.unwrap_or(1);
        if !(1..=u32::from(MAX_VCPUS)).contains(&cpus) {
            return Err(ConfigError::Cpus(cpus));
        }
        let devices = self.disk.len() + self.net.len();
        if devices > MAX_DEVICES {
            return Err(ConfigError::TooManyDevices(devices));
        }
        for disk in &self.disk {
            disk.validate().map_err(|error| ConfigError::Disk(error.to_string()))?;
        }
        for net in &self.net {
            net.validate().map_err(|error| ConfigError::Net(error.to_string()))?;
        }
        if let Some(vsock) = &self.vsock {
            vsock.validate()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        for (text, mib) in [("32M", 32), ("2G", 2048), ("1gib", 1024), ("512MiB", 512), ("0M", 0)] {
            assert_eq!(text.parse::<MemorySize>().unwrap().mib(), mib);
        }
        for text in
            ["", "M", "512", "1T", "-1M", "1.5G", "G1", "99999999999999999999G", "18446744073709551615G"]
        {
            assert_eq!(text.parse::<MemorySize>(), Err(ConfigError::NotASize(text.to_owned())));
        }
    }

    #[test]
    fn bounds_are_held() {
        let config = |memory: &str, cpus| VmConfig {
            memory: Some(memory.parse().unwrap()),
            cpus: Some(cpus),
            ..Default::default()
        };
        assert_eq!(config("32M", 64).validate(1024), Ok(()));
        assert!(matches!(config("31M", 1).validate(1024), Err(ConfigError::MemoryRange(_))));
        assert!(matches!(config("0M", 1).validate(1024), Err(ConfigError::MemoryRange(_))));
        assert!(matches!(config("2G", 1).validate(1024), Err(ConfigError::MemoryExceedsHost { .. })));
        assert_eq!(config("32M", 0).validate(1024), Err(ConfigError::Cpus(0)));
        assert_eq!(config("32M", 65).validate(1024), Err(ConfigError::Cpus(65)));
        assert_eq!(config("32M", 1000).validate(1024), Err(ConfigError::Cpus(1000)));
    }

    #[test]
    fn toml_is_the_same_vm_and_unknown_keys_are_refused() {
        let text = "cpus = 2\nmemory = \"1G\"\nconsole = \"none\"\n[[disk]]\npath = \"a.img\"\n[[net]]\ntap = \"tap0\"\n";
        let config: VmConfig = toml::from_str(text).unwrap();
        assert_eq!((config.cpus(), config.memory_mib(), config.console()), (2, 1024, Console::None));
        assert_eq!((config.disk.len(), config.net.len()), (1, 1));
        let error = toml::from_str::<VmConfig>("cpu = 2\n").unwrap_err().to_string();
        assert!(error.contains("cpu"), "{error}");
        assert!(toml::from_str::<VmConfig>("[[disk]]\npath = \"a\"\nsize = 1\n").is_err());
        assert!(toml::from_str::<VmConfig>("memory = \"lots\"\n").unwrap_err().to_string().contains("512M"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: VmConfig =
            toml::from_str("cpus = 2\nmemory = \"1G\"\n[[disk]]\npath = \"a.img\"\n").unwrap();
        let flags = VmConfig { cpus: Some(4), ..Default::default() };
        let both = file.clone().overridden_by(flags);
        assert_eq!((both.cpus(), both.memory_mib(), both.disk.len()), (4, 1024, 1));
        let other: VmConfig =
            toml::from_str("[[disk]]\npath = \"b.img\"\n[[disk]]\npath = \"c.img\"\n").unwrap();
        assert_eq!(file.overridden_by(other).disk.len(), 2);
    }
}
