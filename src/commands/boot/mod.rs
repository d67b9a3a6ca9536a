//! `bothy boot`.

mod attend;
mod keys;

use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;

use anyhow::{Context, anyhow};
use bothy_guest::protocol::WindowSize;

use self::attend::Ended;
use super::{Failure, say, say_timing};
use crate::boot;
use crate::boot::image::{Blob, KernelImage};
use crate::cli::{BootArgs, TimingFormat};
use crate::config::{Console, VmConfig};
use crate::guest_files::GuestFiles;
use crate::launch;
use crate::report::timing::Timing;
use crate::sys::signals::Signals;
use crate::sys::terminal::{self, RawTerminal};
use crate::timeline::{self, Mark, Timeline};
use crate::virtio::{blk, vsock};
use crate::vmm::process::VmProcess;
use crate::vmm::{Backends, Kernel, Origin, Resources};

/// Boots a VM, attends to it, and gives its exit code.
pub(super) fn boot(args: &BootArgs, exec_ns: u64) -> Result<u8, Failure> {
    let timeline = Timeline::default();
    timeline.record_at(Mark::Exec, exec_ns);
    let mut config = configuration(args)?;
    let resources = open(&mut config, args)?;
    let vsock_socket = resources.backends.vsock.as_ref().map(|listener| listener.place().clone());
    let signals = Signals::ends_and_resizes().context("can't take signals")?;
    let vm = VmProcess::spawn(&config, resources, timeline).context("can't start the VM's process")?;
    let raw = match config.console() {
        Console::Serial | Console::Virtio => RawTerminal::enter().context("can't make the terminal raw")?,
        Console::None => None,
    };
    let ended = attend::attend(vm, raw.as_ref(), signals);
    drop(raw);
    if let Some(socket) = vsock_socket {
        // The VM's process has done it already, unless it came to a bad end.
        socket.clean_up();
    }
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

/// Opens everything that the VM needs; afterwards only the VM itself can fail.
fn open(config: &mut VmConfig, args: &BootArgs) -> Result<Resources, Failure> {
    let own_guest = config.kernel.is_none();
    let (kernel, initrd) = kernel_and_initrd(config)?;
    if kernel.is_linux && !args.force {
        launch::must_run_linux("; or try anyhow with --force")?;
    }
    let nets = launch::taps(&mut config.net)?;
    let cmdline = command_line(config, own_guest);
    boot::check_cmdline(&cmdline).map_err(|error| Failure::Usage(error.into()))?;
    let disks =
        config.disk.iter().map(|disk| blk::Disk::open(disk).context("--disk")).collect::<Result<_, _>>()?;
    let kvm = launch::kvm()?;
    // Last, so that no failure leaves its socket behind.
    let listen = |vsock: &vsock::Config| {
        vsock.listen().with_context(|| format!("--vsock: can't listen at {}", vsock.path.display()))
    };
    let vsock = config.vsock.as_ref().map(listen).transpose()?;
    let count = args.timing.is_some();
    let console_size = terminal::size().filter(|_| io::stdin().is_terminal());
    let origin = Origin::Kernel(Kernel { kernel, initrd, cmdline });
    let backends = Backends { disks, nets, vsock, console_size };
    Ok(Resources { kvm, origin, snapshot: None, backends, at_end: None, count })
}

fn kernel_and_initrd(config: &VmConfig) -> anyhow::Result<(KernelImage, Option<Blob>)> {
    let initrd = config.initrd.as_deref().map(|path| Blob::open(path).context("--initrd")).transpose()?;
    if let Some(empty) = initrd.as_ref().filter(|blob| blob.len == 0) {
        anyhow::bail!("--initrd: {} is empty", empty.path.display());
    }
    match &config.kernel {
        Some(path) => Ok((launch::kernel_at(path)?, initrd)),
        None => {
            let guest = GuestFiles::find()?;
            Ok((launch::own_kernel(guest.kernel)?, initrd.or(Some(guest.initramfs))))
        }
    }
}

/// What the kernel is told. Only bothy's own guest is told to be quiet, to reset on a panic, and what the terminal is:
/// another kernel's user decides that with --append.
fn command_line(config: &VmConfig, own_guest: bool) -> String {
    let mut words = Vec::new();
    match config.console() {
        // With flow control, so that nothing that is typed or piped in gets lost.
        Console::Serial => words.push("console=ttyS0,115200n8r".to_owned()),
        Console::Virtio => words.push("console=hvc0".to_owned()),
        Console::None => {}
    }
    if own_guest {
        words.push(launch::own_kernel_words(config.transport()).to_owned());
        words.extend(terminal_words());
    }
    words.extend(config.net.iter().map(|net| format!("{}={}", bothy_guest::KEY_NET, launch::network(net))));
    // Until the console's driver is there.
    let early = (config.console() == Console::Virtio).then(|| "earlyprintk=ttyS0,115200".to_owned());
    let append = config.append.clone();
    // Behind whoever sets the level of what is printed, which counts from there on; but not where words may be init's, behind a `--`.
    let [first, last] = if append.as_deref().is_some_and(|words| words.contains("--")) {
        [early, append]
    } else {
        [append, early]
    };
    words.extend(first.into_iter().chain(last));
    words.join(" ")
}

/// What a guest's programs should know of the terminal, as words for the kernel's command line, which hands them to init as
/// environment variables: its type and its size. Empty if standard input is none.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Transport;

    #[test]
    fn only_the_own_guest_is_quiet_and_resets_on_a_panic() {
        let config = VmConfig { append: Some("root=/dev/vda".into()), ..Default::default() };
        let own = command_line(&config, true);
        assert!(
            own.starts_with("console=ttyS0,115200n8r panic=-1 loglevel=3 noreplace-smp")
                && own.ends_with(" root=/dev/vda"),
            "{own}"
        );
        let mmio = VmConfig { transport: Some(Transport::Mmio), ..config.clone() };
        assert!(command_line(&mmio, true).contains(" pci=off "));
        let other = VmConfig { kernel: Some("bzImage".into()), ..config };
        assert_eq!(command_line(&other, false), "console=ttyS0,115200n8r root=/dev/vda");
        let virtio = VmConfig { console: Some(Console::Virtio), ..other };
        assert_eq!(command_line(&virtio, false), "console=hvc0 root=/dev/vda earlyprintk=ttyS0,115200");
        let virtio = VmConfig { append: Some("a -- b".into()), ..virtio };
        assert_eq!(command_line(&virtio, false), "console=hvc0 earlyprintk=ttyS0,115200 a -- b");
        let config = VmConfig { console: Some(Console::None), ..Default::default() };
        assert_eq!(command_line(&config, false), "");
    }
}
