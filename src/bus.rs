//! Address -> device, for MMIO and for port I/O, and the two services that a device may ask of the
//! machine it is plugged into.
//!
//! A [`Bus`] is filled while a VM is built and never changes afterwards, so a lookup takes no lock;
//! each device guards its own state. The bus owns no thread and no descriptor. It knows nothing of
//! KVM: [`Doorbells`] and [`MsiRoutes`] are what devices see of it, and `vmm` implements them.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

/// What can be plugged into a [`Bus`].
///
/// Called on vCPU threads, by several at once, while the guest waits: an implementation takes its
/// own lock and doesn't block on anything but that. `offset` is relative to the start of the
/// device's range, and `offset + data.len()` may reach past its end: the access is the guest's own
/// choice.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1, 2, 4 or 8 bytes) with what the guest reads. It arrives filled with ones:
    /// what a real bus gives where nothing answers.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes (1, 2, 4 or 8 bytes).
    fn write(&self, offset: u64, data: &[u8]);
}

/// Lets a guest's write to an address signal an eventfd without passing through user space.
///
/// Only a speed-up: until `add` takes effect, and where it fails, the same write arrives as an MMIO
/// exit, and the transport signals the eventfd itself. So an implementation may do the work later,
/// on another thread.
pub trait Doorbells: Send + Sync {
    /// From some time on, `bell` signals `evt`.
    fn add(&self, bell: Doorbell, evt: &Arc<EventFd>);
    /// Undoes an `add` with the same arguments. A doorbell that still rings once afterwards is
    /// harmless.
    fn remove(&self, bell: Doorbell, evt: &Arc<EventFd>);
}

/// A guest's write that means "look at this queue".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Where it is written.
    pub gpa: u64,
    /// What is written there, as 4 bytes; whatever is written, in whatever width, where it is
    /// missing.
    pub value: Option<u32>,
}

/// Message-signalled interrupts: what an IOAPIC pin or an MSI-X vector becomes.
///
/// Every interrupt is an edge. A route starts masked. Edges that arrive while a route is masked are
/// kept and delivered, as one, when it is unmasked.
pub trait MsiRoutes: Send + Sync {
    /// Makes a route; whoever writes to the eventfd afterwards raises the interrupt.
    fn allocate(&self) -> io::Result<MsiRoute>;
    /// Sets the message that the route sends. Called on a vCPU thread.
    fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()>;
    /// Masks or unmasks the route. Called on a vCPU thread.
    fn mask(&self, route: RouteId, masked: bool) -> io::Result<()>;
}

/// Names a route of one [`MsiRoutes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteId(pub u32);

/// A route, and the eventfd that raises it.
#[derive(Debug)]
pub struct MsiRoute {
    /// For `update` and `mask`.
    pub id: RouteId,
    /// A write raises the interrupt.
    pub evt: EventFd,
}

/// An MSI message: where it is written and what (Intel SDM vol. 3, §11.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// 0xfee0_0000 with the destination APIC in bits 19:12.
    pub address: u64,
    /// Vector and delivery mode.
    pub data: u32,
}

/// Why a device can't be plugged in.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// Two devices on one address.
    #[error("the range {base:#x}..{:#x} overlaps one that is taken", base + len)]
    Overlap {
        /// First address of the refused range.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A range of no bytes, or one that passes the end of the address space.
    #[error("the range at {base:#x} of {len:#x} bytes is empty or wraps")]
    BadRange {
        /// First address of the refused range.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
}

struct Slot {
    base: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// One address space (MMIO or ports) and the devices in it.
#[derive(Default)]
pub struct Bus {
    // Sorted by base, disjoint.
    slots: Vec<Slot>,
}

impl Bus {
    /// Plugs a device into `len` bytes (or ports) from `base` on.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let end = base.checked_add(len).filter(|_| len > 0).ok_or(BusError::BadRange { base, len })?;
        let at = self.slots.partition_point(|slot| slot.base < base);
        let before = at.checked_sub(1).and_then(|i| self.slots.get(i));
        let overlaps_before = before.is_some_and(|slot| slot.base + slot.len > base);
        let overlaps_after = self.slots.get(at).is_some_and(|slot| slot.base < end);
        if overlaps_before || overlaps_after {
            return Err(BusError::Overlap { base, len });
        }
        self.slots.insert(at, Slot { base, len, device });
        Ok(())
    }

    /// A guest's read; `false`, and `data` all ones, where nothing is plugged in.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        self.find(addr).map(|(slot, offset)| slot.device.read(offset, data)).is_some()
    }

    /// A guest's write; `false` where nothing is plugged in.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        self.find(addr).map(|(slot, offset)| slot.device.write(offset, data)).is_some()
    }

    fn find(&self, addr: u64) -> Option<(&Slot, u64)> {
        let after = self.slots.partition_point(|slot| slot.base <= addr);
        let slot = self.slots.get(after.checked_sub(1)?)?;
        let offset = addr - slot.base;
        (offset < slot.len).then_some((slot, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Probe(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_with_its_offset() {
        let probe = Arc::new(Probe::default());
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, probe.clone()).unwrap();
        bus.insert(0x10, 0x10, Arc::new(Probe::default())).unwrap();
        assert!(bus.write(0x100f, &[7]));
        assert_eq!(*probe.0.lock().unwrap(), [(0xf, vec![7])]);
        let mut data = [0; 2];
        assert!(bus.read(0x1003, &mut data));
        assert_eq!(data, [3, 3]);
    }

    #[test]
    fn an_address_without_a_device_reads_as_ones() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, Arc::new(Probe::default())).unwrap();
        for addr in [0, 0xfff, 0x1010, u64::MAX] {
            let mut data = [0; 4];
            assert!(!bus.read(addr, &mut data));
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(addr, &data));
        }
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        let probe = || Arc::new(Probe::default());
        bus.insert(0x1000, 0x10, probe()).unwrap();
        for (base, len) in [(0x1000, 1), (0x100f, 1), (0xff0, 0x11), (0xf00, 0x1000)] {
            assert_eq!(bus.insert(base, len, probe()), Err(BusError::Overlap { base, len }));
        }
        for (base, len) in [(0x2000, 0), (u64::MAX, 2)] {
            assert_eq!(bus.insert(base, len, probe()), Err(BusError::BadRange { base, len }));
        }
        bus.insert(0x1010, 0x10, probe()).unwrap();
        bus.insert(0xff0, 0x10, probe()).unwrap();
    }
}
