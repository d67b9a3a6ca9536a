//! What init and the agent sleep on: poll(2) over the descriptors that are of interest this time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Collects the descriptors to wait for.
#[derive(Default)]
pub(crate) struct Watch<'a> {
    fds: Vec<PollFd<'a>>,
    until: Option<Instant>,
}

/// What was found.
#[derive(Default)]
pub(crate) struct Ready(Vec<(RawFd, PollFlags)>);

impl<'a> Watch<'a> {
    /// Waits for this descriptor, too. Errors and hang-ups wake in every case, so one that is of no
    /// interest must not be added.
    pub(crate) fn add(&mut self, fd: &'a impl AsFd, interest: PollFlags) {
        self.fds.push(PollFd::new(fd, interest));
    }

    /// Wakes at this time at the latest.
    pub(crate) fn until(&mut self, time: Instant) {
        self.until = Some(self.until.map_or(time, |until| until.min(time)));
    }

    /// Sleeps until something is ready or the time has come.
    pub(crate) fn wait(mut self) -> io::Result<Ready> {
        let timeout = self.until.map(|until| {
            // A part of a millisecond would be waited for in circles.
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_micros(100);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut self.fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Ready(
            self.fds
                .iter()
                .filter(|fd| !fd.revents().is_empty())
                .map(|fd| (fd.as_fd().as_raw_fd(), fd.revents()))
                .collect(),
        ))
    }
}

impl Ready {
    /// What is ready of this descriptor.
    pub(crate) fn of(&self, fd: &impl AsFd) -> PollFlags {
        let number = fd.as_fd().as_raw_fd();
        self.0
            .iter()
            .filter(|(other, _)| *other == number)
            .fold(PollFlags::empty(), |all, (_, flags)| all | *flags)
    }
}
