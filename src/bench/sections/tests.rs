use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::*;
use crate::bench::executor::{Details, Instance, Parts, Run, Usage};
use crate::bench::stats::Summary;

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
        Ok(Usage { pss: 10 << 20, shared: 3 << 20, processes: 2, threads: 3, cpu: Duration::ZERO })
    }

    fn parts(&self) -> Result<Parts, String> {
        Ok(Parts { guest: Some((64 << 20, 8 << 20)), processes: vec![("vmm".into(), 2 << 20)] })
    }

    fn processes(&self) -> Result<Vec<u32>, String> {
        Ok(vec![1, 2])
    }

    fn hear(&mut self, line: &str) -> Result<String, String> {
        // 2 MiB are of programs. 59 are free, of which 56 were never touched.
        match line {
            "programs_kib=" => Ok("2048".into()),
            "free_kib=" => Ok((59 << 10).to_string()),
            "freed" => Ok(String::new()),
            _ => Err(format!("it doesn't say {line}")),
        }
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
            ["net"] => format!("round_trip_ns={}\nout_mibs=7\nin_mibs=8\n", time.as_millis()),
            _ => format!("cpu_ns={}\n", time.as_millis()),
        };
        Ok(Run { first_output: time / 2, exit: time, output })
    }

    fn files(&self) -> Vec<PathBuf> {
        if self.name == "process" { Vec::new() } else { vec!["/a".into()] }
    }

    fn kept(&self) -> Result<u64, String> {
        Ok(1_000_000 + self.alive.get() as u64 * 2048)
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
        Bench {
            peers: peers.into_iter().map(|peer| Box::new(peer) as Box<dyn Executor>).collect(),
            runs,
            density: (100, Duration::from_secs(5)),
            times: Times { rest: SHORT, watch: SHORT, hold: SHORT, apart: SHORT, looks: [SHORT; 3] },
            stop: &stop,
            progress: &|_, _, _, _| {},
            available: &available,
            evict: &|files| if files.is_empty() { Err("no files".into()) } else { Ok(12.5) },
            watch: &|instance| {
                let filters = instance
                    .processes()
                    .unwrap_or_default()
                    .into_iter()
                    .map(|pid| (format!("p{pid}"), (pid == 2).then_some(300)));
                let calls = [("read".to_owned(), 3), ("ioctl".to_owned(), 40)].into();
                Ok(Watched { filters: filters.collect(), calls: Ok(calls), done: "29".into() })
            },
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
fn a_cold_start_tells_what_stayed_in_memory() {
    let world = World::new();
    let found = world.measure(
        vec![world.fake("bothy", &[100]), world.fake("process", &[50])],
        2,
        &[Section::Startup],
        usize::MAX,
    );
    assert_eq!(of(&found, "startup.cold_exit").rows[0].samples, [100.0; 2]);
    assert_eq!(of(&found, "startup.cold_left").rows[0].samples, [12.5; 2]);
    let process = &of(&found, "startup.cold_exit").rows[1];
    assert_eq!((process.samples.len(), process.failure.as_deref()), (0, Some("no files")));
}

#[test]
fn memory_is_divided_by_what_a_guest_says() {
    let world = World::new();
    let found = world.measure(
        vec![world.fake("bothy", &[1]), world.fake("absent", &[1])],
        1,
        &[Section::Memory],
        usize::MAX,
    );
    let parts =
        [("guest's kernel", 3.0), ("guest's programs", 2.0), ("freed by the guest", 3.0), ("vmm", 2.0)];
    let parts = parts.map(|(name, mib)| (name.to_owned(), mib)).into();
    assert_eq!(found.stacks, [Stack { peer: "bothy".into(), parts }]);
    let kernel = of(&found, "memory.guest_kernel");
    assert_eq!(kernel.rows[0].samples, [3.0]);
    assert_eq!(kernel.rows[1].failure.as_deref(), Some("it is not installed"));
}

#[test]
fn what_shows_outside_is_told_in_a_line() {
    let world = World::new();
    let found = world.measure(
        vec![world.fake("bothy", &[1]), world.fake("absent", &[1])],
        1,
        &[Section::Isolation],
        usize::MAX,
    );
    let fact = |label: &str| &found.facts.iter().find(|fact| fact.label.starts_with(label)).unwrap().values;
    assert_eq!(fact("system calls that its processes")[0], "p1: no filter yet; p2: 300 of 375");
    assert_eq!(
        fact("system calls seen here"),
        &["2 kinds, 43 calls: ioctl, read; 29 of 30 done", "not seen"]
    );
}

#[test]
fn a_load_may_say_several_figures() {
    let world = World::new();
    let found = world.measure(vec![world.fake("bothy", &[70])], 3, &[Section::Net], usize::MAX);
    let figure = |id: &str| of(&found, id).rows[0].samples.clone();
    assert_eq!(
        (figure("net.round_trip"), figure("net.out"), figure("net.in")),
        (vec![70.0; 2], vec![7.0; 2], vec![8.0; 2])
    );
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
