//! Container images: what `bothy run IMAGE` boots from.
//!
//! - [`rootfs`] makes one read-only file system image of an image's layers, or of a directory.

pub mod rootfs;
