//! Network devices: taps that are refused, and one that carries a packet in each direction, driven
//! by hand.

use super::bad_input::{SETUP, refuses, with_kernel};
use super::driver::{OTHER_RING, RING, place, register, ring};
use super::guest::{Guest, u16_at, words};
use super::namespaces::{can_make_networks, in_network};
use super::script::{RESULTS, Script, request_bit};
use crate::support::scratch;

#[test]
fn a_tap_that_is_missing_is_not_made() {
    if !can_make_networks("net::a_tap_that_is_missing_is_not_made") {
        return;
    }
    let dir = with_kernel();
    let words = ["--kernel", "guest.elf", "--net", "tap=absent0"];
    refuses(
        in_network("true", "! ip link show absent0 >/dev/null 2>&1 || echo made", &words),
        dir.path(),
        SETUP,
        &["--net", "absent0", "does not exist"],
    );
}

#[test]
fn an_interface_that_is_no_tap() {
    if !can_make_networks("net::an_interface_that_is_no_tap") {
        return;
    }
    let dir = with_kernel();
    for (before, name) in [("true", "lo"), ("ip tuntap add dev tun0 mode tun", "tun0")] {
        let words = ["--kernel", "guest.elf", "--net", &format!("tap={name}")];
        refuses(in_network(before, "true", &words), dir.path(), SETUP, &["--net", name, "not a tap"]);
    }
    let words = ["--kernel", "guest.elf", "--net", "tap=t0"];
    let before = "ip tuntap add dev t0 mode tap multi_queue";
    refuses(in_network(before, "true", &words), dir.path(), SETUP, &["--net", "t0", "multi_queue"]);
}

#[test]
fn a_tap_that_is_busy() {
    if !can_make_networks("net::a_tap_that_is_busy") {
        return;
    }
    let dir = scratch();
    // The first VM says that it runs through a file, since its output must not be seen here.
    Guest::new(&Script::new().say(b'r').spin()).write(dir.path());
    let words = ["--kernel", "guest.elf", "--memory", "32M", "--net", "tap=t0"];
    let before = "ip tuntap add dev t0 mode tap; mkfifo pipe; \"$@\" > pipe & first=$!; \
                  dd bs=1 count=1 of=/dev/null 2>/dev/null < pipe; rm pipe";
    refuses(in_network(before, "kill -9 $first", &words), dir.path(), SETUP, &["--net", "t0", "busy"]);
}

#[test]
fn a_tap_that_is_there_is_used_and_is_there_afterwards() {
    let test = "net::a_tap_that_is_there_is_used_and_is_there_afterwards";
    if !can_make_networks(test) {
        return;
    }
    let dir = scratch();
    Guest::new(&Script::new().read32(0xd000_0008, 0x80_0000).put(0x80_0000, 1)).write(dir.path());
    let words = ["--kernel", "guest.elf", "--memory", "32M", "--net", "tap=t0"];
    let bothy =
        in_network("ip tuntap add dev t0 mode tap", "ip link show t0 >/dev/null && echo kept", &words);
    assert_eq!(
        bothy.current_dir(dir.path()).run().output(),
        b"\x01kept\n",
        "the kind of device, and the tap"
    );
}

const SENT: u32 = 0x43_0000;
const RECEIVED: u32 = 0x44_0000;
/// `struct virtio_net_hdr` of virtio 1.
const HEADER: usize = 12;

/// A queue with one packet to be sent, and what is to lie at [`SENT`]: 60 bytes to everybody, of a
/// type for local experiments.
fn broadcast() -> (Vec<u8>, Vec<u8>) {
    let mut packet = vec![0; HEADER];
    packet.extend([0xff; 6]);
    packet.extend([2, 0, 0, 0, 0, 7, 0x88, 0xb5]);
    packet.resize(HEADER + 60, 0x5a);
    (ring(&[(SENT.into(), 72, 0, 0)], &[0]), packet)
}

#[test]
fn a_packet_goes_out_by_the_tap_and_one_comes_in() {
    if !can_make_networks("net::a_packet_goes_out_by_the_tap_and_one_comes_in") {
        return;
    }
    let dir = scratch();
    let (out, packet) = broadcast();
    let buffers = [(RECEIVED.into(), 1600, 2, 0)];
    let script = Script::new()
        .enable_lapic()
        .route(5, 0x45, false)
        .negotiate(0, 0)
        .set_queue(0, 0, place(RING))
        .set_queue(0, 1, place(OTHER_RING))
        .write32(register(0, 0x70), 0xf)
        .notify_queue(0, 0)
        .notify_queue(0, 1)
        .wait_used(OTHER_RING, 1)
        .wait_used(RING, 1)
        .read_vector(0x45, RESULTS)
        .read32(register(0, 0x100), RESULTS + 4)
        .put(RESULTS, 8)
        .put(RING + 0x404, 8)
        .put(RECEIVED, 54);
    Guest::new(&script)
        .data(RING, ring(&buffers, &[0]))
        .data(OTHER_RING, out)
        .data(SENT, packet)
        .write(dir.path());
    let words_of = ["--kernel", "guest.elf", "--memory", "32M", "--net", "tap=t0,mac=02:00:00:00:00:07"];
    // In: the host asks for the hardware address of a neighbour that doesn't exist, several times.
    let before = "ip tuntap add dev t0 mode tap; ip link set t0 addrgenmode none; ip addr add 10.9.9.1/24 dev t0; \
                  ip link set t0 up; (sleep 0.2; bash -c \"echo > /dev/udp/10.9.9.2/9\") & true";
    let after = "awk \"/t0:/ { print \\$2, \\$3 }\" /proc/net/dev";
    let output = in_network(before, after, &words_of).current_dir(dir.path()).run().output();
    let (results, rest) = output.split_at(16);
    let results = words(results);
    assert_ne!(results[0] & request_bit(0x45).1, 0, "an interrupt");
    assert_eq!(results[1], 0x0000_0002, "the first half of the MAC address");
    let (received, counted) = rest.split_at(54);
    assert_eq!((results[2], results[3]), (0, u32::try_from(HEADER).unwrap() + 42), "head and length");
    assert_eq!(received[HEADER..HEADER + 6], [0xff; 6]);
    assert_eq!(u16_at(received, HEADER + 12), u16::from_be(0x0806), "a question by ARP");
    assert_eq!(counted, b"60 1\n", "bytes and packets that the host got from the guest");
}

#[test]
fn each_network_device_has_its_own_tap() {
    if !can_make_networks("net::each_network_device_has_its_own_tap") {
        return;
    }
    let dir = scratch();
    let (out, packet) = broadcast();
    // The second of the two sends.
    let script = Script::new()
        .negotiate(1, 0)
        .set_queue(1, 0, place(RING))
        .set_queue(1, 1, place(OTHER_RING))
        .write32(register(1, 0x70), 0xf)
        .notify_queue(1, 1)
        .wait_used(OTHER_RING, 1);
    Guest::new(&script).data(RING, ring(&[], &[])).data(OTHER_RING, out).data(SENT, packet).write(dir.path());
    let words = ["--kernel", "guest.elf", "--memory", "32M", "--net", "tap=t0", "--net", "tap=t1"];
    let before = "for t in t0 t1; do ip tuntap add dev $t mode tap; ip link set $t addrgenmode none; ip link set $t up; done";
    let after = "awk \"/t[01]:/ { print \\$1, \\$2, \\$3 }\" /proc/net/dev | sort";
    let output = in_network(before, after, &words).current_dir(dir.path()).run().output();
    assert_eq!(output, b"t0: 0 0\nt1: 60 1\n", "bytes and packets that the host got from the guest");
}
