//! Where messages and the log go: standard error, or a file, without ever waiting for a reader.
//!
//! Whatever a guest, an image or a registry can cause to be logged would otherwise stop the thread
//! that logs it, when nobody reads the terminal or the pipe behind it: signals would be ignored,
//! and a VM could not end. So a line that can't be written at once is lost, and the next one says
//! how many were.
//!
//! A pipe or a terminal is opened a second time, without blocking: to make standard error itself so
//! would change it for other processes that have it. Where that isn't allowed a line is written
//! only when poll(2) says that there is room, and is no longer than what a pipe then takes.
//!
//! On a terminal that does no output processing, because a guest or a container has it, lines end
//! with a carriage return as well.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::net::{SendFlags, send};
use rustix::termios::{OutputModes, isatty, tcgetattr};

use crate::poll::{self, Source};

/// Longest line, in bytes: a pipe takes so much at once or nothing of it (PIPE_BUF).
const MAX_LINE: usize = 4096;

/// A descriptor that lines are written to.
#[derive(Debug)]
pub struct Sink {
    fd: OwnedFd,
    kind: Kind,
    /// Lines since the last that was written.
    lost: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Takes everything at once: a file, or a device such as /dev/null.
    Prompt,
    /// A pipe or terminal that was opened again.
    Own {
        is_terminal: bool,
    },
    /// A pipe or terminal that others have open, too.
    Shared {
        is_terminal: bool,
    },
    Socket,
}

impl Sink {
    /// For what this descriptor leads to.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
        let is_terminal = kind == FileType::CharacterDevice && isatty(fd);
        let (fd, kind) = match kind {
            FileType::Socket => (fd.try_clone_to_owned()?, Kind::Socket),
            FileType::Fifo => open_again(fd, is_terminal)?,
            _ if is_terminal => open_again(fd, is_terminal)?,
            _ => (fd.try_clone_to_owned()?, Kind::Prompt),
        };
        Ok(Self { fd, kind, lost: AtomicU64::new(0) })
    }

    /// Writes one or more lines, unless nobody takes them within `grace`. Whether they were
    /// written.
    pub fn write(&self, text: &str, grace: Duration) -> bool {
        let lost = self.lost.load(Ordering::Relaxed);
        let notice = if lost > 0 {
            format!("({lost} lines are missing here: nobody read them)\n")
        } else {
            String::new()
        };
        let text = self.line(&notice, text);
        let written = self.try_write(text.as_bytes(), Instant::now() + grace);
        if written {
            self.lost.fetch_sub(lost, Ordering::Relaxed);
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    fn line(&self, notice: &str, text: &str) -> String {
        let mut line = format!("{notice}{text}");
        if line.len() > MAX_LINE - 2 {
            let end = (0..=MAX_LINE - 8).rev().find(|end| line.is_char_boundary(*end));
            line.truncate(end.unwrap_or(0));
            line.push_str("...");
        }
        if !line.ends_with('\n') {
            line.push('\n');
        }
        if self.is_raw() { line.replace('\n', "\r\n") } else { line }
    }

    /// Whether it is a terminal that makes nothing of a line feed but a line feed.
    fn is_raw(&self) -> bool {
        let (Kind::Own { is_terminal } | Kind::Shared { is_terminal }) = self.kind else { return false };
        is_terminal && tcgetattr(&self.fd).is_ok_and(|mode| !mode.output_modes.contains(OutputModes::OPOST))
    }

    fn try_write(&self, mut bytes: &[u8], deadline: Instant) -> bool {
        loop {
            let written = match self.kind {
                Kind::Prompt | Kind::Own { .. } => rustix::io::write(&self.fd, bytes),
                Kind::Socket => send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                Kind::Shared { .. } if self.has_room(Instant::now()) => rustix::io::write(&self.fd, bytes),
                Kind::Shared { .. } => Err(rustix::io::Errno::AGAIN),
            };
            match written {
                Ok(len) if len >= bytes.len() => return true,
                Ok(len) => bytes = &bytes[len..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline && self.has_room(deadline) => {}
                Err(_) => return false,
            }
        }
    }

    fn has_room(&self, until: Instant) -> bool {
        let ready = poll::wait([Source::of(&self.fd, false, true)], Some(until));
        ready.is_ok_and(|[ready]| ready.writable)
    }
}

impl AsRawFd for Sink {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn open_again(fd: BorrowedFd<'_>, is_terminal: bool) -> io::Result<(OwnedFd, Kind)> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, Mode::empty()) {
        Ok(own) => Ok((own, Kind::Own { is_terminal })),
        // Another user's, or one of another mount namespace.
        Err(_) => Ok((fd.try_clone_to_owned()?, Kind::Shared { is_terminal })),
    }
}

static STANDARD_ERROR: OnceLock<Option<Sink>> = OnceLock::new();
static LOG_FILE: OnceLock<Sink> = OnceLock::new();

/// Standard error. `None` if it is closed.
pub fn standard_error() -> Option<&'static Sink> {
    STANDARD_ERROR.get_or_init(|| Sink::of(io::stderr().as_fd()).ok()).as_ref()
}

/// What is open here besides the standard streams: a process that closes all others keeps these for
/// its log.
pub fn descriptors() -> Vec<RawFd> {
    standard_error().into_iter().chain(LOG_FILE.get()).map(AsRawFd::as_raw_fd).collect()
}

/// The log: each piece that is written is a line. It goes to standard error, unless
/// [`Log::to_file`] was called.
#[derive(Debug)]
pub struct Log;

impl Log {
    /// The log goes to this file, which may be a pipe or a terminal. The first call counts.
    pub fn to_file(file: &File) -> io::Result<()> {
        let _the_first = LOG_FILE.set(Sink::of(file.as_fd())?);
        Ok(())
    }
}

/// Begins to log, as `filters` says in the words of RUST_LOG; warnings where it is missing.
pub fn start_log(filters: Option<&str>) {
    env_logger::Builder::new()
        .parse_filters(filters.unwrap_or("warn"))
        .target(env_logger::Target::Pipe(Box::new(Log)))
        .init();
    // Before the process forks.
    standard_error();
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(sink) = LOG_FILE.get().or_else(standard_error) {
            sink.write(&String::from_utf8_lossy(bytes), Duration::ZERO);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{OptionalActions, tcsetattr};

    use super::*;

    fn pipe() -> (File, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        // As many pages as poll(2) can tell apart.
        fcntl_setpipe_size(&writer, 64 << 10).unwrap();
        (reader.into(), writer)
    }

    /// Writes until something is lost, reads, and writes again.
    fn loses_and_tells(sink: &Sink, mut read: impl FnMut() -> String) {
        let line = "x".repeat(99);
        let written = (0..10_000).take_while(|_| sink.write(&line, Duration::ZERO)).count();
        assert!(written > 10 && written < 10_000, "{written} lines");
        assert!(!sink.write(&line, Duration::ZERO));
        assert!(read().starts_with(&format!("{line}\n")));
        assert!(sink.write("there again", Duration::ZERO));
        let text = read();
        assert!(text.ends_with("(2 lines are missing here: nobody read them)\nthere again\n"), "{text}");
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nothing_up() {
        let (mut reader, writer) = pipe();
        let sink = Sink::of(writer.as_fd()).unwrap();
        assert_eq!(sink.kind, Kind::Own { is_terminal: false });
        let mut read = || {
            let mut bytes = vec![0; 64 << 10];
            let len = reader.read(&mut bytes).unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        };
        loses_and_tells(&sink, &mut read);
        // As if it couldn't be opened again: a page takes a line and no more.
        let shared = Sink { fd: writer, kind: Kind::Shared { is_terminal: false }, lost: AtomicU64::new(0) };
        loses_and_tells(&shared, read);
    }

    #[test]
    fn a_socket_that_nobody_reads_holds_nothing_up() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let sink = Sink::of(writer.as_fd()).unwrap();
        assert_eq!(sink.kind, Kind::Socket);
        reader.set_nonblocking(true).unwrap();
        loses_and_tells(&sink, || {
            let mut bytes = Vec::new();
            let _would_block = reader.read_to_end(&mut bytes);
            String::from_utf8(bytes).unwrap()
        });
    }

    #[test]
    fn a_reader_gets_time_when_a_message_matters() {
        let (mut reader, writer) = pipe();
        let sink = Sink::of(writer.as_fd()).unwrap();
        while sink.write("filling", Duration::ZERO) {}
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut bytes = vec![0; 64 << 10];
            (reader.read(&mut bytes).unwrap(), reader)
        });
        assert!(sink.write("message", Duration::from_secs(10)));
        late.join().unwrap();
    }

    #[test]
    fn a_raw_terminal_gets_its_carriage_returns_from_here() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let slave = open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let sink = Sink::of(slave.as_fd()).unwrap();
        assert_eq!(sink.kind, Kind::Own { is_terminal: true });
        let mut terminal = File::from(master);
        let mut read = || {
            let mut bytes = [0; 100];
            let len = terminal.read(&mut bytes).unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        };
        sink.write("cooked", Duration::ZERO);
        assert_eq!(read(), "cooked\r\n");
        let mut mode = tcgetattr(&slave).unwrap();
        mode.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &mode).unwrap();
        sink.write("raw\nlines", Duration::ZERO);
        assert_eq!(read(), "raw\r\nlines\r\n");
    }

    #[test]
    fn a_line_is_no_longer_than_what_a_pipe_takes_at_once() {
        let (mut reader, writer) = pipe();
        let sink = Sink::of(writer.as_fd()).unwrap();
        assert!(sink.write(&"é".repeat(10_000), Duration::ZERO));
        let mut bytes = vec![0; 64 << 10];
        let len = reader.read(&mut bytes).unwrap();
        assert!(len <= MAX_LINE && bytes[..len].ends_with("é...\n".as_bytes()));
    }

    #[test]
    fn a_file_takes_everything_behind_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        let file = File::options().append(true).open(&path).unwrap();
        Sink::of(file.as_fd()).unwrap().write("line", Duration::ZERO);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nline\n");
    }
}
