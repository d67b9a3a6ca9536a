//! A 16550 serial port with interrupts and flow control in both directions.
//!
//! Bytes that the guest sends wait in a bounded buffer until the VM's main thread takes them; while
//! it is full the transmitter says that it is busy, so a slow reader slows the guest's writer
//! instead of losing its bytes or blocking its vCPU. (vm-superio's `Serial` writes through to its
//! output from the vCPU's thread and has no such state, which is why this port is our own.) Bytes
//! for the guest wait in a receive FIFO that is refilled when the guest has emptied it, and not
//! while the guest holds RTS low.
//!
//! Interrupts are edges: one is raised whenever a condition that the guest enabled becomes true.
//! The device owns no thread. Register names as in the data sheet of the PC16550D.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RECEIVED: u8 = 1;
const IER_TRANSMITTER_EMPTY: u8 = 2;
const IER_VALID: u8 = 0xf;
const IIR_NONE: u8 = 1;
const IIR_TRANSMITTER_EMPTY: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const IIR_FIFO: u8 = 0xc0;
const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVE: u8 = 2;
const LCR_DLAB: u8 = 0x80;
const MCR_RTS: u8 = 2;
const MCR_LOOP: u8 = 0x10;
const MCR_VALID: u8 = 0x1f;
const LSR_DATA_READY: u8 = 1;
/// Transmitter holding register and shift register empty.
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;
/// Carrier, data set ready, clear to send: a peer that is always there.
const MSR_PEER: u8 = 0xb0;

/// Bytes for the guest that wait in the FIFO. Small enough that a guest's interrupt handler, which
/// reads until it is empty, comes to an end and lets the reader run.
const RECEIVE_CAPACITY: usize = 64;
/// Bytes from the guest that wait before the transmitter is busy.
const TRANSMIT_CAPACITY: usize = 16 * 1024;
/// Bytes from the guest that are kept although the transmitter was busy: a kernel's console gives
/// up waiting after some milliseconds and writes anyway. Beyond that they are lost, as on a real
/// port.
const TRANSMIT_OVERRUN: usize = 16 * 1024;

/// The serial port: the guest's side is [`BusDevice`], the host's side is the methods.
pub struct Serial {
    port: Mutex<Port>,
    interrupt_evt: EventFd,
    host_evt: EventFd,
}

/// Its registers, and the bytes that wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    fifo_enabled: bool,
    /// The transmitter became empty and the guest hasn't looked at IIR since.
    transmit_pending: bool,
    receive: VecDeque<u8>,
    transmit: VecDeque<u8>,
}

impl Serial {
    /// A port that raises its interrupt by `interrupt_evt`, and signals `host_evt` when there are
    /// bytes to [`take`](Self::take) or when it has [`room`](Self::room) again.
    pub fn new(interrupt_evt: EventFd, host_evt: EventFd) -> Self {
        let port = Port {
            ier: 0,
            lcr: 3,
            mcr: 8,
            scr: 0,
            divisor: [12, 0],
            fifo_enabled: false,
            transmit_pending: false,
            receive: VecDeque::with_capacity(RECEIVE_CAPACITY),
            transmit: VecDeque::new(),
        };
        Self { port: Mutex::new(port), interrupt_evt, host_evt }
    }

    /// All of it, as plain data.
    pub fn state(&self) -> Port {
        self.lock().clone()
    }

    /// Becomes what another port was. On `Err`, which says what is wrong, it is as it was. Its
    /// interrupt is raised, in case one was on its way: to a driver one too many is nothing.
    pub fn restore(&self, state: Port) -> Result<(), String> {
        if state.receive.len() > RECEIVE_CAPACITY
            || state.transmit.len() > TRANSMIT_CAPACITY + TRANSMIT_OVERRUN
            || state.ier & !IER_VALID != 0
            || state.mcr & !MCR_VALID != 0
        {
            return Err("no serial port can be like that".to_owned());
        }
        *self.lock() = state;
        signal(&self.host_evt);
        self.interrupt();
        Ok(())
    }

    /// How many bytes [`give`](Self::give) accepts now.
    pub fn room(&self) -> usize {
        self.lock().room()
    }

    /// Gives the guest as many of `bytes` as fit, and says how many that were.
    pub fn give(&self, bytes: &[u8]) -> usize {
        let mut port = self.lock();
        let fitting = &bytes[..bytes.len().min(port.room())];
        port.receive.extend(fitting);
        if !fitting.is_empty() && port.ier & IER_RECEIVED != 0 {
            self.interrupt();
        }
        fitting.len()
    }

    /// Takes all bytes that the guest sent.
    pub fn take(&self) -> Vec<u8> {
        let mut port = self.lock();
        let was_busy = !port.transmitter_empty();
        let bytes = port.transmit.drain(..).collect();
        if was_busy {
            self.transmitter_became_empty(&mut port);
        }
        bytes
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self) {
        signal(&self.interrupt_evt);
    }

    fn transmitter_became_empty(&self, port: &mut Port) {
        // While it is pending, an edge is on its way that the guest hasn't answered yet.
        if !std::mem::replace(&mut port.transmit_pending, true) && port.ier & IER_TRANSMITTER_EMPTY != 0 {
            self.interrupt();
        }
    }

    fn read_register(&self, offset: u64) -> u8 {
        let mut port = self.lock();
        match offset {
            DATA if port.dlab() => port.divisor[0],
            IER if port.dlab() => port.divisor[1],
            DATA => {
                let byte = port.receive.pop_front().unwrap_or(0);
                if port.receive.is_empty() && port.room() > 0 {
                    signal(&self.host_evt);
                }
                byte
            }
            IER => port.ier,
            IIR_FCR => port.identify_interrupt(),
            LCR => port.lcr,
            MCR => port.mcr,
            LSR => port.line_status(),
            MSR => port.modem_status(),
            SCR => port.scr,
            _ => 0xff,
        }
    }

    fn write_register(&self, offset: u64, value: u8) {
        let mut port = self.lock();
        match offset {
            DATA if port.dlab() => port.divisor[0] = value,
            IER if port.dlab() => port.divisor[1] = value,
            DATA => self.transmit(&mut port, value),
            IER => {
                let enabled = value & !port.ier;
                port.ier = value & IER_VALID;
                if enabled & IER_TRANSMITTER_EMPTY != 0 && port.transmitter_empty() {
                    port.transmit_pending = true;
                    self.interrupt();
                } else if enabled & IER_RECEIVED != 0 && !port.receive.is_empty() {
                    self.interrupt();
                }
            }
            IIR_FCR => {
                port.fifo_enabled = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVE != 0 {
                    port.receive.clear();
                    signal(&self.host_evt);
                }
            }
            LCR => port.lcr = value,
            MCR => {
                let had_room = port.room() > 0;
                port.mcr = value & MCR_VALID;
                if !had_room && port.room() > 0 {
                    signal(&self.host_evt);
                }
            }
            SCR => port.scr = value,
            _ => {}
        }
    }

    fn transmit(&self, port: &mut Port, byte: u8) {
        if port.mcr & MCR_LOOP != 0 {
            if port.receive.len() < RECEIVE_CAPACITY {
                port.receive.push_back(byte);
            }
        } else if port.transmit.len() < TRANSMIT_CAPACITY + TRANSMIT_OVERRUN {
            if port.transmit.is_empty() {
                signal(&self.host_evt);
            }
            port.transmit.push_back(byte);
        }
        if port.transmitter_empty() {
            self.transmitter_became_empty(port);
        } else {
            port.transmit_pending = false;
        }
    }
}

impl Port {
    fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    /// RTS is low after a reset, so that nothing arrives before a driver is there: Linux empties
    /// the FIFO when it finds the port. Refilled only when empty: the FIFO's end is what lets a
    /// guest's interrupt handler return.
    fn room(&self) -> usize {
        let ready = self.receive.is_empty() && self.mcr & (MCR_RTS | MCR_LOOP) == MCR_RTS;
        if ready { RECEIVE_CAPACITY } else { 0 }
    }

    fn transmitter_empty(&self) -> bool {
        self.transmit.len() < TRANSMIT_CAPACITY
    }

    fn identify_interrupt(&mut self) -> u8 {
        let fifo = if self.fifo_enabled { IIR_FIFO } else { 0 };
        let cause = if self.ier & IER_RECEIVED != 0 && !self.receive.is_empty() {
            IIR_RECEIVED
        } else if self.ier & IER_TRANSMITTER_EMPTY != 0 && self.transmit_pending {
            self.transmit_pending = false;
            IIR_TRANSMITTER_EMPTY
        } else {
            IIR_NONE
        };
        fifo | cause
    }

    fn line_status(&self) -> u8 {
        let received = if self.receive.is_empty() { 0 } else { LSR_DATA_READY };
        let transmitter = if self.transmitter_empty() { LSR_TRANSMITTER_EMPTY } else { 0 };
        received | transmitter
    }

    /// In loopback the outputs are wired to the inputs: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to
    /// DCD.
    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_PEER;
        }
        (self.mcr & 1) << 5 | (self.mcr & 2) << 3 | (self.mcr & 4) << 4 | (self.mcr & 8) << 4
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.read_register(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let &[byte] = data {
            self.write_register(offset, byte);
        }
    }
}

fn signal(evt: &EventFd) {
    if let Err(error) = evt.write(1) {
        // The counter is full: whoever reads it has a signal waiting anyway.
        log::debug!("serial eventfd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial() -> Serial {
        let evt = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let serial = Serial::new(evt(), evt());
        serial.write_register(MCR, MCR_RTS);
        drain(&serial.host_evt);
        serial
    }

    fn drain(evt: &EventFd) -> u64 {
        evt.read().unwrap_or(0)
    }

    #[test]
    fn sent_bytes_are_taken_in_order_with_one_signal() {
        let serial = serial();
        for byte in *b"hello" {
            serial.write(DATA, &[byte]);
        }
        assert_eq!(drain(&serial.host_evt), 1);
        assert_eq!(serial.take(), b"hello");
        assert_eq!(serial.take(), b"");
    }

    #[test]
    fn a_full_transmitter_is_busy_until_it_is_taken_and_then_interrupts() {
        let serial = serial();
        serial.write_register(IER, IER_TRANSMITTER_EMPTY);
        for _ in 0..TRANSMIT_CAPACITY {
            assert_eq!(serial.read_register(LSR) & LSR_TRANSMITTER_EMPTY, LSR_TRANSMITTER_EMPTY);
            serial.write_register(DATA, b'x');
        }
        assert_eq!(serial.read_register(LSR) & LSR_TRANSMITTER_EMPTY, 0);
        assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_NONE);
        drain(&serial.interrupt_evt);
        assert_eq!(serial.take().len(), TRANSMIT_CAPACITY);
        assert_eq!(drain(&serial.interrupt_evt), 1);
        assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_TRANSMITTER_EMPTY);
        assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_NONE);
    }

    #[test]
    fn a_guest_that_never_stops_sending_is_bounded() {
        let serial = serial();
        for _ in 0..2 * (TRANSMIT_CAPACITY + TRANSMIT_OVERRUN) {
            serial.write_register(DATA, b'x');
        }
        assert_eq!(serial.take().len(), TRANSMIT_CAPACITY + TRANSMIT_OVERRUN);
    }

    #[test]
    fn received_bytes_interrupt_and_the_emptied_fifo_asks_for_more() {
        let serial = serial();
        serial.write_register(IER, IER_RECEIVED);
        assert_eq!(serial.give(&[7; 100]), RECEIVE_CAPACITY);
        assert_eq!(serial.give(&[8]), 0);
        assert_eq!(drain(&serial.interrupt_evt), 1);
        assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_RECEIVED);
        for _ in 0..RECEIVE_CAPACITY {
            assert_eq!(drain(&serial.host_evt), 0);
            assert_eq!(serial.read_register(LSR) & LSR_DATA_READY, 1);
            assert_eq!(serial.read_register(DATA), 7);
        }
        assert_eq!(serial.read_register(LSR) & LSR_DATA_READY, 0);
        assert_eq!(drain(&serial.host_evt), 1);
        assert_eq!(serial.room(), RECEIVE_CAPACITY);
    }

    #[test]
    fn a_guest_that_lowers_rts_gets_nothing_until_it_raises_it() {
        let serial = serial();
        serial.write_register(MCR, 0);
        assert_eq!(serial.give(b"x"), 0);
        serial.write_register(MCR, MCR_RTS);
        assert_eq!(drain(&serial.host_evt), 1);
        assert_eq!(serial.give(b"x"), 1);
    }

    #[test]
    fn enabling_the_transmitter_interrupt_while_empty_raises_it() {
        let serial = serial();
        serial.write_register(IER, IER_TRANSMITTER_EMPTY);
        assert_eq!(drain(&serial.interrupt_evt), 1);
        assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_TRANSMITTER_EMPTY);
        serial.write_register(DATA, b'a');
        serial.write_register(DATA, b'b');
        assert_eq!(drain(&serial.interrupt_evt), 1);
    }

    #[test]
    fn a_driver_that_probes_finds_a_16550_with_working_loopback() {
        let serial = serial();
        serial.write_register(IIR_FCR, FCR_ENABLE);
        assert_eq!(serial.read_register(IIR_FCR) & IIR_FIFO, IIR_FIFO);
        serial.write_register(SCR, 0x5a);
        assert_eq!(serial.read_register(SCR), 0x5a);
        serial.write_register(MCR, MCR_LOOP | 0x0a);
        assert_eq!(serial.read_register(MSR) & 0xf0, 0x90);
        serial.write_register(DATA, b'z');
        assert_eq!(serial.read_register(DATA), b'z');
        assert_eq!(serial.take(), b"");
        serial.write_register(LCR, LCR_DLAB);
        serial.write_register(DATA, 1);
        assert_eq!(serial.read_register(DATA), 1);
    }

    #[test]
    fn accesses_of_other_widths_and_offsets_are_harmless() {
        let serial = serial();
        for offset in 0..16 {
            serial.write(offset, &[1, 2, 3, 4]);
            let mut data = [0xff; 2];
            serial.read(offset, &mut data);
            assert_eq!(data, [0xff; 2]);
        }
        assert_eq!(serial.read_register(9), 0xff);
    }

    #[test]
    fn another_port_goes_on_with_the_bytes_that_wait() {
        let wired = || {
            let evts = [(); 2].map(|()| EventFd::new(libc::EFD_NONBLOCK).unwrap());
            let [interrupt, host] = [0, 1].map(|which: usize| evts[which].try_clone().unwrap());
            (Serial::new(interrupt, host), evts)
        };
        let (port, _) = wired();
        for (register, value) in [(MCR, MCR_RTS), (IER, IER_RECEIVED), (SCR, 7), (DATA, b'x')] {
            port.write(register, &[value]);
        }
        assert_eq!(port.give(b"typed"), 5);
        let state = serde_json::to_string(&port.state()).unwrap();
        let (other, evts) = wired();
        other.restore(serde_json::from_str(&state).unwrap()).unwrap();
        assert!(evts.iter().all(|evt| evt.read().is_ok()), "the guest and the host look");
        assert_eq!((other.state(), other.take()), (port.state(), b"x".to_vec()));
        let mut byte = [0];
        other.read(DATA, &mut byte);
        assert_eq!(byte, *b"t");
        let mut bad = other.state();
        bad.receive.resize(RECEIVE_CAPACITY + 1, 0);
        assert!(other.restore(bad).is_err());
    }
}
