//! Descriptors, which point from one document to another or to a blob, and the platforms that stand
//! in them (OCI image-spec, descriptor.md, image-index.md).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::{Digest, DigestError, shown};

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

    /// How well `offered` fits, if it does; less is better. Without a variant, the one for the
    /// oldest processors is best.
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
