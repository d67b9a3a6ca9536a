//! A file in the working directory.
//!
//! It is read again after the kernel was told to forget it, so that reads come from whatever is
//! below this kernel's page cache. Below a virtual machine's is the host's own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};

use crate::say;
use crate::work::{PAGE, measure};

const NAME: &str = "bothy-load.file";
const LEN: usize = 64 << 20;
const PIECE: usize = 1 << 20;
/// Times that the whole file is written, and read; the fastest counts.
const ROUNDS: usize = 3;

/// Prints MiB/s in order, nanoseconds of a read of 4 KiB anywhere, and of 4 KiB written and on its
/// disk.
pub(crate) fn disk() -> io::Result<()> {
    let result = measure_all();
    let removed = fs::remove_file(NAME);
    result.and(removed)
}

fn measure_all() -> io::Result<()> {
    // Bytes that no disk can leave out or make smaller.
    let mut piece = vec![0; PIECE];
    File::open("/dev/urandom")?.read_exact(&mut piece)?;
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(NAME)?;
    let mut write = f64::MAX;
    for _ in 0..ROUNDS {
        file = File::options().read(true).write(true).create(true).truncate(true).open(NAME)?;
        let start = Instant::now();
        for _ in 0..LEN / PIECE {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        write = write.min(start.elapsed().as_secs_f64());
    }
    say(format_args!("write_mibs={:.3}", mibs(write)))?;
    let mut read = f64::MAX;
    for _ in 0..ROUNDS {
        forget(&file)?;
        let mut file = File::open(NAME)?;
        let start = Instant::now();
        while file.read(&mut piece)? > 0 {}
        read = read.min(start.elapsed().as_secs_f64());
    }
    say(format_args!("read_mibs={:.3}", mibs(read)))?;
    forget(&file)?;
    // Nothing is read ahead, so each page is fetched alone; few of them are met twice.
    fadvise(&file, 0, None, Advice::Random)?;
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut any = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % (LEN / PAGE) as u64 * PAGE as u64
    };
    let mut page = [0; PAGE];
    measure("random_ns", |turns| {
        forget(&file)?;
        (0..turns).try_for_each(|_| file.read_exact_at(&mut page, any()))
    })?;
    measure("sync_ns", |turns| {
        (0..turns).try_for_each(|_| {
            file.write_all_at(&page, any())?;
            file.sync_data()
        })
    })
}

fn mibs(seconds: f64) -> f64 {
    (LEN >> 20) as f64 / seconds
}

/// Only what is on the disk already can be forgotten.
fn forget(file: &File) -> io::Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}
