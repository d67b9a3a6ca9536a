//! OCI image layouts (OCI image-spec, image-layout.md): from index.json to the image that was asked for, in a directory or in an archive.
//!
//! Every document is verified against its descriptor before it is parsed, so an index can't contain itself; how deep they lead is capped
//! all the same, and to how many documents those of a whole load do (see `budget`). What an index says about a platform
//! decides which manifests are looked at; what the configuration says decides whether the image runs here. An image about
//! which neither says anything is taken for one of this platform if there is no other.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::budget::Budget;
use super::config::{ImageConfig, RunConfig};
use super::digest::Digest;
use super::files::{ContentError, Files};
use super::manifest::{Descriptor, Document, DocumentError, Manifest, Platform, parse};
use super::reference::{Reference, is_tag};
use super::source::Which;
use super::store::DigestOf;

/// The list of images.
pub(super) const OCI_INDEX: &str = "index.json";
/// Says which version of the specification the layout follows.
const OCI_LAYOUT: &str = "oci-layout";
/// Deepest nesting of indexes; two levels are usual.
const MAX_DEPTH: usize = 5;
/// Most platforms that an error can name.
const MAX_OFFERED: usize = 50;

/// An image that can be loaded.
#[derive(Debug)]
pub(super) struct Found {
    /// The manifest's; docker's archives have none, so there it is the configuration's, which docker calls the image's ID.
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

/// The images of a layout: the one that was asked for, or every one.
pub(super) fn oci_images(
    files: &dyn Files,
    which: &Which,
    platform: &Platform,
) -> Result<Vec<Found>, ContentError> {
    check_version(files)?;
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
    let mut budget = Budget::new(files.name());
    budget.images(chosen.len())?;
    let (mut found, mut foreign, mut offered) = (Vec::new(), None, Offered::default());
    for group in chosen {
        match Search::new(files, platform, &mut budget).image(group) {
            // Signatures have tags of their own, beside the images.
            Err(error @ ContentError::Document(DocumentError::Foreign { .. })) => foreign = Some(error),
            // Nobody has asked for this one.
            Err(ContentError::Platform { offered: others, .. }) if group[0].names().next().is_none() => {
                others.into_iter().for_each(|platform| offered.add(platform));
            }
            image => found.push(image?),
        }
    }
    match foreign {
        _ if !found.is_empty() => Ok(found),
        Some(error) if offered.0.is_empty() => Err(error),
        _ => Err(offered.error(files, platform)),
    }
}

/// The image behind one descriptor, for this platform.
pub(super) fn find_image(
    files: &dyn Files,
    platform: &Platform,
    descriptor: &Descriptor,
) -> Result<Found, ContentError> {
    let mut budget = Budget::new(files.name());
    Search::new(files, platform, &mut budget).image(std::slice::from_ref(descriptor))
}

/// Whoever changes what the other files mean writes another number here. Some tools leave the file out.
fn check_version(files: &dyn Files) -> Result<(), ContentError> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Layout {
        image_layout_version: String,
    }
    if files.open(OCI_LAYOUT)?.is_none() {
        return Ok(());
    }
    let what = format!("{OCI_LAYOUT} in {}", files.name());
    let Layout { image_layout_version: version } = parse(&files.read(OCI_LAYOUT)?, &what)?;
    if version.starts_with("1.") {
        return Ok(());
    }
    if version.is_empty() {
        return Err(DocumentError::Json { what, why: "its version is missing".into() }.into());
    }
    Err(ContentError::Version { name: files.name().into(), version })
}

/// Manifests of one name belong together: they are one image for several platforms. So do those without a name as far as each says that
/// it is for another platform; otherwise each is an image.
fn group(descriptors: Vec<Descriptor>) -> Vec<Vec<Descriptor>> {
    #[derive(PartialEq, Eq, Hash)]
    enum Key {
        Name(String),
        /// One of so many for the same platform.
        Unnamed(usize),
    }
    let mut groups: Vec<Vec<Descriptor>> = Vec::new();
    let (mut places, mut unnamed, mut of_platform) = (HashMap::new(), HashSet::new(), HashMap::new());
    for descriptor in descriptors.into_iter().filter(|descriptor| !descriptor.is_about_another()) {
        let key = match (descriptor.names().next(), &descriptor.platform) {
            (Some(name), _) => Some(Key::Name(name.into())),
            (None, _) if !unnamed.insert(descriptor.digest.clone()) => continue,
            (None, Some(platform)) => {
                let number = of_platform.entry(platform.clone()).or_insert(0);
                *number += 1;
                Some(Key::Unnamed(*number))
            }
            (None, None) => None,
        };
        let place = key.map_or(groups.len(), |key| *places.entry(key).or_insert(groups.len()));
        if place == groups.len() {
            groups.push(Vec::new());
        }
        groups[place].push(descriptor);
    }
    groups
}

/// The platforms that there are images for, as many as anybody reads.
#[derive(Default)]
struct Offered(Vec<Platform>);

impl Offered {
    fn add(&mut self, platform: Platform) {
        if self.0.len() < MAX_OFFERED && !self.0.contains(&platform) {
            self.0.push(platform);
        }
    }

    fn error(mut self, files: &dyn Files, wanted: &Platform) -> ContentError {
        self.0.sort_by_key(Platform::to_string);
        ContentError::Platform { name: files.name().into(), wanted: wanted.clone(), offered: self.0 }
    }
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
struct Search<'a, 'b> {
    files: &'a dyn Files,
    platform: &'a Platform,
    budget: &'a mut Budget<'b>,
    best: Option<Candidate>,
    offered: Offered,
    foreign: Option<DocumentError>,
}

impl<'a, 'b> Search<'a, 'b> {
    fn new(files: &'a dyn Files, platform: &'a Platform, budget: &'a mut Budget<'b>) -> Self {
        Self { files, platform, budget, best: None, offered: Offered::default(), foreign: None }
    }

    fn image(mut self, group: &[Descriptor]) -> Result<Found, ContentError> {
        for descriptor in group {
            self.visit(descriptor, 0)?;
        }
        let name = self.files.name().to_owned();
        let Some(Candidate { digest, manifest, config, .. }) = self.best else {
            return Err(match self.foreign {
                Some(error) if self.offered.0.is_empty() => error.into(),
                _ => self.offered.error(self.files, self.platform),
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
            digest_of: DigestOf::Manifest,
            names: full.iter().filter_map(|name| name.parse().ok()).take(1).collect(),
            tag: tags.into_iter().find(|tag| is_tag(tag)).map(str::to_owned),
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
            self.offered.add(offered.clone());
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return Err(ContentError::TooMany { name: self.files.name().into() });
        }
        let bytes = self.document(descriptor)?;
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

    fn document(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>, ContentError> {
        let bytes = self.files.document(descriptor)?;
        self.budget.spend(bytes.len() as u64)?;
        Ok(bytes)
    }

    fn consider(&mut self, descriptor: &Descriptor, manifest: Manifest) -> Result<(), ContentError> {
        let bytes = self.document(&manifest.config)?;
        let config: ImageConfig = parse(&bytes, &manifest.config.digest.blob_path())?;
        let offered = match (config.platform(), &descriptor.platform) {
            (Some(own), Some(stated)) => Some(Platform { variant: stated.variant.clone(), ..own }),
            (Some(own), None) => Some(own),
            // The index says what the configuration leaves out.
            (None, stated) => stated.clone(),
        };
        let Some(distance) = self.platform.distance_to(offered.as_ref()) else {
            offered.into_iter().for_each(|platform| self.offered.add(platform));
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
