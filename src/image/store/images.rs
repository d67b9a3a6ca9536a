//! Images and their names.
//!
//! An image is written before its names and removed after them, so a name always leads to an image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::SystemTime;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::lease::{ImageLease, try_own};
use super::rootfs::RootfsKey;
use super::{Part, Store, StoreError};
use crate::image::config::RunConfig;
use crate::image::digest::Digest;
use crate::image::manifest::Platform;
use crate::image::reference::Reference;

/// Fewest digits that stand for a digest.
const MIN_DIGITS: usize = 4;

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Of its manifest, or of its configuration if it came without one.
    pub digest: Digest,
    /// What it runs on.
    pub platform: Platform,
    /// When it was made, in its maker's words (RFC 3339).
    pub created: Option<String>,
    /// What to run, and how.
    pub config: RunConfig,
    /// Of its layers, lowest first; none for a directory.
    pub diff_ids: Vec<Digest>,
    /// The name of its file system.
    pub rootfs: String,
}

impl Image {
    fn file_name(&self) -> String {
        image_file_name(&self.digest)
    }
}

fn image_file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

/// As it was written, if it was short: `sha256:HEX` looks like a name with a tag, and the first digits of it like a name.
fn short(name: &Reference) -> String {
    let name = name.to_string();
    let name = name.strip_prefix("docker.io/library/").unwrap_or(&name);
    name.strip_suffix(":latest").unwrap_or(name).to_owned()
}

/// A name, in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Name {
    name: String,
    digest: Digest,
}

fn name_file_name(name: &str) -> String {
    Digest::of(name.as_bytes()).hex().into()
}

/// An image for a list.
#[derive(Debug)]
pub struct ImageSummary {
    /// The image.
    pub image: Image,
    /// Its names, in order.
    pub names: Vec<String>,
    /// The size of its file system on disk, in bytes; other images may have the same one.
    pub size: u64,
    /// When its file system was last leased; `None` if it is missing.
    pub last_used: Option<SystemTime>,
}

impl Store {
    /// Puts an image into the store, under these names, which other images lose. Its file system must be leased by the caller.
    pub(in crate::image) fn add(&self, image: &Image, names: &[Reference]) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        self.write(Part::Images, &image.file_name(), &json(image))?;
        for name in names {
            let name = Name { name: name.to_string(), digest: image.digest.clone() };
            self.write(Part::Names, &name_file_name(&name.name), &json(&name))?;
        }
        self.enforce_limit()
    }

    /// The image of that name, and the lease of its file system, or `None`. A short name stands for docker.io's image, or else for
    /// the one that was loaded from a file (`localhost/NAME`), or else for the one whose digest begins so.
    pub fn find(&self, name: &Reference) -> Result<Option<(Image, ImageLease)>, StoreError> {
        let image = match &name.digest {
            Some(digest) => self.read(Part::Images, &image_file_name(digest))?,
            None => {
                let digest = match self.digest_of(name)? {
                    Some((_, digest)) => Some(digest),
                    None => self.digest_by_digits(&short(name))?,
                };
                match digest {
                    Some(digest) => self.read(Part::Images, &image_file_name(&digest))?,
                    None => None,
                }
            }
        };
        let Some(image): Option<Image> = image else { return Ok(None) };
        let lease = self.lease_rootfs(&RootfsKey::from_text(&image.rootfs))?;
        Ok(lease.map(|lease| (image, lease)))
    }

    /// The name under which it is known, and the image's digest.
    fn digest_of(&self, name: &Reference) -> Result<Option<(String, Digest)>, StoreError> {
        let local = name.repository.strip_prefix("library/").filter(|_| name.registry == "docker.io");
        let local = local.map(|repository| Reference {
            registry: "localhost".into(),
            repository: repository.into(),
            ..name.clone()
        });
        for name in std::iter::once(name).chain(&local) {
            let name = name.to_string();
            if let Some(found) = self.read::<Name>(Part::Names, &name_file_name(&name))? {
                return Ok(Some((name, found.digest)));
            }
        }
        Ok(None)
    }

    /// All images, by name; those without one at the end.
    pub fn images(&self) -> Result<Vec<ImageSummary>, StoreError> {
        let mut names = self.names()?;
        let mut summaries = Vec::new();
        for file_name in self.list(Part::Images)? {
            let Some(image) = self.read::<Image>(Part::Images, &file_name)? else { continue };
            let metadata = fs::metadata(self.path(Part::Rootfs, &image.rootfs)).ok();
            let size = metadata.as_ref().map_or(0, disk_size);
            let last_used = metadata.and_then(|metadata| metadata.modified().ok());
            let names = names.remove(&image.digest).unwrap_or_default();
            summaries.push(ImageSummary { image, names, size, last_used });
        }
        summaries.sort_by_key(|summary| (summary.names.is_empty(), summary.names.first().cloned()));
        Ok(summaries)
    }

    /// All names, by image.
    pub(super) fn names(&self) -> Result<BTreeMap<Digest, Vec<String>>, StoreError> {
        let mut names: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for file_name in self.list(Part::Names)? {
            if let Some(name) = self.read::<Name>(Part::Names, &file_name)? {
                names.entry(name.digest).or_default().push(name.name);
            }
        }
        names.values_mut().for_each(|names| names.sort());
        Ok(names)
    }

    /// Removes a name, and the image with its last one; or, by its digest or the first digits of it, an image with all its names. Gives the names
    /// and digests that were removed.
    pub fn remove_image(&self, text: &str) -> Result<Vec<String>, StoreError> {
        let _lock = self.lock()?;
        let all = self.names()?;
        let unknown = || StoreError::Unknown(text.into());
        let by_name = match text.parse::<Reference>() {
            Ok(name) if name.digest.is_none() => self.digest_of(&name)?,
            _ => None,
        };
        let (gone, digest) = match by_name {
            Some((name, digest)) => (vec![name], digest),
            None => {
                let digest = self.digest_by_digits(text)?.ok_or_else(unknown)?;
                (all.get(&digest).cloned().unwrap_or_default(), digest)
            }
        };
        let is_last = all.get(&digest).is_none_or(|names| names.iter().all(|name| gone.contains(name)));
        let image = self.read::<Image>(Part::Images, &image_file_name(&digest))?;
        // What is in use must stay, before anything of it is touched.
        let rootfs = match &image {
            Some(image) if is_last && !self.is_shared(image)? => Some(self.path(Part::Rootfs, &image.rootfs)),
            _ => None,
        };
        let owned = match &rootfs {
            Some(path) => try_own(path)?,
            None => None,
        };
        if owned.is_none() && rootfs.as_ref().is_some_and(|path| path.exists()) {
            return Err(StoreError::InUse(text.into()));
        }
        for name in &gone {
            self.remove_name(name)?;
        }
        let mut removed = gone;
        if is_last {
            self.remove(Part::Images, &image_file_name(&digest))?;
            removed.push(digest.to_string());
        }
        if let (Some(_), Some(image)) = (owned, image) {
            self.remove(Part::Rootfs, &image.rootfs)?;
        }
        Ok(removed)
    }

    pub(super) fn remove_name(&self, name: &str) -> Result<(), StoreError> {
        self.remove(Part::Names, &name_file_name(name))
    }

    /// Removes the image alone: its names are gone already.
    pub(super) fn remove_record(&self, image: &Image) -> Result<(), StoreError> {
        self.remove(Part::Images, &image.file_name())
    }

    /// Removes names that lead to none of these files of images, or that can't be read.
    pub(super) fn remove_names_without(&self, images: &BTreeSet<String>) -> Result<(), StoreError> {
        for file_name in self.list(Part::Names)? {
            let name = self.read::<Name>(Part::Names, &file_name)?;
            if name.is_none_or(|name| !images.contains(&image_file_name(&name.digest))) {
                self.remove(Part::Names, &file_name)?;
            }
        }
        Ok(())
    }

    /// Whether another image has the same file system.
    fn is_shared(&self, image: &Image) -> Result<bool, StoreError> {
        for file_name in self.list(Part::Images)? {
            let other = self.read::<Image>(Part::Images, &file_name)?;
            if other.is_some_and(|other| other.digest != image.digest && other.rootfs == image.rootfs) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `sha256:HEX`, `HEX`, `NAME@sha256:HEX`, or the first digits of one.
    fn digest_by_digits(&self, text: &str) -> Result<Option<Digest>, StoreError> {
        let digits = text.rsplit_once('@').map_or(text, |(_, digest)| digest);
        let (algorithm, digits) = match digits.split_once(':') {
            Some((algorithm, digits)) => (Some(algorithm), digits),
            None => (None, digits),
        };
        if digits.len() < MIN_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut found = Vec::new();
        for file_name in self.list(Part::Images)? {
            let Ok(digest) = file_name.replacen('-', ":", 1).parse::<Digest>() else { continue };
            let same_kind = algorithm.is_none_or(|algorithm| digest.algorithm().name() == algorithm);
            if same_kind && digest.hex().starts_with(digits) {
                found.push(digest);
            }
        }
        match found.len() {
            0 => Ok(None),
            1 => Ok(found.pop()),
            _ => {
                let digests = found.iter().take(3).map(Digest::to_string).collect();
                Err(StoreError::Several { text: text.into(), digests })
            }
        }
    }

    /// A file that isn't there, or isn't ours, is none: somebody may have removed it just now, or meddled with it.
    pub(super) fn read<T: DeserializeOwned>(&self, part: Part, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.path(part, name);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)
                .inspect_err(|error| log::warn!("{} is damaged: {error}", path.display()))
                .ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }
}

/// What a file takes on disk: it may have holes.
pub(super) fn disk_size(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data with texts as keys")
}
