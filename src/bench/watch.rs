//! An instance, seen from outside while it does what its load tells it to: the filters of its
//! processes, and the system calls that strace sees.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::executor::Instance;
use super::seccomp;
use super::sections::{ACT_WAIT, Watched};

/// How long strace may take to attach to all processes.
const ATTACH: Duration = Duration::from_secs(3);
/// The actions may begin so much earlier than they were told to, as seen from here.
const MARGIN: Duration = Duration::from_millis(500);
/// How long strace may take to end.
const END: Duration = Duration::from_secs(5);
/// What goes on after the last action, until it has been carried out.
const SETTLE: Duration = Duration::from_millis(300);

/// Watches an instance that runs `act`. `dir` is for a file.
///
/// # Errors
///
/// One line: that it has ended, or that its filters can't be had.
pub fn watch(instance: &mut dyn Instance, dir: &Path) -> Result<Watched, String> {
    let begun = Instant::now();
    let processes = instance.processes()?;
    let mut filters = Vec::new();
    for pid in &processes {
        // One that has ended meanwhile has none.
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let field =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
        let count = match field("Seccomp:") {
            "0" => None,
            _ => Some(
                seccomp::filters_of(*pid)
                    .and_then(|filters| seccomp::permitted(&filters))
                    .map_err(|error| format!("its filters: {error}"))?,
            ),
        };
        filters.push((field("Name:").to_owned(), count));
    }
    let tracer = Tracer::attach(&processes, dir);
    // What it does before somebody looks isn't seen.
    let in_time = begun.elapsed() < ACT_WAIT.saturating_sub(MARGIN);
    let done = instance.hear("done=");
    sleep(SETTLE);
    let calls = match tracer.and_then(Tracer::end) {
        Ok(_) if !in_time => Err("this machine is too busy to look in time".into()),
        calls => calls,
    };
    Ok(Watched { filters, done: done?, calls })
}

/// A strace that runs.
struct Tracer {
    child: Child,
    file: std::path::PathBuf,
}

impl Tracer {
    fn attach(processes: &[u32], dir: &Path) -> Result<Self, String> {
        let file = dir.join("strace");
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-o"]).arg(&file);
        for pid in processes {
            command.args(["-p", &pid.to_string()]);
        }
        // In a process group of its own: whoever presses Ctrl-C doesn't mean it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(|_| "strace is not installed".to_owned())?;
        let mut tracer = Self { child, file };
        let deadline = Instant::now() + ATTACH;
        while !processes.iter().all(|pid| is_traced(*pid)) {
            let ended = tracer.child.try_wait().is_ok_and(|status| status.is_some());
            if ended || Instant::now() > deadline {
                return Err(tracer.complaint());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(tracer)
    }

    fn complaint(&mut self) -> String {
        self.stop();
        let mut text = String::new();
        if let Some(errors) = &mut self.child.stderr {
            // Without words there is less to say.
            let _unreadable = errors.read_to_string(&mut text);
        }
        text.lines().next().unwrap_or("strace does not attach").to_owned()
    }

    fn stop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended; what it traced goes on.
            let _gone = kill_process(pid, Signal::INT);
        }
        let deadline = Instant::now() + END;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > deadline {
                // What it traces goes on without it.
                let _gone = self.child.kill();
                let _gone = self.child.wait();
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }

    fn end(mut self) -> Result<BTreeMap<String, u64>, String> {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return Err(self.complaint());
        }
        self.stop();
        let text = fs::read(&self.file).map_err(|error| format!("what strace wrote: {error}"))?;
        Ok(count(&String::from_utf8_lossy(&text)))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // One that is gone needs no tracer.
    status.lines().find_map(|line| line.strip_prefix("TracerPid:")).is_none_or(|tracer| tracer.trim() != "0")
}

/// Calls in what strace has written, by name: `PID NAME(...`. What it only tells the end of was
/// counted at its beginning; what it has interrupted itself is not the program's.
fn count(text: &str) -> BTreeMap<String, u64> {
    let mut calls = BTreeMap::new();
    for line in text.lines() {
        let Some((_, rest)) = line.split_once(' ') else { continue };
        let Some((name, _)) = rest.trim_start().split_once('(') else { continue };
        let is_name = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if is_name && name != "restart_syscall" {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_once_and_by_name() {
        let text = "12 read(3, \"a(b\", 10) = 3\n12 read(3, <unfinished ...>\n13 ioctl(4, KVM_RUN, 0) = 0\n12 <... read resumed>) = 0\n\
            13 --- SIGINT {si_signo=SIGINT} ---\n13 +++ exited with 0 +++\n14 restart_syscall(<... resuming interrupted poll ...>\n";
        let calls: Vec<_> = count(text).into_iter().collect();
        assert_eq!(calls, [("ioctl".to_owned(), 1), ("read".to_owned(), 2)]);
    }
}
