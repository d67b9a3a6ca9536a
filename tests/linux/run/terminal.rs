//! `bothy run -t`: a terminal of the command's own.

use std::process::Command;
use std::time::Duration;

use super::image::Image;
use super::{AGENT_TIMEOUT, needs_image, run, variables};
use crate::guest::needs_linux;
use crate::pty::OnTerminal;
use crate::support;

const SOON: Duration = Duration::from_secs(10);

/// `bothy run WORDS...` on a terminal of 33 rows and 101 columns.
fn on_terminal(image: &Image, words: &[&str]) -> OnTerminal {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bothy"));
    command.args(["run", AGENT_TIMEOUT]).args(words).envs(variables(image));
    OnTerminal::start(command, (33, 101))
}

#[test]
fn a_terminal_has_our_size_hears_of_another_and_ctrl_c_is_sigint() {
    needs_linux!();
    let mut run = on_terminal(needs_image!(), &["-it", "app", "inside", "winch"]);
    run.wait_for("size 33 101.");
    assert!(run.is_raw(), "the terminal is not raw");
    run.resize((50, 132));
    run.wait_for("size 50 132.");
    run.resize((10, 20));
    run.wait_for("size 10 20.");
    run.type_in("\x03");
    run.wait_for("interrupted");
    assert_eq!(run.code(SOON), Some(5));
    run.insist_on_mode();
    assert!(support::eventually(SOON, || run.processes().is_empty()), "processes are left");
}

#[test]
fn a_shell_on_a_terminal_has_job_control_and_ends_with_ctrl_d() {
    needs_linux!();
    let mut run = on_terminal(needs_image!(), &["-it", "app", "sh"]);
    run.wait_for("# ");
    run.type_in("tty; stty size; echo term-$TERM-$((40 + 2))\r");
    run.wait_for("/dev/pts/0");
    run.wait_for("33 101");
    run.wait_for("term-xterm-42");
    run.type_in("test -c /dev/console && echo console-$((50 + 1)); stat -c 'mode-%a-%u-%g' /dev/pts/0\r");
    run.wait_for("console-51");
    run.wait_for("mode-620-0-5");
    run.wait_for("# ");
    run.type_in("sleep 1000\r");
    std::thread::sleep(Duration::from_secs(1));
    run.type_in("\x03");
    run.wait_for("# ");
    run.type_in("echo status-$?-$((50 + 3))\r");
    run.wait_for("status-130-53");
    run.wait_for("# ");
    run.type_in("(exit 4)\r");
    // The prompt behind that: an end of input that comes while the terminal is still the line's is
    // lost on the shell.
    run.wait_for("\n");
    run.wait_for("# ");
    run.type_in("\x04");
    assert_eq!(run.code(SOON), Some(4));
    run.insist_on_mode();
}

#[test]
fn a_terminal_is_restored_after_failures() {
    needs_linux!();
    let image = needs_image!();
    let mut missing = on_terminal(image, &["-it", "app", "no-such-program"]);
    missing.wait_for("executable file not found");
    assert_eq!(missing.code(SOON), Some(127));
    missing.insist_on_mode();

    let mut killed = on_terminal(image, &["-it", "app", "sh"]);
    killed.wait_for("# ");
    assert!(killed.is_raw(), "the terminal is not raw");
    let child = killed.child.id();
    let vm = killed.processes().into_iter().find(|pid| *pid != child).unwrap();
    support::signal(vm, libc::SIGKILL);
    assert_eq!(killed.code(SOON), Some(125));
    killed.wait_for("bothy: ");
    killed.insist_on_mode();
}

#[test]
fn line_feeds_reach_the_user_s_terminal_as_the_container_s_sends_them() {
    needs_linux!();
    // As full-screen programs do, which count columns.
    let script = "echo one; stty -onlcr; printf 'two\\nthree.'; sleep 1; exit 6";
    let mut run = on_terminal(needs_image!(), &["-it", "app", "sh", "-c", script]);
    run.wait_for("one\r\ntwo\nthree.");
    assert_eq!(run.code(SOON), Some(6));
    run.insist_on_mode();
}

#[test]
fn a_terminal_without_input_is_there_for_the_command_alone() {
    needs_linux!();
    let script = "stty size; test -t 0 && test -t 1 && test -t 2 && echo all; echo err >&2; exit 8";
    let finished = run(needs_image!(), ["-t", "app", "sh", "-c", script]).run().code(8);
    assert_eq!(finished.stderr, "");
    assert_eq!(String::from_utf8_lossy(&finished.stdout), "24 80\r\nall\r\nerr\r\n");
}
