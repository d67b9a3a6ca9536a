//! Both ways in which a guest reaches its devices, and drivers that let go of them and take them
//! again.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::guest::{Guest, blank, long, needs_linux, needs_root, noise};
use crate::support;
use crate::tap::{Tap, echo};
use crate::tools::{MultiQueueTap, run};

const TRANSPORTS: [&str; 2] = ["mmio", "pci"];

fn on(transport: &str) -> Guest {
    Guest::new().args(["--transport", transport])
}

/// What e2fsck has to say of a file system that isn't mounted.
fn insist_is_sound(file: &Path) {
    run("e2fsck", &["-f", "-n", file.to_str().unwrap()]);
}

fn ip(words: &[&str]) {
    run("ip", words);
}

#[test]
fn a_file_system_is_made_and_sound_whatever_serves_it() {
    needs_linux!();
    let dir = support::scratch();
    let content = noise(4 << 20, 5);
    let source = support::file(dir.path(), "source", &content);
    for transport in TRANSPORTS {
        for (index, more) in
            ["", ",aio=sync", ",queues=2", ",queues=2,aio=sync", ",cache=unsafe"].into_iter().enumerate()
        {
            let disk = blank(dir.path(), &format!("{transport}{index}"), 24);
            let script = "
                echo vectors=$(grep -c MSIX /proc/interrupts)
                mke2fs /dev/vdb >/dev/null 2>&1
                mount -t ext4 /dev/vdb /mnt
                for n in 1 2 3; do cat /dev/vda >/mnt/$n & done
                wait
                rm /mnt/2
                sync
                mv /mnt/3 /mnt/4
                umount /mnt
                mount -t ext4 -o ro /dev/vdb /mnt
                cmp /mnt/1 /mnt/4
                cmp /mnt/1 /dev/vda && echo same=yes";
            let guest = on(transport).args(["--cpus", "2"]).disk(&source, ",ro").disk(&disk, more);
            let console = guest.script(script).run();
            console.says("same", "yes");
            let vectors = console.number("vectors");
            console.insist((vectors > 0) == (transport == "pci"), "the wrong kind of interrupts");
            insist_is_sound(&disk);
        }
    }
    assert!(fs::read(&source).unwrap() == content, "the disk that was only read has changed");
}

#[test]
fn drivers_let_go_of_their_devices_and_take_them_again() {
    needs_linux!();
    let host = Ipv4Addr::new(10, 77, 9, 1);
    needs_root!("make a tap");
    let dir = support::scratch();
    let rounds = if long() { 20 } else { 3 };
    for transport in TRANSPORTS {
        let tap = Tap::new("bothyrebind", host).expect("root makes a tap");
        let disk = blank(dir.path(), transport, 16);
        // What is read while the driver lets go fails, and nothing else does.
        let script = format!(
            "
            for round in $(seq {rounds}); do
                dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2>/dev/null &
                reader=$!
                for driver in virtio_blk virtio_net virtio_balloon virtio_rng; do
                    for device in $(ls /sys/bus/virtio/drivers/$driver | grep ^virtio); do
                        echo $device >/sys/bus/virtio/drivers/$driver/unbind
                        echo $device >/sys/bus/virtio/drivers/$driver/bind
                    done
                done
                wait $reader || true
                for function in $(ls /sys/bus/pci/drivers/virtio-pci 2>/dev/null | grep ^0000); do
                    echo $function >/sys/bus/pci/drivers/virtio-pci/unbind
                    echo $function >/sys/bus/pci/drivers/virtio-pci/bind
                done
                dd if=/dev/urandom of=/tmp/random bs=64k count=16 2>/dev/null
                dd if=/tmp/random of=/dev/vda bs=64k conv=fsync 2>/dev/null
                dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/random
                dd if=/dev/hwrng of=/dev/null bs=16 count=1 2>/dev/null
                ip link set eth0 up
                ip addr add 10.77.9.2/24 dev eth0
                ping -c 2 -W 20 {host} >/dev/null
                echo round=$round
            done
            dmesg | grep -i -E 'warn|bug:|oops|failed' || true"
        );
        let guest = on(transport).disk(&disk, "").args(["--net", &format!("tap={}", tap.name())]);
        let console = guest.script(script).run();
        console.insist(console.values("round").len() == rounds, "a round is missing");
        console.insist(!console.finished.stderr.contains("must reset"), "bothy found something wrong");
    }
}

#[test]
fn several_queue_pairs_carry_the_guests_traffic() {
    needs_linux!();
    needs_root!("make a tap");
    for transport in TRANSPORTS {
        let _tap = MultiQueueTap::new("bothymq", "10.77.8.1/24");
        let port = echo(Ipv4Addr::new(10, 77, 8, 1)).unwrap();
        let script = format!(
            "
            echo queues=$(ls /sys/class/net/eth0/queues | tr '\\n' ' ')
            dd if=/dev/urandom of=/tmp/random bs=64k count=32 2>/dev/null
            for n in 1 2 3 4; do nc 10.77.8.1 {port} </tmp/random >/tmp/back$n & done
            wait
            for n in 1 2 3 4; do cmp /tmp/random /tmp/back$n && echo same=$n; done
            echo errors=$(cat /sys/class/net/eth0/statistics/[rt]x_errors)"
        );
        let guest =
            on(transport).args(["--cpus", "2"]).args(["--net", "tap=bothymq,queues=2,ip=10.77.8.2/24"]);
        let console = guest.script(script).run();
        console.says("queues", "rx-0 rx-1 tx-0 tx-1");
        console.insist(console.values("same").len() == 4, "something else came back");
        console.says("errors", "0 0");
    }
}

#[test]
fn a_tap_that_disappears_is_a_link_that_is_down() {
    needs_linux!();
    needs_root!("make a tap");
    for (transport, more) in [("mmio", ""), ("pci", ""), ("pci", ",queues=2")] {
        let mut words = vec!["tuntap", "add", "dev", "bothygone", "mode", "tap"];
        words.extend((!more.is_empty()).then_some("multi_queue"));
        ip(&words);
        ip(&["link", "set", "bothygone", "up"]);
        let script = "
            echo before=$(cat /sys/class/net/eth0/carrier)
            for n in $(seq 100); do
                [ $(cat /sys/class/net/eth0/carrier) = 0 ] && break
                sleep 0.2
            done
            echo after=$(cat /sys/class/net/eth0/carrier)
            sha256sum </dev/vda >/dev/null && echo disk=yes";
        let dir = support::scratch();
        let disk = blank(dir.path(), "disk", 1);
        let net = format!("tap=bothygone{more},ip=10.77.7.2/24");
        let mut vm = on(transport).disk(&disk, "").args(["--net", &net]).script(script).start();
        vm.wait_for("before=1");
        ip(&["link", "del", "bothygone"]);
        let console = vm.ends_with(0);
        console.says("after", "0");
        console.says("disk", "yes");
    }
}
