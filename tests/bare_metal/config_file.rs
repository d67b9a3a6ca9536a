//! `--config`: the same VM from a file, and flags over it.

use super::guest::Guest;
use super::script::{RESULTS, Script};
use crate::support::{Bothy, file, scratch};

/// Says which devices there are, what the FIFO of cmdline begins with, and how many processors
/// CPUID tells of.
fn report() -> Script {
    Script::new()
        .read32(0xd000_0008, RESULTS)
        .read32(0xd000_1008, RESULTS + 4)
        .read32(0xd000_2008, RESULTS + 8)
        .put(RESULTS, 1)
        .put(RESULTS + 4, 1)
        .put(RESULTS + 8, 1)
        .cpuid(1, 0, RESULTS)
        .put(RESULTS + 6, 1)
        .put(0x2_0018, 8)
}

#[test]
fn a_file_describes_the_same_vm_as_flags_do_and_flags_win() {
    let dir = scratch();
    let kernel = Guest::new(&report()).write(dir.path());
    let disk = file(dir.path(), "disk", &[0; 512]);
    let (kernel, disk) = (kernel.to_str().unwrap(), disk.to_str().unwrap());
    let text = format!(
        "kernel = {kernel:?}\nmemory = \"32M\"\ncpus = 3\nappend = \"by-file\"\n\
         [[disk]]\npath = {disk:?}\nread_only = true\n"
    );
    let config = file(dir.path(), "vm.toml", text.as_bytes());
    let by_file =
        |flags: &[&str]| Bothy::new(["boot", "--config"]).args([&config]).args(flags).run().output();
    let ro = format!("{disk},ro");
    let by_flags = ["--memory", "32M", "--cpus", "3", "--append", "by-file", "--disk", &ro];
    let by_flags = Bothy::new(["boot", "--kernel", kernel]).args(by_flags).run().output();
    assert_eq!(by_flags, b"\x02\x04\x05\x03by-file\0");
    assert_eq!(by_file(&[]), by_flags);
    assert_eq!(by_file(&["--cpus", "2"]), b"\x02\x04\x05\x02by-file\0");
    assert_eq!(by_file(&["--append", "by-flag"]), b"\x02\x04\x05\x03by-flag\0");
    assert_eq!(by_file(&["--balloon", "off"]), b"\x02\x04\xff\x03by-file\0");
    // A list that is given replaces the whole list.
    assert_eq!(by_file(&["--disk", &ro, "--disk", &ro]), b"\x02\x02\x04\x03by-file\0");
}

#[test]
fn a_console_can_be_taken_away_by_the_file_and_given_back_by_a_flag() {
    let dir = scratch();
    let kernel = Guest::new(&Script::new().say(b's')).write(dir.path());
    let text = format!("kernel = {:?}\nmemory = \"32M\"\nconsole = \"none\"\n", kernel.to_str().unwrap());
    let config = file(dir.path(), "vm.toml", text.as_bytes());
    assert_eq!(Bothy::new(["boot", "--config"]).args([&config]).run().output(), b"");
    let words = ["--console", "serial"];
    assert_eq!(Bothy::new(["boot", "--config"]).args([&config]).args(words).run().output(), b"s");
}
