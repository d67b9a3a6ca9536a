//! The image's file while data comes: blocks of data from the front, and a spool behind everything.
//! Blocks of zeros are holes of the file.
//!
//! The spool takes what has no bound in memory but belongs beside the inodes, whose places are
//! known only at the end: ends of files, symbolic links' targets, xattrs, addresses of chunks. It
//! begins at the offset that the image can't reach, and is cut off at the end, so it costs disk
//! only meanwhile and no file of its own.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::super::flaw::{Flaw, Trouble};
use super::super::tree::{Data, Inode};
use super::super::{Limits, RootfsError};
use super::format::{BLOCK, HOLE, INODE};
use crate::image::room::Growing;

/// Whatever the limit is, the spool behind it has to fit into a file: 16 TiB are ext4's.
const MAX_IMAGE: u64 = 8 << 40;
const BUFFER: usize = 1 << 20;
/// Chunks of one file: their addresses are 256 KiB.
const MAX_CHUNKS: u64 = 1 << 16;
/// Chunks for each part of a file that has data, so that a short entry that says it is a huge file
/// costs little.
const CHUNKS_PER_PART: u64 = 64;
/// Largest end of a file that goes beside its inode. A gigabyte of Debian's /usr in 53,661 files
/// becomes 11% smaller than with every end in a block of its own; up to 3200 bytes it would be 12%,
/// for metadata that is a third longer.
const MAX_TAIL: usize = 2048;

/// Collects bytes and writes them in big pieces, one after the other.
pub(super) struct Writer<'a> {
    out: Growing<'a>,
    /// Where in the file the buffer goes.
    start: u64,
    buffer: Box<[u8]>,
    len: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: Growing<'a>, start: u64) -> Self {
        Self { out, start, buffer: vec![0; BUFFER].into_boxed_slice(), len: 0 }
    }

    /// Where the next byte goes.
    pub(super) fn at(&self) -> u64 {
        self.start + self.len as u64
    }

    pub(super) fn flush(&mut self) -> Result<(), RootfsError> {
        self.out.write_all_at(&self.buffer[..self.len], self.start).map_err(RootfsError::Write)?;
        self.start += self.len as u64;
        self.len = 0;
        Ok(())
    }

    /// Room for at least one more byte, at most `len`.
    fn room(&mut self, len: u64) -> Result<&mut [u8], RootfsError> {
        if self.len == BUFFER {
            self.flush()?;
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(BUFFER - self.len);
        Ok(&mut self.buffer[self.len..self.len + len])
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), RootfsError> {
        while !bytes.is_empty() {
            let room = self.room(bytes.len() as u64)?;
            let n = room.len();
            room.copy_from_slice(&bytes[..n]);
            self.len += n;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Goes on at a later place. What lies between is zeros, and a hole if it is long.
    pub(super) fn skip_to(&mut self, at: u64) -> Result<(), RootfsError> {
        let mut gap = at.saturating_sub(self.at());
        if gap > BLOCK * 4 {
            self.flush()?;
            self.start = at;
            return Ok(());
        }
        while gap > 0 {
            let room = self.room(gap)?;
            room.fill(0);
            let n = room.len();
            self.len += n;
            gap -= n as u64;
        }
        Ok(())
    }

    /// What was written at `at`, flushed or not.
    fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), RootfsError> {
        let mut flushed = 0;
        if at < self.start {
            flushed = usize::try_from(self.start - at).unwrap_or(usize::MAX).min(bytes.len());
            read_at(self.out.file(), &mut bytes[..flushed], at).map_err(RootfsError::Write)?;
        }
        let from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let rest = &mut bytes[flushed..];
        if !rest.is_empty() {
            rest.copy_from_slice(&self.buffer[from..from + rest.len()]);
        }
        Ok(())
    }
}

/// Reads what was written. Behind the file's end there were zeros.
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, at) {
            Ok(0) => {
                bytes.fill(0);
                return Ok(());
            }
            Ok(n) => (bytes, at) = (&mut bytes[n..], at + n as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads some of a file's data; 0 at its end.
pub(in crate::image::rootfs) type ReadSome<'r> = dyn FnMut(&mut [u8]) -> Result<usize, Trouble> + 'r;

pub(in crate::image::rootfs) struct Store<'a> {
    pub(super) out: Growing<'a>,
    /// Longest image, in bytes.
    pub(super) max: u64,
    pub(super) data: Writer<'a>,
    spool: Writer<'a>,
    /// Whether the file system can punch holes, as far as is known.
    punches: bool,
}

impl<'a> Store<'a> {
    /// What the file has is lost: holes have to be zeros.
    pub(in crate::image::rootfs) fn new(out: &'a File, limits: &Limits) -> Result<Self, RootfsError> {
        out.set_len(0).map_err(RootfsError::Write)?;
        let max = limits.max_bytes.min(MAX_IMAGE).next_multiple_of(BLOCK);
        let out = Growing::new(out, limits.max_disk);
        let (data, spool) = (Writer::new(out.clone(), BLOCK), Writer::new(out.clone(), max));
        Ok(Self { out, max, data, spool, punches: true })
    }

    fn too_large(&self) -> RootfsError {
        RootfsError::TooLarge(self.max)
    }

    /// The block that is next, if so many bytes fit from there on.
    fn begin(&mut self, len: u64) -> Result<u32, RootfsError> {
        let at = self.data.at().next_multiple_of(BLOCK);
        if at.checked_add(len).is_none_or(|end| end > self.max) {
            return Err(self.too_large());
        }
        self.data.skip_to(at)?;
        u32::try_from(at / BLOCK).map_err(|_| self.too_large())
    }

    /// First block behind all data.
    fn end(&self) -> Result<u32, RootfsError> {
        u32::try_from(self.data.at().div_ceil(BLOCK)).map_err(|_| self.too_large())
    }

    fn spool(&mut self, bytes: &[u8]) -> Result<u64, RootfsError> {
        let at = self.spool.at();
        if at.checked_add(bytes.len() as u64).is_none_or(|end| end > 2 * self.max) {
            return Err(self.too_large());
        }
        self.spool.write(bytes)?;
        Ok(at)
    }

    pub(in crate::image::rootfs) fn read_spool(&self, bytes: &mut [u8], at: u64) -> Result<(), RootfsError> {
        self.spool.read(bytes, at)
    }

    /// Gives an inode its encoded xattrs, and no data.
    pub(in crate::image::rootfs) fn put_xattrs(
        &mut self,
        inode: &mut Inode,
        xattrs: &[u8],
    ) -> Result<(), RootfsError> {
        self.put_spool(inode, xattrs, &[])
    }

    fn put_spool(&mut self, inode: &mut Inode, xattrs: &[u8], tail: &[u8]) -> Result<(), RootfsError> {
        inode.spool = self.spool(xattrs)?;
        self.spool(tail)?;
        // Both are capped far below.
        inode.xattr_len = u32::try_from(xattrs.len()).map_err(|_| self.too_large())?;
        inode.tail_len = u32::try_from(tail.len()).map_err(|_| self.too_large())?;
        Ok(())
    }

    /// Gives a symbolic link its target. It stays readable in the spool.
    pub(in crate::image::rootfs) fn put_target(
        &mut self,
        inode: &mut Inode,
        xattrs: &[u8],
        target: &[u8],
    ) -> Result<(), RootfsError> {
        inode.size = target.len() as u64;
        self.put_spool(inode, xattrs, target)?;
        // The kernel wants all of a link in one block, or its target alone in a block.
        if INODE + xattrs.len() as u64 + inode.size <= BLOCK {
            inode.data = Data::Tail(0);
        } else {
            let block = self.begin(inode.size)?;
            self.data.write(target)?;
            inode.data = Data::Blocks(block);
            inode.blocks = block..self.end()?;
        }
        Ok(())
    }

    /// Streams a file's data to its place: whole blocks to the image, a short end to the spool.
    pub(in crate::image::rootfs) fn put_file(
        &mut self,
        inode: &mut Inode,
        xattrs: &[u8],
        size: u64,
        read: &mut ReadSome<'_>,
    ) -> Result<(), Trouble> {
        if size > self.max {
            return Err(Flaw::Size.into());
        }
        inode.size = size;
        let end = size % BLOCK;
        let beside = end > 0 && end <= MAX_TAIL as u64 && INODE + xattrs.len() as u64 + end <= BLOCK;
        let blocks = if beside { size - end } else { size };
        let mut block = 0;
        if blocks > 0 {
            block = self.begin(blocks)?;
            self.copy(blocks, read)?;
            inode.blocks = block..self.end()?;
        }
        let mut tail = [0; MAX_TAIL];
        let mut done = 0;
        let tail = if beside { &mut tail[..usize::try_from(end).unwrap_or(0)] } else { &mut [] };
        while done < tail.len() {
            match read(&mut tail[done..])? {
                0 => return Err(Flaw::Changed.into()),
                n => done += n,
            }
        }
        inode.data = if beside { Data::Tail(block) } else { Data::Blocks(block) };
        self.put_spool(inode, xattrs, tail)?;
        Ok(())
    }

    fn copy(&mut self, mut left: u64, read: &mut ReadSome<'_>) -> Result<(), Trouble> {
        while left > 0 {
            let n = read(self.data.room(left)?)?;
            if n == 0 {
                return Err(Flaw::Changed.into());
            }
            self.data.len += n;
            left -= n as u64;
        }
        Ok(())
    }

    /// Streams a sparse file. `parts` are its offsets and lengths of data, in order and inside of
    /// it; `read` gives only them.
    ///
    /// The file becomes chunks, as small as their number allows. A chunk without data has no place
    /// in the image; in one with some, what has none is a hole of the image itself.
    pub(in crate::image::rootfs) fn put_sparse(
        &mut self,
        inode: &mut Inode,
        xattrs: &[u8],
        size: u64,
        parts: impl ExactSizeIterator<Item = (u64, u64)>,
        read: &mut ReadSome<'_>,
    ) -> Result<(), Trouble> {
        if size > self.max {
            return Err(Flaw::Size.into());
        }
        inode.size = size;
        let most = (parts.len() as u64).saturating_mul(CHUNKS_PER_PART).clamp(CHUNKS_PER_PART, MAX_CHUNKS);
        let bits = (0_u8..32).find(|bits| size.div_ceil(BLOCK << bits) <= most).ok_or(Flaw::Size)?;
        let chunk = BLOCK << bits;
        let count = usize::try_from(size.div_ceil(chunk)).map_err(|_| Flaw::Size)?;
        let mut addresses = vec![HOLE; count];
        let first = self.begin(0)?;
        let mut end = self.data.at();
        for (mut offset, mut left) in parts {
            while left > 0 {
                let index = offset / chunk;
                let address = usize::try_from(index).ok().and_then(|index| addresses.get_mut(index));
                let address = address.ok_or(Flaw::SparseMap)?;
                if *address == HOLE {
                    // Chunks begin in the order of the file; the last one ends where the file does.
                    let len = chunk.min(size.next_multiple_of(BLOCK) - index * chunk);
                    *address = u32::try_from(end / BLOCK).map_err(|_| RootfsError::TooLarge(self.max))?;
                    end += len;
                    if end > self.max {
                        return Err(self.too_large().into());
                    }
                }
                let n = left.min(chunk - offset % chunk);
                self.data.skip_to(u64::from(*address) * BLOCK + offset % chunk)?;
                self.copy(n, read)?;
                offset += n;
                left -= n;
            }
        }
        self.data.skip_to(end)?;
        inode.blocks = first..self.end()?;
        if addresses.contains(&HOLE) {
            let addresses: Vec<u8> = addresses.iter().flat_map(|address| address.to_le_bytes()).collect();
            inode.data = Data::Chunks(bits);
            self.put_spool(inode, xattrs, &addresses)?;
        } else {
            inode.data = Data::Blocks(first);
            self.put_spool(inode, xattrs, &[])?;
        }
        Ok(())
    }

    /// Gives blocks back to the file system that nothing needs any more. One that can't keeps them.
    pub(in crate::image::rootfs) fn free(&mut self, freed: Vec<Range<u32>>) -> Result<(), RootfsError> {
        for blocks in freed {
            let (start, end) = (u64::from(blocks.start) * BLOCK, u64::from(blocks.end) * BLOCK);
            if end > self.data.start {
                self.data.flush()?;
            }
            if !self.punches {
                continue;
            }
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(self.out.file(), flags, start, end - start) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.punches = false,
                Err(error) => return Err(RootfsError::Write(error.into())),
            }
        }
        Ok(())
    }

    /// Everything that isn't zeros is in the file; says where data ends, in blocks.
    pub(super) fn flush(&mut self) -> Result<u32, RootfsError> {
        self.data.flush()?;
        self.spool.flush()?;
        self.end()
    }
}
