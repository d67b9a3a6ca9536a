//! `bothy prune`: room in the store.

use anyhow::Context;

use super::{Failure, print, size};
use crate::image::Store;

/// Removes what isn't needed; with `all`, whatever isn't in use.
pub(super) fn prune(all: bool) -> Result<u8, Failure> {
    let store = Store::open().context("can't open the store")?;
    let pruned = store.prune(all).context("can't prune the store")?;
    let images = if pruned.images == 1 { "image" } else { "images" };
    print(&format!("removed {} {images}, {}\n", pruned.images, size(pruned.bytes)))?;
    Ok(0)
}
