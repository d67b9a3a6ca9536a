//! The machines that are compared: the same kernel, file system and disks in each, and a console to
//! give them work by.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::host::Tap;

/// Longest that a machine may take to start, and a job beyond its own time.
const PATIENCE: Duration = Duration::from_secs(120);
const MEMORY: &str = "320M";
/// Bytes of each disk to measure.
const DISK_LEN: usize = 96 << 20;

/// Who runs a machine, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// bothy with its devices on a PCI bus.
    Bothy,
    /// Another build of it, to compare with.
    OtherBothy,
    /// bothy with its devices in memory.
    BothyMmio,
    /// QEMU at its best: PCI with MSI-X, an I/O thread, io_uring.
    Q35,
    /// QEMU with the kernel's own network back end, which takes root.
    Vhost,
    /// QEMU's machine without PCI.
    Microvm,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bothy => "bothy",
            Self::OtherBothy => "other bothy",
            Self::BothyMmio => "bothy mmio",
            Self::Q35 => "QEMU q35",
            Self::Vhost => "q35 vhost",
            Self::Microvm => "microvm",
        }
    }
}

/// What machines are made from.
pub(crate) struct Parts {
    pub(crate) bothy: PathBuf,
    pub(crate) other_bothy: Option<PathBuf>,
    pub(crate) kernel: PathBuf,
    /// The root file system.
    pub(crate) root: PathBuf,
    /// A directory for disks, on a file system that can transfer past the page cache.
    pub(crate) disks: PathBuf,
}

/// A machine that waits for work. It ends with this value.
pub(crate) struct Machine {
    pub(crate) kind: Kind,
    child: Child,
    /// The process that runs the machine.
    pub(crate) pid: u32,
    stdin: ChildStdin,
    lines: Receiver<String>,
    errors: PathBuf,
    /// Gone after the machine.
    _tap: Tap,
}

impl Machine {
    /// Starts a machine with so many processors, and as many queues per device. `number` makes
    /// names and addresses its own.
    pub(crate) fn start(kind: Kind, processors: u16, number: u8, parts: &Parts) -> Self {
        let tap = Tap::make(number, processors > 1);
        let disk = |name: &str| {
            let path = parts.disks.join(format!("{number}-{name}"));
            make_disk(&path);
            path
        };
        let disks = [disk("cached"), disk("direct")];
        let cmdline = format!(
            "console=ttyS0 quiet root=/dev/vda rootfstype=erofs ro init=/init io.ip={}/24 io.host={}",
            tap.guest, tap.host
        );
        let mut command = match kind {
            Kind::Bothy => bothy(&parts.bothy, "pci", parts, processors, &tap, &disks),
            Kind::OtherBothy => {
                let program = parts.other_bothy.as_ref().expect("one that was named");
                bothy(program, "pci", parts, processors, &tap, &disks)
            }
            Kind::BothyMmio => bothy(&parts.bothy, "mmio", parts, processors, &tap, &disks),
            Kind::Q35 | Kind::Vhost | Kind::Microvm => qemu(kind, parts, processors, &tap, &disks),
        };
        let is_qemu = matches!(kind, Kind::Q35 | Kind::Vhost | Kind::Microvm);
        let append = if is_qemu { "-append" } else { "--append" };
        command.arg(append).arg(&cmdline);
        let errors = parts.disks.join(format!("{number}-errors"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).expect("there is room"))
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", kind.name()));
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim().to_owned()).is_err() {
                    return;
                }
            }
        });
        let mut machine = Self {
            kind,
            pid: child.id(),
            stdin: child.stdin.take().expect("piped"),
            child,
            lines,
            errors,
            _tap: tap,
        };
        machine.wait_for("READY", PATIENCE);
        machine.pid = machine.process();
        machine
    }

    /// bothy's machine is a process of its own, below the client's and the monitor's.
    fn process(&self) -> u32 {
        let mut pid = self.child.id();
        loop {
            let children =
                fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("our child runs");
            match children.split_whitespace().next() {
                Some(child) => pid = child.parse().expect("a number"),
                None => return pid,
            }
        }
    }

    /// Gives it a job, and returns the number that it answers.
    pub(crate) fn work(&mut self, job: &str, time: Duration) -> f64 {
        writeln!(self.stdin, "{job}").expect("the machine runs");
        let line = self.wait_for("RESULT", time + PATIENCE);
        let number = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        number.unwrap_or_else(|| panic!("{}: {job}: {line}", self.kind.name()))
    }

    fn wait_for(&mut self, word: &str, time: Duration) -> String {
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(time) {
                Ok(line) if line.starts_with(word) => return line,
                Ok(line) => said.push(line),
                Err(_) => {
                    let errors = fs::read_to_string(&self.errors).unwrap_or_default();
                    panic!("{} doesn't say {word} but: {}; {errors}", self.kind.name(), said.join("\n"))
                }
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A machine of bothy's goes with its command.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        while Path::new(&format!("/proc/{}", self.pid)).exists() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A disk with something in every block.
fn make_disk(path: &Path) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..DISK_LEN / 8).flat_map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()
    });
    fs::write(path, words.collect::<Vec<u8>>()).expect("there is room for the disks");
}

fn bothy(
    program: &Path,
    transport: &str,
    parts: &Parts,
    processors: u16,
    tap: &Tap,
    disks: &[PathBuf; 2],
) -> Command {
    let mut command = Command::new(program);
    command.args(["boot", "--memory", MEMORY, "--cpus", &processors.to_string(), "--transport", transport]);
    command.arg("--kernel").arg(&parts.kernel);
    command.arg("--disk").arg(format!("{},ro", parts.root.display()));
    for (disk, cache) in disks.iter().zip(["writeback", "none"]) {
        command.arg("--disk").arg(format!("{},cache={cache},queues={processors}", disk.display()));
    }
    command.arg("--net").arg(format!("tap={},queues={processors}", tap.name));
    command
}

fn qemu(kind: Kind, parts: &Parts, processors: u16, tap: &Tap, disks: &[PathBuf; 2]) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    let (machine, bus) = match kind {
        Kind::Microvm => {
            ("microvm,accel=kvm,pit=off,pic=off,rtc=off,auto-kernel-cmdline=on,isa-serial=on", "device")
        }
        _ => ("q35,accel=kvm,smm=off,vmport=off", "pci"),
    };
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-cpu",
        "host,arch-capabilities=off",
    ]);
    command.args(["-M", machine, "-m", MEMORY, "-smp", &processors.to_string(), "-serial", "stdio"]);
    command.arg("-kernel").arg(&parts.kernel);
    command.args(["-object", "iothread,id=io0"]);
    let mut disk = |name: &str, path: &Path, more: &str, queues: u16| {
        command
            .arg("-blockdev")
            .arg(format!("file,node-name={name},filename={},aio=io_uring,{more}", path.display()));
        command.arg("-device").arg(format!("virtio-blk-{bus},drive={name},iothread=io0,num-queues={queues}"));
    };
    disk("d0", &parts.root, "read-only=on,locking=off", 1);
    disk("d1", &disks[0], "discard=unmap", processors);
    disk("d2", &disks[1], "discard=unmap,cache.direct=on", processors);
    let queues = if processors > 1 { format!(",queues={processors}") } else { String::new() };
    let vhost = if kind == Kind::Vhost { "on" } else { "off" };
    command
        .arg("-netdev")
        .arg(format!("tap,id=n0,ifname={},script=no,downscript=no,vhost={vhost}{queues}", tap.name));
    let vectors =
        if processors > 1 { format!(",mq=on,vectors={}", 2 * processors + 2) } else { String::new() };
    command.arg("-device").arg(format!("virtio-net-{bus},netdev=n0{vectors}"));
    command
}
