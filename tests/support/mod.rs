//! What the tests of the real binary share: running `bothy` with a time limit, its streams and
//! signals, scratch directories, and the loud line of a test that can't run here.
#![allow(clippy::allow_attributes, dead_code, reason = "each test program uses its own part of this")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long a run may take if the test says nothing else.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the last process of a run may take to be gone after the command has returned.
const GONE: Duration = Duration::from_secs(5);
/// Marks every process of a run: a limit that Linux doesn't apply (RLIMIT_LOCKS), with a value that
/// is the run's alone. Processes inherit it, whatever becomes of their environment, and
/// /proc/PID/limits shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token(u64);

impl Token {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(u64::from(std::process::id()) << 24 | u64::from(number))
    }

    /// What is started by `command` gets the mark.
    pub(crate) fn mark(self, command: &mut Command) {
        #[expect(unsafe_code, reason = "std sets no limits")]
        // SAFETY: between fork and exec only calls that are safe there.
        unsafe {
            command.pre_exec(move || {
                let limit = getrlimit(Resource::Locks);
                Ok(setrlimit(Resource::Locks, Rlimit { current: Some(self.0), ..limit })?)
            });
        }
    }

    fn has(self, pid: u32) -> bool {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max file locks"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()) == Some(self.0)
    }
}

/// `duration`, times what the machine needs by BOTHY_TEST_PATIENCE (a whole number; an emulated
/// host is slow).
pub(crate) fn patient(duration: Duration) -> Duration {
    let factor = std::env::var("BOTHY_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    duration * factor
}

/// Says that a test could not run, and why: on standard error, past the capture of the test
/// harness, and in the file that BOTHY_NOT_RUN_FILE names.
pub(crate) fn could_not_run(test: &str, reason: &str) {
    let line = format!("COULD NOT RUN: {test}: {reason}\n");
    io::stderr().write_all(line.as_bytes()).expect("standard error can be written");
    if let Some(path) = std::env::var_os("BOTHY_NOT_RUN_FILE") {
        let file = fs::File::options().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("BOTHY_NOT_RUN_FILE can be written");
    }
}

/// A directory that is gone with the test.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bothy-test-").tempdir().expect("a temporary directory")
}

/// Writes a file into `dir` and gives its path.
pub(crate) fn file(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, content).expect("the scratch directory can be written");
    path
}

/// Repeats `check` until it is true; `false` when that takes longer than `limit`.
pub(crate) fn eventually(limit: Duration, mut check: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patient(limit);
    loop {
        if check() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("process numbers are small");
    #[expect(unsafe_code, reason = "std has no kill")]
    // SAFETY: the call touches no memory.
    let ret = unsafe { libc::kill(pid, signal) };
    assert_eq!(ret, 0, "kill {pid}: {}", io::Error::last_os_error());
}

/// Where a run's standard input comes from.
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    Open,
    Terminal(OwnedFd),
}

/// A command to be run.
pub(crate) struct Bothy {
    command: Command,
    token: Token,
    input: Input,
    read_output: bool,
    limit: Duration,
}

impl Bothy {
    /// `bothy` with these words. Standard input is empty.
    pub(crate) fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::program(OsStr::new(env!("CARGO_BIN_EXE_bothy")), args)
    }

    /// Another program, a copy of `bothy` or one that runs it.
    pub(crate) fn program<S: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let token = Token::new();
        let mut command = Command::new(program);
        command.args(args).env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
        token.mark(&mut command);
        Self { command, token, input: Input::Nothing, read_output: true, limit: patient(LIMIT) }
    }

    /// `bothy boot --kernel KERNEL --memory 32M`, to which more words can be added.
    pub(crate) fn boot(kernel: &Path) -> Self {
        Self::new([OsStr::new("boot"), OsStr::new("--kernel"), kernel.as_os_str()]).args(["--memory", "32M"])
    }

    /// Runs `sh -c SCRIPT sh bothy WORDS...`; the script ends with `exec "$@"`.
    pub(crate) fn in_shell(self, script: &str) -> Self {
        let mut words: Vec<OsString> = vec!["-c".into(), script.into(), "sh".into()];
        words.push(self.command.get_program().into());
        words.extend(self.command.get_args().map(Into::into));
        let mut outer = Self::program("sh", words);
        for (key, value) in self.command.get_envs() {
            match value {
                Some(value) => outer.command.env(key, value),
                None => outer.command.env_remove(key),
            };
        }
        if let Some(dir) = self.command.get_current_dir() {
            outer.command.current_dir(dir);
        }
        Self { command: outer.command, token: outer.token, ..self }
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Standard input is these bytes and then ends.
    pub(crate) fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Standard input is a pipe that stays open; [`Running::type_in`] writes to it.
    pub(crate) fn open_input(mut self) -> Self {
        self.input = Input::Open;
        self
    }

    /// Standard input is this terminal.
    pub(crate) fn terminal(mut self, terminal: OwnedFd) -> Self {
        self.input = Input::Terminal(terminal);
        self
    }

    /// Standard output is a pipe of one page from which nobody reads, until
    /// [`Running::read_output`].
    pub(crate) fn unread_output(mut self) -> Self {
        self.read_output = false;
        self
    }

    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = patient(limit);
        self
    }

    /// Starts it and returns at once.
    pub(crate) fn start(mut self) -> Running {
        let stdin = match &self.input {
            Input::Nothing => Stdio::null(),
            Input::Bytes(_) | Input::Open => Stdio::piped(),
            Input::Terminal(fd) => fd.try_clone().expect("a descriptor can be copied").into(),
        };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Before it: the new program may run for a while until `spawn` returns.
        let started = Instant::now();
        let mut child =
            self.command.spawn().unwrap_or_else(|error| panic!("can't run {:?}: {error}", self.command));
        let stdin = child.stdin.take();
        let stdin = match self.input {
            Input::Bytes(bytes) => {
                let mut stdin = stdin.expect("it is piped");
                // A VM that ends before it has taken all of its input is not this thread's
                // business.
                std::thread::spawn(move || stdin.write_all(&bytes).is_ok());
                None
            }
            _ => stdin,
        };
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = Collector::start(child.stderr.take().expect("it is piped"));
        let (stdout, unread) = if self.read_output {
            (Collector::start(stdout), None)
        } else {
            #[expect(unsafe_code, reason = "std can't set a pipe's size")]
            // SAFETY: the call touches no memory.
            let size = unsafe { libc::fcntl(stdout.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
            assert_eq!(size, 4096, "{}", io::Error::last_os_error());
            (Collector::default(), Some(stdout))
        };
        let what = format!("{:?}", self.command);
        Running { child, token: self.token, stdin, stdout, stderr, unread, started, limit: self.limit, what }
    }

    /// Runs it to its end, and makes sure that no process of it is left.
    pub(crate) fn run(self) -> Finished {
        self.start().wait()
    }
}

/// What arrives on a stream, read by a thread.
#[derive(Default)]
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = bytes.clone();
        let thread = std::thread::spawn(move || {
            let mut chunk = vec![0; 64 * 1024];
            while let Ok(len @ 1..) = stream.read(&mut chunk) {
                into.lock().expect("no panic under this lock").extend_from_slice(&chunk[..len]);
            }
        });
        Self { bytes, thread: Some(thread) }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().expect("no panic under this lock").clone()
    }

    fn at_end(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// A command that runs. Dropping it kills what is left of it.
pub(crate) struct Running {
    child: Child,
    token: Token,
    stdin: Option<ChildStdin>,
    stdout: Collector,
    stderr: Collector,
    unread: Option<std::process::ChildStdout>,
    started: Instant,
    limit: Duration,
    what: String,
}

impl Running {
    /// The command's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The VM's process, which has a vCPU.
    pub(crate) fn vm_pid(&self) -> u32 {
        let has_vcpu = |pid: &u32| {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let mut names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
            names.any(|name| name.trim() == "vcpu0")
        };
        self.find(has_vcpu).expect("a process with a vCPU")
    }

    /// The monitor's process, which is not the command and shows what it is.
    pub(crate) fn monitor_pid(&self) -> u32 {
        let is_monitor = |pid: &u32| {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // The VM's process is forked from it.
            cmdline.starts_with(b"bothy: monitor") && status(*pid, "PPid:") == Some(self.pid().to_string())
        };
        self.find(is_monitor).expect("a monitor")
    }

    fn find(&self, is_it: impl Fn(&u32) -> bool) -> Option<u32> {
        let mut found = None;
        eventually(patient(Duration::from_secs(5)), || {
            found = self.processes().into_iter().find(&is_it);
            found.is_some()
        });
        found
    }

    /// The run's processes that are alive.
    pub(crate) fn processes(&self) -> Vec<u32> {
        processes(self.token)
    }

    /// Something to ask about this run's processes once it has been waited for.
    pub(crate) fn token(&self) -> Token {
        self.token
    }

    pub(crate) fn signal(&self, number: libc::c_int) {
        signal(self.pid(), number);
    }

    /// Writes to standard input, which was left open.
    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("an open input");
        stdin.write_all(bytes).expect("the command reads its input");
    }

    pub(crate) fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Begins to read an output that nobody has read.
    pub(crate) fn read_output(&mut self) {
        self.stdout = Collector::start(self.unread.take().expect("an unread output"));
    }

    /// Closes the reading end of an output that nobody reads.
    pub(crate) fn close_output(&mut self) {
        self.unread = None;
    }

    /// Waits until standard output contains `text`.
    pub(crate) fn wait_for(&mut self, text: &[u8]) {
        let deadline = self.started + self.limit;
        while !contains(&self.stdout.so_far(), text) {
            let ended = self.child.try_wait().expect("the child can be waited for");
            if (ended.is_some() && self.stdout.at_end() && !contains(&self.stdout.so_far(), text))
                || Instant::now() >= deadline
            {
                self.give_up(&format!(
                    "no {:?} on its output (it ended: {ended:?})",
                    String::from_utf8_lossy(text)
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Standard output until now.
    pub(crate) fn output(&self) -> Vec<u8> {
        self.stdout.so_far()
    }

    /// Waits until standard error contains `text`.
    pub(crate) fn wait_for_message(&mut self, text: &str) {
        let deadline = self.started + self.limit;
        while !contains(&self.stderr.so_far(), text.as_bytes()) {
            if Instant::now() >= deadline || self.has_ended() {
                self.give_up(&format!("no {text:?} on its standard error"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How many bytes wait in the pipe of an output that nobody reads.
    pub(crate) fn unread_len(&self) -> usize {
        let pipe = self.unread.as_ref().expect("an unread output");
        let mut len: libc::c_int = 0;
        #[expect(unsafe_code, reason = "std has no ioctl")]
        // SAFETY: FIONREAD writes one int.
        let ret = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(pipe), libc::FIONREAD, &raw mut len) };
        assert_eq!(ret, 0, "FIONREAD: {}", io::Error::last_os_error());
        usize::try_from(len).expect("a length")
    }

    /// Whether the command has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_some()
    }

    /// Waits for the end of the command, of its output and of all its processes.
    pub(crate) fn wait(mut self) -> Finished {
        let deadline = self.started + self.limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                break status;
            }
            if Instant::now() >= deadline {
                self.give_up("it has not ended in time");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let took = self.started.elapsed();
        if !eventually(GONE, || self.stdout.at_end() && self.stderr.at_end()) {
            self.give_up("it has ended, and somebody still holds its output");
        }
        if !eventually(GONE, || processes(self.token).is_empty()) {
            self.give_up("it has ended, and left processes behind");
        }
        Finished {
            code: status.code().unwrap_or_else(|| -status.signal().unwrap_or(0)),
            stdout: self.stdout.so_far(),
            stderr: String::from_utf8_lossy(&self.stderr.so_far()).into_owned(),
            took,
            what: self.what.clone(),
        }
    }

    fn give_up(&mut self, why: &str) -> ! {
        let (stdout, stderr) = (self.stdout.so_far(), self.stderr.so_far());
        let threads = threads(&processes(self.token));
        self.kill();
        panic!("{}: {why}\n{}{threads}", self.what, streams(&stdout, &String::from_utf8_lossy(&stderr)));
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in processes(self.token) {
            if let Ok(pid) = libc::pid_t::try_from(pid) {
                #[expect(unsafe_code, reason = "std has no kill")]
                // SAFETY: the call touches no memory; a process that is gone in the meantime is no
                // harm.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A run that is over.
pub(crate) struct Finished {
    /// The exit code; minus the signal's number if a signal ended it.
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    /// From start to the command's end.
    pub(crate) took: Duration,
    what: String,
}

impl Finished {
    /// Insists on an exit code.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of {}\n{}", self.what, streams(&self.stdout, &self.stderr));
        self
    }

    /// Insists on an exit code 0 and a silent standard error, and gives standard output.
    #[track_caller]
    pub(crate) fn output(self) -> Vec<u8> {
        let finished = self.code(0);
        let streams = streams(&finished.stdout, &finished.stderr);
        assert_eq!(finished.stderr, "", "{} complains\n{streams}", finished.what);
        finished.stdout
    }

    /// Insists on a part of standard error.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        let streams = streams(&self.stdout, &self.stderr);
        assert!(self.stderr.contains(text), "no {text:?} from {}\n{streams}", self.what);
        self
    }

    /// Both streams, for messages.
    pub(crate) fn streams(&self) -> String {
        streams(&self.stdout, &self.stderr)
    }
}

fn streams(stdout: &[u8], stderr: &str) -> String {
    let shown = &stdout[..stdout.len().min(2000)];
    format!("--- stdout ({} bytes)\n{}\n--- stderr\n{stderr}", stdout.len(), shown.escape_ascii())
}

pub(crate) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

/// Whether a process has these bytes anywhere in its memory.
pub(crate) fn memory_has(pid: u32, needle: &str) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives, and is ours");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("its memory can be read");
    let mut pages = 0;
    let found = maps.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { return false };
        let mut ends = range.split('-').map(|end| u64::from_str_radix(end, 16).expect("an address"));
        let (Some(start), Some(end)) = (ends.next(), ends.next()) else { return false };
        if !rights.starts_with('r') {
            return false;
        }
        let mut bytes = vec![0; usize::try_from(end - start).expect("it is mapped")];
        // Device memory and the like can't be read.
        let Ok(length) = memory.read_at(&mut bytes, start) else { return false };
        pages += length;
        contains(&bytes[..length], needle.as_bytes())
    });
    assert!(pages > 0, "nothing of process {pid} could be read");
    found
}

/// A line of /proc/PID/status.
fn status(pid: u32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix(key))?.trim().to_owned())
}

/// The live processes of a run.
pub(crate) fn processes(token: Token) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| token.has(*pid) && status(*pid, "State:").is_some_and(|state| !state.starts_with('Z')))
        .collect()
}

/// What each thread of a run that doesn't end is doing: where it waits, and the CPU time (in ticks)
/// that it takes in a second.
fn threads(pids: &[u32]) -> String {
    let look = || -> Vec<(String, u64)> {
        let tasks = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten();
        let thread = |task: PathBuf| {
            let read = |file| fs::read_to_string(task.join(file)).unwrap_or_default();
            let stat = read("stat");
            // State, ..., user and system time: fields 3, 14 and 15 of proc(5), counted from behind
            // the name.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let ticks = [11, 12].map(|field| fields.get(field).and_then(|ticks| ticks.parse::<u64>().ok()));
            let state = fields.first().copied().unwrap_or("gone");
            let name = format!("{} {} {state} in {}", task.display(), read("comm").trim(), read("wchan"));
            (name, ticks.into_iter().flatten().sum())
        };
        tasks.flatten().map(|task| thread(task.path())).collect()
    };
    let before = look();
    std::thread::sleep(Duration::from_secs(1));
    let lines = before.iter().zip(look()).map(|((_, before), (thread, after))| {
        format!("--- {thread}: {after} ticks, {} in this second\n", after.saturating_sub(*before))
    });
    lines.collect()
}

/// Whether a program is installed.
pub(crate) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|dir| dir.join(program)).any(|path| path.is_file())
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    #[expect(unsafe_code, reason = "std has no geteuid")]
    // SAFETY: the call touches no memory and can't fail.
    let uid = unsafe { libc::geteuid() };
    uid == 0
}
