//! Port and memory-mapped accesses: all widths, string instructions, and addresses where nothing
//! is.

use super::guest::{Guest, long_result, u64_at, words};
use super::script::{ACPI, IOAPIC, RESULTS, SERIAL, Script};

/// A port without a device.
const NOWHERE: u16 = 0x700;
/// An address in the hole without a device.
const NOWHERE_GPA: u32 = 0xd0f0_0000;
/// The serial port's scratch register.
const SCRATCH: u16 = SERIAL + 7;

#[test]
fn ports_where_nothing_is_read_ones_at_every_width() {
    let script = Script::new()
        .out8(NOWHERE, 0)
        .out16(NOWHERE, 0)
        .out32(NOWHERE, 0)
        .in8(NOWHERE, RESULTS)
        .in16(NOWHERE, RESULTS + 4)
        .in32(NOWHERE, RESULTS + 8)
        .in32(0xffff, RESULTS + 12)
        .in8(0x71, RESULTS + 16)
        .in32(0xcfc, RESULTS + 20)
        .put(RESULTS, 24);
    let read = words(&Guest::new(&script).run(&[]));
    assert_eq!(read, [0xff, 0xffff, u32::MAX, u32::MAX, 0xff, u32::MAX]);
}

#[test]
fn addresses_where_nothing_is_read_ones_at_every_width() {
    let script = Script::new()
        .write8(NOWHERE_GPA, 0)
        .write16(NOWHERE_GPA, 0)
        .write32(NOWHERE_GPA, 0)
        .read8(NOWHERE_GPA, RESULTS)
        .read16(NOWHERE_GPA, RESULTS + 4)
        .read32(NOWHERE_GPA, RESULTS + 8)
        .read32(0xe000_0000, RESULTS + 12)
        .read32(0xffff_fff0, RESULTS + 16)
        .read32(32 << 20, RESULTS + 20)
        .put(RESULTS, 24);
    let read = words(&Guest::new(&script).run(&[]));
    assert_eq!(read, [0xff, 0xffff, u32::MAX, u32::MAX, u32::MAX, u32::MAX]);
}

#[test]
fn an_access_of_eight_bytes_reaches_devices_and_nowhere() {
    let (nowhere, device) = (u64::from(NOWHERE_GPA), 0xd000_0000);
    let accesses = [(1, nowhere, 5), (2, nowhere, 5), (1, device, 0), (2, device, 5)];
    let script = Script::new()
        .put(long_result(1), 8)
        .put(long_result(3), 8)
        .read32(0xd000_0000, RESULTS)
        .put(RESULTS, 4);
    let output = Guest::with_long_accesses(&script, &accesses).run(&[]);
    assert_eq!(u64_at(&output, 0), u64::MAX);
    // A virtio register takes 4 bytes and nothing else: what it gives then is its own choice, but
    // it lives on.
    assert_ne!(u64_at(&output, 8), 5, "it was read");
    assert_eq!(output[16..], *b"virt");
}

#[test]
fn string_output_sends_every_byte_in_order() {
    let text: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let script = Script::new().outs8(SERIAL, 0x40_0000, 1000);
    assert_eq!(Guest::new(&script).data(0x40_0000, text.clone()).run(&[]), text);
}

#[test]
fn string_output_of_words_is_no_byte_for_the_serial_port() {
    let script = Script::new().outs32(SERIAL, 0x40_0000, 3).say(b'e');
    assert_eq!(Guest::new(&script).data(0x40_0000, *b"abcdefghijkl").run(&[]), b"e");
}

#[test]
fn string_input_reads_a_port_again_and_again() {
    let script = Script::new()
        .out8(SCRATCH, 0x5a)
        .ins8(SCRATCH, RESULTS, 9)
        .ins32(NOWHERE, RESULTS + 12, 3)
        .put(RESULTS, 9)
        .put(RESULTS + 12, 13);
    let expected = [&[0x5a; 9][..], &[0xff; 12], &[0]].concat();
    assert_eq!(Guest::new(&script).run(&[]), expected);
}

#[test]
fn string_input_takes_what_was_typed() {
    // The FIFO has 64 bytes; 40 of them come together.
    let script =
        Script::new().listen().receive(RESULTS, 1).sleep(20).ins8(SERIAL, RESULTS + 1, 39).put(RESULTS, 40);
    let (bothy, _dir) = Guest::new(&script).boot();
    let typed: Vec<u8> = (1..=40).collect();
    assert_eq!(bothy.input(typed.clone()).run().output(), typed);
}

#[test]
fn a_device_ignores_widths_that_it_does_not_have() {
    let script = Script::new()
        .out8(SCRATCH, 0x11)
        .out16(SCRATCH, 0x2222)
        .out32(SCRATCH, 0x3333_3333)
        .in8(SCRATCH, RESULTS)
        // A 32-bit read of the sleep registers, a 16-bit one of the events.
        .in32(ACPI, RESULTS + 4)
        .in16(ACPI + 4, RESULTS + 8)
        .put(RESULTS, 12);
    assert_eq!(words(&Guest::new(&script).run(&[])), [0x11, 0, 0]);
}

#[test]
fn neighbouring_ports_belong_to_nobody() {
    let ports = [SERIAL - 1, SERIAL + 8, ACPI - 1, ACPI + 8, 0x63, 0x65, 0x504, 0x506];
    let script = Script::new().each((0..).zip(ports), |script, (n, port)| script.in8(port, RESULTS + 4 * n));
    assert_eq!(words(&Guest::new(&script.put(RESULTS, 32)).run(&[])), [0xff; 8]);
}

#[test]
fn the_ioapic_keeps_what_is_written_and_knows_its_pins() {
    let read =
        |script: Script, register: u8, to| script.write32(IOAPIC, register.into()).read32(IOAPIC + 0x10, to);
    let mut script = read(Script::new(), 1, RESULTS);
    script = script.ioapic(0x10 + 2 * 7, 0x1_0044).ioapic(0x10 + 2 * 7 + 1, 0x0300_0000);
    script = read(script, 0x10 + 2 * 7, RESULTS + 4);
    script = read(script, 0x10 + 2 * 7 + 1, RESULTS + 8);
    script = read(script, 0x10 + 2 * 8, RESULTS + 12);
    let read = words(&Guest::new(&script.put(RESULTS, 16)).run(&[]));
    // The balloon's is the last.
    assert_eq!((read[0] >> 16 & 0xff) + 1, 7, "pins");
    assert_eq!(read[1..], [0x1_0044, 0x0300_0000, 0x1_0000]);
}
