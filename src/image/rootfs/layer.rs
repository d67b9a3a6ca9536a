//! Applies one layer's entries to the tree.
//!
//! What happens to what, as docker, containerd and umoci have it (OCI image-spec, layer.md):
//!
//! - An entry replaces what has its name, with all that is below; a directory over a directory only
//!   its metadata.
//! - `.wh.NAME` takes away what lower layers have at NAME, `.wh..wh..opq` what they have in its
//!   directory. Neither touches its own layer, wherever it stands in it. Other names that begin
//!   with `.wh..wh.` are AUFS' own and mean nothing, but for the files in the root's
//!   `.wh..wh.plnk`: AUFS keeps those there that have several names, and the names are hard links
//!   to them.
//! - A character device 0:0 is overlayfs' whiteout, and is taken for one: a guest that lays
//!   overlayfs over it would do the same.
//! - `..` in names and targets of hard links is cleaned first, and stops at the root.
//! - A parent that isn't there is made: 0755, root's, of 1970. A parent that is a symbolic link is
//!   followed, inside the tree.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;

use super::erofs::{Store, device, encode_xattrs};
use super::flaw::{Flaw, Trouble};
use super::tar::{Entry, Reader, What};
use super::tree::{Data, EntryId, Inode, InodeId, Kind, ROOT, Tree};
use super::{Layer, RootfsError};

/// Deepest directory. Paths of 4095 bytes have no more, but symbolic links would lead deeper.
pub(super) const MAX_DEPTH: usize = 2048;
/// Longest name of anything, and of a symbolic link's target: Linux' PATH_MAX without its NUL.
pub(super) const MAX_PATH: usize = 4095;
pub(super) const MAX_NAME: usize = 255;
/// As many as Linux follows.
const MAX_LINKS: usize = 40;
/// Parts of names on the way to one directory.
const MAX_STEPS: usize = 4096;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";
const PLINKS: &[u8] = b".wh..wh.plnk";

/// What the ways to all directories of an image may cost, in parts of names: layers are many, and
/// links that lead through links mustn't take minutes. An honest image has some ten parts for each
/// entry, and a few at most that symbolic links add.
pub(super) struct Ways {
    steps: u64,
    /// Those that symbolic links add.
    detours: u64,
}

impl Ways {
    pub(super) fn new() -> Self {
        Self { steps: 1 << 30, detours: 20_000_000 }
    }
}

/// Applies a layer that may have `allowed` bytes, and says how many it might have had besides.
pub(super) fn apply(
    layer: Layer<'_>,
    number: u32,
    allowed: u64,
    ways: &mut Ways,
    tree: &mut Tree,
    store: &mut Store<'_>,
) -> Result<u64, RootfsError> {
    let Layer { name, tar } = layer;
    let mut reader = Reader::new(tar, allowed);
    let mut target = Target { tree, store, layer: number, ways, plinks: HashMap::new() };
    let blame = |trouble, entry: String| match trouble {
        Trouble::Flaw(flaw) => RootfsError::Entry { layer: name.clone(), entry, flaw },
        Trouble::Read(source) => RootfsError::Read { layer: name.clone(), entry, source },
        Trouble::Out(error) => error,
    };
    while let Some(entry) = reader.next().map_err(|trouble| blame(trouble, reader.label()))? {
        target.entry(&entry, &mut reader).map_err(|trouble| blame(trouble, reader.label()))?;
    }
    target.end()?;
    let label = reader.label();
    reader.finish().map_err(|trouble| blame(trouble, label))
}

/// Where a layer's entries go.
struct Target<'t, 'a> {
    tree: &'t mut Tree,
    store: &'t mut Store<'a>,
    layer: u32,
    ways: &'t mut Ways,
    /// Files in AUFS' directory of them, by name.
    plinks: HashMap<Vec<u8>, InodeId>,
}

impl Target<'_, '_> {
    fn entry<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), Trouble> {
        self.tree.count()?;
        let path = path(&entry.name)?;
        let Some((name, parents)) = path.split_last() else {
            return self.root(entry);
        };
        if *parents == [PLINKS] && matches!(entry.what, What::File(_) | What::Sparse(_)) {
            return self.add_plink(name, entry, reader);
        }
        if parents.iter().any(|name| name.starts_with(AUFS)) {
            return Ok(());
        }
        if parents.iter().any(|name| name.starts_with(WHITEOUT)) {
            return Err(Flaw::Whiteout.into());
        }
        let whited_out = match entry.what {
            _ if *name == OPAQUE => None,
            _ if name.starts_with(AUFS) => return Ok(()),
            What::Device(false, 0, 0) => Some(*name),
            _ => match name.strip_prefix(WHITEOUT) {
                Some(b"" | b"." | b"..") => return Err(Flaw::Whiteout.into()),
                Some(name) => Some(name),
                None => return self.add(parents, name, entry, reader),
            },
        };
        let Some(dir) = self.resolve(parents, false)? else { return Ok(()) };
        match whited_out {
            None => self.tree.hide_below(dir, self.layer),
            Some(name) => {
                if let Some(id) = self.tree.child(dir, name) {
                    self.tree.hide(id, self.layer);
                }
            }
        }
        Ok(self.store.free(self.tree.take_freed())?)
    }

    /// The root has metadata and is always there.
    fn root(&mut self, entry: &Entry) -> Result<(), Trouble> {
        // A hard link or a file can't be it, and neither can what has no name at all.
        match entry.what {
            _ if entry.name.is_empty() => Err(Flaw::NoName.into()),
            What::Dir => self.describe(ROOT, entry),
            _ => Err(Flaw::Root.into()),
        }
    }

    /// Gives a directory the metadata of an entry.
    fn describe(&mut self, dir: EntryId, entry: &Entry) -> Result<(), Trouble> {
        self.tree.touch(dir, self.layer);
        let inode = self.tree.inode_mut(dir);
        inode.meta = entry.meta;
        Ok(self.store.put_xattrs(inode, &encode_xattrs(&entry.xattrs)?)?)
    }

    fn add<R: Read>(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), Trouble> {
        let parent = self.directory(parents)?;
        let inode = if let What::HardLink(target) = &entry.what {
            self.hard_link(target)?
        } else {
            let there = self.tree.child(parent, name);
            if let (What::Dir, Some(dir)) = (&entry.what, there.filter(|id| self.tree.is_dir(*id))) {
                return self.describe(dir, entry);
            }
            let inode = self.inode(entry, reader)?;
            self.tree.add_inode(inode)
        };
        self.name(parent, name, inode)
    }

    /// Gives an inode a name, in place of what has it.
    fn name(&mut self, parent: EntryId, name: &[u8], inode: InodeId) -> Result<(), Trouble> {
        if let Some(there) = self.tree.child(parent, name) {
            if self.tree.inode_id(there) == inode {
                // A hard link to itself.
                self.tree.touch(there, self.layer);
                return Ok(());
            }
            self.tree.replace(there, inode, self.layer)?;
            return Ok(self.store.free(self.tree.take_freed())?);
        }
        self.tree.link(parent, name, inode, self.layer)?;
        Ok(())
    }

    /// Keeps a file that only hard links of this layer lead to.
    fn add_plink<R: Read>(
        &mut self,
        name: &[u8],
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), Trouble> {
        let inode = self.inode(entry, reader)?;
        let inode = self.tree.add_inode(inode);
        self.tree.hold(inode);
        match self.plinks.insert(name.to_vec(), inode) {
            Some(replaced) => self.release(replaced),
            None => Ok(()),
        }
    }

    fn release(&mut self, inode: InodeId) -> Result<(), Trouble> {
        self.tree.release(inode);
        Ok(self.store.free(self.tree.take_freed())?)
    }

    /// The layer has no more entries.
    fn end(&mut self) -> Result<(), RootfsError> {
        for (_, inode) in std::mem::take(&mut self.plinks) {
            self.tree.release(inode);
        }
        self.store.free(self.tree.take_freed())
    }

    fn hard_link(&mut self, target: &[u8]) -> Result<InodeId, Trouble> {
        let path = path(target)?;
        let Some((name, parents)) = path.split_last() else { return Err(Flaw::LinkToDirectory.into()) };
        if *parents == [PLINKS] {
            return Ok(*self.plinks.get(*name).ok_or(Flaw::NoTarget)?);
        }
        let dir = self.resolve(parents, false)?.ok_or(Flaw::NoTarget)?;
        let id = self.tree.child(dir, name).ok_or(Flaw::NoTarget)?;
        if self.tree.is_dir(id) {
            return Err(Flaw::LinkToDirectory.into());
        }
        Ok(self.tree.inode_id(id))
    }

    fn inode<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<Inode, Trouble> {
        let xattrs = encode_xattrs(&entry.xattrs)?;
        let kind = match entry.what {
            What::File(_) | What::Sparse(_) | What::HardLink(_) => Kind::File,
            What::Dir => Kind::Dir,
            What::Symlink(_) => Kind::Symlink,
            What::Fifo => Kind::Fifo,
            What::Device(true, ..) => Kind::Block,
            What::Device(false, ..) => Kind::Char,
        };
        let mut inode = Inode::new(kind, entry.meta);
        match &entry.what {
            What::File(size) => {
                self.store.put_file(&mut inode, &xattrs, *size, &mut |bytes| reader.read(bytes))?;
            }
            What::Sparse(map) => {
                let parts = map.parts.iter().map(|part| (part.offset, part.len));
                let read = &mut |bytes: &mut [u8]| reader.read(bytes);
                self.store.put_sparse(&mut inode, &xattrs, map.size, parts, read)?;
            }
            What::Symlink(target) => {
                inode.meta.perm = 0o777;
                self.store.put_target(&mut inode, &xattrs, symlink_target(target)?)?;
            }
            What::Device(_, major, minor) => {
                inode.data = Data::Device(device(*major, *minor));
                self.store.put_xattrs(&mut inode, &xattrs)?;
            }
            What::Dir | What::Fifo | What::HardLink(_) => self.store.put_xattrs(&mut inode, &xattrs)?,
        }
        Ok(inode)
    }

    /// The directory at a path, made if it isn't there.
    fn directory(&mut self, path: &[&[u8]]) -> Result<EntryId, Trouble> {
        // With `make` there always is one.
        Ok(self.resolve(path, true)?.ok_or(Flaw::NotADirectory)?)
    }

    /// The directory at a path, with symbolic links followed as if the tree's root were the
    /// process': an absolute target begins there, and `..` never leads out of it.
    fn resolve(&mut self, path: &[&[u8]], make: bool) -> Result<Option<EntryId>, Trouble> {
        let (mut links, mut steps) = (0, 0);
        let (mut dir, mut depth) = (ROOT, 0);
        // What is yet to walk, the next part last.
        let mut todo: Vec<Cow<'_, [u8]>> = path.iter().rev().map(|part| Cow::Borrowed(*part)).collect();
        while let Some(part) = todo.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(Flaw::Loop.into());
            }
            self.ways.steps = self.ways.steps.checked_sub(1).ok_or(Flaw::Ways)?;
            if depth > MAX_DEPTH {
                return Err(Flaw::Depth.into());
            }
            if &*part == b".." {
                dir = self.tree.parent(dir);
                depth = depth.saturating_sub(1);
                continue;
            }
            let Some(next) = self.tree.child(dir, &part) else {
                if !make {
                    return Ok(None);
                }
                dir = self.tree.imply(dir, &part, self.layer)?;
                depth += 1;
                continue;
            };
            match self.tree.inode(next).kind {
                Kind::Dir => (dir, depth) = (next, depth + 1),
                Kind::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Flaw::Loop.into());
                    }
                    let target = self.target(next)?;
                    if target.starts_with(b"/") {
                        (dir, depth) = (ROOT, 0);
                    }
                    let parts = target.split(|byte| *byte == b'/').rev();
                    for part in parts.filter(|part| !part.is_empty() && *part != b".") {
                        if part.len() > MAX_NAME {
                            return Err(Flaw::NameLength.into());
                        }
                        self.ways.detours = self.ways.detours.checked_sub(1).ok_or(Flaw::Ways)?;
                        todo.push(Cow::Owned(part.to_vec()));
                    }
                }
                _ => return Err(Flaw::NotADirectory.into()),
            }
        }
        Ok(Some(dir))
    }

    fn target(&self, link: EntryId) -> Result<Vec<u8>, RootfsError> {
        let inode = self.tree.inode(link);
        let mut target = vec![0; usize::try_from(inode.tail_len).unwrap_or(0)];
        self.store.read_spool(&mut target, inode.spool + u64::from(inode.xattr_len))?;
        Ok(target)
    }
}

/// The parts of a name, cleaned within the root: `./../lib` is `lib`, `a/../..` is the root. Build
/// tools write such names. docker and umoci clean them first (Go's `path.Clean("/" + name)`),
/// without regard to symbolic links: `link/../x` is `x`.
fn path(name: &[u8]) -> Result<Vec<&[u8]>, Flaw> {
    if name.contains(&0) {
        return Err(Flaw::Nul);
    }
    if name.len() > MAX_PATH {
        return Err(Flaw::PathLength);
    }
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.iter().any(|part| part.len() > MAX_NAME) {
        return Err(Flaw::NameLength);
    }
    Ok(parts)
}

/// A symbolic link's target leads wherever it likes: it is the guest who follows it.
pub(super) fn symlink_target(target: &[u8]) -> Result<&[u8], Flaw> {
    match target {
        [] => Err(Flaw::Target),
        target if target.contains(&0) => Err(Flaw::Nul),
        target if target.len() > MAX_PATH => Err(Flaw::Target),
        target => Ok(target),
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
