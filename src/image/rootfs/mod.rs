//! STAND-IN, until the EROFS writer is merged: it has the interface, and writes no file system but the digest of what it has read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::digest::{Algorithm, Hasher};

/// What an image may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files, directories and all else.
    pub max_entries: u64,
    /// Content of files.
    pub max_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_entries: 5_000_000, max_bytes: 1 << 40 }
    }
}

/// A layer: an uncompressed tar stream, and the name that errors call it by.
pub struct Layer<'a> {
    /// Its digest.
    pub name: String,
    /// The stream.
    pub tar: Box<dyn Read + 'a>,
}

/// What was built.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// Length of the file system image.
    pub bytes: u64,
    /// Files, directories and all else.
    pub entries: u64,
}

/// Why nothing was built.
#[derive(Debug, Error)]
pub enum RootfsError {
    /// A layer can't be read.
    #[error("layer {name}")]
    Layer {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A directory can't be read.
    #[error("can't read {}", path.display())]
    Dir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too much.
    #[error("the image is larger than {0} bytes")]
    TooLarge(u64),
    /// The image can't be written.
    #[error("can't write the file system image")]
    Write(#[source] io::Error),
}

/// Applies layers, lowest first, and writes the file system to `out`.
pub fn build<'a>(
    layers: impl IntoIterator<Item = io::Result<Layer<'a>>>,
    mut out: &File,
    limits: &Limits,
) -> Result<Built, RootfsError> {
    let (mut bytes, mut entries) = (0, 0);
    for layer in layers {
        let mut layer = layer.map_err(|source| RootfsError::Layer { name: "?".into(), source })?;
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut chunk = vec![0; 128 << 10];
        loop {
            let n = layer.tar.read(&mut chunk);
            match n.map_err(|source| RootfsError::Layer { name: layer.name.clone(), source })? {
                0 => break,
                n => {
                    hasher.update(&chunk[..n]);
                    bytes += n as u64;
                }
            }
            if bytes > limits.max_bytes {
                return Err(RootfsError::TooLarge(limits.max_bytes));
            }
        }
        writeln!(out, "{}", hasher.finish()).map_err(RootfsError::Write)?;
        entries += 1;
    }
    Ok(Built { bytes, entries })
}

/// The same from a directory of the host.
pub fn build_from_dir(root: &Path, mut out: &File, limits: &Limits) -> Result<Built, RootfsError> {
    writeln!(out, "{}", fingerprint(root, limits)?).map_err(RootfsError::Write)?;
    Ok(Built { bytes: 0, entries: 1 })
}

/// A digest that changes when the tree does.
pub fn fingerprint(root: &Path, _limits: &Limits) -> Result<String, RootfsError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let read = || {
            let metadata = path.symlink_metadata()?;
            let mut names = Vec::new();
            if metadata.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    names.push(entry?.path());
                }
            }
            Ok((metadata, names))
        };
        let (metadata, mut names) =
            read().map_err(|source| RootfsError::Dir { path: path.clone(), source })?;
        let times = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
        let name = path.strip_prefix(root).unwrap_or(&path);
        hasher.update(format!("{name:?} {} {} {times:?}\n", metadata.mode(), metadata.size()).as_bytes());
        names.sort();
        left.extend(names);
    }
    Ok(hasher.finish().to_string())
}
