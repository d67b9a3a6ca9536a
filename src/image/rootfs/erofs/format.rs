//! The on-disk structures, as bytes.

use super::super::tree::{Data, Inode, Kind};

/// Size of a block in bytes, of data and of metadata.
pub(super) const BLOCK: u64 = BLOCK_LEN as u64;
pub(super) const BLOCK_LEN: usize = 4096;
const BLOCK_BITS: u8 = 12;
/// Size of an extended inode in bytes.
pub(super) const INODE: u64 = INODE_LEN as u64;
pub(super) const INODE_LEN: usize = 64;
/// Inodes begin at multiples of this; their number is their offset divided by it.
pub(super) const SLOT: u64 = 32;
/// Size of an entry of a directory without its name.
pub(super) const DIRENT: usize = 12;
/// The address of a chunk that is a hole.
pub(super) const HOLE: u32 = u32::MAX;

const SUPER_OFFSET: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_SB_CHKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;

const VERSION_EXTENDED: u16 = 1;
const LAYOUT_PLAIN: u16 = 0 << 1;
const LAYOUT_INLINE: u16 = 2 << 1;
const LAYOUT_CHUNKS: u16 = 4 << 1;

/// What the superblock says.
pub(super) struct Super {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) chunks: bool,
}

impl Super {
    /// The first block of the image.
    pub(super) fn block(&self) -> [u8; BLOCK_LEN] {
        let mut block = [0; BLOCK_LEN];
        let incompat = if self.chunks { INCOMPAT_CHUNKED_FILE } else { 0 };
        let mut put = |at: usize, bytes: &[u8]| {
            block[SUPER_OFFSET + at..SUPER_OFFSET + at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta_block.to_le_bytes());
        put(80, &incompat.to_le_bytes());
        // Of the rest of the block, with zeros where it goes.
        let checksum = crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC-32C as the kernel's `crc32c(~0, ..)` has it: not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

/// An extended inode. `number` is what a 32-bit stat would call it, `links` what is in its link
/// count.
pub(super) fn inode(inode: &Inode, number: u32, links: u32) -> [u8; INODE_LEN] {
    let (layout, address) = match inode.data {
        Data::Blocks(block) => (LAYOUT_PLAIN, block),
        Data::Tail(block) => (LAYOUT_INLINE, block),
        Data::Chunks(bits) => (LAYOUT_CHUNKS, u32::from(bits)),
        Data::Device(number) => (LAYOUT_PLAIN, number),
    };
    // In words of 4 bytes; the header of 12 bytes counts as one. The encoder keeps it below 65,536.
    let xattrs = match inode.xattr_len {
        0 => 0,
        len => u16::try_from((len - 12) / 4 + 1).unwrap_or(0),
    };
    let mut bytes = [0; INODE_LEN];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &(VERSION_EXTENDED | layout).to_le_bytes());
    put(2, &xattrs.to_le_bytes());
    put(4, &(inode.kind as u16 | inode.meta.perm).to_le_bytes());
    put(8, &inode.size.to_le_bytes());
    put(16, &address.to_le_bytes());
    put(20, &number.to_le_bytes());
    put(24, &inode.meta.uid.to_le_bytes());
    put(28, &inode.meta.gid.to_le_bytes());
    put(32, &inode.meta.mtime.to_le_bytes());
    put(40, &inode.meta.mtime_ns.to_le_bytes());
    put(44, &links.to_le_bytes());
    bytes
}

/// A device's number, as the kernel's `new_encode_dev` has it.
pub(in crate::image::rootfs) fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// An entry of a directory.
pub(super) fn dirent(nid: u64, name_offset: u16, kind: Kind) -> [u8; DIRENT] {
    let file_type: u8 = match kind {
        Kind::File => 1,
        Kind::Dir => 2,
        Kind::Char => 3,
        Kind::Block => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink => 7,
    };
    let mut bytes = [0; DIRENT];
    bytes[..8].copy_from_slice(&nid.to_le_bytes());
    bytes[8..10].copy_from_slice(&name_offset.to_le_bytes());
    bytes[10] = file_type;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn devices_are_encoded_in_32_bits() {
        assert_eq!(device(8, 1), 0x801);
        assert_eq!(device(0xfff, 0xf_ffff), u32::MAX);
        assert_eq!(device(0x123, 0x4_5678), 0x4561_2378);
    }
}
