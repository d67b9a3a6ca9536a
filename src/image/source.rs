//! Where images come from, as people write it.
//!
//! | written | meaning |
//! |---|---|
//! | `oci:DIR[:TAG]` | an OCI image layout in a directory |
//! | `oci-archive:FILE[:TAG]` | the same in a tar |
//! | `docker-archive:FILE[:REF]` | what `docker save` and `podman save` write; `:@N` is its Nth image, from 0 |
//! | `dir:DIR` | a root file system |
//! | `-` | an archive of either kind on standard input |
//! | `[REGISTRY/]NAME[:TAG][@DIGEST]`, also with `docker://` before it | a name, completed as docker completes names |
//! | a path that exists | whatever it is seen to be |
//!
//! The first colon after the path ends it, as in skopeo. Something that exists in the working
//! directory wins over a name only if it is recognised: a directory `debian` full of packaging
//! files is no image, so `debian` stays a name. A word with the suffix of an archive (`app.tar.gz`)
//! is always a path; write `docker://app.tar.gz` for an image of that name. To be run, a path has a
//! slash in it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::decode::{Compression, MAGIC_LEN, is_tar};
use super::reference::{Reference, ReferenceError};

/// Which image of several in an archive or a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All that there are.
    All,
    /// The one with this tag or name.
    Named(String),
    /// The Nth, from 0.
    Number(usize),
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An OCI image layout.
    Layout {
        /// Its directory.
        dir: PathBuf,
        /// Which of its images.
        which: Which,
    },
    /// An archive file.
    Archive {
        /// The tar, perhaps compressed.
        file: PathBuf,
        /// What to read in it.
        kind: ArchiveKind,
        /// Which of its images.
        which: Which,
    },
    /// An archive on standard input.
    Stdin,
    /// A root file system.
    Dir(PathBuf),
    /// A name: in the store, or in a registry.
    Name(Reference),
}

/// The kinds of archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveKind {
    /// Whichever it is. What has both (docker since version 25) is read as docker's: its index.json
    /// was wrong in some versions.
    Any,
    /// An OCI image layout.
    Oci,
    /// With docker's manifest.json.
    Docker,
}

impl FromStr for Source {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text, true)
    }
}

impl Source {
    /// What a word means to somebody who wants to run it: without a slash it is a name, even if
    /// there is a file of that name.
    pub fn to_run(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text, text.contains('/'))
    }

    fn parse(text: &str, may_be_path: bool) -> Result<Self, ReferenceError> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if let Some((transport, rest)) = text.split_once(':') {
            let no_path = |expected| ReferenceError::NoPath { text: text.into(), expected };
            let path_and_which = |expected| {
                let (path, which) = split_which(rest);
                if path.is_empty() { Err(no_path(expected)) } else { Ok((PathBuf::from(path), which)) }
            };
            match transport {
                "oci" => {
                    let (dir, which) = path_and_which("oci:DIR[:TAG]")?;
                    return Ok(Self::Layout { dir, which });
                }
                "oci-archive" => {
                    let (file, which) = path_and_which("oci-archive:FILE[:TAG]")?;
                    return Ok(Self::Archive { file, kind: ArchiveKind::Oci, which });
                }
                "docker-archive" => {
                    let (file, which) = path_and_which("docker-archive:FILE[:REF]")?;
                    return Ok(Self::Archive { file, kind: ArchiveKind::Docker, which });
                }
                "dir" if rest.is_empty() => return Err(no_path("dir:DIR")),
                "dir" => return Ok(Self::Dir(rest.into())),
                "docker" if rest.starts_with("//") => return rest[2..].parse().map(Self::Name),
                "containers-storage" | "docker-daemon" | "sif" | "ostree" | "tarball" => {
                    return Err(ReferenceError::Transport(transport.into()));
                }
                _ => {}
            }
        }
        let path = Path::new(text);
        let is_path = text.starts_with(['/', '.']) || text.ends_with('/') || has_archive_suffix(text);
        if may_be_path && is_path {
            return recognise(path);
        }
        if may_be_path
            && path.exists()
            && let Ok(source) = recognise(path)
        {
            return Ok(source);
        }
        text.parse().map(Self::Name)
    }
}

fn has_archive_suffix(text: &str) -> bool {
    let suffixes = ["", ".gz", ".zst", ".xz", ".bz2"].map(|compressed| format!(".tar{compressed}"));
    let short = [".tgz", ".tzst", ".txz", ".tbz2", ".tbz"];
    suffixes.iter().map(String::as_str).chain(short).any(|suffix| {
        let at = text.len().saturating_sub(suffix.len());
        text.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
    })
}

/// `PATH[:TAG]`, `PATH[:@N]`.
fn split_which(text: &str) -> (&str, Which) {
    match text.split_once(':') {
        None | Some((_, "")) => (text.trim_end_matches(':'), Which::All),
        Some((path, which)) => {
            let number = which.strip_prefix('@').and_then(|number| number.parse().ok());
            (path, number.map_or_else(|| Which::Named(which.into()), Which::Number))
        }
    }
}

/// Says what a path is by what is in it.
fn recognise(path: &Path) -> Result<Source, ReferenceError> {
    let open_error = |source| ReferenceError::Open { path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(open_error)?;
    if metadata.is_dir() {
        if path.join("index.json").is_file() {
            return Ok(Source::Layout { dir: path.into(), which: Which::All });
        }
        let is_root = ["bin", "etc", "usr"].iter().any(|name| path.join(name).symlink_metadata().is_ok());
        return if is_root {
            Ok(Source::Dir(path.into()))
        } else {
            Err(ReferenceError::Directory { path: path.into() })
        };
    }
    if !metadata.is_file() {
        return Err(ReferenceError::File { path: path.into() });
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(open_error)?;
    file.take(MAGIC_LEN as u64).read_to_end(&mut start).map_err(open_error)?;
    let is_archive = match Compression::of(&start) {
        Compression::None => is_tar(&start),
        _ => true,
    };
    if is_archive {
        return Ok(Source::Archive { file: path.into(), kind: ArchiveKind::Any, which: Which::All });
    }
    Err(ReferenceError::File { path: path.into() })
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
