//! Guest memory: its regions and what backs them; [`layout`] names every guest address.
//!
//! Memory is anonymous and private unless a [`Backing`] says otherwise, reserves no swap, and stays
//! out of core dumps. It is made of huge pages where the host has them, because a booting kernel
//! touches most of what it gets: with 4 KiB pages our own guest takes 8,200 to 10,900 page faults
//! of the hypervisor in one boot, with huge pages 350, nearly all of them in the first 2 MiB. The
//! first 2 MiB are small pages, so that a guest which needs no more than them costs no more. Owns
//! the mappings; no thread, no descriptor.

mod discard;
pub mod image;
pub mod layout;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, memfd_create};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

pub use discard::{Afterwards, discard};

/// The guest's memory, as devices and loaders see it. It is never handed out as a `&[u8]` or `&mut
/// [u8]`: the guest may change any byte at any time.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Size of a page, of the host and of the guest.
pub const PAGE_SIZE: u64 = 4096;
/// The least memory a VM may have, in MiB.
pub const MIN_MIB: u64 = 32;
/// The most memory a VM may have, in MiB (1 TiB: it must fit below the smallest physical address
/// space in use, 40 bits).
pub const MAX_MIB: u64 = 1 << 20;

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// Its pages on the host.
    pub pages: Pages,
    /// Whether it is a file in memory (memfd), for processes that are to share it.
    pub shared: bool,
    /// Whether all of it is there before the guest runs.
    pub prefault: bool,
}

/// Pages of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Small ones, which the kernel makes huge ones of as it can.
    #[default]
    Transparent,
    /// Huge ones of the pool of that size, in MiB: 2 or 1024.
    Pool(u64),
}

impl Backing {
    /// The flags of mmap(2) that it means.
    fn flags(self) -> libc::c_int {
        let sharing = if self.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        sharing
            | match self.pages {
                Pages::Transparent => libc::MAP_NORESERVE,
                // Reserved, so that what isn't there is an error now and not the guest's end later.
                Pages::Pool(mib) => libc::MAP_HUGETLB | page_shift(mib) << libc::MAP_HUGE_SHIFT,
            }
    }

    /// Bytes of the pages that the mapping is made of.
    fn page_size(self) -> usize {
        match self.pages {
            Pages::Transparent => SMALL_PAGE,
            Pages::Pool(mib) => usize::try_from(mib << 20).expect("2 or 1024 MiB"),
        }
    }

    /// A file for a region of `len` bytes, where memory is one.
    fn file(self, len: usize) -> io::Result<Option<File>> {
        if !self.shared {
            return Ok(None);
        }
        let flags = MemfdFlags::CLOEXEC
            | match self.pages {
                Pages::Transparent => MemfdFlags::empty(),
                Pages::Pool(2) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
                Pages::Pool(_) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
            };
        let file = File::from(memfd_create("guest memory", flags)?);
        file.set_len(len as u64)?;
        Ok(Some(file))
    }
}

fn page_shift(mib: u64) -> libc::c_int {
    libc::c_int::try_from((mib << 20).trailing_zeros()).expect("below 64")
}

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
    /// The pool has too few huge pages.
    #[error(
        "can't have {mib} MiB of guest memory in huge pages of {page} MiB: there are too few free ones (as root, for all at once: echo {} >{})",
        mib / page, pool_file(*page)
    )]
    Pool {
        /// What was asked for, in MiB.
        mib: u64,
        /// Size of a page, in MiB.
        page: u64,
    },
    /// The regions don't form a guest memory. A bug of ours.
    #[error("guest memory regions: {0}")]
    Regions(String),
}

/// The ranges of memory (start, length in bytes) of a VM of `mib` MiB: one up to the hole below 4
/// GiB, and the rest behind it.
pub fn ranges(mib: u64) -> Vec<(u64, u64)> {
    let bytes = mib << 20;
    let low = bytes.min(layout::HOLE_START);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((layout::HOLE_END, bytes - low));
    }
    ranges
}

fn pool_file(page_mib: u64) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", page_mib << 10)
}

/// Makes guest memory of `mib` MiB (within [`MIN_MIB`] and [`MAX_MIB`]). Nothing is touched, unless
/// it is to be: a page costs the host something once the guest uses it.
pub fn create(mib: u64, backing: Backing) -> Result<GuestMemory, MemoryError> {
    from_ranges(mib, |start, len| region(start, len, backing)).map_err(|error| match (backing.pages, error) {
        (Pages::Pool(page), MemoryError::Map { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOMEM | libc::EINVAL | libc::ENOSYS)) =>
        {
            MemoryError::Pool { mib, page }
        }
        (_, error) => error,
    })
}

/// Guest memory of `mib` MiB, of regions that are made one after the other.
fn from_ranges(
    mib: u64,
    mut make: impl FnMut(u64, u64) -> io::Result<GuestRegionMmap>,
) -> Result<GuestMemory, MemoryError> {
    let regions = ranges(mib).into_iter().map(|(start, len)| make(start, len));
    let regions = regions.collect::<io::Result<_>>().map_err(|source| MemoryError::Map { mib, source })?;
    GuestMemory::from_regions(regions).map_err(|error| MemoryError::Regions(error.to_string()))
}

const PROTECTION: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
/// Size of a page, for lengths in this process.
const SMALL_PAGE: usize = 4096;
/// Size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Maps `len` bytes, of a file from `offset` on if there is one, at an address that begins a huge
/// page, as guest memory does, and a page of `page_size`: only then can KVM map huge pages of the
/// host as huge pages of the guest.
fn map_at(
    len: usize,
    page_size: usize,
    flags: libc::c_int,
    fd: libc::c_int,
    offset: libc::off_t,
) -> io::Result<*mut u8> {
    // First only the addresses, and then what is to be there.
    let align = page_size.max(HUGE_PAGE);
    let padded = len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
    let reserve = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    #[expect(unsafe_code, reason = "std has no mmap")]
    // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), padded, libc::PROT_NONE, reserve, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = start.cast::<u8>();
    let head = start.align_offset(align);
    #[expect(unsafe_code, reason = "the parts beside the aligned range are given back")]
    // SAFETY: `head` is at most `align`, so the aligned range and both rests lie within the mapping
    // made above; nobody else knows of them.
    unsafe {
        let aligned = start.add(head);
        for (rest, rest_len) in [(start, head), (aligned.add(len), align - head)] {
            if rest_len > 0 && libc::munmap(rest.cast(), rest_len) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let flags = flags | libc::MAP_FIXED;
        if libc::mmap(aligned.cast(), len, PROTECTION, flags, fd, offset) == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(aligned)
    }
}

/// Tells the kernel what a part of guest memory is for. A host kernel that doesn't know the advice
/// loses nothing but its point.
fn advise(start: *mut u8, len: usize, advice: libc::c_int) {
    #[expect(unsafe_code, reason = "madvise has no safe wrapper")]
    // SAFETY: the range belongs to a mapping of guest memory, and the advice in use here changes no
    // content.
    let ret = unsafe { libc::madvise(start.cast(), len, advice) };
    if ret != 0 {
        log::debug!("madvise {advice}: {}", io::Error::last_os_error());
    }
}

fn region(start: u64, len: u64, backing: Backing) -> io::Result<GuestRegionMmap> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let file = backing.file(len)?;
    let fd = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let hva = map_at(len, backing.page_size(), backing.flags(), fd, 0)?;
    advise(hva, len, libc::MADV_DONTDUMP);
    if backing.pages == Pages::Transparent {
        let small = if start == 0 { HUGE_PAGE.min(len) } else { 0 };
        advise(hva, small, libc::MADV_NOHUGEPAGE);
        advise(hva.wrapping_add(small), len - small, libc::MADV_HUGEPAGE);
    }
    if backing.prefault {
        prefault(hva, len)?;
    }
    guest_region(hva, len, backing.flags(), GuestAddress(start))
}

/// A mapping of `len` bytes, made just now with these flags, as a region of guest memory.
fn guest_region(
    hva: *mut u8,
    len: usize,
    flags: libc::c_int,
    start: GuestAddress,
) -> io::Result<GuestRegionMmap> {
    #[expect(unsafe_code, reason = "vm-memory can't align a mapping by itself")]
    // SAFETY: the range is a mapping of `len` bytes made just now, and nothing ever unmaps it:
    // guest memory lives as long as the VM's process.
    let region = unsafe { MmapRegion::build_raw(hva, len, PROTECTION, flags) };
    let region = region.map_err(io::Error::other)?;
    GuestRegionMmap::new(region, start)
        .ok_or_else(|| io::Error::other(format!("{start:?} + {len:#x} overflows")))
}

/// Of these bytes, which are in guest memory, nothing will be used for a while: the huge pages that
/// they touch are made of small pages, so that what else is in those doesn't bring them along.
pub fn leave_unused(mem: &GuestMemory, gpa: GuestAddress, len: u64) {
    let Some((region, at)) = mem.to_region_addr(gpa) else { return };
    if region.flags() & libc::MAP_HUGETLB != 0 {
        return;
    }
    let huge = HUGE_PAGE as u64;
    let end = at.0.saturating_add(len).min(region.len());
    let (first, last) = (at.0 / huge * huge, end.next_multiple_of(huge).min(region.len()));
    if let (Ok(first), Ok(len)) = (usize::try_from(first), usize::try_from(last - first)) {
        advise(region.as_ptr().wrapping_add(first), len, libc::MADV_NOHUGEPAGE);
    }
}

/// Makes every page be there.
#[expect(unsafe_code, reason = "madvise has no safe wrapper")]
fn prefault(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the range belongs to a mapping of guest memory; its pages come into being, with the
    // content that they had.
    if unsafe { libc::madvise(start.cast(), len, libc::MADV_POPULATE_WRITE) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EINVAL) {
        return Err(error);
    }
    // Before Linux 5.14.
    for offset in (0..len).step_by(SMALL_PAGE) {
        // SAFETY: within the mapping, which is all zeros, and nobody else knows of it yet.
        unsafe { start.add(offset).write_volatile(0) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_past_the_hole_goes_on_above_4_gib() {
        assert_eq!(ranges(512), [(0, 512 << 20)]);
        assert_eq!(ranges(3072), [(0, 3 << 30)]);
        assert_eq!(ranges(3073), [(0, 3 << 30), (4 << 30, 1 << 20)]);
        assert_eq!(ranges(6144), [(0, 3 << 30), (4 << 30, 3 << 30)]);
    }

    #[test]
    fn memory_is_zero_and_begins_at_a_huge_page() {
        let mem = create(MIN_MIB, Backing::default()).unwrap();
        let hva = mem.get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(hva.align_offset(HUGE_PAGE), 0);
        let last = GuestAddress((MIN_MIB << 20) - 8);
        assert_eq!(mem.read_obj::<u64>(last).unwrap(), 0);
        mem.write_obj(7u64, last).unwrap();
        assert_eq!(mem.read_obj::<u64>(last).unwrap(), 7);
    }

    /// KiB of this process's memory that is there, of mappings of so many KiB.
    fn resident_kib(size_kib: u64) -> Vec<u64> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut found = Vec::new();
        let mut wanted = false;
        for line in smaps.lines() {
            let number = || line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
            match line.split(':').next().unwrap() {
                "Size" => wanted = number() == size_kib,
                "Rss" if wanted => found.push(number()),
                _ => {}
            }
        }
        found
    }

    #[test]
    fn memory_that_is_to_be_there_from_the_start_is() {
        // A size that no other test has: one mapping, but for its first 2 MiB.
        let before = resident_kib(50 << 10);
        let _lazy = create(52, Backing::default()).unwrap();
        let _eager = create(52, Backing { prefault: true, ..Backing::default() }).unwrap();
        let mut after = resident_kib(50 << 10);
        after.retain(|kib| !before.contains(kib));
        assert_eq!((before, after.contains(&(50 << 10))), (vec![], true), "{after:?}");
    }

    #[test]
    fn beside_what_is_unused_only_what_is_used_is_there() {
        let mem = create(42, Backing::default()).unwrap();
        let flags_at = |gpa| {
            let at = mem.get_host_address(GuestAddress(gpa)).unwrap().addr();
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut here = false;
            for line in smaps.lines() {
                let first = line.split_whitespace().next().unwrap();
                if let Some((start, end)) = first.split_once('-') {
                    let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).unwrap());
                    here = (start..end).contains(&at);
                } else if here && first == "VmFlags:" {
                    return ["hg", "nh"].map(|flag| line.split_whitespace().any(|word| word == flag));
                }
            }
            panic!("no mapping has {gpa:#x}");
        };
        let (huge, small) = ([true, false], [false, true]);
        leave_unused(&mem, GuestAddress((9 << 20) + 5), 2 << 20);
        let mib = [7, 8, 11, 12, 41].map(|mib| flags_at(mib << 20));
        assert_eq!(mib, [huge, small, small, huge, huge]);
        leave_unused(&mem, GuestAddress(41 << 20), u64::from(u32::MAX));
        leave_unused(&mem, GuestAddress(42 << 20), 1);
        assert_eq!([39, 40, 41].map(|mib| flags_at(mib << 20)), [huge, small, small]);
    }

    #[test]
    fn shared_memory_is_zero_and_given_back_it_is_zero_again() {
        let mem = create(MIN_MIB, Backing { shared: true, ..Backing::default() }).unwrap();
        let at = GuestAddress(8 << 20);
        assert_eq!(mem.read_obj::<u64>(at).unwrap(), 0);
        mem.write_obj(7u64, at).unwrap();
        mem.write_obj(8u64, GuestAddress(at.0 + PAGE_SIZE)).unwrap();
        assert_eq!(discard(&mem, at, 4096, Afterwards::Unused).unwrap(), 4096);
        assert_eq!(mem.read_obj::<u64>(at).unwrap(), 0);
        assert_eq!(mem.read_obj::<u64>(GuestAddress(at.0 + PAGE_SIZE)).unwrap(), 8);
    }

    #[test]
    fn memory_of_a_pool_is_there_or_the_error_says_what_to_do() {
        for shared in [false, true] {
            let backing = Backing { pages: Pages::Pool(2), shared, prefault: false };
            match create(MIN_MIB, backing) {
                Ok(mem) => {
                    let at = GuestAddress(8 << 20);
                    mem.write_obj(7u64, at).unwrap();
                    // Only whole pages of its own go.
                    assert_eq!(discard(&mem, at, 4096, Afterwards::Unused).unwrap(), 0);
                    assert_eq!(mem.read_obj::<u64>(at).unwrap(), 7);
                    assert_eq!(discard(&mem, at, 2 << 20, Afterwards::Unused).unwrap(), 2 << 20);
                    assert_eq!(mem.read_obj::<u64>(at).unwrap(), 0);
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("echo 16 >/sys/kernel/mm/hugepages/hugepages-2048kB"), "{text}");
                }
            }
        }
    }
}
