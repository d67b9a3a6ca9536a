//! `bothy bench` with real runc, crun and QEMU: short, and whole, with podman as well, at full
//! counts. What its statistics and reports make of figures, unit tests say.

use std::fs;
use std::time::Duration;

use bothy::bench::results::Section;

use serde_json::Value;

use crate::guest::{GUEST_DIR_VARIABLE, guest_dir, long, needs_linux};
use crate::mounted_disk::MountedDisk;
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
    let missing =
        ["runc", "crun", "qemu-system-x86_64", "strace"].into_iter().find(|engine| !installed(engine));
    match missing {
        Some(engine) => could_not_run(test, &format!("{engine} is not installed")),
        None if !is_root() => could_not_run(test, "runc and crun need root"),
        None if long() && !installed("podman") => could_not_run(test, "podman is not installed"),
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
    let disk = MountedDisk::new(1 << 30);
    let dir = disk.path();
    let peers: &[&str] = if long() {
        &["bothy", "process", "runc", "crun", "podman", "qemu"]
    } else {
        &["bothy", "process", "runc", "crun", "qemu"]
    };
    let what = Section::ALL.map(Section::name).join(",");
    let what = if long() { &what } else { "startup,cpu,isolation" };
    let runs = if long() { "5" } else { "2" };
    let against = peers[2..].join(",");
    let words = [
        ["--runs", runs, "--only", what, "--against", &against],
        ["--json", "b.json", "--html", "b.html", "--markdown", "b.md"],
    ];
    let text = String::from_utf8(bench(&dir, &words.concat()).run().code(0).stdout).unwrap();
    for peer in peers {
        assert!(text.lines().any(|line| line.trim_start().starts_with(peer) && line.contains('█')), "{text}");
    }
    let results: Value = serde_json::from_slice(&fs::read(dir.join("b.json")).unwrap()).unwrap();
    let count = if long() { 5 } else { 2 };
    for peer in peers {
        let (first, exit) =
            (samples(&results, "startup.first_output", peer), samples(&results, "startup.exit", peer));
        assert_eq!((first.len(), exit.len()), (count, count), "{peer}");
        assert!(first.iter().zip(&exit).all(|(first, exit)| *first > 0.0 && first <= exit), "{peer}");
        assert!(samples(&results, "cpu.cpu", peer).iter().all(|ns| (10.0..1e6).contains(ns)), "{peer}");
        assert_eq!(samples(&results, "startup.cold_exit", peer).len(), count, "{peer}");
    }
    // A process starts before a container does, and a container before a machine that boots. QEMU's
    // takes 1.4 times as long as bothy's; as few runs as these, on a machine that does other things
    // besides, don't always show so little.
    let least = |peer: &str| samples(&results, "startup.exit", peer).into_iter().fold(f64::MAX, f64::min);
    assert!(least("process") < least("crun") && least("crun") < least("bothy"));
    assert!(least("bothy") < 1.5 * least("qemu"));
    // All that bothy's instances read was out of memory, on a disk of their own; runc's libraries
    // are others', too.
    for peer in ["bothy", "process"] {
        let left = samples(&results, "startup.cold_left", peer);
        assert!(left.iter().all(|percent| *percent < 5.0), "{peer}: {left:?}");
    }
    if long() {
        whole(&results, peers);
    }
    isolation(&results, peers);
    let phases = results["phases"][0]["steps"].as_array().unwrap();
    assert!(phases.iter().any(|step| step[0] == "kernel entry to init"), "{phases:?}");
    let exits = results["exits"][0]["per_second"].as_array().unwrap();
    assert!(exits.iter().any(|rate| rate[0] == "exits" && rate[1].as_f64().unwrap() > 1.0), "{exits:?}");
    // The same reports come from the file.
    let again = bench(&dir, &["--from", "b.json", "--html", "again.html", "--markdown", "again.md"]);
    assert_eq!(String::from_utf8(again.run().output()).unwrap(), text);
    for (one, other) in [("b.html", "again.html"), ("b.md", "again.md")] {
        let read = |name: &str| fs::read(dir.join(name)).unwrap();
        assert!(read(one) == read(other), "{one} and {other} differ");
    }
    nothing_is_left(&dir);
}

/// What a whole run says.
fn whole(results: &Value, peers: &[&str]) {
    assert!((8.0..80.0).contains(&samples(results, "memory.pss", "bothy")[0]));
    assert!(samples(results, "density.count", "bothy")[0] >= 2.0);
    assert_eq!(samples(results, "memory.processes", "process"), [1.0]);
    // runc keeps a state file for each container; a process has no file.
    assert!(samples(results, "memory.files", "runc")[0] > 0.0);
    assert_eq!(samples(results, "memory.files", "process"), [0.0]);
    // What a guest has freed, 256 MiB, its machine gives back.
    assert!(samples(results, "memory.freed_60s", "bothy")[0] < 100.0);
    // The parts of an instance's memory are all of it.
    let stacks = results["stacks"].as_array().unwrap();
    assert_eq!(stacks.len(), peers.len());
    let parts = stacks[0]["parts"].as_array().unwrap();
    let sum: f64 = parts.iter().map(|part| part[1].as_f64().unwrap()).sum();
    let pss = samples(results, "memory.pss", "bothy").pop().unwrap();
    assert!(parts.len() >= 3 && (sum - pss).abs() < pss / 5.0, "{parts:?} {pss}");
    let kernel = samples(results, "memory.guest_kernel", "bothy")[0];
    assert!((5.0..pss).contains(&kernel), "{kernel}");
    for peer in peers {
        for id in
            ["disk.write", "disk.read", "disk.random", "disk.sync", "net.round_trip", "net.out", "net.in"]
        {
            assert!(samples(results, id, peer).iter().all(|figure| *figure > 0.0), "{id} of {peer}");
        }
    }
    assert!(results["seconds"].as_f64().unwrap() < LIMIT.as_secs_f64());
}

/// bothy's and QEMU's kernels are their own; the containers' is this machine's.
fn isolation(results: &Value, peers: &[&str]) {
    let (kernels, boots) = (fact(results, "kernel"), fact(results, "boot id"));
    let capabilities = fact(results, "effective capabilities");
    let filters = fact(results, "system calls that its processes may use");
    let calls = fact(results, "system calls seen here during 30 actions");
    // `8 kinds, 40 calls: ...`
    let kinds: Vec<u32> = calls
        .iter()
        .map(|told| told.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{told}")))
        .collect();
    for (place, peer) in peers.iter().enumerate() {
        if ["bothy", "qemu"].contains(peer) {
            assert!(kernels[place].ends_with("-bothy"), "{kernels:?}");
            assert!(boots.iter().filter(|boot| **boot == boots[place]).count() == 1, "{boots:?}");
            assert!(!filters[place].contains(" of "), "{filters:?}");
            assert!((1..25).contains(&kinds[place]), "{calls:?}");
        } else {
            assert_eq!((kernels[place], boots[place]), (kernels[1], boots[1]), "{peer}");
            assert!((40..100).contains(&kinds[place]), "{calls:?}");
            assert_eq!(filters[place].contains("load: no filter yet"), *peer == "process", "{filters:?}");
        }
        if *peer != "process" {
            assert_eq!(fact(results, "the load's process id")[place], "1", "{peer}");
        }
        if ["runc", "crun", "qemu"].contains(peer) {
            assert_eq!(capabilities[place], capabilities[0], "{peer}");
        }
        // All of it can be done everywhere.
        assert!(!calls[place].contains("of 30 done"), "{calls:?}");
    }
}

#[test]
fn an_image_is_measured_with_files_and_a_network_and_stays_as_it_is() {
    needs_linux!(alone);
    if !can_compare("bench of an image") {
        return;
    }
    let (disk, image) = (MountedDisk::new(1 << 30), scratch());
    let dir = disk.path();
    for name in ["etc", "usr/share/words"] {
        fs::create_dir_all(image.path().join(name)).unwrap();
    }
    fs::write(image.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    let store = dir.join("store");
    let image = format!("dir:{}", image.path().display());
    let words = [&image, "--runs", "1", "--only", "disk,net", "--against", "runc,qemu", "--json", "b.json"];
    bench(&dir, &words).env("BOTHY_STORE", &store).run().code(0);
    let results: Value = serde_json::from_slice(&fs::read(dir.join("b.json")).unwrap()).unwrap();
    assert_eq!(results["image"], image.as_str());
    for peer in ["bothy", "process", "runc", "qemu"] {
        for id in
            ["disk.write", "disk.read", "disk.random", "disk.sync", "net.round_trip", "net.out", "net.in"]
        {
            assert!(samples(&results, id, peer)[0] > 0.0, "{id} of {peer}");
        }
    }
    // It is in the user's store now, and nothing of the measurement is.
    let images = Bothy::new(["images"]).env("BOTHY_STORE", &store).run().output();
    assert_eq!(String::from_utf8(images).unwrap().lines().count(), 2);
    nothing_is_left(&dir);
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
        support::eventually(Duration::from_secs(10), || support::processes(token).is_empty()),
        "{token:?}"
    );
    nothing_is_left(dir.path());
}

/// In the directory for temporary files.
fn nothing_is_left(dir: &std::path::Path) {
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("bothy-bench")), "{left:?}");
}
