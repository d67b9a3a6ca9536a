//! The console, and the programs that are started on it.
//!
//! The kernel gives init `/dev/console` as its standard input and output. That device can't be a
//! controlling terminal, so programs get the terminal behind it, and with it job control and
//! Ctrl-C.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

/// Prints a line on the console. If nobody listens that is no reason to stop.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::print_line(&format!("bothy: {}", format_args!($($arg)*))) };
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the last output may stand still before init gives up on its reader.
const DRAIN_STALL: Duration = Duration::from_secs(1);
const DRAIN_POLL: Duration = Duration::from_micros(200);

/// Prints a line in one write, so that kernel messages don't cut it in two. See [`say!`].
pub(crate) fn print_line(line: &str) {
    let _ = io::stdout().lock().write_all([line, "\n"].concat().as_bytes());
}

/// The terminal behind the console, if it is one.
pub(crate) fn terminal() -> Option<File> {
    if !io::stdin().is_terminal() {
        return None;
    }
    let active = fs::read_to_string("/sys/class/tty/console/active").ok()?;
    // The last one named is the one that /dev/console stands for.
    let name = active.split_whitespace().last()?;
    let path = ["/dev/", name].concat();
    let terminal = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).ok()?;
    if let Err(error) = sys::control_terminal(terminal.as_fd()) {
        say!("no job control: {error}");
    }
    // One that has a size has it from the host, and maybe a newer one.
    if rustix::termios::tcgetwinsize(&terminal).is_ok_and(|size| size.ws_row > 0) {
        return Some(terminal);
    }
    // A terminal that doesn't take a size works without.
    let _ = sys::set_window_size(terminal.as_fd(), size_of("COLUMNS", 80), size_of("LINES", 24));
    Some(terminal)
}

/// The host may say how large its terminal is: the kernel hands words that it doesn't know to init
/// as environment.
fn size_of(variable: &str, usual: u16) -> u16 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Starts `sh` with these arguments on the terminal, or on init's own standard streams if there is
/// none, and returns its process number. The loop that reaps everybody learns of its end.
pub(crate) fn start_shell(args: &[&str], terminal: Option<&File>) -> io::Result<i32> {
    let mut command = Command::new("/bin/sh");
    command.args(args).current_dir("/root").env("PATH", PATH).env("HOME", "/root").env("USER", "root");
    command.env("PS1", "\\h:\\w# ").env_remove("COLUMNS").env_remove("LINES");
    if std::env::var_os("TERM").is_none() {
        command.env("TERM", "linux");
    }
    if let Some(terminal) = terminal {
        command.stdin(Stdio::from(terminal.try_clone()?));
        command.stdout(Stdio::from(terminal.try_clone()?));
        command.stderr(Stdio::from(terminal.try_clone()?));
    }
    sys::in_foreground(&mut command);
    let child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("/bin/sh: {error}")))?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// Waits until the terminal has sent what it was given: the kernel doesn't when it powers off.
pub(crate) fn drain() {
    let stdout = io::stdout();
    let mut unsent = sys::unsent_bytes(stdout.as_fd());
    let mut moved = Instant::now();
    while unsent > 0 && moved.elapsed() < DRAIN_STALL {
        thread::sleep(DRAIN_POLL);
        let now = sys::unsent_bytes(stdout.as_fd());
        if now != unsent {
            moved = Instant::now();
        }
        unsent = now;
    }
}
