//! What init waits for: signals (children that end, requests to power off or restart) and, on
//! kernels whose ACPI power button is an input device, that device.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use bothy_guest::POWER_BUTTON_SIGNAL;
use rustix::event::PollFlags;

use crate::sys;
use crate::watch::Watch;

/// `struct signalfd_siginfo`; the signal's number is its first word.
const SIGINFO_BYTES: usize = 128;
/// `struct input_event`: two longs of time, then type and code (16 bits each) and value (32 bits).
const INPUT_EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    PowerOff,
    Restart,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Children may have ended.
    Child,
    /// Somebody asked for the machine's end.
    End(End),
}

/// The descriptors that init sleeps on.
pub(crate) struct Events {
    signals: File,
    buttons: Vec<File>,
}

impl Events {
    /// Blocks the signals and from then on reads them. Call it before the first child starts, so
    /// that none is missed.
    pub(crate) fn open() -> io::Result<Self> {
        let signals = sys::signal_fd(&[
            libc::SIGCHLD,
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGPWR,
            POWER_BUTTON_SIGNAL,
        ])?;
        Ok(Self { signals, buttons: Vec::new() })
    }

    /// Also listens to the input devices that exist now. Only kernels with an input layer have any.
    pub(crate) fn add_power_buttons(&mut self) {
        let Ok(entries) = fs::read_dir("/dev/input") else { return };
        self.buttons = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
            .filter_map(|entry| {
                OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                    .open(entry.path())
                    .ok()
            })
            .collect();
    }

    /// Sleeps until something happens or the time is over, and returns what happened.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<Event>> {
        let mut watch = Watch::default();
        for file in std::iter::once(&self.signals).chain(&self.buttons) {
            watch.add(file, PollFlags::IN);
        }
        if let Some(timeout) = timeout {
            watch.until(Instant::now() + timeout);
        }
        let ready = watch.wait()?;
        let is_readable = |file: &File| !ready.of(file).is_empty();
        let mut events = if is_readable(&self.signals) { self.signals() } else { Vec::new() };
        // A device that is gone would be readable for ever: it is dropped.
        self.buttons = std::mem::take(&mut self.buttons)
            .into_iter()
            .filter_map(
                |button| if is_readable(&button) { read_button(button, &mut events) } else { Some(button) },
            )
            .collect();
        Ok(events)
    }

    /// What the signals that have come say. Does not wait.
    pub(crate) fn signals(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut info = [0; SIGINFO_BYTES];
        while let Ok(SIGINFO_BYTES) = self.signals.read(&mut info) {
            events.extend(signal_number(&info).and_then(event_of_signal));
        }
        events
    }
}

/// Readable when a signal has come.
impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

fn signal_number(info: &[u8; SIGINFO_BYTES]) -> Option<i32> {
    let word: [u8; 4] = info.get(..4)?.try_into().ok()?;
    i32::try_from(u32::from_ne_bytes(word)).ok()
}

/// As busybox's init: `poweroff` sends SIGUSR2, `halt` SIGUSR1, `reboot` SIGTERM. A halted machine
/// would do nothing but cost memory, so it is powered off. SIGINT is what the kernel makes of
/// Ctrl-Alt-Del.
fn event_of_signal(signal: i32) -> Option<Event> {
    match signal {
        libc::SIGCHLD => Some(Event::Child),
        libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGPWR | POWER_BUTTON_SIGNAL => Some(Event::End(End::PowerOff)),
        libc::SIGTERM | libc::SIGINT => Some(Event::End(End::Restart)),
        _ => None,
    }
}

/// Reads what a button has to say; `None` if it is gone.
fn read_button(mut button: File, events: &mut Vec<Event>) -> Option<File> {
    let mut event = [0; INPUT_EVENT_BYTES];
    loop {
        match button.read(&mut event) {
            Ok(INPUT_EVENT_BYTES) if is_power_press(&event) => events.push(Event::End(End::PowerOff)),
            Ok(INPUT_EVENT_BYTES) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(button),
            _ => return None,
        }
    }
}

fn is_power_press(event: &[u8; INPUT_EVENT_BYTES]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_ne_bytes([t0, t1]) == EV_KEY
        && u16::from_ne_bytes([c0, c1]) == KEY_POWER
        && i32::from_ne_bytes([v0, v1, v2, v3]) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busybox_and_the_power_button_are_understood() {
        assert_eq!(event_of_signal(38), Some(Event::End(End::PowerOff)));
        assert_eq!(event_of_signal(libc::SIGUSR2), Some(Event::End(End::PowerOff)));
        assert_eq!(event_of_signal(libc::SIGTERM), Some(Event::End(End::Restart)));
        assert_eq!(event_of_signal(libc::SIGHUP), None);
    }

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut event = [0; INPUT_EVENT_BYTES];
            event[16..18].copy_from_slice(&kind.to_ne_bytes());
            event[18..20].copy_from_slice(&code.to_ne_bytes());
            event[20..].copy_from_slice(&value.to_ne_bytes());
            event
        };
        assert!(is_power_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_power_press(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_power_press(&event(EV_KEY, 30, 1)));
        assert!(!is_power_press(&event(0, 0, 0)));
    }
}
