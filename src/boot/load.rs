//! Puts kernel and initramfs into guest memory.
//!
//! Both are copied, straight from the page cache into guest memory. Mapping an uncompressed kernel
//! from its file instead was measured: it saves the copy (14 MiB then) and shares the untouched
//! part between VMs, but each of its 4 KiB pages then costs the guest a page fault of the
//! hypervisor: about 10,900 in a whole boot, or 350 with the kernel copied into huge pages. In the
//! emulated host that boot took about 2.5 s in place of 3.2 s (medians of eight interleaved runs on
//! a busy machine).
//!
//! A kernel may leave gaps between its segments (`guest/split-text` makes them). What is beside a
//! large one lies in small pages: a huge page would bring the gap along.

use std::io::{self, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress};

use super::image::{Blob, KernelFormat, KernelImage, Segment};
use super::{BootError, Protocol, Start};
use crate::memory::{self, GuestMemory, PAGE_SIZE, layout};

/// Entry of a bzImage's 64-bit code, behind the start of its 32-bit code.
const BZIMAGE_ENTRY_64: u64 = 0x200;

/// Between two segments so many bytes are worth small pages: half a huge page.
const GAP: u64 = 1 << 20;

/// A kernel in memory.
pub(super) struct Loaded {
    pub(super) start: Start,
    /// First address behind the kernel and what it needs to unpack itself.
    pub(super) end: u64,
    /// Highest address that the initramfs may occupy.
    pub(super) initrd_max: u64,
    /// A bzImage's own header, which the zero page continues.
    pub(super) setup_header: Option<linux_loader::bootparam::setup_header>,
}

/// The end of memory below 4 GiB.
pub(super) fn low_end(memory_mib: u64) -> u64 {
    (memory_mib << 20).min(layout::HOLE_START)
}

pub(super) fn kernel(mem: &GuestMemory, memory_mib: u64, image: &KernelImage) -> Result<Loaded, BootError> {
    let low_end = low_end(memory_mib);
    match &image.format {
        KernelFormat::BzImage { header, code_offset, code_len, needs, initrd_max } => {
            let load_gpa = layout::HIGH_MEMORY_START;
            let end = (*needs).max(load_gpa + code_len);
            check_fits(&image.blob, end, low_end)?;
            place(mem, &image.blob, load_gpa, *code_offset, *code_len)?;
            let start = Start { protocol: Protocol::Linux64, rip: load_gpa + BZIMAGE_ENTRY_64 };
            Ok(Loaded { start, end, initrd_max: *initrd_max, setup_header: Some(**header) })
        }
        KernelFormat::Elf { segments, entry, pvh_entry } => {
            let end = segments.iter().map(|s| s.gpa.saturating_add(s.mem_len)).max().unwrap_or(0);
            check_fits(&image.blob, end, low_end)?;
            for (gpa, len) in gaps(segments) {
                memory::leave_unused(mem, GuestAddress(gpa), len);
            }
            for segment in segments {
                load_segment(mem, &image.blob, *segment)?;
            }
            let start = match pvh_entry {
                Some(rip) => Start { protocol: Protocol::Pvh, rip: *rip },
                None => Start { protocol: Protocol::Linux64, rip: *entry },
            };
            if !segments.iter().any(|s| (s.gpa..s.gpa + s.mem_len).contains(&start.rip)) {
                let why = format!("its entry {:#x} is in none of its segments", start.rip);
                return Err(BootError::Load { path: image.blob.path.clone(), why });
            }
            Ok(Loaded { start, end, initrd_max: u64::MAX, setup_header: None })
        }
    }
}

/// What a kernel leaves free between its segments (start, length in bytes), where that is enough to
/// be worth small pages.
fn gaps(segments: &[Segment]) -> Vec<(u64, u64)> {
    let mut segments: Vec<_> = segments.iter().map(|s| (s.gpa, s.gpa.saturating_add(s.mem_len))).collect();
    segments.sort_unstable();
    let between = segments.windows(2).map(|pair| (pair[0].1, pair[1].0.saturating_sub(pair[0].1)));
    between.filter(|(_, len)| *len >= GAP).collect()
}

fn check_fits(blob: &Blob, end: u64, low_end: u64) -> Result<(), BootError> {
    if end > low_end {
        return Err(BootError::KernelTooLarge { path: blob.path.clone(), needs_mib: end.div_ceil(1 << 20) });
    }
    Ok(())
}

fn load_segment(mem: &GuestMemory, blob: &Blob, segment: Segment) -> Result<(), BootError> {
    if segment.gpa < layout::HIGH_MEMORY_START {
        let why =
            format!("a segment at {:#x} lies below 1 MiB, where bothy's boot structures are", segment.gpa);
        return Err(BootError::Load { path: blob.path.clone(), why });
    }
    place(mem, blob, segment.gpa, segment.offset, segment.file_len)
}

/// Puts `len` bytes of `blob` from `offset` on at `gpa`.
fn place(mem: &GuestMemory, blob: &Blob, gpa: u64, offset: u64, len: u64) -> Result<(), BootError> {
    let read = |source| BootError::Read { path: blob.path.clone(), source };
    let mut file = &blob.file;
    file.seek(SeekFrom::Start(blob.offset + offset)).map_err(read)?;
    let len = usize::try_from(len).map_err(|error| read(io::Error::other(error)))?;
    Ok(mem.read_exact_volatile_from(GuestAddress(gpa), &mut file, len)?)
}

/// Puts the initramfs at the end of low memory and says where it begins.
pub(super) fn initrd(
    mem: &GuestMemory,
    memory_mib: u64,
    blob: &Blob,
    kernel: &Loaded,
) -> Result<u64, BootError> {
    let limit = low_end(memory_mib).min(kernel.initrd_max.saturating_add(1));
    let start = limit.checked_sub(blob.len).map(|start| start - start % PAGE_SIZE);
    match start {
        Some(start) if start >= kernel.end => {
            place(mem, blob, start, 0, blob.len)?;
            Ok(start)
        }
        _ => Err(BootError::InitrdTooLarge {
            path: blob.path.clone(),
            mib: blob.len.div_ceil(1 << 20),
            room_mib: limit.saturating_sub(kernel.end) >> 20,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_from_half_a_huge_page_on() {
        let segment = |mib: u64, mem_len| Segment { gpa: mib << 20, offset: 0, file_len: 0, mem_len };
        let close = segment(20, (1 << 20) + 1);
        let kernel = [segment(2, 5 << 19), segment(8, 4096), close, segment(22, 1)];
        assert_eq!(gaps(&kernel), [(9 << 19, 7 << 19), ((8 << 20) + 4096, (12 << 20) - 4096)]);
        assert_eq!(gaps(&[close, segment(2, 17 << 20)]), [(19 << 20, 1 << 20)], "in any order");
        assert_eq!(gaps(&[segment(2, 4 << 20), segment(4, 1)]), [], "they may overlap");
    }
}
