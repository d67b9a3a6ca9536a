//! Terminals, commands that join the first, connections that break, and the machine's end.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bothy_guest::protocol::{ExitStatus, NotStarted, ProcessId, Report, Request, Stdio, WindowSize};

use crate::machine::{Machine, id, needs_machine, read_until, text, write};

fn run_in_terminal(machine: &mut Machine, id: ProcessId, args: &[&str], user: &str) -> UnixStream {
    let stream = machine.token();
    let size = WindowSize { rows: 30, columns: 100 };
    let mut command = machine.command(args, Stdio::Terminal { stream, input: true, size });
    command.user = user.into();
    machine.send(&Request::Run { id, command: Box::new(command) });
    machine.stream(stream)
}

#[test]
fn a_terminal_has_a_size_a_console_and_job_control() {
    needs_machine!();
    let mut machine = Machine::new();
    // The traps are set before the last line: the host resizes as soon as it has read that.
    let script = "trap 'stty size' WINCH; trap 'echo interrupted; exit 4' INT; stty size; tty; \
        [ -c /dev/console ] && echo console; echo direct >/dev/tty; while :; do sleep 0.05; done";
    let mut terminal = run_in_terminal(&mut machine, id(1), &["sh", "-c", script], "web");
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    assert_eq!(read_until(&mut terminal, "direct\r\n"), "30 100\r\n/dev/pts/0\r\nconsole\r\ndirect\r\n");
    machine.send(&Request::Resize { id: id(1), size: WindowSize { rows: 50, columns: 132 } });
    read_until(&mut terminal, "50 132\r\n");
    write(&mut terminal, "\x03");
    assert!(text(&mut terminal).ends_with("interrupted\r\n"));
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(4) });
}

#[test]
fn all_that_a_terminal_has_to_say_is_said() {
    needs_machine!();
    let mut machine = Machine::new();
    let mut terminal = run_in_terminal(&mut machine, id(1), &["seq", "1", "50000"], "");
    assert_eq!(text(&mut terminal).lines().count(), 50_000);
}

#[test]
fn a_terminal_s_input_ends_and_a_host_that_leaves_hangs_up() {
    needs_machine!();
    let mut machine = Machine::new();
    let mut terminal = run_in_terminal(&mut machine, id(1), &["cat"], "");
    write(&mut terminal, "line\n");
    read_until(&mut terminal, "line\r\nline\r\n");
    terminal.shutdown(Shutdown::Write).unwrap();
    assert_eq!(text(&mut terminal), "");
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(0) });
    drop(machine);

    let mut machine = Machine::new();
    // A shell that sees to its child: PID 1 itself gets no signal that it doesn't ask for.
    let mut terminal = run_in_terminal(
        &mut machine,
        id(1),
        &["sh", "-c", "trap 'exit 9' HUP; echo ready; while :; do sleep 0.05; done"],
        "",
    );
    read_until(&mut terminal, "ready");
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    drop(terminal);
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(9) });
}

#[test]
fn later_commands_join_the_first_and_end_with_it() {
    needs_machine!();
    let mut machine = Machine::new();
    // It says when it forks no more: between fork and exec a child would look like a second one.
    let script = "touch /first; mount; echo ready; read line";
    let mut first = machine.run_with(id(1), &["sh", "-c", script], true, |_| ());
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    read_until(&mut first.stdout, "ready\n");
    let script = "hostname; ls /first; ps | grep -c '[r]ead line'; grep ^0: /proc/self/cgroup; grep CapEff /proc/self/status; id -u";
    let (status, output) =
        machine.finish(id(2), &["sh", "-c", script], |command| command.user = "web".into());
    assert_eq!(status, ExitStatus::Code(0));
    assert_eq!(output, "bothy-test\n/first\n1\n0::/\nCapEff:\t0000000000000000\n1000\n");
    let mut terminal = run_in_terminal(&mut machine, id(3), &["sh", "-c", "tty; sleep 1000"], "");
    assert_eq!(machine.report(), Report::Started { id: id(3) });
    read_until(&mut terminal, "/dev/pts/0\r\n");
    let _refused = machine.run(id(4), &["nothing"], |_| ());
    assert!(matches!(
        machine.report(),
        Report::NotStarted { id: ProcessId { process: 4, .. }, reason: NotStarted::NotFound, .. }
    ));
    drop(first.stdin);
    let mut ends = [machine.report(), machine.report()];
    ends.sort_by_key(|report| if let Report::Ended { id, .. } = report { id.process } else { 0 });
    assert_eq!(ends[1], Report::Ended { id: id(3), status: ExitStatus::Signal(9) });
    assert_eq!(ends[0], Report::Ended { id: id(1), status: ExitStatus::Code(1) });
    let token = machine.token();
    let late = machine.command(&["true"], Stdio::Pipes { stdin: None, stdout: token, stderr: token });
    machine.send(&Request::Run { id: id(5), command: Box::new(late) });
    assert!(matches!(
        machine.report(),
        Report::NotStarted { id: ProcessId { process: 5, .. }, reason: NotStarted::Other, .. }
    ));
}

#[test]
fn a_reader_that_leaves_ends_the_writer() {
    needs_machine!();
    let mut machine = Machine::new();
    let mut streams = machine.run(id(1), &["yes"], |_| ());
    let mut some = [0; 10_000];
    streams.stdout.read_exact(&mut some).unwrap();
    drop(streams.stdout);
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    // As PID 1 it gets no SIGPIPE, but EPIPE.
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(1) });
}

#[test]
fn a_reader_that_stalls_holds_up_only_its_own_stream() {
    needs_machine!();
    let mut machine = Machine::new();
    let mut streams = machine.run(id(1), &["sh", "-c", "yes | head -c 3000000 & echo now >&2; wait"], |_| ());
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    read_until(&mut streams.stderr, "now");
    machine.send(&Request::Figures);
    let Report::Figures(figures) = machine.report() else { panic!("no figures") };
    assert!(figures.memory_total > figures.memory_available && figures.cpu_busy_us > 0);
    assert!((1..10).contains(&figures.processes), "{figures:?}");
    assert_eq!(text(&mut streams.stdout).len(), 3_000_000);
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(0) });
}

#[test]
fn much_goes_through_in_both_directions() {
    needs_machine!();
    let mut machine = Machine::new();
    let mut streams = machine.run_with(id(1), &["cat"], true, |_| ());
    let mut stdin = streams.stdin.take().unwrap();
    let bytes: u64 = 256 << 20;
    let start = Instant::now();
    let feeder = std::thread::spawn(move || std::io::copy(&mut std::io::repeat(7).take(bytes), &mut stdin));
    let got = std::io::copy(&mut streams.stdout, &mut std::io::sink()).unwrap();
    println!("{} MiB/s", u128::from(bytes >> 20) * 1000 / start.elapsed().as_millis().max(1));
    assert_eq!(got, bytes);
    feeder.join().unwrap().unwrap();
}

#[test]
fn the_agent_dials_again_and_tells_what_happened_meanwhile() {
    needs_machine!();
    let mut machine = Machine::new();
    let mut streams = machine.run_with(id(1), &["sh", "-c", "read line; echo $line"], true, |_| ());
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    machine.control.shutdown(Shutdown::Both).unwrap();
    write(streams.stdin.as_mut().unwrap(), "still here\n");
    assert_eq!(text(&mut streams.stdout), "still here\n");
    machine.accept_control();
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(0) });
    machine.control.write_all(&[0xff; 8]).unwrap();
    machine.accept_control();
    machine.power_off();
}

#[test]
fn what_a_host_that_refuses_has_not_heard_is_told_again() {
    needs_machine!();
    let mut machine = Machine::new();
    let mut streams = machine.run_with(id(1), &["cat"], true, |_| ());
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    machine.control.shutdown(Shutdown::Both).unwrap();
    machine.accept_control();
    drop(streams.stdin.take());
    assert_eq!(text(&mut streams.stdout), "");
    // By now the report has been written, or will be into what is shut.
    std::thread::sleep(Duration::from_millis(50));
    machine.control.shutdown(Shutdown::Both).unwrap();
    machine.accept_control();
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(0) });
    machine.power_off();
}

#[test]
fn power_off_waits_for_bytes_and_not_for_ends_of_the_host_s() {
    needs_machine!();
    let mut machine = Machine::new();
    let mut terminal = run_in_terminal(&mut machine, id(1), &["seq", "1", "5000"], "");
    let kept = terminal.try_clone().unwrap();
    assert_eq!(text(&mut terminal).lines().count(), 5000);
    let start = Instant::now();
    machine.power_off();
    assert!(start.elapsed() < Duration::from_secs(2));
    drop(kept);
    drop(machine);

    let mut machine = Machine::new();
    let mut streams = machine.run(id(1), &["seq", "1", "20000"], |_| ());
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(0) });
    machine.send(&Request::PowerOff);
    std::thread::sleep(Duration::from_millis(500));
    assert!(text(&mut streams.stdout).ends_with("\n20000\n"));
    machine.wait_for_end();
}

#[test]
fn power_off_gives_commands_time_and_no_more() {
    needs_machine!();
    let mut machine = Machine::new();
    let script = "trap 'echo good bye; exit' TERM; echo ready; while :; do sleep 0.05; done";
    let mut streams = machine.run(id(1), &["sh", "-c", script], |_| ());
    read_until(&mut streams.stdout, "ready\n");
    let start = Instant::now();
    machine.send(&Request::PowerOff);
    assert_eq!(text(&mut streams.stdout), "good bye\n");
    drop(streams);
    machine.wait_for_end();
    assert!(start.elapsed() < Duration::from_secs(3));
    drop(machine);

    let mut machine = Machine::new();
    let mut streams =
        machine.run(id(1), &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], |_| ());
    read_until(&mut streams.stdout, "ready\n");
    let start = Instant::now();
    drop(streams);
    machine.power_off();
    assert!(start.elapsed() < Duration::from_secs(9));
    drop(machine);

    // PID 1 that handles no SIGTERM isn't waited for.
    let mut machine = Machine::new();
    let _streams = machine.run(id(1), &["sleep", "1000"], |_| ());
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    let start = Instant::now();
    machine.send(&Request::PowerOff);
    assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Signal(9) });
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn what_kills_everybody_doesn_t_kill_the_agent() {
    needs_machine!();
    let mut machine = Machine::new();
    let (status, _) = machine.finish(
        id(1),
        &["sh", "-c", "(kill -9 -1); for i in 1 2 3; do sleep 1000 & done; exit 6"],
        |_| (),
    );
    assert_eq!(status, ExitStatus::Code(6));
    machine.send(&Request::Figures);
    let Report::Figures(figures) = machine.report() else { panic!("no figures") };
    assert_eq!(figures.processes, 0);
}
