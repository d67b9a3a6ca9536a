//! Commands that take what they can get.

use std::time::Duration;

use super::{needs_image, shell};
use crate::guest::{long, needs_linux};

#[test]
fn vsock_is_closed_to_a_container_unless_it_is_privileged() {
    needs_linux!();
    let image = needs_image!();
    let script = "inside knock 1024; echo $?; su web -c 'inside knock 1024'; echo $?";
    for flags in [&[][..], &["--security-opt", "seccomp=unconfined"]] {
        let finished = shell(image, flags, script).run().code(0);
        let text = String::from_utf8_lossy(&finished.stdout);
        assert_eq!(text, "1\n1\n", "{flags:?}: {}", finished.stderr);
        assert_eq!(finished.stderr, "socket: Operation not permitted\n".repeat(2), "{flags:?}");
    }
}

#[test]
fn vsock_connections_without_a_token_are_closed_and_do_no_harm() {
    needs_linux!();
    let script = "inside knock 1024; su web -c 'inside knock 1024'; echo after; echo error >&2; exit 3";
    let finished = shell(needs_image!(), &["--privileged"], script).run().code(3);
    let text = String::from_utf8_lossy(&finished.stdout);
    assert_eq!(text, "closed 5 of 5\nsilent yes\nclosed 5 of 5\nsilent yes\nafter\n", "{}", finished.stderr);
    assert!(finished.stderr.ends_with("error\n"), "{}", finished.stderr);
    assert!(finished.stderr.lines().count() < 20, "{}", finished.stderr);
}

#[test]
fn a_container_that_floods_the_agent_s_port_holds_up_no_signal_and_fills_no_log() {
    needs_linux!();
    // Nobody reads standard error: what is written there beyond 64 KiB used to stop everything.
    let unread = r#"dir=$(mktemp -d); mkfifo "$dir/pipe"; exec 3<>"$dir/pipe"; rm -r "$dir"; exec "$@" 2>&3"#;
    let script = "trap 'exit 7' TERM; inside flood 1024 3000; while :; do sleep 0.1; done";
    let mut running =
        shell(needs_image!(), &["--privileged"], script).env("RUST_LOG", "debug").in_shell(unread).start();
    running.wait_for(b"flooded yes\n");
    running.signal(libc::SIGTERM);
    running.wait().code(7);
}

#[test]
fn a_command_that_fills_the_memory_is_killed_and_bothy_returns() {
    needs_linux!();
    // First a child of the container's PID 1, then PID 1 itself.
    let script = "inside eat; echo child $?; exec inside eat";
    let finished = shell(needs_image!(), &["-m", "64M"], script).run().code(137);
    assert_eq!(finished.stdout, b"child 137\n", "{}", finished.stderr);
}

#[test]
fn a_command_that_fills_its_file_system_goes_on_or_is_killed() {
    needs_linux!();
    let script = "dd if=/dev/zero of=/tmp/fill bs=1024k 2>/dev/null; rm -f /tmp/fill; echo written; exit 3";
    let finished = shell(needs_image!(), &["-m", "64M"], script).run();
    let ended = (finished.code, finished.stdout.as_slice());
    assert!([(3, &b"written\n"[..]), (137, b"")].contains(&ended), "{}", finished.streams());
}

#[test]
fn a_fork_bomb_ends_with_its_command() {
    needs_linux!();
    let image = needs_image!();
    let limited = "ulimit -u 200; exec inside bomb 2";
    shell(image, &["-u", "web", "-m", "128M"], limited).run().code(7);
    if long() {
        let finished =
            shell(image, &["-m", "256M"], "exec inside bomb 5").limit(Duration::from_secs(300)).run();
        assert!([7, 137].contains(&finished.code), "{}", finished.streams());
    }
}
