use super::*;
use crate::virtio::core::spec::{feature, status};
use crate::virtio::core::testing::*;
use crate::virtio::core::transport::Attached;

fn echo(driver: &mut FakeDriver, queue: u32) {
    assert_eq!(driver.request(queue, b"hello", 4), (vec![5, 0, 0, 0], 4));
}

#[test]
fn the_fixed_registers_identify_the_device() {
    let driver = FakeDriver::new(Echo::default());
    assert_eq!(driver.read(reg::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(reg::VERSION), 2);
    assert_eq!(driver.read(reg::DEVICE_ID), 42);
    assert_eq!(driver.offered(), feature::VERSION_1 | feature::RING | OWN_FEATURE);
    driver.write(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(reg::DEVICE_FEATURES), 0);
    driver.write(reg::DEVICE_FEATURES_SEL, u32::MAX);
    assert_eq!(driver.read(reg::DEVICE_FEATURES), 0);
    for (index, max) in [(0, 64), (1, 64), (2, 0), (u32::MAX, 0)] {
        driver.write(reg::QUEUE_SEL, index);
        assert_eq!(driver.read(reg::QUEUE_NUM_MAX), max);
    }
    for register in [reg::SHM_LEN_LOW, reg::SHM_LEN_HIGH, reg::SHM_BASE_LOW, reg::SHM_BASE_HIGH] {
        assert_eq!(driver.read(register), u32::MAX);
    }
}

#[test]
fn registers_take_aligned_accesses_of_four_bytes_only() {
    let driver = FakeDriver::new(Echo::default());
    for len in [1, 2, 8] {
        let mut data = vec![0xff; len];
        driver.transport.read(0, &mut data);
        assert_eq!(data, vec![0xff; len]);
        driver.transport.write(u64::from(reg::STATUS), &vec![1; len]);
    }
    let mut data = [0xff; 4];
    driver.transport.read(2, &mut data);
    assert_eq!(data, [0xff; 4]);
    driver.transport.write(u64::from(reg::STATUS) + 1, &[1; 4]);
    assert_eq!(driver.status(), 0);
}

#[test]
fn the_configuration_space_takes_any_access() {
    let driver = FakeDriver::new(Echo::default());
    assert_eq!(driver.config(0), *b"f");
    assert_eq!(driver.config(1), *b"ix");
    assert_eq!(driver.config(0), *b"fixedvar");
    assert_eq!(driver.config(6), [b'a', b'r', 0xff, 0xff]);
    assert_eq!(driver.config(u64::MAX - u64::from(reg::CONFIG)), [0xff; 8]);
    driver.transport.write(u64::from(reg::CONFIG) + 4, b"TEXT");
    assert_eq!(driver.config(0), *b"fixeTEXT");
}

#[test]
fn a_driver_may_take_fewer_features_but_not_others() {
    let driver = FakeDriver::new(Echo::default());
    assert!(driver.negotiate(feature::VERSION_1));
    assert!(driver.negotiate(feature::VERSION_1 | OWN_FEATURE));
    assert!(!driver.negotiate(feature::VERSION_1 | 1 << 4));
    assert!(!driver.negotiate(feature::VERSION_1 | 1 << 40));
    assert!(!driver.negotiate(OWN_FEATURE), "a legacy driver");
    // And without FEATURES_OK there is no going on.
    driver.add_status(status::DRIVER_OK);
    assert_eq!(driver.status(), status::ACKNOWLEDGE | status::DRIVER);
}

#[test]
fn features_are_sealed_by_features_ok() {
    let driver = FakeDriver::new(Echo::default());
    assert!(driver.negotiate(feature::VERSION_1));
    driver.write(reg::DRIVER_FEATURES_SEL, 0);
    driver.write(reg::DRIVER_FEATURES, 1 << 4);
    driver.add_status(status::DRIVER_OK);
    assert_eq!(driver.status() & (status::DRIVER_OK | status::NEEDS_RESET), status::DRIVER_OK);
}

#[test]
fn status_bits_are_only_cleared_by_a_reset() {
    let driver = FakeDriver::new(Echo::default());
    assert!(driver.negotiate(feature::VERSION_1));
    let before = driver.status();
    driver.write(reg::STATUS, status::ACKNOWLEDGE);
    assert_eq!(driver.status(), before);
    driver.add_status(status::FAILED);
    assert_eq!(driver.status(), before | status::FAILED);
    driver.write(reg::STATUS, 0);
    assert_eq!(driver.status(), 0);
    driver.write(reg::STATUS, status::FEATURES_OK);
    assert_eq!(driver.status(), 0, "nobody said DRIVER");
}

#[test]
fn requests_are_served_with_every_mix_of_ring_features() {
    for wanted in [0, feature::INDIRECT_DESC, feature::EVENT_IDX, u64::MAX] {
        let mut driver = FakeDriver::new(Echo::default());
        driver.start(wanted);
        for _ in 0..100 {
            echo(&mut driver, 0);
            echo(&mut driver, 1);
        }
        driver.wait_interrupt();
        assert_eq!(driver.read(reg::INTERRUPT_STATUS), reg::INT_VRING);
        driver.write(reg::INTERRUPT_ACK, reg::INT_VRING);
        assert_eq!(driver.read(reg::INTERRUPT_STATUS), 0);
    }
}

#[test]
fn a_chain_that_was_there_before_driver_ok_is_served_without_a_notification() {
    let mut driver = FakeDriver::new(Echo::default());
    driver.set_up(u64::MAX);
    let (input, output) = (driver.alloc(8), driver.alloc(4));
    driver.queues[0].add(&[Part::Read(input, 8), Part::Write(output, 4)]);
    driver.add_status(status::DRIVER_OK);
    assert_eq!(driver.wait_used(0).1, 4);
}

#[test]
fn a_queue_that_was_not_enabled_stays_out_of_it() {
    let mut driver = FakeDriver::new(Echo::default());
    assert!(driver.negotiate(feature::VERSION_1));
    let queues = [0, 1].map(|index| DriverQueue::new(&driver.mem, index, SIZE));
    driver.set_queue(1, &queues[1].layout);
    driver.queues.extend(queues);
    driver.add_status(status::DRIVER_OK);
    for absent in [0, 2, u32::MAX] {
        driver.notify(absent);
    }
    echo(&mut driver, 1);
    assert_eq!(*driver.doorbells.0.lock().unwrap(), [(true, BASE + NOTIFY, Some(1))]);
}

#[test]
fn doorbells_come_with_driver_ok_and_go_with_the_reset() {
    let driver = FakeDriver::started(Echo::default());
    let gpa = BASE + NOTIFY;
    assert_eq!(*driver.doorbells.0.lock().unwrap(), [(true, gpa, Some(0)), (true, gpa, Some(1))]);
    driver.write(reg::STATUS, 0);
    driver.write(reg::STATUS, 0);
    driver.transport.stop();
    assert_eq!(driver.doorbells.0.lock().unwrap()[2..], [(false, gpa, Some(0)), (false, gpa, Some(1))]);
}

#[test]
fn a_reset_forgets_everything_and_the_device_can_be_used_again() {
    let mut driver = FakeDriver::started(Echo::default());
    for _ in 0..20 {
        echo(&mut driver, 0);
        let (input, output) = (driver.alloc(8), driver.alloc(4));
        for _ in 0..8 {
            // In flight, or not yet seen: the reset finds them in any state.
            driver.queues[1].add(&[Part::Read(input, 8), Part::Write(output, 4)]);
        }
        driver.notify(1);
        driver.write(reg::STATUS, 0);
        assert_eq!(driver.status(), 0);
        assert_eq!(driver.read(reg::INTERRUPT_STATUS), 0);
        driver.write(reg::QUEUE_SEL, 1);
        assert_eq!(driver.read(reg::QUEUE_READY), 0);
        // Nothing writes to the old rings any more, whatever is offered there.
        let used = (driver.queues[1].layout.used_ring, 0x1000);
        let before = driver.bytes(used.0, used.1);
        driver.queues[1].add(&[Part::Read(input, 8), Part::Write(output, 4)]);
        driver.notify(1);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(driver.bytes(used.0, used.1), before);
        driver.start(u64::MAX);
    }
    echo(&mut driver, 1);
}

#[test]
fn a_stopped_device_can_be_stopped_reset_and_started_again() {
    let mut driver = FakeDriver::started(Echo::default());
    echo(&mut driver, 0);
    driver.transport.stop();
    driver.transport.stop();
    driver.notify(0);
    driver.write(reg::STATUS, 0);
    driver.start(u64::MAX);
    echo(&mut driver, 0);
}

#[test]
fn live_queues_can_not_be_moved_or_disabled() {
    let mut driver = FakeDriver::started(Echo::default());
    let elsewhere = QueueLayout { size: 4, desc_table: 0x100, avail_ring: 0x200, used_ring: 0x300 };
    driver.set_queue(0, &elsewhere);
    driver.write(reg::QUEUE_READY, 0);
    assert_eq!(driver.read(reg::QUEUE_READY), 1);
    echo(&mut driver, 0);
}

#[test]
fn an_enabled_queue_can_be_disabled_and_moved_before_driver_ok() {
    let mut driver = FakeDriver::new(Echo::default());
    assert!(driver.negotiate(feature::VERSION_1));
    let [wrong, right] = [2, 3].map(|index| DriverQueue::new(&driver.mem, index, SIZE));
    driver.set_queue(0, &wrong.layout);
    driver.write(reg::QUEUE_DESC_LOW, 0x4000);
    driver.write(reg::QUEUE_READY, 0);
    assert_eq!(driver.read(reg::QUEUE_READY), 0);
    driver.set_queue(0, &right.layout);
    driver.queues.push(right);
    driver.add_status(status::DRIVER_OK);
    echo(&mut driver, 0);
}

#[test]
fn a_queue_outside_memory_needs_a_reset() {
    let driver = FakeDriver::new(Echo::default());
    for bad in [
        QueueLayout { size: 16, desc_table: MEM_END, avail_ring: 0x2000, used_ring: 0x3000 },
        QueueLayout { size: 16, desc_table: 0x1008, avail_ring: 0x2000, used_ring: 0x3000 },
        QueueLayout { size: 16, desc_table: 0x1000, avail_ring: u64::MAX - 1, used_ring: 0x3000 },
        QueueLayout { size: 16, desc_table: 0x1000, avail_ring: 0x2000, used_ring: 0 },
        QueueLayout { size: 3, desc_table: 0x1000, avail_ring: 0x2000, used_ring: 0x3000 },
        QueueLayout { size: 0x1_0040, desc_table: 0x1000, avail_ring: 0x2000, used_ring: 0x3000 },
    ] {
        assert!(driver.negotiate(feature::VERSION_1));
        driver.set_queue(0, &bad);
        assert_eq!(driver.read(reg::QUEUE_READY), 0);
        assert_ne!(driver.status() & status::NEEDS_RESET, 0, "{bad:?}");
        assert_eq!(driver.read(reg::INTERRUPT_STATUS), 0, "no interrupt before DRIVER_OK");
        driver.add_status(status::DRIVER_OK);
        driver.notify(0);
    }
    assert!(driver.doorbells.0.lock().unwrap().is_empty(), "nothing was ever started");
}

#[test]
fn a_device_that_does_not_start_needs_a_reset() {
    let mut echo = Echo::default();
    echo.refuse_start = true;
    let mut driver = FakeDriver::new(echo);
    driver.set_up(u64::MAX);
    driver.add_status(status::DRIVER_OK);
    driver.wait_needs_reset();
    driver.transport.stop();
}

#[test]
fn a_broken_queue_needs_a_reset_and_the_other_goes_on() {
    let mut driver = FakeDriver::started(Echo::default());
    echo(&mut driver, 0);
    driver.queues[0].add(&[Part::Read(MEM_END, 8)]);
    driver.notify(0);
    driver.wait_needs_reset();
    echo(&mut driver, 1);
    // The broken one serves nothing more.
    let buffer = driver.alloc(4);
    driver.queues[0].add(&[Part::Write(buffer, 4)]);
    driver.notify(0);
    echo(&mut driver, 1);
    assert_eq!(driver.queues[0].used(), None);
    driver.start(u64::MAX);
    echo(&mut driver, 0);
    echo(&mut driver, 1);
}

#[test]
fn a_driver_that_writes_the_status_back_does_not_set_needs_reset_itself() {
    let mut driver = FakeDriver::started(Echo::default());
    driver.write(reg::STATUS, driver.status() | status::NEEDS_RESET);
    assert_eq!(driver.status() & status::NEEDS_RESET, 0);
    echo(&mut driver, 0);
}

#[test]
fn a_change_of_the_configuration_has_a_new_generation_and_an_interrupt() {
    let device = Echo::default();
    let (config, change) = (device.config.clone(), device.config_change.clone());
    let driver = FakeDriver::started(device);
    let change = change.lock().unwrap().clone().unwrap();
    let before = driver.read(reg::CONFIG_GENERATION);
    change.apply(|| *config.lock().unwrap() = *b"newbytes");
    assert_ne!(driver.read(reg::CONFIG_GENERATION), before);
    assert_eq!(driver.config(0), *b"newbytes");
    assert_eq!(driver.read(reg::INTERRUPT_STATUS), reg::INT_CONFIG);
    driver.wait_interrupt();
}

#[test]
fn no_access_to_any_offset_of_any_width_does_harm() {
    let driver = FakeDriver::new(Echo::default());
    for value in [0, 1, 0xf, 0xffff_ffff_u32, 0x8000_0000] {
        for offset in 0..0x120 {
            for width in [1, 2, 4, 8] {
                let mut data = [value.to_le_bytes(), value.to_le_bytes()].concat();
                driver.transport.write(offset, &data[..width]);
                driver.transport.read(offset, &mut data[..width]);
            }
        }
    }
    for offset in [WINDOW_LEN - 1, u64::MAX - 7] {
        driver.transport.write(offset, &[0xff; 8]);
        driver.transport.read(offset, &mut [0; 8]);
    }
}
