//! The user's terminal as a guest's console: raw while the VM runs, and as it was afterwards, whatever happens.
//!
//! "Whatever happens" includes `kill -9` of the command, after which no code of it runs. So a terminal that is made raw gets
//! a guard: a process that does nothing but wait for the command's end, and then restores the terminal, unless the command has
//! done so itself.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use bothy_guest::protocol::WindowSize;

/// A terminal in raw mode; dropping it restores the mode that it had.
pub(super) struct RawTerminal {
    fd: RawFd,
    saved: libc::termios,
    guard: File,
}

impl RawTerminal {
    /// Makes the terminal behind standard input raw; `None` if it is none. Forks the guard, so the process must have a
    /// single thread.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let fd = libc::STDIN_FILENO;
        let saved = mode(fd)?;
        let mut raw = saved;
        #[expect(unsafe_code, reason = "std knows nothing of terminal modes")]
        // SAFETY: `raw` is a valid termios.
        unsafe {
            libc::cfmakeraw(&raw mut raw);
        }
        let terminal = Self { fd, saved, guard: spawn_guard(fd, &saved, &raw)? };
        set_mode(fd, &raw)?;
        Ok(Some(terminal))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = set_mode(self.fd, &self.saved) {
            log::warn!("can't restore the terminal: {error}");
        }
        // The guard has nothing left to do.
        if let Err(error) = self.guard.write_all(b".") {
            log::debug!("terminal guard: {error}");
        }
    }
}

/// What a guest's programs should know of the terminal, as words for the kernel's command line, which hands them to init as
/// environment variables: its type and its size. Empty if standard input is none.
pub(super) fn environment() -> Option<String> {
    if !io::stdin().is_terminal() {
        return None;
    }
    let term = std::env::var("TERM").ok().filter(|term| is_plain(term)).unwrap_or_else(|| "vt100".into());
    Some(match size() {
        Some(WindowSize { rows, columns }) => format!("TERM={term} LINES={rows} COLUMNS={columns}"),
        None => format!("TERM={term}"),
    })
}

/// The size of the terminal behind standard output, or else standard input; `None` if neither is one that knows.
pub(super) fn size() -> Option<WindowSize> {
    [libc::STDOUT_FILENO, libc::STDIN_FILENO].into_iter().find_map(|fd| {
        #[expect(unsafe_code, reason = "std doesn't tell a terminal's size")]
        // SAFETY: a winsize of zeros is valid, and the call writes within it.
        let (ret, size) = unsafe {
            let mut size: libc::winsize = std::mem::zeroed();
            (libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size), size)
        };
        let (rows, columns) = (size.ws_row, size.ws_col);
        (ret == 0 && rows > 0 && columns > 0).then_some(WindowSize { rows, columns })
    })
}

/// Whether a word means nothing but itself on a kernel command line.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
}

fn mode(fd: RawFd) -> io::Result<libc::termios> {
    #[expect(unsafe_code, reason = "std knows nothing of terminal modes")]
    // SAFETY: a termios of zeros is valid, and tcgetattr writes within it.
    let (ret, mode) = unsafe {
        let mut mode: libc::termios = std::mem::zeroed();
        (libc::tcgetattr(fd, &raw mut mode), mode)
    };
    if ret == 0 { Ok(mode) } else { Err(io::Error::last_os_error()) }
}

fn set_mode(fd: RawFd, mode: &libc::termios) -> io::Result<()> {
    #[expect(unsafe_code, reason = "std knows nothing of terminal modes")]
    // SAFETY: `mode` is a valid termios that the call only reads.
    let ret = unsafe { libc::tcsetattr(fd, libc::TCSANOW, mode) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether two modes are the same, as far as a raw mode differs from another one.
fn same_mode(a: &libc::termios, b: &libc::termios) -> bool {
    (a.c_iflag, a.c_oflag, a.c_cflag, a.c_lflag) == (b.c_iflag, b.c_oflag, b.c_cflag, b.c_lflag)
}

fn spawn_guard(fd: RawFd, saved: &libc::termios, raw: &libc::termios) -> io::Result<File> {
    let mut ends = [0; 2];
    #[expect(unsafe_code, reason = "std has no fork")]
    // SAFETY: pipe2 fills `ends` with two descriptors that nobody else has; the process has a single thread (the caller
    // promises), so the child may go on as it likes.
    let (pid, mut read_end, write_end) = unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        (libc::fork(), File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(write_end);
            // A session of its own: the terminal's signals and its job control leave it alone. (The kernel lets it set the
            // mode because the terminal isn't its controlling one.)
            #[expect(unsafe_code, reason = "std has no setsid")]
            // SAFETY: neither call touches our memory. 3 and up are closed but for the pipe's end, so nothing waits for it.
            unsafe {
                libc::setsid();
                let (keep, all) = (read_end.as_raw_fd().unsigned_abs(), libc::c_uint::MAX);
                libc::close_range(3, keep.saturating_sub(1), 0);
                libc::close_range(keep + 1, all, 0);
                libc::close(libc::STDOUT_FILENO);
                libc::close(libc::STDERR_FILENO);
            }
            let mut byte = [0];
            // A shell that was quicker has set the mode that it wants.
            if !matches!(read_end.read(&mut byte), Ok(1)) && mode(fd).is_ok_and(|now| same_mode(&now, raw)) {
                let _nobody_left_to_tell = set_mode(fd, saved);
            }
            #[expect(unsafe_code, reason = "std's exit runs handlers that belong to the command")]
            // SAFETY: nothing runs after it.
            unsafe {
                libc::_exit(0)
            }
        }
        _ => Ok(write_end),
    }
}

/// What the user wants, by a key behind `Ctrl-a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// End the VM.
    Quit,
    /// Show the keys.
    Help,
}

/// What `Ctrl-a h` shows.
pub(super) const HELP: &str = "\
\r\n  Ctrl-a x       end the VM at once\
\r\n  Ctrl-a h       this help\
\r\n  Ctrl-a Ctrl-a  send Ctrl-a to the guest\r\n";

const CTRL_A: u8 = 1;

/// Finds `Ctrl-a` and the key behind it in what the user types.
#[derive(Debug, Default)]
pub(super) struct Escape {
    armed: bool,
}

impl Escape {
    /// Splits typed bytes into what goes to the guest and what is meant for bothy.
    pub(super) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Key>) {
        let (mut bytes, mut keys) = (Vec::with_capacity(typed.len()), Vec::new());
        for &byte in typed {
            if !std::mem::replace(&mut self.armed, false) {
                if byte == CTRL_A {
                    self.armed = true;
                } else {
                    bytes.push(byte);
                }
                continue;
            }
            match byte {
                b'x' => keys.push(Key::Quit),
                b'h' => keys.push(Key::Help),
                CTRL_A => bytes.push(CTRL_A),
                other => bytes.push(other),
            }
        }
        (bytes, keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_behind_ctrl_a_are_taken_out_and_the_rest_goes_through() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ab\x01hcd"), (b"abcd".to_vec(), vec![Key::Help]));
        assert_eq!(escape.filter(b"\x01\x01x"), (b"\x01x".to_vec(), vec![]));
        assert_eq!(escape.filter(b"\x01"), (vec![], vec![]));
        assert_eq!(escape.filter(b"x"), (vec![], vec![Key::Quit]));
        assert_eq!(escape.filter(b"\x01qx"), (b"qx".to_vec(), vec![]));
    }

    /// Runs itself once more, as the program that panics, on a terminal of its own.
    #[test]
    fn a_panic_restores_the_terminal() {
        const PANIC: &str = "BOTHY_TEST_PANIC_ON_A_RAW_TERMINAL";
        if std::env::var_os(PANIC).is_some() {
            let raw = RawTerminal::enter().unwrap().expect("standard input is a terminal");
            let now = mode(raw.fd).unwrap();
            panic!(
                "on purpose, and the terminal is {}",
                if same_mode(&now, &raw.saved) { "as before" } else { "raw" }
            );
        }
        let (_keyboard, line) = pty();
        let before = mode(line.as_raw_fd()).unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "commands::terminal::tests::a_panic_restores_the_terminal"])
            .args(["--test-threads=1", "--nocapture"])
            .env(PANIC, "")
            .stdin(line.try_clone().unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("on purpose, and the terminal is raw"), "{said}");
        assert!(same_mode(&mode(line.as_raw_fd()).unwrap(), &before), "the terminal is still raw");
    }

    /// A pseudo-terminal: the end that a person has, and the end that a program has.
    fn pty() -> (File, File) {
        #[expect(unsafe_code, reason = "std knows nothing of terminals")]
        // SAFETY: the first call gives a descriptor that nobody else has, or -1, which is refused before anything owns it; the
        // next ones take it and touch no memory; the last one gives another such descriptor.
        unsafe {
            let keyboard = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
            assert!(keyboard >= 0 && libc::grantpt(keyboard) == 0 && libc::unlockpt(keyboard) == 0);
            let line =
                libc::ioctl(keyboard, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
            assert!(line >= 0, "{}", io::Error::last_os_error());
            (File::from_raw_fd(keyboard), File::from_raw_fd(line))
        }
    }
}
