//! Signals that ask the command to end, as a descriptor that can be waited for.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// Blocks SIGTERM, SIGINT, SIGHUP and SIGQUIT, and delivers them as bytes instead; but those that our caller ignores (nohup, a shell's
/// background jobs) stay ignored. Threads that are started afterwards have
/// them blocked too.
pub(super) struct EndSignals(File);

impl EndSignals {
    pub(super) fn new() -> io::Result<Self> {
        #[expect(unsafe_code, reason = "std has no signal mask and no signalfd")]
        // SAFETY: `set` is initialised by sigemptyset before it is read, and an action of zeros is valid; the calls touch no other memory, and the descriptor
        // that signalfd makes is owned by the `File` alone.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
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

    /// Takes one signal; called when the descriptor is readable.
    pub(super) fn take(&mut self) -> io::Result<()> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info)
    }
}

impl AsRawFd for EndSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
