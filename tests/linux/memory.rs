//! Little memory, and more than fits below 4 GiB.

use crate::guest::{Guest, needs_linux};

const GIB: u64 = 1 << 30;

fn a_small_guest(mib: u64) {
    let script = "
        echo total=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
        dd if=/dev/urandom of=/tmp/file bs=1M count=4 2>/dev/null
        echo sums=$(cat /tmp/file | sha256sum | cut -c 1-64) $(sha256sum </tmp/file | cut -c 1-64)";
    let console = Guest::new().args(["--memory", &format!("{mib}M")]).script(script).run();
    let total_mib = console.number("total") >> 10;
    // The kernel's image and its page structures are not in MemTotal.
    console.insist(total_mib < mib && total_mib + 24 > mib, "MemTotal is wrong");
    let sums: Vec<&str> = console.value("sums").split(' ').collect();
    console.insist(sums.len() == 2 && sums[0] == sums[1], "memory does not keep what is written");
}

#[test]
fn bothys_own_guest_boots_in_32_mib() {
    needs_linux!();
    a_small_guest(32);
}

#[test]
fn bothys_own_guest_boots_in_64_mib() {
    needs_linux!();
    a_small_guest(64);
}

#[test]
fn memory_above_4_gib_is_there_and_keeps_what_is_written() {
    needs_linux!();
    // Files in memory are taken from the highest zone first. In this machine the zone Normal is the memory above 4 GiB, so its
    // count of free pages shows that they lie there.
    let script = "
        free_high() { awk '$1 == \"Node\" { zone = $4 } zone == \"Normal\" && $1 == \"nr_free_pages\" { print $2 }' /proc/zoneinfo; }
        echo total=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
        sed -n 's/ : System RAM//p' /proc/iomem | sed 's/^/ram=/'
        echo start=$(awk '$1 == \"Node\" { zone = $4 } zone == \"Normal\" && $1 == \"start_pfn:\" { print $2 }' /proc/zoneinfo)
        mount -t tmpfs -o size=1g tmpfs /mnt
        before=$(free_high)
        dd if=/dev/urandom of=/mnt/1 bs=1M count=32 2>/dev/null
        for n in 2 3 4; do cp /mnt/1 /mnt/$n; done
        echo used=$(($before - $(free_high)))
        sync
        for n in 1 2 3 4; do echo sum=$(sha256sum </mnt/$n | cut -c 1-64); done";
    let console = Guest::new().args(["--memory", "5G"]).script(script).run();
    let total = console.number("total") << 10;
    console.insist(total < 5 * GIB && total > 5 * GIB - 200 * (1 << 20), "MemTotal is wrong");
    let ram = console.values("ram");
    console.insist(ram.contains(&"00100000-bfffffff"), "memory below the hole is wrong");
    console.insist(ram.contains(&"100000000-17fffffff"), "memory above the hole is wrong");
    console.says("start", &((4 * GIB) >> 12).to_string());
    console.insist(console.number("used") >= (120 << 20) >> 12, "memory above 4 GiB is not what was used");
    let sums = console.values("sum");
    console.insist(
        sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]),
        "it does not keep what is written",
    );
}
