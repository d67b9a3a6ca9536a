use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::super::spec::{feature, mmio as reg, status};
use super::super::testing::*;
use super::super::transport::Attached;
use super::*;

#[test]
fn another_device_goes_on_with_requests_that_wait() {
    for wanted in [0, feature::EVENT_IDX, u64::MAX] {
        let mut driver = FakeDriver::new(Echo::default());
        driver.start(wanted);
        for round in 0..20 {
            assert_eq!(driver.request(round % 2, b"hello", 4).0, 5_u32.to_le_bytes());
        }
        driver.write(reg::QUEUE_SEL, 1);
        // A selector of its own, which a driver may just have written.
        driver.write(reg::DRIVER_FEATURES_SEL, 1);
        let generation = driver.read(reg::CONFIG_GENERATION);
        driver.suspend();
        let (input, output) = (driver.alloc_with(b"12345678"), driver.alloc(4));
        driver.queues[0].add(&[Part::Read(input, 8), Part::Write(output, 4)]);
        driver.move_to(Echo::default());
        driver.wait_used(0);
        assert_eq!(driver.bytes(output, 4), 8_u32.to_le_bytes());
        driver.wait_interrupt();
        // A driver looks again at what the space says, and a change is a change of the generation.
        assert_ne!(driver.read(reg::INTERRUPT_STATUS) & reg::INT_CONFIG, 0);
        assert_ne!(driver.read(reg::CONFIG_GENERATION), generation);
        assert_eq!((driver.read(reg::QUEUE_NUM_MAX), driver.read(reg::QUEUE_READY)), (64, 1));
        assert_eq!(driver.status() & 0xff, 0xf);
        let bells = driver.doorbells.0.lock().unwrap().len();
        assert_eq!(bells, 2, "both doorbells of the new device");
        for round in 0..20 {
            assert_eq!(driver.request(round % 2, b"hello", 4).0, 5_u32.to_le_bytes());
        }
        // And it can be reset like any other.
        driver.free_all();
        driver.start(wanted);
        assert_eq!(driver.request(1, b"hello", 4).0, 5_u32.to_le_bytes());
    }
}

#[test]
fn a_pause_is_not_seen_by_the_driver() {
    let mut driver = FakeDriver::started(Echo::default());
    let (input, output) = (driver.alloc_with(b"123"), driver.alloc(4));
    for _ in 0..3 {
        let state = driver.transport.suspend();
        assert_eq!(driver.transport.suspend(), state, "twice is the same");
        driver.queues[1].add(&[Part::Read(input, 3), Part::Write(output, 4)]);
        driver.notify(1);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(driver.queues[1].used(), None);
        driver.transport.resume();
        driver.wait_used(1);
        driver.transport.resume();
        assert_eq!(driver.request(0, b"hello", 4).0, 5_u32.to_le_bytes());
    }
    driver.transport.suspend();
    driver.transport.stop();
    driver.transport.resume();
    assert!(!driver.transport.suspend().running, "what has stopped doesn't go on");
}

#[test]
fn a_driver_that_has_just_begun_goes_on_with_another_device() {
    let mut driver = FakeDriver::new(Echo::default());
    driver.move_to(Echo::default());
    driver.set_up(u64::MAX);
    driver.move_to(Echo::default());
    assert!(!driver.suspend().running);
    driver.transport.resume();
    driver.add_status(status::DRIVER_OK);
    assert_eq!(driver.request(0, b"hello", 4).0, 5_u32.to_le_bytes());
}

#[test]
fn what_is_broken_stays_broken_until_it_is_reset() {
    let mut driver = FakeDriver::started(Echo::default());
    driver.queues[0].set_avail_idx(1000);
    driver.notify(0);
    driver.wait_needs_reset();
    driver.move_to(Echo::default());
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
    assert!(driver.suspend().queues[0].position.failed);
    driver.transport.resume();
    assert_eq!(driver.request(1, b"hello", 4).0, 5_u32.to_le_bytes(), "the other queue goes on");
    driver.start(u64::MAX);
    assert_eq!(driver.request(0, b"hello", 4).0, 5_u32.to_le_bytes());
}

#[test]
fn a_position_that_the_driver_does_not_know_of_breaks_that_queue() {
    let mut driver = FakeDriver::started(Echo::default());
    let mut state = driver.suspend();
    state.queues[0].position.next_avail = 40_000;
    driver.replace(Echo::default(), &state).unwrap();
    driver.transport.resume();
    driver.wait_needs_reset();
    assert_eq!(driver.request(1, b"hello", 4).0, 5_u32.to_le_bytes());
}

#[test]
fn a_state_that_could_not_have_come_about_is_refused() {
    let mut driver = FakeDriver::started(Echo::default());
    let good = driver.suspend();
    type Change = fn(&mut State);
    let changes: [(&str, Change); 15] = [
        ("another kind", |state| state.kind = 2),
        ("number of queues", |state| state.queues.truncate(1)),
        ("number of queues", |state| state.queues.push(state.queues[0])),
        ("not offered", |state| state.features |= 1 << 50),
        ("mean nothing", |state| state.status |= 0x100),
        ("mean nothing", |state| state.status |= status::NEEDS_RESET),
        ("too early", |state| state.status &= !status::FEATURES_OK),
        ("too early", |state| state.features &= !feature::VERSION_1),
        ("without a driver", |state| state.status = 3),
        ("queue 1: the used ring", |state| state.queues[1].layout.used_ring = MEM_END),
        ("queue 0: a queue of 3", |state| state.queues[0].layout.size = 3),
        ("queue 0: the avail ring", |state| state.queues[0].layout.avail_ring += 1),
        ("remembers nothing", |state| state.device = remember(&7)),
        ("not there", |state| (state.running, state.device) = (false, remember(&7))),
        ("missing field", |state| state.registers = remember(&std::collections::HashMap::<u8, u8>::new())),
    ];
    for (why, change) in changes {
        let mut state = good.clone();
        change(&mut state);
        let error = driver.replace(Echo::default(), &state).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("device"), "{why}: {error}");
    }
    // What isn't enabled may be anywhere.
    let mut state = good.clone();
    state.queues[1].layout.used_ring = MEM_END;
    state.queues[1].enabled = false;
    driver.replace(Echo::default(), &state).unwrap();
    driver.replace(Echo::default(), &good).unwrap();
    driver.transport.resume();
    assert_eq!(driver.request(1, b"hello", 4).0, 5_u32.to_le_bytes());
    let ring = driver.queues[0].layout.used_ring + 2;
    assert_eq!(driver.mem.load::<u16>(GuestAddress(ring), Ordering::SeqCst).unwrap(), 0);
}
