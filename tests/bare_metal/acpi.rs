//! The ACPI tables as a guest finds them by a scan, and what a disassembler makes of them.

use std::process::Command;

use super::guest::{Guest, u32_at, u64_at};
use super::script::Script;
use crate::support::{self, could_not_run};

const SCAN_START: u32 = 0xe_0000;
const SCAN_LEN: u32 = 0x4000;

/// The tables' memory, as the guest reads it.
struct Tables(Vec<u8>);

impl Tables {
    fn of(args: &[&str]) -> Self {
        Self(Guest::new(&Script::new().put(SCAN_START, SCAN_LEN)).run(args))
    }

    /// From an address to the end of what was read.
    #[track_caller]
    fn at(&self, gpa: u64) -> &[u8] {
        let offset =
            usize::try_from(gpa).unwrap().checked_sub(SCAN_START as usize).expect("in the scanned area");
        &self.0[offset..]
    }

    /// A whole table, its checksum and signature checked.
    #[track_caller]
    fn table(&self, gpa: u64, signature: &[u8; 4]) -> &[u8] {
        let bytes = self.at(gpa);
        let table = &bytes[..u32_at(bytes, 4) as usize];
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(table), 0, "checksum of {}", signature.escape_ascii());
        table
    }

    /// Looks at every 16-byte boundary (ACPI 6.5 §5.2.5.1).
    fn rsdp(&self) -> &[u8] {
        let mut places = self.0.chunks(16).enumerate().filter(|(_, chunk)| chunk.starts_with(b"RSD PTR "));
        let (at, _) = places.next().expect("an RSDP");
        assert!(places.next().is_none(), "a second RSDP");
        &self.0[at * 16..][..36]
    }

    fn all(&self) -> [&[u8]; 4] {
        let rsdp = self.rsdp();
        let xsdt = self.table(u64_at(rsdp, 24), b"XSDT");
        let fadt = self.table(u64_at(xsdt, 36), b"FACP");
        let madt = self.table(u64_at(xsdt, 44), b"APIC");
        [xsdt, fadt, madt, self.table(u64_at(fadt, 140), b"DSDT")]
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn a_scan_finds_the_rsdp_and_every_checksum_is_right() {
    let tables = Tables::of(&[]);
    let rsdp = tables.rsdp();
    assert_eq!((sum(&rsdp[..20]), sum(rsdp), rsdp[15]), (0, 0, 2), "checksums and revision");
    assert_eq!(u32_at(rsdp, 20), 36);
    tables.all();
}

#[test]
fn each_machine_has_a_generation_id_of_its_own_where_the_dsdt_says() {
    const GPA: u32 = 0xe_0030;
    let id = || {
        let tables = Tables::of(&[]);
        let [.., dsdt] = tables.all();
        // "ADDR", a package of two: a double word, and zero.
        let address = [&b"ADDR\x12\x08\x02\x0c"[..], &GPA.to_le_bytes(), &[0]].concat();
        assert!(dsdt.windows(address.len()).any(|bytes| bytes == address));
        tables.at(GPA.into())[..16].to_vec()
    };
    let (first, second) = (id(), id());
    assert!(first != second && first != [0; 16] && second != [0; 16], "{first:?} {second:?}");
}

#[test]
fn the_fadt_is_a_hardware_reduced_one_with_sleep_and_reset_registers() {
    let tables = Tables::of(&[]);
    let [_, fadt, ..] = tables.all();
    let flags = u32_at(fadt, 112);
    assert_eq!(flags >> 20 & 1, 1, "HW_REDUCED_ACPI");
    assert_eq!(flags >> 10 & 1, 1, "RESET_REG_SUP");
    assert_eq!(flags >> 4 & 3, 3, "no fixed buttons");
    let arch = u16::from_le_bytes([fadt[109], fadt[110]]);
    assert_eq!(arch & 0b10_0110, 0b10_0100, "no VGA, no RTC, no i8042: {arch:#b}");
    let register = |at: usize| (fadt[at], u64_at(fadt, at + 4));
    assert_eq!((register(116), fadt[128]), ((1, 0x602), 1), "reset");
    assert_eq!((register(244), register(256)), ((1, 0x600), (1, 0x601)), "sleep control and status");
}

#[test]
fn the_madt_lists_every_processor_and_the_ioapic() {
    for cpus in [1, 64] {
        let tables = Tables::of(&["--cpus", &cpus.to_string()]);
        let [_, _, madt, _] = tables.all();
        assert_eq!(u32_at(madt, 36), 0xfee0_0000);
        let (mut rest, mut ids, mut ioapics) = (&madt[44..], Vec::new(), Vec::new());
        while let [kind, len, ..] = *rest {
            let (entry, next) = rest.split_at(len.into());
            match kind {
                0 if entry[4] & 1 == 1 => ids.push(usize::from(entry[3])),
                1 => ioapics.push((u32_at(entry, 4), u32_at(entry, 8))),
                _ => panic!("an entry of kind {kind}"),
            }
            rest = next;
        }
        assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
        assert_eq!(ioapics, [(0xfec0_0000, 0)]);
    }
}

/// The DSDT as source, by iasl.
fn disassembled(test: &str, args: &[&str]) -> Option<String> {
    if !support::installed("iasl") {
        could_not_run(test, "iasl is not installed (apt-get install acpica-tools)");
        return None;
    }
    let dir = support::scratch();
    let tables = Tables::of(args);
    let names = ["XSDT", "FACP", "APIC", "DSDT"];
    for (name, table) in names.into_iter().zip(tables.all()) {
        support::file(dir.path(), &format!("{name}.aml"), table);
        let output = Command::new("iasl")
            .arg("-d")
            .arg(format!("{name}.aml"))
            .current_dir(dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("rror"), "{name}: {said}");
    }
    let source = std::fs::read_to_string(dir.path().join("DSDT.dsl")).unwrap();
    // What was taken apart can be put together again: a malformed DSDT can't.
    let output =
        Command::new("iasl").args(["-p", "again", "DSDT.dsl"]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Some(source)
}

#[test]
fn the_dsdt_describes_each_device_to_a_disassembler() {
    let dir = support::scratch();
    let disk = support::file(dir.path(), "disk", &[0; 512]);
    let disk = disk.to_str().unwrap();
    let test = "acpi::the_dsdt_describes_each_device_to_a_disassembler";
    let Some(source) =
        disassembled(test, &["--disk", &format!("{disk},ro"), "--disk", &format!("{disk},ro")])
    else {
        return;
    };
    for (text, count) in [
        ("\"LNRO0005\"", 4),
        ("0xD0000000,", 1),
        ("0xD0001000,", 1),
        ("0xD0002000,", 1),
        ("0xD0003000,", 1),
        ("EisaId (\"PNP0501\")", 1),
        ("EisaId (\"PNP0C0C\")", 1),
        ("\"ACPI0013\"", 1),
        ("\"QEMU0001\"", 1),
        ("Edge, ActiveHigh, Exclusive", 6),
        ("Level,", 0),
        ("Name (_S5, Package", 1),
        ("Method (_EVT, 1", 1),
        ("Notify (\\_SB.PWRB, 0x80)", 1),
        ("Notify (\\_SB.VGEN, 0x80)", 1),
        ("\"VM_Gen_Counter\"", 2),
    ] {
        assert_eq!(source.matches(text).count(), count, "{text} in\n{source}");
    }
}

#[test]
fn without_a_console_the_dsdt_has_no_serial_port() {
    // There is no serial port to dump the tables by; the reset is the answer. "COM1" stands nowhere
    // in the tables.
    let with = Tables::of(&[]);
    let at = with.0.windows(4).position(|window| window == b"COM1").expect("with a console there is one");
    let gpa = SCAN_START + u32::try_from(at).unwrap();
    let word = u32::from_le_bytes(*b"COM1");
    let dir = support::scratch();
    let script = Script::new().wait(gpa & !3, 0, 0).read32(gpa, 0x80_0000).wait(0x80_0000, u32::MAX, word);
    let kernel = Guest::new(&script.out8(0x505, 1).halt()).write(dir.path());
    support::Bothy::boot(&kernel).run().code(3);
    support::Bothy::boot(&kernel).args(["--console", "none"]).run().code(0);
}
