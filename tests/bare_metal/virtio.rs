//! The virtio devices behind their registers, driven by hand: whole requests, and what a driver can
//! do wrong with registers. Broken rings are in [`broken_rings`](super::broken_rings).

use std::time::{Duration, Instant};

use super::boot_state::noise;
use super::driver::*;
use super::guest::{Guest, u32_at, words};
use super::script::{POWER_PIN, RESULTS, Script, request_bit};
use crate::support::{self, Bothy, scratch};

#[test]
fn each_device_has_magic_version_vendor_and_kind() {
    let dir = scratch();
    let disk = disk(dir.path(), &[0; 512]);
    let script = (0..4).fold(Script::new(), |script, device| {
        script.each(0..4, |script, n| {
            script.read32(register(device, MAGIC + 4 * n), RESULTS + device * 16 + 4 * n)
        })
    });
    let read = words(&Guest::new(&script.put(RESULTS, 64)).run(&["--disk", &disk]));
    assert_eq!(read[..4], [0x7472_6976, 2, 2, read[3]], "the disk");
    assert_ne!(read[3], 0, "a vendor");
    assert_eq!(read[4..8], [0x7472_6976, 2, 4, read[3]], "the entropy device");
    assert_eq!(read[8..12], [0x7472_6976, 2, 5, read[3]], "the balloon");
    assert_eq!(read[12..], [u32::MAX; 4], "no fourth device");
}

#[test]
fn a_disk_offers_flush_and_its_capacity_and_says_when_it_is_read_only() {
    let dir = scratch();
    let disk = disk(dir.path(), &[0; 512 * 5]);
    let at = |offset| register(0, offset);
    let script = Script::new()
        .write32(at(DEVICE_FEATURES_SEL), 0)
        .read32(at(DEVICE_FEATURES), RESULTS)
        .write32(at(DEVICE_FEATURES_SEL), 1)
        .read32(at(DEVICE_FEATURES), RESULTS + 4)
        .read32(at(CONFIG), RESULTS + 8)
        .read32(at(CONFIG + 4), RESULTS + 12)
        .write32(at(QUEUE_SEL), 0)
        .read32(at(QUEUE_NUM_MAX), RESULTS + 16)
        .write32(at(QUEUE_SEL), 77)
        .read32(at(QUEUE_NUM_MAX), RESULTS + 20)
        .put(RESULTS, 24);
    for (word, read_only) in [(disk.clone(), 0), (format!("{disk},ro"), BLK_F_RO)] {
        let read = words(&Guest::new(&script).run(&["--disk", &word]));
        assert_eq!(read[0] & (BLK_F_FLUSH | BLK_F_RO), BLK_F_FLUSH | read_only, "{word}");
        assert_eq!((read[1] & 1, read[2], read[3]), (1, 5, 0), "VERSION_1, capacity");
        assert!(read[4] >= SIZE.into() && read[5] == 0, "queues: {read:?}");
    }
}

#[test]
fn a_disk_is_read_with_an_interrupt_and_a_status() {
    let dir = scratch();
    let content = noise(512 * 8);
    let disk = disk(dir.path(), &content);
    let script = Script::new()
        .enable_lapic()
        .route(5, 0x45, false)
        .start_device(0, RING, BLK_F_FLUSH)
        .read32(register(0, STATUS), RESULTS)
        .notify(0)
        .wait_used(RING, 2)
        .wait_for_vector(0x45)
        .read32(register(0, INTERRUPT_STATUS), RESULTS + 4)
        .write32(register(0, INTERRUPT_ACK), 1)
        .read32(register(0, INTERRUPT_STATUS), RESULTS + 8)
        .put(RESULTS, 12)
        .put_two_reads();
    let output = Requests::two_reads().guest(&script).run(&["--disk", &disk]);
    assert_eq!(words(&output[..12]), [LIVE, 1, 0], "status, interrupt status, and after its acknowledgement");
    insist_on_two_reads(&output[12..], &content);
}

#[test]
fn what_is_written_to_a_disk_is_in_its_file_and_nothing_else_of_it_changes() {
    let dir = scratch();
    let before = noise(512 * 8);
    let disk = disk(dir.path(), &before);
    let script =
        Script::new().start_device(0, RING, BLK_F_FLUSH).notify(0).wait_used(RING, 2).put(STATUS_BYTE, 2);
    let requests = Requests::default().add(BLK_OUT, 2, Some((DATA, 1024, false))).add(BLK_FLUSH, 0, None);
    let data: Vec<u8> = noise(1024).iter().map(|byte| !byte).collect();
    let output = requests.guest(&script).data(DATA, data.clone()).run(&["--disk", &disk]);
    assert_eq!(output, [OK, OK]);
    let expected = [&before[..1024], &data, &before[2048..]].concat();
    assert!(std::fs::read(&disk).unwrap() == expected);
}

/// SIGTERM gives a guest 10 seconds. A flush that is under way then may take longer than that and
/// the second before SIGKILL together.
#[test]
fn a_guest_that_powered_off_in_time_is_not_killed_while_its_disk_flushes() {
    let dir = scratch();
    let disk = disk(dir.path(), &[0; 512]);
    let start = Script::new().enable_lapic().route(POWER_PIN, 0x39, false).start_device(0, RING, BLK_F_FLUSH);
    let script = start.notify(0).say(b'r').wait_for_vector(0x39).say(b'p').power_off();
    let (bothy, _dir) = Requests::default().add(BLK_FLUSH, 0, None).guest(&script).boot();
    let slowly = "exec strace -D -f -qq -o /dev/null -e trace=fdatasync -e inject=fdatasync:delay_enter=14000000 \"$@\"";
    let mut running = bothy.args(["--disk", &disk]).in_shell(slowly).start();
    running.wait_for(b"r");
    // Until the disk's thread has come to the flush.
    std::thread::sleep(Duration::from_secs(1));
    let asked = Instant::now();
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().output(), b"rp");
    assert!(asked.elapsed() > Duration::from_secs(12), "the flush was not slow");
}

/// Each next VM must have the disk, and the socket's place, at once.
#[test]
fn twenty_kills_leave_neither_a_lock_nor_a_socket_nor_a_process() {
    let dir = scratch();
    let disk = disk(dir.path(), &[0; 4096]);
    let socket = dir.path().join("socket");
    let script = Script::new().start_device(0, RING, BLK_F_FLUSH).notify(0).say(b'r').spin();
    let ways = ["", ",aio=sync", ",queues=2", ",cache=unsafe", ",ro"];
    for round in 0..20 {
        let requests = Requests::default().add(BLK_OUT, 0, Some((DATA, 4096, false))).add(BLK_FLUSH, 0, None);
        let (bothy, _kernel) = requests.guest(&script).boot();
        let disk = format!("{disk}{}", ways[round % ways.len()]);
        let bothy = bothy.args(["--disk", &disk, "--vsock", socket.to_str().unwrap()]);
        let mut running = bothy.start();
        running.wait_for(b"r");
        let is_the_command = round % 2 == 0;
        if is_the_command {
            running.signal(libc::SIGKILL);
        } else {
            support::signal(running.vm_pid(), libc::SIGKILL);
        }
        let gone = support::eventually(Duration::from_secs(2), || running.processes().is_empty());
        assert!(gone, "round {round}: processes are left: {:?}", running.processes());
        running.wait().code(if is_the_command { -libc::SIGKILL } else { 1 });
        assert!(!socket.exists(), "round {round}: the socket is left");
    }
}

#[test]
fn a_read_only_disk_refuses_writes_and_stays_as_it_is() {
    let dir = scratch();
    let before = noise(1024);
    let disk = disk(dir.path(), &before);
    let script = Script::new().start_device(0, RING, 0).notify(0).wait_used(RING, 2).put(STATUS_BYTE, 2);
    let requests =
        Requests::default().add(BLK_OUT, 0, Some((DATA, 512, false))).add(BLK_IN, 1, Some((DATA, 512, true)));
    let (bothy, _kernel) = requests.guest(&script).data(DATA, vec![0x55; 512]).boot();
    let finished = bothy.args(["--disk", &format!("{disk},ro")]).run().code(0);
    assert_eq!(finished.stdout, [IOERR, OK], "the write fails, and a read after it works");
    assert!(std::fs::read(&disk).unwrap() == before);
}

#[test]
fn requests_past_the_end_and_unknown_ones_are_answered_with_their_status() {
    let dir = scratch();
    let disk = disk(dir.path(), &noise(1024));
    let script = Script::new().start_device(0, RING, 0).notify(0).wait_used(RING, 2).put(STATUS_BYTE, 2);
    for (sector, kind, status) in [
        (2, BLK_IN, IOERR),
        (2, BLK_OUT, IOERR),
        (u64::MAX, BLK_IN, IOERR),
        (u64::MAX / 512, BLK_OUT, IOERR),
        (0, 99, UNSUPP),
    ] {
        let writes = kind == BLK_IN;
        let requests = Requests::default().add(kind, sector, Some((DATA, 512, writes))).add(
            BLK_IN,
            0,
            Some((DATA, 512, true)),
        );
        let (bothy, _kernel) = requests.guest(&script).boot();
        let finished = bothy.args(["--disk", &disk]).run().code(0);
        assert_eq!(finished.stdout, [status, OK], "request {kind} at {sector}, and one after it");
    }
    assert!(std::fs::read(&disk).unwrap() == noise(1024));
}

#[test]
fn a_disk_has_the_name_that_it_was_given() {
    let dir = scratch();
    let disk = disk(dir.path(), &[0; 512]);
    let script =
        Script::new().start_device(0, RING, 0).notify(0).wait_used(RING, 1).put(STATUS_BYTE, 1).put(DATA, 20);
    let requests = Requests::default().add(BLK_GET_ID, 0, Some((DATA, 20, true)));
    let output = requests.guest(&script).run(&["--disk", &format!("{disk},id=attic")]);
    assert_eq!(output, [&[OK][..], b"attic", &[0; 15]].concat());
}

#[test]
fn entropy_arrives_and_is_different_each_time() {
    let script = Script::new()
        .enable_lapic()
        .route(5, 0x45, false)
        .start_device(0, RING, 0)
        .notify(0)
        .wait_used(RING, 2)
        .wait_for_vector(0x45)
        .put(RING + USED, 20)
        .put(DATA, 64);
    let descriptors = [(DATA.into(), 32, WRITE, 0), ((DATA + 32).into(), 32, WRITE, 0)];
    let output = Guest::new(&script).data(RING, ring(&descriptors, &[0, 1])).run(&[]);
    assert_eq!(words(&output[4..20]), [0, 32, 1, 32]);
    let (first, second) = output[20..].split_at(32);
    assert!(first != second && first.iter().any(|byte| *byte != 0) && second.iter().any(|byte| *byte != 0));
}

/// Where the balloon is in a machine without disks: behind the entropy device.
const BALLOON: u32 = 1;

#[test]
fn what_a_guest_hands_to_the_balloon_is_gone_and_what_it_has_not_it_can_not_hand_over() {
    const PAGE: u32 = 0x50_0000;
    // Its own page twice, the one behind the end of its 32 MiB, and the last that there can be.
    let numbers: Vec<u8> =
        [PAGE >> 12, 32 << 8, u32::MAX, PAGE >> 12].iter().flat_map(|n| n.to_le_bytes()).collect();
    let script = Script::new()
        .start_device(BALLOON, RING, 0)
        .notify(BALLOON)
        .wait_used(RING, 1)
        .entropy_works(0)
        // Afterwards it is memory as before.
        .write32(PAGE + 4, 0x1234_5678)
        .put(PAGE, 8)
        .put(PAGE + 0x1000, 4);
    let (bothy, _kernel) = Guest::new(&script)
        .data(RING, ring(&[(DATA.into(), 16, 0, 0)], &[0]))
        .data(DATA, numbers)
        .data(PAGE, [0x77; 0x1004])
        .data(OTHER_RING, entropy_ring())
        .boot();
    let output = bothy.run().output();
    assert_eq!(output[0], b'r');
    assert_eq!(words(&output[1..]), [0, 0x1234_5678, 0x7777_7777]);
}

#[test]
fn a_balloon_that_gets_its_own_ring_leaves_the_others_working() {
    // The page that the ring is in is named: the ring is zeros then, which is one step back and not
    // forward.
    let script = Script::new()
        .start_device(BALLOON, RING, 0)
        .notify(BALLOON)
        .wait_used(RING, 1)
        .entropy_works(0)
        .negotiate(BALLOON, 0)
        .say(b'n');
    let (bothy, _kernel) = Guest::new(&script)
        .data(RING, ring(&[(DATA.into(), 4, 0, 0)], &[0]))
        .data(DATA, (RING >> 12).to_le_bytes())
        .data(OTHER_RING, entropy_ring())
        .boot();
    assert_eq!(bothy.run().code(0).says("the driver must reset the device").stdout, b"rn");
}

#[test]
fn a_notification_of_a_queue_that_does_not_exist_changes_nothing() {
    let script = Script::new()
        .start_device(0, OTHER_RING, 0)
        .write32(register(0, QUEUE_NOTIFY), 1)
        .write32(register(0, QUEUE_NOTIFY), u32::MAX)
        .read32(register(0, STATUS), RESULTS)
        .notify(0)
        .wait_used(OTHER_RING, 1)
        .put(RESULTS, 4);
    let (bothy, _dir) = Guest::new(&script).data(OTHER_RING, entropy_ring()).boot();
    assert_eq!(words(&bothy.run().code(0).stdout), [LIVE]);
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let at = |offset| register(0, offset);
    let script = Script::new()
        .negotiate(0, 1 << 5)
        .read32(at(STATUS), RESULTS)
        // A legacy driver: no VERSION_1.
        .write32(at(STATUS), 0)
        .write32(at(STATUS), 3)
        .write32(at(STATUS), 0xb)
        .read32(at(STATUS), RESULTS + 4)
        .negotiate(0, 0)
        .read32(at(STATUS), RESULTS + 8)
        .put(RESULTS, 12);
    let (bothy, _dir) = Guest::new(&script).boot();
    assert_eq!(words(&bothy.run().code(0).stdout), [3, 3, 0xb]);
}

#[test]
fn a_reset_forgets_everything_and_a_new_driver_starts_afresh() {
    let at = |offset| register(0, offset);
    let script = Script::new()
        .start_device(0, OTHER_RING, 0)
        .notify(0)
        .wait_used(OTHER_RING, 1)
        .write32(at(STATUS), 0)
        .read32(at(STATUS), RESULTS)
        .write32(at(QUEUE_SEL), 0)
        .read32(at(QUEUE_READY), RESULTS + 4)
        .read32(at(INTERRUPT_STATUS), RESULTS + 8)
        // The same rings from their start: the device must not remember how far it was.
        .fill(OTHER_RING + USED, 0, 64)
        .fill(OTHER_DATA, 0, 16)
        .start_device(0, OTHER_RING, 0)
        .notify(0)
        .wait_used(OTHER_RING, 1)
        .put(RESULTS, 12)
        .put(OTHER_DATA, 16);
    let output = Guest::new(&script).data(OTHER_RING, entropy_ring()).run(&[]);
    assert_eq!(words(&output[..12]), [0; 3]);
    assert!(output[12..].iter().any(|byte| *byte != 0), "entropy after the reset");
}

#[test]
fn many_resets_in_a_row_leave_a_device_that_works() {
    let script = Script::new()
        .each(0..50, |script, _| script.start_device(0, OTHER_RING, 0).notify(0))
        .fill(OTHER_RING + USED, 0, 64)
        .start_device(0, OTHER_RING, 0)
        .notify(0)
        .wait_used(OTHER_RING, 1)
        .say(b'w');
    // A device that was reset may have answered just before: what counts is the last one.
    assert_eq!(Guest::new(&script).data(OTHER_RING, entropy_ring()).run(&[]), b"w");
}

#[test]
fn a_vm_with_the_most_devices_has_them_all() {
    let dir = scratch();
    let disk = disk(dir.path(), &[0; 512]);
    let disks = most_disks(&disk);
    let script = Script::new()
        .each(0..19, |script, device| script.read32(register(device, 8), RESULTS + 4 * device))
        .enable_lapic()
        .route(21, 0x45, false)
        .entropy_works(16)
        .wait_for_vector(0x45)
        .put(RESULTS, 76);
    let (bothy, _kernel) = Guest::new(&script).data(OTHER_RING, entropy_ring()).boot();
    let vsock = dir.path().join("vsock");
    let output = bothy.args(&disks).args([std::ffi::OsStr::new("--vsock"), vsock.as_os_str()]).run().output();
    let mut expected = vec![2; 16];
    expected.extend([4, 19, 5]);
    assert_eq!((output[0], words(&output[1..])), (b'r', expected));
    // One more has the place of the vsock device.
    let boot = || {
        let (bothy, kernel) = Guest::new(&Script::new()).boot();
        (bothy.args(&disks).args(["--disk", &format!("{disk},ro")]), kernel)
    };
    let (bothy, _kernel) = boot();
    bothy.run().output();
    let (bothy, _kernel) = boot();
    bothy.args([std::ffi::OsStr::new("--vsock"), vsock.as_os_str()]).run().code(2).says("--disk");
}

#[test]
fn a_disk_is_free_again_when_the_command_returns_and_locked_while_it_runs() {
    let dir = scratch();
    let disk = disk(dir.path(), &[0; 512]);
    let kernel = Guest::new(&Script::new().say(b'r').spin()).write(dir.path());
    for _ in 0..3 {
        let mut running = Bothy::boot(&kernel).args(["--disk", &disk]).start();
        running.wait_for(b"r");
        let second = Bothy::boot(&kernel).args(["--disk", &disk]).run().code(1).says("--disk");
        assert!(second.stderr.contains("in use"), "{}", second.streams());
        support::signal(running.pid(), libc::SIGTERM);
        std::thread::sleep(std::time::Duration::from_millis(50));
        support::signal(running.pid(), libc::SIGTERM);
        // The next one starts at once after the command's return.
        while !running.has_ended() {
            std::thread::yield_now();
        }
        let end = dir.path().join("end");
        std::fs::create_dir_all(&end).unwrap();
        let ender = Guest::new(&Script::new()).write(&end);
        Bothy::boot(&ender).args(["--disk", &disk]).run().output();
        running.wait().code(6);
    }
}

#[test]
fn the_first_device_interrupts_by_its_own_pin_alone() {
    let script = Script::new()
        .enable_lapic()
        .route(5, 0x45, false)
        .route(6, 0x46, false)
        .start_device(1, OTHER_RING, 0)
        .notify(1)
        .wait_for_vector(0x46)
        .read_vector(0x45, RESULTS)
        .put(RESULTS, 4);
    let dir = scratch();
    let disk = disk(dir.path(), &[0; 512]);
    let output = Guest::new(&script).data(OTHER_RING, entropy_ring()).run(&["--disk", &disk]);
    assert_eq!(u32_at(&output, 0) & request_bit(0x45).1, 0);
}

/// `script`, and then a write of one sector, whose status is sent. For a guest by
/// [`with_one_write`].
pub(crate) fn write_one_sector(script: Script) -> Script {
    script.start_device(0, RING, 0).notify(0).wait_used(RING, 1).put(STATUS_BYTE, 1)
}

/// A guest with the request that [`write_one_sector`] makes: the first sector becomes 0x5a.
pub(crate) fn with_one_write(script: &Script) -> Guest {
    Requests::default().add(BLK_OUT, 0, Some((DATA, 512, false))).guest(script).data(DATA, vec![0x5a; 512])
}
