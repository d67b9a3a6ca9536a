//! The console on a terminal: keys, and the terminal's mode.

use std::time::{Duration, Instant};

use crate::guest::needs_linux;
use crate::pty::OnTerminal;
use crate::support;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_shell_on_a_terminal_takes_keys_and_ctrl_a_x_ends_it() {
    needs_linux!();
    let mut run = OnTerminal::boot(&[]);
    run.wait_for("# ");
    assert!(run.is_raw(), "the terminal is not raw");
    run.type_in("echo answer-$((40 + 2))\r");
    run.wait_for("answer-42");
    run.type_in("tty; sleep 1000\r");
    run.wait_for("/dev/ttyS0");
    std::thread::sleep(Duration::from_secs(1));
    run.type_in("\x03");
    run.wait_for("# ");
    run.type_in("echo status-$?-$((50 + 3))\r");
    run.wait_for("status-130-53");
    run.type_in("\x01h");
    run.wait_for("Ctrl-a x");
    // A Ctrl-a for the guest itself: the shell's editor goes to the line's start.
    run.type_in("ho front-$((60 + 4))\x01\x01ec\r");
    run.wait_for("front-64");
    run.type_in("\x01x");
    assert_eq!(run.code(SOON), Some(0));
    run.insist_on_mode();
    assert!(support::eventually(SOON, || run.processes().is_empty()), "processes are left");
}

#[test]
fn a_shell_on_a_virtio_console_sees_the_terminals_size_and_hears_of_a_new_one() {
    needs_linux!();
    let mut run = OnTerminal::boot(&["--console", "virtio"]);
    run.wait_for("# ");
    run.type_in("tty; stty size | tr ' ' x\r");
    run.wait_for("/dev/hvc0");
    run.wait_for("24x80");
    run.resize((50, 132));
    run.type_in("while [ \"$(stty size)\" != '50 132' ]; do sleep 0.1; done; echo resized-$((1 + 1))\r");
    run.wait_for("resized-2");
    run.type_in("exit\r");
    assert_eq!(run.code(Duration::from_secs(20)), Some(0));
    run.insist_on_mode();
}

#[test]
fn a_terminal_is_restored_after_kill_9_and_the_vm_is_gone() {
    needs_linux!();
    let mut run = OnTerminal::boot(&[]);
    run.wait_for("# ");
    assert!(run.is_raw(), "the terminal is not raw");
    let before = Instant::now();
    support::signal(run.child.id(), libc::SIGKILL);
    assert_eq!(run.code(SOON), None);
    let gone = support::eventually(Duration::from_secs(1), || run.processes().is_empty());
    assert!(gone, "after {:?} there still is {:?}", before.elapsed(), run.processes());
    run.insist_on_mode();
}

#[test]
fn a_terminal_is_restored_after_sigterm() {
    needs_linux!();
    let mut run = OnTerminal::boot(&[]);
    run.wait_for("# ");
    support::signal(run.child.id(), libc::SIGTERM);
    assert_eq!(run.code(Duration::from_secs(9)), Some(0));
    run.insist_on_mode();
    assert!(support::eventually(SOON, || run.processes().is_empty()), "processes are left");
}
