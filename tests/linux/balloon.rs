//! Memory that a guest has used and needs no more goes back to the host. Seen from the host: the
//! Pss of the VM's process.

use std::time::{Duration, Instant};

use crate::guest::{Guest, needs_linux};
use crate::support::{self, Bothy, Running, patient};

const MIB: u64 = 1 << 20;
/// What the guest takes and frees, in MiB.
const TAKEN: u64 = 512;

/// Takes memory and frees it, each when a line comes.
pub(crate) const SCRIPT: &str = "mount -t tmpfs -o size=600m tmpfs /mnt; echo up; read line
    dd if=/dev/zero of=/mnt/file bs=1M count=512 2>/dev/null; echo taken; read line
    rm /mnt/file; echo freed; read line; echo end";

/// Pss of all processes of a run, in MiB.
pub(crate) fn pss_mib(running: &Running) -> u64 {
    let pss = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let processes = running.processes();
    assert!(!processes.is_empty(), "nothing runs");
    processes.into_iter().map(pss).sum::<u64>() * 1024 / MIB
}

/// Has the guest take memory and free it, and insists that nine tenths are back in time; says how
/// long it took.
pub(crate) fn comes_back(running: &mut Running, within: Duration) -> Duration {
    running.wait_for(b"up");
    let before = pss_mib(running);
    running.type_in(b"\n");
    running.wait_for(b"taken");
    let most = pss_mib(running);
    assert!(most >= before + TAKEN * 9 / 10, "{TAKEN} MiB more than {before} are not {most}");
    running.type_in(b"\n");
    running.wait_for(b"freed");
    let start = Instant::now();
    let is_back = || most - pss_mib(running).min(most) >= TAKEN * 9 / 10;
    let came = support::eventually(within, is_back);
    let took = start.elapsed();
    assert!(came, "of {most} MiB {} are still there after {took:?}", pss_mib(running));
    running.type_in(b"\n");
    took
}

#[test]
fn freed_memory_comes_back_by_reporting_alone() {
    needs_linux!();
    let mut vm = Guest::new().args(["--memory", "1G"]).change(Bothy::open_input).script(SCRIPT).start();
    let took = comes_back(&mut vm.running, Duration::from_secs(30));
    println!(
        "{TAKEN} MiB came back by reporting alone in {took:?}, of {:?}",
        patient(Duration::from_secs(30))
    );
    assert_eq!(vm.running.wait().code, 0);
}

#[test]
fn without_a_balloon_it_stays_with_the_guest() {
    needs_linux!();
    let mut vm = Guest::new()
        .args(["--memory", "1G", "--balloon", "off"])
        .change(Bothy::open_input)
        .script(SCRIPT)
        .start();
    vm.running.wait_for(b"up");
    for line in ["taken", "freed"] {
        vm.running.type_in(b"\n");
        vm.running.wait_for(line.as_bytes());
    }
    let before = pss_mib(&vm.running);
    std::thread::sleep(Duration::from_secs(6));
    let after = pss_mib(&vm.running);
    assert!(after + 16 >= before, "{before} MiB have become {after}");
    vm.running.type_in(b"\n");
    assert_eq!(vm.running.wait().code, 0);
}
