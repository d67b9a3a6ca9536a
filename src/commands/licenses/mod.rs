//! `bothy licenses`: what others wrote of the guest and of bothy itself, as far as it isn't under
//! bothy's own licences, with the notices that must go with it.

use anyhow::Context;

use super::{Failure, print};
use crate::guest_files::GuestFiles;

/// A library that is linked into bothy, and its notice in its own words.
struct Library {
    name: &'static str,
    licence: &'static str,
    source: &'static str,
    notice: &'static str,
}

const LIBRARIES: [Library; 8] = [
    Library {
        name: "zstd",
        licence: "BSD-3-Clause",
        source: "the C library, linked statically; its sources are in the crate zstd-sys",
        notice: include_str!("zstd.txt"),
    },
    Library {
        name: "zstd's Rust interface",
        licence: "BSD-3-Clause",
        source: "the crates zstd, zstd-safe and zstd-sys",
        notice: include_str!("zstd-bindings.txt"),
    },
    Library {
        name: "zlib-rs",
        licence: "Zlib",
        source: "the crate zlib-rs",
        notice: include_str!("zlib-rs.txt"),
    },
    Library {
        name: "libbzip2-rs",
        licence: "bzip2-1.0.6",
        source: "the crate libbz2-rs-sys, a translation of libbzip2 to Rust",
        notice: include_str!("bzip2.txt"),
    },
    Library {
        name: "ring",
        licence: "Apache-2.0 AND ISC",
        source: "the crate ring, with code of BoringSSL's",
        notice: include_str!("ring.txt"),
    },
    Library {
        name: "rustls-webpki",
        licence: "ISC",
        source: "the crate rustls-webpki",
        notice: include_str!("rustls-webpki.txt"),
    },
    Library {
        name: "untrusted",
        licence: "ISC",
        source: "the crate untrusted",
        notice: include_str!("untrusted.txt"),
    },
    Library {
        name: "subtle",
        licence: "BSD-3-Clause",
        source: "the crate subtle",
        notice: include_str!("subtle.txt"),
    },
];

/// Names the programs in the guest that others wrote, with what is needed to get their sources; and
/// the libraries.
pub(super) fn licenses() -> Result<u8, Failure> {
    let guest = guest();
    let mut text =
        format!("bothy {} is licensed under Apache-2.0 OR MIT, at your choice.\n", env!("CARGO_PKG_VERSION"));
    text.push_str(guest.as_deref().unwrap_or_default());
    text.push_str(&libraries());
    print(&text)?;
    guest.context("the guest's programs can't be named")?;
    Ok(0)
}

fn guest() -> anyhow::Result<String> {
    let manifest = GuestFiles::find()?.read_manifest()?;
    let mut text =
        "Its guest contains, each with the Debian source package that it is built from:\n".to_owned();
    for (name, component) in [("Linux", manifest.kernel), ("busybox", manifest.initramfs.busybox)] {
        let (package, version) = (component.source_package, component.source_version);
        text.push_str(&format!(
            "  {name}: {}, source package {package} {version} (`apt-get source {package}={version}`)\n",
            component.licence
        ));
    }
    Ok(text)
}

fn libraries() -> String {
    let mut text = "bothy itself contains:\n".to_owned();
    for Library { name, licence, source, .. } in &LIBRARIES {
        text.push_str(&format!("  {name}: {licence}, {source}\n"));
    }
    for Library { name, notice, .. } in &LIBRARIES {
        text.push_str(&format!("\n{name}:\n\n{}\n", notice.trim()));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn libraries_are_named_with_their_notices() {
        let text = super::libraries();
        for part in [
            "  zstd: BSD-3-Clause, ",
            "  zlib-rs: Zlib, ",
            "Copyright (c) Meta Platforms, Inc. and affiliates.",
            "Neither the name Facebook, nor Meta",
            "Trifecta Tech Foundation",
            "  libbzip2-rs: bzip2-1.0.6, ",
            "Copyright (C) 1996-2021 Julian R Seward.",
            "  ring: Apache-2.0 AND ISC, ",
            "Copyright 2015-2025 Brian Smith.",
            "Copyright 2015-2016 Brian Smith.",
            "Isis Agora Lovecruft",
            "Altered source versions must be plainly marked",
        ] {
            assert!(text.contains(part), "no {part}: {text}");
        }
    }
}
