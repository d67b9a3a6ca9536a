//! From the word for an image to its file system in the store.

use std::ffi::OsStr;
use std::io::IsTerminal;

use anyhow::{Context, bail};

use super::RunConfig;
use crate::commands::progress::Bar;
use crate::image::rootfs::Limits;
use crate::image::{self, ImageLease, LoadOptions, Loaded, Platform, Source, Store};

/// The image's defaults, and the lease of its file system: from the store by its name, or loaded from a directory or an archive.
pub(super) fn find(word: &OsStr) -> anyhow::Result<(RunConfig, ImageLease)> {
    let text = word.to_str().with_context(|| format!("{word:?} is no image's name"))?;
    let source: Source = text.parse()?;
    let store = Store::open().context("can't open the store")?;
    if let Source::Name(name) = &source {
        return match store.look_up(text).with_context(|| format!("can't use the image {text}"))? {
            Some((image, lease)) => Ok((image.config, lease)),
            None => bail!(
                "there is no image {name} in the store: `bothy load` it from a file, and see `bothy images`"
            ),
        };
    }
    if source == Source::Stdin && std::io::stdin().is_terminal() {
        bail!("`-` reads an archive from standard input, which is a terminal");
    }
    let options = LoadOptions { name: None, platform: Platform::native(), limits: Limits::default() };
    let bar = Bar::new();
    let (mut found, mut count) = (None, 0);
    let mut take = |loaded: Loaded| (found, count) = (Some(loaded), count + 1);
    let loaded = image::load(&store, &source, &options, &bar, &mut take);
    drop(bar);
    loaded.with_context(|| format!("can't load {text}"))?;
    match found {
        Some(loaded) if count == 1 => Ok((loaded.image.config, loaded.lease)),
        _ => bail!("{text} holds {count} images: say which one, with :TAG or :@0 after the path"),
    }
}
