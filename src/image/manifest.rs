//! The JSON documents that lead to an image (OCI image-spec: descriptor.md, image-index.md,
//! manifest.md; Docker's image manifest V2, schema 2): only what bothy uses of them, and checked
//! where a lie could do harm.

use serde::Deserialize;
use thiserror::Error;

use super::descriptor::{Descriptor, is_index, is_manifest};
use super::digest::shown;
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
