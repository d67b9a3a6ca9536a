//! The subcommands, a file each; every one reads as a recipe.

mod attend;
mod boot;
mod doctor;
mod licenses;
mod pack;
mod signals;
mod terminal;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cli::{Cli, Command};
use crate::poll::{self, Source};

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
            let log = start_log(args.log_file.as_deref())?;
            boot::boot(&args, exec_ns, log)
        }
        Command::Doctor => doctor::doctor(),
        Command::Licenses => licenses::licenses(),
        Command::Pack { out } => pack::pack(&out),
    }
}

/// How long a reader of standard error may keep us.
const SAY_GRACE: Duration = Duration::from_secs(1);

/// Writes to standard error, unless its reader doesn't read or has gone: nobody waits for a message that nobody reads, and nothing
/// fails for it.
pub fn say(text: &str) {
    let mut stderr = std::io::stderr();
    let ready = poll::wait([Source::of(&stderr, false, true)], Some(Instant::now() + SAY_GRACE));
    if ready.is_ok_and(|[stderr]| stderr.writable) {
        // There is nobody left to tell of a failure.
        let _unheard = writeln!(stderr, "{text}");
    }
}

/// Warnings, or what RUST_LOG asks for, go to standard error or to a file, whose descriptor it gives.
fn start_log(file: Option<&Path>) -> Result<Option<RawFd>, Failure> {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"));
    let mut log = None;
    if let Some(path) = file {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("--log-file: can't open {}", path.display()))?;
        log = Some(file.as_raw_fd());
        builder.target(env_logger::Target::Pipe(Box::new(file)));
    }
    builder.init();
    Ok(log)
}
