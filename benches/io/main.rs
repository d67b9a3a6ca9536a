//! How fast disks and networks are, beside QEMU: the same kernel and guest, all machines at once,
//! each job in each of them in turn.
//!
//! `benches/run io` builds what is needed and calls this with the name of the host.
//! `BOTHY_BENCH_ROUNDS`, `BOTHY_BENCH_SECONDS`, `BOTHY_BENCH_ROWS` (words that a row's name must
//! contain one of, with commas) and `BOTHY_BENCH_MACHINES` (names, with commas; QEMU q35 must be
//! one) make it shorter or longer. `BOTHY_BENCH_OTHER` is another build of bothy, which runs every
//! row as well (a path inside the repository).

mod guest;
mod host;
#[path = "../support/ip.rs"]
mod ip;
mod machines;
#[path = "../support/target.rs"]
mod target;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use bothy::bench::stats::{Interval, Ratio, Summary};

use host::Used;
use machines::{Kind, Machine, Parts};
use target::print_target;

/// Rounds: each is every job once in every machine.
const ROUNDS: usize = 10;
/// Seconds of each job.
const SECONDS: u64 = 2;

struct Row {
    name: &'static str,
    /// Whether it is of a network, and not of a disk.
    network: bool,
    /// Whether it is of the machines with four processors and four queues.
    four: bool,
    job: String,
    /// Counts of a second by which processor time and exits are divided: the result's own unit over
    /// this.
    unit: f64,
}

/// One job in one machine.
#[derive(Clone, Copy)]
struct Sample {
    rate: f64,
    /// Seconds of processor time for each unit.
    cpu: f64,
    exits: f64,
}

fn rows(seconds: u64, port: u16) -> Vec<Row> {
    let disk = |name, device: &str, words: &str| Row {
        name,
        network: false,
        four: false,
        job: format!("disk {device} {seconds} {words}"),
        unit: 1.0,
    };
    let network = |name, job: String, unit| Row { name, network: true, four: false, job, unit };
    // Packets of a full size each.
    let packet = 1500.0 * 8.0;
    let stream = |words: &str| format!("stream {seconds} {words}");
    vec![
        disk("4k random read, depth 1", "vdb", "--rw=randread --bs=4k --iodepth=1"),
        disk("4k random read, depth 32", "vdb", "--rw=randread --bs=4k --iodepth=32"),
        disk("4k random write, depth 1", "vdb", "--rw=randwrite --bs=4k --iodepth=1"),
        disk("4k random write, depth 32", "vdb", "--rw=randwrite --bs=4k --iodepth=32"),
        disk("4k random write, depth 1, fsync", "vdb", "--rw=randwrite --bs=4k --iodepth=1 --fsync=1"),
        disk("4k random write, depth 32, fsync", "vdb", "--rw=randwrite --bs=4k --iodepth=32 --fsync=32"),
        disk("1 MiB read", "vdb", "--rw=read --bs=1M --iodepth=4"),
        disk("1 MiB write", "vdb", "--rw=write --bs=1M --iodepth=4"),
        disk("1 MiB write, fsync", "vdb", "--rw=write --bs=1M --iodepth=4 --fsync=4"),
        disk("cache=none: 4k random read, depth 1", "vdc", "--rw=randread --bs=4k --iodepth=1"),
        disk("cache=none: 4k random read, depth 32", "vdc", "--rw=randread --bs=4k --iodepth=32"),
        disk("cache=none: 4k random write, depth 32", "vdc", "--rw=randwrite --bs=4k --iodepth=32"),
        network("TCP out, 1 stream", stream(""), packet),
        network("TCP out, 4 streams", stream("--parallel 4"), packet),
        network("TCP in, 1 stream", stream("--reverse"), packet),
        network("TCP in, 4 streams", stream("--reverse --parallel 4"), packet),
        network("request and response", format!("turns {seconds} {port}"), 1.0),
        Row { four: true, ..network("4 queues: TCP out, 4 streams", stream("--parallel 4"), packet) },
        Row {
            four: true,
            ..disk(
                "4 queues: 4k random read, 4 x depth 8",
                "vdb",
                "--rw=randread --bs=4k --iodepth=8 --numjobs=4 --group_reporting",
            )
        },
    ]
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [host] = words.as_slice() else { panic!("usage: io HOST; use benches/run") };
    let dir = |name: &str| PathBuf::from(std::env::var_os(name).expect("use benches/run"));
    let work = dir("BOTHY_BENCH_DIR");
    let seconds = number("BOTHY_BENCH_SECONDS", SECONDS);
    let rounds = usize::try_from(number("BOTHY_BENCH_ROUNDS", ROUNDS as u64)).expect("a small number");
    let disks = Ext4::make(&work);
    let parts = Parts {
        bothy: work.join("bothy"),
        other_bothy: std::env::var_os("BOTHY_BENCH_OTHER").map(PathBuf::from),
        kernel: dir("BOTHY_GUEST_DIR").join("vmlinux"),
        root: guest::build(&work),
        disks: disks.mount.clone(),
    };
    let mut rows = rows(seconds, host::echo());
    if let Ok(words) = std::env::var("BOTHY_BENCH_ROWS") {
        rows.retain(|row| words.split(',').any(|word| row.name.contains(word)));
    }

    let started = |all: &[(Kind, u16)], from: u8| -> Vec<Machine> {
        (from..)
            .zip(all)
            .map(|(number, (kind, processors))| Machine::start(*kind, *processors, number, &parts))
            .collect()
    };
    let has = |network, four| rows.iter().any(|row| (row.network, row.four) == (network, four));
    let mut kinds = vec![(Kind::Bothy, 1), (Kind::BothyMmio, 1), (Kind::Q35, 1), (Kind::Microvm, 1)];
    kinds.extend(has(true, false).then_some((Kind::Vhost, 1)));
    if let Ok(words) = std::env::var("BOTHY_BENCH_MACHINES") {
        kinds.retain(|(kind, _)| words.split(',').any(|word| kind.name() == word));
    }
    let mut fours = vec![(Kind::Bothy, 4), (Kind::Q35, 4)];
    if parts.other_bothy.is_some() {
        kinds.insert(1, (Kind::OtherBothy, 1));
        fours.insert(1, (Kind::OtherBothy, 4));
    }
    let mut ones = if has(false, false) || has(true, false) { started(&kinds, 1) } else { Vec::new() };
    let mut fours = if has(false, true) || has(true, true) { started(&fours, 11) } else { Vec::new() };

    let mut results: Vec<Vec<(Kind, Vec<Sample>)>> = rows.iter().map(|_| Vec::new()).collect();
    let mut busy = Vec::new();
    // The first round warms up.
    for round in 0..=rounds {
        for (row, results) in rows.iter().zip(&mut results) {
            let machines = if row.four { &mut fours } else { &mut ones };
            for machine in machines.iter_mut().filter(|m| m.kind != Kind::Vhost || row.network) {
                let threads = host::thread_times(machine.pid);
                let sample = measure(row, machine, seconds);
                if !row.network && row.four && machine.kind == Kind::Bothy {
                    busy.push(busy_queues(&threads, &host::thread_times(machine.pid)));
                }
                if round == 0 {
                    results.push((machine.kind, Vec::new()));
                } else {
                    let own = results.iter_mut().find(|(kind, _)| *kind == machine.kind);
                    own.expect("it was in the first round").1.push(sample);
                }
            }
        }
        eprintln!("io: round {round} of {rounds}");
    }
    drop((ones, fours));
    report(&rows, &results, host, rounds, seconds);
    if let Some(least) = busy.iter().min() {
        let figure = format!("{least} in the worst of {} runs", busy.len());
        print_target(
            &format!("threads of a disk's queues that worked, {host}"),
            &figure,
            "at least 2",
            *least >= 2,
        );
    }
    ExitCode::SUCCESS
}

fn measure(row: &Row, machine: &mut Machine, seconds: u64) -> Sample {
    let before = Used::by(machine.pid);
    let rate = machine.work(&row.job, Duration::from_secs(seconds));
    let after = Used::by(machine.pid);
    let units = rate / row.unit * seconds as f64;
    Sample { rate, cpu: (after.cpu - before.cpu) / units, exits: (after.exits - before.exits) / units }
}

/// How many threads of queues used more than a hundredth of a second.
fn busy_queues(before: &[(String, f64)], after: &[(String, f64)]) -> usize {
    let of = |times: &[(String, f64)], name: &str| {
        times.iter().find(|(other, _)| other == name).map_or(0.0, |(_, time)| *time)
    };
    after.iter().filter(|(name, time)| name.contains(".q") && time - of(before, name) > 0.01).count()
}

fn report(rows: &[Row], results: &[Vec<(Kind, Vec<Sample>)>], host: &str, rounds: usize, seconds: u64) {
    println!(
        "\nDisks and networks, {host}: {rounds} rounds of {seconds} s, interleaved; medians. Rates in a second; processor time of the VMM without the guest, in us, and exits, for each I/O (for streams, for each 1500 bytes)"
    );
    println!(
        "{:<40}{:<12}{:>12}{:>24}{:>10}{:>24}{:>9}",
        "", "", "rate", "ratio to q35 [95 %]", "CPU", "ratio to q35 [95 %]", "exits"
    );
    let mut ratios = Vec::new();
    let mut cpu_ratios: Vec<(bool, f64)> = Vec::new();
    let mut low: Vec<&str> = Vec::new();
    let mut costly: Vec<&str> = Vec::new();
    for (row, results) in rows.iter().zip(results) {
        let of = |kind: Kind, value: fn(&Sample) -> f64| -> Option<Vec<f64>> {
            let (_, samples) = results.iter().find(|(other, _)| *other == kind)?;
            Some(samples.iter().map(value).collect())
        };
        for (kind, _) in results {
            let (rate, cpu, exits) = (of(*kind, |s| s.rate), of(*kind, |s| s.cpu), of(*kind, |s| s.exits));
            let median = |figures: &Option<Vec<f64>>| {
                figures.as_deref().and_then(Summary::of).expect("figures of runs").median
            };
            let ratio = |own: &Option<Vec<f64>>, base: Option<Vec<f64>>| {
                Ratio::of(own.as_deref().expect("figures"), &base.expect("q35 runs every row"))
            };
            let text = |ratio: &Option<Ratio>| {
                ratio.as_ref().map_or("-".to_owned(), |ratio| {
                    let Interval { from, to } = ratio.interval;
                    format!("{:.2} [{from:.2}, {to:.2}]", ratio.value)
                })
            };
            let rates = ratio(&rate, of(Kind::Q35, |s| s.rate));
            let cpus = ratio(&cpu, of(Kind::Q35, |s| s.cpu));
            if *kind == Kind::Bothy {
                if let Some(ratio) = &rates {
                    ratios.push(ratio.value);
                    if ratio.interval.from < 0.95 {
                        low.push(row.name);
                    }
                }
                let goal = if row.network { 1.0 } else { 0.8 };
                let cost = cpus.as_ref().map_or(f64::INFINITY, |ratio| ratio.value);
                cpu_ratios.push((row.network, cost));
                if cost > goal {
                    costly.push(row.name);
                }
            }
            let (name, rate_ratio, cpu_ratio) = if *kind == Kind::Q35 {
                ("", "1".to_owned(), "1".to_owned())
            } else {
                (if *kind == Kind::Bothy { row.name } else { "" }, text(&rates), text(&cpus))
            };
            println!(
                "{name:<40}{:<12}{:>12.0}{rate_ratio:>24}{:>10.1}{cpu_ratio:>24}{:>9.2}",
                kind.name(),
                median(&rate),
                median(&cpu) * 1e6,
                median(&exits),
            );
        }
    }
    targets(host, &ratios, &cpu_ratios, &low, &costly);
}

fn targets(host: &str, ratios: &[f64], cpu: &[(bool, f64)], low: &[&str], costly: &[&str]) {
    let print = |what: &str, figure: &str, goal: &str, met: bool| {
        print_target(&format!("{what}, {host}"), figure, goal, met);
    };
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    print(
        "rate of every row, with its interval",
        &format!("least {least:.2}; {} of {} rows below", low.len(), ratios.len()),
        "0.95 of q35",
        low.is_empty(),
    );
    for row in low {
        println!("  below: {row}");
    }
    let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
    print("rate, geometric mean", &format!("{mean:.2}"), "1.0 of q35", mean >= 1.0);
    for (group, what, goal) in [(false, "disk", 0.8), (true, "network", 1.0)] {
        let of_group: Vec<f64> =
            cpu.iter().filter(|(own, _)| *own == group).map(|(_, ratio)| *ratio).collect();
        if of_group.is_empty() {
            continue;
        }
        let most = of_group.iter().copied().fold(0.0, f64::max);
        let over = of_group.iter().filter(|ratio| **ratio > goal).count();
        print(
            &format!("processor time for each I/O, {what} rows"),
            &format!("most {most:.2}; {over} of {} rows above", of_group.len()),
            &format!("{goal} of q35"),
            over == 0,
        );
    }
    for row in costly {
        println!("  above: {row}");
    }
}

/// A file system of its own, gone with the benchmark: past the page cache goes not every one, and
/// in the emulated host none.
struct Ext4 {
    mount: PathBuf,
}

impl Ext4 {
    fn make(work: &std::path::Path) -> Self {
        let (image, mount) = (work.join("io.ext4"), work.join("io"));
        let _absent = std::fs::remove_file(&image);
        std::fs::create_dir_all(&mount).expect("the work directory is writable");
        let file = std::fs::File::create(&image).expect("the work directory is writable");
        file.set_len(2 << 30).expect("a sparse file");
        run(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Self { mount }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.mount));
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
