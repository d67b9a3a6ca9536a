//! What is wrong with an entry, and what else can end the building of an image in its middle.

use std::io;

use thiserror::Error;

use super::RootfsError;
use super::tree::Full;

/// Why an entry is refused. Each stands for one way to lie in a layer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Flaw {
    // The stream.
    #[error("its header's checksum is wrong: this is no tar archive, or a broken one")]
    Checksum,
    #[error("a number in its header can't be read")]
    Number,
    #[error("the archive ends in the middle of it")]
    Truncated,
    #[error("it is of a type that no file system has ({0:#04x})")]
    Type(u8),
    #[error("its extended header is longer than 1 MiB")]
    ExtendedSize,
    #[error("its extended header is malformed")]
    Extended,
    #[error("the archive ends behind an extended header, before the entry that it is for")]
    NoEntry,
    // Sizes.
    #[error("its size is negative, or larger than an image may be")]
    Size,
    #[error("the map of its holes contradicts itself or its size")]
    SparseMap,
    #[error("the map of its holes has more than 1048576 parts")]
    SparseParts,
    #[error("the archives are longer than an image may be, together")]
    TooManyBytes,
    #[error("there are more entries than an image may have")]
    TooManyEntries,
    // Names.
    #[error("its name is empty")]
    NoName,
    #[error("its name, or its target's, has a NUL in it")]
    Nul,
    #[error("a part of its name is longer than 255 bytes")]
    NameLength,
    #[error("its name is longer than 4095 bytes")]
    PathLength,
    #[error("it is more than 2048 directories deep")]
    Depth,
    #[error("it is a whiteout of nothing, or is in a directory that has a whiteout's name")]
    Whiteout,
    #[error("the root can only be a directory")]
    Root,
    #[error("what should be its directory is none")]
    NotADirectory,
    #[error("its directory is behind more than 40 symbolic links, or too long a way")]
    Loop,
    #[error("the ways to directories of this image are too long, all together")]
    Ways,
    #[error("as a symbolic link it has no target, or one that is longer than 4095 bytes")]
    Target,
    // Hard links.
    #[error("it is a hard link to something that is not there")]
    NoTarget,
    #[error("it is a hard link to a directory")]
    LinkToDirectory,
    // Metadata.
    #[error("its owner or group doesn't fit into 32 bits")]
    Owner,
    #[error("its time can't be read")]
    Time,
    #[error("its device number is one that Linux doesn't have")]
    Device,
    #[error("it has an extended attribute whose name is longer than 255 bytes or whose value than 65535")]
    Xattr,
    #[error("its extended attributes are longer than 256 KiB together")]
    Xattrs,
    // Directories of the host.
    #[error("it is the image itself")]
    Itself,
    #[error("it has changed while it was read")]
    Changed,
}

impl From<Full> for Flaw {
    fn from(_: Full) -> Self {
        Self::TooManyEntries
    }
}

/// What ends the building in the middle of an entry; who knows which one makes a [`RootfsError`] of
/// it.
#[derive(Debug)]
pub(in crate::image) enum Trouble {
    Flaw(Flaw),
    /// The source can't be read.
    Read(io::Error),
    /// The image can't be written.
    Out(RootfsError),
}

impl<T: Into<Flaw>> From<T> for Trouble {
    fn from(flaw: T) -> Self {
        Self::Flaw(flaw.into())
    }
}

impl From<RootfsError> for Trouble {
    fn from(error: RootfsError) -> Self {
        Self::Out(error)
    }
}
