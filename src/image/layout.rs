//! OCI image layouts (OCI image-spec, image-layout.md): from index.json to the image that was asked for, in a directory or in an archive.
//!
//! Every document is verified against its descriptor before it is parsed, so an index can't contain itself; how deep and to how many
//! documents they lead is capped all the same. What an index says about a platform decides which manifests are looked at; what the
//! configuration says decides whether the image runs here.

use super::config::{ImageConfig, RunConfig};
use super::digest::Digest;
use super::files::{ContentError, Files};
use super::manifest::{Descriptor, Document, DocumentError, Manifest, Platform, parse};
use super::reference::Reference;
use super::source::Which;

/// The list of images.
pub(super) const OCI_INDEX: &str = "index.json";
/// Deepest nesting of indexes; two levels are usual.
const MAX_DEPTH: usize = 5;
/// Most manifests and indexes that are looked at for one image.
const MAX_DOCUMENTS: usize = 200;

/// An image that can be loaded.
#[derive(Debug)]
pub(super) struct Found {
    /// The manifest's; docker's archives have none, so there it is the configuration's, which docker calls the image's ID.
    pub(super) digest: Digest,
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

/// The images of a layout: the one that was asked for, or every one.
pub(super) fn oci_images(
    files: &dyn Files,
    which: &Which,
    platform: &Platform,
) -> Result<Vec<Found>, ContentError> {
    let what = format!("{OCI_INDEX} in {}", files.name());
    let descriptors = match Document::parse(&files.read(OCI_INDEX)?, "", &what)? {
        Document::Index(descriptors) => descriptors,
        Document::Manifest(_) => return Err(DocumentError::Ambiguous(what).into()),
    };
    let groups = group(descriptors);
    if groups.is_empty() {
        return Err(ContentError::Empty(files.name().into()));
    }
    let chosen = choose(files, &groups, which)?;
    let (mut found, mut foreign) = (Vec::new(), None);
    for group in chosen {
        match Search::new(files, platform).image(group) {
            // Signatures have tags of their own, beside the images.
            Err(error @ ContentError::Document(DocumentError::Foreign { .. })) => foreign = Some(error),
            image => found.push(image?),
        }
    }
    match foreign {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// Manifests of one name belong together: they are one image for several platforms.
fn group(descriptors: Vec<Descriptor>) -> Vec<Vec<Descriptor>> {
    let mut groups: Vec<Vec<Descriptor>> = Vec::new();
    for descriptor in descriptors.into_iter().filter(|descriptor| !descriptor.is_about_another()) {
        let name = descriptor.names().next();
        match groups.iter_mut().find(|group| group[0].names().next() == name) {
            Some(group) => group.push(descriptor),
            None => groups.push(vec![descriptor]),
        }
    }
    groups
}

fn choose<'a>(
    files: &dyn Files,
    groups: &'a [Vec<Descriptor>],
    which: &Which,
) -> Result<Vec<&'a Vec<Descriptor>>, ContentError> {
    let (chosen, wanted): (Vec<_>, String) = match which {
        Which::All => return Ok(groups.iter().collect()),
        Which::Number(number) => (groups.get(*number).into_iter().collect(), format!("@{number}")),
        Which::Named(wanted) => {
            let full: Option<Reference> = wanted.parse().ok();
            let is_it = |name: &str| {
                name == wanted || (is_full_name(name) && full.is_some() && name.parse().ok() == full)
            };
            let found = groups.iter().find(|group| group.iter().flat_map(Descriptor::names).any(is_it));
            (found.into_iter().collect(), wanted.clone())
        }
    };
    if chosen.is_empty() {
        let there = groups.iter().filter_map(|group| group[0].names().next()).map(Into::into).collect();
        return Err(ContentError::NoSuch { name: files.name().into(), wanted, there });
    }
    Ok(chosen)
}

/// Tools write a tag or a whole name into one and the same annotation.
fn is_full_name(name: &str) -> bool {
    name.contains(['/', ':'])
}

/// An image that fits, and how well.
struct Candidate {
    distance: u8,
    digest: Digest,
    manifest: Manifest,
    config: ImageConfig,
}

/// The way through the indexes of one image.
struct Search<'a> {
    files: &'a dyn Files,
    platform: &'a Platform,
    documents: usize,
    best: Option<Candidate>,
    offered: Vec<Platform>,
    foreign: Option<DocumentError>,
}

impl<'a> Search<'a> {
    fn new(files: &'a dyn Files, platform: &'a Platform) -> Self {
        Self { files, platform, documents: 0, best: None, offered: Vec::new(), foreign: None }
    }

    fn image(mut self, group: &[Descriptor]) -> Result<Found, ContentError> {
        for descriptor in group {
            self.visit(descriptor, 0)?;
        }
        let name = self.files.name().to_owned();
        let Some(Candidate { digest, manifest, config, .. }) = self.best else {
            return Err(match self.foreign {
                Some(error) if self.offered.is_empty() => error.into(),
                _ => {
                    let mut offered = self.offered;
                    offered.sort_by_key(Platform::to_string);
                    offered.dedup();
                    ContentError::Platform { name, wanted: self.platform.clone(), offered }
                }
            });
        };
        config.check_layers(manifest.layers.len(), &format!("the image in {name}"))?;
        let layers = manifest.layers.into_iter().zip(config.rootfs.diff_ids);
        let layers = layers.map(|(layer, diff_id)| LayerSource {
            path: layer.digest.blob_path(),
            digest: Some(layer.digest),
            len: Some(layer.size),
            diff_id,
        });
        let names = group[0].names();
        let (full, tags): (Vec<&str>, Vec<&str>) = names.partition(|name| is_full_name(name));
        Ok(Found {
            digest,
            names: full.iter().filter_map(|name| name.parse().ok()).take(1).collect(),
            tag: tags.first().map(|tag| (*tag).to_owned()),
            created: config.created,
            config: config.config,
            layers: layers.collect(),
        })
    }

    fn visit(&mut self, descriptor: &Descriptor, depth: usize) -> Result<(), ContentError> {
        if descriptor.is_about_another() {
            return Ok(());
        }
        if let Some(offered) = &descriptor.platform
            && self.platform.distance(offered).is_none()
        {
            self.offered.push(offered.clone());
            return Ok(());
        }
        self.documents += 1;
        if depth > MAX_DEPTH || self.documents > MAX_DOCUMENTS {
            return Err(ContentError::TooMany { name: self.files.name().into() });
        }
        let bytes = self.files.document(descriptor)?;
        let what = descriptor.digest.blob_path();
        match Document::parse(&bytes, &descriptor.media_type, &what) {
            Ok(Document::Index(children)) => {
                children.iter().try_for_each(|child| self.visit(child, depth + 1))
            }
            Ok(Document::Manifest(manifest)) => self.consider(descriptor, manifest),
            // A signature or the like; there may be an image beside it.
            Err(error @ DocumentError::Foreign { .. }) => {
                self.foreign.get_or_insert(error);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn consider(&mut self, descriptor: &Descriptor, manifest: Manifest) -> Result<(), ContentError> {
        let bytes = self.files.document(&manifest.config)?;
        let config: ImageConfig = parse(&bytes, &manifest.config.digest.blob_path())?;
        let mut offered = config.platform();
        if let Some(platform) = &descriptor.platform {
            offered.variant.clone_from(&platform.variant);
        }
        let Some(distance) = self.platform.distance(&offered) else {
            self.offered.push(offered);
            return Ok(());
        };
        if self.best.as_ref().is_none_or(|best| distance < best.distance) {
            self.best = Some(Candidate { distance, digest: descriptor.digest.clone(), manifest, config });
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
