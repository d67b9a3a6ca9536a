//! The guests and the peer's command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes `A` to port 0x3f8 and resets, in 32-bit code.
const WRITE_AND_RESET: &[u8] = &[
    0xba, 0xf8, 0x03, 0, 0, // mov edx, 0x3f8
    0xb0, b'A', // mov al, 'A'
    0xee, // out dx, al
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, 0xeb, 0xfd, // hlt; jmp to it
];

/// Writes `A` and halts for ever.
const WRITE_AND_HALT: &[u8] = &[0xba, 0xf8, 0x03, 0, 0, 0xb0, b'A', 0xee, 0xf4, 0xeb, 0xfd];

const LOAD_GPA: u64 = 0x10_0000;

pub(crate) fn tiny(dir: &Path) -> PathBuf {
    write(dir, "tiny.elf", &pvh_elf(WRITE_AND_RESET))
}

pub(crate) fn idle(dir: &Path) -> PathBuf {
    write(dir, "idle.elf", &pvh_elf(WRITE_AND_HALT))
}

pub(crate) fn disk(dir: &Path) -> PathBuf {
    write(dir, "disk.img", &vec![0; 1 << 20])
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).expect("the work directory is writable");
    path
}

/// An ELF file with a PVH note and one segment at 1 MiB.
fn pvh_elf(code: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(u32::try_from(LOAD_GPA).expect("below 4 GiB").to_le_bytes());
    let headers = 64 + 2 * 56;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(LOAD_GPA.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 12]);
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut program = |kind: u32, offset: usize, gpa: u64, len: usize| {
        file.extend(kind.to_le_bytes());
        file.extend(5u32.to_le_bytes());
        for word in [offset as u64, gpa, gpa, len as u64, len as u64, 4] {
            file.extend(word.to_le_bytes());
        }
    };
    program(4, headers, 0, note.len());
    program(1, headers + note.len(), LOAD_GPA, code.len());
    file.extend(note);
    file.extend(code);
    file
}

/// QEMU's microvm with nothing that it can do without.
pub(crate) fn qemu(memory: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "microvm,accel=kvm,pit=off,pic=off,rtc=off,auto-kernel-cmdline=off,isa-serial=on"]);
    command.args([
        "-cpu",
        "host,arch-capabilities=off",
        "-m",
        memory,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    command.args(["-serial", "stdio"]);
    command
}
