//! What an idle virtual machine of an image costs the host.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::IMAGE;
use crate::measure::wait_for_orphans;
use crate::target::print_target;
use crate::usage::{Usage, family, mappings, own};

/// Memory of each machine, in bytes.
const GUEST_MEMORY: u64 = 128 << 20;
/// When a machine has come to rest.
const REST: Duration = Duration::from_secs(30);
/// How many are started to see what one more takes.
const MANY: u64 = 8;

/// Starts one machine, and then more, and prints what they hold.
pub(crate) fn report(bothy: &Path, host: &str) {
    let mut first = start(bothy);
    sleep(REST);
    let pids = family(first.id());
    let own: Usage = pids.iter().map(|pid| own(*pid, GUEST_MEMORY)).sum();
    let whole: Usage = pids.iter().flat_map(|pid| mappings(*pid)).map(|mapping| mapping.usage).sum();
    println!(
        "\nan idle machine of busybox, {host}: {} KiB Pss; without the guest's memory {} KiB, {} KiB of it private and dirty",
        whole.pss, own.pss, own.private_dirty
    );
    let before = available();
    let mut more: Vec<Child> = (0..MANY).map(|_| start(bothy)).collect();
    sleep(REST);
    let fall = before.saturating_sub(available()) / MANY;
    println!("MemAvailable falls by {fall} KiB for each of {MANY} more");
    for machine in more.iter_mut().chain([&mut first]) {
        // It goes with its command.
        machine.kill().expect("our child");
        machine.wait().expect("our child");
    }
    wait_for_orphans();
    let target = |what: &str, kib: u64, goal: u64| {
        print_target(
            &format!("{what}, {host}"),
            &format!("{:.2} MiB", kib as f64 / 1024.0),
            &format!("at most {goal} MiB"),
            kib <= goal * 1024,
        );
    };
    target("own memory of a run, private dirty", own.private_dirty, 4);
    target("own memory of a run, Pss", own.pss, 9);
    target("an idle machine of an image, Pss", whole.pss, 40);
}

/// A machine whose command sleeps. Its first line says that it runs.
fn start(bothy: &Path) -> Child {
    let mut child = Command::new(bothy)
        .args(["run", "-m", "128M", IMAGE, "sh", "-c", "echo A; exec sleep 600"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bothy is built");
    let mut line = [0; 2];
    let stdout = child.stdout.as_mut().expect("piped");
    std::io::Read::read_exact(stdout, &mut line).expect("the command says A");
    child
}

/// In KiB.
fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("every Linux has it");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("since 3.14");
    line.trim().trim_end_matches(" kB").parse().expect("a number of kB")
}
