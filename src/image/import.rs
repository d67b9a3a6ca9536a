//! From an image's files to an image in the store: its layers become a file system, and its
//! documents a record.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader};
use std::rc::Rc;

use thiserror::Error;

use super::blob::{BlobError, Checked, Expected, LayerReader};
use super::descriptor::Platform;
use super::digest::{Digest, shown};
use super::files::{ContentError, Files, check_len};
use super::found::{Found, LayerSource};
use super::progress::{Counted, Progress};
use super::reference::Reference;
use super::registry::RegistryError;
use super::room::NoRoom;
use super::rootfs::{self, Layer, Limits, RootfsError};
use super::store::{Image, ImageLease, LIMIT_VARIABLE, Moved, RootfsKey, Store, StoreError};
use crate::store::FileError;

/// Longest time that is kept: all images' are in memory at once when they are listed.
const MAX_TIME_LEN: usize = 100;
/// Of an uncompressed layer, in bytes.
pub(super) const MAX_PIECE: usize = 128 << 10;

/// Why nothing was loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The image isn't there, or isn't good.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The file system can't be built.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A registry doesn't give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Not in the store, and not to be pulled.
    #[error("no image {0} in the store, and it is not to be pulled")]
    Absent(String),
    /// One name for several images.
    #[error(
        "{name} holds {count} images, which can't all be called {wanted}: say which one, with :TAG or :@0 after the path"
    )]
    OneName {
        /// The layout or archive.
        name: String,
        /// How many there are.
        count: usize,
        /// The name.
        wanted: String,
    },
    /// For another kind of machine.
    #[error("images for {0} can't run here: bothy's guests are linux/amd64")]
    Foreign(Platform),
    /// A tar that has to be copied, and can't be.
    #[error("can't copy {name} into the store")]
    Copy {
        /// The archive.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// It would be alone in the store, and yet too large.
    #[error("{name} takes more on disk than {LIMIT_VARIABLE} allows for all images together, {limit} bytes")]
    OverLimit {
        /// The image.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// A tar that expands without end.
    #[error("{name} has more than {limit} bytes when it is uncompressed (--max-bytes)")]
    TooLong {
        /// The archive.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// Layers that are longer than what they may be uncompressed.
    #[error("the layers in {name} have {total} bytes, and an image may have {limit} (--max-bytes)")]
    Layers {
        /// The layout or archive.
        name: String,
        /// As they are stored.
        total: u64,
        /// The limit.
        limit: u64,
    },
    /// A layer wasn't read to its end, so it isn't verified.
    #[error("{0} has a layer that was not read to its end")]
    Unread(String),
    /// A directory that somebody works in.
    #[error("{0} has changed while it was read")]
    Changed(String),
}

/// What to load, and how.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Which names the images get.
    pub naming: Naming,
    /// Which image of an index.
    pub platform: Platform,
    /// What it may cost.
    pub limits: Limits,
}

/// Which names images get that are loaded from files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// Those that they have in the source; without any, that of the file, at `localhost`.
    #[default]
    Source,
    /// This one.
    Only(Reference),
    /// None: what runs an archive doesn't have to believe what it is called.
    None,
}

/// An image that is now in the store.
#[derive(Debug)]
pub struct Loaded {
    /// The image.
    pub image: Image,
    /// The names that it has got.
    pub names: Vec<Reference>,
    /// Those that were another image's before.
    pub moved: Vec<Moved>,
    /// False if its file system was there already.
    pub built: bool,
    /// Its file system.
    pub lease: ImageLease,
}

impl From<FileError> for LoadError {
    fn from(error: FileError) -> Self {
        StoreError::from(error).into()
    }
}

/// What every step needs.
pub(super) struct Loading<'a> {
    pub(super) store: &'a Store,
    pub(super) options: &'a LoadOptions,
    pub(super) progress: &'a dyn Progress,
}

impl Loading<'_> {
    pub(super) fn check_platform(&self) -> Result<(), LoadError> {
        let platform = &self.options.platform;
        if platform.runs_here() { Ok(()) } else { Err(LoadError::Foreign(platform.clone())) }
    }

    /// Puts an image into the store, which `index` has led to; `build` makes its file system if it
    /// isn't there yet.
    pub(super) fn put(
        &self,
        found: Found,
        names: Vec<Reference>,
        index: Option<Digest>,
        build: impl FnOnce(&[LayerSource], &File) -> Result<(), LoadError>,
    ) -> Result<Loaded, LoadError> {
        let key = RootfsKey::of_layers(found.layers.iter().map(|layer| &layer.diff_id));
        let called = || names.first().map_or_else(|| found.digest.to_string(), Reference::to_string);
        let built = self.store.rootfs(&key, |out| build(&found.layers, out));
        let (lease, built) = built.map_err(|error| over_limit(error, called))?;
        let image = Image {
            indexes: index.into_iter().filter(|index| *index != found.digest).collect(),
            digest: found.digest,
            digest_of: found.digest_of,
            platform: self.options.platform.clone(),
            created: found.created.filter(|text| text.len() <= MAX_TIME_LEN),
            config: found.config,
            diff_ids: found.layers.into_iter().map(|layer| layer.diff_id).collect(),
            rootfs: key.as_str().into(),
        };
        let moved = self.store.add(&image, &names)?;
        Ok(Loaded { image, names, moved, built, lease })
    }

    /// How long the layers are, as they are stored. One that isn't as long as its descriptor says,
    /// or layers that are longer than an image may be, aren't worth the reading.
    fn stored_len(&self, files: &dyn Files, layers: &[LayerSource]) -> Result<u64, LoadError> {
        let limit = self.options.limits.max_bytes;
        let mut total = 0_u64;
        for layer in layers {
            let seen = files.need(&layer.path)?.len;
            if let Some(expected) = layer.len {
                check_len(seen, expected, called(layer)).map_err(ContentError::Blob)?;
            }
            total = total.saturating_add(seen);
        }
        if total > limit {
            return Err(LoadError::Layers { name: files.name().into(), total, limit });
        }
        Ok(total)
    }

    /// An image that is larger than the whole store may be would put out all others and stay.
    pub(super) fn limits(&self) -> Limits {
        Limits { max_disk: self.store.limit().unwrap_or(u64::MAX), ..self.options.limits }
    }

    /// Builds the file system of these layers.
    pub(super) fn build(
        &self,
        files: &dyn Files,
        layers: &[LayerSource],
        out: &File,
    ) -> Result<(), LoadError> {
        let total = self.stored_len(files, layers)?;
        self.progress.begin(&format!("building {}", files.name()), Some(total));
        let verified = Rc::new(Cell::new(0));
        let open = |layer: &LayerSource| -> io::Result<Layer<'_>> {
            let opened = files.need(&layer.path).map_err(io::Error::other)?;
            let expected = Expected {
                name: called(layer),
                digest: layer.digest.clone(),
                len: layer.len,
                diff_id: layer.diff_id.clone(),
            };
            let counted = Counted { inner: opened.reader, progress: self.progress };
            let reader = LayerReader::new(counted, expected, verified.clone())?;
            // Whoever reads header by header has the bytes decompressed and hashed in larger pieces
            // all the same.
            Ok(Layer { name: blob_name(layer), tar: Box::new(BufReader::with_capacity(MAX_PIECE, reader)) })
        };
        if let Err(error) = rootfs::build(layers.iter().map(open), out, &self.limits()) {
            // Nonsense in a layer is most likely damage: it was met before the end, where the
            // digests are checked.
            let is_about_layer = matches!(error, RootfsError::Entry { .. } | RootfsError::Read { .. });
            if let Some(layer) = layers.get(verified.get()).filter(|_| is_about_layer) {
                check_blob(files, layer)?;
            }
            return Err(error.into());
        }
        if verified.get() != layers.len() {
            return Err(LoadError::Unread(files.name().into()));
        }
        self.progress.end();
        Ok(())
    }
}

/// Puts a name to an error of the store's limit.
pub(super) fn over_limit(error: LoadError, called: impl FnOnce() -> String) -> LoadError {
    match &error {
        LoadError::Rootfs(RootfsError::Write(source)) => {
            match source.get_ref().and_then(|inner| inner.downcast_ref::<NoRoom>()) {
                Some(NoRoom::Limit(limit)) => LoadError::OverLimit { name: called(), limit: *limit },
                _ => error,
            }
        }
        _ => error,
    }
}

/// Reads a layer's blob, as it is stored, to see whether it is the one that its descriptor names.
fn check_blob(files: &dyn Files, layer: &LayerSource) -> Result<(), LoadError> {
    let Some(digest) = &layer.digest else { return Ok(()) };
    let name = called(layer);
    let reader = files.need(&layer.path)?.reader;
    let mut checked = Checked::new(reader, name.clone(), Some(digest.clone()), layer.len);
    // An error of ours needs no words before it; the host's does.
    let read = io::copy(&mut checked, &mut io::sink());
    let read = read.map_err(|error| match error.downcast::<BlobError>() {
        Ok(error) => ContentError::Blob(error),
        Err(source) => ContentError::Io { name, source },
    });
    read?;
    Ok(checked.verify().map_err(ContentError::Blob)?)
}

/// What errors call a layer's blob. In docker's archives paths are any text.
fn blob_name(layer: &LayerSource) -> String {
    layer.digest.as_ref().map_or_else(|| shown(&layer.path), Digest::to_string)
}

fn called(layer: &LayerSource) -> String {
    format!("layer {}", blob_name(layer))
}
