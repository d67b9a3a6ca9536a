//! `bothy-load`: what `bothy bench` runs in every instance, the same file in each. A static program without input, that needs neither files nor
//! libraries of its image.
//!
//! ```text
//! hello             prints a line and ends
//! wait              prints a line and sleeps until it is killed
//! hold MIB SECONDS  writes to so much memory, prints `held`, frees it, prints `freed`, and sleeps
//! cpu               arithmetic on integers
//! syscall           getppid, which no C library answers by itself
//! switch            a byte to another process and back, by pipes
//! fault             first writes to new pages
//! fork              a process that ends at once, and is waited for
//! see               what can be seen of the system from inside, `KEY=VALUE` a line
//! ```
//!
//! A measurement prints `ns=N`, the nanoseconds of one turn: the shortest of several rounds' means, since whatever disturbs makes it longer.

use std::fmt::Display;
use std::fs;
use std::hint::black_box;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Rounds of each measurement.
const ROUNDS: usize = 5;
/// About how long a round takes.
const ROUND: Duration = Duration::from_millis(40);
const PAGE: usize = 4096;

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
            say("ready")?;
            sleep_for_ever()
        }
        ["hold", mib, seconds] => hold(number(mib)?, number(seconds)?),
        ["cpu"] => measure(arithmetic),
        ["syscall"] => measure(|turns| {
            for _ in 0..turns {
                black_box(rustix::process::getppid());
            }
            Ok(())
        }),
        ["switch"] => switch(),
        ["fault"] => measure(|turns| fault(turns.min(16 << 10))),
        ["fork"] => measure(forks),
        ["see"] => see(),
        _ => Err(io::Error::other(format!("unknown words {words:?}"))),
    }
}

fn say(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| io::Error::other(format!("`{text}` is not a number")))
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Finds how many turns fill a round, and prints the best round's mean.
fn measure(mut round: impl FnMut(usize) -> io::Result<()>) -> io::Result<()> {
    let mut turns = 1;
    let mut best = loop {
        let start = Instant::now();
        round(turns)?;
        let took = start.elapsed();
        if took >= ROUND / 4 || turns >= 1 << 30 {
            break took.as_secs_f64() / turns as f64;
        }
        turns *= 4;
    };
    for _ in 0..ROUNDS {
        let start = Instant::now();
        round(turns)?;
        best = best.min(start.elapsed().as_secs_f64() / turns as f64);
    }
    say(format_args!("ns={:.3}", best * 1e9))
}

/// A turn is a thousand steps of xorshift, each of which needs the one before.
fn arithmetic(turns: usize) -> io::Result<()> {
    let mut x = black_box(0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..turns * 1000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    black_box(x);
    Ok(())
}

/// A turn is the first write to a page of a new mapping.
fn fault(turns: usize) -> io::Result<()> {
    let len = turns * PAGE;
    #[expect(unsafe_code, reason = "pages that nobody has written to yet")]
    // SAFETY: a new private mapping at an address of the kernel's choice is nobody else's; all writes are within its length, and nothing refers
    // to it once it is unmapped.
    unsafe {
        let memory =
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?;
        for page in 0..turns {
            memory.cast::<u8>().add(page * PAGE).write_volatile(1);
        }
        munmap(memory, len)?;
    }
    Ok(())
}

/// Starts a process by fork(2) alone, which runs `child` and ends.
fn fork(child: impl FnOnce() -> bool) -> io::Result<libc::pid_t> {
    #[expect(unsafe_code, reason = "std starts no process without another program")]
    // SAFETY: this program has one thread, so the child may go on with all that it has; it ends without running destructors.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = i32::from(!child());
            #[expect(unsafe_code, reason = "std's exit runs what the parent will run")]
            // SAFETY: it takes a number and doesn't return.
            unsafe {
                libc::_exit(status)
            }
        }
        pid => Ok(pid),
    }
}

fn wait_for(pid: libc::pid_t) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process"))?;
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    Ok(())
}

fn forks(turns: usize) -> io::Result<()> {
    for _ in 0..turns {
        wait_for(fork(|| true)?)?;
    }
    Ok(())
}

/// A turn is a byte to a child and back: two switches.
fn switch() -> io::Result<()> {
    let (to_read, to_write) = rustix::pipe::pipe()?;
    let (from_read, from_write) = rustix::pipe::pipe()?;
    let child = fork(|| {
        let mut byte = [0];
        // Until the parent's end is closed, which is this one's copy, too.
        while byte[0] != b'q' {
            let passed = rustix::io::read(&to_read, &mut byte).is_ok_and(|length| length == 1)
                && rustix::io::write(&from_write, &byte).is_ok();
            if !passed {
                return false;
            }
        }
        true
    })?;
    let pass = |byte: u8| -> io::Result<()> {
        rustix::io::write(&to_write, &[byte])?;
        rustix::io::read(&from_read, &mut [0])?;
        Ok(())
    };
    let measured = measure(|turns| (0..turns).try_for_each(|_| pass(b'x')));
    pass(b'q')?;
    wait_for(child)?;
    measured
}

fn hold(mib: usize, seconds: usize) -> io::Result<()> {
    let mut memory = vec![0_u8; mib << 20];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    black_box(&memory);
    say("held")?;
    std::thread::sleep(Duration::from_secs(seconds as u64));
    drop(memory);
    say("freed")?;
    sleep_for_ever()
}

/// What of the system shows inside. What can't be read is not there to be seen: `-`.
fn see() -> io::Result<()> {
    let read =
        |path: &str| fs::read_to_string(path).map_or_else(|_| "-".into(), |text| text.trim().to_owned());
    let status = read("/proc/self/status");
    let of_status = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .map_or_else(|| "-".into(), |value| value.trim().to_owned())
    };
    let link = |name: &str| {
        fs::read_link(format!("/proc/self/ns/{name}"))
            .map_or_else(|_| "-".into(), |path| path.display().to_string())
    };
    say(format_args!("kernel={}", rustix::system::uname().release().to_string_lossy()))?;
    say(format_args!("boot_id={}", read("/proc/sys/kernel/random/boot_id")))?;
    say(format_args!("pid={}", std::process::id()))?;
    let processes = fs::read_dir("/proc").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
            .count()
    });
    say(format_args!("processes={processes}"))?;
    say(format_args!("host_name={}", rustix::system::uname().nodename().to_string_lossy()))?;
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        say(format_args!("ns_{name}={}", link(name)))?;
    }
    say(format_args!("capabilities={}", of_status("CapEff")))?;
    say(format_args!("seccomp={}", of_status("Seccomp")))?;
    say(format_args!("no_new_privs={}", of_status("NoNewPrivs")))?;
    let entries = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
    say(format_args!("sys_devices={}", entries("/sys/devices/virtual/net")))?;
    say(format_args!("kernel_parameters={}", entries("/proc/sys/kernel")))?;
    say(format_args!("kernel_log={}", if log_is_readable() { "readable" } else { "refused" }))
}

/// Whether the kernel's log can be read (SYSLOG_ACTION_SIZE_UNREAD needs the same right as reading).
fn log_is_readable() -> bool {
    #[expect(unsafe_code, reason = "no crate of ours has klogctl")]
    // SAFETY: this action takes no buffer.
    let ret = unsafe { libc::klogctl(9, std::ptr::null_mut(), 0) };
    ret >= 0
}
