//! Readers for blobs: they check size and digest, decompress, and check the diff_id, all while the
//! bytes stream through.
//!
//! A layer is read through [`LayerReader`]: raw bytes, counted and hashed -> decompression ->
//! hashed again -> the caller. What the caller gets is **not verified until the reader has said
//! that it is at its end**: a lie about the size, the digest or the diff_id is an error in place of
//! the end, and of every read after it. So whoever makes something of the bytes throws it away on
//! an error.
//!
//! A blob that is longer than its descriptor says is refused at the first byte too many. A
//! compression bomb costs no memory: 128 KiB of buffer, and at most 128 MiB of a decoder's window;
//! its bytes are limited by whoever reads.
//!
//! No thread: on one core, both digests and decompression together run faster than any layer's
//! files can be written.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use thiserror::Error;

use super::decode::{Decoded, Unsupported};
use super::digest::{Digest, Hasher};

/// What is wrong with a blob. Travels inside an [`io::Error`].
#[derive(Debug, Error)]
pub enum BlobError {
    /// More bytes than announced.
    #[error("{name} is longer than the {expected} bytes that its descriptor says")]
    TooLong {
        /// What errors call the blob.
        name: String,
        /// The announced size.
        expected: u64,
    },
    /// Fewer.
    #[error("{name} has {seen} bytes instead of the {expected} that its descriptor says")]
    TooShort {
        /// What errors call the blob.
        name: String,
        /// The announced size.
        expected: u64,
        /// The real one.
        seen: u64,
    },
    /// Another content.
    #[error("{name} is damaged: its content has the digest {actual}")]
    Digest {
        /// What errors call the blob.
        name: String,
        /// The digest of what was read.
        actual: Digest,
    },
    /// The layer isn't the one that the configuration names.
    #[error("{name} doesn't fit the image's configuration: uncompressed it is {actual}, not {expected}")]
    DiffId {
        /// What errors call the blob.
        name: String,
        /// What the configuration says.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A compression that isn't supported.
    #[error("{name} is compressed with {compression}: expected gzip, zstd, xz, bzip2 or none")]
    Unsupported {
        /// What errors call the blob.
        name: String,
        /// Which one it is.
        compression: &'static str,
    },
    /// Broken compressed data.
    #[error("{name} can't be decompressed")]
    Corrupt {
        /// What errors call the blob.
        name: String,
        /// What the decoder says.
        source: io::Error,
    },
}

impl BlobError {
    /// An error that is one of these, or the decoder's that can't read the blob `name`. Others stay
    /// as they are.
    pub(super) fn of(error: io::Error, name: &str) -> Result<Self, io::Error> {
        match error.downcast::<Unsupported>() {
            Ok(Unsupported(compression)) => Ok(Self::Unsupported { name: name.into(), compression }),
            Err(error) => error.downcast(),
        }
    }
}

impl From<BlobError> for io::Error {
    fn from(error: BlobError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Counts and hashes what is read, and knows what it should be.
pub(super) struct Checked<R> {
    inner: R,
    name: String,
    digest: Option<Digest>,
    hasher: Option<Hasher>,
    len: Option<u64>,
    seen: u64,
}

impl<R: Read> Checked<R> {
    /// `digest` and `len` are what the descriptor says, as far as there is one.
    pub(super) fn new(inner: R, name: String, digest: Option<Digest>, len: Option<u64>) -> Self {
        let hasher = digest.as_ref().map(|digest| Hasher::new(digest.algorithm()));
        Self { inner, name, digest, hasher, len, seen: 0 }
    }

    /// Checks what has been read, all of it.
    pub(super) fn verify(&mut self) -> Result<(), BlobError> {
        let name = || self.name.clone();
        if let Some(expected) = self.len
            && expected != self.seen
        {
            return Err(BlobError::TooShort { name: name(), expected, seen: self.seen });
        }
        match (&self.digest, self.hasher.take().map(Hasher::finish)) {
            (Some(expected), Some(actual)) if *expected != actual => {
                Err(BlobError::Digest { name: name(), actual })
            }
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.seen += n as u64;
        if let Some(expected) = self.len
            && self.seen > expected
        {
            return Err(BlobError::TooLong { name: self.name.clone(), expected }.into());
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&out[..n]);
        }
        Ok(n)
    }
}

/// What a layer should be.
pub(super) struct Expected {
    /// What errors call it.
    pub(super) name: String,
    /// Of the blob, if it has a descriptor.
    pub(super) digest: Option<Digest>,
    /// Of the blob, in bytes.
    pub(super) len: Option<u64>,
    /// Of the uncompressed tar.
    pub(super) diff_id: Digest,
}

/// An uncompressed layer, checked while it is read.
pub(super) struct LayerReader<R: Read> {
    expected: Expected,
    /// `None` after the end.
    decoded: Option<Decoded<Checked<R>>>,
    /// `None` if the blob's own digest says the same.
    hasher: Option<Hasher>,
    failed: bool,
    verified: Rc<Cell<usize>>,
}

impl<R: Read> LayerReader<R> {
    /// Adds one to `verified` when the layer has been read to its end and was what it should be.
    pub(super) fn new(inner: R, expected: Expected, verified: Rc<Cell<usize>>) -> io::Result<Self> {
        let checked = Checked::new(inner, expected.name.clone(), expected.digest.clone(), expected.len);
        let named = |error| BlobError::of(error, &expected.name).map_or_else(|error| error, io::Error::from);
        let decoded = Decoded::new(checked).map_err(named)?;
        let is_same = decoded.is_plain() && expected.digest.as_ref() == Some(&expected.diff_id);
        let hasher = (!is_same).then(|| Hasher::new(expected.diff_id.algorithm()));
        Ok(Self { expected, decoded: Some(decoded), hasher, failed: false, verified })
    }

    fn finish(&mut self, decoded: Decoded<Checked<R>>) -> io::Result<()> {
        decoded.into_inner_at_end()?.verify()?;
        let actual = self.hasher.take().map(Hasher::finish);
        if let Some(actual) = actual.filter(|actual| *actual != self.expected.diff_id) {
            let (name, expected) = (self.expected.name.clone(), self.expected.diff_id.clone());
            return Err(BlobError::DiffId { name, expected, actual }.into());
        }
        self.verified.set(self.verified.get() + 1);
        Ok(())
    }

    /// A decoder's own words say nothing about which blob it was; ours, and the host's errors, stay
    /// as they are.
    fn explain(&self, error: io::Error) -> io::Error {
        let ours = error.get_ref().is_some_and(|inner| inner.is::<BlobError>());
        if ours || error.raw_os_error().is_some() || error.kind() == io::ErrorKind::Interrupted {
            return error;
        }
        BlobError::Corrupt { name: self.expected.name.clone(), source: error }.into()
    }
}

impl<R: Read> Read for LayerReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the layer couldn't be read before"));
        }
        let Some(decoded) = &mut self.decoded else { return Ok(0) };
        let result = match decoded.read(out) {
            Ok(0) if !out.is_empty() => match self.decoded.take() {
                Some(decoded) => self.finish(decoded).map(|()| 0),
                None => Ok(0),
            },
            Ok(n) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&out[..n]);
                }
                Ok(n)
            }
            result => result,
        };
        result.map_err(|error| {
            // An interrupted read can be repeated.
            self.failed = error.kind() != io::ErrorKind::Interrupted;
            self.explain(error)
        })
    }
}

#[cfg(test)]
#[path = "blob_tests.rs"]
mod tests;
