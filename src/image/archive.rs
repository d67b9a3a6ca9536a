//! A tar as the place of an image's files: an index of it, so that they can be read in any order.
//!
//! The tar is looked through once, header by header, and read where the files are afterwards; so it
//! must be a plain file. A compressed one, and what comes through a pipe, is written to an unlinked
//! file first (see `load`).
//!
//! Of a path that is there twice the last one counts, as for any reader of tars; but metadata that
//! is there twice is refused: two readers could see two images. Headers are read as those of layers
//! are (`rootfs::tar`): broken ones are refused. Paths and links are cleaned within the archive, as
//! in docker: `..` stops at its root. Names that aren't UTF-8 or too long, sparse files and special
//! files are passed over. The number of entries and the length of names are capped.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::digest::shown;
use super::docker::DOCKER_MANIFEST;
use super::files::{ContentError, Files, Opened};
use super::layout::OCI_INDEX;
use super::rootfs::tar::{self, Reader, Skip, What};
use super::rootfs::{Flaw, Trouble};

/// Most entries of an archive: two for each layer and some more are usual.
const MAX_ENTRIES: usize = 50_000;
/// Longest path that is kept, in bytes; with the number of entries it limits the memory for both to
/// some 50 MiB.
const MAX_PATH_LEN: usize = 512;
/// Most links from one name to the next; podman and old docker save a layer that is there twice as
/// a link.
const MAX_LINKS: usize = 8;
/// Enough for some headers; what stands between them isn't read.
const BUFFER: usize = 4096;
/// Length of a header, in bytes.
const HEADER: u64 = 512;

#[derive(Debug)]
enum Entry {
    File { offset: u64, len: u64 },
    Link(String),
}

/// A tar, and where its files are.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    name: String,
    entries: HashMap<String, Entry>,
}

impl Archive {
    /// Looks through a tar. `name` is what errors call it.
    pub(super) fn open(file: File, name: String) -> Result<Self, ContentError> {
        let mut archive = Self { file, name, entries: HashMap::new() };
        archive.index()?;
        Ok(archive)
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    fn bad(&self, what: impl Into<String>) -> ContentError {
        ContentError::Tar { name: self.name.clone(), what: what.into() }
    }

    fn index(&mut self) -> Result<(), ContentError> {
        let file = self.file.try_clone().map_err(|source| self.io(source))?;
        let len = file.metadata().map_err(|source| self.io(source))?.len();
        let mut reader = Reader::with_buffer(Section { file: &file, at: 0, left: len }, len, BUFFER);
        loop {
            match reader.next() {
                Ok(Some(entry)) => self.add(entry, reader.position())?,
                Ok(None) => return Ok(()),
                Err(trouble) => return Err(self.blame(trouble, reader.position(), &reader.label())),
            }
            reader.pass().map_err(|trouble| self.blame(trouble, reader.position(), &reader.label()))?;
        }
    }

    fn io(&self, source: io::Error) -> ContentError {
        ContentError::Io { name: self.name.clone(), source }
    }

    /// Says what is wrong, and where.
    fn blame(&self, trouble: Trouble, at: u64, entry: &str) -> ContentError {
        match trouble {
            Trouble::Flaw(Flaw::Checksum) if at <= HEADER => self.bad("it is not a tar"),
            Trouble::Flaw(Flaw::Truncated | Flaw::Size) => {
                self.bad(format!("it is cut off at entry {entry}"))
            }
            Trouble::Flaw(flaw) => self.bad(format!("entry {entry}: {flaw}")),
            Trouble::Read(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                self.bad("it has become shorter")
            }
            Trouble::Read(source) => self.io(source),
            // Nothing is written.
            Trouble::Out(error) => self.bad(error.to_string()),
        }
    }

    fn add(&mut self, entry: tar::Entry, offset: u64) -> Result<(), ContentError> {
        let Some(path) = normal_bytes(&entry.name) else { return Ok(()) };
        let entry = match entry.what {
            What::File(len) => Some(Entry::File { offset, len }),
            What::HardLink(target) => normal_bytes(&target).map(Entry::Link),
            What::Symlink(target) => {
                let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                let from = if target.starts_with(b"/") { "" } else { dir };
                normal_bytes(&[from.as_bytes(), b"/", &target].concat()).map(Entry::Link)
            }
            What::Sparse(_) | What::Dir | What::Fifo | What::Device(..) => None,
        };
        let Some(entry) = entry else { return Ok(()) };
        if path.len() > MAX_PATH_LEN || matches!(&entry, Entry::Link(target) if target.len() > MAX_PATH_LEN) {
            return Ok(());
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(self.bad(format!("it has more than {MAX_ENTRIES} entries")));
        }
        let is_metadata = [DOCKER_MANIFEST, OCI_INDEX].contains(&path.as_str());
        let what = format!("{} is in it twice", shown(&path));
        if self.entries.insert(path, entry).is_some() && is_metadata {
            return Err(self.bad(what));
        }
        Ok(())
    }
}

impl Files for Archive {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, path: &str) -> Result<Option<Opened<'_>>, ContentError> {
        let Some(mut path) = normal(path) else { return Ok(None) };
        for _ in 0..MAX_LINKS {
            match self.entries.get(&path) {
                None => return Ok(None),
                Some(Entry::Link(target)) => path.clone_from(target),
                Some(&Entry::File { offset, len }) => {
                    let reader = Box::new(Section { file: &self.file, at: offset, left: len });
                    return Ok(Some(Opened { reader, len }));
                }
            }
        }
        Err(self.bad(format!("{} is a link to a link to a link, and so on", shown(&path))))
    }
}

/// A part of a file.
struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let wanted = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut out[..wanted], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        if n == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(n)
    }
}

impl Skip for Section<'_> {
    fn skip(&mut self, len: u64) {
        self.at = self.at.saturating_add(len);
        self.left = self.left.saturating_sub(len);
    }
}

fn normal_bytes(path: &[u8]) -> Option<String> {
    str::from_utf8(path).ok().and_then(normal)
}

/// A path in the archive, cleaned within it; `None` if it is the archive's root.
fn normal(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
