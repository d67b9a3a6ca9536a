//! `bothy bench` with real runc and crun: short, and whole at full counts. What its statistics and reports make of figures, unit tests say.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::guest::{GUEST_DIR_VARIABLE, guest_dir, long, needs_linux};
use crate::support::{self, Bothy, could_not_run, installed, is_root, scratch};

/// How long a whole run with few runs may take in an emulated host.
const LIMIT: Duration = Duration::from_secs(900);

fn bench(dir: &std::path::Path, words: &[&str]) -> Bothy {
    Bothy::new(["bench"])
        .args(words)
        .env(GUEST_DIR_VARIABLE, guest_dir())
        .env("TMPDIR", dir)
        .current_dir(dir)
        .limit(LIMIT)
}

fn can_compare(test: &str) -> bool {
    let missing = ["runc", "crun"].into_iter().find(|engine| !installed(engine));
    match missing {
        Some(engine) => could_not_run(test, &format!("{engine} is not installed")),
        None if !is_root() => could_not_run(test, "runc and crun need root"),
        None => return true,
    }
    false
}

/// The samples of a peer.
fn samples(results: &Value, id: &str, peer: &str) -> Vec<f64> {
    let measure = results["measures"].as_array().unwrap().iter().find(|measure| measure["id"] == id);
    let rows = measure.unwrap_or_else(|| panic!("no {id}"))["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["peer"] == peer).unwrap_or_else(|| panic!("{id} has no {peer}"));
    assert_eq!(row["failure"], Value::Null, "{id} of {peer}");
    row["samples"].as_array().unwrap().iter().map(|sample| sample.as_f64().unwrap()).collect()
}

fn fact<'a>(results: &'a Value, label: &str) -> Vec<&'a str> {
    let facts = results["facts"].as_array().unwrap();
    let fact = facts.iter().find(|fact| fact["label"] == label).unwrap_or_else(|| panic!("no {label}"));
    fact["values"].as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

#[test]
fn virtual_machines_and_containers_are_measured_side_by_side() {
    needs_linux!(alone);
    if !can_compare("bench") {
        return;
    }
    let dir = scratch();
    let what = if long() { "startup,memory,density,cpu,syscall,isolation" } else { "startup,cpu,isolation" };
    let runs = if long() { "5" } else { "2" };
    let words =
        ["--runs", runs, "--only", what, "--json", "b.json", "--html", "b.html", "--markdown", "b.md"];
    let text = String::from_utf8(bench(dir.path(), &words).run().code(0).stdout).unwrap();
    for peer in ["bothy", "process", "runc", "crun"] {
        assert!(text.lines().any(|line| line.trim_start().starts_with(peer) && line.contains('█')), "{text}");
    }
    let results: Value = serde_json::from_slice(&fs::read(dir.path().join("b.json")).unwrap()).unwrap();
    let count = if long() { 5 } else { 2 };
    for peer in ["bothy", "process", "runc", "crun"] {
        let (first, exit) =
            (samples(&results, "startup.first_output", peer), samples(&results, "startup.exit", peer));
        assert_eq!((first.len(), exit.len()), (count, count), "{peer}");
        assert!(first.iter().zip(&exit).all(|(first, exit)| *first > 0.0 && first <= exit), "{peer}");
        assert!(samples(&results, "cpu.cpu", peer).iter().all(|ns| (10.0..1e6).contains(ns)), "{peer}");
    }
    // A process starts before a container does, and a container before a machine that boots.
    let least = |peer: &str| samples(&results, "startup.exit", peer).into_iter().fold(f64::MAX, f64::min);
    assert!(least("process") < least("crun") && least("crun") < least("bothy"));
    if long() {
        assert!((8.0..80.0).contains(&samples(&results, "memory.pss", "bothy")[0]));
        assert!(samples(&results, "density.count", "bothy")[0] >= 2.0);
        assert_eq!(samples(&results, "memory.processes", "process"), [1.0; 3]);
        // runc keeps a state file for each container; a process has no file.
        assert!(samples(&results, "memory.files", "runc")[0] > 0.0);
        assert_eq!(samples(&results, "memory.files", "process"), [0.0; 3]);
        // What a guest has freed stays with its machine, until there is a balloon.
        assert!(samples(&results, "memory.freed_60s", "bothy")[0] > 250.0);
    }
    // Bothy's kernel is its own; the containers' is this machine's.
    let (kernels, boots) = (fact(&results, "kernel"), fact(&results, "boot id"));
    assert!(
        kernels[0].ends_with("-bothy") && kernels[1] == kernels[2] && kernels[2] == kernels[3],
        "{kernels:?}"
    );
    assert!(boots[0] != boots[1] && boots[1] == boots[2] && boots[2] == boots[3], "{boots:?}");
    assert_eq!(fact(&results, "the load's process id")[2..], ["1", "1"]);
    let capabilities = fact(&results, "effective capabilities");
    assert!(capabilities[0] == capabilities[2] && capabilities[2] == capabilities[3], "{capabilities:?}");
    let phases = results["phases"][0]["steps"].as_array().unwrap();
    assert!(phases.iter().any(|step| step[0] == "kernel entry to init"), "{phases:?}");
    let exits = results["exits"][0]["per_second"].as_array().unwrap();
    assert!(exits.iter().any(|rate| rate[0] == "exits" && rate[1].as_f64().unwrap() > 1.0), "{exits:?}");
    // The same reports come from the file.
    let again = bench(dir.path(), &["--from", "b.json", "--html", "again.html", "--markdown", "again.md"]);
    assert_eq!(String::from_utf8(again.run().output()).unwrap(), text);
    for (one, other) in [("b.html", "again.html"), ("b.md", "again.md")] {
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        assert!(read(one) == read(other), "{one} and {other} differ");
    }
    nothing_is_left(dir.path());
}

#[test]
fn an_interrupted_benchmark_ends_every_instance_and_says_what_there_is() {
    needs_linux!(alone);
    if !can_compare("bench") {
        return;
    }
    let dir = scratch();
    let mut running = bench(dir.path(), &["--only", "density", "--against", "runc,crun"]).start();
    running.wait_for_message("measuring density");
    // A machine or two run by now.
    std::thread::sleep(support::patient(Duration::from_secs(4)));
    let token = running.token();
    running.signal(libc::SIGINT);
    let finished = running.wait();
    assert_eq!(finished.code, 130, "{}", finished.streams());
    let text = String::from_utf8_lossy(&finished.stdout);
    assert!(text.contains("Interrupted") && text.contains("interrupted"), "{text}");
    assert!(
        text.lines().any(|line| line.contains("bothy") && line.contains("started; interrupted")),
        "{text}"
    );
    assert!(
        support::eventually(Duration::from_secs(10), || support::processes(&token).is_empty()),
        "{token}"
    );
    nothing_is_left(dir.path());
}

/// In the directory for temporary files.
fn nothing_is_left(dir: &std::path::Path) {
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("bothy-bench")), "{left:?}");
}
