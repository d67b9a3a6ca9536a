//! `--timing` of a real guest.

use serde_json::Value;

use crate::guest::{Console, Guest, needs_linux};

/// The phases, in order.
const PHASES: [&str; 10] = [
    "client",
    "monitor",
    "KVM set-up",
    "memory",
    "kernel load",
    "first guest instruction",
    "kernel entry to init",
    "init to power-off",
    "power-off to end",
    "tear-down",
];

fn json(console: &Console) -> Value {
    let line = console.finished.stderr.lines().last().unwrap_or_default();
    let value = serde_json::from_str(line);
    console.insist(value.is_ok(), "the last line on standard error is no JSON");
    value.unwrap()
}

#[test]
fn timing_as_json_sees_every_phase_and_adds_up() {
    needs_linux!();
    let console = Guest::new().args(["--timing=json"]).script("sleep 1; echo hello").run();
    let timing = json(&console);
    let phases = timing["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().filter_map(|phase| phase["name"].as_str()).collect();
    assert_eq!(names, PHASES);
    let us: Vec<u64> = phases
        .iter()
        .map(|phase| phase["us"].as_u64().unwrap_or_else(|| panic!("{phase} was not seen")))
        .collect();
    assert!(us.iter().all(|us| *us > 0), "{timing}");
    let (sum, total) = (us.iter().sum::<u64>(), timing["total_us"].as_u64().unwrap());
    // Each phase is rounded down to a microsecond.
    assert!(sum <= total && sum + 20 >= total, "{sum} of {total}");
    let took = u64::try_from(console.finished.took.as_micros()).unwrap();
    assert!(total <= took, "{total} of {took}");
    assert!((1_000_000..took).contains(&us[6]), "the script slept a second: {timing}");
    let (kvm, user) = (&timing["exits"]["kvm"], &timing["exits"]["user"]);
    let count = |name: &str| {
        let pairs = kvm.as_array().unwrap();
        pairs
            .iter()
            .find(|pair| pair[0] == name)
            .and_then(|pair| pair[1].as_u64())
            .unwrap_or_else(|| panic!("no {name}: {timing}"))
    };
    assert!(count("halt_exits") > 0, "{timing}");
    let user = |name: &str| user[name].as_u64().unwrap_or_else(|| panic!("no {name}: {timing}"));
    assert!(user("port_io") > 0 && user("port_io") <= count("io_exits"), "{timing}");
    assert!(user("mmio") > 0 && user("mmio") <= count("mmio_exits"), "{timing}");
    let users = user("port_io") + user("mmio") + user("interrupted") + user("other");
    assert!(users < count("exits"), "{timing}");
}

#[test]
fn timing_as_a_table_has_a_column_for_user_space_that_is_never_the_larger() {
    needs_linux!();
    let console = Guest::new().args(["--timing", "--cpus", "2"]).script("echo hello").run();
    let table = &console.finished.stderr;
    for phase in PHASES {
        let line = table.lines().find(|line| line.trim_start().starts_with(phase));
        let us = line.and_then(|line| line.trim_start()[phase.len()..].split_whitespace().next());
        console.insist(us.is_some_and(|us| us.parse::<u64>().is_ok()), &format!("{phase} was not seen"));
    }
    let exits: Vec<Vec<&str>> = table
        .lines()
        .skip_while(|line| !line.starts_with("exits by reason"))
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    console.insist(exits.iter().any(|row| row[0] == "halt_exits"), "no halts");
    for row in exits.iter().filter(|row| row.len() == 3) {
        let (kvm, user): (u64, u64) = (row[1].parse().unwrap(), row[2].parse().unwrap());
        console.insist(user <= kvm, &format!("{row:?}"));
    }
}

#[test]
fn timing_says_not_seen_of_an_init_that_says_nothing() {
    needs_linux!();
    let console =
        Guest::new().args(["--timing=json"]).append("rdinit=/bin/sh -- -c \"poweroff -f\"").ends_with(0);
    let timing = json(&console);
    let us = |n: usize| timing["phases"][n]["us"].as_u64();
    for (n, phase) in PHASES.iter().enumerate() {
        let seen = !["kernel entry to init", "init to power-off", "power-off to end"].contains(phase);
        assert_eq!(us(n).is_some(), seen, "{phase} of {timing}");
    }
    assert!(timing["total_us"].as_u64().is_some(), "{timing}");
}
