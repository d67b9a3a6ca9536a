//! What the documents of one load may cost, those of all its images together: an index that leads
//! to little may lead there very often.

use super::files::ContentError;
use super::manifest::MAX_DOCUMENT_LEN;

/// Most images of one load.
pub(super) const MAX_IMAGES: usize = 1000;
/// Most documents that are read for one load: each image has a manifest and a configuration, and
/// there are indexes.
const MAX_DOCUMENTS: usize = 4 * MAX_IMAGES;
/// Longest documents of one load, together. A manifest and a configuration have some 10 KiB; in
/// memory they take several times that at worst.
const MAX_BYTES: u64 = 8 * MAX_DOCUMENT_LEN;

/// What may yet be read.
#[derive(Debug)]
pub(super) struct Budget<'a> {
    /// What errors call the layout or archive.
    name: &'a str,
    documents: usize,
    bytes: u64,
}

impl<'a> Budget<'a> {
    pub(super) fn new(name: &'a str) -> Self {
        Self { name, documents: MAX_DOCUMENTS, bytes: MAX_BYTES }
    }

    /// To be called for each document, before it is parsed.
    pub(super) fn spend(&mut self, len: u64) -> Result<(), ContentError> {
        let name = || self.name.to_owned();
        self.documents =
            self.documents.checked_sub(1).ok_or_else(|| ContentError::TooMany { name: name() })?;
        self.bytes = self.bytes.checked_sub(len).ok_or_else(|| ContentError::TooMuch { name: name() })?;
        Ok(())
    }

    /// Insists that no more than so many images are asked for at once.
    pub(super) fn images(&self, count: usize) -> Result<(), ContentError> {
        if count > MAX_IMAGES {
            return Err(ContentError::TooManyImages { name: self.name.to_owned(), count, limit: MAX_IMAGES });
        }
        Ok(())
    }
}
