//! What a command finds around itself: as in docker's containers.

use std::fs;
use std::os::unix::fs::symlink;

use bothy_guest::protocol::{ExitStatus, NotStarted, ProcessId, Report};

use crate::machine::{Kind, Machine, Options, could_not_run, id, needs_machine};

#[test]
fn a_command_is_alone_with_itself() {
    needs_machine!();
    let output = Machine::new()
        .sh("echo $$; hostname; set -- /proc/[0-9]*; echo $#; ls /proc/self/fd | wc -l; \
        cat /proc/self/oom_score_adj; umask; echo $HOME; pwd; grep ^0: /proc/self/cgroup; id");
    // ls has its three streams and the directory.
    let expected = "1\nbothy-test\n1\n4\n0\n0022\n/root\n/\n0::/\nuid=0(root) gid=0(root) groups=0(root)\n";
    assert_eq!(output, expected);
}

#[test]
fn devices_and_links_are_docker_s() {
    needs_machine!();
    let output = Machine::new().sh("cd /dev; ls | tr '\\n' ' '; echo; stat -c '%n %a %t:%T' null zero full random urandom tty; \
        for link in fd stdin stdout stderr core ptmx; do readlink $link; done; echo x >/dev/null; head -c 3 /dev/zero | wc -c; echo ok >/dev/stdout; \
        stat -c '%a' shm mqueue pts .; df -k shm | tail -1 | awk '{ print $2 }'");
    assert_eq!(
        output,
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \n\
         null 666 1:3\nzero 666 1:5\nfull 666 1:7\nrandom 666 1:8\nurandom 666 1:9\ntty 666 5:0\n\
         /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n/proc/kcore\npts/ptmx\n\
         3\nok\n1777\n1777\n755\n755\n65536\n"
    );
}

#[test]
fn the_kernel_is_out_of_reach() {
    needs_machine!();
    let output = Machine::new().sh("\
        for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/uevent_helper /sys/fs/cgroup/cgroup.procs; do \
            ( echo 1 >$f ) 2>/dev/null && echo wrote $f; done; \
        for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do cat $f 2>/dev/null | wc -c; done; \
        ls /sys/firmware | wc -l; \
        hostname x 2>/dev/null || echo no name; mount -t tmpfs x /tmp 2>/dev/null || echo no mount; \
        grep Cap /proc/self/status | tr -s '\\t' ' '; grep -E 'NoNewPrivs|SigBlk' /proc/self/status | tr -s '\\t' ' '; \
        # Of the two that the C library keeps for itself nothing is said.\n grep SigIgn /proc/self/status | tail -c 8");
    let all = "00000000a80425fb";
    assert_eq!(
        output,
        format!(
            "0\n0\n0\n0\n0\nno name\nno mount\nCapInh: 0000000000000000\nCapPrm: {all}\nCapEff: {all}\nCapBnd: {all}\n\
             CapAmb: 0000000000000000\nSigBlk: 0000000000000000\nNoNewPrivs: 0\n0000000\n"
        )
    );
}

#[test]
fn a_command_runs_as_its_user_in_its_directory() {
    needs_machine!();
    let script = "id; pwd; echo $HOME; echo through >/dev/stdout; grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | tr -s '\\t' ' '";
    let (status, output) = Machine::new().finish(id(1), &["sh", "-c", script], |command| {
        command.user = "web".into();
        command.cwd = b"/srv/new/dir".to_vec();
    });
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    assert_eq!(
        output,
        "uid=1000(web) gid=1000(web) groups=29(audio),1000(web)\n/srv/new/dir\n/home/web\nthrough\n\
         CapPrm: 0000000000000000\nCapEff: 0000000000000000\nCapBnd: 00000000a80425fb\n"
    );
}

#[test]
fn an_environment_with_a_home_keeps_it_and_gets_nothing_else() {
    needs_machine!();
    let (_, output) = Machine::new().finish(id(1), &["/bin/env"], |command| {
        command.env = vec![b"A=1".to_vec(), b"HOME=/x".to_vec()];
    });
    assert_eq!(output, "A=1\nHOME=/x\n");
}

#[test]
fn users_and_programs_that_cannot_be_had_are_refused_for_what_they_are() {
    needs_machine!();
    let mut machine = Machine::new();
    let cases = [
        (
            "true",
            "nobody",
            "/",
            NotStarted::Other,
            "unable to find user nobody: no matching entries in passwd file",
        ),
        ("/etc", "", "/", NotStarted::NotExecutable, r#"exec: "/etc": is a directory"#),
        ("/etc/passwd", "", "/", NotStarted::NotExecutable, r#"exec: "/etc/passwd": permission denied"#),
        (
            "true",
            "",
            "/etc/passwd/x",
            NotStarted::Other,
            r#"working directory "/etc/passwd/x": Not a directory (os error 20)"#,
        ),
    ];
    for (program, user, cwd, reason, message) in cases {
        let _streams = machine.run(id(1), &[program], |command| {
            command.user = user.into();
            command.cwd = cwd.as_bytes().to_vec();
        });
        assert_eq!(machine.report(), Report::NotStarted { id: id(1), reason, message: message.into() });
    }
}

#[test]
fn the_three_files_are_the_container_s_own() {
    needs_machine!();
    let options = Options {
        fill: |root| {
            fs::write(root.join("etc/hostname"), "image\n")?;
            symlink("/nowhere/resolv.conf", root.join("etc/resolv.conf"))
        },
        ..Options::default()
    };
    let output = Machine::with(&options)
        .sh("cat /etc/hostname; grep -c localhost /etc/hosts; tail -1 /etc/hosts; cat /etc/resolv.conf; \
        echo '1.2.3.4 more' >>/etc/hosts; tail -1 /etc/hosts; ls /nowhere 2>/dev/null; true");
    assert_eq!(output.lines().last(), Some("1.2.3.4 more"));
    assert!(output.starts_with("bothy-test\n2\n127.0.0.1\tbothy-test\n"), "{output}");
}

#[test]
fn what_is_written_goes_where_it_was_asked_for() {
    needs_machine!();
    let write = "echo new >/etc/passwd && mv /etc /etc2 && cat /etc2/passwd && rm /bin/ls && touch /new && stat -c %a / && echo done";
    assert_eq!(Machine::new().sh(write), "new\n755\ndone\n");
    let options = Options {
        upper: Kind::ReadOnly,
        fill: |root| {
            ["hosts", "hostname", "resolv.conf"]
                .iter()
                .try_for_each(|name| fs::write(root.join("etc").join(name), ""))
        },
        ..Options::default()
    };
    let output = Machine::with(&options)
        .sh("touch /new 2>/dev/null || echo read-only; cat /etc/hostname; echo x >/dev/shm/x && echo shm");
    assert_eq!(output, "read-only\nbothy-test\nshm\n");
}

#[test]
fn what_is_lent_shows_beside_the_image_and_is_not_written() {
    needs_machine!();
    let options = Options { lend: true, ..Options::default() };
    let mut machine = Machine::with(&options);
    let output = machine.sh("cat /.bothy/file; touch /.bothy/x 2>/dev/null || echo read-only; rm -r /.bothy 2>/dev/null || echo stays");
    assert_eq!(output, "lent\nread-only\nstays\n");
    machine.power_off();
}

#[test]
fn an_image_with_a_link_where_something_is_lent_leads_it_nowhere() {
    needs_machine!();
    let options = Options {
        fill: |root| symlink("/../../../etc", root.join(".bothy")),
        lend: true,
        ..Options::default()
    };
    let output = Machine::with(&options).sh("cat /.bothy/file; ls /etc/file 2>/dev/null; stat -c %F /.bothy");
    assert_eq!(output, "lent\ndirectory\n");
}

#[test]
fn a_scratch_disk_is_grown_and_written() {
    needs_machine!();
    let capabilities = fs::read_to_string("/proc/self/status").unwrap();
    let effective = capabilities.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    if u64::from_str_radix(effective, 16).unwrap() & (1 << 24) == 0 {
        could_not_run("a_scratch_disk_is_grown_and_written", "growing a file system needs CAP_SYS_RESOURCE");
        return;
    }
    let options = Options { upper: Kind::Scratch, ..Options::default() };
    let mut machine = Machine::with(&options);
    let output =
        machine.sh("dd if=/dev/zero of=/big bs=1M count=40 2>/dev/null && ls -l /big | awk '{ print $5 }'");
    assert_eq!(output, "41943040\n");
    machine.power_off();
}

#[test]
fn an_image_s_links_lead_nowhere_and_what_it_lacks_is_made() {
    needs_machine!();
    let options = Options {
        fill: |root| {
            for (name, to) in [
                ("dev", "/../../../run"),
                ("sys", "proc/1/root/../../sys-here"),
                ("etc", "../../../../elsewhere"),
            ] {
                let path = root.join(name);
                if path.is_dir() {
                    fs::remove_dir_all(&path)?;
                }
                symlink(to, &path)?;
            }
            ["run", "sys-here", "elsewhere"].iter().try_for_each(|name| fs::create_dir(root.join(name)))
        },
        ..Options::default()
    };
    let mut machine = Machine::with(&options);
    let _streams = machine.run(id(1), &["sh", "-c", "true"], |_| ());
    // Whether it starts or not is the image's own matter; the agent goes on.
    match machine.report() {
        Report::NotStarted { reason: NotStarted::Other, .. } => {}
        Report::Started { id: ProcessId { process: 1, .. } } => {
            assert_eq!(machine.report(), Report::Ended { id: id(1), status: ExitStatus::Code(0) });
        }
        other => panic!("{other:?}"),
    }
    machine.power_off();
    drop(machine);

    let options = Options {
        root_from_image: false,
        fill: |root| fs::copy("/bin/busybox", root.join("busybox")).map(drop),
        ..Options::default()
    };
    let (status, output) = Machine::with(&options).finish(id(1), &["/busybox", "ls", "/"], |_| ());
    assert_eq!((status, output.as_str()), (ExitStatus::Code(0), "busybox\ndev\netc\nproc\nsys\n"));
    let options = Options { upper: Kind::ReadOnly, ..options };
    let (status, output) = Machine::with(&options).finish(id(1), &["/busybox", "ls", "/"], |_| ());
    assert_eq!((status, output.as_str()), (ExitStatus::Code(0), "busybox\ndev\netc\nproc\nsys\n"));
}

#[test]
fn device_nodes_can_be_made_and_not_opened() {
    needs_machine!();
    let output = Machine::new()
        .sh("mknod /tmp/disk b 7 0 && mknod /tmp/mem c 1 1 && mknod /tmp/null c 1 3 && echo made; \
        for f in disk mem null; do head -c 0 /tmp/$f; done 2>&1");
    assert_eq!(
        output,
        "made\nhead: /tmp/disk: Operation not permitted\nhead: /tmp/mem: Operation not permitted\n"
    );
}

#[test]
fn privileged_means_everything() {
    needs_machine!();
    let options = Options { privileged: true, ..Options::default() };
    let output = Machine::with(&options)
        .sh("mount -t tmpfs x /tmp && echo mounted; [ -b /dev/loop0 ] && echo disk; \
        mkdir /sys/fs/cgroup/sub && rmdir /sys/fs/cgroup/sub && echo cgroup");
    assert_eq!(output, "mounted\ndisk\ncgroup\n");
}
