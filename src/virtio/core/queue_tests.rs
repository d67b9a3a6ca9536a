use super::*;
use crate::virtio::core::testing::*;
use std::sync::Arc;

const A: u64 = 0x10_0000;

fn pair(features: u64) -> (Arc<GuestMemory>, DriverQueue, Queue) {
    let mem = memory();
    let driver = DriverQueue::new(&mem, 0, SIZE);
    let queue = Queue::new(&driver.layout, 256, features, &mem).unwrap();
    (mem, driver, queue)
}

fn pop(queue: &mut Queue, mem: &GuestMemory) -> Chain {
    queue.pop(mem).unwrap().unwrap()
}

#[test]
fn chains_come_in_order_and_go_back_with_their_length() {
    let (mem, mut driver, mut queue) = pair(0);
    assert!(queue.pop(&mem).unwrap().is_none());
    // More than once around the ring, and around the 16-bit index.
    for round in 0..70_000_u32 {
        let head = driver.add(&[Part::Read(A, 4), Part::Write(A, 9)]);
        let chain = pop(&mut queue, &mem);
        assert_eq!(chain.head(), head);
        queue.complete(&mem, chain, round % 10).unwrap();
        assert_eq!(driver.used(), Some((head, round % 10)));
    }
    assert_eq!(driver.used(), None);
}

#[test]
fn chains_may_be_completed_in_any_order() {
    let (mem, mut driver, mut queue) = pair(0);
    let heads = [1, 2, 3].map(|_| driver.add(&[Part::Write(A, 1)]));
    let [a, b, c] = [(); 3].map(|()| pop(&mut queue, &mem));
    for chain in [b, c, a] {
        queue.complete(&mem, chain, 1).unwrap();
    }
    assert_eq!([(); 3].map(|()| driver.used().unwrap().0), [heads[1], heads[2], heads[0]]);
}

#[test]
fn a_chain_that_was_put_back_comes_again() {
    let (mem, mut driver, mut queue) = pair(0);
    let (first, second) = (driver.add(&[Part::Write(A, 1)]), driver.add(&[Part::Write(A, 2)]));
    let chain = pop(&mut queue, &mem);
    queue.complete(&mem, chain, 0).unwrap();
    let before = queue.position();
    let chain = pop(&mut queue, &mem);
    queue.put_back(chain);
    assert_eq!(queue.position(), before);
    let chain = pop(&mut queue, &mem);
    assert_eq!(chain.head(), second);
    queue.complete(&mem, chain, 0).unwrap();
    assert_eq!([driver.used(), driver.used(), driver.used()], [Some((first, 0)), Some((second, 0)), None]);
}

#[test]
#[should_panic(expected = "only the last popped chain can go back")]
fn putting_back_any_but_the_last_chain_is_noticed() {
    let (mem, mut driver, mut queue) = pair(0);
    driver.add(&[Part::Write(A, 1)]);
    driver.add(&[Part::Write(A, 1)]);
    let first = pop(&mut queue, &mem);
    let second = pop(&mut queue, &mem);
    queue.complete(&mem, second, 0).unwrap();
    queue.put_back(first);
}

#[test]
fn a_broken_ring_is_reported_once_and_then_empty() {
    let (mem, mut driver, mut queue) = pair(0);
    driver.add(&[Part::Write(A, 1)]);
    let in_flight = pop(&mut queue, &mem);
    driver.add(&[Part::Write(MEM_END, 1)]);
    let good_one = driver.add(&[Part::Write(A, 1)]);
    assert!(matches!(queue.pop(&mem), Err(QueueError::Chain(ChainError::OutsideMemory { .. }))));
    for _ in 0..3 {
        assert!(queue.pop(&mem).unwrap().is_none());
    }
    assert!(queue.failed());
    assert!(!queue.enable_notification(&mem));
    // What was in flight is finished.
    queue.complete(&mem, in_flight, 1).unwrap();
    assert_eq!(driver.used().unwrap().1, 1);
    assert_eq!(driver.used(), None, "chain {good_one} was never popped");
}

#[test]
fn an_avail_index_that_jumps_ahead_of_the_queue_is_refused() {
    for jump in [SIZE + 1, 0x8000, u16::MAX] {
        let (mem, mut driver, mut queue) = pair(0);
        driver.set_avail_idx(jump);
        assert!(matches!(queue.pop(&mem), Err(QueueError::TooManyAvailable)), "{jump}");
    }
}

#[test]
fn offering_one_chain_over_and_over_while_it_is_held_is_refused() {
    let (mem, mut driver, mut queue) = pair(0);
    driver.desc(0, A, 1, WRITE, 0);
    let mut held = Vec::new();
    let error = loop {
        driver.offer(0);
        match queue.pop(&mem) {
            Ok(chain) => held.push(chain.unwrap()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, QueueError::TooManyAvailable));
    assert_eq!(held.len(), usize::from(SIZE));
    for chain in held {
        queue.complete(&mem, chain, 0).unwrap();
    }
}

#[test]
fn queues_that_make_no_sense_are_refused() {
    let mem = memory();
    let good = DriverQueue::new(&mem, 0, SIZE).layout;
    let refused = |layout: QueueLayout| Queue::new(&layout, 256, 0, &mem).unwrap_err();
    for size in [0, 3, 512, 0x1_0000, 0x1_0010, u32::MAX] {
        assert!(matches!(refused(QueueLayout { size, ..good }), QueueError::Size { .. }), "{size}");
    }
    for gpa in [0, good.desc_table + 8, u64::MAX] {
        assert!(matches!(refused(QueueLayout { desc_table: gpa, ..good }), QueueError::Misplaced { .. }));
    }
    for gpa in [0, good.avail_ring + 1] {
        assert!(matches!(refused(QueueLayout { avail_ring: gpa, ..good }), QueueError::Misplaced { .. }));
    }
    for gpa in [0, good.used_ring + 2] {
        assert!(matches!(refused(QueueLayout { used_ring: gpa, ..good }), QueueError::Misplaced { .. }));
    }
    // Outside, and across the end: the used ring takes 134 bytes and the avail ring 38.
    for gpa in [MEM_END, MEM_END - 16, u64::MAX - 15] {
        assert!(matches!(refused(QueueLayout { desc_table: gpa, ..good }), QueueError::OutsideMemory { .. }));
    }
    assert!(matches!(
        refused(QueueLayout { avail_ring: MEM_END - 36, ..good }),
        QueueError::OutsideMemory { .. }
    ));
    assert!(matches!(
        refused(QueueLayout { used_ring: MEM_END - 132, ..good }),
        QueueError::OutsideMemory { .. }
    ));
    let at_the_end = QueueLayout { avail_ring: MEM_END - 38, ..good };
    assert!(Queue::new(&at_the_end, 256, 0, &mem).is_ok());
}

#[test]
fn interrupts_follow_the_flag_without_the_event_index() {
    let (mem, mut driver, mut queue) = pair(0);
    assert!(!queue.needs_interrupt(&mem), "nothing was completed");
    for wanted in [true, false, true] {
        driver.want_interrupts(wanted);
        driver.add(&[Part::Write(A, 1)]);
        let chain = pop(&mut queue, &mem);
        queue.complete(&mem, chain, 0).unwrap();
        assert_eq!(queue.needs_interrupt(&mem), wanted);
        assert!(!queue.needs_interrupt(&mem), "said already");
    }
}

#[test]
fn interrupts_follow_the_event_index_where_it_is_negotiated() {
    let (mem, mut driver, mut queue) = pair(feature::EVENT_IDX);
    driver.set_used_event(2);
    let mut complete = |queue: &mut Queue| {
        driver.add(&[Part::Write(A, 1)]);
        let chain = pop(queue, &mem);
        queue.complete(&mem, chain, 0).unwrap();
    };
    let answers = [(); 4].map(|()| {
        complete(&mut queue);
        queue.needs_interrupt(&mem)
    });
    // The third entry has index 2.
    assert_eq!(answers, [false, false, true, false]);
}

#[test]
fn notifications_are_switched_off_and_on_and_a_chain_in_between_is_not_missed() {
    let (mem, mut driver, mut queue) = pair(0);
    queue.disable_notification(&mem);
    assert!(driver.notification_is_off());
    assert!(!queue.enable_notification(&mem));
    assert!(!driver.notification_is_off());
    queue.disable_notification(&mem);
    driver.add(&[Part::Write(A, 1)]);
    assert!(queue.enable_notification(&mem));
}

#[test]
fn steady_traffic_allocates_no_lists() {
    let (mem, mut driver, mut queue) = pair(0);
    for _ in 0..100 {
        driver.add(&[Part::Read(A, 4), Part::Write(A, 9)]);
        let chain = pop(&mut queue, &mem);
        queue.complete(&mem, chain, 0).unwrap();
        assert_eq!(queue.spare.len(), 1);
    }
}
