//! How VMs end, and the exit codes.

use std::time::{Duration, Instant};

use crate::guest::{Guest, blank, needs_linux};
use crate::support::{self, eventually};

#[test]
fn power_off_and_reboot_end_with_0_by_asking_init_and_by_force() {
    needs_linux!();
    for command in ["poweroff", "poweroff -f", "reboot", "reboot -f", "halt"] {
        let console = Guest::new().script(format!("{command}; sleep 100")).ends_with(0);
        console.insist(!console.text.contains("bothy: exit status"), &format!("`{command}` came back"));
        console.insist(console.finished.stderr.is_empty(), "it complains");
    }
}

#[test]
fn a_panic_ends_with_3_and_is_named() {
    needs_linux!();
    let console = Guest::new().script("echo c >/proc/sysrq-trigger; sleep 100").ends_with(3);
    console.insist(console.finished.stderr.contains("the guest's kernel panicked"), "it is not named");
    console.insist(
        console.text.contains("Kernel panic - not syncing: sysrq triggered crash"),
        "its last words are lost",
    );
    // As does a kernel that finds no init at all.
    let console = Guest::new().append("rdinit=/nothing init=/nothing root=/dev/nothing").ends_with(3);
    console.insist(console.text.contains("Kernel panic"), "its last words are lost");
}

#[test]
fn sigterm_presses_the_power_button_and_disks_are_unmounted() {
    needs_linux!();
    let dir = support::scratch();
    let disk = blank(dir.path(), "disk", 16);
    let script = "mke2fs /dev/vda >/dev/null 2>&1; mount -t ext4 /dev/vda /mnt
        trap 'echo told=yes; exit 0' TERM; trap '' HUP
        echo kept-by-unmounting >/mnt/file
        sleep 1000 & sleep 1
        echo ready=yes
        wait";
    // Init sends both signals, of which one is to be told. The shell doesn't fork any more when
    // they come: between fork and exec a child has its trap, too.
    let mut vm = Guest::new().disk(&disk, "").script(script).start();
    vm.wait_for("ready=yes");
    let content = std::fs::read(&disk).unwrap();
    assert!(
        !support::contains(&content, b"kept-by-unmounting"),
        "it is written already: this test shows nothing"
    );
    vm.running.signal(libc::SIGTERM);
    let console = vm.ends_with(0);
    console.says("told", "yes");
    console.insist(console.finished.stderr.is_empty(), "it complains");
    let content = std::fs::read(&disk).unwrap();
    assert!(support::contains(&content, b"kept-by-unmounting"), "the file system was not unmounted");
}

/// A guest whose PID 1 does nothing and hears nothing.
fn deaf() -> crate::guest::Vm {
    let mut vm =
        Guest::new().append(r#"rdinit=/bin/sh -- -c "echo up-$((20+3)); exec sleep 100000""#).start();
    vm.wait_for("up-23");
    vm
}

#[test]
fn an_unanswered_sigterm_and_a_second_one_kill() {
    needs_linux!();
    let mut vm = deaf();
    vm.running.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_secs(2));
    assert!(!vm.running.has_ended(), "one SIGTERM was enough");
    let before = Instant::now();
    vm.running.signal(libc::SIGTERM);
    let console = vm.ends_with(6);
    let took = before.elapsed();
    console.insist(
        took < support::patient(Duration::from_secs(4)),
        &format!("the second SIGTERM took {took:?}"),
    );
    console.insist(console.finished.stderr.contains("killed before it powered off"), "it is not named");
}

#[test]
fn an_unanswered_sigterm_kills_after_ten_seconds() {
    needs_linux!();
    let vm = deaf();
    let before = Instant::now();
    vm.running.signal(libc::SIGTERM);
    let console = vm.ends_with(6);
    let took = before.elapsed();
    let limits = Duration::from_millis(9_500)..support::patient(Duration::from_secs(14));
    console.insist(limits.contains(&took), &format!("it took {took:?}"));
}

#[test]
fn kill_9_of_the_command_ends_the_vm_within_a_second() {
    needs_linux!();
    let mut vm = Guest::new().args(["--cpus", "2"]).script("echo ready=yes; while :; do :; done").start();
    vm.wait_for("ready=yes");
    let process = vm.running.vm_pid();
    vm.running.signal(libc::SIGKILL);
    let before = Instant::now();
    let gone = eventually(Duration::from_secs(1), || vm.running.processes().is_empty());
    assert!(
        gone,
        "after {:?} there still is {:?}; {process} is the VM's",
        before.elapsed(),
        vm.running.processes()
    );
}

#[test]
fn four_busy_processors_obey_sigterm() {
    needs_linux!();
    let dir = support::scratch();
    let disk = blank(dir.path(), "disk", 16);
    let script = "
        for n in 1 2 3 4; do (trap '' TERM; while :; do :; done) & done
        while :; do dd if=/dev/urandom of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null; done &
        sleep 2; echo ready=yes; wait";
    let mut vm = Guest::new().args(["--cpus", "4"]).disk(&disk, "").script(script).start();
    vm.wait_for("ready=yes");
    vm.running.signal(libc::SIGTERM);
    vm.ends_with(0);
}
