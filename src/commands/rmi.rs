//! `bothy rmi`: images out of the store.

use anyhow::Context;

use super::{Failure, print};
use crate::image::Store;

/// Removes every name, in order, and says what is gone. The first failure ends it.
pub(super) fn rmi(names: &[String]) -> Result<u8, Failure> {
    let store = Store::open().context("can't open the store")?;
    for name in names {
        let removed = store.remove_image(name).with_context(|| format!("can't remove {name}"))?;
        print(&removed.iter().map(|text| format!("removed {text}\n")).collect::<String>())?;
    }
    Ok(0)
}
