//! From a request to what a virtual machine is made of: open files, taps, kernels, the words for a
//! kernel.
//!
//! - [`boot`] is the VM of `bothy boot`;
//! - [`container`] is a VM for containers, with their agent;
//! - `scratch` is a disk for what they write.
//!
//! Requests are plain data. The monitor opens what they name, and reads no environment variable:
//! the client puts the values that count into the request. The VM's process opens nothing by path.

pub mod boot;
pub mod container;
mod scratch;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};
use bothy_guest::net::NetConfig;

use crate::boot::image::{Blob, KernelImage};
use crate::config::Transport;
use crate::kvm;
use crate::virtio::net;

pub use scratch::scratch_dir;

/// What bothy's own kernel is told, whatever it is for.
///
/// Level 3 keeps the complaint off the console that there is no PCI. With a single CPU the kernel
/// would take the lock prefix off up to 8,000 instructions, each through a page table of its own:
/// an eighth of its boot, and of no use to a machine that lives shortly.
pub fn own_kernel_words(transport: Transport) -> &'static str {
    match transport {
        Transport::Mmio => "panic=-1 loglevel=3 pci=off noreplace-smp",
        Transport::Pci => "panic=-1 loglevel=3 noreplace-smp",
    }
}

/// Fails where the host's KVM is known not to run Linux. `more` is one more way out, for the user.
pub fn must_run_linux(more: &str) -> anyhow::Result<()> {
    match kvm::cannot_run_linux() {
        Some(why) => bail!(
            "this host can't run Linux guests: {why}; use a host with hardware KVM, or an emulated one (tests/host/run){more}"
        ),
        None => Ok(()),
    }
}

/// The kernel that `--kernel` names.
pub fn kernel_at(path: &Path) -> anyhow::Result<KernelImage> {
    given_kernel(Blob::open(path).context("--kernel")?)
}

/// A kernel of the user's.
pub fn given_kernel(kernel: Blob) -> anyhow::Result<KernelImage> {
    KernelImage::inspect(kernel).context("--kernel")
}

/// bothy's own kernel.
pub fn own_kernel(kernel: Blob) -> anyhow::Result<KernelImage> {
    KernelImage::inspect(kernel).context("bothy's own guest")
}

/// The host's side of the VM's network devices, in their order. Taps that are made here get their
/// names.
pub fn ports(nets: &mut [net::Config]) -> anyhow::Result<Vec<net::Ports>> {
    let open = |net: &mut net::Config| {
        let tap = net::Tap::open(net).context("--net")?;
        net.backend = net::Backend::Tap(tap.name().to_owned());
        Ok(tap.into_ports())
    };
    nets.iter_mut().map(open).collect()
}

/// Whether an error of a request is the user's wrong words, and not this host's state.
pub fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<crate::boot::BootError>()
}

/// /dev/kvm.
pub fn kvm() -> anyhow::Result<File> {
    kvm::open(Path::new("/dev/kvm")).context("can't use KVM")
}

/// What the guest's init is told of a network device.
pub fn network(net: &net::Config) -> NetConfig {
    NetConfig {
        mac: net.mac(),
        addresses: net.ip.into_iter().collect(),
        gateways: net.gw.into_iter().collect(),
        dns: net.dns.into_iter().collect(),
    }
}

/// The memory of this host, by sysinfo(2): /proc/meminfo says the same, and takes longer than
/// parsing the command line.
pub fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram * u64::from(info.mem_unit)) >> 20
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_hosts_memory_is_known() {
        assert!(super::host_memory_mib() > 0);
    }
}
