//! What a VM is to be, as plain data: from flags, from a TOML file, or from one over the other.
//!
//! Nothing is opened here; [`VmConfig::validate`] finds what can be found without opening anything.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::memory::{self, layout};
use crate::size::{self, Base, NotASize};
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
    pub memory: Option<Memory>,
    /// The console; default serial.
    pub console: Option<Console>,
    /// Block devices, in the guest's order.
    pub disk: Vec<blk::Config>,
    /// Network devices, in the guest's order.
    pub net: Vec<net::Config>,
    /// A vsock device, if there is to be one.
    pub vsock: Option<vsock::Config>,
    /// The memory balloon; default on, and off for memory of a pool or that is there from the
    /// start.
    pub balloon: Option<Balloon>,
    /// How the guest reaches virtio devices; default pci for bothy's own kernel and mmio for
    /// another one.
    pub transport: Option<Transport>,
}

/// Where the guest's console is.
///
/// Measured in the emulated host: 200 kB of lines make 312,000 exits by the serial port and 17,000
/// to 39,000 by virtio, and take 1.5 to 18 times as long; a boot that says nothing makes 1.09 times
/// as many exits with virtio, which shows in no median of its time (six each). That speaks for
/// virtio, and what Linux makes of it against: while nobody reads what a guest says (Ctrl-S, a
/// pager) its driver waits in a loop with interrupts off, so that a machine of one processor stands
/// still as a whole, where a serial port stops the writer alone; and it takes each Ctrl-O for the
/// beginning of a SysRq. So the serial port remains the default, of bothy's own guest as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Console {
    /// A serial port, wired to standard input and output.
    #[default]
    Serial,
    /// A virtio console, wired to them likewise, and a serial port beside it for what the kernel
    /// says before it finds the console.
    Virtio,
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

/// How the guest reaches virtio devices.
///
/// Measured in the emulated host: with PCI a guest reads and writes 1.2 to 1.7 times as much at a
/// time (an interrupt takes it no exit, and with MMIO it takes two to user space), and it boots in
/// 1.07 times the time (four devices are 1,170 exits more). So what bothy brings itself uses PCI; a
/// kernel of somebody else's may have none, and MMIO is what every virtual machine monitor of this
/// kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Registers in memory, and a line of the IOAPIC for each device.
    Mmio,
    /// A PCI bus, with MSI-X.
    Pci,
}

/// An amount of memory in whole MiB, rounded up, written like `512M`, `1.5G` or `536870912`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemorySize {
    mib: u64,
}

/// Memory and what it is made of, written like `2G` or `2G,hugepages=2M,shared,prefault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Memory {
    size: MemorySize,
    backing: memory::Backing,
}

impl From<MemorySize> for Memory {
    fn from(size: MemorySize) -> Self {
        Self { size, backing: memory::Backing::default() }
    }
}

impl FromStr for Memory {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = text.split(',');
        let mut memory = Self::from(words.next().unwrap_or_default().parse::<MemorySize>()?);
        for word in words {
            match word {
                "shared" => memory.backing.shared = true,
                "prefault" => memory.backing.prefault = true,
                "hugepages=thp" => memory.backing.pages = memory::Pages::Transparent,
                "hugepages=2M" => memory.backing.pages = memory::Pages::Pool(2),
                "hugepages=1G" => memory.backing.pages = memory::Pages::Pool(1024),
                _ => return Err(ConfigError::NotABacking(word.to_owned())),
            }
        }
        Ok(memory)
    }
}

impl TryFrom<String> for Memory {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        let mut text = memory.size.to_string();
        match memory.backing.pages {
            memory::Pages::Transparent => {}
            memory::Pages::Pool(1024) => text += ",hugepages=1G",
            memory::Pages::Pool(mib) => text += &format!(",hugepages={mib}M"),
        }
        text += if memory.backing.shared { ",shared" } else { "" };
        text += if memory.backing.prefault { ",prefault" } else { "" };
        text
    }
}

/// What is wrong with a [`VmConfig`], by the name of the flag.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a size.
    #[error(transparent)]
    NotASize(#[from] NotASize),
    /// So few that somebody has left out the unit.
    #[error("`{text}` is {bytes} bytes; add a unit, like {text}M or {text}G")]
    Bytes {
        /// What was given.
        text: String,
        /// How many that is.
        bytes: u64,
    },
    /// Not something that memory can be made of.
    #[error("{0:?} is none of hugepages=2M, hugepages=1G, hugepages=thp, shared and prefault")]
    NotABacking(String),
    /// No whole number of huge pages.
    #[error("--memory: {size} is not a multiple of its huge pages of {page}M")]
    PartOfAPage {
        /// What was asked for.
        size: MemorySize,
        /// Size of a page, in MiB.
        page: u64,
    },
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
    #[error("--disk and --net: {count} devices are more than the {max} that this VM can have")]
    TooManyDevices {
        /// What was asked for.
        count: usize,
        /// What there is room for.
        max: usize,
    },
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
        match size::parse(text, Base::Binary)? {
            bytes @ 1..0x10_0000 => Err(ConfigError::Bytes { text: text.to_owned(), bytes }),
            bytes => Ok(Self { mib: bytes.div_ceil(1 << 20) }),
        }
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
    /// `flags` over `self`: what was given as a flag wins, and a list that was given at all
    /// replaces the whole list.
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
            transport: flags.transport.or(self.transport),
        }
    }

    /// vCPUs. Within bounds once [`validate`](Self::validate) has passed.
    pub fn cpus(&self) -> u8 {
        self.cpus.and_then(|cpus| u8::try_from(cpus).ok()).unwrap_or(1)
    }

    /// Memory in MiB.
    pub fn memory_mib(&self) -> u64 {
        self.memory.map_or(DEFAULT_MEMORY, |memory| memory.size).mib
    }

    /// What memory is made of.
    pub fn backing(&self) -> memory::Backing {
        self.memory.map(|memory| memory.backing).unwrap_or_default()
    }

    /// The console.
    pub fn console(&self) -> Console {
        self.console.unwrap_or_default()
    }

    /// The memory balloon. Memory that was taken as a whole is kept as a whole, unless it is asked
    /// for: what goes back to a pool of huge pages may be gone when the guest wants it again, and
    /// that ends the VM.
    pub fn balloon(&self) -> Balloon {
        let backing = self.backing();
        let is_kept = backing.prefault || backing.pages != memory::Pages::Transparent;
        self.balloon.unwrap_or(if is_kept { Balloon::Off } else { Balloon::On })
    }

    /// How the guest reaches virtio devices.
    pub fn transport(&self) -> Transport {
        self.transport.unwrap_or(if self.kernel.is_none() { Transport::Pci } else { Transport::Mmio })
    }

    /// How many virtio devices there are besides disks and network devices; the entropy device is
    /// always there.
    fn other_devices(&self) -> usize {
        let others =
            [self.vsock.is_some(), self.console() == Console::Virtio, self.balloon() != Balloon::Off];
        1 + others.into_iter().filter(|is_there| *is_there).count()
    }

    /// Finds everything that is wrong without opening anything. `host_mib` is the host's memory.
    pub fn validate(&self, host_mib: u64) -> Result<(), ConfigError> {
        let memory = self.memory.map_or(DEFAULT_MEMORY, |memory| memory.size);
        if !(memory::MIN_MIB..=memory::MAX_MIB).contains(&memory.mib) {
            return Err(ConfigError::MemoryRange(memory));
        }
        if memory.mib > host_mib {
            return Err(ConfigError::MemoryExceedsHost { wanted: memory, host_mib });
        }
        if let memory::Pages::Pool(page) = self.backing().pages
            && !memory.mib.is_multiple_of(page)
        {
            return Err(ConfigError::PartOfAPage { size: memory, page });
        }
        let cpus = self.cpus.unwrap_or(1);
        if !(1..=u32::from(MAX_VCPUS)).contains(&cpus) {
            return Err(ConfigError::Cpus(cpus));
        }
        let count = self.disk.len() + self.net.len();
        let max = layout::VIRTIO_GSIS.len() - self.other_devices();
        if count > max {
            return Err(ConfigError::TooManyDevices { count, max });
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
        for (text, mib) in [
            ("32M", 32),
            ("2G", 2048),
            ("1.5g", 1536),
            ("1T", 1 << 20),
            ("536870912", 512),
            ("536870913", 513),
            ("0M", 0),
        ] {
            assert_eq!(text.parse::<MemorySize>().unwrap().mib(), mib);
        }
        for text in ["", "M", "-1M", "G1", "99999999999999999999G"] {
            assert!(matches!(text.parse::<MemorySize>(), Err(ConfigError::NotASize(_))), "{text}");
        }
        let message = "512".parse::<MemorySize>().unwrap_err().to_string();
        assert_eq!(message, "`512` is 512 bytes; add a unit, like 512M or 512G");
    }

    #[test]
    fn memory_is_a_size_and_what_it_is_made_of() {
        let text = "2048M,hugepages=2M,shared,prefault";
        let memory: Memory = text.parse().unwrap();
        assert_eq!(String::from(memory), text);
        assert_eq!("1G,hugepages=thp".parse::<Memory>().unwrap(), "1024M".parse().unwrap());
        assert_eq!(String::from("2G,hugepages=1G".parse::<Memory>().unwrap()), "2048M,hugepages=1G");
        for (text, word) in [("1G,", ""), ("1G,hugepages=4M", "hugepages=4M"), ("1G,shared=on", "shared=on")]
        {
            assert_eq!(text.parse::<Memory>(), Err(ConfigError::NotABacking(word.to_owned())));
        }
        assert!("shared".parse::<Memory>().is_err());
        let config = |memory: &str| VmConfig { memory: Some(memory.parse().unwrap()), ..Default::default() };
        assert!(matches!(config("513M,hugepages=2M").validate(4096), Err(ConfigError::PartOfAPage { .. })));
        assert!(matches!(config("1536M,hugepages=1G").validate(4096), Err(ConfigError::PartOfAPage { .. })));
        assert_eq!(config("1G,hugepages=1G").validate(4096), Ok(()));
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
