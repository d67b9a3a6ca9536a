//! Decompression: gzip, zstd, xz and bzip2, or nothing to do.
//!
//! - The compression is told by the first bytes, not by the media type, which is often wrong. What
//!   has a valid tar header is a tar, whatever its first bytes look like otherwise.
//! - All formats may have several members in a row (eStargz and zstd:chunked layers, parallel xz
//!   and bzip2). Other data behind the last member is not decoded, but counts for the blob's size
//!   and digest; the diff_id shows whether anything is lost.
//! - Memory is bounded: at most 128 MiB for a zstd window or an xz dictionary, 4 MiB for bzip2.

use std::io::{self, BufRead, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::{XzReader, lzma2_get_memory_usage};
use thiserror::Error;
use zstd::stream::raw::{Decoder as ZstdDecoder, Operation};

use super::rootfs::tar;

/// Bytes that tell what a blob is: a tar header.
pub(super) const MAGIC_LEN: usize = 512;
/// Enough for few system calls, little enough for the second-level cache.
const BUFFER_LEN: usize = 128 * 1024;
/// Most bytes behind a compressed stream. Padding and tables of contents stand there.
const MAX_TRAILER: usize = 64 << 20;
/// Largest dictionary of xz, in bytes, as large as zstd's largest window. `xz -9` needs 64 MiB.
const MAX_DICTIONARY: u32 = 128 << 20;
const _: () = assert!(BUFFER_LEN > MAGIC_LEN);

/// How a blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
    Unsupported(&'static str),
}

/// A compression that isn't supported.
#[derive(Debug, Error)]
#[error("it is compressed with {0}: expected gzip, zstd, xz, bzip2 or none")]
pub(super) struct Unsupported(pub(super) &'static str);

impl Compression {
    /// Tells it by the first bytes, up to [`MAGIC_LEN`] of them.
    pub(super) fn of(start: &[u8]) -> Self {
        if is_tar(start) {
            return Self::None;
        }
        if is_zstd_frame(start) {
            return Self::Zstd;
        }
        let magics: [(&[u8], Self); 8] = [
            (GZIP, Self::Gzip),
            (XZ, Self::Xz),
            (BZIP2, Self::Bzip2),
            (b"LZIP", Self::Unsupported("lzip")),
            (b"\x04\x22\x4d\x18", Self::Unsupported("lz4")),
            (b"\x1f\x9d", Self::Unsupported("compress")),
            (b"PK\x03\x04", Self::Unsupported("zip")),
            (b"7z\xbc\xaf\x27\x1c", Self::Unsupported("7-Zip")),
        ];
        magics.iter().find(|(magic, _)| start.starts_with(magic)).map_or(Self::None, |(_, kind)| *kind)
    }
}

const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = b"\xfd7zXZ\0";
const BZIP2: &[u8] = b"BZh";

/// A frame, or one to be skipped (RFC 8878, 3.1).
fn is_zstd_frame(start: &[u8]) -> bool {
    matches!(start, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Whether these bytes begin like a tar: a header whose checksum fits, or the zeros that end an
/// empty one.
pub(super) fn is_tar(start: &[u8]) -> bool {
    start.first_chunk::<MAGIC_LEN>().is_some_and(tar::is_header)
}

/// A buffer that can be looked into without taking from it.
struct Buffered<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: Read> Buffered<R> {
    fn new(inner: R) -> Self {
        Self { inner, buffer: vec![0; BUFFER_LEN].into(), start: 0, end: 0 }
    }

    /// The next `len` bytes, fewer only at the end. `len` is less than the buffer.
    fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.start < len {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < len {
            match read_some(&mut self.inner, &mut self.buffer[self.end..])? {
                0 => break,
                n => self.end += n,
            }
        }
        Ok(&self.buffer[self.start..self.end.min(self.start + len)])
    }

    /// Reads on to the end, for the sake of size and digest, if that is near.
    fn drain(&mut self) -> io::Result<()> {
        let mut left = MAX_TRAILER;
        loop {
            let n = self.fill_buf()?.len();
            if n == 0 {
                return Ok(());
            }
            self.start = self.end;
            left = left.checked_sub(n).ok_or_else(too_much)?;
        }
    }

    /// Skips xz stream padding (groups of four zeros), and returns whether another stream follows.
    fn skip_padding(&mut self) -> io::Result<bool> {
        let mut left = MAX_TRAILER;
        while self.peek(4)? == [0; 4] {
            self.consume(4);
            left = left.checked_sub(4).ok_or_else(too_much)?;
        }
        Ok(self.peek(XZ.len())? == XZ)
    }
}

fn too_much() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "too much stands behind its end")
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl<R: Read> Read for Buffered<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && out.len() >= self.buffer.len() {
            return self.inner.read(out);
        }
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Buffered<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, read_some(&mut self.inner, &mut self.buffer)?);
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
    }
}

/// Decompresses what it is given, or passes it on.
pub(super) struct Decoded<R: Read> {
    state: State<R>,
}

enum State<R: Read> {
    Plain(Buffered<R>),
    Gzip(Box<GzDecoder<Buffered<R>>>),
    Zstd {
        input: Buffered<R>,
        decoder: ZstdDecoder<'static>,
        between_frames: bool,
    },
    Xz(Box<XzReader<Buffered<R>>>),
    Bzip2(Box<BzDecoder<Buffered<R>>>),
    /// The compressed stream is over; perhaps there is something behind it.
    Ended(Buffered<R>),
    /// Only while one of the others is being replaced.
    Taken,
}

impl<R: Read> State<R> {
    fn gzip(input: Buffered<R>) -> Self {
        Self::Gzip(Box::new(GzDecoder::new(input)))
    }

    fn xz(input: Buffered<R>) -> Self {
        // A single stream: the decoder's own search for the next one refuses trailing data.
        let limit = lzma2_get_memory_usage(MAX_DICTIONARY);
        Self::Xz(Box::new(XzReader::new_mem_limit(input, false, limit)))
    }

    fn bzip2(input: Buffered<R>) -> Self {
        Self::Bzip2(Box::new(BzDecoder::new(input)))
    }

    /// After a member: another one, or the end.
    fn next_member(self) -> io::Result<Self> {
        Ok(match self {
            Self::Gzip(decoder) => {
                let mut input = decoder.into_inner();
                if input.peek(GZIP.len())? == GZIP { Self::gzip(input) } else { Self::Ended(input) }
            }
            Self::Bzip2(decoder) => {
                let mut input = decoder.into_inner();
                if input.peek(BZIP2.len())? == BZIP2 { Self::bzip2(input) } else { Self::Ended(input) }
            }
            Self::Xz(decoder) => {
                let mut input = decoder.into_inner();
                if input.skip_padding()? { Self::xz(input) } else { Self::Ended(input) }
            }
            other => other,
        })
    }
}

impl<R: Read> Decoded<R> {
    /// Looks at the first bytes. What can't be decoded is an error with [`Unsupported`] in it.
    pub(super) fn new(inner: R) -> io::Result<Self> {
        let mut input = Buffered::new(inner);
        let state = match Compression::of(input.peek(MAGIC_LEN)?) {
            Compression::None => State::Plain(input),
            Compression::Gzip => State::gzip(input),
            Compression::Xz => State::xz(input),
            Compression::Bzip2 => State::bzip2(input),
            Compression::Zstd => State::Zstd { input, decoder: ZstdDecoder::new()?, between_frames: true },
            Compression::Unsupported(compression) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, Unsupported(compression)));
            }
        };
        Ok(Self { state })
    }

    /// Whether what is read is what is stored, all of it.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.state, State::Plain(_))
    }

    /// Reads what is left behind the compressed stream, and gives the reader under it.
    pub(super) fn into_inner_at_end(self) -> io::Result<R> {
        let mut input = match self.state {
            State::Plain(input) | State::Zstd { input, .. } | State::Ended(input) => input,
            State::Gzip(decoder) => decoder.into_inner(),
            State::Xz(decoder) => decoder.into_inner(),
            State::Bzip2(decoder) => decoder.into_inner(),
            State::Taken => unreachable!("taken only inside of `next_member`"),
        };
        input.drain()?;
        Ok(input.inner)
    }

    fn next_member(&mut self) -> io::Result<()> {
        self.state = std::mem::replace(&mut self.state, State::Taken).next_member()?;
        Ok(())
    }
}

impl<R: Read> Read for Decoded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.state {
                State::Plain(input) => return input.read(out),
                State::Gzip(decoder) => match decoder.read(out)? {
                    0 => self.next_member()?,
                    n => return Ok(n),
                },
                State::Bzip2(decoder) => match decoder.read(out)? {
                    0 => self.next_member()?,
                    n => return Ok(n),
                },
                State::Xz(decoder) => match decoder.read(out).map_err(xz_error)? {
                    0 => self.next_member()?,
                    n => return Ok(n),
                },
                State::Zstd { input, decoder, between_frames } => {
                    if *between_frames {
                        if !is_zstd_frame(input.peek(4)?) {
                            return Ok(0);
                        }
                        decoder.reinit()?;
                        *between_frames = false;
                    }
                    let data = input.fill_buf()?;
                    let status = decoder.run_on_buffers(data, out)?;
                    if data.is_empty() && status.bytes_written == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    input.consume(status.bytes_read);
                    // Nothing left to decode of this frame, and nothing left to give out.
                    *between_frames = status.remaining == 0;
                    if status.bytes_written > 0 {
                        return Ok(status.bytes_written);
                    }
                }
                State::Ended(_) => return Ok(0),
                State::Taken => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

/// The decoder reports a dictionary over the limit as `OutOfMemory`.
fn xz_error(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::OutOfMemory {
        return error;
    }
    let limit = MAX_DICTIONARY >> 20;
    io::Error::new(io::ErrorKind::InvalidData, format!("it needs a dictionary of more than {limit} MiB"))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
