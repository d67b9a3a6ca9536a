//! BPF programs: loaded and attached to a cgroup.

use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct BpfInstruction {
    pub(crate) code: u8,
    /// The source in the upper half, the destination in the lower.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) value: i32,
}

// Of <linux/bpf.h>.
const PROG_LOAD: c_int = 5;
const PROG_ATTACH: c_int = 8;
const CGROUP_DEVICE_PROGRAM: u32 = 15;
const CGROUP_DEVICE: u32 = 6;

/// What `BPF_PROG_LOAD` reads of `union bpf_attr`; what isn't there counts as zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// What `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has the kernel ask this program about every device that is opened or made in the cgroup. The
/// kernel refuses one that it can't prove to end.
#[expect(unsafe_code, reason = "bpf has no wrapper at all")]
pub(crate) fn attach_device_rule(cgroup: BorrowedFd<'_>, rule: &[BpfInstruction]) -> io::Result<()> {
    let load = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: u32::try_from(rule.len()).map_err(io::Error::other)?,
        instructions: rule.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
    };
    // SAFETY: load is live and as long as said; its pointers are to as many instructions as it says
    // and to a string with its NUL.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    // SAFETY: the descriptor is new and owned by nobody else.
    let program = unsafe { OwnedFd::from_raw_fd(descriptor(result)?) };
    let attach = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: attach is live and as long as said; it holds no pointers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    descriptor(result).map(drop)
}

/// What a system call returned, if it isn't an error.
fn descriptor(result: c_long) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        c_int::try_from(result).map_err(io::Error::other)
    }
}
