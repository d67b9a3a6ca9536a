//! `bothy run-qemu`: QEMU's microvm in the place of bothy's own virtual machine, with the same
//! kernel, initramfs, image and agent, to compare with. Its vsock device is the kernel's
//! (/dev/vhost-vsock), which takes root or the group kvm.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::agent::Agent;
use crate::boot::image::Blob;
use crate::config::{Balloon, Transport, VmConfig};
use crate::container::monitor::Hypervisor;
use crate::container::state_dir::StateDir;
use crate::launch;
use crate::launch::container::{ContainerVm, Parts};
use crate::random;
use crate::timeline::Timeline;
use crate::virtio::net;
use crate::vmm::process::VmProcess;

/// Its program.
const PROGRAM: &str = "qemu-system-x86_64";
/// Contexts up to here are taken by the vsock protocol.
const FIRST_GUEST: u32 = 3;

/// QEMU in the place of bothy's own VMM.
pub(in crate::commands) struct Qemu {
    /// Its program's path. The monitor has no PATH to look for it.
    program: PathBuf,
    /// The guest's context, and the port where its agent is awaited.
    guest: u32,
    port: u32,
    /// What it opens by path.
    open: Vec<OwnedFd>,
}

impl Qemu {
    /// Finds the program by PATH.
    pub(in crate::commands) fn find() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
        let program = places.find(|place| place.is_file()).unwrap_or_else(|| PROGRAM.into());
        Self { program, guest: 0, port: 0, open: Vec::new() }
    }
}

impl Hypervisor for Qemu {
    /// QEMU opens its taps itself, those that there are.
    fn listen(&mut self, config: &mut VmConfig, _dir: &StateDir) -> anyhow::Result<Agent> {
        if config.net.iter().any(|net| net.backend == net::Backend::OwnTap) {
            bail!("--net: tap=auto is not for QEMU");
        }
        // One that is taken makes QEMU fail; among so many that hardly happens.
        let random = u32::from_le_bytes(random::bytes().context("can't get random numbers")?);
        self.guest = (random >> 1).max(FIRST_GUEST);
        let listening = Agent::listen_to_guest(self.guest);
        let (agent, port) = listening.context("can't listen for the guest's agent")?;
        self.port = port;
        Ok(agent)
    }

    fn start(
        &mut self,
        vm: &ContainerVm,
        config: &VmConfig,
        parts: Parts,
        _dir: &StateDir,
        _timeline: Timeline,
    ) -> anyhow::Result<VmProcess> {
        if vm.from.is_some() || vm.snapshot.is_some() {
            bail!("--from and --snapshot are not for QEMU");
        }
        let kernel = whole(&parts.kernel, &mut self.open)?;
        let initrd = whole(&parts.agent, &mut self.open)?;
        let mut command = Command::new(&self.program);
        command
            .args(["-M", "microvm,accel=kvm,pit=off,pic=off,rtc=off,isa-serial=off,auto-kernel-cmdline=off"])
            .args(["-cpu", "host", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-smp", &config.cpus().to_string(), "-m", &format!("{}M", config.memory_mib())])
            .args(["-kernel", &kernel, "-initrd", &initrd])
            .args([
                "-append",
                &format!(
                    "{} {}={}",
                    launch::own_kernel_words(Transport::Mmio),
                    bothy_guest::KEY_AGENT,
                    self.port
                ),
            ])
            .args(["-device", &format!("vhost-vsock-device,guest-cid={}", self.guest)]);
        if config.balloon() == Balloon::On {
            command.args(["-device", "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on"]);
        }
        for (number, disk) in parts.disks.into_iter().enumerate() {
            let read_only = if disk.read_only { "on" } else { "off" };
            let file = path_of(&disk.file);
            self.open.push(disk.file);
            command
                .args([
                    "-drive",
                    &format!("if=none,id=d{number},format=raw,readonly={read_only},file={file}"),
                ])
                .args(["-device", &format!("virtio-blk-device,drive=d{number}")]);
        }
        for (number, net) in config.net.iter().enumerate() {
            command
                .args([
                    "-netdev",
                    &format!("tap,id=n{number},ifname={},script=no,downscript=no,vhost=on", net.backend),
                ])
                .args(["-device", &format!("virtio-net-device,netdev=n{number},mac={}", net.mac())]);
        }
        VmProcess::of_program(command).with_context(|| format!("can't start {PROGRAM}"))
    }
}

/// A path to an open file, for a process that this one starts and outlives.
fn path_of(file: &impl AsFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_fd().as_raw_fd())
}

/// A path to a file with nothing but the blob: one that is part of a file is copied.
fn whole(blob: &Blob, open: &mut Vec<OwnedFd>) -> anyhow::Result<String> {
    let copy = || -> io::Result<OwnedFd> {
        if blob.offset == 0 && blob.file.metadata()?.len() == blob.len {
            return Ok(blob.file.try_clone()?.into());
        }
        let mut copy = File::from(memfd_create("part", MemfdFlags::CLOEXEC)?);
        blob.copy_to(&mut copy)?;
        Ok(copy.into())
    };
    let file = copy().with_context(|| format!("can't copy {}", blob.path.display()))?;
    let path = path_of(&file);
    open.push(file);
    Ok(path)
}
