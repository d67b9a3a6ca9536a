//! The MMIO transport, version 2 (virtio 1.2 §4.2): one page of registers in front of a device.
//!
//! Registers take aligned 32-bit accesses and nothing else (§4.2.2.2); the configuration space
//! behind them takes any. A notification and the interrupt's status and acknowledgement take no
//! lock; the rest is set-up, under one.
//!
//! It never trusts a register: an offset, a queue index or an address that makes no sense is
//! reported (a few times) and ignored, or makes the device DEVICE_NEEDS_RESET where it could not
//! work.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::device::VirtioDevice;
use super::interrupt::Interrupt;
use super::queue::QueueLayout;
use super::spec::mmio as reg;
use super::state::{State, StateError, recall, remember};
use super::transport::{Attached, Signals, Transport, set_high, set_low};
use crate::bounded_log::BoundedLog;
use crate::bus::{BusDevice, Doorbell, Doorbells};
use crate::memory::GuestMemory;

/// Bytes of address space that a device takes.
pub const WINDOW_LEN: u64 = 0x1000;

/// Where the doorbell is, from the window's start.
const NOTIFY: u64 = reg::QUEUE_NOTIFY as u64;
/// Where the configuration space begins, from the window's start.
const CONFIG: u64 = reg::CONFIG as u64;

/// A virtio device behind a window of registers.
pub struct MmioTransport {
    inner: Mutex<Inner>,
    // Outside the lock: what happens once per interrupt or notification.
    interrupt_status: Arc<AtomicU32>,
    kick_evts: Vec<Arc<EventFd>>,
}

struct Inner {
    transport: Transport,
    // The selectors of §4.2.2: which word or queue the registers behind them speak of.
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl MmioTransport {
    /// Puts `device` behind the window that begins at `base_gpa`. Interrupts are edges on
    /// `irq_evt`. Makes an eventfd per queue.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        base_gpa: u64,
        mem: Arc<GuestMemory>,
        irq_evt: &Arc<EventFd>,
        doorbells: Arc<dyn Doorbells>,
    ) -> io::Result<Self> {
        let interrupt_status = Arc::new(AtomicU32::new(0));
        let interrupt = |bit| Interrupt::line(irq_evt.clone(), interrupt_status.clone(), bit);
        let signals = Signals {
            queues: device.queue_sizes().iter().map(|_| interrupt(reg::INT_VRING)).collect(),
            config: interrupt(reg::INT_CONFIG),
            doorbells,
            bells: (0..)
                .zip(device.queue_sizes())
                .map(|(index, _)| Doorbell { gpa: base_gpa + NOTIFY, value: Some(index) })
                .collect(),
        };
        let log = Arc::new(BoundedLog::new(format!("virtio device {} at {base_gpa:#x}", device.kind())));
        let transport = Transport::new(device, mem, signals, log)?;
        let kick_evts = transport.kick_evts();
        let inner = Inner { transport, device_features_sel: 0, driver_features_sel: 0, queue_sel: 0 };
        Ok(Self { inner: Mutex::new(inner), interrupt_status, kick_evts })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic under this lock ends the process")
    }

    fn read_register(&self, offset: u32) -> Option<u32> {
        Some(match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => reg::VERSION_2,
            reg::VENDOR_ID => reg::VENDOR,
            reg::INTERRUPT_STATUS => self.interrupt_status.load(Ordering::SeqCst),
            // No shared memory region has a length or a base of all ones (§4.2.2).
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => u32::MAX,
            _ => return self.inner().read(offset),
        })
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            reg::QUEUE_NOTIFY => {
                let kick_evt = usize::try_from(value).ok().and_then(|index| self.kick_evts.get(index));
                if let Some(kick_evt) = kick_evt {
                    // EAGAIN when the counter is full: rung enough.
                    let _ = kick_evt.write(1);
                }
            }
            reg::INTERRUPT_ACK => {
                self.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            reg::STATUS => {
                let mut inner = self.inner();
                inner.transport.set_status(value);
                if value == 0 {
                    inner.device_features_sel = 0;
                    inner.driver_features_sel = 0;
                    inner.queue_sel = 0;
                    // The device has stopped: nothing sets a bit any more.
                    self.interrupt_status.store(0, Ordering::SeqCst);
                }
            }
            _ => self.inner().write(offset, value),
        }
    }
}

impl Inner {
    fn read(&self, offset: u32) -> Option<u32> {
        let transport = &self.transport;
        Some(match offset {
            reg::DEVICE_ID => transport.device().kind(),
            reg::DEVICE_FEATURES => transport.offered_features(self.device_features_sel),
            reg::QUEUE_NUM_MAX => transport.queue_max_size(self.queue_sel),
            reg::QUEUE_READY => u32::from(transport.queue_ready(self.queue_sel)),
            reg::STATUS => transport.status(),
            reg::CONFIG_GENERATION => transport.generation(),
            _ => return None,
        })
    }

    fn write(&mut self, offset: u32, value: u32) {
        let (transport, queue) = (&mut self.transport, self.queue_sel);
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => transport.accept_features(self.driver_features_sel, value),
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NUM => transport.set_queue_layout(queue, |layout| layout.size = value),
            reg::QUEUE_READY => transport.set_queue_ready(queue, value != 0),
            reg::QUEUE_DESC_LOW
            | reg::QUEUE_DESC_HIGH
            | reg::QUEUE_DRIVER_LOW
            | reg::QUEUE_DRIVER_HIGH
            | reg::QUEUE_DEVICE_LOW
            | reg::QUEUE_DEVICE_HIGH => {
                transport.set_queue_layout(queue, |layout| set_address(layout, offset, value));
            }
            // No device of ours has shared memory, so that every choice has the same answer.
            reg::SHM_SEL => {}
            _ => transport.complain(format_args!("a write to register {offset:#x}, which can't be written")),
        }
    }
}

/// What the registers remember.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    interrupt_status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl Attached for MmioTransport {
    fn stop(&self) {
        drop(self.inner().transport.stop());
    }

    fn suspend(&self) -> State {
        let mut inner = self.inner();
        let state = inner.transport.suspend();
        let registers = remember(&Registers {
            interrupt_status: self.interrupt_status.load(Ordering::SeqCst),
            device_features_sel: inner.device_features_sel,
            driver_features_sel: inner.driver_features_sel,
            queue_sel: inner.queue_sel,
        });
        State { registers, ..state }
    }

    fn restore(&self, state: &State) -> Result<(), StateError> {
        let registers = recall(&state.registers).map_err(|why| StateError { kind: state.kind, why })?;
        let mut inner = self.inner();
        inner.transport.restore(state)?;
        let Registers { interrupt_status, device_features_sel, driver_features_sel, queue_sel } = registers;
        self.interrupt_status.store(interrupt_status & (reg::INT_VRING | reg::INT_CONFIG), Ordering::SeqCst);
        (inner.device_features_sel, inner.driver_features_sel) = (device_features_sel, driver_features_sel);
        inner.queue_sel = queue_sel;
        Ok(())
    }

    fn resume(&self) {
        self.inner().transport.resume();
    }
}

/// Takes a half of an address, by the register that it was written to.
fn set_address(layout: &mut QueueLayout, register: u32, value: u32) {
    match register {
        reg::QUEUE_DESC_LOW => set_low(&mut layout.desc_table, value),
        reg::QUEUE_DESC_HIGH => set_high(&mut layout.desc_table, value),
        reg::QUEUE_DRIVER_LOW => set_low(&mut layout.avail_ring, value),
        reg::QUEUE_DRIVER_HIGH => set_high(&mut layout.avail_ring, value),
        reg::QUEUE_DEVICE_LOW => set_low(&mut layout.used_ring, value),
        reg::QUEUE_DEVICE_HIGH => set_high(&mut layout.used_ring, value),
        _ => unreachable!("not the register of an address"),
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.inner().transport.read_config(offset, data);
        } else if let (Ok(data), Some(offset)) = (<&mut [u8; 4]>::try_from(data), register(offset)) {
            // What is no register reads as 0, like the reserved bits of those that are.
            *data = self.read_register(offset).unwrap_or(0).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.inner().transport.write_config(offset, data);
        } else if let (Ok(data), Some(offset)) = (<[u8; 4]>::try_from(data), register(offset)) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

fn register(offset: u64) -> Option<u32> {
    u32::try_from(offset).ok().filter(|offset| offset % 4 == 0)
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
