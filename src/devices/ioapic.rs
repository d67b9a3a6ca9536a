//! The IOAPIC, in user space: each pin is an MSI route, and a redirection entry is the message that
//! it sends.
//!
//! All interrupts are edges. An edge that arrives while its entry is masked is kept by the route's
//! eventfd and delivered when the entry is unmasked ([`MsiRoutes`]); an entry that a guest programs
//! as level-triggered behaves as an edge. A guest writes a few registers while it boots and almost
//! none afterwards, so this costs nothing that is seen. Registers as in the Intel 82093AA data
//! sheet. Owns the routes; no thread.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::bounded_log::BoundedLog;
use crate::bus::{BusDevice, MsiMessage, MsiRoute, MsiRoutes};
use crate::memory::layout;

/// Offset of the register that selects.
const IOREGSEL: u64 = 0;
/// Offset of the window to the selected register.
const IOWIN: u64 = 0x10;
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_REDIRECTION: u8 = 0x10;

/// Version 0x20 has an EOI register; Linux reads the pins from bits 23:16.
const VERSION: u32 = 0x11;
const ENTRY_MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR: read-only.
const ENTRY_READ_ONLY: u64 = 1 << 12 | 1 << 14;
/// Vector and delivery mode, which an MSI's data has in the same bits.
const ENTRY_MESSAGE: u64 = 0x7ff;
const ENTRY_LOGICAL: u64 = 1 << 11;

/// The device on the MMIO bus.
pub struct Ioapic {
    registers: Mutex<Registers>,
    routes: Arc<dyn MsiRoutes>,
    /// A pin that no device is wired to has no route.
    pins: Vec<OnceLock<MsiRoute>>,
    log: BoundedLog,
}

/// What a guest has written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registers {
    select: u8,
    id: u8,
    entries: Vec<u64>,
}

impl Ioapic {
    /// An IOAPIC with [`layout::IOAPIC_PINS`] pins, all masked and wired to nothing.
    pub fn new(routes: Arc<dyn MsiRoutes>) -> Self {
        let pins: Vec<OnceLock<MsiRoute>> = (0..layout::IOAPIC_PINS).map(|_| OnceLock::new()).collect();
        let registers = Registers { select: 0, id: 0, entries: vec![ENTRY_MASKED; pins.len()] };
        Self { registers: Mutex::new(registers), routes, pins, log: BoundedLog::fixed("IOAPIC") }
    }

    /// Wires a device to a pin: the eventfd raises its interrupt. Called while the VM is built.
    ///
    /// # Panics
    /// If there is no such pin: the numbers are ours, from [`layout`].
    pub fn wire(&self, gsi: u32) -> io::Result<EventFd> {
        let pin = &self.pins[gsi as usize];
        if let Some(route) = pin.get() {
            return route.evt.try_clone();
        }
        let route = self.routes.allocate()?;
        let evt = route.evt.try_clone()?;
        assert!(pin.set(route).is_ok(), "a VM is built by one thread");
        Ok(evt)
    }

    /// Its registers, as plain data.
    pub fn state(&self) -> Registers {
        self.lock().clone()
    }

    /// Becomes what another one was, with its routes. `Err` says what is wrong.
    pub fn restore(&self, state: Registers) -> Result<(), String> {
        let mut registers = self.lock();
        if state.entries.len() != registers.entries.len() {
            return Err(format!("an IOAPIC with {} pins", state.entries.len()));
        }
        for (pin, (before, after)) in registers.entries.iter().zip(&state.entries).enumerate() {
            self.apply(pin, *before, *after).map_err(|error| format!("interrupt {pin}: {error}"))?;
        }
        *registers = state;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_selected(&self) -> u32 {
        let registers = self.lock();
        match registers.select {
            REG_ID | REG_ARBITRATION => u32::from(registers.id) << 24,
            REG_VERSION => VERSION | self.last_pin() << 16,
            select => {
                match entry_of(select).and_then(|(pin, high)| Some((registers.entries.get(pin)?, high))) {
                    Some((entry, high)) => half(*entry, high),
                    None => 0,
                }
            }
        }
    }

    /// What the guest is told: the last pin that a device is wired to. A kernel reads and writes
    /// every pin's entry several times while it boots, and each register takes two exits.
    fn last_pin(&self) -> u32 {
        let wired =
            self.pins.iter().rposition(|pin| pin.get().is_some()).and_then(|pin| u32::try_from(pin).ok());
        wired.unwrap_or(layout::IOAPIC_PINS - 1)
    }

    fn write_selected(&self, value: u32) {
        let mut registers = self.lock();
        let select = registers.select;
        if select == REG_ID {
            registers.id = value.to_le_bytes()[3] & 0xf;
            return;
        }
        let Some((pin, high)) = entry_of(select) else { return };
        let Some(entry) = registers.entries.get_mut(pin) else { return };
        let before = *entry;
        *entry = with_half(before, high, value) & !ENTRY_READ_ONLY;
        if let Err(error) = self.apply(pin, before, *entry) {
            self.log.error(format_args!("interrupt {pin} can't be routed: {error}"));
        }
    }

    fn apply(&self, pin: usize, before: u64, after: u64) -> io::Result<()> {
        let Some(route) = self.pins[pin].get().map(|route| route.id) else { return Ok(()) };
        if message(before) != message(after) {
            self.routes.update(route, message(after))?;
        }
        if (before ^ after) & ENTRY_MASKED != 0 {
            self.routes.mask(route, after & ENTRY_MASKED != 0)?;
        }
        Ok(())
    }
}

impl BusDevice for Ioapic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => self.lock().select.into(),
            IOWIN => self.read_selected(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        data.fill(0);
        let len = data.len().min(bytes.len());
        data[..len].copy_from_slice(&bytes[..len]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (IOREGSEL, [select, ..]) => {
                self.lock().select = *select;
            }
            (IOWIN, &[a, b, c, d]) => self.write_selected(u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
    }
}

/// The redirection entry that a register belongs to, and whether it is its upper half.
fn entry_of(select: u8) -> Option<(usize, bool)> {
    let index = select.checked_sub(REG_REDIRECTION)?;
    Some((usize::from(index / 2), index % 2 == 1))
}

fn half(entry: u64, high: bool) -> u32 {
    let [a, b, c, d, e, f, g, h] = entry.to_le_bytes();
    u32::from_le_bytes(if high { [e, f, g, h] } else { [a, b, c, d] })
}

fn with_half(entry: u64, high: bool, value: u32) -> u64 {
    let (low_half, high_half) = if high { (half(entry, false), value) } else { (value, half(entry, true)) };
    u64::from(high_half) << 32 | u64::from(low_half)
}

/// What an entry sends (Intel SDM vol. 3, §11.11): its destination in the address, the rest as
/// data, as an edge.
fn message(entry: u64) -> MsiMessage {
    let destination = entry >> 56;
    let logical = if entry & ENTRY_LOGICAL != 0 { 1 << 2 } else { 0 };
    let data = u32::try_from(entry & ENTRY_MESSAGE).expect("eleven bits");
    MsiMessage { address: layout::LAPIC_GPA | destination << 12 | logical, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::RouteId;

    #[derive(Default)]
    struct Recorder {
        routes: Mutex<u32>,
        calls: Mutex<Vec<String>>,
    }

    impl MsiRoutes for Recorder {
        fn allocate(&self) -> io::Result<MsiRoute> {
            let mut routes = self.routes.lock().unwrap();
            *routes += 1;
            Ok(MsiRoute { id: RouteId(*routes - 1), evt: EventFd::new(0)? })
        }
        fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()> {
            self.calls
                .lock()
                .unwrap()
                .push(format!("{} -> {:#x} {:#x}", route.0, message.address, message.data));
            Ok(())
        }
        fn mask(&self, route: RouteId, masked: bool) -> io::Result<()> {
            self.calls.lock().unwrap().push(format!("{} masked {masked}", route.0));
            Ok(())
        }
    }

    fn write(ioapic: &Ioapic, register: u8, value: u32) {
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        ioapic.write(IOWIN, &value.to_le_bytes());
    }

    fn read(ioapic: &Ioapic, register: u8) -> u32 {
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        let mut data = [0xff; 4];
        ioapic.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn an_entry_becomes_a_message_and_is_then_unmasked() {
        let recorder = Arc::new(Recorder::default());
        let ioapic = Ioapic::new(recorder.clone());
        ioapic.wire(4).unwrap();
        write(&ioapic, 0x10 + 2 * 4 + 1, 0x0300_0000);
        write(&ioapic, 0x10 + 2 * 4, 0x0031);
        write(&ioapic, 0x10 + 2 * 4, 0x1_0031);
        assert_eq!(
            *recorder.calls.lock().unwrap(),
            ["0 -> 0xfee03000 0x0", "0 -> 0xfee03000 0x31", "0 masked false", "0 masked true"]
        );
    }

    #[test]
    fn level_triggered_entries_send_edges_and_logical_ones_keep_their_mode() {
        assert_eq!(message(0xa931 | 0xff << 56), MsiMessage { address: 0xfeef_f004, data: 0x131 });
    }

    #[test]
    fn the_version_names_the_last_pin_that_is_wired() {
        let ioapic = Ioapic::new(Arc::new(Recorder::default()));
        ioapic.wire(7).unwrap();
        ioapic.wire(4).unwrap();
        assert_eq!(read(&ioapic, 1), 0x0007_0011);
    }

    #[test]
    fn another_one_sends_what_the_guest_has_set() {
        let ioapic = Ioapic::new(Arc::new(Recorder::default()));
        ioapic.wire(4).unwrap();
        write(&ioapic, 0x10 + 2 * 4, 0x0031);
        write(&ioapic, 0x10 + 2 * 5, 0x0032);
        let recorder = Arc::new(Recorder::default());
        let other = Ioapic::new(recorder.clone());
        other.wire(4).unwrap();
        other.restore(ioapic.state()).unwrap();
        assert_eq!(*recorder.calls.lock().unwrap(), ["0 -> 0xfee00000 0x31", "0 masked false"]);
        assert_eq!(read(&other, 0x10 + 2 * 5), 0x32);
        let mut bad = ioapic.state();
        bad.entries.pop();
        assert!(other.restore(bad).is_err());
    }

    #[test]
    fn every_pin_starts_masked_and_the_version_names_their_number() {
        let ioapic = Ioapic::new(Arc::new(Recorder::default()));
        assert_eq!(read(&ioapic, 1), 0x0017_0011);
        for pin in 0..24 {
            assert_eq!(read(&ioapic, 0x10 + 2 * pin), 0x1_0000);
        }
        write(&ioapic, 0, 0x0500_0000);
        assert_eq!(read(&ioapic, 0), 0x0500_0000);
    }

    #[test]
    fn a_pin_without_a_device_costs_nothing_and_keeps_what_is_written() {
        let recorder = Arc::new(Recorder::default());
        let ioapic = Ioapic::new(recorder.clone());
        write(&ioapic, 0x10 + 2 * 7, 0x0031);
        assert_eq!(read(&ioapic, 0x10 + 2 * 7), 0x0031);
        assert!(recorder.calls.lock().unwrap().is_empty());
        assert_eq!(*recorder.routes.lock().unwrap(), 0);
    }

    #[test]
    fn registers_that_do_not_exist_are_harmless() {
        let recorder = Arc::new(Recorder::default());
        let ioapic = Ioapic::new(recorder.clone());
        for register in [3, 0xf, 0x10 + 48, 0xff] {
            write(&ioapic, register, u32::MAX);
            assert_eq!(read(&ioapic, register), 0);
        }
        ioapic.write(IOWIN, &[1]);
        ioapic.write(0x20, &[1; 8]);
        assert!(recorder.calls.lock().unwrap().is_empty());
    }
}
