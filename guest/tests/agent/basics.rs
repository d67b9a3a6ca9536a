//! Commands with pipes, from their start to the machine's end.

use bothy_guest::protocol::{ExitStatus, NotStarted, Report, Request};

use crate::machine::{Machine, id, needs_machine, read_until, text, write};

#[test]
fn a_command_runs_and_the_machine_ends() {
    needs_machine!();
    let mut machine = Machine::new();
    let (status, output) = machine.finish(id(7), &["sh", "-c", "echo out; echo err >&2; exit 3"], |_| ());
    assert_eq!(status, ExitStatus::Code(3));
    assert_eq!(output, "out\nerr\n");
    machine.power_off();
}

#[test]
fn what_the_host_writes_arrives_with_its_end() {
    needs_machine!();
    let mut machine = Machine::new();
    let mut streams = machine.run_with(id(1), &["cat"], true, |_| ());
    let mut stdin = streams.stdin.take().unwrap();
    write(&mut stdin, "one\n");
    read_until(&mut streams.stdout, "one\n");
    write(&mut stdin, "two\n");
    drop(stdin);
    assert_eq!(text(&mut streams.stdout), "two\n");
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(0) });
}

#[test]
fn a_signal_ends_a_command() {
    needs_machine!();
    let mut machine = Machine::new();
    let streams = machine.run(
        id(1),
        &["sh", "-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.1; done"],
        |_| (),
    );
    let mut stdout = streams.stdout;
    read_until(&mut stdout, "ready");
    machine.send(&Request::Signal { id: id(1), signal: 15 });
    assert_eq!(text(&mut stdout), "got it\n");
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(5) });
}

#[test]
fn a_program_that_is_missing_is_told_and_another_may_follow() {
    needs_machine!();
    let mut machine = Machine::new();
    let _streams = machine.run(id(1), &["no-such-program"], |_| ());
    let message = r#"exec: "no-such-program": executable file not found in $PATH"#.into();
    assert_eq!(machine.report(), Report::NotStarted { id: id(1), reason: NotStarted::NotFound, message });
    assert_eq!(machine.sh("echo fine"), "fine\n");
}
