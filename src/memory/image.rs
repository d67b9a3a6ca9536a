//! Guest memory as a part of a file: written once, and mapped by each VM that goes on from there.
//!
//! Pages that are all zeros, those that were never touched among them, are holes of the file. What
//! maps it is private: nothing that a VM writes reaches the file, and what it only reads it shares
//! with all others, and with the host's page cache. The regions follow each other, the first one at
//! a multiple of a huge page.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{Backing, GuestMemory, MemoryError, SMALL_PAGE, advise, from_ranges, map_at};

/// Bytes that are looked at, and written, at once.
const CHUNK: usize = 256 << 10;
static ZEROS: [u8; SMALL_PAGE] = [0; SMALL_PAGE];

/// Writes all of `mem` to `file` from `offset` on, where it must be empty, and returns how many
/// bytes weren't zeros. Nothing may change memory meanwhile.
pub fn write(mem: &GuestMemory, file: &File, offset: u64) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let (mut at, mut written) = (offset, 0);
    for region in mem.iter() {
        for start in (0..region.len()).step_by(CHUNK) {
            let len = usize::try_from(region.len() - start).map_or(CHUNK, |rest| rest.min(CHUNK));
            let chunk = &mut chunk[..len];
            region.read_slice(chunk, MemoryRegionAddress(start)).map_err(io::Error::other)?;
            for (first, run) in runs(chunk) {
                file.write_all_at(run, at + start + first as u64)?;
                written += run.len() as u64;
            }
        }
        at += region.len();
    }
    // The last page may be a hole.
    file.set_len(at)?;
    Ok(written)
}

/// Guest memory of `mib` MiB that is what was [written](write) to `file` from `offset` on.
pub fn map(mib: u64, file: &File, offset: u64) -> Result<GuestMemory, MemoryError> {
    let mut at = offset;
    from_ranges(mib, |start, len| {
        let from = at;
        at += len;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(from).map_err(io::Error::other)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let hva = map_at(len, Backing::default().page_size(), flags, file.as_raw_fd(), offset)?;
        advise(hva, len, libc::MADV_DONTDUMP);
        super::guest_region(hva, len, flags, GuestAddress(start))
    })
}

/// The longest runs of whole pages that aren't all zeros, and where they begin.
fn runs(bytes: &[u8]) -> Vec<(usize, &[u8])> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (number, page) in bytes.chunks(SMALL_PAGE).enumerate() {
        if page == &ZEROS[..page.len()] {
            continue;
        }
        let first = number * SMALL_PAGE;
        match runs.last_mut() {
            Some((_, end)) if *end == first => *end += page.len(),
            _ => runs.push((first, first + page.len())),
        }
    }
    runs.into_iter().map(|(first, end)| (first, &bytes[first..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Afterwards, create, discard, layout};

    #[test]
    fn what_is_written_is_mapped_again_and_zeros_take_no_room() {
        let mem = create(40, Backing::default()).unwrap();
        let places = [0, 4095, 1 << 20, (8 << 20) + 12288, (40 << 20) - 1];
        for gpa in places {
            mem.write_obj(0x5a_u8, GuestAddress(gpa)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        assert_eq!(write(&mem, &file, 2 << 20).unwrap(), 4 * 4096);
        assert_eq!(file.metadata().unwrap().len(), 42 << 20);
        let [one, other] = [(); 2].map(|()| map(40, &file, 2 << 20).unwrap());
        for gpa in places {
            assert_eq!(one.read_obj::<u8>(GuestAddress(gpa)).unwrap(), 0x5a);
        }
        one.write_obj(7_u8, GuestAddress(4095)).unwrap();
        one.write_obj(7_u8, GuestAddress(30 << 20)).unwrap();
        assert_eq!(other.read_obj::<u8>(GuestAddress(4095)).unwrap(), 0x5a);
        assert_eq!(map(40, &file, 2 << 20).unwrap().read_obj::<u8>(GuestAddress(30 << 20)).unwrap(), 0);
    }

    #[test]
    fn what_is_given_back_costs_nothing_and_can_be_written_again() {
        let mem = create(32, Backing::default()).unwrap();
        let at = GuestAddress(8 << 20);
        mem.write_obj(7_u8, at).unwrap();
        mem.write_obj(8_u8, GuestAddress(at.0 + 4096)).unwrap();
        let file = tempfile::tempfile().unwrap();
        write(&mem, &file, 0).unwrap();
        let mem = map(32, &file, 0).unwrap();
        mem.write_obj(3_u8, at).unwrap();
        assert_eq!(discard(&mem, at, 4096, Afterwards::Unused).unwrap(), 4096);
        assert_eq!(mem.read_obj::<u8>(at).unwrap(), 7, "a small piece is what it was in the file");
        assert_eq!(mem.read_obj::<u8>(GuestAddress(at.0 + 4096)).unwrap(), 8);
        mem.write_obj(9_u8, at).unwrap();
        assert_eq!(mem.read_obj::<u8>(at).unwrap(), 9);
        assert_eq!(discard(&mem, GuestAddress(6 << 20), 8 << 20, Afterwards::UsedSoon).unwrap(), 8 << 20);
        assert_eq!(mem.read_obj::<u8>(GuestAddress(at.0 + 4096)).unwrap(), 0);
    }

    #[test]
    fn memory_above_the_hole_is_behind_that_below() {
        // Nothing of it is touched but three pages.
        let mib = (layout::HOLE_START >> 20) + 64;
        let mem = create(mib, Backing::default()).unwrap();
        let places = [layout::HOLE_START - 4096, layout::HOLE_END, layout::HOLE_END + (64 << 20) - 1];
        let file = tempfile::tempfile().unwrap();
        // Written as if it had been: to look at 3 GiB takes long.
        for (gpa, at) in places.into_iter().zip([(3 << 30) - 4096, 3 << 30, (3 << 30) + (64 << 20) - 1]) {
            file.write_all_at(&[0x5a], at).unwrap();
            assert_eq!(mem.read_obj::<u8>(GuestAddress(gpa)).unwrap(), 0);
        }
        let mem = map(mib, &file, 0).unwrap();
        for gpa in places {
            assert_eq!(mem.read_obj::<u8>(GuestAddress(gpa)).unwrap(), 0x5a);
        }
    }
}
