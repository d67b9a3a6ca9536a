//! The merged tree in memory: names and metadata in two arenas, and a hash table from (directory,
//! name) to entry.
//!
//! An entry with its inode takes 120 bytes and the name; arenas that have just doubled and the
//! table make it twice that. No data is here: what has no bound (symbolic links' targets, xattrs,
//! ends of files) lies in the store, and an inode knows where.
//!
//! Every entry remembers the layer that it is from: a whiteout takes away what lower layers put
//! there and nothing of its own layer, wherever in the layer it stands.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use hashbrown::HashTable;

/// Index of an entry.
pub(super) type EntryId = u32;
/// Index of an inode.
pub(super) type InodeId = u32;

pub(super) const ROOT: EntryId = 0;
const NONE: u32 = u32::MAX;

/// What an inode is; the value is that of `S_IFMT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    Fifo = 0o010_000,
    Char = 0o020_000,
    Dir = 0o040_000,
    Block = 0o060_000,
    File = 0o100_000,
    Symlink = 0o120_000,
    Socket = 0o140_000,
}

/// What stands in an inode besides its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    /// Permission bits, with setuid, setgid and sticky.
    pub(super) perm: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970, and nanoseconds.
    pub(super) mtime: i64,
    pub(super) mtime_ns: u32,
}

impl Meta {
    /// Of a directory that no entry describes.
    pub(super) const IMPLIED: Self = Self { perm: 0o755, uid: 0, gid: 0, mtime: 0, mtime_ns: 0 };
}

/// Where an inode's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// In blocks one after the other from here on.
    Blocks(u32),
    /// The same, but what is behind the last whole block is in the spool and goes beside the inode.
    Tail(u32),
    /// In chunks of 2^n blocks whose addresses are in the spool.
    Chunks(u8),
    /// A device's number, as Linux encodes it.
    Device(u32),
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) meta: Meta,
    pub(super) size: u64,
    pub(super) data: Data,
    /// Blocks that are this inode's alone.
    pub(super) blocks: Range<u32>,
    /// Place in the spool of the xattrs, and right behind them the tail, the symbolic link's target
    /// or the chunks' addresses.
    pub(super) spool: u64,
    pub(super) xattr_len: u32,
    pub(super) tail_len: u32,
    /// Entries that lead here.
    pub(super) links: u32,
    /// Offset into the image's metadata, once it is known; 0 until then.
    pub(super) place: u64,
    /// Whether it is in the image already.
    pub(super) written: bool,
    /// The first entry of a directory.
    first: u32,
}

impl Inode {
    pub(super) fn new(kind: Kind, meta: Meta) -> Self {
        Self {
            kind,
            meta,
            size: 0,
            data: Data::Blocks(0),
            blocks: 0..0,
            spool: 0,
            xattr_len: 0,
            tail_len: 0,
            links: 0,
            place: 0,
            written: false,
            first: NONE,
        }
    }
}

#[derive(Debug)]
struct Entry {
    parent: EntryId,
    inode: InodeId,
    previous: u32,
    next: u32,
    name_at: u64,
    name_len: u16,
    /// The layer that this entry is from, or that last changed it.
    layer: u32,
    /// A directory under which this layer has hidden what is lower.
    hidden_by: u32,
}

/// More entries than the limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

pub(super) struct Tree {
    entries: Vec<Entry>,
    inodes: Vec<Inode>,
    names: Vec<u8>,
    table: HashTable<EntryId>,
    hasher: RandomState,
    /// Entries that there may yet be.
    left: u64,
    live: u64,
    freed: Vec<Range<u32>>,
}

impl Tree {
    /// A tree with a root.
    pub(super) fn new(max_entries: u64) -> Self {
        let mut root = Inode::new(Kind::Dir, Meta::IMPLIED);
        root.links = 1;
        let entry = Entry {
            parent: ROOT,
            inode: 0,
            previous: NONE,
            next: NONE,
            name_at: 0,
            name_len: 0,
            layer: 0,
            hidden_by: 0,
        };
        Self {
            entries: vec![entry],
            inodes: vec![root],
            names: Vec::new(),
            table: HashTable::new(),
            hasher: RandomState::new(),
            left: max_entries.min(u64::from(NONE - 1)),
            live: 0,
            freed: Vec::new(),
        }
    }

    /// Counts an entry of a stream, whatever it turns out to be.
    pub(super) fn count(&mut self) -> Result<(), Full> {
        self.left = self.left.checked_sub(1).ok_or(Full)?;
        Ok(())
    }

    /// Names in the tree, without the root.
    pub(super) fn len(&self) -> u64 {
        self.live
    }

    pub(super) fn name(&self, id: EntryId) -> &[u8] {
        let entry = &self.entries[id as usize];
        // What was put there can be addressed.
        let at = usize::try_from(entry.name_at).unwrap_or(usize::MAX);
        &self.names[at..at + usize::from(entry.name_len)]
    }

    pub(super) fn parent(&self, id: EntryId) -> EntryId {
        self.entries[id as usize].parent
    }

    pub(super) fn inode_id(&self, id: EntryId) -> InodeId {
        self.entries[id as usize].inode
    }

    pub(super) fn inode(&self, id: EntryId) -> &Inode {
        &self.inodes[self.entries[id as usize].inode as usize]
    }

    pub(super) fn inode_mut(&mut self, id: EntryId) -> &mut Inode {
        &mut self.inodes[self.entries[id as usize].inode as usize]
    }

    pub(super) fn is_dir(&self, id: EntryId) -> bool {
        self.inode(id).kind == Kind::Dir
    }

    /// Blocks that nothing needs any more, since the last call.
    pub(super) fn take_freed(&mut self) -> Vec<Range<u32>> {
        std::mem::take(&mut self.freed)
    }

    fn hash(&self, parent: EntryId, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent, name))
    }

    pub(super) fn child(&self, parent: EntryId, name: &[u8]) -> Option<EntryId> {
        let is_it = |id: &EntryId| self.parent(*id) == parent && self.name(*id) == name;
        self.table.find(self.hash(parent, name), is_it).copied()
    }

    /// The entries of a directory, in no order before [`Tree::sort`] and by name after it.
    pub(super) fn children(&self, dir: EntryId) -> impl Iterator<Item = EntryId> + '_ {
        let some = |id: u32| (id != NONE).then_some(id);
        std::iter::successors(some(self.inode(dir).first), move |id| some(self.entries[*id as usize].next))
    }

    /// Adds an inode that [`Tree::link`] then gives a name.
    pub(super) fn add_inode(&mut self, inode: Inode) -> InodeId {
        self.inodes.push(inode);
        // One per entry at most, and `left` began below NONE.
        u32::try_from(self.inodes.len() - 1).unwrap_or(NONE)
    }

    /// Keeps an inode's blocks, whatever becomes of its names, until it is released.
    pub(super) fn hold(&mut self, inode: InodeId) {
        self.inodes[inode as usize].links += 1;
    }

    /// The end of [`Tree::hold`].
    pub(super) fn release(&mut self, inode: InodeId) {
        let inode = &mut self.inodes[inode as usize];
        inode.links -= 1;
        if inode.links == 0 && !inode.blocks.is_empty() {
            self.freed.push(std::mem::replace(&mut inode.blocks, 0..0));
        }
    }

    /// Gives an inode a name in a directory that has no such name. The name is at most 255 bytes
    /// long.
    pub(super) fn link(
        &mut self,
        parent: EntryId,
        name: &[u8],
        inode: InodeId,
        layer: u32,
    ) -> Result<EntryId, Full> {
        let id = u32::try_from(self.entries.len()).ok().filter(|id| *id < NONE).ok_or(Full)?;
        let entry = Entry {
            parent,
            inode,
            previous: NONE,
            next: self.inode(parent).first,
            name_at: self.names.len() as u64,
            name_len: u16::try_from(name.len()).unwrap_or(u16::MAX),
            layer,
            hidden_by: 0,
        };
        self.names.extend_from_slice(name);
        if entry.next != NONE {
            self.entries[entry.next as usize].previous = id;
        }
        self.entries.push(entry);
        self.inode_mut(parent).first = id;
        self.inodes[inode as usize].links += 1;
        self.live += 1;
        let hash = self.hash(parent, name);
        let (entries, names, hasher) = (&self.entries, &self.names, &self.hasher);
        self.table.insert_unique(hash, id, |id| {
            let entry = &entries[*id as usize];
            let at = usize::try_from(entry.name_at).unwrap_or(usize::MAX);
            hasher.hash_one((entry.parent, &names[at..at + usize::from(entry.name_len)]))
        });
        Ok(id)
    }

    /// Adds a directory that no entry describes.
    pub(super) fn imply(&mut self, parent: EntryId, name: &[u8], layer: u32) -> Result<EntryId, Full> {
        self.count()?;
        let inode = self.add_inode(Inode::new(Kind::Dir, Meta::IMPLIED));
        self.link(parent, name, inode, layer)
    }

    /// Says that `layer` has spoken about an entry.
    pub(super) fn touch(&mut self, id: EntryId, layer: u32) {
        self.entries[id as usize].layer = layer;
    }

    /// Gives an inode the name of an entry, which goes with all that is below it; the inode may be
    /// there itself.
    pub(super) fn replace(&mut self, id: EntryId, inode: InodeId, layer: u32) -> Result<EntryId, Full> {
        let parent = self.parent(id);
        let name = self.name(id).to_vec();
        // Its blocks aren't free when its last name goes.
        self.hold(inode);
        self.remove(id);
        self.inodes[inode as usize].links -= 1;
        self.link(parent, &name, inode, layer)
    }

    /// Removes an entry and all that is below it. Never the root.
    pub(super) fn remove(&mut self, id: EntryId) {
        for id in self.below(id, |_, _| true).into_iter().rev() {
            self.unlink(id);
        }
    }

    /// A whiteout of `layer`: removes an entry and all that is below it as far as it is from lower
    /// layers. A directory that has to stay for what this layer put into it becomes one that no
    /// entry describes.
    pub(super) fn hide(&mut self, top: EntryId, layer: u32) {
        // What is below a directory marked with this layer is this layer's own, or the layer has
        // put it there since: each directory is searched once per layer, however many whiteouts
        // there are.
        let found = self.below(top, |tree, dir| {
            std::mem::replace(&mut tree.entries[dir as usize].hidden_by, layer) != layer
        });
        for id in found.into_iter().rev() {
            if self.entries[id as usize].layer == layer {
                continue;
            }
            if self.is_dir(id) && self.inode(id).first != NONE {
                let inode = self.inode_mut(id);
                inode.meta = Meta::IMPLIED;
                (inode.xattr_len, inode.tail_len) = (0, 0);
                self.touch(id, layer);
            } else {
                self.unlink(id);
            }
        }
    }

    /// An opaque directory of `layer`: what lower layers put below it is gone.
    pub(super) fn hide_below(&mut self, dir: EntryId, layer: u32) {
        if std::mem::replace(&mut self.entries[dir as usize].hidden_by, layer) == layer {
            return;
        }
        let children: Vec<EntryId> = self.children(dir).collect();
        for child in children {
            self.hide(child, layer);
        }
    }

    /// An entry and what is below it, each directory before what it has, descending where `enter`
    /// says so.
    fn below(&mut self, top: EntryId, mut enter: impl FnMut(&mut Self, EntryId) -> bool) -> Vec<EntryId> {
        let mut found = vec![top];
        let mut next = 0;
        while let Some(&id) = found.get(next) {
            if self.is_dir(id) && enter(self, id) {
                found.extend(self.children(id));
            }
            next += 1;
        }
        found
    }

    fn unlink(&mut self, id: EntryId) {
        let entry = &self.entries[id as usize];
        let (parent, previous, next, inode) = (entry.parent, entry.previous, entry.next, entry.inode);
        let hash = self.hash(parent, self.name(id));
        if let Ok(found) = self.table.find_entry(hash, |other| *other == id) {
            found.remove();
        }
        match previous {
            NONE => self.inode_mut(parent).first = next,
            previous => self.entries[previous as usize].next = next,
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        self.live -= 1;
        self.release(inode);
    }

    /// Puts the entries of every directory in the order of their names' bytes.
    pub(super) fn sort(&mut self) {
        let mut dirs = vec![ROOT];
        let mut children = Vec::new();
        while let Some(dir) = dirs.pop() {
            children.clear();
            children.extend(self.children(dir));
            children.sort_unstable_by(|a, b| self.name(*a).cmp(self.name(*b)));
            let mut previous = NONE;
            for &id in &children {
                self.entries[id as usize].previous = previous;
                self.entries[id as usize].next = NONE;
                match previous {
                    NONE => self.inode_mut(dir).first = id,
                    previous => self.entries[previous as usize].next = id,
                }
                previous = id;
            }
            dirs.extend(children.iter().copied().filter(|id| self.is_dir(*id)));
        }
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
