use super::*;
use crate::virtio::core::testing::*;

fn device() -> Rng {
    Rng::new("rng0", &Spawner::default()).unwrap()
}

/// One request for `len` bytes: what came, and the used length.
fn ask(driver: &mut FakeDriver, len: u32) -> (Vec<u8>, u32) {
    let buffer = driver.alloc(len);
    driver.queues[0].add(&[Part::Write(buffer, len)]);
    driver.notify(0);
    let (_, used) = driver.wait_used(0);
    (driver.bytes(buffer, len), used)
}

#[test]
fn a_request_is_filled_with_bytes_that_differ() {
    let mut driver = FakeDriver::started(device());
    let (first, len) = ask(&mut driver, 1000);
    assert_eq!(len, 1000);
    let (second, _) = ask(&mut driver, 1000);
    assert_ne!(first, second);
    // A run of 16 of the same byte, as of memory that was left alone, has no chance to come up.
    for bytes in [first, second] {
        assert!(bytes.windows(16).all(|run| run.iter().any(|b| *b != run[0])));
    }
}

#[test]
fn a_huge_request_gets_no_more_than_its_share() {
    let mut driver = FakeDriver::started(device());
    let (bytes, len) = ask(&mut driver, 1 << 20);
    assert_eq!(len, MAX_PER_REQUEST);
    assert!(bytes[MAX_PER_REQUEST as usize..].iter().all(|b| *b == 0xee));
}

#[test]
fn a_request_with_nothing_to_write_to_is_used_up() {
    let mut driver = FakeDriver::started(device());
    let buffer = driver.alloc(8);
    driver.queues[0].add(&[Part::Read(buffer, 8)]);
    driver.queues[0].add(&[Part::Write(buffer, 0)]);
    driver.notify(0);
    assert_eq!(driver.wait_used(0).1, 0);
    assert_eq!(driver.wait_used(0).1, 0);
}
