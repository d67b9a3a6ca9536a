//! The serial console through pipes: byte-exact in both directions, and never in the way of a
//! signal.

use std::time::{Duration, Instant};

use super::boot_state::noise;
use super::guest::Guest;
use super::script::{ACPI, POWER_PIN, RESULTS, SERIAL, Script};
use crate::support::{Bothy, Running, file, patient, scratch};

#[test]
fn output_is_byte_exact() {
    let bytes = noise(66_003);
    let script = Script::new().put(0x40_0000, 66_003);
    let output = Guest::new(&script).data(0x40_0000, bytes.clone()).run(&[]);
    assert!(output == bytes, "{} bytes came, or other ones", output.len());
}

/// 1 with small counts, more with the full ones.
fn long() -> u32 {
    if std::env::var_os("BOTHY_LONG").is_some_and(|value| value == "1") { 8 } else { 1 }
}

#[test]
fn a_lot_of_output_is_byte_exact() {
    let bytes = noise(128 << 10);
    let script = Script::new().each(0..long(), |script, _| script.put(0x40_0000, 128 << 10));
    let (bothy, _dir) = Guest::new(&script).data(0x40_0000, bytes.clone()).boot();
    let output = bothy.limit(Duration::from_secs(30) * long()).run().output();
    assert_eq!(output.len(), (128 << 10) * long() as usize);
    assert!(output.chunks(128 << 10).all(|chunk| chunk == bytes));
}

#[test]
fn input_is_byte_exact() {
    let bytes = noise(20_011);
    let script = Script::new().listen().receive(0x40_0000, 20_011).put(0x40_0000, 20_011);
    let (bothy, _dir) = Guest::new(&script).boot();
    let output = bothy.input(bytes.clone()).run().output();
    assert!(output == bytes, "{} bytes came, or other ones", output.len());
}

#[test]
fn what_goes_in_and_out_at_the_same_time_is_byte_exact() {
    let bytes = noise(9_000);
    let (bothy, _dir) = Guest::new(&Script::new().listen().echo(9_000)).boot();
    assert!(bothy.input(bytes.clone()).run().output() == bytes);
}

#[test]
fn control_a_means_nothing_through_a_pipe() {
    let (bothy, _dir) = Guest::new(&Script::new().listen().echo(5)).boot();
    assert_eq!(bothy.input(*b"\x01x\x01h\x03").run().output(), b"\x01x\x01h\x03");
}

#[test]
fn the_end_of_input_leaves_the_guest_running() {
    // No input at all, and then some that ends.
    let script = Script::new().listen().sleep(30).say(b'e');
    let guest = Guest::new(&script);
    assert_eq!(guest.run(&[]), b"e");
    let script = Script::new().listen().receive(RESULTS, 2).sleep(30).put(RESULTS, 2).power_off();
    let (bothy, _dir) = Guest::new(&script).boot();
    assert_eq!(bothy.input(*b"ab").run().output(), b"ab");
}

#[test]
fn an_interactive_guest_answers_each_byte() {
    let (bothy, _dir) = Guest::new(&Script::new().listen().say(b'>').echo(3)).boot();
    let mut running = bothy.open_input().start();
    running.wait_for(b">");
    for (typed, seen) in [(b"a", &b">a"[..]), (b"b", b">ab"), (b"c", b">abc")] {
        running.type_in(typed);
        running.wait_for(seen);
    }
    assert_eq!(running.wait().output(), b">abc");
}

#[test]
fn a_guest_that_lowers_rts_gets_nothing_until_it_raises_it() {
    let lsr = SERIAL + 5;
    let script = Script::new()
        .out8(SERIAL + 4, 1)
        .sleep(20)
        .in8(lsr, RESULTS)
        .listen()
        .receive(RESULTS + 4, 1)
        .put(RESULTS, 5);
    let (bothy, _dir) = Guest::new(&script).boot();
    let output = bothy.input(*b"k").run().output();
    assert_eq!((output[0] & 1, output[4]), (0, b'k'));
}

#[test]
fn a_careless_guest_loses_nothing_that_fits_into_the_buffer() {
    let bytes = noise(16 << 10);
    let script = Script::new().put_regardless(0x40_0000, 16 << 10);
    assert!(Guest::new(&script).data(0x40_0000, bytes.clone()).run(&[]) == bytes);
}

/// A guest whose output is stuck, on every way from its port to the pipe that nobody reads, and
/// that then does what the script says.
fn stuck(script: Script) -> (Running, tempfile::TempDir) {
    let start = Script::new().enable_lapic().route(POWER_PIN, 0x39, false).fill_output();
    let (bothy, dir) = Guest::new(&start.then(script)).boot();
    let mut running = bothy.unread_output().start();
    running.wait_for_message("register");
    (running, dir)
}

/// Answers the power button.
fn obedient() -> Script {
    Script::new().wait_for_vector(0x39).in32(ACPI + 4, RESULTS).power_off()
}

#[test]
fn a_reader_that_blocks_does_not_block_the_second_sigterm() {
    let (running, _dir) = stuck(Script::new().flood(u32::MAX));
    running.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    running.signal(libc::SIGTERM);
    let finished = running.wait().code(6).says("killed");
    assert!(
        asked.elapsed() < patient(Duration::from_secs(3)),
        "{:?} {}",
        asked.elapsed(),
        finished.streams()
    );
}

#[test]
fn a_reader_that_blocks_does_not_block_the_answer_to_sigterm() {
    let (running, _dir) = stuck(obedient());
    let asked = Instant::now();
    running.signal(libc::SIGTERM);
    running.wait().code(0);
    assert!(asked.elapsed() < patient(Duration::from_secs(3)), "{:?}", asked.elapsed());
}

#[test]
fn a_reader_that_blocks_and_then_reads_gets_everything_even_after_the_power_off() {
    let (mut running, _dir) = stuck(Script::new().power_off());
    std::thread::sleep(Duration::from_millis(300));
    assert!(!running.has_ended(), "the output is not yet read");
    running.read_output();
    let finished = running.wait().code(0);
    // It sends its script, 16 bytes at a time.
    let burst = Script::new().enable_lapic().bytes();
    assert!(finished.stdout.len() > 16 << 10, "{} bytes", finished.stdout.len());
    assert!(finished.stdout.chunks(16).all(|chunk| chunk == &burst[..16]));
}

#[test]
fn a_reader_that_goes_away_is_an_order_to_power_off() {
    let (mut running, _dir) = stuck(obedient());
    running.close_output();
    running.wait().code(0);
}

#[test]
fn without_a_console_nothing_is_read_and_nothing_is_written() {
    let dir = scratch();
    let script =
        Script::new().in8(SERIAL + 5, RESULTS).say(b'x').wait(RESULTS, u32::MAX, 0xff).out8(0x505, 1).halt();
    let kernel = Guest::new(&script).write(dir.path());
    let finished = Bothy::boot(&kernel).args(["--console", "none"]).input(*b"abc").run().code(3);
    assert_eq!(finished.stdout, b"");
}

#[test]
fn messages_go_to_the_log_file_if_there_is_one() {
    let dir = scratch();
    let log = dir.path().join("log");
    // A driver that writes to a register that can't be written makes a warning.
    let script = Script::new().write32(0xd000_0000, 1).say(b'e');
    let kernel = Guest::new(&script).write(dir.path());
    let finished = Bothy::boot(&kernel).args(["--log-file", log.to_str().unwrap()]).run();
    assert_eq!(finished.output(), b"e");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("register"), "{text:?}");
    file(dir.path(), "log", b"");
    let finished = Bothy::boot(&kernel).run().code(0);
    assert!(finished.stderr.contains("register"), "{}", finished.streams());
}
