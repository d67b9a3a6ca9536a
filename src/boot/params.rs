//! What the kernel is told at its entry: the zero page of the Linux boot protocol, or PVH's start
//! info, with the memory map, the command line, the initramfs and the address of the RSDP.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestAddress;

use super::BootError;
use crate::memory::{self, GuestMemory, layout};

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// Boot protocol: "undefined" boot loader.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const SETUP_HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Boot protocol 2.15, for a kernel that brings no header of its own.
const PROTOCOL: u16 = 0x20f;
const KERNEL_ALIGNMENT: u32 = 0x20_0000;
/// XEN_HVM_START_MAGIC_VALUE.
const PVH_MAGIC: u32 = 0x336e_c578;
/// The first version of `hvm_start_info` with a memory map.
const PVH_VERSION: u32 = 1;

/// Where things are in guest memory.
pub(super) struct Placement {
    pub(super) memory_mib: u64,
    /// Length of the command line in bytes, without its NUL.
    pub(super) cmdline_len: usize,
    /// Start and length in bytes.
    pub(super) initrd: Option<(u64, u64)>,
}

/// The memory map: (start, length in bytes, type), the type as E820 has it. Linux uses the
/// configuration spaces of a PCI bus only where firmware reserves them: here, and as a resource of
/// a motherboard device (`boot::acpi`).
fn memory_map(memory_mib: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::LOW_MEMORY_END, E820_RAM),
        (layout::LOW_MEMORY_END, layout::HIGH_MEMORY_START - layout::LOW_MEMORY_END, E820_RESERVED),
    ];
    for (start, len) in memory::ranges(memory_mib) {
        let skip = layout::HIGH_MEMORY_START.saturating_sub(start);
        map.push((start + skip, len - skip, E820_RAM));
    }
    map.push((layout::PCI_ECAM_GPA, layout::PCI_ECAM_LEN, E820_RESERVED));
    // In order, for those who take it as it comes.
    map.sort_unstable();
    map
}

fn below_4_gib(value: u64) -> u32 {
    u32::try_from(value).expect("boot structures and the initramfs lie below 4 GiB")
}

pub(super) fn write_zero_page(
    mem: &GuestMemory,
    placement: &Placement,
    header: Option<setup_header>,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: SETUP_HEADER_MAGIC,
            version: PROTOCOL,
            kernel_alignment: KERNEL_ALIGNMENT,
            ..Default::default()
        }),
        acpi_rsdp_addr: layout::RSDP_GPA,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = below_4_gib(layout::CMDLINE_GPA);
    params.hdr.cmdline_size = u32::try_from(placement.cmdline_len).expect("checked against CMDLINE_MAX");
    if let Some((start, len)) = placement.initrd {
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (below_4_gib(start), below_4_gib(len));
    }
    let map = memory_map(placement.memory_mib);
    params.e820_entries = u8::try_from(map.len()).expect("a handful");
    for (entry, (addr, size, type_)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type: type_ };
    }
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&params, GuestAddress(layout::ZERO_PAGE_GPA)),
        mem,
    )
    .map_err(|error| BootError::Params(error.to_string()))
}

pub(super) fn write_pvh_start_info(mem: &GuestMemory, placement: &Placement) -> Result<(), BootError> {
    let map: Vec<hvm_memmap_table_entry> = memory_map(placement.memory_mib)
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry { addr, size, type_, reserved: 0 })
        .collect();
    let modules: Vec<hvm_modlist_entry> = placement
        .initrd
        .iter()
        .map(|&(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() })
        .collect();
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        nr_modules: modules.iter().map(|_| 1).sum(),
        modlist_paddr: if modules.is_empty() { 0 } else { layout::PVH_MODLIST_GPA },
        cmdline_paddr: layout::CMDLINE_GPA,
        rsdp_paddr: layout::RSDP_GPA,
        memmap_paddr: layout::PVH_MEMMAP_GPA,
        memmap_entries: u32::try_from(map.len()).expect("a handful"),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::PVH_START_INFO_GPA));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMMAP_GPA));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(layout::PVH_MODLIST_GPA));
    }
    PvhBootConfigurator::write_bootparams(&params, mem).map_err(|error| BootError::Params(error.to_string()))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn the_memory_map_covers_all_memory_and_none_of_the_hole() {
        assert_eq!(
            memory_map(4096),
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0x6_0400, 2),
                (0x10_0000, 0xbff0_0000, 1),
                (0xe000_0000, 0x10_0000, 2),
                (0x1_0000_0000, 0x4000_0000, 1)
            ]
        );
        assert_eq!(memory_map(32).get(2), Some(&(0x10_0000, 31 << 20, 1)));
    }

    #[test]
    fn the_configuration_spaces_are_reserved_for_both_ways_to_enter_a_kernel() {
        for memory_mib in [32, 512, 3072, 4096, 8192] {
            let ecam = (layout::PCI_ECAM_GPA, layout::PCI_ECAM_LEN, E820_RESERVED);
            let mem = memory::create(32, memory::Backing::default()).unwrap();
            let placement = Placement { memory_mib, cmdline_len: 0, initrd: None };
            write_zero_page(&mem, &placement, None).unwrap();
            let params: boot_params = mem.read_obj(GuestAddress(layout::ZERO_PAGE_GPA)).unwrap();
            let table = &{ params.e820_table }[..usize::from(params.e820_entries)];
            let reserved = |entry: &boot_e820_entry| (entry.addr, entry.size, entry.r#type) == ecam;
            assert_eq!(table.iter().filter(|entry| reserved(entry)).count(), 1, "{memory_mib} MiB");

            write_pvh_start_info(&mem, &placement).unwrap();
            let info: hvm_start_info = mem.read_obj(GuestAddress(layout::PVH_START_INFO_GPA)).unwrap();
            let size = size_of::<hvm_memmap_table_entry>() as u64;
            let entries: Vec<hvm_memmap_table_entry> = (0..u64::from(info.memmap_entries))
                .map(|n| mem.read_obj(GuestAddress(info.memmap_paddr + n * size)).unwrap())
                .collect();
            let reserved = |entry: &hvm_memmap_table_entry| (entry.addr, entry.size, entry.type_) == ecam;
            assert_eq!(entries.iter().filter(|entry| reserved(entry)).count(), 1, "{memory_mib} MiB");
        }
    }
}
