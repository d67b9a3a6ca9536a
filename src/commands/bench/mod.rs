//! `bothy bench`: the same load by bothy, by containers and as a plain process, and reports of it.
//!
//! The image is the user's, or one with nothing in it that is made here; the load is lent to it, so
//! it is the same file everywhere.
//!
//! ```text
//! machines -> { work, network }            bothy's, QEMU's, and a plain process
//! engines -> bundle, work                  runc, crun, podman, docker
//! work -> network                          the files of a measurement, and its network
//! ```

mod bundle;
mod engines;
mod machines;
mod network;
mod qemu;
mod work;

pub(super) use self::qemu::Qemu;
use std::cell::Cell;
use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use self::work::Work;
use super::{Failure, images, print, say};
use crate::bench::executor::Executor;
use crate::bench::results::{Results, Section, VERSION};
use crate::bench::sections::{Bench, Times};
use crate::bench::stats::FEW;
use crate::bench::{cache, machine, report, watch};
use crate::cli::{BenchArgs, Engine};
use crate::sys::signals;

/// Most instances at once.
const MOST_INSTANCES: usize = 100;
/// How long a peer may take to start them, and where runs are few.
const DENSITY: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(10)];
/// What a shell calls a command that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Measures, or reads what was measured, and reports.
pub(super) fn bench(args: &BenchArgs) -> Result<u8, Failure> {
    let results = match &args.from {
        Some(path) => read(path)?,
        None => measure(args)?,
    };
    // Files first: a terminal may be gone.
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&results).context("can't write JSON")?;
        write(path, &(text + "\n"))?;
    }
    if let Some(path) = &args.markdown {
        write(path, &report::markdown(&results))?;
    }
    if let Some(path) = &args.html {
        write(path, &report::html(&results))?;
    }
    print(&report::terminal(&results))?;
    Ok(if results.interrupted && args.from.is_none() { INTERRUPTED } else { 0 })
}

/// What is compared, bothy first.
fn peers(work: &Work, against: &[Engine]) -> Vec<Box<dyn Executor>> {
    let mut peers: Vec<Box<dyn Executor>> =
        vec![Box::new(machines::own(work)), Box::new(machines::process(work))];
    for engine in against {
        // There will be nothing to compare.
        if signals::end_is_wished() {
            break;
        }
        let program = match engine {
            Engine::Runc | Engine::Crun => engines::runtime(work, engine.name()),
            Engine::Podman => engines::podman(work),
            Engine::Docker => engines::docker(work),
            Engine::Qemu => machines::qemu(work),
        };
        peers.push(Box::new(program));
    }
    peers
}

fn read(path: &Path) -> anyhow::Result<Results> {
    let text = fs::read(path).with_context(|| format!("--from: can't read {}", path.display()))?;
    let json: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("--from: {} is not JSON", path.display()))?;
    match json.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            bail!("--from: {} has version {version}, and this bothy reads {VERSION}", path.display())
        }
        None => bail!("--from: {} is not what bothy bench --json writes", path.display()),
    }
    serde_json::from_value(json).with_context(|| format!("--from: {} is damaged", path.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

fn measure(args: &BenchArgs) -> anyhow::Result<Results> {
    for path in [&args.json, &args.markdown, &args.html].into_iter().flatten() {
        // Said before the measurement, and not after it.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !dir.is_dir() {
            bail!("can't write {}: there is no {}", path.display(), dir.display());
        }
    }
    let (start, started) = (Instant::now(), SystemTime::now());
    let mut host = machine::host();
    // Whoever doesn't want to wait for a download ends it as ever.
    let image = args.image.as_deref().map(work::given).transpose()?;
    signals::watch_for_ends().context("can't take signals")?;
    let progress = Progress::new();
    progress.prepare();
    let sections = if args.only.is_empty() { Section::ALL.to_vec() } else { args.only.clone() };
    let work = Work::make(image, sections.contains(&Section::Net))?;
    let peers = peers(&work, &args.against);
    let tell = |section: Section, peer: &str, done: usize, of: usize| progress.tell(section, peer, done, of);
    let available = || machine::available().unwrap_or(0);
    let mut bench = Bench {
        peers,
        runs: args.runs,
        density: (MOST_INSTANCES, DENSITY[usize::from(args.runs < FEW)]),
        times: Times::REAL,
        stop: &signals::end_is_wished,
        progress: &tell,
        available: &available,
        evict: &cache::evict,
        watch: &|instance| watch::watch(instance, work.dir()),
    };
    let found = bench.run(&sections);
    let peers = bench.peers.iter().map(|peer| peer.peer()).collect();
    drop(bench);
    progress.end();
    host.load[1] = machine::load();
    Ok(Results {
        version: VERSION,
        bothy: env!("CARGO_PKG_VERSION").into(),
        started: images::rfc3339(images::seconds(started)),
        seconds: start.elapsed().as_secs_f64(),
        interrupted: found.interrupted,
        image: work.image().to_owned(),
        runs: args.runs,
        host,
        peers,
        measures: found.measures,
        phases: found.phases,
        exits: found.exits,
        stacks: found.stacks,
        curves: found.curves,
        facts: found.facts,
    })
}

/// What is measured now: a bar on a terminal, and a line for each section anywhere else.
struct Progress {
    bar: ProgressBar,
    section: Cell<Option<Section>>,
}

impl Progress {
    fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{msg:22} {bar:30} {pos}/{len}");
        bar.set_style(style.expect("the template is well-formed"));
        Self { bar, section: Cell::new(None) }
    }

    fn prepare(&self) {
        if self.bar.is_hidden() {
            say("bothy: preparing: files, a network, one try of each peer");
        }
        self.bar.set_message("preparing");
    }

    fn tell(&self, section: Section, peer: &str, done: usize, of: usize) {
        if self.bar.is_hidden() {
            if self.section.replace(Some(section)) != Some(section) {
                say(&format!("bothy: measuring {}", section.name()));
            }
            return;
        }
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(format!("{}: {peer}", section.name()));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
