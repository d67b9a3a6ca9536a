//! A machine for containers: their image, a disk for what they write, the agent, and a socket for
//! it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use bothy_guest::protocol::{Machine, Root, Upper};
use serde::{Deserialize, Serialize};

use super::{given_kernel, kvm, network, own_kernel, own_kernel_words, scratch};
use crate::boot::image::Blob;
use crate::config::{Balloon, Console, Memory, MemorySize, Transport, VmConfig};
use crate::guest_files::GuestFiles;
use crate::random;
use crate::virtio::blk::Cache;
use crate::virtio::{blk, net, vsock};
use crate::vmm::{Backends, Kernel, Origin, Resources};

/// What the guest calls its disks, in their order. The image is the first.
const DEVICES: [&str; 3] = ["vda", "vdb", "vdc"];
/// The disk for what is written, and the one that is lent.
const SCRATCH: &str = "scratch";
const LENT: &str = "lent";

/// The request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerVm {
    /// The path of the image's file system, whose descriptor comes with the request.
    pub image: PathBuf,
    /// The directory of bothy's own guest, where the environment names one.
    pub guest: Option<PathBuf>,
    /// Another kernel than bothy's own.
    pub kernel: Option<PathBuf>,
    /// vCPUs.
    pub cpus: u32,
    /// Its memory.
    pub memory: Memory,
    /// Its network devices.
    pub nets: Vec<net::Config>,
    /// Whether it gives memory back.
    pub balloon: Option<Balloon>,
    /// How its devices are found.
    pub transport: Option<Transport>,
    /// The size of a disk that takes writes, instead of memory, and the directory for its file.
    pub scratch: Option<(MemorySize, PathBuf)>,
    /// A file system that is lent besides the image.
    pub lend: Option<PathBuf>,
    /// A snapshot to go on from.
    pub from: Option<PathBuf>,
    /// Where a snapshot is to be written.
    pub snapshot: Option<PathBuf>,
    /// Whether its report says what was counted.
    pub count: bool,
}

impl ContainerVm {
    /// The machine, with a socket for its vsock device.
    pub fn config(&self, socket: PathBuf) -> VmConfig {
        let disk = |path: &Path, id: &str, read_only| blk::Config {
            path: path.into(),
            read_only,
            id: Some(id.into()),
            ..Default::default()
        };
        let image = disk(&self.image, "image", true);
        // The path stands for a file that never has one.
        let scratch = self.scratch.as_ref().map(|_| disk(SCRATCH.as_ref(), SCRATCH, false));
        let lent = self.lend.as_deref().map(|path| disk(path, LENT, true));
        VmConfig {
            kernel: self.kernel.clone(),
            cpus: Some(self.cpus),
            memory: Some(self.memory),
            console: Some(Console::None),
            disk: std::iter::once(image).chain(scratch).chain(lent).collect(),
            net: self.nets.clone(),
            vsock: Some(vsock::Config { path: socket, cid: None }),
            balloon: self.balloon,
            transport: self.transport,
            ..VmConfig::default()
        }
    }

    /// Opens everything that [`Parts`] are not; afterwards only the VM itself can fail.
    pub fn resources(
        &self,
        config: &VmConfig,
        parts: Parts,
        nets: Vec<net::Ports>,
        held: Vec<OwnedFd>,
    ) -> anyhow::Result<Resources> {
        let kernel = match self.kernel {
            Some(_) => given_kernel(parts.kernel)?,
            None => own_kernel(parts.kernel)?,
        };
        let disks = parts.disks.into_iter().map(|disk| {
            // What is written goes with the VM: nobody misses it when the host crashes.
            let cache = if disk.read_only { Cache::Writeback } else { Cache::Unsafe };
            let mut disk = blk::Disk::from_fd(disk.file, disk.read_only, cache)?;
            disk.open_again();
            io::Result::Ok(disk)
        });
        let disks = disks.collect::<Result<_, _>>().context("can't use a disk")?;
        let kvm = kvm()?;
        let listener = config.vsock.as_ref().map(vsock::Config::listen).transpose();
        let origin = match &self.from {
            Some(path) => {
                Origin::Snapshot(snapshot_at(path).with_context(|| format!("--from {}", path.display()))?)
            }
            None => Origin::Kernel(Kernel {
                kernel,
                initrd: Some(parts.agent),
                cmdline: format!("{} {}", own_kernel_words(config.transport()), bothy_guest::KEY_AGENT),
            }),
        };
        let snapshot = self.snapshot.as_ref().map(|path| {
            // It has the guest's memory in it.
            let file = File::options().write(true).create_new(true).mode(0o600).open(path);
            file.with_context(|| format!("--snapshot {}", path.display()))
        });
        Ok(Resources {
            kvm,
            origin,
            snapshot: snapshot.transpose()?,
            backends: Backends {
                disks,
                nets,
                vsock: listener.context("can't listen for the guest")?,
                console_size: None,
            },
            held,
            count: self.count,
        })
    }
}

/// What all containers of a VM share: sent to its agent first.
pub fn machine(config: &VmConfig) -> io::Result<Machine> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Ok(Machine {
        time_ns: u64::try_from(now.as_nanos()).unwrap_or_default(),
        seed: random::bytes()?,
        networks: config.net.iter().map(|net| network(net).to_string()).collect(),
    })
}

/// A container's root on this VM, for its agent.
pub fn root(config: &VmConfig, read_only: bool) -> Root {
    Root {
        image: DEVICES[0].into(),
        upper: match device(config, SCRATCH) {
            Some(name) => Upper::Scratch(name),
            None if read_only => Upper::ReadOnly,
            None => Upper::Memory,
        },
        lent: device(config, LENT),
    }
}

/// What the guest calls the disk of this serial number, if there is one.
fn device(config: &VmConfig, id: &str) -> Option<String> {
    let place = config.disk.iter().position(|disk| disk.id.as_deref() == Some(id))?;
    DEVICES.get(place).map(|name| (*name).to_owned())
}

/// The files that a machine is made of, whatever VMM runs it.
#[derive(Debug)]
pub struct Parts {
    /// Its kernel.
    pub kernel: Blob,
    /// The agent's initramfs.
    pub agent: Blob,
    /// Its disks, in their order.
    pub disks: Vec<DiskFile>,
}

/// A disk's file.
#[derive(Debug)]
pub struct DiskFile {
    /// The file.
    pub file: OwnedFd,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

impl Parts {
    /// Opens them; `image` becomes the first disk.
    pub fn open(vm: &ContainerVm, image: OwnedFd) -> anyhow::Result<Self> {
        let guest = GuestFiles::find_in(vm.guest.as_deref())?;
        let kernel = match &vm.kernel {
            Some(path) => Blob::open(path).context("--kernel")?,
            None => guest.kernel,
        };
        let mut disks = vec![DiskFile { file: image, read_only: true }];
        if let Some((size, dir)) = &vm.scratch {
            let file = scratch::make(dir, &guest.scratch, *size)?.into();
            disks.push(DiskFile { file, read_only: false });
        }
        if let Some(path) = &vm.lend {
            let file = Blob::open(path).context("--lend")?.file.into();
            disks.push(DiskFile { file, read_only: true });
        }
        Ok(Self { kernel, agent: guest.agent, disks })
    }
}

/// A snapshot that nobody else can have written: what it holds becomes the state of a process of
/// the user's. (Another process of the same user can write it, as it can do anything else that the
/// user may.)
fn snapshot_at(path: &Path) -> anyhow::Result<File> {
    // Opened without waiting: a pipe is none.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("it is not a file");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        bail!("it belongs to another user; make one of your own with --snapshot");
    }
    if metadata.mode() & 0o022 != 0 {
        bail!("its group or others can write it; chmod go-w it, if you trust what is in it");
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_snapshot_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "").unwrap();
        let with_mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            snapshot_at(&path).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(with_mode(0o600), Ok(()));
        assert_eq!(with_mode(0o644), Ok(()));
        for mode in [0o620, 0o602, 0o666] {
            assert!(with_mode(mode).unwrap_err().contains("group or others can write it"), "{mode:o}");
        }
        assert!(snapshot_at(dir.path()).unwrap_err().to_string().contains("not a file"));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            assert!(with_mode(0o600).unwrap_err().contains("another user"));
        }
    }
}
