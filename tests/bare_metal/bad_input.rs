//! What is refused: one clear line that names the flag, the right exit code, no panic, and nothing
//! left behind.

use std::fs;
use std::path::Path;

use super::guest::{Guest, Segment, bzimage, elf};
use super::script::Script;
use crate::support::{Bothy, could_not_run, file, scratch};

const USAGE: i32 = 2;
pub(crate) const SETUP: i32 = 1;

fn listing(dir: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let mut names: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
        .collect();
    names.sort();
    names
}

/// Runs it in `dir` and insists on a refusal that says all of `texts` in its first line.
#[track_caller]
pub(crate) fn refuses(bothy: Bothy, dir: &Path, code: i32, texts: &[&str]) {
    let before = listing(dir);
    let finished = bothy.current_dir(dir).env("TMPDIR", dir).run().code(code);
    let streams = finished.streams();
    assert_eq!(listing(dir), before, "files were left behind\n{streams}");
    assert!(finished.stdout.is_empty(), "{streams}");
    let mut lines = finished.stderr.lines();
    let first = lines.next().unwrap_or_default();
    for text in texts {
        assert!(first.contains(text), "no {text:?}\n{streams}");
    }
    if first.starts_with("error: ") {
        // The command line's parser, which adds how to get help.
        assert!(finished.stderr.contains("--help"), "{streams}");
    } else {
        assert!(first.starts_with("bothy: "), "{streams}");
        assert_eq!(lines.count(), 0, "one line\n{streams}");
    }
    for word in ["panicked", "RUST_BACKTRACE", "Os {", "Error("] {
        assert!(!finished.stderr.contains(word), "{word}\n{streams}");
    }
}

/// `bothy boot` with these words; they can be file names in a directory that also has a good
/// kernel.
#[track_caller]
fn boot_refuses(dir: &Path, words: &[&str], code: i32, texts: &[&str]) {
    refuses(Bothy::new(["boot"]).args(words), dir, code, texts);
}

/// A directory with a good kernel, `guest.elf`.
pub(crate) fn with_kernel() -> tempfile::TempDir {
    let dir = scratch();
    Guest::new(&Script::new()).write(dir.path());
    dir
}

#[track_caller]
fn kernel_refused(content: &[u8], texts: &[&str]) {
    let dir = scratch();
    file(dir.path(), "kernel", content);
    let texts = [&["--kernel", "kernel"], texts].concat();
    boot_refuses(dir.path(), &["--memory", "32M", "--kernel", "kernel"], SETUP, &texts);
}

#[test]
fn a_kernel_that_is_missing_or_a_directory() {
    let dir = scratch();
    boot_refuses(dir.path(), &["--kernel", "nothing"], SETUP, &["--kernel", "nothing", "No such file"]);
    boot_refuses(dir.path(), &["--kernel", "."], SETUP, &["--kernel", "not a regular file"]);
    boot_refuses(dir.path(), &["--kernel", ""], USAGE, &["--kernel"]);
    boot_refuses(dir.path(), &["--kernel", "/dev/null"], SETUP, &["--kernel", "not a regular file"]);
}

#[test]
fn a_kernel_that_is_empty_short_or_foreign() {
    kernel_refused(b"", &["empty"]);
    kernel_refused(b"x", &["bzImage"]);
    kernel_refused(&[0; 100_000], &["bzImage"]);
    kernel_refused("#!/bin/sh\necho no kernel\n".repeat(100).as_bytes(), &["bzImage"]);
    kernel_refused(&fs::read("/proc/self/exe").unwrap(), &["ELF program, not a kernel"]);
}

#[test]
fn an_elf_for_another_processor() {
    let good = Guest::new(&Script::new()).elf();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    kernel_refused(&with(4, 1), &["32-bit ELF"]);
    kernel_refused(&with(18, 183), &["another processor"]);
    kernel_refused(&with(5, 2), &["another processor"]);
    kernel_refused(&with(54, 32), &["program headers"]);
}

#[test]
fn an_elf_cut_anywhere() {
    let good = Guest::new(&Script::new()).elf();
    for len in [4, 5, 63, 64, 100, 200, 5000, good.len() - 1] {
        kernel_refused(&good[..len], &["kernel"]);
    }
}

#[test]
fn a_bzimage_cut_in_half_or_anywhere_else() {
    let good = bzimage(&Script::new());
    for len in [0x1f0, 0x210, 1024, good.len() / 2, good.len() - 16] {
        let texts: &[&str] = if len > 0x300 { &["truncated"] } else { &["bzImage"] };
        kernel_refused(&good[..len], texts);
    }
}

#[test]
fn a_bzimage_that_is_too_old_or_has_32_bits() {
    let mut old = bzimage(&Script::new());
    old[0x206..0x208].copy_from_slice(&0x20bu16.to_le_bytes());
    kernel_refused(&old, &["boot protocol"]);
    let mut narrow = bzimage(&Script::new());
    narrow[0x236] = 0;
    kernel_refused(&narrow, &["32-bit"]);
}

#[test]
fn segments_outside_memory() {
    let refused = |gpa: u64, extra: u64, entry: u64, texts: &[&str]| {
        let dir = scratch();
        let segment = Segment { gpa, bytes: &[0xf4; 64], extra };
        file(dir.path(), "kernel", &elf(entry, &[segment], &[]));
        boot_refuses(dir.path(), &["--memory", "32M", "--kernel", "kernel"], SETUP, texts);
    };
    refused(64 << 20, 0, 64 << 20, &["--memory", "kernel", "65 MiB"]);
    refused(0x10_0000, 64 << 20, 0x10_0000, &["--memory"]);
    refused((32 << 20) - 8, 0, (32 << 20) - 8, &["--memory"]);
    refused(0xfee0_0000, 0, 0xfee0_0000, &["kernel"]);
    refused(0x1_0000_0000, 0, 0x1_0000_0000, &["kernel"]);
    refused(u64::MAX - 10, 0, u64::MAX - 10, &["kernel"]);
    refused(0x10_0000, u64::MAX / 2, 0x10_0000, &["kernel"]);
    refused(0x7000, 0, 0x7000, &["1 MiB"]);
    refused(0x10_0000, 0, 0x20_0000, &["entry"]);
    refused(0x10_0000, 0, 0, &["entry"]);
}

#[test]
fn a_segment_larger_in_the_file_than_in_memory() {
    let mut bytes = Guest::without_note(&Script::new()).elf();
    // p_memsz of the first program header.
    bytes[64 + 40..64 + 48].copy_from_slice(&1u64.to_le_bytes());
    kernel_refused(&bytes, &["segment"]);
}

#[test]
fn an_initramfs_that_is_missing_a_directory_or_larger_than_memory() {
    let dir = with_kernel();
    let words = |initrd| ["--memory", "32M", "--kernel", "guest.elf", "--initrd", initrd];
    boot_refuses(dir.path(), &words("nothing"), SETUP, &["--initrd", "nothing"]);
    boot_refuses(dir.path(), &words("."), SETUP, &["--initrd", "not a regular file"]);
    let large = fs::File::create(dir.path().join("large")).unwrap();
    for mib in [31, 32, 33, 5000] {
        large.set_len(mib << 20).unwrap();
        boot_refuses(dir.path(), &words("large"), SETUP, &["--initrd", "large", "--memory"]);
    }
}

#[test]
fn memory_that_is_nothing_no_number_or_more_than_there_is() {
    let dir = with_kernel();
    let long = "9".repeat(40) + "G";
    for size in [
        "0",
        "0M",
        "31M",
        "-1M",
        "lots",
        "",
        "512",
        "1.5.5G",
        "2000G",
        "1048576G",
        "18446744073709551615G",
        &long,
    ] {
        let word = format!("--memory={size}");
        boot_refuses(dir.path(), &["--kernel", "guest.elf", &word], USAGE, &["--memory"]);
    }
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let kib: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    let more = format!("{}M", (kib >> 10) + 1);
    boot_refuses(dir.path(), &["--kernel", "guest.elf", "--memory", &more], USAGE, &["--memory", "host"]);
}

#[test]
fn cpus_that_are_none_too_many_or_no_number() {
    let dir = with_kernel();
    for cpus in ["0", "65", "256", "257", "4294967297", "-1", "two", ""] {
        let word = format!("--cpus={cpus}");
        boot_refuses(dir.path(), &["--kernel", "guest.elf", &word], USAGE, &["--cpus"]);
    }
}

#[test]
fn a_disk_that_cannot_be_one() {
    let dir = with_kernel();
    file(dir.path(), "empty", b"");
    file(dir.path(), "odd", &[0; 513]);
    file(dir.path(), "good", &[0; 512]);
    let refused = |disk: &str, code, texts: &[&str]| {
        let texts = [&["--disk"], texts].concat();
        boot_refuses(dir.path(), &["--kernel", "guest.elf", "--disk", disk], code, &texts);
    };
    refused("nothing", SETUP, &["nothing", "does not exist"]);
    refused("empty", SETUP, &["empty"]);
    refused("empty,ro", SETUP, &["empty"]);
    refused("odd", SETUP, &["odd", "512"]);
    refused(".", SETUP, &["directory"]);
    refused("/dev/null", SETUP, &["/dev/null"]);
    refused("", USAGE, &[]);
    refused("good,rw", USAGE, &["rw"]);
    refused("good,id=", USAGE, &[]);
    refused(&format!("good,id={}", "x".repeat(21)), USAGE, &[]);
    let twice = ["--kernel", "guest.elf", "--disk", "good", "--disk", "good"];
    boot_refuses(dir.path(), &twice, SETUP, &["--disk", "good", "in use"]);
    let pipe = std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap();
    assert!(pipe.success());
    refused("pipe", SETUP, &["pipe"]);
}

#[test]
fn a_network_device_with_malformed_words() {
    let dir = with_kernel();
    for net in [
        "",
        "tap",
        "mac=02:00:00:00:00:01",
        "tap=t0,x=1",
        "tap=t0,mac=1",
        "tap=t0,ip=10.0.0.2",
        "tap=t0,gw=x",
    ] {
        let word = format!("--net={net}");
        boot_refuses(dir.path(), &["--kernel", "guest.elf", &word], USAGE, &["--net"]);
    }
    let long = format!("tap={}", "x".repeat(16));
    boot_refuses(dir.path(), &["--kernel", "guest.elf", "--net", &long], USAGE, &["--net"]);
    let multicast = "tap=t0,mac=01:00:00:00:00:01";
    boot_refuses(dir.path(), &["--kernel", "guest.elf", "--net", multicast], USAGE, &["--net"]);
}

#[test]
fn a_configuration_file_that_is_missing_malformed_or_has_unknown_keys() {
    let dir = with_kernel();
    boot_refuses(dir.path(), &["--config", "nothing.toml"], SETUP, &["--config", "nothing.toml"]);
    boot_refuses(dir.path(), &["--config", "."], SETUP, &["--config"]);
    for (text, line, why) in [
        ("cpus = 1\ncpu = 2\n", "line 2", "cpu"),
        ("kernel = \"guest.elf\"\n[[disk]]\npath = \"a\"\nsize = 1\n", "line 4", "size"),
        ("[[net]]\ntap = \"t0\"\nmak = \"x\"\n", "line 3", "mak"),
        ("cpus = \"two\"\n", "line 1", "two"),
        ("memory = 512\n", "line 1", "512"),
        ("memory = \"lots\"\n", "line 1", "512M"),
        ("\nkernel = [\n", "line", ""),
        ("\u{0}", "line 1", ""),
        ("cpus = 1\ncpus = 2\n", "line 2", "duplicate"),
    ] {
        file(dir.path(), "vm.toml", text.as_bytes());
        boot_refuses(dir.path(), &["--config", "vm.toml"], USAGE, &["--config", "vm.toml", line, why]);
    }
    file(dir.path(), "vm.toml", b"\xff\xfe");
    boot_refuses(dir.path(), &["--config", "vm.toml"], SETUP, &["--config", "vm.toml"]);
    file(dir.path(), "vm.toml", b"cpus = 65\n");
    boot_refuses(dir.path(), &["--config", "vm.toml"], USAGE, &["--cpus"]);
}

#[test]
fn words_that_do_not_exist() {
    let dir = scratch();
    boot_refuses(dir.path(), &["--kernal", "x"], USAGE, &["--kernal"]);
    boot_refuses(dir.path(), &["kernel"], USAGE, &["kernel"]);
    boot_refuses(dir.path(), &["--console", "vga"], USAGE, &["--console", "vga"]);
    boot_refuses(dir.path(), &["--timing=xml"], USAGE, &["--timing", "xml"]);
    boot_refuses(dir.path(), &["--kernel"], USAGE, &["--kernel"]);
    refuses(Bothy::new(["dance"]), dir.path(), USAGE, &["dance"]);
    Bothy::new::<&str>([]).run().code(USAGE).says("Usage");
}

#[test]
fn a_command_line_that_cannot_be_passed_on() {
    let dir = with_kernel();
    let long = "x".repeat(5000);
    boot_refuses(dir.path(), &["--kernel", "guest.elf", "--append", &long], USAGE, &["--append"]);
}

#[test]
fn a_log_file_that_cannot_be_written() {
    let dir = with_kernel();
    boot_refuses(dir.path(), &["--kernel", "guest.elf", "--log-file", "."], SETUP, &["--log-file"]);
    boot_refuses(dir.path(), &["--kernel", "guest.elf", "--log-file", "no/dir/log"], SETUP, &["--log-file"]);
}

#[test]
fn linux_on_software_kvm_is_refused_unless_it_is_forced() {
    let dir = scratch();
    let guest = Guest::new(&Script::new().say(b'L')).note((b"Linux\0", 0x101, vec![0; 4]));
    guest.write(dir.path());
    file(dir.path(), "bzImage", &bzimage(&Script::new().say(b'L')));
    let kernels = ["guest.elf", "bzImage"];
    for kernel in kernels {
        let words = ["boot", "--force", "--memory", "32M", "--kernel", kernel];
        assert_eq!(Bothy::new(words).current_dir(dir.path()).run().output(), b"L", "{kernel} with --force");
    }
    if !Path::new("/sys/module/kvm_pvm").exists() {
        let test = "bad_input::linux_on_software_kvm_is_refused_unless_it_is_forced";
        could_not_run(test, "this machine's KVM is not the software module kvm_pvm");
        return;
    }
    for kernel in kernels {
        boot_refuses(dir.path(), &["--kernel", kernel], SETUP, &["Linux", "--force", "tests/host/run"]);
    }
}
