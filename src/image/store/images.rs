//! Images and their names.
//!
//! An image is written before its names and removed after them, so a name always leads to an image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{DigestOf, Head, Image, ImageId, Name, name_file_name};
use super::rootfs::RootfsKey;
use super::{IMAGES, ImageLease, NAMES, ROOTFS, Store, StoreError};
use crate::image::LOG;
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::store::{FileError, Part, try_own};

/// Fewest digits that stand for a digest where somebody manages the store.
const MIN_DIGITS: usize = 4;
/// Fewest where something is run: as many as docker shows. Whoever makes an image can choose the
/// first few.
const MIN_DIGITS_TO_RUN: usize = 12;

/// Most indexes that are remembered of an image.
const MAX_INDEXES: usize = 20;

/// An image that people's words mean.
struct Meant {
    id: ImageId,
    /// The full name, if it was by name.
    name: Option<String>,
}

/// A name that leads to another image now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The name.
    pub name: Reference,
    /// Where it led before.
    pub from: Digest,
}

/// What a text may mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The image of that name, as docker completes names, or at least 12 digits of a digest.
    Exact,
    /// Also an image that was loaded from a file (`localhost/NAME`), where a registry is not asked.
    Local,
}

/// An image for a list.
#[derive(Debug)]
pub struct ImageSummary {
    /// Of what there is of it.
    pub digest: Digest,
    digest_of: DigestOf,
    /// When it was made, in its maker's words.
    pub created: Option<String>,
    /// Its names, in order.
    pub names: Vec<String>,
    /// The size of its file system on disk, in bytes; other images may have the same one.
    pub size: u64,
    /// When its file system was last leased; `None` if it is missing.
    pub last_used: Option<SystemTime>,
}

impl Store {
    /// Puts an image into the store, under these names, which other images lose: those are
    /// returned. Its file system must be leased by the caller.
    pub(in crate::image) fn add(&self, image: &Image, names: &[Reference]) -> Result<Vec<Moved>, StoreError> {
        let _lock = self.files.lock()?;
        let mut image = image.clone();
        let file_name = image.id().file_name();
        if let Some(known) = self.read::<Image>(IMAGES, &file_name)?
            && known.platform == image.platform
        {
            image.indexes.extend(known.indexes);
            image.indexes.sort();
            image.indexes.dedup();
            image.indexes.truncate(MAX_INDEXES);
        }
        self.files.write(IMAGES, &file_name, &json(&image))?;
        let mut moved = Vec::new();
        for name in names {
            let before = self.id_of(name)?.filter(|before| *before != image.id());
            moved.extend(before.map(|before| Moved { name: name.clone(), from: before.digest }));
            let digest = image.digest.clone();
            let name = Name { name: name.to_string(), digest, digest_of: image.digest_of };
            self.files.write(NAMES, &name_file_name(&name.name), &json(&name))?;
        }
        self.enforce_limit()?;
        Ok(moved)
    }

    /// The image of exactly that name, or of that manifest or index if it has a digest, and the
    /// lease of its file system; or `None`.
    pub fn find(&self, name: &Reference) -> Result<Option<(Image, ImageLease)>, StoreError> {
        let id = match &name.digest {
            Some(digest) => Some(self.id_of_digest(digest)?),
            None => self.id_of(name)?,
        };
        id.map_or(Ok(None), |id| self.open_image(&id))
    }

    /// The image that people mean who want to run it, and the lease of its file system, or `None`.
    /// A name that a registry knows means that registry's image, whatever else the store has.
    pub fn look_up(&self, text: &str, scope: Scope) -> Result<Option<(Image, ImageLease)>, StoreError> {
        let meant = self.meant(text, scope, MIN_DIGITS_TO_RUN)?;
        meant.map_or(Ok(None), |meant| self.open_image(&meant.id))
    }

    fn open_image(&self, id: &ImageId) -> Result<Option<(Image, ImageLease)>, StoreError> {
        let Some(image): Option<Image> = self.read(IMAGES, &id.file_name())? else { return Ok(None) };
        let Some(key) = RootfsKey::from_text(&image.rootfs) else { return Ok(None) };
        Ok(self.lease_rootfs(&key)?.map(|lease| (image, lease)))
    }

    /// Finds an image by its name or the first digits of its digest.
    fn meant(&self, text: &str, scope: Scope, min_digits: usize) -> Result<Option<Meant>, StoreError> {
        if let Ok(name) = text.parse::<Reference>() {
            if let Some(digest) = &name.digest {
                return Ok(Some(Meant { id: self.id_of_digest(digest)?, name: None }));
            }
            let may_be_local = scope == Scope::Local && !text.contains('/');
            let local = name.repository.strip_prefix("library/").filter(|_| may_be_local);
            let local = local.map(|repository| Reference {
                registry: "localhost".into(),
                repository: repository.into(),
                ..name.clone()
            });
            for name in std::iter::once(&name).chain(&local) {
                if let Some(id) = self.id_of(name)? {
                    return Ok(Some(Meant { id, name: Some(name.to_string()) }));
                }
            }
        }
        Ok(self.id_by_digits(text, min_digits)?.map(|id| Meant { id, name: None }))
    }

    /// The image of that manifest, or else that to which an index has led.
    fn id_of_digest(&self, digest: &Digest) -> Result<ImageId, StoreError> {
        let id = ImageId::manifest(digest);
        if self.files.path(IMAGES, &id.file_name()).exists() {
            return Ok(id);
        }
        for file_name in self.files.list(IMAGES)? {
            let head = self.read::<Head>(IMAGES, &file_name)?;
            if let Some(head) = head.filter(|head| head.indexes.contains(digest)) {
                return Ok(head.id());
            }
        }
        Ok(id)
    }

    fn id_of(&self, name: &Reference) -> Result<Option<ImageId>, StoreError> {
        let name = self.read::<Name>(NAMES, &name_file_name(&name.to_string()))?;
        Ok(name.map(Name::id))
    }

    /// All images, by name; those without one at the end.
    pub fn images(&self) -> Result<Vec<ImageSummary>, StoreError> {
        let mut names = self.names()?;
        let mut summaries = Vec::new();
        for file_name in self.files.list(IMAGES)? {
            let Some(image) = self.read::<Head>(IMAGES, &file_name)? else { continue };
            let metadata = fs::metadata(self.files.path(ROOTFS, &image.rootfs)).ok();
            let size = metadata.as_ref().map_or(0, disk_size);
            let last_used = metadata.and_then(|metadata| metadata.modified().ok());
            let names = names.remove(&image.id()).unwrap_or_default();
            let Head { digest, digest_of, created, .. } = image;
            summaries.push(ImageSummary { digest, digest_of, created, names, size, last_used });
        }
        summaries.sort_by_key(|summary| (summary.names.is_empty(), summary.names.first().cloned()));
        Ok(summaries)
    }

    /// All that is known of an image of a list, if it is still there.
    pub fn image(&self, summary: &ImageSummary) -> Result<Option<Image>, StoreError> {
        let id = ImageId { of: summary.digest_of, digest: summary.digest.clone() };
        self.read(IMAGES, &id.file_name())
    }

    /// All names, by image.
    pub(super) fn names(&self) -> Result<BTreeMap<ImageId, Vec<String>>, StoreError> {
        let mut names: BTreeMap<ImageId, Vec<String>> = BTreeMap::new();
        for file_name in self.files.list(NAMES)? {
            if let Some(name) = self.read::<Name>(NAMES, &file_name)? {
                let text = name.name.clone();
                names.entry(name.id()).or_default().push(text);
            }
        }
        names.values_mut().for_each(|names| names.sort());
        Ok(names)
    }

    /// Removes a name, and the image with its last one; or, by its digest or the first digits of
    /// it, an image with all its names. Gives the names and digests that were removed.
    pub fn remove_image(&self, text: &str) -> Result<Vec<String>, StoreError> {
        let _lock = self.files.lock()?;
        let all = self.names()?;
        let unknown = || StoreError::Unknown(text.into());
        let Meant { id, name } = self.meant(text, Scope::Local, MIN_DIGITS)?.ok_or_else(unknown)?;
        let file_name = id.file_name();
        let gone = match name {
            Some(name) => vec![name],
            None if self.files.path(IMAGES, &file_name).exists() => all.get(&id).cloned().unwrap_or_default(),
            None => return Err(unknown()),
        };
        let is_last = all.get(&id).is_none_or(|names| names.iter().all(|name| gone.contains(name)));
        let image = self.read::<Head>(IMAGES, &file_name)?;
        // What is in use must stay, before anything of it is touched.
        let rootfs = match &image {
            Some(image) if is_last && !self.is_shared(image)? => Some(self.files.path(ROOTFS, &image.rootfs)),
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
            self.files.remove(IMAGES, &file_name)?;
            removed.push(id.digest.to_string());
        }
        if let (Some(_), Some(image)) = (owned, image) {
            self.files.remove(ROOTFS, &image.rootfs)?;
        }
        Ok(removed)
    }

    pub(super) fn remove_name(&self, name: &str) -> Result<(), StoreError> {
        Ok(self.files.remove(NAMES, &name_file_name(name))?)
    }

    /// Removes the image alone: its names are gone already.
    pub(super) fn remove_record(&self, image: &Head) -> Result<(), StoreError> {
        Ok(self.files.remove(IMAGES, &image.id().file_name())?)
    }

    /// Removes names that lead to none of these files of images, or that can't be read.
    pub(super) fn remove_names_without(&self, images: &BTreeSet<String>) -> Result<(), StoreError> {
        for file_name in self.files.list(NAMES)? {
            let name = self.read::<Name>(NAMES, &file_name)?;
            if name.is_none_or(|name| !images.contains(&name.id().file_name())) {
                self.files.remove(NAMES, &file_name)?;
            }
        }
        Ok(())
    }

    /// Whether another image has the same file system.
    fn is_shared(&self, image: &Head) -> Result<bool, StoreError> {
        for file_name in self.files.list(IMAGES)? {
            let other = self.read::<Head>(IMAGES, &file_name)?;
            if other.is_some_and(|other| other.id() != image.id() && other.rootfs == image.rootfs) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `sha256:HEX`, `HEX`, or the first digits of one.
    fn id_by_digits(&self, text: &str, min_digits: usize) -> Result<Option<ImageId>, StoreError> {
        let (algorithm, digits) = match text.split_once(':') {
            Some((algorithm, digits)) => (Some(algorithm), digits),
            None => (None, text),
        };
        if digits.len() < min_digits || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut found = Vec::new();
        for file_name in self.files.list(IMAGES)? {
            let Some(id) = ImageId::of_file_name(&file_name) else { continue };
            let same_kind = algorithm.is_none_or(|algorithm| id.digest.algorithm().name() == algorithm);
            if same_kind && id.digest.hex().starts_with(digits) {
                found.push(id);
            }
        }
        match found.len() {
            0 => Ok(None),
            1 => Ok(found.pop()),
            _ => {
                let digests = found.iter().take(3).map(|id| id.digest.to_string()).collect();
                Err(StoreError::Several { text: text.into(), digests })
            }
        }
    }

    /// A file that isn't there, or isn't ours, is none: somebody may have removed it just now, or
    /// meddled with it.
    pub(super) fn read<T: DeserializeOwned>(&self, part: Part, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.files.path(part, name);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)
                .inspect_err(|error| {
                    LOG.warn(format_args!("{} is damaged: {error}", path.display()));
                })
                .ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FileError::new("read", &path)(error).into()),
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
