//! Executors that are a program: it is started, prints what its load prints, and ends with it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};

use super::executor::{Details, Executor, Instance, Run, Usage};
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
}

impl Program {
    /// `call` is asked for a new instance each time.
    pub fn new(peer: Peer, call: impl FnMut(&[&str]) -> Call + 'static) -> Self {
        Self { peer, call: Box::new(call), timed: None }
    }

    /// With a call that tells details on standard error, and what reads them.
    pub fn timed(mut self, call: impl FnMut(&[&str]) -> Call + 'static, read: ReadDetails) -> Self {
        self.timed = Some((Box::new(call), read));
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
        running.read_some()?;
        Ok(Box::new(running))
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
        for pid in family(self.child.id()) {
            // One that has ended meanwhile holds nothing.
            let Some(own) = of_process(pid) else { continue };
            usage.pss += own.pss;
            usage.threads += own.threads;
            usage.cpu += own.cpu;
            usage.processes += 1;
        }
        if usage.processes == 0 { Err("it has ended".into()) } else { Ok(usage) }
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
        processes: 1,
        threads: usize::try_from(field(20)?).ok()?,
        cpu: Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64),
    })
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
            Call { command, clean_up: None }
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
        let mut missing =
            Program::new(peer, |_| Call { command: Command::new("/no/such/program"), clean_up: None });
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
    fn what_the_kernel_says_of_a_process_is_understood() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 5 0 100 1 1 1";
        let usage = parse("x\nPss:                 120 kB\nPss_Dirty: 1 kB\n", stat, 100).unwrap();
        assert_eq!((usage.pss, usage.threads, usage.cpu), (120 << 10, 5, Duration::from_secs(3)));
        assert_eq!(parse("", stat, 100), None);
        assert_eq!(parse("Pss: 1 kB", "7 (x", 100), None);
    }
}
