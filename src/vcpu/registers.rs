//! The boot processor's registers at the guest's first instruction, and the tables in memory that
//! they point to.
//!
//! Two protocols: PVH (32-bit protected mode, paging off) and Linux' 64-bit one (long mode,
//! identity-mapped first GiB). The other processors need nothing: the guest starts them by INIT and
//! SIPI.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::VcpuError;
use crate::memory::{GuestMemory, layout};

/// How the boot processor enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The PVH protocol: EBX holds the address of `hvm_start_info`.
    Pvh {
        /// Address of the first instruction.
        rip: u64,
    },
    /// The 64-bit Linux boot protocol: RSI holds the address of the zero page.
    Linux64 {
        /// Address of the first instruction.
        rip: u64,
    },
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS_RESERVED: u64 = 2;
const PAGE_PRESENT_WRITABLE: u64 = 3;
const PAGE_SIZE_2M: u64 = 1 << 7;
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// Without it Linux takes string instructions for slow on Intel processors.
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, default type write-back: without it a guest takes its memory for uncached.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// __BOOT_CS of the Linux boot protocol.
const SELECTOR_CODE: u16 = 0x10;
/// __BOOT_DS of the Linux boot protocol.
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TSS: u16 = 0x20;

/// MSRs that every vCPU starts with.
pub(super) fn set_msrs(vcpu: &VcpuFd) -> Result<(), VcpuError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let list =
        |entries: &[kvm_msr_entry]| Msrs::from_entries(entries).expect("two entries are below the limit");
    let mut misc_enable = list(&[entry(MSR_MISC_ENABLE, 0)]);
    vcpu.get_msrs(&mut misc_enable).map_err(VcpuError::ioctl("KVM_GET_MSRS"))?;
    let misc_enable = misc_enable.as_slice().first().map_or(0, |msr| msr.data) | MISC_ENABLE_FAST_STRING;
    let msrs = list(&[entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK), entry(MSR_MISC_ENABLE, misc_enable)]);
    let set = vcpu.set_msrs(&msrs).map_err(VcpuError::ioctl("KVM_SET_MSRS"))?;
    if set < msrs.as_slice().len() {
        static LOG: crate::bounded_log::BoundedLog = crate::bounded_log::BoundedLog::fixed("vCPU");
        LOG.warn(format_args!("this host's KVM refuses MSR {:#x}", msrs.as_slice()[set].index));
    }
    Ok(())
}

/// Puts the boot processor at `entry`, and its descriptor and page tables into guest memory.
pub(super) fn set_entry(vcpu: &VcpuFd, mem: &GuestMemory, entry: Entry) -> Result<(), VcpuError> {
    let mut sregs = vcpu.get_sregs().map_err(VcpuError::ioctl("KVM_GET_SREGS"))?;
    let regs = match entry {
        Entry::Pvh { rip } => {
            protected_mode(&mut sregs);
            kvm_regs { rip, rbx: layout::PVH_START_INFO_GPA, ..Default::default() }
        }
        Entry::Linux64 { rip } => {
            long_mode(&mut sregs);
            write_page_tables(mem)?;
            let (rsp, rsi) = (layout::BOOT_STACK_GPA, layout::ZERO_PAGE_GPA);
            kvm_regs { rip, rsp, rbp: rsp, rsi, ..Default::default() }
        }
    };
    write_gdt(mem, &sregs)?;
    vcpu.set_sregs(&sregs).map_err(VcpuError::ioctl("KVM_SET_SREGS"))?;
    vcpu.set_regs(&kvm_regs { rflags: RFLAGS_RESERVED, ..regs }).map_err(VcpuError::ioctl("KVM_SET_REGS"))
}

fn protected_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, false);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

fn long_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, true);
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PML4_GPA;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

/// Flat segments: the protocols ask for base 0 and limit 4 GiB in all of them.
fn set_segments(sregs: &mut kvm_sregs, long: bool) {
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    let code =
        kvm_segment { selector: SELECTOR_CODE, type_: 0xb, l: long.into(), db: (!long).into(), ..flat };
    let data = kvm_segment { selector: SELECTOR_DATA, type_: 0x3, db: 1, ..flat };
    let tss =
        kvm_segment { selector: SELECTOR_TSS, type_: 0xb, limit: 0x67, present: 1, ..Default::default() };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = tss;
    sregs.gdt.base = layout::GDT_GPA;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = layout::IDT_GPA;
    sregs.idt.limit = 7;
}

/// A segment as the GDT has it (Intel SDM vol. 3, §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_) | u64::from(segment.s) << 4 | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff) | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

fn write_gdt(mem: &GuestMemory, sregs: &kvm_sregs) -> Result<(), GuestMemoryError> {
    let table = [0, 0, descriptor(&sregs.cs), descriptor(&sregs.ds), descriptor(&sregs.tr)];
    mem.write_obj(table, GuestAddress(layout::GDT_GPA))?;
    mem.write_obj(0u64, GuestAddress(layout::IDT_GPA))
}

fn write_page_tables(mem: &GuestMemory) -> Result<(), GuestMemoryError> {
    mem.write_obj(layout::PDPT_GPA | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PML4_GPA))?;
    mem.write_obj(layout::PD_GPA | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PDPT_GPA))?;
    let pages: Vec<u8> = (0..512u64)
        .flat_map(|page| (page << 21 | PAGE_SIZE_2M | PAGE_PRESENT_WRITABLE).to_le_bytes())
        .collect();
    mem.write_slice(&pages, GuestAddress(layout::PD_GPA))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn descriptors_are_those_of_the_manuals() {
        let mut sregs = kvm_sregs::default();
        protected_mode(&mut sregs);
        assert_eq!(descriptor(&sregs.cs), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&sregs.ds), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&sregs.tr), 0x0000_8b00_0000_0067);
        long_mode(&mut sregs);
        assert_eq!(descriptor(&sregs.cs), 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn the_first_gib_is_identity_mapped() {
        let mem = memory::create(memory::MIN_MIB, memory::Backing::default()).unwrap();
        write_page_tables(&mem).unwrap();
        let entry = |gpa, index: u64| mem.read_obj::<u64>(GuestAddress(gpa + index * 8)).unwrap();
        assert_eq!(entry(layout::PML4_GPA, 0), layout::PDPT_GPA | 3);
        assert_eq!(entry(layout::PDPT_GPA, 0), layout::PD_GPA | 3);
        assert_eq!(entry(layout::PD_GPA, 0), 0x83);
        assert_eq!(entry(layout::PD_GPA, 511), (511 << 21) | 0x83);
    }
}
