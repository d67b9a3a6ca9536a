//! The EROFS writer: data first, as it comes, then the metadata behind it.
//!
//! ```text
//! 0      superblock (at 1024)
//! 4096   file data, in whole blocks, in the order of the layers; holes where a higher layer has replaced a file
//! ...    whole blocks of directories
//! ...    metadata: inodes, each with its xattrs and the end of its data, the root's first
//! ```
//!
//! The on-disk format is the kernel's (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h),
//! as far as Linux 5.15 knows it: blocks of 4 KiB, no compression, extended inodes only, because
//! others have neither times nor 32-bit owners. The UUID and the build time are zeros, so that the
//! same content gives the same bytes.

mod format;
mod pack;
mod store;
mod write;
mod xattr;

pub(super) use self::format::device;
pub(super) use self::store::Store;
pub(super) use self::write::finish;
pub(super) use self::xattr::encode as encode_xattrs;
