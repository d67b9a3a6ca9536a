//! `bothy pack`: the step of `make dist` that puts the guest into the binary.

use std::path::Path;

use anyhow::Context;

use super::Failure;
use crate::guest_files::{self, GuestFiles};

/// Writes a self-contained bothy.
pub(super) fn pack(out: &Path) -> Result<u8, Failure> {
    let guest = GuestFiles::find().context("nothing to pack")?;
    guest_files::pack(&guest, out).context("packing failed")?;
    Ok(0)
}
