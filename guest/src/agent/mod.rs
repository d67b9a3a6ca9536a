//! The agent: PID 1 of a machine that runs a container image, as the host says over vsock.
//!
//! One thread and one loop over poll(2); it waits nowhere else but for what the host asked of the
//! kernel (a mount, an interface that isn't there yet). What the container does can't stop it: it
//! has no file, process or memory in common with it but pipes that it never waits for. It keeps its
//! state when the connection to the host breaks, and dials again.

mod capabilities;
mod cgroup;
mod commands;
mod container;
mod control;
mod devices;
mod dial;
mod figures;
mod interpreted;
mod paths;
mod program;
mod reclaimable;
mod refusal;
mod relay;
mod root;
mod setup;

mod start;
mod streams;
mod texts;
mod tree;
mod users;

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use bothy_guest::protocol::{self, Command, ContainerSetup, NotStarted, ProcessId, Report, Request};
use rustix::event::PollFlags;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

pub(crate) use dial::Host;

use crate::power;
use crate::say;
use crate::signals::End;
use crate::signals::{Event, Events};
use crate::sys::{self, Reaped};
use crate::watch::{Ready, Watch};
use cgroup::Cgroups;
use commands::Commands;
use control::Control;
use reclaimable::{Reclaimable, Sweep};
use refusal::{Refusal, shortened};

/// How long commands have between SIGTERM and SIGKILL, and after that to be gone. The host gives
/// the whole machine ten seconds.
const GRACE: Duration = Duration::from_secs(3);
const KILLED: Duration = Duration::from_secs(1);
/// How long the host may take at the machine's end to read what the commands have left.
const DRAIN: Duration = Duration::from_secs(3);
const DRAIN_POLL: Duration = Duration::from_millis(1);

struct Agent {
    events: Events,
    control: Control,
    commands: Commands,
    machine: Machine,
    reclaimable: Reclaimable,
    sweep: Sweep,
    ending: Option<Ending>,
}

/// How far the machine has come.
enum Machine {
    /// It waits for [`Request::Machine`], which is answered by the error if there is one.
    Waiting(Result<Option<Cgroups>, Refusal>),
    Ready(setup::Machine),
    /// It is not what the host wanted, and never will be.
    Failed,
}

/// The machine's end, step by step; each at the latest at its time.
struct Ending {
    end: End,
    step: Step,
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Commands have been asked to end.
    Asked,
    /// They have been killed.
    Killed,
    /// They are gone, and the host reads what they have left.
    Draining,
}

/// Serves the host until the machine's end, which it is. Returns only errors.
pub(crate) fn run(events: Events, host: Host) -> io::Result<()> {
    // Before anything else runs: the kernel doesn't choose the agent when memory runs out, and
    // nobody looks into it or its children.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        say!("the kernel may end the agent when memory runs out: {error}");
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // The connection is made while the machine is prepared.
    let control = Control::new(host.clone());
    let machine = Machine::Waiting(setup::prepare());
    let reclaimable = Reclaimable::new(Instant::now());
    let mut agent = Agent {
        events,
        control,
        commands: Commands::new(host),
        machine,
        reclaimable,
        sweep: Sweep::new(Instant::now()),
        ending: None,
    };
    loop {
        let ready = agent.wait()?;
        agent.act(&ready);
        if let Some(end) = agent.next_step() {
            if let Machine::Ready(machine) = &agent.machine {
                machine.unmount_all();
            }
            power::now(end);
        }
    }
}

impl Agent {
    fn wait(&self) -> io::Result<Ready> {
        let mut watch = Watch::default();
        watch.add(&self.events, PollFlags::IN);
        self.control.watch(&mut watch);
        self.commands.watch(&mut watch);
        if let Some(ending) = &self.ending {
            watch.until(ending.until);
            if ending.step == Step::Draining {
                // Nothing wakes when the last byte has left.
                watch.until(Instant::now() + DRAIN_POLL);
            }
        }
        if matches!(self.machine, Machine::Ready(_)) {
            watch.until(self.reclaimable.look_at());
            self.sweep.act_at().into_iter().for_each(|time| watch.until(time));
        }
        watch.wait()
    }

    fn act(&mut self, ready: &Ready) {
        for request in self.control.act(ready) {
            self.on_request(request);
        }
        for report in self.commands.act(ready) {
            self.control.report(&report);
        }
        // Before that the host doesn't expect it.
        if matches!(self.machine, Machine::Ready(_)) {
            self.mind_memory(Instant::now());
        }
        if ready.of(&self.events).is_empty() {
            return;
        }
        for event in self.events.signals() {
            match event {
                Event::Child => self.reap(),
                Event::End(end) => self.begin_end(end),
            }
        }
    }

    fn mind_memory(&mut self, now: Instant) {
        self.sweep.act(now);
        if let Some(mib) = self.reclaimable.look(now, reclaimable::free_bytes) {
            self.control.report(&Report::Reclaimable { mib });
        }
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Machine(machine) => {
                let report = self.set_up(&machine);
                self.control.report(&report);
            }
            Request::Create { container, setup } => {
                let report = match self.create(container, *setup) {
                    Ok(()) => Report::Created { container },
                    Err(refusal) => Report::NotCreated { container, message: shortened(refusal.message) },
                };
                self.control.report(&report);
            }
            Request::Run { id, command } => {
                if let Err(refusal) = self.run_command(id, &command) {
                    self.control.report(&refusal.report(id));
                }
            }
            Request::Signal { id, signal } => self.commands.signal(id, signal),
            Request::Resize { id, size } => self.commands.resize(id, size),
            Request::Figures => self.control.report(&Report::Figures(figures::read())),
            Request::PowerOff => self.begin_end(End::PowerOff),
        }
    }

    fn set_up(&mut self, machine: &protocol::Machine) -> Report {
        let failed = |message: String| Report::Failed { message: shortened(message) };
        match std::mem::replace(&mut self.machine, Machine::Failed) {
            Machine::Waiting(prepared) => {
                match prepared.and_then(|cgroups| setup::Machine::set_up(machine, cgroups)) {
                    Ok(machine) => {
                        self.machine = Machine::Ready(machine);
                        Report::Ready
                    }
                    Err(refusal) => failed(refusal.message),
                }
            }
            ready @ Machine::Ready(_) => {
                self.machine = ready;
                failed("the machine is set up already".into())
            }
            Machine::Failed => failed("the machine could not be set up".into()),
        }
    }

    /// The machine, if it is set up and isn't ending.
    fn ready(&mut self) -> Result<(&mut setup::Machine, &mut Commands), Refusal> {
        if self.ending.is_some() {
            return Err(Refusal::new(NotStarted::Other, "the machine ends"));
        }
        match &mut self.machine {
            Machine::Ready(machine) => Ok((machine, &mut self.commands)),
            Machine::Waiting(_) | Machine::Failed => Err(Refusal::other("the machine is not set up")),
        }
    }

    fn create(&mut self, container: u32, setup: ContainerSetup) -> Result<(), Refusal> {
        let (machine, _) = self.ready()?;
        machine.create(container, setup)
    }

    fn run_command(&mut self, id: ProcessId, command: &Command) -> Result<(), Refusal> {
        let (machine, commands) = self.ready()?;
        match machine.container(id.container) {
            Some(container) => commands.run(container, id, command),
            None => Err(Refusal::other(format!("there is no container {}", id.container))),
        }
    }

    fn reap(&mut self) {
        while let Reaped::Child { pid, status } = sys::reap() {
            for report in self.commands.ended(pid, status) {
                self.control.report(&report);
            }
        }
    }

    fn begin_end(&mut self, end: End) {
        if self.ending.is_some() {
            return;
        }
        self.commands.terminate();
        self.ending = Some(Ending { end, step: Step::Asked, until: Instant::now() + GRACE });
    }

    /// Goes on with the machine's end; returns it when all that can be waited for has happened.
    fn next_step(&mut self) -> Option<End> {
        let ending = self.ending.as_mut()?;
        let now = Instant::now();
        let late = now >= ending.until;
        if ending.step == Step::Asked && self.commands.any() && late {
            self.commands.signal_all(libc::SIGKILL);
            Cgroups::kill();
            (ending.step, ending.until) = (Step::Killed, now + KILLED);
        } else if ending.step != Step::Draining && (!self.commands.any() || late) {
            (ending.step, ending.until) = (Step::Draining, now + DRAIN);
        }
        let drained = ending.step == Step::Draining && (self.commands.are_delivered() || now >= ending.until);
        drained.then_some(ending.end)
    }
}
