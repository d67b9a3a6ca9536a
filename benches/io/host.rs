//! What the host gives the machines: taps and somebody to talk to; and what it can say of them:
//! processor time and exits.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::ip::ip;

/// A tap with an address, and iperf3 listening at it.
pub(crate) struct Tap {
    pub(crate) name: String,
    pub(crate) host: Ipv4Addr,
    pub(crate) guest: Ipv4Addr,
    server: Child,
}

impl Tap {
    pub(crate) fn make(number: u8, several_queues: bool) -> Self {
        let name = format!("bbio{number}");
        let (host, guest) = (Ipv4Addr::new(10, 78, number, 1), Ipv4Addr::new(10, 78, number, 2));
        let mut words = vec!["tuntap", "add", "dev", &name, "mode", "tap", "vnet_hdr"];
        words.extend(several_queues.then_some("multi_queue"));
        ip(&words);
        ip(&["addr", "add", &format!("{host}/24"), "dev", &name]);
        ip(&["link", "set", &name, "up"]);
        let server = Command::new("iperf3")
            .args(["--server", "--bind", &host.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("iperf3 is installed");
        Self { name, host, guest, server }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _gone = self.server.kill();
        let _gone = self.server.wait();
        ip(&["link", "del", "dev", &self.name]);
    }
}

/// Sends every byte back, to everybody, for as long as this process lives. Returns its port.
pub(crate) fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("there are ports");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _late = stream.set_nodelay(true);
                let mut bytes = [0; 64];
                while let Ok(len @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..len]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// Seconds of processor time, without what its guest used.
    pub(crate) cpu: f64,
    /// Exits of its vCPUs.
    pub(crate) exits: f64,
}

impl Used {
    pub(crate) fn by(pid: u32) -> Self {
        let cpu = cpu(&format!("/proc/{pid}/stat")).expect("the machine runs");
        Self { cpu, exits: exits(pid) }
    }
}

/// Processor time of a process or thread, user and system less guest (proc(5)), in seconds; none
/// when it has gone.
fn cpu(stat: &str) -> Option<f64> {
    let text = fs::read_to_string(stat).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    // Behind the name: field 3 of proc(5) comes first.
    let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("a number");
    Some((ticks(14) + ticks(15) - ticks(43)) / 100.0)
}

/// The threads of a process: name, and processor time in seconds.
pub(crate) fn thread_times(pid: u32) -> Vec<(String, f64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the machine runs");
    tasks
        .flatten()
        .filter_map(|task| {
            // Threads come and go.
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            Some((name.trim().to_owned(), cpu(&task.path().join("stat").display().to_string())?))
        })
        .collect()
}

/// Exits from the guest of all its vCPUs, from KVM's own count.
fn exits(pid: u32) -> f64 {
    let dir = Path::new("/sys/kernel/debug/kvm");
    if !dir.exists() {
        let status = Command::new("mount").args(["-t", "debugfs", "debugfs", "/sys/kernel/debug"]).status();
        assert!(status.expect("mount is there").success() && dir.exists(), "KVM counts its exits in debugfs");
    }
    let prefix = format!("{pid}-");
    let machines = fs::read_dir(dir).expect("root may read it").flatten();
    let own = machines.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let count = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("exits")).expect("KVM counts exits");
        text.trim().parse::<f64>().expect("a number")
    };
    own.map(|entry| count(entry.path())).sum()
}
