//! Devices under load, by the tools that people measure and test them with: fio, iperf3, ethtool.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::guest::{Guest, Vm, blank, guest_dir, long, needs_linux, needs_root, target};
use crate::mounted_disk::MountedDisk;
use crate::support;
use crate::tools::run;

#[path = "../../benches/io/guest.rs"]
mod io_guest;

/// Longest that a job may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The file system that all of them boot from.
fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let work = target().join("io-guest");
        std::fs::create_dir_all(&work).unwrap();
        io_guest::build(&work)
    })
}

/// A machine that waits for jobs on its console.
fn machine(args: &[&str], words: &str) -> Vm {
    let root = format!("{},ro", root().display());
    let kernel = guest_dir().join("vmlinux");
    let mut vm = Guest::new()
        .args(["--kernel", &kernel.display().to_string(), "--disk", &root])
        .args(args)
        .append(&format!("quiet panic=-1 root=/dev/vda rootfstype=erofs ro init=/init {words}"))
        .change(|bothy| bothy.open_input().limit(Duration::from_secs(900)))
        .start();
    vm.wait_for("READY");
    vm
}

/// Gives it a job, and returns the number that it answers.
fn work(vm: &mut Vm, job: &str) -> f64 {
    let said = |vm: &Vm| String::from_utf8_lossy(&vm.running.output()).replace('\r', "");
    // Whole lines.
    let answers = |vm: &Vm| said(vm).matches("RESULT ").count();
    let before = answers(vm);
    vm.running.type_in(format!("{job}\n").as_bytes());
    let is_there = support::eventually(PATIENCE, || said(vm).ends_with('\n') && answers(vm) > before);
    let text = said(vm);
    let answer = text.lines().rev().find_map(|line| line.strip_prefix("RESULT ")).filter(|_| is_there);
    answer.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("{job}: no answer: {text}"))
}

#[test]
fn what_fio_writes_it_reads_back_whatever_serves_the_disk() {
    needs_linux!();
    needs_root!("mount a disk");
    // Past the page cache goes not every file system.
    let disk = MountedDisk::new(256 << 20);
    let ways = [
        "",
        ",aio=sync",
        ",cache=none",
        ",cache=none,aio=sync",
        ",cache=unsafe",
        ",cache=none,queues=2",
        ",queues=2,iops=3000",
    ];
    let files: Vec<PathBuf> = (0..ways.len()).map(|n| blank(&disk.path(), &format!("{n}"), 24)).collect();
    let size = if long() { "24M" } else { "4M" };
    for transport in ["mmio", "pci"] {
        let mut args =
            vec!["--transport".to_owned(), transport.to_owned(), "--cpus".to_owned(), "2".to_owned()];
        for (file, way) in files.iter().zip(ways) {
            args.extend(["--disk".to_owned(), format!("{}{way}", file.display())]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut vm = machine(&args, "");
        for (device, way) in ('b'..).zip(ways) {
            for words in
                ["--bsrange=512-64k --iodepth=16", "--bs=4k --iodepth=32 --fsync=16", "--bs=1M --iodepth=4"]
            {
                let job = format!("verify vd{device} --size={size} {words}");
                assert!(work(&mut vm, &job) == 0.0, "{transport}, {way}: {job}: fio found something else");
            }
        }
        vm.running.type_in(b"end\n");
        vm.ends_with(0);
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
        let _gone = Command::new("ip").args(["link", "del", "bothyperf"]).status();
    }
}

#[test]
fn packets_pass_both_ways_with_every_offload_on_and_off() {
    needs_linux!();
    needs_root!("make a tap");
    for transport in ["mmio", "pci"] {
        run("ip", &["tuntap", "add", "dev", "bothyperf", "mode", "tap"]);
        run("ip", &["addr", "add", "10.77.6.1/24", "dev", "bothyperf"]);
        run("ip", &["link", "set", "bothyperf", "up"]);
        let server =
            Command::new("iperf3").args(["--server", "--bind", "10.77.6.1"]).stdout(Stdio::null()).spawn();
        let _server = Server(server.expect("iperf3 is installed"));
        let args = ["--transport", transport, "--net", "tap=bothyperf"];
        let mut vm = machine(&args, "io.ip=10.77.6.2/24 io.host=10.77.6.1");
        for host in ["on", "off"] {
            run("ethtool", &["-K", "bothyperf", "tx", host, "gso", host, "gro", host]);
            for guest in ["on", "off"] {
                work(&mut vm, &format!("offload {guest}"));
                let what = format!("{transport}, the host's offloads {host}, the guest's {guest}");
                for bytes in [56, 1472, 8000] {
                    assert!(
                        work(&mut vm, &format!("pings 3 {bytes}")) == 0.0,
                        "{what}: pings of {bytes} bytes are lost"
                    );
                }
                for words in ["", "--reverse", "--parallel 4", "--reverse --parallel 4"] {
                    let rate = work(&mut vm, &format!("stream 1 {words}"));
                    assert!(rate > 1e6, "{what}, {words}: {rate} bits in a second");
                }
            }
        }
        vm.running.type_in(b"end\n");
        vm.ends_with(0);
    }
}
