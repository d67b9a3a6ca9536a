//! Interrupts on their way from a device by the IOAPIC to the local APIC, where they are seen in
//! its request register.

use super::guest::{Guest, words};
use super::script::{ACPI, POWER_PIN, RESULTS, SERIAL, Script, request_bit};
use crate::support::Bothy;

const SERIAL_PIN: u8 = 4;
const IER: u16 = SERIAL + 1;
const IIR: u16 = SERIAL + 2;

#[test]
fn an_empty_transmitter_interrupts_when_that_is_enabled() {
    let script = Script::new()
        .enable_lapic()
        .route(SERIAL_PIN, 0x34, false)
        .read_vector(0x34, RESULTS)
        .out8(IER, 2)
        .wait_for_vector(0x34)
        .in8(IIR, RESULTS + 4)
        .in8(IIR, RESULTS + 8)
        .out8(IER, 0)
        .put(RESULTS, 12);
    let read = words(&Guest::new(&script).run(&[]));
    assert_eq!(read[0] & request_bit(0x34).1, 0, "not before it is enabled");
    assert_eq!((read[1] & 0xf, read[2] & 0xf), (2, 1), "the cause is named once");
}

#[test]
fn an_edge_that_arrives_while_its_pin_is_masked_is_delivered_when_it_is_unmasked() {
    let script = Script::new()
        .enable_lapic()
        .route(SERIAL_PIN, 0x34, true)
        .out8(IER, 2)
        .sleep(4)
        .read_vector(0x34, RESULTS)
        .route(SERIAL_PIN, 0x34, false)
        .wait_for_vector(0x34)
        .put(RESULTS, 4);
    assert_eq!(
        words(&Guest::new(&script).run(&[]))[0] & request_bit(0x34).1,
        0,
        "it came while it was masked"
    );
}

#[test]
fn a_pin_that_is_masked_again_delivers_nothing_until_it_is_unmasked_again() {
    let script = Script::new()
        .enable_lapic()
        .route(SERIAL_PIN, 0x34, false)
        .route(SERIAL_PIN, 0x34, true)
        .out8(IER, 2)
        .sleep(4)
        .read_vector(0x34, RESULTS)
        .route(SERIAL_PIN, 0x34, false)
        .wait_for_vector(0x34)
        .put(RESULTS, 4);
    assert_eq!(words(&Guest::new(&script).run(&[]))[0] & request_bit(0x34).1, 0);
}

#[test]
fn an_edge_goes_to_the_vector_that_the_pin_has_when_it_comes() {
    let script = Script::new()
        .enable_lapic()
        .route(SERIAL_PIN, 0x34, false)
        .route(SERIAL_PIN, 0x55, false)
        .out8(IER, 2)
        .wait_for_vector(0x55)
        .read_vector(0x34, RESULTS)
        .put(RESULTS, 4);
    assert_eq!(words(&Guest::new(&script).run(&[]))[0] & request_bit(0x34).1, 0, "the old vector");
}

#[test]
fn a_byte_that_is_typed_interrupts() {
    let script = Script::new()
        .enable_lapic()
        .route(SERIAL_PIN, 0x34, false)
        .out8(IER, 1)
        .read_vector(0x34, RESULTS)
        .listen()
        .say(b'r')
        .wait_for_vector(0x34)
        .in8(IIR, RESULTS + 4)
        .receive(RESULTS + 8, 1)
        .in8(IIR, RESULTS + 12)
        .put(RESULTS, 16);
    let (bothy, _dir) = Guest::new(&script).boot();
    let mut running = bothy.open_input().start();
    running.wait_for(b"r");
    running.type_in(b"k");
    let output = running.wait().output();
    let read = words(&output[1..]);
    assert_eq!(read[0] & request_bit(0x34).1, 0, "nothing was typed yet");
    assert_eq!((read[1] & 0xf, read[2], read[3] & 0xf), (4, u32::from(b'k'), 1));
}

#[test]
fn a_power_button_that_was_pressed_before_its_pin_was_unmasked_is_not_lost() {
    let script = Script::new()
        .enable_lapic()
        .route(POWER_PIN, 0x39, true)
        .listen()
        .say(b'r')
        .receive(RESULTS, 1)
        .route(POWER_PIN, 0x39, false)
        .wait_for_vector(0x39)
        .in32(ACPI + 4, RESULTS)
        .put(RESULTS, 1)
        .power_off();
    let (bothy, _dir) = Guest::new(&script).boot();
    let mut running = bothy.open_input().start();
    running.wait_for(b"r");
    running.signal(libc::SIGTERM);
    std::thread::sleep(std::time::Duration::from_millis(100));
    running.type_in(b"x");
    assert_eq!(running.wait().output(), b"r\x01");
}

#[test]
fn the_event_register_is_silent_until_the_button_is_pressed() {
    let script = Script::new().in32(ACPI + 4, RESULTS).put(RESULTS, 4);
    assert_eq!(words(&Guest::new(&script).run(&[])), [0]);
}

#[test]
fn an_interrupt_can_be_for_another_processor() {
    // The trampoline's processor has its local APIC off; physical destination 1 must not reach
    // processor 0.
    let script = Script::new()
        .enable_lapic()
        .ioapic(0x10 + 2 * SERIAL_PIN + 1, 1 << 24)
        .ioapic(0x10 + 2 * SERIAL_PIN, 0x34)
        .out8(IER, 2)
        .sleep(4)
        .read_vector(0x34, RESULTS)
        .put(RESULTS, 4);
    let dir = crate::support::scratch();
    let output = Bothy::boot(&Guest::new(&script).write(dir.path())).args(["--cpus", "2"]).run().output();
    assert_eq!(words(&output)[0] & request_bit(0x34).1, 0);
}
