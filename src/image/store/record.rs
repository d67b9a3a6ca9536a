//! What the store writes down: a record for each image and for each name, as JSON. What can't be
//! read as one of them is damage by another's hand; the key in it never becomes a path unless it is
//! a key.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::rootfs::RootfsKey;
use crate::image::config::RunConfig;
use crate::image::descriptor::Platform;
use crate::image::digest::Digest;

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Of what there is of it.
    pub digest: Digest,
    /// And what that is.
    #[serde(default)]
    pub digest_of: DigestOf,
    /// What it runs on.
    pub platform: Platform,
    /// When it was made, in its maker's words (RFC 3339).
    pub created: Option<String>,
    /// What to run, and how.
    pub config: RunConfig,
    /// Of its layers, lowest first; none for a directory.
    pub diff_ids: Vec<Digest>,
    /// The name of its file system, 64 hexadecimal digits.
    #[serde(deserialize_with = "rootfs_key")]
    pub rootfs: String,
    /// Of indexes that have led to it in a registry, for this platform: who asks for one of them
    /// means this image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indexes: Vec<Digest>,
}

/// What an image's digest is the digest of. A text can be written that is a manifest as well as a
/// configuration, so they are kept apart: `NAME@DIGEST` means a manifest and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DigestOf {
    /// Its manifest.
    #[default]
    Manifest,
    /// Its configuration: docker's archives have no manifest.
    Config,
    /// A directory's fingerprint.
    Directory,
}

/// Tells an image from all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ImageId {
    pub(super) of: DigestOf,
    pub(super) digest: Digest,
}

impl ImageId {
    pub(super) fn manifest(digest: &Digest) -> Self {
        Self { of: DigestOf::Manifest, digest: digest.clone() }
    }

    pub(super) fn file_name(&self) -> String {
        let kind = match self.of {
            DigestOf::Manifest => "",
            DigestOf::Config => "config-",
            DigestOf::Directory => "dir-",
        };
        format!("{kind}{}-{}", self.digest.algorithm().name(), self.digest.hex())
    }

    pub(super) fn of_file_name(file_name: &str) -> Option<Self> {
        let (of, digest) = match file_name.split_once('-')? {
            ("config", digest) => (DigestOf::Config, digest),
            ("dir", digest) => (DigestOf::Directory, digest),
            _ => (DigestOf::Manifest, file_name),
        };
        Some(Self { of, digest: digest.replacen('-', ":", 1).parse().ok()? })
    }
}

fn rootfs_key<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    let key = RootfsKey::from_text(&text);
    key.map(|_| text).ok_or_else(|| D::Error::custom("the name of its file system is none"))
}

/// What is kept in memory of all images at once: not their configurations, which may be long.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    pub(super) digest: Digest,
    #[serde(default)]
    pub(super) digest_of: DigestOf,
    pub(super) created: Option<String>,
    #[serde(deserialize_with = "rootfs_key")]
    pub(super) rootfs: String,
    #[serde(default)]
    pub(super) indexes: Vec<Digest>,
}

impl Head {
    pub(super) fn id(&self) -> ImageId {
        ImageId { of: self.digest_of, digest: self.digest.clone() }
    }
}

impl Image {
    pub(super) fn id(&self) -> ImageId {
        ImageId { of: self.digest_of, digest: self.digest.clone() }
    }
}

/// A name, in the store.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Name {
    pub(super) name: String,
    pub(super) digest: Digest,
    #[serde(default)]
    pub(super) digest_of: DigestOf,
}

impl Name {
    pub(super) fn id(self) -> ImageId {
        ImageId { of: self.digest_of, digest: self.digest }
    }
}

pub(super) fn name_file_name(name: &str) -> String {
    Digest::of(name.as_bytes()).hex().into()
}
