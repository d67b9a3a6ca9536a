//! One virtio-blk request: a chain in, bytes written out (virtio 1.2 §5.2.6).
//!
//! The status byte is cut off the writable side before anything else, so that no request can write it elsewhere and every
//! request gets one. The error type of what follows *is* that byte, and `?` does the rest. The header is copied once: what the
//! driver does to it afterwards is of no consequence.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::Disk;
use crate::memory::GuestMemory;
use crate::virtio::core::chain::{Chain, Reader, Writer};
use crate::virtio::core::guest_log::GuestLog;
use crate::virtio::core::iovec::IoVecs;
use crate::virtio::core::limit::Throttle;
use crate::virtio::core::spec::blk;

/// Why a request fails: the status byte that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Failure {
    IoErr = blk::S_IOERR,
    Unsupported = blk::S_UNSUPP,
}

/// What requests are served with.
pub(super) struct Server {
    pub(super) disk: Disk,
    /// What GET_ID answers, padded with zeros.
    pub(super) id: [u8; blk::ID_LEN],
    pub(super) log: GuestLog,
    /// Something was written that no flush has followed.
    pub(super) dirty: AtomicBool,
    /// For what a request does beyond its own bytes.
    pub(super) throttle: Arc<Throttle>,
}

/// The most ranges of one DISCARD or WRITE_ZEROES.
pub(super) const MAX_RANGES: u32 = 32;
/// The most sectors of a range to discard: what a file system does with 2 GiB at once is a matter of milliseconds.
pub(super) const MAX_DISCARD_SECTORS: u32 = 4 << 20;
/// The most sectors of a range to make zeros, which may have to be written: 64 MiB.
pub(super) const MAX_ZEROES_SECTORS: u32 = 128 << 10;

impl Server {
    /// Serves the request in `chain`, and returns how many bytes of its writable part are written. `write_through` when the
    /// driver did not negotiate FLUSH: then each write is durable before it is answered.
    pub(super) fn serve(
        &self,
        chain: &Chain,
        mem: &GuestMemory,
        iovs: &mut IoVecs,
        write_through: bool,
    ) -> u32 {
        let mut status = chain.writer(mem);
        let Some(data_len) = status.len().checked_sub(1) else {
            // Nowhere to say so but the log.
            self.log.warn("a request has no room for its status byte");
            return 0;
        };
        let data = status.split_off_front(data_len);
        match self.execute(chain.reader(mem), data, iovs, write_through) {
            Ok(written) => {
                status.write(&[blk::S_OK]);
                // The driver may give GET_ID more room than it fills; a used length counts from the start (§2.7.8.2).
                if written == data_len { data_len + 1 } else { written }
            }
            Err(failure) => {
                status.write(&[failure as u8]);
                // Of the data before the status byte we can't say that it was written.
                u32::from(data_len == 0)
            }
        }
    }

    /// Returns how many bytes of `data` were written.
    fn execute(
        &self,
        mut reader: Reader<'_>,
        data: Writer<'_>,
        iovs: &mut IoVecs,
        write_through: bool,
    ) -> Result<u32, Failure> {
        let (kind, sector) = header(&mut reader).ok_or(Failure::IoErr)?;
        match kind {
            blk::T_IN => {
                let offset = self.check_range(sector, data.len())?;
                let done = self.disk.read_at(&mut data.scatter(iovs), offset);
                self.or_io_error(done, "read")?;
                Ok(data.len())
            }
            blk::T_OUT => {
                if self.disk.read_only() {
                    self.log.warn("a write to a read-only disk");
                    return Err(Failure::IoErr);
                }
                let offset = self.check_range(sector, reader.len())?;
                self.dirty.store(true, Ordering::SeqCst);
                let done = self.disk.write_at(&mut reader.gather(iovs), offset);
                // Again: another queue's flush may have come between the two.
                self.dirty.store(true, Ordering::SeqCst);
                self.or_io_error(done, "write")?;
                if write_through {
                    self.flush()?;
                }
                Ok(0)
            }
            blk::T_DISCARD | blk::T_WRITE_ZEROES => {
                self.change_ranges(kind, &mut reader)?;
                if write_through {
                    self.flush()?;
                }
                Ok(0)
            }
            blk::T_FLUSH => self.flush().map(|()| 0),
            blk::T_GET_ID => {
                let mut data = data;
                Ok(data.write(&self.id))
            }
            _ => Err(Failure::Unsupported),
        }
    }

    /// Makes durable what the driver wrote and didn't flush: once the device has stopped, nobody else will.
    pub(super) fn flush_at_stop(&self) {
        if self.dirty.load(Ordering::SeqCst) {
            // Reported where it fails, and there is nobody else to tell.
            let _ = self.flush();
        }
    }

    /// DISCARD and WRITE_ZEROES: a list of ranges, none of which is touched if there is anything wrong with one.
    fn change_ranges(&self, kind: u32, reader: &mut Reader<'_>) -> Result<(), Failure> {
        if self.disk.read_only() {
            self.log.warn("a discard or zeroing on a read-only disk");
            return Err(Failure::IoErr);
        }
        let count = reader.len() / blk::RANGE_LEN;
        if count == 0 || count > MAX_RANGES || !reader.len().is_multiple_of(blk::RANGE_LEN) {
            return Err(Failure::IoErr);
        }
        let mut ranges = Vec::with_capacity(MAX_RANGES as usize);
        while let Some(range) = reader.read_array() {
            ranges.push(self.check_change(kind, range)?);
        }
        self.dirty.store(true, Ordering::SeqCst);
        for (offset, len, may_discard) in ranges.into_iter().filter(|(_, len, _)| *len > 0) {
            let done = match kind {
                blk::T_DISCARD => self.disk.discard(offset, len),
                _ => self.disk.write_zeroes(offset, len, may_discard),
            };
            self.dirty.store(true, Ordering::SeqCst);
            self.or_io_error(done, "discard or zeroing")?;
            if kind == blk::T_WRITE_ZEROES {
                // They may have been written.
                self.throttle.charge_bytes(len);
            }
        }
        Ok(())
    }

    /// Offset and length of a range in bytes, and whether its space may be given back (§5.2.6).
    fn check_change(
        &self,
        kind: u32,
        range: [u8; blk::RANGE_LEN as usize],
    ) -> Result<(u64, u64, bool), Failure> {
        let range = u128::from_le_bytes(range);
        let word = |shift: u32| u32::try_from(range >> shift & u128::from(u32::MAX)).unwrap_or(u32::MAX);
        let (sector, sectors, flags) = (u64::from(word(0)) | u64::from(word(32)) << 32, word(64), word(96));
        // §5.2.6.2: a flag that isn't known, or isn't for this request, is unsupported.
        let (known, most) = match kind {
            blk::T_DISCARD => (0, MAX_DISCARD_SECTORS),
            _ => (blk::RANGE_UNMAP, MAX_ZEROES_SECTORS),
        };
        if flags & !known != 0 {
            return Err(Failure::Unsupported);
        }
        if sectors > most {
            return Err(Failure::IoErr);
        }
        let len = u64::from(sectors) * blk::SECTOR_SIZE;
        Ok((self.check_bytes(sector, len)?, len, flags & blk::RANGE_UNMAP != 0))
    }

    fn flush(&self) -> Result<(), Failure> {
        // Before the flush: what another queue's thread writes meanwhile may not be part of it.
        let was_dirty = self.dirty.swap(false, Ordering::SeqCst);
        let done = self.disk.flush();
        if done.is_err() && was_dirty {
            self.dirty.store(true, Ordering::SeqCst);
        }
        self.or_io_error(done, "flush")
    }

    /// The byte offset of `sector`, if `len` bytes from there are whole sectors of the disk.
    fn check_range(&self, sector: u64, len: u32) -> Result<u64, Failure> {
        self.check_bytes(sector, len.into())
    }

    fn check_bytes(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(blk::SECTOR_SIZE).ok_or(Failure::IoErr)?;
        let end = offset.checked_add(len).ok_or(Failure::IoErr)?;
        if !len.is_multiple_of(blk::SECTOR_SIZE) || end > self.disk.len() {
            return Err(Failure::IoErr);
        }
        Ok(offset)
    }

    fn or_io_error(&self, done: io::Result<()>, what: &str) -> Result<(), Failure> {
        done.map_err(|error| {
            self.log.warn(format_args!("{what} failed: {error}"));
            Failure::IoErr
        })
    }
}

/// Type and sector; `None` when the driver gave less than a header.
fn header(reader: &mut Reader<'_>) -> Option<(u32, u64)> {
    let kind = u32::from_le_bytes(reader.read_array()?);
    let _reserved: [u8; 4] = reader.read_array()?;
    let sector = u64::from_le_bytes(reader.read_array()?);
    Some((kind, sector))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
