use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::super::*;
use crate::virtio::core::spec::blk as spec;
use crate::virtio::core::testing::*;
use crate::virtio::core::transport::Attached;
use vm_memory::{Bytes, GuestAddress};

const SECTORS: u64 = 4096;

fn pattern(sector: u64) -> Vec<u8> {
    sector.to_le_bytes().repeat(64)
}

fn disk_file() -> (tempfile::TempDir, Config) {
    // Where a file system has O_DIRECT: not in a tmpfs, which /tmp may be.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, (0..SECTORS).flat_map(pattern).collect::<Vec<u8>>()).unwrap();
    (dir, Config { path, ..Config::default() })
}

fn block(config: &Config) -> Block {
    Block::new(config, Disk::open(config).unwrap(), "blk0", &Spawner::default()).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Every way to serve a disk that this host has.
fn ways() -> Vec<(Option<Aio>, Option<Cache>)> {
    let mut ways = Vec::new();
    for aio in [Aio::Sync, Aio::IoUring] {
        for cache in [Cache::Writeback, Cache::None, Cache::Unsafe] {
            ways.push((Some(aio), Some(cache)));
        }
    }
    ways
}

/// A page-aligned buffer.
fn page(driver: &mut FakeDriver, len: u32) -> u64 {
    let gpa = driver.alloc(len + 4096);
    (gpa + 4095) & !4095
}

#[test]
fn many_requests_in_flight_all_end_with_what_is_theirs() {
    for (aio, cache) in ways() {
        let (_dir, mut config) = disk_file();
        (config.aio, config.cache) = (aio, cache);
        let mut driver = FakeDriver::started(block(&config));
        let mut sector = 7;
        for _ in 0..200 {
            let mut expected = Vec::new();
            // Five requests of three descriptors fill the ring of sixteen.
            for _ in 0..5 {
                sector = (sector * 31 + 11) % (SECTORS - 8) / 8 * 8;
                let (head, data, status) = (
                    driver.alloc_with(&header(spec::T_IN, sector)),
                    page(&mut driver, 4096),
                    driver.alloc(1),
                );
                let parts = [Part::Read(head, 16), Part::Write(data, 4096), Part::Write(status, 1)];
                expected.push((driver.queues[0].add(&parts), sector, data, status));
            }
            driver.notify(0);
            for _ in 0..5 {
                let (used, len) = driver.wait_used(0);
                let at = expected
                    .iter()
                    .position(|(head, ..)| *head == used)
                    .expect("one that was asked for, once");
                let (_, sector, data, status) = expected.swap_remove(at);
                assert_eq!(len, 4097);
                assert_eq!(driver.bytes(status, 1), [spec::S_OK]);
                assert_eq!(
                    driver.bytes(data, 4096),
                    (sector..sector + 8).flat_map(pattern).collect::<Vec<_>>()
                );
            }
            driver.free_all();
        }
    }
}

#[test]
fn what_is_written_is_in_the_file_aligned_or_not() {
    for (aio, cache) in ways() {
        let (_dir, mut config) = disk_file();
        (config.aio, config.cache) = (aio, cache);
        let mut driver = FakeDriver::started(block(&config));
        for (sector, sectors, shift) in [(8, 8, 0), (33, 3, 512), (64, 16, 64)] {
            let bytes = vec![u8::try_from(sector).unwrap(); sectors * 512];
            let data = page(&mut driver, 16 * 512 + 1024) + shift;
            driver.mem.write_slice(&bytes, GuestAddress(data)).unwrap();
            let (head, status) = (driver.alloc_with(&header(spec::T_OUT, sector)), driver.alloc(1));
            // In two pieces that don't touch in this order, so that they stay two.
            let half = u32::try_from(bytes.len() / 2).unwrap();
            let parts = [
                Part::Read(head, 16),
                Part::Read(data + u64::from(half), half),
                Part::Read(data, half),
                Part::Write(status, 1),
            ];
            driver.queues[0].add(&parts);
            let (flush, flushed) = (driver.alloc_with(&header(spec::T_FLUSH, 0)), driver.alloc(1));
            driver.notify(0);
            driver.wait_used(0);
            driver.queues[0].add(&[Part::Read(flush, 16), Part::Write(flushed, 1)]);
            driver.notify(0);
            driver.wait_used(0);
            assert_eq!(
                (driver.bytes(status, 1), driver.bytes(flushed, 1)),
                (vec![spec::S_OK], vec![spec::S_OK])
            );
            let mut found = vec![0; bytes.len()];
            File::open(&config.path).unwrap().read_exact_at(&mut found, sector * 512).unwrap();
            assert_eq!(found, bytes);
        }
    }
}

#[test]
fn a_file_that_has_become_too_short_gives_errors() {
    for (aio, cache) in ways() {
        let (_dir, mut config) = disk_file();
        (config.aio, config.cache) = (aio, cache);
        let mut driver = FakeDriver::started(block(&config));
        File::options().write(true).open(&config.path).unwrap().set_len(4096).unwrap();
        for (sector, expected) in [(0, spec::S_OK), (4, spec::S_IOERR), (8, spec::S_IOERR)] {
            let (bytes, _) = driver.request(0, &header(spec::T_IN, sector), 4097);
            assert_eq!(bytes[4096], expected, "sector {sector}, {aio:?}, {cache:?}");
        }
    }
}

#[test]
fn a_stop_ends_what_is_in_flight_and_a_start_goes_on() {
    for (aio, cache) in ways() {
        let (_dir, mut config) = disk_file();
        (config.aio, config.cache) = (aio, cache);
        let mut driver = FakeDriver::started(block(&config));
        for _ in 0..50 {
            for _ in 0..5 {
                let (head, data, status) =
                    (driver.alloc_with(&header(spec::T_IN, 0)), page(&mut driver, 4096), driver.alloc(1));
                driver.queues[0].add(&[
                    Part::Read(head, 16),
                    Part::Write(data, 4096),
                    Part::Write(status, 1),
                ]);
            }
            driver.notify(0);
            // Every chain that was popped is completed: the next start would find the ring broken
            // otherwise.
            driver.transport.stop();
            driver.free_all();
            driver.start(u64::MAX);
            let (bytes, used) = driver.request(0, &header(spec::T_IN, 8), 513);
            assert_eq!((&bytes[..512], used), (&pattern(8)[..], 513));
        }
    }
}

#[test]
fn a_limit_holds_with_a_ring_as_well() {
    let (_dir, mut config) = disk_file();
    config.aio = Some(Aio::IoUring);
    config.iops = std::num::NonZeroU64::new(100);
    let mut driver = FakeDriver::started(block(&config));
    let start = std::time::Instant::now();
    for _ in 0..30 {
        driver.request(0, &header(spec::T_IN, 0), 513);
    }
    // The first ten are its burst.
    assert!(start.elapsed() >= Duration::from_millis(180), "{:?}", start.elapsed());
}

#[test]
fn the_lock_ends_with_the_disk_although_it_had_a_ring() {
    let (_dir, mut config) = disk_file();
    config.aio = Some(Aio::IoUring);
    for _ in 0..20 {
        let mut driver = FakeDriver::started(block(&config));
        driver.request(0, &header(spec::T_IN, 0), 513);
        drop(driver);
    }
}
