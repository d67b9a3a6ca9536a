//! What the host and the guest agree on: the timing port, the words of the kernel command line, the
//! signal of the power button, and the agent's protocol and the containers that it describes
//! ([`spec`]); and what both use ([`netlink`]). PID 1 itself is the binary of this package.
//!
//! The words that PID 1 understands on the kernel command line:
//!
//! | word | meaning |
//! |---|---|
//! | `bothy.net=mac=M[,ip=A/P][,gw=A][,dns=A]` | configure the interface with this MAC address ([`net::NetConfig`]); may stand several times |
//! | `bothy.demo` | print what machine this is, then power off |
//! | `bothy.exec="COMMAND"` | run it by `/bin/sh -c`, print its exit status, then power off |
//! | `bothy.agent[=PORT]` | run an image's commands as the host says at this vsock port ([`protocol`]); nothing else counts then |
//! | `TERM=T COLUMNS=N LINES=N` | the terminal behind the console; 80 by 24 characters if not said |
//!
//! With neither demo nor exec a console terminal gets a shell, and the machine powers off when it
//! ends.

pub mod addr;
pub mod cmdline;
pub mod net;
pub mod netlink;
pub mod protocol;
pub mod spec;

/// The I/O port that PID 1 writes a [`TimingMark`] to, one byte each time. Reading it has no
/// meaning.
pub const TIMING_PORT: u16 = 0x610;

/// What a byte at [`TIMING_PORT`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TimingMark {
    /// The first thing that PID 1 does.
    InitStarted = 0x01,
    /// The last thing before PID 1 asks the kernel to power off or restart: file systems are
    /// written and unmounted.
    InitPowerOff = 0x02,
}

impl TimingMark {
    /// The mark that a byte stands for, if it is one.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::InitStarted),
            0x02 => Some(Self::InitPowerOff),
            _ => None,
        }
    }
}

/// Key of a network interface's word.
pub const KEY_NET: &str = "bothy.net";
/// The word that asks for the demonstration.
pub const KEY_DEMO: &str = "bothy.demo";
/// Key of the command to run in place of a shell.
pub const KEY_EXEC: &str = "bothy.exec";
/// The word that makes PID 1 the agent of an image.
pub const KEY_AGENT: &str = "bothy.agent";

/// What PID 1 prints on the console when the command of [`KEY_EXEC`] has ended, followed by its
/// exit status (128 and the signal's number if a signal ended it) and a newline.
pub const EXIT_STATUS_PREFIX: &str = "bothy: exit status ";

/// What the kernel's tiny power button sends to PID 1: `SIGRTMIN+4`, as `kernel.config` says.
pub const POWER_BUTTON_SIGNAL: i32 = 38;

/// Where PID 1 looks for kernel modules to load, in the order of their names, before anything else:
/// an initramfs for a distribution's kernel carries its virtio drivers there.
pub const MODULES_DIR: &str = "/lib/bothy/modules";
