//! The registers behind the ACPI tables: sleep control and status, reset, and the Generic Event
//! Device's events.
//!
//! Offsets from [`layout::ACPI_PORT`](crate::memory::layout::ACPI_PORT); hardware-reduced ACPI
//! (ACPI 6.5 §4.8.3.7, §5.6.9). The tables are written by `boot::acpi`, which takes the numbers
//! from here. Owns no thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bounded_log::BoundedLog;
use crate::bus::BusDevice;
use crate::outcome::{End, Outcome};

/// Sleep control register, 1 byte.
pub const SLEEP_CONTROL: u16 = 0;
/// Sleep status register, 1 byte.
pub const SLEEP_STATUS: u16 = 1;
/// Reset register, 1 byte.
pub const RESET: u16 = 2;
/// The Generic Event Device's pending events, 4 bytes; reading clears them.
pub const EVENTS: u16 = 4;

/// Sleep type of \_S5, soft off.
pub const SLEEP_TYPE_S5: u8 = 5;
/// What a write to the reset register must hold.
pub const RESET_VALUE: u8 = 1;
/// Event bit: the power button was pressed.
pub const EVENT_POWER_BUTTON: u32 = 1;
/// Event bit: the VM generation ID has changed, because the guest goes on from a snapshot.
pub const EVENT_GENERATION: u32 = 2;

/// SLP_EN of the sleep control register (ACPI 6.5 table 4.19).
const SLEEP_ENABLE: u8 = 1 << 5;
/// SLP_TYPx, three bits from here on.
const SLEEP_TYPE_SHIFT: u8 = 2;

static LOG: BoundedLog = BoundedLog::fixed("ACPI");

/// The device on the port bus.
pub struct AcpiRegisters {
    end: Arc<End>,
    events: Arc<Events>,
}

/// The host's side of the Generic Event Device.
pub struct Events {
    pending: AtomicU32,
    interrupt_evt: EventFd,
}

impl Events {
    /// `interrupt_evt` raises the Generic Event Device's interrupt.
    pub fn new(interrupt_evt: EventFd) -> Self {
        Self { pending: AtomicU32::new(0), interrupt_evt }
    }

    /// Events that the guest hasn't read yet, as plain data.
    pub fn state(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    /// The guest goes on in another VM than the one that it was in, or in one of several: beside
    /// what it hadn't read there (`state`) it hears that its generation ID is another one.
    pub fn renew(&self, state: u32) {
        self.raise(state & EVENT_POWER_BUTTON | EVENT_GENERATION);
    }

    /// Presses the power button. Callable from any thread; a guest that doesn't listen ignores it.
    pub fn press_power_button(&self) {
        self.raise(EVENT_POWER_BUTTON);
    }

    fn raise(&self, events: u32) {
        self.pending.fetch_or(events, Ordering::SeqCst);
        if let Err(error) = self.interrupt_evt.write(1) {
            LOG.warn(format_args!("can't raise the interrupt of an event: {error}"));
        }
    }
}

impl AcpiRegisters {
    /// Registers that report sleep and reset to `end` and show `events`.
    pub fn new(end: Arc<End>, events: Arc<Events>) -> Self {
        Self { end, events }
    }
}

impl BusDevice for AcpiRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == u64::from(EVENTS) && data.len() == 4 {
            data.copy_from_slice(&self.events.pending.swap(0, Ordering::SeqCst).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        let sleep = SLEEP_ENABLE | SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT;
        if offset == u64::from(SLEEP_CONTROL) && value & sleep == sleep {
            self.end.report(Outcome::PowerOff);
        } else if offset == u64::from(RESET) && value == RESET_VALUE {
            self.end.report(Outcome::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> (AcpiRegisters, Arc<End>, Arc<Events>) {
        let end = Arc::new(End::new(EventFd::new(0).unwrap()));
        let events = Arc::new(Events::new(EventFd::new(0).unwrap()));
        (AcpiRegisters::new(end.clone(), events.clone()), end, events)
    }

    #[test]
    fn only_s5_with_the_enable_bit_powers_off() {
        let (device, end, _) = device();
        device.write(0, &[5 << 2]);
        device.write(0, &[1 << 5]);
        device.write(0, &[0x34, 0]);
        assert_eq!(end.outcome(), None);
        device.write(0, &[0x34]);
        assert_eq!(end.outcome(), Some(&Outcome::PowerOff));
    }

    #[test]
    fn the_reset_value_resets() {
        let (device, end, _) = device();
        device.write(2, &[0]);
        assert_eq!(end.outcome(), None);
        device.write(2, &[1]);
        assert_eq!(end.outcome(), Some(&Outcome::Reset));
    }

    #[test]
    fn a_pressed_button_is_pending_until_it_is_read() {
        let (device, _, events) = device();
        events.press_power_button();
        assert_eq!(events.interrupt_evt.read().unwrap(), 1);
        let mut word = [0xff; 4];
        device.read(4, &mut word);
        assert_eq!(word, [1, 0, 0, 0]);
        device.read(4, &mut word);
        assert_eq!(word, [0; 4]);
    }
}
