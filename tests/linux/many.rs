//! Many boots: one after the other, and side by side.

use std::fs;
use std::time::Duration;

use crate::guest::{Guest, blank, guest_dir, long, needs_linux, noise};
use crate::support::{self, Bothy, eventually};

/// What the machine has in use: open files, KiB of memory, processes.
#[derive(Debug)]
struct Use {
    files: u64,
    memory_kib: u64,
    processes: usize,
}

impl Use {
    fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap();
        let memory = read("/proc/meminfo");
        let kib = |key: &str| -> u64 {
            let line = memory.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        Self {
            files: read("/proc/sys/fs/file-nr").split_whitespace().next().unwrap().parse().unwrap(),
            memory_kib: kib("MemTotal:") - kib("MemAvailable:"),
            processes: pids.filter(|entry| is_program(&entry.path())).count(),
        }
    }
}

/// Whether a directory of /proc is that of a process with a program: the kernel's own come and go.
fn is_program(path: &std::path::Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
        && fs::read(path.join("cmdline")).is_ok_and(|cmdline| !cmdline.is_empty())
}

#[test]
fn repeated_boots_leave_nothing_behind() {
    needs_linux!(alone);
    let dir = support::scratch();
    let disk = blank(dir.path(), "disk", 4);
    let boot = |n: u64| {
        let append = format!("bothy.exec=\"cat /dev/vda | head -c 8; printf %08d {n} >/dev/vda; echo\"");
        let disk = format!("{},id=d", disk.display());
        Bothy::new(["boot", "--cpus", "2", "--append", &append, "--disk", &disk])
            .env("BOTHY_GUEST_DIR", guest_dir())
            .limit(Duration::from_secs(60))
            .run()
            .code(0)
    };
    boot(0);
    let before = Use::now();
    let count = if long() { 100 } else { 5 };
    for n in 1..=count {
        let finished = boot(n);
        let text = String::from_utf8_lossy(&finished.stdout);
        assert!(
            text.contains(&format!("{:08}", n - 1)),
            "boot {n} does not find what the last one wrote: {text}"
        );
        assert!(text.contains("bothy: exit status 0"), "{text}");
    }
    // A VM has dozens of files and tens of MiB; everything else on the machine may move a little.
    let mut after = Use::now();
    let settled = eventually(Duration::from_secs(10), || {
        after = Use::now();
        after.files <= before.files + 64
            && after.memory_kib <= before.memory_kib + 48 * 1024
            && after.processes <= before.processes
    });
    assert!(settled, "before {before:?}, after {count} boots {after:?}");
}

#[test]
fn two_vms_run_side_by_side() {
    needs_linux!();
    let dir = support::scratch();
    let mut vms = Vec::new();
    for n in 0..2_u64 {
        let disk = support::file(dir.path(), &format!("disk{n}"), &noise(1 << 20, 200 + n));
        let script = format!(
            "echo sum=$(sha256sum </dev/vda | cut -c 1-64)
            echo {n} >/tmp/number
            echo ready=yes
            read -r word
            echo answer=$word-$(cat /tmp/number)"
        );
        let guest = Guest::new().args(["--cpus", "2"]).disk(&disk, "").change(Bothy::open_input);
        vms.push(guest.script(script).start());
    }
    // Both are up at the same time, each with its own console, memory and disk.
    for vm in &mut vms {
        vm.wait_for("ready=yes");
    }
    let pids: Vec<u32> = vms.iter().map(|vm| vm.running.vm_pid()).collect();
    assert_ne!(pids[0], pids[1]);
    for (vm, word) in vms.iter_mut().zip(["one", "two"]) {
        vm.running.type_in(format!("{word}\n").as_bytes());
    }
    let consoles: Vec<_> = vms.into_iter().map(|vm| vm.ends_with(0)).collect();
    for (console, answer) in consoles.iter().zip(["one-0", "two-1"]) {
        console.says("answer", answer);
    }
    assert_ne!(consoles[0].value("sum"), consoles[1].value("sum"));
}
