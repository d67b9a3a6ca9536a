//! The console on a terminal: raw while the VM runs, restored whatever happens, and the keys behind
//! `Ctrl-a`.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::guest::Guest;
use super::script::Script;
use crate::support::{Bothy, Running, eventually, signal};

/// A pseudo-terminal: what a person types goes into `keyboard`.
struct Terminal {
    keyboard: File,
    line: OwnedFd,
}

impl Terminal {
    fn new() -> Self {
        #[expect(unsafe_code, reason = "std knows nothing of terminals")]
        // SAFETY: the first call gives a descriptor that nobody else has, or -1, which is refused
        // before anything owns it; the others take it and touch no memory; the last one gives
        // another such descriptor.
        unsafe {
            let keyboard = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
            assert!(keyboard >= 0 && libc::grantpt(keyboard) == 0 && libc::unlockpt(keyboard) == 0);
            let line =
                libc::ioctl(keyboard, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
            assert!(line >= 0, "{}", std::io::Error::last_os_error());
            Self { keyboard: File::from_raw_fd(keyboard), line: OwnedFd::from_raw_fd(line) }
        }
    }

    /// Input, output, control and local modes.
    fn mode(&self) -> [u32; 4] {
        #[expect(unsafe_code, reason = "std knows nothing of terminals")]
        // SAFETY: a termios of zeros is valid, and tcgetattr writes within it.
        let mode = unsafe {
            let mut mode: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.line.as_raw_fd(), &raw mut mode), 0);
            mode
        };
        [mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag]
    }

    fn is_raw(&self) -> bool {
        self.mode()[3] & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        #[expect(unsafe_code, reason = "std knows nothing of terminals")]
        // SAFETY: TIOCSWINSZ reads a winsize, which lives on this stack.
        let done = unsafe { libc::ioctl(self.line.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    fn type_in(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Boots a guest that listens, says `r`, and goes on with `script`; returns once it has said
    /// so.
    fn boot(&self, script: Script) -> (Running, tempfile::TempDir) {
        let (bothy, dir) = Guest::new(&Script::new().listen().say(b'r').then(script)).boot();
        let mut running = bothy.terminal(self.line.try_clone().unwrap()).start();
        running.wait_for(b"r");
        assert!(eventually(Duration::from_secs(5), || self.is_raw()), "the terminal is not raw");
        (running, dir)
    }
}

#[test]
fn a_terminal_is_raw_while_the_vm_runs_and_as_before_afterwards() {
    let mut terminal = Terminal::new();
    let before = terminal.mode();
    assert!(!terminal.is_raw());
    let (running, _dir) = terminal.boot(Script::new().echo(4).power_off());
    terminal.type_in(b"a\x03\x04\r");
    assert_eq!(running.wait().output(), b"ra\x03\x04\r", "keys arrive one by one, and none means anything");
    assert_eq!(terminal.mode(), before);
}

/// The guest has ended, and waits for a reader. Nobody wants it to hurry.
#[test]
fn a_new_size_of_the_terminal_cuts_off_nothing_that_is_unread() {
    let terminal = Terminal::new();
    terminal.resize(24, 80);
    let (bothy, _dir) = Guest::new(&Script::new().flood(5000).power_off()).boot();
    let mut running = bothy.terminal(terminal.line.try_clone().unwrap()).unread_output().start();
    assert!(eventually(Duration::from_secs(10), || running.unread_len() > 0), "nothing was said");
    let vm = running.vm_pid();
    // Until no buffer takes any more, and the guest has powered off.
    std::thread::sleep(Duration::from_secs(2));
    terminal.resize(50, 132);
    running.signal(libc::SIGWINCH);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(running.processes().contains(&vm), "what nobody has read yet is lost");
    running.read_output();
    let len = running.wait().code(0).stdout.len();
    // What the port alone holds when all behind it is full.
    assert!(len > 16 << 10, "{len} bytes");
}

#[test]
fn control_a_x_ends_the_vm_with_0() {
    let mut terminal = Terminal::new();
    let before = terminal.mode();
    let (running, _dir) = terminal.boot(Script::new().spin());
    terminal.type_in(b"\x01x");
    running.wait().code(0);
    assert_eq!(terminal.mode(), before);
}

#[test]
fn control_a_h_helps_and_control_a_twice_is_one_for_the_guest() {
    let mut terminal = Terminal::new();
    let (mut running, _dir) = terminal.boot(Script::new().echo(3));
    terminal.type_in(b"\x01h");
    running.wait_for_message("Ctrl-a x");
    terminal.type_in(b"x\x01\x01y");
    assert_eq!(running.wait().code(0).stdout, b"rx\x01y");
}

#[test]
fn a_terminal_is_restored_when_the_guest_is_killed() {
    let terminal = Terminal::new();
    let before = terminal.mode();
    let (running, _dir) = terminal.boot(Script::new().spin());
    running.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(100));
    running.signal(libc::SIGTERM);
    running.wait().code(6);
    assert_eq!(terminal.mode(), before);
}

#[test]
fn a_terminal_is_restored_when_the_command_is_killed() {
    let terminal = Terminal::new();
    let before = terminal.mode();
    let (running, _dir) = terminal.boot(Script::new().spin());
    running.signal(libc::SIGKILL);
    running.wait().code(-libc::SIGKILL);
    assert_eq!(terminal.mode(), before);
}

#[test]
fn a_terminal_is_restored_when_all_processes_of_the_vm_die() {
    let terminal = Terminal::new();
    let before = terminal.mode();
    let (running, _dir) = terminal.boot(Script::new().spin());
    signal(running.vm_pid(), libc::SIGKILL);
    running.wait().code(1).says("signal 9");
    assert_eq!(terminal.mode(), before);
}

#[test]
fn without_a_console_the_terminal_is_left_alone() {
    let terminal = Terminal::new();
    let before = terminal.mode();
    let dir = crate::support::scratch();
    let kernel = Guest::new(&Script::new().sleep(100).out8(0x505, 1).halt()).write(dir.path());
    let words = ["--console", "none"];
    let running = Bothy::boot(&kernel).args(words).terminal(terminal.line.try_clone().unwrap()).start();
    while running.processes().len() < 3 {
        std::thread::yield_now();
    }
    assert_eq!(terminal.mode(), before);
    running.wait().code(3);
    assert_eq!(terminal.mode(), before);
}
