//! `bothy` on a terminal of its own.
#![expect(unsafe_code, reason = "std knows nothing of terminals")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::guest::{GUEST_DIR_VARIABLE, guest_dir};
use crate::support;

const LIMIT: Duration = Duration::from_secs(120);

/// A command on a pseudo-terminal, which is its controlling terminal.
pub(crate) struct OnTerminal {
    pub(crate) child: Child,
    token: support::Token,
    master: File,
    /// Held open, so that the terminal and its mode outlive the command.
    slave: File,
    output: Arc<Mutex<Vec<u8>>>,
    /// How far [`Self::wait_for`] has read.
    seen: usize,
    mode_before: Vec<u8>,
    _dir: TempDir,
}

impl OnTerminal {
    /// Runs `bothy boot WORDS...`.
    pub(crate) fn boot(words: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bothy"));
        command.arg("boot").args(words).env(GUEST_DIR_VARIABLE, guest_dir());
        Self::start(command, (24, 80))
    }

    /// Runs a command on a terminal of so many rows and columns.
    pub(crate) fn start(mut command: Command, size: (u16, u16)) -> Self {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: the call fills the two numbers; the other arguments may be null.
        let ret = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        assert_eq!(ret, 0, "openpty: {}", io::Error::last_os_error());
        // SAFETY: nobody else has the descriptors.
        let (master, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
        for fd in [&master, &slave] {
            // Tests run side by side, and another's child must not hold this terminal.
            // SAFETY: the call touches no memory.
            unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        let dir = support::scratch();
        let token = support::Token::new();
        token.mark(&mut command);
        let end = || Stdio::from(slave.try_clone().expect("a descriptor can be copied"));
        resize(&master, size);
        command.env_remove("RUST_LOG").stdin(end()).stdout(end()).stderr(end());
        // SAFETY: both calls are allowed between fork and exec, and touch no memory.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                if libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
            });
        }
        let mode_before = mode(&slave);
        let child = command.spawn().expect("bothy can be run");
        let output = Arc::new(Mutex::new(Vec::new()));
        let (into, mut from) = (output.clone(), master.try_clone().expect("a descriptor can be copied"));
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(len @ 1..) = from.read(&mut chunk) {
                into.lock().expect("no panic under this lock").extend_from_slice(&chunk[..len]);
            }
        });
        Self { child, token, master, slave, output, seen: 0, mode_before, _dir: dir }
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("a terminal takes a line");
    }

    /// Gives the window another size.
    pub(crate) fn resize(&self, size: (u16, u16)) {
        resize(&self.master, size);
    }

    /// Waits until `text` appears behind what was waited for before.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + support::patient(LIMIT);
        loop {
            let output = self.output.lock().expect("no panic under this lock").clone();
            let found = output[self.seen..].windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = found {
                self.seen += at + text.len();
                return;
            }
            assert!(
                Instant::now() < deadline,
                "no {text:?} on the terminal:\n{}",
                String::from_utf8_lossy(&output)
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end and gives the exit code.
    #[track_caller]
    pub(crate) fn code(&mut self, limit: Duration) -> Option<i32> {
        let mut status = None;
        support::eventually(limit, || {
            status = self.child.try_wait().expect("the child can be waited for");
            status.is_some()
        });
        let output = self.output.lock().expect("no panic under this lock").clone();
        let status = status.unwrap_or_else(|| panic!("it runs on:\n{}", String::from_utf8_lossy(&output)));
        status.code()
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        support::processes(self.token)
    }

    pub(crate) fn is_raw(&self) -> bool {
        mode(&self.slave) != self.mode_before
    }

    /// Insists that the terminal gets back the mode that it had.
    #[track_caller]
    pub(crate) fn insist_on_mode(&self) {
        let restored = support::eventually(Duration::from_secs(3), || !self.is_raw());
        assert!(restored, "the terminal's mode was not restored");
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.processes() {
            if let Ok(pid) = libc::pid_t::try_from(pid) {
                // SAFETY: the call touches no memory; a process that is gone in the meantime is no
                // harm.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}

fn resize(terminal: &File, (ws_row, ws_col): (u16, u16)) {
    let size = libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize.
    let ret = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(ret, 0, "TIOCSWINSZ: {}", io::Error::last_os_error());
}

/// The terminal's mode, as something to compare.
fn mode(terminal: &File) -> Vec<u8> {
    // SAFETY: a termios of zeros is valid, and the call writes within it.
    let mode = unsafe {
        let mut mode: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &raw mut mode), 0, "it is a terminal");
        mode
    };
    format!("{:?} {:?}", (mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag), mode.c_cc).into_bytes()
}
