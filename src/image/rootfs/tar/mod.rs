//! Reads a tar stream and believes nothing in it: a layer's, and that of an archive of images (see
//! `archive`), which passes over the data.
//!
//! A parser of our own, because the `tar` crate serves only its raw blocks safely here: it collects
//! extended headers of any length in memory, knows no PAX sparse files, and turns the holes of
//! GNU's into zeros. What is left of it then is reading octal numbers.
//!
//! ustar, GNU and PAX archives. Where they contradict each other, this follows Go's archive/tar,
//! which docker, containerd and umoci read layers with: links, devices and directories have no data
//! whatever their size says, GNU's long names win over PAX' records, and PAX global headers mean
//! nothing. An archive may end without its two blocks of zeros, and without the padding behind the
//! last file.

mod header;
mod pax;
mod sparse;

use std::collections::BTreeMap;
use std::io::{self, Read};

use self::header::{BLOCK, Header};
use self::pax::Pax;
pub(super) use self::sparse::Sparse;
use super::flaw::{Flaw, Trouble};
use super::tree::Meta;

/// Longest extended header, in bytes: what Go allows.
const MAX_EXTENDED: u64 = 1 << 20;
const BUFFER: usize = 256 << 10;

/// What an entry is for.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::image) enum What {
    /// A file and the length of its data.
    File(u64),
    /// A file with holes.
    Sparse(Sparse),
    Dir,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    /// A device: whether it is a block device, major and minor number.
    Device(bool, u32, u32),
}

#[derive(Debug)]
pub(in crate::image) struct Entry {
    pub(in crate::image) name: Vec<u8>,
    pub(in crate::image) what: What,
    pub(in crate::image::rootfs) meta: Meta,
    /// By their full names.
    pub(in crate::image::rootfs) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Whether a block is a header, or the zeros that end an archive.
pub(in crate::image) fn is_header(block: &[u8; BLOCK]) -> bool {
    Header::parse(*block).is_ok()
}

/// A stream that can go on at a later place.
pub(in crate::image) trait Skip {
    /// Passes over so many bytes, which are there.
    fn skip(&mut self, len: u64);
}

/// A stream of entries, and of each one's data.
pub(in crate::image) struct Reader<R> {
    source: R,
    buffer: Box<[u8]>,
    at: usize,
    filled: usize,
    /// Bytes that the stream may have, and may yet have.
    all: u64,
    allowed: u64,
    /// Bytes of the present entry's data that have not been read, and the padding behind them.
    data: u64,
    padding: u64,
    number: u64,
    name: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// `allowed` is the number of bytes that the stream may have.
    pub(super) fn new(source: R, allowed: u64) -> Self {
        Self::with_buffer(source, allowed, BUFFER)
    }

    /// The same with a buffer of another length, not 0: whoever wants only the headers reads little
    /// besides.
    pub(in crate::image) fn with_buffer(source: R, allowed: u64, len: usize) -> Self {
        let buffer = vec![0; len].into_boxed_slice();
        // Sums of two lengths don't wrap.
        let all = allowed.min(1 << 62);
        Self {
            source,
            buffer,
            at: 0,
            filled: 0,
            all,
            allowed: all,
            data: 0,
            padding: 0,
            number: 0,
            name: Vec::new(),
        }
    }

    /// Where the stream goes on, in bytes: after [`Reader::next`], where the entry's data begins.
    pub(in crate::image) fn position(&self) -> u64 {
        self.all - self.allowed - (self.filled - self.at) as u64
    }

    /// What messages call the present entry: its number and, as far as it's known, its name.
    pub(in crate::image) fn label(&self) -> String {
        label(self.number, &self.name)
    }

    /// Skips what is left of the present entry's data and reads on to the next entry. None at the
    /// archive's end.
    pub(in crate::image) fn next(&mut self) -> Result<Option<Entry>, Trouble> {
        self.skip()?;
        self.number += 1;
        self.name.clear();
        let (mut pax, mut long_name, mut long_link) = (None, None, None);
        let header = loop {
            let Some(header) = self.header()? else {
                let extended = pax.is_some() || long_name.is_some() || long_link.is_some();
                return if extended { Err(Flaw::NoEntry.into()) } else { Ok(None) };
            };
            match header.kind() {
                b'x' | b'X' => pax = Some(Pax::parse(&self.extended(&header)?)?),
                b'L' => long_name = Some(up_to_nul(self.extended(&header)?)),
                b'K' => long_link = Some(up_to_nul(self.extended(&header)?)),
                // Checked like any other, and of no meaning: git's archives have a comment there.
                b'g' => drop(self.extended(&header)?),
                // The volume's name.
                b'V' => {
                    self.stored(header.size()?)?;
                    self.skip()?;
                }
                _ => break header,
            }
        };
        let mut pax = pax.unwrap_or_default();
        let name = long_name.or(pax.sparse.name.take()).or(pax.path.take());
        self.name = name.unwrap_or_else(|| header.name());
        let link = long_link.or(pax.link.take()).unwrap_or_else(|| header.link());
        let meta = Meta {
            perm: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: pax.mtime.map_or_else(|| header.mtime(), |time| Ok(time.0))?,
            mtime_ns: pax.mtime.map_or(0, |time| time.1),
        };
        let what = self.what(&header, &mut pax, link)?;
        Ok(Some(Entry { name: self.name.clone(), what, meta, xattrs: pax.xattrs }))
    }

    fn what(&mut self, header: &Header, pax: &mut Pax, link: Vec<u8>) -> Result<What, Trouble> {
        let device = || -> Result<(u32, u32), Flaw> {
            let (major, minor) = header.device()?;
            let (major, minor) = (pax.major.unwrap_or(major), pax.minor.unwrap_or(minor));
            // What Linux' 32-bit device numbers have room for.
            let part = |n: i64, bits: u32| u32::try_from(n).ok().filter(|n| n >> bits == 0);
            part(major, 12).zip(part(minor, 20)).ok_or(Flaw::Device)
        };
        Ok(match header.kind() {
            // How an archive from before POSIX has directories.
            0 if self.name.ends_with(b"/") => What::Dir,
            b'0' | 0 | b'7' => {
                self.stored(pax.size.map_or_else(|| header.size(), Ok)?)?;
                self.pax_file(pax)?
            }
            b'S' => {
                let stored = pax.size.map_or_else(|| header.size(), Ok)?;
                let parts = self.gnu_map(header)?;
                self.stored(stored)?;
                What::Sparse(Sparse::new(header.real_size()?, parts, stored)?)
            }
            b'1' => What::HardLink(link),
            b'2' => What::Symlink(link),
            b'3' | b'4' => {
                let (major, minor) = device()?;
                What::Device(header.kind() == b'4', major, minor)
            }
            b'5' => What::Dir,
            b'6' => What::Fifo,
            other => return Err(Flaw::Type(other).into()),
        })
    }

    /// Announces the present entry's data.
    fn stored(&mut self, len: u64) -> Result<(), Flaw> {
        // What can't be in the stream isn't worth reading on for.
        if len > self.allowed.saturating_add((self.filled - self.at) as u64) {
            return Err(Flaw::Size);
        }
        self.data = len;
        self.padding = len.next_multiple_of(BLOCK as u64) - len;
        Ok(())
    }

    fn extended(&mut self, header: &Header) -> Result<Vec<u8>, Trouble> {
        let len = header.size()?;
        if len > MAX_EXTENDED {
            return Err(Flaw::ExtendedSize.into());
        }
        self.stored(len)?;
        let mut data = vec![0; usize::try_from(len).map_err(|_| Flaw::ExtendedSize)?];
        self.read_exact(&mut data)?;
        self.data = 0;
        self.skip()?;
        Ok(data)
    }

    /// None at the end, marked or not.
    fn header(&mut self) -> Result<Option<Header>, Trouble> {
        let Some(block) = self.block()? else { return Ok(None) };
        match Header::parse(block)? {
            Some(header) => Ok(Some(header)),
            // One block of zeros might be an accident; two end the archive.
            None => match self.block()? {
                None => Ok(None),
                Some(block) if block.iter().all(|byte| *byte == 0) => Ok(None),
                Some(_) => Err(Flaw::Checksum.into()),
            },
        }
    }

    /// The next 512 bytes; None if the stream has ended before them.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Trouble> {
        let mut block = [0; BLOCK];
        let mut done = 0;
        while done < BLOCK {
            match self.some(&mut block[done..])? {
                0 if done == 0 => return Ok(None),
                0 => return Err(Flaw::Truncated.into()),
                n => done += n,
            }
        }
        Ok(Some(block))
    }

    /// Bytes of the present entry's data; 0 at its end.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, Trouble> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(out.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.some(&mut out[..most])?;
        if n == 0 {
            return Err(Flaw::Truncated.into());
        }
        self.data -= n as u64;
        Ok(n)
    }

    /// Reads to the stream's end and says how many bytes it might yet have had.
    pub(super) fn finish(mut self) -> Result<u64, Trouble> {
        let mut rest = vec![0; BUFFER];
        while self.some(&mut rest)? != 0 {}
        Ok(self.allowed)
    }

    fn read_exact(&mut self, mut out: &mut [u8]) -> Result<(), Trouble> {
        while !out.is_empty() {
            match self.some(out)? {
                0 => return Err(Flaw::Truncated.into()),
                n => out = &mut out[n..],
            }
        }
        Ok(())
    }

    /// Skips the rest of the present entry. The stream may end in its padding: some programs don't
    /// pad the last file.
    fn skip(&mut self) -> Result<(), Trouble> {
        let (data, padding) = (std::mem::take(&mut self.data), std::mem::take(&mut self.padding));
        if self.discard(data)? > 0 {
            return Err(Flaw::Truncated.into());
        }
        let _missing = self.discard(padding)?;
        Ok(())
    }

    /// Reads so many bytes, and says how many are missing.
    fn discard(&mut self, mut left: u64) -> Result<u64, Trouble> {
        while left > 0 {
            if self.at == self.filled {
                self.fill()?;
            }
            let n = left.min((self.filled - self.at) as u64);
            if n == 0 {
                break;
            }
            // At most the buffer's length.
            self.at += usize::try_from(n).unwrap_or(usize::MAX);
            left -= n;
        }
        Ok(left)
    }

    /// Some bytes of the stream; large pieces go past the buffer.
    fn some(&mut self, out: &mut [u8]) -> Result<usize, Trouble> {
        if self.at == self.filled {
            if out.len() >= self.buffer.len() {
                let n = from(&mut self.source, out)?;
                self.allowed = self.allowed.checked_sub(n as u64).ok_or(Flaw::TooManyBytes)?;
                return Ok(n);
            }
            self.fill()?;
        }
        let n = out.len().min(self.filled - self.at);
        out[..n].copy_from_slice(&self.buffer[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }

    fn fill(&mut self) -> Result<(), Trouble> {
        self.at = 0;
        self.filled = 0;
        self.filled = from(&mut self.source, &mut self.buffer)?;
        self.allowed = self.allowed.checked_sub(self.filled as u64).ok_or(Flaw::TooManyBytes)?;
        Ok(())
    }
}

impl<R: Read + Skip> Reader<R> {
    /// Passes over the present entry's data. Padding may be missing at the end.
    pub(in crate::image) fn pass(&mut self) -> Result<(), Trouble> {
        let buffered = (self.filled - self.at) as u64;
        let Some(beyond) = (self.data + self.padding).checked_sub(buffered) else { return self.skip() };
        // The data itself is no longer than what is allowed.
        let beyond = beyond.min(self.allowed);
        self.source.skip(beyond);
        self.allowed -= beyond;
        (self.data, self.padding, self.at, self.filled) = (0, 0, 0, 0);
        Ok(())
    }
}

/// One read, whatever interrupts it. A reader that says it has read more than it was asked for is
/// broken.
fn from(source: &mut impl Read, out: &mut [u8]) -> Result<usize, Trouble> {
    loop {
        match source.read(out) {
            Ok(n) if n <= out.len() => return Ok(n),
            Ok(_) => return Err(Trouble::Read(io::ErrorKind::InvalidData.into())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Trouble::Read(error)),
        }
    }
}

/// An entry for messages. Names are as long as they like, messages aren't.
fn label(number: u64, name: &[u8]) -> String {
    const SHOWN: usize = 200;
    if name.is_empty() {
        return format!("number {number}");
    }
    let cut = if name.len() > SHOWN { "..." } else { "" };
    format!("number {number}, \"{}{cut}\"", name[..name.len().min(SHOWN)].escape_ascii())
}

fn up_to_nul(mut data: Vec<u8>) -> Vec<u8> {
    data.truncate(data.iter().position(|byte| *byte == 0).unwrap_or(data.len()));
    data
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
