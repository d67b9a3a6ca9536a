//! The files of an image in a registry: documents come when they are asked for, layers all
//! together, several at once.
//!
//! Configuration and layers go through the store's blobs, so that several processes which pull the
//! same at once download it once. They are gone when the image is in the store; after a failure of
//! the network those that are complete stay, and the next pull goes on from there (or `prune`
//! removes them).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::client::Client;
use super::download::{Download, State};
use super::error::RegistryError;
use crate::image::LOG;
use crate::image::descriptor::{Descriptor, is_index, is_manifest};
use crate::image::digest::Digest;
use crate::image::files::{ContentError, Files, Opened, check_document};
use crate::image::found::LayerSource;
use crate::image::manifest::MAX_DOCUMENT_LEN;
use crate::image::progress::Progress;
use crate::image::store::{Store, StoreError};
use crate::store::Lease;

/// Most blobs that come at the same time; docker has three as well.
const PARALLEL: usize = 3;

/// An image in a registry.
pub(in crate::image) struct Remote<'a> {
    store: &'a Store,
    client: &'a Client,
    name: String,
    progress: &'a dyn Progress,
    /// What was fetched by name.
    top: RefCell<Option<(Digest, Vec<u8>)>>,
    /// By path.
    leases: RefCell<BTreeMap<String, Lease>>,
}

impl<'a> Remote<'a> {
    pub(in crate::image) fn new(
        store: &'a Store,
        client: &'a Client,
        name: String,
        progress: &'a dyn Progress,
    ) -> Self {
        Self { store, client, name, progress, top: RefCell::default(), leases: RefCell::default() }
    }

    /// A descriptor of the manifest or index with this tag or digest.
    pub(in crate::image) fn top(
        &self,
        tag: Option<&str>,
        digest: Option<&Digest>,
    ) -> Result<Descriptor, ContentError> {
        let which = digest.map(ToString::to_string);
        let which = which.as_deref().or(tag).unwrap_or("latest");
        let (bytes, media_type) = self.client.manifest(which, MAX_DOCUMENT_LEN)?;
        let digest = digest.cloned().unwrap_or_else(|| Digest::of(&bytes));
        // Some registries call it all JSON, and some text; then what is in it counts.
        let known = is_index(&media_type) || is_manifest(&media_type);
        let descriptor = Descriptor {
            media_type: if known { media_type } else { String::new() },
            digest: digest.clone(),
            size: bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        };
        check_document(&descriptor, &bytes, digest.to_string())?;
        *self.top.borrow_mut() = Some((digest, bytes));
        Ok(descriptor)
    }

    /// Gets all of these layers into the store's blobs. The first failure ends it.
    pub(in crate::image) fn fetch(&self, layers: &[LayerSource]) -> Result<(), StoreError> {
        let mut wanted = BTreeMap::new();
        for layer in layers {
            if let (Some(digest), Some(len)) = (&layer.digest, layer.len) {
                wanted.insert(layer.path.as_str(), (digest, len));
            }
        }
        wanted.retain(|path, _| !self.leases.borrow().contains_key(*path));
        // In the order in which they are applied.
        let mut order: Vec<_> = layers.iter().map(|layer| layer.path.as_str()).collect();
        order.retain(|path| wanted.contains_key(path));
        let wanted: Vec<_> =
            order.into_iter().filter_map(|path| Some((path, wanted.remove(path)?))).collect();
        let total = wanted.iter().fold(0u64, |total, (_, (_, len))| total.saturating_add(*len));
        self.progress.begin(&format!("pulling {}", self.name), Some(total));
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (got, failed) = (Mutex::new(Vec::new()), Mutex::new(None));
        let (store, client, progress) = (self.store, self.client, self.progress);
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let Some((path, (digest, len))) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                let result = blob(store, client, progress, digest, *len, &stop);
                match result {
                    Ok(lease) => lock(&got).push(((*path).to_owned(), lease)),
                    Err(error) => {
                        lock(&failed).get_or_insert(error);
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for number in 1..PARALLEL.min(wanted.len()) {
                let thread = std::thread::Builder::new().name(format!("pull{number}"));
                // Without more threads this one does it all.
                if let Err(error) = thread.spawn_scoped(scope, work) {
                    LOG.info(format_args!("can't start a thread: {error}"));
                }
            }
            work();
        });
        self.leases.borrow_mut().extend(lock(&got).drain(..));
        self.progress.end();
        match lock(&failed).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Gives up what was fetched. `keep` leaves it in the store, for the next pull.
    pub(in crate::image) fn close(self, keep: bool) -> Result<(), StoreError> {
        if keep {
            return Ok(());
        }
        self.leases.into_inner().into_values().try_for_each(|lease| self.store.release_blob(lease))
    }

    /// The configuration, by way of the store.
    fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ContentError> {
        let path = descriptor.digest.blob_path();
        let stop = AtomicBool::new(false);
        let lease = blob(self.store, self.client, &Silent, &descriptor.digest, descriptor.size, &stop);
        let lease = lease.map_err(|error| match error {
            StoreError::Blob { name, source } => match source.downcast() {
                // It may be an entry of an index that leads nowhere.
                Ok(error) if RegistryError::is_missing(&error) => error.into(),
                Ok(error) => ContentError::Io { name, source: error.into() },
                Err(source) => ContentError::Io { name, source },
            },
            error => ContentError::Io { name: path.clone(), source: std::io::Error::other(error) },
        })?;
        self.leases.borrow_mut().insert(path.clone(), lease);
        self.read(&path)
    }
}

/// A blob in the store, leased; downloaded if it isn't there.
fn blob(
    store: &Store,
    client: &Client,
    progress: &dyn Progress,
    digest: &Digest,
    len: u64,
    stop: &AtomicBool,
) -> Result<Lease, StoreError> {
    let told = Cell::new(0);
    let open = || {
        let state = State::default();
        Ok(Download { client, digest, len, progress, told: &told, stop, state })
    };
    let lease = store.blob(digest, Some(len), open)?;
    progress.advance(len.saturating_sub(told.get()));
    Ok(lease)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody needs to see a bar for a few kilobytes.
struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
}

impl Files for Remote<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, path: &str) -> Result<Option<Opened<'_>>, ContentError> {
        let leases = self.leases.borrow();
        let Some(lease) = leases.get(path) else { return Ok(None) };
        let opened = || {
            // Its own offset: a layer may be read twice.
            let file = File::open(lease.path())?;
            let len = file.metadata()?.len();
            Ok(Opened { reader: Box::new(file), len })
        };
        opened().map(Some).map_err(|source| ContentError::Io { name: path.into(), source })
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ContentError> {
        let (digest, media_type) = (&descriptor.digest, descriptor.media_type.as_str());
        if let Some((top, bytes)) = &*self.top.borrow()
            && top == digest
        {
            return Ok(bytes.clone());
        }
        let path = digest.blob_path();
        if descriptor.size > MAX_DOCUMENT_LEN {
            return Err(ContentError::TooLong { name: self.name.clone(), path });
        }
        if media_type.is_empty() || is_index(media_type) || is_manifest(media_type) {
            match self.client.manifest(&digest.to_string(), descriptor.size) {
                // A configuration may have no type either.
                Err(error) if media_type.is_empty() && error.is_missing() => {}
                manifest => {
                    let (bytes, _) = manifest?;
                    check_document(descriptor, &bytes, path)?;
                    return Ok(bytes);
                }
            }
        }
        self.small_blob(descriptor)
    }
}
