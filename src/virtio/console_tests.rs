use super::*;
use crate::virtio::core::testing::*;

const SIZE: WindowSize = WindowSize { rows: 24, columns: 300 };

fn device(size: Option<WindowSize>) -> (Console, Arc<Port>, EventFd) {
    let host_evt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let console = Console::new("console0", size, host_evt.try_clone().unwrap(), &Spawner::default()).unwrap();
    let port = console.port();
    (console, port, host_evt)
}

fn started() -> (FakeDriver, Arc<Port>, EventFd) {
    let (console, port, host_evt) = device(Some(SIZE));
    (FakeDriver::started(console), port, host_evt)
}

/// What the driver's memory holds of a used buffer.
fn received(driver: &mut FakeDriver, buffer: u64) -> Vec<u8> {
    let (_, len) = driver.wait_used(0);
    driver.bytes(buffer, len)
}

#[test]
fn what_the_guest_sends_is_taken_in_order() {
    let (mut driver, port, host_evt) = started();
    driver.request(1, b"hello, ", 0);
    driver.request(1, b"world\n", 0);
    assert_eq!(host_evt.read().unwrap(), 1, "once, while there was nothing");
    assert_eq!(port.take(), b"hello, world\n");
    assert_eq!(port.take(), b"");
    driver.request(1, b"again", 0);
    assert_eq!((host_evt.read().unwrap(), port.take()), (1, b"again".to_vec()));
}

#[test]
fn what_is_typed_waits_for_buffers_and_fills_them() {
    let (mut driver, port, host_evt) = started();
    assert_eq!(port.give(b"typed"), 5);
    let small = driver.alloc(3);
    driver.queues[0].add(&[Part::Write(small, 3)]);
    driver.notify(0);
    assert_eq!(received(&mut driver, small), b"typ");
    let large = driver.alloc(100);
    driver.queues[0].add(&[Part::Write(large, 100)]);
    driver.notify(0);
    assert_eq!(received(&mut driver, large), b"ed");
    assert_eq!(host_evt.read().unwrap(), 1, "there is room again");
    // A buffer that waits gets what comes later.
    driver.queues[0].add(&[Part::Write(large, 100)]);
    driver.notify(0);
    assert_eq!(port.give(b"more"), 4);
    assert_eq!(received(&mut driver, large), b"more");
}

#[test]
fn no_more_is_taken_from_either_side_than_there_is_room_for() {
    let (mut driver, port, _host_evt) = started();
    assert_eq!(port.give(&[b'x'; INPUT_CAPACITY + 1]), INPUT_CAPACITY);
    assert_eq!(port.give(b"y"), 0);
    let piece = vec![b'o'; OUTPUT_CAPACITY / 2 + 1];
    let buffer = driver.alloc_with(&piece);
    let len = u32::try_from(piece.len()).unwrap();
    for _ in 0..3 {
        driver.queues[1].add(&[Part::Read(buffer, len)]);
    }
    driver.notify(1);
    driver.wait_used(1);
    driver.wait_used(1);
    // The third one waits for room, which comes when the others have been taken.
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(driver.queues[1].used(), None);
    assert_eq!(port.take().len(), 2 * piece.len());
    driver.wait_used(1);
    assert_eq!(port.take().len(), piece.len());
}

#[test]
fn of_a_huge_chain_no_more_is_kept_than_the_limit() {
    let (mut driver, port, _host_evt) = started();
    let buffer = driver.alloc(MAX_PER_CHAIN);
    driver.queues[1].add(&[Part::Read(buffer, MAX_PER_CHAIN), Part::Read(buffer, MAX_PER_CHAIN)]);
    driver.notify(1);
    driver.wait_used(1);
    assert_eq!(port.take().len(), MAX_PER_CHAIN as usize);
}

#[test]
fn the_size_is_in_the_configuration_space_and_a_new_one_is_told() {
    let (driver, port, _host_evt) = started();
    assert_eq!(driver.config::<4>(0), [300_u16.to_le_bytes(), 24_u16.to_le_bytes()].concat()[..]);
    port.resize(WindowSize { rows: 50, columns: 80 });
    driver.wait_interrupt();
    assert_eq!(driver.config::<4>(0), [80, 0, 50, 0]);
    assert_eq!(driver.offered() & console::F_SIZE, console::F_SIZE);
}

#[test]
fn a_new_size_before_the_start_is_told_at_the_start() {
    let (console, port, _host_evt) = device(Some(SIZE));
    port.resize(WindowSize { rows: 1, columns: 2 });
    let driver = FakeDriver::started(console);
    driver.wait_interrupt();
    assert_eq!(driver.config::<4>(0), [2, 0, 1, 0]);
}

#[test]
fn without_a_terminal_there_is_no_size() {
    let (console, port, _host_evt) = device(None);
    let mut driver = FakeDriver::started(console);
    assert_eq!(driver.offered() & console::F_SIZE, 0);
    port.resize(SIZE);
    driver.request(1, b"x", 0);
    assert_eq!(driver.config::<4>(0), [0; 4]);
}

#[test]
fn what_waits_outlives_a_reset_of_the_driver() {
    let (mut driver, port, _host_evt) = started();
    driver.request(1, b"before", 0);
    port.give(b"for whom it concerns");
    driver.start(u64::MAX);
    driver.request(1, b" and after", 0);
    assert_eq!(port.take(), b"before and after");
    let buffer = driver.alloc(100);
    driver.queues[0].add(&[Part::Write(buffer, 100)]);
    driver.notify(0);
    assert_eq!(received(&mut driver, buffer), b"for whom it concerns");
}

#[test]
fn a_broken_ring_stops_its_own_direction_only() {
    let (mut driver, port, _host_evt) = started();
    driver.queues[1].set_avail_idx(5000);
    driver.notify(1);
    driver.wait_needs_reset();
    port.give(b"still");
    let buffer = driver.alloc(10);
    driver.queues[0].add(&[Part::Write(buffer, 10)]);
    driver.notify(0);
    assert_eq!(received(&mut driver, buffer), b"still");
}

#[test]
fn bytes_on_their_way_arrive_at_another_console() {
    let (mut driver, port, _) = started();
    driver.request(1, b"said", 0);
    assert_eq!(port.give(b"typed"), 5);
    let new_size = WindowSize { rows: 50, columns: 80 };
    let (console, port, host_evt) = device(Some(new_size));
    driver.move_to(console);
    assert!(host_evt.read().is_ok());
    assert_eq!(port.take(), b"said");
    let buffer = driver.alloc(100);
    driver.queues[0].add(&[Part::Write(buffer, 100)]);
    driver.notify(0);
    assert_eq!(received(&mut driver, buffer), b"typed");
    assert_eq!(driver.config::<4>(0), [80, 0, 50, 0], "and the terminal is another one");
    let too_much = format!(r#"{{"input": {:?}, "output": []}}"#, vec![0; INPUT_CAPACITY + 1]);
    let mut state = driver.suspend();
    state.device = serde_json::from_str(&too_much).unwrap();
    assert!(driver.replace(device(Some(SIZE)).0, &state).is_err());
}
