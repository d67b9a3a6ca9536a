use super::*;
use crate::virtio::core::spec::mmio;
use crate::virtio::core::testing::*;
use crate::virtio::core::transport::Attached;
use vm_memory::Bytes;

/// Where the tests have pages: behind what the fake driver uses.
const PAGES: u64 = 0x60_0000;

fn device() -> (Balloon, Handle) {
    let balloon = Balloon::new("balloon0", &Spawner::default()).unwrap();
    let handle = balloon.handle();
    (balloon, handle)
}

fn started() -> (FakeDriver, Handle) {
    let (balloon, handle) = device();
    (FakeDriver::started(balloon), handle)
}

fn fill(driver: &FakeDriver, pages: u64) {
    for page in 0..pages {
        driver.mem.write_obj(0x11_u8, GuestAddress(PAGES + page * balloon::PAGE_SIZE)).unwrap();
    }
}

/// Which of the pages still hold what `fill` wrote.
fn filled(driver: &FakeDriver, pages: u64) -> Vec<u64> {
    let byte = |page| driver.bytes(PAGES + page * balloon::PAGE_SIZE, 1)[0];
    (0..pages).filter(|page| byte(*page) == 0x11).collect()
}

/// Sends the numbers to a queue, and waits until they are taken.
fn send_numbers(driver: &mut FakeDriver, queue: u32, numbers: &[u32]) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let (_, len) = driver.request(queue, &bytes, 0);
    assert_eq!(len, 0);
}

fn first_page() -> u32 {
    u32::try_from(PAGES / balloon::PAGE_SIZE).unwrap()
}

fn target(driver: &FakeDriver) -> u32 {
    u32::from_le_bytes(driver.config(0))
}

fn write_actual(driver: &FakeDriver, pages: u32) {
    driver.write(mmio::CONFIG + 4, pages);
}

#[test]
fn inflated_pages_are_discarded_and_their_neighbours_stay() {
    let (mut driver, handle) = started();
    fill(&driver, 8);
    let first = first_page();
    send_numbers(&mut driver, 0, &[first + 5, first + 1, first + 2, first + 1]);
    assert_eq!(filled(&driver, 8), [0, 3, 4, 6, 7]);
    assert_eq!(handle.figures().inflated, 3 * balloon::PAGE_SIZE);
}

#[test]
fn more_numbers_than_one_piece_holds_are_all_taken() {
    let (mut driver, _) = started();
    fill(&driver, 400);
    let numbers: Vec<u32> = (0..400).map(|page| first_page() + page).collect();
    send_numbers(&mut driver, 0, &numbers);
    assert!(filled(&driver, 400).is_empty());
}

#[test]
fn wild_numbers_and_cut_ones_harm_nobody() {
    let (mut driver, handle) = started();
    fill(&driver, 1);
    send_numbers(&mut driver, 0, &[u32::MAX, u32::try_from(MEM_END / balloon::PAGE_SIZE).unwrap()]);
    let (_, len) = driver.request(0, &first_page().to_le_bytes()[..3], 0);
    assert_eq!((len, handle.figures().inflated), (0, 0));
    assert_eq!(filled(&driver, 1), [0]);
    assert_eq!(driver.status() & crate::virtio::core::spec::status::NEEDS_RESET, 0);
}

#[test]
fn deflating_leaves_everything_as_it_is() {
    let (mut driver, _) = started();
    fill(&driver, 2);
    send_numbers(&mut driver, 1, &[first_page()]);
    assert_eq!(filled(&driver, 2), [0, 1]);
}

#[test]
fn reported_pages_are_discarded_on_whichever_queue_they_are_reported() {
    for (features, queue) in [(u64::MAX, 3), (u64::MAX, 4), (!balloon::F_STATS_VQ, 2)] {
        let (balloon, handle) = device();
        let mut driver = FakeDriver::new(balloon);
        driver.start(features);
        fill(&driver, 6);
        let size = u32::try_from(balloon::PAGE_SIZE).unwrap();
        driver.queues[queue].add(&[Part::Write(PAGES, size), Part::Write(PAGES + 3 * 4096, 2 * size)]);
        driver.notify(u32::try_from(queue).unwrap());
        driver.wait_used(queue);
        assert_eq!(filled(&driver, 6), [1, 2, 5]);
        assert_eq!(handle.figures().reported, 3 * balloon::PAGE_SIZE);
    }
}

#[test]
fn what_is_asked_for_is_the_target_until_the_guest_has_handed_it_over() {
    let (driver, handle) = started();
    assert_eq!(target(&driver), 0);
    handle.reclaim(64 * balloon::PAGE_SIZE);
    wait_until("the target", || target(&driver) == 64);
    driver.wait_interrupt();
    assert_eq!(driver.read(mmio::INTERRUPT_STATUS), mmio::INT_CONFIG);
    write_actual(&driver, 63);
    assert_eq!((target(&driver), handle.figures().actual), (64, 63 * balloon::PAGE_SIZE));
    write_actual(&driver, 64);
    wait_until("the target falls", || target(&driver) == 0);
    driver.wait_interrupt();
}

#[test]
fn a_guest_that_hands_over_nothing_is_asked_no_longer_after_a_while() {
    let (driver, handle) = started();
    handle.reclaim(u64::MAX);
    wait_until("the target", || target(&driver) == u32::MAX);
    wait_until("the target falls", || target(&driver) == 0);
}

#[test]
fn what_is_asked_for_before_the_driver_is_there_waits_for_it() {
    let (balloon, handle) = device();
    handle.reclaim(64 * balloon::PAGE_SIZE);
    let driver = FakeDriver::started(balloon);
    wait_until("the target", || target(&driver) == 64);
}

#[test]
fn statistics_are_asked_for_when_memory_was_handed_over_and_the_buffer_survives_a_stop() {
    let (mut driver, handle) = started();
    let stat = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let first = driver.alloc_with(&[stat(4, 1000), stat(99, 5), stat(5, 2000)].concat());
    let head = driver.queues[2].add(&[Part::Read(first, 30)]);
    driver.notify(2);
    wait_until("the first statistics", || handle.figures().statistics.is_some());
    let statistics = handle.figures().statistics.unwrap();
    assert_eq!((statistics.free, statistics.total, statistics.available), (Some(1000), Some(2000), None));
    assert_eq!(driver.queues[2].used(), None, "it is kept until something changes");
    send_numbers(&mut driver, 0, &[first_page()]);
    assert_eq!(driver.wait_used(2), (head, 0));
    let second = driver.alloc_with(&stat(4, 3000));
    driver.queues[2].add(&[Part::Read(second, 10)]);
    driver.notify(2);
    wait_until("the next", || handle.figures().statistics.unwrap().free == Some(3000));
    driver.transport.stop();
    assert_eq!(driver.queues[2].used(), None);
}

#[test]
fn a_second_statistics_buffer_sends_the_first_back() {
    let (mut driver, _) = started();
    let buffer = driver.alloc(10);
    let heads = [(); 2].map(|()| driver.queues[2].add(&[Part::Read(buffer, 10)]));
    driver.notify(2);
    assert_eq!(driver.wait_used(2), (heads[0], 0));
}

#[test]
fn a_broken_ring_stops_one_queue_and_the_others_go_on() {
    let (mut driver, _) = started();
    driver.queues[0].offer(SIZE);
    driver.notify(0);
    driver.wait_needs_reset();
    fill(&driver, 1);
    driver.queues[3].add(&[Part::Write(PAGES, 4096)]);
    driver.notify(3);
    driver.wait_used(3);
    assert!(filled(&driver, 1).is_empty());
    driver.start(u64::MAX);
    send_numbers(&mut driver, 0, &[first_page()]);
}

#[test]
fn another_balloon_is_as_large_and_asks_for_nothing() {
    let (mut driver, handle) = started();
    handle.reclaim(8 * balloon::PAGE_SIZE);
    wait_until("the target", || target(&driver) == 8);
    write_actual(&driver, 5);
    let (balloon, handle) = device();
    driver.move_to(balloon);
    assert_eq!(driver.config::<8>(0), [0, 0, 0, 0, 5, 0, 0, 0]);
    assert_eq!(handle.figures().actual, 5 * balloon::PAGE_SIZE);
    assert_ne!(driver.read(mmio::INTERRUPT_STATUS) & mmio::INT_CONFIG, 0, "the driver looks at the target");
    fill(&driver, 2);
    send_numbers(&mut driver, 0, &[first_page()]);
    assert_eq!(filled(&driver, 2), [1]);
}
