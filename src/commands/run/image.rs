//! From the word for an image to its file system in the store.
//!
//! A word without a slash is a name, whatever files there are: `bothy run postgres` in a directory
//! that somebody else writes to runs the registry's image. And an image that comes from a file gets
//! no name by being run, or it could take over another image's.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Context, bail};

use crate::commands::progress::Bar;
use crate::image::{
    self, Image, ImageLease, LoadOptions, Loaded, Naming, Policy, PullOptions, Reference, Scope, Source,
    Store,
};

/// The image, and the lease of its file system: from the store or a registry by its name, or loaded
/// from a directory or an archive.
pub(in crate::commands) fn find(word: &OsStr, options: &PullOptions) -> anyhow::Result<(Image, ImageLease)> {
    let text = word.to_str().with_context(|| format!("{word:?} is no image's name"))?;
    let source = Source::to_run(text)?;
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
    let load = LoadOptions { naming: Naming::None, ..options.load.clone() };
    let loaded = image::load(&store, &source, &load, &bar, &mut take);
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
    // Where nothing is pulled, a short name can only mean what was loaded.
    let scope = if options.policy == Policy::Never { Scope::Local } else { Scope::Exact };
    let look_up = |scope| store.look_up(text, scope).with_context(|| format!("can't use the image {text}"));
    if may_be_there && let Some(found) = look_up(scope)? {
        return Ok(found);
    }
    let bar = Bar::new();
    let pulled = image::pull(store, name, options, &bar);
    drop(bar);
    let pulled = pulled.with_context(|| match look_up(Scope::Local) {
        Ok(Some(_)) => format!("can't pull {text} (localhost/{text} is in the store: write all of its name)"),
        _ if Path::new(text).exists() => {
            format!("can't pull {text} (for the file of that name write ./{text})")
        }
        _ => format!("can't pull {text}"),
    })?;
    Ok((pulled.image, pulled.lease))
}
