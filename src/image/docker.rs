//! Docker's own format (`docker save`, `podman save`, skopeo's docker-archive): manifest.json names
//! the images, their configurations and their layers by path.
//!
//! There is no manifest and no digest of a blob: a layer is what its diff_id in the configuration
//! says, and an image's digest is that of its configuration, which docker calls the image's ID.

use serde::Deserialize;

use super::budget::Budget;
use super::config::ImageConfig;
use super::descriptor::Platform;
use super::digest::{Digest, shown};
use super::files::{ContentError, Files, check_digest};
use super::found::{Found, LayerSource};
use super::index::Offered;
use super::manifest::{self, DocumentError, MAX_LAYERS};
use super::reference::Reference;
use super::source::Which;
use super::store::DigestOf;

/// The list of images.
pub(super) const DOCKER_MANIFEST: &str = "manifest.json";

/// An image in docker's manifest.json.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Saved {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// The images that docker saved in an archive.
pub(super) fn docker_images(
    files: &dyn Files,
    which: &Which,
    platform: &Platform,
) -> Result<Vec<Found>, ContentError> {
    let name = files.name();
    let saved: Vec<Saved> =
        manifest::parse(&files.read(DOCKER_MANIFEST)?, &format!("{DOCKER_MANIFEST} in {name}"))?;
    if saved.is_empty() {
        return Err(ContentError::Empty(name.into()));
    }
    let mut named = Vec::new();
    for image in saved {
        let tags = image.repo_tags.iter().map(|tag| tag.parse::<Reference>());
        let tags: Result<Vec<_>, _> = tags.collect();
        let tags = tags.map_err(|source| ContentError::BadName { name: name.into(), source })?;
        named.push((image, tags));
    }
    let chosen: Vec<_> = match which {
        Which::All => named.iter().collect(),
        Which::Number(number) => named.get(*number).into_iter().collect(),
        Which::Named(wanted) => {
            let wanted: Option<Reference> = wanted.parse().ok();
            named
                .iter()
                .filter(|(_, tags)| tags.iter().any(|tag| Some(tag) == wanted.as_ref()))
                .take(1)
                .collect()
        }
    };
    if chosen.is_empty() {
        let wanted = match which {
            Which::Named(wanted) => wanted.clone(),
            Which::Number(number) => format!("@{number}"),
            Which::All => String::new(),
        };
        let there = named.iter().flat_map(|(_, tags)| tags).map(Reference::to_string).collect();
        return Err(ContentError::NoSuch { name: name.into(), wanted, there });
    }
    let mut budget = Budget::new(name);
    budget.images(chosen.len())?;
    chosen.into_iter().map(|(image, tags)| docker_image(files, image, tags, platform, &mut budget)).collect()
}

fn docker_image(
    files: &dyn Files,
    image: &Saved,
    tags: &[Reference],
    platform: &Platform,
    budget: &mut Budget<'_>,
) -> Result<Found, ContentError> {
    let what = format!("{} in {}", shown(&image.config), files.name());
    if image.layers.len() > MAX_LAYERS {
        return Err(DocumentError::Layers(what).into());
    }
    if image.config.is_empty() || image.layers.iter().any(String::is_empty) {
        let what = format!("{DOCKER_MANIFEST} in {}", files.name());
        let why = "the path of a configuration or of a layer is missing".into();
        return Err(DocumentError::Json { what, why }.into());
    }
    let bytes = files.read(&image.config)?;
    budget.spend(bytes.len() as u64)?;
    // Its path says what is in it, in every version of docker and podman.
    if let Some(digest) = digest_in_path(&image.config) {
        check_digest(&digest, &bytes, what.clone())?;
    }
    let config: ImageConfig = manifest::parse(&bytes, &what)?;
    if let Some(offered) = config.platform().filter(|offered| platform.distance(offered).is_none()) {
        let (name, wanted) = (files.name().into(), platform.clone());
        let offered = Box::new(Offered { platforms: vec![offered], ..Offered::default() });
        return Err(ContentError::Platform { name, wanted, offered });
    }
    config.check_layers(image.layers.len(), &what)?;
    let layers = image.layers.iter().zip(&config.rootfs.diff_ids).map(|(path, diff_id)| LayerSource {
        path: path.clone(),
        // It may be compressed or not, and its digest that of either; the diff_id is what counts.
        digest: None,
        len: None,
        diff_id: diff_id.clone(),
    });
    Ok(Found {
        digest: Digest::of(&bytes),
        digest_of: DigestOf::Config,
        names: tags.to_vec(),
        tag: None,
        created: config.created,
        layers: layers.collect(),
        config: config.config,
    })
}

/// `HEX.json`, `blobs/sha256/HEX`.
fn digest_in_path(path: &str) -> Option<Digest> {
    let file_name = path.rsplit('/').next().unwrap_or_default();
    format!("sha256:{}", file_name.strip_suffix(".json").unwrap_or(file_name)).parse().ok()
}

#[cfg(test)]
#[path = "docker_tests.rs"]
mod tests;
