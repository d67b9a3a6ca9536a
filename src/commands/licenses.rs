//! `bothy licenses`.

use anyhow::Context;

use super::Failure;
use crate::guest_files::GuestFiles;

/// Names the programs in the guest that others wrote, with what is needed to get their sources.
pub(super) fn licenses() -> Result<u8, Failure> {
    println!("bothy {} is licensed under Apache-2.0 OR MIT, at your choice.", env!("CARGO_PKG_VERSION"));
    let guest = GuestFiles::find().context("the guest's programs can't be named")?;
    let manifest = guest.read_manifest().context("the guest's programs can't be named")?;
    println!("Its guest contains, each with the Debian source package that it is built from:");
    for (name, component) in [("Linux", manifest.kernel), ("busybox", manifest.initramfs.busybox)] {
        let (package, version) = (component.source_package, component.source_version);
        println!(
            "  {name}: {}, source package {package} {version} (`apt-get source {package}={version}`)",
            component.licence
        );
    }
    Ok(0)
}
