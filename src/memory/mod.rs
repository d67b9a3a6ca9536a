//! Guest memory: its regions and what backs them; [`layout`] names every guest address.
//!
//! Memory is anonymous and private, reserves no swap, and stays out of core dumps. A page-aligned part of it can be
//! replaced by a private mapping of a file ([`map_file`]), so that a kernel is paged in as the guest touches it,
//! from the page cache that all VMs share. Owns the mappings; no thread, no descriptor.

pub mod layout;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

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
    /// A file's pages can't be put in place of memory.
    #[error("can't map a file into guest memory at {gpa:#x}")]
    MapFile {
        /// Where.
        gpa: u64,
        /// Why not.
        source: io::Error,
    },
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

fn anonymous_region(start: u64, len: u64, mib: u64) -> Result<GuestRegionMmap, MemoryError> {
    let failed = |source: io::Error| MemoryError::Map { mib, source };
    let len = usize::try_from(len).map_err(|error| failed(io::Error::other(error)))?;
    let region = MmapRegion::build(
        None,
        len,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE,
    )
    .map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(source) => failed(source),
        other => failed(io::Error::other(other)),
    })?;
    #[expect(unsafe_code, reason = "madvise has no safe wrapper")]
    // SAFETY: the range is the mapping made above, which `region` keeps alive; MADV_DONTDUMP changes no content.
    let ret = unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_DONTDUMP) };
    if ret != 0 {
        // A host kernel without it only makes core dumps larger.
        log::debug!("MADV_DONTDUMP: {}", io::Error::last_os_error());
    }
    GuestRegionMmap::new(region, GuestAddress(start))
        .ok_or_else(|| MemoryError::Regions(format!("{start:#x} + {len:#x} overflows")))
}

/// Puts a private, copy-on-write mapping of `file` in place of `len` bytes of guest memory from `gpa` on.
///
/// `gpa`, `file_offset` and `len` are multiples of [`PAGE_SIZE`], and the range lies within one region; otherwise this
/// fails and changes nothing. Called while the VM is built: no vCPU or device may be using the range. What lies past the
/// end of the file must not be touched, so the caller keeps `file_offset + len` within its length, rounded up to a page.
pub fn map_file(
    mem: &GuestMemory,
    gpa: u64,
    len: u64,
    file: &File,
    file_offset: u64,
) -> Result<(), MemoryError> {
    let failed = |source: io::Error| MemoryError::MapFile { gpa, source };
    let invalid = |why: &str| failed(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
    if len == 0 || [gpa, len, file_offset].iter().any(|n| n % PAGE_SIZE != 0) {
        return Err(invalid("not page-aligned"));
    }
    let region = mem.find_region(GuestAddress(gpa)).ok_or_else(|| invalid("outside memory"))?;
    let end = gpa.checked_add(len).ok_or_else(|| invalid("outside memory"))?;
    if end - 1 > region.last_addr().0 {
        return Err(invalid("crosses the end of a region"));
    }
    let hva = mem.get_host_address(GuestAddress(gpa)).map_err(|_| invalid("outside memory"))?;
    let len = usize::try_from(len).map_err(|_| invalid("too long"))?;
    let offset = libc::off_t::try_from(file_offset).map_err(|_| invalid("offset too large"))?;
    #[expect(unsafe_code, reason = "MAP_FIXED over a part of a region has no safe wrapper")]
    // SAFETY: hva..hva+len lies inside one region's mapping (checked above), which this crate made and which outlives
    // every user of `mem`; replacing its pages keeps it mapped, readable and writable, so nothing that relies on the
    // region's bounds is violated. No Rust reference into guest memory ever exists.
    let mapped = unsafe {
        libc::mmap(
            hva.cast(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED { Err(failed(io::Error::last_os_error())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    fn file_of(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn memory_past_the_hole_goes_on_above_4_gib() {
        assert_eq!(ranges(512), [(0, 512 << 20)]);
        assert_eq!(ranges(3072), [(0, 3 << 30)]);
        assert_eq!(ranges(3073), [(0, 3 << 30), (4 << 30, 1 << 20)]);
        assert_eq!(ranges(6144), [(0, 3 << 30), (4 << 30, 3 << 30)]);
    }

    #[test]
    fn a_mapped_file_is_read_through_memory_and_written_copies_stay_private() {
        let file = file_of(&[7; 8192]);
        let mem = create(MIN_MIB).unwrap();
        map_file(&mem, 0x20_0000, 4096, &file, 4096).unwrap();
        assert_eq!(mem.read_obj::<u8>(GuestAddress(0x20_0000)).unwrap(), 7);
        assert_eq!(mem.read_obj::<u8>(GuestAddress(0x20_1000)).unwrap(), 0);
        mem.write_obj(9u8, GuestAddress(0x20_0000)).unwrap();
        let mut on_disk = [0; 1];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut on_disk, 4096).unwrap();
        assert_eq!(on_disk, [7]);
    }

    #[test]
    fn a_file_is_not_mapped_where_it_does_not_fit() {
        let file = file_of(&[7; 8192]);
        let mem = create(MIN_MIB).unwrap();
        for (gpa, len, offset) in [
            (0x20_0001, 4096, 0),
            (0x20_0000, 4095, 0),
            (0x20_0000, 4096, 1),
            (0x20_0000, 0, 0),
            (MIN_MIB << 20, 4096, 0),
            ((MIN_MIB << 20) - 4096, 8192, 0),
            (u64::MAX - 4095, 4096, 0),
        ] {
            assert!(map_file(&mem, gpa, len, &file, offset).is_err(), "{gpa:#x} {len} {offset}");
        }
    }
}
