//! Several containers in one machine: each has a root, namespaces and a cgroup of its own.

use bothy::spec::docker;
use bothy_guest::protocol::{ExitStatus, NotStarted, ProcessId, Report, Request, Root, Stdio, Upper};
use bothy_guest::spec::Container;

use crate::machine::{Machine, id, needs_machine, read_until, text};

const SECOND: ProcessId = ProcessId { container: 2, process: 1 };

fn spec(host_name: &str) -> Container {
    let mut container = docker::container(host_name, false, &[]);
    container.sysctls.retain(|sysctl| sysctl.name.starts_with("net."));
    container
}

/// A root on the machine's image that takes writes in memory.
fn root(machine: &Machine) -> Root {
    Root { image: machine.image(), upper: Upper::Memory, lent: None }
}

/// Asks for a process that gets no streams, and returns why.
fn refusal(machine: &mut Machine, id: ProcessId) -> String {
    let token = machine.token();
    let command = machine.command(&["true"], Stdio::Pipes { stdin: None, stdout: token, stderr: token });
    machine.send(&Request::Run { id, command: Box::new(command) });
    match machine.report() {
        Report::NotStarted { id: refused, reason: NotStarted::Other, message } if refused == id => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_containers_see_nothing_of_each_other() {
    needs_machine!();
    let mut machine = Machine::new();
    let root = root(&machine);
    assert_eq!(machine.create(2, root, spec("second")), Report::Created { container: 2 });
    let script = "echo $0 >/mine; hostname; cat /etc/hostname; echo ready; read line";
    let mut first = machine.run_with(id(1), &["sh", "-c", script, "one"], true, |_| ());
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    assert_eq!(read_until(&mut first.stdout, "ready\n"), "bothy-test\nbothy-test\nready\n");
    let mut second = machine.run_with(SECOND, &["sh", "-c", script, "two"], true, |_| ());
    assert_eq!(machine.report(), Report::Started { id: SECOND });
    assert_eq!(read_until(&mut second.stdout, "ready\n"), "second\nsecond\nready\n");

    // Processes that join see their own container: files, processes, cgroup, and no mount of the
    // other.
    let look = "cat /mine; ps | grep -c '[r]ead line'; cat /proc/1/cmdline | tr '\\0' ' ' | grep -o '[a-z]* $'; \
        grep ^0: /proc/self/cgroup; mount | grep -c containers/";
    for (container, own) in [(1, "one"), (2, "two")] {
        let joined = ProcessId { container, process: 2 };
        let (status, output) = machine.finish(joined, &["sh", "-c", look], |_| ());
        assert_eq!(
            output,
            format!("{own}\n1\n{own} \n0::/\n1\n"),
            "the overlay's own options name its directories"
        );
        assert_eq!(status, ExitStatus::Code(0), "{output}");
    }

    // The end of one is not the other's.
    drop(first.stdin);
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(1) });
    let (status, output) = machine.finish(ProcessId { container: 2, process: 3 }, &["cat", "/mine"], |_| ());
    assert_eq!((status, output.as_str()), (ExitStatus::Code(0), "two\n"));
    assert_eq!(refusal(&mut machine, id(4)), "the container has ended");
    machine.send(&Request::Signal { id: SECOND, signal: 9 });
    assert_eq!(machine.report(), Report::Ended { id: SECOND, status: ExitStatus::Signal(9) });
    assert_eq!(text(&mut second.stdout), "");
    machine.power_off();
}

#[test]
fn the_same_process_number_is_another_process_in_another_container() {
    needs_machine!();
    let mut machine = Machine::new();
    let root = root(&machine);
    assert_eq!(machine.create(2, root, spec("second")), Report::Created { container: 2 });
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    for id in [id(1), SECOND] {
        let mut streams = machine.run(id, &["sh", "-c", script], |_| ());
        assert_eq!(machine.report(), Report::Started { id });
        read_until(&mut streams.stdout, "ready\n");
    }
    machine.send(&Request::Figures);
    let Report::Figures(figures) = machine.report() else { panic!("no figures") };
    assert!(figures.processes >= 2, "{figures:?}");
    for id in [SECOND, id(1)] {
        machine.send(&Request::Signal { id, signal: 15 });
        assert_eq!(machine.report(), Report::Ended { id, status: ExitStatus::Code(3) });
    }
}

#[test]
fn a_container_that_cannot_be_created_leaves_the_machine_and_its_number_as_they_were() {
    needs_machine!();
    let mut machine = Machine::new();
    let good = root(&machine);
    let refused = |machine: &mut Machine, root: Root, spec: Container| match machine.create(2, root, spec) {
        Report::NotCreated { container: 2, message } => message,
        other => panic!("{other:?}"),
    };
    let missing = Root { image: "no-such-device".into(), ..good.clone() };
    let message = refused(&mut machine, missing, spec("x"));
    assert!(message.starts_with("cannot mount /dev/no-such-device as erofs"), "{message}");
    let bad = Root { lent: Some("../etc".into()), ..good.clone() };
    assert_eq!(refused(&mut machine, bad, spec("x")), "\"../etc\" is no block device");
    let message = match machine.create(1, good.clone(), spec("x")) {
        Report::NotCreated { container: 1, message } => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(message, "there is a container 1 already");
    assert_eq!(refusal(&mut machine, SECOND), "there is no container 2");

    assert_eq!(machine.create(2, good, spec("second")), Report::Created { container: 2 });
    let (status, output) = machine.finish(SECOND, &["hostname"], |_| ());
    assert_eq!((status, output.as_str()), (ExitStatus::Code(0), "second\n"));
    let (status, output) = machine.finish(id(1), &["hostname"], |_| ());
    assert_eq!((status, output.as_str()), (ExitStatus::Code(0), "bothy-test\n"));
}
