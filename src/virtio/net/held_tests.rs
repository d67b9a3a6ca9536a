use super::super::pump::RX_BURST;
use super::*;

#[test]
fn a_large_packet_takes_several_buffers_and_the_driver_sees_them_at_once() {
    in_network_namespace("a_large_packet_takes_several_buffers_and_the_driver_sees_them_at_once", || {
        for wanted in [u64::MAX, net::F_MRG_RXBUF] {
            let (device, wire) = device_with_mtu(9000);
            let mut driver = FakeDriver::new(device);
            driver.start(wanted);
            let mut rest = add_buffers(&mut driver, 8);
            for round in 0..50 {
                let len = 60 + usize::from(round) * 175;
                wire.send(&frame(round, len));
                assert_eq!(receive_merged_frame(&mut driver, &mut rest), frame(round, len));
            }
            drop((driver, wire));
            delete("t0");
        }
    });
}

/// Takes the next packet out of as many buffers as its header says, and gives the device as many
/// new ones.
fn receive_merged(driver: &mut FakeDriver, buffers: &mut Vec<(u16, u64)>) -> Vec<u8> {
    let mut packet = Vec::new();
    let (mut count, mut seen) = (1, 0);
    while seen < count {
        // All of them are there once the first one is.
        let (head, len) =
            if seen == 0 { driver.wait_used(net::RX) } else { driver.queues[net::RX].used().unwrap() };
        let (expected, buffer) = buffers.remove(0);
        assert_eq!(head, expected, "buffers are used in order");
        let bytes = driver.bytes(buffer, len);
        let skip = if seen == 0 { HEADER } else { 0 };
        if seen == 0 {
            count = u16::from_le_bytes([bytes[10], bytes[11]]);
        }
        packet.extend(&bytes[skip..]);
        seen += 1;
    }
    for _ in 0..count {
        buffers.extend(add_buffers(driver, 1));
    }
    packet
}

/// The next packet of the experimental type, whatever else the host sends.
fn receive_merged_frame(driver: &mut FakeDriver, buffers: &mut Vec<(u16, u64)>) -> Vec<u8> {
    loop {
        let packet = receive_merged(driver, buffers);
        if packet[12..14] == ETHERTYPE.to_be_bytes() {
            return packet;
        }
    }
}

#[test]
fn a_packet_that_finds_too_few_buffers_waits_for_more_and_is_whole() {
    in_network_namespace("a_packet_that_finds_too_few_buffers_waits_for_more_and_is_whole", || {
        let (device, wire) = device();
        set_mtu("t0", 9000);
        let mut driver = FakeDriver::started(device);
        for round in 0..20 {
            // Room for a usual packet, but not for this one, for which it takes four.
            let mut buffers = add_buffers(&mut driver, 1 + usize::from(round % 3));
            wire.send(&frame(round, 8000));
            wire.send(&frame(round + 100, 60));
            std::thread::sleep(Duration::from_millis(5));
            if round % 4 != 3 {
                for _ in 0..4 {
                    buffers.extend(add_buffers(&mut driver, 1));
                }
                assert_eq!(receive_merged_frame(&mut driver, &mut buffers), frame(round, 8000));
                assert_eq!(receive_merged_frame(&mut driver, &mut buffers), frame(round + 100, 60));
            }
            // On the way to which it is given up, where it had too few.
            driver.write(mmio::STATUS, 0);
            driver.start(u64::MAX);
        }
    });
}

#[test]
fn a_packet_whose_rest_waits_at_the_end_of_a_burst_is_not_forgotten() {
    in_network_namespace("a_packet_whose_rest_waits_at_the_end_of_a_burst_is_not_forgotten", || {
        let (device, wire) = device();
        set_mtu("t0", 9000);
        let mut driver = FakeDriver::started(device);
        // The host has nothing to say of its own accord, which would be another reason to look, and
        // what it has said is dropped by a reset.
        let _without_ipv6 = std::fs::write("/proc/sys/net/ipv6/conf/t0/disable_ipv6", "1");
        driver.write(mmio::STATUS, 0);
        driver.start(u64::MAX);
        for (mark, len) in [(1, 60), (2, 60), (3, 8000)] {
            wire.send(&frame(mark, len));
        }
        // A burst is three packets in tests.
        let mut buffers = add_buffers(&mut driver, RX_BURST);
        std::thread::sleep(Duration::from_millis(20));
        buffers.extend(add_buffers(&mut driver, 4));
        for (mark, len) in [(1, 60), (2, 60), (3, 8000)] {
            assert_eq!(receive_merged_frame(&mut driver, &mut buffers), frame(mark, len));
        }
    });
}

#[test]
fn a_packet_that_waits_for_buffers_in_vain_is_dropped_and_the_next_one_comes() {
    in_network_namespace("a_packet_that_waits_for_buffers_in_vain_is_dropped_and_the_next_one_comes", || {
        let (device, wire) = device();
        set_mtu("t0", 9000);
        let mut driver = FakeDriver::started(device);
        let mut buffers = add_buffers(&mut driver, 2);
        wire.send(&frame(1, 8000));
        wire.send(&frame(2, 60));
        assert_eq!(receive_merged_frame(&mut driver, &mut buffers), frame(2, 60));
    });
}

#[test]
fn a_packet_is_never_cut_though_the_interface_has_larger_ones_than_it_had() {
    in_network_namespace("a_packet_is_never_cut_though_the_interface_has_larger_ones_than_it_had", || {
        let (device, wire) = device();
        set_mtu("t0", 9000);
        let mut driver = FakeDriver::new(device);
        // Without segmentation nothing larger than the MTU is expected.
        driver.start(net::F_MRG_RXBUF);
        let mut buffers = add_buffers(&mut driver, 6);
        wire.send(&frame(1, 8000));
        wire.send(&frame(2, 3000));
        wire.send(&frame(3, 60));
        assert_eq!(receive_merged_frame(&mut driver, &mut buffers), frame(2, 3000));
        assert_eq!(receive_merged_frame(&mut driver, &mut buffers), frame(3, 60));
    });
}

#[test]
fn a_buffer_without_room_among_others_that_are_held_needs_a_reset_and_no_more() {
    in_network_namespace(
        "a_buffer_without_room_among_others_that_are_held_needs_a_reset_and_no_more",
        || {
            let (device, wire) = device();
            let mut driver = FakeDriver::started(device);
            for round in 0..3 {
                let buffer = driver.alloc(2048);
                driver.queues[net::RX].add(&[Part::Write(buffer, 2048)]);
                driver.queues[net::RX].add(&[Part::Write(buffer, 11)]);
                driver.notify(0);
                driver.wait_needs_reset();
                transmit(&mut driver, &[0; HEADER], &frame(round, 60));
                assert_eq!(wait_frame(&wire), frame(round, 60));
                driver.start(u64::MAX);
            }
            driver.transport.stop();
        },
    );
}

#[test]
fn a_driver_with_few_buffers_receives_packets_that_fit() {
    in_network_namespace("a_driver_with_few_buffers_receives_packets_that_fit", || {
        let (device, wire) = device();
        let mut driver = FakeDriver::started(device);
        let mut buffers = add_buffers(&mut driver, 1);
        for round in 0..20 {
            wire.send(&frame(round, 1400));
            assert_eq!(receive(&mut driver, &mut buffers)[14], round);
            // Only when there is none left are there new ones.
            buffers.extend(add_buffers(&mut driver, 1));
        }
    });
}
