//! QEMU's microvm in the place of bothy's own virtual machine: the same kernel, initramfs, image and agent, for `bothy bench` to compare with.
//! Its vsock device is the kernel's (/dev/vhost-vsock), which takes root or the group kvm.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use anyhow::Context;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::agent::Agent;
use crate::boot::image::Blob;
use crate::config::{Balloon, Transport, VmConfig};
use crate::launch::{self, container::Parts};
use crate::random;
use crate::vmm::process::VmProcess;

/// Its program.
const PROGRAM: &str = "qemu-system-x86_64";
/// Contexts up to here are taken by the vsock protocol.
const FIRST_GUEST: u32 = 3;

/// What is known before it runs.
pub(super) struct Qemu {
    guest: u32,
    port: u32,
}

impl Qemu {
    /// Chooses the guest's number, and listens for it.
    pub(super) fn listen() -> anyhow::Result<(Self, Agent)> {
        // One that is taken makes QEMU fail; among so many that hardly happens.
        let random = u32::from_le_bytes(random::bytes().context("can't get random numbers")?);
        let guest = (random >> 1).max(FIRST_GUEST);
        let (agent, port) = Agent::listen_to_guest(guest).context("can't listen for the guest's agent")?;
        Ok((Self { guest, port }, agent))
    }

    /// Starts it. The files must stay open until it has opened them: those of the result.
    pub(super) fn start(
        &self,
        config: &VmConfig,
        parts: &Parts,
    ) -> anyhow::Result<(VmProcess, Vec<OwnedFd>)> {
        let mut open = Vec::new();
        let kernel = whole(&parts.kernel, &mut open)?;
        let initrd = whole(&parts.agent, &mut open)?;
        let mut command = Command::new(PROGRAM);
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
        for (number, disk) in parts.disks.iter().enumerate() {
            let read_only = if disk.read_only { "on" } else { "off" };
            let file = path_of(&disk.file);
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
        let vm = VmProcess::of_program(command).with_context(|| format!("can't start {PROGRAM}"))?;
        Ok((vm, open))
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
