//! Images from registries (OCI distribution-spec 1.1, and what docker's registries do besides).
//!
//! ```text
//! remote                 an image's files, as if they were in a directory
//!   download             a blob that goes on after a broken connection
//!   client               manifests and blobs; redirects; who gets credentials
//!     auth, challenge    tokens and passwords, as the registry asks for them
//!     credentials, helper  what docker login and podman login have saved
//!     retry              failures that may pass
//!     http               one request: timeouts, TLS
//!       proxy, roots     what the environment says
//!     address            hosts, and where answers may lead
//! ```
//!
//! HTTP is blocking: there is no runtime, and no thread but up to two that download beside the caller's and are gone when [`pull`] returns. Nothing here is
//! touched before the first request: whoever pulls nothing pays nothing.
//!
//! **A registry is hostile**, and so is the network. Names and documents are capped, the index of an index of an index is the end, lengths are compared with
//! descriptors before the first byte, digests before anything is used, and what is unpacked goes the same way as an image from a file. See `client` and `auth` for
//! where credentials go. What a registry can do: waste our time within bounds, and give an older image for a tag.

mod address;
mod auth;
mod challenge;
mod client;
mod credentials;
mod download;
mod error;
mod helper;
mod http;
mod proxy;
mod remote;
mod retry;
mod roots;

use std::error::Error;
use std::io;

use self::client::Client;
pub use self::error::{Login, RegistryError};
use self::http::Patience;
use self::remote::Remote;
use super::digest::Digest;
use super::layout::find_image;
use super::load::{LoadError, LoadOptions, Loaded, Loading, Naming, Progress};
use super::manifest::Platform;
use super::reference::Reference;
use super::store::{Image, Store};

/// When a registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// If the image isn't in the store.
    #[default]
    Missing,
    /// Every time: the name may lead to another image now.
    Always,
    /// Never.
    Never,
}

/// How to pull.
#[derive(Debug)]
pub struct PullOptions {
    /// When.
    pub policy: Policy,
    /// Whether registries on other machines may be without TLS, and get saved credentials all the
    /// same.
    pub insecure: bool,
    /// As for any image. It gets the name under which it is pulled, unless there is another one to get.
    pub load: LoadOptions,
}

/// Gets an image into the store, if it isn't there, under the name by which it is asked for.
pub fn pull(
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Loaded, LoadError> {
    let loading = Loading { store, options: &options.load, progress };
    loading.check_platform()?;
    let names = match &options.load.naming {
        Naming::Source => vec![reference.clone()],
        Naming::Only(name) => vec![name.clone()],
        Naming::None => Vec::new(),
    };
    if options.policy != Policy::Always
        && let Some((image, lease)) = store.find(reference)?
        && reference.digest.as_ref().is_none_or(|digest| is_it(&image, digest, &options.load.platform))
    {
        let is_new = options.load.naming != Naming::Source;
        let moved = if is_new { store.add(&image, &names)? } else { Vec::new() };
        return Ok(Loaded { image, names, moved, built: false, lease });
    }
    if options.policy == Policy::Never {
        return Err(LoadError::Absent(reference.to_string()));
    }
    let client = Client::connect(reference, options.insecure, Patience::default())?;
    let remote = Remote::new(store, &client, reference.to_string(), progress);
    let loaded = pull_from(&remote, reference, names, &loading);
    let keep = loaded.as_ref().is_err_and(is_network);
    let closed = remote.close(keep);
    let loaded = loaded?;
    closed?;
    Ok(loaded)
}

fn pull_from(
    remote: &Remote<'_>,
    reference: &Reference,
    names: Vec<Reference>,
    loading: &Loading<'_>,
) -> Result<Loaded, LoadError> {
    let top = remote.top(reference.tag.as_deref(), reference.digest.as_ref())?;
    // The same image, perhaps under a new name.
    let same = Reference { digest: Some(top.digest.clone()), ..reference.clone() };
    if let Some((image, lease)) = loading.store.find(&same)?
        && is_it(&image, &top.digest, &loading.options.platform)
    {
        let moved = loading.store.add(&image, &names)?;
        return Ok(Loaded { image, names, moved, built: false, lease });
    }
    let found = find_image(remote, &loading.options.platform, &top)?;
    let lens = found.layers.iter().filter_map(|layer| layer.len);
    let (total, limit) = (lens.fold(0, u64::saturating_add), loading.options.limits.max_bytes);
    if total > limit {
        return Err(LoadError::Layers { name: reference.to_string(), total, limit });
    }
    loading.put(found, names, Some(top.digest), |layers, out| {
        remote.fetch(layers)?;
        loading.build(remote, layers, out)
    })
}

/// Whether this image is what the digest, of its manifest or of an index that has led to it, means for the platform.
fn is_it(image: &Image, digest: &Digest, platform: &Platform) -> bool {
    image.digest == *digest || image.platform == *platform
}

/// Whether the network is at fault, and not the image.
fn is_network(error: &LoadError) -> bool {
    let mut next: Option<&dyn Error> = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if error.is::<RegistryError>() || inner.is_some_and(|inner| inner.is::<RegistryError>()) {
            return true;
        }
        next = error.source();
    }
    false
}
