//! Which pages of a file are in memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A byte for each page of the file, whose lowest bit says that it is in memory.
pub fn resident(file: &File) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut pages = vec![0_u8; len.div_ceil(rustix::param::page_size())];
    if len == 0 {
        return Ok(pages);
    }
    #[expect(unsafe_code, reason = "neither std nor rustix has mincore")]
    // SAFETY: a new mapping at an address of the kernel's choice, which nothing reads or writes;
    // mincore fills a byte for each page of it, and `pages` has as many.
    unsafe {
        let at =
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ret = libc::mincore(at, len, pages.as_mut_ptr());
        let error = io::Error::last_os_error();
        libc::munmap(at, len);
        if ret != 0 {
            return Err(error);
        }
    }
    Ok(pages)
}
