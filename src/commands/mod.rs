//! The subcommands, a file each; every one reads as a recipe.

mod attend;
mod boot;
mod doctor;
mod licenses;
mod pack;
mod signals;
mod terminal;

use std::fs::OpenOptions;
use std::path::Path;

use anyhow::Context;

use crate::cli::{Cli, Command};

/// Why a command failed, by exit code.
#[derive(Debug)]
pub enum Failure {
    /// The words were wrong: exit code 2.
    Usage(anyhow::Error),
    /// They were right, and it couldn't be done: exit code 1.
    Setup(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Setup(error)
    }
}

/// Runs a command and gives its exit code. `exec_ns` is when the program started.
pub fn run(cli: Cli, exec_ns: u64) -> Result<u8, Failure> {
    match cli.command {
        Command::Boot(args) => {
            start_log(args.log_file.as_deref())?;
            boot::boot(&args, exec_ns)
        }
        Command::Doctor => doctor::doctor(),
        Command::Licenses => licenses::licenses(),
        Command::Pack { out } => pack::pack(&out),
    }
}

/// Warnings go to standard error, or everything that RUST_LOG asks for to a file.
fn start_log(file: Option<&Path>) -> Result<(), Failure> {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"));
    if let Some(path) = file {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("--log-file: can't open {}", path.display()))?;
        builder.target(env_logger::Target::Pipe(Box::new(file)));
    }
    builder.init();
    Ok(())
}
