//! Giving pages of guest memory back to the host.
//!
//! KVM forgets pages that are given back by its MMU notifier, and the next access gets fresh ones.
//! How they are given back depends on what memory is made of: of a private mapping they are dropped
//! (MADV_DONTNEED), which would leave those of a file in memory where they are, so that a hole is
//! made in it (MADV_REMOVE). Of a pool's huge pages only whole ones can go.
//!
//! **A snapshot's file.** There MADV_DONTNEED brings back what the file has: the guest's own bytes
//! of before, which cost nothing either, and of which nobody expects anything. Large ranges get
//! fresh anonymous pages instead; each is a mapping of its own, and a process has some 65,000 of
//! them, so that small ones don't.
//!
//! **Huge pages.** A part of a huge page that is given back is no longer mapped, and still isn't
//! free: the kernel keeps the whole until memory is short. So where only a small part goes, the
//! huge page is split first (that is what MADV_COLD does with a part of one), and the kernel is
//! told not to make it whole again.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, HUGE_PAGE, PROTECTION, SMALL_PAGE, advise};

/// What will be done with memory that is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// Nothing that is known of: huge pages of which it is a part are not to be made whole again.
    Unused,
    /// The guest gets it back soon.
    UsedSoon,
}

/// Gives the whole pages of `len` bytes at `gpa` back to the host. Until somebody writes to them
/// again they read as zeros (of a snapshot's memory perhaps as what they were in the snapshot), and
/// cost nothing. Returns how many bytes that are. The range must be in guest memory. Callable from
/// any thread.
pub fn discard(
    mem: &GuestMemory,
    gpa: GuestAddress,
    len: usize,
    afterwards: Afterwards,
) -> io::Result<usize> {
    let mut gpa = gpa;
    let mut given = 0;
    // More than one slice where the range crosses from one memory region into the next.
    for slice in mem.get_slices(gpa, len) {
        let slice = slice.map_err(io::Error::other)?;
        let start = slice.ptr_guard_mut().as_ptr();
        let flags = mem.find_region(gpa).map_or(0, |region| region.flags());
        let page = page_size(flags);
        let head = start.align_offset(page).min(slice.len());
        let whole = (slice.len() - head) / page * page;
        if whole > 0 {
            let first = start.wrapping_add(head);
            let is_snapshot = flags & (libc::MAP_SHARED | libc::MAP_ANONYMOUS) == 0;
            if is_snapshot && whole >= HUGE_PAGE {
                replace(first, whole)?;
            } else {
                if !is_snapshot && flags & libc::MAP_HUGETLB == 0 {
                    prepare(mem, GuestAddress(gpa.0 + head as u64), first, whole, afterwards);
                }
                drop_pages(first, whole, flags)?;
            }
            given += whole;
        }
        gpa = GuestAddress(gpa.0 + slice.len() as u64);
    }
    Ok(given)
}

/// Drops the pages of `len` bytes of a mapping that was made with these flags.
fn drop_pages(start: *mut u8, len: usize, flags: libc::c_int) -> io::Result<()> {
    let advice = if flags & libc::MAP_SHARED == 0 { libc::MADV_DONTNEED } else { libc::MADV_REMOVE };
    #[expect(unsafe_code, reason = "madvise has no safe wrapper")]
    // SAFETY: the range lies in a mapping of guest memory, which lives as long as the VM's process,
    // and is of whole pages. That its content changes under whoever looks is what guest memory does
    // all the time: nobody has a reference into it.
    let ret = unsafe { libc::madvise(start.cast(), len, advice) };
    if ret != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts fresh anonymous pages in the place of `len` bytes of a private mapping of a file.
fn replace(start: *mut u8, len: usize) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    #[expect(unsafe_code, reason = "std has no mmap")]
    // SAFETY: the range lies in a mapping of guest memory, which lives as long as the VM's process;
    // that its content changes under whoever looks is what guest memory does all the time.
    let mapped = unsafe { libc::mmap(start.cast(), len, PROTECTION, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    advise(start, len, libc::MADV_DONTDUMP);
    Ok(())
}

/// Bytes of the pages of a mapping that was made with these flags.
fn page_size(flags: libc::c_int) -> usize {
    if flags & libc::MAP_HUGETLB == 0 {
        return SMALL_PAGE;
    }
    1 << (flags >> libc::MAP_HUGE_SHIFT & libc::MAP_HUGE_MASK)
}

/// Splits the huge page in which `len` bytes at `start`, whole pages, lie, if they are a part of
/// one. Of larger ranges only what are whole huge pages matters, and they may be huge again.
fn prepare(mem: &GuestMemory, gpa: GuestAddress, start: *mut u8, len: usize, afterwards: Afterwards) {
    let Some(region) = mem.find_region(gpa) else { return };
    // A region begins at a huge page of the host's, and may end within one.
    let Ok(at) = usize::try_from(gpa.0 - region.start_addr().0) else { return };
    if len >= HUGE_PAGE {
        let (first, last) = (at.next_multiple_of(HUGE_PAGE), (at + len) / HUGE_PAGE * HUGE_PAGE);
        if first < last {
            advise(start.wrapping_add(first - at), last - first, libc::MADV_HUGEPAGE);
        }
        return;
    }
    match afterwards {
        Afterwards::Unused => {
            let size = usize::try_from(region.len()).unwrap_or(usize::MAX);
            let first = at / HUGE_PAGE * HUGE_PAGE;
            let last = (at + len).next_multiple_of(HUGE_PAGE).min(size);
            advise(start.wrapping_sub(at - first), last - first, libc::MADV_NOHUGEPAGE);
        }
        // So much comes with its neighbours, and with the last of them goes the huge page: a split
        // would be for nothing.
        Afterwards::UsedSoon if len >= HUGE_PAGE / 2 => return,
        Afterwards::UsedSoon => {}
    }
    advise(start, len, libc::MADV_COLD);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, PAGE_SIZE, create};
    use vm_memory::Bytes;

    #[test]
    fn whole_pages_are_zero_afterwards_and_parts_of_pages_stay() {
        let mem = create(32, Backing::default()).unwrap();
        let at = |page: u64| GuestAddress((8 << 20) + page * PAGE_SIZE);
        for page in 0..4 {
            mem.write_obj(7u8, at(page)).unwrap();
        }
        let read = |page| mem.read_obj::<u8>(at(page)).unwrap();
        discard(&mem, GuestAddress(at(0).0 + 1), 4096, Afterwards::Unused).unwrap();
        discard(&mem, at(0), 4095, Afterwards::UsedSoon).unwrap();
        assert_eq!([0, 1, 2, 3].map(read), [7; 4]);
        discard(&mem, GuestAddress(at(0).0 + 1), 3 * 4096, Afterwards::Unused).unwrap();
        assert_eq!([0, 1, 2, 3].map(read), [7, 0, 0, 7]);
        mem.write_obj(9u8, at(1)).unwrap();
        assert_eq!(read(1), 9, "it can be written again");
    }

    #[test]
    fn what_is_outside_memory_is_refused() {
        let mem = create(32, Backing::default()).unwrap();
        assert!(discard(&mem, GuestAddress(31 << 20), 2 << 20, Afterwards::Unused).is_err());
        assert!(discard(&mem, GuestAddress(u64::MAX - 4095), 4096, Afterwards::Unused).is_err());
    }
}
