//! The VM's main thread while the guest runs: it carries out commands, carries the console's bytes,
//! registers doorbells, and waits for the end.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::Vmm;
use super::control::{self, Command};
use crate::devices::serial::Serial;
use crate::outcome::Outcome;
use crate::poll::{self, Source};
use crate::vcpu::Running;
use crate::virtio::console;

/// What wakes the main thread, besides its two sockets.
pub(super) struct Wakeups {
    /// The VM has ended, or its guest has panicked.
    pub(super) end_evt: EventFd,
    /// The serial port or the console has bytes, or room for some.
    pub(super) console_evt: EventFd,
    /// A doorbell is to be registered or removed.
    pub(super) doorbell_evt: EventFd,
}

impl Wakeups {
    pub(super) fn new() -> io::Result<Self> {
        let evt = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self { end_evt: evt()?, console_evt: evt()?, doorbell_evt: evt()? })
    }
}

/// What a kernel that has panicked gets to write its last words: its report comes before them if
/// another CPU has the console. bothy's own guest resets as soon as they are out; Debian's kernels
/// never do.
const PANIC_GRACE: Duration = Duration::from_secs(1);

/// Serves the VM until it has ended, and says how.
pub(super) fn run(vmm: &mut Vmm, vcpus: &Running, control: &mut UnixStream) -> io::Result<Outcome> {
    let mut console = match (vmm.serial.clone(), vmm.console.take()) {
        (Some(serial), Some(socket)) => Some(Console::new(serial, vmm.port.clone(), socket)?),
        _ => None,
    };
    // Whether somebody wants the VM to end: then nobody waits for long.
    let mut asked = false;
    // When a guest that has panicked has had the time for its last words.
    let mut silenced: Option<Instant> = None;
    loop {
        if let Some(outcome) = vmm.machine.end.outcome().cloned() {
            if let Some(console) = &mut console {
                console.finish(control, asked);
            }
            return Ok(outcome);
        }
        if vmm.machine.end.has_panicked() {
            // Not while what it said still waits for its reader.
            let unread = !asked && console.as_ref().is_some_and(Console::is_unread);
            silenced = if unread { None } else { silenced.or_else(|| Some(Instant::now() + PANIC_GRACE)) };
        }
        let stuck = console.as_ref().filter(|_| asked).and_then(Console::stuck_until);
        let [end, ordered, doorbell, console_evt, socket] = poll::wait(
            [
                Source::readable(&vmm.wakeups.end_evt),
                Source::readable(control),
                Source::readable(&vmm.wakeups.doorbell_evt),
                Source::readable(&vmm.wakeups.console_evt),
                console.as_ref().map_or(Source::none(), Console::source),
            ],
            stuck.into_iter().chain(silenced).min(),
        )?;
        if silenced.is_some_and(|at| Instant::now() >= at) {
            vmm.machine.end.report(Outcome::Panic);
            continue;
        }
        if let Some(console) = console.as_mut().filter(|_| stuck.is_some_and(|until| Instant::now() >= until))
        {
            console.give_up_on_reader();
        }
        if end.readable {
            drain(&vmm.wakeups.end_evt);
            continue;
        }
        if ordered.readable {
            asked |= on_command(vmm, vcpus, control);
        }
        if doorbell.readable {
            drain(&vmm.wakeups.doorbell_evt);
            vmm.doorbells.apply(&vmm.vm);
        }
        if console_evt.readable {
            drain(&vmm.wakeups.console_evt);
        }
        if let Some(console) = &mut console
            && (console_evt.readable || socket.readable || socket.writable)
        {
            console.carry();
        }
    }
}

fn drain(evt: &EventFd) {
    if let Err(error) = evt.read() {
        log::debug!("eventfd: {error}");
    }
}

/// Carries out a command, and returns whether it ends the VM.
fn on_command(vmm: &mut Vmm, vcpus: &Running, control: &mut UnixStream) -> bool {
    match Command::read(control) {
        Ok(Command::Reclaim { mib }) => {
            if let Some(balloon) = &vmm.balloon {
                balloon.reclaim(u64::from(mib) << 20);
            }
            return false;
        }
        Ok(Command::Resize { size }) => {
            if let Some(port) = &vmm.port {
                port.resize(size);
            }
            return false;
        }
        Ok(Command::Snapshot) => {
            // Once: the file is no longer empty.
            let written = vmm.snapshot.take().map(|file| vmm.write_to(vcpus, &file));
            if let Some(Err(error)) = &written {
                log::warn!("no snapshot: {error}");
            }
            control::send_snapshot(control, matches!(written, Some(Ok(()))));
            return false;
        }
        Ok(Command::PressPowerButton) => vmm.events.press_power_button(),
        Ok(Command::Quit) => vmm.machine.end.report(Outcome::Quit),
        Ok(Command::Kill) => vmm.machine.end.report(Outcome::Killed),
        // The monitor is gone, or sends what is no command.
        Err(_) => vmm.machine.end.report(Outcome::Killed),
    }
    true
}

/// The VM's end of the console: a socket to the command on one side, the serial port on the other,
/// and a virtio console if there is one.
struct Console {
    serial: Arc<Serial>,
    /// Then what is typed goes here.
    port: Option<Arc<console::Port>>,
    socket: UnixStream,
    /// Bytes that the guest sent and the socket hasn't taken.
    outgoing: Vec<u8>,
    /// Bytes from the command that the guest hasn't taken.
    incoming: Vec<u8>,
    /// The command closed its sending side: end of input.
    ended: bool,
    /// When `outgoing` last became shorter, or empty.
    moved: Instant,
    /// The reader is given up: what the guest sends is dropped.
    unread: bool,
}

/// How long the guest's last words may take when the VM was told to end.
const LAST_WORDS_GRACE: Duration = Duration::from_millis(500);
/// The most that is read from the command at once.
const INCOMING: usize = 4096;

impl Console {
    fn new(serial: Arc<Serial>, port: Option<Arc<console::Port>>, socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            serial,
            port,
            socket,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            ended: false,
            moved: Instant::now(),
            unread: false,
        })
    }

    fn source(&self) -> Source<'_> {
        let (read, write) = (!self.ended && self.incoming.is_empty(), !self.outgoing.is_empty());
        // With nothing to read or write a hang-up would wake the loop again and again.
        if read || write { Source::of(&self.socket, read, write) } else { Source::none() }
    }

    /// When a reader that takes nothing is to be given up; `None` while nothing waits for it.
    fn stuck_until(&self) -> Option<Instant> {
        (!self.outgoing.is_empty()).then(|| self.moved + LAST_WORDS_GRACE)
    }

    /// Whether something waits to be read.
    fn is_unread(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Somebody wants the VM to end, and nobody reads what it says: a guest that waits to be read
    /// would never power off.
    fn give_up_on_reader(&mut self) {
        self.unread = true;
        self.carry();
    }

    /// Moves what can be moved, in both directions.
    fn carry(&mut self) {
        self.send();
        if self.outgoing.is_empty() {
            self.outgoing = self.serial.take();
            self.outgoing.extend(self.port.iter().flat_map(|port| port.take()));
            self.moved = Instant::now();
            self.send();
        }
        if self.incoming.is_empty() && !self.ended {
            self.receive();
        }
        let given = match &self.port {
            Some(port) => port.give(&self.incoming),
            None => self.serial.give(&self.incoming),
        };
        self.incoming.drain(..given);
    }

    fn send(&mut self) {
        if self.unread {
            self.outgoing.clear();
        }
        while !self.outgoing.is_empty() {
            match self.socket.write(&self.outgoing) {
                Ok(sent) => {
                    self.outgoing.drain(..sent);
                    self.moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The command no longer listens: the guest goes on without a reader.
                Err(_) => self.outgoing.clear(),
            }
        }
    }

    fn receive(&mut self) {
        let mut bytes = [0; INCOMING];
        match self.socket.read(&mut bytes) {
            Ok(0) => self.ended = true,
            Ok(len) => self.incoming.extend_from_slice(&bytes[..len]),
            Err(error) if poll::is_passing(&error) => {}
            Err(_) => self.ended = true,
        }
    }

    /// Sends the guest's last words, for as long as their reader takes; but if somebody wants the
    /// VM to end, or does so meanwhile, they are worth a short wait and no more.
    fn finish(&mut self, control: &UnixStream, asked: bool) {
        let mut deadline = asked.then(|| Instant::now() + LAST_WORDS_GRACE);
        self.carry();
        while !self.outgoing.is_empty() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            // Whoever wants the end is heard; anything else no longer matters.
            let order = if deadline.is_none() { Source::readable(control) } else { Source::none() };
            match poll::wait([Source::of(&self.socket, false, true), order], deadline) {
                Ok([_, order]) if order.readable => {
                    if !matches!(
                        Command::read(&mut &*control),
                        Ok(Command::Resize { .. } | Command::Reclaim { .. })
                    ) {
                        deadline = Some(Instant::now() + LAST_WORDS_GRACE);
                    }
                }
                Ok(_) => self.carry(),
                Err(_) => return,
            }
        }
    }
}
