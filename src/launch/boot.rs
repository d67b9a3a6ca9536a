//! The VM of `bothy boot`: a kernel of the user's or bothy's own, and the devices of a
//! configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bothy_guest::protocol::WindowSize;
use serde::{Deserialize, Serialize};

use crate::boot;
use crate::boot::image::{Blob, KernelImage};
use crate::config::{Console, VmConfig};
use crate::guest_files::GuestFiles;
use crate::virtio::{blk, vsock};
use crate::vmm::{Backends, Kernel, Origin, Resources};

/// The request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BootVm {
    /// The VM.
    pub config: VmConfig,
    /// The directory of bothy's own guest, where the environment names one.
    pub guest: Option<PathBuf>,
    /// Boot Linux even where this host's KVM is known not to run it.
    pub force: bool,
    /// Words for bothy's own guest about the user's terminal.
    pub terminal: Option<String>,
    /// The size of the user's terminal.
    pub console_size: Option<WindowSize>,
    /// Whether the VM's report has counters.
    pub count: bool,
}

impl BootVm {
    /// Whether a client carries the console's bytes.
    pub fn has_console(&self) -> bool {
        self.config.console() != Console::None
    }

    /// Opens everything that the VM needs; afterwards only the VM itself can fail. Taps that are
    /// made here have their names in the configuration that is returned.
    pub fn open(self) -> anyhow::Result<(VmConfig, Resources)> {
        let Self { mut config, guest, force, terminal, console_size, count } = self;
        let own_guest = config.kernel.is_none();
        let (kernel, initrd) = kernel_and_initrd(&config, guest.as_deref())?;
        if kernel.is_linux && !force {
            super::must_run_linux("; or try anyhow with --force")?;
        }
        let nets = super::ports(&mut config.net)?;
        let cmdline = command_line(&config, own_guest, terminal.as_deref());
        boot::check_cmdline(&cmdline)?;
        let disks = config
            .disk
            .iter()
            .map(|disk| blk::Disk::open(disk).context("--disk"))
            .collect::<Result<_, _>>()?;
        let kvm = super::kvm()?;
        // Last, so that no failure leaves its socket behind.
        let listen = |vsock: &vsock::Config| {
            vsock.listen().with_context(|| format!("--vsock: can't listen at {}", vsock.path.display()))
        };
        let vsock = config.vsock.as_ref().map(listen).transpose()?;
        let origin = Origin::Kernel(Kernel { kernel, initrd, cmdline });
        let backends = Backends { disks, nets, vsock, console_size };
        Ok((config, Resources { kvm, origin, snapshot: None, backends, held: Vec::new(), count }))
    }
}

fn kernel_and_initrd(config: &VmConfig, guest: Option<&Path>) -> anyhow::Result<(KernelImage, Option<Blob>)> {
    let initrd = config.initrd.as_deref().map(|path| Blob::open(path).context("--initrd")).transpose()?;
    if let Some(empty) = initrd.as_ref().filter(|blob| blob.len == 0) {
        bail!("--initrd: {} is empty", empty.path.display());
    }
    match &config.kernel {
        Some(path) => Ok((super::kernel_at(path)?, initrd)),
        None => {
            let guest = GuestFiles::find_in(guest)?;
            Ok((super::own_kernel(guest.kernel)?, initrd.or(Some(guest.initramfs))))
        }
    }
}

/// What the kernel is told. Only bothy's own guest is told to be quiet, to reset on a panic, and
/// what the terminal is: another kernel's user decides that with --append.
fn command_line(config: &VmConfig, own_guest: bool, terminal: Option<&str>) -> String {
    let mut words = Vec::new();
    match config.console() {
        // With flow control, so that nothing that is typed or piped in gets lost.
        Console::Serial => words.push("console=ttyS0,115200n8r".to_owned()),
        Console::Virtio => words.push("console=hvc0".to_owned()),
        Console::None => {}
    }
    if own_guest {
        words.push(super::own_kernel_words(config.transport()).to_owned());
        words.extend(terminal.map(str::to_owned));
    }
    words.extend(config.net.iter().map(|net| format!("{}={}", bothy_guest::KEY_NET, super::network(net))));
    // Until the console's driver is there.
    let early = (config.console() == Console::Virtio).then(|| "earlyprintk=ttyS0,115200".to_owned());
    let append = config.append.clone();
    // Behind whoever sets the level of what is printed, which counts from there on; but not where
    // words may be init's, behind a `--`.
    let [first, last] = if append.as_deref().is_some_and(|words| words.contains("--")) {
        [early, append]
    } else {
        [append, early]
    };
    words.extend(first.into_iter().chain(last));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Transport;

    #[test]
    fn only_the_own_guest_is_quiet_and_resets_on_a_panic() {
        let config = VmConfig { append: Some("root=/dev/vda".into()), ..Default::default() };
        let own = command_line(&config, true, None);
        assert!(
            own.starts_with("console=ttyS0,115200n8r panic=-1 loglevel=3 noreplace-smp")
                && own.ends_with(" root=/dev/vda"),
            "{own}"
        );
        let mmio = VmConfig { transport: Some(Transport::Mmio), ..config.clone() };
        assert!(command_line(&mmio, true, None).contains(" pci=off "));
        let other = VmConfig { kernel: Some("bzImage".into()), ..config };
        assert_eq!(command_line(&other, false, None), "console=ttyS0,115200n8r root=/dev/vda");
        let virtio = VmConfig { console: Some(Console::Virtio), ..other };
        assert_eq!(command_line(&virtio, false, None), "console=hvc0 root=/dev/vda earlyprintk=ttyS0,115200");
        let virtio = VmConfig { append: Some("a -- b".into()), ..virtio };
        assert_eq!(command_line(&virtio, false, None), "console=hvc0 earlyprintk=ttyS0,115200 a -- b");
        let config = VmConfig { console: Some(Console::None), ..Default::default() };
        assert_eq!(command_line(&config, false, None), "");
    }
}
