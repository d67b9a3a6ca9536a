//! The ACPI tables, through which a guest finds everything: RSDP, XSDT, FADT, MADT, DSDT, and the
//! MCFG of a PCI bus.
//!
//! Hardware-reduced ACPI (ACPI 6.5 §4.1): no SCI, no PM1 block, no legacy PIC. Sleep and reset are
//! registers that the FADT names; the power button and a new generation ID are events of a Generic
//! Event Device. Every interrupt is edge-triggered, active high. Tables are built by the
//! `acpi_tables` crate; this module chooses what they say.

use acpi_tables::aml::{self, Path, ResourceTemplate, Scope};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::devices::acpi as registers;
use crate::memory::{GuestMemory, layout};
use crate::random;

const OEM_ID: [u8; 6] = *b"BOTHY ";
const OEM_TABLE_ID: [u8; 8] = *b"BOTHYVM ";
const OEM_REVISION: u32 = 1;
/// DSDT revision 2: 64-bit integers.
const DSDT_REVISION: u8 = 2;
/// FADT IAPC_BOOT_ARCH (ACPI 6.5 table 5.11): no VGA, no CMOS RTC. Bit 1 clear says that there is
/// no i8042.
const BOOT_ARCH_NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;
/// Device-specific notification of a button: pressed.
const NOTIFY_BUTTON_PRESSED: u8 = 0x80;
/// Device-specific notification of the VM generation counter: another ID.
const NOTIFY_GENERATION_CHANGED: u8 = 0x80;

/// The hardware that the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// vCPUs; their APIC ids count from 0.
    pub cpus: u8,
    /// Whether there is a serial port.
    pub serial: bool,
    /// The virtio-mmio devices.
    pub virtio: Vec<VirtioSlot>,
    /// Whether there is a PCI bus.
    pub pci: bool,
}

/// Where a virtio-mmio device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Its registers.
    pub gpa: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// Writes all tables into guest memory, and a VM generation ID that no other VM has had.
pub fn write_tables(mem: &GuestMemory, platform: &Platform) -> Result<(), BootError> {
    let mut writer = Writer { mem, next: layout::ACPI_TABLES_GPA };
    let dsdt = writer.write(&dsdt(platform))?;
    let fadt = writer.write(&fadt(dsdt))?;
    let madt = writer.write(&madt(platform.cpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if platform.pci {
        xsdt.add_entry(writer.write(&mcfg())?);
    }
    let xsdt = writer.write(&xsdt)?;
    Writer { mem, next: layout::RSDP_GPA }.write(&Rsdp::new(OEM_ID, xsdt))?;
    renew_generation(mem)
}

/// Writes a VM generation ID that no other VM has had.
pub fn renew_generation(mem: &GuestMemory) -> Result<(), BootError> {
    let id: [u8; 16] = random::bytes().map_err(BootError::Random)?;
    mem.write_slice(&id, GuestAddress(layout::GENERATION_ID_GPA))?;
    Ok(())
}

struct Writer<'a> {
    mem: &'a GuestMemory,
    next: u64,
}

impl Writer<'_> {
    /// Writes a table and says where it stands.
    fn write(&mut self, table: &dyn Aml) -> Result<u64, BootError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let (gpa, end) = (self.next, self.next + bytes.len() as u64);
        if end > layout::RESET_VECTOR_GPA {
            return Err(BootError::Params(format!("the ACPI tables end at {end:#x}, in the reset vector")));
        }
        self.mem.write_slice(&bytes, GuestAddress(gpa))?;
        self.next = end.next_multiple_of(16);
        Ok(gpa)
    }
}

fn register(offset: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(layout::ACPI_PORT + offset))
}

fn fadt(dsdt_gpa: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt_gpa)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH_NO_VGA_NO_RTC.into();
    fadt.reset_reg = register(registers::RESET);
    fadt.reset_value = registers::RESET_VALUE;
    fadt.sleep_control_reg = register(registers::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(registers::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"bothy\0\0\0").into();
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let lapic = u32::try_from(layout::LAPIC_GPA).expect("below 4 GiB");
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(lapic));
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, u32::try_from(layout::IOAPIC_GPA).expect("below 4 GiB"), 0));
    madt
}

/// Where the configuration spaces of the PCI bus are.
fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_ECAM_GPA, 0, 0, 0);
    mcfg
}

/// The DSDT: a table header, then AML.
struct Dsdt(Sdt);

impl Aml for Dsdt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

fn dsdt(platform: &Platform) -> impl Aml {
    let mut body = Vec::new();
    let serial = platform.serial.then_some(Serial);
    let virtio: Vec<Virtio> =
        (0..).zip(&platform.virtio).map(|(index, slot)| Virtio { index, slot: *slot }).collect();
    let mut devices: Vec<&dyn Aml> = vec![&EventDevice, &PowerButton, &Generation, &Pvpanic];
    devices.extend(serial.iter().map(|device| -> &dyn Aml { device }));
    devices.extend(virtio.iter().map(|device| -> &dyn Aml { device }));
    if platform.pci {
        devices.push(&PciBus);
        devices.push(&Ecam);
    }
    Scope::new(Path::new("_SB_"), devices).to_aml_bytes(&mut body);
    let zero = aml::ZERO;
    let s5 = aml::Package::new(vec![&registers::SLEEP_TYPE_S5, &zero, &zero, &zero]);
    aml::Name::new(Path::new("_S5_"), &s5).to_aml_bytes(&mut body);
    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    Dsdt(table)
}

fn interrupt(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

fn ports(first: u16, len: u8) -> aml::IO {
    aml::IO::new(first, first, 1, len)
}

fn device(sink: &mut dyn AmlSink, name: &str, children: Vec<&dyn Aml>) {
    aml::Device::new(Path::new(name), children).to_aml_bytes(sink);
}

/// The Generic Event Device (ACPI 6.5 §5.6.9): its interrupt's method reads and clears the pending
/// events.
struct EventDevice;

impl Aml for EventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (base, len) = (layout::ACPI_PORT + registers::EVENTS, 4u8);
        let region = aml::OpRegion::new(Path::new("ESTR"), aml::OpRegionSpace::SystemIO, &base, &len);
        let field = aml::Field::new(
            Path::new("ESTR"),
            aml::FieldAccessType::DWord,
            aml::FieldLockRule::NoLock,
            aml::FieldUpdateRule::WriteAsZeroes,
            vec![aml::FieldEntry::Named(*b"ESEL", 32)],
        );
        let (events, source) = (aml::Local(0), Path::new("ESEL"));
        let read = aml::Store::new(&events, &source);
        let button_bit = aml::And::new(&aml::Local(1), &events, &registers::EVENT_POWER_BUTTON);
        let button = Path::new("\\_SB_.PWRB");
        let press = aml::Notify::new(&button, &NOTIFY_BUTTON_PRESSED);
        let press = aml::If::new(&button_bit, vec![&press]);
        let generation_bit = aml::And::new(&aml::Local(1), &events, &registers::EVENT_GENERATION);
        let generation = Path::new("\\_SB_.VGEN");
        let renew = aml::Notify::new(&generation, &NOTIFY_GENERATION_CHANGED);
        let renew = aml::If::new(&generation_bit, vec![&renew]);
        device(
            sink,
            "GED_",
            vec![
                &aml::Name::new(Path::new("_HID"), &"ACPI0013"),
                &aml::Name::new(Path::new("_UID"), &aml::ZERO),
                &aml::Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&interrupt(layout::ACPI_GED_GSI)]),
                ),
                &region,
                &field,
                &aml::Method::new(Path::new("_EVT"), 1, true, vec![&read, &press, &renew]),
            ],
        );
    }
}

struct PowerButton;

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let id = aml::EISAName::new("PNP0C0C");
        device(
            sink,
            "PWRB",
            vec![&aml::Name::new(Path::new("_HID"), &id), &aml::Name::new(Path::new("_UID"), &aml::ZERO)],
        );
    }
}

/// The VM generation counter (Microsoft, "Virtual Machine Generation ID", 2012): where the ID
/// stands.
struct Generation;

impl Aml for Generation {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let low = u32::try_from(layout::GENERATION_ID_GPA).expect("below 4 GiB");
        device(
            sink,
            "VGEN",
            vec![
                &aml::Name::new(Path::new("_HID"), &"BTHY0001"),
                &aml::Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
                &aml::Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
                &aml::Name::new(Path::new("ADDR"), &aml::Package::new(vec![&low, &aml::ZERO])),
            ],
        );
    }
}

struct Pvpanic;

impl Aml for Pvpanic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        device(
            sink,
            "PEVT",
            vec![
                &aml::Name::new(Path::new("_HID"), &"QEMU0001"),
                &aml::Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&ports(layout::PVPANIC_PORT, 1)]),
                ),
            ],
        );
    }
}

struct Serial;

impl Aml for Serial {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let id = aml::EISAName::new("PNP0501");
        let len = u8::try_from(layout::SERIAL_LEN).expect("eight ports");
        let resources = [&ports(layout::SERIAL_PORT, len) as &dyn Aml, &interrupt(layout::SERIAL_GSI)];
        device(
            sink,
            "COM1",
            vec![
                &aml::Name::new(Path::new("_HID"), &id),
                &aml::Name::new(Path::new("_UID"), &aml::ZERO),
                &aml::Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec())),
            ],
        );
    }
}

/// The PCI bus. It has no legacy interrupts, so that there is nothing to say of their routes, and
/// it isn't PCI Express, so that the guest has nothing to negotiate; its configuration spaces are
/// where the MCFG says.
struct PciBus;

impl Aml for PciBus {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let id = aml::EISAName::new("PNP0A03");
        let base = u32::try_from(layout::PCI_WINDOW_GPA).expect("below 4 GiB");
        let end = base + u32::try_from(layout::PCI_WINDOW_LEN - 1).expect("below 4 GiB");
        let numbers = aml::AddressSpace::new_bus_number(0u16, 0u16);
        let window =
            aml::AddressSpace::new_memory(aml::AddressSpaceCacheable::NotCacheable, true, base, end, None);
        device(
            sink,
            "PCI0",
            vec![
                &aml::Name::new(Path::new("_HID"), &id),
                &aml::Name::new(Path::new("_UID"), &aml::ZERO),
                &aml::Name::new(Path::new("_SEG"), &aml::ZERO),
                &aml::Name::new(Path::new("_BBN"), &aml::ZERO),
                &aml::Name::new(Path::new("_CCA"), &aml::ONE),
                &aml::Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&numbers, &window])),
            ],
        );
    }
}

/// A motherboard resource that reserves the configuration spaces, as the PCI Firmware Specification
/// 3.3 §4.1.2 asks of firmware. Without configuration type 1 (ports 0xcf8 and 0xcfc) Linux 6.1
/// takes no other reservation, not even the memory map's, and finds no PCI bus; 6.12 needs none.
struct Ecam;

impl Aml for Ecam {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let id = aml::EISAName::new("PNP0C02");
        let base = u32::try_from(layout::PCI_ECAM_GPA).expect("below 4 GiB");
        let len = u32::try_from(layout::PCI_ECAM_LEN).expect("a MiB");
        let spaces = aml::Memory32Fixed::new(true, base, len);
        device(
            sink,
            "ECAM",
            vec![
                &aml::Name::new(Path::new("_HID"), &id),
                &aml::Name::new(Path::new("_UID"), &aml::ZERO),
                &aml::Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&spaces])),
            ],
        );
    }
}

struct Virtio {
    index: u8,
    slot: VirtioSlot,
}

impl Aml for Virtio {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let base = u32::try_from(self.slot.gpa).expect("virtio-mmio lies below 4 GiB");
        let len = u32::try_from(layout::VIRTIO_MMIO_LEN).expect("a page");
        let registers = aml::Memory32Fixed::new(true, base, len);
        let resources = [&registers as &dyn Aml, &interrupt(self.slot.gsi)];
        device(
            sink,
            &format!("VR{:02}", self.index),
            vec![
                &aml::Name::new(Path::new("_HID"), &"LNRO0005"),
                &aml::Name::new(Path::new("_UID"), &self.index),
                &aml::Name::new(Path::new("_CCA"), &aml::ONE),
                &aml::Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec())),
            ],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn tables(platform: &Platform) -> GuestMemory {
        let mem = memory::create(memory::MIN_MIB, memory::Backing::default()).unwrap();
        write_tables(&mem, platform).unwrap();
        mem
    }

    fn platform(cpus: u8, devices: u32) -> Platform {
        let slot = |n| VirtioSlot { gpa: layout::VIRTIO_MMIO_GPA + u64::from(n) * 0x1000, gsi: 5 + n };
        Platform { cpus, serial: true, virtio: (0..devices).map(slot).collect(), pci: true }
    }

    fn table(mem: &GuestMemory, gpa: u64) -> Vec<u8> {
        let len: u32 = mem.read_obj(GuestAddress(gpa + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        mem.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        bytes
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn a_scan_finds_the_rsdp_and_from_there_every_table() {
        let mem = tables(&platform(3, 2));
        let mut rsdp = [0; 36];
        mem.read_slice(&mut rsdp, GuestAddress(layout::RSDP_GPA)).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(rsdp.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = table(&mem, u64_at(&rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&mem, u64_at(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(fadt[112] & 0x30, 0x30, "control-method buttons");
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        assert_eq!(&fadt[116..128], &[1, 8, 0, 1, 2, 6, 0, 0, 0, 0, 0, 0], "reset register");
        let madt = table(&mem, u64_at(&xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        let dsdt = table(&mem, u64_at(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        for name in
            [&b"VR00"[..], b"VR01", b"COM1", b"GED_", b"PWRB", b"PEVT", b"_S5_", b"LNRO0005", b"ACPI0013"]
        {
            assert!(dsdt.windows(name.len()).any(|window| window == name), "{name:?}");
        }
    }

    #[test]
    fn the_tables_of_the_largest_vm_stay_below_the_reset_vector() {
        tables(&platform(64, 18));
    }

    /// Where the device of this name begins in the DSDT, if it is there.
    fn device_at(dsdt: &[u8], name: &[u8; 4]) -> Option<usize> {
        dsdt.windows(4).position(|window| window == name)
    }

    #[test]
    fn a_motherboard_device_reserves_the_configuration_spaces_that_the_mcfg_names() {
        let mut mcfg_bytes = Vec::new();
        mcfg().to_aml_bytes(&mut mcfg_bytes);
        // The MCFG: a header of 36 bytes, 8 reserved, then base, segment, first and last bus.
        let (base, last_bus) = (u64_at(&mcfg_bytes, 44), mcfg_bytes[55]);
        let len = (u64::from(last_bus) + 1) << 20;

        let mut bytes = Vec::new();
        dsdt(&platform(1, 0)).to_aml_bytes(&mut bytes);
        let ecam = &bytes[device_at(&bytes, b"ECAM").expect("the device is there")..];
        // EISA ids: three letters of five bits, then four hex digits, big-endian.
        let hid = [b"_HID\x0c".as_slice(), &[0x41, 0xd0, 0x0c, 0x02]].concat();
        assert!(ecam.windows(hid.len()).any(|window| window == hid), "no PNP0C02");
        // Memory32Fixed (ACPI 6.5 §6.4.3.4): tag, length 9, writable, base, length.
        let mut reserved = vec![0x86, 9, 0, 1];
        reserved.extend(u32::try_from(base).unwrap().to_le_bytes());
        reserved.extend(u32::try_from(len).unwrap().to_le_bytes());
        assert!(ecam.windows(reserved.len()).any(|window| window == reserved), "not reserved: {ecam:x?}");
    }

    #[test]
    fn a_vm_without_a_pci_bus_reserves_no_configuration_spaces() {
        let mut bytes = Vec::new();
        dsdt(&Platform { pci: false, ..platform(1, 1) }).to_aml_bytes(&mut bytes);
        assert_eq!(device_at(&bytes, b"ECAM"), None);
        assert_eq!(device_at(&bytes, b"PCI0"), None);
    }

    #[test]
    fn a_vm_without_a_console_describes_no_serial_port() {
        let mut bytes = Vec::new();
        dsdt(&Platform { cpus: 1, serial: false, virtio: Vec::new(), pci: false }).to_aml_bytes(&mut bytes);
        assert!(!bytes.windows(4).any(|window| window == b"COM1"));
    }
}
