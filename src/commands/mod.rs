//! The subcommands, a file each; every one reads as a recipe.

mod bench;
mod boot;
mod completions;
mod doctor;
mod images;
mod licenses;
mod load;
mod pack;
mod progress;
mod prune;
mod pull;
mod rmi;
mod run;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::cli::{Cli, Command, RunArgs, TimingFormat};
use crate::container::client::{Client, LaunchError, Unlaunched};
use crate::container::monitor;
use crate::container::protocol::{Launch, Vm};
pub use crate::container::session::RUN_FAILED;
use crate::report::timing::Timing;
use crate::sink;
use crate::sys::command_line::CommandLine;
use crate::sys::process::share_one_heap;
use crate::sys::signals::Signals;
use crate::timeline::now_ns;

pub use completions::answer_shell;

/// Why a command failed, by exit code.
#[derive(Debug)]
pub enum Failure {
    /// The words were wrong: exit code 2.
    Usage(anyhow::Error),
    /// They were right, and it couldn't be done: exit code 1.
    Setup(anyhow::Error),
    /// A container couldn't be run, whatever the reason: exit code 125.
    Run(anyhow::Error),
}

impl Failure {
    /// The reason.
    pub fn error(&self) -> &anyhow::Error {
        match self {
            Self::Usage(error) | Self::Setup(error) | Self::Run(error) => error,
        }
    }

    /// What the command returns.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Setup(_) => 1,
            Self::Run(_) => RUN_FAILED,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Setup(error)
    }
}

/// Forks the monitor of a command that starts a VM. To be called first thing in `main`: what the
/// process has read by then, the monitor has in its memory.
pub fn fork_monitor() -> anyhow::Result<Option<Unlaunched>> {
    let command_line = match CommandLine::find() {
        Ok(command_line) => command_line,
        Err(error) if starts_vm(&std::env::args_os().nth(1).unwrap_or_default()) => {
            return Err(error).context("can't find this process's arguments");
        }
        // Other commands do without /proc.
        Err(_) => return Ok(None),
    };
    let forked = match command_line.first_argument() {
        b"boot" | b"run" => monitor::fork(&command_line, &mut monitor::Own::default()),
        b"run-qemu" => monitor::fork(&command_line, &mut bench::Qemu::find()),
        _ => return Ok(None),
    };
    forked.map(Some).context("can't start bothy's monitor")
}

/// Whether the command of this name has a monitor.
fn starts_vm(name: &OsStr) -> bool {
    ["boot", "run", "run-qemu"].iter().any(|known| name == *known)
}

/// Runs a command and gives its exit code. `exec_ns` is when the program started.
pub fn run(cli: Cli, exec_ns: u64, monitor: Option<Unlaunched>) -> Result<u8, Failure> {
    let monitor = monitor.context("only `bothy boot` and `bothy run` start virtual machines");
    match cli.command {
        Command::Boot(args) => {
            start_log(args.log_file.as_deref())?;
            boot::boot(&args, exec_ns, monitor?)
        }
        Command::Run(args) | Command::RunQemu(args) => run_with(&args, exec_ns, monitor),
        Command::Bench(args) => with_log(|| bench::bench(&args)),
        Command::Load(args) => with_log(|| load::load(&args)),
        Command::Pull(args) => with_log(|| pull::pull(&args)),
        Command::Images { json } => with_log(|| images::images(json)),
        Command::Rmi { names } => with_log(|| rmi::rmi(&names)),
        Command::Prune { all } => with_log(|| prune::prune(all)),
        Command::Doctor => doctor::doctor(),
        Command::Completions { shell } => completions::completions(shell),
        Command::Man { dir } => completions::man(&dir),
        Command::Licenses => licenses::licenses(),
        Command::Pack { out } => pack::pack(&out),
    }
}

fn run_with(args: &RunArgs, exec_ns: u64, monitor: anyhow::Result<Unlaunched>) -> Result<u8, Failure> {
    with_log(|| run::run(args, exec_ns, monitor?)).map_err(|failure| match failure {
        Failure::Usage(error) | Failure::Setup(error) | Failure::Run(error) => Failure::Run(error),
    })
}

/// Launches a VM through the monitor. `container` is its id. Also returns the signals that came
/// meanwhile.
fn launch(
    monitor: Unlaunched,
    container: String,
    exec_ns: u64,
    vm: Vm,
    log_file: Option<&Path>,
    mut descriptors: Vec<OwnedFd>,
    signals: &mut Signals,
) -> Result<(Client, Vec<i32>), Failure> {
    if let Some(path) = log_file {
        descriptors.insert(0, open_log_file(path)?.into());
    }
    share_one_heap();
    let launch = Launch {
        exec_ns,
        requested_ns: now_ns(),
        log_filters: log_filters(),
        has_log_file: log_file.is_some(),
        vm,
    };
    let mut early = Vec::new();
    match monitor.launch(container, launch, descriptors, signals, &mut early) {
        Ok(client) => Ok((client, early)),
        Err(LaunchError { is_usage: true, error }) => Err(Failure::Usage(error)),
        Err(LaunchError { is_usage: false, error }) => Err(Failure::Setup(error)),
    }
}

/// Runs a command that has no log file of its own.
fn with_log(command: impl FnOnce() -> Result<u8, Failure>) -> Result<u8, Failure> {
    start_log(None)?;
    command()
}

/// Writes to standard output. Nobody is told when its reader has gone: what was asked for has been
/// done.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("can't write to standard output").into())
        }
        _ => Ok(()),
    }
}

/// Tells where the time went.
fn say_timing(timing: &Timing, format: TimingFormat) {
    match format {
        TimingFormat::Text => say(timing.to_string().trim_end()),
        TimingFormat::Json => say(&timing.json()),
    }
}

/// A number of bytes for people: `4.2 MB`, with the units that docker uses.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // In tenths of the unit, rounded; 999.95 kB are 1.0 MB.
    let (mut tenths, mut unit) = ((bytes + 50) / 100, 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths = (tenths + 500) / 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// How long a reader of standard error may keep us.
const SAY_GRACE: Duration = Duration::from_secs(1);

/// Writes a line to standard error, unless its reader doesn't read or has gone: nobody waits for a
/// message that nobody reads, and nothing fails for it.
pub fn say(text: &str) {
    if let Some(stderr) = sink::standard_error() {
        // Line by line, so that none is cut.
        let _unread = text.lines().all(|line| stderr.write(line, SAY_GRACE));
    }
}

/// What to log, by the environment.
fn log_filters() -> Option<String> {
    std::env::var("RUST_LOG").ok()
}

/// Warnings, or what RUST_LOG asks for, go to standard error or to a file.
fn start_log(file: Option<&Path>) -> Result<(), Failure> {
    if let Some(path) = file {
        let opened = open_log_file(path)?;
        sink::Log::to_file(&opened).with_context(|| format!("--log-file: can't open {}", path.display()))?;
    }
    sink::start_log(log_filters().as_deref());
    Ok(())
}

fn open_log_file(path: &Path) -> anyhow::Result<File> {
    // A pipe without a reader is an error, and not waited for.
    let opened = OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path);
    opened.with_context(|| format!("--log-file: can't open {}", path.display()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_rounded_to_a_tenth_of_their_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (4_243_456, "4.2 MB"),
            (1 << 40, "1.1 TB"),
        ] {
            assert_eq!(super::size(bytes), text, "{bytes}");
        }
    }
}
