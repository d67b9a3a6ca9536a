//! What is measured, and in which order. Every repeated measurement goes round by round, one run of each peer in turn, so that whatever else the
//! machine does falls on all of them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::executor::{Executor, Instance};
use super::results::{Curve, Exits, Fact, Measure, Peer, Phases, Row, Section, Unit};

/// Rounds that are not counted.
const WARM_UP: usize = 1;
/// Runs that tell their phases.
const PHASE_RUNS: usize = 5;
/// How many run at once to see what one more takes.
const AT_ONCE: usize = 8;
/// What an instance takes and gives back, in MiB.
const HELD_MIB: &str = "256";

/// How long is waited, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Until an instance has come to rest.
    pub rest: Duration,
    /// While its processor time is watched.
    pub watch: Duration,
    /// Seconds for which an instance keeps the memory that it takes.
    pub hold: u32,
    /// From when it has freed that to each look at what it still has.
    pub looks: [Duration; 3],
}

impl Times {
    /// Those that a report speaks of.
    pub const REAL: Self = Self {
        rest: Duration::from_secs(3),
        watch: Duration::from_secs(5),
        hold: 5,
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
    /// Bytes on disk wherever instances put files.
    pub disk: &'a dyn Fn() -> u64,
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
                    self.work(&mut found, section, &[("cpu", "1000 steps of arithmetic")]);
                    self.exits(&mut found);
                }
                Section::Syscall => self.work(
                    &mut found,
                    section,
                    &[
                        ("syscall", "a system call (getppid)"),
                        ("switch", "a byte to another process and back"),
                        ("fault", "the first write to a page"),
                        ("fork", "a process started and waited for"),
                    ],
                ),
                Section::Isolation => self.isolation(&mut found),
            }
        }
        found.interrupted = (self.stop)();
        found
    }

    /// Runs each peer in turn, `rounds` times; a peer that fails isn't asked again in this section.
    fn rounds(
        &mut self,
        section: Section,
        rounds: usize,
        measures: usize,
        mut sample: impl FnMut(&mut dyn Executor) -> Result<Vec<f64>, String>,
    ) -> Vec<Samples> {
        let mut all: Vec<Samples> = self
            .peers
            .iter()
            .map(|peer| Samples { of: vec![Vec::new(); measures], failure: peer.peer().missing })
            .collect();
        for round in 0..rounds + WARM_UP {
            for (executor, samples) in self.peers.iter_mut().zip(&mut all) {
                if samples.failure.is_some() {
                    continue;
                }
                if (self.stop)() {
                    samples.failure = Some("interrupted".into());
                    continue;
                }
                let Peer { name, .. } = executor.peer();
                (self.progress)(section, &name, round, rounds + WARM_UP);
                match sample(executor.as_mut()) {
                    Ok(_) if round < WARM_UP => {}
                    Ok(figures) => samples.of.iter_mut().zip(figures).for_each(|(all, one)| all.push(one)),
                    Err(why) => samples.failure = Some(why),
                }
            }
        }
        all
    }

    fn measures<const N: usize>(
        &self,
        section: Section,
        names: [(&str, &str, Unit); N],
        all: Vec<Samples>,
        found: &mut Found,
    ) {
        let names = names.map(|(id, label, unit)| Measure {
            section,
            id: format!("{}.{id}", section.name()),
            label: label.to_owned(),
            unit,
            note: None,
            rows: Vec::new(),
        });
        let mut measures = Vec::from(names);
        for (executor, samples) in self.peers.iter().zip(all) {
            for (measure, figures) in measures.iter_mut().zip(samples.of) {
                let peer = executor.peer().name;
                measure.rows.push(Row { peer, samples: figures, failure: samples.failure.clone() });
            }
        }
        found.measures.extend(measures);
    }

    fn startup(&mut self, found: &mut Found) {
        let all = self.rounds(Section::Startup, self.runs, 2, |executor| {
            let run = executor.run(&["hello"])?;
            Ok([run.first_output, run.exit].map(milliseconds).into())
        });
        let names = [
            ("first_output", "exec to the first output", Unit::Milliseconds),
            ("exit", "exec to exit", Unit::Milliseconds),
        ];
        self.measures(Section::Startup, names, all, found);
        for executor in &mut self.peers {
            let Peer { name, missing, .. } = executor.peer();
            if missing.is_some() {
                continue;
            }
            let mut steps: Vec<(String, Vec<f64>)> = Vec::new();
            for run in 0..self.runs.min(PHASE_RUNS) {
                if (self.stop)() {
                    return;
                }
                (self.progress)(Section::Startup, &name, run, PHASE_RUNS);
                // One that fails has its row in the table above, or tells nothing.
                let Ok(Some(details)) = executor.details(&["hello"]) else { break };
                for (number, (step, length)) in details.phases.into_iter().enumerate() {
                    match steps.get_mut(number) {
                        Some((_, lengths)) => lengths.push(length),
                        None => steps.push((step, vec![length])),
                    }
                }
            }
            if !steps.is_empty() {
                found.phases.push(Phases { peer: name, steps });
            }
        }
    }

    fn memory(&mut self, found: &mut Found) {
        let (stop, times) = (self.stop, self.times);
        let (available, disk) = (self.available, self.disk);
        // Each of these takes long, and moves little.
        let rounds = self.runs.min(3);
        let all = self.rounds(Section::Memory, rounds, 6, |executor| {
            let files = disk();
            let first = executor.start(&["wait"])?;
            let files = disk().saturating_sub(files);
            rest(times.rest, stop)?;
            let before = first.usage()?;
            rest(times.watch, stop)?;
            let usage = first.usage()?;
            let busy = (usage.cpu.saturating_sub(before.cpu)).as_secs_f64() / times.watch.as_secs_f64();
            let free = available();
            let more = (0..AT_ONCE).map(|_| executor.start(&["wait"])).collect::<Result<Vec<_>, _>>()?;
            rest(times.rest, stop)?;
            let fall = free.saturating_sub(available()) as f64 / more.len() as f64;
            Ok(vec![
                mebibytes(usage.pss as f64),
                mebibytes(fall),
                usage.processes as f64,
                usage.threads as f64,
                busy * 1000.0,
                files as f64 / 1024.0,
            ])
        });
        let names = [
            ("pss", "memory of all its processes (Pss)", Unit::Mebibytes),
            ("available", "fall of MemAvailable for each of 8 more", Unit::Mebibytes),
            ("processes", "processes on this machine", Unit::Count),
            ("threads", "their threads", Unit::Count),
            ("cpu", "processor time in a second of idling", Unit::Milliseconds),
            ("files", "files of one more instance", Unit::Kibibytes),
        ];
        self.measures(Section::Memory, names, all, found);
        let all = self.given_back();
        let names = [
            ("freed_1s", "memory 1 s after it freed 256 MiB (Pss)", Unit::Mebibytes),
            ("freed_10s", "10 s after", Unit::Mebibytes),
            ("freed_60s", "60 s after", Unit::Mebibytes),
        ];
        self.measures(Section::Memory, names, all, found);
    }

    /// What instances hold that took memory and freed it. All of them wait at once, since waiting is most of it.
    fn given_back(&mut self) -> Vec<Samples> {
        let Times { hold, looks: after, .. } = self.times;
        let seconds = hold.to_string();
        let mut all = Vec::new();
        let mut instances = Vec::new();
        let mut looks = Vec::new();
        for (place, executor) in self.peers.iter_mut().enumerate() {
            let Peer { name, missing, .. } = executor.peer();
            (self.progress)(Section::Memory, &name, 0, after.len());
            let started = match missing {
                Some(why) => Err(why),
                None => executor.start(&["hold", HELD_MIB, &seconds]),
            };
            let (instance, failure) = match started {
                Ok(instance) => {
                    let freed = Instant::now() + Duration::from_secs(hold.into());
                    looks.extend(after.map(|after| (freed + after, place)));
                    (Some(instance), None)
                }
                Err(why) => (None, Some(why)),
            };
            instances.push(instance);
            all.push(Samples { of: vec![Vec::new(); after.len()], failure });
        }
        looks.sort_by_key(|(time, _)| *time);
        for (time, place) in looks {
            let (Some(instance), Some(samples)) = (&instances[place], all.get_mut(place)) else { continue };
            if samples.failure.is_some() {
                continue;
            }
            let looked = rest(time.saturating_duration_since(Instant::now()), self.stop)
                .and_then(|()| instance.usage());
            match (looked, samples.of.iter_mut().find(|figures| figures.is_empty())) {
                (Ok(usage), Some(figures)) => figures.push(mebibytes(usage.pss as f64)),
                (Ok(_), None) => {}
                (Err(why), _) => samples.failure = Some(why),
            }
        }
        all
    }

    fn density(&mut self, found: &mut Found) {
        let (most, budget) = self.density;
        let mut all = Vec::new();
        for executor in &mut self.peers {
            let Peer { name, missing, .. } = executor.peer();
            if missing.is_some() {
                all.push(Samples { of: vec![Vec::new(); 3], failure: missing });
                continue;
            }
            let free = (self.available)();
            let start = Instant::now();
            let mut instances: Vec<Box<dyn Instance>> = Vec::new();
            let mut points = Vec::new();
            let mut failure = None;
            let end = loop {
                let taken = free.saturating_sub((self.available)());
                if (self.stop)() {
                    break "interrupted".to_owned();
                }
                if instances.len() == most {
                    break format!("{most} were enough");
                }
                if start.elapsed() >= budget {
                    break format!("{} s were over", budget.as_secs());
                }
                if taken >= free / 5 * 4 {
                    break "80 % of the available memory was taken".to_owned();
                }
                (self.progress)(Section::Density, &name, instances.len(), most);
                match executor.start(&["wait"]) {
                    Ok(instance) => instances.push(instance),
                    Err(why) => {
                        failure = Some(why.clone());
                        break why;
                    }
                }
                let taken = free.saturating_sub((self.available)());
                points.push((start.elapsed().as_secs_f64(), mebibytes(taken as f64)));
            };
            let figures = match (points.last(), points.get(points.len() / 2)) {
                (Some(last), Some(half)) => {
                    let later = (points.len() - points.len() / 2 - 1).max(1) as f64;
                    let slope = (last.1 - half.1).max(0.0) / later;
                    [points.len() as f64, points.len() as f64 / last.0, slope].map(|one| vec![one]).into()
                }
                _ => vec![Vec::new(); 3],
            };
            all.push(Samples { of: figures, failure });
            found.curves.push(Curve { peer: name, points, end });
            // Every instance ends here, before the next peer begins.
            drop(instances);
        }
        let names = [
            ("count", "instances at once, when it was stopped", Unit::Instances),
            ("rate", "started per second, one after another", Unit::PerSecond),
            ("marginal", "fall of MemAvailable for one more, in the second half", Unit::Mebibytes),
        ];
        self.measures(Section::Density, names, all, found);
    }

    /// Loads that measure themselves.
    fn work(&mut self, found: &mut Found, section: Section, loads: &[(&str, &str)]) {
        for (load, label) in loads {
            let all = self.rounds(section, self.runs.min(10), 1, |executor| {
                let run = executor.run(&[load])?;
                let figure = run.output.trim().strip_prefix("ns=").and_then(|text| text.parse().ok());
                figure.map(|figure| vec![figure]).ok_or_else(|| format!("it says {:?}", run.output))
            });
            self.measures(section, [(*load, *label, Unit::Nanoseconds)], all, found);
        }
    }

    fn exits(&mut self, found: &mut Found) {
        for executor in &mut self.peers {
            let Peer { name, missing, .. } = executor.peer();
            if missing.is_some() || (self.stop)() {
                continue;
            }
            // One that fails has its row among the figures.
            let Ok(Some(details)) = executor.details(&["cpu"]) else { continue };
            let seconds: f64 = details.phases.iter().map(|(_, milliseconds)| milliseconds / 1e3).sum();
            if seconds > 0.0 && !details.exits.is_empty() {
                let rate = |(reason, count): (String, f64)| (reason, count / seconds);
                found
                    .exits
                    .push(Exits { peer: name, per_second: details.exits.into_iter().map(rate).collect() });
            }
        }
    }

    fn isolation(&mut self, found: &mut Found) {
        const SHOWN: [(&str, &str); 15] = [
            ("kernel", "kernel"),
            ("boot_id", "boot id"),
            ("pid", "the load's process id"),
            ("processes", "processes in /proc"),
            ("host_name", "host name"),
            ("ns_pid", "process namespace"),
            ("ns_mnt", "mount namespace"),
            ("ns_net", "network namespace"),
            ("ns_user", "user namespace"),
            ("capabilities", "effective capabilities"),
            ("seccomp", "system-call filter"),
            ("no_new_privs", "no_new_privs"),
            ("kernel_parameters", "entries of /proc/sys/kernel"),
            ("sys_devices", "network devices in /sys"),
            ("kernel_log", "the kernel's log"),
        ];
        let mut facts: Vec<Fact> =
            SHOWN.map(|(_, label)| Fact { label: label.into(), values: Vec::new() }).into();
        for executor in &mut self.peers {
            let Peer { name, missing, .. } = executor.peer();
            (self.progress)(Section::Isolation, &name, 0, 1);
            let seen = match missing {
                Some(why) => Err(why),
                None if (self.stop)() => Err("interrupted".into()),
                None => executor.run(&["see"]).map(|run| run.output),
            };
            for (number, ((key, _), fact)) in SHOWN.iter().zip(&mut facts).enumerate() {
                fact.values.push(match &seen {
                    Ok(output) => value(output, key),
                    Err(why) if number == 0 => format!("not seen: {why}"),
                    Err(_) => "not seen".into(),
                });
            }
        }
        found.facts.extend(facts);
    }
}

/// What `KEY=VALUE` lines say of a key, in words where the kernel has a number for them.
fn value(output: &str, key: &str) -> String {
    let value = output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    match (key, value) {
        (_, None) => "not seen".into(),
        ("seccomp", Some("0")) => "no filter yet".into(),
        ("seccomp", Some("2")) => "a filter".into(),
        (_, Some(value)) => value.to_owned(),
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

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::super::executor::{Details, Run, Usage};
    use super::super::stats::Summary;
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    /// Takes as long as it is told, by a list that begins again at its end, and notes when it is asked.
    struct Fake {
        name: &'static str,
        times: Vec<u64>,
        asked: usize,
        calls: Rc<RefCell<Vec<&'static str>>>,
        alive: Rc<Cell<usize>>,
        fails_at: Option<usize>,
    }

    struct FakeInstance(Rc<Cell<usize>>);

    impl Instance for FakeInstance {
        fn usage(&self) -> Result<Usage, String> {
            Ok(Usage { pss: 10 << 20, processes: 2, threads: 3, cpu: Duration::ZERO })
        }
    }

    impl Drop for FakeInstance {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }

    impl Executor for Fake {
        fn peer(&self) -> Peer {
            let missing = (self.name == "absent").then(|| "it is not installed".to_owned());
            Peer { name: self.name.into(), version: "1".into(), how: String::new(), missing }
        }

        fn run(&mut self, load: &[&str]) -> Result<Run, String> {
            self.calls.borrow_mut().push(self.name);
            if self.fails_at == Some(self.asked) {
                return Err("it broke".into());
            }
            let time = Duration::from_millis(self.times[self.asked % self.times.len()]);
            self.asked += 1;
            let output = match load {
                ["see"] => "kernel=6\nseccomp=0\n".to_owned(),
                _ => format!("ns={}\n", time.as_millis()),
            };
            Ok(Run { first_output: time / 2, exit: time, output })
        }

        fn details(&mut self, load: &[&str]) -> Result<Option<Details>, String> {
            let phases = vec![("a".into(), 100.0), ("b".into(), 400.0)];
            let exits = vec![("exits".into(), if load == ["cpu"] { 50.0 } else { 0.0 })];
            Ok((self.name == "bothy").then_some(Details { phases, exits }))
        }

        fn start(&mut self, _load: &[&str]) -> Result<Box<dyn Instance>, String> {
            self.alive.set(self.alive.get() + 1);
            Ok(Box::new(FakeInstance(self.alive.clone())))
        }
    }

    struct World {
        calls: Rc<RefCell<Vec<&'static str>>>,
        alive: Rc<Cell<usize>>,
    }

    impl World {
        fn new() -> Self {
            Self { calls: Rc::default(), alive: Rc::default() }
        }

        fn fake(&self, name: &'static str, times: &[u64]) -> Fake {
            let (calls, alive) = (self.calls.clone(), self.alive.clone());
            Fake { name, times: times.into(), asked: 0, calls, alive, fails_at: None }
        }

        fn measure(&self, peers: Vec<Fake>, runs: usize, sections: &[Section], stop_after: usize) -> Found {
            let asked = Cell::new(0);
            let stop = || {
                asked.set(asked.get() + 1);
                asked.get() > stop_after
            };
            // 1 GiB, of which each instance takes 20 MiB.
            let alive = self.alive.clone();
            let available = move || (1 << 30) - alive.get() as u64 * (20 << 20);
            let alive = self.alive.clone();
            let disk = move || 1_000_000 + alive.get() as u64 * 2048;
            Bench {
                peers: peers.into_iter().map(|peer| Box::new(peer) as Box<dyn Executor>).collect(),
                runs,
                density: (100, Duration::from_secs(5)),
                times: Times { rest: SHORT, watch: SHORT, hold: 0, looks: [SHORT; 3] },
                stop: &stop,
                progress: &|_, _, _, _| {},
                available: &available,
                disk: &disk,
            }
            .run(sections)
        }
    }

    fn of<'a>(found: &'a Found, id: &str) -> &'a Measure {
        found.measures.iter().find(|measure| measure.id == id).unwrap()
    }

    #[test]
    fn runs_are_interleaved_after_a_warm_up_and_no_sample_is_lost() {
        let world = World::new();
        // The first run is the warm-up's; an outlier stays.
        let peers = vec![
            world.fake("bothy", &[900, 10, 20, 30, 500]),
            world.fake("absent", &[1]),
            world.fake("runc", &[5]),
        ];
        let found = world.measure(peers, 4, &[Section::Startup], usize::MAX);
        assert_eq!(world.calls.borrow()[..6], ["bothy", "runc", "bothy", "runc", "bothy", "runc"]);
        let exit = of(&found, "startup.exit");
        assert_eq!(exit.rows[0].samples, [10.0, 20.0, 30.0, 500.0]);
        assert_eq!(of(&found, "startup.first_output").rows[0].samples, [5.0, 10.0, 15.0, 250.0]);
        assert_eq!(exit.rows[1].samples, [0.0; 0]);
        assert_eq!(exit.rows[1].failure.as_deref(), Some("it is not installed"));
        assert_eq!((exit.rows[2].samples.len(), &exit.rows[2].failure), (4, &None));
        assert_eq!(Summary::of(&exit.rows[0].samples).unwrap().median, 25.0);
    }

    #[test]
    fn a_peer_that_fails_keeps_its_samples_and_says_why() {
        let world = World::new();
        let peers = vec![world.fake("bothy", &[10]), Fake { fails_at: Some(3), ..world.fake("runc", &[5]) }];
        let found = world.measure(peers, 5, &[Section::Startup], usize::MAX);
        let rows = &of(&found, "startup.exit").rows;
        assert_eq!((rows[1].samples.len(), rows[1].failure.as_deref()), (2, Some("it broke")));
        assert_eq!(rows[0].samples.len(), 5);
    }

    #[test]
    fn a_wish_to_stop_leaves_what_there_is() {
        let world = World::new();
        let found = world.measure(vec![world.fake("bothy", &[10])], 20, &[Section::Startup, Section::Cpu], 6);
        assert!(found.interrupted);
        let row = &of(&found, "startup.exit").rows[0];
        assert_eq!((row.samples.len(), row.failure.as_deref()), (5, Some("interrupted")));
        assert_eq!(of(&found, "cpu.cpu").rows[0].samples, [0.0; 0]);
    }

    #[test]
    fn density_ends_at_four_fifths_of_the_memory_and_every_instance_ends() {
        let world = World::new();
        let found = world.measure(
            vec![world.fake("bothy", &[1]), world.fake("absent", &[1])],
            1,
            &[Section::Density],
            usize::MAX,
        );
        assert_eq!(world.alive.get(), 0);
        let count = &of(&found, "density.count").rows;
        // 41 of 20 MiB are the first to be 80 % of 1 GiB.
        assert_eq!(
            (count[0].samples.as_slice(), count[1].failure.as_deref()),
            (&[41.0][..], Some("it is not installed"))
        );
        assert_eq!(of(&found, "density.marginal").rows[0].samples, [20.0]);
        assert_eq!(found.curves[0].points.len(), 41);
        assert!(found.curves[0].end.contains("80 %"), "{}", found.curves[0].end);
    }

    #[test]
    fn an_idle_instance_is_looked_at_from_all_sides() {
        let world = World::new();
        let found = world.measure(
            vec![world.fake("bothy", &[1]), world.fake("absent", &[1])],
            1,
            &[Section::Memory],
            usize::MAX,
        );
        let figure = |id: &str| of(&found, id).rows[0].samples.clone();
        assert_eq!((figure("memory.pss"), figure("memory.available")), (vec![10.0], vec![20.0]));
        assert_eq!((figure("memory.processes"), figure("memory.threads")), (vec![2.0], vec![3.0]));
        assert_eq!((figure("memory.files"), figure("memory.freed_60s")), (vec![2.0], vec![10.0]));
        assert_eq!(world.alive.get(), 0);
    }

    #[test]
    fn loads_say_their_own_figures_and_facts_are_words() {
        let world = World::new();
        let peers = vec![world.fake("bothy", &[70]), world.fake("absent", &[1])];
        let found = world.measure(peers, 3, &[Section::Cpu, Section::Isolation], usize::MAX);
        assert_eq!(of(&found, "cpu.cpu").rows[0].samples, [70.0; 3]);
        assert_eq!(found.exits, [Exits { peer: "bothy".into(), per_second: vec![("exits".into(), 100.0)] }]);
        let fact = |label: &str| &found.facts.iter().find(|fact| fact.label == label).unwrap().values;
        assert_eq!(fact("kernel"), &["6", "not seen: it is not installed"]);
        assert_eq!(fact("system-call filter")[0], "no filter yet");
        assert_eq!(fact("boot id")[0], "not seen");
    }
}
