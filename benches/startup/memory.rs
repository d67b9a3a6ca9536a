//! What a VM costs besides its guest's memory: the Pss of its processes, less the mappings behind
//! memory slots.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::measure::wait_for_orphans;
use crate::target::print_target;
use crate::usage::{self, Usage, family};
use crate::{Places, boot, guests};

/// Memory of the measured VM, in bytes.
const GUEST_MEMORY: u64 = 128 << 20;
/// When the guest has come to rest.
const REST: Duration = Duration::from_secs(5);

/// Starts an idle VM with a disk and a network device, and prints what its processes hold.
pub(crate) fn report(places: &Places, host: &str, linux: bool, tap: &str) {
    let mut command = boot(&places.bothy());
    command
        .args(["--memory", "128M", "--net", &format!("tap={tap}")])
        .arg("--disk")
        .arg(guests::disk(&places.work));
    if linux {
        command.args(["--append", "bothy.exec=\"echo A; sleep 600\""]);
    } else {
        command.arg("--kernel").arg(guests::idle(&places.work));
    }
    let mut child = start(command);
    if linux {
        sleep(REST);
    }
    let pids = family(child.id());
    assert_eq!(pids.len(), 3, "client, monitor and VM");
    let usage: Usage = pids.iter().map(|pid| usage::own(*pid, GUEST_MEMORY)).sum();
    end(&mut child);
    let guest = if linux { "default guest" } else { "tiny guest" };
    println!(
        "\nown memory, {guest}, {host}: {} KiB Pss, {} KiB of it private and dirty",
        usage.pss, usage.private_dirty
    );
    let mib = |kib: u64| format!("{:.2} MiB", kib as f64 / 1024.0);
    let target = |what: &str, kib: u64, goal: u64| {
        print_target(
            &format!("own memory, {what}, {guest}, {host}"),
            &mib(kib),
            &format!("at most {goal} MiB"),
            kib <= goal * 1024,
        );
    };
    target("private dirty", usage.private_dirty, 4);
    target("Pss", usage.pss, 9);
}

fn start(mut command: Command) -> Child {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("bothy is built");
    // The guest runs once it has said so.
    let mut byte = [0];
    while byte != *b"A" {
        child.stdout.as_mut().expect("piped").read_exact(&mut byte).expect("the guest says A");
    }
    child
}

fn end(child: &mut Child) {
    // The VM goes with its command.
    child.kill().expect("our child");
    child.wait().expect("our child");
    wait_for_orphans();
}
