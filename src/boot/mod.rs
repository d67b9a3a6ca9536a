//! Everything that is in guest memory before the first instruction: kernel, initramfs, command
//! line, boot parameters and ACPI tables.
//!
//! [`image`] looks at files in the monitor's process; [`load`] runs in the VM's process, once
//! memory exists. Owns no thread; the descriptors of kernel and initramfs belong to whoever opened
//! them.

pub mod acpi;
pub mod image;
mod load;
mod params;

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::devices::acpi as registers;
use crate::memory::{GuestMemory, layout};
use image::{Blob, KernelImage};

/// Why a guest can't be put into memory.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel needs more memory than there is below 3 GiB.
    #[error("{path} needs at least {needs_mib} MiB of memory: give more with --memory", path = path.display())]
    KernelTooLarge {
        /// The kernel.
        path: PathBuf,
        /// The end of its last segment, in MiB.
        needs_mib: u64,
    },
    /// The initramfs doesn't fit behind the kernel.
    #[error(
        "--initrd: {path} has {mib} MiB, and behind the kernel there is room for {room_mib} MiB: give more with --memory",
        path = path.display()
    )]
    InitrdTooLarge {
        /// The initramfs.
        path: PathBuf,
        /// Its size, rounded up.
        mib: u64,
        /// What there is.
        room_mib: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {len} bytes, and Linux takes {}: shorten --append", layout::CMDLINE_MAX - 1)]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The command line can't be passed on.
    #[error("--append: a kernel command line can't hold a NUL byte")]
    CmdlineNul,
    /// A file can't be read.
    #[error("can't read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A kernel can't be loaded although its headers are sound.
    #[error("can't load {path}: {why}", path = path.display())]
    Load {
        /// The kernel.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The boot parameters can't be written. A bug of ours.
    #[error("can't write the boot parameters: {0}")]
    Params(String),
    /// The host's kernel gives none, for the generation ID.
    #[error("can't get random numbers")]
    Random(#[source] io::Error),
    /// A part of the guest can't be written to memory: its file became shorter meanwhile, or our
    /// own sums are wrong.
    #[error("can't fill guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 32-bit protected mode, with `hvm_start_info`.
    Pvh,
    /// Long mode, with a zero page.
    Linux64,
}

/// Where the boot processor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The protocol, which decides on the processor's mode.
    pub protocol: Protocol,
    /// The first instruction.
    pub rip: u64,
}

/// What is to be booted.
pub struct Request<'a> {
    /// The guest's memory.
    pub mem: &'a GuestMemory,
    /// Its size in MiB.
    pub memory_mib: u64,
    /// The kernel.
    pub kernel: &'a KernelImage,
    /// The initramfs.
    pub initrd: Option<&'a Blob>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// What the ACPI tables describe.
    pub platform: &'a acpi::Platform,
}

/// Checks a command line before there is a VM.
pub fn check_cmdline(cmdline: &str) -> Result<(), BootError> {
    if cmdline.contains('\0') {
        return Err(BootError::CmdlineNul);
    }
    if cmdline.len() >= layout::CMDLINE_MAX {
        return Err(BootError::CmdlineTooLong { len: cmdline.len() });
    }
    Ok(())
}

/// Puts everything into memory and says where to begin.
pub fn load(request: &Request<'_>) -> Result<Start, BootError> {
    check_cmdline(request.cmdline)?;
    let kernel = load::kernel(request.mem, request.memory_mib, request.kernel)?;
    let initrd = match request.initrd {
        Some(blob) => Some((load::initrd(request.mem, request.memory_mib, blob, &kernel)?, blob.len)),
        None => None,
    };
    request.mem.write_slice(request.cmdline.as_bytes(), GuestAddress(layout::CMDLINE_GPA))?;
    acpi::write_tables(request.mem, request.platform)?;
    write_reset_vector(request.mem)?;
    let placement =
        params::Placement { memory_mib: request.memory_mib, cmdline_len: request.cmdline.len(), initrd };
    match kernel.start.protocol {
        Protocol::Pvh => params::write_pvh_start_info(request.mem, &placement)?,
        Protocol::Linux64 => params::write_zero_page(request.mem, &placement, kernel.setup_header)?,
    }
    Ok(kernel.start)
}

/// Writes real-mode code to the reset vector that writes the ACPI reset register.
///
/// A Linux built with EFI takes hardware-reduced ACPI for a sign of EFI, and restarts by EFI's
/// runtime services; where there are none it goes on to the BIOS' way: real mode, then a jump to
/// the reset vector. Debian's kernels do.
fn write_reset_vector(mem: &GuestMemory) -> Result<(), BootError> {
    let [low, high] = (layout::ACPI_PORT + registers::RESET).to_le_bytes();
    let code = [
        0xba,
        low,
        high, // mov dx, the reset register
        0xb0,
        registers::RESET_VALUE, // mov al, the reset value
        0xee,                   // out dx, al
        0xf4,                   // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ];
    Ok(mem.write_slice(&code, GuestAddress(layout::RESET_VECTOR_GPA))?)
}
