//! Disks: what is written is there, in the file and in the next boot.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::guest::{Console, Guest, blank, needs_linux, needs_root, noise};
use crate::mounted_disk::MountedDisk;
use crate::support::{self, Bothy};

#[test]
fn what_one_boot_writes_the_next_one_reads_back() {
    needs_linux!();
    let dir = support::scratch();
    let content = noise(4 << 20, 1);
    let source = support::file(dir.path(), "source", &content);
    let (raw, ext4) = (blank(dir.path(), "raw", 4), blank(dir.path(), "ext4", 16));
    let script = "
        echo sizes=$(cat /sys/block/vd?/size)
        echo serials=$(for disk in a b c; do echo $(cat /sys/block/vd$disk/serial); done)
        dd if=/dev/vda of=/dev/vdb bs=64k 2>/dev/null
        mke2fs /dev/vdc >/dev/null 2>&1
        mount -t ext4 /dev/vdc /mnt
        cp /dev/vda /mnt/file
        sha256sum </mnt/file >/mnt/sum
        echo sum=$(cut -c 1-64 /mnt/sum)";
    let first = Guest::new()
        .disk(&source, ",ro,id=the-source")
        .disk(&raw, ",id=a-20-byte-id-is-ok.x")
        .disk(&ext4, "");
    let first = first.script(script).run();
    first.says("sizes", "8192 8192 32768");
    first.says("serials", "the-source a-20-byte-id-is-ok.x blk2");
    assert!(fs::read(&raw).unwrap() == content, "the file has not what the guest wrote to its raw disk");
    assert!(fs::read(&source).unwrap() == content, "the disk that was only read has changed");

    let script = "
        echo raw=$(sha256sum </dev/vda | cut -c 1-64)
        mount -t ext4 -o ro /dev/vdb /mnt
        echo file=$(sha256sum </mnt/file | cut -c 1-64)
        echo kept=$(cut -c 1-64 /mnt/sum)";
    let second = Guest::new().disk(&raw, "").disk(&ext4, "").script(script).run();
    for key in ["raw", "file", "kept"] {
        second.says(key, first.value("sum"));
    }
}

#[test]
fn a_read_only_disk_refuses_writes_and_is_unchanged() {
    needs_linux!();
    let dir = support::scratch();
    let content = noise(1 << 20, 2);
    let disk = support::file(dir.path(), "disk", &content);
    let script = "
        echo ro=$(cat /sys/block/vda/ro)
        dd if=/dev/zero of=/dev/vda bs=4k count=4 conv=fsync && echo wrote=yes
        # Whoever makes the kernel believe that it may write meets the device's own answer.
        blockdev --setrw /dev/vda || true
        dd if=/dev/zero of=/dev/vda bs=4k count=4 oflag=direct conv=fsync && echo wrote=yes
        echo read=$(dd if=/dev/vda bs=64k 2>/dev/null | wc -c)";
    let console = Guest::new().disk(&disk, ",ro").script(script).run();
    console.says("ro", "1");
    console.insist(console.values("wrote").is_empty(), "the guest could write");
    console.says("read", "1048576");
    assert!(fs::read(&disk).unwrap() == content, "the file has changed");
}

/// Space that a file takes on this machine, in KiB.
fn taken_kib(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() / 2
}

#[test]
fn what_a_guest_discards_goes_back_to_the_host() {
    needs_linux!();
    let dir = support::scratch();
    let raw = support::file(dir.path(), "raw", &noise(8 << 20, 3));
    let ext4 = blank(dir.path(), "ext4", 64);
    let script = "
        echo limit=$(cat /sys/block/vda/queue/discard_max_bytes) $(cat /sys/block/vda/queue/write_zeroes_max_bytes)
        blkdiscard -o 1048576 -l 4194304 /dev/vda
        echo zeros=$(dd if=/dev/vda bs=1M skip=1 count=4 2>/dev/null | tr -d '\\0' | wc -c)
        mke2fs /dev/vdb >/dev/null 2>&1
        mount -t ext4 /dev/vdb /mnt
        dd if=/dev/urandom of=/mnt/file bs=1M count=40 conv=fsync 2>/dev/null
        echo full; read line
        rm /mnt/file; sync; fstrim /mnt; sync; umount /mnt
        echo trimmed";
    let vm = Guest::new().disk(&raw, "").disk(&ext4, "").change(Bothy::open_input).script(script);
    let mut vm = vm.start();
    vm.wait_for("full");
    let full = taken_kib(&ext4);
    vm.running.type_in(b"\n");
    let console = vm.ends_with(0);
    console.says("limit", "2147483648 67108864");
    console.says("zeros", "0");
    console.insist(console.text.contains("trimmed"), "it was not trimmed");
    assert!(taken_kib(&raw) <= 4 << 10, "of 8 MiB less 4 there are {} KiB", taken_kib(&raw));
    assert!(
        full >= 40 << 10 && taken_kib(&ext4) + (39 << 10) <= full,
        "{full} KiB, then {}",
        taken_kib(&ext4)
    );
    let mut expected = noise(8 << 20, 3);
    expected[1 << 20..5 << 20].fill(0);
    assert!(fs::read(&raw).unwrap() == expected, "something else has changed");
}

#[test]
fn several_processors_use_several_queues_whatever_the_cache() {
    needs_linux!();
    if !support::is_root() {
        return support::could_not_run(
            "several_processors_use_several_queues_whatever_the_cache",
            "it takes root to mount",
        );
    }
    // Past the page cache goes only what a file system can; the memory that the tests' files are in
    // often can't.
    let dir = MountedDisk::new(128 << 20);
    for cache in ["writeback", "none", "unsafe"] {
        let disk = blank(&dir.path(), "disk", 32);
        let script = "
            echo queues=$(ls /sys/block/vda/mq | wc -l)
            echo block=$(cat /sys/block/vda/queue/logical_block_size)
            for n in 0 1 2 3; do
                dd if=/dev/urandom of=/tmp/$n bs=1M count=4 2>/dev/null
                taskset -p $((1 << n)) $$ >/dev/null
                dd if=/tmp/$n of=/dev/vda bs=64k seek=$((n * 64)) oflag=direct conv=notrunc,fsync 2>/dev/null &
            done; wait
            echo 3 >/proc/sys/vm/drop_caches
            for n in 0 1 2 3; do
                dd if=/dev/vda bs=64k skip=$((n * 64)) count=64 iflag=direct 2>/dev/null | cmp - /tmp/$n && echo same=$n
            done";
        let guest = Guest::new().args(["--cpus", "4"]).disk(&disk, &format!(",queues=4,cache={cache}"));
        let console = guest.script(script).run();
        console.says("queues", "4");
        console.insist(console.values("same") == ["0", "1", "2", "3"], "it is not what was written");
    }
}

#[test]
fn sixteen_disks_come_in_their_order_and_stay_apart() {
    needs_linux!();
    let dir = support::scratch();
    let disks: Vec<_> =
        (0..16).map(|n| support::file(dir.path(), &format!("d{n}"), &noise(64 << 10, 100 + n))).collect();
    let script = "
        for letter in a b c d e f g h i j k l m n o p; do
            echo disk=$letter $(cat /sys/block/vd$letter/serial) $(head -c 16 /dev/vd$letter | xxd -p)
            echo written-by-$letter | dd of=/dev/vd$letter bs=512 seek=2 conv=sync 2>/dev/null &
        done
        wait";
    let mut guest = Guest::new().args(["--cpus", "2"]);
    for (n, disk) in disks.iter().enumerate() {
        guest = guest.disk(disk, &format!(",id=number-{n}"));
    }
    let console = guest.script(script).run();
    let said = console.values("disk");
    console.insist(said.len() == 16, "there are not 16 disks");
    for (n, (letter, disk)) in ('a'..='p').zip(&disks).enumerate() {
        let mut expected = noise(64 << 10, 100 + u64::try_from(n).unwrap());
        let start: String = expected[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!("{letter} number-{n} {start}");
        console.insist(said[n] == line, &format!("{:?} instead of {line:?}", said[n]));
        expected[1024..1536].fill(0);
        let mark = format!("written-by-{letter}\n");
        expected[1024..1024 + mark.len()].copy_from_slice(mark.as_bytes());
        assert!(fs::read(disk).unwrap() == expected, "disk {letter} is not as it was written");
    }
}

#[test]
fn the_entropy_device_is_the_kernels_source_and_gives_bytes() {
    needs_linux!();
    let script = "
        echo rng=$(cat /sys/class/misc/hw_random/rng_current)
        for n in 1 2; do head -c 65536 /dev/hwrng >/tmp/$n; echo len=$(wc -c </tmp/$n); done
        cmp -s /tmp/1 /tmp/2 && echo same=yes
        echo packed=$(gzip -c /tmp/1 | wc -c)";
    let console = Guest::new().script(script).run();
    console.says("rng", "virtio_rng.0");
    console.insist(console.values("len") == ["65536", "65536"], "too few bytes");
    console.insist(console.values("same").is_empty(), "the bytes repeat");
    console.insist(console.number("packed") > 65000, "the bytes have a pattern");
}

#[test]
fn each_flush_of_the_guest_is_one_of_the_host() {
    needs_linux!();
    let dir = support::scratch();
    for aio in ["sync", "io_uring"] {
        let disk = blank(dir.path(), aio, 1);
        let trace = dir.path().join(format!("{aio}.trace"));
        let script = "
            for n in 1 2 3 4 5 6 7 8 9 10; do
                dd if=/dev/urandom of=/dev/vda bs=4k count=1 seek=$n conv=notrunc,fsync 2>/dev/null
            done
            echo flushes=$(awk '{ print $16 }' /sys/block/vda/stat)";
        let strace = format!(
            "exec strace -D -f -qq -o {} -e trace=fdatasync,fsync,sync_file_range \"$@\"",
            trace.display()
        );
        let guest = Guest::new().disk(&disk, &format!(",aio={aio}")).script(script);
        let (bothy, _dir) = guest.into_command();
        let console = Console::of(bothy.in_shell(&strace).run());
        let flushes = console.number("flushes");
        console.insist(flushes >= 10, "the guest did not flush");
        // strace may end after bothy.
        let seen = || fs::read_to_string(&trace).unwrap_or_default();
        support::eventually(Duration::from_secs(10), || {
            seen().matches("fdatasync(").count() as u64 >= flushes
        });
        let text = seen();
        assert_eq!(text.matches("fdatasync(").count() as u64, flushes, "{aio}: {text}");
        assert!(!text.contains(" fsync("), "{aio}: {text}");
    }
}

#[test]
fn a_full_disk_of_the_host_is_an_error_for_one_disk_until_there_is_room_again() {
    needs_linux!();
    needs_root!("mount a disk");
    let small = MountedDisk::new(64 << 20);
    let filler = support::file(&small.path(), "filler", &noise(32 << 20, 1));
    let (full, dir) = (blank(&small.path(), "full", 40), support::scratch());
    let other = blank(dir.path(), "other", 4);
    let script = "
        dd if=/dev/urandom of=/tmp/random bs=1M count=4 2>/dev/null
        fill() { for n in 0 1 2 3 4 5 6 7 8 9; do dd if=/tmp/random of=/dev/vda bs=1M seek=$((4 * n)) conv=notrunc,fsync 2>/dev/null || return 1; done; }
        fill && echo filled=yes || echo filled=no
        dd if=/tmp/random of=/dev/vdb bs=1M conv=fsync 2>/dev/null
        cmp /tmp/random /dev/vdb && echo other=same
        read -r _
        fill && echo again=yes || echo again=no
        echo 3 >/proc/sys/vm/drop_caches
        dd if=/dev/vda bs=1M skip=36 2>/dev/null | cmp - /tmp/random && echo end=same";
    let guest = Guest::new().disk(&full, "").disk(&other, "").change(Bothy::open_input).script(script);
    let mut vm = guest.start();
    vm.wait_for("other=same");
    fs::remove_file(filler).unwrap();
    vm.running.type_in(b"\n");
    let console = vm.ends_with(0);
    for (key, value) in [("filled", "no"), ("other", "same"), ("again", "yes"), ("end", "same")] {
        console.says(key, value);
    }
    console.insist(console.finished.stderr.contains("write failed"), "bothy doesn't say what happened");
}
