//! Devices that are not virtio: the serial port, the IOAPIC, ACPI's registers, pvpanic, the reset
//! port and the timing port. They see the machine only through buses, eventfds and
//! [`crate::outcome::End`].

pub mod acpi;
pub mod ioapic;
pub mod ports;
pub mod serial;
