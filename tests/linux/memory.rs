//! Little memory, and more than fits below 4 GiB.

use crate::guest::{Guest, needs_linux};

const GIB: u64 = 1 << 30;

fn a_small_guest(mib: u64) {
    // Of 32 MiB the kernel and the initramfs leave 6: a file of 4 MiB, programs beside it, and
    // sometimes Linux killed one of them.
    let script = "
        echo total=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
        dd if=/dev/urandom of=/tmp/file bs=64k count=32 2>/dev/null
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
    // Files in memory are taken from the highest zone first. In this machine the zone Normal is the
    // memory above 4 GiB, so its count of free pages shows that they lie there.
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

/// A number of /proc/meminfo, of this machine.
fn meminfo(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.trim_start_matches(':').split_whitespace().next().map_or(0, |number| number.parse().unwrap())
}

/// Frees what it has used, and says when the host should have it back.
const USE_AND_FREE: &str = "
    echo kept=$(dd if=/dev/urandom bs=1M count=2 2>/dev/null | tee /tmp/file | sha256sum | cut -c 1-64) $(sha256sum </tmp/file | cut -c 1-64)
    mount -t tmpfs -o size=96m tmpfs /mnt
    dd if=/dev/zero of=/mnt/file bs=1M count=80 2>/dev/null
    echo used=yes
    rm /mnt/file
    read -r _";

/// Huge pages for the largest of these guests, and some to spare.
const POOL: u64 = 192;

/// A guest that has done so, and waits for a line to end.
fn used_and_freed(backing: &str) -> crate::guest::Vm {
    // While Linux reports free pages it lacks them: up to 32 blocks of 4 MiB at once, and 80 MiB
    // must be there besides.
    let mut vm = Guest::new()
        .args(["--memory", &format!("320M,{backing}"), "--balloon", "on"])
        .change(crate::support::Bothy::open_input)
        .script(USE_AND_FREE)
        .start();
    vm.wait_for("used=yes");
    vm
}

#[test]
fn memory_in_a_file_and_memory_that_is_there_at_once_work_as_any_other() {
    needs_linux!();
    for backing in ["shared", "prefault", "hugepages=thp,shared,prefault"] {
        let mut vm = used_and_freed(backing);
        vm.running.type_in(b"\n");
        let console = vm.ends_with(0);
        let sums: Vec<&str> = console.value("kept").split(' ').collect();
        console.insist(sums.len() == 2 && sums[0] == sums[1], "memory does not keep what is written");
    }
}

#[test]
fn memory_of_huge_pages_is_from_the_hosts_pool_and_goes_back_to_it() {
    needs_linux!(alone);
    let name = "memory_of_huge_pages_is_from_the_hosts_pool_and_goes_back_to_it";
    let pool = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(pool).unwrap();
    if std::fs::write(pool, POOL.to_string()).is_err() || meminfo("HugePages_Free") < POOL {
        let _as_it_was = std::fs::write(pool, before);
        crate::support::could_not_run(name, "this host gives too few huge pages");
        return;
    }
    for backing in ["hugepages=2M", "hugepages=2M,shared", "hugepages=2M,prefault"] {
        let free = || meminfo("HugePages_Free");
        let mut vm = used_and_freed(backing);
        let used = POOL - free();
        assert!(used >= 40, "{backing}: {used} huge pages are in use");
        // What the guest has freed is reported, and whole pages of it are free again.
        let came_back =
            crate::support::eventually(std::time::Duration::from_secs(60), || POOL - free() + 20 <= used);
        vm.running.type_in(b"\n");
        let console = vm.ends_with(0);
        console.insist(came_back, &format!("{backing}: the pool got nothing back of {used} pages"));
        assert!(
            crate::support::eventually(std::time::Duration::from_secs(20), || free() == POOL),
            "{backing}"
        );
    }
    let failed = Guest::new().args(["--memory", "512M,hugepages=2M"]).ends_with(1);
    failed.insist(failed.finished.stderr.contains("too few free ones"), "the error doesn't say why");
    std::fs::write(pool, before).unwrap();
}
