//! The standard streams of `bothy run`.

use std::process::Command;
use std::time::Duration;

use super::{LIMIT, needs_image, run, shell};
use crate::guest::{long, needs_linux, noise};
use crate::support::{file, scratch};

#[test]
fn bytes_pass_both_ways_at_once_exactly() {
    needs_linux!();
    let image = needs_image!();
    let content = noise(64 << 20, 21);
    let finished = run(image, ["-i", "app", "cat"]).input(content.clone()).limit(LIMIT * 3).run();
    let output = finished.output();
    assert_eq!(output.len(), content.len());
    let wrong = output.iter().zip(&content).position(|(got, sent)| got != sent);
    assert_eq!(wrong, None, "the first byte that differs");
    if long() {
        let dir = scratch();
        file(dir.path(), "in", &noise(1 << 30, 22));
        let run = run(image, ["-i", "app", "cat"]).in_shell("exec \"$@\" <in >out").current_dir(dir.path());
        run.limit(Duration::from_secs(1800)).run().output();
        let same = Command::new("cmp").args(["in", "out"]).current_dir(dir.path()).status().unwrap();
        assert!(same.success(), "a GiB has changed on its way");
    }
}

#[test]
fn a_reader_that_stalls_holds_up_neither_stderr_nor_signals() {
    needs_linux!();
    let script = "trap 'echo asked >&2; exit 4' TERM; yes & sleep 1; echo alive >&2; wait";
    let mut running = shell(needs_image!(), &[], script).unread_output().start();
    running.wait_for_message("alive");
    assert!(running.unread_len() > 0);
    running.signal(libc::SIGTERM);
    running.wait_for_message("asked");
    running.close_output();
    let finished = running.wait().code(4);
    assert_eq!(finished.stderr, "alive\nasked\n");
}

#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    needs_linux!();
    // As PID 1 it hears of it by EPIPE: the kernel doesn't end it by SIGPIPE.
    let finished = run(needs_image!(), ["app", "yes"]).in_shell("\"$@\" | head -1").run();
    assert_eq!(finished.code(0).says("Broken pipe").stdout, b"y\n");
}

#[test]
fn input_that_nobody_reads_does_not_hold_up_the_end() {
    needs_linux!();
    let image = needs_image!();
    run(image, ["-i", "app", "sh", "-c", "exec 0<&-; sleep 0.5; exit 3"])
        .input(noise(8 << 20, 23))
        .run()
        .code(3);
    // Of an input that never ends only the first line is taken.
    let mut running = shell(image, &["-i"], "read -r line; echo \"got $line\"; exit 2").open_input().start();
    running.type_in(b"one\ntwo\n");
    assert_eq!(running.wait().code(2).stdout, b"got one\n");
}

#[test]
fn without_i_a_command_has_no_input() {
    needs_linux!();
    let finished = shell(needs_image!(), &[], "cat; echo end; readlink /proc/self/fd/0").input("lost").run();
    assert_eq!(finished.output(), b"end\n/dev/null\n");
}

#[test]
fn output_that_cannot_be_written_is_no_success() {
    needs_linux!();
    let image = needs_image!();
    let full = run(image, ["app", "echo", "x"]).in_shell("exec \"$@\" >/dev/full").run().code(125);
    assert_eq!(full.stderr, "bothy: can't write to standard output: No space left on device (os error 28)\n");
    // The command's own failure stays what it is.
    let failed = shell(image, &[], "echo x; exit 7").in_shell("exec \"$@\" >/dev/full").run().code(7);
    failed.says("can't write to standard output");
    // Of a reader that has gone nothing is said.
    let gone = run(image, ["app", "echo", "x"]).in_shell("(sleep 1; exec \"$@\") | :").run().code(0);
    assert_eq!(gone.stderr, "");
}
