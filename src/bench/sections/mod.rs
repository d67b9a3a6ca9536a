//! What is measured, and in which order. Every repeated measurement goes round by round, one run of
//! each peer in turn, so that whatever else the machine does falls on all of them.
//!
//! Each section is a file; what they have in common is here.

mod density;
mod isolation;
mod memory;
mod startup;
#[cfg(test)]
mod tests;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::executor::{Executor, Instance};
use super::results::{Curve, Exits, Fact, Measure, Peer, Phases, Row, Section, Stack, Unit};

/// Rounds of starts that are not counted. Loads that measure themselves warm up by themselves, and
/// memory knows no haste.
const WARM_UP: usize = 1;

/// From an instance's start to its 30 actions: until then somebody must watch.
pub const ACT_WAIT: Duration = Duration::from_secs(4);

/// How long is waited, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Until an instance has come to rest.
    pub rest: Duration,
    /// While its processor time is watched.
    pub watch: Duration,
    /// How long each instance may take to start and take memory, before the first one frees it.
    pub hold: Duration,
    /// From when one instance frees its memory until the next one does.
    pub apart: Duration,
    /// From when it has freed that to each look at what it still has.
    pub looks: [Duration; 3],
}

impl Times {
    /// Those that a report speaks of.
    pub const REAL: Self = Self {
        rest: Duration::from_secs(2),
        watch: Duration::from_secs(4),
        hold: Duration::from_secs(3),
        apart: Duration::from_secs(2),
        looks: [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)],
    };
}

/// What the sections have in common.
pub struct Bench<'a> {
    /// The peers, in the order of all tables.
    pub peers: Vec<Box<dyn Executor>>,
    /// Runs of each.
    pub runs: usize,
    /// How many instances are started at most, and how long that may take, to see how many fit.
    pub density: (usize, Duration),
    /// How long is waited.
    pub times: Times,
    /// Whether to stop, because somebody wishes it.
    pub stop: &'a dyn Fn() -> bool,
    /// Is told what happens: a section, a peer, and how far it is.
    pub progress: &'a dyn Fn(Section, &str, usize, usize),
    /// MemAvailable, in bytes.
    pub available: &'a dyn Fn() -> u64,
    /// Puts files out of the page cache, and tells which share of them stays there, in percent.
    pub evict: &'a dyn Fn(&[PathBuf]) -> Result<f64, String>,
    /// Watches an instance that runs `act` from outside.
    pub watch: &'a dyn Fn(&mut dyn Instance) -> Result<Watched, String>,
}

/// What can be seen of an instance from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Name of each process, and how many system calls its filters permit; none where there is no
    /// filter.
    pub filters: Vec<(String, Option<usize>)>,
    /// System calls of all its processes, by name: how often. Or why that isn't known.
    pub calls: Result<BTreeMap<String, u64>, String>,
    /// How many of the actions could be done.
    pub done: String,
}

/// What sections find.
#[derive(Debug, Default)]
pub struct Found {
    /// Figures.
    pub measures: Vec<Measure>,
    /// Where the time of a start goes.
    pub phases: Vec<Phases>,
    /// How often guests are left.
    pub exits: Vec<Exits>,
    /// What memory is for.
    pub stacks: Vec<Stack>,
    /// How memory goes with the number of instances.
    pub curves: Vec<Curve>,
    /// What shows inside.
    pub facts: Vec<Fact>,
    /// Whether it was told to stop.
    pub interrupted: bool,
}

/// Samples of several measures by one peer.
struct Samples {
    of: Vec<Vec<f64>>,
    failure: Option<String>,
}

impl Bench<'_> {
    /// Measures these sections, and gives what there is when it is told to stop.
    pub fn run(&mut self, sections: &[Section]) -> Found {
        let mut found = Found::default();
        for section in Section::ALL.into_iter().filter(|section| sections.contains(section)) {
            match section {
                Section::Startup => self.startup(&mut found),
                Section::Memory => self.memory(&mut found),
                Section::Density => self.density(&mut found),
                Section::Cpu => {
                    self.work(&mut found, section);
                    self.exits(&mut found);
                }
                Section::Syscall | Section::Disk | Section::Net => self.work(&mut found, section),
                Section::Isolation => self.isolation(&mut found),
            }
        }
        found.interrupted = (self.stop)();
        found
    }

    /// Runs each peer in turn, `rounds` times after those that don't count; a peer that fails isn't
    /// asked again in this section.
    fn rounds(
        &mut self,
        section: Section,
        (warm_up, rounds): (usize, usize),
        measures: usize,
        mut sample: impl FnMut(&mut dyn Executor) -> Result<Vec<f64>, String>,
    ) -> Vec<Samples> {
        let mut all: Vec<Samples> = self
            .peers
            .iter()
            .map(|peer| Samples { of: vec![Vec::new(); measures], failure: peer.peer().missing })
            .collect();
        for round in 0..rounds + warm_up {
            for (executor, samples) in self.peers.iter_mut().zip(&mut all) {
                if samples.failure.is_some() {
                    continue;
                }
                if (self.stop)() {
                    samples.failure = Some("interrupted".into());
                    continue;
                }
                let Peer { name, .. } = executor.peer();
                (self.progress)(section, &name, round, rounds + warm_up);
                match sample(executor.as_mut()) {
                    Ok(_) if round < warm_up => {}
                    Ok(figures) => samples.of.iter_mut().zip(figures).for_each(|(all, one)| all.push(one)),
                    Err(why) => samples.failure = Some(why),
                }
            }
        }
        all
    }

    fn measures(&self, section: Section, names: &[(&str, &str, Unit)], all: Vec<Samples>, found: &mut Found) {
        let measure = |(id, label, unit): &(&str, &str, Unit)| Measure {
            section,
            id: format!("{}.{id}", section.name()),
            label: (*label).to_owned(),
            unit: *unit,
            note: None,
            rows: Vec::new(),
        };
        let mut measures: Vec<Measure> = names.iter().map(measure).collect();
        for (executor, samples) in self.peers.iter().zip(all) {
            for (measure, figures) in measures.iter_mut().zip(samples.of) {
                let peer = executor.peer().name;
                measure.rows.push(Row { peer, samples: figures, failure: samples.failure.clone() });
            }
        }
        found.measures.extend(measures);
    }
}

/// Sleeps in short pieces.
fn rest(time: Duration, stop: &dyn Fn() -> bool) -> Result<(), String> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if stop() {
            return Err("interrupted".into());
        }
        sleep(Duration::from_millis(100).min(until.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}
