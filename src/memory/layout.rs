//! Every guest address, port and interrupt number that bothy chooses, as a named constant.
//!
//! Guest-physical, x86-64:
//!
//! ```text
//! 0x0000_0000  low memory: boot structures, the command line
//! 0x0009_fc00  reserved; ACPI tables from 0x000e_0000
//! 0x0010_0000  memory, up to 3 GiB
//! 0xc000_0000  32-bit window for PCI BARs
//! 0xd000_0000  virtio-mmio devices, a page each
//! 0xe000_0000  PCI configuration spaces (ECAM), one bus
//! 0xfec0_0000  IOAPIC; local APIC at 0xfee0_0000; KVM's own pages at 0xfffb_c000
//! 0x1_0000_0000  the rest of memory, then the 64-bit window for PCI BARs
//! ```
//!
//! A snapshot holds these numbers, so they don't change once there are snapshots: room for PCI is
//! kept from the start.

/// Global descriptor table of the boot processor.
pub const GDT_GPA: u64 = 0x500;
/// Interrupt descriptor table: one empty entry.
pub const IDT_GPA: u64 = 0x540;
/// `hvm_start_info` of the PVH protocol, with its one module entry behind it.
pub const PVH_START_INFO_GPA: u64 = 0x6000;
/// `hvm_modlist_entry` of the initramfs.
pub const PVH_MODLIST_GPA: u64 = 0x6040;
/// Memory map of the PVH protocol.
pub const PVH_MEMMAP_GPA: u64 = 0x6080;
/// `boot_params` ("zero page") of the Linux boot protocol, one page.
pub const ZERO_PAGE_GPA: u64 = 0x7000;
/// Top of the boot stack: a kernel gets a valid one although the protocol asks for none.
pub const BOOT_STACK_GPA: u64 = 0x8ff0;
/// Page tables for the 64-bit entry: PML4, then PDPT, then one page directory that maps the first
/// GiB.
pub const PML4_GPA: u64 = 0x9000;
/// Second level.
pub const PDPT_GPA: u64 = 0xa000;
/// Third level: 512 pages of 2 MiB.
pub const PD_GPA: u64 = 0xb000;
/// The kernel command line.
pub const CMDLINE_GPA: u64 = 0x2_0000;
/// Longest command line in bytes, its NUL included: COMMAND_LINE_SIZE of Linux on x86.
pub const CMDLINE_MAX: usize = 2048;
/// End of low memory, where an EBDA would begin.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The RSDP: 16-byte aligned in the range that an ACPI scan searches (ACPI 6.5 §5.2.5.1).
pub const RSDP_GPA: u64 = 0xe_0000;
/// The VM generation ID, 16 bytes, between the RSDP and the other tables: a page that guests have
/// for nothing else.
pub const GENERATION_ID_GPA: u64 = 0xe_0030;
/// The other ACPI tables, up to the reset vector.
pub const ACPI_TABLES_GPA: u64 = 0xe_0040;
/// Where real mode goes on after a reset: the last 16 bytes below 1 MiB.
pub const RESET_VECTOR_GPA: u64 = 0xf_fff0;
/// Where kernels live.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// First address that memory leaves free below 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where memory goes on.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// The BARs of PCI functions: that of device `n` stands at `PCI_WINDOW_GPA + n * PCI_BAR_STRIDE`.
pub const PCI_WINDOW_GPA: u64 = 0xc000_0000;
/// Size of the window for BARs.
pub const PCI_WINDOW_LEN: u64 = 0x1000_0000;
/// From one function's BAR to the next one's.
pub const PCI_BAR_STRIDE: u64 = 0x8000;
/// The configuration spaces of bus 0 (PCI Express 5.0 §7.2.2): that of device `n` stands at
/// `PCI_ECAM_GPA + n * PCI_ECAM_STRIDE`.
pub const PCI_ECAM_GPA: u64 = 0xe000_0000;
/// Size of the configuration spaces of a bus.
pub const PCI_ECAM_LEN: u64 = 0x10_0000;
/// From a device to the next one: a page for each of eight functions.
pub const PCI_ECAM_STRIDE: u64 = 0x8000;
/// Devices of a bus.
pub const PCI_DEVICES: u64 = PCI_ECAM_LEN / PCI_ECAM_STRIDE;
/// virtio-mmio device `n` stands at `VIRTIO_MMIO_GPA + n * VIRTIO_MMIO_LEN`.
pub const VIRTIO_MMIO_GPA: u64 = 0xd000_0000;
/// Size of a virtio-mmio device's registers.
pub const VIRTIO_MMIO_LEN: u64 = 0x1000;
/// The IOAPIC's registers, where every PC has them.
pub const IOAPIC_GPA: u64 = 0xfec0_0000;
/// Size of the IOAPIC's registers.
pub const IOAPIC_LEN: u64 = 0x20;
/// The local APIC's registers, where every PC has them.
pub const LAPIC_GPA: u64 = 0xfee0_0000;
/// KVM's page for real mode on Intel processors; its TSS (3 pages) stands behind it.
pub const KVM_IDENTITY_MAP_GPA: u64 = 0xfffb_c000;
/// KVM's TSS for real mode on Intel processors.
pub const KVM_TSS_GPA: u64 = 0xfffb_d000;

/// COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of a 16550.
pub const SERIAL_LEN: u16 = 8;
/// Interrupt of COM1, as on every PC.
pub const SERIAL_GSI: u32 = 4;
/// The keyboard controller's command port: writing 0xfe resets the machine.
pub const I8042_PORT: u16 = 0x64;
/// pvpanic, where QEMU has it.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI sleep control register (1 byte), sleep status (1 byte), reset register (1 byte), and from
/// offset 4 on the Generic Event Device's event register (4 bytes).
pub const ACPI_PORT: u16 = 0x600;
/// Ports of the ACPI registers.
pub const ACPI_PORT_LEN: u16 = 8;
/// Interrupt of the Generic Event Device. Low like all others: the IOAPIC shows a guest no more
/// pins than it has to.
pub const ACPI_GED_GSI: u32 = 3;
/// Where a guest's init says how far it got (1 byte, write only).
pub const TIMING_PORT: u16 = bothy_guest::TIMING_PORT;

/// Pins of the IOAPIC.
pub const IOAPIC_PINS: u32 = 24;
/// Pins that virtio devices use, one each, in this order: all behind COM1's and the GED's. The
/// first few PCs give to a timer and a keyboard.
pub const VIRTIO_GSIS: [u32; 19] = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
