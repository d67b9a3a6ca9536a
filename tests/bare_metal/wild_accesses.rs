//! A guest that writes everywhere in its PCI functions, in every width: their doorbells, their
//! BARs, their configuration spaces. Afterwards they all work.

use super::boot_state::noise;
use super::driver::*;
use super::guest::{Guest, long_result, u64_at, words};
use super::script::{RESULTS, Script};
use crate::support::{Finished, scratch};

const PCI: [&str; 2] = ["--transport", "pci"];

// The devices of these guests, in their order on the bus.
const DISK: u32 = 0;
const ENTROPY: u32 = 1;
const VSOCK: u32 = 2;
const BALLOON: u32 = 3;

/// Numbers that look random and are the same each time (xorshift64).
struct Random(u64);

impl Random {
    fn word(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 32).unwrap()
    }

    fn below(&mut self, end: u32) -> u32 {
        self.word() % end
    }

    fn one_of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.word() as usize % items.len()]
    }
}

impl Script {
    /// Back to what a driver finds, so far as it does not set it itself.
    fn recover(self, device: u32) -> Self {
        let space = pci::space(device);
        self.write32(space + pci::BAR0, pci::bar(device))
            .write16(space + pci::COMMAND, pci::MEMORY)
            .write16(space + pci::MSIX_CONTROL, 0)
            .each([0, 1, 2, 3], |script, vector| {
                script.write32(pci::bar(device) + pci::MSIX_TABLE + 16 * vector + 12, 1)
            })
    }

    /// Uses the entropy device and the disk, and sends what came of it: [`all_work`] expects it at
    /// the end.
    fn use_all(self) -> Self {
        self.entropy_works(Transport::Pci.device(ENTROPY))
            .write8(STATUS_BYTE, 0xee)
            .fill(DATA, 0, 512)
            .fill(RING + USED, 0, 64)
            .start_device(Transport::Pci.device(DISK), RING, 0)
            .notify(Transport::Pci.device(DISK))
            .wait_used(RING, 1)
            .put(STATUS_BYTE, 1)
            .put(DATA, 512)
    }
}

/// With one read of the disk in [`RING`].
fn requests() -> Requests {
    Requests::default().add(BLK_IN, 0, Some((DATA, 512, true)))
}

/// Runs a guest that ends with [`Script::use_all`] with all kinds of devices, sees that they
/// worked, and gives what it sent before.
#[track_caller]
fn all_work(guest: &Guest) -> Finished {
    let dir = scratch();
    let disk = disk(dir.path(), &noise(512));
    let (bothy, _kernel) = guest.boot();
    let vsock = dir.path().join("vsock");
    let bothy = bothy.args(PCI).args(["--disk", &disk, "--vsock", vsock.to_str().unwrap()]);
    let mut finished = bothy.run().code(0);
    let expected = [&[b'r', OK][..], &noise(512)].concat();
    assert!(finished.stdout.ends_with(&expected), "{}", finished.streams());
    finished.stdout.truncate(finished.stdout.len() - expected.len());
    finished
}

#[test]
fn a_doorbell_takes_any_value_in_any_width_and_there_are_no_others() {
    let disk = Transport::Pci.device(DISK);
    let bells = pci::bar(DISK) + pci::NOTIFY;
    // Four bytes are the first queue's, and the disk has no second one.
    let rings = [1, 2, 4].into_iter().flat_map(|len| (0..4).map(move |at| (at, len)));
    let values = [0, 1, u32::MAX];
    let rings: Vec<_> = rings.flat_map(|(at, len)| values.map(|value| (at, len, value))).collect();
    // A value that names the first queue, at the places of others.
    let others = (4..0x1000).step_by(0x3b).chain([4, 5, 6, 7, 8, 0xffc, 0xffe, 0xfff]);
    let script = Script::new()
        .start_device(disk, RING, 0)
        .wait_used(RING, 1)
        // Now it does not look any more unless it is notified.
        .sleep(8)
        .offer(RING, 2)
        .each(others, |script, at| script.write8(bells + at, 0).write16(bells + at, 0).write32(bells + at, 0))
        .sleep(2)
        .read32(RING + USED, RESULTS)
        // And what there is to read of doorbells.
        .read32(bells, RESULTS + 4)
        .read32(bells + 4, RESULTS + 8)
        .put(RESULTS, 12)
        .each(rings.iter().zip(2..), |script, ((at, len, value), count)| {
            // The same head over and over: a zero, as everywhere in the avail ring.
            let offered = script.offer(RING, u16::try_from(count).unwrap());
            offered.write(bells + at, *len, *value).wait_used(RING, count)
        })
        .offer(RING, 1)
        .use_all();
    let finished = all_work(&requests().guest(&script));
    assert_eq!(words(&finished.stdout), [1 << 16, 0, 0], "not rung: {}", finished.streams());
}

#[test]
fn doorbells_of_all_devices_may_be_rung_at_any_time() {
    let devices = [DISK, ENTROPY, VSOCK, BALLOON];
    let ring_all = |script: Script| {
        script.each(devices, |script, device| {
            script.each(0..10, |script, n| {
                let bell = pci::bar(device) + pci::NOTIFY + n;
                script.write8(bell, 0).write16(bell, 0).write32(bell, u32::MAX)
            })
        })
    };
    // Before memory is on, before there is a driver, before there are queues, and after all that.
    let script = ring_all(Script::new())
        .each(devices, |script, device| script.write16(pci::space(device) + pci::COMMAND, pci::MEMORY));
    let script =
        ring_all(script).each(devices, |script, device| script.negotiate(Transport::Pci.device(device), 0));
    let script = ring_all(script)
        .each(devices, |script, device| script.set(Transport::Pci.device(device), STATUS, LIVE));
    let script =
        ring_all(script).each(devices, |script, device| script.set(Transport::Pci.device(device), STATUS, 0));
    all_work(&requests().guest(&ring_all(script).use_all()));
}

/// Where queues may be that are set up at random, and all that their devices may write to: zeros,
/// far from everything else.
const PLAYGROUND: u32 = 0x60_0000;

/// The registers of the common configuration, with their widths; the queue's addresses are many,
/// since they have halves.
const REGISTERS: [(u32, u32); 16] = [
    (0x00, 4),
    (0x04, 4),
    (0x08, 4),
    (0x0c, 4),
    (pci::CONFIG_VECTOR, 2),
    (pci::DEVICE_STATUS, 1),
    (pci::QUEUE_SELECT, 2),
    (0x18, 2),
    (pci::QUEUE_VECTOR, 2),
    (0x1c, 2),
    (0x20, 4),
    (0x24, 4),
    (0x28, 4),
    (0x2c, 4),
    (0x30, 4),
    (0x34, 4),
];

/// A place in a configuration space (`true`) or a BAR, and a width: mostly where something is.
fn somewhere(random: &mut Random) -> (bool, u32, u32) {
    let (in_space, start, len) = match random.below(16) {
        0..5 => {
            let (at, len) = random.one_of(&REGISTERS);
            return (false, at, len);
        }
        5 => (false, 0, pci::COMMON_LEN + 4),
        6 => (false, pci::ISR, 8),
        7 => (false, pci::DEVICE_CONFIG, 0x80),
        8 => (false, pci::NOTIFY, 0x20),
        9 => (false, pci::MSIX_TABLE, 0x50),
        10 => (false, pci::MSIX_PENDING, 0x10),
        11 => (false, 0, pci::BAR_LEN),
        12 => (true, 0, 0x90),
        13..15 => (true, pci::ACCESS, 20),
        _ => (true, 0, 0x1000),
    };
    (in_space, start + random.below(len), random.one_of(&[1, 2, 4]))
}

/// A value for such a place. It may be anything that harms the device, and not what makes the
/// device harm the guest: queues where the script is, or interrupts that reset a processor.
fn something(random: &mut Random, in_space: bool, at: u32) -> u32 {
    let small = random.below(4);
    let any = random.word();
    let value = random.one_of(&[0, 1, small, u32::MAX, 1 << (any % 32), any]);
    match (in_space, at) {
        (false, pci::QUEUE_DESC..=pci::COMMON_LEN) => {
            // Each part of a queue has its own, so that none is taken for another.
            let part = PLAYGROUND + 0x1_0000 * ((at - pci::QUEUE_DESC) / 8);
            random.one_of(&[0, part, part + 16 * small, part + 1, (32 << 20) - 16, 32 << 20, u32::MAX])
        }
        // Fixed interrupts alone: without the bits of the delivery mode.
        (false, pci::MSIX_TABLE..pci::MSIX_PENDING) => value & !0x700,
        (true, at) if (pci::ACCESS + 5..pci::ACCESS + 8).contains(&at) => 0,
        (true, at) if (pci::ACCESS + 8..pci::ACCESS + 16).contains(&at) => {
            random.one_of(&[1, 2, 4, 0x14, 0x16, 0x18, 0x1c, pci::NOTIFY, pci::MSIX_TABLE + 28, pci::BAR_LEN])
        }
        // Whatever it is aimed at.
        (true, at) if at > pci::ACCESS + 12 && at < pci::ACCESS + 20 => value & 1,
        _ => value,
    }
}

/// Reads and writes everywhere, and starts the device now and then, so that some of it happens
/// while it runs.
fn at_random(mut script: Script, random: &mut Random, device: u32, count: u32) -> Script {
    let own = Transport::Pci.device(device);
    for n in 0..count {
        if n.is_multiple_of(40) {
            script = script.recover(device).negotiate(own, 0).set_queue(own, 0, place(PLAYGROUND + 0x4_0000));
            script =
                script.write16(pci::bar(device) + pci::QUEUE_VECTOR, 1).set(own, STATUS, LIVE).notify(own);
        }
        let (in_space, at, len) = somewhere(random);
        let gpa = at + if in_space { pci::space(device) } else { pci::bar(device) };
        if random.below(4) == 0 {
            script = script.read(gpa, len, RESULTS);
        } else {
            script = script.write(gpa, len, something(random, in_space, at));
        }
        // Without its memory little would happen.
        if in_space {
            script = script.write16(pci::space(device) + pci::COMMAND, pci::MEMORY);
        }
    }
    script.recover(device)
}

#[test]
fn what_is_written_everywhere_at_random_does_no_harm() {
    for seed in [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x2545_f491_4f6c_dd1d, 1] {
        let mut random = Random(seed);
        let script = (0..4).fold(Script::new().enable_lapic(), |script, round| {
            // The disk's turn is last, and the entropy device has been through it as well.
            [VSOCK, BALLOON, ENTROPY, DISK]
                .into_iter()
                .fold(script, |script, device| at_random(script, &mut random, device, 1000).say(b'0' + round))
        });
        // What each device finds in its queue: four bytes that it may read, the number of a page,
        // and some that it may write.
        let buffer = PLAYGROUND + 0x8_0000;
        let descriptors = [(buffer.into(), 4, 0, 0), ((buffer + 0x1000).into(), 16, WRITE, 0)];
        let guest = requests()
            .guest(&script.use_all())
            .data(PLAYGROUND + 0x4_0000, ring(&descriptors, &[0, 1]))
            .data(buffer, (buffer >> 12).to_le_bytes());
        assert_eq!(all_work(&guest).stdout, b"0000111122223333", "seed {seed:#x}");
    }
}

#[test]
fn accesses_of_eight_bytes_reach_what_has_eight_and_do_no_harm_elsewhere() {
    let (bar, space) = (u64::from(pci::bar(DISK)), u64::from(pci::space(DISK)));
    let register = |at: u32| bar + u64::from(at);
    let mut accesses = vec![(1, space, 0x0006_0000_0000_0000), (1, space + 4, 0x0006)];
    let first = u32::try_from(accesses.len()).unwrap();
    // Whole addresses, and a whole message address.
    for (at, value) in [(0x20, 0x1122_3344_5566_7780), (0x28, u64::MAX), (pci::MSIX_TABLE, 0x1_fee0_1000)] {
        accesses.extend([(1, register(at), value), (2, register(at), 0)]);
    }
    let wide = accesses.len();
    // Everything else, three times over, and across the ends of parts; neither the doorbells'
    // values nor resets matter here.
    for value in [0, u64::MAX, 0x0102_0408_1020_4080] {
        let bars = (0..0x48).chain((0x40..u64::from(pci::BAR_LEN)).step_by(0x1fc)).map(|at| bar + at);
        let ends = [pci::MSIX_TABLE, pci::MSIX_PENDING, pci::NOTIFY, pci::DEVICE_CONFIG, pci::BAR_LEN]
            .map(|at| register(at) - 4);
        let spaces = (0..0xa8).chain([0xfc, 0xffc]).map(|at| space + at);
        accesses.extend(bars.chain(ends).chain(spaces).flat_map(|gpa| [(1, gpa, value), (2, gpa, 0)]));
        accesses.push((1, space + 4, 0x0006));
    }
    assert!(accesses.len() > wide);
    let results = [1, 3, 5].map(|n| long_result(first + n));
    let script = Script::new().each(results, |script, at| script.put(at, 8)).recover(DISK).use_all();
    let requests = requests();
    let guest = Guest::with_long_accesses(&script, &accesses)
        .data(RING, ring(&requests.descriptors, &requests.heads))
        .data(HEADER, requests.headers)
        .data(OTHER_RING, entropy_ring());
    let finished = all_work(&guest);
    let read: Vec<u64> = (0..3).map(|n| u64_at(&finished.stdout, 8 * n)).collect();
    assert_eq!(read, [0x1122_3344_5566_7780, u64::MAX, 0x1_fee0_1000], "{read:x?}");
}
