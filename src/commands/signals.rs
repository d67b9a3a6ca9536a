//! Signals as a descriptor that can be waited for: those that ask the command to end, or all that can be passed on.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// Blocked signals that are read as bytes instead. Those that our caller ignores (nohup, a shell's background jobs) stay ignored. Threads that are
/// started afterwards have them blocked too.
pub(super) struct Signals(File);

/// What ends a program that doesn't say otherwise, when somebody wishes it to.
const ENDS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// What is nobody's message to the command: it can't be caught, it is about our own children, pipes and sockets, or it is the processor that complains.
const OWN: [libc::c_int; 10] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGCHLD,
    libc::SIGPIPE,
    libc::SIGURG,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
];

impl Signals {
    /// Those that ask for an end.
    pub(super) fn ends() -> io::Result<Self> {
        Self::take_over(ENDS.into_iter())
    }

    /// All that a command can be sent through us, real-time signals included.
    pub(super) fn all() -> io::Result<Self> {
        Self::take_over((1..=libc::SIGRTMAX()).filter(|signal| !OWN.contains(signal)))
    }

    fn take_over(signals: impl Iterator<Item = libc::c_int>) -> io::Result<Self> {
        #[expect(unsafe_code, reason = "std has no signal mask and no signalfd")]
        // SAFETY: `set` is initialised by sigemptyset before it is read, and an action of zeros is valid; the calls touch no other memory, and the
        // descriptor that signalfd makes is owned by the `File` alone. A number that the C library keeps for itself is refused by sigaction or sigaddset.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                let mut action: libc::sigaction = std::mem::zeroed();
                let known = libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0;
                if !known || action.sa_sigaction != libc::SIG_IGN {
                    libc::sigaddset(&raw mut set, signal);
                }
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(File::from_raw_fd(fd))),
            }
        }
    }

    /// Takes one signal, and gives its number; called when the descriptor is readable.
    pub(super) fn take(&mut self) -> io::Result<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info)?;
        // `ssi_signo` is the first field.
        let number = info.first_chunk().copied().unwrap_or_default();
        Ok(i32::from_ne_bytes(number))
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
