//! The files of an image, wherever they are: a directory, or a tar (see `archive`). Whoever reads
//! an image asks for paths like `index.json`, and doesn't know which it is.
//!
//! Refuses: paths and symbolic links that lead out of the directory, what is no regular file,
//! documents that are too long.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use thiserror::Error;

use super::blob::BlobError;
use super::descriptor::{Descriptor, Platform};
use super::digest::{read_capped, shown};
use super::index::{Offered, Unusable};
use super::manifest::{DocumentError, MAX_DOCUMENT_LEN};
use super::reference::ReferenceError;

/// Why no image can be read from what was given.
#[derive(Debug, Error)]
pub enum ContentError {
    /// The host's.
    #[error("can't read {name}")]
    Io {
        /// The layout or archive, or a file of it.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A file isn't there.
    #[error("{name} has no {}", shown(path))]
    Missing {
        /// The layout or archive.
        name: String,
        /// The path in it.
        path: String,
    },
    /// A symbolic link, or several, to somewhere else.
    #[error("{} leads out of {name}", shown(path))]
    Escapes {
        /// The layout or archive.
        name: String,
        /// The path in it.
        path: String,
    },
    /// A directory, a pipe.
    #[error("{} in {name} is not a regular file", shown(path))]
    NotAFile {
        /// The layout or archive.
        name: String,
        /// The path in it.
        path: String,
    },
    /// A document that is longer than any that is meant well.
    #[error("{} in {name} is longer than {} MiB", shown(path), MAX_DOCUMENT_LEN >> 20)]
    TooLong {
        /// The layout or archive.
        name: String,
        /// The path in it.
        path: String,
    },
    /// A document isn't the one that its descriptor names.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Malformed or foreign.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The place that the image comes from, such as a registry, has no such file.
    #[error(transparent)]
    NotThere(Box<dyn std::error::Error + Send + Sync>),
    /// It doesn't give the file.
    #[error(transparent)]
    NotServed(Box<dyn std::error::Error + Send + Sync>),
    /// A bad name in it.
    #[error("{name} holds an image with a bad name")]
    BadName {
        /// The layout or archive.
        name: String,
        /// What is wrong.
        source: ReferenceError,
    },
    /// A layout of the future.
    #[error("{name} is an OCI image layout of version {}, and 1.0.0 is what bothy reads", shown(version))]
    Version {
        /// The layout or archive.
        name: String,
        /// Its version.
        version: String,
    },
    /// An index that leads to too much.
    #[error("the indexes in {name} are nested too deep or name too many manifests")]
    TooMany {
        /// The layout or archive.
        name: String,
    },
    /// Documents that are too long together.
    #[error("the manifests and configurations in {name} are too long, all together")]
    TooMuch {
        /// The layout or archive.
        name: String,
    },
    /// More images than anybody saves in one place.
    #[error(
        "{name} holds {count} images, and no more than {limit} are loaded at once: say which one, with :TAG or :@0 after the path"
    )]
    TooManyImages {
        /// The layout or archive.
        name: String,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Images for other machines only.
    #[error("{name} has no image for {wanted}: {offered}")]
    Platform {
        /// The layout or archive.
        name: String,
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        offered: Box<Offered>,
    },
    /// No image of that name in it.
    #[error("{name} has no image {}: there {} {}", shown(wanted), if there.len() == 1 { "is" } else { "are" }, if there.is_empty() { "none".to_owned() } else { shown(&there.join(", ")) })]
    NoSuch {
        /// The layout or archive.
        name: String,
        /// What was asked for.
        wanted: String,
        /// The names that there are.
        there: Vec<String>,
    },
    /// No image at all in it.
    #[error("{0} holds no image")]
    Empty(String),
    /// None that can be used.
    #[error("{name} has no image that can be used: {unusable}")]
    Unusable {
        /// The layout or archive.
        name: String,
        /// The entries of its index.
        unusable: Box<Unusable>,
    },
    /// Not a tar, or a broken one.
    #[error("{name} is not a good archive: {what}")]
    Tar {
        /// The archive.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A tar of something else.
    #[error(
        "{0} is no image: it has neither manifest.json nor index.json (a root file system? unpack it and load dir:DIR)"
    )]
    NotAnImage(String),
}

/// An open file of an image.
pub(super) struct Opened<'a> {
    pub(super) reader: Box<dyn Read + 'a>,
    pub(super) len: u64,
}

/// Where the files are.
pub(super) trait Files {
    /// What errors call it.
    fn name(&self) -> &str;

    /// Opens a file; `None` if there is none.
    fn open(&self, path: &str) -> Result<Option<Opened<'_>>, ContentError>;

    /// Opens a file that must be there.
    fn need(&self, path: &str) -> Result<Opened<'_>, ContentError> {
        self.open(path)?.ok_or_else(|| ContentError::Missing { name: self.name().into(), path: path.into() })
    }

    /// A whole file, if it isn't too long.
    fn read(&self, path: &str) -> Result<Vec<u8>, ContentError> {
        let name = || self.name().to_owned();
        let bytes = read_capped(self.need(path)?.reader, MAX_DOCUMENT_LEN);
        let bytes =
            bytes.map_err(|source| ContentError::Io { name: format!("{path} in {}", name()), source })?;
        bytes.ok_or_else(|| ContentError::TooLong { name: name(), path: path.into() })
    }

    /// The document that a descriptor points to, verified.
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ContentError> {
        let path = descriptor.digest.blob_path();
        check_len(self.need(&path)?.len, descriptor.size, path.clone())?;
        let bytes = self.read(&path)?;
        check_document(descriptor, &bytes, path)?;
        Ok(bytes)
    }
}

/// Insists that the bytes are those that the descriptor names.
pub(super) fn check_document(descriptor: &Descriptor, bytes: &[u8], name: String) -> Result<(), BlobError> {
    check_len(bytes.len() as u64, descriptor.size, name.clone())?;
    check_digest(&descriptor.digest, bytes, name)
}

/// Insists that a blob is as long as its descriptor says.
pub(super) fn check_len(seen: u64, expected: u64, name: String) -> Result<(), BlobError> {
    match seen.cmp(&expected) {
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(BlobError::TooLong { name, expected }),
        Ordering::Less => Err(BlobError::TooShort { name, expected, seen }),
    }
}

/// Insists that the bytes are those that the digest names.
pub(super) fn check_digest(
    digest: &super::digest::Digest,
    bytes: &[u8],
    name: String,
) -> Result<(), BlobError> {
    if digest.fits(bytes) {
        return Ok(());
    }
    Err(BlobError::Digest { name, actual: super::digest::Digest::of(bytes) })
}

/// A directory. Nothing outside of it is opened, whatever links it contains.
pub(super) struct Directory {
    fd: OwnedFd,
    name: String,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, ContentError> {
        let name = path.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| ContentError::Io { name: name.clone(), source: error.into() })?;
        Ok(Self { fd, name })
    }
}

impl Files for Directory {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, path: &str) -> Result<Option<Opened<'_>>, ContentError> {
        let (name, owned) = (self.name.clone(), path.to_owned());
        let io = |source| ContentError::Io { name: format!("{path} in {}", self.name), source };
        // NONBLOCK, so that a pipe is refused and not waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), beneath) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => {
                return Err(ContentError::Escapes { name, path: owned });
            }
            Err(error) => return Err(io(error.into())),
        };
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(ContentError::NotAFile { name, path: owned });
        }
        Ok(Some(Opened { reader: Box::new(file), len: metadata.len() }))
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
