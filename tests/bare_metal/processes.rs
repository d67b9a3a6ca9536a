//! The client, its monitor and the VM's process: what each has, and what becomes of the others when
//! one of them dies.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::guest::Guest;
use super::script::Script;
use crate::support::{self, Running, eventually, memory_has};

const ENVIRONMENT: &str = "planted-in-the-environment";
const ARGUMENT: &str = "planted-in-the-arguments";

/// Boots a guest that runs on, with words that only the client is to have.
fn boot(more: &[&str]) -> (Running, tempfile::TempDir) {
    let (bothy, dir) = Guest::new(&Script::new().say(b'r').spin()).boot();
    // The client opens its log file itself.
    let log = dir.path().join(ARGUMENT);
    let mut running = bothy
        .args(["--log-file", log.to_str().unwrap()])
        .args(more)
        .env("BOTHY_TEST_SECRET", ENVIRONMENT)
        .start();
    running.wait_for(b"r");
    (running, dir)
}

#[test]
fn monitor_and_vm_have_nothing_of_the_client_s_environment_and_arguments() {
    let (running, _dir) = boot(&[]);
    let (monitor, vm) = (running.monitor_pid(), running.vm_pid());
    for planted in [ENVIRONMENT, ARGUMENT] {
        assert!(memory_has(running.pid(), planted), "the client itself has {planted}");
        for (name, pid) in [("monitor", monitor), ("VM", vm)] {
            assert!(!memory_has(pid, planted), "the {name}'s process has {planted}");
        }
    }
    for pid in [monitor, vm] {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(environ.iter().all(|byte| *byte == 0), "{environ:?}");
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(cmdline.starts_with(b"bothy: monitor\0"), "{:?}", String::from_utf8_lossy(&cmdline));
    }
    running.signal(libc::SIGTERM);
    running.signal(libc::SIGTERM);
    running.wait().code(6);
}

#[test]
fn monitor_and_vm_have_none_of_the_client_s_streams_but_standard_error() {
    let (running, _dir) = boot(&[]);
    for pid in [running.monitor_pid(), running.vm_pid()] {
        for stream in [0, 1] {
            let path = format!("/proc/{pid}/fd/{stream}");
            let found = || fs::read_link(&path).is_ok_and(|target| target == Path::new("/dev/null"));
            assert!(eventually(Duration::from_secs(2), found), "{path}: {:?}", fs::read_link(&path));
        }
    }
    running.signal(libc::SIGTERM);
    running.signal(libc::SIGTERM);
    running.wait().code(6);
}

#[test]
fn what_the_caller_has_left_open_is_closed_in_monitor_and_vm() {
    let dir = support::scratch();
    let log = support::file(dir.path(), "left-open", b"");
    let (bothy, _dir) = Guest::new(&Script::new().say(b'r').spin()).boot();
    let script = format!("exec 7<{} 63<&7; exec \"$@\"", log.display());
    let script = format!("exec bash -c '{script}' bash \"$@\"");
    let mut running = bothy.in_shell(&script).start();
    running.wait_for(b"r");
    for pid in [running.monitor_pid(), running.vm_pid()] {
        let has_it = || {
            let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            links.filter_map(|link| fs::read_link(link.path()).ok()).any(|target| target == log)
        };
        assert!(eventually(Duration::from_secs(2), || !has_it()), "process {pid} has it open");
    }
    running.signal(libc::SIGTERM);
    running.signal(libc::SIGTERM);
    running.wait().code(6);
}

#[test]
fn the_monitor_has_one_thread_and_a_session_of_its_own() {
    let (running, _dir) = boot(&[]);
    let monitor = running.monitor_pid();
    assert_eq!(fs::read_dir(format!("/proc/{monitor}/task")).unwrap().count(), 1);
    let session = |pid: u32| -> u32 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[3].parse().unwrap()
    };
    assert_eq!((session(monitor), session(running.vm_pid())), (monitor, monitor));
    // Signals that end programs are for the client, which decides what comes of them.
    for pid in [monitor, running.vm_pid()] {
        for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            support::signal(pid, number);
        }
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(running.processes().len(), 3);
}

#[test]
fn a_monitor_that_dies_takes_the_vm_with_it_and_the_client_says_so() {
    let sockets = support::scratch();
    let socket = sockets.path().join("socket");
    let vsock = ["--vsock", socket.to_str().unwrap()];
    let (running, _dir) = boot(&vsock);
    let token = running.token();
    support::signal(running.monitor_pid(), libc::SIGKILL);
    let finished = running.wait().code(1).says("bothy's monitor died of signal 9");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    let gone = eventually(support::patient(Duration::from_secs(2)), || support::processes(token).is_empty());
    assert!(gone, "{:?}", support::processes(token));
    // Nobody was left to remove the socket. The next VM takes its place, and removes it.
    assert!(socket.exists());
    let (bothy, _dir) = Guest::new(&Script::new().power_off()).boot();
    bothy.args(vsock).run().code(0);
    assert!(!socket.exists());
}
