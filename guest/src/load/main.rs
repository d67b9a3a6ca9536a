//! `bothy-load`: what `bothy bench` runs in every instance, the same file in each. A static program
//! without input, that needs neither files nor libraries of its image.
//!
//! ```text
//! hello             prints a line and ends
//! wait              prints a line, and what programs of this kernel hold and what is free, and sleeps until it is killed
//! hold MIB SECONDS  writes to so much memory, prints `held`, frees it, prints `freed`, and sleeps
//! cpu               arithmetic on integers
//! syscall           getppid, which no C library answers by itself; a byte to another process and back, by pipes; first writes to new pages; a process that
//!                   ends at once, and is waited for
//! disk              a file in the working directory, written and read in order and at random
//! serve PORT        prints a line, and answers `net` until it is killed
//! net ADDRESS       bytes to `serve` and back, one at a time and as many as pass
//! see               what can be seen of the system from inside, `KEY=VALUE` a line
//! act SECONDS       prints a line, waits, does 30 things that programs do, prints how many could be done, and sleeps
//! ```
//!
//! A measurement prints a line for each figure, `KEY=N`: MiB in a second, or the nanoseconds of one
//! turn, and of several rounds the best, since whatever disturbs makes it worse.

mod act;
mod disk;
mod net;
mod see;
mod work;

use std::fmt::Display;
use std::hint::black_box;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use work::{PAGE, measure};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _unheard = writeln!(io::stderr(), "bothy-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    match words {
        ["hello"] => say("hello"),
        ["wait"] => {
            let (programs, free) = see::memory_kib();
            say(format_args!("ready\nprograms_kib={programs}\nfree_kib={free}"))?;
            sleep_for_ever()
        }
        ["hold", mib, seconds] => hold(number(mib)?, Duration::from_secs(number(seconds)?)),
        ["cpu" | "syscall"] if pin().is_err() => Err(io::Error::other("it can't stay on one processor")),
        ["cpu"] => measure("cpu_ns", work::arithmetic),
        ["syscall"] => {
            measure("syscall_ns", work::system_calls)?;
            work::switch()?;
            measure("fault_ns", work::faults)?;
            measure("fork_ns", work::forks)
        }
        ["disk"] => disk::disk(),
        ["serve", port] => net::serve(number(port)?),
        ["net", address] => net::net(address),
        ["see"] => see::see(),
        ["act", seconds] => act::act(Duration::from_secs(number(seconds)?)),
        _ => Err(io::Error::other(format!("unknown words {words:?}"))),
    }
}

/// Stays on the first processor that it may use: a virtual machine may have one alone, and with two
/// a byte to another process is another thing.
fn pin() -> io::Result<()> {
    let may = rustix::thread::sched_getaffinity(None)?;
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| may.is_set(*cpu));
    let mut one = rustix::thread::CpuSet::new();
    one.set(first.unwrap_or(0));
    Ok(rustix::thread::sched_setaffinity(None, &one)?)
}

fn say(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::other(format!("`{text}` is not a number")))
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn hold(mib: usize, time: Duration) -> io::Result<()> {
    let mut memory = vec![0_u8; mib << 20];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    black_box(&memory);
    say("held")?;
    std::thread::sleep(time);
    drop(memory);
    say("freed")?;
    sleep_for_ever()
}
