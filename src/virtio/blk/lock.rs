//! The lock on a disk: one writer, or any number of readers, and who has it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Takes an OFD lock on the whole file, shared for a reader; false when somebody else's is in the
/// way.
#[expect(unsafe_code, reason = "OFD locks are only reached by fcntl(2)")]
pub(super) fn lock(file: &File, read_only: bool) -> io::Result<bool> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    // l_pid must be 0 for an OFD lock; a length of 0 is the whole file, however long it gets.
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).expect("lock types are small"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one `flock`, which lives on this stack.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Who has a lock on the file, as far as /proc tells: the kernel keeps no owner of an OFD lock, but
/// `fdinfo` of a descriptor shows the locks that are held through it.
pub(super) fn lock_holder(file: &File) -> String {
    find_holder(file).map_or_else(
        || "another process (one of another user, perhaps)".to_owned(),
        |pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            match name.trim() {
                _ if pid == std::process::id() => "this very command (is it given twice?)".to_owned(),
                "" => format!("process {pid}"),
                name => format!("process {pid} ({name})"),
            }
        },
    )
}

fn find_holder(file: &File) -> Option<u32> {
    let wanted = file.metadata().ok()?;
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds = |fd: &std::fs::DirEntry| {
            let number = fd.file_name();
            let is_it = std::fs::metadata(fd.path())
                .is_ok_and(|meta| meta.dev() == wanted.dev() && meta.ino() == wanted.ino());
            let info = process.path().join("fdinfo").join(number);
            is_it && std::fs::read_to_string(info).is_ok_and(|info| info.contains("OFDLCK"))
        };
        std::fs::read_dir(process.path().join("fd")).ok()?.flatten().find(holds).map(|_| pid)
    })
}
