//! The VM's process: forked off by the command, it makes the VM, runs it, reports, and goes away.
//!
//! The command returns to its caller as soon as it has the report: the tear-down of memory and KVM, which mostly waits for
//! the kernel, goes on behind it. So the VM's process lets go of everything that somebody could wait for (its standard
//! streams, disks, taps) before it reports.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::control::{News, Order, Report};
use super::{Resources, build};
use crate::config::{Console, VmConfig};
use crate::sink;
use crate::timeline::{Mark, Timeline};

/// The command's side of a VM that runs in a process of its own.
pub struct VmProcess {
    pid: libc::pid_t,
    /// Orders go out here.
    control: UnixStream,
    /// What the VM says, once.
    pub news: Option<News>,
    /// The console's bytes, if there is one.
    pub console: Option<UnixStream>,
    /// What a program that isn't bothy has to say.
    words: Option<File>,
}

/// Exit status of a VM's process that panicked.
const PANICKED: libc::c_int = 101;

impl VmProcess {
    /// Forks. Must be called while the process has a single thread.
    pub fn spawn(config: &VmConfig, resources: Resources, timeline: Timeline) -> io::Result<Self> {
        let (control, mut vm_control) = UnixStream::pair()?;
        let news = Some(News::new(control.try_clone()?));
        let (console, vm_console) = match config.console() {
            Console::Serial | Console::Virtio => {
                let (ours, theirs) = UnixStream::pair()?;
                (Some(ours), Some(theirs))
            }
            Console::None => (None, None),
        };
        let null = File::options().read(true).write(true).open("/dev/null")?;
        #[expect(unsafe_code, reason = "std has no fork")]
        // SAFETY: the caller promises a single thread, so the child may do anything that the parent could.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                timeline.record(Mark::Forked);
                drop((control, news, console));
                let mut keep = resources.descriptors();
                keep.extend(sink::descriptors());
                keep.extend([vm_control.as_raw_fd(), null.as_raw_fd()]);
                keep.extend(vm_console.as_ref().map(AsRawFd::as_raw_fd));
                close_all_but(keep);
                let body =
                    AssertUnwindSafe(|| run(config, resources, &mut vm_control, vm_console, timeline, &null));
                let status = catch_unwind(body).map_or(PANICKED, |()| 0);
                exit_now(status)
            }
            _ => Ok(Self { pid, control, news, console, words: None }),
        }
    }

    /// Starts another program in the place of the VM's process. It says nothing but by its end, and takes no order but that.
    pub fn of_program(mut command: Command) -> io::Result<Self> {
        let (control, other) = UnixStream::pair()?;
        let words = File::from(memfd_create("words", MemfdFlags::CLOEXEC)?);
        #[expect(unsafe_code, reason = "std sets neither a child's signal mask nor when it dies")]
        // SAFETY: between fork and exec only calls that are safe after a fork, and no memory but their own.
        unsafe {
            command.pre_exec(|| {
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut none);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
                // It goes with this process, whatever ends that.
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        // The other end goes with the program, as a standard input that nobody writes to.
        let child =
            command.stdin(OwnedFd::from(other)).stdout(Stdio::null()).stderr(words.try_clone()?).spawn()?;
        let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Self {
            pid,
            news: Some(News::new(control.try_clone()?)),
            control,
            console: None,
            words: Some(words),
        })
    }

    /// Sends an order; a VM that is already gone is no error.
    pub fn order(&mut self, order: Order) {
        use std::io::Write;
        if self.words.is_some() {
            return match order {
                Order::PressPowerButton | Order::Quit | Order::Kill => self.kill(),
                Order::Reclaim { .. } | Order::Resize { .. } | Order::Snapshot => {}
            };
        }
        if let Err(error) = self.control.write_all(&order.encode()) {
            log::debug!("the VM takes no orders any more: {error}");
        }
    }

    /// Ends a VM's process that doesn't answer.
    pub fn kill(&self) {
        #[expect(unsafe_code, reason = "std only signals its own children")]
        // SAFETY: `pid` is our child and hasn't been waited for, so the number isn't anybody else's.
        let ret = unsafe { libc::kill(self.pid, libc::SIGKILL) };
        if ret != 0 {
            log::debug!("kill: {}", io::Error::last_os_error());
        }
    }

    /// Waits for a process that died without a report, and says what became of it.
    pub fn autopsy(self) -> String {
        let mut status = 0;
        #[expect(unsafe_code, reason = "std only waits for its own children")]
        // SAFETY: `pid` is our child, and `status` is a valid place for the result.
        let ret = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        if ret != self.pid {
            return "was lost".into();
        }
        if libc::WIFSIGNALED(status) {
            return format!("died of signal {}", libc::WTERMSIG(status));
        }
        match libc::WEXITSTATUS(status) {
            code if self.words.is_some() => format!("ended with status {code}: {}", self.last_word()),
            PANICKED => "panicked: this is a bug in bothy".into(),
            code => format!("ended with status {code} and no report"),
        }
    }

    /// The last line that another program has said.
    fn last_word(&self) -> String {
        let mut text = Vec::new();
        if let Some(mut words) = self.words.as_ref() {
            // What can't be read is as good as nothing.
            let _unreadable = words.seek(SeekFrom::Start(0)).and_then(|_| words.read_to_end(&mut text));
        }
        let text = String::from_utf8_lossy(&text);
        text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim().to_owned()
    }
}

fn exit_now(status: libc::c_int) -> ! {
    #[expect(unsafe_code, reason = "std's exit runs handlers that belong to the command")]
    // SAFETY: nothing runs after it; what the kernel releases is what we want released.
    unsafe {
        libc::_exit(status)
    }
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
    detach(null);
    share_one_heap();
    raise_descriptor_limit();
    let (count, at_end) = (resources.count, resources.at_end.take());
    let report = |control: &mut UnixStream, report: &Report| send(control, report, null);
    let vmm = match build::build(config, resources, console, timeline.clone()) {
        Ok(vmm) => vmm,
        Err(error) => return report(control, &failed(&error)),
    };
    let counters = count.then(|| vmm.counters());
    match vmm.run(control) {
        Ok((outcome, remains)) => {
            if let Some(end) = at_end {
                (end.act)();
            }
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
    // The last descriptors that a reader of the command's output could be waiting for.
    for fd in sink::descriptors().into_iter().chain([libc::STDERR_FILENO]) {
        replace(null, fd);
    }
    if let Err(error) = report.send(control) {
        log::debug!("nobody reads the report: {error}");
    }
    if let Err(error) = control.shutdown(std::net::Shutdown::Both) {
        log::debug!("closing the control socket: {error}");
    }
}

/// Takes the process off the command's terminal: its signals and its streams are the command's business. Standard error
/// stays until the report, for the log.
fn detach(null: &File) {
    #[expect(unsafe_code, reason = "std has no setsid and no signal mask")]
    // SAFETY: none of the calls touches memory of ours but `all`, which is initialised before use.
    unsafe {
        libc::setsid();
        // A write past the caller's file size limit is then an error that the guest sees.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    replace(null, libc::STDIN_FILENO);
    replace(null, libc::STDOUT_FILENO);
}

/// Closes every descriptor above the standard streams that isn't in `keep`: what the command, or whoever started it, has open is none of
/// the VM's business, and would stay open until the tear-down is over.
fn close_all_but(mut keep: Vec<RawFd>) {
    keep.sort_unstable();
    let mut first = libc::STDERR_FILENO + 1;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if fd > first {
            #[expect(unsafe_code, reason = "std has no close_range")]
            // SAFETY: what is closed here belongs to values that this process never uses or drops again: the command's own, which
            // live in frames that the child doesn't return to.
            let ret = unsafe { libc::close_range(first.unsigned_abs(), (fd - 1).unsigned_abs(), 0) };
            if ret != 0 {
                log::debug!("close_range: {}", io::Error::last_os_error());
            }
        }
        first = fd.saturating_add(1);
    }
}

/// Each queue of a device takes a few descriptors, and the usual limit of 1024 is there for programs that use select(2).
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::debug!("setrlimit: {error}");
    }
}

/// One malloc arena for all threads: a second one costs each thread two system calls and some page faults on the way to the
/// guest's first instruction, and they hardly allocate.
fn share_one_heap() {
    #[expect(unsafe_code, reason = "malloc is tuned through the C library")]
    // SAFETY: the process has a single thread, and the call only sets a number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn replace(null: &File, fd: libc::c_int) {
    #[expect(unsafe_code, reason = "a standard stream is replaced by its number")]
    // SAFETY: dup2 closes `fd` and makes it a copy of `null`; std's handles of the standard streams go by the number.
    let ret = unsafe { libc::dup2(null.as_raw_fd(), fd) };
    if ret < 0 {
        log::debug!("dup2: {}", io::Error::last_os_error());
    }
}
