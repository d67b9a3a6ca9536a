//! A descriptor chain: what the driver hands to the device for one request (virtio 1.2 §2.7.5).
//!
//! `Chain::walk` reads each descriptor exactly once, checks everything about it and keeps the
//! result on the host's side, so the driver can't change a chain after it was checked. The
//! *contents* of the buffers stay the driver's to change at any time: whoever needs a value twice
//! copies it once.
//!
//! What `walk` refuses, and what would follow otherwise: a `next` outside the table (reads beyond
//! it), a loop or a chain longer than the queue (an endless walk, lists without bound), a readable
//! buffer behind a writable one (the device would answer into the wrong part), an indirect table
//! that was not negotiated, is nested, empty or cut (the driver's idea of the chain and ours
//! differ), a buffer outside guest memory (an access to nothing or to a device), a total that 32
//! bits don't hold (a used length that wraps). Buffers of no bytes are harmless and left out.

use std::collections::VecDeque;

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::iovec::{GatherList, IoVecs, ScatterList};
use super::spec::ring::DESC_SIZE;
use crate::bounded_log::BoundedLog;
use crate::memory::GuestMemory;

/// Why a chain is malformed. The driver's fault, all of them.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    #[error("descriptor {index} is outside a table of {len}")]
    Index { index: u32, len: u32 },
    #[error("a chain is longer than its queue of {size} descriptors, or loops")]
    TooLong { size: u16 },
    #[error("a readable buffer follows a writable one")]
    ReadableAfterWritable,
    #[error("an indirect descriptor was not negotiated")]
    IndirectNotNegotiated,
    #[error("an indirect descriptor stands in an indirect table")]
    IndirectNested,
    #[error("an indirect descriptor has a next one")]
    IndirectWithNext,
    #[error("an indirect table of {len} bytes")]
    IndirectLength { len: u32 },
    #[error("{len:#x} bytes at {gpa:#x} are not all in memory")]
    OutsideMemory { gpa: u64, len: u32 },
    #[error("the buffers of a chain add up to more than 32 bits hold")]
    TooManyBytes,
}

/// A buffer of a chain: `len` bytes at `gpa`, all in guest memory, not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts.
    pub gpa: GuestAddress,
    /// Its length in bytes.
    pub len: u32,
}

/// A chain that was popped from a queue. It must go back by `complete` or `put_back`: dropping one
/// would leave the driver waiting for ever.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    // The queue's `next_avail` right behind this chain: tells whether it was the last one popped.
    position: u16,
    segments: Vec<Segment>,
    readable: usize,
    readable_len: u32,
    writable_len: u32,
    finished: bool,
}

impl Chain {
    /// Follows the chain that begins at `head` in the descriptor table at `table`. `segments` is an
    /// empty list to be filled.
    pub(super) fn walk(
        mem: &GuestMemory,
        table: GuestAddress,
        size: u16,
        head: u16,
        indirect: bool,
        segments: Vec<Segment>,
    ) -> Result<Self, ChainError> {
        let mut chain = Self {
            head,
            position: 0,
            segments,
            readable: 0,
            readable_len: 0,
            writable_len: 0,
            // Not popped yet: nothing is lost when a malformed one is dropped.
            finished: true,
        };
        let mut table = Table { base: table, len: u32::from(size), indirect: false };
        let mut index = head;
        let mut left = size;
        loop {
            let desc = table.read(mem, index)?;
            if desc.refers_to_indirect_table() {
                if !indirect {
                    return Err(ChainError::IndirectNotNegotiated);
                }
                table = table.enter(mem, &desc)?;
                index = 0;
                continue;
            }
            left = left.checked_sub(1).ok_or(ChainError::TooLong { size })?;
            chain.push(mem, &desc)?;
            if !desc.has_next() {
                return Ok(chain);
            }
            index = desc.next();
        }
    }

    fn push(&mut self, mem: &GuestMemory, desc: &Descriptor) -> Result<(), ChainError> {
        let segment = Segment { gpa: desc.addr(), len: desc.len() };
        if segment.len == 0 {
            return Ok(());
        }
        check_range(mem, segment.gpa, segment.len)?;
        if desc.is_write_only() {
            self.writable_len = self.writable_len.checked_add(segment.len).ok_or(ChainError::TooManyBytes)?;
        } else if self.readable == self.segments.len() {
            self.readable += 1;
            self.readable_len = self.readable_len.checked_add(segment.len).ok_or(ChainError::TooManyBytes)?;
        } else {
            return Err(ChainError::ReadableAfterWritable);
        }
        self.segments.push(segment);
        // §2.7.5.2: a chain is not longer than 2^32 bytes in total.
        self.readable_len.checked_add(self.writable_len).map(|_| ()).ok_or(ChainError::TooManyBytes)
    }

    pub(super) fn popped_at(mut self, position: u16) -> Self {
        self.position = position;
        self.finished = false;
        self
    }

    pub(super) fn position(&self) -> u16 {
        self.position
    }

    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Ends the chain and gives its list back for the next one.
    pub(super) fn finish(mut self) -> Vec<Segment> {
        self.finished = true;
        std::mem::take(&mut self.segments)
    }

    /// Bytes that the driver lets the device read.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes that the driver lets the device write.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// The readable buffers, in order.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// The writable buffers, in order.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    /// Reads the readable part from its start.
    pub fn reader<'a>(&'a self, mem: &'a GuestMemory) -> Reader<'a> {
        Reader { mem, span: Span { segments: self.readable(), skip: 0, len: self.readable_len } }
    }

    /// Writes the writable part from its start.
    pub fn writer<'a>(&'a self, mem: &'a GuestMemory) -> Writer<'a> {
        Writer { mem, span: Span { segments: self.writable(), skip: 0, len: self.writable_len } }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        if !self.finished && !std::thread::panicking() {
            static LOG: BoundedLog = BoundedLog::fixed("virtio");
            LOG.error(format_args!(
                "descriptor chain {} was lost: the driver will wait for it for ever",
                self.head
            ));
            debug_assert!(false, "a chain was dropped uncompleted");
        }
    }
}

/// The descriptor table, or the indirect one that the walk has entered.
struct Table {
    base: GuestAddress,
    len: u32,
    indirect: bool,
}

impl Table {
    fn read(&self, mem: &GuestMemory, index: u16) -> Result<Descriptor, ChainError> {
        if u32::from(index) >= self.len {
            return Err(ChainError::Index { index: u32::from(index), len: self.len });
        }
        let gpa = GuestAddress(self.base.0 + u64::from(index) * u64::from(DESC_SIZE));
        mem.read_obj(gpa).map_err(|_| ChainError::OutsideMemory { gpa: gpa.0, len: DESC_SIZE })
    }

    /// §2.7.5.3: a chain may end in one descriptor that points to the rest of it. Its write flag
    /// means nothing (§2.7.5.3.2).
    fn enter(&self, mem: &GuestMemory, desc: &Descriptor) -> Result<Self, ChainError> {
        if self.indirect {
            return Err(ChainError::IndirectNested);
        }
        if desc.has_next() {
            return Err(ChainError::IndirectWithNext);
        }
        if desc.len() == 0 || !desc.len().is_multiple_of(DESC_SIZE) {
            return Err(ChainError::IndirectLength { len: desc.len() });
        }
        check_range(mem, desc.addr(), desc.len())?;
        Ok(Self { base: desc.addr(), len: desc.len() / DESC_SIZE, indirect: true })
    }
}

fn check_range(mem: &GuestMemory, gpa: GuestAddress, len: u32) -> Result<(), ChainError> {
    if mem.check_range(gpa, len as usize) {
        Ok(())
    } else {
        Err(ChainError::OutsideMemory { gpa: gpa.0, len })
    }
}

/// A run of bytes over several segments.
#[derive(Clone, Copy)]
struct Span<'a> {
    segments: &'a [Segment],
    // Bytes of the first segment that lie before the span.
    skip: u32,
    len: u32,
}

impl<'a> Span<'a> {
    /// Cuts the first `at` bytes off and returns them; `at` beyond the end takes all.
    fn take(&mut self, at: u32) -> Self {
        let at = at.min(self.len);
        let front = Self { len: at, ..*self };
        self.len -= at;
        let mut left = at;
        while let Some(first) = self.segments.first() {
            let rest = first.len - self.skip;
            if left < rest {
                self.skip += left;
                break;
            }
            left -= rest;
            self.skip = 0;
            self.segments = &self.segments[1..];
        }
        front
    }

    fn iter(self) -> impl Iterator<Item = Segment> + 'a {
        let mut left = self.len;
        let mut skip = self.skip;
        self.segments.iter().map_while(move |segment| {
            let len = (segment.len - skip).min(left);
            let gpa = GuestAddress(segment.gpa.0 + u64::from(skip));
            skip = 0;
            left -= len;
            (len > 0).then_some(Segment { gpa, len })
        })
    }
}

/// Reads what the driver wrote, in order and each byte once.
pub struct Reader<'a> {
    mem: &'a GuestMemory,
    span: Span<'a>,
}

impl<'a> Reader<'a> {
    /// Bytes that are left.
    pub fn len(&self) -> u32 {
        self.span.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next `N` bytes; `None`, and nothing is taken, when fewer are left.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let len = u32::try_from(N).ok().filter(|len| *len <= self.span.len)?;
        let mut bytes = [0; N];
        let mut at = 0;
        for segment in self.span.take(len).iter() {
            let end = at + segment.len as usize;
            in_memory(self.mem.read_slice(&mut bytes[at..end], segment.gpa));
            at = end;
        }
        Some(bytes)
    }

    /// Appends what is left to `bytes`: up to 4 GiB, so the caller has looked at [`Reader::len`].
    pub fn append_to(&self, bytes: &mut VecDeque<u8>) {
        let mut piece = [0; 4096];
        for segment in self.span.iter() {
            let mut at = 0;
            while at < segment.len {
                let len = (segment.len - at).min(4096);
                let piece = &mut piece[..len as usize];
                in_memory(self.mem.read_slice(piece, GuestAddress(segment.gpa.0 + u64::from(at))));
                bytes.extend(&*piece);
                at += len;
            }
        }
    }

    /// Cuts the next `len` bytes (or what is left) off into a reader of their own.
    pub fn split_off_front(&mut self, len: u32) -> Self {
        Self { mem: self.mem, span: self.span.take(len) }
    }

    /// What is left, for `writev` and its kin. `iovs` holds the list and may be used again
    /// afterwards.
    pub fn gather<'i>(&self, iovs: &'i mut IoVecs) -> GatherList<'i>
    where
        'a: 'i,
    {
        let mut list = iovs.gather(self.mem);
        self.gather_into(&mut list);
        list
    }

    /// Appends what is left to a list that has other parts as well.
    pub fn gather_into(&self, list: &mut GatherList<'_>) {
        for segment in self.span.iter() {
            list.push(segment.gpa, segment.len);
        }
    }
}

/// Writes what the driver will read, in order.
pub struct Writer<'a> {
    mem: &'a GuestMemory,
    span: Span<'a>,
}

impl<'a> Writer<'a> {
    /// Bytes that there is room for.
    pub fn len(&self) -> u32 {
        self.span.len
    }

    /// Whether there is no room left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes as much of `bytes` as there is room for, and returns how much that was.
    pub fn write(&mut self, bytes: &[u8]) -> u32 {
        let room = self.span.take(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let mut at = 0;
        for segment in room.iter() {
            let end = at + segment.len as usize;
            in_memory(self.mem.write_slice(&bytes[at..end], segment.gpa));
            at = end;
        }
        room.len
    }

    /// Cuts the next `len` bytes (or what is left) off into a writer of their own.
    pub fn split_off_front(&mut self, len: u32) -> Self {
        Self { mem: self.mem, span: self.span.take(len) }
    }

    /// What is left, for `readv` and its kin. `iovs` holds the list and may be used again
    /// afterwards.
    pub fn scatter<'i>(&self, iovs: &'i mut IoVecs) -> ScatterList<'i>
    where
        'a: 'i,
    {
        let mut list = iovs.scatter(self.mem);
        self.scatter_into(&mut list);
        list
    }

    /// Appends what is left to a list that has other parts as well.
    pub fn scatter_into(&self, list: &mut ScatterList<'_>) {
        for segment in self.span.iter() {
            list.push(segment.gpa, segment.len);
        }
    }
}

fn in_memory(result: Result<(), GuestMemoryError>) {
    result.expect("the walk found the segment in guest memory, which never shrinks");
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
