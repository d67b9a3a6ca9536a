//! How long it takes to start and end a VM, and what it costs in memory, beside the least possible
//! and QEMU.
//!
//! All contenders of a table run interleaved in one run, because only ratios mean anything on a
//! shared machine. `benches/run startup` builds what is needed and calls this with `tiny` or
//! `linux` and the name of the host.

mod guests;
#[path = "../support/ip.rs"]
mod ip;
#[path = "../support/measure.rs"]
mod measure;
mod memory;
#[path = "../support/target.rs"]
mod target;
#[path = "../support/usage.rs"]
mod usage;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use ip::ip;
use measure::{Contender, Table};

/// Runs of each contender.
const RUNS: usize = 30;

/// Where the files of a benchmark are.
struct Places {
    /// Scratch; holds the floor program, and bothy as it is installed.
    work: PathBuf,
    /// The default guest.
    guest: PathBuf,
}

impl Places {
    fn from_environment() -> Self {
        let dir = |name: &str| {
            PathBuf::from(
                std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set; use benches/run")),
            )
        };
        Self { work: dir("BOTHY_BENCH_DIR"), guest: dir("BOTHY_GUEST_DIR") }
    }

    /// As it is installed.
    fn bothy(&self) -> PathBuf {
        self.work.join("bothy")
    }
}

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (what, host) = match words.as_slice() {
        [what, host] => (what.as_str(), host.as_str()),
        _ => panic!("usage: startup tiny|linux HOST; use benches/run"),
    };
    let places = Places::from_environment();
    measure::adopt_orphans();
    let net = Net::make();
    match what {
        "tiny" => tiny(&places, host, &net),
        "linux" => linux(&places, host),
        other => panic!("{other} is none of tiny and linux"),
    }
    memory::report(&places, host, what == "linux", &net.tap);
    ExitCode::SUCCESS
}

/// A tap of our own, gone with the benchmark.
struct Net {
    tap: String,
}

impl Net {
    fn make() -> Self {
        let tap = format!("bb{}", std::process::id());
        ip(&["tuntap", "add", "dev", &tap, "mode", "tap"]);
        ip(&["link", "set", &tap, "up"]);
        Self { tap }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        ip(&["tuntap", "del", "dev", &self.tap, "mode", "tap"]);
    }
}

/// `bothy boot`, to be given its words.
fn boot(bothy: &Path) -> Command {
    let mut command = Command::new(bothy);
    command.arg("boot");
    command
}

/// The 40-byte guest: exec to return, and to the end of the last process.
fn tiny(places: &Places, host: &str, net: &Net) {
    let guest = guests::tiny(&places.work);
    let disk = guests::disk(&places.work);
    let floor = places.work.join("floor");
    let with = |words: &[&str]| {
        let (bothy, guest) = (places.bothy(), guest.clone());
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        move || {
            let mut command = boot(&bothy);
            command.arg("--kernel").arg(&guest).args(["--memory", "128M"]).args(&words);
            command
        }
    };
    let devices = [format!("--disk={}", disk.display()), format!("--net=tap={}", net.tap)];
    let qemu_guest = guest.clone();
    let table = Table::run(
        &format!("tiny guest, {host}: exec to return"),
        RUNS,
        &[
            Contender::new("floor", "A", move || Command::new(&floor)),
            Contender::new("bothy", "A", with(&[])),
            Contender::new("bothy, disk and net", "A", with(&[&devices[0], &devices[1]])),
            Contender::new("qemu microvm", "A", move || {
                let mut command = guests::qemu("128M");
                // Its exit device stands where the guest writes its reset, because microvm has no
                // keyboard controller.
                command
                    .arg("-kernel")
                    .arg(&qemu_guest)
                    .args(["-device", "isa-debug-exit,iobase=0x64,iosize=1"]);
                command
            }),
        ],
    );
    print!("{table}");
    table.target(&format!("start to return, {host}"), "bothy", "floor", |row| &row.returned, 2.0);
    table.target(
        &format!("with disk and net, {host}"),
        "bothy, disk and net",
        "floor",
        |row| &row.returned,
        2.6,
    );
}

/// The default guest: exec to init's first line, and to return.
fn linux(places: &Places, host: &str) {
    const WORDS: &str = "bothy.exec=\"echo up\"";
    let (kernel, initramfs) = (places.guest.join("vmlinux"), places.guest.join("initramfs.cpio"));
    let bothy = places.bothy();
    let table = Table::run(
        &format!("default guest, {host}: exec to init's first line, and to return"),
        RUNS,
        &[
            Contender::new("bothy", "up", move || {
                let mut command = boot(&bothy);
                command.args(["--append", WORDS]);
                command
            }),
            Contender::new("qemu microvm", "up", move || {
                let mut command = guests::qemu("512M");
                command.arg("-kernel").arg(&kernel).arg("-initrd").arg(&initramfs);
                command.args([
                    "-append",
                    &format!("console=ttyS0 panic=-1 loglevel=3 pci=off noreplace-smp {WORDS}"),
                ]);
                command
            }),
        ],
    );
    print!("{table}");
    table.target(
        &format!("exec to init's first line, {host}"),
        "bothy",
        "qemu microvm",
        |row| &row.first_line,
        0.5,
    );
    table.target(
        &format!("exec to return, Linux, {host}"),
        "bothy",
        "qemu microvm",
        |row| &row.returned,
        0.5,
    );
}
