//! A kernel that looks for mistakes (tests/debug-kernel: KASAN, lockdep, the checks of
//! drivers/virtio), drivers that do without some of what a device offers, and a kernel that starts
//! another one. `make test-long` builds that kernel and runs these.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guest::{Console, Guest, blank, guest_dir, needs_linux, needs_root, noise, target};
use crate::support;
use crate::tap::{Tap, echo};
use crate::tools::{MultiQueueTap, compile};

const TRANSPORTS: [&str; 2] = ["mmio", "pci"];
/// Checks of every access make everything slow, and most of all under an emulator.
const LIMIT: Duration = Duration::from_secs(1200);
/// What the guest's script ends with: whatever the kernel has to complain of.
const COMPLAINTS: &str = "
    dmesg | grep -E 'WARNING:|BUG:|KASAN|INFO: |Oops|possible (circular|recursive)|inconsistent lock|suspicious RCU|Call Trace' |
        sed 's/^/complaint=/' || true
    echo checked=yes";

fn kernel() -> PathBuf {
    let kernel = target().join("debug-kernel/bzImage");
    assert!(kernel.exists(), "the debug kernel is not there: tests/debug-kernel");
    kernel
}

/// A guest with that kernel, a disk and a tap.
fn guest(transport: &str, disk: &Path, net: &str) -> Guest {
    let guest = Guest::with_kernel(&kernel()).change(|bothy| bothy.limit(LIMIT));
    // Drivers say much, and nothing of it is to be lost.
    let guest = guest.append("log_buf_len=32M");
    let guest = guest.args(["--transport", transport, "--cpus", "2", "--memory", "1G", "--net", net]);
    guest.disk(disk, ",queues=2")
}

fn insist_on_no_complaint(console: &Console) {
    console.says("checked", "yes");
    console.insist(console.values("complaint").is_empty(), "the kernel complains");
    console.insist(!console.finished.stderr.contains("must reset"), "bothy found something wrong");
}

/// What each driver's device is tried with, in the network `net`. `$1` is the device, and the
/// script ends where something fails.
fn work(net: &str) -> String {
    let port = echo(format!("{net}.1").parse().unwrap()).unwrap();
    format!(
        "
        dd if=/dev/urandom of=/tmp/random bs=64k count=8 2>/dev/null
        work_virtio_blk() {{
            disk=/dev/$(ls /sys/bus/virtio/devices/$1/block)
            dd if=/tmp/random of=$disk bs=64k conv=fsync 2>/dev/null
            blockdev --flushbufs $disk
            dd if=$disk bs=64k count=8 2>/dev/null | cmp - /tmp/random
            blkdiscard -o 1048576 -l 1048576 $disk 2>/dev/null || true
        }}
        work_virtio_net() {{
            link=$(ls /sys/bus/virtio/devices/$1/net)
            ip link set $link up
            ip addr add {net}.2/24 dev $link
            ping -c 1 -W 30 {net}.1 >/dev/null
            nc {net}.1 {port} </tmp/random >/tmp/back
            cmp /tmp/random /tmp/back
        }}
        work_virtio_balloon() {{
            dd if=/dev/zero of=/tmp/memory bs=1M count=8 2>/dev/null
            rm /tmp/memory
        }}
        # Not virtio_rng: while it adds its first buffer it takes the interrupt for it, if the device was quick, and -DDEBUG stops the kernel for that.
        device_of() {{ ls /sys/bus/virtio/drivers/$1 | grep ^virtio; }}
        drivers='virtio_blk virtio_net virtio_balloon'
        "
    )
}

#[test]
#[ignore = "takes the debug kernel: make test-long"]
fn a_kernel_that_looks_for_mistakes_finds_none() {
    needs_linux!();
    needs_root!("make a tap");
    let net = "10.77.11";
    let tap = Tap::new("bothydebug", Ipv4Addr::new(10, 77, 11, 1)).expect("root makes a tap");
    let work = work(net);
    let dir = support::scratch();
    for transport in TRANSPORTS {
        let disk = blank(dir.path(), transport, 64);
        let script = format!(
            "{work}
            dd if=/dev/hwrng of=/dev/null bs=16 count=4 2>/dev/null
            for driver in $drivers; do
                device=$(device_of $driver)
                work_$driver $device
                echo $device >/sys/bus/virtio/drivers/$driver/unbind
                echo $device >/sys/bus/virtio/drivers/$driver/bind
                work_$driver $device
                echo worked=$driver
            done
            mke2fs /dev/vda >/dev/null 2>&1
            mount -t ext4 -o discard /dev/vda /mnt
            for n in 1 2 3 4; do dd if=/tmp/random of=/mnt/$n bs=64k conv=fsync 2>/dev/null & done
            wait
            cmp /mnt/1 /mnt/4
            rm /mnt/2 /mnt/3
            fstrim /mnt
            umount /mnt
            echo worked=ext4
            # Free pages are reported after two seconds.
            sleep 4
            {COMPLAINTS}"
        );
        let console = guest(transport, &disk, &format!("tap={}", tap.name()))
            .args(["--console", "virtio"])
            .script(script)
            .run();
        insist_on_no_complaint(&console);
    }
}

#[test]
#[ignore = "takes the debug kernel: make test-long"]
fn drivers_do_without_any_of_the_features() {
    needs_linux!();
    needs_root!("make a tap");
    let net = "10.77.12";
    // Two queue pairs take a tap that is made for them; what else there is to negotiate depends on
    // them.
    let _tap = MultiQueueTap::new("bothyfeat", "10.77.12.1/24");
    let work = work(net);
    let dir = support::scratch();
    for transport in TRANSPORTS {
        let disk = blank(dir.path(), transport, 16);
        // From bit 28 on they are the ring's and the transport's: those Linux filters for nobody.
        let script = format!(
            "{work}
            mount -t debugfs none /sys/kernel/debug
            without() {{
                driver=$1 device=$2 bits=$3
                if [ -e /sys/bus/virtio/drivers/$driver/$device ]; then
                    echo $device >/sys/bus/virtio/drivers/$driver/unbind
                fi
                filter=/sys/kernel/debug/virtio/$device
                echo 1 >$filter/filter_features_clear
                for bit in $bits; do echo $bit >$filter/filter_feature_add; done
                echo $device >/sys/bus/virtio/drivers/$driver/bind 2>/dev/null || true
                if [ ! -e /sys/bus/virtio/drivers/$driver/$device ]; then
                    echo refused=$driver: $bits
                    return
                fi
                for bit in $bits; do
                    [ $(cut -c $((bit + 1)) /sys/bus/virtio/devices/$device/features) = 0 ]
                done
                echo begun=$driver: $bits
                work_$driver $device
                echo without=$driver: $bits
            }}
            for driver in $drivers; do
                device=$(device_of $driver)
                offered=$(awk '$1 < 28' /sys/kernel/debug/virtio/$device/device_features | tr '\\n' ' ')
                echo offered=$driver: $offered
                for bit in $offered; do without $driver $device $bit; done
                without $driver $device \"$offered\"
                for round in 1 2 3 4 5 6; do
                    bits=''
                    for bit in $offered; do [ $((RANDOM % 2)) = 0 ] || bits=\"$bits $bit\"; done
                    without $driver $device \"$bits\"
                done
                without $driver $device ''
            done
            {COMPLAINTS}"
        );
        let console = guest(transport, &disk, "tap=bothyfeat,queues=2").script(script).run();
        insist_on_no_complaint(&console);
        let offered = console.values("offered").iter().map(|line| line.split(' ').count() - 1).sum::<usize>();
        let tried = console.values("without").len() + console.values("refused").len();
        console.insist(offered > 20 && tried == offered + 3 * 8, "a subset is missing");
        for line in console.values("refused") {
            // Linux itself refuses several queue pairs without a queue to control them.
            let bits: Vec<&str> = line.split(' ').skip(1).collect();
            let is_linux = line.starts_with("virtio_net") && bits.contains(&"17") && !bits.contains(&"22");
            console.insist(is_linux, line);
        }
    }
}

#[test]
#[ignore = "takes the debug kernel: make test-long"]
fn a_kernel_started_by_another_one_finds_its_devices() {
    needs_linux!();
    needs_root!("make a tap");
    let host = "10.77.13.1";
    let tap = Tap::new("bothykexec", host.parse().unwrap()).expect("root makes a tap");
    let dir = support::scratch();
    let program = dir.path().join("kexec");
    compile("kexec.c", &program);
    let content = noise(1 << 20, 9);
    for transport in TRANSPORTS {
        let mut whole = content.clone();
        whole.resize(16 << 20, 0);
        let disk = support::file(dir.path(), transport, &whole);
        let read = "head -c 1048576 /dev/vda | md5sum | cut -c 1-32";
        let second = format!(
            "echo second=yes; echo second_sum=$({read}); ip link set eth0 up; ip addr add 10.77.13.2/24 dev eth0; ping -c 1 -W 30 {host} >/dev/null && echo ping=yes; head -c 16 /dev/hwrng | wc -c"
        );
        let script = format!(
            "
            echo first_sum=$({read})
            ip link set eth0 up
            ip addr add 10.77.13.2/24 dev eth0
            ping -c 1 -W 30 {host} >/dev/null
            # Requests are on their way when the other kernel begins.
            dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2>/dev/null &
            ping -i 0.1 {host} >/dev/null &
            sleep 1
            kexec /boot/bzImage /boot/initrd 'console=ttyS0 quiet bothy.exec=\"{second}\"'"
        );
        let guest = guest(transport, &disk, &format!("tap={}", tap.name()))
            .file("bin", "kexec", &fs::read(&program).unwrap())
            .file("boot", "bzImage", &fs::read(kernel()).unwrap())
            .file("boot", "initrd", &fs::read(guest_dir().join("initramfs.cpio")).unwrap());
        let console = guest.script(script).ends_with(0);
        console.says("second", "yes");
        console.says("second_sum", console.value("first_sum"));
        console.says("ping", "yes");
        console.insist(!console.finished.stderr.contains("must reset"), "bothy found something wrong");
    }
}
