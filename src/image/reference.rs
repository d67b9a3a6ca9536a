//! Names of images, `[REGISTRY/]NAME[:TAG][@DIGEST]`, completed as docker completes them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use super::digest::{Digest, DigestError, shown};

/// Longest repository, in bytes.
const MAX_REPOSITORY_LEN: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG_LEN: usize = 128;

/// Why a text names no image. Each says what was expected.
#[derive(Debug, Error)]
pub enum ReferenceError {
    /// Nothing.
    #[error("the name of an image is empty: expected [REGISTRY/]NAME[:TAG][@DIGEST]")]
    Empty,
    /// A bad part of a name.
    #[error("`{}` is not the name of an image: {what}", shown(text))]
    Name {
        /// The whole name.
        text: String,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// `oci:` and nothing else.
    #[error("`{}` names no path: expected {expected}", shown(text))]
    NoPath {
        /// What was given.
        text: String,
        /// What it should look like.
        expected: &'static str,
    },
    /// A transport of skopeo's that isn't ours.
    #[error("`{}:` is not read by bothy: expected oci:, oci-archive:, docker-archive:, dir:, a path, `-` or a name", shown(.0))]
    Transport(String),
    /// A path that can't be looked at.
    #[error("can't open {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A directory of neither kind.
    #[error("{} is neither an OCI image layout (no index.json) nor a root file system (no bin, etc or usr); dir:{0} takes it as it is", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
    },
    /// A file of neither kind.
    #[error("{} is not an image: expected a directory, or a tar by skopeo, docker save or podman save", path.display())]
    File {
        /// The path.
        path: PathBuf,
    },
}

/// The name of an image, complete: `docker.io/library/busybox:latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The registry: a host name or address, perhaps with a port.
    pub registry: String,
    /// The path in the registry.
    pub repository: String,
    /// At least one of tag and digest is there; the digest is what counts.
    pub tag: Option<String>,
    /// The manifest's, or an index's.
    pub digest: Option<Digest>,
}

impl ReferenceError {
    /// Whether the words are wrong, and not what they lead to.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Open { .. } | Self::Directory { .. } | Self::File { .. })
    }
}

impl Reference {
    /// As people write it: without what would be completed.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let mut short = full.as_str();
        if self.registry == "docker.io" {
            short = short.strip_prefix("docker.io/").unwrap_or(short);
            short = short.strip_prefix("library/").unwrap_or(short);
        }
        if self.digest.is_none() {
            short = short.strip_suffix(":latest").unwrap_or(short);
        }
        // Some would be taken for another name when they are shorter: `library/example.com/x`, 64
        // hexadecimal digits.
        let same = short.parse().is_ok_and(|name: Self| name == *self);
        if same { short.to_owned() } else { full }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let wrong = |what: String| ReferenceError::Name { text: text.into(), what };
        check_begin(text).map_err(wrong)?;
        let (name, digest) = match text.split_once('@') {
            Some((_, "")) => return Err(wrong("the digest behind @ is missing".into())),
            Some((name, digest)) => {
                let digest = digest.parse().map_err(|error: DigestError| wrong(error.to_string()))?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (registry, rest) = split_registry(name);
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        check_registry(registry).map_err(wrong)?;
        check_repository(path).map_err(wrong)?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(wrong)?;
        }
        // Docker's own images have no owner in their names.
        let owned = registry != "docker.io" || path.contains('/');
        let repository = if owned { path.into() } else { format!("library/{path}") };
        if digest.is_none() && !text.contains(['/', ':']) && is_image_id(text) {
            return Err(wrong(
                "64 hexadecimal digits are an image's own number; write sha256: before it".into(),
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".into()),
            (tag, _) => tag.map(Into::into),
        };
        Ok(Self { registry: registry.into(), repository, tag, digest })
    }
}

/// Refuses beginnings that people write by mistake.
fn check_begin(text: &str) -> Result<(), String> {
    for scheme in ["https://", "http://"] {
        if let Some(rest) = text.get(..scheme.len()).filter(|begin| begin.eq_ignore_ascii_case(scheme)) {
            let rest = shown(text[rest.len()..].trim_end_matches('/'));
            let insecure =
                if scheme == "http://" { ", and for plain HTTP add --insecure-registry" } else { "" };
            return Err(format!("leave out {scheme}: write {rest}{insecure}"));
        }
    }
    if text.starts_with(['/', '.']) {
        return Err("a name can't begin with . or /; to load a file use `bothy load`".into());
    }
    Ok(())
}

fn is_image_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Splits off a registry: what stands before the first slash, if it can't be the first part of a
/// repository.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => ("docker.io", rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => ("docker.io", name),
    }
}

fn check_registry(registry: &str) -> Result<(), String> {
    let expected = || format!("`{}` is not a registry: expected HOST or HOST:PORT", shown(registry));
    let (host, port) = match registry.strip_prefix('[') {
        // An IPv6 address.
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(expected)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| expected())?;
            match port {
                "" => return Ok(()),
                port => ("v6", Some(port.strip_prefix(':').ok_or_else(expected)?)),
            }
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label_fits = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if !host.split('.').all(label_fits) {
        return Err(expected());
    }
    // A sign would be taken by `parse`.
    let port_fits = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if port.is_some_and(|port| !port_fits(port)) {
        return Err(format!(
            "`{}` is not a port of a registry: expected 1 to 65535",
            shown(port.unwrap_or_default())
        ));
    }
    Ok(())
}

fn check_repository(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("the name before the tag or digest is missing".into());
    }
    if path.starts_with('/') || path.contains("//") {
        return Err("expected a single / between two parts of the name".into());
    }
    if path.ends_with('/') {
        return Err("expected no / at the end of the name".into());
    }
    if path.len() > MAX_REPOSITORY_LEN {
        return Err(format!("expected at most {MAX_REPOSITORY_LEN} characters before the tag"));
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("expected lower-case letters before the tag".into());
    }
    if path.split('/').all(part_fits) {
        return Ok(());
    }
    Err("expected letters, digits and single . _ - (or __ or several -) between them, in parts separated by /".into())
}

/// Runs of letters and digits, with separators between them: `.`, `_`, `__`, or any number of `-`.
fn part_fits(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends_fit = part.bytes().next().is_some_and(is_word) && part.bytes().last().is_some_and(is_word);
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends_fit
        && separators.into_iter().all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

fn check_tag(tag: &str) -> Result<(), String> {
    if tag.is_empty() {
        return Err("the tag behind the colon is missing: write one, or leave the colon out".into());
    }
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts_fit = tag.bytes().next().is_some_and(is_word);
    let fits = tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
    if starts_fit && fits && tag.len() <= MAX_TAG_LEN {
        return Ok(());
    }
    Err(format!("`{}` is not a tag: expected 1 to {MAX_TAG_LEN} letters, digits, . _ -", shown(tag)))
}

/// Whether a text can be a tag.
pub(super) fn is_tag(text: &str) -> bool {
    check_tag(text).is_ok()
}

/// The name of something that was loaded and has none of its own: `localhost/NAME:TAG`, with NAME
/// made of a file's name.
pub(super) fn local(path: &Path, tag: Option<&str>) -> Reference {
    let stem = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let stem = [".gz", ".zst", ".xz", ".bz2"]
        .iter()
        .find_map(|suffix| stem.strip_suffix(suffix).filter(|stem| stem.ends_with(".tar")))
        .unwrap_or(&stem);
    let stem = [".tgz", ".tzst", ".txz", ".tbz2", ".tbz", ".tar", ".oci"]
        .iter()
        .find_map(|suffix| stem.strip_suffix(suffix))
        .unwrap_or(stem);
    let kept =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' });
    let name: String = kept.take(100).collect();
    let name = name.trim_matches(['.', '_', '-']);
    let name = if part_fits(name) { name } else { "image" };
    let tag = tag.filter(|tag| is_tag(tag)).unwrap_or("latest");
    Reference { registry: "localhost".into(), repository: name.into(), tag: Some(tag.into()), digest: None }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
