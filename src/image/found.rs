//! What is known of an image before it is loaded.

use super::config::RunConfig;
use super::digest::Digest;
use super::reference::Reference;
use super::store::DigestOf;

/// An image that can be loaded.
#[derive(Debug)]
pub(super) struct Found {
    /// The manifest's; docker's archives have none, so there it is the configuration's, which
    /// docker calls the image's ID.
    pub(super) digest: Digest,
    pub(super) digest_of: DigestOf,
    /// The full names that it has where it was found.
    pub(super) names: Vec<Reference>,
    /// Or only a tag.
    pub(super) tag: Option<String>,
    pub(super) created: Option<String>,
    pub(super) config: RunConfig,
    /// Lowest first.
    pub(super) layers: Vec<LayerSource>,
}

/// Where a layer is, and what it should be.
#[derive(Debug)]
pub(super) struct LayerSource {
    pub(super) path: String,
    /// Of the blob, and its length, if there is a descriptor.
    pub(super) digest: Option<Digest>,
    pub(super) len: Option<u64>,
    pub(super) diff_id: Digest,
}
