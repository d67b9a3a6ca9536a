//! The user's terminal as a guest's console: raw while the VM runs, and as it was afterwards,
//! whatever happens.
//!
//! "Whatever happens" includes `kill -9` of the command, after which no code of it runs. So a
//! terminal that is made raw gets a guard: a process that does nothing but wait for the command's
//! end, and then restores the terminal, unless the command has done so itself.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};

use bothy_guest::protocol::WindowSize;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::setsid;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::descriptors::keep_only;
use super::process::{exit_now, fork};

/// A terminal in raw mode; dropping it restores the mode that it had.
pub struct RawTerminal {
    terminal: BorrowedFd<'static>,
    saved: Termios,
    guard: File,
}

impl RawTerminal {
    /// Makes the terminal behind standard input raw; `None` if it is none. Forks the guard, so the
    /// process must have a single thread.
    pub fn enter() -> io::Result<Option<Self>> {
        let terminal = stdin();
        if !isatty(terminal) {
            return Ok(None);
        }
        let saved = tcgetattr(terminal)?;
        let mut raw = saved.clone();
        raw.make_raw();
        let guard = spawn_guard(terminal, &saved, &raw)?;
        let entered = Self { terminal, saved, guard };
        tcsetattr(terminal, OptionalActions::Now, &raw)?;
        Ok(Some(entered))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(self.terminal, OptionalActions::Now, &self.saved) {
            log::warn!("can't restore the terminal: {error}");
        }
        // The guard has nothing left to do.
        if let Err(error) = self.guard.write_all(b".") {
            log::debug!("terminal guard: {error}");
        }
    }
}

/// The size of the terminal behind standard output, or else standard input; `None` if neither is
/// one that has a size.
pub fn size() -> Option<WindowSize> {
    [stdout(), stdin()].into_iter().find_map(|fd| {
        let size = tcgetwinsize(fd).ok()?;
        let (rows, columns) = (size.ws_row, size.ws_col);
        (rows > 0 && columns > 0).then_some(WindowSize { rows, columns })
    })
}

/// Whether two modes are the same, as far as a raw mode differs from another one.
fn same_mode(a: &Termios, b: &Termios) -> bool {
    (a.input_modes, a.output_modes, a.control_modes, a.local_modes)
        == (b.input_modes, b.output_modes, b.control_modes, b.local_modes)
}

fn spawn_guard(terminal: BorrowedFd<'_>, saved: &Termios, raw: &Termios) -> io::Result<File> {
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some(_child) = fork()? else {
        // Nothing waits for a descriptor that the guard has.
        keep_only([terminal.as_raw_fd(), read_end.as_raw_fd()]);
        // A session of its own: the terminal's signals and its job control leave it alone. (The
        // kernel lets it set the mode because the terminal isn't its controlling one.)
        let _leads_one_already = setsid();
        let mut byte = [0];
        let is_done = matches!(File::from(read_end).read(&mut byte), Ok(1));
        // A shell that was quicker has set the mode that it wants.
        if !is_done && tcgetattr(terminal).is_ok_and(|now| same_mode(&now, raw)) {
            let _nobody_left_to_tell = tcsetattr(terminal, OptionalActions::Now, saved);
        }
        exit_now(0)
    };
    Ok(write_end.into())
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    /// Runs itself once more, as the program that panics, on a terminal of its own.
    #[test]
    fn a_panic_restores_the_terminal() {
        const PANIC: &str = "BOTHY_TEST_PANIC_ON_A_RAW_TERMINAL";
        if std::env::var_os(PANIC).is_some() {
            let raw = RawTerminal::enter().unwrap().expect("standard input is a terminal");
            let now = tcgetattr(raw.terminal).unwrap();
            panic!(
                "on purpose, and the terminal is {}",
                if same_mode(&now, &raw.saved) { "as before" } else { "raw" }
            );
        }
        let (_keyboard, line) = pty();
        let before = tcgetattr(&line).unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sys::terminal::tests::a_panic_restores_the_terminal"])
            .args(["--test-threads=1", "--nocapture"])
            .env(PANIC, "")
            .stdin(line.try_clone().unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("on purpose, and the terminal is raw"), "{said}");
        assert!(same_mode(&tcgetattr(&line).unwrap(), &before), "the terminal is still raw");
    }

    /// A pseudo-terminal: the end that a person has, and the end that a program has.
    fn pty() -> (File, File) {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let line =
            ioctl_tiocgptpeer(&keyboard, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        (keyboard.into(), line.unwrap().into())
    }
}
