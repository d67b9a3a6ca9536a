//! A driver for virtio devices, by hand, over either transport: its registers, its rings, and the
//! requests of a disk and of an entropy device.

use std::path::Path;

use super::guest::{Guest, words};
use super::script::Script;
use crate::support::file;

// The registers of the MMIO transport.
pub(crate) const MAGIC: u32 = 0x000;
pub(crate) const DEVICE_FEATURES: u32 = 0x010;
pub(crate) const DEVICE_FEATURES_SEL: u32 = 0x014;
pub(crate) const DRIVER_FEATURES: u32 = 0x020;
pub(crate) const DRIVER_FEATURES_SEL: u32 = 0x024;
pub(crate) const QUEUE_SEL: u32 = 0x030;
pub(crate) const QUEUE_NUM_MAX: u32 = 0x034;
pub(crate) const QUEUE_NUM: u32 = 0x038;
pub(crate) const QUEUE_READY: u32 = 0x044;
pub(crate) const QUEUE_NOTIFY: u32 = 0x050;
pub(crate) const INTERRUPT_STATUS: u32 = 0x060;
pub(crate) const INTERRUPT_ACK: u32 = 0x064;
pub(crate) const STATUS: u32 = 0x070;
pub(crate) const QUEUE_DESC: u32 = 0x080;
pub(crate) const QUEUE_DRIVER: u32 = 0x090;
pub(crate) const QUEUE_DEVICE: u32 = 0x0a0;
pub(crate) const CONFIG: u32 = 0x100;

pub(crate) const NEEDS_RESET: u32 = 0x40;
pub(crate) const LIVE: u32 = 0xf;

pub(crate) const BLK_F_RO: u32 = 1 << 5;
pub(crate) const BLK_F_FLUSH: u32 = 1 << 9;
pub(crate) const BLK_IN: u32 = 0;
pub(crate) const BLK_OUT: u32 = 1;
pub(crate) const BLK_FLUSH: u32 = 4;
pub(crate) const BLK_GET_ID: u32 = 8;
pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;

/// A descriptor's flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// The feature that goes with it.
pub(crate) const F_INDIRECT: u32 = 1 << 28;

/// Descriptors of a queue here.
pub(crate) const SIZE: u16 = 8;
/// Where the avail ring is, from the queue's start, where the descriptors are.
pub(crate) const AVAIL: u32 = 0x200;
/// Where the used ring is.
pub(crate) const USED: u32 = 0x400;
/// A queue, and one for a second device.
pub(crate) const RING: u32 = 0x40_0000;
pub(crate) const OTHER_RING: u32 = 0x41_0000;
/// Headers, data and status bytes of requests.
pub(crate) const HEADER: u32 = 0x40_1000;
pub(crate) const STATUS_BYTE: u32 = 0x40_1800;
pub(crate) const DATA: u32 = 0x40_2000;
pub(crate) const OTHER_DATA: u32 = 0x41_2000;

/// How a guest reaches its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Mmio,
    Pci,
}

impl Transport {
    pub(crate) const BOTH: [Self; 2] = [Self::Mmio, Self::Pci];

    /// For `bothy boot`.
    pub(crate) fn args(self) -> [&'static str; 2] {
        ["--transport", if self == Self::Mmio { "mmio" } else { "pci" }]
    }

    pub(crate) fn device(self, number: u32) -> Device {
        Device { transport: self, number }
    }
}

/// A device, as its driver reaches it. A number alone is one behind MMIO.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    transport: Transport,
    number: u32,
}

impl From<u32> for Device {
    fn from(number: u32) -> Self {
        Transport::Mmio.device(number)
    }
}

impl Device {
    /// Where this is what the MMIO transport has at `offset`, and how many bytes a driver reads and
    /// writes there.
    fn register(self, offset: u32) -> (u32, u32) {
        if self.transport == Transport::Mmio {
            return (register(self.number, offset), 4);
        }
        let (at, len) = match offset {
            DEVICE_FEATURES_SEL => (0x00, 4),
            DEVICE_FEATURES => (0x04, 4),
            DRIVER_FEATURES_SEL => (0x08, 4),
            DRIVER_FEATURES => (0x0c, 4),
            STATUS => (pci::DEVICE_STATUS, 1),
            QUEUE_SEL => (pci::QUEUE_SELECT, 2),
            QUEUE_NUM => (0x18, 2),
            QUEUE_READY => (0x1c, 2),
            // The halves of the addresses.
            QUEUE_DESC.. => {
                (pci::QUEUE_DESC + (offset - QUEUE_DESC) % 16 + (offset - QUEUE_DESC) / 16 * 8, 4)
            }
            _ => panic!("PCI has nothing like {offset:#x}"),
        };
        (pci::bar(self.number) + at, len)
    }
}

/// The MMIO transport's.
pub(crate) fn register(device: u32, offset: u32) -> u32 {
    0xd000_0000 + device * 0x1000 + offset
}

/// Where things are of functions on the PCI bus. [`super::pci`] sees that the functions say the
/// same.
pub(crate) mod pci {
    // In the BAR: the common configuration.
    pub(crate) const CONFIG_VECTOR: u32 = 0x10;
    pub(crate) const NUM_QUEUES: u32 = 0x12;
    pub(crate) const DEVICE_STATUS: u32 = 0x14;
    pub(crate) const QUEUE_SELECT: u32 = 0x16;
    pub(crate) const QUEUE_VECTOR: u32 = 0x1a;
    pub(crate) const QUEUE_DESC: u32 = 0x20;
    pub(crate) const COMMON_LEN: u32 = 0x38;
    // And the rest.
    pub(crate) const ISR: u32 = 0x1000;
    pub(crate) const DEVICE_CONFIG: u32 = 0x2000;
    /// The doorbells: 4 bytes for each queue.
    pub(crate) const NOTIFY: u32 = 0x3000;
    /// 16 bytes for each vector: address, data, and whether it is masked.
    pub(crate) const MSIX_TABLE: u32 = 0x4000;
    pub(crate) const MSIX_PENDING: u32 = 0x5000;
    pub(crate) const BAR_LEN: u32 = 0x8000;

    // In the configuration space.
    pub(crate) const COMMAND: u32 = 0x04;
    pub(crate) const BAR0: u32 = 0x10;
    /// The message control word.
    pub(crate) const MSIX_CONTROL: u32 = 0x42;
    /// The capability that reaches the BAR through the configuration space.
    pub(crate) const ACCESS: u32 = 0x90;

    /// In COMMAND: the function answers at its addresses.
    pub(crate) const MEMORY: u16 = 1 << 1;
    /// In COMMAND: it may write to memory.
    pub(crate) const BUS_MASTER: u16 = 1 << 2;
    /// In MSIX_CONTROL.
    pub(crate) const MSIX_ENABLE: u16 = 1 << 15;
    /// In MSIX_CONTROL.
    pub(crate) const MSIX_MASK_ALL: u16 = 1 << 14;

    pub(crate) const NO_VECTOR: u16 = 0xffff;

    /// The configuration space of a function.
    pub(crate) fn space(device: u32) -> u32 {
        0xe000_0000 + device * 0x8000
    }

    pub(crate) fn bar(device: u32) -> u32 {
        0xc000_0000 + device * BAR_LEN
    }
}

/// Address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// A queue in memory, with these chains on offer.
pub(crate) fn ring(descriptors: &[Descriptor], heads: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (gpa, len, flags, next) in descriptors {
        bytes.extend(gpa.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
    }
    bytes.resize(AVAIL as usize, 0);
    bytes.extend([0, 0]);
    bytes.extend(u16::try_from(heads.len()).unwrap().to_le_bytes());
    bytes.extend(heads.iter().flat_map(|head| head.to_le_bytes()));
    bytes.resize(0x1000, 0);
    bytes
}

/// A queue's place, as the registers get it.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) size: u32,
    pub(crate) desc: u32,
    pub(crate) driver: u32,
    pub(crate) device: u32,
}

pub(crate) fn place(base: u32) -> Place {
    Place { size: SIZE.into(), desc: base, driver: base + AVAIL, device: base + USED }
}

impl Script {
    /// Writes a register, by its name in the MMIO transport.
    pub(crate) fn set(self, device: impl Into<Device>, offset: u32, value: u32) -> Self {
        let (gpa, len) = device.into().register(offset);
        self.write(gpa, len, value)
    }

    /// Reads a register, by its name in the MMIO transport; bits above it are zero.
    pub(crate) fn get(self, device: impl Into<Device>, offset: u32, to: u32) -> Self {
        let (gpa, len) = device.into().register(offset);
        self.read(gpa, len, to)
    }

    /// Writes the lowest 1, 2 or 4 bytes of `value`.
    pub(crate) fn write(self, gpa: u32, len: u32, value: u32) -> Self {
        let [a, b, _, _] = value.to_le_bytes();
        match len {
            1 => self.write8(gpa, a),
            2 => self.write16(gpa, u16::from_le_bytes([a, b])),
            _ => self.write32(gpa, value),
        }
    }

    /// Reads 1, 2 or 4 bytes, and stores them with zeros above.
    pub(crate) fn read(self, gpa: u32, len: u32, to: u32) -> Self {
        match len {
            1 => self.read8(gpa, to),
            2 => self.read16(gpa, to),
            _ => self.read32(gpa, to),
        }
    }

    /// Up to FEATURES_OK.
    pub(crate) fn negotiate(self, device: impl Into<Device>, low_features: u32) -> Self {
        let device = device.into();
        let script = match device.transport {
            Transport::Mmio => self,
            Transport::Pci => {
                self.write16(pci::space(device.number) + pci::COMMAND, pci::MEMORY | pci::BUS_MASTER)
            }
        };
        script
            .set(device, STATUS, 0)
            .set(device, STATUS, 1)
            .set(device, STATUS, 3)
            .set(device, DRIVER_FEATURES_SEL, 0)
            .set(device, DRIVER_FEATURES, low_features)
            .set(device, DRIVER_FEATURES_SEL, 1)
            .set(device, DRIVER_FEATURES, 1)
            .set(device, STATUS, 0xb)
    }

    pub(crate) fn set_queue(self, device: impl Into<Device>, queue: u32, place: Place) -> Self {
        let device = device.into();
        self.set(device, QUEUE_SEL, queue)
            .set(device, QUEUE_NUM, place.size)
            .set(device, QUEUE_DESC, place.desc)
            .set(device, QUEUE_DESC + 4, 0)
            .set(device, QUEUE_DRIVER, place.driver)
            .set(device, QUEUE_DRIVER + 4, 0)
            .set(device, QUEUE_DEVICE, place.device)
            .set(device, QUEUE_DEVICE + 4, 0)
            .set(device, QUEUE_READY, 1)
    }

    /// A driver's whole start, with its queue at `base`.
    pub(crate) fn start_device(self, device: impl Into<Device>, base: u32, low_features: u32) -> Self {
        let device = device.into();
        self.negotiate(device, low_features).set_queue(device, 0, place(base)).set(device, STATUS, LIVE)
    }

    pub(crate) fn notify(self, device: impl Into<Device>) -> Self {
        self.notify_queue(device, 0)
    }

    pub(crate) fn notify_queue(self, device: impl Into<Device>, queue: u16) -> Self {
        let Device { transport, number } = device.into();
        match transport {
            Transport::Mmio => self.write32(register(number, QUEUE_NOTIFY), queue.into()),
            Transport::Pci => self.write16(pci::bar(number) + pci::NOTIFY + 4 * u32::from(queue), queue),
        }
    }

    /// Has so many chains on offer: a device that starts takes those that are there by itself, and
    /// must be notified of others.
    pub(crate) fn offer(self, base: u32, count: u16) -> Self {
        self.write16(base + AVAIL + 2, count)
    }

    /// Waits for so many used chains.
    pub(crate) fn wait_used(self, base: u32, count: u32) -> Self {
        self.wait(base + USED, 0xffff_0000, count << 16)
    }

    pub(crate) fn wait_needs_reset(self, device: impl Into<Device>) -> Self {
        // Over PCI there is more in this word, and the status comes first.
        let (gpa, _) = device.into().register(STATUS);
        self.wait(gpa, NEEDS_RESET, NEEDS_RESET)
    }

    /// One request for random bytes to the entropy device, whose queue is at [`OTHER_RING`]; sends
    /// `r` when it is answered.
    pub(crate) fn entropy_works(self, device: impl Into<Device>) -> Self {
        let device = device.into();
        self.start_device(device, OTHER_RING, 0).notify(device).wait_used(OTHER_RING, 1).say(b'r')
    }
}

pub(crate) fn entropy_ring() -> Vec<u8> {
    ring(&[(OTHER_DATA.into(), 16, WRITE, 0)], &[0])
}

/// Requests of a disk: each is a header, data and a status byte.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) headers: Vec<u8>,
    pub(crate) descriptors: Vec<Descriptor>,
    pub(crate) heads: Vec<u16>,
}

impl Requests {
    /// `data`: address, length, and whether the device writes it.
    pub(crate) fn add(mut self, kind: u32, sector: u64, data: Option<(u32, u32, bool)>) -> Self {
        let header = HEADER + u32::try_from(self.headers.len()).unwrap();
        let status = STATUS_BYTE + u32::try_from(self.heads.len()).unwrap();
        self.headers.extend(kind.to_le_bytes());
        self.headers.extend([0; 4]);
        self.headers.extend(sector.to_le_bytes());
        let mut next = u16::try_from(self.descriptors.len()).unwrap();
        self.heads.push(next);
        next += 1;
        self.descriptors.push((header.into(), 16, NEXT, next));
        if let Some((gpa, len, device_writes)) = data {
            next += 1;
            self.descriptors.push((gpa.into(), len, NEXT | if device_writes { WRITE } else { 0 }, next));
        }
        self.descriptors.push((status.into(), 1, WRITE, 0));
        self
    }

    /// Two reads: the sectors 3 and 4 to [`DATA`], and sector 0 behind them. What
    /// [`Script::put_two_reads`] sends of them is for [`insist_on_two_reads`].
    pub(crate) fn two_reads() -> Self {
        Self::default().add(BLK_IN, 3, Some((DATA, 1024, true))).add(
            BLK_IN,
            0,
            Some((DATA + 1024, 512, true)),
        )
    }

    /// A guest with these requests in memory, status bytes of 0xee, and the entropy device's queue.
    pub(crate) fn guest(self, script: &Script) -> Guest {
        assert!(self.descriptors.len() <= SIZE.into());
        Guest::new(script)
            .data(RING, ring(&self.descriptors, &self.heads))
            .data(HEADER, self.headers)
            .data(STATUS_BYTE, [0xee; 8])
            .data(OTHER_RING, entropy_ring())
    }
}

impl Script {
    /// The used ring, the status bytes and one more, and the data.
    pub(crate) fn put_two_reads(self) -> Self {
        self.put(RING + USED, 20).put(STATUS_BYTE, 3).put(DATA, 512 * 3)
    }
}

/// Insists that both reads were answered, with what is on the disk, and nothing else was.
#[track_caller]
pub(crate) fn insist_on_two_reads(sent: &[u8], content: &[u8]) {
    assert_eq!(words(&sent[4..20]), [0, 1025, 3, 513], "heads and lengths on the used ring");
    assert_eq!(sent[20..23], [OK, OK, 0xee]);
    assert!(sent[23..23 + 1024] == content[3 * 512..5 * 512]);
    assert!(sent[23 + 1024..] == content[..512]);
}

/// The words for as many disks as a VM can have, all of them the same file.
pub(crate) fn most_disks(path: &str) -> Vec<String> {
    (0..16).flat_map(|_| ["--disk".to_owned(), format!("{path},ro")]).collect()
}

pub(crate) fn disk(dir: &Path, content: &[u8]) -> String {
    file(dir, "disk", content).to_str().unwrap().to_owned()
}
