//! What the host and the agent say to each other: the agent is PID 1 of a guest that runs an image.
//!
//! The agent connects to [`PORT`] of the host (vsock context 2) and says [`Opening::Control`]; from
//! then on the host sends [`Request`]s there and the agent answers with [`Report`]s. If that
//! connection breaks, the agent opens another one and goes on: a restored snapshot finds its new
//! host that way. For each standard stream of a command the agent opens one more connection and
//! says [`Opening::Stream`] with the token that the host gave for it; every byte after that is the
//! stream's own, and its end is the end of the sending direction. A reader that stalls so holds up
//! its own stream and nothing else.
//!
//! The tokens are there because what runs in the guest can open vsock connections, too: without one
//! it gets nowhere.
//!
//! A message is its length (32 bits, little endian) and that many bytes of postcard. Both sides
//! refuse what is longer than the reader's limit and what does not decode, and end the connection:
//! there is one agent for each version of bothy, and it came in the same file.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spec::{Container, Rights};

/// The host's port, where the kernel command line says no other.
pub const PORT: u32 = 1024;

/// Of everything in this file. The host ends a guest that says another one.
pub const VERSION: u32 = 5;

/// The longest message that the agent accepts, in bytes: arguments and environment may have 2 MiB,
/// as on Linux.
pub const MAX_REQUEST: usize = 4 << 20;

/// The longest message that the host accepts, in bytes.
pub const MAX_REPORT: usize = 64 << 10;

/// What a connection begins with, from the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opening {
    /// The control connection.
    Control(Hello),
    /// One standard stream of a command.
    Stream(Token),
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`]. It stands first in all versions.
    pub version: u32,
    /// Since the guest's kernel started its clock, in microseconds.
    pub uptime_us: u64,
}

/// What only the host and the agent know of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token(pub [u8; 16]);

// A secret does not get into logs.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A process of a container: both numbers are the host's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// The container's number, as in [`Request::Create`].
    pub container: u32,
    /// The process's number in its container.
    pub process: u32,
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of container {}", self.process, self.container)
    }
}

/// From the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Set up the machine, once and first. Answered by [`Report::Ready`] or [`Report::Failed`].
    Machine(Box<Machine>),
    /// Create a container: its root, files and cgroup. No process of it runs yet. Answered by
    /// [`Report::Created`] or [`Report::NotCreated`].
    Create {
        /// The container's number; one that no other container of this machine has had.
        container: u32,
        /// The container.
        setup: Box<ContainerSetup>,
    },
    /// Run a command. Answered by [`Report::Started`] or [`Report::NotStarted`], later by
    /// [`Report::Ended`].
    ///
    /// The first process of a container becomes PID 1 of its namespaces, and all its other
    /// processes end with it. Later processes join those namespaces.
    Run {
        /// Not that of a process that still runs.
        id: ProcessId,
        /// The command.
        command: Box<Command>,
    },
    /// Send a signal to a process. One that has ended already is no error, and nothing answers.
    Signal {
        /// The process.
        id: ProcessId,
        /// As Linux on x86-64 numbers them.
        signal: i32,
    },
    /// Set the size of a process's terminal. Nothing answers.
    Resize {
        /// The process.
        id: ProcessId,
        /// The new size.
        size: WindowSize,
    },
    /// Answered by [`Report::Figures`].
    Figures,
    /// End all processes, write and unmount the disks, and power off. The machine's end answers.
    PowerOff,
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The machine is set up, and its network is up.
    Ready,
    /// The machine could not be set up, and never will be.
    Failed {
        /// Why.
        message: String,
    },
    /// The container exists.
    Created {
        /// The container's number.
        container: u32,
    },
    /// The container could not be created, and its number stays unused.
    NotCreated {
        /// The container's number.
        container: u32,
        /// Why.
        message: String,
    },
    /// The command's program runs: execve(2) succeeded.
    Started {
        /// The process.
        id: ProcessId,
    },
    /// It does not, and never will.
    NotStarted {
        /// The process.
        id: ProcessId,
        /// Whose fault it is.
        reason: NotStarted,
        /// Why, with the path or name that could not be had.
        message: String,
    },
    /// The process has ended. Its streams' last bytes may still be on their way.
    Ended {
        /// The process.
        id: ProcessId,
        /// How.
        status: ExitStatus,
    },
    /// Answer to [`Request::Figures`].
    Figures(Figures),
    /// Much memory has become free: the host may have it. Nothing answers.
    Reclaimable {
        /// So much, in MiB.
        mib: u32,
    },
}

/// Why a command doesn't run, as docker tells it apart by exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotStarted {
    /// There is no such program: 127.
    NotFound,
    /// It is there, and can't be executed: 126.
    NotExecutable,
    /// The user, the working directory, or anything else: 125.
    Other,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl ExitStatus {
    /// As a shell tells it: 128 and the signal's number.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// What all containers of a machine share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Since 1970, in nanoseconds: the time of day.
    pub time_ns: u64,
    /// For the kernel's random numbers: clones of a snapshot must not share theirs.
    pub seed: [u8; 32],
    /// Each as [`crate::net::NetConfig`] writes it. `lo` is always up.
    pub networks: Vec<String>,
}

/// A container to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSetup {
    /// The container's root.
    pub root: Root,
    /// Its namespaces, mounts and protections.
    pub spec: Container,
}

/// What the container's root is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The block device with the image's file system (EROFS), such as `vda`.
    pub image: String,
    /// What takes what is written.
    pub upper: Upper,
    /// A block device with a file system (EROFS) that is not the image's, and shows read-only at
    /// [`LENT`].
    pub lent: Option<String>,
}

/// Where what the host lends is, in the container.
pub const LENT: &str = "/.bothy";

/// Where what is written goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    /// Nowhere: the root is read-only for the container.
    ReadOnly,
    /// Into the guest's memory.
    Memory,
    /// To the block device of this name, an ext4 that is to be grown to the device's size.
    Scratch(String),
}

/// A command, complete: nothing is added to it in the guest but HOME, where it is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program, looked for in the environment's PATH if there is no slash in it, and its
    /// arguments. Not empty.
    pub args: Vec<Vec<u8>>,
    /// `NAME=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// An absolute path in the container; made if it is missing.
    pub cwd: Vec<u8>,
    /// `USER[:GROUP]`, names or numbers, by the image's own /etc/passwd and /etc/group; empty is
    /// root.
    pub user: String,
    /// What it may do.
    pub rights: Rights,
    /// Its standard streams.
    pub stdio: Stdio,
}

/// The standard streams of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Pipes; /dev/null for an input that isn't there.
    Pipes {
        /// Bytes for the command.
        stdin: Option<Token>,
        /// Bytes from it.
        stdout: Token,
        /// Bytes from it.
        stderr: Token,
    },
    /// A terminal of its own, with both directions in one connection. If `input` is false nothing
    /// is read from the host.
    Terminal {
        /// Both directions.
        stream: Token,
        /// Whether the host sends anything.
        input: bool,
        /// At the beginning.
        size: WindowSize,
    },
}

/// Of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What the guest takes, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes that the guest's kernel manages.
    pub memory_total: u64,
    /// Bytes of it that programs could still have.
    pub memory_available: u64,
    /// All CPUs together, since the start, in microseconds: not idle, not waiting.
    pub cpu_busy_us: u64,
    /// In all containers.
    pub processes: u32,
}

/// Writes one message, in one write.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// A message as it goes over the connection.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    // The length takes its place first, and gets its value when it is known.
    let mut bytes = postcard::to_extend(message, vec![0; LENGTH]).map_err(invalid)?;
    let length = u32::try_from(bytes.len() - LENGTH).map_err(invalid)?;
    bytes[..LENGTH].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Waits for one message of at most `limit` bytes. A connection that ends before it is
/// `UnexpectedEof`.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read, limit: usize) -> io::Result<T> {
    let mut length = [0; LENGTH];
    from.read_exact(&mut length)?;
    let mut body = vec![0; checked_length(length, limit)?];
    from.read_exact(&mut body)?;
    postcard::from_bytes(&body).map_err(invalid)
}

/// Collects messages from a connection that is read without waiting.
#[derive(Debug)]
pub struct Inbox {
    bytes: Vec<u8>,
    limit: usize,
}

impl Inbox {
    /// For messages of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Takes what has arrived. The caller reads pieces of bounded size and takes the messages out
    /// after each.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, if all of it has arrived.
    pub fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(length) = self.bytes.first_chunk::<LENGTH>() else { return Ok(None) };
        let end = LENGTH + checked_length(*length, self.limit)?;
        let Some(body) = self.bytes.get(LENGTH..end) else { return Ok(None) };
        let message = postcard::from_bytes(body).map_err(invalid)?;
        self.bytes.drain(..end);
        Ok(Some(message))
    }

    /// How many bytes are missing until the next message is complete, or its length is. A reader
    /// that pushes no more than that reads nothing of what comes behind the message.
    pub fn missing(&self) -> io::Result<usize> {
        let end = match self.bytes.first_chunk::<LENGTH>() {
            Some(length) => LENGTH + checked_length(*length, self.limit)?,
            None => LENGTH,
        };
        Ok(end.saturating_sub(self.bytes.len()))
    }
}

/// Of the length before each message, in bytes.
const LENGTH: usize = 4;

fn checked_length(length: [u8; LENGTH], limit: usize) -> io::Result<usize> {
    usize::try_from(u32::from_le_bytes(length))
        .ok()
        .filter(|length| *length <= limit)
        .ok_or_else(|| invalid("a message is too long"))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::NotStarted {
            id: ProcessId { container: 1, process: 7 },
            reason: NotStarted::NotFound,
            message: "no such program: ls".into(),
        }
    }

    #[test]
    fn a_message_arrives_as_it_was_sent() {
        let mut wire = Vec::new();
        send(&mut wire, &report()).unwrap();
        assert_eq!(receive::<Report>(&mut wire.as_slice(), MAX_REPORT).unwrap(), report());
    }

    #[test]
    fn an_inbox_gives_messages_when_they_are_complete() {
        let wire = [encode(&report()).unwrap(), encode(&Report::Ready).unwrap()].concat();
        let mut inbox = Inbox::new(MAX_REPORT);
        let mut got = Vec::new();
        for byte in &wire {
            inbox.push(&[*byte]);
            got.extend(inbox.take::<Report>().unwrap());
        }
        assert_eq!(got, [report(), Report::Ready]);
    }

    #[test]
    fn a_reader_that_pushes_what_is_missing_reads_nothing_behind_the_message() {
        let wire = [encode(&report()).unwrap(), b"behind".to_vec()].concat();
        let mut wire = wire.as_slice();
        let mut inbox = Inbox::new(MAX_REPORT);
        let got = loop {
            if let Some(report) = inbox.take::<Report>().unwrap() {
                break report;
            }
            let (bytes, rest) = wire.split_at(inbox.missing().unwrap());
            inbox.push(bytes);
            wire = rest;
        };
        assert_eq!(got, report());
        assert_eq!(wire, b"behind");
        inbox.push(&u32::MAX.to_le_bytes());
        assert_eq!(inbox.missing().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_message_longer_than_the_limit_is_refused_before_it_is_there() {
        let mut inbox = Inbox::new(10);
        inbox.push(&11_u32.to_le_bytes());
        assert_eq!(inbox.take::<Report>().unwrap_err().kind(), io::ErrorKind::InvalidData);
        let length = u32::MAX.to_le_bytes();
        let error = receive::<Report>(&mut length.as_slice(), 10).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_does_not_decode_is_an_error() {
        for body in [&[0xff][..], &[3], &[1, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
            let wire = [&u32::try_from(body.len()).unwrap().to_le_bytes(), body].concat();
            let error = receive::<Report>(&mut wire.as_slice(), MAX_REPORT).unwrap_err();
            assert!(
                matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
                "{body:?}: {error}"
            );
        }
    }

    #[test]
    fn a_connection_that_ends_within_a_message_is_told() {
        let wire = encode(&report()).unwrap();
        let error = receive::<Report>(&mut &wire[..wire.len() - 1], MAX_REPORT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
