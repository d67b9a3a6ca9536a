//! One call: layers in, one EROFS image out.
//!
//! - [`tar`] reads a layer's stream and believes nothing in it;
//! - `layer` applies its entries to the tree, whiteouts and all, and streams file data straight to
//!   its place;
//! - `dir` does the same with a directory of the host, and fingerprints one; `walk` is its way
//!   through it, `filesystem` what it is on;
//! - [`tree`] is the merged tree in memory: metadata and names, never data;
//! - [`erofs`] holds the data while it comes, and writes the metadata behind it.
//!
//! Nothing is unpacked on the host and nothing needs root. Memory grows with the number of entries.
//! No threads; the only file that is written is the caller's, and making it durable is the caller's
//! business. After an error it holds rubbish.
//!
//! # What a layer can't do
//!
//! Every name is resolved in the tree that is being built, never on the host, so there is no way
//! out of it. Names and targets of hard links are cleaned within the root (`/../x` is `/x`),
//! absolute ones are taken as relative to it. A parent that is a symbolic link is followed inside
//! that tree, as docker does it in its chroot: images with `lib/x` above a `lib -> usr/lib` exist.
//! Numbers from the stream are checked before they count or allocate anything, and what one entry
//! may hold in memory is capped by constants.

mod dir;
mod erofs;
mod filesystem;
mod flaw;
mod layer;
pub(in crate::image) mod tar;
mod tree;
mod walk;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use self::dir::{build_from_dir, fingerprint};
use self::erofs::Store;
pub use self::flaw::Flaw;
pub(in crate::image) use self::flaw::Trouble;
use self::layer::Ways;
use self::tree::Tree;

/// What an image may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries in all layers together, and directories that they imply. An entry costs memory.
    pub max_entries: u64,
    /// Bytes in the streams of all layers together; also the length of the largest file, holes
    /// included, and of what is built. No more than 8 TiB count.
    pub max_bytes: u64,
    /// Bytes that what is built may take on disk, without its holes; twice as much while it is
    /// built.
    pub max_disk: u64,
}

impl Default for Limits {
    /// 5,000,000 entries, which take 2 GB of memory at most. 64 GiB, several times what the largest
    /// images in use have. On disk, whatever there is.
    fn default() -> Self {
        Self { max_entries: 5_000_000, max_bytes: 64 << 30, max_disk: u64::MAX }
    }
}

/// A layer: an uncompressed tar stream, and the name that errors call it by (its digest).
pub struct Layer<'a> {
    /// For messages.
    pub name: String,
    /// Read to its end, past the end of the archive in it, so that a reader which checks a digest
    /// sees everything.
    pub tar: Box<dyn io::Read + 'a>,
}

/// What was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    /// Length of the image, a multiple of 4096. It may have holes.
    pub bytes: u64,
    /// Names in the tree, without the root.
    pub entries: u64,
}

/// Why there is no image. The messages name the layer and the entry, escaped.
#[derive(Debug, Error)]
pub enum RootfsError {
    /// An entry that is refused.
    #[error("layer {layer}, entry {entry}: {flaw}")]
    Entry { layer: String, entry: String, flaw: Flaw },
    /// The stream itself failed: decompression, a wrong digest, a broken connection.
    #[error("layer {layer} can't be read, at entry {entry}")]
    Read { layer: String, entry: String, source: io::Error },
    /// The caller's iterator has no next layer.
    #[error("a layer can't be opened")]
    Open(#[source] io::Error),
    /// Something of a directory that can't go into an image.
    #[error("{}: {flaw}", path.display())]
    Path { path: PathBuf, flaw: Flaw },
    /// Something of a directory that can't be read.
    #[error("{} can't be read", path.display())]
    ReadPath { path: PathBuf, source: io::Error },
    /// The image is larger than it may be.
    #[error("the file system image would be larger than {0} bytes")]
    TooLarge(u64),
    /// The image can't be written.
    #[error("the file system image can't be written")]
    Write(#[source] io::Error),
}

/// Applies layers, lowest first, and writes the file system to `out` (a regular file, open for
/// reading and writing, written by offset; what it has is lost). Calls for each next layer only
/// when the one before has been read to its end. The same input gives the same bytes.
pub fn build<'a>(
    layers: impl IntoIterator<Item = io::Result<Layer<'a>>>,
    out: &File,
    limits: &Limits,
) -> Result<Built, RootfsError> {
    let mut tree = Tree::new(limits.max_entries);
    let mut store = Store::new(out, limits)?;
    let (mut left, mut ways) = (limits.max_bytes, Ways::new());
    for (layer, number) in layers.into_iter().zip(1_u32..) {
        let layer = layer.map_err(RootfsError::Open)?;
        left = layer::apply(layer, number, left, &mut ways, &mut tree, &mut store)?;
    }
    erofs::finish(tree, store)
}

#[cfg(test)]
mod testing;

#[cfg(test)]
#[path = "rootfs_tests.rs"]
mod tests;
