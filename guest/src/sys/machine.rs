//! The machine as a whole: its timing port, clock, random numbers, kernel modules and end.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use bothy_guest::{TIMING_PORT, TimingMark};

use super::check;

/// Writes the mark to the timing port. Where the kernel doesn't allow it, nothing happens: timing
/// is a luxury.
#[expect(unsafe_code, reason = "ioperm and the out instruction")]
pub(crate) fn mark_time(mark: TimingMark) {
    // SAFETY: ioperm takes no pointers; it only allows this one port to this process.
    if unsafe { libc::ioperm(TIMING_PORT.into(), 1, 1) } != 0 {
        return;
    }
    // SAFETY: the port was just allowed, so `out` does not fault. On bothy's machine the port only
    // notes the time; on others nothing that matters listens there. No memory is touched.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") TIMING_PORT, in("al") mark as u8,
            options(nomem, nostack, preserves_flags));
    }
    // SAFETY: as above. Programs that init starts must not inherit the port.
    unsafe { libc::ioperm(TIMING_PORT.into(), 1, 0) };
}

/// `sync(2)`: returns when everything is written.
pub(crate) fn sync() {
    #[expect(unsafe_code, reason = "sync has no safe wrapper in std")]
    // SAFETY: sync takes nothing and cannot fail.
    unsafe {
        libc::sync();
    };
}

/// `reboot(2)` with one of the `RB_` commands. Returns only on failure.
pub(crate) fn reboot(command: c_int) -> io::Error {
    #[expect(unsafe_code, reason = "reboot has no safe wrapper in std")]
    // SAFETY: reboot takes no pointers.
    match check(unsafe { libc::reboot(command) }) {
        Err(error) => error,
        Ok(_) => io::Error::other("reboot returned"),
    }
}

/// `sethostname(2)`.
pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    #[expect(unsafe_code, reason = "sethostname has no safe wrapper in std")]
    // SAFETY: pointer and length are those of a live string; it needs no NUL.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Loads the kernel module in `file`, without parameters.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    #[expect(unsafe_code, reason = "finit_module has no wrapper at all")]
    // SAFETY: the descriptor is open, the parameter string is NUL-terminated and static, and no
    // flags are set.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    check(c_int::try_from(result).unwrap_or(-1)).map(drop)
}

/// Gives the kernel's random pool bytes that count as random, and has it use them at once.
#[expect(unsafe_code, reason = "RNDADDENTROPY has no wrapper at all")]
pub(crate) fn add_entropy(seed: &[u8; 32]) -> io::Result<()> {
    /// `struct rand_pool_info`.
    #[repr(C)]
    struct PoolInfo {
        bits: c_int,
        bytes: c_int,
        seed: [u8; 32],
    }
    let info = PoolInfo { bits: 256, bytes: 32, seed: *seed };
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the request reads the two numbers and as many bytes behind them as the second says;
    // all are there.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// `_IOW('R', 3, int[2])` and `_IO('R', 7)`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
