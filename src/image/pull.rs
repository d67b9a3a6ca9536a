//! Gets an image from a registry into the store, if it isn't there already.

use std::error::Error;
use std::io;

use super::descriptor::Platform;
use super::digest::Digest;
use super::import::{LoadError, LoadOptions, Loaded, Loading, Naming};
use super::layout::find_image;
use super::progress::Progress;
use super::reference::Reference;
use super::registry::{Client, Patience, RegistryError, Remote};
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
    /// As for any image. It gets the name under which it is pulled, unless there is another one to
    /// get.
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

/// Whether this image is what the digest, of its manifest or of an index that has led to it, means
/// for the platform.
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
