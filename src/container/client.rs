//! The client's side of a VM: it launches it through the monitor, sends requests and reads events.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use super::channel::Channel;
use super::protocol::{Event, Launch, Request};
use crate::poll::{self, Source};
use crate::sys::process::Child;
use crate::sys::signals::{Signals, asks_for_end};

/// A monitor that waits for its first request.
#[derive(Debug)]
pub struct Unlaunched {
    channel: Channel,
    monitor: Child,
}

/// Why a VM could not be launched.
#[derive(Debug)]
pub struct LaunchError {
    /// The user's words were wrong.
    pub is_usage: bool,
    /// What happened.
    pub error: anyhow::Error,
}

/// How long the monitor may go on opening files after a signal that asks for an end.
const LAUNCH_GRACE: Duration = Duration::from_secs(1);

/// A VM that runs.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    monitor: Child,
    container: String,
    events: VecDeque<(Event, Vec<OwnedFd>)>,
}

impl Unlaunched {
    pub(super) fn new(channel: Channel, monitor: Child) -> Self {
        Self { channel, monitor }
    }

    /// Launches a VM, and waits until its process runs. `container` is the id of its container.
    /// Signals that come meanwhile are left in `early`; with one that asks for an end nobody waits
    /// for long.
    pub fn launch(
        self,
        container: String,
        launch: Launch,
        descriptors: Vec<OwnedFd>,
        signals: &mut Signals,
        early: &mut Vec<i32>,
    ) -> Result<Client, LaunchError> {
        let Self { channel, monitor } = self;
        let mut client = Client { channel, monitor, container, events: VecDeque::new() };
        let setup = |error| LaunchError { is_usage: false, error };
        let request = Request::Launch(Box::new(launch));
        client.send_with(request, descriptors).map_err(setup)?;
        match client.first(signals, early).map_err(setup)? {
            (Event::Launched, _) => Ok(client),
            (Event::Failed { is_usage, message }, _) => {
                Err(LaunchError { is_usage, error: anyhow!(message) })
            }
            (event, _) => Err(setup(anyhow!("unexpected message from bothy's monitor: {event:?}"))),
        }
    }
}

impl Client {
    /// Sends a request.
    pub fn send(&mut self, request: Request) -> anyhow::Result<()> {
        self.send_with(request, vec![])
    }

    fn send_with(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> anyhow::Result<()> {
        let sent = self.channel.queue(&self.container, request, descriptors);
        match sent.and_then(|()| self.channel.flush_all()) {
            // It has sent its last event before: that is to be read.
            Err(error) if is_gone(&error) => Ok(()),
            done => done.context("can't send to bothy's monitor"),
        }
    }

    /// Reads the events that have arrived. Called when the descriptor is readable.
    pub fn read(&mut self) -> anyhow::Result<VecDeque<(Event, Vec<OwnedFd>)>> {
        let is_open = self.channel.fill().context("can't read from bothy's monitor")?;
        self.take_all()?;
        if !is_open && self.events.is_empty() {
            bail!(
                "bothy's monitor {}: this is a bug in bothy, unless somebody has killed it",
                self.autopsy()
            );
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// Waits for the first event.
    fn first(
        &mut self,
        signals: &mut Signals,
        early: &mut Vec<i32>,
    ) -> anyhow::Result<(Event, Vec<OwnedFd>)> {
        let mut deadline = None;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let sources = [Source::readable(self), Source::readable(&*signals)];
            let [events, signal] = poll::wait(sources, deadline).context("can't wait for bothy's monitor")?;
            if events.readable {
                self.events = self.read()?;
            } else if signal.readable {
                let signal = signals.take().context("can't read a signal")?;
                early.push(signal);
                if asks_for_end(signal) {
                    deadline = deadline.or_else(|| Some(Instant::now() + LAUNCH_GRACE));
                }
            } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.kill_monitor();
                bail!("interrupted before the virtual machine could start");
            }
        }
    }

    fn take_all(&mut self) -> anyhow::Result<()> {
        while let Some((envelope, descriptors)) =
            self.channel.take::<Event>().context("can't read from bothy's monitor")?
        {
            if envelope.container != self.container {
                bail!("bothy's monitor sent an event of another container: {:?}", envelope.container);
            }
            self.events.push_back((envelope.body, descriptors));
        }
        Ok(())
    }

    /// Kills the monitor, and with it the VM.
    pub fn kill_monitor(&self) {
        self.monitor.kill();
    }

    /// What became of a monitor that has closed its connection.
    fn autopsy(&mut self) -> String {
        match self.monitor.reap() {
            Ok(status) => match (status.terminating_signal(), status.exit_status()) {
                (Some(signal), _) => format!("died of signal {signal}"),
                (None, Some(code)) => format!("ended with status {code} and no report"),
                (None, None) => "was lost".into(),
            },
            Err(error) => format!("was lost ({error})"),
        }
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.channel.as_raw_fd()
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
