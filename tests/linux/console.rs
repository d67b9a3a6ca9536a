//! The console through pipes: by a serial port, as usual, and by virtio.

use std::thread;
use std::time::Duration;

use crate::guest::{Guest, blank, long, needs_linux, noise};
use crate::support::{self, Bothy, eventually};

/// 16 KiB are more than the guest's own buffers hold, so flow control is at work; an emulated host
/// carries about 9 KiB a second.
fn amount() -> usize {
    if long() { 1 << 20 } else { 16 << 10 }
}

#[test]
fn bytes_pass_both_ways_exactly_by_virtio() {
    needs_linux!();
    // Linux takes a Ctrl-O on such a console for itself: a SysRq follows.
    let content: Vec<u8> = noise(amount(), 4).into_iter().filter(|byte| *byte != 0xf).collect();
    bytes_pass_both_ways_exactly("virtio", &content);
}

#[test]
fn bytes_pass_both_ways_exactly_by_a_serial_port() {
    needs_linux!();
    bytes_pass_both_ways_exactly("serial", &noise(amount(), 4));
}

fn bytes_pass_both_ways_exactly(console: &str, content: &[u8]) {
    let script =
        format!("stty raw -echo; echo ready=yes; head -c {}; stty sane; echo; echo end=yes", content.len());
    let limit = Duration::from_secs(60) + Duration::from_millis(content.len() as u64);
    let guest = Guest::new().args(["--console", console]).script(script);
    let mut vm = guest.change(|bothy| bothy.open_input().limit(limit)).start();
    vm.wait_for("ready=yes\n");
    // Whoever writes into a console that has stopped waits for ever.
    let (pid, over) = (vm.running.pid(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let watch = over.clone();
    let watchdog = thread::spawn(move || {
        if !eventually(limit, || watch.load(std::sync::atomic::Ordering::Relaxed)) {
            support::signal(pid, libc::SIGKILL);
        }
    });
    vm.running.type_in(content);
    vm.wait_for("end=yes");
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    watchdog.join().unwrap();
    let console = vm.ends_with(0);
    let output = &console.finished.stdout;
    let ready = b"ready=yes\n";
    let start = output.windows(ready.len()).position(|part| part == ready).unwrap() + ready.len();
    let back = &output[start..];
    assert!(back.len() > content.len(), "{} bytes came back", back.len());
    let different = back.iter().zip(content).position(|(back, sent)| back != sent);
    assert_eq!(different, None, "the first byte that is not what was sent, of {}", content.len());
    assert!(back[content.len()..].starts_with(b"\r\nend=yes"), "something was added at the end");
}

#[test]
fn the_end_of_input_leaves_the_guest_running() {
    needs_linux!();
    let mut vm = Guest::new().change(Bothy::open_input).start();
    vm.wait_for("# ");
    vm.running.type_in(b"echo one-$((20 + 1))\n");
    vm.wait_for("one-21");
    // What was sent before the end still arrives, and what it starts goes on.
    vm.running.type_in(b"sleep 3; echo two-$((20 + 2))\n");
    vm.running.close_input();
    vm.wait_for("two-22");
    assert!(!vm.running.has_ended());
    vm.running.signal(libc::SIGTERM);
    vm.ends_with(0);
}

#[test]
fn a_reader_that_blocks_does_not_block_sigterm_by_virtio() {
    needs_linux!();
    a_reader_that_blocks_does_not_block_sigterm("virtio");
}

#[test]
fn a_reader_that_blocks_does_not_block_sigterm_by_a_serial_port() {
    needs_linux!();
    a_reader_that_blocks_does_not_block_sigterm("serial");
}

fn a_reader_that_blocks_does_not_block_sigterm(console: &str) {
    let dir = support::scratch();
    let disk = blank(dir.path(), "disk", 16);
    let script = "mke2fs /dev/vda >/dev/null 2>&1; mount -t ext4 /dev/vda /mnt; echo kept-by-unmounting >/mnt/file; stty raw; cat /dev/zero";
    let guest = Guest::new().args(["--console", console]).disk(&disk, "").script(script);
    let mut vm = guest.change(Bothy::unread_output).start();
    // The pipe is full when nothing is added to it any more.
    let mut len = 0;
    let full = eventually(Duration::from_secs(90), || {
        thread::sleep(Duration::from_secs(2));
        let before = std::mem::replace(&mut len, vm.running.unread_len());
        before >= 1024 && before == len
    });
    assert!(full, "{len} bytes were written");
    let before = std::time::Instant::now();
    vm.running.signal(libc::SIGTERM);
    assert!(eventually(Duration::from_secs(15), || vm.running.has_ended()), "SIGTERM was not obeyed");
    let took = before.elapsed();
    // The guest's last words wait for nobody then, so it powers off in order.
    let finished = vm.running.wait();
    assert_eq!(finished.code, 0, "after {took:?}: {}", finished.stderr);
    let content = std::fs::read(&disk).unwrap();
    assert!(support::contains(&content, b"kept-by-unmounting"), "the file system was not unmounted");
}

#[test]
fn without_a_console_a_guest_works_and_says_nothing() {
    needs_linux!();
    let dir = support::scratch();
    let disk = blank(dir.path(), "disk", 1);
    let script = "ls /sys/bus/acpi/devices >/dev/vda; echo said";
    let guest = Guest::new().args(["--console", "none"]).disk(&disk, "").script(script);
    let console = guest.ends_with(0);
    console.insist(
        console.finished.stdout.is_empty() && console.finished.stderr.is_empty(),
        "something was said",
    );
    let content = std::fs::read(&disk).unwrap();
    assert!(support::contains(&content, b"PNP0C0C:00\n"), "the guest has not run its script");
    assert!(!support::contains(&content, b"PNP0501"), "there is a serial port");
}

#[test]
fn many_lines_cost_few_exits_by_virtio() {
    needs_linux!();
    let exits = |console: &str| {
        let script = "yes 0123456789abcdef0123456789abcdef0123456789abcdef | head -n 300";
        let guest = Guest::new().args(["--console", console, "--timing=json"]).script(script);
        let console = guest.ends_with(0);
        let lines = console.text.lines().filter(|line| line.starts_with("0123456789abcdef")).count();
        console.insist(lines == 300, "lines are missing");
        let after = console.finished.stderr.split("\"port_io\":").nth(1);
        let digits = after.and_then(|text| text.split(',').next()?.parse::<u64>().ok());
        digits.unwrap_or_else(|| panic!("no count in {}", console.finished.stderr))
    };
    let (serial, virtio) = (exits("serial"), exits("virtio"));
    assert!(serial > 300 * 49 && virtio < serial / 20, "exits for port I/O: {serial} and {virtio}");
}

#[test]
fn what_the_kernel_says_before_it_finds_the_console_is_heard_and_nothing_twice() {
    needs_linux!();
    let guest = Guest::new().args(["--console", "virtio"]);
    let console = guest.append("loglevel=7 bothy.exec=true").run();
    for (line, what) in [("Command line: ", "early"), ("Run /init as init process", "late")] {
        let count = console.text.lines().filter(|said| said.contains(line)).count();
        console.insist(count == 1, &format!("what is said {what} is there {count} times"));
    }
}

#[test]
fn the_last_output_of_a_command_is_not_lost() {
    needs_linux!();
    // What fits into the buffers of tty and driver is still on its way when the command has ended,
    // on another processor.
    let lines = 400;
    let console = Guest::new()
        .args(["--cpus", "4"])
        .append(&format!("bothy.exec=\"seq 1 {lines}; echo last=line\""))
        .run();
    let numbers: Vec<usize> = console.text.lines().filter_map(|line| line.parse().ok()).collect();
    console.insist(numbers == (1..=lines).collect::<Vec<_>>(), "lines are missing");
    console.says("last", "line");
}
