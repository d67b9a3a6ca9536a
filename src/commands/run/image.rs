//! From the word for an image to its file system in the store.

use std::ffi::OsStr;
use std::io::IsTerminal;

use anyhow::{Context, bail};

use crate::commands::progress::Bar;
use crate::image::{self, Image, ImageLease, Loaded, Policy, PullOptions, Reference, Source, Store};

/// The image, and the lease of its file system: from the store or a registry by its name, or loaded from a directory or an archive.
pub(in crate::commands) fn find(word: &OsStr, options: &PullOptions) -> anyhow::Result<(Image, ImageLease)> {
    let text = word.to_str().with_context(|| format!("{word:?} is no image's name"))?;
    let source: Source = text.parse()?;
    let store = Store::open().context("can't open the store")?;
    if let Source::Name(name) = &source {
        return by_name(&store, text, name, options);
    }
    if source == Source::Stdin && std::io::stdin().is_terminal() {
        bail!("`-` reads an archive from standard input, which is a terminal");
    }
    let bar = Bar::new();
    let (mut found, mut count) = (None, 0);
    let mut take = |loaded: Loaded| (found, count) = (Some(loaded), count + 1);
    let loaded = image::load(&store, &source, &options.load, &bar, &mut take);
    drop(bar);
    loaded.with_context(|| format!("can't load {text}"))?;
    match found {
        Some(loaded) if count == 1 => Ok((loaded.image, loaded.lease)),
        _ => bail!("{text} holds {count} images: say which one, with :TAG or :@0 after the path"),
    }
}

/// What people mean by a name that is in the store may be shorter than the whole name.
fn by_name(
    store: &Store,
    text: &str,
    name: &Reference,
    options: &PullOptions,
) -> anyhow::Result<(Image, ImageLease)> {
    let may_be_there = options.policy != Policy::Always && options.load.platform.runs_here();
    if may_be_there
        && let Some((image, lease)) =
            store.look_up(text).with_context(|| format!("can't use the image {text}"))?
    {
        return Ok((image, lease));
    }
    let bar = Bar::new();
    let pulled = image::pull(store, name, options, &bar);
    drop(bar);
    let pulled = pulled.with_context(|| format!("can't pull {text}"))?;
    Ok((pulled.image, pulled.lease))
}
