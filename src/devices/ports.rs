//! Three one-register devices: pvpanic, the keyboard controller's reset, and the timing port.

use std::sync::Arc;

use bothy_guest::TimingMark;

use crate::bus::BusDevice;
use crate::outcome::{End, Outcome};
use crate::timeline::{Mark, Timeline};

/// pvpanic event: the kernel panicked.
const PANICKED: u8 = 1;

/// The pvpanic device (QEMU's docs/specs/pvpanic): a guest kernel's panic notifier writes here.
pub struct Pvpanic {
    end: Arc<End>,
}

impl Pvpanic {
    /// A device that reports panics to `end`.
    pub fn new(end: Arc<End>) -> Self {
        Self { end }
    }
}

impl BusDevice for Pvpanic {
    /// The supported events: only a panic, so a kernel with a crash kernel loaded goes on into
    /// that.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|event| event & PANICKED != 0) {
            self.end.report_panic();
        }
    }
}

/// The keyboard controller's command that pulses the reset line.
const PULSE_RESET: u8 = 0xfe;

/// What is left of an i8042: a guest without ACPI resets the machine through its command port.
pub struct I8042Reset {
    end: Arc<End>,
}

impl I8042Reset {
    /// A device that reports resets to `end`.
    pub fn new(end: Arc<End>) -> Self {
        Self { end }
    }
}

impl BusDevice for I8042Reset {
    /// The status register: both buffers empty.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            self.end.report(Outcome::Reset);
        }
    }
}

/// The timing port: a guest's init writes one byte when it starts and one before it powers off
/// ([`TimingMark`]). Other bytes mean nothing.
pub struct TimingPort {
    timeline: Arc<Timeline>,
}

impl TimingPort {
    /// A device that records into `timeline`.
    pub fn new(timeline: Arc<Timeline>) -> Self {
        Self { timeline }
    }
}

impl BusDevice for TimingPort {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        let &[byte] = data else { return };
        match TimingMark::from_byte(byte) {
            Some(TimingMark::InitStarted) => self.timeline.record(Mark::InitStarted),
            Some(TimingMark::InitPowerOff) => self.timeline.record(Mark::PowerOffBegins),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    fn end() -> Arc<End> {
        Arc::new(End::new(EventFd::new(0).unwrap()))
    }

    #[test]
    fn a_panic_is_reported_and_a_crash_kernel_is_not() {
        let end = end();
        let device = Pvpanic::new(end.clone());
        device.write(0, &[2]);
        assert!(!end.has_panicked());
        device.write(0, &[1]);
        assert!(end.has_panicked() && end.outcome().is_none());
    }

    #[test]
    fn only_the_reset_pulse_resets() {
        let end = end();
        let device = I8042Reset::new(end.clone());
        device.write(0, &[0xd1]);
        device.write(0, &[0xfe, 0]);
        assert_eq!(end.outcome(), None);
        device.write(0, &[0xfe]);
        assert_eq!(end.outcome(), Some(&Outcome::Reset));
    }

    #[test]
    fn the_timing_port_records_its_two_bytes_once() {
        let timeline = Arc::new(Timeline::default());
        let device = TimingPort::new(timeline.clone());
        device.write(0, &[9]);
        assert_eq!(timeline.times().at(Mark::InitStarted), None);
        device.write(0, &[TimingMark::InitStarted as u8]);
        device.write(0, &[TimingMark::InitPowerOff as u8]);
        assert!(timeline.times().between(Mark::InitStarted, Mark::PowerOffBegins).is_some());
    }
}
