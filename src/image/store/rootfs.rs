//! The file systems: one EROFS file for each list of layers, however many images have it.

use std::fs::File;

use super::{ImageLease, ROOTFS, Store, StoreError};
use crate::image::digest::Digest;
use crate::store::{FileError, Lease};

/// Stands in every key: another number when the writer makes other bytes of the same layers.
const FORMAT: u32 = 2;

/// Names a file system by what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::image) struct RootfsKey(String);

impl RootfsKey {
    /// Of layers, lowest first.
    pub(in crate::image) fn of_layers<'a>(diff_ids: impl IntoIterator<Item = &'a Digest>) -> Self {
        let lines: String = diff_ids.into_iter().map(|digest| format!("{digest}\n")).collect();
        Self::of("layers", &lines)
    }

    /// Of a directory with this fingerprint.
    pub(in crate::image) fn of_dir(fingerprint: &str) -> Self {
        Self::of("dir", fingerprint)
    }

    fn of(kind: &str, content: &str) -> Self {
        Self(Digest::of(format!("bothy rootfs {FORMAT} {kind}\n{content}").as_bytes()).hex().into())
    }

    /// A key as a record has it: nothing else becomes a path.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let is_key = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_key.then(|| Self(text.into()))
    }

    /// 64 hexadecimal digits.
    pub(in crate::image) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Store {
    /// The file system, leased; `build` writes it into an empty file if there is none yet. True if
    /// it was built just now.
    pub(in crate::image) fn rootfs<E: From<FileError>>(
        &self,
        key: &RootfsKey,
        build: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<(ImageLease, bool), E> {
        self.files.once(ROOTFS, key.as_str(), build)
    }

    /// The file system if it is there, leased.
    pub(super) fn lease_rootfs(&self, key: &RootfsKey) -> Result<Option<Lease>, StoreError> {
        Ok(self.files.lease(ROOTFS, key.as_str())?)
    }
}
