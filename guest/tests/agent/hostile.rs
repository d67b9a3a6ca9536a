//! Images whose trees are made to lead the agent astray, and containers that put traps where the
//! agent looks.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command as Process;

use bothy_guest::protocol::{ExitStatus, NotStarted, ProcessId, Report};
use bothy_guest::spec::{Container, Protect, Protection};

use crate::machine::{Kind, Machine, Options, id, needs_machine, read_until, text};

/// Prints one line for whatever a container must not have, and `checked` at the end.
const CHECK: &str = r#"
    [ "$(stat -f -c %T /proc)" = proc ] || echo "/proc is none"
    [ "$(stat -f -c %T /sys)" = sysfs ] || echo "/sys is none"
    [ "$(stat -f -c %T /dev)" = tmpfs ] || echo "/dev is none"
    [ "$(stat -c %t:%T /dev/null)" = 1:3 ] || echo "/dev/null is none"
    for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do
        [ "$(cat $f 2>/dev/null | wc -c)" = 0 ] || echo "$f is not masked"
    done
    [ "$(ls -A /sys/firmware 2>/dev/null | wc -l)" = 0 ] || echo "/sys/firmware is not masked"
    for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/profiling \
        /sys/fs/cgroup/cgroup.procs; do
        ( : >>$f ) 2>/dev/null && echo "$f can be written"
    done
    # No other procfs, sysfs or devtmpfs shows anywhere, nor anything of the agent's.
    awk '{ for (i = 7; $i != "-"; i++); print $(i + 1), $5 }' /proc/self/mountinfo | while read -r kind at; do
        case "$kind $at" in
        'overlay /' | 'proc /proc' | 'proc /proc/'* | 'sysfs /sys' | 'cgroup2 /sys/fs/cgroup' | 'mqueue /dev/mqueue' | \
        'devpts /dev/pts' | 'tmpfs /dev' | 'tmpfs /dev/shm' | 'tmpfs /sys/firmware' | 'tmpfs /sys/devices/virtual/powercap' | \
        'tmpfs /proc/'* | 'tmpfs /etc/hosts' | 'tmpfs /etc/hostname' | 'tmpfs /etc/resolv.conf') ;;
        *) echo "$kind at $at" ;;
        esac
    done
    [ "$(cat /etc/hostname)" = bothy-test ] || echo "no /etc/hostname"
    [ "$(readlink /etc/mtab)" = /proc/mounts ] && grep -q ' / ' /etc/mtab || echo "no /etc/mtab"
    for p in /proc /sys /dev /etc; do [ -d $p ] && [ ! -L $p ] || echo "$p is no directory"; done
    echo checked"#;

/// Changes what the host sends.
type Change = fn(&mut Container);

/// What can stand in the place of a directory.
#[derive(Clone, Copy, Debug)]
enum Trap {
    Relative,
    Absolute,
    Upward,
    Dangling,
    Loop,
    File,
    Device,
    Pipe,
    Missing,
}

const TRAPS: [Trap; 9] = [
    Trap::Relative,
    Trap::Absolute,
    Trap::Upward,
    Trap::Dangling,
    Trap::Loop,
    Trap::File,
    Trap::Device,
    Trap::Pipe,
    Trap::Missing,
];

/// Puts it at `name` of an image's root.
fn lay(root: &Path, name: &str, trap: Trap) -> io::Result<()> {
    let path = root.join(name);
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(&path)?;
    }
    let made = |program: &str, args: &[&str]| {
        let status = Process::new(program).arg(&path).args(args).status().unwrap();
        assert!(status.success(), "{program}");
    };
    // Where links lead to is there, if they don't dangle.
    let target = format!("elsewhere-{name}");
    match trap {
        Trap::Relative | Trap::Absolute | Trap::Upward => fs::create_dir_all(root.join(&target))?,
        _ => {}
    }
    match trap {
        Trap::Relative => symlink(format!("tmp/../{target}"), path)?,
        Trap::Absolute => symlink(format!("/{target}"), path)?,
        Trap::Upward => symlink(format!("../../../../{target}"), path)?,
        Trap::Dangling => symlink("/dev/shm/gone", path)?,
        Trap::Loop => symlink(name, path)?,
        Trap::File => fs::write(path, "file")?,
        Trap::Device => made("mknod", &["c", "1", "1"]),
        Trap::Pipe => made("mkfifo", &[]),
        Trap::Missing => {}
    }
    Ok(())
}

/// The accounts that are needed to start anything by name are those of numbers.
fn checked(options: &Options, what: &str) {
    let mut machine = Machine::with(options);
    let (status, output) = machine.finish(id(1), &["/bin/sh", "-c", CHECK], |_| ());
    assert_eq!((status, output.as_str()), (ExitStatus::Code(0), "checked\n"), "{what}");
}

/// With all four directories of a kind at once.
fn all_four<const TRAP: usize>(root: &Path) -> io::Result<()> {
    ["proc", "sys", "dev", "etc"].iter().try_for_each(|name| lay(root, name, TRAPS[TRAP]))
}

#[test]
fn whatever_stands_where_a_container_needs_a_directory_is_replaced() {
    needs_machine!();
    let fills: [fn(&Path) -> io::Result<()>; 9] = [
        all_four::<0>,
        all_four::<1>,
        all_four::<2>,
        all_four::<3>,
        all_four::<4>,
        all_four::<5>,
        all_four::<6>,
        all_four::<7>,
        all_four::<8>,
    ];
    for (fill, trap) in fills.into_iter().zip(TRAPS) {
        checked(&Options { fill, ..Options::default() }, &format!("{trap:?}"));
    }
    checked(&Options { fill: all_four::<0>, upper: Kind::ReadOnly, ..Options::default() }, "read-only");
}

#[test]
fn a_proc_that_leads_through_dev_is_masked_all_the_same() {
    needs_machine!();
    // The mount of /dev used to cover the link's target, so that nothing was found to mask.
    let fills: [fn(&Path) -> io::Result<()>; 3] = [
        |root| {
            fs::create_dir_all(root.join("dev/shm/proc"))?;
            fs::remove_dir(root.join("proc"))?;
            symlink("dev/shm/proc", root.join("proc"))
        },
        |root| {
            fs::create_dir_all(root.join("dev/p/sys"))?;
            fs::remove_dir(root.join("proc"))?;
            fs::remove_dir(root.join("sys"))?;
            symlink("/dev/p", root.join("proc"))?;
            symlink("/dev/p/sys", root.join("sys"))
        },
        |root| {
            fs::remove_dir(root.join("dev"))?;
            symlink("proc", root.join("dev"))
        },
    ];
    for (number, fill) in fills.into_iter().enumerate() {
        checked(&Options { fill, ..Options::default() }, &format!("image {number}"));
    }
}

#[test]
fn what_an_image_has_where_the_kernel_s_files_are_changes_nothing() {
    needs_machine!();
    let fill = |root: &Path| {
        for path in ["proc/sys", "proc/irq", "proc/acpi", "sys/firmware", "sys/fs/cgroup", "dev/pts"] {
            fs::create_dir_all(root.join(path).parent().unwrap())?;
            symlink("/tmp", root.join(path))?;
        }
        for path in ["proc/kcore", "proc/keys", "dev/null", "dev/ptmx"] {
            fs::write(root.join(path), "the image's")?;
        }
        symlink("/", root.join("dev/shm"))?;
        symlink("/proc/1/root", root.join("dev/mqueue"))
    };
    checked(&Options { fill, ..Options::default() }, "");
}

#[test]
fn own_files_are_mounted_over_whatever_is_in_their_place() {
    needs_machine!();
    let fill = |root: &Path| {
        symlink("/proc/sys/kernel/core_pattern", root.join("etc/hosts"))?;
        symlink("hostname", root.join("etc/hostname"))?;
        assert!(
            Process::new("mknod").arg(root.join("etc/resolv.conf")).args(["c", "1", "1"]).status()?.success()
        );
        symlink("/nowhere", root.join("etc/mtab"))
    };
    let mut machine = Machine::with(&Options { fill, ..Options::default() });
    let output = machine.sh(
        "cat /etc/hostname; grep -c bothy-test /etc/hosts; stat -c %F /etc/resolv.conf; readlink /etc/mtab",
    );
    assert_eq!(output, "bothy-test\n1\nregular empty file\n/nowhere\n");

    drop(machine);
    let fill = |root: &Path| fs::create_dir(root.join("etc/hosts"));
    let mut machine = Machine::with(&Options { fill, ..Options::default() });
    let _streams = machine.run(id(1), &["true"], |_| ());
    let message = "cannot mount /etc/hosts: the image has a directory there".into();
    assert_eq!(machine.report(), Report::NotStarted { id: id(1), reason: NotStarted::Other, message });
}

#[test]
fn a_mask_that_is_missing_counts_only_where_a_kernel_may_lack_it() {
    needs_machine!();
    fn protect(container: &mut Container, path: &str, how: Protect, optional: bool) {
        container.protections.push(Protection { path: path.into(), how, optional });
    }
    let changes: [(Change, &str); 4] = [
        (
            |container| protect(container, "/proc/no-such", Protect::Mask, false),
            "cannot protect /proc/no-such: No such file or directory (os error 2)",
        ),
        // Of the image's own files none is optional.
        (
            |container| protect(container, "/etc/no-such", Protect::ReadOnly, true),
            "cannot protect /etc/no-such: No such file or directory (os error 2)",
        ),
        (
            |container| protect(container, "/proc/self/status", Protect::Mask, true),
            "cannot protect /proc/self/status: Too many levels of symbolic links (os error 40)",
        ),
        (
            |container| container.mounts.retain(|mount| mount.target != "/proc"),
            "sysctl net.ipv4.ip_unprivileged_port_start: there is no /proc",
        ),
    ];
    for (change, expected) in changes {
        let mut machine = Machine::with(&Options { change, ..Options::default() });
        let _streams = machine.run(id(1), &["true"], |_| ());
        let message = expected.into();
        assert_eq!(machine.report(), Report::NotStarted { id: id(1), reason: NotStarted::Other, message });
    }
}

#[test]
fn no_descriptor_of_the_agent_s_is_a_way_out() {
    needs_machine!();
    let mut machine = Machine::new();
    // These numbers lead somewhere in a process on its way to its program.
    for number in 3..16 {
        let cwd = format!("/proc/self/fd/{number}");
        let _streams = machine.run(id(1), &["true"], |command| command.cwd = cwd.clone().into_bytes());
        match machine.report() {
            Report::NotStarted { id: ProcessId { process: 1, .. }, reason: NotStarted::Other, message } => {
                assert!(message.starts_with("working directory"), "{cwd}: {message}");
            }
            other => panic!("{cwd}: {other:?}"),
        }
    }
    drop(machine);
    // Through links of the image's, and for commands that join.
    let fill = |root: &Path| {
        (3..16).try_for_each(|number| {
            symlink(format!("/proc/self/fd/{number}"), root.join(format!("link{number}")))
        })
    };
    let mut machine = Machine::with(&Options { fill, ..Options::default() });
    let mut first = machine.run_with(id(1), &["cat"], true, |_| ());
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    for number in 3..16 {
        let _streams =
            machine.run(id(2), &["true"], |command| command.cwd = format!("/link{number}").into_bytes());
        match machine.report() {
            Report::NotStarted { id: ProcessId { process: 2, .. }, reason: NotStarted::Other, message } => {
                assert!(message.starts_with("working directory"), "{message}");
            }
            other => panic!("{number}: {other:?}"),
        }
    }
    drop(first.stdin.take());
}

#[test]
fn traps_of_a_running_container_hold_up_no_command_that_joins_it() {
    needs_machine!();
    let mut machine = Machine::new();
    let script = "rm /dev/null /etc/passwd; mkfifo /dev/null /etc/passwd; rm /etc/group; ln -s /proc/self/environ /etc/group; \
        echo ready; read line";
    let mut first = machine.run_with(id(1), &["sh", "-c", script], true, |_| ());
    assert_eq!(machine.report(), Report::Started { id: id(1) });
    read_until(&mut first.stdout, "ready\n");
    let _streams = machine.run(id(2), &["true"], |_| ());
    let message = "pipes: the container's /dev/null is another file".into();
    assert_eq!(machine.report(), Report::NotStarted { id: id(2), reason: NotStarted::Other, message });
    let mut streams = machine.run_with(id(3), &["echo", "joined"], true, |_| ());
    assert_eq!(text(&mut streams.stdout), "joined\n");
}
