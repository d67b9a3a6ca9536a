//! A tar as the place of an image's files: an index of it, so that they can be read in any order.
//!
//! The tar is looked through once, header by header, and read where the files are afterwards; so it must be a plain file. A compressed
//! one, and what comes through a pipe, is written to an unlinked file first (see `load`).
//!
//! Of a path that is there twice the last one counts, as for any reader of tars; but metadata that is there twice is refused: two readers
//! could see two images. Paths with `..`, names that aren't UTF-8 or too long, sparse files and special files are passed over. The number of entries and
//! the length of names are capped.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::decode::tar_checksum_fits;
use super::digest::shown;
use super::docker::DOCKER_MANIFEST;
use super::files::{ContentError, Files, Opened};
use super::layout::OCI_INDEX;

/// Most entries of an archive: two for each layer and some more are usual.
const MAX_ENTRIES: usize = 50_000;
/// Longest path that is kept, in bytes; with the number of entries it limits the memory for both to some 50 MiB.
const MAX_PATH_LEN: usize = 512;
/// Longest extended header, in bytes. Paths have 4096 at most.
const MAX_EXTENSION_LEN: u64 = 64 << 10;
/// Most links from one name to the next; podman and old docker save a layer that is there twice as a link.
const MAX_LINKS: usize = 8;
const BLOCK: usize = 512;

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

    fn io(&self, source: io::Error) -> ContentError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return self.bad("it is cut off");
        }
        ContentError::Io { name: self.name.clone(), source }
    }

    fn index(&mut self) -> Result<(), ContentError> {
        let end = self.file.metadata().map_err(|source| self.io(source))?.len();
        let mut at = 0;
        let mut extensions = Extensions::default();
        while at < end {
            let mut header = [0; BLOCK];
            self.file.read_exact_at(&mut header, at).map_err(|source| self.io(source))?;
            if header.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            if !tar_checksum_fits(&header) {
                let what = if at == 0 { "it is not a tar".into() } else { format!("no header at byte {at}") };
                return Err(self.bad(what));
            }
            let header = Header::parse(&header);
            let own_len = header.len.ok_or_else(|| self.bad(format!("no length at byte {at}")))?;
            let offset = at + BLOCK as u64;
            let is_extension = matches!(header.kind, b'x' | b'g' | b'L' | b'K');
            let len = if is_extension { own_len } else { extensions.len.unwrap_or(own_len) };
            let next = len.checked_next_multiple_of(BLOCK as u64).and_then(|len| len.checked_add(offset));
            // The last padding may be missing.
            let next = match next {
                Some(next) if offset + len <= end => next,
                _ => return Err(self.bad("it is cut off")),
            };
            if is_extension {
                if len > MAX_EXTENSION_LEN {
                    return Err(self.bad(format!("an extended header of {len} bytes at byte {at}")));
                }
                let mut text = vec![0; usize::try_from(len).expect("capped")];
                self.file.read_exact_at(&mut text, offset).map_err(|source| self.io(source))?;
                extensions.add(header.kind, &text);
            } else {
                self.add(&header, std::mem::take(&mut extensions), offset, len)?;
            }
            at = next;
        }
        Ok(())
    }

    fn add(
        &mut self,
        header: &Header,
        extensions: Extensions,
        offset: u64,
        len: u64,
    ) -> Result<(), ContentError> {
        let path = extensions.path.or_else(|| header.path()).and_then(|path| normal(&path));
        let Some(path) = path else { return Ok(()) };
        let link = || extensions.link.clone().or_else(|| text(&header.link));
        let entry = match header.kind {
            b'0' | 0 | b'7' if !extensions.sparse => Some(Entry::File { offset, len }),
            b'1' => link().and_then(|target| normal(&target)).map(Entry::Link),
            b'2' => {
                let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                link().and_then(|target| resolve(dir, &target)).map(Entry::Link)
            }
            _ => None,
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

/// What matters of a tar header (POSIX.1-2024, pax, "ustar Interchange Format").
struct Header {
    name: [u8; 100],
    prefix: [u8; 155],
    link: [u8; 100],
    kind: u8,
    /// `None` if it isn't a number.
    len: Option<u64>,
}

impl Header {
    fn parse(block: &[u8; BLOCK]) -> Self {
        fn field<const N: usize>(block: &[u8; BLOCK], at: usize) -> [u8; N] {
            *block[at..].first_chunk().expect("inside of the block")
        }
        // GNU's headers have other things where the prefix is.
        let is_posix = &block[257..263] == b"ustar\0";
        Self {
            name: field(block, 0),
            prefix: if is_posix { field(block, 345) } else { [0; 155] },
            link: field(block, 157),
            kind: block[156],
            len: number(&block[124..136]),
        }
    }

    fn path(&self) -> Option<String> {
        let name = text(&self.name)?;
        Some(match text(&self.prefix) {
            Some(prefix) if !prefix.is_empty() => format!("{prefix}/{name}"),
            _ => name,
        })
    }
}

/// Up to the first zero byte.
fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8(field[..end].to_vec()).ok()
}

/// Octal digits, or GNU's binary numbers.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        let bytes = std::iter::once(field[0] & 0x7f).chain(field[1..].iter().copied());
        return bytes
            .into_iter()
            .try_fold(0u64, |value, byte| Some(value.checked_mul(256)? + u64::from(byte)));
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// What the headers before an entry said of it.
#[derive(Default)]
struct Extensions {
    path: Option<String>,
    link: Option<String>,
    len: Option<u64>,
    sparse: bool,
}

impl Extensions {
    fn add(&mut self, kind: u8, bytes: &[u8]) {
        match kind {
            b'L' => self.path = text(bytes),
            b'K' => self.link = text(bytes),
            b'x' => self.add_pax(bytes),
            // What is said of all entries concerns none that matters here.
            _ => {}
        }
    }

    /// Records of `LENGTH KEY=VALUE\n`.
    fn add_pax(&mut self, mut bytes: &[u8]) {
        while let Some((len, _)) = bytes.iter().position(|byte| *byte == b' ').map(|at| bytes.split_at(at)) {
            let len = std::str::from_utf8(len).ok().and_then(|len| len.parse::<usize>().ok());
            let Some((record, rest)) = len.and_then(|len| bytes.split_at_checked(len)) else { return };
            let record = std::str::from_utf8(record).unwrap_or_default().trim_end_matches('\n');
            let record = record.split_once(' ').and_then(|(_, record)| record.split_once('='));
            match record {
                Some(("path", value)) => self.path = Some(value.into()),
                Some(("linkpath", value)) => self.link = Some(value.into()),
                Some(("size", value)) => self.len = value.parse().ok(),
                Some((key, _)) if key.starts_with("GNU.sparse.") => self.sparse = true,
                _ => {}
            }
            if record.is_none() && rest.len() == bytes.len() {
                return;
            }
            bytes = rest;
        }
    }
}

/// A path in the archive without `.` and empty parts; `None` if it leads out of it.
fn normal(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// Where a symbolic link in `dir` leads to; `None` if it leads out of the archive.
fn resolve(dir: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = if target.starts_with('/') { return None } else { dir.split('/').collect() };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().filter(|part| !part.is_empty())?),
            part => parts.push(part),
        }
    }
    normal(&parts.join("/"))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
