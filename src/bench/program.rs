//! Executors that are a program: it is started, prints what its load prints, and ends with it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};

use super::executor::{Details, Executor, GUEST_MEMORY, Instance, Run, Usage};
use super::machine::kib;
use super::results::Peer;
use crate::poll::{self, Source};

/// Longest that an instance may take to say something, and to end.
const LIMIT: Duration = Duration::from_secs(60);
/// More than any load prints.
const MAX_OUTPUT: usize = 64 << 10;

/// How a program is called for one instance.
pub struct Call {
    /// Its program and words.
    pub command: Command,
    /// What removes whatever a killed instance leaves.
    pub clean_up: Option<Command>,
    /// What prints, once the instance runs, the number of a process that has it among its children, if the program has not.
    pub keeper: Option<Command>,
}

impl Call {
    /// Of a program that leaves nothing, and all of whose processes are its children.
    pub fn new(command: Command) -> Self {
        Self { command, clean_up: None, keeper: None }
    }
}

/// Makes a call for a load.
pub type MakeCall = Box<dyn FnMut(&[&str]) -> Call>;
/// Reads details from what a program prints on standard error.
pub type ReadDetails = fn(&str) -> Option<Details>;

/// A program that runs loads.
pub struct Program {
    peer: Peer,
    call: MakeCall,
    timed: Option<(MakeCall, ReadDetails)>,
    files: Vec<PathBuf>,
    is_machine: bool,
}

impl Program {
    /// `call` is asked for a new instance each time.
    pub fn new(peer: Peer, call: impl FnMut(&[&str]) -> Call + 'static) -> Self {
        Self { peer, call: Box::new(call), timed: None, files: Vec::new(), is_machine: false }
    }

    /// With a call that tells details on standard error, and what reads them.
    pub fn timed(mut self, call: impl FnMut(&[&str]) -> Call + 'static, read: ReadDetails) -> Self {
        self.timed = Some((Box::new(call), read));
        self
    }

    /// Which reads these files when it starts.
    pub fn reads(mut self, files: Vec<PathBuf>) -> Self {
        self.files = files;
        self
    }

    /// Whose largest mapping is the memory of a guest.
    pub fn with_guest(mut self) -> Self {
        self.is_machine = true;
        self
    }
}

impl Executor for Program {
    fn peer(&self) -> Peer {
        self.peer.clone()
    }

    fn run(&mut self, load: &[&str]) -> Result<Run, String> {
        Running::start((self.call)(load))?.finish().map(|(run, _)| run)
    }

    fn start(&mut self, load: &[&str]) -> Result<Box<dyn Instance>, String> {
        let mut running = Running::start((self.call)(load))?;
        running.is_machine = self.is_machine;
        running.read_some()?;
        running.find_keeper()?;
        Ok(Box::new(running))
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn details(&mut self, load: &[&str]) -> Result<Option<Details>, String> {
        let Some((call, read)) = &mut self.timed else { return Ok(None) };
        let (_, errors) = Running::start(call(load))?.finish()?;
        read(&errors).map(Some).ok_or_else(|| "it doesn't say where the time went".into())
    }
}

/// An instance: a process group of its own.
struct Running {
    child: Child,
    stdout: ChildStdout,
    stderr: File,
    clean_up: Option<Command>,
    /// What tells the keeper, until it has.
    ask_keeper: Option<Command>,
    keeper: Option<u32>,
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
            ask_keeper: call.keeper,
            keeper: None,
            is_machine: false,
            started,
            first_output: None,
            output: Vec::new(),
            ended: false,
        })
    }

    /// Waits for output; whether there is more.
    fn read_some(&mut self) -> Result<bool, String> {
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
        if length == 0 && self.first_output.is_none() {
            let status = self.wait()?;
            return Err(self.complaint(status));
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

    fn find_keeper(&mut self) -> Result<(), String> {
        let Some(mut ask) = self.ask_keeper.take() else { return Ok(()) };
        let output = ask.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let pid =
            text.trim().parse().map_err(|_| format!("its processes are not found: {:?}", text.trim()))?;
        self.keeper = Some(pid);
        Ok(())
    }

    fn wait(&mut self) -> Result<ExitStatus, String> {
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
        let errors = self.errors();
        let last = errors.lines().rev().find(|line| !line.trim().is_empty());
        last.map_or_else(|| format!("it ended with {status}"), |line| line.trim().to_owned())
    }
}

impl Instance for Running {
    fn usage(&self) -> Result<Usage, String> {
        let mut usage = Usage::default();
        for pid in self.processes() {
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

    fn parts(&self) -> Result<Vec<(String, u64)>, String> {
        let mut parts: Vec<(String, u64)> = Vec::new();
        let mut guest = (0, 0);
        for pid in self.processes() {
            let Some(own) = of_process(pid) else { continue };
            let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
            let mut pss = own.pss;
            if self.is_machine
                && let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/smaps"))
            {
                let (size, held) = largest_mapping(&maps);
                if size > guest.0 {
                    guest = (size, held);
                    pss -= held.min(pss);
                }
            }
            match parts.iter_mut().find(|(known, _)| known == name.trim()) {
                Some((_, all)) => *all += pss,
                None => parts.push((name.trim().to_owned(), pss)),
            }
        }
        if self.is_machine {
            parts.insert(0, (GUEST_MEMORY.to_owned(), guest.1));
        }
        if parts.is_empty() { Err("it has ended".into()) } else { Ok(parts) }
    }

    fn processes(&self) -> Vec<u32> {
        let mut all: Vec<u32> =
            std::iter::once(self.child.id()).chain(self.keeper).flat_map(family).collect();
        all.sort_unstable();
        all.dedup();
        all
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
        if !self.ended {
            if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                // It may be gone already.
                let _gone = kill_process_group(group, Signal::KILL);
            }
            let _gone = self.child.wait();
        }
        if let Some(clean_up) = self.clean_up.as_mut().filter(|_| !self.ended) {
            // There may be nothing left to remove.
            let _status = clean_up.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
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
    // The name stands in brackets, and may have any bytes in it; behind it are the third field and all others.
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

/// Size and Pss of the largest mapping, in bytes.
fn largest_mapping(smaps: &str) -> (u64, u64) {
    let mut all = Vec::new();
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Size", _)) => all.push((kib(line, "Size:").unwrap_or(0) * 1024, 0)),
            Some(("Pss", _)) => {
                if let Some((_, pss)) = all.last_mut() {
                    *pss = kib(line, "Pss:").unwrap_or(0) * 1024;
                }
            }
            _ => {}
        }
    }
    all.into_iter().max().unwrap_or_default()
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
            Call::new(command)
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
        let mut missing = Program::new(peer, |_| Call::new(Command::new("/no/such/program")));
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
        let parts = instance.parts().unwrap();
        let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, instance.processes().len()), (vec!["sh", "sleep"], 2));
        // Other processes come and go meanwhile, and share its libraries.
        let (sum, pss) = (parts.iter().map(|(_, pss)| pss).sum::<u64>(), instance.usage().unwrap().pss);
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
            Call { command, clean_up: None, keeper: Some(keeper) }
        });
        let instance = program.start(&[]).unwrap();
        assert_eq!(instance.processes().len(), 2);
        drop(instance);
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn the_largest_mapping_is_a_guest_s_memory() {
        let smaps = "1-2 r-xp 0 00:00 0 /bin/x\nSize: 8 kB\nRss: 8 kB\nPss: 4 kB\nPss_Dirty: 0 kB\n2-9 rw-s 0 00:00 0 /memfd\n\
            Size: 2048 kB\nRss: 100 kB\nPss: 100 kB\n9-a rw-p 0 00:00 0 \nSize: 16 kB\nPss: 16 kB\n";
        assert_eq!(largest_mapping(smaps), (2 << 20, 100 << 10));
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
