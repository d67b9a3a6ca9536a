//! Executors that are a program: it is started, prints what its load prints, and ends with it.

use std::cell::{Cell, OnceCell};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::executor::{Details, Executor, Instance, Parts, Run, Usage};
use super::machine::kib;
use super::results::Peer;
use crate::poll::{self, Source};

/// Longest that an instance may take to say something, and to end.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest that is waited for the processes of an instance that was killed.
const TEAR_DOWN: Duration = Duration::from_secs(10);
/// More than any load prints.
const MAX_OUTPUT: usize = 64 << 10;

/// How a program is called for one instance.
pub struct Call {
    /// Its program and words.
    pub command: Command,
    /// What removes whatever a killed instance leaves.
    pub clean_up: Option<Command>,
    /// What prints, once the instance runs, the number of a process that has it among its children,
    /// if the program has not.
    pub keeper: Option<Command>,
}

impl Call {
    /// Of a program that leaves nothing, and all of whose processes are its children.
    pub fn new(command: Command) -> Self {
        Self { command, clean_up: None, keeper: None }
    }
}

/// Makes a call for a load, or tells in a line why there is none.
pub type MakeCall = Box<dyn FnMut(&[&str]) -> Result<Call, String>>;
/// Reads details from what a program prints on standard error.
pub type ReadDetails = fn(&str) -> Option<Details>;

/// A program that runs loads.
pub struct Program {
    peer: Peer,
    call: MakeCall,
    timed: Option<(MakeCall, ReadDetails)>,
    files: Vec<PathBuf>,
    kept: Result<Vec<PathBuf>, String>,
    guest_mark: Option<String>,
}

impl Program {
    /// `call` is asked for a new instance each time.
    pub fn new(peer: Peer, call: impl FnMut(&[&str]) -> Result<Call, String> + 'static) -> Self {
        Self {
            peer,
            call: Box::new(call),
            timed: None,
            files: Vec::new(),
            kept: Ok(Vec::new()),
            guest_mark: None,
        }
    }

    /// With a call that tells details on standard error, and what reads them.
    pub fn timed(
        mut self,
        call: impl FnMut(&[&str]) -> Result<Call, String> + 'static,
        read: ReadDetails,
    ) -> Self {
        self.timed = Some((Box::new(call), read));
        self
    }

    /// Which reads these files when it starts.
    pub fn reads(mut self, files: Vec<PathBuf>) -> Self {
        self.files = files;
        self
    }

    /// Which keeps files for its instances in these directories; or why they are not known.
    pub fn keeps(mut self, kept: Result<Vec<PathBuf>, String>) -> Self {
        self.kept = kept;
        self
    }

    /// Whose largest mapping is the memory of a guest. That is torn down behind it, by a process
    /// with this mark on its command line.
    pub fn with_guest(mut self, mark: &Path) -> Self {
        self.guest_mark = Some(mark.to_string_lossy().into_owned());
        self
    }

    /// Waits until nothing of the last run is left: the next peer's time is its own.
    fn settle(&self) {
        let Some(mark) = &self.guest_mark else { return };
        let deadline = Instant::now() + TEAR_DOWN;
        while is_on_a_command_line(mark) && Instant::now() < deadline {
            sleep(Duration::from_millis(5));
        }
    }
}

/// Runs a program to its end, no longer than an instance may take, and gives what it prints. The
/// error is its last line.
pub fn run_to_end(call: Call) -> Result<String, String> {
    let mut running = Running::start(call)?;
    while running.read_more()? {}
    let status = running.wait()?;
    if status.success() {
        Ok(String::from_utf8_lossy(&running.output).into_owned())
    } else {
        Err(running.complaint(status))
    }
}

/// The last line with something on it: what a program that fails says at last.
pub fn last_line(text: &str) -> Option<&str> {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty())
}

impl Executor for Program {
    fn peer(&self) -> Peer {
        self.peer.clone()
    }

    fn run(&mut self, load: &[&str]) -> Result<Run, String> {
        let run = Running::start((self.call)(load)?)?.finish().map(|(run, _)| run);
        self.settle();
        run
    }

    fn start(&mut self, load: &[&str]) -> Result<Box<dyn Instance>, String> {
        let mut running = Running::start((self.call)(load)?)?;
        running.is_machine = self.guest_mark.is_some();
        running.read_some()?;
        Ok(Box::new(running))
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn kept(&self) -> Result<u64, String> {
        Ok(self.kept.as_ref()?.iter().map(|path| disk_usage(path)).sum())
    }

    fn details(&mut self, load: &[&str]) -> Result<Option<Details>, String> {
        let Some((call, read)) = &mut self.timed else { return Ok(None) };
        let (_, errors) = Running::start(call(load)?)?.finish()?;
        let details = read(&errors);
        self.settle();
        details.map(Some).ok_or_else(|| "it doesn't say where the time went".into())
    }
}

/// An instance: a process group of its own.
struct Running {
    child: Child,
    stdout: ChildStdout,
    stderr: File,
    clean_up: Option<Command>,
    /// What tells the keeper, until it has.
    ask_keeper: Cell<Option<Command>>,
    keeper: OnceCell<Result<Option<u32>, String>>,
    is_machine: bool,
    started: Instant,
    first_output: Option<Duration>,
    output: Vec<u8>,
    ended: bool,
}

impl Running {
    fn start(mut call: Call) -> Result<Self, String> {
        let program = call.command.get_program().to_string_lossy().into_owned();
        let failed = |error: std::io::Error| format!("{program}: {error}");
        // A file takes whatever it complains of without being read.
        let stderr =
            File::from(memfd_create("stderr", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?);
        let own = stderr.try_clone().map_err(failed)?;
        call.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(own).process_group(0);
        let started = Instant::now();
        let mut child = call.command.spawn().map_err(failed)?;
        let stdout = child.stdout.take().expect("it is piped");
        Ok(Self {
            child,
            stdout,
            stderr,
            clean_up: call.clean_up,
            ask_keeper: Cell::new(call.keeper),
            keeper: OnceCell::new(),
            is_machine: false,
            started,
            first_output: None,
            output: Vec::new(),
            ended: false,
        })
    }

    /// Waits for output, of which there must be some; whether there may be more.
    fn read_some(&mut self) -> Result<bool, String> {
        let more = self.read_more()?;
        if !more && self.first_output.is_none() {
            let status = self.wait()?;
            return Err(self.complaint(status));
        }
        Ok(more)
    }

    /// Waits for output; whether there may be more.
    fn read_more(&mut self) -> Result<bool, String> {
        let deadline = self.started + LIMIT;
        let [ready] = poll::wait([Source::readable(&self.stdout)], Some(deadline))
            .map_err(|error| error.to_string())?;
        if !ready.readable {
            return Err(format!("it says nothing for {} s", LIMIT.as_secs()));
        }
        let mut chunk = [0; 4096];
        let length = self.stdout.read(&mut chunk).map_err(|error| error.to_string())?;
        if self.first_output.is_none() && length > 0 {
            self.first_output = Some(self.started.elapsed());
        }
        self.output.extend_from_slice(&chunk[..length]);
        if self.output.len() > MAX_OUTPUT {
            return Err("it prints more than any load does".into());
        }
        Ok(length > 0)
    }

    fn finish(mut self) -> Result<(Run, String), String> {
        while self.read_some()? {}
        let status = self.wait()?;
        let exit = self.started.elapsed();
        if !status.success() {
            return Err(self.complaint(status));
        }
        let output = String::from_utf8_lossy(&self.output).into_owned();
        let first_output = self.first_output.ok_or("it printed nothing")?;
        let errors = self.errors();
        Ok((Run { first_output, exit, output }, errors))
    }

    /// The process that keeps the instance, if it is not the program; asked for when it is first
    /// wanted.
    fn keeper(&self) -> Result<Option<u32>, String> {
        let find = || {
            let Some(ask) = self.ask_keeper.take() else { return Ok(None) };
            let text = run_to_end(Call::new(ask))?;
            let pid = text.trim().parse();
            pid.map(Some).map_err(|_| format!("its processes are not found: {:?}", text.trim()))
        };
        self.keeper.get_or_init(find).clone()
    }

    /// Waits for the end of the program, as long as anything may take.
    fn wait(&mut self) -> Result<ExitStatus, String> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or("it has no number")?;
        let end = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| error.to_string())?;
        let [ended] = poll::wait([Source::readable(&end)], Some(self.started + LIMIT))
            .map_err(|error| error.to_string())?;
        if !ended.readable {
            return Err(format!("it doesn't end within {} s", LIMIT.as_secs()));
        }
        let status = self.child.wait().map_err(|error| error.to_string())?;
        self.ended = true;
        Ok(status)
    }

    fn errors(&mut self) -> String {
        let mut bytes = Vec::new();
        // An unreadable complaint is none.
        let _unreadable =
            self.stderr.seek(SeekFrom::Start(0)).and_then(|_| self.stderr.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Why it failed, in its own last words.
    fn complaint(&mut self, status: ExitStatus) -> String {
        last_line(&self.errors()).map_or_else(|| format!("it ended with {status}"), str::to_owned)
    }
}

impl Instance for Running {
    fn usage(&self) -> Result<Usage, String> {
        let mut usage = Usage::default();
        for pid in self.processes()? {
            // One that has ended meanwhile holds nothing.
            let Some(own) = of_process(pid) else { continue };
            usage.pss += own.pss;
            usage.shared += own.shared;
            usage.threads += own.threads;
            usage.cpu += own.cpu;
            usage.processes += 1;
        }
        if usage.processes == 0 { Err("it has ended".into()) } else { Ok(usage) }
    }

    fn parts(&self) -> Result<Parts, String> {
        let mut parts = Parts::default();
        let mut guest = (0, 0, 0);
        let mut all = Vec::new();
        for pid in self.processes()? {
            let Some(own) = of_process(pid) else { continue };
            let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
            if self.is_machine
                && let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/smaps"))
            {
                let (size, held) = largest_mapping(&maps);
                guest = guest.max((size, held, all.len()));
            }
            all.push((name.trim().to_owned(), own.pss));
        }
        if guest.0 > 0 {
            parts.guest = Some((guest.0, guest.1));
            all[guest.2].1 -= guest.1.min(all[guest.2].1);
        }
        for (name, pss) in all {
            match parts.processes.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += pss,
                None => parts.processes.push((name, pss)),
            }
        }
        if parts.processes.is_empty() { Err("it has ended".into()) } else { Ok(parts) }
    }

    fn processes(&self) -> Result<Vec<u32>, String> {
        let keeper = self.keeper()?;
        let mut all: Vec<u32> = std::iter::once(self.child.id()).chain(keeper).flat_map(family).collect();
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    fn hear(&mut self, line: &str) -> Result<String, String> {
        loop {
            let text = String::from_utf8_lossy(&self.output);
            // What has no end yet may not be all of it.
            let complete = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(rest) = complete.lines().find_map(|own| own.strip_prefix(line)) {
                return Ok(rest.to_owned());
            }
            if !self.read_some()? {
                return Err(format!("it ends without saying {line}"));
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Some of them are not of its process group, and take their time.
        let processes = self.processes().unwrap_or_default();
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may be gone already.
            let _gone = kill_process_group(group, Signal::KILL);
        }
        let _gone = self.child.wait();
        if let Some(clean_up) = self.clean_up.take() {
            // There may be nothing left to remove.
            let _nothing = run_to_end(Call::new(clean_up));
        }
        let deadline = Instant::now() + TEAR_DOWN;
        while processes.iter().any(|pid| runs(*pid)) && Instant::now() < deadline {
            sleep(Duration::from_millis(5));
        }
    }
}

fn is_on_a_command_line(mark: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| line.windows(mark.len()).any(|part| part == mark.as_bytes()))
}

/// Whether a process is there, and more than a name that nobody has asked for.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A process and all that it and its children have started and not waited for.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let Ok(children) = fs::read_to_string(task.path().join("children")) else { continue };
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    all
}

fn of_process(pid: u32) -> Option<Usage> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse(&rollup, &stat, rustix::param::clock_ticks_per_second())
}

fn parse(rollup: &str, stat: &str, ticks_per_second: u64) -> Option<Usage> {
    // The name stands in brackets, and may have any bytes in it; behind it are the third field and
    // all others.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)? + field(15)?;
    Some(Usage {
        pss: kib(rollup, "Pss:")? * 1024,
        shared: kib(rollup, "Rss:").unwrap_or(0).saturating_sub(kib(rollup, "Pss:")?) * 1024,
        processes: 1,
        threads: usize::try_from(field(20)?).ok()?,
        cpu: Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64),
    })
}

/// Bytes on disk of a directory and all below it. What can't be read, or goes meanwhile, has none.
fn disk_usage(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let entries = if metadata.is_dir() { fs::read_dir(path).ok() } else { None };
    let below: u64 = entries.into_iter().flatten().flatten().map(|entry| disk_usage(&entry.path())).sum();
    metadata.blocks() * 512 + below
}

/// Size and Pss of the largest mapping, in bytes. Neighbours without a file are one: they only
/// differ in what the kernel was told of them.
fn largest_mapping(smaps: &str) -> (u64, u64) {
    let mut all: Vec<(u64, u64)> = Vec::new();
    let mut anonymous_until = None;
    for line in smaps.lines() {
        if let Some((start, end, is_anonymous)) = mapping(line) {
            if !is_anonymous || anonymous_until != Some(start) {
                all.push((0, 0));
            }
            anonymous_until = is_anonymous.then_some(end);
            if let Some((size, _)) = all.last_mut() {
                *size += end.saturating_sub(start);
            }
        } else if let (Some(kib), Some((_, pss))) = (kib(line, "Pss:"), all.last_mut()) {
            *pss += kib * 1024;
        }
    }
    all.into_iter().max().unwrap_or_default()
}

/// Where a mapping begins and ends, and whether it has no file and no name; `None` for all lines
/// but the first of one.
fn mapping(line: &str) -> Option<(u64, u64, bool)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    // Permissions, offset, device, inode, name.
    Some((number(start)?, number(end)?, words.nth(3)? == "0" && words.next().is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        let script = script.to_owned();
        let peer = Peer { name: "sh".into(), version: String::new(), how: String::new(), missing: None };
        Program::new(peer, move |load| {
            let mut command = Command::new("sh");
            command.arg("-c").arg(&script).arg("sh").args(load);
            Ok(Call::new(command))
        })
    }

    #[test]
    fn a_run_has_its_output_and_two_times() {
        let run = shell("echo \"$1\"; sleep 0.2; echo b").run(&["a"]).unwrap();
        assert_eq!(run.output, "a\nb\n");
        assert!(run.exit >= run.first_output + Duration::from_millis(150), "{run:?}");
    }

    #[test]
    fn failures_are_one_line_in_its_own_words() {
        let why = |script: &str| shell(script).run(&[]).unwrap_err();
        assert_eq!(why("echo x; echo first >&2; echo second >&2; exit 3"), "second");
        assert_eq!(why("exit 3"), "it ended with exit status: 3");
        assert_eq!(why("echo no right >&2"), "no right");
        let peer = shell("").peer();
        let mut missing = Program::new(peer, |_| Ok(Call::new(Command::new("/no/such/program"))));
        assert!(missing.run(&[]).unwrap_err().starts_with("/no/such/program: No such file"));
    }

    #[test]
    fn an_instance_is_counted_with_its_children_and_ends_when_it_is_dropped() {
        let mark = tempfile::NamedTempFile::new().unwrap();
        let path = mark.path().display().to_string();
        let mut program = shell(&format!("sleep 1000 & echo $! >{path}; echo ready; wait"));
        let instance = program.start(&[]).unwrap();
        let usage = instance.usage().unwrap();
        assert_eq!((usage.processes, usage.threads), (2, 2));
        assert!(usage.pss > 100 << 10 && usage.pss < 100 << 20, "{usage:?}");
        drop(instance);
        let pid = fs::read_to_string(&path).unwrap();
        let gone = || {
            fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
                .map_or(true, |stat| stat.contains(") Z "))
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !gone() {
            assert!(Instant::now() < deadline, "{pid} goes on");
        }
    }

    #[test]
    fn an_instance_is_heard_and_its_parts_have_names() {
        let mut instance =
            shell("sleep 1000 & echo ready; echo a=1; printf b=2; echo 3; wait").start(&[]).unwrap();
        assert_eq!(instance.hear("b=").unwrap(), "23");
        assert_eq!(instance.hear("a=").unwrap(), "1");
        // Until it has called exec, the second is a shell as well.
        let deadline = Instant::now() + Duration::from_secs(5);
        let parts = loop {
            let parts = instance.parts().unwrap();
            let names: Vec<&str> = parts.processes.iter().map(|(name, _)| name.as_str()).collect();
            if names == ["sh", "sleep"] {
                break parts;
            }
            assert!(Instant::now() < deadline, "{names:?}");
        };
        assert_eq!((instance.processes().unwrap().len(), parts.guest), (2, None));
        // Other processes come and go meanwhile, and share its libraries.
        let (sum, pss) =
            (parts.processes.iter().map(|(_, pss)| pss).sum::<u64>(), instance.usage().unwrap().pss);
        assert!(sum > pss / 2 && sum < pss * 2, "{sum} {pss}");
        let mut short = shell("echo ready").start(&[]).unwrap();
        assert_eq!(short.hear("b=").unwrap_err(), "it ends without saying b=");
    }

    #[test]
    fn a_keeper_is_asked_for_and_counted() {
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = other.id().to_string();
        let peer = shell("").peer();
        let mut program = Program::new(peer, move |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo ready; exec sleep 1000"]);
            let mut keeper = Command::new("echo");
            keeper.arg(&pid);
            Ok(Call { command, clean_up: None, keeper: Some(keeper) })
        });
        let instance = program.start(&[]).unwrap();
        assert_eq!(instance.processes().unwrap().len(), 2);
        drop(instance);
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn the_last_line_is_the_last_with_something_on_it() {
        assert_eq!(last_line("a\nb\n\n"), Some("b"));
        assert_eq!(last_line(""), None);
    }

    #[test]
    fn the_largest_mapping_is_a_guest_s_memory() {
        let smaps = "1000-2000 r-xp 0 08:01 7 /bin/x\nSize: 4 kB\nRss: 4 kB\nPss: 4 kB\nPss_Dirty: 0 kB\n10000-20000 rw-p 0 00:00 0 \nPss: 10 kB\n\
            20000-90000 rw-p 0 00:00 0 \nPss: 100 kB\n90000-a0000 rw-p 0 00:00 0 [heap]\nPss: 16 kB\na1000-a2000 rw-p 0 00:00 0 \nPss: 1 kB\n";
        assert_eq!(largest_mapping(smaps), (0x80000, 110 << 10));
        assert_eq!(largest_mapping(""), (0, 0));
    }

    #[test]
    fn what_the_kernel_says_of_a_process_is_understood() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 5 0 100 1 1 1";
        let usage = parse("x\nPss:                 120 kB\nPss_Dirty: 1 kB\n", stat, 100).unwrap();
        assert_eq!((usage.pss, usage.threads, usage.cpu), (120 << 10, 5, Duration::from_secs(3)));
        assert_eq!(parse("", stat, 100), None);
        assert_eq!(parse("Pss: 1 kB", "7 (x", 100), None);
    }
}
