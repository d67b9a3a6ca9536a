//! Signals as a descriptor that can be waited for: those that ask a process to end, or all that can
//! be passed on. And, for a process that starts other programs, as a flag.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Blocked signals that are read as bytes instead. Those that our caller ignores (nohup, a shell's
/// background jobs) stay ignored. Threads that are started afterwards have them blocked too.
pub struct Signals(File);

/// What ends a program that doesn't say otherwise, when somebody wishes it to.
const ENDS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Whether a signal asks for an end.
pub fn asks_for_end(signal: libc::c_int) -> bool {
    ENDS.contains(&signal)
}

/// What is nobody's message to the command: it can't be caught, it is about our own children, pipes
/// and sockets, or it is the processor that complains.
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

/// Whether somebody wishes an end, after [`watch_for_ends`].
static END_IS_WISHED: AtomicBool = AtomicBool::new(false);

/// From here on signals that ask for an end only say so, in what [`end_is_wished`] gives. Programs
/// that are started meet them as ever: a blocked signal would stay blocked for them. Those that our
/// caller ignores stay ignored.
pub fn watch_for_ends() -> io::Result<()> {
    extern "C" fn note(_signal: libc::c_int) {
        END_IS_WISHED.store(true, Ordering::Relaxed);
    }
    for signal in ENDS {
        #[expect(unsafe_code, reason = "std has no signal handlers")]
        // SAFETY: an action of zeros is valid, and both are live; the handler only stores to an
        // atomic.
        let ret = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            match libc::sigaction(signal, std::ptr::null(), &raw mut action) {
                0 if action.sa_sigaction == libc::SIG_IGN => 0,
                0 => {
                    action = std::mem::zeroed();
                    action.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
                    action.sa_flags = libc::SA_RESTART;
                    libc::sigaction(signal, &raw const action, std::ptr::null_mut())
                }
                ret => ret,
            }
        };
        if ret != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether somebody wishes an end.
pub fn end_is_wished() -> bool {
    END_IS_WISHED.load(Ordering::Relaxed)
}

/// All signals reach this process, or this program, again.
pub fn unblock_all() {
    #[expect(unsafe_code, reason = "std has no signal mask")]
    // SAFETY: `none` is initialised by sigemptyset before it is read; the calls touch no other
    // memory.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Signals that ask for an end don't end this process, nor those that it forks.
pub fn ignore_ends() {
    for signal in ENDS {
        #[expect(unsafe_code, reason = "std ignores no signals")]
        // SAFETY: no handler is installed.
        unsafe {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
}

/// A write past a limit on the size of files is an error, and no signal.
pub fn ignore_file_size_limit() {
    #[expect(unsafe_code, reason = "std ignores no signals")]
    // SAFETY: no handler is installed.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

impl Signals {
    /// Those that ask for an end, and the one that says that the terminal has another size.
    pub fn ends_and_resizes() -> io::Result<Self> {
        Self::take_over(ENDS.into_iter().chain([libc::SIGWINCH]))
    }

    /// All that a command can be sent through us, real-time signals included.
    pub fn all() -> io::Result<Self> {
        Self::take_over((1..=libc::SIGRTMAX()).filter(|signal| !OWN.contains(signal)))
    }

    fn take_over(signals: impl Iterator<Item = libc::c_int>) -> io::Result<Self> {
        #[expect(unsafe_code, reason = "std has no signal mask and no signalfd")]
        // SAFETY: `set` is initialised by sigemptyset before it is read, and an action of zeros is
        // valid; the calls touch no other memory, and the descriptor that signalfd makes is owned
        // by the `File` alone. A number that the C library keeps for itself is refused by sigaction
        // or sigaddset.
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
    pub fn take(&mut self) -> io::Result<i32> {
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
