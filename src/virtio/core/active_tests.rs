use super::*;
use crate::bounded_log::BoundedLog;
use crate::virtio::core::testing::*;

const A: u64 = 0x10_0000;

/// A queue, its driver, and the eventfd of its interrupt.
fn active() -> (DriverQueue, ActiveQueue, Arc<EventFd>) {
    let mem = memory();
    let driver = DriverQueue::new(&mem, 0, SIZE);
    let queue = Queue::new(&driver.layout, 256, 0, &mem).unwrap();
    let evt = || Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let (irq_evt, config_evt) = (evt(), evt());
    let interrupt = Interrupt::line(irq_evt.clone(), Arc::default(), 1);
    let config = Interrupt::line(config_evt, Arc::default(), 2);
    let needs_reset = NeedsReset::new(config, Arc::new(BoundedLog::new("test")));
    (driver, ActiveQueue::new(0, queue, mem, evt(), interrupt, needs_reset), irq_evt)
}

#[test]
fn a_driver_that_adds_a_chain_for_each_that_is_served_is_left_after_one_queues_worth() {
    let (mut driver, mut active, irq_evt) = active();
    let stop = Stop::new().unwrap();
    driver.add(&[Part::Write(A, 4)]);
    let mut served = 0;
    active.serve(&stop, Notify::Burst, |_, _| {
        served += 1;
        driver.add(&[Part::Write(A, 4)]);
        0
    });
    assert_eq!(served, SIZE);
    assert_eq!(active.kick_evt.read().unwrap(), 1, "it comes back for the rest");
    assert_eq!(irq_evt.read().unwrap(), 1, "one interrupt for them all");
}

#[test]
fn a_stop_leaves_the_chains_that_were_not_popped() {
    let (mut driver, mut active, _irq_evt) = active();
    let stop = Stop::new().unwrap();
    for _ in 0..5 {
        driver.add(&[Part::Write(A, 4)]);
    }
    let mut served = 0;
    let mut answer = |_: &Chain, _: &GuestMemory| {
        served += 1;
        stop.set();
        0
    };
    active.run(&stop, Notify::EachChain, &mut answer);
    assert_eq!(served, 1);
    let state = active.into_queue().position();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
}

#[test]
fn notifications_are_off_while_chains_are_served_and_on_afterwards() {
    let (mut driver, mut active, _irq_evt) = active();
    let stop = Stop::new().unwrap();
    driver.add(&[Part::Write(A, 4)]);
    active.serve(&stop, Notify::EachChain, |_, _| {
        assert!(driver.notification_is_off());
        0
    });
    assert!(!driver.notification_is_off());
}

#[test]
fn each_chain_interrupts_or_all_of_them_together() {
    for (notify, expected) in [(Notify::EachChain, 3), (Notify::Burst, 1)] {
        let (mut driver, mut active, irq_evt) = active();
        for _ in 0..3 {
            driver.add(&[Part::Write(A, 4)]);
        }
        active.serve(&Stop::new().unwrap(), notify, |_, _| 0);
        assert_eq!(irq_evt.read().unwrap(), expected);
    }
}

#[test]
fn chains_of_a_broken_ring_are_not_served_and_it_is_told_once() {
    let (mut driver, mut active, _irq_evt) = active();
    driver.set_avail_idx(1000);
    let stop = Stop::new().unwrap();
    for raised in [true, false] {
        active.serve(&stop, Notify::EachChain, |_, _| unreachable!("there is no chain"));
        assert_eq!(active.needs_reset.is_raised(), raised);
        active.needs_reset.clear();
    }
}
