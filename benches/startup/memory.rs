//! What a VM costs besides its guest's memory: the Pss of its processes, less the mappings behind memory slots.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::measure::{print_target, wait_for_orphans};
use crate::{Places, boot, guests};

/// Memory of the measured VM, in bytes.
const GUEST_MEMORY: u64 = 128 << 20;
/// When the guest has come to rest.
const REST: Duration = Duration::from_secs(5);

/// Sums over mappings, in KiB.
#[derive(Clone, Copy, Default)]
struct Usage {
    pss: u64,
    private_dirty: u64,
}

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
    let pids = [vec![child.id()], children(child.id())].concat();
    assert_eq!(pids.len(), 2, "the command and the VM");
    let usage = pids.iter().map(|pid| own(*pid)).fold(Usage::default(), |sum, own| Usage {
        pss: sum.pss + own.pss,
        private_dirty: sum.private_dirty + own.private_dirty,
    });
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
    target("private dirty", usage.private_dirty, 3);
    target("Pss", usage.pss, 6);
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

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("our child runs");
    text.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

struct Mapping {
    start: u64,
    end: u64,
    /// Left out of core dumps: only guest memory is.
    dont_dump: bool,
    usage: Usage,
}

/// What a process holds but for guest memory.
fn own(pid: u32) -> Usage {
    let mappings = parse(&fs::read_to_string(format!("/proc/{pid}/smaps")).expect("our child runs"));
    // The kernel's file is mapped amid guest memory, so the whole stretch between the first and the last part counts as guest memory.
    let guest: Vec<&Mapping> = mappings
        .iter()
        .filter(|mapping| mapping.dont_dump && mapping.end - mapping.start >= 1 << 20)
        .collect();
    let stretch = guest.first().map_or(0..0, |first| first.start..guest[guest.len() - 1].end);
    assert!(
        stretch.is_empty() || stretch.end - stretch.start == GUEST_MEMORY,
        "guest memory is one stretch: {stretch:x?}"
    );
    mappings.iter().filter(|mapping| !stretch.contains(&mapping.start)).fold(
        Usage::default(),
        |sum, mapping| Usage {
            pss: sum.pss + mapping.usage.pss,
            private_dirty: sum.private_dirty + mapping.usage.private_dirty,
        },
    )
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        if let Some((start, end)) = key.split_once('-') {
            let hex = |text| u64::from_str_radix(text, 16).expect("an address");
            mappings.push(Mapping {
                start: hex(start),
                end: hex(end),
                dont_dump: false,
                usage: Usage::default(),
            });
            continue;
        }
        let Some(mapping) = mappings.last_mut() else { continue };
        let kib = || value.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        match key {
            "Pss:" => mapping.usage.pss = kib(),
            "Private_Dirty:" => mapping.usage.private_dirty = kib(),
            "VmFlags:" => mapping.dont_dump = value.split_whitespace().any(|flag| flag == "dd"),
            _ => {}
        }
    }
    mappings
}
