//! Removing what isn't needed, and the size limit. Both remove only what nobody leases.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::SystemTime;

use super::images::disk_size;
use super::record::Head;
use super::{BLOBS, IMAGES, LIMIT_VARIABLE, ROOTFS, Store, StoreError};
use crate::image::LOG;
use crate::store::{Part, try_own};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images.
    pub images: usize,
    /// Of disk space.
    pub bytes: u64,
}

/// A file system, and the images that have it.
struct Candidate {
    name: String,
    images: Vec<Head>,
    last_used: SystemTime,
    size: u64,
}

impl Store {
    /// Removes blobs, file systems without an image, and images without a name; with `all`, the
    /// images with names, too.
    pub fn prune(&self, all: bool) -> Result<Pruned, StoreError> {
        let _lock = self.files.lock()?;
        let mut pruned = Pruned { images: 0, bytes: self.prune_blobs()? };
        let names = self.names()?;
        for candidate in self.candidates()? {
            let (named, unnamed): (Vec<_>, Vec<_>) =
                candidate.images.iter().partition(|image| names.contains_key(&image.id()));
            if all || named.is_empty() {
                if self.remove_candidate(&candidate)? {
                    pruned.images += candidate.images.len();
                    pruned.bytes += candidate.size;
                }
            } else {
                for image in &unnamed {
                    self.remove_record(image)?;
                }
                pruned.images += unnamed.len();
            }
        }
        self.files.sweep(Part::LOCKS)?;
        self.remove_damaged()?;
        Ok(pruned)
    }

    /// Removes the images that haven't been used for the longest time until what is left fits. The
    /// store is locked.
    pub(super) fn enforce_limit(&self) -> Result<(), StoreError> {
        let Some(limit) = self.limit else { return Ok(()) };
        let mut candidates = self.candidates()?;
        let blobs: u64 = self.sizes(BLOBS)?.values().sum();
        let mut total = candidates.iter().map(|candidate| candidate.size).sum::<u64>() + blobs;
        if total > limit {
            total = total.saturating_sub(self.prune_blobs()?);
        }
        candidates.sort_by_key(|candidate| candidate.last_used);
        for candidate in candidates {
            if total <= limit {
                break;
            }
            if self.remove_candidate(&candidate)? {
                LOG.info(format_args!("{LIMIT_VARIABLE}: removed file system {}", candidate.name));
                total = total.saturating_sub(candidate.size);
            }
        }
        Ok(())
    }

    fn sizes(&self, part: Part) -> Result<BTreeMap<String, u64>, StoreError> {
        let names = self.files.list(part)?.into_iter();
        let sizes = names.filter_map(|name| {
            let metadata = fs::metadata(self.files.path(part, &name)).ok()?;
            Some((name, disk_size(&metadata)))
        });
        Ok(sizes.collect())
    }

    fn prune_blobs(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for (name, size) in self.sizes(BLOBS)? {
            if let Some(_unused) = try_own(&self.files.path(BLOBS, &name))? {
                self.files.remove(BLOBS, &name)?;
                bytes += size;
            }
        }
        Ok(bytes)
    }

    /// The file systems that there are, and those that images name and that are missing.
    fn candidates(&self) -> Result<Vec<Candidate>, StoreError> {
        let mut by_rootfs: BTreeMap<String, Vec<Head>> = BTreeMap::new();
        for name in self.files.list(ROOTFS)? {
            by_rootfs.insert(name, Vec::new());
        }
        for file_name in self.files.list(IMAGES)? {
            if let Some(image) = self.read::<Head>(IMAGES, &file_name)? {
                by_rootfs.entry(image.rootfs.clone()).or_default().push(image);
            }
        }
        let candidates = by_rootfs.into_iter().map(|(name, images)| {
            let metadata = fs::metadata(self.files.path(ROOTFS, &name)).ok();
            let last_used = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
            let last_used = last_used.unwrap_or(SystemTime::UNIX_EPOCH);
            Candidate { name, images, last_used, size: metadata.as_ref().map_or(0, disk_size) }
        });
        Ok(candidates.collect())
    }

    /// Removes a file system and its images with their names, unless somebody uses it. False if
    /// somebody does.
    fn remove_candidate(&self, candidate: &Candidate) -> Result<bool, StoreError> {
        let path = self.files.path(ROOTFS, &candidate.name);
        let owned = try_own(&path)?;
        if owned.is_none() && path.exists() {
            return Ok(false);
        }
        let mut names = self.names()?;
        for image in &candidate.images {
            for name in names.remove(&image.id()).unwrap_or_default() {
                self.remove_name(&name)?;
            }
            self.remove_record(image)?;
        }
        self.files.remove(ROOTFS, &candidate.name)?;
        Ok(true)
    }

    /// What can't be read as what it should be, only ever by another's hand; and names that lead
    /// nowhere.
    fn remove_damaged(&self) -> Result<(), StoreError> {
        for file_name in self.files.list(IMAGES)? {
            if self.read::<Head>(IMAGES, &file_name)?.is_none() {
                self.files.remove(IMAGES, &file_name)?;
            }
        }
        let images: BTreeSet<String> = self.files.list(IMAGES)?.into_iter().collect();
        self.remove_names_without(&images)
    }
}
