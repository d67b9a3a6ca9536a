//! Signals to `bothy run`: they go to the command, and what ends bothy ends the virtual machine.

use std::time::{Duration, Instant};

use super::{insist_on_one_line, needs_image, place, run, shell};
use crate::guest::needs_linux;
use crate::support::{self, eventually, patient, processes};

const SOON: Duration = Duration::from_secs(2);
/// Long enough for two signals not to become one.
const APART: Duration = Duration::from_millis(200);

#[test]
fn signals_reach_the_command_and_a_stopped_bothy_goes_on() {
    needs_linux!();
    let image = needs_image!();
    let script = "for s in TERM INT USR1 USR2 HUP WINCH; do trap \"echo got-$s.\" $s; done
        trap 'echo got-QUIT.; exit 9' QUIT
        echo ready; n=0; while [ $n -lt 900 ]; do sleep 0.1; n=$((n + 1)); done";
    let mut running = shell(image, &[], script).start();
    running.wait_for(b"ready");
    for (number, name) in [
        (libc::SIGTERM, "TERM"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGHUP, "HUP"),
        (libc::SIGWINCH, "WINCH"),
        (libc::SIGINT, "INT"),
    ] {
        running.signal(number);
        running.wait_for(format!("got-{name}.").as_bytes());
    }
    running.signal(libc::SIGSTOP);
    std::thread::sleep(APART);
    running.signal(libc::SIGUSR2);
    std::thread::sleep(APART);
    running.signal(libc::SIGCONT);
    running.wait_for(b"got-USR2.");
    running.signal(libc::SIGQUIT);
    let finished = running.wait().code(9);
    assert_eq!(
        finished.stdout,
        b"ready\ngot-TERM.\ngot-USR1.\ngot-HUP.\ngot-WINCH.\ngot-INT.\ngot-USR2.\ngot-QUIT.\n"
    );
    assert_eq!(finished.stderr, "");
}

#[test]
fn a_signal_that_comes_before_the_command_runs_is_not_lost() {
    needs_linux!();
    let image = needs_image!();
    let mut running =
        shell(image, &["--name=early"], "trap 'exit 6' USR1; while :; do sleep 0.1; done").start();
    running.vm_pid();
    // One that comes before the shell has its handler is the kernel's to drop, as in any container.
    // So it is sent again, from early on.
    while !running.has_ended() {
        running.signal(libc::SIGUSR1);
        std::thread::sleep(APART);
    }
    running.wait().code(6);
}

#[test]
fn a_third_sigint_ends_a_command_that_ignores_it() {
    needs_linux!();
    let image = needs_image!();
    let script = "trap '' INT; echo ready; sleep 1000";
    let mut running = shell(image, &["--name=deaf"], script).start();
    running.wait_for(b"ready");
    assert!(place(image, "deaf").is_dir());
    for _ in 0..2 {
        running.signal(libc::SIGINT);
        std::thread::sleep(APART);
    }
    assert!(!running.has_ended(), "it has ended too early");
    running.signal(libc::SIGINT);
    let finished = running.wait().code(130).says("3 signals");
    insist_on_one_line(&finished);
    assert!(!place(image, "deaf").exists());
}

#[test]
fn kill_9_leaves_no_process_and_the_next_run_may_have_the_name() {
    needs_linux!();
    let image = needs_image!();
    let mut running = shell(image, &["--name=killed", "-i"], "echo ready; cat").open_input().start();
    running.wait_for(b"ready");
    let vm = running.vm_pid();
    running.signal(libc::SIGKILL);
    let token = running.token();
    assert!(eventually(SOON, || processes(token).is_empty()), "{vm} is still there: {:?}", processes(token));
    running.wait().code(-libc::SIGKILL);
    // What nobody was left to remove goes with the next start.
    let finished = run(image, ["--name=killed", "app", "echo", "again"]).run();
    assert_eq!(finished.output(), b"again\n");
    assert!(!place(image, "killed").exists());
}

#[test]
fn a_vm_that_dies_is_told_in_one_line() {
    needs_linux!();
    let image = needs_image!();
    let mut running = shell(image, &["--name=dies"], "echo ready; sleep 1000").start();
    running.wait_for(b"ready");
    support::signal(running.vm_pid(), libc::SIGKILL);
    let finished = running.wait().code(125).says("the VM's process");
    insist_on_one_line(&finished);
    assert!(!place(image, "dies").exists());
}

#[test]
fn a_third_sigterm_ends_a_vm_that_has_not_booted() {
    needs_linux!();
    let image = needs_image!();
    let mut running = run(image, ["--name=boots", "app", "echo", "never"]).start();
    // Stopped, so that it surely hasn't.
    support::signal(running.vm_pid(), libc::SIGSTOP);
    for _ in 0..2 {
        running.signal(libc::SIGTERM);
        std::thread::sleep(APART);
    }
    assert!(!running.has_ended(), "it has ended too early");
    running.signal(libc::SIGTERM);
    let before = Instant::now();
    let finished = running.wait().code(143);
    assert!(before.elapsed() < patient(Duration::from_secs(4)), "it took {:?}", before.elapsed());
    assert_eq!(finished.stdout, b"");
    assert!(!place(image, "boots").exists());
}

#[test]
fn kill_9_leaves_no_directory() {
    needs_linux!();
    let image = needs_image!();
    // A directory of its own: the next start would sweep up what is left.
    let runtime = support::scratch();
    let words = ["--name=nothing", "app", "sh", "-c", "echo ready; sleep 1000"];
    let mut running = run(image, words).env("XDG_RUNTIME_DIR", runtime.path()).start();
    running.wait_for(b"ready");
    running.signal(libc::SIGKILL);
    assert!(eventually(SOON, || running.processes().is_empty()));
    let place = runtime.path().join("bothy/nothing");
    assert!(eventually(SOON, || !place.exists()), "its directory is still there");
}
