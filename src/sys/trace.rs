//! What only a tracer sees of another process: its seccomp filters.

use std::io;

/// A request of ptrace(2) that libc has no name for.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
/// More than any filter has instructions.
const MOST_INSTRUCTIONS: usize = 4096;

/// The filters of a process, the oldest first. It is stopped for a moment.
///
/// # Errors
///
/// The kernel's: it takes root, and a process that nobody else traces.
pub fn filters_of(pid: u32) -> io::Result<Vec<Vec<libc::sock_filter>>> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    trace(libc::PTRACE_SEIZE, pid, 0, std::ptr::null_mut())?;
    let stopped = stop(pid).and_then(|()| {
        let mut filters = Vec::new();
        loop {
            match filter(pid, filters.len()) {
                Ok(filter) => filters.push(filter),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(filters),
                Err(error) => return Err(error),
            }
        }
    });
    let detached = trace(libc::PTRACE_DETACH, pid, 0, std::ptr::null_mut());
    let filters = stopped?;
    detached?;
    Ok(filters)
}

fn stop(pid: libc::pid_t) -> io::Result<()> {
    trace(libc::PTRACE_INTERRUPT, pid, 0, std::ptr::null_mut())?;
    let mut status = 0;
    #[expect(unsafe_code, reason = "rustix doesn't show the event of a stop")]
    // SAFETY: `status` is a valid place for the result.
    let ret = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    if ret != pid {
        return Err(io::Error::last_os_error());
    }
    if !libc::WIFSTOPPED(status) {
        return Err(io::Error::other("it has ended"));
    }
    // Any other stop is for a signal, which would be lost when the process goes on.
    if status >> 16 == libc::PTRACE_EVENT_STOP {
        Ok(())
    } else {
        Err(io::Error::other("it has got a signal"))
    }
}

fn filter(pid: libc::pid_t, number: usize) -> io::Result<Vec<libc::sock_filter>> {
    let len = trace(PTRACE_SECCOMP_GET_FILTER, pid, number, std::ptr::null_mut())?;
    let len = usize::try_from(len).ok().filter(|len| *len <= MOST_INSTRUCTIONS);
    let len = len.ok_or_else(|| io::Error::other("a filter that can't be understood"))?;
    let mut filter = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; len];
    trace(PTRACE_SECCOMP_GET_FILTER, pid, number, filter.as_mut_ptr())?;
    Ok(filter)
}

/// `data` is null, or has room for what the request writes.
fn trace(
    request: libc::c_uint,
    pid: libc::pid_t,
    address: usize,
    data: *mut libc::sock_filter,
) -> io::Result<libc::c_long> {
    #[expect(unsafe_code, reason = "neither std nor rustix has ptrace")]
    // SAFETY: of the requests here only one writes to our memory, and that within the filter whose
    // length it has told before: filters are counted from the oldest, are only added, and never
    // change.
    let ret = unsafe { libc::ptrace(request, pid, address, data) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}
