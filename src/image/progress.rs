//! Shows how far a load is.

use std::io::{self, Read};

/// Who shows how far it is.
pub trait Progress: Sync {
    /// A step begins; `bytes` is its length, if it is known.
    fn begin(&self, what: &str, bytes: Option<u64>);
    /// So many bytes more have been read.
    fn advance(&self, bytes: u64);
    /// The step is over.
    fn end(&self);
}

/// Tells how far it has been read.
pub(super) struct Counted<'a, R> {
    pub(super) inner: R,
    pub(super) progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.progress.advance(n as u64);
        Ok(n)
    }
}
