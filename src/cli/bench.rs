//! The flags of `bothy bench`.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::bench::results::Section;

/// Flags of `bothy bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The image to start, by name or as `bothy load` takes it [default: a small one that is made
    /// for this]
    #[arg(value_name = "IMAGE")]
    pub image: Option<String>,
    /// What to measure [default: all of it]
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub only: Vec<Section>,
    /// Runs of each, or `full` for 100; under 20 there are medians and ranges only
    #[arg(long, value_name = "N|full", default_value = "20", value_parser = parse_runs)]
    pub runs: usize,
    /// What to compare with, besides a plain process
    #[arg(long, value_name = "WITH", value_delimiter = ',', default_value = "runc,crun,podman,docker,qemu")]
    pub against: Vec<Engine>,
    /// Write everything that was found, every sample in it
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Write the report as one HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Measure nothing, and draw the reports again from what --json has written
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "only", "runs", "against", "json"])]
    pub from: Option<PathBuf>,
}

/// What bothy is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The Open Container Initiative's own
    Runc,
    /// The one in C
    Crun,
    /// Runs containers without a daemon
    Podman,
    /// Runs containers by its daemon
    Docker,
    /// Its microvm, with bothy's own kernel and image
    Qemu,
}

impl Engine {
    /// Its program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::Qemu => "qemu",
        }
    }
}

impl ValueEnum for Section {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

fn parse_runs(text: &str) -> Result<usize, String> {
    if text == "full" {
        return Ok(100);
    }
    let runs = text.parse().ok().filter(|runs| (1..=10_000).contains(runs));
    runs.ok_or_else(|| "expected a number of runs, or full".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    #[test]
    fn sections_and_engines_are_lists_and_runs_a_number_or_full() {
        let parse = |words: &str| match Cli::try_parse_from(words.split(' ')).map(|cli| cli.command) {
            Ok(Command::Bench(args)) => Some(args),
            _ => None,
        };
        let args = parse("bothy bench --only startup,memory --runs full --against crun").unwrap();
        assert_eq!((args.only, args.runs), (vec![Section::Startup, Section::Memory], 100));
        assert_eq!(args.against, [Engine::Crun]);
        let args = parse("bothy bench").unwrap();
        assert_eq!((args.only.len(), args.runs, args.against.len()), (0, 20, 5));
        for words in ["--runs 0", "--runs many", "--only speed", "--from a --runs 5"] {
            assert!(parse(&format!("bothy bench {words}")).is_none(), "{words}");
        }
    }
}
