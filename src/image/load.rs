//! From a source to images in the store: find the images, build the file systems that aren't there yet, write down names.
//!
//! Nothing of an image is in the store before all of it has been read and verified. A tar that is compressed or comes through a pipe is written to an
//! unlinked file in the store's file system first, uncompressed: its files may stand in any order. It is gone with this process.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use thiserror::Error;

use super::archive::Archive;
use super::blob::{BlobError, Checked, Expected, LayerReader};
use super::config::RunConfig;
use super::decode::{Compression, Decoded, MAGIC_LEN};
use super::digest::{Digest, shown};
use super::docker::{DOCKER_MANIFEST, docker_images};
use super::files::{ContentError, Directory, Files, check_len};
use super::layout::{Found, LayerSource, OCI_INDEX, oci_images};
use super::manifest::Platform;
use super::reference::{Reference, local};
use super::registry::{Policy, PullOptions, RegistryError, pull};
use super::room::{Growing, NoRoom};
use super::rootfs::{self, Layer, Limits, RootfsError};
use super::source::{ArchiveKind, Source, Which};
use super::store::{DigestOf, Image, ImageLease, LIMIT_VARIABLE, Moved, RootfsKey, Store, StoreError};

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

/// Who shows how far it is.
pub trait Progress: Sync {
    /// A step begins; `bytes` is its length, if it is known.
    fn begin(&self, what: &str, bytes: Option<u64>);
    /// So many bytes more have been read.
    fn advance(&self, bytes: u64);
    /// The step is over.
    fn end(&self);
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

/// Loads all images of a source, or the one that it names; what is in the store under its name isn't loaded again. Each is handed to `each` as
/// soon as it is in the store, and may be used by others from then on, whatever becomes of the next one; its file system is leased for as long
/// as `each` keeps what it gets.
pub fn load(
    store: &Store,
    source: &Source,
    options: &LoadOptions,
    progress: &dyn Progress,
    each: &mut dyn FnMut(Loaded),
) -> Result<(), LoadError> {
    let loading = Loading { store, options, progress };
    loading.check_platform()?;
    match source {
        Source::Layout { dir, which } => {
            let files = Directory::open(dir)?;
            let found = oci_images(&files, which, &options.platform)?;
            loading.add_all(&files, found, Some(dir), each)
        }
        Source::Archive { file: path, kind, which } => {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|source| ContentError::Io { name: name.clone(), source })?;
            loading.archive(file, name, (*kind, which), Some(path), each)
        }
        Source::Stdin => {
            let name = "standard input".to_owned();
            let own = io::stdin().as_fd().try_clone_to_owned();
            let own = own.map_err(|source| ContentError::Io { name: name.clone(), source })?;
            loading.archive(own.into(), name, (ArchiveKind::Any, &Which::All), None, each)
        }
        Source::Dir(dir) => {
            each(loading.dir(dir)?);
            Ok(())
        }
        Source::Name(name) => {
            let (load, policy) = (options.clone(), Policy::Missing);
            each(pull(store, name, &PullOptions { policy, insecure: false, load }, progress)?);
            Ok(())
        }
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

    fn archive(
        &self,
        file: File,
        name: String,
        (kind, which): (ArchiveKind, &Which),
        path: Option<&Path>,
        each: &mut dyn FnMut(Loaded),
    ) -> Result<(), LoadError> {
        let files = Archive::open(self.plain_tar(file, &name)?, name)?;
        let is_docker = match kind {
            ArchiveKind::Oci => false,
            ArchiveKind::Docker => true,
            ArchiveKind::Any if files.has(DOCKER_MANIFEST) => true,
            ArchiveKind::Any if files.has(OCI_INDEX) => false,
            ArchiveKind::Any => return Err(ContentError::NotAnImage(files.name().into()).into()),
        };
        let images = if is_docker { docker_images } else { oci_images };
        let found = images(&files, which, &self.options.platform)?;
        self.add_all(&files, found, path, each)
    }

    /// A tar that can be read at any place: this one, or an uncompressed copy.
    fn plain_tar(&self, mut file: File, name: &str) -> Result<File, LoadError> {
        // An error of ours has the name in it.
        let io = |source: io::Error| match source.downcast::<BlobError>() {
            Ok(error) => LoadError::from(ContentError::Blob(error)),
            Err(source) => ContentError::Io { name: name.into(), source }.into(),
        };
        let metadata = file.metadata().map_err(io)?;
        if metadata.is_file() && file.stream_position().map_err(io)? == 0 {
            let mut start = [0; MAGIC_LEN];
            let n = file.read_at(&mut start, 0).map_err(io)?;
            if Compression::of(&start[..n]) == Compression::None {
                return Ok(file);
            }
        }
        let len = metadata.is_file().then_some(metadata.len());
        self.progress.begin(&format!("reading {name}"), len);
        let limit = self.options.limits.max_bytes;
        let copy = self.store.unlinked()?;
        let growing = Growing::new(&copy, u64::MAX);
        let unwritten = |source| LoadError::Copy { name: name.into(), source };
        let mut decoded = Decoded::new(Counted { inner: file, progress: self.progress }, name).map_err(io)?;
        let (mut piece, mut copied) = (vec![0; MAX_PIECE], 0);
        loop {
            let n = match decoded.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io(error)),
            };
            growing.write_all_at(&piece[..n], copied).map_err(unwritten)?;
            copied += n as u64;
            if copied > limit {
                return Err(LoadError::TooLong { name: name.into(), limit });
            }
        }
        copy.set_len(copied).map_err(unwritten)?;
        self.progress.end();
        Ok(copy)
    }

    fn add_all(
        &self,
        files: &dyn Files,
        found: Vec<Found>,
        path: Option<&Path>,
        each: &mut dyn FnMut(Loaded),
    ) -> Result<(), LoadError> {
        if let Naming::Only(wanted) = &self.options.naming
            && found.len() > 1
        {
            let (name, count, wanted) = (files.name().into(), found.len(), wanted.to_string());
            return Err(LoadError::OneName { name, count, wanted });
        }
        let names = names(&found, &self.options.naming, path);
        for (found, names) in found.into_iter().zip(names) {
            // What this gives is a lease: of a thousand images only one may be kept.
            each(self.add(files, found, names)?);
        }
        Ok(())
    }

    fn add(&self, files: &dyn Files, found: Found, names: Vec<Reference>) -> Result<Loaded, LoadError> {
        self.put(found, names, None, |layers, out| self.build(files, layers, out))
    }

    /// Puts an image into the store, which `index` has led to; `build` makes its file system if it isn't there yet.
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

    /// How long the layers are, as they are stored. One that isn't as long as its descriptor says, or layers that are longer than an image may
    /// be, aren't worth the reading.
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
    fn limits(&self) -> Limits {
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
            // Whoever reads header by header has the bytes decompressed and hashed in larger pieces all the same.
            Ok(Layer { name: blob_name(layer), tar: Box::new(BufReader::with_capacity(MAX_PIECE, reader)) })
        };
        if let Err(error) = rootfs::build(layers.iter().map(open), out, &self.limits()) {
            // Nonsense in a layer is most likely damage: it was met before the end, where the digests are checked.
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

    fn dir(&self, dir: &Path) -> Result<Loaded, LoadError> {
        let limits = &self.limits();
        let fingerprint = rootfs::fingerprint(dir, limits)?;
        let key = RootfsKey::of_dir(&fingerprint);
        let built = self.store.rootfs(&key, |out| -> Result<(), LoadError> {
            self.progress.begin(&format!("building {}", dir.display()), None);
            rootfs::build_from_dir(dir, out, limits)?;
            if rootfs::fingerprint(dir, limits)? != fingerprint {
                return Err(LoadError::Changed(dir.display().to_string()));
            }
            self.progress.end();
            Ok(())
        });
        let (lease, built) = built.map_err(|error| over_limit(error, || dir.display().to_string()))?;
        // `dir:.` has a name, too.
        let named = dir.canonicalize().unwrap_or_else(|_| dir.into());
        let names = match &self.options.naming {
            Naming::Source => vec![local(&named, None)],
            Naming::Only(name) => vec![name.clone()],
            Naming::None => Vec::new(),
        };
        let image = Image {
            digest: Digest::of(format!("bothy dir {fingerprint}").as_bytes()),
            digest_of: DigestOf::Directory,
            platform: self.options.platform.clone(),
            created: None,
            config: RunConfig::default(),
            diff_ids: Vec::new(),
            rootfs: key.as_str().into(),
            indexes: Vec::new(),
        };
        let moved = self.store.add(&image, &names)?;
        Ok(Loaded { image, names, moved, built, lease })
    }
}

fn over_limit(error: LoadError, called: impl FnOnce() -> String) -> LoadError {
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

/// What each image will be called: as somebody wants it, as the source says, or else after the file that it is from. Those that would all
/// get the file's name, because they have none, are told apart by their digests.
fn names(found: &[Found], naming: &Naming, path: Option<&Path>) -> Vec<Vec<Reference>> {
    let mut heirs: BTreeMap<Reference, BTreeSet<&Digest>> = BTreeMap::new();
    if let Some(path) = path {
        for found in found.iter().filter(|found| found.names.is_empty()) {
            heirs.entry(local(path, found.tag.as_deref())).or_default().insert(&found.digest);
        }
    }
    let name = |found: &Found| match (naming, path) {
        (Naming::None, _) => Vec::new(),
        (Naming::Only(wanted), _) => vec![wanted.clone()],
        (Naming::Source, Some(path)) if found.names.is_empty() => {
            let name = local(path, found.tag.as_deref());
            let is_contested = found.tag.is_none() && heirs.get(&name).is_some_and(|heirs| heirs.len() > 1);
            vec![if is_contested { local(path, Some(found.digest.short())) } else { name }]
        }
        (Naming::Source, _) => found.names.clone(),
    };
    found.iter().map(name).collect()
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

/// Longest time that is kept: all images' are in memory at once when they are listed.
const MAX_TIME_LEN: usize = 100;
/// Of an uncompressed layer, in bytes.
const MAX_PIECE: usize = 128 << 10;

/// Tells how far it has been read.
struct Counted<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.progress.advance(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
