//! What a driver can do wrong with a ring, over either transport: the device says
//! DEVICE_NEEDS_RESET and stops, everything else goes on, and after a reset it works again.

use super::boot_state::noise;
use super::driver::*;
use super::guest::{Guest, u32_at};
use super::script::{RESULTS, Script};
use crate::support::scratch;

/// Bytes of the disk.
const LEN: usize = 1 << 20;

/// Does what `breaks` says to the disk (device 0), which may use the ring and the requests of
/// `guest`; then uses the entropy device (device 1), resets the disk and reads it. `said` is what
/// `breaks` sends.
fn is_survived(what: &str, breaks: impl Fn(Script, Device) -> Script, data: &[(u32, Vec<u8>)], said: &[u8]) {
    const GOOD_RING: u32 = 0x42_0000;
    let dir = scratch();
    let path = disk(dir.path(), &noise(LEN));
    for transport in Transport::BOTH {
        let (disk, entropy) = (transport.device(0), transport.device(1));
        let script = breaks(Script::new(), disk)
            .entropy_works(entropy)
            .write8(STATUS_BYTE, 0xee)
            .start_device(disk, GOOD_RING, 0)
            .get(disk, STATUS, RESULTS)
            .notify(disk)
            .wait_used(GOOD_RING, 1)
            .put(RESULTS, 1)
            .put(STATUS_BYTE, 1)
            .put(DATA, 512);
        let good = one_read();
        let guest = Guest::new(&script)
            .data(GOOD_RING, ring(&good.descriptors, &good.heads))
            .data(HEADER, good.headers)
            .data(OTHER_RING, entropy_ring());
        let guest = data.iter().fold(guest, |guest, (gpa, bytes)| guest.data(*gpa, bytes.clone()));
        let (bothy, _kernel) = guest.boot();
        // What the driver did wrong is told on standard error.
        let finished = bothy.args(transport.args()).args(["--disk", &path]).run().code(0);
        let expected = [said, &[b'r', 0xf, OK], &noise(512)].concat();
        assert!(finished.stdout == expected, "{what}, {transport:?}: {}", finished.streams());
    }
}

/// The disk's first sector to [`DATA`].
fn one_read() -> Requests {
    Requests::default().add(BLK_IN, 0, Some((DATA, 512, true)))
}

/// The same, for a queue of the driver's own making that is broken from the start.
fn broken_queue_is_survived(what: &str, place: Place, bytes: Vec<u8>) {
    broken_queue_with_features_is_survived(what, 0, place, bytes);
}

fn broken_queue_with_features_is_survived(what: &str, features: u32, place: Place, bytes: Vec<u8>) {
    let breaks = |script: Script, disk| {
        script
            .negotiate(disk, features)
            .set_queue(disk, 0, place)
            .set(disk, STATUS, LIVE)
            .notify(disk)
            .wait_needs_reset(disk)
            .say(b'n')
    };
    let data = if bytes.is_empty() { Vec::new() } else { vec![(place.desc, bytes)] };
    is_survived(what, breaks, &data, b"n");
}

#[test]
fn a_loop_of_descriptors_stops_the_device_and_nothing_else() {
    let descriptors = [(DATA.into(), 16, NEXT, 1), (DATA.into(), 16, NEXT, 0)];
    broken_queue_is_survived("a loop", place(RING), ring(&descriptors, &[0]));
}

#[test]
fn a_head_that_is_no_descriptor_stops_the_device_and_nothing_else() {
    broken_queue_is_survived("a wild head", place(RING), ring(&[(DATA.into(), 16, 0, 0)], &[SIZE]));
}

#[test]
fn a_next_that_is_no_descriptor_stops_the_device_and_nothing_else() {
    broken_queue_is_survived("a wild next", place(RING), ring(&[(DATA.into(), 16, NEXT, 0x7fff)], &[0]));
}

#[test]
fn a_buffer_outside_memory_stops_the_device_and_nothing_else() {
    for gpa in [32 << 20, (32 << 20) - 8, 0xd000_0000, u64::MAX - 7, 1 << 40] {
        broken_queue_is_survived("a buffer outside memory", place(RING), ring(&[(gpa, 16, 0, 0)], &[0]));
    }
}

#[test]
fn an_index_that_runs_ahead_stops_the_device_and_nothing_else() {
    let mut bytes = ring(&[(DATA.into(), 16, 0, 0)], &[0]);
    bytes[AVAIL as usize + 2..][..2].copy_from_slice(&(SIZE + 1).to_le_bytes());
    broken_queue_is_survived("an index ahead", place(RING), bytes);
}

#[test]
fn a_queue_outside_memory_stops_the_device_and_nothing_else() {
    let good = place(RING);
    for (what, place) in [
        ("descriptors", Place { desc: 32 << 20, ..good }),
        ("descriptors across the end", Place { desc: (32 << 20) - 64, ..good }),
        ("avail ring", Place { driver: 0xd000_0000, ..good }),
        ("used ring", Place { device: 0xffff_fff0, ..good }),
        ("misaligned descriptors", Place { desc: RING + 8, ..good }),
        ("size of no power of two", Place { size: 7, ..good }),
        ("size of nothing", Place { size: 0, ..good }),
        ("size of too much", Place { size: 0x8000, ..good }),
    ] {
        broken_queue_is_survived(what, place, Vec::new());
    }
}

#[test]
fn a_buffer_that_wraps_or_is_longer_than_memory_stops_the_device_and_nothing_else() {
    for (gpa, len) in [(u64::from(DATA), u32::MAX), (u64::MAX, 1), (u64::MAX, u32::MAX), (0, (32 << 20) + 1)]
    {
        broken_queue_is_survived("a long buffer", place(RING), ring(&[(gpa, len, WRITE, 0)], &[0]));
    }
}

#[test]
fn buffers_that_add_up_to_more_than_32_bits_stop_the_device_and_nothing_else() {
    const BASE: u32 = 0x48_0000;
    // Each of them is in memory; a length that wraps at 32 bits is a few MiB.
    let next = |n: u16| (1 << 20, 31 << 20, if n == 255 { WRITE } else { WRITE | NEXT }, n + 1);
    let mut bytes = (0..256).map(next).fold(Vec::new(), |mut bytes, (gpa, len, flags, next)| {
        bytes.extend(ring(&[(gpa, len, flags, next)], &[]).drain(..16));
        bytes
    });
    // The avail ring: one chain, from the first descriptor on.
    bytes.extend([0, 0, 1, 0, 0, 0]);
    let place = Place { size: 256, desc: BASE, driver: BASE + 0x1000, device: BASE + 0x2000 };
    broken_queue_is_survived("too many bytes", place, bytes);
}

/// A ring of one chain that is a table, and the table behind it.
fn with_table(flags: u16, len: u32, table: &[Descriptor]) -> Vec<u8> {
    const TABLE: u32 = RING + 0x800;
    let mut bytes = ring(&[(TABLE.into(), len, flags, 0)], &[0]);
    let table = ring(table, &[]);
    bytes[0x800..0x900].copy_from_slice(&table[..0x100]);
    bytes
}

#[test]
fn a_table_of_descriptors_that_is_malformed_stops_the_device_and_nothing_else() {
    let good = (DATA.into(), 16, 0, 0);
    let nested = (u64::from(RING) + 0x800, 16, INDIRECT, 0);
    for (what, bytes) in [
        ("a table in itself", with_table(INDIRECT, 16, &[nested])),
        (
            "a table behind a buffer of a table",
            with_table(INDIRECT, 32, &[(DATA.into(), 16, NEXT, 1), nested]),
        ),
        ("a table of nothing", with_table(INDIRECT, 0, &[good])),
        ("half a descriptor more", with_table(INDIRECT, 24, &[good])),
        ("a table longer than memory", with_table(INDIRECT, 0xffff_fff0, &[good])),
        ("a next behind the table", with_table(INDIRECT, 16, &[(DATA.into(), 16, NEXT, 1)])),
        (
            "a loop in the table",
            with_table(INDIRECT, 32, &[(DATA.into(), 16, NEXT, 1), (DATA.into(), 16, NEXT, 0)]),
        ),
        ("a table and a next", with_table(INDIRECT | NEXT, 16, &[good])),
    ] {
        broken_queue_with_features_is_survived(what, F_INDIRECT, place(RING), bytes);
    }
    let bytes = with_table(INDIRECT, 16, &[good]);
    broken_queue_is_survived("a table that was not negotiated", place(RING), bytes);
}

#[test]
fn an_index_that_goes_back_stops_the_device_and_nothing_else() {
    let breaks = |script: Script, disk| {
        script
            .start_device(disk, RING, 0)
            .notify(disk)
            .wait_used(RING, 1)
            .say(b'u')
            .write16(RING + AVAIL + 2, 0)
            .notify(disk)
            .wait_needs_reset(disk)
            .say(b'n')
    };
    let good = one_read();
    is_survived("an index that goes back", breaks, &[(RING, ring(&good.descriptors, &good.heads))], b"un");
}

#[test]
fn a_ring_that_is_rewritten_while_it_is_used_does_no_harm() {
    // Each of these is bad somewhere: no memory, all ones, a wild next, a loop, a table at an odd
    // place. As a length none makes whole sectors: the disk would rightly write them over
    // everything behind the buffer.
    const BAD: [u32; 6] = [32 << 20, u32::MAX, 0x7fff_0001, 0x0001_0003, 4, 0x0001_0005];
    let bytes = ring(&one_read().descriptors, &[0; SIZE as usize]);
    // The three descriptors, the flags and the index, the first heads.
    let rewritten = (0..3 * 16).step_by(4).chain([AVAIL, AVAIL + 4]);
    let writes: Vec<(u32, u32)> = rewritten.flat_map(|offset| BAD.map(|bad| (offset, bad))).collect();
    // Whether the device sees the bad word, and when, is a race; so each has some chances, and a
    // device of its own.
    let breaks = |script: Script, disk| {
        script.each(&writes, |script, (offset, bad)| {
            let good = u32_at(&bytes, *offset as usize);
            script
                .start_device(disk, RING, F_INDIRECT)
                .notify(disk)
                .each(0..8, |script, _| script.write32(RING + offset, *bad).write32(RING + offset, good))
        })
    };
    is_survived("a ring that is rewritten", breaks, &[(RING, bytes.clone())], b"");
}

#[test]
fn a_reset_amid_requests_ends_them_before_it_is_answered() {
    /// Where the requests of this test have their data, one place for all.
    const BIG: u32 = 0x100_0000;
    const MARK: u32 = 0x5a5a_5a5a;
    let requests = Requests::default().add(BLK_IN, 0, Some((BIG, 1 << 20, true)));
    // The used ring, and places all over the data.
    let places = || (0..1u32 << 20).step_by(0x8000).map(|page| BIG + page).chain([RING + USED]);
    let breaks = |script: Script, disk| {
        script.each(0..5, |script, _| {
            script
                .start_device(disk, RING, 0)
                .notify(disk)
                .set(disk, STATUS, 0)
                // From now on all of this is the driver's again.
                .each(places(), |script, gpa| script.write32(gpa, MARK))
                .sleep(1)
                .each(places(), |script, gpa| script.wait(gpa, u32::MAX, MARK))
                .say(b'k')
        })
    };
    // Its header is the same as that of the read that follows.
    let data = [(RING, ring(&requests.descriptors, &[0; SIZE as usize]))];
    is_survived("a reset amid requests", breaks, &data, b"kkkkk");
}
