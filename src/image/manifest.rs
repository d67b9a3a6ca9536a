//! The JSON documents that lead to an image (OCI image-spec: descriptor.md, image-index.md, manifest.md; Docker's image manifest V2, schema 2):
//! only what bothy uses of them, and checked where a lie could do harm.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::digest::{Digest, DigestError, shown};
use super::index::Index;
use super::json::{self, Field};

/// Longest document, in bytes; the specification asks for at least this much (manifest.md).
pub(super) const MAX_DOCUMENT_LEN: u64 = 4 << 20;
/// Most layers of an image; docker has 127 at most.
pub(super) const MAX_LAYERS: usize = 1000;

/// What is wrong with a document.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// Not the JSON that it should be.
    #[error("{what} is malformed: {}", shown(why))]
    Json {
        /// Which document.
        what: String,
        /// How, and where. It may quote the document.
        why: String,
    },
    /// Both index and manifest, or neither: readers would differ about what it is (CVE-2021-41190).
    #[error("{0} is neither a clear image manifest nor a clear index")]
    Ambiguous(String),
    /// Docker's image manifest of 2013.
    #[error(
        "{0} is a docker manifest of schema 1, which is not supported: push or save the image again with a newer tool"
    )]
    Schema1(String),
    /// A manifest of something else.
    #[error("{what} is not an image: its {part} has the media type {}", shown(media_type))]
    Foreign {
        /// Which document.
        what: String,
        /// Configuration or layer.
        part: &'static str,
        /// Its media type.
        media_type: String,
    },
    /// The manifest and the configuration differ about the number of layers.
    #[error("{what} has {layers} layers, and its configuration names {diff_ids}")]
    LayerCount {
        /// Which document.
        what: String,
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// Too many layers.
    #[error("{0} has more than {MAX_LAYERS} layers")]
    Layers(String),
}

/// Parses a document that errors call `what`.
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, DocumentError> {
    json::from_slice(bytes).map_err(|error| DocumentError::Json { what: what.into(), why: error.to_string() })
}

/// Points to a blob.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Entry")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// `None` if it says nothing of use.
    pub(super) platform: Option<Platform>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// A descriptor as it stands in a document.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Entry {
    pub(super) media_type: String,
    pub(super) digest: String,
    size: Option<i64>,
    platform: Stated,
    annotations: BTreeMap<String, String>,
}

/// A platform as it stands in a document.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stated {
    os: String,
    architecture: String,
    variant: String,
}

impl TryFrom<Entry> for Descriptor {
    type Error = String;

    /// The error says what is wrong with it.
    fn try_from(entry: Entry) -> Result<Self, String> {
        if entry.digest.is_empty() {
            return Err("a descriptor has no digest".into());
        }
        let digest: Digest = entry.digest.parse().map_err(|error: DigestError| error.to_string())?;
        let size = entry.size.ok_or_else(|| format!("the size of {digest} is missing"))?;
        let size = u64::try_from(size).map_err(|_| format!("the size of {digest} is {size}"))?;
        let Stated { os, architecture, variant } = entry.platform;
        let platform = Platform::stated(&os, &architecture, &variant);
        let Entry { media_type, annotations, .. } = entry;
        Ok(Self { media_type, digest, size, platform, annotations })
    }
}

impl Entry {
    /// Signatures, attestations and the like, that stand beside the images in an index.
    pub(super) fn is_about_another(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type") || self.platform.os == "unknown"
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        names(&self.annotations)
    }
}

impl Descriptor {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        names(&self.annotations)
    }
}

/// The names that tools give an image in a layout's index: containerd's full one first, then the
/// specification's.
fn names(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = &str> {
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .into_iter()
        .filter_map(|key| annotations.get(key).map(String::as_str))
}

/// For which machine an image is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// As Go calls it: `amd64`.
    pub architecture: String,
    /// `v2`, `v3`...: the processors that are new enough.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// What a guest of bothy's is.
    pub fn native() -> Self {
        Self { os: "linux".into(), architecture: "amd64".into(), variant: String::new() }
    }

    /// Normalises names: some programs write `x86_64` for `amd64`. A missing system is Linux.
    /// `None` if there is no architecture, and no other system either.
    pub(super) fn stated(os: &str, architecture: &str, variant: &str) -> Option<Self> {
        let [os, mut architecture, mut variant] = [os, architecture, variant].map(str::to_ascii_lowercase);
        let os = match os.as_str() {
            "" => "linux".into(),
            "macos" => "darwin".into(),
            _ => os,
        };
        // As containerd and docker do (containerd's package platforms).
        let known = match (architecture.as_str(), variant.as_str()) {
            ("", _) if os == "linux" => return None,
            ("x86_64" | "x86-64" | "amd64", "v1") => Some(("amd64", "")),
            ("x86_64" | "x86-64", variant) => Some(("amd64", variant)),
            ("i386", _) => Some(("386", "")),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => Some(("arm64", "")),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => Some(("arm64", "v9")),
            ("aarch64", variant) => Some(("arm64", variant)),
            ("armhf", _) | ("arm", "" | "7") => Some(("arm", "v7")),
            ("armel", _) | ("arm", "6") => Some(("arm", "v6")),
            ("arm", "5") => Some(("arm", "v5")),
            ("arm", "8") => Some(("arm", "v8")),
            _ => None,
        };
        if let Some((known, of_variant)) = known {
            (architecture, variant) = (known.to_owned(), of_variant.to_owned());
        }
        Some(Self { os, architecture, variant })
    }

    /// Whether bothy's guests can run its programs.
    pub fn runs_here(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }

    /// How well `offered` fits, if it does; less is better. Without a variant, the one for the oldest processors is best.
    pub(super) fn distance(&self, offered: &Platform) -> Option<u8> {
        if (&self.os, &self.architecture) != (&offered.os, &offered.architecture) {
            return None;
        }
        match (self.variant.as_str(), offered.variant.as_str()) {
            (wanted, offered) if wanted == offered => Some(0),
            ("", "v2") => Some(1),
            ("", _) => Some(2),
            (_, "") => Some(3),
            _ => None,
        }
    }

    /// The same for an image that may not name a platform. Such an image fits worst, but fits, as
    /// with docker.
    pub(super) fn distance_to(&self, offered: Option<&Platform>) -> Option<u8> {
        offered.map_or(Some(4), |offered| self.distance(offered))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let architecture = if self.architecture.is_empty() { "unknown" } else { &self.architecture };
        write!(f, "{}/{}", shown(&self.os), shown(architecture))?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", shown(&self.variant)) }
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let fits = parts.iter().all(|part| !part.is_empty() && part.bytes().all(is_part));
        let platform = match parts[..] {
            [os, architecture] if fits => Self::stated(os, architecture, ""),
            [os, architecture, variant] if fits => Self::stated(os, architecture, variant),
            _ => None,
        };
        platform.ok_or_else(|| {
            format!("`{}` is not a platform: expected OS/ARCHITECTURE, like linux/amd64", shown(text))
        })
    }
}

/// An image's manifest.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// What a descriptor in an index may point to.
#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// What the documents have, in order to tell them apart.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Shape {
    schema_version: u64,
    media_type: String,
    manifests: Field<Index>,
    config: Field<Descriptor>,
    layers: Field<Vec<Descriptor>>,
}

impl Document {
    /// Tells an index from a manifest by what is in it, and insists that its own media type and
    /// `announced`, its descriptor's, agree. A null list is empty, and does not count where another
    /// field decides.
    pub(super) fn parse(bytes: &[u8], announced: &str, what: &str) -> Result<Self, DocumentError> {
        let shape: Shape = parse(bytes, what)?;
        if shape.schema_version == 1 {
            return Err(DocumentError::Schema1(what.into()));
        }
        let may_be = |is: fn(&str) -> bool| {
            [announced, shape.media_type.as_str()].iter().all(|kind| kind.is_empty() || is(kind))
        };
        let manifest = |config, layers| {
            let manifest = Manifest { config, layers };
            manifest.check(what)?;
            Ok(Self::Manifest(manifest))
        };
        use Field::{Absent, Null, Value};
        match (shape.manifests, shape.config, shape.layers) {
            (Value(manifests), Absent | Null, Absent | Null) if may_be(is_index) => {
                Ok(Self::Index(manifests))
            }
            (Null, Absent, Absent) if may_be(is_index) => Ok(Self::Index(Index::default())),
            (Absent | Null, Value(config), Value(layers)) if may_be(is_manifest) => manifest(config, layers),
            (Absent | Null, Value(config), Absent | Null) if may_be(is_manifest) => {
                manifest(config, Vec::new())
            }
            _ => Err(DocumentError::Ambiguous(what.into())),
        }
    }
}

/// Whether a media type is an index's.
pub(super) fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

/// Whether a media type is a manifest's.
pub(super) fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

impl Manifest {
    /// The media types must be those of an image: many other things have manifests, too.
    fn check(&self, what: &str) -> Result<(), DocumentError> {
        let foreign = |part, media_type: &str| {
            let media_type = media_type.to_owned();
            Err(DocumentError::Foreign { what: what.into(), part, media_type })
        };
        if self.layers.len() > MAX_LAYERS {
            return Err(DocumentError::Layers(what.into()));
        }
        let config = self.config.media_type.as_str();
        if !matches!(
            config,
            "" | "application/vnd.oci.image.config.v1+json"
                | "application/vnd.docker.container.image.v1+json"
        ) {
            return foreign("configuration", config);
        }
        match self.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
            Some(layer) => foreign("layer", &layer.media_type),
            None => Ok(()),
        }
    }
}

/// A tar, perhaps compressed. How, the blob itself says.
fn is_layer(media_type: &str) -> bool {
    let oci =
        ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];
    let docker = [
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let plain = media_type.split('+').next().unwrap_or_default();
    let plain = plain.strip_suffix(".gzip").or_else(|| plain.strip_suffix(".zstd")).unwrap_or(plain);
    let encrypted = media_type.ends_with("+encrypted");
    media_type.is_empty() || (!encrypted && oci.iter().chain(&docker).any(|kind| *kind == plain))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
