//! `--timing`, as text and as JSON.

use super::guest::Guest;
use super::script::Script;

const TIMING_PORT: u16 = bothy_guest::TIMING_PORT;

fn marks() -> Guest {
    Guest::new(&Script::new().out8(TIMING_PORT, 1).sleep(2).out8(TIMING_PORT, 2).sleep(2))
}

fn json(guest: &Guest) -> serde_json::Value {
    let (bothy, _dir) = guest.boot();
    let finished = bothy.args(["--timing=json"]).run().code(0);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.streams());
    serde_json::from_str(&finished.stderr).unwrap()
}

fn phase(json: &serde_json::Value, name: &str) -> Option<u64> {
    let phases = json["phases"].as_array().unwrap();
    let phase = phases.iter().find(|phase| phase["name"] == name);
    phase.unwrap_or_else(|| panic!("no {name} in {json}"))["us"].as_u64()
}

const ALWAYS: [&str; 7] =
    ["client", "monitor", "KVM set-up", "memory", "kernel load", "first guest instruction", "tear-down"];
const BY_MARKS: [&str; 3] = ["kernel entry to init", "init to power-off", "power-off to end"];

#[test]
fn a_guest_that_writes_both_marks_has_every_phase() {
    let json = json(&marks());
    for name in ALWAYS.into_iter().chain(BY_MARKS) {
        assert!(phase(&json, name).is_some(), "{name} in {json}");
    }
    for name in ["kernel entry to init", "init to power-off", "power-off to end"] {
        assert_ne!(phase(&json, name), Some(0), "{name}: it takes some time");
    }
    let sum: u64 = ALWAYS.into_iter().chain(BY_MARKS).filter_map(|name| phase(&json, name)).sum();
    let total = json["total_us"].as_u64().unwrap();
    assert!(sum <= total && total - sum < 100_000, "{sum} of {total} in {json}");
}

#[test]
fn a_guest_without_marks_has_phases_that_were_not_seen() {
    let guest = Guest::new(&Script::new());
    let json = json(&guest);
    for name in ALWAYS {
        assert!(phase(&json, name).is_some(), "{name} in {json}");
    }
    for name in BY_MARKS {
        assert_eq!(phase(&json, name), None, "{name} in {json}");
    }
    let (bothy, _dir) = guest.boot();
    let finished = bothy.args(["--timing"]).run().code(0);
    for name in BY_MARKS {
        let line = finished.stderr.lines().find(|line| line.contains(name));
        assert!(line.is_some_and(|line| line.contains("not seen")), "{name} in\n{}", finished.stderr);
    }
    assert_eq!(finished.stderr.matches("not seen").count(), 3, "{}", finished.stderr);
}

#[test]
fn other_bytes_at_the_timing_port_are_no_marks() {
    let json =
        json(&Guest::new(&Script::new().out8(TIMING_PORT, 0).out8(TIMING_PORT, 3).out16(TIMING_PORT, 1)));
    assert_eq!(phase(&json, "kernel entry to init"), None);
}

#[test]
fn a_guest_that_has_begun_and_did_not_finish_shows_where_it_was() {
    let json = json(&Guest::new(&Script::new().out8(TIMING_PORT, 1)));
    assert!(phase(&json, "kernel entry to init").is_some());
    assert_eq!(phase(&json, "init to power-off"), None);
}

#[test]
fn exits_are_counted_by_kvm_and_by_what_reached_user_space() {
    let few = json(&Guest::new(&Script::new()));
    let many = json(&Guest::new(
        &Script::new().each(0..200, |script, _| script.in8(0x700, 0x80_0000).read32(0xd0f0_0000, 0x80_0000)),
    ));
    let user = |json: &serde_json::Value, kind: &str| json["exits"]["user"][kind].as_u64().unwrap();
    for kind in ["port_io", "mmio"] {
        assert_eq!(user(&many, kind) - user(&few, kind), 200, "{kind}: {few} {many}");
    }
    let kvm = |json: &serde_json::Value| {
        let counters = json["exits"]["kvm"].as_array().unwrap();
        counters.iter().find(|counter| counter[0] == "exits").map(|counter| counter[1].as_u64().unwrap())
    };
    if let (Some(few), Some(many)) = (kvm(&few), kvm(&many)) {
        // An interrupt of the host can add a few to either.
        assert!(many >= 400 && few < 400, "{few} {many}");
    }
}

#[test]
fn without_timing_nothing_is_printed() {
    let (bothy, _dir) = marks().boot();
    assert_eq!(bothy.run().output(), b"");
}

#[test]
fn timing_is_printed_for_ends_that_are_failures_too() {
    let (bothy, _dir) = Guest::new(&Script::new().out8(0x505, 1).halt()).boot();
    bothy.args(["--timing"]).run().code(3).says("panicked").says("exits by reason").says("total");
}
