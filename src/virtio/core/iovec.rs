//! Lists of guest buffers for `readv`, `writev` and their kin: the kernel copies between a file and
//! guest memory, and no byte passes through ours.
//!
//! There is one type for each direction, so that a buffer that may only be read can't be written to
//! by mistake. Guest memory is mapped for as long as the [`GuestMemory`] is borrowed, which each
//! list does.

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMemory;

/// The most entries that one call takes (`IOV_MAX`).
const IOV_MAX: usize = 1024;

/// Room for a list, kept from one request to the next so that none allocates. Not `Send`: make one
/// per thread.
#[derive(Default)]
pub struct IoVecs(Vec<libc::iovec>);

impl IoVecs {
    /// Starts a list of buffers to write from.
    pub fn gather<'a>(&'a mut self, mem: &'a GuestMemory) -> GatherList<'a> {
        GatherList(List::new(&mut self.0, mem))
    }

    /// The entries of the last list.
    pub fn raw(&self) -> &[libc::iovec] {
        &self.0
    }

    /// Starts a list of buffers to read into.
    pub fn scatter<'a>(&'a mut self, mem: &'a GuestMemory) -> ScatterList<'a> {
        ScatterList(List::new(&mut self.0, mem))
    }
}

/// What both directions share. The entries point into guest memory or into host buffers borrowed
/// for `'a`.
struct List<'a> {
    iovs: &'a mut Vec<libc::iovec>,
    mem: &'a GuestMemory,
    // Entries before this one are done.
    at: usize,
    // Where the last entry ends, if it is guest memory.
    guest_end: *mut libc::c_void,
    host: PhantomData<&'a mut [u8]>,
}

impl<'a> List<'a> {
    fn new(iovs: &'a mut Vec<libc::iovec>, mem: &'a GuestMemory) -> Self {
        iovs.clear();
        Self { iovs, mem, at: 0, guest_end: std::ptr::null_mut(), host: PhantomData }
    }

    fn push_host(&mut self, bytes: *mut u8, len: usize) {
        self.iovs.push(libc::iovec { iov_base: bytes.cast(), iov_len: len });
        self.guest_end = std::ptr::null_mut();
    }

    fn push_guest(&mut self, gpa: GuestAddress, len: u32) {
        // More than one slice where a buffer crosses from one memory region into the next.
        // The last entry is done, and nothing is added to it.
        let is_done = self.at == self.iovs.len();
        for slice in self.mem.get_slices(gpa, len as usize) {
            let slice = slice.expect("the caller checked that the range is in guest memory");
            let start: *mut libc::c_void = slice.ptr_guard_mut().as_ptr().cast();
            // Drivers cut receive buffers from one piece of memory, so that a large packet's forty
            // are a few entries.
            match self.iovs.last_mut() {
                Some(last) if start == self.guest_end && !is_done => last.iov_len += slice.len(),
                _ => self.iovs.push(libc::iovec { iov_base: start, iov_len: slice.len() }),
            }
            self.guest_end = start.wrapping_byte_add(slice.len());
        }
    }

    fn remaining(&self) -> usize {
        self.iovs[self.at..].iter().map(|iov| iov.iov_len).sum()
    }

    fn is_aligned(&self, align: usize) -> bool {
        self.iovs[self.at..]
            .iter()
            .all(|iov| iov.iov_base.addr().is_multiple_of(align) && iov.iov_len.is_multiple_of(align))
    }

    fn advance(&mut self, mut n: usize) {
        while let Some(iov) = self.iovs.get_mut(self.at) {
            if n < iov.iov_len {
                iov.iov_base = iov.iov_base.wrapping_byte_add(n);
                iov.iov_len -= n;
                return;
            }
            n -= iov.iov_len;
            self.at += 1;
        }
    }

    /// One call of `f(pointer, count)` on the entries that are left, again if a signal interrupts
    /// it.
    fn call(
        &mut self,
        mut f: impl FnMut(*const libc::iovec, libc::c_int) -> libc::ssize_t,
    ) -> io::Result<usize> {
        let iovs = &self.iovs[self.at..];
        let count = libc::c_int::try_from(iovs.len().min(IOV_MAX)).expect("IOV_MAX fits");
        loop {
            if let Ok(n) = usize::try_from(f(iovs.as_ptr(), count)) {
                self.advance(n);
                return Ok(n);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off64_t> {
    libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Buffers to write *from*, into a file.
pub struct GatherList<'a>(List<'a>);

impl<'a> GatherList<'a> {
    /// Appends guest memory, all of which must exist.
    pub fn push(&mut self, gpa: GuestAddress, len: u32) {
        self.0.push_guest(gpa, len);
    }

    /// Appends bytes of the host's.
    pub fn push_host(&mut self, bytes: &'a [u8]) {
        // The kernel only reads from a gather list, so the cast to a mutable pointer is never used
        // as one.
        self.0.push_host(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// Whether every buffer begins and ends at a multiple of `align` bytes.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.0.is_aligned(align)
    }

    /// Bytes that are left to write.
    pub fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// `writev`: writes once, and returns how many bytes went.
    #[expect(unsafe_code, reason = "no crate of ours wraps writev over guest memory")]
    pub fn write_to(&mut self, file: &(impl AsRawFd + ?Sized)) -> io::Result<usize> {
        let fd = file.as_raw_fd();
        // SAFETY: `call` gives `count` initialised entries. Each points to memory that is mapped
        // and readable for its length: guest memory, borrowed by this list, or a host slice,
        // borrowed for 'a. The kernel only reads it.
        self.0.call(|iovs, count| unsafe { libc::writev(fd, iovs, count) })
    }

    /// `pwritev`: writes once at `offset` bytes into the file, and returns how many bytes went.
    #[expect(unsafe_code, reason = "no crate of ours wraps pwritev over guest memory")]
    pub fn write_at(&mut self, file: &impl AsRawFd, offset: u64) -> io::Result<usize> {
        let (fd, offset) = (file.as_raw_fd(), file_offset(offset)?);
        // SAFETY: as in `write_to`.
        self.0.call(|iovs, count| unsafe { libc::pwritev64(fd, iovs, count, offset) })
    }
}

/// Buffers to read *into*, from a file.
pub struct ScatterList<'a>(List<'a>);

impl<'a> ScatterList<'a> {
    /// Appends guest memory, all of which must exist.
    pub fn push(&mut self, gpa: GuestAddress, len: u32) {
        self.0.push_guest(gpa, len);
    }

    /// Appends a buffer of the host's.
    pub fn push_host(&mut self, bytes: &'a mut [u8]) {
        self.0.push_host(bytes.as_mut_ptr(), bytes.len());
    }

    /// Whether every buffer begins and ends at a multiple of `align` bytes.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.0.is_aligned(align)
    }

    /// Bytes that there is room for.
    pub fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// `readv`: reads once, and returns how many bytes came.
    #[expect(unsafe_code, reason = "no crate of ours wraps readv over guest memory")]
    pub fn read_from(&mut self, file: &(impl AsRawFd + ?Sized)) -> io::Result<usize> {
        let fd = file.as_raw_fd();
        // SAFETY: `call` gives `count` initialised entries. Each points to memory that is mapped
        // and writable for its length: guest memory, borrowed by this list and never seen as a Rust
        // reference, or a host slice, borrowed mutably for 'a.
        self.0.call(|iovs, count| unsafe { libc::readv(fd, iovs, count) })
    }

    /// `preadv`: reads once from `offset` bytes into the file, and returns how many bytes came; 0
    /// at the file's end.
    #[expect(unsafe_code, reason = "no crate of ours wraps preadv over guest memory")]
    pub fn read_at(&mut self, file: &impl AsRawFd, offset: u64) -> io::Result<usize> {
        let (fd, offset) = (file.as_raw_fd(), file_offset(offset)?);
        // SAFETY: as in `read_from`.
        self.0.call(|iovs, count| unsafe { libc::preadv64(fd, iovs, count, offset) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use vm_memory::Bytes;

    const BASE: u64 = 0x10_0000;

    /// Two regions that touch at BASE + 0x1000.
    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(BASE), 0x1000), (GuestAddress(BASE + 0x1000), 0x1000)])
            .unwrap()
    }

    #[test]
    fn a_buffer_across_two_regions_is_read_and_written_whole() {
        let mem = memory();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut iovs = IoVecs::default();
        let mut list = iovs.scatter(&mem);
        list.push(GuestAddress(BASE + 0xffd), 8);
        assert_eq!(list.remaining(), 8);
        assert_eq!(list.read_at(&file, 1).unwrap(), 8);
        assert_eq!(list.remaining(), 0);

        let mut list = iovs.gather(&mem);
        list.push_host(b"head:");
        list.push(GuestAddress(BASE + 0xffe), 7);
        file.rewind().unwrap();
        assert_eq!(list.write_to(&file).unwrap(), 12);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "head:2345678");
    }

    #[test]
    fn buffers_that_touch_are_one_entry_and_others_are_not() {
        let mem = memory();
        let mut iovs = IoVecs::default();
        let mut list = iovs.gather(&mem);
        for (offset, len) in [(0, 16), (16, 32), (48, 1), (50, 1), (51, 1), (40, 8)] {
            list.push(GuestAddress(BASE + offset), len);
        }
        list.push_host(b"host");
        list.push(GuestAddress(BASE + 48), 2);
        assert_eq!(list.remaining(), 49 + 2 + 8 + 4 + 2);
        let lengths: Vec<usize> = iovs.raw().iter().map(|iov| iov.iov_len).collect();
        assert_eq!(lengths, [49, 2, 8, 4, 2]);
    }

    #[test]
    fn a_short_transfer_leaves_the_rest_in_the_list() {
        let mem = memory();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut iovs = IoVecs::default();
        let mut list = iovs.scatter(&mem);
        list.push(GuestAddress(BASE), 4);
        list.push(GuestAddress(BASE + 0x100), 4);
        writer.write_all(b"abcdef").unwrap();
        assert_eq!(list.read_from(&reader).unwrap(), 6);
        assert_eq!(list.remaining(), 2);
        writer.write_all(b"gh").unwrap();
        assert_eq!(list.read_from(&reader).unwrap(), 2);
        assert_eq!(mem.read_obj::<[u8; 4]>(GuestAddress(BASE)).unwrap(), *b"abcd");
        assert_eq!(mem.read_obj::<[u8; 4]>(GuestAddress(BASE + 0x100)).unwrap(), *b"efgh");
    }

    #[test]
    fn more_entries_than_one_call_takes_go_in_several() {
        let mem = memory();
        let file = tempfile::tempfile().unwrap();
        let mut iovs = IoVecs::default();
        let mut list = iovs.gather(&mem);
        for _ in 0..IOV_MAX + 1 {
            list.push(GuestAddress(BASE), 1);
        }
        assert_eq!(list.write_at(&file, 0).unwrap(), IOV_MAX);
        assert_eq!(list.write_at(&file, 7).unwrap(), 1);
        assert_eq!(list.remaining(), 0);
    }

    #[test]
    fn an_offset_past_the_largest_file_is_an_error() {
        let mem = memory();
        let file = tempfile::tempfile().unwrap();
        let error = IoVecs::default().scatter(&mem).read_at(&file, u64::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
