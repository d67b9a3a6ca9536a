//! The messages between the monitor and the VM's process.
//!
//! To the VM: [`Command`]s, of a few bytes each. From the VM: a byte for each snapshot that was
//! requested, the byte [`GUEST_ENDED`] when the guest has ended by itself and its disks may take a
//! while, one [`Report`] as JSON when the VM has released everything or failed to start, and then
//! the end of the stream. A VM that dies without a report is reported by the stream's end alone.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bothy_guest::protocol::WindowSize;
use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;
use crate::poll::{self, Source};
use crate::timeline::Times;
pub use crate::virtio::balloon::Figures as BalloonFigures;

/// A command for the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Ask the guest to power off.
    PressPowerButton,
    /// End at once, as the user wishes.
    Quit,
    /// End at once, because the guest didn't answer.
    Kill,
    /// Take memory that the guest doesn't need, if there is a balloon.
    Reclaim {
        /// So much.
        mib: u32,
    },
    /// Write the VM to the file that it has for that, and go on.
    Snapshot,
    /// The terminal behind a virtio console has another size.
    Resize {
        /// The new one.
        size: WindowSize,
    },
}

impl Command {
    /// A letter, and for some numbers behind it (little-endian). Written at once, so that the VM
    /// never waits for a rest.
    pub(super) fn encode(self) -> Vec<u8> {
        match self {
            Self::PressPowerButton => vec![b'p'],
            Self::Quit => vec![b'q'],
            Self::Kill => vec![b'k'],
            Self::Snapshot => vec![b's'],
            Self::Reclaim { mib } => [&b"r"[..], &mib.to_le_bytes()].concat(),
            Self::Resize { size: WindowSize { rows, columns } } => {
                [&b"w"[..], &rows.to_le_bytes(), &columns.to_le_bytes()].concat()
            }
        }
    }

    /// Reads one. `InvalidData` is none, `UnexpectedEof` the stream's end.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut letter = [0];
        from.read_exact(&mut letter)?;
        Ok(match letter[0] {
            b'p' => Self::PressPowerButton,
            b'q' => Self::Quit,
            b'k' => Self::Kill,
            b's' => Self::Snapshot,
            b'r' => Self::Reclaim { mib: u32::from_le_bytes(read_array(from)?) },
            b'w' => {
                let (rows, columns) = (read_array(from)?, read_array(from)?);
                let size =
                    WindowSize { rows: u16::from_le_bytes(rows), columns: u16::from_le_bytes(columns) };
                Self::Resize { size }
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

fn read_array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Says that the guest has ended, by itself and not by an order: what is left to wait for are its
/// disks. No JSON starts so.
const GUEST_ENDED: u8 = b'E';

/// The longest report, in bytes: KVM's counters have some 150 names.
const MAX_REPORT: usize = 256 << 10;

/// Say whether a snapshot is written.
const SNAPSHOT: u8 = b'S';
const NO_SNAPSHOT: u8 = b'N';

/// Reports whether the snapshot is written.
pub(super) fn send_snapshot(socket: &mut UnixStream, written: bool) {
    if let Err(error) = socket.write_all(&[if written { SNAPSHOT } else { NO_SNAPSHOT }]) {
        log::debug!("cannot report the snapshot: {error}");
    }
}

/// Reports that the guest has ended by itself.
pub(super) fn send_guest_ended(socket: &mut UnixStream) {
    if let Err(error) = socket.write_all(&[GUEST_ENDED]) {
        log::debug!("cannot report the guest's end: {error}");
    }
}

/// What the VM reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest has ended, and the report is still to come.
    GuestEnded,
    /// The snapshot that was asked for is written, or can't be; the log says why not.
    Snapshot {
        /// Whether it is.
        written: bool,
    },
    /// The report, or the end of the stream.
    Report,
}

/// The VM's reports, as the monitor reads them.
pub struct Events {
    socket: UnixStream,
    /// The report's first byte, if it has been read already.
    first: Option<u8>,
}

impl Events {
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, first: None }
    }

    /// Reads one event. Called when the socket is readable.
    pub fn read(&mut self) -> io::Result<Event> {
        let mut byte = [0];
        match self.socket.read(&mut byte) {
            Ok(1) => match byte[0] {
                GUEST_ENDED => return Ok(Event::GuestEnded),
                SNAPSHOT => return Ok(Event::Snapshot { written: true }),
                NO_SNAPSHOT => return Ok(Event::Snapshot { written: false }),
                first => self.first = Some(first),
            },
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Err(error),
            Ok(_) | Err(_) => {}
        }
        Ok(Event::Report)
    }

    /// Reads the report; `None` if the VM's process died without one. It may be as long as
    /// [`MAX_REPORT`], and take so much time.
    pub fn report(mut self, time: Duration) -> io::Result<Option<Report>> {
        let deadline = Instant::now() + time;
        let mut bytes = Vec::from_iter(self.first);
        let mut piece = [0; 4096];
        loop {
            let [ready] = poll::wait([Source::readable(&self.socket)], Some(deadline))?;
            if !ready.readable || bytes.len() > MAX_REPORT {
                return Err(io::Error::other("it has no end"));
            }
            match self.socket.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => bytes.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It ended without having read our last command; what it sent before has arrived.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error),
            }
        }
        if bytes.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&bytes)?)) }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The VM couldn't be made: the chain of reasons.
    Failed(Vec<String>),
    /// The VM ran and ended.
    Ended {
        /// Why.
        outcome: Outcome,
        /// When each step happened.
        times: Times,
        /// What was counted, if it was asked for.
        counts: Option<Box<Counts>>,
    },
}

/// What a VM counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Exits by reason.
    pub exits: Exits,
    /// What the guest has given back of its memory, if there is a balloon.
    pub memory: Option<BalloonFigures>,
}

/// How often the guest was left, over all vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// KVM's own counters by name, in KVM's order; empty where the host's KVM has none.
    pub kvm: Vec<(String, u64)>,
    /// Exits that reached user space.
    pub user: UserExits,
}

/// Exits that reached user space, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserExits {
    /// Port I/O.
    pub port_io: u64,
    /// Memory-mapped I/O.
    pub mmio: u64,
    /// Signals and requests to run again.
    pub interrupted: u64,
    /// Anything else.
    pub other: u64,
}

impl Report {
    pub(super) fn send(&self, socket: &mut UnixStream) -> io::Result<()> {
        socket.write_all(&serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    /// The report, where no other event comes before it.
    fn report_of(socket: UnixStream) -> io::Result<Option<Report>> {
        let mut events = Events::new(socket);
        assert_eq!(events.read()?, Event::Report);
        events.report(TIME)
    }

    #[test]
    fn the_guests_end_is_told_before_the_report() {
        let (mut vm, command) = UnixStream::pair().unwrap();
        send_guest_ended(&mut vm);
        let mut events = Events::new(command);
        assert_eq!(events.read().unwrap(), Event::GuestEnded);
        Report::Failed(vec!["a".into()]).send(&mut vm).unwrap();
        drop(vm);
        assert_eq!(events.read().unwrap(), Event::Report);
        assert!(events.report(TIME).unwrap().is_some());
    }

    #[test]
    fn a_report_arrives_as_it_was_sent() {
        let (mut vm, command) = UnixStream::pair().unwrap();
        Report::Failed(vec!["a".into(), "b".into()]).send(&mut vm).unwrap();
        drop(vm);
        let Some(Report::Failed(chain)) = report_of(command).unwrap() else { panic!() };
        assert_eq!(chain, ["a", "b"]);
    }

    #[test]
    fn a_report_without_end_is_given_up() {
        let (mut vm, monitor) = UnixStream::pair().unwrap();
        vm.write_all(b"{").unwrap();
        let mut events = Events::new(monitor);
        assert_eq!(events.read().unwrap(), Event::Report);
        assert!(events.report(Duration::from_millis(50)).is_err(), "it never comes");
        let (mut vm, monitor) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || while vm.write_all(&[b' '; 4096]).is_ok() {});
        let mut events = Events::new(monitor);
        assert_eq!(events.read().unwrap(), Event::Report);
        assert!(events.report(TIME).is_err(), "it is endless");
        writer.join().unwrap();
    }

    #[test]
    fn a_vm_that_dies_silently_is_no_report() {
        let (vm, command) = UnixStream::pair().unwrap();
        drop(vm);
        assert!(report_of(command).unwrap().is_none());
    }

    #[test]
    fn a_vm_that_ends_with_a_command_unread_is_still_report_of() {
        for report in [true, false] {
            let (mut vm, mut command) = UnixStream::pair().unwrap();
            command.write_all(&Command::PressPowerButton.encode()).unwrap();
            if report {
                Report::Failed(vec!["a".into()]).send(&mut vm).unwrap();
            }
            drop(vm);
            assert_eq!(report_of(command).unwrap().is_some(), report);
        }
    }

    #[test]
    fn every_command_is_understood_and_nothing_else() {
        let resize = Command::Resize { size: WindowSize { rows: 24, columns: 300 } };
        let reclaim = Command::Reclaim { mib: 300 };
        let commands =
            [Command::PressPowerButton, reclaim, resize, Command::Snapshot, Command::Quit, Command::Kill];
        let bytes = commands.map(Command::encode).concat();
        let mut bytes = bytes.as_slice();
        assert_eq!(commands.map(|_| Command::read(&mut bytes).unwrap()), commands);
        let error = |mut bytes: &[u8]| Command::read(&mut bytes).unwrap_err().kind();
        assert_eq!(error(b""), io::ErrorKind::UnexpectedEof);
        assert_eq!(error(b"r12"), io::ErrorKind::UnexpectedEof);
        assert_eq!(error(b"x"), io::ErrorKind::InvalidData);
    }
}
