//! One virtio-blk request: a chain in, bytes written out (virtio 1.2 §5.2.6).
//!
//! A request begins and finishes in one go, or with a transfer between the two that somebody else
//! makes. The last writable byte is the status, so that no request can write it elsewhere and every
//! request gets one. The error type of what is on the way *is* that byte, and `?` does the rest.
//! The header is copied once: what the driver does to it afterwards is of no consequence.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::Disk;
use crate::bounded_log::BoundedLog;
use crate::memory::GuestMemory;
use crate::virtio::core::chain::{Chain, Reader, Writer};
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
    pub(super) log: BoundedLog,
    /// Something was written that no flush has followed.
    pub(super) dirty: AtomicBool,
    /// For what a request does beyond its own bytes.
    pub(super) throttle: Arc<Throttle>,
}

/// The most ranges of one DISCARD or WRITE_ZEROES.
pub(super) const MAX_RANGES: u32 = 32;
/// The most sectors of a range to discard: what a file system does with 2 GiB at once is a matter
/// of milliseconds.
pub(super) const MAX_DISCARD_SECTORS: u32 = 4 << 20;
/// The most sectors of a range to make zeros, which may have to be written: 64 MiB.
pub(super) const MAX_ZEROES_SECTORS: u32 = 128 << 10;

/// A request that goes to the file: what is left of it when everything else is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) kind: TransferKind,
    /// Bytes into the disk.
    pub(super) offset: u64,
    /// Bytes of data.
    pub(super) len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransferKind {
    /// From the file into the chain.
    Read,
    /// From the chain into the file.
    Write,
    /// Everything that was written becomes durable.
    Flush {
        /// Whether there is something to lose if it fails.
        was_dirty: bool,
    },
}

/// Where a request stands after its chain was looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// At its end: so many bytes of the chain's writable part are written.
    Done(u32),
    /// The transfer is to be made, and then [`finished`](Server::finish).
    Transfer(Transfer),
    /// The disk is to be [`changed`](Server::change), which may take long.
    Change(Change),
}

/// A DISCARD or WRITE_ZEROES, everything about it checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    zeroes: bool,
    ranges: Vec<Range>,
}

#[derive(Debug, PartialEq, Eq)]
struct Range {
    /// Bytes into the disk.
    offset: u64,
    /// In bytes.
    len: u64,
    /// Whether its space may be given back.
    unmap: bool,
}

impl Server {
    /// Serves the request in `chain`, and returns how many bytes of its writable part are written.
    /// `write_through` when the driver did not negotiate FLUSH: then each write is durable before
    /// it is answered.
    pub(super) fn serve(
        &self,
        chain: &Chain,
        mem: &GuestMemory,
        iovs: &mut IoVecs,
        write_through: bool,
    ) -> u32 {
        match self.begin(chain, mem) {
            Begun::Done(written) => written,
            Begun::Transfer(transfer) => {
                let done = self.perform(&transfer, chain, mem, iovs);
                self.finish(&transfer, done, chain, mem, write_through)
            }
            Begun::Change(change) => self.change(&change, chain, mem, write_through),
        }
    }

    /// Looks at the request in `chain`, and does all of it but a transfer or a change.
    pub(super) fn begin(&self, chain: &Chain, mem: &GuestMemory) -> Begun {
        let Some(data_len) = chain.writable_len().checked_sub(1) else {
            // Nowhere to say so but the log.
            self.log.warn("a request has no room for its status byte");
            return Begun::Done(0);
        };
        match self.look(chain, mem, data_len) {
            Ok(Begun::Done(written)) => Begun::Done(answer(chain, mem, Ok(written))),
            Ok(begun) => begun,
            Err(failure) => Begun::Done(answer(chain, mem, Err(failure))),
        }
    }

    /// What `begin` returns, but for the status byte: of the data so many bytes were written.
    fn look(&self, chain: &Chain, mem: &GuestMemory, data_len: u32) -> Result<Begun, Failure> {
        let mut reader = chain.reader(mem);
        let (kind, sector) = header(&mut reader).ok_or(Failure::IoErr)?;
        let transfer = |kind, offset, len| Ok(Begun::Transfer(Transfer { kind, offset, len }));
        match kind {
            blk::T_IN => transfer(TransferKind::Read, self.check_range(sector, data_len)?, data_len),
            blk::T_OUT => {
                if self.disk.read_only() {
                    self.log.warn("a write to a read-only disk");
                    return Err(Failure::IoErr);
                }
                let offset = self.check_range(sector, reader.len())?;
                self.dirty.store(true, Ordering::SeqCst);
                transfer(TransferKind::Write, offset, reader.len())
            }
            blk::T_DISCARD | blk::T_WRITE_ZEROES => {
                let ranges = self.check_ranges(kind, &mut reader)?;
                Ok(Begun::Change(Change { zeroes: kind == blk::T_WRITE_ZEROES, ranges }))
            }
            blk::T_FLUSH => transfer(self.flush_begins(), 0, 0),
            blk::T_GET_ID => {
                let mut data = chain.writer(mem).split_off_front(data_len);
                Ok(Begun::Done(data.write(&self.id)))
            }
            _ => Err(Failure::Unsupported),
        }
    }

    /// Makes the transfer, start to end.
    pub(super) fn perform(
        &self,
        transfer: &Transfer,
        chain: &Chain,
        mem: &GuestMemory,
        iovs: &mut IoVecs,
    ) -> io::Result<()> {
        match transfer.kind {
            TransferKind::Read => self.disk.read_at(&mut target(chain, mem).scatter(iovs), transfer.offset),
            TransferKind::Write => self.disk.write_at(&mut source(chain, mem).gather(iovs), transfer.offset),
            TransferKind::Flush { .. } => self.disk.flush(),
        }
    }

    /// Answers a request whose transfer has been made, or not.
    pub(super) fn finish(
        &self,
        transfer: &Transfer,
        done: io::Result<()>,
        chain: &Chain,
        mem: &GuestMemory,
        write_through: bool,
    ) -> u32 {
        let result = match transfer.kind {
            TransferKind::Read => self.or_io_error(done, "read").map(|()| transfer.len),
            TransferKind::Write => {
                // Again: another queue's flush may have come between the two.
                self.dirty.store(true, Ordering::SeqCst);
                let done = self.or_io_error(done, "write");
                done.and_then(|()| if write_through { self.flush() } else { Ok(()) }).map(|()| 0)
            }
            TransferKind::Flush { was_dirty } => self.flush_ends(was_dirty, done).map(|()| 0),
        };
        answer(chain, mem, result)
    }

    /// Makes durable what the driver wrote and didn't flush: once the device has stopped, nobody
    /// else will.
    pub(super) fn flush_at_stop(&self) {
        if self.dirty.load(Ordering::SeqCst) {
            // Reported where it fails, and there is nobody else to tell.
            let _ = self.flush();
        }
    }

    /// Makes the change, and answers its request.
    pub(super) fn change(
        &self,
        change: &Change,
        chain: &Chain,
        mem: &GuestMemory,
        write_through: bool,
    ) -> u32 {
        let mut result = change.ranges.iter().try_for_each(|range| self.change_range(change.zeroes, range));
        if write_through {
            result = result.and_then(|()| self.flush());
        }
        answer(chain, mem, result.map(|()| 0))
    }

    fn change_range(&self, zeroes: bool, &Range { offset, len, unmap }: &Range) -> Result<(), Failure> {
        self.dirty.store(true, Ordering::SeqCst);
        let done =
            if zeroes { self.disk.write_zeroes(offset, len, unmap) } else { self.disk.discard(offset, len) };
        // Again: another queue's flush may have come between the two.
        self.dirty.store(true, Ordering::SeqCst);
        self.or_io_error(done, "discard or zeroing")?;
        if zeroes {
            // They may have been written.
            self.throttle.charge_bytes(len);
        }
        Ok(())
    }

    /// The ranges of a DISCARD or WRITE_ZEROES that aren't empty; an error if there is anything
    /// wrong with one.
    fn check_ranges(&self, kind: u32, reader: &mut Reader<'_>) -> Result<Vec<Range>, Failure> {
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
        ranges.retain(|range| range.len > 0);
        Ok(ranges)
    }

    /// A range as the driver says it (§5.2.6).
    fn check_change(&self, kind: u32, range: [u8; blk::RANGE_LEN as usize]) -> Result<Range, Failure> {
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
        Ok(Range { offset: self.check_bytes(sector, len)?, len, unmap: flags & blk::RANGE_UNMAP != 0 })
    }

    fn flush(&self) -> Result<(), Failure> {
        let TransferKind::Flush { was_dirty } = self.flush_begins() else { unreachable!("it is a flush") };
        self.flush_ends(was_dirty, self.disk.flush())
    }

    fn flush_begins(&self) -> TransferKind {
        // Before the flush: what is written meanwhile may not be part of it.
        TransferKind::Flush { was_dirty: self.dirty.swap(false, Ordering::SeqCst) }
    }

    fn flush_ends(&self, was_dirty: bool, done: io::Result<()>) -> Result<(), Failure> {
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

/// Writes the status byte, behind `Ok(written)` bytes of data or instead of them, and returns how
/// many bytes are written.
fn answer(chain: &Chain, mem: &GuestMemory, result: Result<u32, Failure>) -> u32 {
    let mut status = chain.writer(mem);
    let data_len = status.len() - 1;
    let _data = status.split_off_front(data_len);
    match result {
        Ok(written) => {
            status.write(&[blk::S_OK]);
            // The driver may give GET_ID more room than it fills; a used length counts from the
            // start (§2.7.8.2).
            if written == data_len { data_len + 1 } else { written }
        }
        Err(failure) => {
            status.write(&[failure as u8]);
            // Of the data before the status byte we can't say that it was written.
            u32::from(data_len == 0)
        }
    }
}

/// The data of a write: what follows the header.
pub(super) fn source<'a>(chain: &'a Chain, mem: &'a GuestMemory) -> Reader<'a> {
    let mut reader = chain.reader(mem);
    let _header = reader.split_off_front(blk::HEADER_LEN);
    reader
}

/// Where the data of a read goes: what precedes the status byte.
pub(super) fn target<'a>(chain: &'a Chain, mem: &'a GuestMemory) -> Writer<'a> {
    let mut status = chain.writer(mem);
    let data_len = status.len().saturating_sub(1);
    status.split_off_front(data_len)
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
