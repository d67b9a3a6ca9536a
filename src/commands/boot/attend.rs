//! The client of a VM that runs: it carries the console's bytes between the VM and the standard
//! streams, turns signals into commands, and waits for the VM's end.
//!
//! Standard output is written by a thread of its own: such a write may block for as long as its
//! reader likes, and signals are handled meanwhile. Everything else happens on the main thread.

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::net::{SendFlags, send};

use super::keys::{Escape, HELP, Key};
use crate::commands::say;
use crate::container::carry;
use crate::container::client::Client;
use crate::container::protocol::{Event, Request, VmEnd};
use crate::outcome::Outcome;
use crate::poll::{self, Source};
use crate::sys::signals::Signals;
use crate::sys::terminal::{self, RawTerminal};
use crate::thread;
use crate::timeline::Times;
use crate::vmm::control::{Command, Counts};

/// How long a guest may take to power off after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
/// How often the power button is pressed meanwhile: a guest that is still booting doesn't see the
/// first time.
const PRESS_AGAIN: Duration = Duration::from_secs(1);
/// How long the VM's process may take to end after the command to.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// How long the rest of the output may take when a signal has ended the VM.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// Typed bytes that are kept for a guest that doesn't take them; more are lost, as on any terminal.
const TYPE_AHEAD: usize = 64 * 1024;
/// The most that is read from standard input at once.
const CHUNK: usize = 4096;

/// A VM's end.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) times: Times,
    pub(super) counts: Option<Box<Counts>>,
    /// Why some of the guest's output is lost, if it is.
    pub(super) unwritten: Option<String>,
}

/// How far the VM is on its way to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ShutdownStage {
    None,
    /// The power button was pressed.
    Asked,
    /// The VM was commanded to end.
    Commanded,
    /// Its process was killed.
    Killed,
}

struct Attendant {
    client: Client,
    /// The VM has ended so, or has failed with a message.
    end: Option<Result<VmEnd, String>>,
    signals: Signals,
    input: Option<Input>,
    output: Option<Output>,
    stage: ShutdownStage,
    /// When to go to the next stage.
    deadline: Option<Instant>,
    /// When to press the power button again.
    press_at: Option<Instant>,
    /// The guest has ended; its VM has not.
    guest_ended: bool,
    /// Why some of the guest's output is lost.
    unwritten: Option<String>,
}

/// Attends to a VM until it has ended, from the signals on that came `early`. `console` has its
/// console's bytes; `terminal` is standard input, if it is a raw terminal.
pub(super) fn attend(
    client: Client,
    console: Option<UnixStream>,
    terminal: Option<&RawTerminal>,
    signals: Signals,
    early: Vec<i32>,
) -> anyhow::Result<Ended> {
    let (input, output) = match console {
        Some(socket) => {
            let output = Output::start(socket.try_clone().context("can't copy a socket")?)?;
            (Some(Input::new(socket, terminal.is_some())?), Some(output))
        }
        None => (None, None),
    };
    let mut attendant = Attendant {
        client,
        end: None,
        signals,
        input,
        output,
        stage: ShutdownStage::None,
        deadline: None,
        press_at: None,
        guest_ended: false,
        unwritten: None,
    };
    for signal in early {
        attendant.on_signal(signal)?;
    }
    attendant.run()?;
    attendant.finish_output();
    let Attendant { stage, end, unwritten, .. } = attendant;
    match end {
        Some(Ok(VmEnd { outcome: Ok(outcome), times, counts, .. })) => {
            Ok(Ended { outcome, times, counts, unwritten })
        }
        // A process that was killed has sent no report.
        _ if stage == ShutdownStage::Killed => {
            Ok(Ended { outcome: Outcome::Killed, times: Times::default(), counts: None, unwritten })
        }
        Some(Ok(VmEnd { outcome: Err(died), .. }) | Err(died)) => bail!(died),
        None => bail!("the VM has not ended"),
    }
}

impl Attendant {
    /// Serves until the VM has ended.
    fn run(&mut self) -> anyhow::Result<()> {
        loop {
            let sources = [
                Source::readable(&self.client),
                Source::readable(&self.signals),
                self.input.as_ref().map_or(Source::none(), Input::stdin_source),
                self.input.as_ref().map_or(Source::none(), Input::socket_source),
                self.output.as_ref().map_or(Source::none(), Output::source),
            ];
            let [events, signal, stdin, socket, output] =
                poll::wait(sources, self.next_wakeup()).context("can't wait for events")?;
            if events.readable {
                self.read_events()?;
                if self.end.is_some() {
                    return Ok(());
                }
            }
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                self.next_stage()?;
            } else if self.press_at.is_some_and(|at| now >= at) {
                self.press_power_button()?;
            }
            if signal.readable {
                let signal = self.signals.take().context("can't read a signal")?;
                self.on_signal(signal)?;
            }
            if stdin.readable || socket.writable {
                self.carry_input(stdin.readable)?;
            }
            if output.readable
                && let Some(error) = self.output.take().and_then(Output::failure)
            {
                self.unwritten = carry::complaint("output", &error);
                if self.stage == ShutdownStage::None && !self.guest_ended {
                    // Like any program whose reader has gone, but with an orderly power-off.
                    self.next_stage()?;
                }
            }
        }
    }

    fn on_signal(&mut self, signal: i32) -> anyhow::Result<()> {
        match signal {
            libc::SIGWINCH => self.resize(),
            _ => self.next_stage(),
        }
    }

    fn read_events(&mut self) -> anyhow::Result<()> {
        let events = match self.client.read() {
            Ok(events) => events,
            // What the guest has written is still to be shown.
            Err(error) => {
                self.end = Some(Err(format!("{error:#}")));
                return Ok(());
            }
        };
        for (event, _) in events {
            match event {
                Event::GuestEnded => {
                    // Its disks take as long as they take, unless the user insists.
                    self.guest_ended = true;
                    if matches!(self.stage, ShutdownStage::None | ShutdownStage::Asked) {
                        (self.deadline, self.press_at) = (None, None);
                    }
                }
                Event::Ended(end) => self.end = Some(Ok(*end)),
                Event::Failed { message, .. } => self.end = Some(Err(message)),
                event => bail!("unexpected message from bothy's monitor: {event:?}"),
            }
        }
        Ok(())
    }

    fn next_stage(&mut self) -> anyhow::Result<()> {
        let (stage, grace) = match self.stage {
            ShutdownStage::None => (ShutdownStage::Asked, GRACE),
            // Without a guest nobody reads the power button.
            ShutdownStage::Asked if self.guest_ended => (ShutdownStage::Killed, KILL_GRACE),
            ShutdownStage::Asked => (ShutdownStage::Commanded, KILL_GRACE),
            ShutdownStage::Commanded | ShutdownStage::Killed => (ShutdownStage::Killed, KILL_GRACE),
        };
        match stage {
            ShutdownStage::Asked if !self.guest_ended => self.press_power_button()?,
            ShutdownStage::Commanded => {
                self.press_at = None;
                self.client.send(Request::Vm(Command::Kill))?;
            }
            // A process with much memory, or with a disk that is slow, takes its time to die.
            ShutdownStage::Killed => self.client.send(Request::KillVm)?,
            ShutdownStage::None | ShutdownStage::Asked => {}
        }
        self.stage = stage;
        self.deadline = Some(Instant::now() + grace);
        Ok(())
    }

    /// The user wants the VM to end at once; a second time, or when it doesn't, by force.
    fn quit(&mut self) -> anyhow::Result<()> {
        if matches!(self.stage, ShutdownStage::Commanded | ShutdownStage::Killed) {
            return self.next_stage();
        }
        self.client.send(Request::Vm(Command::Quit))?;
        (self.stage, self.press_at) = (ShutdownStage::Commanded, None);
        self.deadline = Some(Instant::now() + KILL_GRACE);
        Ok(())
    }

    fn resize(&mut self) -> anyhow::Result<()> {
        match terminal::size().filter(|_| !self.guest_ended) {
            Some(size) => self.client.send(Request::Vm(Command::Resize { size })),
            None => Ok(()),
        }
    }

    fn press_power_button(&mut self) -> anyhow::Result<()> {
        self.press_at = Some(Instant::now() + PRESS_AGAIN);
        self.client.send(Request::Vm(Command::PressPowerButton))
    }

    fn next_wakeup(&self) -> Option<Instant> {
        self.deadline.into_iter().chain(self.press_at).min()
    }

    fn carry_input(&mut self, readable: bool) -> anyhow::Result<()> {
        let Some(input) = &mut self.input else { return Ok(()) };
        let keys = input.carry(readable);
        if input.is_done() {
            self.input = None;
        }
        for key in keys {
            match key {
                Key::Quit => self.quit()?,
                Key::Help => say(HELP),
            }
        }
        Ok(())
    }

    /// Waits until the VM's output is written: for as long as its reader likes, unless a signal
    /// wants us to end.
    fn finish_output(&mut self) {
        let Some(output) = self.output.take() else { return };
        // The VM reads nothing any more, and its output has ended.
        self.input = None;
        let mut deadline = (self.stage != ShutdownStage::None).then(|| Instant::now() + DRAIN_GRACE);
        loop {
            let sources = [output.source(), Source::readable(&self.signals)];
            match poll::wait(sources, deadline) {
                Ok([done, _]) if done.readable => {
                    let failure = output.failure();
                    self.unwritten = failure.and_then(|error| carry::complaint("output", &error));
                    return;
                }
                Ok([_, signal]) if signal.readable => match self.signals.take() {
                    Ok(libc::SIGWINCH) => {}
                    Ok(_) => deadline = Some(Instant::now()),
                    Err(_) => return,
                },
                _ => return,
            }
        }
    }
}

/// Standard input on its way to the guest.
struct Input {
    /// A copy of the descriptor: std's Stdin buffers, and what it buffers no poll can see.
    stdin: File,
    socket: UnixStream,
    pending: Vec<u8>,
    /// Standard input has ended; the guest goes on.
    ended: bool,
    escape: Option<Escape>,
}

impl Input {
    fn new(socket: UnixStream, terminal: bool) -> anyhow::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned().context("can't copy standard input")?.into();
        Ok(Self { stdin, socket, pending: Vec::new(), ended: false, escape: terminal.then(Escape::default) })
    }

    fn stdin_source(&self) -> Source<'_> {
        if self.ended || !self.takes_more() { Source::none() } else { Source::readable(&self.stdin) }
    }

    fn socket_source(&self) -> Source<'_> {
        if self.pending.is_empty() { Source::none() } else { Source::of(&self.socket, false, true) }
    }

    fn is_done(&self) -> bool {
        self.ended && self.pending.is_empty()
    }

    /// A terminal is always read, because the keys that are meant for us must be seen even if the
    /// guest takes nothing.
    fn takes_more(&self) -> bool {
        self.pending.is_empty() || self.escape.is_some()
    }

    fn carry(&mut self, readable: bool) -> Vec<Key> {
        let mut keys = Vec::new();
        if readable && self.takes_more() {
            let mut bytes = [0; CHUNK];
            match self.stdin.read(&mut bytes) {
                Ok(0) => self.ended = true,
                Ok(len) => match &mut self.escape {
                    Some(escape) => {
                        let typed;
                        (typed, keys) = escape.filter(&bytes[..len]);
                        let room = TYPE_AHEAD.saturating_sub(self.pending.len());
                        self.pending.extend_from_slice(&typed[..typed.len().min(room)]);
                    }
                    None => self.pending.extend_from_slice(&bytes[..len]),
                },
                // Somebody who shares the terminal may have made it non-blocking.
                Err(error) if poll::is_passing(&error) => {}
                Err(error) => {
                    log::debug!("standard input: {error}");
                    self.ended = true;
                }
            }
        }
        self.send();
        keys
    }

    fn send(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        match send_some(&self.socket, &self.pending) {
            Ok(sent) => {
                self.pending.drain(..sent);
            }
            Err(error) if poll::is_passing(&error) => {}
            // The VM takes nothing any more: it is ending.
            Err(_) => (self.ended, self.pending) = (true, Vec::new()),
        }
    }
}

/// Sends without blocking; the socket itself stays blocking for the thread that reads from it.
fn send_some(socket: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// The thread that writes the guest's output to standard output.
struct Output {
    thread: std::thread::JoinHandle<io::Result<()>>,
    /// Closed by the thread when it ends.
    done: UnixStream,
}

impl Output {
    fn start(mut socket: UnixStream) -> anyhow::Result<Self> {
        let (done, guard) = UnixStream::pair().context("can't make a socket")?;
        let body = move || {
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            let written = stdout.and_then(|stdout| carry::all(&mut socket, &mut stdout.into()));
            // The VM must not wait for a reader that has gone.
            if let Err(error) = socket.shutdown(Shutdown::Read) {
                log::debug!("console socket: {error}");
            }
            drop(guard);
            written
        };
        let thread = thread::start("console", body).context("can't start a thread")?;
        Ok(Self { thread, done })
    }

    /// Readable when the thread has ended.
    fn source(&self) -> Source<'_> {
        Source::readable(&self.done)
    }

    /// Why standard output takes nothing any more, if that is why the thread ended. Called when it
    /// has ended.
    fn failure(self) -> Option<io::Error> {
        self.thread.join().ok()?.err()
    }
}
