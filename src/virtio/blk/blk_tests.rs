use super::*;
use crate::virtio::core::spec::{mmio, status};
use crate::virtio::core::testing::*;
use crate::virtio::core::transport::Attached;
use std::num::{NonZeroU16, NonZeroU64};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

const LEN: usize = 1 << 20;

/// A disk whose sectors are filled with their numbers (mod 251), opened as a device.
fn device(read_only: bool, id: Option<&str>) -> (TempDir, Config, Block) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let bytes: Vec<u8> = (0..LEN).map(pattern).collect();
    std::fs::write(&path, bytes).unwrap();
    let config = Config { path, read_only, id: id.map(str::to_owned), ..Config::default() };
    let block = open(&config);
    (dir, config, block)
}

fn open(config: &Config) -> Block {
    Block::new(config, Disk::open(config).unwrap(), "blk0", &Spawner::default()).unwrap()
}

fn pattern(at: usize) -> u8 {
    u8::try_from(at / 512 % 251).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn read(driver: &mut FakeDriver, sector: u64, len: u32) -> Vec<u8> {
    let (mut bytes, used) = driver.request(0, &header(blk::T_IN, sector), len + 1);
    assert_eq!(used, len + 1);
    assert_eq!(bytes.pop(), Some(blk::S_OK));
    bytes
}

fn write(driver: &mut FakeDriver, sector: u64, data: &[u8]) {
    let request = [header(blk::T_OUT, sector), data.to_vec()].concat();
    assert_eq!(driver.request(0, &request, 1), (vec![blk::S_OK], 1));
}

#[test]
fn a_driver_reads_and_writes_and_finds_it_again() {
    for wanted in [0, feature::INDIRECT_DESC, feature::EVENT_IDX, u64::MAX] {
        let (_dir, config, block) = device(false, None);
        let mut driver = FakeDriver::new(block);
        driver.start(wanted);
        assert_eq!(read(&mut driver, 7, 2048), (7 * 512..11 * 512).map(pattern).collect::<Vec<_>>());
        write(&mut driver, 9, &[0xaa; 1024]);
        assert_eq!(read(&mut driver, 9, 1536)[..1024], [0xaa; 1024]);
        assert_eq!(driver.request(0, &header(blk::T_FLUSH, 0), 1), (vec![blk::S_OK], 1));
        let bytes = std::fs::read(&config.path).unwrap();
        assert_eq!((bytes[9 * 512 - 1], bytes[9 * 512], bytes[11 * 512]), (8, 0xaa, 11));
    }
}

#[test]
fn the_configuration_space_has_capacity_segments_and_block_size() {
    let (_dir, _, block) = device(false, None);
    let driver = FakeDriver::new(block);
    assert_eq!(u64::from_le_bytes(driver.config(0)), (LEN / 512) as u64);
    assert_eq!(u32::from_le_bytes(driver.config(12)), 254);
    assert_eq!(u32::from_le_bytes(driver.config(20)), 512);
    assert_eq!(driver.read(mmio::DEVICE_ID), 2);
    assert_eq!(driver.offered() & blk::F_RO, 0);
    let (_dir, _, block) = device(true, None);
    assert_ne!(FakeDriver::new(block).offered() & blk::F_RO, 0);
}

#[test]
fn the_id_is_the_configured_one_or_the_devices_name() {
    for (id, expected) in [(Some("root-disk"), &b"root-disk\0"[..]), (None, &b"blk0\0"[..])] {
        let (_dir, _, block) = device(true, id);
        let mut driver = FakeDriver::started(block);
        let (bytes, used) = driver.request(0, &header(blk::T_GET_ID, 0), 21);
        assert_eq!((used, bytes[20]), (21, blk::S_OK));
        assert!(bytes.starts_with(expected));
    }
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    let (_dir, _, block) = device(false, None);
    let mut driver = FakeDriver::started(block);
    let mut buffers = Vec::new();
    for round in 0..64_u64 {
        let head = driver.alloc_with(&header(blk::T_IN, round));
        let data = driver.alloc(513);
        let table = driver.alloc(64);
        buffers.push(data);
        driver.queues[0].add_indirect(table, &[Part::Read(head, 16), Part::Write(data, 513)]);
        driver.notify(0);
        if round % 8 == 7 {
            for _ in 0..8 {
                assert_eq!(driver.wait_used(0).1, 513);
            }
        }
    }
    for (round, data) in buffers.into_iter().enumerate() {
        let bytes = driver.bytes(data, 513);
        assert!(bytes[..512].iter().all(|b| *b == pattern(round * 512)));
        assert_eq!(bytes[512], blk::S_OK);
    }
}

#[test]
fn a_reset_with_requests_in_flight_finishes_or_leaves_them_and_the_disk_works_again() {
    let (_dir, _, block) = device(false, None);
    let mut driver = FakeDriver::started(block);
    let request = driver.alloc_with(&header(blk::T_IN, 0));
    let data = driver.alloc(0x8_0001);
    for _ in 0..30 {
        for _ in 0..7 {
            driver.queues[0].add(&[Part::Read(request, 16), Part::Write(data, 0x8_0001)]);
        }
        driver.notify(0);
        driver.write(mmio::STATUS, 0);
        // The device has let go of memory: nothing changes it now.
        let blank = vec![0x55; 0x8_0001];
        driver.mem.write_slice(&blank, GuestAddress(data)).unwrap();
        std::thread::sleep(std::time::Duration::from_micros(500));
        assert!(driver.bytes(data, 0x8_0001) == blank);
        driver.start(u64::MAX);
    }
    assert_eq!(read(&mut driver, 3, 512), [3; 512]);
}

#[test]
fn a_broken_chain_needs_a_reset_and_the_disk_works_after_it() {
    let (_dir, _, block) = device(false, None);
    let mut driver = FakeDriver::started(block);
    driver.queues[0].desc(0, 0x1000, 16, NEXT, 0);
    driver.queues[0].offer(0);
    driver.notify(0);
    driver.wait_needs_reset();
    driver.start(u64::MAX);
    assert_eq!(driver.status() & status::NEEDS_RESET, 0);
    assert_eq!(read(&mut driver, 3, 512), [3; 512]);
}

#[test]
fn a_device_that_is_gone_has_unlocked_its_disk() {
    let (_dir, config, block) = device(false, None);
    let mut driver = FakeDriver::started(block);
    write(&mut driver, 0, &[0xbb; 512]);
    assert!(matches!(Disk::open(&config), Err(OpenError::Locked { .. })));
    driver.transport.stop();
    drop(driver);
    // A child that another test forks has a copy of the descriptor, and so of the lock, until it
    // calls exec.
    let mut disk = None;
    wait_until("the end of a lock", || {
        disk = Disk::open(&config).ok();
        disk.is_some()
    });
    let block = Block::new(&config, disk.unwrap(), "blk0", &Spawner::default()).unwrap();
    let mut driver = FakeDriver::started(block);
    assert_eq!(read(&mut driver, 0, 512), [0xbb; 512]);
}

#[test]
fn a_configuration_is_checked_before_anything_is_opened() {
    let config =
        |id: &str| Config { path: Path::new("x").into(), id: Some(id.to_owned()), ..Config::default() };
    for good in ["a", "root-disk_0.img", "12345678901234567890"] {
        assert_eq!(config(good).validate(), Ok(()));
    }
    for bad in ["", "123456789012345678901"] {
        assert_eq!(config(bad).validate(), Err(ConfigError::IdLength(bad.to_owned())));
    }
    for bad in ["a b", "a/b", "\n", "ü"] {
        assert_eq!(config(bad).validate(), Err(ConfigError::IdCharacters(bad.to_owned())));
    }
    let none = Config::default();
    assert_eq!(none.validate(), Err(ConfigError::NoPath));
}

#[test]
fn a_configuration_is_plain_data_and_refuses_unknown_keys() {
    let config: Config = toml::from_str("path = 'a.img'").unwrap();
    assert_eq!(config, Config { path: "a.img".into(), ..Config::default() });
    assert_eq!(
        toml::from_str::<Config>("path = 'a'\nread_only = true\nid = 'x'").unwrap().id.as_deref(),
        Some("x")
    );
    assert!(toml::from_str::<Config>("path = 'a'\nreadonly = true").is_err());
}

#[test]
fn a_driver_that_scribbles_over_its_rings_while_they_are_served_does_no_harm() {
    let (_dir, config, block) = device(false, None);
    let mut driver = FakeDriver::started(block);
    let request = driver.alloc_with(&header(blk::T_IN, 0));
    let data = driver.alloc(4097);
    // xorshift: the same sequence each time, though not the same race.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut resets = 0;
    let start = std::time::Instant::now();
    while resets < 50 {
        assert!(start.elapsed() < PATIENCE, "the driver was not nasty enough: {resets} resets");
        let queue = &mut driver.queues[0];
        let index = u16::try_from(random(u64::from(SIZE))).unwrap();
        match random(16) {
            0 => {
                let (gpa, len) = (random(2 * MEM_END), u32::try_from(random(1 << 20)).unwrap());
                queue.desc(index, gpa, len, WRITE, index);
            }
            1 => queue.desc(index, request, 16, NEXT, u16::try_from(random(20)).unwrap()),
            2 => queue.desc(index, queue.layout.desc_table, 256, INDIRECT, 0),
            3 => queue.offer(index),
            4 if random(50) == 0 => queue.set_avail_idx(u16::try_from(random(0x1_0000)).unwrap()),
            5 => driver.mem.write_obj(random(u64::MAX), GuestAddress(request)).unwrap(),
            6 => driver.mem.write_obj(random(3), GuestAddress(request)).unwrap(),
            _ => {
                queue.add(&[Part::Read(request, 16), Part::Write(data, 4097)]);
            }
        }
        driver.notify(0);
        if driver.status() & status::NEEDS_RESET != 0 {
            resets += 1;
            driver.start(u64::MAX);
        }
    }
    driver.start(u64::MAX);
    assert_eq!(read(&mut driver, 3, 512).len(), 512);
    assert_eq!(std::fs::metadata(&config.path).unwrap().len(), LEN as u64);
}

#[test]
fn each_queue_is_served_and_one_that_is_broken_leaves_the_others_working() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, (0..LEN).map(pattern).collect::<Vec<_>>()).unwrap();
    let config = Config { path, queues: NonZeroU16::new(4), ..Config::default() };
    assert_eq!(config.validate(), Ok(()));
    let mut driver = FakeDriver::started(open(&config));
    assert_ne!(driver.offered() & blk::F_MQ, 0);
    assert_eq!((u16::from_le_bytes(driver.config(34)), driver.queues.len()), (4, 4));
    for queue in 0..4 {
        let (bytes, used) = driver.request(queue, &header(blk::T_IN, queue.into()), 513);
        assert_eq!((used, bytes[0], bytes[512]), (513, u8::try_from(queue).unwrap(), blk::S_OK));
    }
    // One broken queue leaves the others working.
    driver.queues[2].offer(SIZE);
    driver.notify(2);
    driver.wait_needs_reset();
    let (bytes, _) = driver.request(3, &header(blk::T_IN, 9), 513);
    assert_eq!(bytes[0], 9);
    driver.start(u64::MAX);
    let (bytes, _) = driver.request(2, &header(blk::T_IN, 8), 513);
    assert_eq!(bytes[0], 8);
    for queues in [65, u16::MAX] {
        let many = Config { queues: NonZeroU16::new(queues), ..config.clone() };
        assert_eq!(many.validate(), Err(ConfigError::Queues(queues)));
    }
}

#[test]
fn a_driver_may_use_other_queues_after_each_reset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, (0..LEN).map(pattern).collect::<Vec<_>>()).unwrap();
    for aio in [Aio::Sync, Aio::IoUring] {
        let config =
            Config { path: path.clone(), queues: NonZeroU16::new(4), aio: Some(aio), ..Config::default() };
        let mut driver = FakeDriver::new(open(&config));
        let all = [0, 1, 2, 3];
        for used in [&[2, 3][..], &all, &[1], &[], &all, &[0], &all] {
            driver.write(mmio::STATUS, 0);
            driver.set_up(u64::MAX);
            for queue in all.into_iter().filter(|queue| !used.contains(queue)) {
                driver.write(mmio::QUEUE_SEL, queue);
                driver.write(mmio::QUEUE_READY, 0);
            }
            driver.add_status(status::DRIVER_OK);
            for queue in used {
                // Its thread has looked at all queues by now, and waits for the doorbell.
                std::thread::sleep(Duration::from_millis(5));
                let (bytes, _) = driver.request(*queue, &header(blk::T_IN, u64::from(*queue)), 513);
                assert_eq!((u32::from(bytes[0]), bytes[512]), (*queue, blk::S_OK));
            }
        }
    }
}

#[test]
fn the_configuration_space_tells_of_pages_and_discards() {
    let (_dir, _, block) = device(false, None);
    let driver = FakeDriver::new(block);
    assert_eq!(driver.config::<1>(24), [3], "eight blocks of 512 bytes are one of the host's");
    assert_eq!(u32::from_le_bytes(driver.config(36)), MAX_DISCARD_SECTORS);
    assert_eq!(u32::from_le_bytes(driver.config(44)), 8);
    assert_eq!(u32::from_le_bytes(driver.config(52)), MAX_RANGES);
    let wanted = blk::F_DISCARD | blk::F_WRITE_ZEROES;
    assert_eq!(driver.offered() & wanted, wanted);
    let (_dir, _, block) = device(true, None);
    assert_eq!(FakeDriver::new(block).offered() & wanted, 0);
}

#[test]
fn requests_and_bytes_in_a_second_are_limited_over_all_queues() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, (0..LEN).map(pattern).collect::<Vec<_>>()).unwrap();
    let config = Config { path, queues: NonZeroU16::new(2), ..Config::default() };
    let iops = Config { iops: NonZeroU64::new(100), ..config.clone() };
    // Of 4 KiB and a status byte each.
    let bw = Config { bw: Some("400K".parse().unwrap()), ..config };
    for config in [iops, bw] {
        let mut driver = FakeDriver::started(open(&config));
        let start = std::time::Instant::now();
        for n in 0..40 {
            let (bytes, _) = driver.request(n % 2, &header(blk::T_IN, n.into()), 4097);
            assert_eq!(bytes[0], pattern(n as usize * 512));
        }
        // A tenth of a second's worth, 10 of them, is there at once.
        let took = start.elapsed();
        assert!(took >= std::time::Duration::from_millis(250), "{took:?}");
        driver.transport.stop();
    }
    for text in ["", "0K", "5x", "-1M"] {
        assert!(text.parse::<Bandwidth>().is_err(), "{text}");
    }
}

#[test]
fn queues_that_share_a_thread_share_a_limit_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, (0..LEN).map(pattern).collect::<Vec<_>>()).unwrap();
    // More than there are processors, mostly, so that the first and the last have the same thread.
    let queues = u32::from(config::MAX_QUEUES);
    let count = NonZeroU16::new(config::MAX_QUEUES);
    let processors =
        std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap());
    let config = Config { path, queues: count, iops: NonZeroU64::new(5), ..Config::default() };
    let mut driver = FakeDriver::started(open(&config));
    let pair = [0, processors.min(queues - 1)];
    for queue in pair {
        for _ in 0..5 {
            let request = driver.alloc_with(&header(blk::T_IN, 0));
            let data = driver.alloc(513);
            driver.queues[queue as usize].add(&[Part::Read(request, 16), Part::Write(data, 513)]);
        }
    }
    pair.iter().for_each(|queue| driver.notify(*queue));
    let mut done = [0; 2];
    wait_until("six of ten requests are done", || {
        for (done, queue) in done.iter_mut().zip(pair) {
            *done += std::iter::from_fn(|| driver.queues[queue as usize].used()).count();
        }
        done.iter().sum::<usize>() >= 6
    });
    assert!(done.iter().all(|done| *done >= 2), "{done:?}");
}

#[test]
fn another_device_goes_on_with_the_same_disk_and_no_request_is_lost() {
    for aio in [Aio::IoUring, Aio::Sync] {
        let (_dir, config, _) = device(false, None);
        let config = Config { aio: Some(aio), ..config };
        let mut driver = FakeDriver::started(open(&config));
        for round in 0..30_u64 {
            let mut buffers = Vec::new();
            for sector in 0..7 {
                let head = driver.alloc_with(&header(blk::T_OUT, 8 * sector));
                let data = driver.alloc_with(&[u8::try_from(round + sector).unwrap(); 4096]);
                let status = driver.alloc(1);
                let table = driver.alloc(64);
                let parts = [Part::Read(head, 16), Part::Read(data, 4096), Part::Write(status, 1)];
                driver.queues[0].add_indirect(table, &parts);
                buffers.push(status);
            }
            driver.notify(0);
            // Some are done by then, some are on their way, and some have not been seen.
            let state = driver.suspend();
            driver.transport.stop();
            assert!(state.running);
            // The one that was there holds the disk's lock: it goes with its transport.
            driver.transport = FakeDriver::new(Echo::default()).transport;
            driver.replace(open(&config), &state).unwrap();
            driver.transport.resume();
            for _ in 0..7 {
                assert_eq!(driver.wait_used(0).1, 1);
            }
            assert!(buffers.iter().all(|status| driver.bytes(*status, 1) == [blk::S_OK]), "{aio:?}");
            assert_eq!(driver.queues[0].used(), None, "none is answered twice");
            let bytes = std::fs::read(&config.path).unwrap();
            for sector in 0..7 {
                let expected = u8::try_from(round).unwrap() + u8::try_from(sector).unwrap();
                assert_eq!(bytes[sector * 4096..][..4096], [expected; 4096]);
            }
            driver.free_all();
        }
    }
}

#[test]
fn a_driver_does_not_go_on_with_a_disk_of_another_size() {
    let (_dir, config, block) = device(false, None);
    let mut driver = FakeDriver::started(block);
    let state = driver.suspend();
    driver.transport = FakeDriver::new(Echo::default()).transport;
    std::fs::File::options().write(true).open(&config.path).unwrap().set_len(2 << 20).unwrap();
    let error = driver.replace(open(&config), &state).unwrap_err().to_string();
    assert!(error.contains("another size"), "{error}");
}
