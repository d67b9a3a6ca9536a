//! The configuration space of a function: identity, one BAR, and the capabilities that say what is
//! where in it.

use std::sync::Arc;

use super::super::spec::pci::{self, header, msix};
use super::{
    BAR_LEN, COMMON, DEVICE_SPECIFIC, Function, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_STRIDE,
};
use crate::bus::BusDevice;

/// Bytes of a function's space in the memory-mapped configuration access (PCI Express 5.0 §7.2.2).
pub const CONFIG_LEN: u64 = 0x1000;
/// Bytes that aren't zero.
const USED: usize = 0x100;

/// What is in the space, and which bits of it a driver may change.
pub(super) struct Registers {
    bytes: [u8; USED],
    writable: [u8; USED],
    /// Where the MSI-X capability is.
    msix: u16,
    /// Where the access capability is.
    access: u16,
    next: u16,
    last_link: u16,
}

/// What else a write to the space has changed.
pub(super) enum Effect {
    None,
    /// The message control word of MSI-X.
    Msix(u16),
    /// The base address.
    Moved(u32),
    /// The driver wants this much of the BAR written there (§4.1.4.9).
    Access {
        offset: u64,
        len: usize,
    },
}

impl Registers {
    /// The space of a device of type `kind`, with its BAR at `bar_gpa`.
    pub(super) fn new(kind: u32, bar_gpa: u64, vectors: u16) -> Self {
        let mut own = Self {
            bytes: [0; USED],
            writable: [0; USED],
            msix: 0,
            access: 0,
            next: header::LEN,
            last_link: header::CAPABILITIES,
        };
        let id = pci::DEVICE + u16::try_from(kind).expect("a small number");
        own.put(0, &pci::VENDOR.to_le_bytes());
        own.put(2, &id.to_le_bytes());
        own.put(header::STATUS, &header::STATUS_CAPABILITIES.to_le_bytes());
        // §4.1.2.1: 1 and more is a device of this specification.
        own.put(header::REVISION, &[1]);
        own.put(header::CLASS, &class(kind));
        own.put(header::BAR0, &u32::try_from(bar_gpa).expect("the window is below 4 GiB").to_le_bytes());
        own.put(header::SUBSYSTEM_VENDOR, &pci::VENDOR.to_le_bytes());
        own.put(header::SUBSYSTEM, &id.to_le_bytes());
        own.allow(header::COMMAND, &header::COMMAND_WRITABLE.to_le_bytes());
        let bar_bits = !(u32::try_from(BAR_LEN).expect("small") - 1);
        own.allow(header::BAR0, &bar_bits.to_le_bytes());
        // The interrupt line means nothing to the device, and firmware writes it.
        own.allow(0x3c, &[0xff]);
        own.add_msix(vectors);
        own.add(pci::COMMON, COMMON, &[]);
        own.add(pci::NOTIFY, NOTIFY, &NOTIFY_STRIDE.to_le_bytes());
        own.add(pci::ISR, ISR, &[]);
        own.add(pci::DEVICE_SPECIFIC, DEVICE_SPECIFIC, &[]);
        own.access = own.next;
        own.add(pci::ACCESS, 0..0, &[0; 4]);
        own.allow(own.access + pci::CAPABILITY_BAR, &[0xff]);
        own.allow(own.access + pci::CAPABILITY_OFFSET, &[0xff; 12]);
        own
    }

    fn put(&mut self, at: u16, bytes: &[u8]) {
        let at = usize::from(at);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: u16, bits: &[u8]) {
        let at = usize::from(at);
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    /// Starts a capability at the end of the list.
    fn link(&mut self, id: u8, len: u8) -> u16 {
        let at = self.next;
        self.put(self.last_link, &[u8::try_from(at).expect("they all fit")]);
        self.put(at, &[id]);
        self.last_link = at + 1;
        self.next = (at + u16::from(len)).next_multiple_of(4);
        at
    }

    fn add_msix(&mut self, vectors: u16) {
        self.msix = self.link(msix::CAPABILITY, msix::CAPABILITY_LEN);
        // The table and the pending bits are both in BAR 0, which the low three bits say.
        self.put(self.msix + 2, &(vectors - 1).to_le_bytes());
        self.put(self.msix + 4, &low(MSIX_TABLE.start).to_le_bytes());
        self.put(self.msix + 8, &low(MSIX_PENDING.start).to_le_bytes());
        self.allow(self.msix + 2, &(msix::ENABLE | msix::MASK_ALL).to_le_bytes());
    }

    fn add(&mut self, kind: u8, place: std::ops::Range<u64>, more: &[u8]) {
        let len = pci::CAPABILITY_LEN + u8::try_from(more.len()).expect("4 bytes");
        let at = self.link(pci::CAPABILITY, len);
        self.put(at + 2, &[len, kind]);
        self.put(at + pci::CAPABILITY_OFFSET, &low(place.start).to_le_bytes());
        self.put(at + pci::CAPABILITY_LENGTH, &low(place.end - place.start).to_le_bytes());
        self.put(at + pci::CAPABILITY_DATA, more);
    }

    fn word(&self, at: u16) -> u16 {
        let at = usize::from(at);
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn long(&self, at: u16) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    /// Whether the driver wants the function to answer at its addresses.
    pub(super) fn answers(&self) -> bool {
        self.word(header::COMMAND) & header::COMMAND_MEMORY != 0
    }

    /// Which part of the BAR the access capability's data stands for, if an access of these bytes
    /// touches it (§4.1.4.9).
    pub(super) fn access(&self, offset: u64, len: usize) -> Option<(u64, usize)> {
        let data = u64::from(self.access + pci::CAPABILITY_DATA);
        let touches = offset < data + 4 && offset + len as u64 > data;
        let (bar, at) = (self.bytes[usize::from(self.access + pci::CAPABILITY_BAR)], self.access);
        let (from, len) = (self.long(at + pci::CAPABILITY_OFFSET), self.long(at + pci::CAPABILITY_LENGTH));
        let is_right = bar == 0 && matches!(len, 1 | 2 | 4) && from.is_multiple_of(len);
        (touches && is_right).then_some((from.into(), len as usize))
    }

    /// The access capability's data.
    pub(super) fn access_data(&mut self) -> &mut [u8] {
        let at = usize::from(self.access + pci::CAPABILITY_DATA);
        &mut self.bytes[at..at + 4]
    }

    /// Every byte of it.
    pub(super) fn state(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes over what a driver may change of such a space, and returns the message control word of
    /// MSI-X; `None` if it isn't one.
    pub(super) fn restore(&mut self, state: &[u8]) -> Option<u16> {
        if state.len() != USED {
            return None;
        }
        // A write, the effects of which are somebody else's business.
        let _effect = self.write(0, state);
        Some(self.word(self.msix + 2))
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let rest =
            usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..)).unwrap_or_default();
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let Ok(start) = usize::try_from(offset) else { return Effect::None };
        for (at, new) in (start..USED).zip(data) {
            self.bytes[at] = self.bytes[at] & !self.writable[at] | new & self.writable[at];
        }
        let touches = |at: u16| offset < u64::from(at) + 4 && offset + data.len() as u64 > u64::from(at);
        if touches(self.msix) {
            Effect::Msix(self.word(self.msix + 2))
        } else if touches(header::BAR0) {
            Effect::Moved(self.long(header::BAR0))
        } else {
            self.access(offset, data.len())
                .map_or(Effect::None, |(offset, len)| Effect::Access { offset, len })
        }
    }
}

fn low(offset: u64) -> u32 {
    u32::try_from(offset).expect("the BAR is small")
}

/// Class, subclass and programming interface (PCI Code and ID Assignment 1.11), lowest byte first.
fn class(kind: u32) -> [u8; 3] {
    use super::super::spec::id;
    match kind {
        id::BLOCK => [0, 0x80, 0x01],
        id::NET => [0, 0x00, 0x02],
        id::VSOCK => [0, 0x80, 0x07],
        id::RNG => [0, 0x00, 0x10],
        _ => [0, 0x00, 0xff],
    }
}

/// The configuration space of a function, as the guest reaches it through memory.
pub struct ConfigSpace(pub(super) Arc<Function>);

impl BusDevice for ConfigSpace {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config_space(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_config_space(offset, data);
    }
}
