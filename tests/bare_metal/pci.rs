//! Functions on the PCI bus: their configuration spaces, their BARs, and what a guest does to both.
//! Their interrupts are in [`msix`](super::msix).

use super::boot_state::noise;
use super::driver::*;
use super::guest::{Guest, u16_at, u32_at, words};
use super::script::{RESULTS, Script};
use crate::support::scratch;

const PCI: [&str; 2] = ["--transport", "pci"];

/// Bytes of a configuration space that this looks at; there is nothing behind them.
const SPACE_LEN: u32 = 0x100;
const HEADER_LEN: usize = 0x40;
/// The first capability's register.
const CAPABILITIES: usize = 0x34;
const MSIX: u8 = 0x11;
const VENDOR: u8 = 0x09;

impl Script {
    /// Copies a configuration space to `to`.
    fn dump(self, device: u32, to: u32) -> Self {
        self.each((0..SPACE_LEN).step_by(4), |script, at| script.read32(pci::space(device) + at, to + at))
    }

    /// Aims the access capability at `len` bytes of BAR `bar`.
    fn aim(self, device: u32, bar: u8, offset: u32, len: u32) -> Self {
        let at = pci::space(device) + pci::ACCESS;
        self.write8(at + 4, bar).write32(at + 8, offset).write32(at + 12, len)
    }

    /// Writes to the BAR through the access capability.
    fn put_through(self, device: u32, offset: u32, len: u32, value: u32) -> Self {
        self.aim(device, 0, offset, len).write(pci::space(device) + pci::ACCESS + 16, len, value)
    }

    fn get_through(self, device: u32, offset: u32, len: u32, to: u32) -> Self {
        self.aim(device, 0, offset, len).read(pci::space(device) + pci::ACCESS + 16, len, to)
    }
}

/// A guest with the requests and rings that these tests use: one read of the disk, and the entropy
/// device's.
fn guest(script: &Script) -> Guest {
    Requests::default().add(BLK_IN, 0, Some((DATA, 512, true))).guest(script)
}

/// Where the capabilities of a configuration space are, with their ids.
fn capabilities(space: &[u8]) -> Vec<(usize, u8)> {
    let mut found = Vec::new();
    let mut at = usize::from(space[CAPABILITIES]);
    while at != 0 {
        assert!(at >= HEADER_LEN && at.is_multiple_of(4) && found.len() < 48, "a list that ends: {found:?}");
        found.push((at, space[at]));
        at = space[at + 1].into();
    }
    found
}

#[test]
fn each_function_says_what_it_is_and_where_everything_is() {
    let dir = scratch();
    let disk = disk(dir.path(), &[0; 512]);
    let script = Script::new()
        .each(0..4, |script, n| script.dump(n, RESULTS + n * SPACE_LEN))
        .put(RESULTS, 4 * SPACE_LEN);
    let output = Guest::new(&script).run(&["--disk", &disk, PCI[0], PCI[1]]);
    let spaces: Vec<&[u8]> = output.chunks(SPACE_LEN as usize).collect();
    assert!(spaces[3].iter().all(|byte| *byte == 0xff), "no fourth function");
    for (n, (id, class)) in [(2, 0x01_80), (4, 0x10_00), (5, 0xff_00)].into_iter().enumerate() {
        let space = spaces[n];
        assert_eq!([u16_at(space, 0), u16_at(space, 2)], [0x1af4, 0x1040 + id], "vendor and device");
        assert_eq!([u16_at(space, 0x2c), u16_at(space, 0x2e)], [0x1af4, 0x1040 + id], "subsystem");
        assert_eq!(u16_at(space, 0x06) & 0x10, 0x10, "there are capabilities");
        assert!(space[0x08] >= 1, "a revision from after the drafts");
        assert_eq!((u16_at(space, 0x0a), space[0x0e]), (class, 0), "class, and a header of type 0");
        let bars = [pci::bar(u32::try_from(n).unwrap()), 0, 0, 0, 0, 0];
        assert_eq!(words(&space[0x10..0x28]), bars, "one BAR, of 32 bits");
        assert_eq!((u32_at(space, 0x30), space[0x3d]), (0, 0), "neither a ROM nor a pin for interrupts");
        says_where_everything_is(space);
    }
}

fn says_where_everything_is(space: &[u8]) {
    let mut parts = Vec::new();
    let mut kinds = Vec::new();
    for (at, id) in capabilities(space) {
        let long = |offset| u32_at(space, at + offset);
        if id == MSIX {
            assert_eq!(at + 2, pci::MSIX_CONTROL as usize);
            let count = u32::from(u16_at(space, at + 2) & 0x7ff) + 1;
            assert_eq!((long(4), long(8)), (pci::MSIX_TABLE, pci::MSIX_PENDING), "both in BAR 0");
            parts.push((pci::MSIX_TABLE, count * 16));
            parts.push((pci::MSIX_PENDING, count.div_ceil(64) * 8));
            kinds.push(0);
            continue;
        }
        assert_eq!(id, VENDOR, "no other capability");
        let (len, kind, bar) = (space[at + 2], space[at + 3], space[at + 4]);
        assert_eq!((len, bar), (if matches!(kind, 2 | 5) { 20 } else { 16 }, 0), "of kind {kind}");
        let expected = match kind {
            1 => 0,
            2 => pci::NOTIFY,
            3 => pci::ISR,
            4 => pci::DEVICE_CONFIG,
            _ => {
                assert_eq!((at, kind, long(8), long(12)), (pci::ACCESS as usize, 5, 0, 0));
                kinds.push(kind);
                continue;
            }
        };
        assert_eq!(long(8), expected, "the place of kind {kind}");
        if kind == 1 {
            assert_eq!(long(12), pci::COMMON_LEN);
        }
        if kind == 2 {
            assert_eq!(long(16), 4, "bytes between doorbells");
        }
        parts.push((long(8), long(12)));
        kinds.push(kind);
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [0, 1, 2, 3, 4, 5], "MSI-X and all of virtio's, once each");
    parts.sort_unstable();
    let ends = parts.iter().map(|(start, len)| start + len);
    let starts = parts[1..].iter().map(|(start, _)| *start).chain([pci::BAR_LEN]);
    assert!(ends.zip(starts).all(|(end, start)| end <= start), "apart and in the BAR: {parts:x?}");
}

#[test]
fn there_is_nothing_beside_the_functions_and_behind_their_registers() {
    let nowhere = [3, 30, 31]
        .map(pci::space)
        .into_iter()
        // The other functions of the first device, the bus's end, and what is behind it.
        .chain((1..8).map(|function| pci::space(0) + function * 0x1000))
        .chain([0xe00f_fffc, 0xe010_0000]);
    let nowhere: Vec<u32> = nowhere.collect();
    let empty: Vec<u32> = (SPACE_LEN..0x1000).step_by(0x3c).collect();
    let all = nowhere.iter().copied().chain(empty.iter().map(|at| pci::space(0) + at)).zip(0..);
    let script = Script::new()
        .each(all, |script, (gpa, n)| {
            let to = RESULTS + n * 12;
            script.write32(gpa, 0x1234_5678).read8(gpa, to).read16(gpa, to + 4).read32(gpa, to + 8)
        })
        .put(RESULTS, u32::try_from((nowhere.len() + empty.len()) * 12).unwrap())
        .entropy_works(Transport::Pci.device(0));
    let (bothy, _kernel) = guest(&script).boot();
    let finished = bothy.args(PCI).run().code(0);
    let (read, rest) = finished.stdout.split_at(finished.stdout.len() - 1);
    let (beside, behind) = read.split_at(nowhere.len() * 12);
    assert!(beside.chunks(12).all(|read| words(read) == [0xff, 0xffff, u32::MAX]), "{}", finished.streams());
    assert!(behind.iter().all(|byte| *byte == 0), "behind the registers: {}", finished.streams());
    assert_eq!(rest, b"r");
}

#[test]
fn a_space_reads_the_same_at_every_width() {
    let script = [1, 2, 4].into_iter().zip(0..).fold(Script::new(), |script, (len, n)| {
        (0..SPACE_LEN)
            .step_by(len as usize)
            .fold(script, |script, at| script.read(pci::space(0) + at, len, RESULTS + n * 0x1000 + at))
            .put(RESULTS + n * 0x1000, SPACE_LEN)
    });
    // Each read stores four bytes, and the next one overwrites what is above its own.
    let output = Guest::new(&script).run(&PCI);
    let (bytes, rest) = output.split_at(SPACE_LEN as usize);
    assert_eq!(u16_at(bytes, 0), 0x1af4);
    assert!(rest.chunks(SPACE_LEN as usize).all(|other| other == bytes), "{output:x?}");
}

#[test]
fn what_is_written_to_a_space_changes_what_is_writable_and_nothing_else() {
    for len in [1, 2, 4] {
        let fill = |script: Script, value| {
            script.each((0..SPACE_LEN).step_by(len as usize), |script, at| {
                script.write(pci::space(0) + at, len, value)
            })
        };
        let script = fill(Script::new().dump(0, RESULTS), u32::MAX).dump(0, RESULTS + SPACE_LEN);
        let script = fill(script, 0)
            .dump(0, RESULTS + 2 * SPACE_LEN)
            .put(RESULTS, 3 * SPACE_LEN)
            // The BAR is moved by the zeros: back to its place with it.
            .write32(pci::space(0) + pci::BAR0, pci::bar(0))
            .entropy_works(Transport::Pci.device(0));
        let (bothy, _kernel) = guest(&script).boot();
        let output = bothy.args(PCI).run().code(0).stdout;
        let spaces: Vec<&[u8]> = output.chunks(SPACE_LEN as usize).collect();
        let mut writable = [0; SPACE_LEN as usize];
        let mut allow = |at: u32, bits: &[u8]| writable[at as usize..][..bits.len()].copy_from_slice(bits);
        // Memory, bus master and no INTx; a BAR of 32 KiB; the interrupt line, which is the
        // firmware's.
        allow(pci::COMMAND, &[0x06, 0x04]);
        allow(pci::BAR0, &(!(pci::BAR_LEN - 1)).to_le_bytes());
        allow(0x3c, &[0xff]);
        allow(pci::MSIX_CONTROL, &(pci::MSIX_ENABLE | pci::MSIX_MASK_ALL).to_le_bytes());
        allow(pci::ACCESS + 4, &[0xff]);
        allow(pci::ACCESS + 8, &[0xff; 12]);
        let expected = |of: fn(u8, u8) -> u8| -> Vec<u8> {
            spaces[0].iter().zip(writable).map(|(before, writable)| of(*before, writable)).collect()
        };
        assert_eq!(spaces[1], expected(|before, writable| before | writable), "ones, {len} bytes at a time");
        assert_eq!(
            spaces[2],
            expected(|before, writable| before & !writable),
            "zeros, {len} bytes at a time"
        );
        assert_eq!(spaces[3], b"r");
    }
}

#[test]
fn a_bar_says_its_size_and_works_where_it_was() {
    let bars = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map(|bar| pci::space(0) + bar);
    let script = Script::new()
        .offer(OTHER_RING, 0)
        .start_device(Transport::Pci.device(0), OTHER_RING, 0)
        .each(bars.into_iter().zip(0..), |script, (bar, n)| {
            script
                .read32(bar, RESULTS + 0x100)
                .write32(bar, u32::MAX)
                .read32(bar, RESULTS + n * 4)
                // As Linux does it: what was there, as it was read.
                .copy(RESULTS + 0x104, RESULTS + 0x100, 4)
        })
        .write32(bars[0], pci::bar(0))
        .read32(bars[0], RESULTS + 28)
        .put(RESULTS, 32)
        .offer(OTHER_RING, 1)
        .notify(Transport::Pci.device(0))
        .wait_used(OTHER_RING, 1);
    let read = words(&guest(&script).run(&PCI));
    assert_eq!(read, [!(pci::BAR_LEN - 1), 0, 0, 0, 0, 0, 0, pci::bar(0)]);
}

#[test]
fn a_bar_that_is_moved_loses_its_device_until_it_is_back_and_no_other() {
    let dir = scratch();
    let path = disk(dir.path(), &noise(512));
    let (disk, entropy) = (Transport::Pci.device(0), Transport::Pci.device(1));
    const FREE: u32 = 0xc800_0000;
    const MEMORY: u32 = 0x60_0000;
    // Free, the next one's place, memory, where MMIO devices are, the configuration spaces, the
    // interrupt controllers, the end.
    for base in [FREE, pci::bar(1), MEMORY, 0xd000_0000, pci::space(1), 0xfec0_0000, 0xfee0_0000, 0xffff_0000]
    {
        let script = Script::new()
            .offer(RING, 0)
            .start_device(disk, RING, 0)
            .write32(pci::space(0) + pci::BAR0, base)
            .read32(FREE + pci::NUM_QUEUES, RESULTS)
            .write32(MEMORY + pci::DEVICE_STATUS, 0x1234_5678)
            .read32(MEMORY + pci::DEVICE_STATUS, RESULTS + 4)
            .put(RESULTS, 8)
            .entropy_works(entropy)
            .write32(pci::space(0) + pci::BAR0, pci::bar(0))
            .offer(RING, 1)
            .notify(disk)
            .wait_used(RING, 1)
            .put(STATUS_BYTE, 1)
            .put(DATA, 512);
        let (bothy, _kernel) = guest(&script).boot();
        let finished = bothy.args(PCI).args(["--disk", &path]).run().code(0).says("the BAR can't be moved");
        let expected = [&[0xff; 4][..], &[0x78, 0x56, 0x34, 0x12], &[b'r', OK], &noise(512)].concat();
        assert!(finished.stdout == expected, "to {base:#x}: {}", finished.streams());
    }
}

#[test]
fn a_function_without_its_memory_answers_nothing_and_takes_nothing() {
    let dir = scratch();
    let path = disk(dir.path(), &noise(512));
    let (disk, entropy) = (Transport::Pci.device(0), Transport::Pci.device(1));
    let (command, bar) = (pci::space(0) + pci::COMMAND, pci::bar(0));
    let script = Script::new()
        .read32(bar, RESULTS)
        .offer(RING, 0)
        .start_device(disk, RING, 0)
        .write16(command, pci::BUS_MASTER)
        .read32(bar + pci::DEVICE_STATUS, RESULTS + 4)
        .read32(bar + pci::DEVICE_CONFIG, RESULTS + 8)
        .read32(bar + pci::MSIX_TABLE, RESULTS + 12)
        .read32(bar + pci::MSIX_PENDING, RESULTS + 16)
        .write8(bar + pci::DEVICE_STATUS, 0)
        .write32(bar + pci::MSIX_TABLE, 0x1234)
        .entropy_works(entropy)
        .write16(command, pci::BUS_MASTER | pci::MEMORY)
        .get(disk, STATUS, RESULTS + 20)
        .read32(bar + pci::MSIX_TABLE, RESULTS + 24)
        .put(RESULTS, 28)
        .offer(RING, 1)
        .notify(disk)
        .wait_used(RING, 1)
        .put(STATUS_BYTE, 1)
        .put(DATA, 512);
    let output = guest(&script).run(&["--disk", &path, PCI[0], PCI[1]]);
    assert_eq!(output[0], b'r');
    assert_eq!(words(&output[1..29]), [u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX, LIVE, 0]);
    assert!(output[29] == OK && output[30..] == noise(512));
}

#[test]
fn a_device_is_driven_through_its_configuration_space_alone() {
    let ring = place(OTHER_RING);
    // All that a driver does, with the BAR switched off throughout.
    let mut script = Script::new()
        .offer(OTHER_RING, 0)
        .get_through(0, pci::NUM_QUEUES, 2, RESULTS)
        .put_through(0, 0x08, 4, 1)
        .put_through(0, pci::DEVICE_STATUS, 1, 3)
        .put_through(0, 0x0c, 4, 1)
        .put_through(0, pci::DEVICE_STATUS, 1, 0xb)
        .put_through(0, 0x18, 2, ring.size);
    for (at, gpa) in [(0x20, ring.desc), (0x28, ring.driver), (0x30, ring.device)] {
        script = script.put_through(0, at, 4, gpa);
    }
    let script = script
        .put_through(0, 0x1c, 2, 1)
        .put_through(0, pci::DEVICE_STATUS, 1, LIVE)
        .get_through(0, pci::DEVICE_STATUS, 1, RESULTS + 4)
        .read32(pci::bar(0), RESULTS + 8)
        .offer(OTHER_RING, 1)
        .put_through(0, pci::NOTIFY, 2, 0)
        .wait_used(OTHER_RING, 1)
        .put(RESULTS, 12);
    assert_eq!(words(&guest(&script).run(&PCI)), [1, LIVE, u32::MAX]);
}

#[test]
fn an_access_through_the_space_that_makes_no_sense_reaches_nothing() {
    let data = pci::space(0) + pci::ACCESS + 16;
    let status = pci::DEVICE_STATUS;
    // BAR, offset, length: another BAR, a length that is none, an offset that is misaligned for it
    // or behind the BAR.
    let windows = [
        (1, status, 1),
        (5, status, 1),
        (0xff, status, 1),
        (0, status, 0),
        (0, status, 3),
        (0, status, 8),
        (0, status, u32::MAX),
        (0, status - 1, 2),
        (0, status - 1, 4),
        (0, pci::BAR_LEN, 4),
        (0, pci::BAR_LEN + status, 1),
        (0, u32::MAX, 1),
        (0, u32::MAX - 3, 4),
        (0, 0x8000_0000 | status, 1),
    ];
    let entropy = Transport::Pci.device(0);
    let script = Script::new()
        .offer(OTHER_RING, 0)
        .start_device(entropy, OTHER_RING, 0)
        // A status of 0 would reset the device.
        .each(windows, |script, (bar, offset, len)| {
            [1, 2, 4].into_iter().fold(script.aim(0, bar, offset, len), |script, width| {
                script.read(data, width, RESULTS + 4).write(data, width, 0)
            })
        })
        .get(entropy, STATUS, RESULTS)
        .put(RESULTS, 4)
        .offer(OTHER_RING, 1)
        .notify(entropy)
        .wait_used(OTHER_RING, 1)
        // And the capability works again.
        .get_through(0, status, 1, RESULTS)
        .put_through(0, status, 1, 0)
        .get_through(0, status, 1, RESULTS + 4)
        .put(RESULTS, 8);
    let (bothy, _kernel) = guest(&script).boot();
    assert_eq!(words(&bothy.args(PCI).run().code(0).stdout), [LIVE, LIVE, 0]);
}

#[test]
fn a_bus_with_the_most_devices_has_them_all() {
    let dir = scratch();
    let path = disk(dir.path(), &[0; 512]);
    let disks = most_disks(&path);
    let script = Script::new()
        .each(0..20, |script, device| script.read32(pci::space(device), RESULTS + 4 * device))
        .entropy_works(Transport::Pci.device(16))
        .put(RESULTS, 80);
    let (bothy, _kernel) = guest(&script).boot();
    let vsock = dir.path().join("vsock");
    let bothy = bothy.args(PCI).args(&disks).args([std::ffi::OsStr::new("--vsock"), vsock.as_os_str()]);
    let output = bothy.run().output();
    let ids = [2; 16].into_iter().chain([4, 19, 5]).map(|id| (0x1040 + id) << 16 | 0x1af4);
    assert_eq!((output[0], words(&output[1..])), (b'r', ids.chain([u32::MAX]).collect()));
}
