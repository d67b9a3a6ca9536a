//! The command's standard streams: a socket each, and a thread that carries its bytes.
//!
//! Such a thread may block for as long as its reader, or whoever types, likes; signals and the
//! agent are served meanwhile. The thread of standard input is not waited for: it may be reading
//! from a terminal when everything else has ended.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

use super::carry;
use super::protocol::{Stdio, Stream};
use crate::poll::{self, Source};
use crate::thread;

/// The most that is read from standard input at once, in bytes.
const PIECE: usize = 64 << 10;

/// All streams of a command.
pub(super) struct Streams {
    expected: Vec<Stream>,
    has_input: bool,
    /// Each thread that carries output has a copy, and we have it as long as there is one still to
    /// come.
    guard: Option<UnixStream>,
    /// Ends when the last copy of the guard is gone.
    done: UnixStream,
    /// Why some output is lost.
    unwritten: Arc<Mutex<Option<String>>>,
}

impl Streams {
    /// These are going to be connected.
    pub(super) fn new(stdio: Stdio) -> anyhow::Result<Self> {
        let (expected, has_input) = match stdio {
            Stdio::Terminal { input, .. } => (vec![Stream::Terminal], input),
            Stdio::Pipes { stdin } => {
                let input = stdin.then_some(Stream::Stdin);
                (input.into_iter().chain([Stream::Stdout, Stream::Stderr]).collect(), stdin)
            }
        };
        let (done, guard) = UnixStream::pair().context("can't make a socket")?;
        Ok(Self { expected, has_input, guard: Some(guard), done, unwritten: Arc::default() })
    }

    /// Readable when all output has been written.
    pub(super) fn source(&self) -> Source<'_> {
        Source::readable(&self.done)
    }

    /// Whether output is still to be connected.
    pub(super) fn are_expected(&self) -> bool {
        self.guard.is_some()
    }

    /// Why some output is lost, if it is. Final when all output has been written.
    pub(super) fn unwritten(&self) -> Option<String> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// No more will be connected.
    pub(super) fn expect_no_more(&mut self) {
        self.guard = None;
    }

    /// Begins to carry a stream.
    pub(super) fn open(&mut self, stream: Stream, socket: UnixStream) -> anyhow::Result<()> {
        let Some(position) = self.expected.iter().position(|expected| *expected == stream) else {
            return Ok(());
        };
        self.expected.swap_remove(position);
        match stream {
            Stream::Stdin => carry_input(socket)?,
            Stream::Stdout => self.carry_output("output", io::stdout().as_fd(), socket)?,
            Stream::Stderr => self.carry_output("error", io::stderr().as_fd(), socket)?,
            Stream::Terminal => {
                if self.has_input {
                    carry_input(socket.try_clone().context("can't copy a socket")?)?;
                }
                self.carry_output("output", io::stdout().as_fd(), socket)?;
            }
        }
        if self.expected.iter().all(|stream| *stream == Stream::Stdin) {
            self.guard = None;
        }
        Ok(())
    }

    fn carry_output(
        &self,
        name: &'static str,
        to: BorrowedFd<'_>,
        mut socket: UnixStream,
    ) -> anyhow::Result<()> {
        let copy = to.try_clone_to_owned().with_context(|| format!("can't copy standard {name}"))?;
        let (mut to, unwritten) = (File::from(copy), self.unwritten.clone());
        let guard =
            self.guard.as_ref().map(UnixStream::try_clone).transpose().context("can't copy a socket")?;
        spawn(name, move || {
            if let Err(error) = carry::all(&mut socket, &mut to) {
                // The command gets an error, as from a pipe that nobody reads.
                close(&socket, Shutdown::Both);
                if let Some(why) = carry::complaint(name, &error) {
                    unwritten.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
                }
            }
            drop(guard);
        })
    }
}

/// Carries standard input to the command, until either of them ends.
fn carry_input(mut socket: UnixStream) -> anyhow::Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().context("can't copy standard input")?;
    let mut stdin = File::from(stdin);
    spawn("stdin", move || {
        let mut piece = vec![0; PIECE];
        loop {
            match stdin.read(&mut piece) {
                Ok(0) => break,
                Ok(len) => {
                    if socket.write_all(&piece[..len]).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if poll::wait([Source::readable(&stdin)], None).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::debug!("standard input: {error}");
                    break;
                }
            }
        }
        close(&socket, Shutdown::Write);
    })
}

fn close(socket: &UnixStream, how: Shutdown) {
    if let Err(error) = socket.shutdown(how) {
        log::debug!("a stream: {error}");
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::start(name, body).context("can't start a thread")?;
    Ok(())
}
