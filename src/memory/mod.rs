//! Guest memory: its regions and what backs them; [`layout`] names every guest address.
//!
//! Memory is anonymous and private, reserves no swap, and stays out of core dumps. It is made of huge pages where the host has
//! them, because a booting kernel touches most of what it gets: with 4 KiB pages our own guest takes 8,200 to 10,900 page faults
//! of the hypervisor in one boot, with huge pages 350, nearly all of them in the first 2 MiB. The first 2 MiB are small pages, so that a guest which needs no more than
//! them costs no more. Owns the mappings; no thread, no descriptor.

mod discard;
pub mod layout;

use std::io;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

pub use discard::{Afterwards, discard};

/// The guest's memory, as devices and loaders see it. It is never handed out as a `&[u8]` or `&mut [u8]`: the guest
/// may change any byte at any time.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Size of a page, of the host and of the guest.
pub const PAGE_SIZE: u64 = 4096;
/// The least memory a VM may have, in MiB.
pub const MIN_MIB: u64 = 32;
/// The most memory a VM may have, in MiB (1 TiB: it must fit below the smallest physical address space in use, 40 bits).
pub const MAX_MIB: u64 = 1 << 20;

/// Why guest memory can't be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host has no address space, or no memory, left.
    #[error("can't map {mib} MiB of guest memory")]
    Map {
        /// What was asked for.
        mib: u64,
        /// Why not.
        source: io::Error,
    },
    /// The regions don't form a guest memory. A bug of ours.
    #[error("guest memory regions: {0}")]
    Regions(String),
}

/// The ranges of memory (start, length in bytes) of a VM of `mib` MiB: one up to the hole below 4 GiB, and the rest
/// behind it.
pub fn ranges(mib: u64) -> Vec<(u64, u64)> {
    let bytes = mib << 20;
    let low = bytes.min(layout::HOLE_START);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((layout::HOLE_END, bytes - low));
    }
    ranges
}

/// Makes guest memory of `mib` MiB (within [`MIN_MIB`] and [`MAX_MIB`]). Nothing is touched: a page costs the host
/// something once the guest uses it.
pub fn create(mib: u64) -> Result<GuestMemory, MemoryError> {
    let regions = ranges(mib)
        .into_iter()
        .map(|(start, len)| anonymous_region(start, len, mib))
        .collect::<Result<_, _>>()?;
    GuestMemory::from_regions(regions).map_err(|error| MemoryError::Regions(error.to_string()))
}

const PROTECTION: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: libc::c_int = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
/// Size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Maps `len` bytes that begin at a huge page, as guest memory does: only then can KVM map huge pages of the host as huge pages of
/// the guest.
fn map_aligned(len: usize) -> io::Result<*mut u8> {
    let padded = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
    #[expect(unsafe_code, reason = "std has no mmap")]
    // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), padded, PROTECTION, FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = start.cast::<u8>();
    let head = start.align_offset(HUGE_PAGE);
    #[expect(unsafe_code, reason = "the parts beside the aligned range are given back")]
    // SAFETY: `head` is at most HUGE_PAGE, so the aligned range and both rests lie within the mapping made above; nobody else
    // knows of them.
    unsafe {
        let aligned = start.add(head);
        for (rest, rest_len) in [(start, head), (aligned.add(len), HUGE_PAGE - head)] {
            if rest_len > 0 && libc::munmap(rest.cast(), rest_len) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(aligned)
    }
}

/// Tells the kernel what a part of guest memory is for. A host kernel that doesn't know the advice loses nothing but its point.
fn advise(start: *mut u8, len: usize, advice: libc::c_int) {
    #[expect(unsafe_code, reason = "madvise has no safe wrapper")]
    // SAFETY: the range belongs to a mapping of guest memory, and the advice in use here changes no content.
    let ret = unsafe { libc::madvise(start.cast(), len, advice) };
    if ret != 0 {
        log::debug!("madvise {advice}: {}", io::Error::last_os_error());
    }
}

fn anonymous_region(start: u64, len: u64, mib: u64) -> Result<GuestRegionMmap, MemoryError> {
    let failed = |source: io::Error| MemoryError::Map { mib, source };
    let len = usize::try_from(len).map_err(|error| failed(io::Error::other(error)))?;
    let hva = map_aligned(len).map_err(failed)?;
    #[expect(unsafe_code, reason = "vm-memory can't align a mapping by itself")]
    // SAFETY: the range is a private anonymous mapping of `len` bytes made just now, and nothing ever unmaps it: guest memory
    // lives as long as the VM's process.
    let region = unsafe { MmapRegion::build_raw(hva, len, PROTECTION, FLAGS) }
        .map_err(|error| failed(io::Error::other(error)))?;
    advise(hva, len, libc::MADV_DONTDUMP);
    let small = if start == 0 { HUGE_PAGE.min(len) } else { 0 };
    advise(hva, small, libc::MADV_NOHUGEPAGE);
    advise(hva.wrapping_add(small), len - small, libc::MADV_HUGEPAGE);
    GuestRegionMmap::new(region, GuestAddress(start))
        .ok_or_else(|| MemoryError::Regions(format!("{start:#x} + {len:#x} overflows")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    #[test]
    fn memory_past_the_hole_goes_on_above_4_gib() {
        assert_eq!(ranges(512), [(0, 512 << 20)]);
        assert_eq!(ranges(3072), [(0, 3 << 30)]);
        assert_eq!(ranges(3073), [(0, 3 << 30), (4 << 30, 1 << 20)]);
        assert_eq!(ranges(6144), [(0, 3 << 30), (4 << 30, 3 << 30)]);
    }

    #[test]
    fn memory_is_zero_and_begins_at_a_huge_page() {
        let mem = create(MIN_MIB).unwrap();
        let hva = mem.get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(hva.align_offset(HUGE_PAGE), 0);
        let last = GuestAddress((MIN_MIB << 20) - 8);
        assert_eq!(mem.read_obj::<u64>(last).unwrap(), 0);
        mem.write_obj(7u64, last).unwrap();
        assert_eq!(mem.read_obj::<u64>(last).unwrap(), 7);
    }
}
