//! `bothy boot`.

mod attend;
mod keys;

use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, anyhow};
use bothy_guest::protocol::WindowSize;

use self::attend::Ended;
use super::{Failure, say, say_timing};
use crate::cli::{BootArgs, TimingFormat};
use crate::config::VmConfig;
use crate::container::client::Unlaunched;
use crate::container::protocol::Vm;
use crate::guest_files::dir_variable;
use crate::launch;
use crate::launch::boot::BootVm;
use crate::random;
use crate::report::timing::Timing;
use crate::sys::signals::Signals;
use crate::sys::terminal::{self, RawTerminal};
use crate::timeline;

/// Boots a VM, attends to it, and gives its exit code.
pub(super) fn boot(args: &BootArgs, exec_ns: u64, monitor: Unlaunched) -> Result<u8, Failure> {
    let vm = BootVm {
        config: configuration(args)?,
        guest: dir_variable(),
        force: args.force,
        terminal: terminal_words(),
        console_size: terminal::size().filter(|_| io::stdin().is_terminal()),
        count: args.timing.is_some(),
    };
    let (console, vm_console) = match vm.has_console() {
        true => UnixStream::pair().map(|(ours, theirs)| (Some(ours), Some(theirs))),
        false => Ok((None, None)),
    }
    .context("can't make a socket")?;
    let mut signals = Signals::ends_and_resizes().context("can't take signals")?;
    let id = random::name::<6>().context("can't get random numbers")?;
    let descriptors = vm_console.into_iter().map(Into::into).collect();
    let vm = Vm::Boot(Box::new(vm));
    let log_file = args.log_file.as_deref();
    let (client, early) = super::launch(monitor, id, exec_ns, vm, log_file, descriptors, &mut signals)?;
    let raw = match console {
        Some(_) => RawTerminal::enter().context("can't make the terminal raw")?,
        None => None,
    };
    let ended = attend::attend(client, console, raw.as_ref(), signals, early);
    drop(raw);
    Ok(conclude(&ended?, args.timing))
}

/// The flags over the file, checked.
fn configuration(args: &BootArgs) -> Result<VmConfig, Failure> {
    let file = match &args.config {
        Some(path) => config_file(path)?,
        None => VmConfig::default(),
    };
    let config = file.overridden_by(args.to_config());
    config.validate(launch::host_memory_mib()).map_err(|error| Failure::Usage(error.into()))?;
    Ok(config)
}

fn config_file(path: &Path) -> Result<VmConfig, Failure> {
    let text =
        fs::read_to_string(path).with_context(|| format!("--config: can't read {}", path.display()))?;
    toml::from_str(&text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1);
        let message = error.message().replace('\n', "; ");
        Failure::Usage(anyhow!("--config: {}, line {line}: {message}", path.display()))
    })
}

/// What a guest's programs should know of the terminal, as words for the kernel's command line,
/// which hands them to init as environment variables: its type and its size. Empty if standard
/// input is none.
fn terminal_words() -> Option<String> {
    if !io::stdin().is_terminal() {
        return None;
    }
    let term = std::env::var("TERM").ok().filter(|term| is_plain(term)).unwrap_or_else(|| "vt100".into());
    Some(match terminal::size() {
        Some(WindowSize { rows, columns }) => format!("TERM={term} LINES={rows} COLUMNS={columns}"),
        None => format!("TERM={term}"),
    })
}

/// Whether a word means nothing but itself on a kernel command line.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
}

fn conclude(ended: &Ended, timing: Option<TimingFormat>) -> u8 {
    if let Some(message) = ended.outcome.message() {
        say(&format!("bothy: {message}"));
    }
    if let Some(format) = timing {
        say_timing(&Timing::new(&ended.times, timeline::now_ns(), ended.counts.as_deref()), format);
    }
    match (ended.outcome.exit_code(), &ended.unwritten) {
        (code, None) => code,
        (code, Some(why)) => {
            say(&format!("bothy: {why}"));
            // Output that is lost is no success.
            code.max(1)
        }
    }
}
