//! Loads that measure what a processor and a kernel do.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::say;

/// Rounds of each measurement.
const ROUNDS: usize = 5;
/// About how long a round takes.
const ROUND: Duration = Duration::from_millis(40);
pub(crate) const PAGE: usize = 4096;

/// A turn is a system call that no C library answers by itself.
pub(crate) fn system_calls(turns: usize) -> io::Result<()> {
    for _ in 0..turns {
        black_box(rustix::process::getppid());
    }
    Ok(())
}

/// Finds how many turns fill a round, and prints the best round's mean.
pub(crate) fn measure(key: &str, round: impl FnMut(usize) -> io::Result<()>) -> io::Result<()> {
    say(format_args!("{key}={:.3}", best(round)? * 1e9))
}

/// Seconds of a turn, in the best round.
fn best(mut round: impl FnMut(usize) -> io::Result<()>) -> io::Result<f64> {
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
    Ok(best)
}

/// A turn is a thousand steps of xorshift, each of which needs the one before.
pub(crate) fn arithmetic(turns: usize) -> io::Result<()> {
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
pub(crate) fn faults(turns: usize) -> io::Result<()> {
    // A machine with little memory has so much.
    const MOST: usize = 16 << 10;
    let mut left = turns;
    while left > 0 {
        let pages = left.min(MOST);
        touch_new_pages(pages)?;
        left -= pages;
    }
    Ok(())
}

fn touch_new_pages(pages: usize) -> io::Result<()> {
    let len = pages * PAGE;
    #[expect(unsafe_code, reason = "pages that nobody has written to yet")]
    // SAFETY: a new private mapping at an address of the kernel's choice is nobody else's; all
    // writes are within its length, and nothing refers to it once it is unmapped.
    unsafe {
        let memory =
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?;
        for page in 0..pages {
            memory.cast::<u8>().add(page * PAGE).write_volatile(1);
        }
        munmap(memory, len)?;
    }
    Ok(())
}

/// Starts a process by fork(2) alone, which runs `child` and ends.
pub(crate) fn fork(child: impl FnOnce() -> bool) -> io::Result<libc::pid_t> {
    #[expect(unsafe_code, reason = "std starts no process without another program")]
    // SAFETY: this program has one thread, so the child may go on with all that it has; it ends
    // without running destructors.
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

pub(crate) fn wait_for(pid: libc::pid_t) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process"))?;
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    Ok(())
}

pub(crate) fn forks(turns: usize) -> io::Result<()> {
    for _ in 0..turns {
        wait_for(fork(|| true)?)?;
    }
    Ok(())
}

/// A turn is a byte to a child and back: two switches.
pub(crate) fn switch() -> io::Result<()> {
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
    let measured = measure("switch_ns", |turns| (0..turns).try_for_each(|_| pass(b'x')));
    pass(b'q')?;
    wait_for(child)?;
    measured
}
