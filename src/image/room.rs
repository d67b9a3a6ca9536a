//! Room on disk. What is written into the store grows by what others have made up, on a file system
//! that others use, too: so it stops before that is full, and at what the store may have. Zeros
//! take no room.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::Rc;

use thiserror::Error;

/// Bytes after which the file system is asked again.
const STEP: u64 = 64 << 20;
/// A hundredth of a file system stays free, but no more than this.
const MAX_RESERVE: u64 = 256 << 20;
/// Zeros become holes by the block.
const BLOCK: usize = 4096;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Why nothing more is written. Travels inside an [`io::Error`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum NoRoom {
    #[error("its file system has {left} bytes left, and {reserve} of them stay free")]
    Full { left: u64, reserve: u64 },
    #[error("it takes more than {0} bytes on disk")]
    Limit(u64),
}

impl From<NoRoom> for io::Error {
    fn from(error: NoRoom) -> Self {
        io::Error::new(io::ErrorKind::StorageFull, error)
    }
}

/// A new file that grows. Whatever isn't written is a hole.
#[derive(Clone, Debug)]
pub(super) struct Growing<'a> {
    file: &'a File,
    /// Most bytes on disk.
    max_disk: u64,
    /// Bytes that may be written before the file system is asked again.
    granted: Rc<Cell<u64>>,
}

impl<'a> Growing<'a> {
    pub(super) fn new(file: &'a File, max_disk: u64) -> Self {
        Self { file, max_disk, granted: Rc::default() }
    }

    pub(super) fn sequential(self) -> Sequential<'a> {
        Sequential { growing: self, at: 0 }
    }

    pub(super) fn file(&self) -> &'a File {
        self.file
    }

    /// Writes what isn't zeros, where nothing has been written before.
    pub(super) fn write_all_at(&self, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let data = run(bytes, at, false);
            if data > 0 {
                self.take(data as u64)?;
                self.file.write_all_at(&bytes[..data], at)?;
            }
            let zeros = run(&bytes[data..], at + data as u64, true);
            bytes = &bytes[data + zeros..];
            at += (data + zeros) as u64;
        }
        Ok(())
    }

    /// Insists that the file doesn't take more than it may, now that it is complete.
    pub(super) fn check(&self) -> io::Result<()> {
        self.check_disk(self.max_disk)
    }

    fn check_disk(&self, limit: u64) -> io::Result<()> {
        // Of 512 bytes, whatever the file system's own blocks are.
        if self.file.metadata()?.blocks().saturating_mul(512) > limit {
            return Err(NoRoom::Limit(self.max_disk).into());
        }
        Ok(())
    }

    fn take(&self, len: u64) -> io::Result<()> {
        if let Some(left) = self.granted.get().checked_sub(len) {
            self.granted.set(left);
            return Ok(());
        }
        // What is cut off in the end is no longer than what stays.
        self.check_disk(self.max_disk.saturating_mul(2))?;
        let system = rustix::fs::fstatvfs(self.file)?;
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        self.granted.set(grant(bytes(system.f_blocks), bytes(system.f_bavail), len)?);
        Ok(())
    }
}

/// Writes a file from front to back.
pub(super) struct Sequential<'a> {
    growing: Growing<'a>,
    at: u64,
}

impl Sequential<'_> {
    /// What has been written is the whole file: zeros at its end are part of it.
    pub(super) fn finish(self) -> io::Result<()> {
        self.growing.file.set_len(self.at)
    }
}

impl io::Write for Sequential<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.growing.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How much may be written besides `len` bytes that are about to be.
fn grant(total: u64, left: u64, len: u64) -> Result<u64, NoRoom> {
    // Some file systems don't know how large they are.
    if total == 0 {
        return Ok(STEP);
    }
    let reserve = (total / 100).min(MAX_RESERVE);
    let usable = left.saturating_sub(reserve);
    usable.checked_sub(len).map(|rest| rest.min(STEP)).ok_or(NoRoom::Full { left, reserve })
}

/// How many of the bytes, which go to `at`, are in blocks of zeros, or before the first such block.
fn run(bytes: &[u8], at: u64, zeros: bool) -> usize {
    let mut end = 0;
    while end < bytes.len() {
        // Less than a block.
        let within = usize::try_from((at + end as u64) % BLOCK as u64).unwrap_or(0);
        let len = (BLOCK - within).min(bytes.len() - end);
        if (bytes[end..end + len] == ZEROS[..len]) != zeros {
            break;
        }
        end += len;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn blocks_of_zeros_become_holes() {
        let file = tempfile::tempfile().unwrap();
        let growing = Growing::new(&file, u64::MAX);
        let mut content = vec![0; 1 << 20];
        content[5000] = 1;
        content[700_000..701_000].fill(2);
        growing.write_all_at(&content, 100).unwrap();
        growing.write_all_at(b"end", 1 << 21).unwrap();
        let mut seen = vec![9; content.len()];
        file.read_exact_at(&mut seen, 100).unwrap();
        assert!(seen == content);
        assert!(file.metadata().unwrap().blocks() <= 4 * 8, "{}", file.metadata().unwrap().blocks());
    }

    #[test]
    fn a_file_that_ends_in_zeros_keeps_them() {
        let file = tempfile::tempfile().unwrap();
        let mut out = Growing::new(&file, u64::MAX).sequential();
        io::copy(&mut (&b"x"[..]).chain(io::repeat(0).take(100_000)), &mut out).unwrap();
        out.finish().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100_001);
        assert!(file.metadata().unwrap().blocks() <= 8);
    }

    #[test]
    fn runs_end_at_the_file_s_blocks() {
        let mut bytes = vec![0; 3 * BLOCK];
        bytes[BLOCK] = 1;
        assert_eq!(run(&bytes, 0, true), BLOCK);
        assert_eq!(run(&bytes[BLOCK..], BLOCK as u64, false), BLOCK);
        assert_eq!(run(&bytes, 96, true), BLOCK - 96, "the second block begins with the byte");
        assert_eq!(run(&bytes, 0, false), 0);
        assert_eq!(run(&bytes[BLOCK..BLOCK + 7], BLOCK as u64, false), 7);
        assert_eq!(run(&[], 0, true), 0);
    }

    #[test]
    fn a_part_of_the_file_system_stays_free() {
        assert_eq!(grant(10_000, 5000, 1000), Ok(3900));
        assert_eq!(grant(10_000, 1000, 900), Ok(0));
        assert_eq!(grant(10_000, 1000, 901), Err(NoRoom::Full { left: 1000, reserve: 100 }));
        assert_eq!(grant(1 << 50, 1 << 40, 1), Ok(STEP));
        assert!(grant(1 << 50, MAX_RESERVE, 1).is_err());
        assert_eq!(grant(0, 0, 1 << 30), Ok(STEP));
    }

    #[test]
    fn a_file_takes_no_more_than_it_may() {
        let file = tempfile::tempfile().unwrap();
        let growing = Growing::new(&file, 8192);
        growing.write_all_at(&[1; 8192], 0).unwrap();
        growing.check().unwrap();
        growing.write_all_at(&[1; 8192], 8192).unwrap();
        let error = growing.check().unwrap_err();
        assert_eq!(error.to_string(), "it takes more than 8192 bytes on disk");
        // While it is written, it may be twice as large.
        growing.write_all_at(&[1; 8192], 16_384).unwrap();
        growing.granted.set(0);
        growing.write_all_at(&[1; 8192], 24_576).unwrap_err();
    }
}
