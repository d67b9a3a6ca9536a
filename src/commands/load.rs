//! `bothy load`: images from files and directories into the store.

use std::io::IsTerminal;

use anyhow::{Context, anyhow};

use super::progress::Bar;
use super::{Failure, print};
use crate::cli::LoadArgs;
use crate::image::rootfs::Limits;
use crate::image::{self, LoadOptions, Loaded, Naming, Source, Store};

/// Loads every source, in order, and names what is now in the store. The first failure ends it.
pub(super) fn load(args: &LoadArgs) -> Result<u8, Failure> {
    if args.name.is_some() && args.sources.len() > 1 {
        return Err(Failure::Usage(anyhow!("--name can't be given to several images: load them one by one")));
    }
    let sources = args.sources.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    let store = Store::open().context("can't open the store")?;
    let mut limits = Limits { max_bytes: args.max_bytes, ..Limits::default() };
    limits.max_entries = args.max_entries.unwrap_or(limits.max_entries);
    let naming = match &args.name {
        Some(name) => Naming::Only(name.clone()),
        None if args.no_names => Naming::None,
        None => Naming::Source,
    };
    let options = LoadOptions { naming, platform: args.platform.clone(), limits };
    for (source, text) in sources.iter().zip(&args.sources) {
        let bar = Bar::new();
        let mut printed = Ok(());
        let mut tell = |loaded: Loaded| {
            if printed.is_ok() {
                printed = print(&line(&loaded));
            }
        };
        let loaded = image::load(&store, source, &options, &bar, &mut tell);
        drop(bar);
        loaded.with_context(|| format!("can't load {text}"))?;
        printed?;
    }
    Ok(0)
}

fn parse(text: &str) -> Result<Source, Failure> {
    let source = match text.parse() {
        Ok(source) => source,
        Err(error) if image::ReferenceError::is_usage(&error) => return Err(Failure::Usage(error.into())),
        Err(error) => return Err(Failure::Setup(error.into())),
    };
    if source == Source::Stdin && std::io::stdin().is_terminal() {
        return Err(Failure::Usage(anyhow!("`-` reads an archive from standard input, which is a terminal")));
    }
    Ok(source)
}

fn line(loaded: &Loaded) -> String {
    let names: Vec<String> = loaded.names.iter().map(ToString::to_string).collect();
    let names = if names.is_empty() { "<none>".into() } else { names.join(" ") };
    let how = if loaded.built { "" } else { " (its file system was there already)" };
    let mut text = format!("loaded {names} {}{how}\n", loaded.image.digest);
    for moved in &loaded.moved {
        text.push_str(&format!("moved {} here from {}\n", moved.name, moved.from));
    }
    text
}
