//! PID 1 of bothy's guests: mounts, network, one command or a shell, and the machine's orderly end;
//! or, where the host runs an image, its agent (`agent`).
//!
//! It is a single thread and links everything statically. It starts no services, and it is not an
//! init for a distribution: the root file system is the initramfs. What it understands on the
//! kernel command line is described in the library beside it; a machine always ends with it,
//! whether it succeeds or fails.

mod agent;
mod console;
mod demo;
mod drivers;
mod mounts;
mod network;
mod power;
mod signals;
mod sys;
mod watch;

use std::env;
use std::fs;
use std::io;
use std::panic;
use std::process;
use std::time::Duration;

use bothy_guest::cmdline::{self, Word};
use bothy_guest::{EXIT_STATUS_PREFIX, KEY_AGENT, KEY_DEMO, KEY_EXEC, TimingMark, protocol};

use signals::End;
use signals::{Event, Events};
use sys::Reaped;

const WELCOME: &str = "Welcome to bothy. Type `exit` or `poweroff` to switch the machine off.";

fn main() {
    // Anywhere else this program would kill every process that it may kill.
    if process::id() != 1 {
        eprintln!("bothy-guest is the first program of a virtual machine and can't be run in any other way");
        process::exit(1);
    }
    let host = match env::args_os().nth(1) {
        // For tests of the agent, which run it as PID 1 of namespaces: no machine is theirs.
        Some(option) if option == "--agent-at" => {
            Some(agent::Host::Unix(env::args_os().nth(2).unwrap_or_default().into()))
        }
        _ => {
            sys::mark_time(TimingMark::InitStarted);
            None
        }
    };
    panic::set_hook(Box::new(|info| {
        say!("init failed: {info}");
        power::now(End::PowerOff);
    }));
    if let Err(error) = run(host) {
        say!("init failed: {error}");
        power::now(End::PowerOff);
    }
}

/// What the machine is for.
enum Task {
    Demo,
    /// Run a command, print its exit status, power off.
    Exec(String),
    /// A shell on the console, or nothing but waiting where there is no terminal.
    Interactive,
}

fn run(host: Option<agent::Host>) -> io::Result<()> {
    let mut events = Events::open()?;
    mounts::proc()?;
    let words = cmdline::words(&String::from_utf8_lossy(&fs::read("/proc/cmdline")?));
    if let Some(host) = host.or_else(|| host_of(&words)) {
        return agent::run(events, host);
    }
    let up = uptime();
    mounts::devices()?;
    drivers::load();
    mounts::usual();
    report(sys::set_host_name("bothy"), "host name");
    let interfaces = network::configure(&words);
    events.add_power_buttons();
    let (end, shell) = match task(&words) {
        Task::Demo => {
            demo::print(up, &interfaces);
            (End::PowerOff, None)
        }
        Task::Exec(command) => exec(&command, &mut events)?,
        Task::Interactive => interactive(&mut events)?,
    };
    power::end(end, Some(&mut events), shell)
}

/// Where the host is, if this machine is to run an image.
fn host_of(words: &[Word]) -> Option<agent::Host> {
    let word = words.iter().rfind(|word| word.key == KEY_AGENT)?;
    let port = word.value.as_ref().and_then(|port| port.parse().ok());
    Some(agent::Host::Vsock(port.unwrap_or(protocol::PORT)))
}

fn task(words: &[Word]) -> Task {
    if words.iter().any(|word| word.key == KEY_DEMO) {
        return Task::Demo;
    }
    match cmdline::last_value(words, KEY_EXEC) {
        Some(command) => Task::Exec(command.to_owned()),
        None => Task::Interactive,
    }
}

/// Runs the command to its end, or until somebody asks for the machine's end. Returns it if it
/// still runs.
fn exec(command: &str, events: &mut Events) -> io::Result<(End, Option<i32>)> {
    let terminal = console::terminal();
    let pid = console::start_shell(&["-c", command], terminal.as_ref())?;
    Ok(match supervise(events, Some(pid))? {
        Ended::Program(status) => {
            console::print_line(&format!("{EXIT_STATUS_PREFIX}{status}"));
            (End::PowerOff, None)
        }
        Ended::Machine(end) => (end, Some(pid)),
    })
}

fn interactive(events: &mut Events) -> io::Result<(End, Option<i32>)> {
    let Some(terminal) = console::terminal() else {
        return Ok(match supervise(events, None)? {
            Ended::Machine(end) => (end, None),
            Ended::Program(_) => (End::PowerOff, None),
        });
    };
    console::print_line(WELCOME);
    let pid = console::start_shell(&[], Some(&terminal))?;
    Ok(match supervise(events, Some(pid))? {
        Ended::Program(_) => (End::PowerOff, None),
        Ended::Machine(end) => (end, Some(pid)),
    })
}

enum Ended {
    /// The program, with this status.
    Program(i32),
    /// The machine is to end.
    Machine(End),
}

/// Reaps whoever ends, until `program` does or somebody asks for the machine's end.
fn supervise(events: &mut Events, program: Option<i32>) -> io::Result<Ended> {
    loop {
        for event in events.wait(None)? {
            match event {
                Event::Child => {
                    while let Reaped::Child { pid, status } = sys::reap() {
                        if Some(pid) == program {
                            return Ok(Ended::Program(status.shell_code().into()));
                        }
                    }
                }
                Event::End(end) => return Ok(Ended::Machine(end)),
            }
        }
    }
}

/// How long the kernel has run.
fn uptime() -> Duration {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn report(result: io::Result<()>, what: &str) {
    if let Err(error) = result {
        say!("{what}: {error}");
    }
}
