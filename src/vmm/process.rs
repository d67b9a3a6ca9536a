//! The VM's process: forked by the monitor, it makes the VM, runs it, reports, and ends.
//!
//! The client returns to its caller as soon as the report is there: the tear-down of memory and
//! KVM, which mostly waits for the kernel, goes on behind it. So the VM's process releases
//! everything that somebody could wait for (standard error, disks, taps) before it reports.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command as Program, Stdio};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::control::{Command, Events, Report};
use super::{Resources, build};
use crate::config::VmConfig;
use crate::sink;
use crate::sys::descriptors::{keep_only, replace};
use crate::sys::process::{Child, PANICKED, fork, in_child, share_one_heap, tie};
use crate::sys::signals;
use crate::timeline::{Mark, Timeline};

/// The monitor's side of a VM that runs in a process of its own.
pub struct VmProcess {
    child: Child,
    /// Commands go out here.
    control: UnixStream,
    /// The VM's events, until somebody takes them.
    pub events: Option<Events>,
    /// The standard error of a program that isn't bothy.
    words: Option<File>,
}

impl VmProcess {
    /// Forks. Must be called while the process has a single thread. The console's bytes, if there
    /// is one, go to and come from `console`.
    pub fn spawn(
        config: &VmConfig,
        resources: Resources,
        console: Option<UnixStream>,
        timeline: Timeline,
    ) -> io::Result<Self> {
        let (control, mut vm_control) = UnixStream::pair()?;
        let events = Some(Events::new(control.try_clone()?));
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let Some(child) = fork()? else {
            timeline.record(Mark::Forked);
            drop((control, events));
            let mut keep = resources.descriptors();
            keep.extend(sink::descriptors());
            keep.extend([vm_control.as_raw_fd(), null.as_raw_fd()]);
            keep.extend(console.as_ref().map(AsRawFd::as_raw_fd));
            // What the monitor has open would stay open until the tear-down is over.
            keep_only(keep.into_iter().chain(libc::STDIN_FILENO..=libc::STDERR_FILENO));
            in_child(|| run(config, resources, &mut vm_control, console, timeline, &null))
        };
        Ok(Self { child, control, events, words: None })
    }

    /// Starts another program in the place of the VM's process. It says nothing but by its end, and
    /// takes no order but that.
    pub fn of_program(mut program: Program) -> io::Result<Self> {
        let (control, other) = UnixStream::pair()?;
        let words = File::from(memfd_create("words", MemfdFlags::CLOEXEC)?);
        tie(&mut program);
        // The other end goes with the program, as a standard input that nobody writes to.
        let child =
            program.stdin(OwnedFd::from(other)).stdout(Stdio::null()).stderr(words.try_clone()?).spawn()?;
        Ok(Self {
            child: Child::of_std(child),
            events: Some(Events::new(control.try_clone()?)),
            control,
            words: Some(words),
        })
    }

    /// Sends a command; a VM that is already gone is no error.
    pub fn send(&mut self, command: Command) {
        use std::io::Write;
        if self.words.is_some() {
            return match command {
                Command::PressPowerButton | Command::Quit | Command::Kill => self.kill(),
                Command::Reclaim { .. } | Command::Resize { .. } | Command::Snapshot => {}
            };
        }
        if let Err(error) = self.control.write_all(&command.encode()) {
            log::debug!("the VM takes no commands any more: {error}");
        }
    }

    /// Ends a VM's process that doesn't answer.
    pub fn kill(&self) {
        self.child.kill();
    }

    /// Waits for a process that died without a report, and says what became of it.
    pub fn autopsy(self) -> String {
        let Self { child, words, .. } = self;
        let Ok(status) = child.wait() else { return "was lost".into() };
        if let Some(signal) = status.terminating_signal() {
            return format!("died of signal {signal}");
        }
        match (status.exit_status().unwrap_or_default(), words) {
            (code, Some(words)) => format!("ended with status {code}: {}", last_word(&words)),
            (PANICKED, None) => "panicked: this is a bug in bothy".into(),
            (code, None) => format!("ended with status {code} and no report"),
        }
    }
}

/// The last line that another program, which has ended, has written.
fn last_word(mut words: &File) -> String {
    let mut text = Vec::new();
    // What can't be read is as good as nothing.
    let _unreadable = words.seek(SeekFrom::Start(0)).and_then(|_| words.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim().to_owned()
}

fn run(
    config: &VmConfig,
    mut resources: Resources,
    control: &mut UnixStream,
    console: Option<UnixStream>,
    timeline: Timeline,
    null: &File,
) {
    let timeline = Arc::new(timeline);
    // The client's streams are not the VM's business; standard error stays until the report, for
    // the log.
    replace(libc::STDIN_FILENO, null);
    replace(libc::STDOUT_FILENO, null);
    // The guest then sees an error.
    signals::ignore_file_size_limit();
    signals::unblock_all();
    share_one_heap();
    raise_descriptor_limit();
    let count = resources.count;
    // To the end, whatever comes.
    std::mem::forget(std::mem::take(&mut resources.held));
    let report = |control: &mut UnixStream, report: &Report| send(control, report, null);
    let vmm = match build::build(config, resources, console, timeline.clone()) {
        Ok(vmm) => vmm,
        Err(error) => return report(control, &failed(&error)),
    };
    let counters = count.then(|| vmm.counters());
    match vmm.run(control) {
        Ok((outcome, remains)) => {
            timeline.record(Mark::Released);
            let counts = counters.map(super::Counters::sum).map(Box::new);
            report(control, &Report::Ended { outcome, times: timeline.times(), counts });
            // The kernel tears memory and VM down after the last word.
            std::mem::forget(remains);
        }
        Err(error) => report(control, &failed(&error)),
    }
}

fn failed(error: &dyn std::error::Error) -> Report {
    let chain = std::iter::successors(Some(error), |error| error.source());
    Report::Failed(chain.map(ToString::to_string).collect())
}

fn send(control: &mut UnixStream, report: &Report, null: &File) {
    // The last descriptors that a reader of the client's output could be waiting for.
    for fd in sink::descriptors().into_iter().chain([libc::STDERR_FILENO]) {
        replace(fd, null);
    }
    if let Err(error) = report.send(control) {
        log::debug!("nobody reads the report: {error}");
    }
    if let Err(error) = control.shutdown(std::net::Shutdown::Both) {
        log::debug!("closing the control socket: {error}");
    }
}

/// Each queue of a device takes a few descriptors, and the usual limit of 1024 is there for
/// programs that use select(2).
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::debug!("setrlimit: {error}");
    }
}
