//! The control protocol: what clients and the monitor send to each other.
//!
//! A message is one line of JSON: an [`Envelope`] with the protocol's version, the id of the
//! container that it is about, and how many descriptors belong to it; those come with it
//! (SCM_RIGHTS). The first message is [`Request::Launch`]; its answer is [`Event::Launched`] or
//! [`Event::Failed`]. [`Event::Ended`] and [`Event::Failed`] are the last of a monitor.

use std::path::PathBuf;
use std::time::Duration;

use bothy_guest::protocol::{ExitStatus, NotStarted, WindowSize};
use bothy_guest::spec::{Container, Rights};
use serde::{Deserialize, Serialize};

use crate::launch::boot::BootVm;
use crate::launch::container::ContainerVm;
use crate::outcome::Outcome;
use crate::timeline::{RunMoments, Times};
use crate::vmm::control::{Command, Counts};

/// Of everything in this file.
pub const VERSION: u32 = 1;

/// The longest message, in bytes. Arguments and environment may have 2 MiB, and each of their bytes
/// takes up to four in JSON.
pub const MAX_MESSAGE: usize = 16 << 20;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`VERSION`].
    pub version: u32,
    /// The container's id. Of a VM without containers (`bothy boot`): the VM's.
    pub container: String,
    /// How many descriptors belong to it.
    pub descriptors: usize,
    /// The message itself.
    pub body: T,
}

/// From a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Start the VM, once and first.
    Launch(Box<Launch>),
    /// Create the container in the VM. Answered by [`Event::Failed`] if that can't be done.
    Create {
        /// Whether its root is read-only.
        read_only: bool,
        /// Its namespaces, mounts and protections.
        spec: Container,
    },
    /// Run a process in the container. Answered by [`Event::Started`] or [`Event::NotStarted`],
    /// later by [`Event::Exited`], and meanwhile by an [`Event::Stream`] for each of its streams.
    Run {
        /// The process's number, chosen by the client.
        process: u32,
        /// The program.
        program: Box<Program>,
        /// Its standard streams.
        stdio: Stdio,
    },
    /// Send a signal to a process.
    Signal {
        /// The process.
        process: u32,
        /// The signal's number on Linux on x86-64.
        signal: i32,
    },
    /// Set the size of a process's terminal.
    Resize {
        /// The process.
        process: u32,
        /// The new size.
        size: WindowSize,
    },
    /// A command for the VM itself.
    Vm(Command),
    /// Kill the VM's process: it doesn't react to commands.
    KillVm,
    /// The client needs the VM no more: end it, and answer with [`Event::Ended`].
    Finish,
}

/// A VM to start. Its descriptors are, in this order: the log file, if there is one; for
/// [`Vm::Boot`] the VM's end of the console, if it has one; for [`Vm::Container`] the image's file
/// system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// When the kernel began to execute the client, in nanoseconds of CLOCK_MONOTONIC.
    pub exec_ns: u64,
    /// When the client sent this.
    pub requested_ns: u64,
    /// What to log, as `RUST_LOG` says it; warnings where it is missing.
    pub log_filters: Option<String>,
    /// Whether the log goes to a file.
    pub has_log_file: bool,
    /// The VM.
    pub vm: Vm,
}

/// What kind of VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Vm {
    /// A VM of `bothy boot`: a kernel and its devices.
    Boot(Box<BootVm>),
    /// A VM for containers.
    Container(Box<ContainerLaunch>),
}

/// A VM for containers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerLaunch {
    /// The container's name, and that of its state directory.
    pub name: String,
    /// The directory of all state directories.
    pub base: PathBuf,
    /// The machine.
    pub vm: ContainerVm,
    /// How long the guest may take until its agent connects, and then until a process starts.
    pub agent_timeout: Duration,
}

/// A program, complete but for its standard streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments. Not empty.
    pub args: Vec<Vec<u8>>,
    /// `NAME=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// An absolute path in the container.
    pub cwd: Vec<u8>,
    /// `USER[:GROUP]`; empty is root.
    pub user: String,
    /// What it may do.
    pub rights: Rights,
}

/// The standard streams of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Pipes.
    Pipes {
        /// Whether there is a standard input.
        stdin: bool,
    },
    /// A terminal of its own.
    Terminal {
        /// Whether there is input.
        input: bool,
        /// Its size at the beginning.
        size: WindowSize,
    },
}

/// One stream of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// To the process.
    Stdin,
    /// From the process.
    Stdout,
    /// From the process.
    Stderr,
    /// Both directions.
    Terminal,
}

/// From the monitor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// The VM's process runs.
    Launched,
    /// The VM could not be started, or had to be ended. All of it is released.
    Failed {
        /// The user's words were wrong.
        is_usage: bool,
        /// Why, as one line.
        message: String,
    },
    /// A process's program runs.
    Started {
        /// The process.
        process: u32,
    },
    /// A process's program does not run, and never will.
    NotStarted {
        /// The process.
        process: u32,
        /// Whose fault it is.
        reason: NotStarted,
        /// Why.
        message: String,
    },
    /// A process has ended. Bytes of its streams may still be on their way.
    Exited {
        /// The process.
        process: u32,
        /// How.
        status: ExitStatus,
    },
    /// A stream is connected; its descriptor comes with this.
    Stream {
        /// The process.
        process: u32,
        /// Which of its streams.
        stream: Stream,
    },
    /// The guest has ended by itself; the VM's disks are being flushed.
    GuestEnded,
    /// The VM has ended, and everything that others could wait for is released.
    Ended(Box<VmEnd>),
}

/// How a VM ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmEnd {
    /// Why; or what became of a VM's process that died without a report.
    pub outcome: Result<Outcome, String>,
    /// When each step happened.
    pub times: Times,
    /// What was counted, if that was requested.
    pub counts: Option<Box<Counts>>,
    /// When the first process of the first container did what.
    pub moments: RunMoments,
}
