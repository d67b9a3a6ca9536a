//! OCI image layouts (OCI image-spec, image-layout.md): from index.json to the image that was asked
//! for, in a directory or in an archive.
//!
//! Every document is verified against its descriptor before it is parsed, so an index can't contain
//! itself; how deep they lead is capped all the same, and to how many documents those of a whole
//! load do (see `budget`). What an index says about a platform decides which manifests are looked
//! at; what the configuration says decides whether the image runs here. If neither names a
//! platform, the image is used unless another one fits.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::LOG;
use super::budget::Budget;
use super::config::ImageConfig;
use super::descriptor::{Descriptor, Platform};
use super::digest::Digest;
use super::files::{ContentError, Files};
use super::found::{Found, LayerSource};
use super::index::{Index, Offered, Unusable};
use super::manifest::{Document, DocumentError, Manifest, parse};
use super::reference::{Reference, is_tag};
use super::source::Which;
use super::store::DigestOf;

/// The list of images.
pub(super) const OCI_INDEX: &str = "index.json";
/// Says which version of the specification the layout follows.
const OCI_LAYOUT: &str = "oci-layout";
/// Deepest nesting of indexes; two levels are usual.
const MAX_DEPTH: usize = 5;
/// Most entries without a platform that are skipped because their document is missing or no image.
const MAX_ASTRAY: usize = 20;

/// The images of a layout: the one that was asked for, or every one.
pub(super) fn oci_images(
    files: &dyn Files,
    which: &Which,
    platform: &Platform,
) -> Result<Vec<Found>, ContentError> {
    check_version(files)?;
    let what = format!("{OCI_INDEX} in {}", files.name());
    let Index { entries, unusable } = match Document::parse(&files.read(OCI_INDEX)?, "", &what)? {
        Document::Index(index) => index,
        Document::Manifest(_) => return Err(DocumentError::Ambiguous(what).into()),
    };
    let groups = group(entries);
    let chosen = choose(files, &groups, which, &unusable)?;
    let mut budget = Budget::new(files.name());
    budget.images(chosen.len())?;
    let (mut found, mut foreign, mut astray) = (Vec::new(), None, None);
    // Named images that can't be loaded are worth a warning.
    let missed = if *which == Which::All { unusable.named(|_| true) } else { Unusable::default() };
    let mut offered = Offered { unusable, ..Offered::default() };
    for group in chosen {
        let is_named = group[0].names().next().is_some();
        match Search::new(files, platform, &mut budget).image(group) {
            // Signatures have tags of their own, beside the images.
            Err(error @ ContentError::Document(DocumentError::Foreign { .. })) => foreign = Some(error),
            // Nobody has asked for this one.
            Err(ContentError::Platform { offered: others, .. }) if !is_named => offered.extend(*others),
            Err(error) if !is_named && group[0].platform.is_none() && leads_nowhere(&error) => {
                offered.unusable.add(None, error.to_string());
                astray.get_or_insert(error);
            }
            image => found.push(image?),
        }
    }
    match astray.or(foreign) {
        _ if !found.is_empty() => {
            if !missed.is_empty() {
                LOG.warn(format_args!("{}: {missed}", files.name()));
            }
            Ok(found)
        }
        Some(error) if offered.platforms.is_empty() => Err(error),
        _ => Err(not_for(files, platform, offered)),
    }
}

fn not_for(files: &dyn Files, platform: &Platform, offered: Offered) -> ContentError {
    let (name, wanted) = (files.name().into(), platform.clone());
    ContentError::Platform { name, wanted, offered: Box::new(offered) }
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

/// Whoever changes what the other files mean writes another number here. Some tools leave the file
/// out.
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

/// Manifests of one name belong together: they are one image for several platforms. So do those
/// without a name as far as each says that it is for another platform; otherwise each is an image.
fn group(descriptors: Vec<Descriptor>) -> Vec<Vec<Descriptor>> {
    #[derive(PartialEq, Eq, Hash)]
    enum Key {
        Name(String),
        /// One of so many for the same platform.
        Unnamed(usize),
    }
    let mut groups: Vec<Vec<Descriptor>> = Vec::new();
    let (mut places, mut unnamed, mut of_platform) = (HashMap::new(), HashSet::new(), HashMap::new());
    for descriptor in descriptors {
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

fn choose<'a>(
    files: &dyn Files,
    groups: &'a [Vec<Descriptor>],
    which: &Which,
    unusable: &Unusable,
) -> Result<Vec<&'a Vec<Descriptor>>, ContentError> {
    let not_usable = |unusable: Unusable| {
        let (name, unusable) = (files.name().into(), Box::new(unusable));
        ContentError::Unusable { name, unusable }
    };
    if groups.is_empty() {
        let empty = ContentError::Empty(files.name().into());
        return Err(if unusable.is_empty() { empty } else { not_usable(unusable.clone()) });
    }
    let (chosen, wanted): (Vec<_>, String) = match which {
        Which::All => return Ok(groups.iter().collect()),
        Which::Number(number) => (groups.get(*number).into_iter().collect(), format!("@{number}")),
        Which::Named(wanted) => {
            let full: Option<Reference> = wanted.parse().ok();
            let is_it = |name: &str| {
                name == wanted || (is_full_name(name) && full.is_some() && name.parse().ok() == full)
            };
            let found = groups.iter().find(|group| group.iter().flat_map(Descriptor::names).any(is_it));
            let unusable = unusable.named(is_it);
            if found.is_none() && !unusable.is_empty() {
                return Err(not_usable(unusable));
            }
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
    /// How many images have fitted.
    candidates: usize,
    offered: Offered,
    foreign: Option<DocumentError>,
    /// The first error of an entry without a platform, and the number of such errors.
    astray: Option<ContentError>,
    strays: usize,
}

impl<'a, 'b> Search<'a, 'b> {
    fn new(files: &'a dyn Files, platform: &'a Platform, budget: &'a mut Budget<'b>) -> Self {
        let offered = Offered::default();
        Self {
            files,
            platform,
            budget,
            best: None,
            candidates: 0,
            offered,
            foreign: None,
            astray: None,
            strays: 0,
        }
    }

    fn image(mut self, group: &[Descriptor]) -> Result<Found, ContentError> {
        self.visit_all(group, 0)?;
        let name = self.files.name().to_owned();
        let Some(Candidate { digest, manifest, config, .. }) = self.best else {
            return Err(match (self.astray, self.foreign) {
                (Some(error), _) if self.offered.platforms.is_empty() => error,
                (None, Some(error)) if self.offered.platforms.is_empty() => error.into(),
                _ => not_for(self.files, self.platform, self.offered),
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

    /// Visits the entries for this platform. Entries without a platform are visited only if none of
    /// the others leads to an image; up to [`MAX_ASTRAY`] of them may fail.
    fn visit_all(&mut self, entries: &[Descriptor], depth: usize) -> Result<(), ContentError> {
        let (mut unstated, before) = (Vec::new(), self.candidates);
        for entry in entries {
            match &entry.platform {
                None => unstated.push(entry),
                Some(offered) if self.platform.distance(offered).is_none() => {
                    self.offered.add(offered.clone());
                }
                Some(_) => self.visit(entry, depth)?,
            }
        }
        if self.candidates > before {
            return Ok(());
        }
        for entry in unstated {
            match self.visit(entry, depth) {
                Err(error) if leads_nowhere(&error) && self.strays < MAX_ASTRAY => {
                    self.offered.unusable.add(None, error.to_string());
                    self.astray.get_or_insert(error);
                    self.strays += 1;
                }
                visited => visited?,
            }
        }
        Ok(())
    }

    fn visit(&mut self, descriptor: &Descriptor, depth: usize) -> Result<(), ContentError> {
        if depth > MAX_DEPTH {
            return Err(ContentError::TooMany { name: self.files.name().into() });
        }
        let bytes = self.document(descriptor)?;
        let what = descriptor.digest.blob_path();
        match Document::parse(&bytes, &descriptor.media_type, &what) {
            Ok(Document::Index(Index { entries, unusable })) => {
                self.offered.unusable.extend(unusable);
                self.visit_all(&entries, depth + 1)
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
            // The index fills in for the configuration.
            (None, stated) => stated.clone(),
        };
        let Some(distance) = self.platform.distance_to(offered.as_ref()) else {
            offered.into_iter().for_each(|platform| self.offered.add(platform));
            return Ok(());
        };
        self.candidates += 1;
        if self.best.as_ref().is_none_or(|best| distance < best.distance) {
            self.best = Some(Candidate { distance, digest: descriptor.digest.clone(), manifest, config });
        }
        Ok(())
    }
}

/// Whether the error is about this entry alone.
fn leads_nowhere(error: &ContentError) -> bool {
    matches!(error, ContentError::Missing { .. } | ContentError::NotThere(_) | ContentError::Document(_))
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
