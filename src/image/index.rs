//! The entries of an index (OCI image-spec, image-index.md; Docker's manifest list).
//!
//! Other programs' entries stand beside images. An entry that bothy can't use (an unknown digest
//! algorithm, no size, another media type) is skipped, and named in an error only if no other entry
//! leads to the image. A wrong JSON type makes the whole document malformed, as it does for Go's
//! decoder.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::descriptor::{Descriptor, Entry, Platform, is_index, is_manifest};
use super::digest::shown;

/// Most unusable entries whose reason is kept.
const MAX_TOLD: usize = 50;
/// Most platforms that an error can name.
pub(super) const MAX_OFFERED: usize = 50;
/// Most platforms that an error does name.
const MAX_LISTED: usize = 12;

/// An index.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) entries: Vec<Descriptor>,
    pub(super) unusable: Unusable,
}

/// Entries that can't be used.
#[derive(Clone, Debug, Default)]
pub struct Unusable {
    count: usize,
    /// The name, if it has one, and the reason, of the first ones.
    told: Vec<(Option<String>, String)>,
}

/// What there is besides an image for the platform that is asked for.
#[derive(Clone, Debug, Default)]
pub struct Offered {
    pub(super) platforms: Vec<Platform>,
    pub(super) unusable: Unusable,
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Index;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of descriptors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Index, A::Error> {
                let mut index = Index::default();
                // One by one, so that few unusable entries stay in memory.
                while let Some(entry) = list.next_element()? {
                    index.add(entry);
                }
                Ok(index)
            }
        }

        from.deserialize_seq(Entries)
    }
}

impl Index {
    fn add(&mut self, entry: Entry) {
        let name = entry.names().next().map(str::to_owned);
        match usable(entry) {
            Ok(descriptor) => self.entries.extend(descriptor),
            Err(why) => self.unusable.add(name, why),
        }
    }
}

/// `None` for attestations and the like, which are no images at all.
fn usable(entry: Entry) -> Result<Option<Descriptor>, String> {
    if entry.is_about_another() {
        return Ok(None);
    }
    let kind = entry.media_type.as_str();
    if !kind.is_empty() && !is_index(kind) && !is_manifest(kind) {
        let schema1 = kind.starts_with("application/vnd.docker.distribution.manifest.v1+");
        let what = if schema1 { ", a docker manifest of schema 1" } else { "" };
        return Err(format!("{} has the media type {}{what}", shown(&entry.digest), shown(kind)));
    }
    Descriptor::try_from(entry).map(Some)
}

impl Unusable {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn add(&mut self, name: Option<String>, why: String) {
        self.count += 1;
        if self.told.len() < MAX_TOLD {
            self.told.push((name, why));
        }
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.count += other.count;
        self.told.extend(other.told);
        self.told.truncate(MAX_TOLD);
    }

    /// The entries with a name that is `wanted`.
    pub(super) fn named(&self, wanted: impl Fn(&str) -> bool) -> Self {
        let is_it = |(name, _): &&(Option<String>, String)| name.as_deref().is_some_and(&wanted);
        let told: Vec<_> = self.told.iter().filter(is_it).cloned().collect();
        Self { count: told.len(), told }
    }
}

/// The first reason, and how many there are.
impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.told.first() {
            Some((Some(name), why)) => write!(f, "{} can't be used: {why}", shown(name))?,
            Some((None, why)) => write!(f, "an entry of its index can't be used: {why}")?,
            None => return Ok(()),
        }
        if self.count > 1 { write!(f, " (and {} more)", self.count - 1) } else { Ok(()) }
    }
}

impl Offered {
    pub(super) fn add(&mut self, platform: Platform) {
        if self.platforms.len() < MAX_OFFERED && !self.platforms.contains(&platform) {
            self.platforms.push(platform);
        }
    }

    pub(super) fn extend(&mut self, other: Self) {
        other.platforms.into_iter().for_each(|platform| self.add(platform));
        self.unusable.extend(other.unusable);
    }
}

impl fmt::Display for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<String> = self.platforms.iter().map(Platform::to_string).collect();
        names.sort_unstable();
        let more = names.len().saturating_sub(MAX_LISTED);
        names.truncate(MAX_LISTED);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        match &names[..] {
            [] => f.write_str("there are none at all")?,
            [one] => write!(f, "there is only {one}")?,
            several => write!(f, "there are {}", several.join(", "))?,
        }
        if self.unusable.is_empty() { Ok(()) } else { write!(f, "; {}", self.unusable) }
    }
}
