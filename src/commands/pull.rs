//! `bothy pull`: images from registries into the store.

use anyhow::Context;

use super::progress::Bar;
use super::{Failure, print};
use crate::cli::PullArgs;
use crate::image::rootfs::Limits;
use crate::image::{self, LoadOptions, Loaded, Naming, Policy, PullOptions, Reference, Store};

/// Pulls every image, in order, and names what is now in the store. The first failure ends it.
pub(super) fn pull(args: &PullArgs) -> Result<u8, Failure> {
    let names = args.names.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    let store = Store::open().context("can't open the store")?;
    let load =
        LoadOptions { naming: Naming::Source, platform: args.platform.clone(), limits: Limits::default() };
    let options = PullOptions { policy: Policy::Always, insecure: args.insecure_registry, load };
    for (name, text) in names.iter().zip(&args.names) {
        let bar = Bar::new();
        let pulled =
            image::pull(&store, name, &options, &bar).with_context(|| format!("can't pull {text}"))?;
        drop(bar);
        print(&line(&pulled))?;
    }
    Ok(0)
}

fn parse(text: &str) -> Result<Reference, Failure> {
    let name = text.strip_prefix("docker://").unwrap_or(text);
    name.parse().map_err(|error: image::ReferenceError| Failure::Usage(error.into()))
}

fn line(pulled: &Loaded) -> String {
    let names: Vec<String> = pulled.names.iter().map(ToString::to_string).collect();
    let how = if pulled.built { "" } else { " (its file system was there already)" };
    format!("pulled {} {}{how}\n", names.join(" "), pulled.image.digest)
}
