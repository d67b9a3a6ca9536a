//! The real `bothy` on the machine's own /dev/kvm, with small bare-metal guests that this program
//! assembles itself.
//!
//! A guest is an interpreter (`asm`) and a script (`script`) in an ELF file (`guest`), so a test
//! says in Rust what the guest does, and looks at what it sends to the serial port. They run on
//! hardware KVM and on software KVM alike.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

#[expect(unsafe_code, reason = "the guest is assembled in, and found by its symbols")]
mod asm;
mod guest;
mod script;

mod acpi;
mod bad_input;
mod boot_state;
mod broken_rings;
mod config_file;
mod dispatch;
mod doctor;
mod driver;
mod ends;
mod interrupts;
mod msix;
mod namespaces;
mod net;
mod pci;
mod processes;
mod processors;
mod rights;
mod serial;
mod terminal;
mod timing;
mod virtio;
mod wild_accesses;
