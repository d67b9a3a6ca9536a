//! How a VM ends: exit codes, messages, signals, and that nothing is left behind.

use std::time::{Duration, Instant};

use super::guest::Guest;
use super::script::{ACPI, POWER_PIN, RESULTS, Script};
use crate::support::{self, eventually};

/// Says `r` for ready, then goes on with `script`.
fn ready(script: Script) -> Guest {
    Guest::new(&Script::new().say(b'r').then(script))
}

#[test]
fn a_power_off_ends_with_0() {
    let (bothy, _dir) = ready(Script::new().power_off().halt()).boot();
    assert_eq!(bothy.run().output(), b"r");
}

#[test]
fn a_reset_by_the_keyboard_controller_ends_with_0() {
    let (bothy, _dir) = ready(Script::new().out8(0x64, 0xfe).halt()).boot();
    assert_eq!(bothy.run().output(), b"r");
}

#[test]
fn a_reset_by_the_acpi_register_ends_with_0() {
    let (bothy, _dir) = ready(Script::new().out8(ACPI + 2, 1).halt()).boot();
    assert_eq!(bothy.run().output(), b"r");
}

#[test]
fn writes_that_are_almost_an_end_are_none() {
    let script = Script::new()
        .out8(0x64, 0xd1)
        .out16(0x64, 0xfefe)
        .out8(ACPI + 2, 2)
        .out8(ACPI, 5 << 2)
        .out8(ACPI, 1 << 5)
        .out8(0x505, 2)
        .say(b'e');
    assert_eq!(ready(script).run(&[]), b"re");
}

#[test]
fn a_guest_panic_ends_with_3_and_says_so() {
    let script = Script::new().in8(0x505, RESULTS).put(RESULTS, 1).out8(0x505, 1).halt();
    let (bothy, _dir) = ready(script).boot();
    let finished = bothy.run().code(3).says("panicked");
    assert_eq!(finished.stdout, b"r\x01", "the events that pvpanic supports");
}

#[test]
fn a_guest_that_goes_on_after_its_panic_may_say_last_words_and_no_more() {
    let (bothy, _dir) = ready(Script::new().out8(0x505, 1).say(b'w').spin()).boot();
    let finished = bothy.run().code(3).says("panicked");
    assert_eq!(finished.stdout, b"rw");
    assert!(finished.took < support::patient(Duration::from_secs(5)), "{:?}", finished.took);
    let (bothy, _dir) = ready(Script::new().out8(0x505, 1).power_off()).boot();
    let finished = bothy.run().code(3).says("panicked");
    assert!(finished.took < Duration::from_secs(1), "nothing is waited for: {:?}", finished.took);
}

#[test]
fn a_triple_fault_ends_with_4_and_says_so() {
    let (bothy, _dir) = ready(Script::new().triple_fault()).boot();
    let finished = bothy.run().code(4).says("triple fault");
    assert_eq!((finished.stdout.as_slice(), finished.stderr.lines().count()), (&b"r"[..], 1));
}

#[test]
fn an_emulation_failure_ends_with_5_and_names_rip_and_bytes() {
    let guest = ready(Script::new().popcnt_of_nowhere());
    let (bothy, _dir) = guest.boot();
    let code = super::asm::code();
    let instruction = [0xf3, 0x0f, 0xb8, 0x05, 0x00, 0x00, 0xf0, 0xd0];
    let offset = code.windows(8).position(|window| window == instruction).unwrap();
    let rip = format!("{:#x}", u64::from(super::asm::CODE_GPA) + offset as u64);
    let finished = bothy.run().code(5).says(&rip).says("f3 0f b8");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
}

#[test]
fn code_where_there_is_no_memory_ends_with_5_and_names_rip() {
    let (bothy, _dir) = ready(Script::new().execute(0xd0f0_0000)).boot();
    bothy.run().code(5).says("0xd0f00000");
}

#[test]
fn the_power_button_is_pressed_by_sigterm_and_a_guest_that_answers_ends_with_0() {
    // Polls the event register until the button is there, which it is once and then no more.
    let start = Script::new().listen().enable_lapic().route(POWER_PIN, 0x39, false).say(b'r');
    let script = start.wait_for_vector(0x39).in32(ACPI + 4, RESULTS).in32(ACPI + 4, RESULTS + 4);
    let (bothy, _dir) = Guest::new(&script.put(RESULTS, 8).power_off()).boot();
    let mut running = bothy.start();
    running.wait_for(b"r");
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().output(), b"r\x01\0\0\0\0\0\0\0");
}

#[test]
fn sigint_presses_the_power_button_too() {
    let start = Script::new().enable_lapic().route(POWER_PIN, 0x39, false).say(b'r');
    let (bothy, _dir) = Guest::new(&start.wait_for_vector(0x39).say(b'p').power_off()).boot();
    // A shell that runs the tests in the background has them ignore it.
    let mut running = bothy.in_shell("exec env --default-signal=INT \"$@\"").start();
    running.wait_for(b"r");
    running.signal(libc::SIGINT);
    assert_eq!(running.wait().output(), b"rp");
}

fn second_sigterm_kills(script: Script) {
    let (bothy, _dir) = ready(script).boot();
    let mut running = bothy.start();
    running.wait_for(b"r");
    running.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!running.has_ended(), "one signal is a question");
    let asked = Instant::now();
    running.signal(libc::SIGTERM);
    let finished = running.wait().code(6).says("killed");
    assert!(asked.elapsed() < support::patient(Duration::from_secs(2)), "{}", finished.streams());
}

#[test]
fn a_second_sigterm_kills_a_busy_guest_with_6() {
    second_sigterm_kills(Script::new().spin());
}

#[test]
fn a_second_sigterm_kills_a_halted_guest_with_6() {
    second_sigterm_kills(Script::new().halt());
}

#[test]
fn a_guest_that_ignores_sigterm_is_killed_after_10_seconds_with_6() {
    let (bothy, _dir) = ready(Script::new().spin()).boot();
    let mut running = bothy.start();
    running.wait_for(b"r");
    let asked = Instant::now();
    running.signal(libc::SIGTERM);
    running.wait().code(6).says("killed");
    let took = asked.elapsed();
    assert!(took >= Duration::from_millis(9_900), "{took:?}");
    assert!(took < Duration::from_secs(10) + support::patient(Duration::from_secs(2)), "{took:?}");
}

#[test]
fn the_vm_ends_within_a_second_when_the_command_is_killed() {
    for script in [Script::new().spin(), Script::new().halt(), Script::new().flood(u32::MAX)] {
        let (bothy, _dir) = ready(script).boot();
        let mut running = bothy.start();
        running.wait_for(b"r");
        let vm = running.vm_pid();
        running.signal(libc::SIGKILL);
        let gone = eventually(Duration::from_secs(1), || !running.processes().contains(&vm));
        assert!(gone, "the VM's process lives on");
        running.wait().code(-libc::SIGKILL);
    }
}

#[test]
fn a_killed_vm_process_is_told_and_ends_with_1() {
    let (bothy, _dir) = ready(Script::new().spin()).boot();
    let mut running = bothy.start();
    running.wait_for(b"r");
    support::signal(running.vm_pid(), libc::SIGKILL);
    let finished = running.wait().code(1).says("signal 9");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
}

#[test]
fn a_stopped_vm_process_is_killed_all_the_same() {
    let (bothy, _dir) = ready(Script::new().spin()).boot();
    let mut running = bothy.start();
    running.wait_for(b"r");
    support::signal(running.vm_pid(), libc::SIGSTOP);
    for _ in 0..3 {
        running.signal(libc::SIGTERM);
        std::thread::sleep(Duration::from_millis(50));
    }
    running.wait().code(6);
}
