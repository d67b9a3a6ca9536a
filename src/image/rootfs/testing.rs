//! For tests: archives written by hand, images built from them, and both an EROFS reader of its own
//! and a directory's contents as the same list of nodes.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::{Built, Flaw, Layer, Limits, RootfsError, build};

/// An archive, made entry by entry.
#[derive(Clone, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A ustar header that `change` has the last word about, but for the checksum.
    pub(super) fn header(mut self, kind: u8, name: &[u8], size: u64, change: impl FnOnce(&mut [u8])) -> Self {
        let mut block = [0; 512];
        block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        let mode: &[u8] = if kind == b'5' { b"0000755\0" } else { b"0000644\0" };
        block[100..108].copy_from_slice(mode);
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(b"14000000000\0");
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self
    }

    /// Bytes, padded to whole blocks.
    pub(super) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, name: &str, data: &[u8]) -> Self {
        self.header(b'0', name.as_bytes(), data.len() as u64, |_| {}).data(data)
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.header(b'5', name.as_bytes(), 0, |_| {})
    }

    fn link(self, kind: u8, name: &str, target: &[u8]) -> Self {
        self.header(kind, name.as_bytes(), 0, |block| block[157..157 + target.len()].copy_from_slice(target))
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(b'2', name, target.as_bytes())
    }

    pub(super) fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(b'1', name, target.as_bytes())
    }

    pub(super) fn device(self, kind: u8, name: &str, major: u32, minor: u32) -> Self {
        self.header(kind, name.as_bytes(), 0, |block| {
            block[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
            block[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
        })
    }

    /// An extended header with these records.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
            body.extend_from_slice(format!("{len} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.header(b'x', b"pax", body.len() as u64, |_| {}).data(&body)
    }

    /// The two blocks at the end.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// An image that was built.
pub(super) struct Image {
    pub(super) file: NamedTempFile,
    pub(super) built: Built,
}

pub(super) const LIMITS: Limits = Limits { max_entries: 1_000_000, max_bytes: 1 << 36, max_disk: u64::MAX };

pub(super) fn build_with(layers: &[Vec<u8>], limits: &Limits) -> Result<Image, RootfsError> {
    let file = NamedTempFile::new().unwrap();
    let layers = layers.iter().enumerate().map(|(number, tar)| {
        Ok(Layer { name: format!("sha256:{number}"), tar: Box::new(tar.as_slice()) as Box<dyn io::Read> })
    });
    let built = build(layers, file.as_file(), limits)?;
    Ok(Image { file, built })
}

/// Builds an image, lowest layer first, and has fsck.erofs look at it.
pub(super) fn image(layers: &[Tar]) -> Image {
    let layers: Vec<_> = layers.iter().map(|tar| tar.clone().end()).collect();
    let image = build_with(&layers, &LIMITS).unwrap();
    image.fsck();
    image
}

/// What is wrong with the last entry of an archive.
pub(super) fn flaw(tar: Tar) -> Flaw {
    match build_with(&[tar.end()], &LIMITS).err().expect("refused") {
        RootfsError::Entry { flaw, .. } => flaw,
        other => panic!("{other}"),
    }
}

impl Image {
    /// The checker of erofs-utils finds nothing, with every file read.
    pub(super) fn fsck(&self) {
        // It recurses with a block per directory on its stack.
        let args = ["--stack=1073741824:1073741824", "fsck.erofs", "--extract"];
        let output = Command::new("prlimit").args(args).arg(self.file.path()).output();
        let output =
            output.expect("prlimit and fsck.erofs: install util-linux and erofs-utils (tests/packages.txt)");
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !said.contains("<E>"), "fsck.erofs: {said}");
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }

    pub(super) fn nodes(&self) -> Nodes {
        Reader::new(self.file.as_file()).nodes()
    }

    /// The names in it, `/` for the root left out.
    pub(super) fn names(&self) -> Vec<String> {
        self.nodes().into_keys().filter(|name| !name.is_empty()).collect()
    }

    /// Bytes on the disk.
    pub(super) fn disk(&self) -> u64 {
        self.file.as_file().metadata().unwrap().blocks() * 512
    }
}

/// By path, escaped; the root's is empty.
pub(super) type Nodes = BTreeMap<String, Node>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, i64),
    pub(super) links: u64,
    /// 0 for directories.
    pub(super) size: u64,
    /// A device's number as the kernel shows it to user space.
    pub(super) rdev: u64,
    /// A digest of a file's blocks that aren't zeros; a symbolic link's target.
    pub(super) content: String,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    /// The first name of the same inode.
    pub(super) first: String,
}

fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A digest over the blocks of a file that aren't zeros.
fn digest(size: u64, mut block: impl FnMut(u64, &mut [u8]) -> bool) -> String {
    let mut digest = Sha256::new();
    for number in 0..size.div_ceil(4096) {
        let mut bytes = [0; 4096];
        let len = usize::try_from((size - number * 4096).min(4096)).unwrap();
        if block(number, &mut bytes[..len]) && bytes != [0; 4096] {
            digest.update(number.to_le_bytes());
            digest.update(bytes);
        }
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads images by the format's description, sharing nothing with the writer.
struct Reader<'f> {
    file: &'f File,
    meta: u64,
}

impl<'f> Reader<'f> {
    fn new(file: &'f File) -> Self {
        let mut reader = Self { file, meta: 0 };
        assert_eq!(reader.number(1024, 4), 0xe0f5_e1e2);
        assert_eq!(reader.number(1024 + 36, 4) * 4096, file.metadata().unwrap().len());
        reader.meta = reader.number(1024 + 40, 4) * 4096;
        reader
    }

    fn bytes(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn number(&self, at: u64, len: u64) -> u64 {
        self.bytes(at, len).iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    fn nodes(&self) -> Nodes {
        let mut nodes = Nodes::new();
        let root = self.number(1024 + 14, 2);
        let mut first = HashMap::new();
        let mut todo = vec![(String::new(), root, root)];
        while let Some((path, nid, parent)) = todo.pop() {
            let (mut node, entries) = self.node(nid);
            first
                .entry(nid)
                .and_modify(|old: &mut String| *old = old.clone().min(path.clone()))
                .or_insert(path.clone());
            node.first = nid.to_string();
            for (name, child, kind) in entries {
                match name.as_slice() {
                    b"." => assert_eq!(child, nid),
                    b".." => assert_eq!(child, parent),
                    name => {
                        let type_bits = self.number(self.meta + child * 32 + 4, 2) >> 12;
                        let kinds = [(1, 8), (2, 4), (3, 2), (4, 6), (5, 1), (6, 12), (7, 10)];
                        assert!(kinds.contains(&(kind, type_bits)));
                        todo.push((format!("{path}/{}", escaped(name)), child, nid));
                    }
                }
            }
            assert!(nodes.insert(path, node).is_none(), "a name comes once");
        }
        for node in nodes.values_mut() {
            node.first = first[&node.first.parse().unwrap()].clone();
        }
        assert_eq!(self.number(1024 + 16, 8), first.len() as u64, "the number of inodes");
        nodes
    }

    fn node(&self, nid: u64) -> (Node, Vec<(Vec<u8>, u64, u64)>) {
        let at = self.meta + nid * 32;
        let field = |offset, len| self.number(at + offset, len);
        let (format, icount) = (field(0, 2), field(2, 2));
        assert_eq!(format & 1, 1, "an extended inode");
        let mode = u32::try_from(field(4, 2)).unwrap();
        let size = field(8, 8);
        let xattr_len = if icount == 0 { 0 } else { 12 + (icount - 1) * 4 };
        let beside = at + 64 + xattr_len;
        let address = field(16, 4);
        let block = |number: u64, bytes: &mut [u8]| {
            let from = match format >> 1 {
                2 if number == size / 4096 => {
                    assert_eq!(
                        beside / 4096,
                        (beside + bytes.len() as u64 - 1) / 4096,
                        "a tail is in one block"
                    );
                    beside
                }
                0 | 2 => (address + number) * 4096,
                4 => {
                    let bits = address & 0x1f;
                    match self.number(beside + (number >> bits) * 4, 4) {
                        0xffff_ffff => return false,
                        chunk => (chunk + (number & ((1 << bits) - 1))) * 4096,
                    }
                }
                other => panic!("layout {other}"),
            };
            bytes.copy_from_slice(&self.bytes(from, bytes.len() as u64));
            true
        };
        let all = || {
            let mut all = vec![0; usize::try_from(size).unwrap()];
            for (number, bytes) in all.chunks_mut(4096).enumerate() {
                block(number as u64, bytes);
            }
            all
        };
        let kind = mode & 0o170_000;
        let mut node = Node {
            mode,
            uid: u32::try_from(field(24, 4)).unwrap(),
            gid: u32::try_from(field(28, 4)).unwrap(),
            mtime: (field(32, 8).cast_signed(), field(40, 4).cast_signed()),
            links: field(44, 4),
            size,
            rdev: 0,
            content: String::new(),
            xattrs: self.xattrs(at + 64, xattr_len),
            first: String::new(),
        };
        let mut entries = Vec::new();
        match kind {
            0o100_000 => node.content = digest(size, block),
            0o120_000 => node.content = escaped(&all()),
            0o040_000 => {
                node.size = 0;
                entries = Self::entries(&all());
                assert!(entries.is_sorted(), "names are in order");
            }
            0o020_000 | 0o060_000 => {
                let (major, minor) = (address >> 8 & 0xfff, address & 0xff | address >> 12 & 0xf_ff00);
                node.rdev = rustix::fs::makedev(u32::try_from(major).unwrap(), u32::try_from(minor).unwrap());
            }
            _ => {}
        }
        (node, entries)
    }

    fn entries(all: &[u8]) -> Vec<(Vec<u8>, u64, u64)> {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let mut entries = Vec::new();
        for block in all.chunks(4096) {
            let offset =
                |entry: usize| usize::try_from(number(&block[entry * 12 + 8..entry * 12 + 10])).unwrap();
            let count = offset(0) / 12;
            for entry in 0..count {
                let end = if entry + 1 < count { offset(entry + 1) } else { block.len() };
                let name = block[offset(entry)..end].split(|byte| *byte == 0).next().unwrap();
                assert!(!name.is_empty());
                let nid = number(&block[entry * 12..entry * 12 + 8]);
                entries.push((name.to_vec(), nid, u64::from(block[entry * 12 + 10])));
            }
        }
        entries
    }

    fn xattrs(&self, at: u64, len: u64) -> BTreeMap<String, Vec<u8>> {
        let mut xattrs = BTreeMap::new();
        let bytes = self.bytes(at, len);
        let mut at = 12;
        while at < bytes.len() {
            let name_end = at + 4 + usize::from(bytes[at]);
            let value_end = name_end + usize::from(u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]));
            let prefix = match bytes[at + 1] {
                1 => "user.",
                2 => "system.posix_acl_access",
                3 => "system.posix_acl_default",
                4 => "trusted.",
                6 => "security.",
                other => panic!("xattr prefix {other}"),
            };
            let name = format!("{prefix}{}", escaped(&bytes[at + 4..name_end]));
            xattrs.insert(name, bytes[name_end..value_end].to_vec());
            at = value_end.next_multiple_of(4);
        }
        xattrs
    }
}

/// What is in a directory of this machine.
pub(super) fn host_nodes(root: &Path) -> Nodes {
    let mut nodes = Nodes::new();
    let mut first = HashMap::new();
    let mut todo = vec![(String::new(), root.to_path_buf())];
    while let Some((name, path)) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let id = (meta.dev(), meta.ino());
        first
            .entry(id)
            .and_modify(|old: &mut String| *old = old.clone().min(name.clone()))
            .or_insert(name.clone());
        let content = match meta.mode() & 0o170_000 {
            0o100_000 => {
                let file = File::open(&path).unwrap();
                digest(meta.size(), |number, bytes| file.read_exact_at(bytes, number * 4096).is_ok())
            }
            0o120_000 => escaped(std::fs::read_link(&path).unwrap().as_os_str().as_bytes()),
            0o040_000 => {
                for entry in std::fs::read_dir(&path).unwrap() {
                    let entry = entry.unwrap();
                    todo.push((format!("{name}/{}", escaped(entry.file_name().as_bytes())), entry.path()));
                }
                String::new()
            }
            _ => String::new(),
        };
        let node = Node {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            links: meta.nlink(),
            size: if meta.is_dir() { 0 } else { meta.size() },
            rdev: meta.rdev(),
            content,
            xattrs: host_xattrs(&path),
            first: format!("{id:?}"),
        };
        nodes.insert(name, node);
    }
    let first: HashMap<String, String> =
        first.into_iter().map(|(id, name)| (format!("{id:?}"), name)).collect();
    for node in nodes.values_mut() {
        node.first = first[&node.first].clone();
    }
    nodes
}

fn host_xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
        value[..len].to_vec()
    };
    names.map(|name| (escaped(name), value(name))).collect()
}

/// Fails with the first differences.
pub(super) fn assert_same(image: &Nodes, host: &Nodes) {
    let names = |nodes: &Nodes| nodes.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(image), names(host));
    for (name, node) in image {
        assert_eq!(node, &host[name], "{name}");
    }
}

/// Says so past the capture of the test harness.
pub(super) fn could_not_run(test: &str, reason: &str) {
    writeln!(io::stderr(), "COULD NOT RUN: {test}: {reason}").unwrap();
}
