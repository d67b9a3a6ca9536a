use super::testing::*;
use super::*;
use crate::virtio::core::spec::{mmio, status};
use crate::virtio::core::testing::*;
use crate::virtio::core::transport::Attached;
use std::time::Duration;

const BUFFER: u32 = 2048;
const HEADER: usize = net::HEADER_LEN as usize;

fn config(mac: Option<&str>) -> Config {
    let mac = mac.map(|mac| mac.parse().unwrap());
    Config { backend: Backend::Tap("t0".to_owned()), mac, ..Config::default() }
}

/// A device on a new tap that is up, and the host's side of it.
fn device() -> (Net, Wire) {
    device_with_mtu(1500)
}

fn device_with_mtu(mtu: libc::c_int) -> (Net, Wire) {
    make("t0", libc::IFF_TAP);
    set_mtu("t0", mtu);
    let tap = open_when_free(&config(None));
    set_up("t0", true);
    let net = Net::new(&config(None), tap.into_ports(), "net0", &Spawner::default()).unwrap();
    (net, Wire::new("t0"))
}

/// The same on a tap with two queues.
fn device_with_two_pairs() -> (Net, Wire) {
    make("t0", libc::IFF_TAP | libc::IFF_MULTI_QUEUE);
    let config = Config { queues: NonZeroU16::new(2), ..config(None) };
    let tap = open_when_free(&config);
    set_up("t0", true);
    (Net::new(&config, tap.into_ports(), "net0", &Spawner::default()).unwrap(), Wire::new("t0"))
}

/// A command of the control queue, which has index 4, and its answer.
fn command(driver: &mut FakeDriver, bytes: &[u8]) -> u8 {
    let (command, ack) = (driver.alloc_with(bytes), driver.alloc(1));
    let len = u32::try_from(bytes.len()).unwrap();
    let head = driver.queues[4].add(&[Part::Read(command, len), Part::Write(ack, 1)]);
    driver.notify(4);
    assert_eq!(driver.wait_used(4), (head, 1));
    driver.bytes(ack, 1)[0]
}

#[test]
fn a_driver_uses_as_many_queue_pairs_as_it_says() {
    in_network_namespace("a_driver_uses_as_many_queue_pairs_as_it_says", || {
        let (device, wire) = device_with_two_pairs();
        let mut driver = FakeDriver::started(device);
        assert_eq!(u16::from_le_bytes(driver.config(8)), 2);
        for bad in [&[4, 0, 0, 0][..], &[4, 0, 3, 0], &[4, 1, 1, 0], &[0, 0, 1, 0], &[4, 0, 1], &[]] {
            assert_eq!(command(&mut driver, bad), net::ctrl::ERR, "{bad:?}");
        }
        for (round, pairs) in (0..).zip([1_u8, 2, 1, 2, 2, 1]) {
            assert_eq!(command(&mut driver, &[4, 0, pairs, 0]), net::ctrl::OK);
            // What is sent by any pair goes out.
            for pair in 0..usize::from(pairs) {
                let buffer = driver.alloc_with(&[&[0; HEADER][..], &frame(round, 60)].concat());
                driver.queues[2 * pair + 1].add(&[Part::Read(buffer, 12 + 74)]);
                driver.notify(u32::try_from(2 * pair + 1).unwrap());
                driver.wait_used(2 * pair + 1);
                assert_eq!(wait_frame(&wire), frame(round, 60));
            }
            // What comes in comes by some pair that is used, and nothing is lost. The host's own
            // chatter comes as well.
            let indices = (0..usize::from(pairs)).map(|pair| 2 * pair);
            let give = |driver: &mut FakeDriver, index: usize| {
                let buffer = driver.alloc(BUFFER);
                driver.queues[index].add(&[Part::Write(buffer, BUFFER)]);
                driver.notify(u32::try_from(index).unwrap());
            };
            indices.clone().for_each(|index| give(&mut driver, index));
            for mark in 0..10 {
                wire.send(&frame(mark, 100));
                let mut came = false;
                wait_until("the frame, by one of the pairs", || {
                    for index in indices.clone() {
                        while let Some((_, len)) = driver.queues[index].used() {
                            came |= len == 12 + 114;
                            give(&mut driver, index);
                        }
                    }
                    came
                });
            }
            driver.free_all();
            driver.transport.stop();
            driver.start(u64::MAX);
        }
    });
}

#[test]
fn a_driver_that_knows_of_one_pair_alone_finds_the_control_queue_behind_it() {
    in_network_namespace("a_driver_that_knows_of_one_pair_alone_finds_the_control_queue_behind_it", || {
        let (device, wire) = device_with_two_pairs();
        let mut driver = FakeDriver::new(device);
        driver.start(!net::F_MQ);
        let (bytes, used) = driver.request(2, &[4, 0, 1, 0], 1);
        assert_eq!((bytes, used), (vec![net::ctrl::OK], 1));
        transmit(&mut driver, &[0; HEADER], &frame(1, 60));
        assert_eq!(wait_frame(&wire), frame(1, 60));
    });
}

/// A driver that receives each packet into one buffer, and need have no more than one.
fn started_with_whole_buffers(device: Net) -> FakeDriver {
    let mut driver = FakeDriver::new(device);
    driver.start(!net::F_MRG_RXBUF);
    driver
}

/// Gives the device buffers to receive into; where they are, by the head of their chain.
fn add_buffers(driver: &mut FakeDriver, count: usize) -> Vec<(u16, u64)> {
    let buffers: Vec<_> = (0..count)
        .map(|_| {
            let buffer = driver.alloc(BUFFER);
            let parts =
                [Part::Write(buffer, net::HEADER_LEN), Part::Write(buffer + HEADER as u64, BUFFER - 12)];
            (driver.queues[net::RX].add(&parts), buffer)
        })
        .collect();
    driver.notify(0);
    buffers
}

/// Waits for the next frame of the experimental type; what else the host sends uses a buffer up,
/// and a new one takes its place.
fn receive(driver: &mut FakeDriver, buffers: &mut Vec<(u16, u64)>) -> Vec<u8> {
    loop {
        let (head, len) = driver.wait_used(net::RX);
        let at = buffers.iter().position(|(h, _)| *h == head).unwrap();
        let (_, buffer) = buffers.remove(at);
        let bytes = driver.bytes(buffer, len);
        assert_eq!(bytes[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "the header");
        if bytes[HEADER + 12..HEADER + 14] == ETHERTYPE.to_be_bytes() {
            return bytes[HEADER..].to_vec();
        }
        buffers.extend(add_buffers(driver, 1));
    }
}

/// Sends one chain with this header and frame, and waits until it is used.
fn transmit(driver: &mut FakeDriver, header: &[u8], frame: &[u8]) {
    let buffer = driver.alloc_with(&[header, frame].concat());
    let (header, frame) = (u32::try_from(header.len()).unwrap(), u32::try_from(frame.len()).unwrap());
    let head = driver.queues[net::TX]
        .add(&[Part::Read(buffer, header), Part::Read(buffer + u64::from(header), frame)]);
    driver.notify(1);
    assert_eq!(driver.wait_used(net::TX), (head, 0));
}

fn wait_frame(wire: &Wire) -> Vec<u8> {
    let mut frame = None;
    wait_until("a frame from the guest", || {
        frame = wire.receive();
        frame.is_some()
    });
    frame.unwrap()
}

#[test]
fn packets_go_both_ways() {
    in_network_namespace("packets_go_both_ways", || {
        for wanted in [0, feature::EVENT_IDX, u64::MAX] {
            let (device, wire) = device();
            let mut driver = FakeDriver::new(device);
            driver.start(wanted);
            let mut buffers = add_buffers(&mut driver, 8);
            for round in 0..100 {
                wire.send(&frame(round, 46 + usize::from(round) * 14));
                assert_eq!(receive(&mut driver, &mut buffers), frame(round, 46 + usize::from(round) * 14));
                buffers.extend(add_buffers(&mut driver, 1));
                transmit(&mut driver, &[0; HEADER], &frame(round, 60));
                assert_eq!(wait_frame(&wire), frame(round, 60));
            }
            driver.wait_interrupt();
            drop((driver, wire));
            delete("t0");
        }
    });
}

#[test]
fn packets_wait_until_the_driver_has_buffers() {
    in_network_namespace("packets_wait_until_the_driver_has_buffers", || {
        let (device, wire) = device();
        let mut driver = started_with_whole_buffers(device);
        for mark in 0..20 {
            wire.send(&frame(mark, 100));
        }
        let mut buffers = add_buffers(&mut driver, 2);
        for mark in 0..20 {
            assert_eq!(receive(&mut driver, &mut buffers)[14], mark);
            buffers.extend(add_buffers(&mut driver, 1));
        }
    });
}

#[test]
fn without_offloads_what_a_driver_claims_in_a_header_does_not_reach_the_host() {
    in_network_namespace("without_offloads_what_a_driver_claims_in_a_header_does_not_reach_the_host", || {
        let (device, wire) = device();
        let mut driver = FakeDriver::new(device);
        driver.start(feature::RING);
        // Every flag, a segmentation of no kind, and offsets past the packet: the tap itself would
        // refuse it.
        transmit(&mut driver, &[0xff; HEADER], &frame(1, 100));
        assert_eq!(wait_frame(&wire), frame(1, 100));
    });
}

#[test]
fn with_offloads_a_header_is_taken_at_its_word_and_nonsense_is_dropped() {
    in_network_namespace("with_offloads_a_header_is_taken_at_its_word_and_nonsense_is_dropped", || {
        let (device, wire) = device();
        let mut driver = FakeDriver::started(device);
        transmit(&mut driver, &[0xff; HEADER], &frame(1, 100));
        // A checksum that lies past the packet's end: the kernel refuses it.
        transmit(&mut driver, &[1, 0, 0, 0, 0, 0, 0xf0, 0xff, 16, 0, 0, 0], &frame(2, 100));
        transmit(&mut driver, &[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &frame(3, 100));
        let got = wait_frame(&wire);
        // Linux computes it where a packet leaves the machine, and a packet socket isn't that.
        assert_eq!((got.len(), got[14]), (114, 3));
    });
}

#[test]
fn an_interface_that_goes_away_is_a_link_that_is_down() {
    in_network_namespace("an_interface_that_goes_away_is_a_link_that_is_down", || {
        let (device, _wire) = device();
        let mut driver = FakeDriver::started(device);
        // Too few to receive anything: the tap is not read then.
        add_buffers(&mut driver, 2);
        let status = |driver: &FakeDriver| u16::from_le_bytes(driver.config(6));
        assert_eq!(status(&driver), net::S_LINK_UP);
        delete("t0");
        wait_until("the link is down", || status(&driver) == 0);
        driver.wait_interrupt();
        assert_ne!(driver.read(mmio::INTERRUPT_STATUS) & mmio::INT_CONFIG, 0);
    });
}

#[test]
fn what_is_no_packet_is_used_up_and_dropped() {
    in_network_namespace("what_is_no_packet_is_used_up_and_dropped", || {
        let (device, wire) = device();
        let mut driver = FakeDriver::started(device);
        transmit(&mut driver, &[], &[]);
        transmit(&mut driver, &[0; 5], &[]);
        transmit(&mut driver, &[0; HEADER], &[]);
        transmit(&mut driver, &[0; HEADER], &[0; 13]);
        transmit(&mut driver, &[0; HEADER], &vec![0; 70_000]);
        let writable = driver.alloc(64);
        driver.queues[net::TX].add(&[Part::Write(writable, 64)]);
        driver.notify(1);
        assert_eq!(driver.wait_used(net::TX).1, 0);
        transmit(&mut driver, &[0; HEADER], &frame(9, 60));
        assert_eq!(wait_frame(&wire), frame(9, 60));
    });
}

#[test]
fn a_packet_that_does_not_fit_is_dropped_and_the_next_one_comes() {
    in_network_namespace("a_packet_that_does_not_fit_is_dropped_and_the_next_one_comes", || {
        let (device, wire) = device();
        set_mtu("t0", 9000);
        let mut driver = started_with_whole_buffers(device);
        let mut buffers = add_buffers(&mut driver, 4);
        let fits = BUFFER as usize - HEADER - 14;
        for len in [fits + 1, fits, 8000, 60] {
            wire.send(&frame(u8::try_from(len % 256).unwrap(), len));
        }
        assert_eq!(receive(&mut driver, &mut buffers), frame(u8::try_from(fits % 256).unwrap(), fits));
        assert_eq!(receive(&mut driver, &mut buffers), frame(60, 60));
    });
}

#[test]
fn a_receive_buffer_with_no_room_is_used_up() {
    in_network_namespace("a_receive_buffer_with_no_room_is_used_up", || {
        let (device, wire) = device();
        let mut driver = started_with_whole_buffers(device);
        let buffer = driver.alloc(64);
        for part in [Part::Write(buffer, 25), Part::Read(buffer, 64), Part::Write(buffer, 0)] {
            driver.queues[net::RX].add(&[part]);
        }
        driver.notify(0);
        wire.send(&frame(1, 60));
        for _ in 0..3 {
            assert_eq!(driver.wait_used(net::RX).1, 0);
        }
    });
}

#[test]
fn a_held_buffer_is_given_back_by_a_reset_and_the_device_starts_again() {
    in_network_namespace("a_held_buffer_is_given_back_by_a_reset_and_the_device_starts_again", || {
        let (device, wire) = device();
        let mut driver = started_with_whole_buffers(device);
        for round in 0..20 {
            let merges = round % 2 == 1;
            let mut buffers = add_buffers(&mut driver, if merges { 8 } else { 3 });
            wire.send(&frame(round, 60));
            assert_eq!(receive(&mut driver, &mut buffers)[14], round);
            driver.write(mmio::STATUS, 0);
            driver.start(if merges { !net::F_MRG_RXBUF } else { u64::MAX });
        }
        driver.transport.stop();
    });
}

#[test]
fn an_interface_that_goes_down_or_away_does_not_disturb_the_driver() {
    in_network_namespace("an_interface_that_goes_down_or_away_does_not_disturb_the_driver", || {
        let (device, wire) = device();
        let mut driver = FakeDriver::started(device);
        add_buffers(&mut driver, 4);
        set_up("t0", false);
        transmit(&mut driver, &[0; HEADER], &frame(1, 60));
        set_up("t0", true);
        transmit(&mut driver, &[0; HEADER], &frame(2, 60));
        assert_eq!(wait_frame(&wire), frame(2, 60));
        delete("t0");
        for _ in 0..10 {
            transmit(&mut driver, &[0; HEADER], &frame(3, 60));
        }
        // The thread must sleep, not spin on a descriptor that is always ready.
        let before = thread_ticks("net0");
        std::thread::sleep(Duration::from_millis(200));
        assert!(thread_ticks("net0") - before <= 4, "the worker spins");
        assert_eq!(driver.status() & status::NEEDS_RESET, 0);
        driver.start(u64::MAX);
        transmit(&mut driver, &[0; HEADER], &frame(4, 60));
    });
}

/// The least CPU time, in ticks of 10 ms, of the threads of this name whose namespace is this
/// thread's.
fn thread_ticks(name: &str) -> u64 {
    let namespace = |task: &str| std::fs::read_link(format!("/proc/self/task/{task}/ns/net")).ok();
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let ticks = tasks.filter_map(|task| {
        let id = task.file_name().into_string().unwrap();
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (comm, rest) = stat.rsplit_once(')')?;
        // utime and stime, the 14th and 15th field.
        let times: Vec<u64> = rest.split_whitespace().skip(11).take(2).map(|n| n.parse().unwrap()).collect();
        (comm.ends_with(&format!("({name}")) && namespace(&id)? == own).then(|| times.iter().sum())
    });
    ticks.max().unwrap()
}

#[test]
fn a_broken_transmit_queue_leaves_the_receive_queue_working() {
    in_network_namespace("a_broken_transmit_queue_leaves_the_receive_queue_working", || {
        let (device, wire) = device();
        let mut driver = started_with_whole_buffers(device);
        driver.queues[net::TX].set_avail_idx(1000);
        driver.notify(1);
        driver.wait_needs_reset();
        let mut buffers = add_buffers(&mut driver, 2);
        wire.send(&frame(5, 60));
        assert_eq!(receive(&mut driver, &mut buffers)[14], 5);
    });
}

#[test]
fn a_broken_receive_queue_leaves_the_transmit_queue_working() {
    in_network_namespace("a_broken_receive_queue_leaves_the_transmit_queue_working", || {
        let (device, wire) = device();
        let mut driver = FakeDriver::started(device);
        driver.queues[net::RX].add(&[Part::Write(MEM_END, 2048)]);
        driver.notify(0);
        wire.send(&frame(5, 60));
        driver.wait_needs_reset();
        transmit(&mut driver, &[0; HEADER], &frame(6, 60));
        assert_eq!(wait_frame(&wire), frame(6, 60));
    });
}

#[test]
fn the_configuration_space_has_the_address() {
    in_network_namespace("the_configuration_space_has_the_address", || {
        let (device, _wire) = device();
        let driver = FakeDriver::new(device);
        assert_eq!(driver.config(0), default_mac("t0").0);
        assert_eq!(u16::from_le_bytes(driver.config(10)), 1500, "the MTU");
        assert_ne!(driver.offered() & net::F_MAC, 0);
    });
    assert_eq!(config(Some("52:54:00:12:34:56")).mac().to_string(), "52:54:00:12:34:56");
}

#[test]
fn a_configuration_is_checked_before_anything_is_opened() {
    let good: Config = toml::from_str(
        "tap = 'tap0'\nmac = '02:00:00:00:00:01'\nip = '10.0.0.2/24'\ngw = '10.0.0.1'\ndns = '9.9.9.9'",
    )
    .unwrap();
    assert_eq!(good.validate(), Ok(()));
    for name in ["", "a-name-of-16-byt", "a/b", "a b", "..", "a\n", "tap%d"] {
        let bad = Config { backend: Backend::Tap(name.to_owned()), ..good.clone() };
        assert_eq!(bad.validate(), Err(ConfigError::Name(name.to_owned())));
    }
    for mac in [MacAddr([1, 0, 0, 0, 0, 1]), MacAddr([0xff; 6]), MacAddr([0; 6])] {
        assert_eq!(Config { mac: Some(mac), ..good.clone() }.validate(), Err(ConfigError::Mac(mac)));
    }
    assert_eq!(Config { ip: None, ..good.clone() }.validate(), Err(ConfigError::NoIp("gw")));
    assert_eq!(Config { ip: None, gw: None, ..good.clone() }.validate(), Err(ConfigError::NoIp("dns")));
    let gw: IpAddr = "10.0.1.1".parse().unwrap();
    let far = Config { gw: Some(gw), ..good.clone() };
    assert!(
        far.validate().unwrap_err().to_string().contains("10.0.1.1 is not in the network of 10.0.0.2/24")
    );
    assert!(toml::from_str::<Config>("tap = 'tap0'\nmca = '02:00:00:00:00:01'").is_err());
    assert!(toml::from_str::<Config>("tap = 'tap0'\nmac = '02:00:00:00:00'").is_err());
}

#[test]
fn a_default_address_depends_on_the_tap_alone() {
    let mac = default_mac("tap0");
    // Written out: a guest's address must not change with a new version of bothy.
    assert_eq!(mac.to_string(), "02:16:d0:ac:07:ef");
    assert!(mac.is_unicast());
    assert_ne!(mac, default_mac("tap1"));
}

#[test]
fn a_rate_holds_in_each_direction() {
    in_network_namespace("a_rate_holds_in_each_direction", || {
        make("t0", libc::IFF_TAP);
        let limited = Config { rate: Some("800K".parse().unwrap()), ..config(None) };
        let tap = open_when_free(&limited);
        set_up("t0", true);
        let net = Net::new(&limited, tap.into_ports(), "net0", &Spawner::default()).unwrap();
        let wire = Wire::new("t0");
        let mut driver = FakeDriver::new(net);
        driver.start(!net::F_MRG_RXBUF);
        // 100 KB in a second and 10 KB at once: 30 frames of 1 KB need a fifth of a second, and the
        // other direction its own.
        let start = std::time::Instant::now();
        for mark in 0..30 {
            transmit(&mut driver, &[0; HEADER], &frame(mark, 1000));
        }
        let sent = start.elapsed();
        for mark in 0..30 {
            assert_eq!(wait_frame(&wire)[14], mark, "none is lost");
        }
        let start = std::time::Instant::now();
        let mut buffers = add_buffers(&mut driver, 7);
        for mark in 0..30 {
            wire.send(&frame(mark, 1000));
            assert_eq!(receive(&mut driver, &mut buffers)[14], mark);
            buffers.extend(add_buffers(&mut driver, 1));
        }
        let received = start.elapsed();
        for took in [sent, received] {
            assert!(took >= Duration::from_millis(150), "{took:?}");
        }
    });
    for text in ["", "0M", "5x", "M"] {
        assert!(text.parse::<BitRate>().is_err(), "{text}");
    }
    assert_eq!(String::from("1.5M".parse::<BitRate>().unwrap()), "1500000");
}

/// Packets for which the driver's buffers are small or few.
#[path = "held_tests.rs"]
mod held;

#[test]
fn another_device_uses_as_many_queue_pairs_as_the_driver_had_said() {
    in_network_namespace("another_device_uses_as_many_queue_pairs_as_the_driver_had_said", || {
        let (device, wire) = device_with_two_pairs();
        let mut driver = FakeDriver::started(device);
        assert_eq!(command(&mut driver, &[4, 0, 2, 0]), net::ctrl::OK);
        let state = driver.suspend();
        for bad in [0, 3] {
            let mut state = state.clone();
            state.device["pairs"] = bad.into();
            assert!(driver.transport.restore(&state).unwrap_err().to_string().contains("queue pairs"));
        }
        // The device that there is has the tap.
        driver.transport.restore(&state).unwrap();
        driver.transport.resume();
        assert_eq!(driver.suspend().device, state.device);
        driver.transport.resume();
        transmit(&mut driver, &[0; HEADER], &frame(1, 60));
        assert_eq!(wait_frame(&wire), frame(1, 60));
        // After a reset it is one, as ever; also when there was a pause in between.
        driver.write(crate::virtio::core::spec::mmio::STATUS, 0);
        driver.transport.restore(&driver.suspend()).unwrap();
        driver.free_all();
        driver.start(u64::MAX);
        assert_eq!(driver.suspend().device["pairs"], 1);
        let mut state = state;
        state.device["mtu"] = 9000.into();
        assert!(driver.transport.restore(&state).unwrap_err().to_string().contains("MTU 9000"));
    });
}
