//! The metadata: directories and inodes get their places, then they are written, in the same order.

use std::cmp::Ordering;

use super::super::tree::{Data, EntryId, Inode, Kind, ROOT, Tree};
use super::super::{Built, RootfsError};
use super::format::{self, BLOCK, DIRENT, INODE, SLOT, Super};
use super::pack::{OPEN, Packer};
use super::store::{Store, Writer};
use crate::image::room::Growing;

/// Writes all that the tree says behind the data that the store has, and the superblock.
pub(in crate::image::rootfs) fn finish(mut tree: Tree, mut store: Store<'_>) -> Result<Built, RootfsError> {
    let too_large = RootfsError::TooLarge(store.max);
    let dir_block = store.flush()?;
    tree.sort();
    let layout = Layout::plan(&mut tree, dir_block);
    let bytes = layout.meta_block * BLOCK + layout.meta_len;
    let blocks = u32::try_from(bytes / BLOCK).ok().filter(|_| bytes <= store.max);
    // Both are 32 bits on disk; the largest image is 2^31 blocks.
    let (Some(blocks), Some(meta_block)) = (blocks, u32::try_from(layout.meta_block).ok()) else {
        return Err(too_large);
    };
    let mut metadata = Metadata {
        store: &store,
        dirs: Writer::new(store.out.clone(), u64::from(dir_block) * BLOCK),
        window: Window::new(store.out.clone(), layout.meta_block * BLOCK),
        number: 0,
    };
    metadata.write(&mut tree)?;
    let superblock = Super {
        // The first place of all, so that it fits.
        root_nid: u16::try_from(tree.inode(ROOT).place / SLOT).unwrap_or(0),
        inodes: u64::from(metadata.number),
        blocks,
        meta_block,
        chunks: layout.chunks,
    };
    store.out.write_all_at(&superblock.block(), 0).map_err(RootfsError::Write)?;
    // The spool goes, and the last block is whole.
    store.out.file().set_len(bytes).map_err(RootfsError::Write)?;
    store.out.check().map_err(RootfsError::Write)?;
    Ok(Built { bytes, entries: tree.len() })
}

/// Calls `each` for every entry, in the order of the metadata: a directory's entries one after the
/// other, then those of its directories. An inode of several names comes several times.
fn walk(
    tree: &mut Tree,
    mut each: impl FnMut(&mut Tree, EntryId) -> Result<(), RootfsError>,
) -> Result<(), RootfsError> {
    each(tree, ROOT)?;
    let mut dirs = vec![ROOT];
    let mut children = Vec::new();
    while let Some(dir) = dirs.pop() {
        children.clear();
        children.extend(tree.children(dir));
        for &child in &children {
            each(tree, child)?;
        }
        dirs.extend(children.iter().rev().copied().filter(|child| tree.is_dir(*child)));
    }
    Ok(())
}

/// A directory's names in their order, with its own and its parent's among them.
fn names(tree: &Tree, dir: EntryId) -> impl Iterator<Item = (&[u8], EntryId)> {
    let mut own = [(&b"."[..], dir), (b"..", tree.parent(dir))].into_iter().peekable();
    let mut children = tree.children(dir).map(|child| (tree.name(child), child)).peekable();
    std::iter::from_fn(move || match (own.peek(), children.peek()) {
        (Some(a), Some(b)) if a.0.cmp(b.0) == Ordering::Less => own.next(),
        (_, Some(_)) => children.next(),
        (_, None) => own.next(),
    })
}

/// Cuts a directory into blocks; a name and its entry are in one. Each comes with the bytes used in
/// it.
fn blocks(tree: &Tree, dir: EntryId, mut each: impl FnMut(&[(&[u8], EntryId)], usize)) {
    let mut block = Vec::new();
    let mut used = 0;
    for (name, id) in names(tree, dir) {
        let needs = DIRENT + name.len();
        if (used + needs) as u64 > BLOCK {
            each(&block, used);
            block.clear();
            used = 0;
        }
        block.push((name, id));
        used += needs;
    }
    each(&block, used);
}

/// Where everything will be.
struct Layout {
    meta_block: u64,
    meta_len: u64,
    chunks: bool,
}

impl Layout {
    /// Gives every inode its place, and every directory its blocks, from `dir_block` on. What
    /// doesn't fit into 32 bits is behind the end of the largest image, which the caller checks.
    fn plan(tree: &mut Tree, dir_block: u32) -> Self {
        let mut packer = Packer::new();
        let mut next_dir = u64::from(dir_block);
        let mut chunks = false;
        let planned = walk(tree, |tree, id| {
            if tree.inode(id).place != 0 {
                return Ok(());
            }
            if tree.is_dir(id) {
                let (mut whole, mut tail) = (0, 0);
                blocks(tree, id, |_, used| (whole, tail) = (whole + 1, used as u64));
                let inode = tree.inode_mut(id);
                let beside = INODE + u64::from(inode.xattr_len) + tail <= BLOCK;
                let own = if beside { whole - 1 } else { whole };
                let address = if own == 0 { 0 } else { u32::try_from(next_dir).unwrap_or(u32::MAX) };
                next_dir += own;
                inode.size = (whole - 1) * BLOCK + tail;
                inode.data = if beside { Data::Tail(address) } else { Data::Blocks(address) };
                // At most a block.
                inode.tail_len = u32::try_from(tail).unwrap_or(0);
            }
            let inode = tree.inode_mut(id);
            chunks |= matches!(inode.data, Data::Chunks(_));
            inode.place = packer.place(INODE + u64::from(inode.xattr_len) + beside(inode));
            Ok(())
        });
        debug_assert!(planned.is_ok(), "planning reads and writes nothing");
        Self { meta_block: next_dir, meta_len: packer.end(), chunks }
    }
}

/// Length of what stands beside an inode and its xattrs.
fn beside(inode: &Inode) -> u64 {
    match inode.data {
        Data::Tail(_) | Data::Chunks(_) => u64::from(inode.tail_len),
        Data::Blocks(_) | Data::Device(_) => 0,
    }
}

struct Metadata<'s, 'a> {
    store: &'s Store<'a>,
    dirs: Writer<'a>,
    window: Window<'a>,
    /// Inodes so far.
    number: u32,
}

impl Metadata<'_, '_> {
    fn write(&mut self, tree: &mut Tree) -> Result<(), RootfsError> {
        let mut bytes = Vec::new();
        walk(tree, |tree, id| {
            if std::mem::replace(&mut tree.inode_mut(id).written, true) {
                return Ok(());
            }
            self.number += 1;
            let inode = tree.inode(id);
            let is_dir = inode.kind == Kind::Dir;
            let links = if is_dir { 2 + subdirectories(tree, id) } else { inode.links };
            bytes.clear();
            bytes.extend_from_slice(&format::inode(inode, self.number, links));
            let spooled = u64::from(inode.xattr_len) + if is_dir { 0 } else { beside(inode) };
            bytes.resize(bytes.len() + usize::try_from(spooled).unwrap_or(0), 0);
            self.store.read_spool(&mut bytes[format::INODE_LEN..], inode.spool)?;
            if is_dir {
                self.directory(tree, id, &mut bytes)?;
            }
            self.window.put(inode.place, &bytes)
        })?;
        self.dirs.flush()?;
        self.window.flush(0)
    }

    /// Writes a directory's own blocks, and adds what goes beside its inode.
    fn directory(&mut self, tree: &Tree, dir: EntryId, beside: &mut Vec<u8>) -> Result<(), RootfsError> {
        let inline = matches!(tree.inode(dir).data, Data::Tail(_));
        let mut left = tree.inode(dir).size.div_ceil(BLOCK);
        let mut result = Ok(());
        blocks(tree, dir, |block, used| {
            let mut bytes = Vec::with_capacity(format::BLOCK_LEN);
            let mut offset = block.len() * DIRENT;
            for (name, id) in block {
                let inode = tree.inode(*id);
                // Inside of a block.
                let at = u16::try_from(offset).unwrap_or(0);
                bytes.extend_from_slice(&format::dirent(inode.place / SLOT, at, inode.kind));
                offset += name.len();
            }
            for (name, _) in block {
                bytes.extend_from_slice(name);
            }
            debug_assert_eq!(bytes.len(), used);
            left -= 1;
            if left == 0 && inline {
                beside.extend_from_slice(&bytes);
            } else if result.is_ok() {
                bytes.resize(format::BLOCK_LEN, 0);
                result = self.dirs.write(&bytes);
            }
        });
        result
    }
}

fn subdirectories(tree: &Tree, dir: EntryId) -> u32 {
    let dirs = tree.children(dir).filter(|child| tree.is_dir(*child));
    u32::try_from(dirs.count()).unwrap_or(u32::MAX - 2)
}

/// The last blocks of the metadata, which may yet get more.
struct Window<'a> {
    out: Growing<'a>,
    /// Where the metadata begins in the file, and how much of it has been written.
    start: u64,
    written: u64,
    pending: Vec<u8>,
}

impl<'a> Window<'a> {
    /// Written in pieces of this size.
    const PIECE: usize = 1 << 20;

    fn new(out: Growing<'a>, start: u64) -> Self {
        Self { out, start, written: 0, pending: Vec::new() }
    }

    /// Puts an inode at its place, which is in one of the open blocks or behind them.
    fn put(&mut self, place: u64, bytes: &[u8]) -> Result<(), RootfsError> {
        let at = usize::try_from(place - self.written).unwrap_or(usize::MAX);
        let end = (at + bytes.len()).next_multiple_of(format::BLOCK_LEN);
        if self.pending.len() < end {
            self.pending.resize(end, 0);
        }
        self.pending[at..at + bytes.len()].copy_from_slice(bytes);
        let open = OPEN * format::BLOCK_LEN;
        if self.pending.len() > open + Self::PIECE { self.flush(open) } else { Ok(()) }
    }

    /// Writes all but the last `keep` bytes.
    fn flush(&mut self, keep: usize) -> Result<(), RootfsError> {
        let done = self.pending.len().saturating_sub(keep);
        let written = self.out.write_all_at(&self.pending[..done], self.start + self.written);
        written.map_err(RootfsError::Write)?;
        self.pending.drain(..done);
        self.written += done as u64;
        Ok(())
    }
}
